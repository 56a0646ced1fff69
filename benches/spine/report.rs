//! The table and the JSON of a run.

use std::fmt::Write;

use serde_json::json;

use super::jobs::{Job, Setting};
use super::meter::Measured;

/// What a job can't do without. `decode` reads, too.
const LIMITS: [(Job, &[Job]); 3] = [
    (Job::Stateless, &[Job::Decode, Job::Encode, Job::Produce]),
    (Job::Window, &[Job::Decode]),
    (Job::Replay, &[Job::Decode]),
];

pub struct Report {
    setting: Setting,
    /// The best round of each job, in the order in which they ran.
    jobs: Vec<(Job, Measured)>,
}

impl Report {
    pub fn new(setting: &Setting) -> Self {
        Self { setting: setting.clone(), jobs: Vec::new() }
    }

    pub fn add(&mut self, job: Job, measured: Measured) {
        match self.jobs.iter_mut().find(|(known, _)| *known == job) {
            Some((_, best)) if best.cpu_seconds <= measured.cpu_seconds => {}
            Some((_, best)) => *best = measured,
            None => self.jobs.push((job, measured)),
        }
    }

    fn millions(&self) -> f64 {
        self.setting.shape.records as f64 / 1e6
    }

    /// CPU of a job as a multiple of another's.
    fn ratio(&self, measured: &Measured, to: Job) -> Option<f64> {
        let limit = self.jobs.iter().find(|(job, _)| *job == to);
        limit.map(|(_, limit)| measured.cpu_seconds / limit.cpu_seconds)
    }

    fn cpu(&self, job: Job) -> Option<f64> {
        self.jobs.iter().find(|(known, _)| *known == job).map(|(_, measured)| measured.cpu_seconds)
    }

    /// How much of a job's CPU the steps that it can't do without take, each measured alone.
    fn share(&self, job: Job, limits: &[Job]) -> Option<f64> {
        Some(limits.iter().map(|&limit| self.cpu(limit)).sum::<Option<f64>>()? / self.cpu(job)?)
    }

    /// The same of reading and decoding, if records were read as most programs read them.
    fn share_as_polled(&self, job: Job) -> Option<f64> {
        Some((self.cpu(Job::Poll)? + self.cpu(Job::Decode)? - self.cpu(Job::Read)?) / self.cpu(job)?)
    }

    pub fn table(&self) -> String {
        let mut table = format!(
            "\n{}, {} in the topic, {} worker(s), {} cores\n\n",
            self.setting.shape.text(),
            self.setting.compression,
            self.setting.threads,
            cores()
        );
        table.push_str("| job | CPU s per million | × read | × decode | records/s | peak MiB | broker CPU s per million |\n");
        table.push_str("|---|--:|--:|--:|--:|--:|--:|\n");
        for (job, measured) in &self.jobs {
            let number =
                |number: Option<f64>| number.map_or("–".to_owned(), |number| format!("{number:.2}"));
            let _ = writeln!(
                table,
                "| {} | {:.2} | {} | {} | {:.0} | {:.0} | {} |",
                job.describe(),
                measured.cpu_seconds / self.millions(),
                number(self.ratio(measured, Job::Read)),
                number(self.ratio(measured, Job::Decode)),
                self.setting.shape.records as f64 / measured.seconds,
                measured.rss_peak_bytes as f64 / f64::from(1 << 20),
                number(measured.broker_cpu_seconds.map(|seconds| seconds / self.millions())),
            );
        }
        for (job, limits) in LIMITS {
            if let Some(share) = self.share(job, limits) {
                let names: Vec<&str> = limits.iter().map(|limit| limit.name()).collect();
                let _ = writeln!(table, "\n{}: {:.0} % of {}", job.name(), share * 100.0, names.join(" + "));
            }
        }
        for job in [Job::Window, Job::Replay] {
            if let Some(share) = self.share_as_polled(job) {
                let _ = writeln!(table, "\n{}: {:.0} % of poll + decode - read", job.name(), share * 100.0);
            }
        }
        table.push_str("\nChecked row by row:\n");
        for (job, measured) in &self.jobs {
            let _ = writeln!(table, "  {}: {}", job.name(), measured.found);
        }
        table
    }

    pub fn json(&self) -> serde_json::Value {
        let jobs = self.jobs.iter().map(|(job, measured)| {
            json!({
                "job": job.name(),
                "seconds": measured.seconds,
                "records_per_second": self.setting.shape.records as f64 / measured.seconds,
                "cpu_seconds": measured.cpu_seconds,
                "cpu_seconds_per_million": measured.cpu_seconds / self.millions(),
                "cpu_to_read": self.ratio(measured, Job::Read),
                "cpu_to_decode": self.ratio(measured, Job::Decode),
                "rss_peak_bytes": measured.rss_peak_bytes,
                "broker_cpu_seconds": measured.broker_cpu_seconds,
                "found": measured.found,
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "optimized": !cfg!(debug_assertions),
            "cores": cores(),
            "records": self.setting.shape.records,
            "partitions": self.setting.shape.partitions,
            "keys": self.setting.shape.keys,
            "compression": self.setting.compression,
            "threads": self.setting.threads,
            "epoch_ms": self.setting.epoch.as_millis() as u64,
            "jobs": jobs.collect::<Vec<_>>(),
        })
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}
