//! Numbers in as few bytes as they need: a column becomes how many units each of its numbers is above the least of
//! them, in the narrowest unsigned integers that all of these fit into (frame of reference). Columns that become the
//! same are kept once.
//!
//! Times, offsets, counts and sums of one epoch lie close together, windows are whole units apart, and most counts of a
//! row are one count: a row of 90 bytes takes some 20.
//!
//! ```text
//! form   0: as it is │ 1, 2, 4, 8: unsigned integers of so many bytes, scale │ 255: column u16, scale
//! scale  base i128 │ unit u64
//! ```
//! Invariant: what was narrowed is widened to the same bits, but for entries that are null; whatever a message says,
//! widening is defined.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, ArrowPrimitiveType, PrimitiveArray, RecordBatch, RecordBatchOptions,
    make_array,
};
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowNativeType, DataType, Field, FieldRef, Fields, Schema, SchemaRef, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type, i256,
};
use arrow::error::ArrowError;

use super::super::Result;
use super::{Reader, damaged};

const PLAIN: u8 = 0;
const LIKE: u8 = 255;

/// Rows as they leave: forms as they stand in a message, and the columns that are in it.
pub struct Narrowed {
    pub(super) forms: Vec<u8>,
    pub(super) rows: RecordBatch,
}

/// How a column lies in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    /// Unsigned integers of so many bytes.
    Narrow(u8, Scale),
    /// Not at all: its numbers are those of an earlier column, which is narrow.
    Like(u16, Scale),
}

/// A number is `base + unit · n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scale {
    base: i128,
    unit: u64,
}

impl Narrowed {
    pub fn of(rows: &RecordBatch) -> Result<Self> {
        let mut forms = Vec::with_capacity(rows.num_columns() * 25);
        let mut fields = Vec::with_capacity(rows.num_columns());
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(rows.num_columns());
        // Of the columns that are in the message: where they stand among all, and how many bytes a number takes.
        let mut narrow_ones: Vec<(usize, u8, usize)> = Vec::new();
        for (index, (field, column)) in rows.schema_ref().fields().iter().zip(rows.columns()).enumerate() {
            let Some((width, scale, narrowed)) = narrow(column) else {
                forms.push(PLAIN);
                fields.push(Arc::clone(field));
                columns.push(Arc::clone(column));
                continue;
            };
            let same =
                narrow_ones.iter().find(|&&(_, other, at)| other == width && *columns[at] == *narrowed);
            match same {
                Some(&(other, ..)) => {
                    forms.push(LIKE);
                    forms.extend((other as u16).to_le_bytes());
                }
                None => {
                    narrow_ones.push((index, width, columns.len()));
                    forms.push(width);
                    fields.push(Arc::new(Field::new(
                        field.name(),
                        narrowed.data_type().clone(),
                        field.is_nullable(),
                    )));
                    columns.push(narrowed);
                }
            }
            forms.extend(scale.base.to_le_bytes());
            forms.extend(scale.unit.to_le_bytes());
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        Ok(Self { forms, rows })
    }
}

/// The columns' forms, as a message says them.
pub(super) fn read_forms(fields: &Fields, reader: &mut Reader<'_>) -> Result<Vec<Form>> {
    let mut forms: Vec<Form> = Vec::with_capacity(fields.len());
    for field in fields {
        let form = match reader.array::<1>()?[0] {
            PLAIN => Form::Plain,
            LIKE => Form::Like(u16::from_le_bytes(reader.array()?), Scale::read(reader)?),
            width => Form::Narrow(width, Scale::read(reader)?),
        };
        let width = match form {
            Form::Plain => None,
            Form::Narrow(width, _) => type_of(width).map(|_| width),
            Form::Like(other, _) => match forms.get(usize::from(other)) {
                Some(&Form::Narrow(width, _)) => Some(width),
                _ => None,
            },
        };
        let is_narrower =
            |width: u8| bytes_of(field.data_type()).is_some_and(|bytes| usize::from(width) < bytes);
        let can_be = form == Form::Plain || width.is_some_and(is_narrower);
        if !can_be {
            return Err(damaged(format!("column {} is of a form that it cannot have", field.name())));
        }
        forms.push(form);
    }
    Ok(forms)
}

/// What the columns in a message are, when all columns are of these forms.
pub(super) fn schema_of(fields: &Fields, forms: &[Form]) -> SchemaRef {
    let in_it = fields.iter().zip(forms).filter_map(|(field, form)| match *form {
        Form::Plain => Some(Arc::clone(field)),
        Form::Narrow(width, _) => {
            let narrowed = Field::new(field.name(), type_of(width)?, field.is_nullable());
            Some(FieldRef::from(narrowed))
        }
        Form::Like(..) => None,
    });
    Arc::new(Schema::new(in_it.collect::<Vec<_>>()))
}

/// All columns as they were, from those in the message.
pub(super) fn widened(
    schema: &SchemaRef,
    forms: &[Form],
    rows: &RecordBatch,
) -> Result<RecordBatch, ArrowError> {
    let mut columns = rows.columns().iter();
    let mut narrow_ones: Vec<Option<&ArrayRef>> = Vec::with_capacity(forms.len());
    let missing = || ArrowError::SchemaError("a column is not in the message".into());
    let mut all = Vec::with_capacity(forms.len());
    for (field, form) in schema.fields().iter().zip(forms) {
        let (column, scale) = match *form {
            Form::Plain => {
                all.push(Arc::clone(columns.next().ok_or_else(missing)?));
                narrow_ones.push(None);
                continue;
            }
            Form::Narrow(_, scale) => (columns.next().ok_or_else(missing)?, scale),
            Form::Like(other, scale) => {
                (narrow_ones.get(usize::from(other)).copied().flatten().ok_or_else(missing)?, scale)
            }
        };
        all.push(widen(column, scale, field.data_type())?);
        narrow_ones.push(Some(column));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), all, &options)
}

impl Scale {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let base = i128::from_le_bytes(reader.array()?);
        Ok(Self { base, unit: u64::from_le_bytes(reader.array()?) })
    }
}

fn type_of(width: u8) -> Option<DataType> {
    match width {
        1 => Some(DataType::UInt8),
        2 => Some(DataType::UInt16),
        4 => Some(DataType::UInt32),
        8 => Some(DataType::UInt64),
        _ => None,
    }
}

/// A number's bits, as the integer that they are.
trait Bits: ArrowNativeType + Ord {
    /// `None` if it does not fit.
    fn wide(self) -> Option<i128>;
    /// The lowest bits.
    fn of(wide: i128) -> Self;
    /// How far it is above the base; the lowest bits of it.
    fn above(self, base: Self) -> u64;
    fn plus(self, distance: u64) -> Self;
}

macro_rules! bits {
    ($native:ty) => {
        impl Bits for $native {
            fn wide(self) -> Option<i128> {
                Some(self.into())
            }
            fn of(wide: i128) -> Self {
                wide as Self
            }
            fn above(self, base: Self) -> u64 {
                self.wrapping_sub(base) as u64
            }
            fn plus(self, distance: u64) -> Self {
                self.wrapping_add(distance as Self)
            }
        }
    };
}

bits!(i16);
bits!(i32);
bits!(i64);
bits!(i128);

impl Bits for i256 {
    fn wide(self) -> Option<i128> {
        self.to_i128()
    }
    fn of(wide: i128) -> Self {
        Self::from_i128(wide)
    }
    fn above(self, base: Self) -> u64 {
        self.wrapping_sub(base).as_i128() as u64
    }
    fn plus(self, distance: u64) -> Self {
        self.wrapping_add(Self::from_i128(distance.into()))
    }
}

/// How many bytes a number takes, and the numbers; `None` if the column had better stay as it is.
fn narrow(column: &ArrayRef) -> Option<(u8, Scale, ArrayRef)> {
    match bytes_of(column.data_type()) {
        Some(2) => narrow_bits::<i16>(column),
        Some(4) => narrow_bits::<i32>(column),
        Some(8) => narrow_bits::<i64>(column),
        Some(16) => narrow_bits::<i128>(column),
        Some(32) => narrow_bits::<i256>(column),
        _ => None,
    }
}

/// Of numbers: how many bytes each takes.
fn bytes_of(data_type: &DataType) -> Option<usize> {
    let numbers = data_type.is_integer() || data_type.is_temporal() || data_type.is_decimal();
    data_type.primitive_width().filter(|_| numbers && !matches!(data_type, DataType::Interval(_)))
}

fn narrow_bits<B: Bits>(column: &ArrayRef) -> Option<(u8, Scale, ArrayRef)> {
    let data = column.to_data();
    let numbers = ScalarBuffer::<B>::new(data.buffers()[0].clone(), data.offset(), data.len());
    let nulls = data.nulls().filter(|nulls| nulls.null_count() > 0);
    let (least, most) = match nulls {
        None => bounds(numbers.iter().copied()),
        Some(nulls) => bounds(nulls.valid_indices().map(|entry| numbers[entry])),
    }?;
    let base = least.wide()?;
    let mut range = u64::try_from(most.wide()?.checked_sub(base)?).ok()?;
    let mut unit = 1;
    if range > u64::from(u8::MAX) && nulls.is_none() {
        unit = unit_of(numbers.iter().map(|number| number.above(least)));
        range /= unit;
    }
    let width = match range {
        0..=0xFF => 1,
        0x100..=0xFFFF => 2,
        0x1_0000..=0xFFFF_FFFF => 4,
        _ => 8,
    };
    if width >= size_of::<B>() {
        return None;
    }
    let nulls = nulls.cloned();
    let above = numbers.iter().map(|number| number.above(least));
    let column: ArrayRef = if unit == 1 {
        column_of_width(width, above, nulls)
    } else {
        // Neighbours are mostly equal, which spares a division.
        let mut last = (0, 0);
        let units = above.map(|above| {
            if above != last.0 {
                last = (above, above / unit);
            }
            last.1
        });
        column_of_width(width, units, nulls)
    };
    Some((width as u8, Scale { base, unit }, column))
}

fn bounds<B: Bits>(mut numbers: impl Iterator<Item = B>) -> Option<(B, B)> {
    let first = numbers.next()?;
    Some(numbers.fold((first, first), |(least, most), number| (least.min(number), most.max(number))))
}

/// The greatest number that divides all of these, of which one is not 0.
fn unit_of(distances: impl Iterator<Item = u64>) -> u64 {
    let (mut unit, mut last) = (0, 0);
    for distance in distances {
        if distance == last {
            continue;
        }
        last = distance;
        let (mut divisor, mut rest) = (unit, distance);
        while rest != 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        unit = divisor;
        if unit == 1 {
            break;
        }
    }
    unit
}

fn column_of_width(width: usize, numbers: impl Iterator<Item = u64>, nulls: Option<NullBuffer>) -> ArrayRef {
    match width {
        1 => column_of::<UInt8Type>(numbers.map(|number| number as u8), nulls),
        2 => column_of::<UInt16Type>(numbers.map(|number| number as u16), nulls),
        4 => column_of::<UInt32Type>(numbers.map(|number| number as u32), nulls),
        _ => column_of::<UInt64Type>(numbers, nulls),
    }
}

fn column_of<T: ArrowPrimitiveType>(
    numbers: impl Iterator<Item = T::Native>,
    nulls: Option<NullBuffer>,
) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(numbers.collect(), nulls))
}

fn widen(column: &ArrayRef, scale: Scale, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    match bytes_of(data_type) {
        Some(2) => widen_bits::<i16>(column, scale, data_type),
        Some(4) => widen_bits::<i32>(column, scale, data_type),
        Some(8) => widen_bits::<i64>(column, scale, data_type),
        Some(16) => widen_bits::<i128>(column, scale, data_type),
        Some(32) => widen_bits::<i256>(column, scale, data_type),
        _ => Err(ArrowError::CastError(format!("no {data_type} is narrowed"))),
    }
}

fn widen_bits<B: Bits>(
    column: &ArrayRef,
    scale: Scale,
    data_type: &DataType,
) -> Result<ArrayRef, ArrowError> {
    let data = column.to_data();
    let (base, unit) = (B::of(scale.base), scale.unit);
    let number = |units: u64| base.plus(units.wrapping_mul(unit));
    let numbers: Vec<B> = match data.data_type() {
        DataType::UInt8 => units::<u8>(&data).iter().map(|&units| number(units.into())).collect(),
        DataType::UInt16 => units::<u16>(&data).iter().map(|&units| number(units.into())).collect(),
        DataType::UInt32 => units::<u32>(&data).iter().map(|&units| number(units.into())).collect(),
        _ => units::<u64>(&data).iter().map(|&units| number(units)).collect(),
    };
    let widened = ArrayData::builder(data_type.clone())
        .len(data.len())
        .add_buffer(Buffer::from_vec(numbers))
        .nulls(data.nulls().cloned())
        .build()?;
    Ok(make_array(widened))
}

fn units<N: ArrowNativeType>(data: &ArrayData) -> ScalarBuffer<N> {
    ScalarBuffer::new(data.buffers()[0].clone(), data.offset(), data.len())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Decimal256Array, Float64Array, Int16Array, Int64Array, UInt64Array};
    use proptest::prelude::*;

    use super::*;

    /// The forms of columns, which come back as they were.
    fn again(columns: &[ArrayRef]) -> Vec<Form> {
        let named =
            columns.iter().enumerate().map(|(index, column)| (index.to_string(), Arc::clone(column), true));
        let rows = RecordBatch::try_from_iter_with_nullable(named).expect("columns of one length");
        let narrowed = Narrowed::of(&rows).expect("it is narrowed");
        let mut reader = Reader(&narrowed.forms);
        let forms = read_forms(rows.schema().fields(), &mut reader).expect("forms");
        assert!(reader.0.is_empty());
        assert_eq!(schema_of(rows.schema().fields(), &forms), narrowed.rows.schema());
        assert_eq!(widened(&rows.schema(), &forms, &narrowed.rows).expect("it is widened"), rows);
        forms
    }

    fn width(column: impl Array + 'static) -> Option<u8> {
        match again(&[Arc::new(column)])[..] {
            [Form::Narrow(width, _)] => Some(width),
            _ => None,
        }
    }

    #[test]
    fn a_column_is_as_wide_as_its_range() {
        let at = 1_700_000_000_000_000_i64;
        assert_eq!(width(Int64Array::from(vec![at, at, at])), Some(1));
        assert_eq!(width(Int64Array::from(vec![at, at + 255])), Some(1));
        assert_eq!(width(Int64Array::from(vec![Some(at - 1), None, Some(at + 255)])), Some(2));
        assert_eq!(width(Int64Array::from(vec![-1, 0, 1 << 31])), Some(4));
        assert_eq!(width(Int64Array::from(vec![i64::MIN, 0, i64::MAX])), None);
        assert_eq!(width(UInt64Array::from(vec![u64::MAX, u64::MAX - 1, u64::MAX - 300])), Some(2));
        assert_eq!(width(Int16Array::from(vec![i16::MIN, 0, i16::MAX])), None);
        assert_eq!(width(Decimal256Array::from(vec![i256::MAX, i256::MAX])), None, "its base is too large");
        assert_eq!(width(Float64Array::from(vec![1.0, 1.0])), None);
        let empty: [Option<i64>; 0] = [];
        assert_eq!(width(Int64Array::from(empty.to_vec())), None);
        assert_eq!(width(Int64Array::from(vec![None, None])), None, "nothing but nulls");
        assert_eq!(width(Int64Array::from(vec![i64::MAX, 5, 6, 7]).slice(1, 3)), Some(1));
    }

    #[test]
    fn windows_are_units_apart_and_counts_are_kept_once() {
        let at = 1_700_000_000_000_000_i64;
        let of = |numbers: [i64; 4]| Arc::new(Int64Array::from(numbers.to_vec())) as ArrayRef;
        let start = of([at, at, at + 10_000_000, at + 30_000_000]);
        let end = of([at + 10_000_000, at + 10_000_000, at + 20_000_000, at + 40_000_000]);
        let wide = arrow::compute::cast(&of([1, 1, 2, 4]), &DataType::Decimal256(76, 0)).expect("it is cast");
        let forms = again(&[start, end, of([7, 7, 8, 10]), wide, of([1, 1, 2, 3])]);
        let scale = |base: i64, unit| Scale { base: base.into(), unit };
        assert_eq!(
            forms,
            [
                Form::Narrow(1, scale(at, 10_000_000)),
                Form::Like(0, scale(at + 10_000_000, 10_000_000)),
                Form::Like(0, scale(7, 1)),
                Form::Like(0, scale(1, 1)),
                Form::Narrow(1, scale(1, 1)),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_numbers_come_back(
            base: i64,
            unit in prop_oneof![Just(1i64), any::<i64>(), Just(1_000_000)],
            numbers in prop::collection::vec(prop::option::weighted(0.9, prop_oneof![0i64..9, any::<i64>()]), 0..40),
            start in 0..5usize,
        ) {
            let number = |units: i64| base.wrapping_add(units.wrapping_mul(unit));
            let numbers: Vec<_> = numbers.iter().map(|units| units.map(number)).collect();
            let start = start.min(numbers.len());
            let of = |numbers: &[Option<i64>]| -> ArrayRef { Arc::new(Int64Array::from(numbers.to_vec())) };
            let reversed: Vec<_> = numbers.iter().rev().copied().collect();
            again(&[of(&numbers).slice(start, numbers.len() - start)]);
            let cast = |data_type| arrow::compute::cast(&of(&numbers), &data_type).expect("it is cast");
            again(&[
                cast(DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None)),
                of(&reversed),
                cast(DataType::Decimal128(38, 0)),
                cast(DataType::Decimal256(76, 0)),
            ]);
        }
    }
}
