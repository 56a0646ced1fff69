//! Bytes that nobody meant: the readers of what comes from outside (JSON records, topology files, checkpoints, exchange
//! messages) get whole and broken inputs. None may panic, hang, overflow the stack or take memory that the input does
//! not account for; and what each must answer is held against a reference where there is one.
//!
//! Each reader runs in a process of its own, whose allocator counts. An input is a function of the seed and its
//! number, so the process that watches can say which one ended the other, however that came.
//!
//! `HEADWATER_TEST_FUZZ_S` lets each run for so many seconds; `HEADWATER_TEST_SEED` repeats a run. What has found
//! something is kept in `corpus/`, or as a function beside it where it is large, and comes first.

mod checkpoints;
mod exchange;
mod json;
pub mod memory;
pub mod mutate;
mod topology;
mod topology_bombs;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use headwater::log::memory::Dice;
use rand::SeedableRng;
use rand::rngs::SmallRng;

const SHORT: Duration = Duration::from_secs(3);
/// No input may take longer: a hundred times what the slowest does on a busy machine.
const HANG: Duration = Duration::from_secs(30);
/// Inputs from here on are made, those below are the corpus.
const FIRST_MADE: u64 = 1 << 32;
const CHILD: &str = "HEADWATER_TEST_FUZZ_CHILD";

/// A reader under test.
trait Target {
    /// What has found something, or shows a kind of input.
    fn corpus(&self) -> Vec<Vec<u8>>;

    fn input(&self, random: &mut SmallRng) -> Vec<u8>;

    /// Reads it; panics where the answer is wrong.
    fn run(&self, input: &[u8]);

    /// What reading it may allocate at most, at any one time.
    fn bytes_max(&self, input: &[u8]) -> usize;
}

fn target(name: &str) -> Box<dyn Target> {
    match name {
        "json" => Box::new(json::Json),
        "topology" => Box::new(topology::Topology::new()),
        "copies" => Box::new(checkpoints::Copies::new()),
        "state" => Box::new(checkpoints::StateFolder::new()),
        "exchange" => Box::new(exchange::Exchange::new()),
        other => panic!("there is no target '{other}'"),
    }
}

fn input(target: &dyn Target, seed: u64, number: u64) -> Vec<u8> {
    match number.checked_sub(FIRST_MADE) {
        Some(made) => target.input(&mut SmallRng::seed_from_u64(Dice::nth(seed, made))),
        None => target.corpus().swap_remove(number as usize),
    }
}

/// The seed and the time that the environment names, or another seed each time and a short while.
pub fn seed_and_time(short: Duration) -> (u64, Duration) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("HEADWATER_TEST_SEED").unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        since.as_micros() as u64
    });
    (seed, number("HEADWATER_TEST_FUZZ_S").map_or(short, Duration::from_secs))
}

/// Runs a target in a process of its own, and says which input ended it.
fn fuzz(name: &str) {
    let (seed, time) = seed_and_time(SHORT);
    let folder = tempfile::tempdir().unwrap();
    let (progress, said) = (folder.path().join("progress"), folder.path().join("said"));
    std::fs::write(&progress, u64::MAX.to_le_bytes()).unwrap();
    let output = std::fs::File::create(&said).unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fuzz::reads_for_the_test_that_watches_it", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{name} {seed} {} {}", time.as_secs(), progress.display()))
        .env("RUST_BACKTRACE", "1")
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let at = || u64::from_le_bytes(std::fs::read(&progress).unwrap().try_into().unwrap());
    let (mut last, mut since) = (at(), Instant::now());
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
        if at() != last {
            (last, since) = (at(), Instant::now());
        } else if since.elapsed() > HANG {
            child.kill().unwrap();
            break child.wait().unwrap();
        }
    };
    let said = std::fs::read_to_string(&said).unwrap_or_default();
    let number = at();
    if ended.success() && number != u64::MAX {
        for line in said.lines().filter(|line| line.starts_with("fuzz ")) {
            eprintln!("{line}");
        }
        return;
    }
    let waited = if since.elapsed() > HANG { "it hung; " } else { "" };
    let bytes = if number == u64::MAX { Vec::new() } else { input(&*target(name), seed, number) };
    let kept = std::env::temp_dir().join(format!("headwater-fuzz-{name}-{seed}-{number}"));
    std::fs::write(&kept, &bytes).unwrap();
    let shown = bytes.len().min(2_000);
    let tail: Vec<&str> = said.lines().rev().take(60).collect();
    panic!(
        "{name}: {waited}{ended} at input {number} of seed {seed}, {} bytes, kept in {}: {}\nit said:\n{}",
        bytes.len(),
        kept.display(),
        bytes[..shown].escape_ascii(),
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    );
}

/// No test by itself: see [`fuzz`].
#[test]
fn reads_for_the_test_that_watches_it() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let [name, seed, seconds, progress] = what.splitn(4, ' ').collect::<Vec<_>>()[..] else {
        panic!("{what}")
    };
    let (seed, time) = (seed.parse().unwrap(), Duration::from_secs(seconds.parse().unwrap()));
    let progress = std::fs::OpenOptions::new().write(true).open(Path::new(progress)).unwrap();
    let target = target(name);
    // Also in a thread that nobody waits for.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        std::process::abort();
    }));
    memory::count();
    let mut most = (0, 0);
    let mut run = |number: u64, bytes: &[u8]| {
        progress.write_all_at(&number.to_le_bytes(), 0).unwrap();
        let taken = memory::most_during(|| target.run(bytes));
        let allowed = target.bytes_max(bytes);
        assert!(taken <= allowed, "{taken} bytes were allocated for {}, more than {allowed}", bytes.len());
        most = most.max((taken, bytes.len()));
    };
    let corpus = target.corpus();
    for (number, bytes) in corpus.iter().enumerate() {
        run(number as u64, bytes);
    }
    let began = Instant::now();
    let mut made = 0;
    while began.elapsed() < time {
        run(FIRST_MADE + made, &input(&*target, seed, FIRST_MADE + made));
        made += 1;
    }
    let (taken, of) = most;
    println!(
        "\nfuzz {name}: {made} inputs with seed {seed} and {} of the corpus; at most {taken} bytes were allocated, for {of}",
        corpus.len()
    );
}

/// The files of a corpus, by name.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fuzz/corpus").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn json_records_are_decoded_as_the_reference_says_or_rejected() {
    fuzz("json");
}

#[test]
fn topology_files_are_planned_or_have_a_problem_with_its_place() {
    fuzz("topology");
}

#[test]
fn copies_of_checkpoints_are_what_was_written_or_called_damaged() {
    fuzz("copies");
}

#[test]
fn state_directories_are_what_was_written_or_called_damaged() {
    fuzz("state");
}

#[test]
fn exchange_messages_are_read_or_called_damaged() {
    fuzz("exchange");
}
