//! JSON in text: `->` and `->>` as PostgreSQL has them, `json_value` and its kin of the SQL standard, and the names
//! that other systems give the same.
//!
//! Invariant: text that is no JSON fails the row; a path that leads nowhere is null, and so is JSON's null.

mod path;

use std::borrow::Cow;
use std::sync::Arc;

use datafusion_common::{DFSchema, DataFusionError, Result, exec_datafusion_err, exec_err};
use datafusion_expr::expr::ScalarFunction;
use datafusion_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion_expr::{Expr, ExprSchemable, ScalarUDF};
use datafusion_sql::sqlparser::ast::BinaryOperator;

use self::path::Step;
use super::context::FUNCTIONS;
use super::rowwise::{Apply, Argument, Made, Returns, Rowwise, Takes};
use super::words::problem;
use crate::record::is_json;

/// What is made of the value that is found.
type Read = fn(&str) -> Result<Option<Made>>;

/// How a function is told where the value is.
#[derive(Clone, Copy)]
enum Path {
    /// Keys and indices, an argument each.
    Steps,
    /// `$.a[0]`.
    Standard,
    /// `{a,0}`.
    Braces,
}

const STEPS: Rowwise = Rowwise {
    name: "json_get",
    aliases: &[],
    takes: &[Takes::Text, Takes::Either],
    optional: 0,
    repeats: true,
    returns: Returns::Json,
    apply: || get(Path::Steps, json),
};

const STANDARD: Rowwise = Rowwise {
    name: "json_query",
    takes: &[Takes::Text, Takes::Text],
    repeats: false,
    apply: || get(Path::Standard, nested),
    ..STEPS
};

const WHOLE: Rowwise = Rowwise {
    name: "json_typeof",
    takes: &[Takes::Text],
    repeats: false,
    returns: Returns::Text,
    apply: || get(Path::Steps, kind),
    ..STEPS
};

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    let by_steps: [Rowwise; 8] = [
        Rowwise { aliases: &["json_get_json", "json_extract_path"], ..STEPS },
        Rowwise {
            name: "json_as_text",
            aliases: &["json_extract_path_text"],
            returns: Returns::Text,
            apply: || get(Path::Steps, text),
            ..STEPS
        },
        Rowwise { name: "json_get_str", returns: Returns::Text, apply: || get(Path::Steps, string), ..STEPS },
        Rowwise {
            name: "json_get_int",
            returns: Returns::Integer,
            apply: || get(Path::Steps, integer),
            ..STEPS
        },
        Rowwise {
            name: "json_get_float",
            returns: Returns::Double,
            apply: || get(Path::Steps, double),
            ..STEPS
        },
        Rowwise {
            name: "json_get_bool",
            returns: Returns::Boolean,
            apply: || get(Path::Steps, boolean),
            ..STEPS
        },
        Rowwise { name: "json_contains", returns: Returns::Boolean, apply: || exists(Path::Steps), ..STEPS },
        Rowwise {
            name: "json_length",
            aliases: &["json_array_length"],
            optional: 1,
            returns: Returns::Integer,
            apply: || get(Path::Steps, length),
            ..STEPS
        },
    ];
    let by_path = [
        Rowwise {
            name: "json_value",
            aliases: &["json_extract_scalar"],
            returns: Returns::Text,
            apply: || get(Path::Standard, scalar),
            ..STANDARD
        },
        STANDARD,
        Rowwise { name: "json_extract", apply: || get(Path::Standard, json), ..STANDARD },
        Rowwise {
            name: "json_extract_string",
            aliases: &["get_json_object", "extractjsonfield"],
            returns: Returns::Text,
            apply: || get(Path::Standard, text),
            ..STANDARD
        },
        Rowwise {
            name: "json_exists",
            returns: Returns::Boolean,
            apply: || exists(Path::Standard),
            ..STANDARD
        },
    ];
    let whole = [
        WHOLE,
        Rowwise {
            name: "json_object_keys",
            aliases: &["json_keys"],
            returns: Returns::Texts,
            apply: || get(Path::Steps, keys),
            ..WHOLE
        },
        Rowwise { name: "parse_json", returns: Returns::Json, apply: || get(Path::Steps, json), ..WHOLE },
        Rowwise { name: "json_valid", returns: Returns::Boolean, apply: valid, ..WHOLE },
    ];
    by_steps.into_iter().chain(by_path).chain(whole).map(Rowwise::function).collect()
}

/// What `#>` and `#>>` are.
pub(super) fn operators() -> Vec<Arc<ScalarUDF>> {
    let json = Rowwise { name: "_json_path", apply: || get(Path::Braces, json), ..STANDARD };
    let text = Rowwise {
        name: "_json_path_text",
        returns: Returns::Text,
        apply: || get(Path::Braces, text),
        ..STANDARD
    };
    vec![json.function(), text.function()]
}

/// Finds the value that the arguments behind the first one name, and reads it.
fn get(kind: Path, read: Read) -> Apply {
    Box::new(move |arguments| match find(kind, arguments)? {
        Some(found) if found != "null" => read(found),
        _ => Ok(None),
    })
}

fn exists(kind: Path) -> Apply {
    Box::new(move |arguments| Ok(Some(Made::Boolean(find(kind, arguments)?.is_some()))))
}

fn valid() -> Apply {
    Box::new(|arguments| {
        let text = arguments.first().map(Argument::text).unwrap_or_default();
        Ok(Some(Made::Boolean(path::document(text).is_ok())))
    })
}

fn find<'a>(kind: Path, arguments: &[Argument<'a>]) -> Result<Option<&'a str>> {
    let [document, steps @ ..] = arguments else { return exec_err!("JSON, and where to look in it") };
    let (document, written) = (document.text(), steps.first().map(Argument::text).unwrap_or_default());
    let found = match kind {
        Path::Steps => {
            let steps: Vec<Step<'_>> = steps.iter().map(step).collect();
            path::at(document, &steps)
        }
        Path::Standard => match path::parse(written) {
            Some(steps) => path::at(document, &steps),
            None => return exec_err!("'{written}' is no path: write '$.customer.name' or '$.items[0]'"),
        },
        Path::Braces => match path::parse_braces(written) {
            Some(keys) => at_keys(document, &keys),
            None => return exec_err!("'{written}' is no path: write '{{customer,name}}'"),
        },
    };
    found.map_err(|error| no_json(document, &error))
}

fn step<'a>(argument: &Argument<'a>) -> Step<'a> {
    match argument {
        Argument::Integer(index) => Step::Index(*index),
        other => Step::Key(Cow::Borrowed(other.text())),
    }
}

fn at_keys<'a>(document: &'a str, keys: &[&str]) -> serde_json::Result<Option<&'a str>> {
    let mut at = path::document(document)?;
    for key in keys {
        let index = key.parse().ok().filter(|_| at.starts_with('['));
        let step = index.map_or(Step::Key(Cow::Borrowed(*key)), Step::Index);
        match path::at(at, &[step])? {
            Some(found) => at = found,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

fn no_json(text: &str, error: &serde_json::Error) -> DataFusionError {
    let shown: String = text.chars().take(60).collect();
    exec_datafusion_err!("'{shown}' is no JSON: {error}")
}

fn json(value: &str) -> Result<Option<Made>> {
    Ok(Some(Made::Text(value.to_string())))
}

/// An object or an array; a scalar is nothing that is nested.
fn nested(value: &str) -> Result<Option<Made>> {
    if value.starts_with(['{', '[']) { json(value) } else { Ok(None) }
}

fn text(value: &str) -> Result<Option<Made>> {
    Ok(path::as_text(value).map_err(|error| no_json(value, &error))?.map(Made::Text))
}

fn scalar(value: &str) -> Result<Option<Made>> {
    if value.starts_with(['{', '[']) { Ok(None) } else { text(value) }
}

fn string(value: &str) -> Result<Option<Made>> {
    if value.starts_with('"') { text(value) } else { Ok(None) }
}

/// Also 7.0, which is whole; a string is no number.
fn integer(value: &str) -> Result<Option<Made>> {
    let whole = |value: f64| (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64);
    let read = value.parse().ok().or_else(|| number(value).and_then(whole));
    Ok(read.map(Made::Integer))
}

fn double(value: &str) -> Result<Option<Made>> {
    Ok(number(value).map(Made::Double))
}

fn number(value: &str) -> Option<f64> {
    let begins = value.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    value.parse().ok().filter(|value: &f64| begins && value.is_finite())
}

fn boolean(value: &str) -> Result<Option<Made>> {
    Ok(value.parse().ok().map(Made::Boolean))
}

fn length(value: &str) -> Result<Option<Made>> {
    let length = path::length(value).map_err(|error| no_json(value, &error))?;
    Ok(length.and_then(|length| i64::try_from(length).ok()).map(Made::Integer))
}

fn keys(value: &str) -> Result<Option<Made>> {
    if !value.starts_with('{') {
        return Ok(None);
    }
    path::keys(value).map(|keys| Some(Made::Texts(keys))).map_err(|error| no_json(value, &error))
}

fn kind(value: &str) -> Result<Option<Made>> {
    let kind = match value.as_bytes().first() {
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "boolean",
        _ => "number",
    };
    Ok(Some(Made::Text(kind.to_string())))
}

/// Plans JSON's operators.
#[derive(Debug)]
pub(super) struct JsonOperators;

impl ExprPlanner for JsonOperators {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let name = match raw.op {
            BinaryOperator::Arrow => "json_get",
            BinaryOperator::LongArrow => "json_as_text",
            BinaryOperator::HashArrow => "_json_path",
            BinaryOperator::HashLongArrow => "_json_path_text",
            BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
                if is_made_json(&raw.left, schema) || is_made_json(&raw.right, schema) =>
            {
                return Err(problem(
                    "JSON does not compare: its strings are in quotes",
                    "take the text: x->>'field' = 'a'; cast(x->>'field' as bigint) = 1",
                ));
            }
            _ => return Ok(PlannerResult::Original(raw)),
        };
        let Some(function) = FUNCTIONS.planned(name) else { return Ok(PlannerResult::Original(raw)) };
        let call = ScalarFunction::new_udf(function, vec![raw.left, raw.right]);
        Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
    }
}

/// Whether it is JSON that a function has taken out, whose strings are in quotes: equal to no text that is meant.
fn is_made_json(expr: &Expr, schema: &DFSchema) -> bool {
    matches!(expr, Expr::ScalarFunction(_)) && expr.to_field(schema).is_ok_and(|(_, field)| is_json(&field))
}
