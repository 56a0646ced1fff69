//! The keyed task: one partition of one exchange, where rows meet by key.
//!
//! Its input is totally ordered, so its state and output are a function of that partition's messages. Its
//! watermark is the minimum over its origins, which is part of its state.
//!
//! Invariant: messages are applied in offset order; a watermark is applied where it stands between the rows.

use std::sync::Arc;

use crate::operator::{SharedState, exchange_schema, open_keys};
use crate::plan::Plan;
use crate::planted::{Fault, planted};
use crate::record::{Batch, Micros, Run, TopicPartition};
use crate::time::{OriginSet, WATERMARK_MAX, WATERMARK_MIN};

use super::exchange::{Body, Decoder, Message};
use super::offsets::OffsetMetadata;
use super::pipeline::{ExchangePort, Passed, Pipeline, keyed_aggregate};
use super::{EngineError, Outputs, Result, lock};

/// Where the set of origins lies in the state; operators' keys begin with their `state_id`, below 0xFF.
const ORIGINS_KEY: &[u8] = &[0xFF, b'o'];

/// Rows that a keyed task has set aside since the topology began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAside {
    /// They came after their window's `retention`.
    pub expired: u64,
    /// A view failed on them: dead letters, though no records of a source.
    pub derived_dead: u64,
}

pub struct KeyedTask {
    plan: Arc<Plan>,
    stage: usize,
    partition: TopicPartition,
    state: SharedState,
    decoder: Decoder,
    pipeline: Pipeline,
    origins: OriginSet,
    offset: i64,
    offset_committed: i64,
    aside: SetAside,
    aside_committed: SetAside,
    /// The watermark that the exchanges below have been told.
    told: Option<Micros>,
    passed: Passed,
}

impl KeyedTask {
    /// `state` stands at `offset`: the task goes on from there.
    pub fn new(
        plan: &Arc<Plan>,
        stage: usize,
        partition: TopicPartition,
        state: SharedState,
        offset: i64,
        aside: SetAside,
    ) -> Result<Self> {
        let spec = keyed_aggregate(&plan.stages[stage])
            .ok_or_else(|| EngineError::internal("a keyed stage begins with its aggregate".into()))?;
        let mut task = Self {
            decoder: Decoder::new(exchange_schema(spec)),
            pipeline: Pipeline::new(&plan.stages[stage], &state)?,
            plan: Arc::clone(plan),
            stage,
            partition,
            state,
            origins: OriginSet::new(),
            offset,
            offset_committed: offset,
            aside,
            aside_committed: aside,
            told: None,
            passed: Passed::default(),
        };
        task.restore()?;
        Ok(task)
    }

    pub fn exchanges(&self) -> &[ExchangePort] {
        self.pipeline.exchanges()
    }
    pub fn stage(&self) -> usize {
        self.stage
    }
    pub fn offset(&self) -> i64 {
        self.offset
    }
    pub fn watermark(&self) -> Micros {
        self.origins.watermark()
    }
    pub fn state(&self) -> &SharedState {
        &self.state
    }
    /// The counts as they were committed; a muted fold counts its own anew.
    pub fn count_from(&mut self, aside: SetAside) {
        self.aside = aside;
        self.aside_committed = aside;
    }
    pub fn is_dirty(&self) -> bool {
        self.offset != self.offset_committed
    }
    /// Whether the end of input has come from every origin.
    pub fn has_ended(&self) -> bool {
        self.watermark() == WATERMARK_MAX
    }

    pub fn step(&mut self, run: &Run, outputs: &mut Outputs) -> Result<()> {
        self.passed.clear();
        for index in 0..run.records.len() {
            let record = run.records.get(index);
            let value = record.value.unwrap_or_default();
            let message = self.decoder.decode(value).map_err(|error| match error {
                EngineError::Exchange { detail } => EngineError::ForeignExchange {
                    partition: run.partition.clone(),
                    offset: record.offset,
                    detail,
                },
                other => other,
            })?;
            self.apply(message, outputs)?;
            self.take_rejected(record.offset, outputs);
        }
        self.offset = run.next;
        outputs.take_rows(&mut self.passed);
        Ok(())
    }

    /// Rows that a view failed on, by the exchange's record that made them come: the last one before they came.
    fn take_rejected(&mut self, offset: i64, outputs: &mut Outputs) {
        self.aside.derived_dead += self.passed.rejected.len() as u64;
        outputs.take_rejected(&mut self.passed, &self.partition, offset);
    }

    /// One message, as the in-memory exchange of a replay hands it over too.
    pub fn apply(&mut self, message: Message, outputs: &mut Outputs) -> Result<()> {
        let before = self.origins.watermark();
        let topics = message.origin_set.iter().map(|(topic, partitions)| (&**topic, *partitions));
        if !planted(Fault::OriginsUndeclared) {
            self.origins.declare(topics);
        }
        match message.body {
            Body::Rows(rows) => {
                self.origins.row(&message.origin);
                let time = vec![0; rows.num_rows()].into();
                let batch = Batch { rows, time, weight: None, source: None };
                self.pipeline.push(&batch, &mut self.passed)?;
                for expired in self.passed.expired.drain(..) {
                    self.aside.expired += expired.rows.unsigned_abs();
                    outputs.expired.push((message.origin.clone(), expired));
                }
            }
            Body::Watermark(WATERMARK_MAX) => {
                self.origins.end(&message.origin);
            }
            Body::Watermark(watermark) => {
                self.origins.advance(&message.origin, watermark);
            }
            Body::Idle => {
                self.origins.idle(&message.origin);
            }
        }
        let watermark = self.origins.watermark();
        if watermark != before {
            self.pipeline.advance(watermark, &mut self.passed)?;
        }
        Ok(())
    }

    pub fn skip_to(&mut self, position: i64) {
        self.offset = self.offset.max(position);
    }

    /// The epoch ends: what must be kept is in the state, corrections and the watermark leave.
    pub fn flush(&mut self, outputs: &mut Outputs) -> Result<()> {
        self.passed.clear();
        self.pipeline.flush(&mut self.passed)?;
        outputs.take_rows(&mut self.passed);
        self.take_rejected(self.offset.saturating_sub(1), outputs);
        let origins = self.origins.to_bytes();
        let mut state = lock(&self.state)?;
        if state.get(ORIGINS_KEY)?.as_deref() != Some(&origins) {
            state.put(ORIGINS_KEY, &origins);
        }
        drop(state);
        let watermark = self.watermark();
        if self.told != Some(watermark) && watermark != WATERMARK_MIN {
            outputs.watermark = Some(watermark);
            self.told = Some(watermark);
        }
        Ok(())
    }

    /// Hands over what [`Self::apply`] has gathered, without ending the epoch.
    pub fn drain(&mut self, outputs: &mut Outputs) {
        outputs.take_rows(&mut self.passed);
        self.take_rejected(self.offset, outputs);
    }

    /// Windows (each with its key) that no watermark has closed yet.
    pub fn open_windows(&self) -> Result<u64> {
        let mut open = 0;
        if let Some(spec) = keyed_aggregate(&self.plan.stages[self.stage]) {
            let (from, to) = open_keys(spec);
            lock(&self.state)?.scan(&from, &to, &mut |_, _| {
                open += 1;
                std::ops::ControlFlow::Continue(())
            })?;
        }
        Ok(open)
    }

    pub fn metadata(&self) -> OffsetMetadata {
        let mut metadata = OffsetMetadata::new(self.watermark());
        metadata.expired = self.aside.expired;
        metadata.derived_dead = self.aside.derived_dead;
        metadata
    }

    pub fn commit(&mut self) -> Result<()> {
        lock(&self.state)?.commit_epoch();
        self.offset_committed = self.offset;
        self.aside_committed = self.aside;
        Ok(())
    }

    pub fn abort(&mut self) -> Result<i64> {
        if planted(Fault::AbortKeepsEpoch) {
            lock(&self.state)?.commit_epoch();
        }
        lock(&self.state)?.abort_epoch();
        self.offset = self.offset_committed;
        self.aside = self.aside_committed;
        self.pipeline = Pipeline::new(&self.plan.stages[self.stage], &self.state)?;
        self.told = None;
        self.restore()?;
        Ok(self.offset)
    }

    /// Takes the set of origins from the state and tells freshly built operators how far time has come.
    fn restore(&mut self) -> Result<()> {
        let stored = lock(&self.state)?.get(ORIGINS_KEY)?.map(|bytes| bytes.into_owned());
        self.origins = match stored {
            None => OriginSet::new(),
            Some(bytes) => OriginSet::from_bytes(&bytes)
                .map_err(|error| EngineError::internal(format!("{}: {error}", self.partition)))?,
        };
        self.passed.clear();
        if self.watermark() != WATERMARK_MIN {
            self.pipeline.advance(self.watermark(), &mut self.passed)?;
            if !self.passed.sinks.is_empty() || !self.passed.exchanges.is_empty() {
                let what = format!("{}: windows closed again on restoring the state", self.partition);
                return Err(EngineError::internal(what));
            }
        }
        Ok(())
    }
}
