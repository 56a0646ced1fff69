//! How far a topology has come, as people read it.

use crate::engine::{Counters, Progress, TaskRole};
use crate::record::Micros;
use crate::serve::text::number;
use crate::time::WATERMARK_MIN;

pub fn counters(counters: &Counters) -> String {
    format!(
        "read {}  refined {}  filtered {}  late {}  dead {}",
        number(counters.read),
        number(counters.refined),
        number(counters.filtered),
        number(counters.late),
        number(counters.dead)
    )
}

/// The least watermark of the sources' partitions that this process reads.
pub fn watermark(progress: &Progress) -> Micros {
    let tasks = progress.tasks();
    let ingest = tasks.values().filter(|task| task.role == TaskRole::Ingest);
    ingest.map(|task| task.watermark).min().unwrap_or(WATERMARK_MIN)
}
