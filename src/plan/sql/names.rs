//! Finds the column that an unquoted name means where the letters differ in case only: SQL makes `orderId` to `orderid`,
//! and JSON's columns are mostly called `orderId`.
//!
//! Invariant: SQL that plans as it is written is never changed; a name is quoted only where it names no column, and
//! one column alone has its letters.

use std::ops::ControlFlow;

use arrow::datatypes::{DataType, Field, Fields};
use datafusion_common::{DataFusionError, Result, SchemaError, TableReference};
use datafusion_expr::planner::{ExprPlanner, PlannerResult};
use datafusion_functions::core::planner::CoreFunctionPlanner;
use datafusion_sql::sqlparser::ast::{Expr, Ident, Query, Visit, VisitMut, Visitor, VisitorMut};

use super::SqlProblem;

/// The one of the names that has the letters of `wanted`, in whatever case.
pub(super) fn same_letters<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut found = names.into_iter().filter(|name| name.to_lowercase() == wanted.to_lowercase());
    found.next().filter(|_| found.next().is_none())
}

/// What helps where several columns have the letters of a name.
pub(super) fn ambiguous(wanted: &str, names: &[&str]) -> Option<String> {
    let same: Vec<String> = names
        .iter()
        .filter(|name| name.to_lowercase() == wanted.to_lowercase())
        .map(|name| format!("\"{name}\""))
        .collect();
    let several =
        format!("{} have its letters: write the one that is meant in double quotes", same.join(" and "));
    (same.len() > 1).then_some(several)
}

/// Quotes the names, in the SELECT where the error arose, that mean a column in other letters. `false`: there are none.
pub(super) fn quote(sql: &mut impl VisitMut, error: &DataFusionError) -> bool {
    let DataFusionError::SchemaError(schema_error, _) = error.find_root() else { return false };
    let SchemaError::FieldNotFound { field, valid_fields } = schema_error.as_ref() else { return false };
    let known: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
    if same_letters(&field.name, known.iter().copied()).is_none() {
        return false;
    }
    let place = error
        .diagnostic()
        .and_then(|diagnostic| diagnostic.span)
        .map(|span| (span.start.line, span.start.column));
    let mut search = Search { place, name: &field.name, level: Level::default(), found: None };
    let _: ControlFlow<()> = sql.visit(&mut search);
    let Some(query) = search.found else { return false };
    let mut quotes = Quotes { query, known: &known, level: Level::default(), changed: false };
    let _: ControlFlow<()> = sql.visit(&mut quotes);
    quotes.changed
}

/// The columns whose names [`quote`] has put for those that were written, with the latter, each once.
pub(super) fn respelled(written: &impl Visit, quoted: &impl Visit) -> Vec<(String, String)> {
    let names = Names::of(written).into_iter().zip(Names::of(quoted));
    let mut changed: Vec<(String, String)> = names
        .filter(|(before, after)| before.quote_style != after.quote_style)
        .map(|(before, after)| (before.value, after.value))
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

/// All names in expressions, in their order.
struct Names(Vec<Ident>);

impl Names {
    fn of(sql: &impl Visit) -> Vec<Ident> {
        let mut names = Self(Vec::new());
        let _: ControlFlow<()> = sql.visit(&mut names);
        names.0
    }
}

impl Visitor for Names {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(name) => self.0.push(name.clone()),
            Expr::CompoundIdentifier(names) => self.0.extend(names.iter().cloned()),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Which query a walk is in, by its number in the order of their beginnings; 0: in none.
#[derive(Default)]
struct Level {
    within: Vec<usize>,
    queries: usize,
}

impl Level {
    fn enter(&mut self) {
        self.queries += 1;
        self.within.push(self.queries);
    }

    fn now(&self) -> usize {
        self.within.last().copied().unwrap_or_default()
    }
}

/// Finds the query that the name at a place stands in.
struct Search<'a> {
    place: Option<(u64, u64)>,
    name: &'a str,
    level: Level,
    found: Option<usize>,
}

impl VisitorMut for Search<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.level.enter();
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.level.within.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        for name in identifiers(expr) {
            let at = (name.span.start.line, name.span.start.column);
            if name.value.to_lowercase() == self.name && self.place.is_none_or(|place| place == at) {
                self.found = Some(self.level.now());
                return ControlFlow::Break(());
            }
        }
        // A qualified name begins with its table.
        if let (Expr::CompoundIdentifier(names), Some(place)) = (expr, self.place)
            && names.first().is_some_and(|name| (name.span.start.line, name.span.start.column) == place)
        {
            self.found = Some(self.level.now());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Quotes a query's names.
struct Quotes<'a> {
    query: usize,
    known: &'a [&'a str],
    level: Level,
    changed: bool,
}

impl VisitorMut for Quotes<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.level.enter();
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.level.within.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.level.now() != self.query {
            return ControlFlow::Continue(());
        }
        for name in identifiers(expr) {
            let lower = name.value.to_lowercase();
            if name.quote_style.is_some() || self.known.contains(&lower.as_str()) {
                // What follows a column are names of fields.
                break;
            }
            if let Some(meant) = same_letters(&lower, self.known.iter().copied()) {
                *name = Ident { value: meant.to_string(), quote_style: Some('"'), span: name.span };
                self.changed = true;
                break;
            }
        }
        ControlFlow::Continue(())
    }
}

/// Says of an unknown column whose name stands in double quotes that text stands in single ones.
pub(super) fn explain_quotes(mut problem: SqlProblem, sql: &impl Visit) -> SqlProblem {
    let name = problem.message.strip_prefix("unknown column '").and_then(|rest| rest.strip_suffix('\''));
    if let Some(name) = name
        && sql.visit(&mut Quoted((problem.line, problem.column))).is_break()
    {
        let columns = problem.help.take().unwrap_or_default();
        let help = format!("text stands in single quotes: '{name}'; double quotes are for names: {columns}");
        problem.help = Some(help);
    }
    problem
}

/// Finds the name in double quotes that stands at a place.
struct Quoted((u64, u64));

impl Visitor for Quoted {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(name)
                if name.quote_style == Some('"')
                    && (name.span.start.line, name.span.start.column) == self.0 =>
            {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

fn identifiers(expr: &mut Expr) -> &mut [Ident] {
    match expr {
        Expr::Identifier(name) => std::slice::from_mut(name),
        Expr::CompoundIdentifier(names) => names,
        _ => &mut [],
    }
}

/// Plans `payload.userId`, whose names are lower case by now, as the field that has these letters.
#[derive(Debug)]
pub(super) struct FieldNames;

impl ExprPlanner for FieldNames {
    fn plan_compound_identifier(
        &self,
        field: &Field,
        qualifier: Option<&TableReference>,
        nested_names: &[String],
    ) -> Result<PlannerResult<Vec<datafusion_expr::Expr>>> {
        let mut inner = field.data_type();
        let mut names = Vec::with_capacity(nested_names.len());
        for name in nested_names {
            let DataType::Struct(fields) = inner else { return Ok(PlannerResult::Original(Vec::new())) };
            let Some(field) = field_of(fields, name) else { return Ok(PlannerResult::Original(Vec::new())) };
            names.push(field.name().clone());
            inner = field.data_type();
        }
        CoreFunctionPlanner::default().plan_compound_identifier(field, qualifier, &names)
    }
}

/// The struct's field of that name, or of those letters.
pub(super) fn field_of<'a>(fields: &'a Fields, name: &str) -> Option<&'a Field> {
    let by_name = |wanted: &str| fields.iter().find(|field| field.name() == wanted).map(AsRef::as_ref);
    by_name(name).or_else(|| by_name(same_letters(name, fields.iter().map(|field| field.name().as_str()))?))
}
