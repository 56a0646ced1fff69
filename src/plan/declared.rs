//! What a file declares, checked one thing at a time: names, types, durations, checks.

use datafusion_common::DFSchema;
use datafusion_expr::Expr;
use serde::de::DeserializeOwned;
use serde_saphyr::{Error, Options, Spanned};

use super::error::{Place, Problem, SourceFile, suggest};
use super::sql::{self, Catalog, SqlProblem};
use super::topology::{Otherwise, Source, Topology};
use crate::operator::{CheckSpec, CheckedOtherwise};
use crate::record::{Column, Micros, Type};

/// Of a file's anchors, where `*name` stands for them, and of what they hold.
const REPLAYED_EVENTS_MAX: usize = 20_000;
const ANCHORED_BYTES_MAX: usize = 4 << 20;

/// The topology's own settings.
pub(super) struct Settings {
    pub grace: Micros,
    pub retention: Micros,
    pub max_drift: Micros,
}

/// A source, checked.
pub(super) struct DeclaredSource {
    pub name: String,
    pub topic: String,
    pub columns: Vec<Column>,
    /// Records with equal values in these lie in one partition; empty: that is not known.
    pub partitioned_by: Vec<String>,
    pub event_time: Option<String>,
    pub out_of_orderness: Micros,
    pub idle_after: Micros,
    pub max_ahead: Micros,
    pub strict: bool,
    pub max_reject_ratio: f64,
}

/// A check, compiled against a source's columns.
pub(super) struct CheckSource {
    pub source: String,
    pub spec: CheckSpec,
    /// The columns that it reads.
    pub columns: Vec<String>,
    /// Its expression, resolved, and spelled in one way.
    pub expr: Expr,
    pub canonical: String,
}

/// A problem inside a scalar that holds SQL.
pub(super) fn sql_problem(file: &SourceFile<'_>, text: &Spanned<String>, problem: &SqlProblem) -> Problem {
    let (line, column) = (problem.line.max(1) as usize, problem.column.max(1) as usize);
    let place = file.inside(&text.value, Place::from(text.referenced), line, column);
    file.problem(place, problem.message.clone(), problem.help.clone())
}

/// Reads the YAML; its first error ends it.
pub(super) fn read<T: DeserializeOwned>(file: &SourceFile<'_>) -> Result<T, Problem> {
    let mut options = Options::default();
    options.with_snippet = false;
    // What a file may grow to by naming parts of itself again.
    options.alias_limits.max_total_replayed_events = REPLAYED_EVENTS_MAX;
    if let Some(budget) = &mut options.budget {
        budget.max_recorded_anchor_events = REPLAYED_EVENTS_MAX;
        budget.max_recorded_anchor_bytes = ANCHORED_BYTES_MAX;
    }
    serde_saphyr::from_str_with_options(file.text, options).map_err(|error| yaml_problem(file, &error))
}

fn yaml_problem(file: &SourceFile<'_>, error: &Error) -> Problem {
    let place = error.location().map_or(Place { line: 1, column: 1 }, Place::from);
    let (message, help) = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            (format!("unknown key '{field}'"), suggest(field, expected.iter().copied(), "the keys here are"))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("unknown value '{variant}'"), suggest(variant, expected.iter().copied(), "it may be"))
        }
        Error::SerdeMissingField { field, .. } => (format!("the key '{field}' is missing here"), None),
        Error::DuplicateMappingKey { key, .. } => (
            format!("'{}' is given twice", key.as_deref().unwrap_or("a key")),
            Some("keep one of them".to_string()),
        ),
        other => {
            let text = other.to_string();
            let text = plain(text.lines().next().unwrap_or_default());
            let help = if in_braces_after_comma(file.text, place) {
                "between { } a comma begins the next entry: put what has commas into quotes, as in 'decimal(38,10)', or \
                 give it a line of its own"
            } else if is_sql_after_key(file.text, place) {
                "': ' and ' #' mean something to YAML: put the SQL below the key, 'v: |', on lines that are indented more"
            } else {
                "'headwater schema' prints what stands where, 'headwater init' writes an example"
            };
            (format!("the YAML does not read: {text}"), Some(help.to_string()))
        }
    };
    file.problem(place, message, help)
}

/// Whether a comma of the same line, between braces, stands before the place: it may have been meant as part of a text.
fn in_braces_after_comma(text: &str, place: Place) -> bool {
    let line = text.lines().nth(place.line.saturating_sub(1)).unwrap_or_default();
    let before: String = line.chars().take(place.column.saturating_sub(1)).collect();
    before.rsplit_once('{').is_some_and(|(_, inside)| !inside.contains('}') && inside.contains(','))
}

/// Whether SQL stands on the line of its key, outside quotes.
fn is_sql_after_key(text: &str, place: Place) -> bool {
    let line = text.lines().nth(place.line.saturating_sub(1)).unwrap_or_default();
    line.split_once(':').is_some_and(|(_, sql)| {
        let first = sql.split_whitespace().next().unwrap_or_default().to_lowercase();
        matches!(first.as_str(), "select" | "with")
    })
}

/// What the parser says, in a user's words; the place stands before it.
fn plain(text: &str) -> String {
    let text = text.split(" at line ").next().unwrap_or_default();
    let known = [
        ("expected mapping start", "'key: value' lines belong here"),
        ("expected sequence start", "a list belongs here: [a, b], or lines that begin with '- '"),
        ("expected string scalar", "a text belongs here"),
        ("cannot deserialize null into string", "a text belongs here, and nothing stands there"),
    ];
    let found = known.iter().find(|(theirs, _)| text.starts_with(theirs));
    found.map_or(text, |(_, ours)| ours).to_string()
}

pub(super) fn settings(file: &SourceFile<'_>, topology: &Topology, problems: &mut Vec<Problem>) -> Settings {
    check_topic(file, &topology.name, problems);
    let mut duration =
        |value: &Option<Spanned<String>>, default: &str| micros(file, value.as_ref(), default, problems);
    Settings {
        grace: duration(&topology.grace, "0s"),
        retention: duration(&topology.retention, "7d"),
        max_drift: duration(&topology.max_drift, "1h"),
    }
}

/// The column that a name with dots leads into.
fn column_of_field<'a>(columns: &'a [Column], name: &str) -> Option<&'a Column> {
    let (column, _) = name.split_once('.')?;
    columns.iter().find(|known| known.name == column)
}

/// The sources in the order of their names.
pub(super) fn sources(
    file: &SourceFile<'_>,
    topology: &Topology,
    problems: &mut Vec<Problem>,
) -> Vec<DeclaredSource> {
    let mut sources: Vec<DeclaredSource> = topology
        .sources
        .0
        .iter()
        .filter_map(|(name, source)| {
            check_name(file, name, "source", problems);
            self::source(file, name, source, problems)
        })
        .collect();
    if topology.sources.0.is_empty() {
        problems.push(file.problem(
            topology.name.referenced,
            "the topology has no sources",
            Some("name a topic to read under `sources:`".to_string()),
        ));
    }
    for (index, (name, source)) in topology.sources.0.iter().enumerate() {
        let same = |(_, other): &&(Spanned<String>, Source)| other.topic.value == source.topic.value;
        if let Some((other, _)) = topology.sources.0[..index].iter().find(same) {
            problems.push(file.problem(
                source.topic.referenced,
                format!("'{}' and '{}' read the same topic", other.value, name.value),
                Some("a topic is read once: make it one source, with a view for each use".to_string()),
            ));
        }
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}

fn source(
    file: &SourceFile<'_>,
    name: &Spanned<String>,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> Option<DeclaredSource> {
    let before = problems.len();
    check_topic(file, &source.topic, problems);
    check_format(file, &source.format, problems);
    if let Some(table) = &source.table {
        problems.push(file.problem(
            table.referenced,
            format!("'{}' is a table, and tables are not built yet", name.value),
            Some("leave `table:` out: the topic is then read as a stream".to_string()),
        ));
    }
    let mut columns = Vec::new();
    for (column, text) in &source.columns.0 {
        match text.0.value.parse::<Type>() {
            Ok(ty) => columns.push(Column::new(column.value.clone(), ty)),
            Err(error) => {
                let value = &text.0.value;
                let cut = value.matches(['(', '<']).count() > value.matches([')', '>']).count();
                let help = cut
                    .then(|| "YAML ends a value at a comma inside {…}: put the type in quotes".to_string());
                problems.push(file.problem(text.0.referenced, error.to_string(), help));
            }
        }
    }
    if let Some((column, _)) = source.columns.0.get(sql::COLUMNS_MAX) {
        problems.push(file.problem(
            column.referenced,
            format!("a source has at most {} columns", sql::COLUMNS_MAX),
            Some("declare those that are read, or a struct of them as json".to_string()),
        ));
    }
    if source.columns.0.is_empty() {
        problems.push(file.problem(
            name.referenced,
            format!("the source '{}' has no columns", name.value),
            Some("`headwater topic infer` proposes them from a topic's records".to_string()),
        ));
    }
    let is_new = problems.len() == before;
    partitioned_by(file, name, source, problems);
    if let Some(event_time) = &source.event_time {
        let types_read = columns.len() == source.columns.0.len();
        match columns.iter().find(|column| column.name == event_time.value) {
            Some(column) if !column.ty.is_timestamp() => problems.push(file.problem(
                event_time.referenced,
                format!("the event time must be a timestamp, but '{}' is {}", column.name, column.ty),
                Some(
                    "the timestamp types are timestamp, timestamp_ms, timestamp_us, timestamp_s".to_string(),
                ),
            )),
            None if types_read && column_of_field(&columns, &event_time.value).is_some() => {
                problems.push(file.problem(
                    event_time.referenced,
                    format!("'{}' is a field of a struct, and the event time is a top-level column", event_time.value),
                    Some(
                        "the producer writes it beside, or leave event_time out: then it is the record's timestamp"
                            .to_string(),
                    ),
                ));
            }
            None if types_read => problems.push(file.problem(
                event_time.referenced,
                format!("'{}' has no column '{}'", name.value, event_time.value),
                suggest(
                    &event_time.value,
                    columns.iter().map(|column| column.name.as_str()),
                    "its columns are",
                ),
            )),
            _ => {}
        }
    }
    let max_reject_ratio = source.max_reject_ratio.as_ref().map_or(0.5, |ratio| {
        if !(0.0..=1.0).contains(&ratio.value) {
            let help = Some("0.5 stops when more than half of the records are dead".to_string());
            problems.push(file.problem(ratio.referenced, "a ratio is from 0 to 1", help));
        }
        ratio.value
    });
    let watermark = source.watermark.as_ref();
    let mut duration =
        |value: Option<&Spanned<String>>, default: &str| micros(file, value, default, problems);
    let declared = DeclaredSource {
        name: name.value.clone(),
        topic: source.topic.value.clone(),
        columns,
        partitioned_by: source.partitioned_by.iter().map(|column| column.value.clone()).collect(),
        event_time: source.event_time.as_ref().map(|column| column.value.clone()),
        out_of_orderness: duration(watermark.and_then(|w| w.out_of_orderness.as_ref()), "0s"),
        idle_after: duration(watermark.and_then(|w| w.idle_after.as_ref()), "30s"),
        max_ahead: duration(watermark.and_then(|w| w.max_ahead.as_ref()), "1d"),
        strict: source.strict,
        max_reject_ratio,
    };
    // What reads a source with broken columns would only repeat its problems.
    is_new.then_some(declared)
}

fn partitioned_by(
    file: &SourceFile<'_>,
    name: &Spanned<String>,
    source: &Source,
    problems: &mut Vec<Problem>,
) {
    let declared: Vec<&str> = source.columns.0.iter().map(|(column, _)| column.value.as_str()).collect();
    for column in source.partitioned_by.iter().filter(|column| !declared.contains(&column.value.as_str())) {
        let message = format!("'{}' has no column '{}'", name.value, column.value);
        let help = suggest(&column.value, declared.iter().copied(), "its columns are");
        problems.push(file.problem(column.referenced, message, help));
    }
}

pub(super) fn checks(
    file: &SourceFile<'_>,
    topology: &Topology,
    sources: &[DeclaredSource],
    catalog: &Catalog,
    problems: &mut Vec<Problem>,
) -> Vec<CheckSource> {
    let mut compiled = Vec::new();
    for (source, checks) in &topology.checks.0 {
        let declared: Vec<&str> = topology.sources.0.iter().map(|(name, _)| name.value.as_str()).collect();
        if !declared.contains(&source.value.as_str()) {
            let help = suggest(&source.value, declared, "the sources are");
            let message = format!("checks of '{}', which is no source", source.value);
            problems.push(file.problem(source.referenced, message, help));
            continue;
        }
        // A source with problems of its own, or that no sink needs, has no schema here.
        let Some(relation) = catalog.get(&source.value) else { continue };
        debug_assert!(sources.iter().any(|known| known.name == source.value));
        for (index, check) in checks.iter().enumerate() {
            if checks[..index].iter().any(|other| other.name.value == check.name.value) {
                let help = Some("counters and dead letters go by the name: give each its own".to_string());
                let message = format!("'{}' has two checks '{}'", source.value, check.name.value);
                problems.push(file.problem(check.name.referenced, message, help));
            }
            match sql::predicate(&check.expect.0.value, &source.value, relation) {
                Ok((expr, physical)) => compiled.push(CheckSource {
                    source: source.value.clone(),
                    columns: columns_of(&expr, &source.value, relation),
                    canonical: super::fingerprint::text(&expr),
                    expr,
                    spec: CheckSpec {
                        name: check.name.value.as_str().into(),
                        expect: physical,
                        text: check.expect.0.value.clone(),
                        otherwise: match check.otherwise {
                            None => CheckedOtherwise::Dead,
                            Some(Otherwise::Drop) => CheckedOtherwise::Drop,
                            Some(Otherwise::Warn) => CheckedOtherwise::Warn,
                        },
                    },
                }),
                Err(problem) => problems.push(sql_problem(file, &check.expect.0, &problem)),
            }
        }
    }
    compiled
}

fn columns_of(expr: &Expr, name: &str, relation: &sql::Relation) -> Vec<String> {
    let schema = DFSchema::try_from_qualified_schema(name, &relation.schema);
    let found = schema.and_then(|schema| sql::columns([expr], &schema)).unwrap_or_default();
    found.into_iter().map(|index| relation.schema.field(index).name().clone()).collect()
}

fn micros(
    file: &SourceFile<'_>,
    value: Option<&Spanned<String>>,
    default: &str,
    problems: &mut Vec<Problem>,
) -> Micros {
    let read = |text: &str| {
        let duration = humantime::parse_duration(text.trim()).ok()?;
        Micros::try_from(duration.as_micros()).ok()
    };
    let Some(value) = value else { return read(default).unwrap_or_default() };
    read(&value.value).unwrap_or_else(|| {
        let help = Some("write a number and a unit: 500ms, 30s, 15m, 3h, 7d, or 1h 30m".to_string());
        problems.push(file.problem(value.referenced, format!("'{}' is no duration", value.value), help));
        0
    })
}

/// Names that SQL can say without quotes.
pub(super) fn check_name(
    file: &SourceFile<'_>,
    name: &Spanned<String>,
    what: &str,
    problems: &mut Vec<Problem>,
) {
    let begins = name.value.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    let rest =
        |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_';
    if !begins || !name.value.chars().all(rest) {
        let message = format!("'{}' can't be the name of a {what}", name.value);
        let help = Some("use lower-case letters, digits and _, as in hourly_delay".to_string());
        problems.push(file.problem(name.referenced, message, help));
    }
}

/// What Kafka accepts.
pub(super) fn check_topic(file: &SourceFile<'_>, name: &Spanned<String>, problems: &mut Vec<Problem>) {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let value = name.value.as_str();
    if value.is_empty() || value.len() > 249 || value == "." || value == ".." || !value.chars().all(allowed) {
        let message = format!("'{value}' can't name a topic");
        let help = Some("use letters, digits, '.', '_' and '-', at most 249".to_string());
        problems.push(file.problem(name.referenced, message, help));
    }
}

pub(super) fn check_format(file: &SourceFile<'_>, format: &Spanned<String>, problems: &mut Vec<Problem>) {
    if format.value != "json" {
        let planned =
            ["avro", "debezium-json", "debezium-avro", "csv", "raw"].contains(&format.value.as_str());
        let message = if planned {
            format!("the format '{}' is not built yet", format.value)
        } else {
            format!("there is no format '{}'", format.value)
        };
        problems.push(file.problem(format.referenced, message, Some("use json".to_string())));
    }
}

pub(super) fn check_table(file: &SourceFile<'_>, table: &Spanned<String>, problems: &mut Vec<Problem>) {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let folder = |part: &str| !part.is_empty() && !part.starts_with(['.', '_']) && part.chars().all(allowed);
    if !table.value.split('/').all(folder) {
        let message = format!("'{}' can't name a table", table.value);
        let help = Some("use folders of letters, digits, '.', '_' and '-': gold/hourly_delay".to_string());
        problems.push(file.problem(table.referenced, message, help));
    }
}
