//! What DataFusion's planner asks about the world: tables, functions, types.
//!
//! Invariant: every timestamp type of SQL is Timestamp(Microsecond, None), and text is Utf8.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef, TimeUnit};
use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::TreeNode;
use datafusion_common::{DataFusionError, Result, TableReference, plan_datafusion_err};
use datafusion_expr::planner::{
    ContextProvider, ExprPlanner, PlannerResult, RawAggregateExpr, RelationPlanner, TypePlanner,
};
use datafusion_expr::{
    AggregateUDF, Expr, HigherOrderUDF, ScalarUDF, TableProviderFilterPushDown, TableSource, Volatility,
    WindowUDF,
};
use datafusion_sql::sqlparser::ast;

use super::arrays::Brackets;
use super::intervals::Multiples;
use super::json::JsonOperators;
use super::names::FieldNames;
use super::rewrites::REWRITTEN;
use super::tumble::TumblePlanner;
use super::{Catalog, calendar, functions};

/// The functions of SQL, by every name they answer to.
pub(super) struct Functions {
    pub scalar: BTreeMap<String, Arc<ScalarUDF>>,
    /// Those that the planner puts for operators.
    unnamed: BTreeMap<String, Arc<ScalarUDF>>,
    pub aggregate: BTreeMap<String, Arc<AggregateUDF>>,
}

impl Functions {
    /// One that a plan may hold, whether or not users can call it.
    pub fn planned(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.scalar.get(name).or_else(|| self.unnamed.get(name)).cloned()
    }
}

pub(super) static FUNCTIONS: LazyLock<Functions> = LazyLock::new(|| {
    let mut scalar = BTreeMap::new();
    for function in datafusion_functions::all_default_functions() {
        for name in function.aliases().iter().cloned().chain([function.name().to_string()]) {
            scalar.insert(name, Arc::clone(&function));
        }
    }
    for function in calendar::functions() {
        for name in aliases(&scalar, function.name()) {
            scalar.insert(name, Arc::clone(&function));
        }
    }
    functions::add(&mut scalar);
    let mut aggregate = BTreeMap::new();
    for function in datafusion_functions_aggregate::all_default_aggregate_functions() {
        for name in function.aliases().iter().cloned().chain([function.name().to_string()]) {
            aggregate.insert(name, Arc::clone(&function));
        }
    }
    for (short, long) in [("first", "first_value"), ("last", "last_value")] {
        if let Some(function) = aggregate.get(long).cloned() {
            aggregate.insert(short.to_string(), function);
        }
    }
    Functions { scalar, unnamed: functions::unnamed(), aggregate }
});

/// Every name of the function that answers to this one.
fn aliases(functions: &BTreeMap<String, Arc<ScalarUDF>>, name: &str) -> Vec<String> {
    functions.iter().filter(|(_, function)| function.name() == name).map(|(name, _)| name.clone()).collect()
}

/// The aggregate functions that run over windows, by DataFusion's names.
pub(super) const AGGREGATES: [&str; 7] = ["count", "sum", "avg", "min", "max", "first_value", "last_value"];

/// Whether the function gives the same result for the same arguments, always.
pub(super) fn is_deterministic(name: &str) -> bool {
    FUNCTIONS
        .scalar
        .get(name)
        .is_none_or(|function| function.signature().volatility == Volatility::Immutable && name != "version")
}

pub(super) fn function_names() -> Vec<String> {
    let aggregates = AGGREGATES.iter().map(|name| name.to_string()).chain(["first".into(), "last".into()]);
    let rewritten = REWRITTEN.iter().map(|(name, _)| name.to_string());
    FUNCTIONS.scalar.keys().cloned().chain(rewritten).chain(aggregates).collect()
}

/// A type as SQL spells it, for messages.
pub(in crate::plan) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Int64 => "bigint".into(),
        DataType::Int32 => "integer".into(),
        DataType::Int16 => "smallint".into(),
        DataType::Float64 => "double".into(),
        DataType::Float32 => "real".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "varchar".into(),
        DataType::Timestamp(..) => "timestamp".into(),
        DataType::Date32 => "date".into(),
        DataType::Binary => "bytea".into(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::Interval(_) | DataType::Duration(_) => "an interval".into(),
        other => other.to_string(),
    }
}

pub(super) struct Context<'a> {
    catalog: &'a Catalog,
    config: Arc<ConfigOptions>,
    expressions: Vec<Arc<dyn ExprPlanner>>,
    relations: Vec<Arc<dyn RelationPlanner>>,
    types: Arc<dyn TypePlanner>,
}

impl<'a> Context<'a> {
    pub fn new(catalog: &'a Catalog) -> Self {
        let mut config = ConfigOptions::new();
        config.sql_parser.map_string_types_to_utf8view = false;
        config.sql_parser.collect_spans = true;
        Self {
            catalog,
            config: Arc::new(config),
            expressions: vec![
                Arc::new(NamedCasts),
                Arc::new(JsonOperators),
                Arc::new(Brackets),
                Arc::new(Multiples),
                Arc::new(FieldNames),
                Arc::new(datafusion_functions::core::planner::CoreFunctionPlanner::default()),
                Arc::new(datafusion_functions::datetime::planner::DatetimeFunctionPlanner),
                Arc::new(datafusion_functions::unicode::planner::UnicodeFunctionPlanner),
                Arc::new(datafusion_functions_aggregate::planner::AggregateFunctionPlanner),
            ],
            relations: vec![Arc::new(TumblePlanner)],
            types: Arc::new(Types),
        }
    }

    pub fn config(&self) -> &Arc<ConfigOptions> {
        &self.config
    }
}

impl ContextProvider for Context<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        let relation =
            self.catalog.get(name.table()).ok_or_else(|| plan_datafusion_err!("unknown table '{name}'"))?;
        Ok(Arc::new(Table(Arc::clone(&relation.schema))))
    }
    fn get_table_function_source(&self, name: &str, _: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        Err(DataFusionError::Plan(format!("there is no table function '{name}'; use tumble")))
    }
    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.expressions
    }
    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        &self.relations
    }
    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::clone(&self.types))
    }
    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        FUNCTIONS.planned(name)
    }
    fn get_higher_order_meta(&self, _: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }
    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        FUNCTIONS.aggregate.get(name).cloned()
    }
    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }
    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }
    fn options(&self) -> &ConfigOptions {
        &self.config
    }
    fn udf_names(&self) -> Vec<String> {
        FUNCTIONS.scalar.keys().cloned().collect()
    }
    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn udaf_names(&self) -> Vec<String> {
        FUNCTIONS.aggregate.keys().cloned().collect()
    }
    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Tells `sum(cast(x as bigint))` from `sum(x)`: DataFusion leaves casts out of the names by which it keeps
/// aggregates apart.
#[derive(Debug)]
struct NamedCasts;

impl ExprPlanner for NamedCasts {
    fn plan_aggregate(&self, mut call: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
        for argument in &mut call.args {
            if argument.exists(|part| Ok(matches!(part, Expr::Cast(_) | Expr::TryCast(_))))? {
                let name = argument.to_string();
                *argument = std::mem::take(argument).alias(name);
            }
        }
        Ok(PlannerResult::Original(call))
    }
}

/// A relation that filters stay above.
#[derive(Debug)]
struct Table(SchemaRef);

impl TableSource for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0)
    }
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Unsupported; filters.len()])
    }
}

/// SQL's names of types; those that it leaves to DataFusion have one meaning only.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> Result<Option<FieldRef>> {
        let planned = match sql_type {
            ast::DataType::Timestamp(precision, _) | ast::DataType::Datetime(precision) => {
                if precision.is_some_and(|precision| precision > 6) {
                    return Err(plan_datafusion_err!("timestamps have at most 6 digits of fraction"));
                }
                DataType::Timestamp(TimeUnit::Microsecond, None)
            }
            ast::DataType::JSON | ast::DataType::JSONB => DataType::Utf8,
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(Field::new("", planned, true))))
    }
}

/// The columns of a relation by name, for messages.
pub(super) fn column_names(schema: &datafusion_common::DFSchema) -> HashMap<&str, usize> {
    schema.fields().iter().enumerate().map(|(index, field)| (field.name().as_str(), index)).collect()
}
