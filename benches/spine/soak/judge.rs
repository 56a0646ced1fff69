//! Whether a figure is flat: the median of the last third against that of the first, after the warm-up.
//!
//! A bound is a factor and an amount, for what goes up and down by itself: a log's segments, a checkpoint's base, a
//! machine that others use. What grows without end passes any such bound, the sooner the longer it is watched.

use std::fmt::Write;

use super::sample::Sample;

/// What is judged: its unit, and how far the last third may be above the first.
pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
    pub of: fn(&Sample) -> f64,
    factor: f64,
    amount: f64,
}

const fn figure(
    name: &'static str,
    unit: &'static str,
    of: fn(&Sample) -> f64,
    factor: f64,
    amount: f64,
) -> Figure {
    Figure { name, unit, of, factor, amount }
}

pub const FIGURES: [Figure; 14] = [
    figure("memory of run", "MiB", |sample| sample.run_memory_mib, 1.10, 16.0),
    figure("memory of the broker", "MiB", |sample| sample.broker_memory_mib, 1.10, 8.0),
    figure("state on disk", "MiB", |sample| sample.state_mib, 1.20, 16.0),
    figure("copies of checkpoints", "MiB", |sample| sample.copies_mib, 1.20, 16.0),
    figure("disk of the broker", "MiB", |sample| sample.broker_disk_mib, 1.20, 32.0),
    figure("open files of run", "", |sample| sample.run_files, 1.05, 4.0),
    figure("open files of the broker", "", |sample| sample.broker_files, 1.05, 16.0),
    figure("record p50", "ms", |sample| sample.record_p50_ms, 1.25, 20.0),
    figure("record p99", "ms", |sample| sample.record_p99_ms, 1.50, 100.0),
    figure("window p50", "ms", |sample| sample.window_p50_ms, 1.25, 50.0),
    figure("window p99", "ms", |sample| sample.window_p99_ms, 1.50, 200.0),
    figure("lag", "records", |sample| sample.lag_records, 1.50, 2_000.0),
    figure("CPU of run", "% of a core", |sample| sample.run_cpu_percent, 1.25, 5.0),
    figure("CPU of the broker", "% of a core", |sample| sample.broker_cpu_percent, 1.25, 5.0),
];

pub struct Verdict {
    pub name: &'static str,
    unit: &'static str,
    first: f64,
    last: f64,
    bound: f64,
    max: f64,
}

impl Verdict {
    pub fn is_flat(&self) -> bool {
        self.last <= self.bound
    }

    pub fn word(&self) -> &'static str {
        if self.is_flat() { "FLAT" } else { "GROWS" }
    }
}

/// Nothing is said of a soak with fewer than three samples after the warm-up.
pub fn judge(samples: &[Sample], warm_up_seconds: f64) -> Vec<Verdict> {
    let after: Vec<&Sample> = samples.iter().filter(|sample| sample.seconds > warm_up_seconds).collect();
    let third = after.len() / 3;
    if third == 0 {
        return Vec::new();
    }
    let verdict = |figure: &Figure| {
        let values = |samples: &[&Sample]| -> Vec<f64> {
            samples.iter().map(|sample| (figure.of)(sample)).filter(|value| !value.is_nan()).collect()
        };
        let (first, last) = (median(values(&after[..third])), median(values(&after[after.len() - third..])));
        Verdict {
            name: figure.name,
            unit: figure.unit,
            first,
            last,
            bound: first * figure.factor + figure.amount,
            max: values(&after).into_iter().fold(f64::NAN, f64::max),
        }
    };
    FIGURES.iter().map(verdict).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub fn table(verdicts: &[Verdict], samples: &[Sample], warm_up_seconds: f64) -> String {
    let span = samples.last().map_or(0.0, |sample| sample.seconds);
    let checkpoints = samples.last().map_or(0.0, |sample| sample.checkpoints);
    let mut table = format!(
        "\n{:.0} min, {checkpoints:.0} checkpoints of tasks; medians after {:.0} min of warm-up\n\n",
        span / 60.0,
        warm_up_seconds / 60.0
    );
    table.push_str(
        "| figure | first third | last third | may be up to | highest | |\n|---|--:|--:|--:|--:|---|\n",
    );
    for verdict in verdicts {
        let Verdict { name, unit, first, last, bound, max } = verdict;
        let named = if unit.is_empty() { (*name).to_owned() } else { format!("{name}, {unit}") };
        let _ = writeln!(
            table,
            "| {named} | {first:.0} | {last:.0} | {bound:.0} | {max:.0} | {} |",
            verdict.word()
        );
    }
    table
}
