//! The whole of the broker but its sockets, on a disk that loses its power, fills up and fails, with what clients
//! were told compared with what is there afterwards.
//!
//! What holds after `kill -9`: everything acknowledged. After a power cut: every transaction whose commit was
//! acknowledged, whole, with its offsets; every other one whole or not at all; of plain records all that were synced,
//! with no gap before any that survived; topics, deletions and producer ids that were acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::batch::tests::keyed;
use super::cluster::Cluster;
use super::fault::Fault;
use super::metadata::Committed;
use super::simulated_disk::{ROOT, SimulatedDisk};
use super::transaction::PendingOffset;
use super::view::{Seen, committed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Never asked to commit: it may not be seen.
    Hidden,
    /// Asked, and not answered.
    Unknown,
    Committed,
}

#[derive(Clone, Debug)]
struct Tried {
    number: i64,
    id: &'static str,
    producer: (i64, i16),
    outcome: Outcome,
    /// All of it was sent, and then its producer fell silent.
    left_open: bool,
}

/// How many batches a producer has sent, by topic and partition.
type Sent = BTreeMap<(String, i32), i32>;

/// What a client has been told so far.
#[derive(Clone, Default)]
struct Told {
    next: i64,
    transactions: Vec<Tried>,
    /// Plain records 0.. are written one after the other; so many were acknowledged.
    plain: i64,
    /// So many of them are on the disk for certain.
    plain_synced: i64,
    /// The start that DeleteRecords was asked for, and the one it acknowledged.
    start_asked: i64,
    start: i64,
    topics: BTreeMap<String, bool>,
    producer_id: i64,
    clock_ms: i64,
    /// Producers that still believe in their epoch, and how many batches each has sent.
    producers: BTreeMap<&'static str, ((i64, i16), Sent)>,
}

struct World {
    disk: SimulatedDisk,
    cluster: Cluster,
    random: SmallRng,
    told: Told,
}

const IDS: [&str; 2] = ["x", "y"];

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

impl World {
    fn open(disk: SimulatedDisk, seed: u64, told: Told) -> Option<World> {
        let opened = Cluster::open_on(Arc::new(disk.clone()), Path::new(ROOT));
        let cluster = opened.map_err(|error| eprintln!("it does not start: {error}")).ok()?;
        Some(World { disk, cluster, random: SmallRng::seed_from_u64(seed), told })
    }

    fn create(&mut self, name: &str, partitions: i32, pairs: &[(&str, &str)]) -> Result<(), Fault> {
        if self.cluster.topic(name).is_none() {
            self.told.topics.remove(name);
            self.cluster
                .create_topic(name, partitions, settings(pairs), false)
                .map_err(|(fault, _)| fault)?;
        }
        self.told.topics.insert(name.to_owned(), true);
        Ok(())
    }

    fn topics(&mut self) -> Result<(), Fault> {
        // The records are of 1970.
        self.create("t", 2, &[("segment.bytes", "600"), ("retention.ms", "-1")])?;
        let compacted =
            [("cleanup.policy", "compact"), ("segment.bytes", "500"), ("min.cleanable.dirty.ratio", "0")];
        self.create("c", 1, &compacted)?;
        self.create("plain", 1, &[("segment.bytes", "500"), ("retention.ms", "-1")])
    }

    fn append(
        &self,
        topic: &str,
        index: i32,
        producer: (i64, i16, i32),
        transactional: bool,
        record: (&str, &str),
    ) -> Result<i64, Fault> {
        let batch = keyed(producer, transactional, &[(Some(record.0), Some(record.1))], &[1_000], 0);
        let (topic, partition) = self.cluster.locate(topic, index)?;
        partition.append(Bytes::from(batch), &topic.config).map(|appended| appended.base_offset)
    }

    fn transaction(&mut self) -> Result<(), Fault> {
        let id = IDS[self.random.random_range(0..2)];
        // A client asks again for as long as it was not answered.
        let unanswered = |tried: &&mut Tried| tried.id == id && tried.outcome == Outcome::Unknown;
        if let Some(tried) = self.told.transactions.iter_mut().find(unanswered)
            && self.told.producers.get(id).is_some_and(|(producer, _)| *producer == tried.producer)
        {
            self.cluster.end_transaction(id, tried.producer.0, tried.producer.1, true)?;
            tried.outcome = Outcome::Committed;
        }
        if !self.told.producers.contains_key(id) {
            let started = self.cluster.init_transactions(id, 60_000, None);
            if started.is_err() {
                self.predecessor_commits(id);
            }
            self.told.producers.insert(id, (started?, BTreeMap::new()));
        }
        let (producer, mut sent) = self.told.producers.remove(id).unwrap();
        let number = self.told.next;
        self.told.next += 1;
        self.told.transactions.push(Tried {
            number,
            id,
            producer,
            outcome: Outcome::Hidden,
            left_open: false,
        });
        let partitions = [("t".to_owned(), 0), ("t".to_owned(), 1), ("c".to_owned(), 0)];
        self.cluster.add_partitions(id, producer.0, producer.1, &partitions)?;
        let key = format!("k{}", self.random.random_range(0..4));
        for (topic, index) in &partitions {
            let sequence = sent.entry((topic.clone(), *index)).or_default();
            let of = (producer.0, producer.1, *sequence);
            self.append(topic, *index, of, true, (&key, &number.to_string()))?;
            *sequence += 1;
        }
        let committed = Committed { offset: number, leader_epoch: -1, metadata: String::new() };
        let offset = PendingOffset { group: id.into(), topic: "t".into(), partition: 0, committed };
        self.cluster.add_offsets(id, producer.0, producer.1, vec![offset])?;
        if self.random.random_bool(0.1) {
            self.told.transactions.last_mut().unwrap().left_open = true;
            return Ok(());
        }
        let commit = self.random.random_bool(0.8);
        self.told.producers.insert(id, (producer, sent));
        if commit {
            self.told.transactions.last_mut().unwrap().outcome = Outcome::Unknown;
        }
        let ended = self.cluster.end_transaction(id, producer.0, producer.1, commit);
        if ended.is_err() && !commit {
            // It can't go on with this transaction, and begins anew.
            self.told.producers.remove(id);
        }
        ended?;
        if commit {
            self.told.transactions.last_mut().unwrap().outcome = Outcome::Committed;
        }
        Ok(())
    }

    /// A producer that had fallen silent commits while its successor's start has failed: all of its transaction is
    /// seen, or nothing.
    fn predecessor_commits(&mut self, id: &'static str) {
        let Some(tried) = self.told.transactions.iter_mut().rev().find(|tried| tried.id == id) else {
            return;
        };
        if !tried.left_open {
            return;
        }
        tried.outcome = match self.cluster.end_transaction(id, tried.producer.0, tried.producer.1, true) {
            Ok(()) => Outcome::Committed,
            Err(Fault::ProducerFenced) => Outcome::Hidden,
            Err(_) => Outcome::Unknown,
        };
    }

    fn step(&mut self) -> Result<(), Fault> {
        match self.random.random_range(0..20) {
            0..8 => self.transaction(),
            8..13 => {
                let value = self.told.plain.to_string();
                let offset = self.append("plain", 0, (-1, -1, -1), false, ("p", &value))?;
                assert_eq!(offset, self.told.plain);
                self.told.plain += 1;
                Ok(())
            }
            13 | 14 => {
                self.cluster.sync_all()?;
                self.told.plain_synced = self.told.plain;
                self.cluster.carry_transactions_on();
                Ok(())
            }
            15 => {
                self.cluster.expire();
                Ok(())
            }
            16 | 17 => {
                // Each time a while later: one that failed waits.
                self.told.clock_ms += 120_000;
                self.cluster.compact_at(self.told.clock_ms, &|| false);
                Ok(())
            }
            18 => {
                let (_, partition) = self.cluster.locate("t", 1)?;
                let bounds = partition.bounds();
                let asked = (bounds.start + bounds.stable) / 2;
                self.told.start_asked = self.told.start_asked.max(asked);
                let start = partition.delete_before(asked)?;
                self.cluster.move_start("t", 1, &partition, start)?;
                self.told.start = self.told.start.max(start);
                Ok(())
            }
            _ => {
                let id = self.cluster.new_producer_id()?;
                assert!(id > self.told.producer_id, "a producer id was handed out twice");
                self.told.producer_id = id;
                let name = format!("passing{}", self.random.random_range(0..3));
                if self.told.topics.remove(&name).is_some() {
                    self.cluster.delete_topic(&name)?;
                    self.told.topics.insert(name, false);
                    return Ok(());
                }
                self.create(&name, 1, &[])
            }
        }
    }

    /// Works until the power is gone, or for so many steps.
    fn work(&mut self, steps: usize) {
        if self.topics().is_err() {
            return;
        }
        for _ in 0..steps {
            // After a failure a client begins anew, if it can.
            let _ = self.step();
            if !self.disk.has_power() {
                break;
            }
        }
    }

    fn view(&self, topic: &str, index: i32) -> Vec<Seen> {
        committed(&self.cluster.partition(topic, index).unwrap())
    }

    /// Compares what is there with what clients were told; `powerless`: the power was gone in between.
    fn check(&mut self, powerless: bool) {
        for (name, there) in &self.told.topics {
            assert_eq!(self.cluster.topic(name).is_some(), *there, "topic {name}");
        }
        if ["t", "c", "plain"].iter().any(|name| self.cluster.topic(name).is_none()) {
            assert!(self.told.transactions.is_empty());
            return;
        }
        // Clients that waited for an answer ask again, before their successors start.
        let told = &mut self.told;
        for tried in told.transactions.iter_mut().filter(|tried| tried.outcome == Outcome::Unknown) {
            if self.cluster.end_transaction(tried.id, tried.producer.0, tried.producer.1, true).is_ok() {
                tried.outcome = Outcome::Committed;
            }
        }
        for id in IDS {
            told.producers.remove(id);
            self.cluster.init_transactions(id, 60_000, None).unwrap();
        }
        let numbers = |seen: &[Seen]| -> Vec<i64> {
            seen.iter().map(|record| record.value.as_ref().unwrap().parse().unwrap()).collect()
        };
        let (first, second, compacted) = (self.view("t", 0), self.view("t", 1), self.view("c", 0));
        let seen: BTreeSet<i64> = numbers(&first).into_iter().collect();
        assert_eq!(seen.len(), first.len(), "a transaction twice");
        for tried in &mut self.told.transactions {
            match tried.outcome {
                Outcome::Committed => {
                    assert!(seen.contains(&tried.number), "{tried:?} is lost, of {seen:?}");
                }
                Outcome::Hidden => assert!(!seen.contains(&tried.number), "{tried:?} is seen"),
                // From now on it stays as it is.
                Outcome::Unknown if seen.contains(&tried.number) => tried.outcome = Outcome::Committed,
                Outcome::Unknown => tried.outcome = Outcome::Hidden,
            }
        }
        let start = self.cluster.partition("t", 1).unwrap().bounds().start;
        assert!((self.told.start..=self.told.start_asked).contains(&start), "start {start}");
        let expected: Vec<i64> = numbers(&first).split_off(first.len() - second.len());
        assert_eq!(numbers(&second), expected, "half of a transaction");
        if start == 0 {
            assert_eq!(second.len(), first.len(), "half of a transaction");
        }
        let last = |seen: &[Seen]| -> BTreeMap<Option<String>, Option<String>> {
            seen.iter().map(|record| (record.key.clone(), record.value.clone())).collect()
        };
        assert_eq!(last(&compacted), last(&first), "the compacted topic");
        for id in IDS {
            let mine = |tried: &&Tried| tried.id == id && tried.outcome == Outcome::Committed;
            let newest = self.told.transactions.iter().filter(mine).map(|tried| tried.number).next_back();
            let offset = self.cluster.metadata.read(|image| {
                image.offsets.get(id).and_then(|held| held.get(&("t".to_owned(), 0)).map(|c| c.offset))
            });
            assert_eq!(offset, newest, "the offset of {id}");
        }
        let plain = numbers(&self.view("plain", 0));
        assert!(plain.iter().copied().eq(0..plain.len() as i64), "a gap in {plain:?}");
        let least = if powerless { self.told.plain_synced } else { self.told.plain };
        assert!(plain.len() as i64 >= least, "{} of {least} plain records", plain.len());
        self.told.plain = plain.len() as i64;
        self.told.plain_synced = self.told.plain_synced.min(self.told.plain);
    }
}

const STEPS: usize = 60;

/// How many operations on the disk a seed's work takes.
fn operations(seed: u64) -> u64 {
    let mut world = World::open(SimulatedDisk::default(), seed, Told::default()).unwrap();
    world.work(STEPS);
    world.check(false);
    world.disk.operations()
}

/// Works up to an operation, where the process is killed or the power goes, and again, and again.
fn interrupted(seed: u64, cut: u64) {
    let mut random = SmallRng::seed_from_u64(seed ^ cut);
    let mut disk = SimulatedDisk::default();
    disk.cut_at(cut);
    let mut told = Told::default();
    for round in 0..3 {
        if let Some(mut world) = World::open(disk.clone(), seed.wrapping_add(round), told.clone()) {
            world.work(STEPS);
            // A clean stop, after which files are trusted, is a beginning too.
            if random.random_bool(0.3) && world.cluster.close().is_ok() {
                world.told.plain_synced = world.told.plain;
            }
            told = world.told;
        }
        assert!(round > 0 || !told.topics.is_empty() || cut < 60, "it did nothing");
        let powerless = random.random_bool(0.7);
        disk = if powerless { disk.after_power_cut(random.random()) } else { disk.after_kill() };
        let mut world = World::open(disk.clone(), seed, told).expect("it starts");
        world.check(powerless);
        told = world.told;
        disk.cut_at(disk.operations() + random.random_range(1..300));
    }
}

#[test]
fn a_power_cut_at_every_edge_keeps_what_was_acknowledged() {
    let operations = operations(1);
    assert!(operations > 300, "{operations}");
    (1..=operations).for_each(|cut| interrupted(1, cut));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn power_cuts_and_kills_at_random_keep_what_was_acknowledged(seed: u64, cut in 1..700u64) {
        interrupted(seed, cut);
    }

    /// The disk fills up, is freed, and fills up again; then the process is killed or the power goes.
    #[test]
    fn a_full_disk_loses_nothing_and_it_goes_on_when_there_is_space(seed: u64, free in 0..3_000u64, powerless: bool) {
        let disk = SimulatedDisk::default();
        let mut world = World::open(disk.clone(), seed, Told::default()).unwrap();
        world.topics().unwrap();
        for round in 0..3 {
            world.work(20);
            disk.set_free(Some(free / (round + 1)));
            world.work(20);
            disk.set_free(None);
        }
        let before = world.told.next;
        world.work(40);
        let fresh = |tried: &Tried| tried.number >= before && tried.outcome == Outcome::Committed;
        prop_assert!(world.told.transactions.iter().any(fresh), "nothing commits with space again");
        world.check(false);
        let told = world.told.clone();
        let disk = if powerless { disk.after_power_cut(seed) } else { disk.after_kill() };
        World::open(disk, seed, told).unwrap().check(powerless);
    }

    /// Syncs fail, and what they should have written is gone for the disk; the next ones say that all is well.
    #[test]
    fn a_sync_that_fails_is_not_believed_when_it_succeeds_the_next_time(
        seed: u64,
        failing in proptest::collection::vec(20..500u64, 1..30),
    ) {
        let disk = SimulatedDisk::default();
        failing.iter().for_each(|operation| disk.fail_sync_at(*operation));
        let Some(mut world) = World::open(disk.clone(), seed, Told::default()) else { return Ok(()) };
        world.work(STEPS);
        let told = world.told.clone();
        World::open(disk.after_power_cut(seed), seed, told).unwrap().check(true);
    }
}
