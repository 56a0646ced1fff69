//! The types that a topology file may give a column, and what each is in Arrow.
//!
//! The spelling is SQL's: `bigint`, `decimal(10,2)`, `bigint[]` (or `array<bigint>`),
//! `struct<a bigint, b varchar>`. A name that is not letters, digits and `_` is written in double quotes.
//!
//! Invariant: what `Display` writes, `FromStr` reads back as the same type.
//! Invariant: every timestamp type is `Timestamp(Microsecond, None)` in Arrow and means UTC.

mod parse;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

/// The metadata key under which a field names its Headwater type, where Arrow's type does not say it.
pub const TYPE_METADATA: &str = "headwater.type";
/// The value of [`TYPE_METADATA`] for text that is JSON: refined records embed it as JSON.
pub const JSON_METADATA: &str = "json";

/// The type of a column.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    BigInt,
    Integer,
    SmallInt,
    Double,
    Real,
    Boolean,
    Varchar,
    /// `precision` digits (1 to 38), `scale` of them after the point.
    Decimal {
        precision: u8,
        scale: u8,
    },
    Date,
    /// Read from ISO text; without an offset it is UTC.
    Timestamp,
    /// Read from an integer: milliseconds since 1970-01-01 UTC.
    TimestampMs,
    /// Read from an integer: microseconds since 1970-01-01 UTC.
    TimestampUs,
    /// Read from an integer: seconds since 1970-01-01 UTC.
    TimestampS,
    /// Bytes; base64 in JSON.
    Bytea,
    /// Any JSON value, kept as its text.
    Json,
    Array(Box<Type>),
    Struct(Vec<(String, Type)>),
}

/// A declared column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub ty: Type,
}

impl Column {
    pub fn new(name: impl Into<String>, ty: Type) -> Self {
        Self { name: name.into(), ty }
    }

    /// The Arrow field: always nullable, since a missing key is a null.
    pub fn field(&self) -> Field {
        self.ty.field(&self.name)
    }

    /// The Arrow schema of these columns, in their order.
    pub fn schema(columns: &[Column]) -> SchemaRef {
        Arc::new(Schema::new(columns.iter().map(Column::field).collect::<Vec<_>>()))
    }
}

impl Type {
    /// The Arrow type. JSON is text; [`Type::field`] also marks it as JSON.
    pub fn arrow(&self) -> DataType {
        match self {
            Type::BigInt => DataType::Int64,
            Type::Integer => DataType::Int32,
            Type::SmallInt => DataType::Int16,
            Type::Double => DataType::Float64,
            Type::Real => DataType::Float32,
            Type::Boolean => DataType::Boolean,
            Type::Varchar | Type::Json => DataType::Utf8,
            Type::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale as i8),
            Type::Date => DataType::Date32,
            Type::Timestamp | Type::TimestampMs | Type::TimestampUs | Type::TimestampS => {
                DataType::Timestamp(TimeUnit::Microsecond, None)
            }
            Type::Bytea => DataType::Binary,
            Type::Array(item) => DataType::List(item.item_field()),
            Type::Struct(fields) => DataType::Struct(Self::struct_fields(fields)),
        }
    }

    /// A nullable Arrow field of this type.
    pub fn field(&self, name: &str) -> Field {
        let field = Field::new(name, self.arrow(), true);
        match self {
            Type::Json => {
                field.with_metadata([(TYPE_METADATA.to_string(), JSON_METADATA.to_string())].into())
            }
            _ => field,
        }
    }

    /// The field of a list's items, when this is the items' type.
    pub fn item_field(&self) -> Arc<Field> {
        Arc::new(self.field("item"))
    }

    /// The Arrow fields of a struct's members.
    pub fn struct_fields(fields: &[(String, Type)]) -> Fields {
        fields.iter().map(|(name, ty)| ty.field(name)).collect()
    }

    pub fn is_timestamp(&self) -> bool {
        matches!(self, Type::Timestamp | Type::TimestampMs | Type::TimestampUs | Type::TimestampS)
    }
}

/// Whether text in this field is JSON (see [`TYPE_METADATA`]).
pub fn is_json(field: &Field) -> bool {
    field.metadata().get(TYPE_METADATA).is_some_and(|kind| kind == JSON_METADATA)
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::BigInt => f.write_str("bigint"),
            Type::Integer => f.write_str("integer"),
            Type::SmallInt => f.write_str("smallint"),
            Type::Double => f.write_str("double"),
            Type::Real => f.write_str("real"),
            Type::Boolean => f.write_str("boolean"),
            Type::Varchar => f.write_str("varchar"),
            Type::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            Type::Date => f.write_str("date"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::TimestampMs => f.write_str("timestamp_ms"),
            Type::TimestampUs => f.write_str("timestamp_us"),
            Type::TimestampS => f.write_str("timestamp_s"),
            Type::Bytea => f.write_str("bytea"),
            Type::Json => f.write_str("json"),
            Type::Array(item) => write!(f, "{item}[]"),
            Type::Struct(fields) => {
                f.write_str("struct<")?;
                for (position, (name, ty)) in fields.iter().enumerate() {
                    let comma = if position == 0 { "" } else { ", " };
                    write!(f, "{comma}{} {ty}", parse::Name(name))?;
                }
                f.write_str(">")
            }
        }
    }
}

/// Why a type could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    #[error("there is no type '{name}'{hint}; the types are: {}", parse::KNOWN.join(", "))]
    Unknown { name: String, hint: String },
    #[error("cannot read the type '{text}': expected {expected} at '{rest}'")]
    Syntax { text: String, rest: String, expected: &'static str },
    #[error(
        "'{text}': a decimal has 1 to 38 digits, of which at most all stand after the point: decimal(10,2)"
    )]
    Decimal { text: String },
    #[error("the type '{text}' names the field '{name}' twice; give each field its own name")]
    DuplicateField { text: String, name: String },
    #[error("a type of more than {} levels; declare the inner levels as json", parse::DEPTH_MAX)]
    TooDeep,
}
