//! A replay: the same tasks over bounded offsets, with the exchange in memory and all cores at work.
//!
//! ```text
//! ingest threads (a reader each, the source partitions dealt out) ─► a bounded channel per keyed task
//!   ─► keyed threads, stage by stage ─► …          every task ─► the sink's writers
//! ```
//! Stages form a graph without cycles and each keyed task has a thread of its own, so bounded channels can't
//! deadlock.
//!
//! Invariant: each input ends with an end-of-input watermark, so the last windows close.
//! Invariant: reading is in step by event time (`max_drift`), so that a replay of a year holds no more open
//! windows than the live run did.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::log::{Event, Log, Reader};
use crate::operator::exchange_schema;
use crate::plan::{Late, Plan, StageInput};
use crate::record::{Batch, Origin, TopicPartition};
use crate::state::{MemoryStore, StateDir, Store, TaskState};
use crate::time::WATERMARK_MAX;

use super::drift::Drift;
use super::exchange::{Body, Message, Partitioner};
use super::ingest::IngestTask;
use super::keyed::{KeyedTask, SetAside};
use super::offsets::Counters;
use super::pipeline::{ExchangePort, keyed_aggregate};
use super::progress::{Progress, TaskProgress, TaskRole};
use super::recovery::origin_index;
use super::redriven::Redriven;
use super::topics::TopicNames;
use super::{EngineError, Outputs, Result, lock};

const POLL: Duration = Duration::from_millis(20);
/// Messages that wait for a keyed task at most; each holds one epoch's partial rows of one origin.
const CHANNEL_MESSAGES_MAX: usize = 64;
/// Records that an ingest task reads between two flushes.
const FLUSH_RECORDS: usize = 100_000;
/// Messages that a keyed task applies between two flushes.
const FLUSH_MESSAGES: usize = 64;

/// What to replay. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    pub late: Late,
    /// Offsets to stop before; where a partition has none, its last stable end as it is now.
    pub until: BTreeMap<TopicPartition, i64>,
    pub threads: usize,
    /// Open windows that are in memory, over all tasks; more than that spills to `scratch`.
    pub state_budget: usize,
    /// A folder for state beyond the budget, emptied at the start; `None`: all stays in memory.
    pub scratch: Option<PathBuf>,
}

/// Takes what a replay's views yield. Upserts are final: a replay corrects nothing.
pub trait ReplaySink: Sync {
    /// One writer per thread; `task` numbers them.
    fn writer<'a>(&'a self, task: usize) -> Result<Box<dyn SinkWriter + 'a>>;
}

pub trait SinkWriter: Send {
    fn write(&mut self, sink: usize, rows: &Batch) -> Result<()>;
    fn finish(self: Box<Self>) -> Result<()>;
}

#[derive(Clone, Debug, Default)]
pub struct ReplayReport {
    /// By source partition: first offset and the offset before which it stopped.
    pub offsets: BTreeMap<TopicPartition, (i64, i64)>,
    pub counters: Counters,
    /// By source.
    pub sources: BTreeMap<Arc<str>, Counters>,
}

/// Replays a topology into `sink`. `progress` can be watched meanwhile; `stop` ends it with an error.
pub fn replay(
    plan: &Plan,
    log: &Arc<dyn Log>,
    options: &ReplayOptions,
    sink: &dyn ReplaySink,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<ReplayReport> {
    let plan = Arc::new(plan.clone().with_late(&options.late).for_replay());
    let shared = Shared::new(plan, log, options, sink, progress, stop)?;
    let (senders, receivers) = shared.channels();
    let errors: Mutex<Vec<EngineError>> = Mutex::default();
    let fail = |error: EngineError| {
        shared.failed.store(true, Ordering::Relaxed);
        if let Ok(mut errors) = errors.lock() {
            errors.push(error);
        }
    };
    std::thread::scope(|scope| {
        let mut writer = 0;
        for (stage, receivers) in receivers.into_iter().enumerate() {
            for (partition, receiver) in receivers.into_iter().enumerate() {
                let (shared, fail, ports) = (&shared, &fail, shared.downstream(stage, &senders));
                let at = writer;
                writer += 1;
                scope.spawn(move || {
                    if let Err(error) = shared.keyed(stage, partition as i32, at, receiver, ports) {
                        fail(error);
                    }
                });
            }
        }
        let shares = shared.shares();
        for share in shares {
            let ports: Vec<_> =
                (0..shared.plan.stages.len()).map(|stage| shared.downstream(stage, &senders)).collect();
            let (shared, fail) = (&shared, &fail);
            let at = writer;
            writer += 1;
            scope.spawn(move || {
                if let Err(error) = shared.ingest(share, at, ports) {
                    fail(error);
                }
            });
        }
        // Each thread has its own senders: a keyed task ends once all of those are gone.
        drop(senders);
    });
    // A thread whose peer is gone fails as well, but the cause came first.
    let mut errors = errors.into_inner().unwrap_or_default();
    errors.sort_by_key(|error| matches!(error, EngineError::Cancelled));
    match errors.into_iter().next() {
        Some(error) => Err(error),
        None => shared.report(),
    }
}

type Senders = Vec<SyncSender<Message>>;

struct Shared<'a> {
    plan: Arc<Plan>,
    log: Arc<dyn Log>,
    names: TopicNames,
    redriven: Redriven,
    sink: &'a dyn ReplaySink,
    progress: &'a Progress,
    stop: &'a AtomicBool,
    failed: AtomicBool,
    drift: Drift,
    bounds: BTreeMap<TopicPartition, (i64, i64)>,
    threads: usize,
    scratch: Option<StateDir>,
    task_budget: usize,
    report: Mutex<ReplayReport>,
}

/// A source partition with the ingest stages' task that reads it.
struct Input {
    task: IngestTask,
    stage: usize,
    until: i64,
    unflushed: usize,
    paused: bool,
    done: bool,
}

impl<'a> Shared<'a> {
    fn new(
        plan: Arc<Plan>,
        log: &Arc<dyn Log>,
        options: &ReplayOptions,
        sink: &'a dyn ReplaySink,
        progress: &'a Progress,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let threads = options.threads.max(1);
        let mut names = TopicNames::of(&plan);
        names.partitions = TopicNames::sources(&plan, &**log)?;
        let mut bounds = BTreeMap::new();
        for (topic, &count) in &names.partitions {
            for partition in 0..count {
                let partition = TopicPartition::new(Arc::clone(topic), partition);
                let held = log.bounds(&partition)?;
                let until = options.until.get(&partition).copied().unwrap_or(held.end);
                if until > held.end || until < held.start {
                    return Err(EngineError::OffsetGone {
                        partition,
                        committed: until,
                        start: held.start,
                        end: held.end,
                        why: "the replay was to stop there",
                    });
                }
                bounds.insert(partition, (held.start, until));
            }
        }
        for exchange in names.exchanges.iter().flatten() {
            names.partitions.insert(Arc::clone(exchange), threads as i32);
        }
        let keyed = names.exchanges.iter().flatten().count() * threads;
        let scratch = match &options.scratch {
            Some(path) if keyed > 0 => {
                if path.exists() {
                    std::fs::remove_dir_all(path)
                        .map_err(|error| EngineError::Sink(format!("{}: {error}", path.display())))?;
                }
                Some(StateDir::open(path)?)
            }
            _ => None,
        };
        Ok(Self {
            redriven: Redriven::read(&plan.name, &**log)?,
            plan,
            log: Arc::clone(log),
            names,
            sink,
            progress,
            stop,
            failed: AtomicBool::new(false),
            drift: Drift::default(),
            bounds,
            threads,
            scratch,
            task_budget: (options.state_budget / keyed.max(1)).max(1 << 20),
            report: Mutex::default(),
        })
    }

    fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    /// By stage and partition; ingest stages have none.
    fn channels(&self) -> (Vec<Senders>, Vec<Vec<Receiver<Message>>>) {
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for stage in &self.plan.stages {
            let count = match stage.input {
                StageInput::Source(_) => 0,
                StageInput::Exchange { .. } => self.threads,
            };
            let (to, from) = (0..count).map(|_| sync_channel(CHANNEL_MESSAGES_MAX)).unzip();
            senders.push(to);
            receivers.push(from);
        }
        (senders, receivers)
    }

    /// The senders that the tasks of a stage need: those of the stages it feeds.
    fn downstream(&self, stage: usize, senders: &[Senders]) -> BTreeMap<usize, Senders> {
        let feeds = |target: &usize| match &self.plan.stages[*target].input {
            StageInput::Exchange { upstream } => upstream.contains(&stage),
            StageInput::Source(_) => false,
        };
        (0..senders.len()).filter(feeds).map(|target| (target, senders[target].clone())).collect()
    }

    /// The source partitions, dealt out to the ingest threads: (stage, partition).
    fn shares(&self) -> Vec<Vec<(usize, TopicPartition)>> {
        let mut shares: Vec<Vec<_>> = (0..self.threads).map(|_| Vec::new()).collect();
        let mut next = 0;
        for (stage, spec) in self.plan.stages.iter().enumerate() {
            let StageInput::Source(source) = spec.input else { continue };
            let topic = &self.plan.sources[source].topic;
            for partition in 0..self.names.count(topic) {
                shares[next % self.threads].push((stage, TopicPartition::new(Arc::clone(topic), partition)));
                next += 1;
            }
        }
        shares.retain(|share| !share.is_empty());
        shares
    }

    fn ingest(
        &self,
        share: Vec<(usize, TopicPartition)>,
        writer: usize,
        mut ports: Vec<BTreeMap<usize, Senders>>,
    ) -> Result<()> {
        let mut writer = self.sink.writer(writer)?;
        // Two sources may read one topic: each (stage, partition) has a task, each partition one place in the reader.
        let mut inputs: BTreeMap<TopicPartition, Vec<(Input, Forward)>> = BTreeMap::new();
        for (stage, partition) in share {
            let StageInput::Source(source) = self.plan.stages[stage].input else {
                unreachable!("shares are dealt from source stages")
            };
            let (from, until) = self.bounds[&partition];
            let index = origin_index(&self.plan, &partition);
            let task = IngestTask::new(&self.plan, stage, source, partition.clone(), index, from, None)?
                .skipping(self.redriven.of(&partition));
            let forward = Forward::new(self, &partition, task.exchanges(), &ports[stage])?;
            let input = Input { task, stage, until, unflushed: 0, paused: false, done: false };
            inputs.entry(partition).or_default().push((input, forward));
        }
        ports.clear();
        let mut reader = self.log.reader()?;
        let assignment: Vec<_> =
            inputs.keys().map(|partition| (partition.clone(), self.bounds[partition].0)).collect();
        reader.assign(&assignment)?;
        let mut outputs = Outputs::default();
        loop {
            for (partition, inputs) in &mut inputs {
                for (input, forward) in inputs.iter_mut() {
                    if !input.done && input.task.offset() >= input.until {
                        self.finish_input(partition, input, forward, &mut outputs, &mut *writer)?;
                    }
                }
                self.pace(partition, inputs, &mut *reader)?;
            }
            if inputs.values().flatten().all(|(input, _)| input.done) {
                return writer.finish();
            }
            if self.must_stop() {
                return Err(EngineError::Cancelled);
            }
            for event in reader.poll(POLL)? {
                match event {
                    Event::Run(run) => {
                        let partition = run.partition.clone();
                        let Some(inputs) = inputs.get_mut(&partition) else { continue };
                        let run = run.until(self.bounds[&partition].1);
                        for (input, forward) in inputs.iter_mut().filter(|(input, _)| !input.done) {
                            if !run.records.is_empty() {
                                input.task.step(&run, &mut outputs)?;
                            }
                            input.task.skip_to(run.next);
                            input.unflushed += run.records.len();
                            if input.unflushed >= FLUSH_RECORDS {
                                input.unflushed = 0;
                                input.task.flush(&mut outputs)?;
                                self.show_ingest(&run.partition, input);
                            }
                            forward.send(&mut outputs, &mut *writer)?;
                        }
                    }
                    Event::End { partition, position } => {
                        for (input, _) in inputs.get_mut(&partition).into_iter().flatten() {
                            input.task.skip_to(position);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// The input has ended: what is left, then the end-of-input watermark.
    fn finish_input(
        &self,
        partition: &TopicPartition,
        input: &mut Input,
        forward: &mut Forward,
        outputs: &mut Outputs,
        writer: &mut dyn SinkWriter,
    ) -> Result<()> {
        input.done = true;
        input.task.flush(outputs)?;
        outputs.watermark = Some(WATERMARK_MAX);
        forward.send(outputs, writer)?;
        // Dropping the senders lets the keyed tasks end.
        forward.ports.clear();
        self.drift.remove(partition);
        self.show_ingest(partition, input);
        let counters = *input.task.counters();
        let mut report = lock(&self.report)?;
        report.counters.add(&counters);
        let source = Arc::clone(&self.plan.sources[input.task.source()].name);
        report.sources.entry(source).or_default().add(&counters);
        Ok(())
    }

    /// Pauses a partition that is far ahead, or done; wakes it when the others have come.
    fn pace(
        &self,
        partition: &TopicPartition,
        inputs: &mut [(Input, Forward)],
        reader: &mut dyn Reader,
    ) -> Result<()> {
        let Some((first, _)) = inputs.first_mut() else { return Ok(()) };
        let watermark = first.task.watermark();
        let paused = first.done
            || self.drift.must_pause(
                partition,
                watermark,
                false,
                self.plan.max_drift,
                std::time::Instant::now(),
            );
        if paused != first.paused {
            first.paused = paused;
            match paused {
                true => reader.pause(std::slice::from_ref(partition))?,
                false => reader.resume(std::slice::from_ref(partition))?,
            }
        }
        Ok(())
    }

    fn keyed(
        &self,
        stage: usize,
        partition: i32,
        writer: usize,
        messages: Receiver<Message>,
        ports: BTreeMap<usize, Senders>,
    ) -> Result<()> {
        let mut writer = self.sink.writer(writer)?;
        let topic = self.names.input_topic(&self.plan, stage);
        let partition = TopicPartition::new(topic, partition);
        let store: Box<dyn Store> = match &self.scratch {
            Some(scratch) => Box::new(scratch.task(&super::recovery::task_name(&partition))?),
            None => Box::new(MemoryStore::default()),
        };
        let state = Arc::new(Mutex::new(TaskState::new(store)));
        let mut task = KeyedTask::new(&self.plan, stage, partition.clone(), state, 0, SetAside::default())?;
        let mut forward = Forward::new(self, &partition, task.exchanges(), &ports)?;
        drop(ports);
        let (mut outputs, mut applied, mut spills) = (Outputs::default(), 0, 0);
        while let Ok(message) = messages.recv() {
            task.apply(message, &mut outputs)?;
            task.drain(&mut outputs);
            applied += 1;
            if applied % FLUSH_MESSAGES == 0 {
                task.flush(&mut outputs)?;
                task.commit()?;
                let mut state = lock(task.state())?;
                if self.scratch.is_some() && state.memory_bytes() > self.task_budget {
                    spills += 1;
                    state.checkpoint(spills)?;
                }
            }
            forward.send(&mut outputs, &mut *writer)?;
            if self.must_stop() {
                return Err(EngineError::Cancelled);
            }
        }
        if task.watermark() != WATERMARK_MAX {
            return Err(EngineError::Cancelled); // a task before this one has failed
        }
        task.flush(&mut outputs)?;
        outputs.watermark = Some(WATERMARK_MAX);
        forward.send(&mut outputs, &mut *writer)?;
        writer.finish()
    }

    fn show_ingest(&self, partition: &TopicPartition, input: &Input) {
        let task = &input.task;
        let progress = TaskProgress {
            role: TaskRole::Ingest,
            stage: Arc::clone(&self.plan.stages[input.stage].name),
            source: Some(Arc::clone(&self.plan.sources[task.source()].name)),
            offset: task.offset(),
            watermark: task.watermark(),
            idle: false,
            counters: *task.counters(),
            expired: 0,
            derived_dead: 0,
            open_windows: None,
            state_bytes: 0,
            checkpoint: None,
            recovery: None,
        };
        self.progress.set(partition, progress);
    }

    fn report(self) -> Result<ReplayReport> {
        let mut report = self.report.into_inner().unwrap_or_default();
        report.offsets = self.bounds;
        Ok(report)
    }
}

/// Carries what a task hands over to the next tasks' channels and to the sink.
struct Forward {
    origin: Origin,
    ports: Vec<Port>,
}

/// One way to a keyed stage.
struct Port {
    exchange: ExchangePort,
    partitioner: Partitioner,
    senders: Senders,
    origin_set: Vec<(Arc<str>, i32)>,
}

impl Forward {
    fn new(
        shared: &Shared<'_>,
        origin: &Origin,
        exchanges: &[ExchangePort],
        senders: &BTreeMap<usize, Senders>,
    ) -> Result<Self> {
        let mut ports = Vec::new();
        for exchange in exchanges {
            let spec = keyed_aggregate(&shared.plan.stages[exchange.stage])
                .ok_or_else(|| EngineError::internal("an exchange leads to a keyed stage".into()))?;
            let key_columns = Arc::clone(&exchange.key_columns);
            ports.push(Port {
                exchange: exchange.clone(),
                partitioner: Partitioner::new(&exchange_schema(spec), key_columns, shared.threads)?,
                senders: senders[&exchange.stage].clone(),
                origin_set: shared.names.origin_set(&shared.plan, exchange.stage),
            });
        }
        Ok(Self { origin: origin.clone(), ports })
    }

    fn send(&mut self, outputs: &mut Outputs, writer: &mut dyn SinkWriter) -> Result<()> {
        for (sink, rows) in outputs.sinks.drain(..) {
            writer.write(sink, &rows)?;
        }
        for (port, rows) in outputs.exchanges.drain(..) {
            let port = &mut self.ports[port];
            for (partition, rows) in port.partitioner.split(&rows.rows)? {
                let to = &port.senders[partition as usize];
                send(to, &self.origin, &port.origin_set, Body::Rows(rows))?;
            }
        }
        if let Some(watermark) = outputs.watermark.take() {
            for port in &self.ports {
                let forwarded = port.exchange.forwarded(watermark);
                for to in &port.senders {
                    send(to, &self.origin, &port.origin_set, Body::Watermark(forwarded))?;
                }
            }
        }
        outputs.clear();
        Ok(())
    }
}

fn send(to: &SyncSender<Message>, origin: &Origin, origin_set: &[(Arc<str>, i32)], body: Body) -> Result<()> {
    let message = Message { origin: origin.clone(), origin_set: origin_set.to_vec(), body };
    to.send(message).map_err(|_| EngineError::Cancelled)
}
