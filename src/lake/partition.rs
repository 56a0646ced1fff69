//! Which folder a row belongs to. Folders are named as Hive names them (`<column>=<value>`, escaped with
//! percent signs), so that any engine finds the partition columns without our manifests.
//!
//! Invariant: a partition value is text or null; the same value always names the same folder, and two values
//! never share one.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, Date32Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// What Hive calls the folder of the rows whose value is null.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";

/// What a table is split into folders by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionBy {
    /// A column's value. The column is kept out of the files; readers take it from the folder's name.
    Column(String),
    /// `date(x)`: the UTC day of a timestamp column, in folders named `<x>_date=YYYY-MM-DD`.
    Date(String),
}

impl PartitionBy {
    /// The name before the `=` of the folder.
    pub fn folder(&self) -> String {
        match self {
            PartitionBy::Column(name) => name.clone(),
            PartitionBy::Date(name) => format!("{name}_date"),
        }
    }
}

/// The value of every partition column, in the table's order.
pub(super) type PartitionValues = Vec<Option<String>>;

/// Checks that a table of these columns can be partitioned so; the error says why not.
pub(super) fn check(schema: &SchemaRef, by: &[PartitionBy]) -> Result<(), String> {
    let mut folders = Vec::new();
    for part in by {
        let (PartitionBy::Column(name) | PartitionBy::Date(name)) = part;
        let Ok(field) = schema.field_with_name(name) else {
            return Err(format!("partition_by names '{name}', which is not one of its columns"));
        };
        let data_type = field.data_type();
        match part {
            PartitionBy::Column(_) if matches!(data_type, DataType::Timestamp(..)) => {
                return Err(format!("cannot partition by the timestamp '{name}'; take date({name})"));
            }
            PartitionBy::Column(_) if !value_is_exact_text(data_type) => {
                return Err(format!(
                    "cannot partition by '{name}' of type {data_type}; take text, integers, booleans or dates"
                ));
            }
            PartitionBy::Date(_) if !matches!(data_type, DataType::Timestamp(TimeUnit::Microsecond, _)) => {
                return Err(format!("date({name}) needs a timestamp; '{name}' is a {data_type}"));
            }
            PartitionBy::Date(_) if schema.column_with_name(&part.folder()).is_some() => {
                return Err(format!(
                    "date({name}) makes the folder column '{name}_date', and there is a column of that name"
                ));
            }
            _ => {}
        }
        if folders.contains(&part.folder()) {
            return Err(format!("partition_by names '{}' twice", part.folder()));
        }
        folders.push(part.folder());
    }
    let left = schema.fields().iter().filter(|field| !is_in_folder(by, field.name())).count();
    if left == 0 {
        return Err("every column is a partition column, so that nothing is left for the files".to_owned());
    }
    Ok(())
}

fn value_is_exact_text(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(
            data_type,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean | DataType::Date32
        )
}

/// Whether the column lives in the folders' names and not in the files.
pub(super) fn is_in_folder(by: &[PartitionBy], column: &str) -> bool {
    by.iter().any(|part| matches!(part, PartitionBy::Column(name) if name == column))
}

/// Splits rows by their partition; the parts come in the order of their first rows, and rows keep theirs.
pub(super) fn split(
    rows: &RecordBatch,
    by: &[PartitionBy],
) -> Result<Vec<(PartitionValues, RecordBatch)>, ArrowError> {
    if rows.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let columns: Vec<StringArray> = by.iter().map(|part| values(rows, part)).collect::<Result<_, _>>()?;
    let value =
        |row: usize| columns.iter().map(move |column| column.is_valid(row).then(|| column.value(row)));
    let mut parts: Vec<(Vec<Option<&str>>, Vec<u32>)> = Vec::new();
    let mut places: HashMap<Vec<Option<&str>>, usize> = HashMap::new();
    let mut place = 0;
    for row in 0..rows.num_rows() {
        // Neighbours mostly share their partition: look up only where it changes.
        let same = parts.get(place).is_some_and(|(values, _)| value(row).eq(values.iter().copied()));
        if !same {
            let values: Vec<Option<&str>> = value(row).collect();
            place = *places.entry(values).or_insert_with_key(|values| {
                parts.push((values.clone(), Vec::new()));
                parts.len() - 1
            });
        }
        parts[place].1.push(row as u32);
    }
    let owned =
        |values: Vec<Option<&str>>| values.into_iter().map(|value| value.map(str::to_owned)).collect();
    if parts.len() == 1 {
        return Ok(parts.into_iter().map(|(values, _)| (owned(values), rows.clone())).collect());
    }
    parts
        .into_iter()
        .map(|(values, indices)| Ok((owned(values), take_record_batch(rows, &UInt32Array::from(indices))?)))
        .collect()
}

/// The partition value of each row, as text.
fn values(rows: &RecordBatch, by: &PartitionBy) -> Result<StringArray, ArrowError> {
    let (PartitionBy::Column(name) | PartitionBy::Date(name)) = by;
    let column = rows
        .column_by_name(name)
        .ok_or_else(|| ArrowError::SchemaError(format!("there is no column '{name}'")))?;
    let text = match by {
        PartitionBy::Column(_) => cast(column, &DataType::Utf8)?,
        PartitionBy::Date(_) => {
            let days: Date32Array = column
                .as_primitive::<TimestampMicrosecondType>()
                .unary(|micros| micros.div_euclid(MICROS_PER_DAY) as i32);
            cast(&days, &DataType::Utf8)?
        }
    };
    Ok(text.as_string().clone())
}

/// A column that holds one partition value in every row: how a reader puts it back.
pub(super) fn column(value: Option<&str>, to: &DataType, rows: usize) -> Result<ArrayRef, ArrowError> {
    let text = StringArray::from_iter(std::iter::repeat_n(value, rows));
    let strict = arrow::compute::CastOptions { safe: false, ..Default::default() };
    arrow::compute::cast_with_options(&text, to, &strict)
}

/// The folders of a partition below the version's: `origin=EWR/window_start_date=2013-01-01`; empty for none.
pub(super) fn folders(by: &[PartitionBy], values: &PartitionValues) -> String {
    let named = by.iter().zip(values).map(|(part, value)| {
        let value = match value.as_deref() {
            None => NULL_FOLDER.to_owned(),
            // The text that means null needs a name of its own.
            Some(NULL_FOLDER) => NULL_FOLDER.replacen('_', "%5F", 1),
            Some(value) => escape(value),
        };
        format!("{}={value}", escape(&part.folder()))
    });
    named.collect::<Vec<_>>().join("/")
}

/// Escapes the characters that Hive's `FileUtils.escapePathName` escapes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_control() || "\"#%'*/:=?\\{[]^".contains(character) {
            escaped.push_str(&format!("%{:02X}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Int32Array, TimestampMicrosecondArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    fn rows() -> RecordBatch {
        let columns: [(&str, ArrayRef); 2] = [
            (
                "t",
                Arc::new(TimestampMicrosecondArray::from(vec![
                    Some(0),
                    Some(-1),
                    None,
                    Some(MICROS_PER_DAY - 1),
                ])),
            ),
            ("c", Arc::new(StringArray::from(vec![Some("a/b"), Some("a/b"), None, Some("")]))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    #[test]
    fn rows_fall_into_the_folders_of_their_utc_day() {
        let by = [PartitionBy::Date("t".to_owned())];
        let parts = split(&rows(), &by).unwrap();
        let seen: Vec<(String, usize)> =
            parts.iter().map(|(values, rows)| (folders(&by, values), rows.num_rows())).collect();
        let expected =
            [("t_date=1970-01-01", 2), ("t_date=1969-12-31", 1), ("t_date=__HIVE_DEFAULT_PARTITION__", 1)];
        assert_eq!(seen, expected.map(|(folder, rows)| (folder.to_owned(), rows)));
    }

    #[test]
    fn two_values_never_share_a_folder() {
        let by = [PartitionBy::Column("c".to_owned())];
        let values = [
            None,
            Some(""),
            Some(NULL_FOLDER),
            Some("a/b"),
            Some("a%2Fb"),
            Some("%"),
            Some("ü b+c"),
            Some(".."),
        ];
        let names: Vec<String> =
            values.iter().map(|value| folders(&by, &vec![value.map(str::to_owned)])).collect();
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), values.len(), "{names:?}");
        assert_eq!(names[3], "c=a%2Fb");
        assert_eq!(names[4], "c=a%252Fb");
        assert_eq!(names[6], "c=ü b+c");
    }

    #[test]
    fn values_come_back_from_their_text() {
        let columns: [ArrayRef; 4] = [
            Arc::new(Int32Array::from(vec![Some(-7), None])),
            Arc::new(BooleanArray::from(vec![Some(true), None])),
            Arc::new(arrow::array::Date32Array::from(vec![Some(-1), None])),
            Arc::new(arrow::array::StringViewArray::from(vec![Some("a=b"), None])),
        ];
        for array in columns {
            let rows = RecordBatch::try_from_iter([("c", Arc::clone(&array))]).unwrap();
            for (values, part) in split(&rows, &[PartitionBy::Column("c".to_owned())]).unwrap() {
                let back = column(values[0].as_deref(), array.data_type(), part.num_rows()).unwrap();
                assert_eq!(&back, part.column(0));
            }
        }
    }

    #[test]
    fn what_cannot_be_a_partition_is_refused_with_a_way_out() {
        let schema = rows().schema();
        let refused = |by: PartitionBy| check(&schema, &[by]).unwrap_err();
        assert!(refused(PartitionBy::Column("t".to_owned())).contains("take date(t)"));
        assert!(refused(PartitionBy::Date("c".to_owned())).contains("needs a timestamp"));
        assert!(refused(PartitionBy::Column("x".to_owned())).contains("not one of its columns"));
        let only: SchemaRef = Arc::new(Schema::new(vec![Field::new("c", DataType::Utf8, true)]));
        assert!(
            check(&only, &[PartitionBy::Column("c".to_owned())]).unwrap_err().contains("nothing is left")
        );
        let twice = [PartitionBy::Column("c".to_owned()), PartitionBy::Column("c".to_owned())];
        assert!(check(&schema, &twice).unwrap_err().contains("twice"));
        let clash = RecordBatch::try_from_iter([
            ("t", Arc::clone(rows().column(0))),
            ("t_date", Arc::clone(rows().column(1))),
        ]);
        assert!(check(&clash.unwrap().schema(), &[PartitionBy::Date("t".to_owned())]).is_err());
    }
}
