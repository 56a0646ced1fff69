//! Division by zero of floats, which is an error of the record here, as it is for integers, decimals, and in PostgreSQL.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::kernels::numeric::{div, rem};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion_common::{DFSchema, Result, ScalarValue, exec_err, plan_err};
use datafusion_expr::expr::ScalarFunction;
use datafusion_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};

/// `x / y` of floats with y checked, unless it is a number that is written out.
pub(super) fn checked(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::Divide | Operator::Modulo), right })
            if right.get_type(schema)?.is_floating()
                && left.get_type(schema)?.is_floating()
                && !is_written(&right) =>
        {
            Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function(op), vec![*left, *right])))
        }
        other => Ok(other),
    }
}

fn is_written(expr: &Expr) -> bool {
    match expr {
        Expr::Cast(cast) => is_written(&cast.expr),
        Expr::Literal(value, _) => {
            value.cast_to(&DataType::Float64).is_ok_and(|value| value != ScalarValue::Float64(Some(0.0)))
        }
        _ => false,
    }
}

fn function(op: Operator) -> Arc<ScalarUDF> {
    let name = if op == Operator::Divide { "_divide" } else { "_modulo" };
    let signature = Signature::user_defined(Volatility::Immutable);
    Arc::new(ScalarUDF::from(Division { name, signature }))
}

pub(super) fn functions() -> [Arc<ScalarUDF>; 2] {
    [function(Operator::Divide), function(Operator::Modulo)]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Division {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Division {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [left, _] => Ok(left.clone()),
            _ => plan_err!("a division has two sides"),
        }
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let single = arguments.iter().all(|argument| *argument == DataType::Float32);
        let float = if single { DataType::Float32 } else { DataType::Float64 };
        Ok(vec![float; arguments.len()])
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = arguments.args.as_slice() else { return exec_err!("a division has two sides") };
        let (left, right) = (left.to_array(arguments.number_rows)?, right.to_array(arguments.number_rows)?);
        if (0..right.len()).any(|row| is_zero(&right, row) && left.is_valid(row)) {
            return exec_err!("division by zero");
        }
        let divided = if self.name == "_divide" { div(&left, &right)? } else { rem(&left, &right)? };
        Ok(ColumnarValue::Array(divided))
    }
}

fn is_zero(array: &ArrayRef, row: usize) -> bool {
    array.is_valid(row)
        && match array.data_type() {
            DataType::Float32 => array.as_primitive::<Float32Type>().value(row) == 0.0,
            _ => array.as_primitive::<Float64Type>().value(row) == 0.0,
        }
}
