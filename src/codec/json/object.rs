//! An object into columns: each key finds its column, a missing key is a null, a second one is a reject.
//!
//! Invariant: after a good object every column has exactly one entry more; after a failed one the caller
//! truncates.

use std::fmt;

use arrow::array::ArrayRef;
use hashbrown::HashMap;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::builder::Builder;
use super::value::{Failure, Value};
use crate::codec::reason;
use crate::record::Type;

/// Positions within an object for which the key last seen is remembered.
const HINTS_MAX: usize = 256;
/// Longer keys are not remembered: copying them costs more than it saves.
const HINT_LENGTH_MAX: usize = 128;

/// The columns of an object: the rows themselves, or a struct within.
pub(super) struct Fields {
    builders: Vec<Builder>,
    names: Vec<Box<str>>,
    by_name: HashMap<Box<str>, usize>,
    /// By column: the number of the last object that had its key.
    seen: Vec<u64>,
    objects: u64,
    /// By position in the object: the key that last stood there, and its column. Producers write keys in
    /// one order, so one comparison nearly always replaces a hash.
    hints: Vec<Hint>,
}

#[derive(Default)]
struct Hint {
    key: String,
    column: Option<usize>,
}

impl Fields {
    /// Of columns with the same name, the last one is filled; topology files are checked for that before.
    pub(super) fn new<'a>(columns: impl Iterator<Item = (&'a str, &'a Type)>) -> Self {
        let (names, builders): (Vec<Box<str>>, Vec<Builder>) =
            columns.map(|(name, ty)| (name.into(), Builder::new(ty))).unzip();
        Self {
            by_name: names.iter().enumerate().map(|(column, name)| (name.clone(), column)).collect(),
            seen: vec![0; names.len()],
            objects: 0,
            hints: Vec::new(),
            builders,
            names,
        }
    }

    pub(super) fn append_null(&mut self) {
        self.builders.iter_mut().for_each(Builder::append_null);
    }

    pub(super) fn truncate(&mut self, length: usize) {
        self.builders.iter_mut().for_each(|builder| builder.truncate(length));
    }

    pub(super) fn finish(&mut self) -> Vec<ArrayRef> {
        self.builders.iter_mut().map(Builder::finish).collect()
    }

    fn column(&mut self, position: usize, key: &str) -> Option<usize> {
        if let Some(hint) = self.hints.get(position)
            && hint.key == key
        {
            return hint.column;
        }
        let column = self.by_name.get(key).copied();
        if position < HINTS_MAX && key.len() <= HINT_LENGTH_MAX {
            if self.hints.len() <= position {
                self.hints.resize_with(position + 1, Hint::default);
            }
            let hint = &mut self.hints[position];
            hint.key.clear();
            hint.key.push_str(key);
            hint.column = column;
        }
        column
    }
}

/// Reads one object into columns.
pub(super) struct Object<'a> {
    pub(super) fields: &'a mut Fields,
    pub(super) failure: &'a mut Failure,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Object { fields, failure } = self;
        failure.in_object = true;
        fields.objects += 1;
        let mut position = 0;
        let mut filled = 0;
        while let Some(column) = map.next_key_seed(Key { fields, position })? {
            position += 1;
            let Some(column) = column else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if fields.seen[column] == fields.objects {
                failure.reason = Some(reason::DUPLICATE_KEY);
                failure.path.push(fields.names[column].to_string());
                return Err(A::Error::custom("the key stands twice in one object"));
            }
            fields.seen[column] = fields.objects;
            filled += 1;
            if let Err(error) = map.next_value_seed(Value { builder: &mut fields.builders[column], failure })
            {
                failure.path.push(fields.names[column].to_string());
                return Err(error);
            }
        }
        if filled < fields.builders.len() {
            for (builder, seen) in fields.builders.iter_mut().zip(&fields.seen) {
                if *seen != fields.objects {
                    builder.append_null();
                }
            }
        }
        Ok(())
    }
}

/// Reads a key as the column that it names, if that is one.
struct Key<'a> {
    fields: &'a mut Fields,
    position: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.fields.column(self.position, key))
    }
}
