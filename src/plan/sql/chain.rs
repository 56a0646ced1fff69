//! From DataFusion's logical plan to a view's chain of steps, with what is known of its rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion_common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion_common::{DFSchema, DFSchemaRef, DataFusionError, Result};
use datafusion_expr::expr_rewriter::NamePreserver;
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::utils::grouping_set_to_exprlist;
use datafusion_expr::{Expr, ExprSchemable, LogicalPlan, cast};
use datafusion_optimizer::Analyzer;
use datafusion_optimizer::simplify_expressions::ExprSimplifier;

use super::context::{Context, type_name};
use super::tumble::{Tumble, WINDOW_END, WINDOW_START};
use super::{Catalog, SqlProblem, View, division, doubles, explain, intervals, samples};
use crate::operator::Function;
use crate::record::Micros;

/// One step of a view. Columns are named in the DataFusion schema, which the step keeps for compiling.
#[derive(Clone, Debug)]
pub(in crate::plan) enum Step {
    Map {
        input: DFSchemaRef,
        filter: Option<Expr>,
        project: Option<Vec<Expr>>,
        output: SchemaRef,
    },
    Tumble {
        time_column: usize,
        size: Micros,
        offset: Micros,
        output: SchemaRef,
    },
    Aggregate {
        input: DFSchemaRef,
        groups: Vec<Expr>,
        calls: Vec<CallPlan>,
        window_start: Option<usize>,
        window_end: Option<usize>,
        size: Micros,
        /// How much later than its own end a window is complete, because its rows' event times are the ends
        /// of windows that begin in it.
        lag: Micros,
        /// The columns of the input that identify a row; `None` for rows of a source.
        row_key: Option<Vec<usize>>,
        output: SchemaRef,
    },
}

#[derive(Clone, Debug)]
pub(in crate::plan) struct CallPlan {
    pub function: Function,
    pub argument: Option<Expr>,
    pub filter: Option<Expr>,
}

/// What is known of a relation's rows.
#[derive(Clone, Debug, Default)]
pub(in crate::plan) struct Facts {
    /// Whether the rows come from an aggregate, so that they may be corrected.
    pub derived: bool,
    /// What identifies a derived row: its group columns.
    pub key: Vec<KeyColumn>,
    /// By column: whether it is an edge of the rows' window. Empty: no column is.
    windows: Vec<Option<WindowEdge>>,
}

#[derive(Clone, Debug)]
pub(in crate::plan) struct KeyColumn {
    pub name: String,
    /// Where it is among the columns, if it still is.
    pub column: Option<usize>,
    pub window: Option<Edge>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum Edge {
    Start,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WindowEdge {
    edge: Edge,
    size: Micros,
    offset: Micros,
    lag: Micros,
}

impl Facts {
    fn window(&self, column: usize) -> Option<WindowEdge> {
        self.windows.get(column).copied().flatten()
    }

    /// Where the start of the rows' window is among the columns, and the window's size.
    pub fn window_start(&self) -> Option<(usize, Micros)> {
        let column = self.key.iter().find(|key| key.window == Some(Edge::Start))?.column?;
        Some((column, self.window(column)?.size))
    }

    /// The same rows under other columns; `from[i]` is the old index of the new column i.
    fn project(&self, from: &[Option<usize>]) -> Facts {
        let place = |old: usize| from.iter().position(|source| *source == Some(old));
        let key = self.key.iter().map(|key| KeyColumn { column: key.column.and_then(place), ..key.clone() });
        Facts {
            derived: self.derived,
            key: key.collect(),
            windows: from.iter().map(|source| source.and_then(|old| self.window(old))).collect(),
        }
    }
}

/// Puts our functions for those of DataFusion's whose types would mislead the coercion.
pub(super) fn prepare(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up(|node| {
        let schema = match node.inputs().first() {
            Some(input) => Arc::clone(input.schema()),
            None => return Ok(Transformed::no(node)),
        };
        let names = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(prepared(expr, &schema)?.update_data(|expr| name.restore(expr)))
        })?
        .map_data(LogicalPlan::recompute_schema)
    })
    .data()
}

fn prepared(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    intervals::parts(expr, schema)?.transform_data(|expr| doubles::win(expr, schema))
}

/// Casts whatever has a type that no column may have (text in views, other units of time) to the one that
/// columns have, so that it can't come out of a view or stand in its state.
pub(super) fn normalize(plan: LogicalPlan, context: &Context<'_>) -> Result<LogicalPlan> {
    let plain = plan
        .transform_up(|node| {
            let schema = match node.inputs().first() {
                Some(input) => Arc::clone(input.schema()),
                None => return Ok(Transformed::no(node)),
            };
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let plain = plain_types(expr, &schema)?.data;
                // Types may depend on what constants are: the scale of round(x, 2).
                let simple = simplified(plain, &schema, context)?;
                Ok(Transformed::yes(name.restore(simple)))
            })?
            .map_data(LogicalPlan::recompute_schema)
        })
        .data()?;
    Analyzer::new().execute_and_check(plain, context.config(), |_, _| {})
}

/// The expression with its constants computed; of an aggregate, its arguments.
fn simplified(expr: Expr, schema: &DFSchema, context: &Context<'_>) -> Result<Expr> {
    let is_aggregate = |expr: &Expr| Ok(matches!(expr, Expr::AggregateFunction(_)));
    if !expr.exists(is_aggregate)? {
        return simplify(expr, schema, context);
    }
    expr.transform_down(|expr| match expr {
        Expr::AggregateFunction(_) => {
            let arguments =
                expr.map_children(|child| Ok(Transformed::yes(simplify(child, schema, context)?)))?;
            Ok(Transformed::new(arguments.data, true, TreeNodeRecursion::Jump))
        }
        other => Ok(Transformed::no(other)),
    })
    .data()
}

fn plain_types(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| {
        if let Expr::BinaryExpr(_) = &expr {
            return Ok(Transformed::yes(division::checked(expr, schema)?));
        }
        if !matches!(expr, Expr::ScalarFunction(_) | Expr::Cast(_) | Expr::TryCast(_) | Expr::Literal(..)) {
            return Ok(Transformed::no(expr));
        }
        Ok(match plain_type(&expr.get_type(schema)?) {
            Some(plain) => Transformed::yes(cast(expr, plain)),
            None => Transformed::no(expr),
        })
    })
}

/// The type that stands for another one in columns.
fn plain_type(data_type: &DataType) -> Option<DataType> {
    let plain = match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Timestamp(TimeUnit::Microsecond, None) => return None,
        DataType::Timestamp(..) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Dictionary(_, values) => {
            return plain_type(values).or_else(|| Some(values.as_ref().clone()));
        }
        _ => return None,
    };
    Some(plain)
}

/// Type coercion and simplification of an expression that stands alone.
pub(super) fn coerce(expr: Expr, schema: &DFSchema, context: &Context<'_>) -> Result<Expr> {
    let coerced = simplifier(schema, context).coerce(prepared(expr, schema)?.data, schema)?;
    let plain = plain_types(coerced, schema)?.data;
    simplify(plain, schema, context)
}

fn simplify(expr: Expr, schema: &DFSchema, context: &Context<'_>) -> Result<Expr> {
    let names = expr.schema_name().to_string();
    let simple = simplifier(schema, context).simplify(expr)?;
    if simple.schema_name().to_string() == names { Ok(simple) } else { Ok(simple.alias(names)) }
}

fn simplifier(schema: &DFSchema, context: &Context<'_>) -> ExprSimplifier {
    let info = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(Arc::clone(context.config()))
        .build();
    ExprSimplifier::new(info)
}

/// Walks a resolved plan into a view.
pub(super) fn view(
    plan: &LogicalPlan,
    catalog: &Catalog,
    context: &Context<'_>,
    group_by: (u64, u64),
) -> std::result::Result<View, SqlProblem> {
    let mut walk = Walk { catalog, context, group_by, steps: Vec::new() };
    let (input, facts) = walk.node(plan)?;
    let schema: SchemaRef = Arc::clone(plan.schema().inner());
    let steps = walk.steps;
    for field in schema.fields() {
        if let DataType::Interval(_)
        | DataType::Duration(_)
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Null = field.data_type()
        {
            return Err(SqlProblem {
                line: 0,
                column: 0,
                message: format!(
                    "the column '{}' would be {}, which no record can hold",
                    field.name(),
                    type_name(field.data_type())
                ),
                help: Some("cast it: cast(… as varchar), or date_part('epoch', …) for seconds".to_string()),
            });
        }
        if schema.fields().iter().filter(|other| other.name() == field.name()).count() > 1 {
            return Err(SqlProblem {
                line: 0,
                column: 0,
                message: format!("two columns are called '{}'", field.name()),
                help: Some("give them different names with `as`".to_string()),
            });
        }
    }
    let width = catalog.get(&input).map_or(0, |relation| relation.schema.fields().len());
    let read = read(&steps, schema.fields().len(), width).map_err(|error| explain(&error, catalog))?;
    let read_names = catalog
        .get(&input)
        .map(|relation| read.iter().map(|index| relation.schema.field(*index).name().clone()).collect())
        .unwrap_or_default();
    Ok(View { input, steps, schema, facts, read_names, respelled: Vec::new() })
}

struct Walk<'a> {
    catalog: &'a Catalog,
    context: &'a Context<'a>,
    group_by: (u64, u64),
    steps: Vec<Step>,
}

impl Walk<'_> {
    /// The relation at the bottom and the facts of the node's rows; steps are added on the way up.
    fn node(&mut self, plan: &LogicalPlan) -> std::result::Result<(String, Facts), SqlProblem> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let name = scan.table_name.table().to_string();
                let facts =
                    self.catalog.get(&name).map(|relation| relation.facts.clone()).unwrap_or_default();
                Ok((name, facts))
            }
            LogicalPlan::SubqueryAlias(alias) => self.node(&alias.input),
            LogicalPlan::Filter(filter) => {
                let below = self.node(&filter.input)?;
                let predicate = self.simplify(&filter.predicate, filter.input.schema())?;
                self.steps.push(Step::Map {
                    input: Arc::clone(filter.input.schema()),
                    filter: Some(predicate),
                    project: None,
                    output: Arc::clone(filter.input.schema().inner()),
                });
                Ok(below)
            }
            LogicalPlan::Projection(projection) => {
                let (name, facts) = self.node(&projection.input)?;
                let input = projection.input.schema();
                let exprs = projection
                    .expr
                    .iter()
                    .map(|expr| self.simplify(expr, input))
                    .collect::<std::result::Result<Vec<_>, _>>()?;
                let from: Vec<Option<usize>> = exprs.iter().map(|expr| column(expr, input)).collect();
                let exprs = self.typed(exprs, input, plan.schema())?;
                self.project(exprs, input, plan.schema());
                Ok((name, facts.project(&from)))
            }
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Extension(extension) => match extension.node.as_any().downcast_ref::<Tumble>() {
                Some(tumble) => self.tumble(tumble),
                None => Err(self.cannot(extension.node.name())),
            },
            other => {
                let text = other.display().to_string();
                Err(self.cannot(text.split(':').next().unwrap_or_default()))
            }
        }
    }

    /// The expressions with the types that their columns have: simplification may have left other ones.
    fn typed(
        &self,
        exprs: Vec<Expr>,
        input: &DFSchemaRef,
        output: &DFSchemaRef,
    ) -> std::result::Result<Vec<Expr>, SqlProblem> {
        let typed = exprs.into_iter().zip(output.fields()).map(|(expr, field)| {
            let wanted = field.data_type();
            let expr = match expr.get_type(input) {
                Ok(found) if found != *wanted => cast(expr, wanted.clone()),
                _ => expr,
            };
            match samples::evaluated(&expr, input) {
                Some(found) if found != *wanted && found != DataType::Null => Err(self.problem(
                    format!(
                        "the column '{}' is planned as {} and would be computed as {}",
                        field.name(),
                        type_name(wanted),
                        type_name(&found)
                    ),
                    format!("cast the functions in it: cast(… as {})", type_name(wanted)),
                )),
                _ => Ok(expr),
            }
        });
        typed.collect()
    }

    /// Adds a projection, to the filter just below it if there is one.
    fn project(&mut self, exprs: Vec<Expr>, input: &DFSchemaRef, output: &DFSchemaRef) {
        let output = Arc::clone(output.inner());
        if let Some(Step::Map { input: below, project: project @ None, output: last, .. }) =
            self.steps.last_mut()
            && below.as_ref() == input.as_ref()
        {
            *project = Some(exprs);
            *last = output;
        } else {
            self.steps.push(Step::Map {
                input: Arc::clone(input),
                filter: None,
                project: Some(exprs),
                output,
            });
        }
    }

    fn tumble(&mut self, tumble: &Tumble) -> std::result::Result<(String, Facts), SqlProblem> {
        let (name, facts) = self.node(&tumble.input)?;
        let inner = facts.window(tumble.time_column);
        if facts.derived && inner.is_none() {
            let field = tumble.input.schema().field(tumble.time_column).name().clone();
            return Err(self.problem(
                format!("'{field}' is not an edge of the window that these rows come from, so no watermark follows it"),
                "tumble over the view's window_start or window_end",
            ));
        }
        // A row's event time is its window's end less 1 µs: a window of windows by their start is complete only
        // once the last that begins in it has ended, which is later unless their ends coincide.
        let lag = match inner.filter(|_| facts.derived) {
            Some(inner) if inner.edge == Edge::Start => {
                let aligned =
                    tumble.size % inner.size == 0 && (tumble.offset - inner.offset) % inner.size == 0;
                if aligned { 0 } else { inner.size }
            }
            _ => 0,
        };
        let output = Arc::clone(datafusion_expr::UserDefinedLogicalNodeCore::schema(tumble).inner());
        let Tumble { time_column, size, offset, .. } = *tumble;
        let edge = |edge| Some(WindowEdge { edge, size, offset, lag });
        let mut windows = vec![None; output.fields().len() - 2];
        windows.extend([edge(Edge::Start), edge(Edge::End)]);
        self.steps.push(Step::Tumble { time_column, size, offset, output });
        Ok((name, Facts { windows, ..facts }))
    }

    fn aggregate(
        &mut self,
        aggregate: &datafusion_expr::Aggregate,
    ) -> std::result::Result<(String, Facts), SqlProblem> {
        let (name, facts) = self.node(&aggregate.input)?;
        let input = aggregate.input.schema();
        // What is named twice is one column of the output.
        let grouped =
            grouping_set_to_exprlist(&aggregate.group_expr).map_err(|error| explain(&error, self.catalog))?;
        let output = Arc::clone(aggregate.schema.inner());
        if output.fields().len() != grouped.len() + aggregate.aggr_expr.len() {
            return Err(self.cannot("this GROUP BY"));
        }
        let mut groups = Vec::with_capacity(grouped.len());
        let mut edges = Vec::with_capacity(grouped.len());
        for expr in grouped {
            if expr.exists(|part| Ok(matches!(part, Expr::AggregateFunction(_)))).unwrap_or(true) {
                return Err(self.problem(
                    format!(
                        "GROUP BY holds the aggregate {}, which is known only once rows are grouped",
                        expr.schema_name()
                    ),
                    "aggregate in one view and group that one by the result",
                ));
            }
            let expr = self.simplify(expr, input)?;
            edges.push(column(&expr, input).and_then(|column| facts.window(column)));
            groups.push(expr);
        }
        let Some(window) = edges.iter().flatten().next().copied() else {
            let help = if facts.windows.iter().any(Option::is_some) {
                format!("add {WINDOW_START} or {WINDOW_END} to GROUP BY")
            } else {
                format!("group by {WINDOW_START} of tumble({name}, <timestamp column>, interval '1 hour')")
            };
            return Err(self.problem("an aggregate without a window would never be complete", help));
        };
        let calls = aggregate
            .aggr_expr
            .iter()
            .map(|expr| self.call(expr, input))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let edge_at = |wanted| edges.iter().position(|edge| edge.is_some_and(|edge| edge.edge == wanted));
        // What is the same in all rows tells none apart.
        let constant: Vec<bool> = groups.iter().map(is_constant).collect();
        let row_key = facts.derived.then(|| facts.key.iter().filter_map(|key| key.column).collect());
        self.steps.push(Step::Aggregate {
            input: Arc::clone(input),
            groups,
            calls,
            window_start: edge_at(Edge::Start),
            window_end: edge_at(Edge::End),
            size: window.size,
            lag: window.lag,
            row_key,
            output: Arc::clone(&output),
        });
        let key = edges.iter().enumerate().filter(|(column, _)| !constant[*column]);
        let key = key.map(|(column, edge)| KeyColumn {
            name: output.field(column).name().clone(),
            column: Some(column),
            window: edge.map(|edge| edge.edge),
        });
        let key = key.collect();
        // The lag is in the stage's own grace; its rows' event time is again their window's end less 1 µs.
        let mut windows: Vec<Option<WindowEdge>> =
            edges.iter().map(|edge| edge.map(|edge| WindowEdge { lag: 0, ..edge })).collect();
        windows.resize(output.fields().len(), None);
        Ok((name, Facts { derived: true, key, windows }))
    }

    fn call(&self, expr: &Expr, input: &DFSchemaRef) -> std::result::Result<CallPlan, SqlProblem> {
        let Expr::AggregateFunction(call) = expr.clone().unalias() else {
            return Err(self.cannot(&expr.to_string()));
        };
        let function = match call.func.name() {
            "count" => Function::Count,
            "sum" => Function::Sum,
            "avg" => Function::Avg,
            "min" => Function::Min,
            "max" => Function::Max,
            "first_value" => Function::First,
            "last_value" => Function::Last,
            other => return Err(self.cannot(other)),
        };
        let params = call.params;
        let function = match (function, params.distinct) {
            (function, false) => function,
            (Function::Count, true) => Function::CountDistinct,
            // The same with or without.
            (Function::Min | Function::Max, true) => function,
            (_, true) => return Err(self.cannot(&format!("{}(distinct …)", call.func.name()))),
        };
        if !params.order_by.is_empty() || params.null_treatment.is_some() {
            return Err(self.cannot("an aggregate with ORDER BY or a null treatment"));
        }
        let filter = params.filter.map(|filter| self.simplify(&filter, input)).transpose()?;
        let argument = match <[Expr; 1]>::try_from(params.args) {
            Ok([Expr::Literal(value, _)]) if function == Function::Count && !value.is_null() => None,
            Ok([argument]) => Some(self.simplify(&doubles::uncast(argument, function, input), input)?),
            Err(_) => {
                return Err(self.problem(
                    format!("{} takes one argument", call.func.name()),
                    "give it one column or expression",
                ));
            }
        };
        Ok(CallPlan { function, argument, filter })
    }

    fn simplify(&self, expr: &Expr, schema: &DFSchema) -> std::result::Result<Expr, SqlProblem> {
        simplify(expr.clone(), schema, self.context).map_err(|error| explain(&error, self.catalog))
    }

    fn problem(&self, message: impl Into<String>, help: impl Into<String>) -> SqlProblem {
        let (line, column) = self.group_by;
        SqlProblem { line, column, message: message.into(), help: Some(help.into()) }
    }

    fn cannot(&self, what: &str) -> SqlProblem {
        self.problem(
            format!("{what} can't run as a stream"),
            "a view selects, filters, and aggregates over tumble windows",
        )
    }
}

/// The input column that an expression passes on, if that is all it does.
fn column(expr: &Expr, input: &DFSchema) -> Option<usize> {
    match expr {
        Expr::Alias(alias) => column(&alias.expr, input),
        Expr::Column(name) => input.index_of_column(name).ok(),
        _ => None,
    }
}

fn is_constant(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_constant(&alias.expr),
        expr => matches!(expr, Expr::Literal(..)),
    }
}

/// The columns of the input, `width` wide, that the steps read.
fn read(steps: &[Step], output: usize, width: usize) -> Result<Vec<usize>, DataFusionError> {
    let mut needed: BTreeSet<usize> = (0..output).collect();
    for step in steps.iter().rev() {
        match step {
            Step::Map { input, filter, project, .. } => {
                if let Some(project) = project {
                    needed = columns(project, input)?;
                }
                needed.extend(columns(filter, input)?);
            }
            Step::Tumble { time_column, output, .. } => {
                let inner = output.fields().len() - 2;
                needed.retain(|column| *column < inner);
                needed.insert(*time_column);
            }
            Step::Aggregate { input, groups, calls, .. } => {
                needed = columns(groups, input)?;
                needed.extend(columns(calls.iter().filter_map(|call| call.argument.as_ref()), input)?);
                needed.extend(columns(calls.iter().filter_map(|call| call.filter.as_ref()), input)?);
            }
        }
    }
    Ok(needed.into_iter().filter(|column| *column < width).collect())
}

pub(in crate::plan) fn columns<'a>(
    exprs: impl IntoIterator<Item = &'a Expr>,
    schema: &DFSchema,
) -> Result<BTreeSet<usize>, DataFusionError> {
    let mut found = BTreeSet::new();
    for expr in exprs {
        for column in expr.column_refs() {
            found.insert(schema.index_of_column(column)?);
        }
    }
    Ok(found)
}
