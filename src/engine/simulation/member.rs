//! A process's way to the log: the log in memory, with an edge before and after what decides something.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::process::Process;
use crate::log::memory::MemoryLog;
use crate::log::{
    Bounds, CommitError, Event, Fence, Log, Member, MemberOptions, Outgoing, Position, Producer, Reader,
    Result, TopicInfo, TopicSpec, Transactor,
};
use crate::record::TopicPartition;

pub struct ProcessLog {
    pub inner: MemoryLog,
    pub process: Arc<Process>,
}

impl Log for ProcessLog {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn topics(&self) -> Result<Vec<TopicInfo>> {
        self.inner.topics()
    }
    fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        self.inner.partitions(topic)
    }
    fn topic_id(&self, topic: &str) -> Result<Option<String>> {
        self.inner.topic_id(topic)
    }
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<()> {
        self.process.log_edge("creates topics")?;
        self.inner.create_topics(topics)
    }
    fn delete_topics(&self, topics: &[String]) -> Result<()> {
        self.inner.delete_topics(topics)
    }
    fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>> {
        self.inner.topic_config(topic)
    }
    fn bounds(&self, partition: &TopicPartition) -> Result<Bounds> {
        self.process.log_edge("asks for bounds")?;
        self.inner.bounds(partition)
    }
    fn written_ends(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>> {
        self.process.log_edge("asks for ends")?;
        self.inner.written_ends(partitions)
    }
    fn offset_at(&self, partition: &TopicPartition, timestamp_ms: i64) -> Result<Option<i64>> {
        self.inner.offset_at(partition, timestamp_ms)
    }
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<Position>>> {
        self.process.log_edge("asks for offsets")?;
        self.inner.committed(group, partitions)
    }
    fn committed_so_far(
        &self,
        group: &str,
        partitions: &[TopicPartition],
        patience: Duration,
    ) -> Result<Vec<Option<Position>>> {
        self.process.log_edge("asks for offsets")?;
        self.inner.committed_so_far(group, partitions, patience)
    }
    fn delete_before(&self, offsets: &[(TopicPartition, i64)]) -> Result<()> {
        self.process.log_edge("trims")?;
        self.inner.delete_before(offsets)
    }
    fn reader(&self) -> Result<Box<dyn Reader>> {
        let inner = self.inner.reader()?;
        Ok(Box::new(ProcessReader { inner, process: Arc::clone(&self.process) }))
    }
    fn producer(&self) -> Result<Box<dyn Producer>> {
        self.inner.producer()
    }
    fn member(&self, options: &MemberOptions) -> Result<Box<dyn Member>> {
        self.process.log_edge("joins")?;
        let inner = self.inner.member(options)?;
        Ok(Box::new(ProcessMember { inner, process: Arc::clone(&self.process) }))
    }
    fn transactor(&self, id: &str, timeout: Duration) -> Result<Box<dyn Transactor>> {
        self.inner.transactor(id, timeout)
    }
    fn commit_offsets(&self, group: &str, offsets: &[(TopicPartition, Position)]) -> Result<()> {
        self.inner.commit_offsets(group, offsets)
    }
}

struct ProcessReader {
    inner: Box<dyn Reader>,
    process: Arc<Process>,
}

impl Reader for ProcessReader {
    fn assign(&mut self, from: &[(TopicPartition, i64)]) -> Result<()> {
        self.inner.assign(from)
    }
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        self.process.log_edge("folds")?;
        self.inner.poll(timeout)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.resume(partitions)
    }
}

struct ProcessMember {
    inner: Box<dyn Member>,
    process: Arc<Process>,
}

impl ProcessMember {
    fn describe(&self, events: &[Event]) {
        let Some(world) = self.process.world.upgrade() else { return };
        for event in events {
            world.trace(|| {
                let name = &self.process.name;
                match event {
                    Event::Run(run) => {
                        format!(
                            "{name} gets {} records of {} up to {}",
                            run.records.len(),
                            run.partition,
                            run.next
                        )
                    }
                    Event::End { partition, position } => {
                        format!("{name} is at the end of {partition}: {position}")
                    }
                    Event::Assigned { partitions, .. } => format!("{name} is assigned {}", list(partitions)),
                    Event::Revoked(partitions) => format!("{name} is to give up {}", list(partitions)),
                    Event::Lost(partitions) => format!("{name} has lost {}", list(partitions)),
                }
            });
        }
    }
}

fn list(partitions: &[TopicPartition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Member for ProcessMember {
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        self.process.log_edge("polls")?;
        let events = self.inner.poll(timeout)?;
        self.describe(&events);
        Ok(events)
    }
    fn start(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.process.log_edge("starts to read")?;
        self.inner.start(partition, offset)
    }
    fn release(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.process.log_edge("releases")?;
        self.inner.release(partitions)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.inner.resume(partitions)
    }
    fn begin(&mut self) -> Result<()> {
        self.process.log_edge("begins")?;
        self.inner.begin()
    }
    fn produce(&mut self, to: &TopicPartition, records: &[Outgoing<'_>]) -> Result<()> {
        self.process.log_edge("produces")?;
        self.inner.produce(to, records)
    }
    fn commit(&mut self, fence: &Fence, offsets: &[(TopicPartition, Position)]) -> Result<(), CommitError> {
        let lost = |error: crate::log::LogError| CommitError::Unknown(error.to_string());
        self.process.log_edge("commits").map_err(lost)?;
        let outcome = self.inner.commit(fence, offsets);
        if let Some(world) = self.process.world.upgrade() {
            world.trace(|| {
                let offsets: Vec<String> =
                    offsets.iter().map(|(partition, at)| format!("{partition}@{}", at.offset)).collect();
                format!("{} commits {}: {outcome:?}", self.process.name, offsets.join(" "))
            });
        }
        self.process.log_edge("has committed").map_err(lost)?;
        outcome
    }
    fn abort(&mut self) -> Result<()> {
        self.process.log_edge("aborts")?;
        self.inner.abort()
    }
    fn leave(&mut self) -> Result<()> {
        self.process.log_edge("leaves")?;
        self.inner.leave()
    }
}
