//! `tumble(table, column, size [, offset])` in FROM: gives each row the window that its time falls into.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion_common::{
    DFSchema, DFSchemaRef, DataFusionError, Diagnostic, Result, ScalarValue, Span, TableReference,
};
use datafusion_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion_sql::sqlparser::ast::{
    self, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, Spanned, TableFactor,
};
use datafusion_sql::sqlparser::tokenizer;

use super::context::{column_names, type_name};
use super::names::same_letters;
use crate::plan::error::suggest;
use crate::record::Micros;

pub(super) const WINDOW_START: &str = "window_start";
pub(super) const WINDOW_END: &str = "window_end";

const USAGE: &str =
    "write tumble(departures, sched_dep, interval '1 hour'), with an offset as a fourth argument if need be";

/// The node that `tumble` becomes.
#[derive(Clone, Debug)]
pub(super) struct Tumble {
    pub input: LogicalPlan,
    pub time_column: usize,
    pub size: Micros,
    /// From 0 to below the size.
    pub offset: Micros,
    schema: DFSchemaRef,
}

impl Tumble {
    fn settings(&self) -> (usize, Micros, Micros) {
        (self.time_column, self.size, self.offset)
    }
}

impl PartialEq for Tumble {
    fn eq(&self, other: &Self) -> bool {
        self.settings() == other.settings() && self.input == other.input
    }
}

impl Eq for Tumble {}

impl PartialOrd for Tumble {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.settings().cmp(&other.settings()) {
            Ordering::Equal => self.input.partial_cmp(&other.input),
            order => Some(order),
        }
    }
}

impl Hash for Tumble {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.settings().hash(state);
        self.input.hash(state);
    }
}

impl UserDefinedLogicalNodeCore for Tumble {
    fn name(&self) -> &str {
        "Tumble"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Tumble: column {}, size {} µs, offset {} µs", self.time_column, self.size, self.offset)
    }
    fn with_exprs_and_inputs(&self, _: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let [input] = <[LogicalPlan; 1]>::try_from(inputs)
            .map_err(|_| DataFusionError::Internal("tumble has one input".to_string()))?;
        let schema = windowed(input.schema())?;
        Ok(Self { input, schema, ..self.clone() })
    }
}

/// The input's columns, then the window's two. Columns of an inner window keep their values under
/// `<relation>_window_start` and `<relation>_window_end`.
fn windowed(input: &DFSchema) -> Result<DFSchemaRef> {
    let mut fields: Vec<(Option<TableReference>, Arc<Field>)> = input
        .iter()
        .map(|(qualifier, field)| match field.name().as_str() {
            name @ (WINDOW_START | WINDOW_END) => {
                let relation = qualifier.map_or("inner", TableReference::table);
                let renamed = field.as_ref().clone().with_name(format!("{relation}_{name}"));
                (qualifier.cloned(), Arc::new(renamed))
            }
            _ => (qualifier.cloned(), Arc::clone(field)),
        })
        .collect();
    for name in [WINDOW_START, WINDOW_END] {
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        fields.push((None, Arc::new(Field::new(name, time, true))));
    }
    Ok(Arc::new(DFSchema::new_with_metadata(fields, Default::default())?))
}

/// Plans `tumble` wherever FROM calls it.
#[derive(Debug)]
pub(super) struct TumblePlanner;

impl RelationPlanner for TumblePlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        match relation {
            TableFactor::Table { name, alias, args: Some(arguments), .. } if is_tumble(&name) => {
                let plan = tumble(&name, arguments.args, context)?;
                Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
            }
            other => Ok(RelationPlanning::Original(Box::new(other))),
        }
    }
}

fn is_tumble(name: &ObjectName) -> bool {
    name.to_string().eq_ignore_ascii_case("tumble")
}

fn tumble(
    name: &ObjectName,
    arguments: Vec<FunctionArg>,
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    let place = name.span();
    let mut plain = Vec::new();
    for argument in arguments {
        match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => plain.push(expr),
            other => return Err(wrong(other.span(), "tumble takes plain arguments", USAGE)),
        }
    }
    if !(3..=4).contains(&plain.len()) {
        let message = format!("tumble takes 3 or 4 arguments, not {}", plain.len());
        return Err(wrong(place, message, USAGE));
    }
    let mut plain = plain.into_iter();
    let (Some(table), Some(column), Some(size), offset) =
        (plain.next(), plain.next(), plain.next(), plain.next())
    else {
        return Err(wrong(place, "tumble takes 3 or 4 arguments", USAGE));
    };
    let input = context.plan(table_factor(table)?)?;
    let time_column = time_column(column, input.schema(), context)?;
    let size_place = size.span();
    let size = interval(size, context)?;
    if size <= 0 {
        return Err(wrong(size_place, "a window's size must be more than nothing", USAGE));
    }
    let offset = offset.map_or(Ok(0), |offset| interval(offset, context))?.rem_euclid(size);
    let schema = windowed(input.schema())?;
    let node = Tumble { input, time_column, size, offset, schema };
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

/// `departures` as an expression, `departures` as a table.
fn table_factor(expr: ast::Expr) -> Result<TableFactor> {
    match expr {
        ast::Expr::Identifier(name) => Ok(table(ObjectName::from(vec![name]))),
        ast::Expr::CompoundIdentifier(names) => Ok(table(ObjectName::from(names))),
        other => Err(wrong(other.span(), "tumble's first argument is a source or a view", USAGE)),
    }
}

fn table(name: ObjectName) -> TableFactor {
    TableFactor::Table {
        name,
        alias: None,
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}

fn time_column(expr: ast::Expr, schema: &DFSchema, context: &dyn RelationPlannerContext) -> Result<usize> {
    let place = expr.span();
    let ident = match expr {
        ast::Expr::Identifier(ident) => ident,
        ast::Expr::CompoundIdentifier(mut parts) if !parts.is_empty() => parts.swap_remove(parts.len() - 1),
        ast::Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("descriptor") => {
            match descriptor(function.args) {
                Some(ident) => ident,
                None => return Err(wrong(place, "a descriptor names one column", USAGE)),
            }
        }
        _ => return Err(wrong(place, "tumble's second argument is a column", USAGE)),
    };
    let place = ident.span;
    let is_quoted = ident.quote_style.is_some();
    let mut name = context.normalize_ident(ident);
    let columns = column_names(schema);
    if !is_quoted
        && !columns.contains_key(name.as_str())
        && let Some(meant) = same_letters(&name, columns.keys().copied())
    {
        name = meant.to_string();
    }
    let Some(&index) = columns.get(name.as_str()) else {
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let help = suggest(&name, names, "the columns are").unwrap_or_default();
        return Err(wrong(place, format!("unknown column '{name}'"), help));
    };
    match schema.field(index).data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, None) => Ok(index),
        other => Err(wrong(
            place,
            format!("a window is over a timestamp, but '{name}' is {}", type_name(other)),
            "declare the column as timestamp, timestamp_ms, timestamp_us or timestamp_s",
        )),
    }
}

fn descriptor(arguments: FunctionArguments) -> Option<ast::Ident> {
    let FunctionArguments::List(list) = arguments else { return None };
    match <[FunctionArg; 1]>::try_from(list.args).ok()? {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(ast::Expr::Identifier(ident)))] => Some(ident),
        _ => None,
    }
}

/// An interval of days and less, in microseconds.
fn interval(expr: ast::Expr, context: &mut dyn RelationPlannerContext) -> Result<Micros> {
    const MICROS_PER_DAY: i64 = 86_400_000_000;
    const HELP: &str = "write interval '1 hour', '15 minutes', '1 day'";
    let place = expr.span();
    let literal = match context.sql_to_expr(expr, &DFSchema::empty())? {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(interval)), _) => interval,
        _ => return Err(wrong(place, "a window's size and offset are intervals", HELP)),
    };
    if literal.months != 0 {
        return Err(wrong(place, "months and years differ in length, so no window can have that size", HELP));
    }
    if literal.nanoseconds % 1_000 != 0 {
        return Err(wrong(place, "a window's size and offset are whole microseconds", HELP));
    }
    i64::from(literal.days)
        .checked_mul(MICROS_PER_DAY)
        .and_then(|days| days.checked_add(literal.nanoseconds / 1_000))
        .ok_or_else(|| wrong(place, "the interval is too long", HELP))
}

fn wrong(place: tokenizer::Span, message: impl Into<String>, help: impl Into<String>) -> DataFusionError {
    let message = message.into();
    let span = Span::try_from_sqlparser_span(place);
    DataFusionError::Plan(message.clone())
        .with_diagnostic(Diagnostic::new_error(message, span).with_help(help, None))
}
