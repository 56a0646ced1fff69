//! Simulation: the real engine (workers, tasks, checkpoints, recovery) in a world that one seed decides.
//!
//! ```text
//! seed ─► dice ─► world: time, the log in memory, hosts with disks, processes, an object store, the sources' feed
//!                   └─ tick ─► a worker's turn │ a checkpoint's writing │ records come │ a process starts │ time
//!                                  └─ edge: before and after each call out of the process: crash, stop, rebalance
//! ```
//! `SEED=n` repeats one seed and prints its trace; `SEEDS=n` runs that many. Each is compared with a run of the same
//! records without faults.
//! Invariant: nothing of the engine is replaced but its machine and its log.

mod disk;
#[cfg(feature = "planted-faults")]
mod faults;
mod feed;
pub(crate) mod member;
mod objects;
mod outcome;
pub(crate) mod process;
#[cfg(feature = "planted-faults")]
mod rules;
#[cfg(feature = "planted-faults")]
pub(crate) mod scene;
pub(crate) mod settings;
pub(crate) mod world;

use std::sync::Arc;
use std::time::Duration;

use feed::{Happening, Topology};
use outcome::Outcome;
use settings::Settings;
use world::World;

use crate::log::memory::{Dice, Faults};
use crate::log::{Log, TopicSpec};

/// Ticks after the last record has come in which faults may still fall.
const TICKS_AFTER: u64 = 300;
const SEEDS: u64 = 600;

/// What a seed does, but for the order of things.
fn settings(dice: &mut Dice) -> Settings {
    let some = |dice: &mut Dice, chance: u64| if dice.once_in(2) { dice.under(chance) } else { 0 };
    Settings {
        hosts: 1 + dice.under(2) as usize,
        workers: 1 + dice.under(3) as usize,
        epoch: Duration::from_millis(dice.among(&[0, 0, 20, 100])),
        checkpoint_interval: Duration::from_millis(dice.among(&[0, 0, 50, 1000])),
        state_budget: dice.among(&[2_000, 20_000, 1 << 20]) as usize,
        copies: !dice.once_in(5),
        faults: 3 + dice.under(30) as i64,
        crash: some(dice, 6_000),
        kill: some(dice, 6_000),
        stall: some(dice, 2_000),
        rebalance: some(dice, 6_000),
        leave: some(dice, 3_000),
        impostor: some(dice, 1_500),
        objects_fail: some(dice, 300_000),
        slow: some(dice, 500_000),
        disk_lost: dice.among(&[0, 0, 30]),
        log: Faults {
            seed: dice.next(),
            short_reads: dice.among(&[0.0, 0.5, 1.0]),
            short_read_max: 1 + dice.under(12),
            aborts: dice.among(&[0.0, 0.0, 0.1, 0.3]),
            lost_committed: dice.among(&[0.0, 0.0, 0.1]),
            lost_aborted: dice.among(&[0.0, 0.0, 0.1]),
            empty_reads: dice.among(&[0.0, 0.0, 0.4]),
            failed_produce: dice.among(&[0.0, 0.0, 0.05]),
            ..Faults::default()
        },
        ..Settings::default()
    }
}

fn create_sources(log: &dyn Log, sources: &[(&str, i32)]) {
    for (topic, partitions) in sources {
        let config = Default::default();
        log.create_topics(&[TopicSpec { name: (*topic).to_owned(), partitions: *partitions, config }])
            .unwrap();
    }
}

/// What the records give when nothing goes wrong, all of them are there from the beginning, and one worker reads them.
fn unfaulted(topology: &Topology, feed: &[Happening]) -> Result<Outcome, String> {
    let feed = feed.iter().filter(|happening| !matches!(happening, Happening::Silence(_))).cloned();
    let world = World::new(&topology.plan, Settings::default(), feed.collect(), 0, false);
    create_sources(&world.log, topology.sources);
    world.publish_all();
    world.close();
    match world.failure() {
        Some(why) => Err(format!("without faults: {why}")),
        None => Ok(Outcome::read(&world.log, &topology.plan, topology.exact)),
    }
}

/// Runs a seed; the error says what went wrong, and the lines how it came to that.
fn simulate(seed: u64, traced: bool) -> (Result<(), String>, Vec<String>) {
    simulate_with(seed, traced, || ())
}

/// `plant` is asked once it is known what is right; what it yields is kept while the world lives.
fn simulate_with<P>(seed: u64, traced: bool, plant: impl FnOnce() -> P) -> (Result<(), String>, Vec<String>) {
    let mut dice = Dice::stream(seed, 0);
    let topologies = feed::topologies();
    let topology = &topologies[dice.under(topologies.len() as u64) as usize];
    let feed = feed::feed(topology, &mut dice);
    let settings = settings(&mut dice);
    let expected = match unfaulted(topology, &feed) {
        Ok(expected) => expected,
        Err(why) => return (Err(why), Vec::new()),
    };
    let records: usize = feed.iter().map(Happening::records).sum();
    if expected.counters.read != records as u64 {
        let why = format!("without faults: {} of {records} records are read", expected.counters.read);
        return (Err(why), Vec::new());
    }
    let _planted = plant();
    let world = World::new(&topology.plan, settings, feed, seed, traced);
    world.trace(|| format!("topology {}, {:?}", topology.plan.name, world.settings));
    create_sources(&world.log, topology.sources);
    live(&world);
    if world.dice().once_in(2) {
        world.calm();
        if !topology.exact {
            outcome::all_idle(&world);
        }
    }
    if world.failure().is_none() {
        world.close();
    }
    let outcome = match world.failure() {
        Some(why) => Err(why),
        None => {
            let outcome = Outcome::read(&world.log, &topology.plan, topology.exact);
            outcome.difference(&expected, topology.expires).map_or(Ok(()), Err)
        }
    };
    world.end_all();
    (outcome, world.take_trace())
}

/// The topology runs while records come and faults fall.
fn live(world: &Arc<World>) {
    let mut after = 0;
    while after < TICKS_AFTER && world.failure().is_none() {
        world.tick();
        after += u64::from(world.is_fed());
    }
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|number| number.parse().unwrap())
}

#[test]
fn faults_change_nothing() {
    if let Some(seed) = number_of("SEED") {
        let (outcome, trace) = simulate(seed, true);
        println!("{}", trace.join("\n"));
        return outcome.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    let seeds = number_of("SEEDS").unwrap_or(SEEDS);
    for seed in 0..seeds {
        if let (Err(why), _) = simulate(seed, false) {
            panic!(
                "seed {seed}: {why}\nits trace: SEED={seed} ./test --lib engine::simulation::faults_change -- --nocapture"
            );
        }
    }
    #[cfg(feature = "planted-faults")]
    faults::all_went(seeds);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..4 {
        let (first, second) = (simulate(seed, true), simulate(seed, true));
        assert_eq!(first.1, second.1, "seed {seed}");
        assert!(first.1.len() > 100, "seed {seed} does nothing");
    }
}
