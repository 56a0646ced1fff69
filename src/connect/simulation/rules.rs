//! The runtime's rules: each holds, and fails once it is broken by a planted fault.

use crate::log::memory::Faults;
use crate::planted::{Fault, plant};

use super::super::control::{Command, send};
use super::*;

const END: u64 = 40;

fn wanted() -> Vec<u64> {
    (0..END).collect()
}

fn numbers(world: &World) -> Vec<u64> {
    let mut numbers: Vec<u64> = world.values().iter().map(|value| value.parse().unwrap()).collect();
    numbers.sort();
    numbers
}

/// Runs under the faults, and again without, as a process that is started again.
fn outcome(faults: Faults) -> Result<(Vec<u64>, u64)> {
    let world = World::new();
    let told = Arc::default();
    let job = world.job("a", Script::opener(&world, END, &told));
    world.log.set_faults(faults);
    let first = world.finish(&job);
    world.log.set_faults(Faults::default());
    if let Err(error @ (ConnectError::Source(_) | ConnectError::Control { .. })) = first {
        return Err(error);
    }
    world.finish(&job)?;
    Ok((numbers(&world), world.log.steps()))
}

/// How many steps a run without faults takes.
fn steps() -> u64 {
    let world = World::new();
    world.log.set_faults(Faults::default());
    world.finish(&world.job("a", Script::opener(&world, END, &Arc::default()))).unwrap();
    world.log.steps()
}

fn each_step(steps: u64, check: &mut dyn FnMut(Faults) -> bool) -> bool {
    (1..=steps + 1).all(|at| {
        let some = Some(at);
        [
            Faults { crash_at: some, ..Faults::default() },
            Faults { fence_at: some, ..Faults::default() },
            Faults { rebalance_at: some, ..Faults::default() },
        ]
        .into_iter()
        .all(&mut *check)
    })
}

#[test]
fn c1_each_record_once_whatever_happens_at_any_step() {
    let steps = steps();
    assert!(steps > 8);
    assert!(each_step(steps, &mut |faults| outcome(faults.clone()).unwrap().0 == wanted()));
    for seed in 0..300 {
        let (short_reads, chance) = (0.5, 0.15);
        let faults = Faults {
            seed,
            short_reads,
            empty_reads: chance,
            failed_produce: chance / 3.0,
            aborts: chance,
            lost_committed: chance,
            lost_aborted: chance,
            ..Faults::default()
        };
        assert_eq!(outcome(faults).unwrap().0, wanted(), "seed {seed}");
    }
    let _planted = plant(Fault::StepSplit);
    let right = each_step(steps, &mut |faults| outcome(faults).is_ok_and(|(numbers, _)| numbers == wanted()));
    assert!(!right, "positions before their records go unnoticed");
}

#[test]
fn c2_a_source_is_opened_once_the_predecessors_transaction_is_decided() {
    let stands_still_and_two_take_over = || -> Result<Vec<u64>> {
        let world = World::new();
        let told = Arc::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| world.job(name, Script::opener(&world, END, &told)));
        let mut still = world.join(&a)?;
        // It has produced, and does not come to its commit.
        for _ in 0..2 {
            still.step(world.now(), false)?;
        }
        still.produce_positions()?;
        world.pass(Duration::from_millis(10_100));
        let mut next = world.join(&b)?;
        for _ in 0..5 {
            world.pass(TICK);
            next.step(world.now(), false)?;
        }
        next.step(world.now(), true)?;
        world.finish(&c)?;
        Ok(numbers(&world))
    };
    assert_eq!(stands_still_and_two_take_over().unwrap(), wanted());
    let _planted = plant(Fault::PositionBeforeFence);
    assert!(!stands_still_and_two_take_over().is_ok_and(|numbers| numbers == wanted()));
}

#[test]
fn c3_a_source_hears_of_committed_positions_only() {
    let told_and_outcome = || {
        let world = World::new();
        let told: Arc<Mutex<Vec<u64>>> = Arc::default();
        let outcome = world.finish(&world.job("a", Script::opener(&world, END, &told)));
        let told = told.lock().unwrap().clone();
        (told, outcome)
    };
    let (told, outcome) = told_and_outcome();
    outcome.unwrap();
    assert_eq!(told.last(), Some(&END));
    let _planted = plant(Fault::AckBeforeCommit);
    assert!(told_and_outcome().1.unwrap_err().to_string().contains("told of"));
}

#[test]
fn r1_who_has_lost_its_task_can_commit_neither_records_nor_positions() {
    let taken_over_meanwhile = || -> Vec<u64> {
        let world = World::new();
        let told = Arc::default();
        let [a, b] = ["a", "b"].map(|name| world.job(name, Script::opener(&world, END, &told)));
        let mut still = world.join(&a).unwrap();
        // Its clock stands, too: its epoch is not due.
        let stood = world.now();
        for _ in 0..2 {
            still.step(stood, false).unwrap();
        }
        world.pass(Duration::from_millis(10_100));
        world.finish(&b).unwrap();
        for _ in 0..50 {
            world.pass(Duration::from_millis(1));
            match still.step(stood, false) {
                Ok(None) => {}
                _ => break,
            }
        }
        numbers(&world)
    };
    assert_eq!(taken_over_meanwhile(), wanted());
    let _planted = plant(Fault::ZombieCommit);
    assert_ne!(taken_over_meanwhile(), wanted());
}

#[test]
fn a_task_that_another_process_has_is_waited_for_and_taken_over() {
    let world = World::new();
    let told = Arc::default();
    let [a, b] = ["a", "b"].map(|name| world.job(name, Script::opener(&world, END, &told)));
    let mut first = world.join(&a).unwrap();
    first.step(world.now(), false).unwrap();
    let mut second = world.join(&b).unwrap();
    for _ in 0..10 {
        world.pass(TICK);
        assert!(second.step(world.now(), false).unwrap().is_none());
        first.step(world.now(), false).unwrap();
    }
    drop(first);
    world.pass(Duration::from_secs(11));
    world.finish(&b).unwrap();
    drop(second);
    // What the first left open hides what came behind it until Kafka ends it.
    world.pass(Duration::from_secs(16));
    assert_eq!(numbers(&world), wanted());
}

#[test]
fn c10_a_pause_survives_restarts_and_aborts_until_it_is_resumed() {
    for aborts in [0.0, 0.5] {
        let world = World::new();
        let job = world.job("a", Script::opener(&world, END, &Arc::default()));
        world.log.set_faults(Faults { seed: 3, aborts, ..Faults::default() });
        send(&world.log, NAME, Command::Pause).unwrap();
        for _ in 0..3 {
            let error = world.finish(&job).unwrap_err();
            assert!(matches!(error, ConnectError::Paused(_)), "{error}");
            let mut runner = world.join(&job_that_goes_on(&world)).unwrap();
            for _ in 0..40 {
                world.pass(TICK);
                runner.step(world.now(), false).unwrap();
            }
            runner.step(world.now(), true).unwrap();
            assert!(world.values().is_empty());
            assert!(read_status(&world.log, NAME).unwrap().unwrap()[0].0.paused);
        }
        send(&world.log, NAME, Command::Resume).unwrap();
        world.finish(&job).unwrap();
        assert_eq!(numbers(&world), wanted());
    }
}

fn job_that_goes_on(world: &World) -> Arc<Job> {
    let mut job = Arc::into_inner(world.job("a", Script::opener(world, END, &Arc::default()))).unwrap();
    job.until_caught_up = false;
    Arc::new(job)
}

#[test]
fn positions_that_are_not_all_there_are_refused() {
    let world = World::new();
    let job = world.job("a", Script::opener(&world, END, &Arc::default()));
    world.finish(&job).unwrap();
    let control = TopicPartition::new(control_topic(NAME), 0);
    let end = world.log.bounds(&control).unwrap().end;
    world.log.delete_before(&[(control, end)]).unwrap();
    let error = world.finish(&job).unwrap_err();
    assert!(matches!(error, ConnectError::Control { .. }), "{error}");
}
