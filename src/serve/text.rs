//! Tables, durations and times, as people read them.

use std::io::{self, Write};
use std::time::Duration;

use crate::record::Micros;
pub use crate::time::iso8601 as time;
use crate::time::{WATERMARK_MAX, WATERMARK_MIN};

/// What stands where there is nothing to say.
pub const NONE: &str = "-";

/// Columns as wide as their widest cell; columns of numbers stand to the right.
pub fn table(out: &mut dyn Write, header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let cells = |column: usize| rows.iter().map(move |row| row[column].as_str());
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            cells(column).chain([header[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let numeric: Vec<bool> = (0..header.len())
        .map(|column| {
            let number = |cell: &str| cell == NONE || cell.parse::<f64>().is_ok();
            cells(column).any(|cell| cell != NONE) && cells(column).all(number)
        })
        .collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(widths.iter().zip(&numeric))
            .map(|(cell, (&width, &numeric))| match numeric {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            })
            .collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(&mut header.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

/// A duration in its two largest units; from a minute on without parts of a second.
pub fn duration(seconds: f64) -> String {
    let duration = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    let rounded = match duration.as_secs() {
        0..60 => Duration::from_millis(duration.as_millis() as u64),
        seconds => Duration::from_secs(seconds),
    };
    let text = humantime::format_duration(rounded).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A watermark as ISO 8601, or in words where it is none.
pub fn watermark(micros: Micros) -> String {
    match micros {
        WATERMARK_MIN => "none yet".to_owned(),
        WATERMARK_MAX => "the end".to_owned(),
        micros => time(micros),
    }
}

/// A log timestamp as ISO 8601; −1 is none.
pub fn time_ms(millis: i64) -> String {
    match millis {
        ..0 => NONE.to_string(),
        millis => time(millis.saturating_mul(1000)),
    }
}

pub fn or_none<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.to_string(), text)
}

/// 27004 → `27,004`; for sentences, a table's columns stay plain.
pub fn number(number: u64) -> String {
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

/// `1 record`, `2 records`.
pub fn count(of: u64, thing: &str) -> String {
    format!("{} {thing}{}", number(of), if of == 1 { "" } else { "s" })
}

/// On one line and without what a terminal would obey: records may hold anything.
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_table_aligns_names_left_and_numbers_right() {
        let mut out = Vec::new();
        let row = |cells: [&str; 3]| cells.map(str::to_string).to_vec();
        table(&mut out, &["TOPIC", "END", "NOTE"], &[row(["flights", "7", ""]), row(["a", "-", "x"])])
            .unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "TOPIC    END  NOTE\nflights    7\na          -  x\n");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (27004, "27,004"), (1234567, "1,234,567")];
        for (of, text) in cases {
            assert_eq!(number(of), text);
        }
        assert_eq!((count(1, "record"), count(2000, "record")), ("1 record".into(), "2,000 records".into()));
    }

    #[test]
    fn durations_and_times_are_short() {
        assert_eq!(duration(0.0), "0s");
        assert_eq!(duration(1.2345), "1s 234ms");
        assert_eq!(duration(3_723.9), "1h 2m");
        assert_eq!(duration(f64::INFINITY).split(' ').count(), 2);
        assert_eq!(time(1_357_016_400_000_000), "2013-01-01T05:00:00Z");
        assert_eq!(time(i64::MAX), i64::MAX.to_string());
        assert_eq!(time_ms(-1), NONE);
        assert_eq!(watermark(WATERMARK_MIN), "none yet");
        assert_eq!(printable("a\n\u{1b}[2J\tö"), "a\\n\\u{1b}[2J\\tö");
    }
}
