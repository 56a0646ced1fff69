//! What a connector would make of the files that are there now: for `check`, without a broker.

use std::collections::BTreeMap;

use crate::codec::json::{Inferred, infer};
use crate::connect::SourceError;
use crate::connect::source::Batch;
use crate::record::Type;

use super::known::Entry;
use super::reading::{CHUNK, Ended, Reading, hash};
use super::{Files, FormatKind, list};

/// So many values are enough to guess from.
const VALUES_MAX: usize = 1000;

/// The files, and what the first of them with records holds.
#[derive(Debug, Default)]
pub struct Sample {
    pub files: usize,
    pub bytes: u64,
    /// Relative to the folder; `None`: no file has a record.
    pub file: Option<String>,
    pub records: usize,
    /// The first letters.
    pub letters: Vec<String>,
    pub letters_count: usize,
    pub columns: Vec<Inferred>,
    /// Columns of CSV that hold nothing but numbers or truth values and are declared as text.
    pub proposed: Vec<(String, Type)>,
    pub first_value: Option<String>,
}

/// Reads the beginning of the first file that has records.
pub fn sample(files: &Files) -> Result<Sample, SourceError> {
    let (folder, pattern) = files.place();
    let found = list(&folder, &pattern)?;
    let bytes = found.iter().map(|file| file.stamp.size).sum();
    let mut sample = Sample { files: found.len(), bytes, ..Sample::default() };
    for file in found {
        let Some(format) = files.format_of(&file.path) else {
            return Err(SourceError::input(
                folder.join(&file.path).display(),
                "its name does not say which format it is of",
                "set format: csv or jsonl; or let match take other files only",
            ));
        };
        let empty = hash(b"");
        let entry = Entry { path: file.path.clone(), head: empty.clone(), tail: empty, ..Entry::default() };
        let is_csv = matches!(format, FormatKind::Csv(_));
        let Some(mut reading) = Reading::open(files, &folder, 0, entry, format)? else { continue };
        let mut batch = Batch::default();
        while batch.len() < VALUES_MAX && reading.step(files, &mut batch, true, CHUNK)? == Ended::More {}
        if batch.len() + batch.letters().len() > 0 {
            describe(&mut sample, &batch, is_csv);
            sample.file = Some(file.path);
            return Ok(sample);
        }
    }
    Ok(sample)
}

fn describe(sample: &mut Sample, batch: &Batch, is_csv: bool) {
    let values: Vec<&[u8]> = batch.records().map(|record| record.value).take(VALUES_MAX).collect();
    sample.records = batch.len();
    sample.letters_count = batch.letters().len();
    sample.letters = batch.letters().iter().take(3).map(|letter| letter.message.clone()).collect();
    sample.first_value = values.first().map(|value| String::from_utf8_lossy(value).into_owned());
    sample.columns = infer(values.iter().copied());
    let mut cells: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for value in values {
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_slice(value).unwrap_or_default();
        for (name, cell) in object {
            if let serde_json::Value::String(text) = cell {
                cells.entry(name).or_default().push(text);
            }
        }
    }
    // What JSON calls a text is one.
    if !is_csv {
        return;
    }
    sample.proposed = sample
        .columns
        .iter()
        .filter(|column| !column.name.starts_with('_'))
        .filter_map(|column| Some((column.name.clone(), guess(cells.get(&column.name)?)?)))
        .collect();
}

/// The type that all cells are of. Digits after a leading zero are a code, no number.
fn guess(cells: &[String]) -> Option<Type> {
    let is_code = |cell: &String| {
        let digits = cell.trim_start_matches('-');
        digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.")
    };
    if cells.iter().any(is_code) {
        return None;
    }
    let all = |fits: &dyn Fn(&str) -> bool| cells.iter().all(|cell| fits(cell));
    if all(&|cell| cell.parse::<i64>().is_ok()) {
        return Some(Type::BigInt);
    }
    if all(&|cell| cell.parse::<f64>().is_ok_and(f64::is_finite)) {
        return Some(Type::Double);
    }
    let is_truth = |cell: &str| matches!(cell.to_ascii_lowercase().as_str(), "true" | "false");
    all(&is_truth).then_some(Type::Boolean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_number_throughout_is_proposed_as_one() {
        let of = |cells: &[&str]| guess(&cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["1", "-5"]), Some(Type::BigInt));
        assert_eq!(of(&["1", "2.5", "0.5"]), Some(Type::Double));
        assert_eq!(of(&["01067", "10115"]), None, "a code");
        assert_eq!(of(&["1", "NA"]), None);
        assert_eq!(of(&["true", "FALSE"]), Some(Type::Boolean));
    }
}
