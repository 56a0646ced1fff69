//! JSON records against columns of every type: what is accepted, and with which values, as serde_json's own reading of
//! the raw text says.
//!
//! An input is the columns' types as a struct's, a line end, and the record's value.

mod reference;

use headwater::codec::json::{JsonDecoder, RowEncoder};
use headwater::record::{Column, Type};
use rand::RngExt;
use rand::rngs::SmallRng;
use serde_json::value::RawValue;

use self::reference::{Verdict, equal, members, verdict};
use super::Target;
use super::mutate::mutate;

/// Columns of more types than this are not made: each takes room for every row.
const LEAVES_MAX: usize = 64;
const COLUMNS: [&str; 8] = [
    "struct<a bigint, b varchar, c double>",
    "struct<a integer, b smallint, c real, d boolean, e bigint[]>",
    "struct<a decimal(10,2), b decimal(38,10), c decimal(38,38), d decimal(1,0)[]>",
    "struct<a date, b timestamp, c timestamp_ms, d timestamp_us, e timestamp_s>",
    "struct<a bytea, b json, c json[], d bytea[]>",
    "struct<a struct<a struct<a bigint[], b varchar>[], b timestamp>, b boolean[][]>",
    "struct<a struct<a decimal(20,5)[], b real[]>[], b struct<c json, d date>>",
    "struct<a varchar>",
];
const WORDS: [&str; 22] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u",
    "\\ud800",
    "\\u0000",
    "null",
    "true",
    "NaN",
    "\"a\":",
    "{\"a\":",
    "[[",
    "\u{feff}",
    "\"\\u0061\":",
    "é",
    "-",
    "1e",
];

pub struct Json;

impl Target for Json {
    fn corpus(&self) -> Vec<Vec<u8>> {
        let text = include_str!("corpus/json.txt");
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let mut all: Vec<Vec<u8>> = lines.map(|line| line.replacen(" | ", "\n", 1).into_bytes()).collect();
        let nested = |open: &str, times: usize| [COLUMNS[4], "\n{\"b\":", &open.repeat(times)].concat();
        all.extend(
            ["[", "{\"a\":", "[{\"b\":", "\"", "\\u0041"].map(|open| nested(open, 12_000).into_bytes()),
        );
        let many = |ty: &str, item: &str| format!("struct<a {ty}>\n{{\"a\":[{}]}}", [item; 9_000].join(","));
        let wide = "struct<a bigint[], b bigint[], c decimal(38,0), d timestamp, e varchar>[]";
        all.extend(
            [many(wide, "{}"), many("bigint[][]", "[]"), many("varchar[]", "\"\"")].map(String::into_bytes),
        );
        all
    }

    fn input(&self, random: &mut SmallRng) -> Vec<u8> {
        let types = COLUMNS[random.random_range(0..COLUMNS.len())];
        let mut made = || {
            let mut text = String::new();
            write(&types.parse().unwrap(), 0, &mut text, random);
            text.into_bytes()
        };
        let (mut value, other) = (made(), made());
        match random.random_range(0..20) {
            0 => value = (0..random.random_range(0..60)).map(|_| random.random()).collect(),
            1..4 => {}
            _ => mutate(&mut value, &other, &WORDS, random),
        }
        let mut types = types.as_bytes().to_vec();
        if random.random_ratio(1, 50) {
            mutate(&mut types, &other, &["<", ">", "[]", "struct<", "a bigint,", "decimal(38,38)"], random);
            types.retain(|byte| *byte != b'\n');
        }
        types.push(b'\n');
        types.extend(value);
        types
    }

    fn run(&self, input: &[u8]) {
        let Some((columns, value)) = parts(input) else { return };
        let mut decoder = JsonDecoder::new(&columns);
        let outcome = decoder.push(value);
        if let Err(reject) = &outcome {
            assert!(!reject.message.is_empty() && reject.message.len() < 1_000, "{reject:?}");
            assert!(!reject.reason.is_empty());
        }
        decoder.push(b"{}").unwrap();
        assert_eq!(decoder.push(value), outcome, "the same value again");
        let batch = decoder.finish();
        assert_eq!(batch.num_rows(), 3);
        let (mut out, mut ends) = (Vec::new(), Vec::new());
        RowEncoder::new(&batch.schema(), None).unwrap().encode(&batch, 0..3, &mut out, &mut ends);
        let row = |at: usize| &out[if at == 0 { 0 } else { ends[at - 1] }..ends[at]];
        assert_eq!(row(0), row(2), "the same value again");
        if outcome.is_err() {
            assert_eq!(row(0), row(1), "a rejected row is null in every column");
        }
        let raw =
            std::str::from_utf8(value).ok().and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
        let said = raw.map_or(Verdict::Reject, |raw| verdict(&record(&columns), raw.get(), false));
        match (&outcome, said) {
            (Ok(()), Verdict::Reject) => panic!("accepted, and the reference rejects it"),
            (Err(reject), Verdict::Accept) => panic!("rejected, and the reference accepts it: {reject}"),
            _ => {}
        }
        if let (Ok(()), Some(raw)) = (&outcome, raw) {
            // What is JSON in a column need not be a value that serde_json holds: a number beyond f64, half a surrogate.
            let Ok(encoded) = serde_json::from_slice::<&RawValue>(row(0)) else {
                panic!("no JSON was written")
            };
            let (read, written) = (members(raw.get()).unwrap(), members(encoded.get()).unwrap());
            assert_eq!(written.len(), columns.len());
            for (column, (name, written)) in columns.iter().zip(&written) {
                assert_eq!(&column.name, name);
                let read =
                    read.iter().find(|(name, _)| *name == column.name).map_or("null", |(_, raw)| raw.get());
                assert!(
                    equal(&column.ty, read, written.get()),
                    "column {name}: {read} became {}",
                    written.get()
                );
            }
        }
    }

    fn bytes_max(&self, input: &[u8]) -> usize {
        let leaves = parts(input).map_or(1, |(columns, _)| leaves(&record(&columns)));
        // Each column has an entry for each item of an array: `{},` of three bytes is one of every field.
        (1 << 20) + 64 * input.len() * leaves.max(1)
    }
}

fn record(columns: &[Column]) -> Type {
    Type::Struct(columns.iter().map(|column| (column.name.clone(), column.ty.clone())).collect())
}

fn parts(input: &[u8]) -> Option<(Vec<Column>, &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let ty: Type = std::str::from_utf8(&input[..end]).ok()?.parse().ok()?;
    if leaves(&ty) > LEAVES_MAX {
        return None;
    }
    let Type::Struct(fields) = ty else { return None };
    let columns = fields.into_iter().map(|(name, ty)| Column::new(name, ty)).collect();
    Some((columns, &input[end + 1..]))
}

fn leaves(ty: &Type) -> usize {
    match ty {
        Type::Array(item) => 1 + leaves(item),
        Type::Struct(fields) => 1 + fields.iter().map(|(_, ty)| leaves(ty)).sum::<usize>(),
        _ => 1,
    }
}

/// A value of the type, mostly.
fn write(ty: &Type, depth: usize, out: &mut String, random: &mut SmallRng) {
    if depth > 0 && random.random_ratio(1, 15) {
        return out.push_str(["null", "0", "\"x\"", "{}", "[]", "true", "1.5"][random.random_range(0..7)]);
    }
    let number = |random: &mut SmallRng| {
        let bits = random.random_range(0..64);
        (random.random::<i64>() >> bits).to_string()
    };
    match ty {
        Type::BigInt | Type::TimestampUs => out.push_str(&number(random)),
        Type::Integer | Type::TimestampS => out.push_str(&random.random::<i32>().to_string()),
        Type::SmallInt | Type::TimestampMs => out.push_str(&random.random::<i16>().to_string()),
        Type::Double | Type::Real => match random.random_range(0..3) {
            0 => out.push_str(&number(random)),
            1 => out.push_str(
                &f64::from_bits(random.random()).to_string().replace("inf", "1").replace("NaN", "0"),
            ),
            _ => out.push_str(&format!("{}e{}", random.random::<i16>(), random.random_range(-330..320))),
        },
        Type::Boolean => out.push_str(if random.random() { "true" } else { "false" }),
        Type::Decimal { .. } => {
            let quote = if random.random() { "\"" } else { "" };
            let exponent = ["", "e2", "E-2", "e+0"][random.random_range(0..4)];
            out.push_str(&format!(
                "{quote}{}.{}{exponent}{quote}",
                random.random::<i16>(),
                random.random_range(0..1000)
            ));
        }
        Type::Date => {
            out.push_str(["\"2013-01-31\"", "\"0001-01-01\"", "\"2024-02-30\""][random.random_range(0..3)])
        }
        Type::Timestamp => out.push_str(
            [
                "\"2013-01-31T05:00:00Z\"",
                "\"2013-01-31T05:00:00.123456+02:00\"",
                "\"9999-12-31T23:59:59.999999Z\"",
                "\"2013-01-31 05:00\"",
            ][random.random_range(0..4)],
        ),
        Type::Bytea => {
            out.push_str(["\"\"", "\"AAEC/w==\"", "\"AA==\"", "\"AAE\""][random.random_range(0..4)])
        }
        Type::Varchar => {
            out.push_str(
                ["\"\"", "\"text\"", "\"\\u00e4\\n\"", "\"äöü\"", "\"\\ud83d\\ude00\""]
                    [random.random_range(0..5)],
            );
        }
        Type::Json => {
            out.push_str(["{\"a\":[1,2]}", "1e500", "\"\\ud800\"", "[]", "null"][random.random_range(0..5)])
        }
        Type::Array(item) => {
            out.push('[');
            for at in 0..random.random_range(0..4) {
                out.push_str(if at > 0 { "," } else { "" });
                write(item, depth + 1, out, random);
            }
            out.push(']');
        }
        Type::Struct(fields) => {
            out.push('{');
            let mut first = true;
            for (name, ty) in fields {
                if random.random_ratio(1, 8) {
                    continue;
                }
                out.push_str(if first { "" } else { ", " });
                first = false;
                out.push_str(&format!("\"{name}\": "));
                write(ty, depth + 1, out, random);
            }
            if random.random_ratio(1, 3) {
                out.push_str(if first {
                    "\"other\":[{}, 1]"
                } else {
                    ",\"other\":[{\"a\":\"\\ud800\"}, 1e999]"
                });
            }
            out.push('}');
        }
    }
}
