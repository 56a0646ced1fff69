//! Numbers in as few bytes as they need: a column becomes what its numbers are above the least of them, in the
//! narrowest unsigned integers that all of these fit into (frame of reference).
//!
//! Times, offsets, counts and sums of one epoch lie close together, so a row of 80 bytes takes some 20, and the
//! producer compresses as much less.
//!
//! Invariant: what was narrowed is widened to the same bits, but for entries that are null; whatever a message says,
//! widening is defined.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, ArrowPrimitiveType, PrimitiveArray, make_array};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowNativeType, DataType, Field, FieldRef, UInt8Type, UInt16Type, UInt32Type, UInt64Type, i256,
};
use arrow::error::ArrowError;

/// How a column lies in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As it is.
    Plain,
    /// Unsigned integers of so many bytes, above a base.
    Narrow { width: u8, base: i128 },
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

/// The column as it leaves.
pub(super) fn narrow(column: &ArrayRef) -> (Form, ArrayRef) {
    let narrowed = match bytes_of(column.data_type()) {
        Some(2) => narrow_bits::<i16>(column),
        Some(4) => narrow_bits::<i32>(column),
        Some(8) => narrow_bits::<i64>(column),
        Some(16) => narrow_bits::<i128>(column),
        Some(32) => narrow_bits::<i256>(column),
        _ => None,
    };
    narrowed.unwrap_or_else(|| (Form::Plain, Arc::clone(column)))
}

/// Of numbers: how many bytes each takes.
fn bytes_of(data_type: &DataType) -> Option<usize> {
    let numbers = data_type.is_integer() || data_type.is_temporal() || data_type.is_decimal();
    data_type.primitive_width().filter(|_| numbers && !matches!(data_type, DataType::Interval(_)))
}

fn narrow_bits<B: Bits>(column: &ArrayRef) -> Option<(Form, ArrayRef)> {
    let data = column.to_data();
    let numbers = ScalarBuffer::<B>::new(data.buffers()[0].clone(), data.offset(), data.len());
    let nulls = data.nulls().filter(|nulls| nulls.null_count() > 0);
    let (least, most) = match nulls {
        None => bounds(numbers.iter().copied()),
        Some(nulls) => bounds(nulls.valid_indices().map(|entry| numbers[entry])),
    }?;
    let base = least.wide()?;
    let range = u64::try_from(most.wide()?.checked_sub(base)?).ok()?;
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
    let column: ArrayRef = match width {
        1 => column_of::<UInt8Type>(numbers.iter().map(|number| number.above(least) as u8), nulls),
        2 => column_of::<UInt16Type>(numbers.iter().map(|number| number.above(least) as u16), nulls),
        4 => column_of::<UInt32Type>(numbers.iter().map(|number| number.above(least) as u32), nulls),
        _ => column_of::<UInt64Type>(numbers.iter().map(|number| number.above(least)), nulls),
    };
    Some((Form::Narrow { width: width as u8, base }, column))
}

fn bounds<B: Bits>(mut numbers: impl Iterator<Item = B>) -> Option<(B, B)> {
    let first = numbers.next()?;
    Some(numbers.fold((first, first), |(least, most), number| (least.min(number), most.max(number))))
}

fn column_of<T: ArrowPrimitiveType>(
    numbers: impl Iterator<Item = T::Native>,
    nulls: Option<arrow::buffer::NullBuffer>,
) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(numbers.collect(), nulls))
}

/// What a column of this form and field is called in the message; `None` if there is none.
pub(super) fn narrowed_field(field: &FieldRef, form: Form) -> Option<FieldRef> {
    let Form::Narrow { width, .. } = form else { return Some(Arc::clone(field)) };
    let data_type = match width {
        1 => DataType::UInt8,
        2 => DataType::UInt16,
        4 => DataType::UInt32,
        8 => DataType::UInt64,
        _ => return None,
    };
    if bytes_of(field.data_type())? <= usize::from(width) {
        return None;
    }
    Some(Arc::new(Field::new(field.name(), data_type, field.is_nullable())))
}

/// The column as it was.
pub(super) fn widen(column: &ArrayRef, form: Form, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let Form::Narrow { base, .. } = form else { return Ok(Arc::clone(column)) };
    match bytes_of(data_type) {
        Some(2) => widen_bits::<i16>(column, base, data_type),
        Some(4) => widen_bits::<i32>(column, base, data_type),
        Some(8) => widen_bits::<i64>(column, base, data_type),
        Some(16) => widen_bits::<i128>(column, base, data_type),
        Some(32) => widen_bits::<i256>(column, base, data_type),
        _ => Err(ArrowError::CastError(format!("no {data_type} is narrowed"))),
    }
}

fn widen_bits<B: Bits>(column: &ArrayRef, base: i128, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let data = column.to_data();
    let base = B::of(base);
    let numbers: Vec<B> = match data.data_type() {
        DataType::UInt8 => distances::<u8>(&data).iter().map(|&above| base.plus(above.into())).collect(),
        DataType::UInt16 => distances::<u16>(&data).iter().map(|&above| base.plus(above.into())).collect(),
        DataType::UInt32 => distances::<u32>(&data).iter().map(|&above| base.plus(above.into())).collect(),
        _ => distances::<u64>(&data).iter().map(|&above| base.plus(above)).collect(),
    };
    let widened = ArrayData::builder(data_type.clone())
        .len(data.len())
        .add_buffer(Buffer::from_vec(numbers))
        .nulls(data.nulls().cloned())
        .build()?;
    Ok(make_array(widened))
}

fn distances<D: ArrowNativeType>(data: &ArrayData) -> ScalarBuffer<D> {
    ScalarBuffer::new(data.buffers()[0].clone(), data.offset(), data.len())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Decimal256Array, Float64Array, Int16Array, Int64Array, UInt64Array};
    use proptest::prelude::*;

    use super::*;

    fn again(column: &ArrayRef) -> Form {
        let (form, narrowed) = narrow(column);
        let field = Arc::new(Field::new("n", column.data_type().clone(), true));
        let named = narrowed_field(&field, form).expect("a form of its own column");
        assert_eq!(named.data_type(), narrowed.data_type());
        assert_eq!(&widen(&narrowed, form, column.data_type()).expect("it is widened"), column);
        form
    }

    fn width(column: impl Array + 'static) -> Option<u8> {
        let column: ArrayRef = Arc::new(column);
        match again(&column) {
            Form::Plain => None,
            Form::Narrow { width, .. } => Some(width),
        }
    }

    #[test]
    fn a_column_is_as_wide_as_its_range() {
        let at = 1_700_000_000_000_000_i64;
        assert_eq!(width(Int64Array::from(vec![at, at, at])), Some(1));
        assert_eq!(width(Int64Array::from(vec![at, at + 255])), Some(1));
        assert_eq!(width(Int64Array::from(vec![Some(at - 1), None, Some(at + 255)])), Some(2));
        assert_eq!(width(Int64Array::from(vec![-1, 1 << 31])), Some(4));
        assert_eq!(width(Int64Array::from(vec![i64::MIN, i64::MAX])), None);
        assert_eq!(width(UInt64Array::from(vec![u64::MAX, u64::MAX - 300])), Some(2));
        assert_eq!(width(Int16Array::from(vec![i16::MIN, i16::MAX])), None);
        assert_eq!(width(Decimal256Array::from(vec![i256::MAX, i256::MAX])), None, "its base is too large");
        assert_eq!(width(Float64Array::from(vec![1.0, 1.0])), None);
        let empty: [Option<i64>; 0] = [];
        assert_eq!(width(Int64Array::from(empty.to_vec())), None);
        assert_eq!(width(Int64Array::from(vec![None, None])), None, "nothing but nulls");
        assert_eq!(width(Int64Array::from(vec![i64::MAX, 5, 6, 7]).slice(1, 3)), Some(1));
    }

    proptest! {
        #[test]
        fn any_numbers_come_back(
            base: i64,
            numbers in prop::collection::vec(prop::option::of(prop_oneof![0i64..9, any::<i64>()]), 0..40),
            start in 0..5usize,
        ) {
            let numbers: Vec<_> = numbers.iter().map(|number| number.map(|number| base.wrapping_add(number))).collect();
            let start = start.min(numbers.len());
            let of = |numbers: &[Option<i64>]| -> ArrayRef { Arc::new(Int64Array::from(numbers.to_vec())) };
            again(&of(&numbers).slice(start, numbers.len() - start));
            for data_type in [
                DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None),
                DataType::Decimal128(38, 0),
                DataType::Decimal256(76, 0),
            ] {
                again(&arrow::compute::cast(&of(&numbers), &data_type).expect("it is cast"));
            }
        }
    }
}
