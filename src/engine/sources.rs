//! Source topics that are deleted and made anew: offsets that were committed of the old one mean other records of the new
//! one, so nobody goes on from there.
//!
//! Invariant: the ids that the topology remembers are those of the topics that its offsets were committed of; who finds
//! another one stops, and it takes a `reset` to go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::log::{Log, LogError, Outgoing};
use crate::plan::Plan;
use crate::record::TopicPartition;

use super::machine::{Job, Machine};
use super::meta::{Meta, MetaEntry, SourceTopic};
use super::topics::TopicNames;
use super::{EngineError, Result};

/// How often it is looked whether the topics are still the same.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// A look while it lasts.
type Look = Job<Result<()>>;

/// The source topics of a topology that runs, by id.
pub struct Sources {
    ids: BTreeMap<String, String>,
    topology: Arc<str>,
    log: Arc<dyn Log>,
    look: Mutex<(Option<Instant>, Option<Look>)>,
}

impl Sources {
    /// As they are now; what `meta` remembers otherwise is an error.
    pub fn new(plan: &Plan, log: &Arc<dyn Log>, meta: Option<&Meta>) -> Result<Self> {
        let ids = ids(plan, &**log)?;
        if let Some(meta) = meta {
            compare(&plan.name, &meta.sources, &ids)?;
        }
        Ok(Self { ids, topology: Arc::clone(&plan.name), log: Arc::clone(log), look: Mutex::default() })
    }

    /// What is to be remembered and is not yet.
    pub fn entries(&self, meta: Option<&Meta>) -> Result<Vec<MetaEntry>> {
        let known = |topic: &String| meta.is_some_and(|meta| meta.sources.contains_key(topic));
        let new = self.ids.iter().filter(|(topic, _)| !known(topic));
        new.map(|(topic, id)| SourceTopic { topic: topic.clone(), id: id.clone() }.entry()).collect()
    }

    /// Looks from time to time beside the caller's work, which does not wait for it; what it finds is an error later.
    pub fn watch(&self, machine: &Arc<dyn Machine>) -> Result<()> {
        // Another worker of this process is about it.
        let Ok(mut look) = self.look.try_lock() else { return Ok(()) };
        if let Some(looking) = look.1.take() {
            if !looking.is_finished() {
                look.1 = Some(looking);
                return Ok(());
            }
            return looking.wait().unwrap_or(Ok(()));
        }
        let now = machine.now();
        if look.0.is_none_or(|began| now.saturating_duration_since(began) >= LOOK_EVERY)
            && !self.ids.is_empty()
        {
            let (log, ids, topology) = (Arc::clone(&self.log), self.ids.clone(), Arc::clone(&self.topology));
            let begun = Job::start(&**machine, move || compare(&topology, &ids, &now_of(ids.keys(), &*log)));
            *look = (Some(now), Some(begun));
        }
        Ok(())
    }
}

/// The ids of a topology's source topics; those that the cluster tells none of are left out.
fn ids(plan: &Plan, log: &dyn Log) -> Result<BTreeMap<String, String>> {
    let mut ids = BTreeMap::new();
    for topic in TopicNames::sources(plan, log)?.keys() {
        if let Some(id) = log.topic_id(topic)? {
            ids.insert(topic.to_string(), id);
        }
    }
    Ok(ids)
}

/// Of a topic that is away, or of brokers that do not answer, nothing is known now.
fn now_of<'a>(topics: impl Iterator<Item = &'a String>, log: &dyn Log) -> BTreeMap<String, String> {
    let known = topics.filter_map(|topic| match log.topic_id(topic) {
        Ok(id) => Some((topic.clone(), id?)),
        Err(error) => {
            tracing::debug!("which topic '{topic}' is now could not be asked: {error}");
            None
        }
    });
    known.collect()
}

fn compare(topology: &str, known: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Result<()> {
    for (topic, id) in now {
        if known.get(topic).is_some_and(|known| known != id) {
            return Err(EngineError::TopicMadeAnew {
                topology: topology.into(),
                topic: topic.as_str().into(),
            });
        }
    }
    Ok(())
}

/// Refuses a topology whose source topics are not those that its offsets were committed of.
pub(super) fn check(plan: &Plan, log: &dyn Log, meta: &Meta) -> Result<()> {
    compare(&plan.name, &meta.sources, &ids(plan, log)?)
}

/// Takes the source topics for the right ones from now on: their offsets were set by `reset`.
pub fn accept_sources(plan: &Plan, log: &dyn Log) -> Result<()> {
    let Some(meta) = Meta::read(plan, log)? else { return Ok(()) };
    let now = ids(plan, log)?;
    if compare(&plan.name, &meta.sources, &now).is_ok() {
        return Ok(());
    }
    let to = TopicPartition::new(TopicNames::of(plan).meta, 0);
    let mut producer = log.producer()?;
    for (topic, id) in now {
        let (key, value) = SourceTopic { topic, id }.entry()?;
        let record = Outgoing { key: Some(&key), value: Some(&value), ..Outgoing::default() };
        producer.produce(&to, &[record])?;
    }
    producer.flush(FLUSH_TIMEOUT).map_err(|error: LogError| error.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::machine::LocalMachine;
    use crate::log::TopicSpec;
    use crate::log::memory::MemoryLog;

    const PLAN: &str = "{name: t, sources: {s: {topic: in, format: json, columns: {a: bigint}}}, views: {v: select a from s}, \
                        sinks: {v: {topic: {name: out}}}}";

    #[test]
    fn a_running_topology_finds_out_that_a_topic_was_made_anew_and_not_that_it_has_grown() {
        let memory = MemoryLog::new();
        let log: Arc<dyn Log> = Arc::new(memory.clone());
        let topic = TopicSpec { name: "in".into(), partitions: 1, config: BTreeMap::new() };
        log.create_topics(std::slice::from_ref(&topic)).unwrap();
        let plan = crate::plan::parse(PLAN, "t.yaml").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let machine: Arc<dyn Machine> = Arc::new(LocalMachine::open(dir.path(), 0).unwrap());
        let sources = Sources::new(&plan, &log, None).unwrap();
        assert_eq!(sources.entries(None).unwrap().len(), 1);
        // What a look finds is told by the next call after it.
        let look = || {
            sources.look.lock().unwrap().0 = None;
            sources.watch(&machine).unwrap();
            let found = sources.look.lock().unwrap().1.take().unwrap();
            found.wait().unwrap()
        };
        look().unwrap();
        memory.add_partitions("in", 2);
        look().unwrap();
        log.delete_topics(&["in".to_owned()]).unwrap();
        look().unwrap();
        log.create_topics(&[topic]).unwrap();
        let found = look().unwrap_err().to_string();
        assert!(found.contains("topic 'in' was deleted and made anew"), "{found}");
    }
}
