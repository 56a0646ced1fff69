//! What can't run as a stream, found in the parsed SQL, where places are known.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion_sql::sqlparser::ast::{
    DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
    FunctionArguments, GroupByExpr, LimitClause, ObjectName, Query, Select, SetExpr, Spanned, Statement,
    TableFactor, Value, Visit, Visitor,
};
use datafusion_sql::sqlparser::tokenizer::Span;

use super::context::{AGGREGATES, FUNCTIONS, is_deterministic};
use super::depth::{LEVELS_MAX, too_deep};
use super::rewrites::REWRITTEN;
use super::{SqlProblem, functions, nearest_function};

/// Planning looks names up one by one.
pub(in crate::plan) const COLUMNS_MAX: usize = 2_000;

/// Planning copies what is known of the tables before for each that WITH defines.
const WITH_MAX: usize = 256;

/// What one row's text may be made to: a record that asks for more would take the memory of all.
const LENGTH_MAX: usize = 1_000;

/// What a walk over the parsed SQL found.
#[derive(Default)]
pub(super) struct Found {
    /// The tables that are named, but for those that a WITH defines.
    pub reads: Vec<(String, u64, u64)>,
    pub group_by: (u64, u64),
    with: BTreeSet<String>,
    /// Expressions that the one at hand is in.
    levels: usize,
    /// Calls of `repeat` that it is in.
    repeats: usize,
}

pub(super) fn query(statement: &Statement) -> Result<Found, SqlProblem> {
    if !matches!(statement, Statement::Query(_)) {
        return Err(SqlProblem::at(
            statement.span(),
            "a view is a SELECT",
            "say where its rows go under `sinks:`",
        ));
    }
    let mut found = Found::default();
    match statement.visit(&mut found) {
        ControlFlow::Break(problem) => Err(problem),
        ControlFlow::Continue(()) => {
            let with = std::mem::take(&mut found.with);
            found.reads.retain(|(name, ..)| !with.contains(name));
            Ok(found)
        }
    }
}

pub(super) fn expression(expr: &Expr) -> Result<(), SqlProblem> {
    if let ControlFlow::Break(problem) = expr.visit(&mut Found::default()) {
        return Err(problem);
    }
    let mut aggregates = Aggregates;
    match expr.visit(&mut aggregates) {
        ControlFlow::Break(problem) => Err(problem),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// Finds aggregates, which a check can't have.
struct Aggregates;

impl Visitor for Aggregates {
    type Break = SqlProblem;
    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<SqlProblem> {
        match expr {
            Expr::Function(function) if FUNCTIONS.aggregate.contains_key(&lower(&function.name)) => refuse(
                function.name.span(),
                "a check sees one record, so it can't aggregate",
                "aggregate in a view and check there with `having`",
            ),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Visitor for Found {
    type Break = SqlProblem;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<SqlProblem> {
        if let Some(with) = &query.with {
            if with.recursive {
                return refuse(
                    with.span(),
                    "a recursive WITH can't run as a stream",
                    "write each step as a view of its own",
                );
            }
            if self.with.len() + with.cte_tables.len() > WITH_MAX {
                return refuse(
                    with.span(),
                    format!("WITH defines more than {WITH_MAX} tables"),
                    "make them views of their own",
                );
            }
            self.with.extend(with.cte_tables.iter().map(|table| table.alias.name.value.to_lowercase()));
        }
        if let Some(order_by) = &query.order_by {
            return refuse(
                order_by.span(),
                "ORDER BY: a stream has no end, so it can't be sorted",
                "leave it out and sort where the rows are read",
            );
        }
        if let Some(limit) = &query.limit_clause {
            let place = match limit {
                LimitClause::LimitOffset { limit: Some(limit), .. } => limit.span(),
                LimitClause::LimitOffset { offset: Some(offset), .. } => offset.value.span(),
                LimitClause::OffsetCommaLimit { offset, .. } => offset.span(),
                LimitClause::LimitOffset { .. } => query.body.span(),
            };
            return refuse(
                place,
                "LIMIT and OFFSET: which rows come first would depend on timing",
                "leave it out, or take min, max, first or last by window",
            );
        }
        if query.fetch.is_some() || !query.pipe_operators.is_empty() || query.for_clause.is_some() {
            return refuse(
                query.body.span(),
                "FETCH, FOR and pipes can't run as a stream",
                "write a plain SELECT",
            );
        }
        match query.body.as_ref() {
            SetExpr::Select(_) | SetExpr::Query(_) => ControlFlow::Continue(()),
            SetExpr::SetOperation { op, right, .. } => refuse(
                right.span(),
                format!("{op} is not built yet"),
                "make each side a view with a sink and a topic of its own, and read both topics",
            ),
            other => refuse(other.span(), "a view reads a source or another view", "write select … from …"),
        }
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<SqlProblem> {
        if select.distinct.is_some() {
            return refuse(
                select.select_token.0.span,
                "DISTINCT would have to remember every row for ever",
                "group by the columns over a window: select window_start, … from tumble(…) group by window_start, …",
            );
        }
        let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = &select.group_by;
        if !modifiers.is_empty() {
            return no_grouping_sets(match &select.group_by {
                GroupByExpr::Expressions(expressions, _) if !expressions.is_empty() => select.group_by.span(),
                _ => select.select_token.0.span,
            });
        }
        if let GroupByExpr::Expressions(expressions, _) = &select.group_by
            && expressions.iter().any(|expr| matches!(expr, Expr::Tuple(parts) if parts.is_empty()))
        {
            let place = expressions.iter().map(Spanned::span).find(|place| *place != Span::empty());
            return refuse(
                place.unwrap_or(select.select_token.0.span),
                "GROUP BY holds (), which groups by nothing",
                "leave it out, and group by a window and the columns that tell its rows apart",
            );
        }
        if let GroupByExpr::Expressions(expressions, _) = &select.group_by
            && let Some(first) = expressions.first()
            && self.group_by == (0, 0)
        {
            self.group_by = place(first.span());
        }
        if self.group_by == (0, 0) {
            self.group_by = place(select.select_token.0.span);
        }
        if let Some(first) = select.projection.get(COLUMNS_MAX) {
            return refuse(
                first.span(),
                format!("a view has at most {COLUMNS_MAX} columns"),
                "make two views of it",
            );
        }
        if let Some(qualify) = &select.qualify {
            return refuse(
                qualify.span(),
                "QUALIFY is not built yet",
                "aggregate over a tumble window instead",
            );
        }
        let joined = select
            .from
            .iter()
            .flat_map(|from| from.joins.iter().map(|join| join.relation.span()))
            .chain(select.from.iter().skip(1).map(|from| from.relation.span()))
            .next();
        match joined {
            Some(joined) => refuse(
                joined,
                "joins are not built yet",
                "read one source or view; sources that carry all columns need no join",
            ),
            None if select.from.is_empty() => refuse(
                select.select_token.0.span,
                "this reads nothing: there is no FROM",
                "read a source or a view: select … from departures",
            ),
            None => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<SqlProblem> {
        match factor {
            TableFactor::Table { name, args: None, .. } => {
                self.read(name);
                ControlFlow::Continue(())
            }
            TableFactor::Table { name, args: Some(arguments), .. } => match lower(name).as_str() {
                "tumble" => {
                    match arguments.args.first() {
                        Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(table)))) => {
                            self.read(&ObjectName::from(vec![table.clone()]));
                        }
                        Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(subquery @ Expr::Subquery(_)))) => {
                            return refuse(
                                subquery.span(),
                                "tumble reads a source or a view by its name",
                                "give the subquery a view of its own, and name that",
                            );
                        }
                        _ => {}
                    }
                    ControlFlow::Continue(())
                }
                other @ ("hop" | "cumulate" | "session") => refuse(
                    name.span(),
                    format!("{other} windows are not built yet"),
                    "use tumble(table, column, size)",
                ),
                other => refuse(
                    name.span(),
                    format!("there is no table function '{other}'"),
                    "use tumble(table, column, size)",
                ),
            },
            TableFactor::Derived { lateral: false, .. } => ControlFlow::Continue(()),
            other => refuse(
                other.span(),
                "this kind of FROM can't run as a stream",
                "read a source, a view, tumble(…) or a subquery",
            ),
        }
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<SqlProblem> {
        self.levels -= 1;
        self.repeats -= usize::from(repeats(expr));
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<SqlProblem> {
        self.levels += 1;
        if self.levels > LEVELS_MAX {
            return ControlFlow::Break(too_deep(expr.span()));
        }
        self.repeats += usize::from(repeats(expr));
        if self.repeats > 1 {
            return refuse(expr.span(), "a repeat of a repeat", "say in one how many times");
        }
        match expr {
            Expr::Function(function) => check_function(function),
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => refuse(
                expr.span(),
                "a subquery in an expression is a join, and joins are not built yet",
                "write the values out: origin in ('EWR', 'JFK')",
            ),
            Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_) => no_grouping_sets(expr.span()),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Found {
    fn read(&mut self, name: &ObjectName) {
        let (line, column) = place(name.span());
        self.reads.push((table_name(name), line, column));
    }
}

fn check_function(function: &Function) -> ControlFlow<SqlProblem> {
    let name = lower(&function.name);
    let place = function.name.span();
    if name == "descriptor" {
        return ControlFlow::Continue(());
    }
    if function.over.is_some() {
        return refuse(
            place,
            "window functions (OVER) are not built yet",
            "aggregate over a tumble window with group by",
        );
    }
    if !is_deterministic(&name) {
        return refuse(
            place,
            format!("{name}() differs from one run to the next, so a replay would not equal the live run"),
            "use a column of the record, such as its event time",
        );
    }
    if let Some(help) = through_nanoseconds(&name) {
        return refuse(
            place,
            format!("{name} goes through nanoseconds, which hold only the years 1678 to 2261"),
            help,
        );
    }
    let is_aggregate = FUNCTIONS.aggregate.contains_key(&name);
    let is_rewritten = REWRITTEN.iter().any(|(known, _)| *known == name);
    if !is_aggregate && !is_rewritten && !FUNCTIONS.scalar.contains_key(&name) {
        let help = match (functions::instead(&name), nearest_function(&name)) {
            (Some(help), _) => help.to_string(),
            (None, Some(near)) => format!("did you mean '{near}'?"),
            (None, None) => "docs/topology.md lists all functions".to_string(),
        };
        return refuse(place, format!("unknown function '{name}'"), help);
    }
    if matches!(name.as_str(), "repeat" | "lpad" | "rpad") {
        return check_length(function, &name);
    }
    if is_aggregate {
        let canonical = FUNCTIONS.aggregate.get(&name).map(|function| function.name().to_string());
        if !canonical.is_some_and(|name| AGGREGATES.contains(&name.as_str())) {
            return refuse(
                place,
                format!("the aggregate {name} is not built yet"),
                "the aggregates are count, sum, avg, min, max, first and last",
            );
        }
        return check_aggregate(function, &name);
    }
    ControlFlow::Continue(())
}

fn no_grouping_sets(place: Span) -> ControlFlow<SqlProblem> {
    refuse(place, "grouping sets are not built yet", "make one view for each grouping")
}

fn repeats(expr: &Expr) -> bool {
    matches!(expr, Expr::Function(function) if lower(&function.name) == "repeat")
}

/// How long the text becomes stands in the SQL, and is not much.
fn check_length(function: &Function, name: &str) -> ControlFlow<SqlProblem> {
    let FunctionArguments::List(list) = &function.args else { return ControlFlow::Continue(()) };
    let number = |argument: &FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) => match &value.value {
            Value::Number(number, _) => number.parse::<usize>().ok(),
            _ => None,
        },
        _ => None,
    };
    match list.args.get(1) {
        Some(argument) if number(argument).is_none_or(|number| number > LENGTH_MAX) => refuse(
            function.name.span(),
            format!("{name} takes a number up to {LENGTH_MAX}, so that no record can ask for all memory"),
            format!("write the number: {name}(x, 8)"),
        ),
        _ => ControlFlow::Continue(()),
    }
}

fn check_aggregate(function: &Function, name: &str) -> ControlFlow<SqlProblem> {
    let place = function.name.span();
    if !function.within_group.is_empty() {
        return refuse(place, "WITHIN GROUP is not built yet", "use first or last, which go by event time");
    }
    if function.null_treatment.is_some() {
        return refuse(
            place,
            "IGNORE NULLS and RESPECT NULLS are not built yet",
            format!("filter the nulls: {name}(x) filter (where x is not null)"),
        );
    }
    let FunctionArguments::List(list) = &function.args else { return ControlFlow::Continue(()) };
    let distinct = list.duplicate_treatment == Some(DuplicateTreatment::Distinct);
    if distinct && !matches!(name, "count" | "min" | "max") {
        return refuse(
            place,
            format!("{name}(distinct …) is not built yet"),
            "group by the column in one view, over the same window, and aggregate that view",
        );
    }
    let is_star = |argument: &FunctionArg| {
        matches!(
            argument,
            FunctionArg::Unnamed(FunctionArgExpr::Wildcard | FunctionArgExpr::QualifiedWildcard(_))
        )
    };
    if distinct && list.args.iter().any(is_star) {
        return refuse(
            place,
            format!("{name}(distinct *) says no column"),
            "name the one whose values are counted, as in count(distinct x); all rows are count(*)",
        );
    }
    match list.clauses.first() {
        Some(FunctionArgumentClause::OrderBy(_)) => refuse(
            place,
            "ORDER BY inside an aggregate is not built yet",
            "first and last already go by event time",
        ),
        Some(other) => {
            refuse(place, format!("'{other}' inside an aggregate is not built yet"), "leave it out")
        }
        None => ControlFlow::Continue(()),
    }
}

/// Functions that keep time as 64-bit nanoseconds inside, with what to use.
fn through_nanoseconds(name: &str) -> Option<&'static str> {
    match name {
        "to_timestamp" | "to_timestamp_nanos" => {
            Some("use cast(x as timestamp) for text, to_timestamp_micros(x) for integers")
        }
        _ => None,
    }
}

fn refuse(place: Span, message: impl Into<String>, help: impl Into<String>) -> ControlFlow<SqlProblem> {
    ControlFlow::Break(SqlProblem::at(place, message, help))
}

fn place(span: Span) -> (u64, u64) {
    (span.start.line, span.start.column)
}

fn lower(name: &ObjectName) -> String {
    name.to_string().to_lowercase()
}

/// As DataFusion normalizes it: lower case unless quoted.
fn table_name(name: &ObjectName) -> String {
    match name.0.last().and_then(|part| part.as_ident()) {
        Some(ident) if ident.quote_style.is_none() => ident.value.to_lowercase(),
        Some(ident) => ident.value.clone(),
        None => name.to_string(),
    }
}
