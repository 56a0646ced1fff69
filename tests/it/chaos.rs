//! Everything at once, on a real Kafka of its own: one to three processes of a topology that join, leave, are killed
//! and stalled while records pour in, a broker that is killed and stalled, a machine that loses its state; and
//! afterwards every topic is as if nothing had happened.
//!
//! The same records are read by a second topology once all is quiet: its results are what is expected. The long form
//! is run by `tests/stack/chaos`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater::log::{Log, Outgoing, TopicSpec};
use headwater::record::TopicPartition;

use crate::kill::{Dice, Seed};
use crate::project::{Project, Running};
use crate::support::{
    Script, assert_no_open_transaction, connect, counters, kafka_can_be_had, letters, read_topic, test_s3,
    unique, within,
};

const PORT: u16 = 19192;
const PARTITIONS: i32 = 4;
const MACHINES: usize = 3;
/// Beyond the session's 10 s and the transaction's 15 s.
const STALL: Duration = Duration::from_secs(17);
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// An answer that takes longer is said.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long what a broker's absence has done may take to show.
const BROKER_MISSED: Duration = Duration::from_secs(30);
/// Of all of it.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// After the last fault: sessions and transactions of the dead time out, and what is left is read.
const SETTLE_MAX: Duration = Duration::from_secs(180);

/// How much of everything.
struct Storm {
    /// At least; they come without a pause while it blows, so many a second.
    records: usize,
    rate: usize,
    kills: usize,
    broker_kills: usize,
    stalls: usize,
    broker_stalls: usize,
    /// A machine joins, or one leaves.
    moves: usize,
    losses: usize,
    in_bucket: bool,
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill,
    KillBroker,
    Stall,
    StallBroker,
    Move,
    LoseState,
}

impl Storm {
    fn blows(&self, dice: &mut Dice) -> Vec<Blow> {
        let mut blows = Vec::new();
        for (count, blow) in [
            (self.kills, Blow::Kill),
            (self.broker_kills, Blow::KillBroker),
            (self.stalls, Blow::Stall),
            (self.broker_stalls, Blow::StallBroker),
            (self.moves, Blow::Move),
            (self.losses, Blow::LoseState),
        ] {
            blows.extend(std::iter::repeat_n(blow, count));
        }
        for last in (1..blows.len()).rev() {
            blows.swap(last, dice.below(last as u64 + 1) as usize);
        }
        blows
    }
}

fn topology(name: &str, source: &str) -> String {
    format!(
        "name: {name}
sources:
  events:
    topic: {source}
    format: json
    columns: {{id: bigint, key: varchar, amount: bigint, at: timestamp}}
    event_time: at
    partitioned_by: [id]
    watermark: {{out_of_orderness: 90s, idle_after: 1d}}
checks:
  events:
    - {{name: positive, expect: amount >= 0}}
views:
  per_minute: |
    select window_start, window_end, key, count(*) as n, sum(amount) as total
    from tumble(events, at, interval '1 minute')
    group by window_start, window_end, key
  large: |
    select id, key, amount from events where amount > 800
sinks:
  per_minute:
    topic: {{name: {name}.per_minute, format: json, key: [key, window_start]}}
  large:
    topic: {{name: {name}.large, format: json, key: [id]}}
"
    )
}

/// A record's value: event times go on by a fiftieth of a second, some are too late, some amounts too small.
fn value(dice: &mut Dice, id: usize) -> String {
    let day = chrono::DateTime::from_timestamp(1_704_067_200, 0).unwrap();
    let back = if dice.below(50) == 0 { dice.below(180_000) } else { dice.below(60_000) };
    let at = day + chrono::TimeDelta::milliseconds(200_000 + id as i64 * 20 - back as i64);
    let (key, amount) = (dice.below(200), dice.below(1_020) as i64 - 20);
    let at = at.format("%Y-%m-%dT%H:%M:%S%.3fZ");
    format!(r#"{{"id":{id},"key":"k{key}","amount":{amount},"at":"{at}"}}"#)
}

/// Produces in the background, so many a second, until it is told to stop.
struct Feed {
    stop: Arc<AtomicBool>,
    /// As many are made at least.
    least: Arc<AtomicUsize>,
    thread: JoinHandle<usize>,
}

impl Feed {
    fn start(log: &Arc<dyn Log>, topic: &str, rate: usize, seed: u64) -> Self {
        let (stop, least) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(usize::MAX)));
        let (log, topic) = (Arc::clone(log), topic.to_owned());
        let thread = std::thread::spawn({
            let (stop, least) = (Arc::clone(&stop), Arc::clone(&least));
            move || {
                let mut producer = log.producer().unwrap();
                let (mut dice, began) = (Dice(seed), Instant::now());
                let mut made = 0;
                while !stop.load(Ordering::SeqCst) || made < least.load(Ordering::SeqCst) {
                    // After a broker that was away it makes up for what was not sent meanwhile.
                    if made >= (began.elapsed().as_secs_f64() * rate as f64) as usize {
                        std::thread::sleep(Duration::from_millis(2));
                        continue;
                    }
                    let to = TopicPartition::new(topic.as_str(), (made % PARTITIONS as usize) as i32);
                    let value = value(&mut dice, made);
                    let record = Outgoing { value: Some(value.as_bytes()), ..Outgoing::default() };
                    producer.produce(&to, &[record]).unwrap();
                    made += 1;
                }
                producer.flush(Duration::from_secs(120)).unwrap();
                made
            }
        });
        Self { stop, least, thread }
    }

    /// How many records there are, once there are enough.
    fn finish(self, least: usize) -> usize {
        self.least.store(least, Ordering::SeqCst);
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// The Kafka that is treated so.
struct Broker {
    script: Script,
}

impl Broker {
    fn start() -> Self {
        let script = Script::kafka(PORT);
        assert!(
            !script.runs(),
            "a Kafka runs at {PORT} already: tests/stack/kafka stop, with KAFKA_PORT={PORT}"
        );
        let _ = std::fs::remove_dir_all(script.path("data"));
        script.start();
        Self { script }
    }
}

/// All that is disturbed.
struct Scene {
    began: Instant,
    dice: Dice,
    project: Project,
    log: Arc<dyn Log>,
    broker: Broker,
    address: String,
    source: String,
    stormy: String,
    calm: String,
    running: Vec<Option<Running>>,
    /// When the broker was last away.
    broker_away: Option<Instant>,
}

impl Scene {
    fn new(storm: &Storm, seed: u64) -> Option<Self> {
        if !kafka_can_be_had() {
            return None;
        }
        let project = Project::new();
        let state = if storm.in_bucket {
            let s3 = test_s3()?;
            format!("state: {{url: '{}'}}\n{}", s3.url(&unique("chaos")), s3.section())
        } else {
            format!("state: {{url: '{}'}}\n", project.path().join("copies").display())
        };
        let broker = Broker::start();
        let (source, stormy, calm) = (unique("chaos.events"), unique("stormy"), unique("calm"));
        // A topology's name has no dots.
        let (stormy, calm) = (stormy.replace('.', "-"), calm.replace('.', "-"));
        project.write("stormy.yaml", &topology(&stormy, &source));
        project.write("calm.yaml", &topology(&calm, &source));
        let interval = CHECKPOINT_INTERVAL.as_secs();
        for machine in 0..MACHINES {
            let config = format!(
                "data_dir: m{machine}\n{state}worker: {{threads: 1, epoch: 100ms, checkpoint_interval: {interval}s}}\n\
                 http: {{listen: '127.0.0.1:0'}}\n"
            );
            project.write(&format!("m{machine}.yaml"), &config);
        }
        let address = format!("127.0.0.1:{PORT}");
        let log = connect(&address);
        let topic = TopicSpec { name: source.clone(), partitions: PARTITIONS, config: BTreeMap::new() };
        log.create_topics(&[topic]).unwrap();
        let running = (0..MACHINES).map(|_| None).collect();
        let (began, dice) = (Instant::now(), Dice(seed));
        let broker_away = None;
        Some(Self { began, dice, project, log, broker, address, source, stormy, calm, running, broker_away })
    }

    fn say(&self, what: &str) {
        let there: Vec<usize> = (0..MACHINES).filter(|&machine| self.running[machine].is_some()).collect();
        println!("{:6.1} s  {what:<40} machines {there:?}", self.began.elapsed().as_secs_f64());
    }

    fn arguments<'a>(&'a self, rest: &[&'a str], config: &'a str) -> Vec<&'a str> {
        let end = ["--config", config, "--brokers", self.address.as_str()];
        rest.iter().copied().chain(end).collect()
    }

    fn start(&mut self, machine: usize) {
        let config = format!("m{machine}.yaml");
        let running = self.project.start(&self.arguments(&["run", "stormy.yaml"], &config));
        self.running[machine] = Some(running);
    }

    /// One of the machines that run.
    fn any(&mut self) -> usize {
        let there: Vec<usize> = (0..MACHINES).filter(|&machine| self.running[machine].is_some()).collect();
        there[self.dice.below(there.len() as u64) as usize]
    }

    fn assert_alive(&mut self) {
        for machine in 0..MACHINES {
            let Some(code) = self.running[machine].as_mut().and_then(Running::ended) else { continue };
            let (out, err) = self.project.printed();
            // A process that starts while no broker answers says so and ends; whoever supervises it starts it again.
            let said = err.lines().rev().find(|line| line.starts_with("error: ")).unwrap_or_default();
            let no_broker = self.broker_away.is_some_and(|at| at.elapsed() < BROKER_MISSED);
            if code == 1 && no_broker && said.starts_with("error: cannot reach") {
                self.say(&format!("machine {machine} found no broker"));
                self.start(machine);
                continue;
            }
            panic!("machine {machine} ended by itself with {code}:\n{}\n{}", tail(&out), tail(&err));
        }
    }

    /// Waits, while all must live.
    fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.assert_alive();
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn random(&mut self, limit_ms: u64) -> Duration {
        Duration::from_millis(self.dice.below(limit_ms))
    }

    fn read(&self) -> u64 {
        let since = Instant::now();
        let read = counters(&*self.log, &format!("headwater.{}", self.stormy), &self.source).read;
        if since.elapsed() > ANSWER_MAX {
            self.say(&format!("an answer took {:.1} s", since.elapsed().as_secs_f64()));
        }
        read
    }

    /// Waits until more than this is committed: what was before the records came that it waits for.
    fn await_more_than(&mut self, before: u64) {
        within(SETTLE_MAX, "a commit", || {
            self.pass(Duration::from_millis(100));
            (self.read() > before).then_some(())
        });
    }

    fn blow(&mut self, blow: Blow) {
        let machine = self.any();
        match blow {
            Blow::Kill => {
                self.running[machine].take().unwrap().kill();
                // Now and then beyond the session, so that the others have taken over.
                let session_ends = self.dice.below(4) == 0 && self.running.iter().any(Option::is_some);
                let pause = self.random(2_000) + Duration::from_secs(if session_ends { 11 } else { 0 });
                self.pass(pause);
                self.start(machine);
            }
            Blow::LoseState => {
                self.running[machine].take().unwrap().kill();
                std::fs::remove_dir_all(self.data_dir(machine).join("state")).unwrap();
                self.start(machine);
            }
            Blow::Stall => {
                self.running[machine].as_ref().unwrap().signal("-STOP");
                self.pass(STALL);
                self.running[machine].as_ref().unwrap().signal("-CONT");
            }
            // One to three of them are there.
            Blow::Move => match (0..MACHINES).find(|&machine| self.running[machine].is_none()) {
                Some(absent) if self.running.iter().flatten().count() == 1 || self.dice.below(2) == 0 => {
                    self.start(absent);
                }
                _ => self.stop(machine),
            },
            Blow::KillBroker => {
                self.broker_away = Some(Instant::now());
                self.broker.script.kill();
                let pause = self.random(3_000);
                self.pass(pause);
                self.broker.script.restart();
                self.broker_away = Some(Instant::now());
            }
            Blow::StallBroker => {
                self.broker_away = Some(Instant::now());
                self.broker.script.signal("-STOP");
                self.pass(STALL);
                self.broker.script.signal("-CONT");
                self.broker_away = Some(Instant::now());
            }
        }
    }

    fn data_dir(&self, machine: usize) -> PathBuf {
        self.project.path().join(format!("m{machine}"))
    }

    /// Told to stop, it ends in good order.
    fn stop(&mut self, machine: usize) {
        let running = self.running[machine].take().unwrap();
        running.signal("-TERM");
        let (code, _) = running.wait(SETTLE_MAX);
        assert_eq!(code, 0, "{}", tail(&self.project.printed().1));
    }

    /// Kafka ends the transaction of one that was killed and does not come back after its timeout, and looks for such
    /// every ten seconds, or later where the machine is busy.
    fn verify(&self) -> String {
        let arguments = ["verify", "stormy.yaml", "--patience", "2m"];
        let outcome = self.project.run(&self.arguments(&arguments, "m0.yaml"));
        if outcome.code != 0 {
            println!("{}", self.transactions());
        }
        assert_eq!(outcome.code, 0, "{}{}", outcome.out, tail(&outcome.err));
        outcome.out
    }

    /// What Kafka knows of transactions, and of those who write to the topic of windows.
    fn transactions(&self) -> String {
        let tool = |arguments: &[&str]| {
            let class = "org.apache.kafka.tools.TransactionsCommand";
            let all = [&["tool", class, "--bootstrap-server", &self.address], arguments].concat();
            let output =
                std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/kafka"))
                    .args(&all)
                    .output()
                    .unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!("{arguments:?}\n{}{}", text(&output.stdout), text(&output.stderr))
        };
        let topic = format!("{}.per_minute", self.stormy);
        // Longer than a minute: none of ours lives half as long.
        let hanging = ["find-hanging", "--broker-id", "1", "--max-transaction-timeout", "1"];
        let mut all = tool(&["list"]) + &tool(&hanging);
        for partition in 0..self.log.partitions(&topic).unwrap().unwrap_or(0) {
            all += &tool(&["describe-producers", "--topic", &topic, "--partition", &partition.to_string()]);
        }
        all
    }

    fn finish(&self, arguments: &[&str], config: &str) -> String {
        let outcome = self.project.run(&self.arguments(arguments, config));
        assert_eq!(outcome.code, 0, "{arguments:?}: {}{}", outcome.out, tail(&outcome.err));
        outcome.out
    }

    /// The partitions of the exchange that hold most of what was ever written to them.
    fn untrimmed(&self) -> Vec<i32> {
        let exchange = format!("{}.exchange.per_minute", self.stormy);
        let count = self.log.partitions(&exchange).unwrap().unwrap();
        let bounds = |partition| self.log.bounds(&TopicPartition::new(exchange.as_str(), partition)).unwrap();
        let holds_most = |&partition: &i32| {
            let bounds = bounds(partition);
            bounds.start <= bounds.end / 2
        };
        (0..count).filter(holds_most).collect()
    }

    /// Waits, while records come, until every exchange is trimmed: that takes two copies of each task's state.
    fn await_trimming(&mut self) {
        within(SETTLE_MAX, "trimmed exchanges", || {
            self.pass(Duration::from_millis(250));
            self.untrimmed().is_empty().then_some(())
        });
    }

    /// Everything is as if nothing had happened.
    fn compare(&self, records: usize) {
        let log = &*self.log;
        let topic = |name: &str, part: &str| format!("{name}.{part}");
        for (part, at_least) in [("large", records / 6), ("per_minute", records / 300)] {
            let rows = |name: &str| {
                let mut rows: Vec<_> = read_topic(log, &topic(name, part))
                    .into_iter()
                    .flat_map(|(partition, records)| {
                        records.into_iter().map(move |record| (partition, record.key, record.value))
                    })
                    .collect();
                rows.sort();
                rows
            };
            let (expected, found) = (rows(&self.calm), rows(&self.stormy));
            assert!(expected.len() > at_least, "{part}: {}", expected.len());
            let differs = expected.iter().zip(&found).find(|(expected, found)| expected != found);
            assert!(
                found == expected,
                "{part}: {} records, not {}; the first that differs: {differs:?}",
                found.len(),
                expected.len()
            );
        }
        for part in ["dead", "late"] {
            let expected = letters(log, &topic(&self.calm, part));
            assert!(expected.len() > records / 1000, "{part}: {}", expected.len());
            let found = letters(log, &topic(&self.stormy, part));
            assert!(found == expected, "{part}: {} records, not {}", found.len(), expected.len());
        }
        let counted = |name: &str| counters(log, &format!("headwater.{name}"), &self.source);
        assert_eq!(counted(&self.stormy), counted(&self.calm));
        assert_eq!(counted(&self.stormy).read, records as u64);
        assert_eq!(self.untrimmed(), Vec::<i32>::new(), "exchange partitions that are not trimmed");
        for part in ["large", "per_minute", "dead", "late", "meta", "exchange.per_minute"] {
            assert_no_open_transaction(log, &topic(&self.stormy, part));
        }
    }
}

impl Drop for Scene {
    /// What failed may be seen from the brokers' side, or from the processes'.
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}{}", self.transactions(), tail(&self.project.printed().1));
        }
    }
}

/// The end of what was printed: the beginning is long ago.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn survives(storm: &Storm) {
    let seed = Seed::new();
    let Some(mut scene) = Scene::new(storm, seed.0) else { return };
    let feed = Feed::start(&scene.log, &scene.source, storm.rate, seed.0);
    let blows = storm.blows(&mut scene.dice);
    scene.start(0);
    scene.start(1);
    scene.await_more_than(0);
    for (number, &blow) in blows.iter().enumerate() {
        let before = scene.read();
        if number % 2 == 1 {
            scene.await_more_than(before);
        }
        let pause = scene.random(2_500);
        scene.pass(pause);
        scene.say(&format!("{blow:?}"));
        scene.blow(blow);
    }
    scene.say("quiet; waiting for the exchanges to be trimmed");
    scene.await_trimming();
    let before = scene.read();
    let records = feed.finish(storm.records);
    scene.say(&format!("all {records} records are there"));
    scene.await_more_than(before);
    for machine in 0..MACHINES {
        if scene.running[machine].is_some() {
            scene.stop(machine);
        }
    }
    scene.say("stopped; two go on to the end");
    let ends: Vec<Running> = (0..2)
        .map(|machine| {
            let config = format!("m{machine}.yaml");
            scene.project.start(&scene.arguments(&["run", "stormy.yaml", "--until-end"], &config))
        })
        .collect();
    for end in ends {
        let (code, _) = end.wait(SETTLE_MAX);
        assert_eq!(code, 0, "{}", tail(&scene.project.printed().1));
    }
    scene.say("at the end; now the undisturbed run");
    scene.finish(&["run", "calm.yaml", "--until-end"], "m2.yaml");
    scene.say("verify");
    let verified = scene.verify();
    assert!(verified.contains("EQUAL") && !verified.contains("DIFFERENT"), "{verified}");
    scene.say("compare");
    scene.compare(records);
    scene.say("equal");
    let took = scene.began.elapsed();
    assert!(took < LIMIT, "it took {took:?}");
    scene.broker.script.command(&["stop"]).stdout(std::process::Stdio::null()).status().unwrap();
}

#[test]
#[ignore = "wants the machine for itself: .ci/run and tests/stack/chaos run it"]
fn a_short_storm_leaves_no_trace() {
    survives(&Storm {
        records: 200_000,
        rate: 6_000,
        kills: 3,
        broker_kills: 1,
        stalls: 0,
        broker_stalls: 0,
        moves: 2,
        losses: 1,
        in_bucket: false,
    });
}

#[test]
#[ignore = "takes minutes: tests/stack/chaos runs it"]
fn a_long_storm_leaves_no_trace() {
    survives(&Storm {
        records: 1_200_000,
        rate: 6_000,
        kills: 20,
        broker_kills: 2,
        stalls: 4,
        broker_stalls: 2,
        moves: 6,
        losses: 3,
        in_bucket: true,
    });
}
