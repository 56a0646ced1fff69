//! Many checkpoints: neither sled's disk nor its memory may grow with their number.

use std::path::Path;

use super::super::{StateDir, TaskState};
use super::{key, value};

const KEYS: u64 = 20_000;
const CHECKPOINTS: u64 = 160;
/// For longer runs by hand: as many keys a task, of which each checkpoint changes a fifth, as many tasks and checkpoints.
const KEYS_VARIABLE: &str = "HEADWATER_TEST_STATE_KEYS";
const TASKS_VARIABLE: &str = "HEADWATER_TEST_STATE_TASKS";
const CHECKPOINTS_VARIABLE: &str = "HEADWATER_TEST_STATE_CHECKPOINTS";
/// What the memory may gain over the second half: 80 times the changes of one checkpoint are some 40 MB. Of a larger
/// state it is a tenth of all, where what every checkpoint left behind would be many times as much.
const MEMORY_NOISE: u64 = 8 << 20;
/// Set in the process that this test starts for itself.
const ALONE: &str = "HEADWATER_SOAK_ALONE";

/// In a process of its own: other tests would show in its memory.
#[test]
#[allow(clippy::disallowed_methods, reason = "tells the process that measures from the one that starts it")]
fn a_hundred_checkpoints_leave_the_disk_and_the_memory_flat() {
    if std::env::var_os(ALONE).is_some() {
        return soak();
    }
    let name = "state::tests::soak::a_hundred_checkpoints_leave_the_disk_and_the_memory_flat";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        // As the program has it: what glibc's many heaps keep unused grows with every checkpoint.
        .env("MALLOC_ARENA_MAX", "2")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    eprint!("{err}");
}

#[allow(clippy::disallowed_methods, reason = "a longer run is asked for by the environment")]
fn asked(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |number| number.parse().unwrap())
}

fn soak() {
    let keys = asked(KEYS_VARIABLE, KEYS);
    let checkpoints = asked(CHECKPOINTS_VARIABLE, CHECKPOINTS);
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(folder.path()).unwrap();
    let tasks = 0..asked(TASKS_VARIABLE, 1);
    let mut states: Vec<TaskState> =
        tasks.map(|task| TaskState::new(Box::new(dir.task(&format!("task {task}")).unwrap()))).collect();
    let (mut early, mut early_memory) = (0, 0);
    for checkpoint in 0..checkpoints {
        std::thread::scope(|scope| {
            for state in &mut states {
                scope.spawn(|| step(state, keys, checkpoint));
            }
        });
        if checkpoint % (checkpoints / 20) == 0 {
            let (disk, memory) = (disk_bytes(folder.path()), memory_bytes());
            eprintln!("checkpoint {checkpoint}: disk {} MiB, memory {} MiB", disk >> 20, memory >> 20);
        }
        // By now sled has filled the segments that it goes on to use in turn.
        if checkpoint == checkpoints / 2 {
            (early, early_memory) = (disk_bytes(folder.path()), memory_bytes());
        }
    }
    let memory = memory_bytes();
    eprintln!("memory half way: {early_memory} bytes, at the end: {memory} bytes");
    let noise = MEMORY_NOISE.max(early_memory / 10);
    assert!(memory <= early_memory + noise, "the memory grew from {early_memory} to {memory} bytes");
    let late = disk_bytes(folder.path());
    eprintln!("disk half way: {early} bytes, at the end: {late} bytes");
    assert!(late <= early * 3 / 2, "the disk grew from {early} to {late} bytes");
}

/// Changes and a checkpoint of one task.
fn step(state: &mut TaskState, keys: u64, checkpoint: u64) {
    for change in 0..keys / 5 {
        let number = (checkpoint * 2_654_435_761 + change * 40_503) % keys;
        state.put(&key(number), &value(number ^ checkpoint, 64));
    }
    // Windows that are open while a checkpoint is taken, and closed when the next one is.
    let window = |checkpoint: u64, number: u64| [&checkpoint.to_be_bytes(), &key(number)[..]].concat();
    for number in 0..keys / 20 {
        state.put_new(&window(checkpoint, number), &value(number, 64));
        if checkpoint > 0 {
            state.delete(&window(checkpoint - 1, number));
        }
    }
    // Values that lie in pieces, another key each time, and the one before it deleted.
    state.put(format!("long {checkpoint}").as_bytes(), &value(checkpoint, 50_000));
    state.delete(format!("long {}", checkpoint.wrapping_sub(1)).as_bytes());
    state.commit_epoch();
    state.checkpoint(checkpoint as i64).unwrap();
}

fn disk_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                disk_bytes(&entry.path())
            } else {
                entry.metadata().unwrap().len()
            }
        })
        .sum()
}

/// What this process has resident.
fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}
