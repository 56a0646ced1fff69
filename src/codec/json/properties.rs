//! The decoder and the encoder against a reference that is as plain as can be.
//!
//! Values are generated as trees that keep their spelling (numbers as text, escapes, doubled keys). The
//! reference walks a tree by the declared type and says the refined text or the reject's code; the decoder
//! gets the tree's JSON, in one batch with broken values around it.

use proptest::prelude::*;
use proptest::sample::select;

use super::{JsonDecoder, RowEncoder};
use crate::codec::instant::{parse_date, parse_timestamp, write_timestamp};
use crate::codec::reason;
use crate::record::{Column, Type};

/// A JSON value with its spelling.
#[derive(Clone, Debug)]
enum Tree {
    Null,
    Boolean(bool),
    Number(String),
    /// The text, and whether each of its characters is escaped.
    Text(String, bool),
    Array(Vec<Tree>),
    Object(Vec<(String, bool, Tree)>),
}

impl Tree {
    fn text(&self, space: &str) -> String {
        let list = |items: Vec<String>| items.join(&format!("{space},{space}"));
        match self {
            Tree::Null => "null".into(),
            Tree::Boolean(value) => value.to_string(),
            Tree::Number(text) => text.clone(),
            Tree::Text(text, escaped) => quote(text, *escaped),
            Tree::Array(items) => {
                format!("[{space}{}{space}]", list(items.iter().map(|item| item.text(space)).collect()))
            }
            Tree::Object(members) => {
                let member = |(key, escaped, value): &(String, bool, Tree)| {
                    format!("{}{space}:{space}{}", quote(key, *escaped), value.text(space))
                };
                format!("{{{space}{}{space}}}", list(members.iter().map(member).collect()))
            }
        }
    }
}

fn quote(text: &str, escaped: bool) -> String {
    if !escaped {
        return serde_json::to_string(text).unwrap();
    }
    let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
    format!("\"{}\"", units.collect::<String>())
}

/// The refined text of a value in a column of this type, or the code of its reject.
fn refined(ty: &Type, tree: &Tree) -> Result<String, &'static str> {
    let timestamp = |micros: i64| {
        let mut out = Vec::new();
        write_timestamp(micros, &mut out);
        format!("\"{}\"", String::from_utf8(out).unwrap())
    };
    let epoch = |count: i64, unit: i64| match count.checked_mul(unit) {
        Some(micros) if (-62_135_596_800_000_000..=253_402_300_799_999_999).contains(&micros) => {
            Ok(timestamp(micros))
        }
        _ => Err(reason::OUT_OF_RANGE),
    };
    match (ty, tree) {
        (_, Tree::Null) => Ok("null".into()),
        (Type::Json, tree) => Ok(tree.text("")),
        (Type::Decimal { precision, scale }, Tree::Number(text)) => decimal(text, *precision, *scale),
        (Type::Decimal { precision, scale }, Tree::Text(text, _)) => {
            match serde_json::from_str::<f64>(text) {
                Ok(_) => decimal(text, *precision, *scale),
                Err(_) => Err(reason::TYPE_MISMATCH),
            }
        }
        (Type::Real, Tree::Number(text)) => match text.parse::<f32>().unwrap() {
            value if value.is_finite() => Ok(serde_json::to_string(&value).unwrap()),
            _ => Err(reason::OUT_OF_RANGE),
        },
        // A type that does not look at the text of numbers never gets to see one beyond f64.
        (ty, Tree::Number(text)) if text.parse::<f64>().unwrap().is_infinite() => {
            assert!(!matches!(ty, Type::Decimal { .. } | Type::Json));
            Err(reason::OUT_OF_RANGE)
        }
        (Type::Double, Tree::Number(text)) => {
            Ok(serde_json::to_string(&text.parse::<f64>().unwrap()).unwrap())
        }
        (Type::Double | Type::Real, Tree::Text(text, _))
            if ["NaN", "Infinity", "-Infinity"].contains(&text.as_str()) =>
        {
            Ok(quote(text, false))
        }
        (
            Type::BigInt
            | Type::Integer
            | Type::SmallInt
            | Type::TimestampMs
            | Type::TimestampUs
            | Type::TimestampS,
            Tree::Number(text),
        ) => {
            let value = match text.parse::<i128>() {
                Ok(value) => i64::try_from(value).map_err(|_| reason::OUT_OF_RANGE)?,
                Err(_) if text.parse::<f64>().unwrap().abs() >= 9_223_372_036_854_775_807.0 => {
                    return Err(reason::OUT_OF_RANGE);
                }
                Err(_) => return Err(reason::TYPE_MISMATCH),
            };
            let within = |low: i64, high: i64| match (low..=high).contains(&value) {
                true => Ok(value.to_string()),
                false => Err(reason::OUT_OF_RANGE),
            };
            match ty {
                Type::SmallInt => within(i64::from(i16::MIN), i64::from(i16::MAX)),
                Type::Integer => within(i64::from(i32::MIN), i64::from(i32::MAX)),
                Type::TimestampS => epoch(value, 1_000_000),
                Type::TimestampMs => epoch(value, 1_000),
                Type::TimestampUs => epoch(value, 1),
                _ => Ok(value.to_string()),
            }
        }
        (Type::Boolean, Tree::Boolean(value)) => Ok(value.to_string()),
        (Type::Varchar, Tree::Text(text, _)) => Ok(quote(text, false)),
        (Type::Timestamp, Tree::Text(text, _)) => {
            parse_timestamp(text).map(timestamp).map_err(|_| reason::TYPE_MISMATCH)
        }
        (Type::Date, Tree::Text(text, _)) => {
            parse_date(text).map(|_| quote(text, false)).map_err(|_| reason::TYPE_MISMATCH)
        }
        (Type::Bytea, Tree::Text(text, _)) if ["", "AAEC/w==", "AAEC"].contains(&text.as_str()) => {
            Ok(quote(text, false))
        }
        (Type::Array(item), Tree::Array(items)) => {
            let items = items.iter().map(|value| refined(item, value)).collect::<Result<Vec<_>, _>>()?;
            Ok(format!("[{}]", items.join(",")))
        }
        (Type::Struct(fields), Tree::Object(members)) => object(fields, members),
        _ => Err(reason::TYPE_MISMATCH),
    }
}

fn object(fields: &[(String, Type)], members: &[(String, bool, Tree)]) -> Result<String, &'static str> {
    let mut values: Vec<Option<String>> = vec![None; fields.len()];
    for (key, _, value) in members {
        let Some(field) = fields.iter().position(|(name, _)| name == key) else { continue };
        if values[field].is_some() {
            return Err(reason::DUPLICATE_KEY);
        }
        values[field] = Some(refined(&fields[field].1, value)?);
    }
    let member = |((name, _), value): (&(String, Type), Option<String>)| {
        format!("{}:{}", quote(name, false), value.unwrap_or_else(|| "null".into()))
    };
    Ok(format!("{{{}}}", fields.iter().zip(values).map(member).collect::<Vec<_>>().join(",")))
}

/// Moves the point by hand: the digits, then where the point stands among them.
fn decimal(text: &str, precision: u8, scale: u8) -> Result<String, &'static str> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let Ok(exponent) = exponent.parse::<i32>() else { panic!("no such exponent is generated: {text}") };
    if exponent.abs() > 100 {
        return Err(reason::OUT_OF_RANGE);
    }
    let unsigned = mantissa.trim_start_matches('-');
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let point = whole.len() as i32 + exponent;
    let padding = "0".repeat(150);
    let digits = format!("{padding}{whole}{fraction}{padding}");
    let (whole, fraction) = digits.split_at((point + 150) as usize);
    let (kept, cut) = fraction.split_at(usize::from(scale));
    let number = format!("{whole}{kept}").parse::<u128>();
    match number {
        Ok(number) if number < 10u128.pow(u32::from(precision)) && cut.chars().all(|digit| digit == '0') => {
            let sign = if mantissa.starts_with('-') && number != 0 { "-" } else { "" };
            let whole = whole.trim_start_matches('0');
            let whole = if whole.is_empty() { "0" } else { whole };
            let point = if scale == 0 { "" } else { "." };
            Ok(format!("\"{sign}{whole}{point}{kept}\""))
        }
        _ => Err(reason::OUT_OF_RANGE),
    }
}

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
    #![proptest_config(ProptestConfig::with_cases(400))]

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
