//! When refined records become visible to a consumer that reads committed records only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use headwater::log::{Event, Log};
use headwater::record::TopicPartition;

use super::Result;
use super::paced::now_us;

const POLL: Duration = Duration::from_millis(100);

/// A thread that reads a topic and gathers what it sees into a `T`.
pub struct Arrivals<T> {
    seen: Arc<Mutex<T>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl<T: Send + 'static> Arrivals<T> {
    /// Calls `each` with every record's value and the time at which it was seen, in microseconds since 1970.
    pub fn watch(
        log: &Arc<dyn Log>,
        topic: &str,
        seen: T,
        mut each: impl FnMut(&mut T, &[u8], i64) + Send + 'static,
    ) -> Result<Self> {
        let count = log.partitions(topic)?.ok_or_else(|| format!("there is no topic {topic}"))?;
        let partitions: Vec<_> = (0..count).map(|partition| TopicPartition::new(topic, partition)).collect();
        let from: Result<Vec<_>> = partitions
            .into_iter()
            .map(|partition| Ok((partition.clone(), log.bounds(&partition)?.start)))
            .collect();
        let mut reader = log.reader()?;
        reader.assign(&from?)?;
        let (seen, stop) = (Arc::new(Mutex::new(seen)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let events = reader.poll(POLL).map_err(|error| error.to_string())?;
                let at_us = now_us();
                let mut seen = lock(&shared);
                for event in events {
                    let Event::Run(run) = event else { continue };
                    for index in 0..run.records.len() {
                        each(&mut seen, run.records.get(index).value.unwrap_or_default(), at_us);
                    }
                }
            }
            Ok(())
        });
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// What was seen so far. Nothing is seen while it is held.
    pub fn seen(&self) -> MutexGuard<'_, T> {
        lock(&self.seen)
    }

    /// An error if it could not go on.
    pub fn check(&mut self) -> Result<()> {
        match self.thread.take_if(|thread| thread.is_finished()) {
            None => Ok(()),
            Some(thread) => match thread.join() {
                Ok(Err(error)) => Err(format!("the consumer has failed: {error}").into()),
                _ => Err("the consumer has ended".into()),
            },
        }
    }
}

impl<T> Drop for Arrivals<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A whole number in a JSON object of our own, found by its name.
pub fn integer(value: &[u8], name: &str) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let (_, rest) = text.split_once(&format!("\"{name}\":"))?;
    let end = rest.find(|c: char| c != '-' && !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// A timestamp in a JSON object of our own, in microseconds since 1970.
pub fn timestamp_us(value: &[u8], name: &str) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let (_, rest) = text.split_once(&format!("\"{name}\":\""))?;
    let (timestamp, _) = rest.split_once('"')?;
    chrono::DateTime::parse_from_rfc3339(timestamp).ok().map(|at| at.timestamp_micros())
}

/// Latencies in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<i64>);

impl Latencies {
    pub fn add(&mut self, latency_us: i64) {
        self.0.push(latency_us.max(0));
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds: that of this share of the records is not above it. NaN where there are none.
    pub fn quantile_ms(&mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        let at = ((self.0.len() as f64 - 1.0) * share).round() as usize;
        self.0.get(at).map_or(f64::NAN, |latency| *latency as f64 / 1e3)
    }
}
