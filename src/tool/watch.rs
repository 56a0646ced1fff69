//! How far a topology has come, as people read it.

use crate::engine::{Counters, Progress, TaskRole};
use crate::record::Micros;
use crate::time::{WATERMARK_MAX, WATERMARK_MIN};

/// 27004 → `27,004`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An event time as ISO text, to the second.
pub fn event_time(micros: Micros) -> String {
    match micros {
        WATERMARK_MIN => "none yet".to_owned(),
        WATERMARK_MAX => "the end".to_owned(),
        micros => chrono::DateTime::from_timestamp_micros(micros)
            .map_or_else(|| micros.to_string(), |time| time.format("%Y-%m-%dT%H:%M:%SZ").to_string()),
    }
}

pub fn counters(counters: &Counters) -> String {
    format!(
        "read {}  refined {}  filtered {}  late {}  dead {}",
        grouped(counters.read),
        grouped(counters.refined),
        grouped(counters.filtered),
        grouped(counters.late),
        grouped(counters.dead)
    )
}

/// The least watermark of the sources' partitions that this process reads.
pub fn watermark(progress: &Progress) -> Micros {
    let tasks = progress.tasks();
    let ingest = tasks.values().filter(|task| task.role == TaskRole::Ingest);
    ingest.map(|task| task.watermark).min().unwrap_or(WATERMARK_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (27004, "27,004"), (1234567, "1,234,567")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }
}
