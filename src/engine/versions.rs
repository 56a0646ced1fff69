//! The versions of a topology: each that wrote anything, and from which offsets on (rule R12).
//!
//! A file may change in whatever no state depends on: a view without windows, a check before one, a sink. `run`
//! takes such a version up where the last one stopped, partition by partition; the refined records of before
//! stay as they were. So a comparison has to know from where on a view is what the file says.
//!
//! Invariant: where a version begins in a partition is written in the transaction of its first commit there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Result;
use super::topics::TopicNames;
use crate::log::Log;
use crate::plan::Plan;
use crate::record::{Micros, TopicPartition};
use crate::time::WATERMARK_MIN;

/// What one version writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyVersion {
    pub version: String,
    /// By view: all that decides its refined records, a line each.
    pub views: BTreeMap<String, String>,
}

/// Where a version began in one partition of the topology's inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStart {
    pub version: String,
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    /// The task's watermark there; absent before its first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<Micros>,
    /// The offsets were set from outside: what was read before says nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
    /// Where the refined topics ended, by partition: all that the task had written of an earlier version lies
    /// before. Empty where it had written nothing.
    pub refined: BTreeMap<Arc<str>, BTreeMap<i32, i64>>,
}

impl TopologyVersion {
    pub fn of(plan: &Plan) -> Self {
        let views = plan.sinks.iter().map(|sink| (sink.view.to_string(), sink.lineage.clone()));
        Self { version: plan.version.clone(), views: views.collect() }
    }

    /// What differs from an older version, a line each.
    pub fn changes_since(&self, older: &TopologyVersion) -> Vec<String> {
        let text =
            |version: &Self| version.views.values().map(|view| format!("{view}\n")).collect::<String>();
        crate::plan::diff(&text(older), &text(self))
    }
}

impl VersionStart {
    /// Where the plan's version begins in a partition that this process now owns, after everything that its
    /// last owner committed. `earlier`: the version that the committed offset names, if one is committed.
    pub fn here(
        plan: &Plan,
        log: &dyn Log,
        partition: &TopicPartition,
        (offset, watermark): (i64, Micros),
        earlier: Option<Option<&str>>,
    ) -> Result<Option<Self>> {
        if earlier == Some(Some(&plan.version)) {
            return Ok(None);
        }
        Ok(Some(Self {
            version: plan.version.clone(),
            topic: Arc::clone(&partition.topic),
            partition: partition.partition,
            offset,
            watermark: (watermark != WATERMARK_MIN).then_some(watermark),
            anew: earlier == Some(None),
            refined: if earlier.is_some() { refined_ends(plan, log)? } else { BTreeMap::new() },
        }))
    }
}

/// Where the refined topics end now.
pub fn refined_ends(plan: &Plan, log: &dyn Log) -> Result<BTreeMap<Arc<str>, BTreeMap<i32, i64>>> {
    let mut ends: BTreeMap<Arc<str>, BTreeMap<i32, i64>> = BTreeMap::new();
    for topic in plan.sinks.iter().filter_map(|sink| sink.topic.as_ref()) {
        let ends = ends.entry(Arc::clone(&topic.topic)).or_default();
        for partition in 0..log.partitions(&topic.topic)?.unwrap_or(0) {
            let end = log.bounds(&TopicPartition::new(Arc::clone(&topic.topic), partition))?.end;
            ends.insert(partition, end);
        }
    }
    Ok(ends)
}

/// From where on a view is what the file says: records of before may be of another version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// Of the partitions whose records before were read by another version.
    offsets: BTreeMap<TopicPartition, i64>,
    /// The highest watermark that any of them had there.
    watermark: Micros,
    /// By partition of the view's topic: records below the first are all of an earlier version, records from
    /// the second on are none.
    refined: BTreeMap<i32, (i64, i64)>,
}

impl Since {
    /// Whether a row of this record is this version's doing.
    pub fn owes_record(&self, origin: &TopicPartition, offset: i64) -> bool {
        self.offsets.get(origin).is_none_or(|&first| offset >= first)
    }
    /// Whether a window was still open for every origin when this version began.
    pub fn owes_window(&self, end: Micros, grace: Micros) -> bool {
        !crate::time::is_closed(end, grace, self.watermark)
    }
    /// Whether a refined record is certainly this version's.
    pub fn wrote(&self, partition: i32, offset: i64) -> bool {
        self.refined.get(&partition).is_none_or(|&(_, last)| offset >= last)
    }
    /// Whether a refined record may be this version's.
    pub fn may_have_written(&self, partition: i32, offset: i64) -> bool {
        self.refined.get(&partition).is_none_or(|&(first, _)| offset >= first)
    }
}

/// From where on a sink's view is what the plan says; `None`: from the topology's first record. `starts`: as
/// they were written; `now`: where a partition stands that has committed nothing of this version yet.
pub fn since(
    plan: &Plan,
    sink: usize,
    versions: &BTreeMap<String, TopologyVersion>,
    starts: &[VersionStart],
    mut now: impl FnMut(&VersionStart) -> Result<VersionStart>,
) -> Result<Option<Since>> {
    let Some(topic) = &plan.sinks[sink].topic else { return Ok(None) };
    let view = &*plan.sinks[sink].view;
    let same = |start: &VersionStart| {
        versions.get(&start.version).and_then(|version| version.views.get(view))
            == Some(&plan.sinks[sink].lineage)
    };
    let mut by_partition: BTreeMap<TopicPartition, Vec<&VersionStart>> = BTreeMap::new();
    let inputs = inputs(plan, sink);
    for start in starts.iter().filter(|start| inputs.contains(&start.topic)) {
        let partition = TopicPartition::new(Arc::clone(&start.topic), start.partition);
        by_partition.entry(partition).or_default().push(start);
    }
    let mut since: Option<Since> = None;
    for (partition, starts) in by_partition {
        let mut first: Option<&VersionStart> = None;
        let mut other_before = false;
        for start in starts.iter().rev() {
            // One at or above its successor's offset was written before the offsets were moved back.
            let is_earlier = first.is_none_or(|first| start.offset < first.offset && !first.anew);
            if !same(start) || !is_earlier {
                other_before = true;
                break;
            }
            first = Some(start);
        }
        let Some(&newest) = starts.last() else { continue };
        let begins = match first {
            Some(first) if other_before || first.anew => first.clone(),
            Some(_) => continue,
            None => now(newest)?,
        };
        let since = since.get_or_insert_with(|| Since { watermark: WATERMARK_MIN, ..Since::default() });
        since.watermark = since.watermark.max(begins.watermark.unwrap_or(WATERMARK_MIN));
        since.offsets.insert(partition, begins.offset);
        for (&at, &end) in begins.refined.get(&topic.topic).into_iter().flatten() {
            let (first, last) = since.refined.entry(at).or_insert((end, end));
            (*first, *last) = ((*first).min(end), (*last).max(end));
        }
    }
    Ok(since)
}

/// The topics that the tasks read whose rows reach a sink.
fn inputs(plan: &Plan, sink: usize) -> BTreeSet<Arc<str>> {
    let names = TopicNames::of(plan);
    plan.stages_of(sink).into_iter().map(|stage| names.input_topic(plan, stage)).collect()
}
