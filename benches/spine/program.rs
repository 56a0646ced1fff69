//! `headwater run` as users run it: the real program in a process of its own, its config, its metrics, its end.
//!
//! Invariant: it never outlives the bench.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Result;
use super::meter::cpu_of;

/// The program that is measured; a copy can be named so that a build meanwhile changes nothing.
pub const BINARY: &str = env!("CARGO_BIN_EXE_headwater");
const LOOK_EVERY: Duration = Duration::from_millis(10);
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How a process runs.
#[derive(Clone, Debug)]
pub struct Settings {
    pub binary: PathBuf,
    pub brokers: String,
    pub data_dir: PathBuf,
    /// Where checkpoints are copied to.
    pub state_url: String,
    pub s3: BTreeMap<String, String>,
    pub threads: usize,
    pub epoch: Duration,
    pub checkpoint_interval: Duration,
    pub state_budget_mib: u64,
}

impl Settings {
    fn config(&self) -> String {
        let quoted = |text: &str| format!("'{text}'");
        let mut config = format!(
            "brokers: {}\ndata_dir: {}\nstate: {{url: {}, budget: {}MiB}}\nhttp: {{listen: '127.0.0.1:0'}}\n\
             worker: {{threads: {}, epoch: {}ms, checkpoint_interval: {}ms}}\n",
            quoted(&self.brokers),
            quoted(&self.data_dir.display().to_string()),
            quoted(&self.state_url),
            self.state_budget_mib,
            self.threads,
            self.epoch.as_millis(),
            self.checkpoint_interval.as_millis(),
        );
        if !self.s3.is_empty() {
            config.push_str("s3:\n");
            for (key, value) in &self.s3 {
                config.push_str(&format!("  {key}: {}\n", quoted(value)));
            }
        }
        config
    }
}

/// A process that runs a topology; killed when it is dropped.
pub struct Running {
    child: Child,
    pub spawned: Instant,
    /// When it had loaded its topology and reached its brokers.
    planned: Arc<OnceLock<Instant>>,
    log: PathBuf,
    ended: bool,
}

impl Running {
    /// Starts it; its files are named by `name`, in the topology's folder.
    pub fn start(
        folder: &Path,
        name: &str,
        topology: &str,
        settings: &Settings,
        until_end: bool,
    ) -> Result<Self> {
        let file = |ending: &str| folder.join(format!("{name}.{ending}"));
        std::fs::write(file("config.yaml"), settings.config())?;
        std::fs::write(file("yaml"), topology)?;
        let log = file("log");
        let mut command = Command::new(&settings.binary);
        command.arg("run").arg(file("yaml")).arg("--config").arg(file("config.yaml")).arg("-v");
        if until_end {
            command.arg("--until-end");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&log)?);
        die_with_the_bench(&mut command);
        let spawned = Instant::now();
        let mut child = command.spawn()?;
        let planned = Arc::new(OnceLock::new());
        if let Some(stdout) = child.stdout.take() {
            let planned = Arc::clone(&planned);
            std::thread::spawn(move || {
                for _line in BufReader::new(stdout).lines() {
                    planned.get_or_init(Instant::now);
                }
            });
        }
        Ok(Self { child, spawned, planned, log, ended: false })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From its start until it had loaded its topology and reached its brokers.
    pub fn planned_seconds(&self) -> f64 {
        self.planned.get().map_or(f64::NAN, |at| at.duration_since(self.spawned).as_secs_f64())
    }

    /// User and system time so far, to the tick.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_of(self.pid())
    }

    /// An error if it has ended, with what it said.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                self.ended = true;
                Err(format!("headwater run has ended ({status}): {}", self.said()).into())
            }
        }
    }

    /// Whether it has ended; it can still be waited for.
    pub fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // The program's name, in parentheses, may hold spaces.
        stat.rsplit(')').next().is_some_and(|fields| fields.trim_start().starts_with('Z'))
    }

    /// The end of what it has logged.
    pub fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// What it exports now.
    pub fn metrics(&mut self) -> Result<Metrics> {
        let until = Instant::now() + ANSWER_MAX;
        let address = loop {
            self.check()?;
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let rest =
                text.split_once("metrics at http://").and_then(|(_, rest)| rest.split_once("/metrics"));
            match rest {
                Some((address, _)) => break address.to_owned(),
                None if Instant::now() > until => return Err("headwater run serves no metrics".into()),
                None => std::thread::sleep(LOOK_EVERY),
            }
        };
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(Metrics::parse(&answer))
    }

    /// `kill -9`.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.ended = true;
        Ok(())
    }

    /// SIGTERM: it commits and leaves. All its CPU seconds.
    pub fn stop(self) -> Result<f64> {
        // SAFETY: a signal to a child that was not waited for yet.
        unsafe { libc::kill(self.pid() as libc::pid_t, libc::SIGTERM) };
        self.wait()
    }

    /// Waits for its end, which must be good. All its CPU seconds.
    pub fn wait(mut self) -> Result<f64> {
        let mut status = 0;
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: the call fills what it is given, or fails.
        let usage = unsafe {
            if libc::wait4(self.pid() as libc::pid_t, &raw mut status, 0, usage.as_mut_ptr()) < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            usage.assume_init()
        };
        self.ended = true;
        if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 0 {
            return Err(format!("headwater run has failed: {}", self.said()).into());
        }
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
        Ok(seconds(usage.ru_utime) + seconds(usage.ru_stime))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Of a process group of its own, so that Ctrl-C is the bench's to handle, and killed if the bench is.
pub fn die_with_the_bench(command: &mut Command) {
    command.process_group(0);
    // SAFETY: a system call that is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// Whether the program takes a topology; what it says if not.
pub fn refusal(binary: &Path, folder: &Path, topology: &str) -> Result<Option<String>> {
    let file = folder.join("tried.yaml");
    std::fs::write(&file, topology)?;
    let output = Command::new(binary).arg("check").arg(&file).output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((!output.status.success()).then_some(said))
}

/// What `/metrics` showed: name, labels as they stand there, value.
#[derive(Default)]
pub struct Metrics(Vec<(String, String, f64)>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| line.starts_with("headwater_")).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            Some((name.to_owned(), labels.to_owned(), value.parse().ok()?))
        });
        Self(series.collect())
    }

    fn of<'a>(&'a self, name: &'a str, label: &'a str) -> impl Iterator<Item = f64> + 'a {
        let of = move |series: &&(String, String, f64)| series.0 == name && series.1.contains(label);
        self.0.iter().filter(of).map(|(_, _, value)| *value)
    }

    /// Over all series whose labels hold `label`, e.g. `phase="load"`.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        self.of(name, label).sum()
    }
}
