//! The watermark of a keyed task: the minimum over its set of origins (protocol rules R3 and R4).
//!
//! Invariant: −∞ until each origin of the set has sent a watermark, gone idle or ended.
//! Invariant: an idle origin holds nothing back and pushes nothing ahead: with no origin active, the
//! watermark is the highest that any origin itself reached, and +∞ only when all have ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{RestoreError, WATERMARK_MAX, WATERMARK_MIN, Watermark};
use crate::planted::{Fault, planted};
use crate::record::Origin;

const VERSION: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Declared, and nothing heard of it yet.
    Waiting,
    Active,
    Idle,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    status: Status,
    /// The origin's own watermark: the highest it sent.
    watermark: Watermark,
}

/// The origins whose rows reach a task, and how far each has come.
///
/// ```
/// use headwater::record::Origin;
/// use headwater::time::{OriginSet, WATERMARK_MIN};
///
/// let (ewr, jfk) = (Origin::new("departures", 0), Origin::new("departures", 1));
/// let mut origins = OriginSet::new();
/// origins.declare([("departures", 2)]);
/// assert_eq!(origins.advance(&ewr, 500), WATERMARK_MIN); // nothing is known of the other
/// assert_eq!(origins.advance(&jfk, 300), 300);
/// assert_eq!(origins.idle(&jfk), 500);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginSet {
    origins: BTreeMap<Origin, Progress>,
    /// The highest watermark given out, so that a waking origin can't take it back.
    reached: Option<Watermark>,
    /// The most partitions that a message named, by topic.
    declared: BTreeMap<Arc<str>, i32>,
}

impl OriginSet {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in an origin set as an exchange message carries it: topics with their partition counts. The
    /// set is the largest seen. What the first message names is waited for; an origin that a later one adds
    /// enters as idle.
    pub fn declare<'a>(&mut self, topics: impl IntoIterator<Item = (&'a str, i32)>) -> Watermark {
        let status = if self.declared.is_empty() { Status::Waiting } else { Status::Idle };
        let mut grown = false;
        for (topic, partitions) in topics {
            if partitions <= self.declared.get(topic).copied().unwrap_or(0) {
                continue; // as nearly every message is
            }
            grown = true;
            let topic: Arc<str> = topic.into();
            for partition in 0..partitions {
                let fresh = Progress { status, watermark: WATERMARK_MIN };
                self.origins.entry(Origin::new(Arc::clone(&topic), partition)).or_insert(fresh);
            }
            self.declared.insert(topic, partitions);
        }
        if grown { self.recompute() } else { self.watermark() }
    }

    /// An origin's watermark has come. Ends its idleness. An origin that is not declared joins the set.
    pub fn advance(&mut self, origin: &Origin, watermark: Watermark) -> Watermark {
        let progress = self.progress(origin);
        if progress.status != Status::Ended {
            progress.status = Status::Active;
            progress.watermark = progress.watermark.max(watermark);
        }
        self.recompute()
    }

    /// A row of an origin has come. Ends its idleness, no more: an origin that is waited for still is.
    pub fn row(&mut self, origin: &Origin) -> Watermark {
        let progress = self.progress(origin);
        if progress.status == Status::Idle {
            progress.status = Status::Active;
        }
        self.recompute()
    }

    /// An origin was declared idle.
    pub fn idle(&mut self, origin: &Origin) -> Watermark {
        let progress = self.progress(origin);
        if progress.status != Status::Ended {
            progress.status = Status::Idle;
        }
        self.recompute()
    }

    /// An origin has come to its end of input. That is final.
    pub fn end(&mut self, origin: &Origin) -> Watermark {
        self.progress(origin).status = Status::Ended;
        self.recompute()
    }

    /// The watermark of the set.
    pub fn watermark(&self) -> Watermark {
        self.reached.unwrap_or(WATERMARK_MIN)
    }

    /// Every origin with its own watermark, for lag and drift: −∞ before it sent one, +∞ once it ended.
    pub fn each(&self) -> impl Iterator<Item = (&Origin, Watermark)> {
        self.origins.iter().map(|(origin, progress)| match progress.status {
            Status::Ended => (origin, WATERMARK_MAX),
            _ => (origin, progress.watermark),
        })
    }

    pub fn len(&self) -> usize {
        self.origins.len()
    }

    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    fn progress(&mut self, origin: &Origin) -> &mut Progress {
        // Looked up twice because `entry` would clone the name each time.
        if !self.origins.contains_key(origin) {
            let fresh = Progress { status: Status::Waiting, watermark: WATERMARK_MIN };
            self.origins.insert(origin.clone(), fresh);
        }
        match self.origins.get_mut(origin) {
            Some(progress) => progress,
            None => unreachable!("the origin was inserted just above"),
        }
    }

    fn recompute(&mut self) -> Watermark {
        let computed = self.minimum();
        let reached = self.watermark().max(computed);
        self.reached = Some(reached);
        reached
    }

    fn minimum(&self) -> Watermark {
        let mut lowest_active = None;
        let mut highest = WATERMARK_MIN;
        let mut ended = 0;
        for progress in self.origins.values() {
            highest = highest.max(progress.watermark);
            match progress.status {
                Status::Waiting => return WATERMARK_MIN,
                Status::Active => {
                    let lowest: Watermark = lowest_active.unwrap_or(WATERMARK_MAX);
                    lowest_active = Some(lowest.min(progress.watermark));
                }
                Status::Idle => {}
                Status::Ended => ended += 1,
            }
        }
        match lowest_active {
            Some(lowest) => lowest,
            None if ended == self.origins.len() && ended > 0 => WATERMARK_MAX,
            None if planted(Fault::NobodyActiveClosesAll) => WATERMARK_MAX - 1,
            // No origin is active. One that ended counts for what it reached, not for +∞: an idle one may wake.
            None => highest,
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.watermark().to_le_bytes());
        bytes.extend((self.declared.len() as u32).to_le_bytes());
        for (topic, partitions) in &self.declared {
            put_origin(&mut bytes, topic, *partitions);
        }
        bytes.extend((self.origins.len() as u32).to_le_bytes());
        for (origin, progress) in &self.origins {
            put_origin(&mut bytes, &origin.topic, origin.partition);
            bytes.push(match progress.status {
                Status::Waiting => 0,
                Status::Active => 1,
                Status::Idle => 2,
                Status::Ended => 3,
            });
            bytes.extend(progress.watermark.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = ByteReader(bytes);
        let [version] = reader.array()?;
        if version != VERSION {
            return Err(damaged(format!("version {version}, not {VERSION}")));
        }
        let reached = Some(Watermark::from_le_bytes(reader.array()?));
        let mut declared = BTreeMap::new();
        for _ in 0..u32::from_le_bytes(reader.array()?) {
            let Origin { topic, partition } = reader.origin()?;
            declared.insert(topic, partition);
        }
        let mut origins = BTreeMap::new();
        for _ in 0..u32::from_le_bytes(reader.array()?) {
            let origin = reader.origin()?;
            let status = match reader.array()? {
                [0] => Status::Waiting,
                [1] => Status::Active,
                [2] => Status::Idle,
                [3] => Status::Ended,
                [other] => return Err(damaged(format!("status {other}"))),
            };
            let watermark = Watermark::from_le_bytes(reader.array()?);
            origins.insert(origin, Progress { status, watermark });
        }
        if !reader.0.is_empty() {
            return Err(damaged(format!("{} bytes too many", reader.0.len())));
        }
        Ok(Self { origins, reached, declared })
    }
}

/// A topic's name, length first, and a number of its partitions.
fn put_origin(bytes: &mut Vec<u8>, topic: &str, partition: i32) {
    bytes.extend((topic.len() as u32).to_le_bytes());
    bytes.extend(topic.as_bytes());
    bytes.extend(partition.to_le_bytes());
}

fn damaged(detail: String) -> RestoreError {
    RestoreError { what: "set of origins", detail }
}

struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], RestoreError> {
        let Some((taken, rest)) = self.0.split_at_checked(length) else {
            return Err(damaged("it ends early".into()));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn origin(&mut self) -> Result<Origin, RestoreError> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        let topic = std::str::from_utf8(self.take(length)?)
            .map_err(|_| damaged("a topic's name is not UTF-8".into()))?;
        let topic: Arc<str> = topic.into();
        Ok(Origin::new(topic, i32::from_le_bytes(self.array()?)))
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], RestoreError> {
        let mut array = [0; LENGTH];
        array.copy_from_slice(self.take(LENGTH)?);
        Ok(array)
    }
}

#[cfg(test)]
mod tests;
