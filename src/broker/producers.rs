//! What a partition knows of the producers that write to it: sequence numbers (so that a repeated send is
//! recognised), epochs (so that a fenced producer is refused) and open and aborted transactions.
//!
//! Invariant: the last stable offset is the first offset of the oldest open transaction, or the log's end.
//! Invariant: it is all rebuilt from batch headers, so a restart knows what the running broker knew.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::batch::Header;
use super::fault::Fault;

/// As many batches as an idempotent producer may have in flight.
const REMEMBERED_BATCHES: usize = 5;

#[derive(Clone, Copy)]
struct Sent {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
}

#[derive(Default)]
struct Producer {
    epoch: i16,
    /// The newest batches of this epoch.
    sent: VecDeque<Sent>,
    /// `Some(-1)`: this epoch has sent nothing yet, so it starts at 0. `None`: nothing is known (only a marker
    /// is left in the log), so any sequence is taken.
    last_sequence: Option<i32>,
    /// The first offset of its open transaction.
    open: Option<i64>,
    /// The coordinator knows that its transaction writes here.
    registered: bool,
    seen_ms: i64,
}

impl Producer {
    fn enter(&mut self, epoch: i16, known: bool) {
        if self.epoch != epoch || !known {
            self.epoch = epoch;
            self.sent.clear();
            self.last_sequence = known.then_some(-1);
        }
    }
}

/// An aborted transaction: its batches lie in `first..=last`, and `last` is its marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    pub producer_id: i64,
    pub first: i64,
    last: i64,
    /// The last stable offset once it had ended: every transaction aborted later starts at or after this.
    stable: i64,
}

/// What to do with a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Append,
    /// It was stored at this offset before.
    Duplicate(i64),
}

/// The producers of one partition.
#[derive(Default)]
pub struct Producers {
    producers: HashMap<i64, Producer>,
    /// Open transactions: first offset → producer.
    open: BTreeMap<i64, i64>,
    /// In the order of their markers.
    aborted: Vec<Aborted>,
}

impl Producers {
    /// Judges a batch that a client sends.
    pub fn judge(&self, header: &Header) -> Result<Verdict, Fault> {
        if header.producer_id < 0 {
            return if header.transactional() { Err(Fault::InvalidRecord) } else { Ok(Verdict::Append) };
        }
        let Some(producer) = self.producers.get(&header.producer_id) else {
            let unknown = header.transactional();
            return if unknown { Err(Fault::InvalidTransactionState) } else { Ok(Verdict::Append) };
        };
        if header.producer_epoch < producer.epoch {
            return Err(Fault::InvalidProducerEpoch);
        }
        let mut last_sequence = producer.last_sequence;
        if header.producer_epoch == producer.epoch {
            let same = |sent: &&Sent| {
                sent.first_sequence == header.base_sequence && sent.last_sequence == header.last_sequence()
            };
            if let Some(sent) = producer.sent.iter().find(same) {
                return Ok(Verdict::Duplicate(sent.base_offset));
            }
        } else {
            last_sequence = Some(-1);
        }
        if header.transactional() && producer.open.is_none() && !producer.registered {
            // A late batch of a transaction that has ended would hold the last stable offset back for ever.
            return Err(Fault::InvalidTransactionState);
        }
        let Some(last_sequence) = last_sequence else { return Ok(Verdict::Append) };
        let ahead = header.base_sequence.wrapping_sub(last_sequence.wrapping_add(1) & i32::MAX) & i32::MAX;
        match ahead {
            0 => Ok(Verdict::Append),
            // Numbers wrap, so half the circle ahead is a gap and half behind is a batch stored long ago.
            gap if gap < 1 << 30 || last_sequence < 0 => Err(Fault::OutOfOrderSequenceNumber),
            _ => Err(Fault::DuplicateSequenceNumber),
        }
    }

    /// Notes a batch that is in the log now (also when the log is read at start); `commits` is of a marker.
    pub fn note(&mut self, header: &Header, commits: Option<bool>, now_ms: i64) {
        if header.producer_id < 0 {
            return;
        }
        let known = self.producers.contains_key(&header.producer_id);
        let producer = self.producers.entry(header.producer_id).or_default();
        producer.seen_ms = now_ms;
        if header.control() {
            // A batch that raises the epoch ends what the older epoch remembered, or the new producer's
            // batches would look like the old one's.
            producer.enter(header.producer_epoch, known);
            producer.registered = false;
            if let Some(first) = producer.open.take() {
                self.open.remove(&first);
                if commits == Some(false) {
                    let last = header.last_offset();
                    let stable = self.stable_offset(last + 1);
                    self.aborted.push(Aborted { producer_id: header.producer_id, first, last, stable });
                }
            }
            return;
        }
        producer.enter(header.producer_epoch, true);
        producer.last_sequence = Some(header.last_sequence());
        producer.sent.push_back(Sent {
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset: header.base_offset,
        });
        if producer.sent.len() > REMEMBERED_BATCHES {
            producer.sent.pop_front();
        }
        if header.transactional() && producer.open.is_none() {
            producer.open = Some(header.base_offset);
            self.open.insert(header.base_offset, header.producer_id);
        }
    }

    /// The coordinator says that this producer's transaction will write here.
    pub fn register(&mut self, producer_id: i64, epoch: i16, now_ms: i64) {
        let known = self.producers.contains_key(&producer_id);
        let producer = self.producers.entry(producer_id).or_default();
        if epoch > producer.epoch || !known {
            producer.enter(epoch, known);
        }
        producer.registered = true;
        producer.seen_ms = now_ms;
    }

    /// The coordinator says that the transaction has ended.
    pub fn unregister(&mut self, producer_id: i64) {
        if let Some(producer) = self.producers.get_mut(&producer_id) {
            producer.registered = false;
        }
    }

    /// Open transactions as (producer, epoch).
    pub fn open(&self) -> Vec<(i64, i16)> {
        let epoch = |id: &i64| self.producers.get(id).map_or(0, |producer| producer.epoch);
        self.open.values().map(|id| (*id, epoch(id))).collect()
    }

    pub fn stable_offset(&self, end: i64) -> i64 {
        self.open.first_key_value().map_or(end, |(first, _)| *first)
    }

    /// The aborted transactions with batches in `from..to`.
    pub fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        let start = self.aborted.partition_point(|aborted| aborted.last < from);
        let mut found = Vec::new();
        for aborted in &self.aborted[start..] {
            if aborted.first < to {
                found.push(*aborted);
            }
            if aborted.stable >= to {
                break;
            }
        }
        found
    }

    /// All aborted transactions as (producer, first offset, its marker's offset).
    pub fn all_aborted(&self) -> Vec<(i64, i64, i64)> {
        self.aborted.iter().map(|aborted| (aborted.producer_id, aborted.first, aborted.last)).collect()
    }

    /// Forgets aborted transactions whose records and markers are no longer in the log.
    pub fn forget_aborted(&mut self, markers: &BTreeSet<i64>) {
        self.aborted.retain(|aborted| !markers.contains(&aborted.last));
    }

    /// Where the newest batch of each producer lies: its header tells the next start what was sent.
    pub fn newest_batches(&self) -> BTreeSet<i64> {
        let newest = |producer: &Producer| producer.sent.back().map(|sent| sent.base_offset);
        self.producers.values().filter_map(newest).collect()
    }

    /// Where a producer's open transaction begins.
    pub fn open_since(&self, producer_id: i64) -> Option<i64> {
        self.producers.get(&producer_id)?.open
    }

    /// Forgets aborted transactions below the log's start.
    pub fn forget_before(&mut self, start: i64) {
        self.aborted.retain(|aborted| aborted.last >= start);
    }

    /// Forgets producers that have been silent since, unless a transaction of theirs is open.
    pub fn forget_silent(&mut self, since_ms: i64) {
        self.producers.retain(|_, producer| {
            producer.seen_ms >= since_ms || producer.open.is_some() || producer.registered
        });
    }
}
