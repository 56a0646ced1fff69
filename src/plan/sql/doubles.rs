//! Doubles beside decimals: a double wins, as in PostgreSQL. DataFusion makes the double a decimal of 15 digits behind the
//! point, which large doubles do not fit and small ones are cut by.

use arrow::datatypes::DataType;
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{DFSchema, Result};
use datafusion_expr::{Expr, ExprSchemable, cast};

use crate::operator::Function;

/// Casts the decimals among an expression's operands to doubles where one of them is a float.
pub(super) fn win(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| {
        if !mixes(&expr) {
            return Ok(Transformed::no(expr));
        }
        let mut floats = false;
        expr.apply_children(|operand| {
            floats |= operand.get_type(schema).is_ok_and(|of| of.is_floating());
            Ok(TreeNodeRecursion::Continue)
        })?;
        if !floats {
            return Ok(Transformed::no(expr));
        }
        expr.map_children(|operand| {
            Ok(match operand.get_type(schema) {
                Ok(of) if of.is_decimal() => Transformed::yes(cast(operand, DataType::Float64)),
                _ => Transformed::no(operand),
            })
        })
    })
}

/// Whether its operands come to one type.
fn mixes(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::BinaryExpr(_) | Expr::Between(_) | Expr::InList(_) | Expr::Case(_) | Expr::ScalarFunction(_)
    )
}

/// `avg(n)` of integers as they are: as floats they would be rounded before they are added.
pub(super) fn uncast(argument: Expr, function: Function, input: &DFSchema) -> Expr {
    match argument {
        Expr::Cast(inner)
            if function == Function::Avg && inner.expr.get_type(input).is_ok_and(|of| of.is_integer()) =>
        {
            *inner.expr
        }
        other => other,
    }
}
