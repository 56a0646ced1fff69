//! State that is damaged, gone, or has no room.

use std::fs;
use std::path::Path;

use super::*;
use crate::project::Project;

/// Overwrites the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let (from, to) = (bytes.len() / 4, bytes.len() * 3 / 4);
    bytes[from..to].fill(0xA5);
    fs::write(path, bytes).unwrap();
}

/// A topology that has run in three parts, with checkpoints of each, and records that are not yet read.
fn stage_with_checkpoints() -> Stage {
    let stage = Stage::new(2);
    for part in 0..3 {
        stage.produce_lines(0, &lines(part * 100..part * 100 + 100));
        stage.produce_lines(1, &lines(part * 100..part * 100 + 100));
        stage.run(&topology(PLAIN));
    }
    stage.produce_lines(0, &lines(300..400));
    stage.produce_lines(1, &lines(300..400));
    stage
}

#[test]
fn a_state_directory_that_is_damaged_is_set_aside_and_rebuilt() {
    for name in ["conf", "db"] {
        let stage = stage_with_checkpoints();
        let state = stage.dir.path().join("state/faults");
        let id = fs::read(state.join("instance")).unwrap();
        match name {
            "conf" => damage(&state.join(name)),
            // What is written last is read first.
            _ => fs::write(state.join(name), vec![0xA5; 300_000]).unwrap(),
        }
        assert_eq!(stage.run(&topology(PLAIN)).counters.read, 800, "{name}");
        assert!(
            stage.dir.path().join("state/faults.damaged").join(name).exists(),
            "kept for whoever looks into it"
        );
        assert_eq!(fs::read(state.join("instance")).unwrap(), id, "the same instance goes on");
    }
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn without_the_state_directory_copies_are_used_and_of_damaged_ones_the_older() {
    let stage = stage_with_checkpoints();
    fs::remove_dir_all(stage.dir.path().join("state")).unwrap();
    let tasks = fs::read_dir(stage.copies().join("faults")).unwrap().map(|task| task.unwrap().path());
    let mut damaged = 0;
    for task in tasks {
        let manifests = files(&task, "json");
        if let [.., _, newest] = &manifests[..] {
            damage(newest);
            damaged += 1;
        }
    }
    assert!(damaged > 0, "no task has two copies");
    assert_eq!(stage.run(&topology(PLAIN)).counters.read, 800);
}

#[test]
fn without_any_checkpoint_the_log_will_do_unless_it_was_trimmed() {
    let stage = stage_with_checkpoints();
    fs::remove_dir_all(stage.dir.path().join("state")).unwrap();
    fs::remove_dir_all(stage.copies()).unwrap();
    let exchange = |partition| TopicPartition::new("faults.exchange.hourly", partition);
    let trimmed = (0..4).any(|partition| stage.log.bounds(&exchange(partition)).unwrap().start > 0);
    if trimmed {
        let (error, code) = stage.refused(&topology(PLAIN));
        assert_eq!(code, 1);
        assert!(error.contains("no checkpoint at an offset from"), "{error}");
        assert!(error.contains("bring back the state directory or the checkpoint copies"), "{error}");
    } else {
        assert_eq!(stage.run(&topology(PLAIN)).counters.read, 800);
    }
}

/// A small file system in memory, unmounted when it is dropped; `None`, loudly, where that is not allowed.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, megabytes: u32) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let size = format!("size={megabytes}m");
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        eprintln!("SKIPPED: a disk that is full: no right to mount a tmpfs");
        None
    }

    fn grow(&self, megabytes: u32) {
        let size = format!("remount,size={megabytes}m");
        let status = std::process::Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that was killed may hold it for another moment.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_it_and_with_room_it_goes_on() {
    let project = Project::new();
    let Some(disk) = Tmpfs::mount(project.path().join("disk"), 3) else { return };
    let server = project.broker();
    project.write("faults.yaml", &topology(PLAIN));
    project.write("config.yaml", "worker: {threads: 1, epoch_rows: 2000, checkpoint_interval: 10ms}\n");
    let rows: String = (0..40_000)
        .map(|id| {
            let (minute, padding) = (id / 1000, "x".repeat(50));
            format!("{{\"id\":{id},\"key\":\"{id}-{padding}\",\"at\":\"2024-01-01T00:{minute:02}:00Z\"}}\n")
        })
        .collect();
    let brokers = server.address.as_str();
    let produce = ["topic", "produce", "in", "--partitions", "1", "--brokers", brokers];
    assert_eq!(project.run_with(&produce, &rows).code, 0);
    let arguments = [
        "run",
        "faults.yaml",
        "--until-end",
        "--brokers",
        brokers,
        "--config",
        "config.yaml",
        "--data-dir",
        "disk",
    ];
    let outcome = project.run(&arguments);
    assert_eq!(outcome.code, 1, "{}", outcome.out);
    assert!(
        outcome.err.contains("error: the disk is full: state could not be written to disk/"),
        "{}",
        outcome.err
    );
    let log = connect(brokers);
    let before = counters(&*log, "headwater.faults", "in");
    assert_eq!(read_topic(&*log, "faults.rows").values().map(Vec::len).sum::<usize>() as u64, before.refined);

    disk.grow(300);
    let outcome = project.run(&arguments);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert_eq!(counters(&*log, "headwater.faults", "in").refined, 40_000);
    assert_eq!(read_topic(&*log, "faults.rows").values().map(Vec::len).sum::<usize>(), 40_000);
    let verified = project.run(&["verify", "faults.yaml", "--brokers", brokers]);
    assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
}

#[test]
fn a_replay_into_a_full_disk_leaves_the_old_version_and_with_room_it_goes_on() {
    let project = Project::new();
    let Some(disk) = Tmpfs::mount(project.path().join("lake"), 1) else { return };
    let server = project.broker();
    let lake = "    lake: {table: gold/rows}\n";
    project.write("faults.yaml", &format!("{}{lake}", topology(PLAIN)));
    project.write("config.yaml", "lake: {url: lake}\n");
    let rows = |range: std::ops::Range<u64>| -> String {
        range
            .map(|id| {
                // Text that does not compress.
                let noise: String = (0..12)
                    .map(|i| format!("{:016x}", (id * 12 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
                    .collect();
                format!("{{\"id\":{id},\"key\":\"{noise}\",\"at\":\"2024-01-01T00:00:00Z\"}}\n")
            })
            .collect()
    };
    let brokers = server.address.as_str();
    let produce = ["topic", "produce", "in", "--partitions", "1", "--brokers", brokers];
    let replay = ["replay", "faults.yaml", "--brokers", brokers, "--config", "config.yaml"];
    assert_eq!(project.run_with(&produce, &rows(0..100)).code, 0);
    let outcome = project.run(&replay);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert_eq!(project.run_with(&produce, &rows(100..20_000)).code, 0);
    let outcome = project.run(&replay);
    assert_eq!(outcome.code, 1, "{}", outcome.out);
    assert!(outcome.err.contains("no space is left to write"), "{}", outcome.err);
    assert!(outcome.err.contains("free some space and run the replay again"), "{}", outcome.err);
    let lake = headwater::lake::Lake::open(project.path().join("lake").to_str().unwrap()).unwrap();
    assert_eq!(lake.current("gold/rows").unwrap().unwrap().rows, 100);
    disk.grow(300);
    let outcome = project.run(&replay);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert_eq!(lake.current("gold/rows").unwrap().unwrap().rows, 20_000);
}
