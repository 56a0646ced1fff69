//! An oracle that is not ours: a year of flights through the program, and the same SQL over the same records in
//! DuckDB, which must give the same rows.
//!
//! Live, DuckDB works out for itself which records are late (each partition's highest event time so far, less
//! three hours) and which windows are closed at the end; a replay with `--late all` must have every record.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::project::Project;
use crate::support::python_with_duckdb;

/// The views that go to sinks.
const VIEWS: [&str; 5] = ["hourly", "daily", "chosen", "typed", "scalars"];

struct Oracle {
    python: String,
    topology: PathBuf,
    flights: PathBuf,
}

impl Oracle {
    /// What `oracle.py` prints for these arguments; it fails where DuckDB has other rows.
    fn ask(&self, what: &str, arguments: &[&Path]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/oracle/oracle.py");
        let output = Command::new(&self.python).arg(script).arg(what).args(arguments).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{what} {arguments:?}\n{printed}\n{why}");
        printed
    }

    /// Compares the rows in `file` (a topic's records, or a query for a table) with DuckDB's.
    fn compare(&self, what: &str, view: &str, file: &Path) -> u64 {
        let printed = self.ask(what, &[&self.topology, &self.flights, Path::new(view), file]);
        serde_json::from_str::<Value>(&printed).unwrap()["rows"].as_u64().unwrap()
    }
}

#[test]
fn a_year_of_flights_live_and_replayed_equals_the_same_sql_in_duckdb() {
    let Some(python) =
        python_with_duckdb("a_year_of_flights_live_and_replayed_equals_the_same_sql_in_duckdb")
    else {
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let oracle = Oracle {
        python,
        topology: root.join("tests/it/oracle/year.yaml"),
        flights: root.join("tests/data/flights-2013.csv.gz"),
    };
    let project = Project::new();
    let at = |name: &str| project.path().join(name);
    let topology = oracle.topology.to_str().unwrap();
    let _server = project.broker();
    oracle.ask("records", &[&oracle.flights, &at("records.ndjson")]);
    let sent =
        project.ok(&["topic", "produce", "departures", "records.ndjson", "--envelope", "--partitions", "4"]);
    assert_eq!(sent, "sent 336776 records to departures\n");

    let ran = project.ok(&["run", topology, "--until-end", "--json"]);
    let last: Value = serde_json::from_str(ran.lines().last().unwrap()).unwrap();
    let counts: Value =
        serde_json::from_str(&oracle.ask("counts", &[&oracle.topology, &oracle.flights])).unwrap();
    for (outcome, records) in counts.as_object().unwrap() {
        assert_eq!(&last[outcome], records, "{outcome}: {ran}");
    }
    assert!(counts["late"].as_u64().unwrap() > 0, "the test is about late records, too: {counts}");

    let replayed = project.ok(&["replay", topology, "--late", "all", "--json"]);
    let tables: Vec<Value> = replayed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for view in VIEWS {
        let tail = at(&format!("{view}.ndjson"));
        let topic = format!("year.{view}");
        let mut command = project.command(&["topic", "tail", &topic, "--from-beginning", "--json"]);
        let status = command.stdout(std::fs::File::create(&tail).unwrap()).stdin(Stdio::null()).status();
        assert!(status.unwrap().success());
        let live = oracle.compare("live", view, &tail);

        let table = tables.iter().find(|table| table["view"] == view).unwrap();
        let query = at(&format!("{view}.sql"));
        std::fs::write(&query, table["duckdb"].as_str().unwrap()).unwrap();
        let all = oracle.compare("replay", view, &query);
        assert!(all >= live && live > 1000, "{view}: {live} rows live, {all} replayed");
    }
}
