//! Each type's refined form.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::IntervalUnit;

use super::*;
use crate::record::Type;

fn encode(batch: &RecordBatch, columns: Option<&[usize]>) -> Vec<String> {
    let (mut out, mut ends) = (b"before".to_vec(), Vec::new());
    let encoder = RowEncoder::new(&batch.schema(), columns).unwrap();
    encoder.encode(batch, 0..batch.num_rows(), &mut out, &mut ends);
    let starts = [6].into_iter().chain(ends.iter().copied());
    starts.zip(&ends).map(|(start, &end)| String::from_utf8(out[start..end].to_vec()).unwrap()).collect()
}

/// Each value of a column alone.
fn column(field: Field, array: impl Array + 'static) -> Vec<String> {
    let schema = Arc::new(Schema::new(vec![field.with_name("x")]));
    let batch = RecordBatch::try_new(schema, vec![Arc::new(array)]).unwrap();
    let strip = |row: String| row.strip_prefix("{\"x\":").unwrap().strip_suffix('}').unwrap().to_string();
    encode(&batch, None).into_iter().map(strip).collect()
}

fn plain_column(array: impl Array + 'static) -> Vec<String> {
    column(Field::new("x", array.data_type().clone(), true), array)
}

#[test]
fn numbers() {
    assert_eq!(plain_column(Int64Array::from(vec![Some(i64::MIN), None])), ["-9223372036854775808", "null"]);
    assert_eq!(plain_column(UInt64Array::from(vec![u64::MAX])), ["18446744073709551615"]);
    assert_eq!(
        plain_column(Float64Array::from(vec![
            1.0,
            -0.0,
            0.1,
            1e300,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY
        ])),
        ["1.0", "-0.0", "0.1", "1e+300", "\"NaN\"", "\"Infinity\"", "\"-Infinity\""]
    );
    assert_eq!(plain_column(Float32Array::from(vec![0.1, f32::NAN])), ["0.1", "\"NaN\""]);
    let decimals =
        Decimal128Array::from(vec![Some(-5), Some(12345), None]).with_data_type(DataType::Decimal128(10, 2));
    assert_eq!(plain_column(decimals), ["\"-0.05\"", "\"123.45\"", "null"]);
}

#[test]
fn times() {
    let expected = ["\"2013-01-01T05:00:00Z\"", "null"];
    assert_eq!(
        plain_column(TimestampMicrosecondArray::from(vec![Some(1_357_016_400_000_000), None])),
        expected
    );
    assert_eq!(plain_column(TimestampSecondArray::from(vec![Some(1_357_016_400), None])), expected);
    assert_eq!(plain_column(TimestampMillisecondArray::from(vec![Some(1_357_016_400_000), None])), expected);
    assert_eq!(plain_column(TimestampNanosecondArray::from(vec![-1])), ["\"1969-12-31T23:59:59.999999Z\""]);
    let zoned = TimestampMicrosecondArray::from(vec![0]).with_timezone("+02:00");
    assert_eq!(plain_column(zoned), ["\"1970-01-01T00:00:00Z\""]);
    assert_eq!(plain_column(Date32Array::from(vec![15_706])), ["\"2013-01-01\""]);
}

#[test]
fn text_and_bytes() {
    let odd = "a\"\\\n\u{1}/ä😀\u{7f}\u{2028}";
    for row in [
        plain_column(StringArray::from(vec![odd])),
        plain_column(LargeStringArray::from(vec![odd])),
        plain_column(StringViewArray::from(vec![odd])),
    ] {
        assert_eq!(row, [serde_json::to_string(odd).unwrap()]);
    }
    let bytes: &[u8] = &[0, 1, 2, 255];
    for row in [
        plain_column(BinaryArray::from(vec![bytes])),
        plain_column(LargeBinaryArray::from(vec![bytes])),
        plain_column(BinaryViewArray::from(vec![bytes])),
        plain_column(FixedSizeBinaryArray::try_from_iter([bytes].into_iter()).unwrap()),
    ] {
        assert_eq!(row, ["\"AAEC/w==\""]);
    }
    assert_eq!(
        plain_column(BooleanArray::from(vec![Some(true), Some(false), None])),
        ["true", "false", "null"]
    );
    assert_eq!(plain_column(NullArray::new(1)), ["null"]);
}

#[test]
fn json_is_embedded_compact_and_anything_else_is_a_string() {
    let texts =
        ["{ \"a b\" : [ 1.00 , \" \\\" \\\\\" , {} ],\n\t\"c\":null }", "{\"a\":1}", "not json", "1 2", ""];
    assert_eq!(
        column(Type::Json.field("x"), StringArray::from(texts.to_vec())),
        ["{\"a b\":[1.00,\" \\\" \\\\\",{}],\"c\":null}", "{\"a\":1}", "\"not json\"", "\"1 2\"", "\"\""]
    );
}

#[test]
fn lists_and_structs_also_when_sliced() {
    let mut lists = ListBuilder::new(Int32Builder::new());
    lists.append_value([Some(1), None]);
    lists.append_null();
    lists.append_value([]);
    lists.append_value([Some(2)]);
    let lists = lists.finish();
    assert_eq!(plain_column(lists.slice(1, 3)), ["null", "[]", "[2]"]);
    let fields: Fields =
        vec![Field::new("l", lists.data_type().clone(), true), Type::Json.field("j\"")].into();
    let texts = StringArray::from(vec!["1", "[]", "{}", "true"]);
    let valid = vec![true, true, false, true].into();
    let structs = StructArray::new(fields, vec![Arc::new(lists), Arc::new(texts)], Some(valid));
    assert_eq!(
        plain_column(structs.slice(1, 3)),
        [r#"{"l":null,"j\"":[]}"#, "null", r#"{"l":[2],"j\"":true}"#]
    );
}

#[test]
fn a_key_is_some_columns_in_their_declared_order() {
    let batch = RecordBatch::try_from_iter([
        ("a", Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef),
        ("b", Arc::new(Int32Array::from(vec![3, 4])) as ArrayRef),
        ("c", Arc::new(Int32Array::from(vec![5, 6])) as ArrayRef),
    ])
    .unwrap();
    assert_eq!(encode(&batch, Some(&[2, 0])), [r#"{"c":5,"a":1}"#, r#"{"c":6,"a":2}"#]);
    assert_eq!(encode(&batch, Some(&[])), ["{}", "{}"]);
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    RowEncoder::new(&batch.schema(), Some(&[1])).unwrap().encode(&batch, 1..2, &mut out, &mut ends);
    assert_eq!((out.as_slice(), ends), (br#"{"b":4}"#.as_slice(), vec![7]));
}

#[test]
fn a_type_without_a_form_is_refused_by_name_also_within() {
    let interval = DataType::Interval(IntervalUnit::DayTime);
    for data_type in [interval.clone(), DataType::new_list(interval, true)] {
        let schema = Schema::new(vec![Field::new("gap", data_type, true)]);
        let error = RowEncoder::new(&schema, None).err().unwrap().to_string();
        assert!(error.contains("'gap'") && error.contains("cast"), "{error}");
    }
}
