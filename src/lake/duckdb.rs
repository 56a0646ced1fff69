//! The query by which DuckDB reads a version: for readers that know nothing of manifests.

use std::str::FromStr;

use arrow::datatypes::{DataType, TimeUnit};

use super::manifest::{Manifest, folder_name};

/// More files than this are named by a pattern: the query is for people, too.
const FILES_NAMED_MAX: usize = 8;

/// The exact DuckDB query for a version's rows: the table's columns in order, then the `date(x)` columns of its
/// folders, so that a filter on them skips files. `lake_url` is the lake's path or URL, as the reader sees it.
pub fn duckdb_query(manifest: &Manifest, lake_url: &str) -> String {
    let types: Vec<(&str, String)> =
        manifest.columns.iter().map(|column| (column.name.as_str(), type_name(&column.data_type))).collect();
    let Some(first) = manifest.files.first() else {
        let columns =
            types.iter().map(|(name, data_type)| format!("null::{data_type} as {}", identifier(name)));
        return format!("select {} where false", columns.collect::<Vec<_>>().join(", "));
    };
    let declared = |name: &str| types.iter().find(|(column, _)| *column == name);
    let mut selected: Vec<String> = types.iter().map(|(name, _)| identifier(name)).collect();
    let mut hive_types = Vec::new();
    for name in first.partition.keys() {
        let data_type = declared(name).map_or("DATE", |(_, data_type)| data_type);
        hive_types.push(format!("{}: {data_type}", text(name)));
        if declared(name).is_none() {
            selected.push(identifier(name));
        }
    }
    let root = lake_url.trim_end_matches('/');
    let folder = format!("{root}/{}", manifest.table);
    let hive = if hive_types.is_empty() {
        "hive_partitioning = false".to_owned()
    } else {
        format!("hive_partitioning = true, hive_types = {{{}}}", hive_types.join(", "))
    };
    format!("select {}\nfrom read_parquet({}, {hive})", selected.join(", "), files(manifest, &folder))
}

/// A few files by name. Many by a pattern over the version's folder: it holds the manifest's files and no
/// others, as one replay owned it and publishes only if each of its writers has finished.
fn files(manifest: &Manifest, folder: &str) -> String {
    let pattern = format!("{folder}/{}", folder_name(manifest.version));
    if manifest.files.len() > FILES_NAMED_MAX && !pattern.contains(['*', '?', '[', ']']) {
        return text(&format!("{pattern}/**/*.parquet"));
    }
    let named = manifest.files.iter().map(|file| format!("  {}", text(&format!("{folder}/{}", file.path))));
    format!("[\n{}\n]", named.collect::<Vec<_>>().join(",\n"))
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn type_name(arrow_name: &str) -> String {
    DataType::from_str(arrow_name).map_or_else(|_| "VARCHAR".to_owned(), |data_type| duckdb_type(&data_type))
}

fn duckdb_type(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Boolean => "BOOLEAN",
        DataType::Int8 => "TINYINT",
        DataType::Int16 => "SMALLINT",
        DataType::Int32 => "INTEGER",
        DataType::Int64 => "BIGINT",
        DataType::UInt8 => "UTINYINT",
        DataType::UInt16 => "USMALLINT",
        DataType::UInt32 => "UINTEGER",
        DataType::UInt64 => "UBIGINT",
        DataType::Float32 => "FLOAT",
        DataType::Float64 => "DOUBLE",
        DataType::Date32 => "DATE",
        DataType::Time32(_) | DataType::Time64(_) => "TIME",
        DataType::Timestamp(TimeUnit::Nanosecond, _) => "TIMESTAMP_NS",
        DataType::Timestamp(..) => "TIMESTAMPTZ",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "BLOB"
        }
        DataType::Decimal128(precision, scale) => return format!("DECIMAL({precision}, {scale})"),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            return format!("{}[]", duckdb_type(item.data_type()));
        }
        DataType::Struct(fields) => {
            let fields = fields
                .iter()
                .map(|field| format!("{} {}", identifier(field.name()), duckdb_type(field.data_type())));
            return format!("STRUCT({})", fields.collect::<Vec<_>>().join(", "));
        }
        DataType::Dictionary(_, values) => return duckdb_type(values),
        _ => "VARCHAR",
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::manifest::{Column, FORMAT, FileEntry};
    use super::*;

    fn manifest(files: Vec<FileEntry>) -> Manifest {
        let column = |name: &str, data_type: &str| Column {
            name: name.to_owned(),
            data_type: data_type.to_owned(),
            nullable: true,
        };
        Manifest {
            format: FORMAT,
            version: 1,
            table: "gold/t".to_owned(),
            topology: String::new(),
            fingerprint: String::new(),
            offsets: BTreeMap::new(),
            late: String::new(),
            columns: vec![column("at", "Timestamp(µs)"), column("ori\"gin", "Utf8")],
            files,
            rows: 0,
            bytes: 0,
            counts: BTreeMap::new(),
            digest: String::new(),
            started: String::new(),
            ended: String::new(),
            written_at: String::new(),
        }
    }

    #[test]
    fn the_query_names_the_files_the_columns_and_the_folders_types() {
        let partition =
            BTreeMap::from([("ori\"gin".to_owned(), Some("o'n".to_owned())), ("at_date".to_owned(), None)]);
        let path = "v000001/ori%22gin=o%27n/at_date=__HIVE_DEFAULT_PARTITION__/part-0-0.parquet";
        let file = FileEntry { path: path.to_owned(), rows: 1, bytes: 1, partition };
        let expected = format!(
            r#"select "at", "ori""gin", "at_date"
from read_parquet([
  '/la''ke/gold/t/{path}'
], hive_partitioning = true, hive_types = {{'at_date': DATE, 'ori"gin': VARCHAR}})"#
        );
        assert_eq!(duckdb_query(&manifest(vec![file]), "/la'ke/"), expected);
    }

    #[test]
    fn many_files_are_named_by_a_pattern_unless_the_path_would_be_one_itself() {
        let file = |at: usize| FileEntry {
            path: format!("v000001/part-{at}-0.parquet"),
            rows: 1,
            bytes: 1,
            partition: BTreeMap::new(),
        };
        let many = manifest((0..9).map(file).collect());
        let query = duckdb_query(&many, "/lake");
        assert!(query.contains("read_parquet('/lake/gold/t/v000001/**/*.parquet', "), "{query}");
        assert!(duckdb_query(&many, "/la*ke").contains("'/la*ke/gold/t/v000001/part-8-0.parquet'"));
    }

    #[test]
    fn a_version_without_files_has_its_columns_and_no_rows() {
        let expected = r#"select null::TIMESTAMPTZ as "at", null::VARCHAR as "ori""gin" where false"#;
        assert_eq!(duckdb_query(&manifest(Vec::new()), "/lake"), expected);
    }
}
