//! What was expected against what came, as lines that a person can read.
//!
//! Invariant: the order of rows, and whether a whole number is written with a fraction, decide nothing.

use serde::Serialize;
use serde_json::{Map, Value};

use super::file::DeadLetter;
use crate::engine::letters::{DEAD_MESSAGE, DEAD_OFFSET, DEAD_PARTITION, DEAD_STAGE, DEAD_TOPIC, REASON};
use crate::record::OwnedRecord;

/// One thing that differs.
#[derive(Debug, PartialEq, Serialize)]
pub struct Difference {
    /// `refined <view>`, `late <source>`, `dead`.
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub got: Option<Value>,
}

impl Difference {
    /// `-` was expected, `+` came; of a pair, the columns that differ.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(expected) = &self.expected {
            lines.push(format!("- {expected}"));
        }
        if let Some(got) = &self.got {
            lines.push(format!("+ {got}"));
        }
        if let (Some(Value::Object(expected)), Some(Value::Object(got))) = (&self.expected, &self.got) {
            for (name, value) in expected {
                match got.get(name) {
                    None => lines.push(format!("    {name}: expected {value}, got no such column")),
                    Some(other) if !equal(value, other) => {
                        lines.push(format!("    {name}: expected {value}, got {other}"));
                    }
                    Some(_) => {}
                }
            }
            for (name, value) in got.iter().filter(|(name, _)| !expected.contains_key(*name)) {
                lines.push(format!("    {name}: got {value}, which was not expected"));
            }
        }
        lines
    }
}

/// Rows as a multiset. What is left over on both sides is paired by likeness, so that a wrong column shows.
pub(super) fn rows(what: &str, expected: Vec<Value>, got: Vec<Value>) -> Vec<Difference> {
    matched(what, expected, got, equal)
}

/// Each dead letter by what is named of it; those of which most is named choose first.
pub(super) fn dead(mut expected: Vec<DeadLetter>, got: Vec<Value>) -> Vec<Difference> {
    let named = |letter: &DeadLetter| describe(letter).len();
    expected.sort_by_key(|letter| std::cmp::Reverse(named(letter)));
    let expected: Vec<Value> = expected.iter().map(|letter| Value::Object(describe(letter))).collect();
    let differences = matched("dead", expected, got, |expected, got| {
        let (Value::Object(expected), Value::Object(got)) = (expected, got) else { return false };
        expected.iter().all(|(name, value)| match (name.as_str(), value, got.get(name)) {
            ("message", Value::String(part), Some(Value::String(whole))) => whole.contains(part),
            (_, value, Some(other)) => equal(value, other),
            (_, _, None) => false,
        })
    });
    // Of a pair, what the test does not name is no difference.
    differences.into_iter().map(only_named).collect()
}

fn only_named(mut difference: Difference) -> Difference {
    if let (Some(Value::Object(expected)), Some(Value::Object(got))) =
        (&difference.expected, &mut difference.got)
    {
        got.retain(|name, _| expected.contains_key(name));
    }
    difference
}

fn matched(
    what: &str,
    expected: Vec<Value>,
    mut got: Vec<Value>,
    same: impl Fn(&Value, &Value) -> bool,
) -> Vec<Difference> {
    let mut missing = Vec::new();
    for row in expected {
        // What names little takes what says little, and leaves the rest to be paired with what names more.
        let matching = got.iter().enumerate().filter(|(_, other)| same(&row, other));
        match matching.min_by_key(|(_, other)| fields(other)).map(|(at, _)| at) {
            Some(at) => drop(got.swap_remove(at)),
            None => missing.push(row),
        }
    }
    let mut differences = Vec::new();
    for row in missing {
        let likeness = got.iter().map(|other| alike(&row, other)).enumerate();
        let nearest = likeness.max_by_key(|&(at, alike)| (alike, std::cmp::Reverse(at)));
        let paired = nearest.filter(|(_, alike)| *alike > 0).map(|(at, _)| got.swap_remove(at));
        differences.push(Difference { what: what.to_owned(), expected: Some(row), got: paired });
    }
    got.sort_by_key(Value::to_string);
    let unexpected =
        got.into_iter().map(|row| Difference { what: what.to_owned(), expected: None, got: Some(row) });
    differences.extend(unexpected);
    differences
}

fn fields(row: &Value) -> usize {
    row.as_object().map_or(0, Map::len)
}

/// Equal fields.
fn alike(left: &Value, right: &Value) -> usize {
    let (Value::Object(left), Value::Object(right)) = (left, right) else { return 0 };
    left.iter().filter(|(name, value)| right.get(*name).is_some_and(|other| equal(value, other))).count()
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            left == right || (left.is_f64() || right.is_f64()) && left.as_f64() == right.as_f64()
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, value)| right.get(name).is_some_and(|other| equal(value, other)))
        }
        (left, right) => left == right,
    }
}

fn describe(letter: &DeadLetter) -> Map<String, Value> {
    let mut map = Map::new();
    let texts = [
        ("reason", &letter.reason),
        ("stage", &letter.stage),
        ("message", &letter.message),
        ("source", &letter.source),
    ];
    for (name, text) in texts {
        map.extend(text.clone().map(|text| (name.to_owned(), text.into())));
    }
    map.extend(letter.partition.map(|partition| ("partition".to_owned(), partition.into())));
    map.extend(letter.offset.map(|offset| ("offset".to_owned(), offset.into())));
    map.extend(letter.value.clone().map(|value| ("value".to_owned(), value)));
    map
}

/// A dead letter as a test names it. `source` turns a topic into its source's name.
pub fn dead_letter(record: &OwnedRecord, source: impl Fn(&str) -> String) -> Value {
    let header = |name: &str| header(record, name);
    let number = |name: &str| header(name).and_then(|text| text.parse::<i64>().ok());
    let mut map = Map::new();
    map.insert("reason".to_owned(), header(REASON).into());
    map.insert("stage".to_owned(), header(DEAD_STAGE).into());
    map.insert("message".to_owned(), header(DEAD_MESSAGE).into());
    map.insert("source".to_owned(), header(DEAD_TOPIC).map(|topic| source(&topic)).into());
    map.insert("partition".to_owned(), number(DEAD_PARTITION).into());
    map.insert("offset".to_owned(), number(DEAD_OFFSET).into());
    map.insert("value".to_owned(), value(record.value.as_deref()));
    Value::Object(map)
}

/// The last header of a name: what the engine added stands behind what the record came with.
pub fn header(record: &OwnedRecord, name: &str) -> Option<String> {
    let found = record.headers.iter().rev().find(|header| header.name == name)?;
    Some(String::from_utf8_lossy(found.value.as_deref()?).into_owned())
}

/// A value as a test writes it: JSON, or the text itself.
pub fn value(bytes: Option<&[u8]>) -> Value {
    let Some(bytes) = bytes else { return Value::Null };
    match serde_json::from_slice(bytes) {
        // A bare string or null would read as text or as a tombstone.
        Ok(value @ (Value::Object(_) | Value::Array(_) | Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::String(String::from_utf8_lossy(bytes).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order_and_fractions_decide_nothing() {
        let expected = vec![json!({"a": 1, "b": [2]}), json!({"a": 2, "b": null})];
        let got = vec![json!({"b": null, "a": 2.0}), json!({"a": 1, "b": [2.0]})];
        assert_eq!(rows("x", expected, got), []);
        assert_eq!(rows("x", vec![json!(9007199254740993_i64)], vec![json!(9007199254740992_i64)]).len(), 2);
    }

    #[test]
    fn a_wrong_column_is_marked_and_rows_count_by_how_often_they_stand_there() {
        let expected = vec![json!({"key": "a", "n": 1}), json!({"key": "b", "n": 2})];
        let got = vec![json!({"key": "b", "n": 2}), json!({"key": "b", "n": 2}), json!({"key": "a", "n": 3})];
        let differences = rows("refined v", expected, got);
        assert_eq!(differences.len(), 2, "{differences:?}");
        let expected_lines = [r#"- {"key":"a","n":1}"#, r#"+ {"key":"a","n":3}"#, "    n: expected 1, got 3"];
        assert_eq!(differences[0].lines(), expected_lines);
        assert_eq!(differences[1].lines(), [r#"+ {"key":"b","n":2}"#]);
    }

    #[test]
    fn a_dead_letter_needs_only_what_is_named() {
        let got =
            || vec![json!({"reason": "x", "message": "the whole", "offset": 3}), json!({"reason": "x"})];
        let any = DeadLetter { reason: Some("x".to_owned()), ..DeadLetter::default() };
        let one = DeadLetter { message: Some("whole".to_owned()), ..any.clone() };
        assert_eq!(dead(vec![any.clone(), one.clone()], got()), []);
        let wrong = DeadLetter { offset: Some(4), ..one };
        let differences = dead(vec![any, wrong], got());
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].lines().last().map(String::as_str), Some("    offset: expected 4, got 3"));
    }
}
