//! The decoder and the encoder against a reference that is as plain as can be.
//!
//! Values are generated as trees that keep their spelling (numbers as text, escapes, doubled keys). The
//! reference walks a tree by the declared type and says the refined text or the reject's code; the decoder
//! gets the tree's JSON, in one batch with broken values around it. `PROPTEST_CASES=20000` looks longer.

mod reference;

use proptest::prelude::*;
use proptest::sample::select;

use self::reference::{Tree, object};
use super::{JsonDecoder, RowEncoder};
use crate::codec::reason;
use crate::record::{Column, Type};

fn key() -> impl Strategy<Value = String> {
    select(vec!["a", "b", "c", "x y", "ä\"", "key"]).prop_map(String::from)
}

fn any_type() -> impl Strategy<Value = Type> {
    let leaf = select(vec![
        "bigint",
        "integer",
        "smallint",
        "double",
        "real",
        "boolean",
        "varchar",
        "decimal(10,2)",
        "decimal(38,10)",
        "date",
        "timestamp",
        "timestamp_ms",
        "timestamp_us",
        "timestamp_s",
        "bytea",
        "json",
    ]);
    leaf.prop_map(|name| name.parse().unwrap()).prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|item| Type::Array(Box::new(item))),
            fields(inner).prop_map(Type::Struct),
        ]
    })
}

fn fields(ty: impl Strategy<Value = Type>) -> impl Strategy<Value = Vec<(String, Type)>> {
    prop::collection::vec((key(), ty), 1..4).prop_map(|mut fields| {
        fields.sort_by(|one, other| one.0.cmp(&other.0));
        fields.dedup_by(|one, other| one.0 == other.0);
        fields
    })
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|value| value.to_string()),
        (-1000i32..1000).prop_map(|value| value.to_string()),
        any::<f64>()
            .prop_filter_map("JSON has finite numbers", |value| value.is_finite().then(|| value.to_string())),
        (-100_000i32..100_000, 0u32..1000, -3i32..4)
            .prop_map(|(whole, fraction, exponent)| format!("{whole}.{fraction}e{exponent}")),
        select(vec![
            "-0",
            "0.0",
            "9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
            "1e400",
            "-1e400",
            "1E2",
            "1.50",
            "32768",
            "253402300800"
        ])
        .prop_map(String::from),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        select(vec![
            "",
            "AAEC/w==",
            "AAEC",
            "NaN",
            "1",
            "-1.50",
            "2013-01-01",
            "2013-01-01 05:00:00.25",
            "2013-01-01T05:00:00+02:00"
        ])
        .prop_map(String::from),
    ]
}

fn any_tree() -> BoxedStrategy<Tree> {
    let leaf = prop_oneof![
        Just(Tree::Null),
        any::<bool>().prop_map(Tree::Boolean),
        number().prop_map(Tree::Number),
        (text(), any::<bool>()).prop_map(|(text, escaped)| Tree::Text(text, escaped)),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Tree::Array),
            prop::collection::vec((key(), any::<bool>(), inner), 0..4).prop_map(Tree::Object),
        ]
    })
    .boxed()
}

/// Mostly what the type takes, else anything.
fn tree_of(ty: &Type) -> BoxedStrategy<Tree> {
    let fitting: BoxedStrategy<Tree> = match ty {
        Type::BigInt => any::<i64>().prop_map(|value| Tree::Number(value.to_string())).boxed(),
        Type::Integer | Type::SmallInt | Type::TimestampMs | Type::TimestampUs | Type::TimestampS => {
            any::<i16>().prop_map(|value| Tree::Number(value.to_string())).boxed()
        }
        Type::Decimal { .. } => (any::<i32>(), 0..100u8, any::<bool>())
            .prop_map(|(whole, fraction, quoted)| match format!("{whole}.{fraction}") {
                text if quoted => Tree::Text(text, false),
                text => Tree::Number(text),
            })
            .boxed(),
        Type::Double | Type::Real => any::<f32>()
            .prop_filter("finite", |value| value.is_finite())
            .prop_map(|value| Tree::Number(value.to_string()))
            .boxed(),
        Type::Boolean => any::<bool>().prop_map(Tree::Boolean).boxed(),
        Type::Varchar => {
            (any::<String>(), any::<bool>()).prop_map(|(text, escaped)| Tree::Text(text, escaped)).boxed()
        }
        Type::Date => Just(Tree::Text("2013-01-31".into(), true)).boxed(),
        Type::Timestamp => Just(Tree::Text("2013-01-31T05:00:00.123Z".into(), false)).boxed(),
        Type::Bytea => Just(Tree::Text("AAEC/w==".into(), true)).boxed(),
        Type::Json => any_tree(),
        Type::Array(item) => prop::collection::vec(tree_of(item), 0..4).prop_map(Tree::Array).boxed(),
        Type::Struct(fields) => object_of(fields).prop_map(Tree::Object).boxed(),
    };
    prop_oneof![30 => fitting, 3 => Just(Tree::Null), 1 => any_tree()].boxed()
}

/// Some of the fields, in any order, among other keys, now and then one twice.
fn object_of(fields: &[(String, Type)]) -> BoxedStrategy<Vec<(String, bool, Tree)>> {
    let given: Vec<_> = fields
        .iter()
        .map(|(name, ty)| {
            let member = (Just(name.clone()), prop::bool::weighted(0.1), tree_of(ty));
            prop::option::weighted(0.9, member)
        })
        .collect();
    let others = prop::collection::vec((Just("other".to_string()), any::<bool>(), any_tree()), 0..3);
    let twice = prop::option::weighted(0.04, (key(), any::<bool>(), any_tree()));
    (given, others, twice)
        .prop_map(|(given, others, twice)| {
            given.into_iter().flatten().chain(others).chain(twice).collect::<Vec<_>>()
        })
        .prop_shuffle()
        .boxed()
}

/// A value to push: a tree with the white space between its tokens, perhaps with one byte of it changed.
#[derive(Clone, Debug)]
struct Sample {
    tree: Tree,
    space: &'static str,
    broken: Option<(prop::sample::Index, u8, bool)>,
}

impl Sample {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.tree.text(self.space).into_bytes();
        if let Some((position, byte, cut)) = &self.broken {
            let position = position.index(bytes.len());
            bytes[position] = *byte;
            if *cut {
                bytes.truncate(position + 1);
            }
        }
        bytes
    }
}

fn batches() -> impl Strategy<Value = (Vec<(String, Type)>, Vec<Sample>)> {
    fields(any_type()).prop_flat_map(|fields| {
        let tree = prop_oneof![20 => object_of(&fields).prop_map(Tree::Object), 1 => any_tree()];
        let byte = prop_oneof![select(b"{}[]\",:0e\\ x".to_vec()), any::<u8>()];
        let broken = prop::option::weighted(0.2, (any::<prop::sample::Index>(), byte, any::<bool>()));
        let sample = (tree, select(vec!["", " ", "\n\t"]), broken).prop_map(|(tree, space, broken)| Sample {
            tree,
            space,
            broken,
        });
        (Just(fields), prop::collection::vec(sample, 1..12))
    })
}

fn columns(fields: &[(String, Type)]) -> Vec<Column> {
    fields.iter().map(|(name, ty)| Column::new(name, ty.clone())).collect()
}

/// The type whose JSON is the refined form of this one.
fn refined_type(ty: &Type) -> Type {
    match ty {
        ty if ty.is_timestamp() => Type::Timestamp,
        Type::Array(item) => Type::Array(Box::new(refined_type(item))),
        Type::Struct(fields) => {
            Type::Struct(fields.iter().map(|(name, ty)| (name.clone(), refined_type(ty))).collect())
        }
        ty => ty.clone(),
    }
}

fn encode(decoder: &mut JsonDecoder) -> Vec<String> {
    let batch = decoder.finish();
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    RowEncoder::new(&batch.schema(), None).unwrap().encode(&batch, 0..batch.num_rows(), &mut out, &mut ends);
    let starts = [0].into_iter().chain(ends.iter().copied());
    starts.zip(&ends).map(|(start, &end)| String::from_utf8(out[start..end].to_vec()).unwrap()).collect()
}

proptest! {
    #[test]
    fn every_row_is_what_the_reference_says((fields, samples) in batches()) {
        let mut decoder = JsonDecoder::new(&columns(&fields));
        let nulls = object(&fields, &[]).unwrap();
        // The same again in the next batch: nothing of the first may be left.
        for _ in 0..2 {
            let outcomes: Vec<_> = samples.iter().map(|sample| decoder.push(&sample.bytes())).collect();
            let rows = encode(&mut decoder);
            prop_assert_eq!(rows.len(), samples.len());
            for ((sample, outcome), row) in samples.iter().zip(&outcomes).zip(&rows) {
                if let Err(reject) = outcome {
                    prop_assert_eq!(row, &nulls, "{}", reject);
                }
                if sample.broken.is_some() {
                    continue;
                }
                let expected = match &sample.tree {
                    Tree::Object(members) => object(&fields, members),
                    _ => Err(reason::NOT_AN_OBJECT),
                };
                match (outcome, expected) {
                    (Ok(()), Ok(expected)) => prop_assert_eq!(row, &expected),
                    (Err(reject), Err(reason)) => prop_assert_eq!(reject.reason, reason, "{}", reject),
                    (outcome, expected) => prop_assert!(false, "{:?}, but {:?}", outcome, expected),
                }
            }
        }
    }

    #[test]
    fn refined_rows_read_back_as_themselves((fields, samples) in batches()) {
        let mut decoder = JsonDecoder::new(&columns(&fields));
        for sample in &samples {
            let _ = decoder.push(&sample.bytes());
        }
        let rows = encode(&mut decoder);
        let refined: Vec<_> = fields.iter().map(|(name, ty)| (name.clone(), refined_type(ty))).collect();
        let mut decoder = JsonDecoder::new(&columns(&refined));
        for row in &rows {
            prop_assert_eq!(decoder.push(row.as_bytes()), Ok(()), "{}", row);
        }
        prop_assert_eq!(encode(&mut decoder), rows);
    }

    #[test]
    fn syntax_is_checked_where_nothing_is_read((_, samples) in batches()) {
        let mut decoder = JsonDecoder::new(&[]);
        for sample in &samples {
            let bytes = sample.bytes();
            let accepted = decoder.push(&bytes).is_ok();
            let text = std::str::from_utf8(&bytes).unwrap_or("not UTF-8");
            let syntax = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
            let is_object = text.trim_start().starts_with('{');
            prop_assert!(!accepted || (syntax && is_object), "{}", text);
            // serde_json's map also refuses lone surrogates and numbers beyond f64, which are syntax all the same.
            if serde_json::from_str::<serde_json::Map<_, _>>(text).is_ok() {
                prop_assert!(accepted, "{}", text);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), fields in fields(any_type())) {
        let mut decoder = JsonDecoder::new(&columns(&fields));
        let _ = decoder.push(&bytes);
        prop_assert_eq!(decoder.finish().num_rows(), 1);
    }
}
