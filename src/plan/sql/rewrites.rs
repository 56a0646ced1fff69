//! Spellings that the planner does not know, made to those that it does, in the parsed SQL.
//!
//! Invariant: what the planner knows stays as it is written: state and fingerprints of old topologies depend on it.

use std::ops::ControlFlow;

use datafusion_sql::sqlparser::ast;
use datafusion_sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, CaseWhen, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, Ident, ObjectName, Spanned, Subscript, TypedString, Value, ValueWithSpan, VisitMut,
    VisitorMut,
};
use datafusion_sql::sqlparser::tokenizer::Span;

use super::texts::{LIKE_PATTERN, backslashes};
use super::{SqlProblem, formats, intervals, zones};

/// Where `time_bucket` begins to count: a Monday, as in TimescaleDB and DuckDB.
const BUCKETS_BEGIN: &str = "2000-01-03T00:00:00";

pub(super) fn apply(sql: &mut impl VisitMut) -> Result<(), SqlProblem> {
    match sql.visit(&mut Rewrites) {
        ControlFlow::Break(problem) => Err(problem),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Rewrites;

impl VisitorMut for Rewrites {
    type Break = SqlProblem;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<SqlProblem> {
        let changed = match expr {
            Expr::Substring { expr: text, substring_from, substring_for, .. } => {
                let from = substring_from.take().map_or_else(|| number("1"), |from| *from);
                let mut arguments = vec![text.as_ref().clone(), from];
                arguments.extend(substring_for.take().map(|length| *length));
                Some(call("substr", text.span(), arguments))
            }
            Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => {
                return match escape(pattern, escape_char) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(problem) => ControlFlow::Break(problem),
                };
            }
            Expr::AtTimeZone { timestamp, time_zone } => {
                let name = if is_instant(timestamp) { zones::LOCAL } else { zones::INSTANT };
                Some(call(
                    name,
                    timestamp.span(),
                    vec![timestamp.as_ref().clone(), time_zone.as_ref().clone()],
                ))
            }
            // With an exponent it is a double, as in DuckDB: a decimal holds no 1e300.
            Expr::Value(ValueWithSpan { value: Value::Number(text, _), span })
                if text.contains(['e', 'E']) =>
            {
                let text = Expr::Value(Value::SingleQuotedString(text.clone()).with_span(*span));
                Some(Expr::Cast {
                    kind: ast::CastKind::Cast,
                    expr: Box::new(text),
                    data_type: ast::DataType::Double(ast::ExactNumberInfo::None),
                    array: false,
                    format: None,
                })
            }
            Expr::Interval(interval) => {
                in_words(interval);
                None
            }
            Expr::CompoundFieldAccess { access_chain, .. } => {
                access_chain.iter_mut().for_each(field_in_quotes);
                None
            }
            Expr::Function(function) => match rewritten(function) {
                Ok(changed) => changed,
                Err(problem) => return ControlFlow::Break(problem),
            },
            _ => None,
        };
        if let Some(changed) = changed {
            *expr = changed;
        }
        ControlFlow::Continue(())
    }
}

/// What an AT TIME ZONE has made, or a timestamp with time zone: an instant, which another one makes a local time.
fn is_instant(expr: &Expr) -> bool {
    let with_zone = |data_type: &ast::DataType| {
        use ast::TimezoneInfo::{Tz, WithTimeZone};
        matches!(data_type, ast::DataType::Timestamp(_, Tz | WithTimeZone))
    };
    match expr {
        Expr::Nested(inner) => is_instant(inner),
        // The rewrites go from within.
        Expr::Function(function) => function.name.to_string() == zones::INSTANT,
        Expr::Cast { data_type, .. } => with_zone(data_type),
        Expr::TypedString(typed) => with_zone(&typed.data_type),
        _ => false,
    }
}

/// Makes `interval 'PT1H'` and `interval '01:00'` to `interval '1 hours'`.
fn in_words(interval: &mut ast::Interval) {
    if let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) = interval.value.as_mut()
        && interval.leading_field.is_none()
        && let Some(words) = intervals::in_words(text)
    {
        *text = words;
    }
}

/// Makes the patterns of PostgreSQL in `to_char(x, 'YYYY-MM-DD')` to those of strftime.
fn format(function: &mut Function) -> Result<(), SqlProblem> {
    const HELP: &str = "write YYYY, MM, DD, HH24, MI, SS, MS, US, Mon, Dy and the like, other letters in double quotes; or strftime's %Y-%m-%d";
    let FunctionArguments::List(list) = &mut function.args else { return Ok(()) };
    match list.args.get_mut(1) {
        Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(ValueWithSpan {
            value: Value::SingleQuotedString(text),
            span,
        })))) => match formats::strftime(text) {
            Ok(format) => *text = format,
            Err(wrong) => {
                return Err(SqlProblem::at(*span, format!("to_char knows no pattern '{wrong}'"), HELP));
            }
        },
        Some(other) => {
            return Err(SqlProblem::at(
                other.span(),
                "to_char's second argument is a format in quotes",
                HELP,
            ));
        }
        None => {}
    }
    Ok(())
}

/// Makes `items[1].qty` to `items[1]['qty']`.
fn field_in_quotes(access: &mut AccessExpr) {
    if let AccessExpr::Dot(Expr::Identifier(name)) = access {
        let field = Value::SingleQuotedString(name.value.clone()).with_span(name.span);
        *access = AccessExpr::Subscript(Subscript::Index { index: Expr::Value(field) });
    }
}

/// Makes any ESCAPE to the backslash, the one that is built.
fn escape(pattern: &mut Box<Expr>, escape: &mut Option<ValueWithSpan>) -> Result<(), SqlProblem> {
    const HELP: &str = "write one character: x like '50!%' escape '!'; escape '' is none";
    let Some(ValueWithSpan { value, span }) = escape.take() else { return Ok(()) };
    let (Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text)) = &value else {
        return Err(SqlProblem::at(span, "ESCAPE takes a character in quotes", HELP));
    };
    let mut characters = text.chars();
    let character = characters.next();
    if characters.next().is_some() {
        return Err(SqlProblem::at(span, format!("ESCAPE takes one character, not {value}"), HELP));
    }
    if character == Some('\\') {
        *escape = Some(ValueWithSpan { value, span });
        return Ok(());
    }
    if let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), span: place }) =
        pattern.as_mut()
    {
        *text = backslashes(text, character).ok_or_else(|| {
            let message = format!("the pattern ends with its escape character, {value}");
            SqlProblem::at(*place, message, "the escape character stands before %, _ or itself")
        })?;
        return Ok(());
    }
    let place = pattern.span();
    let written = std::mem::replace(pattern.as_mut(), number("0"));
    let character = Expr::value(Value::SingleQuotedString(character.map(String::from).unwrap_or_default()));
    **pattern = call(LIKE_PATTERN, place, vec![written, character]);
    Ok(())
}

/// Functions of other systems that are an expression here, with how they are called.
pub(super) const REWRITTEN: [(&str, &str); 4] = [
    ("if", "if(condition, value, otherwise)"),
    ("iff", "iff(condition, value, otherwise)"),
    ("mod", "mod(x, 2)"),
    ("time_bucket", "time_bucket(interval '15 minutes', at), with an origin as a third argument if need be"),
];

fn rewritten(function: &mut Function) -> Result<Option<Expr>, SqlProblem> {
    let name = function.name.to_string().to_lowercase();
    if name == "to_char" {
        format(function)?;
    }
    let Some((name, usage)) = REWRITTEN.iter().find(|(known, _)| *known == name) else { return Ok(None) };
    let place = function.name.span();
    let expression = plain_arguments(function).and_then(|arguments| expression_of(name, place, arguments));
    let wrong =
        || SqlProblem::at(place, format!("{name} is not called in this way"), format!("write {usage}"));
    expression.map(Some).ok_or_else(wrong)
}

/// `None`: so many arguments it does not take.
fn expression_of(name: &str, place: Span, mut arguments: Vec<Expr>) -> Option<Expr> {
    match (name, arguments.len()) {
        ("mod", 2) => {
            let right = Box::new(Expr::Nested(Box::new(arguments.pop()?)));
            let left = Box::new(Expr::Nested(Box::new(arguments.pop()?)));
            Some(Expr::BinaryOp { left, op: BinaryOperator::Modulo, right })
        }
        ("if" | "iff", 3) => {
            let otherwise = arguments.pop()?;
            let result = arguments.pop()?;
            Some(Expr::Case {
                case_token: token(place),
                end_token: token(place),
                operand: None,
                conditions: vec![CaseWhen { condition: arguments.pop()?, result }],
                else_result: Some(Box::new(otherwise)),
            })
        }
        ("time_bucket", 2 | 3) => {
            if arguments.len() == 2 {
                arguments.push(Expr::TypedString(TypedString {
                    data_type: ast::DataType::Timestamp(None, ast::TimezoneInfo::None),
                    value: Value::SingleQuotedString(BUCKETS_BEGIN.to_string()).with_span(place),
                    uses_odbc_syntax: false,
                }));
            }
            Some(call("date_bin", place, arguments))
        }
        _ => None,
    }
}

/// The arguments of a call that has nothing else: no DISTINCT, FILTER or OVER.
fn plain_arguments(function: &Function) -> Option<Vec<Expr>> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let bare = list.duplicate_treatment.is_none()
        && list.clauses.is_empty()
        && function.filter.is_none()
        && function.over.is_none();
    let plain = list.args.iter().map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    });
    plain.collect::<Option<Vec<_>>>().filter(|_| bare)
}

fn number(text: &str) -> Expr {
    Expr::value(Value::Number(text.to_string(), false))
}

fn token(place: Span) -> ast::helpers::attached_token::AttachedToken {
    use datafusion_sql::sqlparser::tokenizer::{Token, TokenWithSpan};
    ast::helpers::attached_token::AttachedToken(TokenWithSpan { token: Token::EOF, span: place })
}

/// The call of a function that stands at a place.
pub(super) fn call(name: &str, place: Span, arguments: Vec<Expr>) -> Expr {
    let plain = |expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr));
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::with_span(place, name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.into_iter().map(plain).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
