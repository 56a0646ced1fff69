//! Columns under construction that can be cut back to an earlier length.
//!
//! Arrow's own builders only grow; here a row may fail half-way, within nested values too, and must leave
//! no trace but a null.
//!
//! Invariant: after `truncate(n)` a builder and all builders within it are exactly as they were when it held
//! `n` entries, whatever had been appended to any of them since.

use std::mem;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, BooleanBufferBuilder, ListArray,
    PrimitiveArray, StringArray, StructArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Fields as ArrowFields, Float32Type, Float64Type, Int16Type,
    Int32Type, Int64Type, TimestampMicrosecondType,
};

use super::object::Fields;
use crate::record::{Micros, Type};

/// A column by its declared type, which decides what JSON it takes.
pub(super) enum Builder {
    Boolean(Booleans),
    SmallInt(Fixed<i16>),
    Integer(Fixed<i32>),
    BigInt(Fixed<i64>),
    Real(Fixed<f32>),
    Double(Fixed<f64>),
    Decimal {
        values: Fixed<i128>,
        precision: u8,
        scale: u8,
    },
    Date(Fixed<i32>),
    /// ISO text, kept in microseconds.
    Timestamp(Fixed<i64>),
    /// Integers of `unit` microseconds each, kept in microseconds.
    Epoch {
        values: Fixed<i64>,
        unit: Micros,
    },
    Varchar(Bytes),
    Bytea(Bytes),
    Json(Bytes),
    Array(List),
    Struct(Struct),
}

/// Does the same to whichever builder it is.
macro_rules! each {
    ($builder:expr, $inner:ident => $body:expr) => {
        match $builder {
            Builder::Boolean($inner) => $body,
            Builder::SmallInt($inner) => $body,
            Builder::Integer($inner) | Builder::Date($inner) => $body,
            Builder::BigInt($inner) | Builder::Timestamp($inner) | Builder::Epoch { values: $inner, .. } => {
                $body
            }
            Builder::Real($inner) => $body,
            Builder::Double($inner) => $body,
            Builder::Decimal { values: $inner, .. } => $body,
            Builder::Varchar($inner) | Builder::Bytea($inner) | Builder::Json($inner) => $body,
            Builder::Array($inner) => $body,
            Builder::Struct($inner) => $body,
        }
    };
}

impl Builder {
    pub(super) fn new(ty: &Type) -> Self {
        match ty {
            Type::Boolean => Builder::Boolean(Booleans::default()),
            Type::SmallInt => Builder::SmallInt(Fixed::default()),
            Type::Integer => Builder::Integer(Fixed::default()),
            Type::BigInt => Builder::BigInt(Fixed::default()),
            Type::Real => Builder::Real(Fixed::default()),
            Type::Double => Builder::Double(Fixed::default()),
            Type::Decimal { precision, scale } => {
                Builder::Decimal { values: Fixed::default(), precision: *precision, scale: *scale }
            }
            Type::Date => Builder::Date(Fixed::default()),
            Type::Timestamp => Builder::Timestamp(Fixed::default()),
            Type::TimestampS => Builder::Epoch { values: Fixed::default(), unit: 1_000_000 },
            Type::TimestampMs => Builder::Epoch { values: Fixed::default(), unit: 1_000 },
            Type::TimestampUs => Builder::Epoch { values: Fixed::default(), unit: 1 },
            Type::Varchar => Builder::Varchar(Bytes::default()),
            Type::Bytea => Builder::Bytea(Bytes::default()),
            Type::Json => Builder::Json(Bytes::default()),
            Type::Array(item) => Builder::Array(List::new(item)),
            Type::Struct(fields) => Builder::Struct(Struct::new(fields)),
        }
    }

    pub(super) fn len(&self) -> usize {
        each!(self, inner => inner.nulls.len())
    }

    pub(super) fn append_null(&mut self) {
        each!(self, inner => inner.append_null());
    }

    /// Cuts back to `length` entries, also from the middle of one.
    pub(super) fn truncate(&mut self, length: usize) {
        each!(self, inner => inner.truncate(length));
    }

    /// The entries so far; the builder is then empty, with room for as many again.
    pub(super) fn finish(&mut self) -> ArrayRef {
        match self {
            Builder::Boolean(inner) => inner.finish(),
            Builder::SmallInt(inner) => inner.finish::<Int16Type>(),
            Builder::Integer(inner) => inner.finish::<Int32Type>(),
            Builder::BigInt(inner) => inner.finish::<Int64Type>(),
            Builder::Real(inner) => inner.finish::<Float32Type>(),
            Builder::Double(inner) => inner.finish::<Float64Type>(),
            Builder::Decimal { values, precision, scale } => {
                let array = values.primitive::<Decimal128Type>();
                Arc::new(array.with_data_type(DataType::Decimal128(*precision, *scale as i8)))
            }
            Builder::Date(inner) => inner.finish::<Date32Type>(),
            Builder::Timestamp(inner) | Builder::Epoch { values: inner, .. } => {
                inner.finish::<TimestampMicrosecondType>()
            }
            Builder::Varchar(inner) | Builder::Json(inner) => inner.finish_text(),
            Builder::Bytea(inner) => inner.finish_binary(),
            Builder::Array(inner) => inner.finish(),
            Builder::Struct(inner) => inner.finish(),
        }
    }
}

/// Which entries are there and which are null.
#[derive(Default)]
pub(super) struct Nulls {
    length: usize,
    /// Empty until the first null: most columns never have one.
    bits: Option<BooleanBufferBuilder>,
}

impl Nulls {
    fn len(&self) -> usize {
        self.length
    }

    fn append(&mut self, present: bool) {
        if self.bits.is_none() && !present {
            let mut bits = BooleanBufferBuilder::new(self.length + 1);
            bits.append_n(self.length, true);
            self.bits = Some(bits);
        }
        if let Some(bits) = &mut self.bits {
            bits.append(present);
        }
        self.length += 1;
    }

    fn truncate(&mut self, length: usize) {
        if let Some(bits) = &mut self.bits {
            bits.truncate(length);
        }
        self.length = self.length.min(length);
    }

    fn finish(&mut self) -> Option<NullBuffer> {
        self.length = 0;
        let bits = self.bits.take()?.build();
        Some(NullBuffer::new(bits)).filter(|nulls| nulls.null_count() > 0)
    }
}

/// Values of a fixed width.
#[derive(Default)]
pub(super) struct Fixed<T> {
    values: Vec<T>,
    nulls: Nulls,
}

impl<T: Copy + Default> Fixed<T> {
    pub(super) fn append(&mut self, value: T) {
        self.values.push(value);
        self.nulls.append(true);
    }

    pub(super) fn append_null(&mut self) {
        self.values.push(T::default());
        self.nulls.append(false);
    }

    fn truncate(&mut self, length: usize) {
        self.values.truncate(length);
        self.nulls.truncate(length);
    }

    fn primitive<P: ArrowPrimitiveType<Native = T>>(&mut self) -> PrimitiveArray<P>
    where
        T: arrow::datatypes::ArrowNativeType,
    {
        let room = Vec::with_capacity(self.values.len());
        let values = ScalarBuffer::from(mem::replace(&mut self.values, room));
        PrimitiveArray::new(values, self.nulls.finish())
    }

    fn finish<P: ArrowPrimitiveType<Native = T>>(&mut self) -> ArrayRef
    where
        T: arrow::datatypes::ArrowNativeType,
    {
        Arc::new(self.primitive::<P>())
    }
}

pub(super) struct Booleans {
    values: BooleanBufferBuilder,
    nulls: Nulls,
}

impl Default for Booleans {
    fn default() -> Self {
        Self { values: BooleanBufferBuilder::new(0), nulls: Nulls::default() }
    }
}

impl Booleans {
    pub(super) fn append(&mut self, value: bool) {
        self.values.append(value);
        self.nulls.append(true);
    }

    pub(super) fn append_null(&mut self) {
        self.values.append(false);
        self.nulls.append(false);
    }

    fn truncate(&mut self, length: usize) {
        self.values.truncate(length);
        self.nulls.truncate(length);
    }

    fn finish(&mut self) -> ArrayRef {
        Arc::new(BooleanArray::new(self.values.finish(), self.nulls.finish()))
    }
}

/// The ends of entries in what they are cut from; the start of the first is 0.
#[derive(Default)]
struct Ends(Vec<i32>);

impl Ends {
    fn push(&mut self, end: usize) {
        match i32::try_from(end) {
            Ok(end) => self.0.push(end),
            Err(_) => unreachable!("a batch's input is below 2 GiB (JsonDecoder::push), so what it holds is"),
        }
    }

    /// Keeps `length` entries; returns where the last of them ends.
    fn truncate(&mut self, length: usize) -> usize {
        self.0.truncate(length);
        self.0.last().map_or(0, |end| *end as usize)
    }

    fn finish(&mut self) -> OffsetBuffer<i32> {
        let mut offsets = Vec::with_capacity(self.0.len() + 1);
        offsets.push(0);
        offsets.append(&mut self.0);
        OffsetBuffer::new(offsets.into())
    }
}

/// Values of any width: text or bytes.
#[derive(Default)]
pub(super) struct Bytes {
    bytes: Vec<u8>,
    ends: Ends,
    nulls: Nulls,
}

impl Bytes {
    pub(super) fn append(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.end_value();
    }

    /// Appends what `write` adds to the bytes.
    pub(super) fn append_with<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        write(&mut self.bytes)?;
        self.end_value();
        Ok(())
    }

    fn end_value(&mut self) {
        self.ends.push(self.bytes.len());
        self.nulls.append(true);
    }

    pub(super) fn append_null(&mut self) {
        self.ends.push(self.bytes.len());
        self.nulls.append(false);
    }

    fn truncate(&mut self, length: usize) {
        let end = self.ends.truncate(length);
        self.bytes.truncate(end);
        self.nulls.truncate(length);
    }

    fn parts(&mut self) -> (OffsetBuffer<i32>, Buffer, Option<NullBuffer>) {
        let room = Vec::with_capacity(self.bytes.len());
        let bytes = Buffer::from_vec(mem::replace(&mut self.bytes, room));
        (self.ends.finish(), bytes, self.nulls.finish())
    }

    fn finish_text(&mut self) -> ArrayRef {
        let (offsets, bytes, nulls) = self.parts();
        Arc::new(StringArray::new(offsets, bytes, nulls))
    }

    fn finish_binary(&mut self) -> ArrayRef {
        let (offsets, bytes, nulls) = self.parts();
        Arc::new(BinaryArray::new(offsets, bytes, nulls))
    }
}

pub(super) struct List {
    pub(super) item: Box<Builder>,
    field: Arc<Field>,
    ends: Ends,
    nulls: Nulls,
}

impl List {
    fn new(item: &Type) -> Self {
        Self {
            item: Box::new(Builder::new(item)),
            field: item.item_field(),
            ends: Ends::default(),
            nulls: Nulls::default(),
        }
    }

    /// Ends an entry: its items are those appended to `item` since the entry before.
    pub(super) fn end_value(&mut self) {
        self.ends.push(self.item.len());
        self.nulls.append(true);
    }

    pub(super) fn append_null(&mut self) {
        self.ends.push(self.item.len());
        self.nulls.append(false);
    }

    fn truncate(&mut self, length: usize) {
        let end = self.ends.truncate(length);
        self.item.truncate(end);
        self.nulls.truncate(length);
    }

    fn finish(&mut self) -> ArrayRef {
        let items = self.item.finish();
        Arc::new(ListArray::new(Arc::clone(&self.field), self.ends.finish(), items, self.nulls.finish()))
    }
}

pub(super) struct Struct {
    pub(super) fields: Fields,
    arrow: ArrowFields,
    nulls: Nulls,
}

impl Struct {
    fn new(fields: &[(String, Type)]) -> Self {
        let names = fields.iter().map(|(name, ty)| (name.as_str(), ty));
        Self { fields: Fields::new(names), arrow: Type::struct_fields(fields), nulls: Nulls::default() }
    }

    /// Ends an entry whose members were appended to `fields`.
    pub(super) fn end_value(&mut self) {
        self.nulls.append(true);
    }

    pub(super) fn append_null(&mut self) {
        self.fields.append_null();
        self.nulls.append(false);
    }

    fn truncate(&mut self, length: usize) {
        self.fields.truncate(length);
        self.nulls.truncate(length);
    }

    fn finish(&mut self) -> ArrayRef {
        let length = self.nulls.len();
        let members = self.fields.finish();
        match StructArray::try_new_with_length(self.arrow.clone(), members, self.nulls.finish(), length) {
            Ok(array) => {
                debug_assert_eq!(array.len(), length);
                Arc::new(array)
            }
            Err(error) => unreachable!("members have one entry for each of the struct's: {error}"),
        }
    }
}
