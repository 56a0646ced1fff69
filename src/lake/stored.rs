//! How columns lie in files: timestamps inside are microseconds that mean UTC but do not say so; in Parquet
//! they do say so (`isAdjustedToUTC`), or other readers would take them for local times.
//!
//! Invariant: turning a column into its stored type and back changes no value, only the type's time zone.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, make_array};
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow::error::ArrowError;

/// The type that a column of this type has in a file.
pub(super) fn stored_type(data_type: &DataType) -> DataType {
    let stored_field = |field: &FieldRef| Arc::new(stored_field(field));
    match data_type {
        DataType::Timestamp(unit, None) => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::List(item) => DataType::List(stored_field(item)),
        DataType::LargeList(item) => DataType::LargeList(stored_field(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(stored_field(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(stored_field).collect()),
        other => other.clone(),
    }
}

pub(super) fn stored_field(field: &FieldRef) -> Field {
    field.as_ref().clone().with_data_type(stored_type(field.data_type()))
}

/// The same values under a type that differs only in time zones.
pub(super) fn retype(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    Ok(make_array(retype_data(array.to_data(), to)?))
}

fn retype_data(data: ArrayData, to: &DataType) -> Result<ArrayData, ArrowError> {
    if data.data_type() == to {
        return Ok(data);
    }
    let inner: Vec<&DataType> = match to {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            vec![item.data_type()]
        }
        DataType::Struct(fields) => fields.iter().map(|field| field.data_type()).collect(),
        _ => Vec::new(),
    };
    let same = match (data.data_type(), to) {
        (DataType::Timestamp(from, _), DataType::Timestamp(to, _)) => from == to,
        (from, to) => {
            std::mem::discriminant(from) == std::mem::discriminant(to)
                && !inner.is_empty()
                && inner.len() == data.child_data().len()
        }
    };
    if !same {
        return Err(ArrowError::SchemaError(format!("a {} is not a {to}", data.data_type())));
    }
    let children = data
        .child_data()
        .iter()
        .zip(inner)
        .map(|(child, to)| retype_data(child.clone(), to))
        .collect::<Result<_, _>>()?;
    data.into_builder().data_type(to.clone()).child_data(children).build()
}

#[cfg(test)]
mod tests {
    use arrow::array::{ListArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Schema, TimeUnit, TimestampMicrosecondType};

    use super::*;

    #[test]
    fn nested_timestamps_become_utc_and_come_back() {
        let lists = ListArray::from_iter_primitive::<TimestampMicrosecondType, _, _>([
            Some(vec![Some(1), None]),
            None,
            Some(vec![Some(-1)]),
        ]);
        let lists: ArrayRef = Arc::new(lists.slice(1, 2));
        let utc = stored_type(lists.data_type());
        let item = Arc::new(Field::new(
            "item",
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            true,
        ));
        assert_eq!(utc, DataType::List(item));
        let stored = retype(&lists, &utc).unwrap();
        assert_eq!(stored.data_type(), &utc);
        assert_eq!(&retype(&stored, lists.data_type()).unwrap(), &lists);
    }

    #[test]
    fn another_unit_or_type_is_refused() {
        let micros: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1]));
        assert!(retype(&micros, &DataType::Timestamp(TimeUnit::Millisecond, None)).is_err());
        assert!(retype(&micros, &DataType::Int64).is_err());
        let schema = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
        assert!(retype(&micros, &DataType::Struct(schema.fields)).is_err());
    }
}
