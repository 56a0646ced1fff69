//! SQL to chains of steps: DataFusion parses, resolves and types it; what can't run as a stream is refused.
//!
//! Invariant: a view's steps form one chain from one relation; the same SQL over the same relations gives the
//! same chain.
//! Invariant: of DataFusion's rewrites only type coercion runs, and simplification node by node: neither moves
//! a filter nor renames a column.

mod arrays;
mod calendar;
mod chain;
mod context;
mod depth;
mod dialect;
mod division;
mod doubles;
mod formats;
mod functions;
mod intervals;
mod json;
mod mistyped;
mod names;
mod refuse;
mod rewrites;
mod rowwise;
mod samples;
mod texts;
mod tumble;
mod words;
mod zones;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion_common::{DFSchema, DataFusionError, SchemaError};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::{Expr, ExprSchemable};
use datafusion_optimizer::Analyzer;
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion_sql::sqlparser::ast::{self, Statement};
use datafusion_sql::sqlparser::parser::{Parser, ParserError};
use datafusion_sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer, Whitespace};

pub(super) use self::context::type_name;
pub(super) use chain::{Edge, Facts, KeyColumn, Step, columns};
pub(super) use refuse::COLUMNS_MAX;

use self::dialect::Bounded;
use super::error::{nearest, suggest};

/// The columns that a window adds.
pub(super) const WINDOW_EDGES: [&str; 2] = [tumble::WINDOW_START, tumble::WINDOW_END];

/// What is wrong with a piece of SQL, by its own lines and columns, from 1; 0, 0 when the place is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SqlProblem {
    pub line: u64,
    pub column: u64,
    pub message: String,
    pub help: Option<String>,
}

impl SqlProblem {
    fn at(place: Span, message: impl Into<String>, help: impl Into<String>) -> Self {
        let (line, column) = (place.start.line, place.start.column);
        Self { line, column, message: message.into(), help: Some(help.into()) }
    }
}

/// A source or a view, as SQL sees it.
#[derive(Clone, Debug)]
pub(super) struct Relation {
    pub schema: SchemaRef,
    pub facts: Facts,
}

/// All that SQL may read.
pub(super) type Catalog = BTreeMap<String, Relation>;

/// A query that parses and holds nothing that is refused.
pub(super) struct Query {
    statement: Statement,
    /// The tables it names, where it names them: sources, views, or nothing known.
    pub reads: Vec<(String, u64, u64)>,
    /// Where its (first) GROUP BY stands.
    group_by: (u64, u64),
}

/// A view, resolved.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// The relation that its chain starts from.
    pub input: String,
    pub steps: Vec<Step>,
    pub schema: SchemaRef,
    pub facts: Facts,
    /// The columns of the input that the steps read.
    pub read_names: Vec<String>,
    /// Names as they are written, with the columns in other letters that they stand for.
    pub respelled: Vec<(String, String)>,
}

pub(super) fn parse(sql: &str) -> Result<Query, SqlProblem> {
    let tokens = tokens(sql)?;
    let dialect = Bounded::new(tokens.len());
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    let mut statement = parser.parse_statement().map_err(|error| syntax(error, &dialect))?;
    while parser.consume_token(&Token::SemiColon) {}
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(SqlProblem::at(
            rest.span,
            format!("a view is one SELECT, but '{rest}' follows it"),
            "give each SELECT a view of its own",
        ));
    }
    let found = refuse::query(&statement)?;
    rewrites::apply(&mut statement)?;
    Ok(Query { statement, reads: found.reads, group_by: found.group_by })
}

/// Resolves a query against the relations that it may read.
pub(super) fn resolve(query: &Query, catalog: &Catalog) -> Result<View, SqlProblem> {
    let context = context::Context::new(catalog);
    let planner = SqlToRel::new_with_options(&context, options());
    let mut statement = query.statement.clone();
    let planned = loop {
        match planner.sql_statement_to_plan(statement.clone()) {
            Err(error) if names::quote(&mut statement, &error) => {}
            planned => break planned,
        }
    };
    let mistyped = || mistyped::in_query(&statement, &context);
    let explain = |error: DataFusionError| {
        mistyped::unless_of_names(&error, mistyped)
            .unwrap_or_else(|| names::explain_quotes(explain(&error, catalog), &statement))
    };
    let plan = planned.and_then(chain::prepare).map_err(explain)?;
    if let Some(problem) = mistyped::in_samples(&statement, &context) {
        return Err(problem);
    }
    let analyzed = Analyzer::new().execute_and_check(plan, context.config(), |_, _| {}).map_err(explain)?;
    let analyzed = chain::normalize(analyzed, &context).map_err(explain)?;
    let view = chain::view(&analyzed, catalog, &context, query.group_by);
    let respelled = names::respelled(&query.statement, &statement);
    view.map(|view| View { respelled, ..view }).map_err(|problem| match problem.line {
        // Of values in the SQL: they are looked at last.
        0 => mistyped().unwrap_or(problem),
        _ => problem,
    })
}

/// A boolean expression over one relation's columns.
pub(super) fn predicate(
    text: &str,
    name: &str,
    relation: &Relation,
) -> Result<(Expr, Arc<dyn PhysicalExpr>), SqlProblem> {
    let tokens = tokens(text)?;
    let dialect = Bounded::new(tokens.len());
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    let mut parsed = parser.parse_expr().map_err(|error| syntax(error, &dialect))?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(SqlProblem::at(
            rest.span,
            format!("'{rest}' is not part of the expression"),
            "join conditions with and, or",
        ));
    }
    refuse::expression(&parsed)?;
    rewrites::apply(&mut parsed)?;
    let catalog = Catalog::from([(name.to_string(), relation.clone())]);
    let context = context::Context::new(&catalog);
    let schema = DFSchema::try_from_qualified_schema(name, &relation.schema)
        .map_err(|error| explain(&error, &catalog))?;
    let planner = SqlToRel::new_with_options(&context, options());
    let place = ast::Spanned::span(&parsed);
    let planned = loop {
        match planner.sql_to_expr(parsed.clone(), &schema, &mut PlannerContext::new()) {
            Err(error) if names::quote(&mut parsed, &error) => {}
            planned => break planned,
        }
    };
    let explain = |error: DataFusionError| {
        mistyped::unless_of_names(&error, || mistyped::in_expression(&parsed, &schema, &context))
            .unwrap_or_else(|| names::explain_quotes(explain(&error, &catalog), &parsed))
    };
    let expr = planned.map_err(explain)?;
    if let Some(problem) = mistyped::in_sampled(&parsed, &schema, &context) {
        return Err(problem);
    }
    let expr = chain::coerce(expr, &schema, &context).map_err(explain)?;
    match expr.get_type(&schema).map_err(explain)? {
        DataType::Boolean | DataType::Null => {}
        other => {
            return Err(SqlProblem::at(
                place,
                format!("a check must be true or false, but this is {}", context::type_name(&other)),
                "compare it with something: `dep_delay is not null`",
            ));
        }
    }
    let physical = physical(&expr, &schema).map_err(explain)?;
    Ok((expr, physical))
}

/// The compiled form of a resolved expression; columns become indices of the schema.
pub(super) fn physical(expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    create_physical_expr(
        &expr.clone().unalias(),
        schema,
        &ExecutionProps::new(),
        &PhysicalPlanningContext::default(),
    )
}

fn options() -> ParserOptions {
    // 0.1 is a decimal, as in PostgreSQL: 0.05 + 0.10 = 0.15.
    ParserOptions::new()
        .with_collect_spans(true)
        .with_map_string_types_to_utf8view(false)
        .with_parse_float_as_decimal(true)
}

/// Reads tokens, without the word TABLE in `tumble(TABLE departures, …)`, which the parser does not know.
fn tokens(sql: &str) -> Result<Vec<TokenWithSpan>, SqlProblem> {
    let tokens =
        Tokenizer::new(&Bounded::new(0), sql).tokenize_with_location().map_err(|error| SqlProblem {
            line: error.location.line,
            column: error.location.column,
            message: error.message,
            help: None,
        })?;
    let mut kept: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    for token in tokens {
        let after_parenthesis = kept
            .iter()
            .rev()
            .find(|token| !matches!(token.token, Token::Whitespace(Whitespace::Space | Whitespace::Newline)))
            .is_some_and(|token| token.token == Token::LParen);
        let is_table = matches!(&token.token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("table"));
        if !(is_table && after_parenthesis) {
            kept.push(token);
        }
    }
    depth::check(&kept)?;
    Ok(kept)
}

/// The parser tells the place in its text only: "… at Line: 1, Column: 8".
fn syntax(error: ParserError, dialect: &Bounded) -> SqlProblem {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => {
            let (line, column) = dialect.furthest();
            let message = "the SQL does not parse: what stands here is within too much else";
            return SqlProblem {
                line,
                column,
                message: message.to_string(),
                help: Some(depth::HELP.to_string()),
            };
        }
    };
    let place = text.rsplit_once(" at Line: ").and_then(|(message, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((message.to_string(), line.parse().ok()?, column.parse().ok()?))
    });
    let (message, line, column) = place.unwrap_or((text, 0, 0));
    let message = format!("the SQL does not parse: {}", message.replacen("Expected:", "expected", 1));
    SqlProblem { line, column, message, help: None }
}

/// DataFusion's error in our words, with its place.
fn explain(error: &DataFusionError, catalog: &Catalog) -> SqlProblem {
    let diagnostic = error.diagnostic();
    let (line, column) = diagnostic
        .and_then(|diagnostic| diagnostic.span)
        .map_or((0, 0), |span| (span.start.line, span.start.column));
    let mut problem = SqlProblem { line, column, message: String::new(), help: None };
    if let Some((message, help)) = words::of(error) {
        return SqlProblem { message, help, ..problem };
    }
    if let DataFusionError::SchemaError(schema_error, _) = error.find_root() {
        match schema_error.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let mut known: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
                if known.is_empty() {
                    known = catalog
                        .values()
                        .flat_map(|relation| relation.schema.fields())
                        .map(|field| field.name().as_str())
                        .collect();
                }
                problem.message = format!("unknown column '{}'", field.name);
                problem.help = names::ambiguous(&field.name, &known)
                    .or_else(|| suggest(&field.name, known, "the columns are"));
                return problem;
            }
            SchemaError::AmbiguousReference { field } => {
                problem.message = format!("'{}' names more than one column", field.name);
                problem.help = Some("give the columns different names with `as`".to_string());
                return problem;
            }
            SchemaError::DuplicateUnqualifiedField { name }
            | SchemaError::DuplicateQualifiedField { name, .. } => {
                problem.message = format!("two columns are called '{name}'");
                problem.help = Some("give them different names with `as`".to_string());
                return problem;
            }
        }
    }
    if let Some(diagnostic) = diagnostic {
        problem.message = diagnostic.message.clone();
        let notes: Vec<&str> = diagnostic.notes.iter().map(|note| note.message.as_str()).collect();
        let notes = (!notes.is_empty()).then(|| notes.join("; "));
        // The planner knows an aggregate that is not built here.
        let helps = diagnostic.helps.first().map(|help| help.message.replace("ANY_VALUE(", "max("));
        problem.help = helps.or(notes);
        return problem;
    }
    let text = error.find_root().strip_backtrace();
    let text = text.strip_prefix("Error during planning: ").unwrap_or(&text);
    if text.starts_with("Projections require unique expression names") {
        problem.message = "two columns of the SELECT have the same name".to_string();
        problem.help = Some("give them different names with `as`".to_string());
        return problem;
    }
    problem.message = mistyped::bare(error);
    if let Some(interval) = problem.message.strip_prefix("Invalid input syntax for type interval: ") {
        problem.message = format!("{} is no interval", interval.replace('"', "'"));
        problem.help = Some(mistyped::INTERVALS.to_string());
    }
    problem
}

/// The nearest of the function names.
fn nearest_function(name: &str) -> Option<String> {
    let names = context::function_names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    nearest(name, &names).map(str::to_string)
}
