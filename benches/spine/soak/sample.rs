//! One look at everything that should stay flat, and the CSV of all looks.

use std::path::Path;

use headwater::plan::Plan;
use headwater::serve;

use super::super::Result;
use super::super::arrivals::{Arrivals, Latencies};
use super::super::meter::cpu_of;
use super::super::paced::Pace;
use super::super::place::Place;
use super::super::process::{bytes_below, open_files, resident_bytes};
use super::super::program::{Running, Settings};

const MIB: f64 = (1 << 20) as f64;

macro_rules! sample {
    ($($(#[$comment:meta])* $column:ident),* $(,)?) => {
        /// What is seen at one moment; rates and latencies are of the time since the sample before.
        #[derive(Clone, Debug, Default)]
        pub struct Sample {
            $($(#[$comment])* pub $column: f64),*
        }

        impl Sample {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($column)),*];

            /// In the order of the columns.
            fn values(&self) -> Vec<f64> {
                vec![$(self.$column),*]
            }

            /// `None`: there are too few.
            fn from_values(values: &[f64]) -> Option<Self> {
                let mut values = values.iter();
                Some(Self { $($column: *values.next()?),* })
            }
        }
    };
}

sample! {
    seconds,
    run_memory_mib,
    broker_memory_mib,
    state_mib,
    copies_mib,
    broker_disk_mib,
    run_files,
    broker_files,
    record_p50_ms,
    record_p99_ms,
    window_p50_ms,
    window_p99_ms,
    lag_records,
    /// Of one core.
    run_cpu_percent,
    broker_cpu_percent,
    /// Since the beginning, over all tasks.
    checkpoints,
    run_cpu_seconds,
    broker_cpu_seconds,
}

impl Sample {
    /// For someone who watches.
    pub fn line(&self) -> String {
        format!(
            "{:>5.0} s  run {:.0} MiB, broker {:.0} MiB, state {:.0} MiB, copies {:.0} MiB, broker's disk {:.0} MiB, files {:.0}+{:.0}, \
             record {:.0}/{:.0} ms, window {:.0}/{:.0} ms, lag {:.0}, CPU {:.0}+{:.0} %, {:.0} checkpoints",
            self.seconds,
            self.run_memory_mib,
            self.broker_memory_mib,
            self.state_mib,
            self.copies_mib,
            self.broker_disk_mib,
            self.run_files,
            self.broker_files,
            self.record_p50_ms,
            self.record_p99_ms,
            self.window_p50_ms,
            self.window_p99_ms,
            self.lag_records,
            self.run_cpu_percent,
            self.broker_cpu_percent,
            self.checkpoints
        )
    }
}

/// What is looked at.
pub struct Sampler<'a> {
    pub place: &'a Place,
    pub plan: &'a Plan,
    pub settings: &'a Settings,
    pub running: Running,
    pub pace: Pace,
    pub latencies: Arrivals<Latencies>,
    pub closings: Arrivals<Latencies>,
}

impl Sampler<'_> {
    pub fn take(&mut self, seconds: f64, before: Option<&Sample>) -> Result<Sample> {
        self.pace.check()?;
        self.latencies.check()?;
        self.closings.check()?;
        let metrics = self.running.metrics()?;
        let mut records = std::mem::take(&mut *self.latencies.seen());
        let mut windows = std::mem::take(&mut *self.closings.seen());
        let lag = serve::lag(self.plan, &*self.place.log)?;
        let broker = self.place.broker_pid().ok_or("the broker is not the soak's own")?;
        let (run_cpu_seconds, broker_cpu_seconds) = (self.running.cpu_seconds()?, cpu_of(broker)?);
        let percent = |now: f64, of: fn(&Sample) -> f64| {
            before.map_or(f64::NAN, |before| (now - of(before)) / (seconds - before.seconds) * 100.0)
        };
        Ok(Sample {
            seconds,
            run_memory_mib: resident_bytes(self.running.pid())? as f64 / MIB,
            broker_memory_mib: resident_bytes(broker)? as f64 / MIB,
            state_mib: bytes_below(&self.settings.data_dir.join("state")) as f64 / MIB,
            copies_mib: bytes_below(Path::new(&self.settings.state_url)) as f64 / MIB,
            broker_disk_mib: bytes_below(&self.place.folder.join("broker")) as f64 / MIB,
            run_files: open_files(self.running.pid())? as f64,
            broker_files: open_files(broker)? as f64,
            record_p50_ms: records.quantile_ms(0.5),
            record_p99_ms: records.quantile_ms(0.99),
            window_p50_ms: windows.quantile_ms(0.5),
            window_p99_ms: windows.quantile_ms(0.99),
            lag_records: lag.partitions.iter().map(|at| at.lag_records).sum::<i64>() as f64,
            run_cpu_percent: percent(run_cpu_seconds, |sample| sample.run_cpu_seconds),
            broker_cpu_percent: percent(broker_cpu_seconds, |sample| sample.broker_cpu_seconds),
            checkpoints: metrics.sum("headwater_checkpoints_total", ""),
            run_cpu_seconds,
            broker_cpu_seconds,
        })
    }

    pub fn stop(self) -> Result<()> {
        let produced = self.pace.stop()?;
        eprintln!(
            "{} records, the producer behind by {:.0} ms at most",
            produced.records, produced.behind_ms_max
        );
        self.running.stop()?;
        Ok(())
    }
}

/// Writes all samples; two decimals are more than enough.
pub fn write(path: &Path, samples: &[Sample]) -> Result<()> {
    let mut text = Sample::COLUMNS.join(",");
    for sample in samples {
        text.push('\n');
        let values = sample.values().into_iter().map(|value| match value {
            value if value.is_nan() => String::new(),
            value if value.fract() == 0.0 => format!("{value:.0}"),
            value => format!("{value:.1}"),
        });
        text.push_str(&values.collect::<Vec<_>>().join(","));
    }
    text.push('\n');
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(std::fs::write(path, text)?)
}

pub fn read(path: &Path) -> Result<Vec<Sample>> {
    let text = std::fs::read_to_string(path)?;
    let mut lines = text.lines();
    if lines.next() != Some(&Sample::COLUMNS.join(",")) {
        return Err(format!("{} holds no samples of this soak", path.display()).into());
    }
    lines
        .map(|line| {
            let values: Vec<f64> = line.split(',').map(|value| value.parse().unwrap_or(f64::NAN)).collect();
            Sample::from_values(&values).ok_or_else(|| format!("{}: {line}", path.display()).into())
        })
        .collect()
}
