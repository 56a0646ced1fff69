//! Waiting for brokers that are away: a rolling upgrade of Kafka ends no topology.
//!
//! Invariant: what failed otherwise, or before it ever ran, is never tried again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::engine::{EngineError, Progress, RunReport};
use crate::log::{LogError, OUTAGE_MAX};

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs a topology again each time that it has ended because no broker answered, from where it has committed.
/// `limit`: how long an outage may last; `None`: as long as it does.
pub fn run_through(
    limit: Option<Duration>,
    progress: &Progress,
    stop: &AtomicBool,
    mut run: impl FnMut() -> Result<RunReport, EngineError>,
) -> Result<RunReport, EngineError> {
    let mut outage: Option<Outage> = None;
    loop {
        let began = Instant::now();
        let (brokers, error) = match run() {
            Err(EngineError::Log(LogError::Unreachable { brokers, detail })) => {
                (brokers.clone(), LogError::Unreachable { brokers, detail })
            }
            other => return other,
        };
        let commits = progress.commits().0;
        // One that was committed in is over, and this is another.
        let now = outage.take().filter(|outage| outage.commits == commits).unwrap_or(Outage {
            began: Instant::now().checked_sub(OUTAGE_MAX).unwrap_or(began).max(began),
            commits,
            pause: PAUSE_MIN,
        });
        let lasted = now.began.elapsed();
        if stop.load(Ordering::Relaxed) || limit.is_some_and(|limit| lasted >= limit) {
            return Err(error.into());
        }
        tracing::warn!(
            "{brokers} cannot be reached for {}: the topology waits, and goes on from what it has committed",
            humantime::format_duration(Duration::from_secs(lasted.as_secs()))
        );
        let until = Instant::now() + now.pause;
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY.min(now.pause));
        }
        outage = Some(Outage { pause: (now.pause * 2).min(PAUSE_MAX), ..now });
    }
}

struct Outage {
    began: Instant,
    /// How many commits there were when it began.
    commits: u64,
    pause: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> EngineError {
        LogError::Unreachable { brokers: "kafka:9092".into(), detail: "no answer".into() }.into()
    }

    #[test]
    fn an_outage_is_waited_for_and_nothing_else_is() {
        let (progress, stop) = (Progress::default(), AtomicBool::new(false));
        let mut tries = 0;
        let run = run_through(None, &progress, &stop, || {
            tries += 1;
            if tries < 3 { Err(away()) } else { Err(EngineError::internal("broken".into())) }
        });
        assert!(run.unwrap_err().to_string().contains("broken"));
        assert_eq!(tries, 3);
    }

    #[test]
    fn a_limit_and_a_signal_end_it() {
        let (progress, stop) = (Progress::default(), AtomicBool::new(false));
        let mut tries = 0;
        let mut run = |limit, stop: &AtomicBool| {
            tries = 0;
            let error = run_through(limit, &progress, stop, || {
                tries += 1;
                Err(away())
            });
            (error.unwrap_err().to_string(), tries)
        };
        assert_eq!(run(Some(Duration::ZERO), &stop), ("cannot reach kafka:9092: no answer".into(), 1));
        assert_eq!(run(Some(Duration::from_millis(500)), &stop).1, 2);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(run(None, &stop).1, 1);
    }
}
