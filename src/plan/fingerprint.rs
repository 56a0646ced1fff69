//! What decides the content of the state, and what decides each sink's records, as text, and hashes of it.
//!
//! Invariant: comments, the order of keys, columns and views that no aggregate reads, the file's name, and sinks
//! whose topics hold no more than what each record says of itself change neither.
//! Invariant: what a topic has been told of a window is nowhere but in the window's state. So where a later record
//! relies on that (a retraction; a row that is not told again when its window closes), the sink is part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use datafusion_common::Column;
use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_expr::Expr;

use super::declared::{CheckSource, DeclaredSource, Settings};
use super::sql::{Step, View};
use super::{Correction, Emit, SinkPlan, Stage, StageInput};
use crate::operator::CheckedOtherwise;
use crate::record::Micros;

/// Of a description.
pub(super) fn of(description: &str) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(description.as_bytes()))
}

/// A line for each thing that decides what the state holds; empty where there is no state.
pub(super) fn describe(
    stages: &[Stage],
    sources: &[DeclaredSource],
    checks: &[CheckSource],
    views: &BTreeMap<String, View>,
    sinks: &[SinkPlan],
    settings: &Settings,
) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut read: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut keyed: Vec<&Stage> =
        stages.iter().filter(|stage| matches!(stage.input, StageInput::Exchange { .. })).collect();
    keyed.sort_by(|a, b| a.name.cmp(&b.name));
    let mut stateful: Vec<(&str, &View)> = Vec::new();
    for (name, view) in views {
        let own = keyed.iter().any(|stage| {
            *stage.name == **name
                || stage.name.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'))
        });
        if own {
            stateful.push((name, view));
        }
    }
    for (name, view) in stateful {
        lines.push(format!("view {name}"));
        let (origin, chain) = chain(view, views, &mut read);
        lines.push(format!("  from {origin}"));
        lines.extend(chain.into_iter().map(|line| format!("  {line}")));
        lines.push(format!("  grace {}, retention {}", human(settings.grace), human(settings.retention)));
    }
    for sink in sinks.iter().filter(|sink| relies_on_state(sink)) {
        lines.push(format!("sink {}", sink.view));
        lines.extend(sink_lines(sink));
        // The steps of a view with state of its own stand above.
        if let Some(view) = views.get(&*sink.view).filter(|view| !aggregates(view)) {
            let (origin, chain) = chain(view, views, &mut read);
            lines.push(format!("  from {origin}"));
            lines.extend(chain.into_iter().map(|line| format!("  {line}")));
        }
    }
    for source in sources {
        if let Some(read) = read.get(&source.name) {
            lines.extend(source_lines(source, read, checks));
        }
    }
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// Whether what a sink writes next depends on what its topic was told before, which only the state knows.
fn relies_on_state(sink: &SinkPlan) -> bool {
    sink.topic.is_some() && (sink.emit == Emit::Changes || sink.correction() == Correction::Retract)
}

/// Where a sink's rows go, and when.
fn sink_lines(sink: &SinkPlan) -> Vec<String> {
    let Some(topic) = &sink.topic else { return Vec::new() };
    let key: Vec<&str> = topic.key.iter().map(|&at| sink.schema.field(at).name().as_str()).collect();
    let mut lines = vec![format!("  topic {}, key ({})", topic.topic, key.join(", "))];
    lines.extend((sink.emit == Emit::Changes).then(|| "  emit changes".to_owned()));
    lines
}

/// What of a source, and of its checks, decides the rows that those who read these columns of it get.
fn source_lines(source: &DeclaredSource, read: &BTreeSet<String>, checks: &[CheckSource]) -> Vec<String> {
    let mut lines = vec![format!("source {}", source.name), format!("  topic {}, format json", source.topic)];
    let mut columns: BTreeSet<&str> = read.iter().map(String::as_str).collect();
    columns.extend(source.event_time.as_deref());
    let deciding: Vec<&CheckSource> = checks
        .iter()
        .filter(|check| check.source == source.name && check.spec.otherwise != CheckedOtherwise::Warn)
        .collect();
    columns.extend(deciding.iter().flat_map(|check| check.columns.iter().map(String::as_str)));
    let declared =
        source.columns.iter().filter(|column| columns.contains(column.name.as_str()) || source.strict);
    let mut declared: Vec<String> =
        declared.map(|column| format!("  column {} {}", column.name, column.ty)).collect();
    declared.sort();
    lines.extend(declared);
    lines.push(format!("  event time {}", source.event_time.as_deref().unwrap_or("of the log")));
    lines.push(format!(
        "  out of orderness {}, at most {} ahead",
        human(source.out_of_orderness),
        human(source.max_ahead)
    ));
    let mut of_this: Vec<String> = deciding
        .iter()
        .map(|check| {
            let otherwise =
                if check.spec.otherwise == CheckedOtherwise::Drop { "drop" } else { "dead letter" };
            format!("  check {} (else {otherwise})", check.canonical)
        })
        .collect();
    of_this.sort();
    lines.extend(of_this);
    lines
}

/// A line for each thing that decides which refined records a sink writes, down to its source.
pub(super) fn lineage(
    sink: &SinkPlan,
    sources: &[DeclaredSource],
    checks: &[CheckSource],
    views: &BTreeMap<String, View>,
    settings: &Settings,
) -> String {
    let mut lines = vec![format!("view {}", sink.view)];
    lines.extend(sink_lines(sink));
    let mut read: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut at, mut windowed) = (sink.view.to_string(), false);
    while let Some(view) = views.get(&at) {
        windowed |= aggregates(view);
        let (origin, chain) = chain(view, views, &mut read);
        lines.push(format!("  from {origin}"));
        lines.extend(chain.into_iter().map(|line| format!("  {line}")));
        at = origin;
    }
    if windowed {
        lines.push(format!("  grace {}, retention {}", human(settings.grace), human(settings.retention)));
    }
    if let Some(source) = sources.iter().find(|source| source.name == at) {
        lines.extend(source_lines(source, read.get(&at).unwrap_or(&BTreeSet::new()), checks));
    }
    lines.join("\n")
}

fn aggregates(view: &View) -> bool {
    view.steps.iter().any(|step| matches!(step, Step::Aggregate { .. }))
}

/// A view's steps from its source, or from the view with state that it reads. Views without state have no
/// names here.
fn chain(
    view: &View,
    views: &BTreeMap<String, View>,
    read: &mut BTreeMap<String, BTreeSet<String>>,
) -> (String, Vec<String>) {
    let (origin, mut lines) = match views.get(&view.input) {
        Some(input) if aggregates(input) => (view.input.clone(), Vec::new()),
        Some(input) => chain(input, views, read),
        None => {
            let columns = read.entry(view.input.clone()).or_default();
            columns.extend(view.read_names.iter().cloned());
            (view.input.clone(), Vec::new())
        }
    };
    // What follows the last aggregate counts too: a correction takes back a row as it was sent.
    lines.extend(view.steps.iter().flat_map(step));
    (origin, lines)
}

fn step(step: &Step) -> Vec<String> {
    match step {
        Step::Map { filter, project, output, .. } => {
            let mut lines: Vec<String> =
                filter.iter().map(|filter| format!("where {}", text(filter))).collect();
            let columns = project.iter().flatten().zip(output.fields());
            lines.extend(columns.map(|(expr, field)| format!("select {} as {}", text(expr), field.name())));
            lines
        }
        Step::Tumble { time_column, size, offset, output } => {
            let column = output.field(*time_column).name();
            vec![format!("tumble over {column}, size {}, offset {}", human(*size), human(*offset))]
        }
        Step::Aggregate { groups, calls, .. } => {
            let mut lines: Vec<String> =
                groups.iter().map(|group| format!("group by {}", text(group))).collect();
            for call in calls {
                let mut line = format!("{:?}(", call.function).to_lowercase();
                line.push_str(&call.argument.as_ref().map_or("*".to_string(), text));
                line.push(')');
                if let Some(filter) = &call.filter {
                    // Writing to a string does not fail.
                    let _ = write!(line, " where {}", text(filter));
                }
                lines.push(line);
            }
            lines
        }
    }
}

/// An expression without the names of the tables that its columns come from.
pub(super) fn text(expr: &Expr) -> String {
    let bare = expr.clone().unalias().transform(|expr| {
        Ok(match expr {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    bare.map_or_else(|_| expr.to_string(), |bare| bare.data.to_string())
}

fn human(micros: Micros) -> String {
    humantime::format_duration(Duration::from_micros(micros.unsigned_abs())).to_string()
}

/// What differs between two descriptions, a line each: `- gone`, `+ new`, under the unchanged heading that it
/// belongs to.
pub fn diff(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // Lengths of longest common subsequences of the tails.
    let mut common = vec![vec![0_u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut heading: Option<&str> = None;
    let mut lines = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            if !old[i].starts_with(' ') {
                heading = Some(old[i]);
            }
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let removed = j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]);
        let (sign, line) = if removed { ('-', old[i]) } else { ('+', new[j]) };
        if line.starts_with(' ') {
            lines.extend(heading.take().map(|heading| format!("  {heading}")));
        } else {
            heading = None;
        }
        lines.push(format!("{sign} {line}"));
        if removed { i += 1 } else { j += 1 }
    }
    lines
}
