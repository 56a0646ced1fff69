//! Sequences of events that once broke, or could break, the commit protocol: the engine on the log in memory,
//! with a member that fails or withholds events where a test says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headwater::engine::{EngineError, Progress, RunOptions, RunReport, run};
use headwater::log::memory::MemoryLog;
use headwater::log::{
    Bounds, CommitError, Event, Fence, Log, LogError, Member, MemberOptions, Outgoing, Position, Producer,
    Reader, Result, TopicInfo, TopicSpec, Transactor,
};
use headwater::plan::Plan;
use headwater::record::TopicPartition;

/// What goes wrong.
#[derive(Default)]
struct Script {
    /// This call of `produce` finds that the transaction must be aborted.
    produce_aborts_at: u64,
    produced: AtomicU64,
    /// This call of `abort` fails: the producer can't go on.
    abort_fails_at: u64,
    aborted: AtomicU64,
    /// Events of this partition come only with this poll.
    withheld: Option<(TopicPartition, u64)>,
    polled: AtomicU64,
    /// The group's offsets are gone.
    offsets_expired: bool,
    /// Set as soon as an exchange is read outside the group: in a fold.
    stop_in_fold: Option<Arc<AtomicBool>>,
}

struct ScriptedLog {
    inner: MemoryLog,
    script: Arc<Script>,
}

struct ScriptedMember {
    inner: Box<dyn Member>,
    script: Arc<Script>,
    held: Vec<Event>,
}

impl Log for ScriptedLog {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn topics(&self) -> Result<Vec<TopicInfo>> {
        self.inner.topics()
    }
    fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        self.inner.partitions(topic)
    }
    fn topic_id(&self, topic: &str) -> Result<Option<String>> {
        self.inner.topic_id(topic)
    }
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<()> {
        self.inner.create_topics(topics)
    }
    fn delete_topics(&self, topics: &[String]) -> Result<()> {
        self.inner.delete_topics(topics)
    }
    fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>> {
        self.inner.topic_config(topic)
    }
    fn bounds(&self, partition: &TopicPartition) -> Result<Bounds> {
        self.inner.bounds(partition)
    }
    fn written_ends(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>> {
        self.inner.written_ends(partitions)
    }
    fn offset_at(&self, partition: &TopicPartition, timestamp_ms: i64) -> Result<Option<i64>> {
        self.inner.offset_at(partition, timestamp_ms)
    }
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<Position>>> {
        match self.script.offsets_expired {
            true => Ok(vec![None; partitions.len()]),
            false => self.inner.committed(group, partitions),
        }
    }
    fn committed_so_far(
        &self,
        group: &str,
        partitions: &[TopicPartition],
        patience: Duration,
    ) -> Result<Vec<Option<Position>>> {
        match self.script.offsets_expired {
            true => Ok(vec![None; partitions.len()]),
            false => self.inner.committed_so_far(group, partitions, patience),
        }
    }
    fn delete_before(&self, offsets: &[(TopicPartition, i64)]) -> Result<()> {
        self.inner.delete_before(offsets)
    }
    fn reader(&self) -> Result<Box<dyn Reader>> {
        let (inner, script) = (self.inner.reader()?, Arc::clone(&self.script));
        Ok(Box::new(ScriptedReader { inner, script }))
    }
    fn producer(&self) -> Result<Box<dyn Producer>> {
        self.inner.producer()
    }
    fn member(&self, options: &MemberOptions) -> Result<Box<dyn Member>> {
        let (inner, script) = (self.inner.member(options)?, Arc::clone(&self.script));
        Ok(Box::new(ScriptedMember { inner, script, held: Vec::new() }))
    }
    fn transactor(&self, id: &str, timeout: Duration) -> Result<Box<dyn Transactor>> {
        self.inner.transactor(id, timeout)
    }
    fn commit_offsets(&self, group: &str, offsets: &[(TopicPartition, Position)]) -> Result<()> {
        self.inner.commit_offsets(group, offsets)
    }
}

struct ScriptedReader {
    inner: Box<dyn Reader>,
    script: Arc<Script>,
}

impl Reader for ScriptedReader {
    fn assign(&mut self, from: &[(TopicPartition, i64)]) -> Result<()> {
        if let Some(stop) = &self.script.stop_in_fold
            && from.iter().any(|(partition, _)| partition.topic.contains(".exchange."))
        {
            stop.store(true, Ordering::Relaxed);
        }
        self.inner.assign(from)
    }
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        self.inner.poll(timeout)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.resume(partitions)
    }
}

fn is_next(count: &AtomicU64, at: u64) -> bool {
    count.fetch_add(1, Ordering::Relaxed) + 1 == at
}

impl Member for ScriptedMember {
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        let mut events = self.inner.poll(timeout)?;
        let Some((partition, until)) = &self.script.withheld else { return Ok(events) };
        if self.script.polled.fetch_add(1, Ordering::Relaxed) < *until {
            let of_it = |event: &mut Event| match event {
                Event::Run(run) => run.partition == *partition,
                Event::End { partition: ended, .. } => ended == partition,
                _ => false,
            };
            self.held.extend(events.extract_if(.., of_it));
        } else {
            events.append(&mut self.held);
        }
        Ok(events)
    }
    fn start(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.inner.start(partition, offset)
    }
    fn release(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.release(partitions)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.resume(partitions)
    }
    fn begin(&mut self) -> Result<()> {
        self.inner.begin()
    }
    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        if is_next(&self.script.produced, self.script.produce_aborts_at) {
            return Err(LogError::Abort("as the script says".into()));
        }
        self.inner.produce(to, records)
    }
    fn commit(&mut self, fence: &Fence, offsets: &[(TopicPartition, Position)]) -> Result<(), CommitError> {
        self.inner.commit(fence, offsets)
    }
    fn abort(&mut self) -> Result<()> {
        if is_next(&self.script.aborted, self.script.abort_fails_at) {
            return Err(LogError::Other { what: "abort".into(), detail: "as the script says".into() });
        }
        self.inner.abort()
    }
    fn leave(&mut self) -> Result<()> {
        self.inner.leave()
    }
}

const COPY: &str = "
name: copies
sources:
  numbers:
    topic: numbers
    format: json
    columns: {n: bigint, at: timestamp_s}
    event_time: at
    watermark: {max_ahead: 100000d}
views:
  copy: select n, at from numbers
sinks:
  copy: {topic: {name: copies}}
";

struct Setting {
    log: MemoryLog,
    plan: Arc<Plan>,
    dir: tempfile::TempDir,
}

/// `counts`: records by partition, a minute of event time apart.
fn setting(counts: &[i64]) -> Setting {
    setting_of(COPY, counts)
}

fn setting_of(topology: &str, counts: &[i64]) -> Setting {
    let log = MemoryLog::new();
    let partitions = i32::try_from(counts.len()).unwrap();
    let topic = TopicSpec { name: "numbers".into(), partitions, config: BTreeMap::new() };
    log.create_topics(&[topic]).unwrap();
    let mut producer = log.producer().unwrap();
    for (partition, count) in (0..).zip(counts) {
        for at in 0..*count {
            let value = format!(r#"{{"n":{},"at":{}}}"#, i64::from(partition) * 1_000_000 + at, at * 60);
            let record = Outgoing { value: Some(value.as_bytes()), ..Outgoing::default() };
            producer.produce(&TopicPartition::new("numbers", partition), &[record]).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copies.yaml");
    std::fs::write(&path, topology).unwrap();
    Setting { log, plan: Arc::new(headwater::tool::topology_file::load(&path).unwrap()), dir }
}

impl Setting {
    fn run_to_the_end(&self, script: Script) -> Result<RunReport, EngineError> {
        let stop = script.stop_in_fold.clone().unwrap_or_default();
        let log: Arc<dyn Log> = Arc::new(ScriptedLog { inner: self.log.clone(), script: Arc::new(script) });
        let options =
            RunOptions { state_dir: self.dir.path().join("state"), until_end: true, ..RunOptions::default() };
        run(&self.plan, &log, &options, &Progress::default(), &stop)
    }

    /// All values of a topic, sorted.
    fn values(&self, topic: &str) -> Vec<String> {
        let mut values = Vec::new();
        for partition in 0..self.log.partitions(topic).unwrap().unwrap() {
            let partition = TopicPartition::new(topic, partition);
            let bounds = self.log.bounds(&partition).unwrap();
            let mut reader = self.log.reader().unwrap();
            reader.assign(&[(partition, bounds.start)]).unwrap();
            let mut ended = bounds.start >= bounds.end;
            while !ended {
                for event in reader.poll(Duration::ZERO).unwrap() {
                    match event {
                        Event::Run(run) => values.extend((0..run.records.len()).map(|index| {
                            String::from_utf8(run.records.get(index).value.unwrap().to_vec()).unwrap()
                        })),
                        Event::End { position, .. } => ended = position >= bounds.end,
                        _ => {}
                    }
                }
            }
        }
        values.sort();
        values
    }

    fn assert_each_copied_once(&self) {
        let copied = |topic| -> Vec<i64> {
            let number = |value: String| -> i64 {
                let value: serde_json::Value = serde_json::from_str(&value).unwrap();
                value["n"].as_i64().unwrap()
            };
            let mut numbers: Vec<i64> = self.values(topic).into_iter().map(number).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(copied("copies"), copied("numbers"));
    }
}

#[test]
fn what_was_read_before_an_abort_is_not_taken_after_it() {
    // A poll yields a run of each partition; the first one's is where the transaction fails.
    for at in 1..8 {
        let setting = setting(&[1200, 700]);
        let report = setting.run_to_the_end(Script { produce_aborts_at: at, ..Script::default() }).unwrap();
        assert_eq!(report.counters.read, 1900, "aborted at {at}");
        assert_eq!(report.rejoins, 0);
        setting.assert_each_copied_once();
    }
}

#[test]
fn a_producer_that_can_not_even_abort_makes_the_worker_join_anew() {
    let setting = setting(&[1200, 700]);
    let script = Script { produce_aborts_at: 2, abort_fails_at: 1, ..Script::default() };
    let report = setting.run_to_the_end(script).unwrap();
    assert_eq!(report.counters.read, 1900);
    assert_eq!(report.rejoins, 1);
    setting.assert_each_copied_once();
}

#[test]
fn r14_nobody_waits_for_a_partition_that_turns_out_to_be_empty() {
    let setting = setting(&[2000, 0]);
    let began = Instant::now();
    let withheld = Some((TopicPartition::new("numbers", 1), 3));
    let report = setting.run_to_the_end(Script { withheld, ..Script::default() }).unwrap();
    assert_eq!(report.counters.read, 2000);
    assert!(began.elapsed() < Duration::from_secs(20), "it waited for an origin that has nothing unread");
}

#[test]
fn r2_a_group_whose_offsets_are_gone_is_refused() {
    let setting = setting(&[100]);
    setting.run_to_the_end(Script::default()).unwrap();
    let script = Script { offsets_expired: true, ..Script::default() };
    let error = setting.run_to_the_end(script).unwrap_err();
    assert!(matches!(error, EngineError::OffsetsExpired { .. }), "{error}");
    setting.run_to_the_end(Script::default()).unwrap();
    setting.assert_each_copied_once();
}

#[test]
fn asked_to_stop_in_the_middle_of_a_fold_it_leaves_and_folds_anew_later() {
    let hourly = COPY
        .replace(
            "select n, at from numbers",
            "select window_start, count(*) as n, sum(n) as total from tumble(numbers, at, interval '1 hour') \
             group by window_start",
        )
        .replace("name: copies}", "name: copies, key: [window_start]}");
    let whole = setting_of(&hourly, &[700, 700]);
    whole.run_to_the_end(Script::default()).unwrap();
    assert!(!whole.values("copies").is_empty());
    let setting = setting_of(&hourly, &[700, 700]);
    // The first run checkpoints nothing before it ends, so the second one has everything to fold.
    setting.run_to_the_end(Script::default()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let script = Script { stop_in_fold: Some(Arc::clone(&stop)), ..Script::default() };
    let report = setting.run_to_the_end(script).unwrap();
    assert!(stop.load(Ordering::Relaxed), "nothing was folded");
    assert_eq!(report.commits, 0);
    let more = setting_of(&hourly, &[1400, 1400]);
    more.run_to_the_end(Script::default()).unwrap();
    let mut producer = setting.log.producer().unwrap();
    for partition in 0..2 {
        let from = TopicPartition::new("numbers", partition);
        let mut reader = more.log.reader().unwrap();
        reader.assign(&[(from.clone(), 700)]).unwrap();
        let mut position = 700;
        while position < 1400 {
            for event in reader.poll(Duration::ZERO).unwrap() {
                let Event::Run(run) = event else { continue };
                for index in 0..run.records.len() {
                    let value = run.records.get(index).value;
                    producer.produce(&from, &[Outgoing { value, ..Outgoing::default() }]).unwrap();
                }
                position = run.next;
            }
        }
    }
    let report = setting.run_to_the_end(Script::default()).unwrap();
    assert_eq!(report.counters.read, 2800);
    assert_eq!(setting.values("copies"), more.values("copies"));
}

#[test]
fn a_topology_that_would_feed_itself_or_mix_two_views_is_refused() {
    let two =
        COPY.replace("sinks:", "  other: select n from numbers\nsinks:\n  other: {topic: {name: others}}");
    headwater::plan::parse(&two, "copies.yaml").unwrap();
    for (from, to, message) in [
        ("name: others", "name: copies", "'other' and 'copy' go into the same topic"),
        ("name: others", "name: copies.late", "keeps for itself"),
        ("topic: numbers", "topic: copies.dead", "keeps for itself"),
        ("topic: numbers", "topic: copies.redriven", "keeps for itself"),
        ("topic: numbers", "topic: copies.exchange.x", "keeps for itself"),
        ("name: others", "name: numbers", "would feed itself"),
    ] {
        let error = headwater::plan::parse(&two.replace(from, to), "copies.yaml").unwrap_err().to_string();
        assert!(error.contains(message), "{to}: {error}");
    }
}
