//! Functions of ours that make one value of a row's arguments, null of a null.
//!
//! Invariant: the same arguments give the same value; what fails fails by itself, not by its neighbours.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder,
};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion_common::{Result, ScalarValue, exec_err, plan_err};
use datafusion_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::record::{JSON_METADATA, TYPE_METADATA};

/// What an argument may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Text,
    /// Text or bytes.
    Bytes,
    Integer,
    /// Text or an integer.
    Either,
}

/// An argument of a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Argument<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Integer(i64),
}

impl<'a> Argument<'a> {
    pub fn text(&self) -> &'a str {
        match self {
            Argument::Text(text) => text,
            _ => "",
        }
    }

    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Argument::Text(text) => text.as_bytes(),
            Argument::Bytes(bytes) => bytes,
            Argument::Integer(_) => &[],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returns {
    Text,
    /// Text that is JSON.
    Json,
    Integer,
    Double,
    Boolean,
    Texts,
}

/// What a row becomes.
#[derive(Debug)]
pub(super) enum Made {
    Text(String),
    Integer(i64),
    Double(f64),
    Boolean(bool),
    Texts(Vec<String>),
}

/// Computes row after row of a batch.
pub(super) type Apply = Box<dyn FnMut(&[Argument<'_>]) -> Result<Option<Made>>>;

/// A function.
#[derive(Debug)]
pub(super) struct Rowwise {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub takes: &'static [Takes],
    /// How many of them may be left out, from the last one on.
    pub optional: usize,
    /// Whether the last one may stand any number of times.
    pub repeats: bool,
    pub returns: Returns,
    /// Makes what computes a batch; it may keep something from row to row.
    pub apply: fn() -> Apply,
}

impl Rowwise {
    pub fn function(self) -> Arc<ScalarUDF> {
        let aliases = self.aliases.iter().map(|name| name.to_string()).collect();
        Arc::new(ScalarUDF::from(Function {
            signature: Signature::user_defined(Volatility::Immutable),
            aliases,
            rowwise: self,
        }))
    }
}

#[derive(Debug)]
struct Function {
    rowwise: Rowwise,
    aliases: Vec<String>,
    signature: Signature,
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.rowwise.name == other.rowwise.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.rowwise.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.rowwise.name
    }
    fn aliases(&self) -> &[String] {
        &self.aliases
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.rowwise.returns.data_type())
    }
    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let field = Field::new(self.rowwise.name, self.rowwise.returns.data_type(), true);
        Ok(Arc::new(match self.rowwise.returns {
            Returns::Json => {
                field.with_metadata([(TYPE_METADATA.to_string(), JSON_METADATA.to_string())].into())
            }
            _ => field,
        }))
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let Rowwise { name, takes, optional, repeats, .. } = &self.rowwise;
        if arguments.len() + optional < takes.len() || (arguments.len() > takes.len() && !repeats) {
            return plan_err!("{name} does not take {} arguments", arguments.len());
        }
        let last = takes.last().copied().unwrap_or(Takes::Text);
        let takes = takes.iter().copied().chain(std::iter::repeat(last));
        arguments.iter().zip(takes).map(|(argument, takes)| taken(name, argument, takes)).collect()
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = arguments.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if is_constant { 1 } else { arguments.number_rows };
        let columns =
            arguments.args.iter().map(|value| Column::new(value, rows)).collect::<Result<Vec<_>>>()?;
        let mut apply = (self.rowwise.apply)();
        let mut made = Builder::new(self.rowwise.returns);
        let mut row_arguments = Vec::with_capacity(columns.len());
        for row in 0..rows {
            row_arguments.clear();
            for column in &columns {
                row_arguments.extend(column.value(row)?);
            }
            let value = if row_arguments.len() == columns.len() { apply(&row_arguments)? } else { None };
            made.append(value)?;
        }
        let made = made.finish();
        if is_constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&made, 0)?));
        }
        Ok(ColumnarValue::Array(made))
    }
}

fn taken(name: &str, argument: &DataType, takes: Takes) -> Result<DataType> {
    let is_text = matches!(argument, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let is_bytes = matches!(argument, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    let is_null = argument.is_null();
    match takes {
        Takes::Integer | Takes::Either if argument.is_integer() => Ok(DataType::Int64),
        Takes::Integer if is_null => Ok(DataType::Int64),
        Takes::Text | Takes::Bytes | Takes::Either if is_text || is_null => Ok(DataType::Utf8),
        Takes::Bytes if is_bytes => Ok(DataType::Binary),
        _ => plan_err!("{name} does not take {argument}"),
    }
}

impl Returns {
    fn data_type(self) -> DataType {
        match self {
            Returns::Text | Returns::Json => DataType::Utf8,
            Returns::Integer => DataType::Int64,
            Returns::Double => DataType::Float64,
            Returns::Boolean => DataType::Boolean,
            Returns::Texts => DataType::new_list(DataType::Utf8, true),
        }
    }
}

/// An argument of all rows; a constant has one row.
struct Column {
    array: ArrayRef,
    is_constant: bool,
}

impl Column {
    fn new(value: &ColumnarValue, rows: usize) -> Result<Self> {
        Ok(match value {
            ColumnarValue::Scalar(value) => Self { array: value.to_array()?, is_constant: true },
            ColumnarValue::Array(_) => Self { array: value.to_array(rows)?, is_constant: false },
        })
    }

    fn value(&self, row: usize) -> Result<Option<Argument<'_>>> {
        let row = if self.is_constant { 0 } else { row };
        if self.array.is_null(row) {
            return Ok(None);
        }
        Ok(Some(match self.array.data_type() {
            DataType::Utf8 => Argument::Text(self.array.as_string::<i32>().value(row)),
            DataType::Binary => Argument::Bytes(self.array.as_binary::<i32>().value(row)),
            DataType::Int64 => Argument::Integer(self.array.as_primitive::<Int64Type>().value(row)),
            other => return exec_err!("expected text or integers, not {other}"),
        }))
    }
}

enum Builder {
    Text(StringBuilder),
    Integer(Int64Builder),
    Double(Float64Builder),
    Boolean(BooleanBuilder),
    Texts(ListBuilder<StringBuilder>),
}

impl Builder {
    fn new(returns: Returns) -> Self {
        match returns {
            Returns::Text | Returns::Json => Builder::Text(StringBuilder::new()),
            Returns::Integer => Builder::Integer(Int64Builder::new()),
            Returns::Double => Builder::Double(Float64Builder::new()),
            Returns::Boolean => Builder::Boolean(BooleanBuilder::new()),
            Returns::Texts => Builder::Texts(ListBuilder::new(StringBuilder::new())),
        }
    }

    fn append(&mut self, value: Option<Made>) -> Result<()> {
        match (self, value) {
            (Builder::Text(builder), Some(Made::Text(value))) => builder.append_value(value),
            (Builder::Text(builder), None) => builder.append_null(),
            (Builder::Integer(builder), Some(Made::Integer(value))) => builder.append_value(value),
            (Builder::Integer(builder), None) => builder.append_null(),
            (Builder::Double(builder), Some(Made::Double(value))) => builder.append_value(value),
            (Builder::Double(builder), None) => builder.append_null(),
            (Builder::Boolean(builder), Some(Made::Boolean(value))) => builder.append_value(value),
            (Builder::Boolean(builder), None) => builder.append_null(),
            (Builder::Texts(builder), Some(Made::Texts(values))) => {
                builder.append_value(values.into_iter().map(Some));
            }
            (Builder::Texts(builder), None) => builder.append_null(),
            (_, Some(value)) => return exec_err!("a function made {value:?}, which is not of its type"),
        }
        Ok(())
    }

    fn finish(self) -> ArrayRef {
        match self {
            Builder::Text(mut builder) => Arc::new(builder.finish()),
            Builder::Integer(mut builder) => Arc::new(builder.finish()),
            Builder::Double(mut builder) => Arc::new(builder.finish()),
            Builder::Boolean(mut builder) => Arc::new(builder.finish()),
            Builder::Texts(mut builder) => Arc::new(builder.finish()),
        }
    }
}
