//! Guesses columns from samples, for `topic infer`: a first `columns:` block to edit, not a decision.
//!
//! Invariant: every sample that was taken in decodes by the columns guessed, unless it has one key twice
//! in an object within.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use crate::codec::instant::{parse_date, parse_timestamp};
use crate::record::Type;

/// Values nested deeper than this are json.
const DEPTH_MAX: usize = 8;

/// A column as the samples show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inferred {
    pub name: String,
    pub ty: Type,
    /// Missing or null in some sample.
    pub nullable: bool,
    /// The first value that is not null, as JSON.
    pub example: Option<String>,
}

/// The columns of JSON objects, in the order in which they first appear. Samples that are not one JSON object
/// each are passed over.
pub fn infer<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Vec<Inferred> {
    let mut columns: Vec<Seen> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    let mut samples = 0;
    for value in values {
        let Ok(Members(members)) = serde_json::from_slice(value) else { continue };
        samples += 1;
        for (name, value) in members {
            let column = *by_name.entry(name.clone()).or_insert_with(|| {
                columns.push(Seen { name, shape: Shape::Unknown, present: 0, example: None });
                columns.len() - 1
            });
            columns[column].take(&value);
        }
    }
    columns
        .into_iter()
        .map(|column| Inferred {
            nullable: column.present < samples,
            ty: column.shape.ty(DEPTH_MAX),
            name: column.name,
            example: column.example,
        })
        .collect()
}

struct Seen {
    name: String,
    shape: Shape,
    /// Samples in which it is there and not null.
    present: usize,
    example: Option<String>,
}

impl Seen {
    fn take(&mut self, value: &Value) {
        if value.is_null() {
            return;
        }
        self.present += 1;
        self.example.get_or_insert_with(|| value.to_string());
        let shape = std::mem::replace(&mut self.shape, Shape::Unknown);
        self.shape = shape.merge(Shape::of(value));
    }
}

/// What values have in common.
enum Shape {
    /// Only nulls so far.
    Unknown,
    Boolean,
    BigInt,
    /// Integers of which some are beyond a bigint.
    Unsigned,
    Double,
    Timestamp,
    Date,
    Varchar,
    Array(Box<Shape>),
    Struct(Vec<(String, Shape)>),
    /// Values of different kinds.
    Mixed,
}

impl Shape {
    fn of(value: &Value) -> Shape {
        match value {
            Value::Null => Shape::Unknown,
            Value::Bool(_) => Shape::Boolean,
            Value::Number(number) if number.is_i64() => Shape::BigInt,
            Value::Number(number) if number.is_u64() => Shape::Unsigned,
            Value::Number(_) => Shape::Double,
            Value::String(text) if parse_timestamp(text).is_ok() => Shape::Timestamp,
            Value::String(text) if parse_date(text).is_ok() => Shape::Date,
            Value::String(_) => Shape::Varchar,
            Value::Array(items) => {
                Shape::Array(Box::new(items.iter().map(Shape::of).fold(Shape::Unknown, Shape::merge)))
            }
            Value::Object(members) => {
                Shape::Struct(members.iter().map(|(name, value)| (name.clone(), Shape::of(value))).collect())
            }
        }
    }

    fn merge(self, other: Shape) -> Shape {
        use Shape::*;
        match (self, other) {
            (Unknown, shape) | (shape, Unknown) => shape,
            (Boolean, Boolean) => Boolean,
            (BigInt, BigInt) => BigInt,
            (BigInt | Unsigned, BigInt | Unsigned) => Unsigned,
            (BigInt | Unsigned | Double, BigInt | Unsigned | Double) => Double,
            (Timestamp, Timestamp) => Timestamp,
            (Date, Date) => Date,
            (Timestamp | Date | Varchar, Timestamp | Date | Varchar) => Varchar,
            (Array(item), Array(other)) => Array(Box::new(item.merge(*other))),
            (Struct(mut members), Struct(others)) => {
                for (name, shape) in others {
                    match members.iter_mut().find(|(member, _)| *member == name) {
                        Some((_, member)) => {
                            let earlier = std::mem::replace(member, Unknown);
                            *member = earlier.merge(shape);
                        }
                        None => members.push((name, shape)),
                    }
                }
                Struct(members)
            }
            _ => Mixed,
        }
    }

    fn ty(self, depth: usize) -> Type {
        match self {
            Shape::Array(_) | Shape::Struct(_) if depth == 0 => Type::Json,
            Shape::Boolean => Type::Boolean,
            Shape::BigInt => Type::BigInt,
            Shape::Unsigned => Type::Decimal { precision: 20, scale: 0 },
            Shape::Double => Type::Double,
            Shape::Timestamp => Type::Timestamp,
            Shape::Date => Type::Date,
            Shape::Varchar => Type::Varchar,
            Shape::Array(item) => Type::Array(Box::new(item.ty(depth - 1))),
            // An object without keys says nothing of what it may hold; nor do nulls.
            Shape::Struct(members) if members.is_empty() => Type::Json,
            Shape::Struct(members) => {
                Type::Struct(members.into_iter().map(|(name, shape)| (name, shape.ty(depth - 1))).collect())
            }
            Shape::Unknown | Shape::Mixed => Type::Json,
        }
    }
}

/// The members of an object in the order they are written, which serde_json's own map does not keep.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members: Vec<(String, Value)> = Vec::new();
        while let Some((name, value)) = map.next_entry()? {
            if members.iter().any(|(earlier, _)| *earlier == name) {
                return Err(A::Error::custom("the key stands twice in one object"));
            }
            members.push((name, value));
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::super::JsonDecoder;
    use super::*;
    use crate::record::Column;

    fn types(samples: &[&str]) -> Vec<String> {
        let inferred = infer(samples.iter().map(|sample| sample.as_bytes()));
        // The samples decode by what they were guessed to be.
        let columns: Vec<Column> =
            inferred.iter().map(|column| Column::new(&column.name, column.ty.clone())).collect();
        let mut decoder = JsonDecoder::new(&columns);
        for sample in samples.iter().filter(|sample| sample.starts_with('{') && sample.ends_with('}')) {
            decoder.push(sample.as_bytes()).unwrap_or_else(|reject| panic!("{sample}: {reject}"));
        }
        inferred
            .into_iter()
            .map(|column| format!("{} {}{}", column.name, column.ty, if column.nullable { "?" } else { "" }))
            .collect()
    }

    #[test]
    fn each_kind_of_value_is_recognised_in_the_order_of_appearance() {
        assert_eq!(
            types(&[
                r#"{"z": 1, "d": 1.5, "b": true, "v": "x", "t": "2013-01-01T05:00:00Z", "day": "2013-01-01", "a": [1, null], "s": {"x": 1}, "n": null}"#
            ]),
            [
                "z bigint",
                "d double",
                "b boolean",
                "v varchar",
                "t timestamp",
                "day date",
                "a bigint[]",
                "s struct<x bigint>",
                "n json?"
            ]
        );
    }

    #[test]
    fn samples_are_merged() {
        assert_eq!(types(&[r#"{"x": 1}"#, r#"{"x": 1.5}"#]), ["x double"]);
        assert_eq!(types(&[r#"{"x": 18446744073709551615}"#, r#"{"x": -1}"#]), ["x decimal(20,0)"]);
        assert_eq!(types(&[r#"{"x": "2013-01-01"}"#, r#"{"x": "2013-01-01T05:00:00Z"}"#]), ["x varchar"]);
        assert_eq!(types(&[r#"{"x": 1}"#, r#"{"x": "1"}"#]), ["x json"]);
        assert_eq!(types(&[r#"{"x": [1]}"#, r#"{"x": ["a"]}"#, r#"{"x": []}"#]), ["x json[]"]);
        assert_eq!(
            types(&[r#"{"x": {}}"#, r#"{"x": {"a": 1}}"#, r#"{"x": {"b": []}}"#]),
            ["x struct<a bigint, b json[]>"]
        );
        assert_eq!(types(&[r#"{"x": {}}"#]), ["x json"]);
        assert_eq!(types(&[r#"{"x": [[[[[[[[[[1]]]]]]]]]]}"#]), ["x json[][][][][][][][]"]);
        assert_eq!(
            types(&[r#"{"x": 1}"#, r#"{"y": 1}"#, r#"{"x": null, "y": 2}"#]),
            ["x bigint?", "y bigint?"]
        );
    }

    #[test]
    fn what_is_no_object_is_passed_over() {
        assert_eq!(types(&["[1]", "oops", r#"{"x": 1}"#, ""]), ["x bigint"]);
        assert_eq!(infer([]), []);
    }

    #[test]
    fn the_example_is_the_first_value_there_is() {
        let inferred = infer([br#"{"x": null}"#.as_slice(), br#"{"x": "EWR"}"#, br#"{"x": "JFK"}"#]);
        assert_eq!(inferred[0].example.as_deref(), Some("\"EWR\""));
    }
}
