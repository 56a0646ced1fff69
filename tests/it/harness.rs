//! The engine against itself: every golden topology runs whole, in pieces, crashed, fenced, rescaled and as a
//! replay, and each way must give the same refined, late and dead records and the same counters.
//!
//! `UPDATE_GOLDEN=1` rewrites what is expected, from the whole run; read the difference in review. A failure
//! prints its seed, and `SEED=n` runs with it.

mod golden;
mod ways;

use std::time::{SystemTime, UNIX_EPOCH};

use golden::Golden;
use ways::Bench;

/// Prints the seed when a test fails.
struct Seed(u64);

impl Seed {
    fn new() -> Self {
        let given = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
        Self(given.unwrap_or_else(now))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat it with SEED={}", self.0);
        }
    }
}

fn check(name: &str) {
    let seed = Seed::new();
    let golden = Golden::load(name);
    let bench = Bench::new(&golden, seed.0);
    let whole = bench.whole();
    golden.expect(&whole);
    bench.every_way(&whole);
}

macro_rules! goldens {
    ($($name:ident),* $(,)?) => {
        const GOLDENS: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { check(stringify!($name)); })*
    };
}

goldens!(
    aggregates,
    appended,
    broken,
    changes,
    changes_idle,
    checks,
    decimals,
    distinct,
    extreme_times,
    first_last,
    grouped,
    idle,
    late,
    log_time,
    only_tombstones,
    skewed,
    stateless,
    two_views,
    views_on_views,
);

#[test]
fn every_golden_is_run() {
    let mut files = golden::names();
    files.sort();
    assert_eq!(files, GOLDENS);
}
