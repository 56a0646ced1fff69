//! Retractions: how a topic without a key is told that a row is no longer right.
//!
//! The row is written once more, with the header `headwater.op: retract`, into its own partition behind it. So a reader
//! who takes one equal row away for each has, at any place, the rows that are right there.
//!
//! Invariant: one that takes back what is not there stays among the rows, so that whoever compares them sees it.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::record::{Header, OwnedRecord};

const OP: &str = "headwater.op";
const RETRACT: &str = "retract";

/// The headers of a retraction.
pub(super) static RETRACTION: LazyLock<[Header; 1]> = LazyLock::new(|| [Header::text(OP, RETRACT)]);

/// Whether these are the headers of a retraction.
pub fn is_retraction(headers: &[Header]) -> bool {
    headers.iter().any(|header| {
        header.name == OP && header.value.as_deref().is_some_and(|value| value == RETRACT.as_bytes())
    })
}

/// What is left of a partition's records, which are given in order: each retraction takes away an equal row before it.
pub fn settle(records: Vec<OwnedRecord>) -> Vec<OwnedRecord> {
    let mut kept: Vec<Option<OwnedRecord>> = Vec::with_capacity(records.len());
    let mut places: HashMap<Option<Vec<u8>>, Vec<usize>> = HashMap::new();
    for record in records {
        if is_retraction(&record.headers)
            && let Some(place) = places.get_mut(&record.value).and_then(Vec::pop)
        {
            kept[place] = None;
            continue;
        }
        if !is_retraction(&record.headers) {
            places.entry(record.value.clone()).or_default().push(kept.len());
        }
        kept.push(Some(record));
    }
    kept.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_retraction_takes_one_row_before_it_and_others_stay() {
        let record = |value: &str, headers: &[Header]| OwnedRecord {
            value: Some(value.into()),
            headers: headers.to_vec(),
            ..OwnedRecord::default()
        };
        let (row, back) = (|value| record(value, &[]), |value| record(value, &*RETRACTION));
        let other = record("c", &[Header::text(OP, "other"), Header::text("x", RETRACT)]);
        let records =
            vec![back("a"), row("a"), row("b"), row("a"), back("a"), other.clone(), back("c"), row("b")];
        let left = settle(records);
        assert_eq!(left, [back("a"), row("a"), row("b"), row("b")]);
        assert!(!is_retraction(&other.headers));
    }
}
