//! A folder to work in, as a user's project, and the real binary run in it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub struct Project(TempDir);

pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Project {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    pub fn path(&self) -> &Path {
        self.0.path()
    }
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
        command.args(arguments).current_dir(self.path()).env_remove("HEADWATER_BROKERS");
        command
    }
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, "")
    }
    pub fn run_with(&self, arguments: &[&str], input: &str) -> Outcome {
        let mut command = self.command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that does not read its input may end before it is written.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Outcome {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
    /// Runs it and expects it to go well.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, 0, "{arguments:?}: {}", outcome.err);
        outcome.out
    }
    /// Serves the embedded broker on a free port until it is dropped.
    pub fn broker(&self) -> Server {
        self.broker_at("127.0.0.1:0")
    }
    pub fn broker_at(&self, listen: &str) -> Server {
        let mut child =
            self.command(&["broker", "--listen", listen, "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let serving: Value = serde_json::from_str(&line).unwrap();
        let address = serving["address"].as_str().unwrap().to_owned();
        assert!(address.starts_with("127.0.0.1:"));
        Server { child, address }
    }
    /// Starts it and lets it run; what it prints goes to files beside it. Killed when it is dropped.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let file = |name: &str| {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).append(true).open(self.path().join(name)).unwrap()
        };
        let child = self.command(arguments).stdout(file("out.log")).stderr(file("err.log")).spawn().unwrap();
        Running(child)
    }
    /// What started commands have printed: stdout, stderr.
    pub fn printed(&self) -> (String, String) {
        let text = |name: &str| std::fs::read_to_string(self.path().join(name)).unwrap_or_default();
        (text("out.log"), text("err.log"))
    }
}

/// A `headwater broker` process; killed when it is dropped.
pub struct Server {
    child: Child,
    pub address: String,
}

impl Server {
    pub fn stop(mut self) -> Option<i32> {
        signal(&self.child, "-TERM");
        self.child.wait().unwrap().code()
    }
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that goes on by itself; killed when it is dropped.
pub struct Running(Child);

impl Running {
    /// `kill -9`.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
    pub fn signal(&self, name: &str) {
        signal(&self.0, name);
    }
    /// The exit code, if it has ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        self.0.try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }
    /// Waits for its end; the exit code, and how long that took.
    pub fn wait(mut self, limit: Duration) -> (i32, Duration) {
        let began = Instant::now();
        let code = crate::support::within(limit, "the end of the process", || {
            std::thread::sleep(Duration::from_millis(5));
            self.ended()
        });
        (code, began.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}
