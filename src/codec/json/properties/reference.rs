//! What a value is in a column, said as plainly as can be: the reference for the decoder and the encoder.

use crate::codec::instant::{parse_date, parse_timestamp, write_timestamp};
use crate::codec::reason;
use crate::record::Type;

/// A JSON value with its spelling.
#[derive(Clone, Debug)]
pub(super) enum Tree {
    Null,
    Boolean(bool),
    Number(String),
    /// The text, and whether each of its characters is escaped.
    Text(String, bool),
    Array(Vec<Tree>),
    Object(Vec<(String, bool, Tree)>),
}

impl Tree {
    pub(super) fn text(&self, space: &str) -> String {
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

pub(super) fn object(
    fields: &[(String, Type)],
    members: &[(String, bool, Tree)],
) -> Result<String, &'static str> {
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
