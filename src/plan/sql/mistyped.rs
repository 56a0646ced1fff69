//! Finds the expression whose types do not fit, where DataFusion says neither where it stands nor, in a user's words,
//! what is wrong with it.
//!
//! Every expression is planned alone, inner ones first: the first that does not plan is the one.

use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use datafusion_common::{DFSchema, DataFusionError};
use datafusion_expr::ExprSchemable;
use datafusion_sql::planner::{PlannerContext, SqlToRel};
use datafusion_sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, Query, SelectItem, SetExpr,
    Spanned, Statement, Value, Visit, Visitor, WildcardAdditionalOptions, With,
};
use datafusion_sql::sqlparser::parser::Parser;
use datafusion_sql::sqlparser::tokenizer::Span;

use super::arrays::no_field;
use super::context::{Context, type_name};
use super::dialect::Bounded;
use super::{SqlProblem, chain, options, samples, words};

/// What may help, the likelier first.
const CASTS: [&str; 4] = ["double", "varchar", "timestamp", "bigint"];

/// How an interval is written.
pub(super) const INTERVALS: &str =
    "write a number and a unit, interval '1 hour'; interval 'PT1H' and interval '01:00:00' are read, too";

/// What is found, where the error can be of types: DataFusion says itself which column is not there.
pub(super) fn unless_of_names(
    error: &DataFusionError,
    find: impl FnOnce() -> Option<SqlProblem>,
) -> Option<SqlProblem> {
    if is_of_names(error) { None } else { find() }
}

pub(super) fn in_query(statement: &Statement, context: &Context<'_>) -> Option<SqlProblem> {
    let Statement::Query(outermost) = statement else { return None };
    let mut search = Queries { context, judge: Judge::Types, with: outermost.with.as_ref(), known: 0 };
    statement.visit(&mut search).break_value()
}

/// What would fail for every record: functions whose constants do not do. The SQL is known to plan.
pub(super) fn in_samples(statement: &Statement, context: &Context<'_>) -> Option<SqlProblem> {
    let Statement::Query(outermost) = statement else { return None };
    let mut search = Queries { context, judge: Judge::Samples, with: outermost.with.as_ref(), known: 0 };
    statement.visit(&mut search).break_value()
}

pub(super) fn in_sampled(expr: &Expr, schema: &DFSchema, context: &Context<'_>) -> Option<SqlProblem> {
    expr.visit(&mut Expressions { schema, judge: Judge::Samples, context }).break_value()
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judge {
    Types,
    Samples,
}

pub(super) fn in_expression(expr: &Expr, schema: &DFSchema, context: &Context<'_>) -> Option<SqlProblem> {
    expr.visit(&mut Expressions { schema, judge: Judge::Types, context }).break_value()
}

/// A column that only the SELECT names seems to be missing, too.
fn is_of_names(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::SchemaError(..))
}

/// Walks over the queries, those within others first.
struct Queries<'a> {
    context: &'a Context<'a>,
    judge: Judge,
    with: Option<&'a With>,
    /// So many of WITH's tables stand before the query at hand.
    known: usize,
}

impl Visitor for Queries<'_> {
    type Break = SqlProblem;

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<SqlProblem> {
        if let SetExpr::Select(select) = query.body.as_ref()
            && let Some(schema) = self.rows_before(query)
        {
            let mut search = Expressions { schema: &schema, judge: self.judge, context: self.context };
            select.projection.visit(&mut search)?;
            select.selection.visit(&mut search)?;
            select.group_by.visit(&mut search)?;
            select.having.visit(&mut search)?;
        }
        let next = self.with.and_then(|with| with.cte_tables.get(self.known));
        if next.is_some_and(|cte| std::ptr::eq(query, cte.query.as_ref())) {
            self.known += 1;
        }
        ControlFlow::Continue(())
    }
}

impl Queries<'_> {
    /// What the query's FROM yields.
    fn rows_before(&self, query: &Query) -> Option<DFSchema> {
        let mut rows = query.clone();
        if let Some(with) = self.with {
            let known = &with.cte_tables[..self.known];
            let own = rows.with.take().map(|with| with.cte_tables).unwrap_or_default();
            let own = own.into_iter().filter(|cte| !known.contains(cte));
            let tables: Vec<_> = known.iter().cloned().chain(own).collect();
            rows.with = (!tables.is_empty()).then(|| With { cte_tables: tables, ..with.clone() });
        }
        let SetExpr::Select(select) = rows.body.as_mut() else { return None };
        select.projection = vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())];
        select.distinct = None;
        select.selection = None;
        select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
        select.having = None;
        let planner = SqlToRel::new_with_options(self.context, options());
        let plan = planner.sql_statement_to_plan(Statement::Query(Box::new(rows))).ok()?;
        Some(plan.schema().as_ref().clone())
    }
}

/// Walks over the expressions of one query, those within others first.
struct Expressions<'a> {
    schema: &'a DFSchema,
    judge: Judge,
    context: &'a Context<'a>,
}

impl Visitor for Expressions<'_> {
    type Break = SqlProblem;

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<SqlProblem> {
        if self.judge == Judge::Samples {
            return match self.fails_always(expr) {
                Some(problem) => ControlFlow::Break(problem),
                None => ControlFlow::Continue(()),
            };
        }
        match self.type_of(expr) {
            Err(error) if !is_of_names(&error) => ControlFlow::Break(self.explain(expr, &error)),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Expressions<'_> {
    fn type_of(&self, expr: &Expr) -> Result<DataType, DataFusionError> {
        self.planned(expr)?.get_type(self.schema)
    }

    fn planned(&self, expr: &Expr) -> Result<datafusion_expr::Expr, DataFusionError> {
        let planner = SqlToRel::new_with_options(self.context, options());
        let planned = planner.sql_to_expr(expr.clone(), self.schema, &mut PlannerContext::new())?;
        chain::coerce(planned, self.schema, self.context)
    }

    fn fails_always(&self, expr: &Expr) -> Option<SqlProblem> {
        if !matches!(expr, Expr::Function(_) | Expr::Extract { .. } | Expr::Cast { .. }) {
            return None;
        }
        // An aggregate, or a name that another part of the query gives.
        let planned = self.planned(expr).ok()?;
        let message = samples::fails_always(&planned, self.schema)?;
        Some(problem(expr.span(), message, None))
    }

    fn explain(&self, expr: &Expr, error: &DataFusionError) -> SqlProblem {
        if let Some((message, help)) = words::of(error) {
            return problem(expr.span(), message, help);
        }
        if let Expr::CompoundIdentifier(names) = expr
            && let Some((message, help)) = self.lacks_field(names)
        {
            return problem(expr.span(), message, help);
        }
        match expr {
            Expr::Interval(interval) => {
                SqlProblem::at(interval.value.span(), format!("{} is no interval", interval.value), INTERVALS)
            }
            Expr::TypedString(typed) => {
                let name = typed.data_type.to_string().to_lowercase();
                problem(typed.value.span, format!("{} is no {name}", typed.value), None)
            }
            Expr::Cast { data_type, .. }
                if matches!(error.find_root(), DataFusionError::NotImplemented(_)) =>
            {
                SqlProblem::at(
                    expr.span(),
                    format!("there is no type '{data_type}'"),
                    "the types are bigint, integer, smallint, double, real, boolean, varchar, decimal(p,s), date, \
                     timestamp, bytea",
                )
            }
            Expr::Function(function) => {
                let types = self.types(expr).join(", ");
                let message = format!("{} does not take ({types})", function.name);
                problem(function.name.span(), message, self.cast(expr))
            }
            Expr::BinaryOp { op, .. } => self.explain_operands(expr, &op.to_string().to_lowercase()),
            Expr::UnaryOp { op, .. } => self.explain_operands(expr, &op.to_string().to_lowercase()),
            Expr::Between { .. } => self.explain_operands(expr, "between"),
            Expr::InList { .. } => self.explain_operands(expr, "in"),
            Expr::Like { .. } | Expr::ILike { .. } => self.explain_operands(expr, "like"),
            _ => problem(expr.span(), bare(error), None),
        }
    }

    fn explain_operands(&self, expr: &Expr, name: &str) -> SqlProblem {
        let types = self.types(expr);
        let mut copy = expr.clone();
        let operands = operands(&mut copy);
        let other = types.iter().find(|name| *name != "varchar");
        let text = operands.iter().find_map(|operand| match operand {
            Expr::Value(value) if matches!(value.value, Value::SingleQuotedString(_)) => Some(value),
            _ => None,
        });
        if let (Some(other), Some(text)) = (other, text) {
            return problem(text.span, format!("{text} is no {other}"), None);
        }
        let message = format!("'{name}' does not take {}", types.join(" and "));
        problem(expr.span(), message, self.cast(expr))
    }

    /// Of the operands or arguments.
    fn types(&self, expr: &Expr) -> Vec<String> {
        let mut copy = expr.clone();
        let types = operands(&mut copy).into_iter().map(|operand| self.type_of(operand));
        types.map(|known| known.map_or("?".to_string(), |known| type_name(&known))).collect()
    }

    /// Of `column.field.field`, that what stands before the last field known has no such field.
    fn lacks_field(&self, names: &[Ident]) -> Option<(String, Option<String>)> {
        let before = |count: usize| match &names[..count] {
            [name] => Expr::Identifier(name.clone()),
            several => Expr::CompoundIdentifier(several.to_vec()),
        };
        let known = |count: usize| self.type_of(&before(count)).ok().map(|known| (count, known));
        let (count, known) = (1..names.len()).rev().find_map(known)?;
        words::of(&no_field(&names[count].value, &known))
    }

    /// A cast of one of them with which it would do.
    fn cast(&self, expr: &Expr) -> Option<String> {
        let count = operands(&mut expr.clone()).len();
        let casts = (0..count).flat_map(|number| CASTS.map(|to| (number, to)));
        casts.into_iter().find_map(|(number, to)| {
            let mut changed = expr.clone();
            let operand = operands(&mut changed).into_iter().nth(number)?;
            let from = self.type_of(operand).ok()?;
            // True is 1, and not 1.0.
            let to = if from == DataType::Boolean && to == "double" { "bigint" } else { to };
            let text = format!("cast({operand} as {to})");
            *operand = Parser::new(&Bounded::new(0)).try_with_sql(&text).ok()?.parse_expr().ok()?;
            self.type_of(&changed).is_ok().then(|| format!("perhaps {text}"))
        })
    }
}

fn problem(place: Span, message: String, help: Option<String>) -> SqlProblem {
    SqlProblem { line: place.start.line, column: place.start.column, message, help }
}

/// DataFusion's first line, without the names of its parts.
pub(super) fn bare(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let mut text = text.lines().next().unwrap_or_default();
    for part in
        ["Arrow error: ", "Cast error: ", "Parser error: ", "Error during planning: ", "Execution error: "]
    {
        text = text.strip_prefix(part).unwrap_or(text);
    }
    text.to_string()
}

/// What an operator, or a function, works on.
fn operands(expr: &mut Expr) -> Vec<&mut Expr> {
    match expr {
        Expr::BinaryOp { left, right, .. } => vec![left, right],
        Expr::UnaryOp { expr, .. } => vec![expr],
        Expr::Between { expr, low, high, .. } => vec![expr, low, high],
        Expr::InList { expr, list, .. } => std::iter::once(expr.as_mut()).chain(list).collect(),
        Expr::Like { expr, pattern, .. } | Expr::ILike { expr, pattern, .. } => vec![expr, pattern],
        Expr::Function(function) => match &mut function.args {
            FunctionArguments::List(list) => list
                .args
                .iter_mut()
                .filter_map(|argument| match argument {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}
