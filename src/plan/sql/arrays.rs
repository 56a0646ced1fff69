//! Arrays and structs in expressions: `a[1]`, `s['field']`, `[1, 2]`, and DataFusion's functions of arrays.
//!
//! Invariant: no function here makes an array longer than its arguments say by a number of a record.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion_common::{DFSchema, Result, ScalarValue};
use datafusion_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, RawFieldAccessExpr};
use datafusion_expr::{Expr, ExprSchemable, GetFieldAccess, ScalarUDF};
use datafusion_functions::expr_fn::get_field;
use datafusion_functions_nested::planner::{FieldAccessPlanner, NestedFunctionPlanner};
use datafusion_sql::sqlparser::ast::BinaryOperator;

use super::context::type_name;
use super::names::field_of;
use super::words::problem;
use crate::record::is_json;

/// Those whose results a record can hold and whose length no number decides.
const FUNCTIONS: [&str; 30] = [
    "array_any_value",
    "array_append",
    "array_avg",
    "array_compact",
    "array_concat",
    "array_distinct",
    "array_element",
    "array_except",
    "array_has",
    "array_has_all",
    "array_has_any",
    "array_intersect",
    "array_length",
    "array_max",
    "array_min",
    "array_ndims",
    "array_pop_back",
    "array_pop_front",
    "array_position",
    "array_positions",
    "array_prepend",
    "array_remove",
    "array_remove_all",
    "array_replace",
    "array_replace_all",
    "array_reverse",
    "array_slice",
    "array_sort",
    "array_to_string",
    "array_union",
];

/// Those whose names do not begin with `array_`.
const OTHERS: [&str; 5] = ["cardinality", "empty", "flatten", "make_array", "string_to_array"];

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    let mut functions = datafusion_functions_nested::all_default_nested_functions();
    functions.retain(|function| FUNCTIONS.contains(&function.name()) || OTHERS.contains(&function.name()));
    functions
}

/// Plans what stands in brackets, and `||` of arrays.
#[derive(Debug)]
pub(super) struct Brackets;

impl ExprPlanner for Brackets {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        // Of columns that are not there others speak.
        let is_array = |side: &Expr| side.get_type(schema).is_ok_and(|known| is_list(&known));
        let of_arrays = matches!(
            raw.op,
            BinaryOperator::StringConcat | BinaryOperator::AtArrow | BinaryOperator::ArrowAt
        );
        if of_arrays && (is_array(&raw.left) || is_array(&raw.right)) {
            return NestedFunctionPlanner.plan_binary_op(raw, schema);
        }
        Ok(PlannerResult::Original(raw))
    }

    fn plan_array_literal(&self, items: Vec<Expr>, schema: &DFSchema) -> Result<PlannerResult<Vec<Expr>>> {
        NestedFunctionPlanner.plan_array_literal(items, schema)
    }

    fn plan_field_access(
        &self,
        raw: RawFieldAccessExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawFieldAccessExpr>> {
        let (_, field) = raw.expr.to_field(schema)?;
        if is_json(&field) {
            return Err(problem(
                "JSON has no [ ]",
                "write x->'field' or x->0 for JSON, x->>'field' for text",
            ));
        }
        match (&raw.field_access, field.data_type()) {
            (GetFieldAccess::NamedStructField { name }, DataType::Struct(fields)) => {
                let wanted = name.try_as_str().flatten().unwrap_or_default();
                match field_of(fields, wanted) {
                    Some(found) => Ok(PlannerResult::Planned(get_field(
                        raw.expr,
                        ScalarValue::from(found.name().as_str()),
                    ))),
                    None => Err(no_field(wanted, field.data_type())),
                }
            }
            (GetFieldAccess::ListIndex { .. } | GetFieldAccess::ListRange { .. }, list) if is_list(list) => {
                FieldAccessPlanner.plan_field_access(raw, schema)
            }
            (_, DataType::Struct(_)) => {
                Err(problem("a struct's field is named in quotes", "write x['field'] or x.field"))
            }
            (GetFieldAccess::NamedStructField { .. }, list) if is_list(list) => {
                Err(problem("an array's elements are numbered, from 1", "write x[1]"))
            }
            (_, other) => Err(problem(
                format!("{} is neither an array nor a struct", type_name(other)),
                "[ ] takes an element of an array, x[1], or a struct's field, x['field']",
            )),
        }
    }
}

fn is_list(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
}

/// That a struct has no such field.
pub(super) fn no_field(wanted: &str, of: &DataType) -> datafusion_common::DataFusionError {
    let DataType::Struct(fields) = of else {
        return problem(
            format!("{} has no fields, so no '{wanted}'", type_name(of)),
            "declare the column as struct<…>, or as json and write x->>'field'",
        );
    };
    let names = fields.iter().map(|field| field.name().as_str());
    let help = crate::plan::error::suggest(wanted, names, "the fields are").unwrap_or_default();
    problem(format!("the struct has no field '{wanted}'"), help)
}
