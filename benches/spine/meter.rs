//! CPU, memory and time of one job.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Result;

/// What one job took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub seconds: f64,
    /// User and system time of the job's process, all its threads.
    pub cpu_seconds: f64,
    pub rss_peak_bytes: u64,
    /// `None`: the broker is not ours to look at.
    pub broker_cpu_seconds: Option<f64>,
    /// What was checked, in words.
    pub found: String,
}

/// Measures from its making to [`Meter::stop`].
pub struct Meter {
    began: Instant,
    cpu_seconds: f64,
    broker: Option<(u32, f64)>,
}

impl Meter {
    pub fn start(broker_pid: Option<u32>) -> Result<Self> {
        let broker = match broker_pid {
            Some(pid) => Some((pid, cpu_of(pid)?)),
            None => None,
        };
        Ok(Self { broker, cpu_seconds: own_cpu()?, began: Instant::now() })
    }

    pub fn stop(self) -> Result<Measured> {
        let seconds = self.began.elapsed().as_secs_f64();
        let cpu_seconds = own_cpu()? - self.cpu_seconds;
        let broker_cpu_seconds = match self.broker {
            Some((pid, before)) => Some(cpu_of(pid)? - before),
            None => None,
        };
        let found = String::new();
        Ok(Measured { seconds, cpu_seconds, rss_peak_bytes: rss_peak()?, broker_cpu_seconds, found })
    }
}

/// User and system seconds of this process.
pub fn own_cpu() -> Result<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the call fills what it is given, or fails.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    Ok(seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

/// User and system seconds of another process, to the tick: fields 14 and 15 of proc(5)'s stat.
pub fn cpu_of(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) else {
        return Err(format!("/proc/{pid}/stat is not as expected").into());
    };
    // SAFETY: asks for a constant.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok((user.parse::<f64>()? + system.parse::<f64>()?) / ticks_per_second)
}

/// The most memory that this process has had resident. `getrusage` would count the process that started it.
fn rss_peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
    Ok(kibibytes.ok_or("/proc/self/status has no VmHWM")?.trim().parse::<u64>()? * 1024)
}
