//! The numbers of one process by Prometheus' names.
//!
//! A process exports the partitions that it has, so that each series comes from one process and sums over
//! processes are right. Records are counted since the process began, as Prometheus expects of a counter; the
//! totals since the topology began are in `headwater status`.
//!
//! Invariant: a key of a record is never a label.
//! Invariant: a scrape waits for nobody: lag is looked up beside it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{
    Recorder, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

use super::history::{Ends, History};
use super::{LagReport, PaceMeter, PartitionLag, Result, lag};
use crate::engine::{Progress, TaskProgress, TaskRole};
use crate::log::Log;
use crate::plan::{Plan, StageInput};
use crate::record::TopicPartition;
use crate::time::{WATERMARK_MAX, WATERMARK_MIN};

/// A process that committed within this time is ready.
const READY_COMMIT_AGE_MAX: Duration = Duration::from_secs(30);
/// A lag older than this says nothing about readiness.
const LAG_AGE_MAX: Duration = Duration::from_secs(60);

const COMMIT_SECONDS: &str = "headwater_commit_seconds";
/// Upper bounds, in seconds.
const COMMIT_BUCKETS: [f64; 12] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0];

/// What is watched: one topology in one process.
pub struct Watched {
    pub plan: Arc<Plan>,
    pub log: Arc<dyn Log>,
    pub progress: Progress,
}

/// Somebody who asked within this time looks at the page.
const PAGE_OPEN: Duration = Duration::from_secs(15);

/// Renders what `/metrics` shows, and remembers what the page shows.
pub struct Metrics {
    pub watched: Arc<Watched>,
    /// When this process began to be watched.
    pub began: SystemTime,
    history: Mutex<History>,
    /// When the API was last asked about the topology.
    page_asked: Mutex<Option<Instant>>,
    lag: Mutex<Option<SeenLag>>,
    pace: Mutex<PaceMeter>,
    commits: Mutex<Commits>,
}

struct SeenLag {
    at: Instant,
    unix_seconds: f64,
    by_partition: BTreeMap<TopicPartition, PartitionLag>,
    eta_seconds: Option<f64>,
}

/// The one thing that can't be read off at a scrape: how commits are distributed.
struct Commits {
    recorder: PrometheusRecorder,
    seen: u64,
}

impl Metrics {
    pub fn new(watched: Arc<Watched>) -> Self {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(COMMIT_SECONDS.to_string()), &COMMIT_BUCKETS)
            .unwrap_or_else(|_| unreachable!("only an empty list of buckets is refused"));
        let recorder = builder.build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let what = "How long commits of a transaction took";
            describe_histogram!(COMMIT_SECONDS, Unit::Seconds, what);
        });
        Self {
            watched,
            began: SystemTime::now(),
            history: Mutex::default(),
            page_asked: Mutex::default(),
            lag: Mutex::default(),
            pace: Mutex::default(),
            commits: Mutex::new(Commits { recorder, seen: 0 }),
        }
    }

    /// Looks the lag up; it takes as long as the brokers do.
    pub fn refresh_lag(&self) {
        let looked = lag(&self.watched.plan, &*self.watched.log).and_then(|report| {
            // Nobody else asks for these.
            let ends = if self.is_page_open() { self.sink_ends()? } else { Ends::new() };
            Ok((report, ends))
        });
        let at_ms = unix_ms(SystemTime::now());
        if let Err(error) = &looked {
            lock(&self.history).failed(at_ms, error.to_string());
        }
        match looked {
            Ok((mut report, ends)) => {
                report.pace = lock(&self.pace).look(Instant::now(), &report);
                self.set_lag(&report);
                lock(&self.history).look(Instant::now(), at_ms, report, ends);
            }
            // Before the first success the topology itself stops over the same error, or says what is amiss.
            Err(error) if lock(&self.lag).is_none() => {
                tracing::info!("the lag can't be looked up yet: {error}")
            }
            Err(error) => tracing::warn!("the lag can't be looked up, which is tried again: {error}"),
        }
        self.observe_commits();
    }

    /// How long the sinks' topics are, those that exist.
    fn sink_ends(&self) -> Result<Ends> {
        let Watched { plan, log, .. } = &*self.watched;
        let mut ends = Ends::new();
        for topic in plan.sinks.iter().filter_map(|sink| Some(&sink.topic.as_ref()?.topic)) {
            for partition in 0..log.partitions(topic)?.unwrap_or(0) {
                let bounds = log.bounds(&TopicPartition::new(Arc::clone(topic), partition))?;
                *ends.entry(Arc::clone(topic)).or_default() += bounds.end;
            }
        }
        Ok(ends)
    }

    /// Says that somebody looks at the page.
    pub fn page_asked(&self) {
        *lock(&self.page_asked) = Some(Instant::now());
    }

    pub fn is_page_open(&self) -> bool {
        lock(&self.page_asked).is_some_and(|at| at.elapsed() < PAGE_OPEN)
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    fn set_lag(&self, report: &LagReport) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let eta_seconds = report.pace.and_then(|pace| pace.eta_seconds);
        let by_partition =
            report.partitions.iter().map(|partition| (partition.name(), partition.clone())).collect();
        *lock(&self.lag) =
            Some(SeenLag { at: Instant::now(), unix_seconds: unix.as_secs_f64(), by_partition, eta_seconds });
    }

    fn observe_commits(&self) {
        let mut commits = lock(&self.commits);
        let (seconds, seen) = self.watched.progress.commit_seconds_since(commits.seen);
        commits.seen = seen;
        let topology = self.watched.plan.name.to_string();
        metrics::with_local_recorder(&commits.recorder, || {
            let commit_seconds = histogram!(COMMIT_SECONDS, "topology" => topology);
            seconds.into_iter().for_each(|seconds| commit_seconds.record(seconds));
        });
    }

    /// In Prometheus' text format.
    pub fn render(&self) -> String {
        self.observe_commits();
        // A recorder of its own for each scrape: what is gone, as a partition that moved away, is not shown.
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder as &dyn Recorder, || {
            describe();
            self.record_process();
            self.record_tasks();
            self.record_lag();
        });
        let mut text = recorder.handle().render();
        text.push_str(&lock(&self.commits).recorder.handle().render());
        text
    }

    fn topology(&self) -> String {
        self.watched.plan.name.to_string()
    }

    fn record_process(&self) {
        let Watched { plan, progress, .. } = &*self.watched;
        gauge!("headwater_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let (commits, aborts, _) = progress.commits();
        counter!("headwater_commits_total", "topology" => self.topology()).absolute(commits);
        counter!("headwater_aborts_total", "topology" => self.topology()).absolute(aborts);
        for (step, seconds) in progress.start() {
            gauge!("headwater_start_seconds", "topology" => self.topology(), "step" => step.name())
                .set(seconds);
        }
        counter!("headwater_checkpoints_total", "topology" => self.topology())
            .absolute(progress.checkpoints());
        let asked = progress.copy_requests();
        let operations =
            [("put", asked.puts), ("get", asked.gets), ("list", asked.lists), ("delete", asked.deletes)];
        for (operation, requests) in operations {
            counter!(
                "headwater_copy_requests_total", "topology" => self.topology(), "operation" => operation,
            )
            .absolute(requests);
        }
        for (operation, bytes) in [("put", asked.bytes_put), ("get", asked.bytes_got)] {
            counter!("headwater_copy_bytes_total", "topology" => self.topology(), "operation" => operation)
                .absolute(bytes);
        }
        let processed = progress.processed();
        for source in ingested(plan) {
            let counters = processed.get(source).copied().unwrap_or_default();
            let outcomes = [
                ("refined", counters.refined),
                ("filtered", counters.filtered),
                ("late", counters.late),
                ("dead", counters.dead),
            ];
            for (outcome, records) in outcomes {
                counter!(
                    "headwater_records_total",
                    "topology" => self.topology(), "source" => source.to_string(), "outcome" => outcome,
                )
                .absolute(records);
            }
        }
        for (stage, rows) in progress.expired() {
            counter!(
                "headwater_state_expired_total", "topology" => self.topology(), "stage" => stage.to_string(),
            )
            .absolute(rows);
        }
        for (stage, rows) in progress.derived_dead() {
            counter!(
                "headwater_derived_dead_total", "topology" => self.topology(), "stage" => stage.to_string(),
            )
            .absolute(rows);
        }
        for (check, rows) in progress.warned() {
            counter!(
                "headwater_check_warnings_total", "topology" => self.topology(), "check" => check.to_string(),
            )
            .absolute(rows);
        }
    }

    fn record_tasks(&self) {
        for (at, task) in self.watched.progress.tasks() {
            self.gauge("headwater_watermark_timestamp_seconds", &at, watermark_seconds(&task));
            match task.role {
                TaskRole::Ingest => {
                    self.gauge("headwater_origin_idle", &at, Some(f64::from(u8::from(task.idle))));
                }
                TaskRole::Keyed => {
                    self.gauge("headwater_state_bytes", &at, Some(task.state_bytes as f64));
                    let checkpoint = task.checkpoint;
                    let bytes = checkpoint.map(|(_, bytes, _)| bytes as f64);
                    self.gauge("headwater_checkpoint_bytes", &at, bytes);
                    self.gauge(
                        "headwater_checkpoint_seconds",
                        &at,
                        checkpoint.map(|(_, _, seconds)| seconds),
                    );
                    let offset = checkpoint.map(|(offset, _, _)| offset as f64);
                    self.gauge("headwater_checkpoint_offset", &at, offset);
                    let folded = task.recovery.map(|took| took.folded as f64);
                    self.gauge("headwater_recovery_records", &at, folded);
                    self.record_recovery(&at, &task);
                }
            }
        }
    }

    fn record_recovery(&self, at: &TopicPartition, task: &TaskProgress) {
        let Some(took) = task.recovery else { return };
        for (phase, seconds) in [("load", took.load_seconds), ("fold", took.fold_seconds)] {
            gauge!(
                "headwater_recovery_seconds",
                "topology" => self.topology(), "topic" => at.topic.to_string(),
                "partition" => at.partition.to_string(), "phase" => phase,
            )
            .set(seconds);
        }
    }

    fn record_lag(&self) {
        let seen = lock(&self.lag);
        let Some(seen) = &*seen else { return };
        gauge!("headwater_lag_looked_up_timestamp_seconds", "topology" => self.topology())
            .set(seen.unix_seconds);
        if let Some(seconds) = seen.eta_seconds {
            gauge!("headwater_catch_up_seconds", "topology" => self.topology()).set(seconds);
        }
        for at in self.watched.progress.tasks().keys() {
            let Some(lag) = seen.by_partition.get(at) else { continue };
            self.gauge("headwater_lag_records", at, Some(lag.lag_records as f64));
            for (clock, seconds) in [("event", lag.lag_seconds_event), ("log", lag.lag_seconds_log)] {
                let Some(seconds) = seconds else { continue };
                gauge!(
                    "headwater_lag_seconds",
                    "topology" => self.topology(), "topic" => at.topic.to_string(),
                    "partition" => at.partition.to_string(), "clock" => clock,
                )
                .set(seconds);
            }
        }
    }

    /// Sets a gauge of a partition, where there is a value.
    fn gauge(&self, name: &'static str, at: &TopicPartition, value: Option<f64>) {
        let Some(value) = value else { return };
        gauge!(
            name,
            "topology" => self.topology(), "topic" => at.topic.to_string(), "partition" => at.partition.to_string(),
        )
        .set(value);
    }

    /// Whether this process does its part: it has partitions, and committed lately or has nothing to read.
    /// The error says why not.
    pub fn ready(&self) -> Result<(), String> {
        let tasks = self.watched.progress.tasks();
        if tasks.is_empty() {
            return Err("no partition is assigned to this process".to_string());
        }
        let age = self.watched.progress.commit_age();
        if age.is_some_and(|age| age <= READY_COMMIT_AGE_MAX) {
            return Ok(());
        }
        let committed = age.map_or_else(
            || "this process has not committed yet".to_string(),
            |age| format!("the last commit is {} s old", age.as_secs()),
        );
        let seen = lock(&self.lag);
        let Some(seen) = seen.as_ref().filter(|seen| seen.at.elapsed() <= LAG_AGE_MAX) else {
            return Err(format!("{committed}, and the lag is not known"));
        };
        let behind = tasks.keys().find(|at| seen.by_partition.get(at).is_none_or(|lag| lag.lag_records > 0));
        match behind {
            None => Ok(()),
            Some(at) => Err(format!("{committed}, and {at} is behind")),
        }
    }
}

/// The names of the sources that some stage reads.
fn ingested(plan: &Plan) -> impl Iterator<Item = &Arc<str>> {
    plan.stages.iter().filter_map(|stage| match stage.input {
        StageInput::Source(source) => Some(&plan.sources[source].name),
        StageInput::Exchange { .. } => None,
    })
}

fn watermark_seconds(task: &TaskProgress) -> Option<f64> {
    let known = task.watermark != WATERMARK_MIN && task.watermark != WATERMARK_MAX;
    known.then_some(task.watermark as f64 / 1e6)
}

fn describe() {
    describe_counter!(
        "headwater_records_total",
        Unit::Count,
        "Records that this process read and committed, each by its one outcome: refined, filtered, late or dead"
    );
    describe_gauge!(
        "headwater_lag_records",
        Unit::Count,
        "Records between the committed offset and the last stable offset"
    );
    describe_gauge!(
        "headwater_lag_seconds",
        Unit::Seconds,
        "clock=event: how far the watermark is behind the furthest origin's; clock=log: age of the oldest unread record"
    );
    describe_gauge!(
        "headwater_lag_looked_up_timestamp_seconds",
        Unit::Seconds,
        "When the lag was last looked up, since 1970: it stands still while the brokers don't answer"
    );
    describe_gauge!(
        "headwater_catch_up_seconds",
        Unit::Seconds,
        "Until the whole group has read everything, at the pace of the last minute; absent while its lag does not shrink"
    );
    describe_gauge!(
        "headwater_watermark_timestamp_seconds",
        Unit::Seconds,
        "The committed watermark as event time, since 1970"
    );
    describe_gauge!(
        "headwater_origin_idle",
        Unit::Count,
        "1 while the origin is idle and holds no watermark back"
    );
    describe_counter!("headwater_commits_total", Unit::Count, "Transactions committed");
    describe_counter!("headwater_aborts_total", Unit::Count, "Epochs aborted and done again");
    describe_gauge!(
        "headwater_checkpoint_seconds",
        Unit::Seconds,
        "How long the task's last checkpoint took"
    );
    describe_gauge!("headwater_checkpoint_bytes", Unit::Bytes, "What the task's last checkpoint wrote");
    describe_gauge!(
        "headwater_checkpoint_offset",
        Unit::Count,
        "The offset that the task's last checkpoint stands at"
    );
    describe_gauge!(
        "headwater_start_seconds",
        Unit::Seconds,
        "From the start of run to a step of it, by its slowest worker: admitted, assigned, recovered, committed"
    );
    describe_gauge!(
        "headwater_recovery_seconds",
        Unit::Seconds,
        "What recovering the task took when it came here: phase=load its checkpoint, phase=fold the records since"
    );
    describe_gauge!(
        "headwater_recovery_records",
        Unit::Count,
        "Records that were folded when the task came here"
    );
    describe_counter!("headwater_checkpoints_total", Unit::Count, "Checkpoints written, each of one task");
    describe_counter!(
        "headwater_copy_requests_total",
        Unit::Count,
        "Requests to the object store for copies of checkpoints: put, get, list, delete"
    );
    describe_counter!("headwater_copy_bytes_total", Unit::Bytes, "What these requests have put and got");
    describe_gauge!("headwater_state_bytes", Unit::Bytes, "State in memory above the task's last checkpoint");
    describe_counter!(
        "headwater_state_expired_total",
        Unit::Count,
        "Rows that came after their window's retention; a replay repairs them"
    );
    describe_counter!(
        "headwater_derived_dead_total",
        Unit::Count,
        "Rows made of several records that a later view failed on; they are dead letters beside the records counted"
    );
    describe_counter!(
        "headwater_check_warnings_total",
        Unit::Count,
        "Rows that failed a check with 'otherwise: warn'"
    );
    describe_gauge!("headwater_build_info", Unit::Count, "Always 1; the version is a label");
}

/// Milliseconds since 1970.
pub fn unix_ms(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
