//! Our files in another engine: DuckDB, through a Python that has it.

use std::process::Command;

use chrono::{TimeZone, Utc};
use headwater::lake::duckdb_query;

use crate::support::python_with_duckdb;

use super::fixtures::{AWKWARD, HOUR, START, by_origin_and_day, publish, spec, temporary};

/// Reads `query` in DuckDB and prints each row's values, in order of the first.
const DUCKDB: &str = r#"
import duckdb, sys
connection = duckdb.connect()
connection.execute("set timezone = 'America/New_York'")
query = sys.stdin.read()
columns = """flights, epoch_us(window_start), origin, delay, night, "day", price, tags, epoch_us(seen.at), seen.n,
    window_start_date, typeof(window_start), typeof(window_start_date), typeof(origin)"""
for row in connection.execute(f"select {columns} from ({query}) order by seen.n").fetchall():
    print("\x1f".join("null" if value is None else str(value) for value in row), end="\x1e")
"#;

fn ask_duckdb(python: &str, query: &str) -> Vec<Vec<String>> {
    use std::io::Write;
    use std::process::Stdio;
    let mut python = Command::new(python)
        .args(["-c", DUCKDB])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(query.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{query}\n{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\x1e').map(|row| row.split('\x1f').map(str::to_owned).collect()).collect()
}

#[test]
fn lake_is_read_by_duckdb_with_the_query_that_we_give() {
    let Some(python) = python_with_duckdb("lake_is_read_by_duckdb_with_the_query_that_we_give") else {
        return;
    };
    let (_folder, lake) = temporary();
    let manifest = publish(&lake, spec(by_origin_and_day()), 60, 7, 2);
    let seen = ask_duckdb(&python, &duckdb_query(&manifest, lake.url()));
    assert_eq!(seen.len(), 60);
    for (n, row) in seen.iter().enumerate() {
        let number = n as i64;
        let or_null = |every: i64, text: String| if number % every == 0 { "null".to_owned() } else { text };
        let micros = START + number * HOUR + number;
        let day = Utc.timestamp_micros(micros).unwrap().format("%Y-%m-%d").to_string();
        let cents = number * 7 - 50;
        let tags: Vec<String> = (0..number % 3).map(|tag| tag.to_string()).collect();
        let expected = [
            or_null(5, (number * number).to_string()),
            or_null(11, micros.to_string()),
            AWKWARD[n % AWKWARD.len()].unwrap_or("null").to_owned(),
            or_null(7, row[3].clone()),
            or_null(3, if number % 2 == 0 { "True" } else { "False" }.to_owned()),
            or_null(
                9,
                (Utc.timestamp_opt(0, 0).unwrap() + chrono::TimeDelta::days(number * 100))
                    .format("%Y-%m-%d")
                    .to_string(),
            ),
            or_null(
                6,
                format!("{}{}.{:02}", if cents < 0 { "-" } else { "" }, cents.abs() / 100, cents.abs() % 100),
            ),
            or_null(4, format!("[{}]", tags.join(", "))),
            or_null(11, micros.to_string()),
            number.to_string(),
            or_null(11, day),
            "TIMESTAMP WITH TIME ZONE".to_owned(),
            "DATE".to_owned(),
            "VARCHAR".to_owned(),
        ];
        assert_eq!(row.as_slice(), expected, "row {n}");
        if number % 7 != 0 {
            assert_eq!(row[3].parse::<f64>().unwrap(), number as f64 / 3.0);
        }
    }
}

#[test]
fn lake_query_for_a_table_without_rows_or_partitions_works_in_duckdb() {
    let Some(python) =
        python_with_duckdb("lake_query_for_a_table_without_rows_or_partitions_works_in_duckdb")
    else {
        return;
    };
    let (_folder, lake) = temporary();
    let empty = publish(&lake, spec(Vec::new()), 0, 1, 1);
    let count = |query: &str| format!("select *, null::DATE as window_start_date from ({query})");
    assert_eq!(ask_duckdb(&python, &count(&duckdb_query(&empty, lake.url()))).len(), 0);
    let plain = publish(&lake, spec(Vec::new()), 9, 2, 2);
    assert_eq!(ask_duckdb(&python, &count(&duckdb_query(&plain, lake.url()))).len(), 9);
}
