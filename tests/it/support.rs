//! What the integration tests share: a real Kafka, started once a test process, and another engine to ask.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/kafka");
const PORT: &str = "19092";

/// The address of a real Kafka; `None`, loudly, where none can be had. `HEADWATER_TEST_KAFKA` names a running
/// one; else `tests/stack/kafka` starts one, which ends with this process unless it ran before.
pub fn real_kafka() -> Option<&'static str> {
    static ADDRESS: OnceLock<Option<String>> = OnceLock::new();
    let address = ADDRESS.get_or_init(|| {
        if let Ok(address) = std::env::var("HEADWATER_TEST_KAFKA") {
            return Some(address);
        }
        for tool in ["java", "mvn"] {
            if Command::new(tool).arg("-version").output().is_err() {
                eprintln!(
                    "SKIPPED: no real Kafka without {tool}; set HEADWATER_TEST_KAFKA=host:port to name one"
                );
                return None;
            }
        }
        let script = |action: &str| {
            let mut command = Command::new(SCRIPT);
            command.arg(action).env("KAFKA_PORT", PORT).stdout(Stdio::null());
            command
        };
        if !script("status").status().unwrap().success() {
            assert!(script("start").status().unwrap().success(), "{SCRIPT} start failed");
            // Stops the broker when the pipe closes, however this process ends.
            let guard = Command::new("sh")
                .args(["-c", "cat >/dev/null; exec \"$0\" stop >/dev/null", SCRIPT])
                .env("KAFKA_PORT", PORT)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            std::mem::forget(guard);
        }
        Some(format!("127.0.0.1:{PORT}"))
    });
    address.as_deref()
}

/// The Python that has DuckDB: `HEADWATER_TEST_PYTHON`, or python3; `None`, loudly, where it has not.
pub fn python_with_duckdb(test: &str) -> Option<String> {
    let python = std::env::var("HEADWATER_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import duckdb"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!(
        "SKIPPED {test}: {python} has no duckdb (pip install duckdb; HEADWATER_TEST_PYTHON names another)"
    );
    None
}

/// A name that no other test, and no earlier run, uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    format!("{name}.{since:x}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Repeats `step` until it gives a value; panics when that takes over a minute.
pub fn until<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    within(Duration::from_secs(60), what, &mut step)
}

pub fn within<T>(limit: Duration, what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for: {what}");
    }
}
