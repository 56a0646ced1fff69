//! One member of a consumer group: what it said when it joined, and the answers that it waits for.
//!
//! Invariant: a request that waits is answered exactly once, also when the member is removed.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::sync::oneshot;

use super::group::{Join, JoinAnswer, SyncAnswer};

pub struct Member {
    pub instance: Option<String>,
    pub client: String,
    pub host: String,
    pub rebalance: Duration,
    pub protocols: Vec<(String, Bytes)>,
    pub assignment: Bytes,
    /// When it was last heard of.
    pub seen: Instant,
    session: Duration,
    join: Option<oneshot::Sender<JoinAnswer>>,
    sync: Option<oneshot::Sender<SyncAnswer>>,
}

impl Member {
    pub fn new(join: &Join, now: Instant) -> Member {
        Member {
            instance: join.instance.clone(),
            client: join.client.clone(),
            host: join.host.clone(),
            rebalance: join.rebalance,
            protocols: join.protocols.clone(),
            assignment: Bytes::new(),
            seen: now,
            session: join.session,
            join: None,
            sync: None,
        }
    }

    pub fn update(&mut self, join: &Join, now: Instant) {
        self.client.clone_from(&join.client);
        self.host.clone_from(&join.host);
        self.rebalance = join.rebalance;
        self.protocols.clone_from(&join.protocols);
        self.session = join.session;
        self.seen = now;
    }

    /// What is kept of what it said, and its assignment.
    pub fn bytes(&self) -> usize {
        said_bytes(&self.protocols, &self.client, self.instance.as_deref()) + self.assignment.len()
    }

    pub fn speaks(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }

    /// Its subscription under a protocol.
    pub fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| name == protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }

    pub fn is_joining(&self) -> bool {
        self.join.is_some()
    }

    pub fn wait_join(&mut self, answer: oneshot::Sender<JoinAnswer>) {
        self.join = Some(answer);
    }

    pub fn wait_sync(&mut self, answer: oneshot::Sender<SyncAnswer>) {
        self.sync = Some(answer);
    }

    pub fn answer_join(&mut self, answer: JoinAnswer) {
        if let Some(waiting) = self.join.take() {
            // Nobody listens any more when the connection is gone; the session timeout then removes it.
            let _ = waiting.send(answer);
        }
    }

    pub fn answer_sync(&mut self, answer: SyncAnswer) {
        if let Some(waiting) = self.sync.take() {
            let _ = waiting.send(answer);
        }
    }

    /// A member that waits for an answer is alive for as long as its connection is.
    pub fn is_dead(&self, now: Instant) -> bool {
        let waits = self.join.as_ref().is_some_and(|answer| !answer.is_closed())
            || self.sync.as_ref().is_some_and(|answer| !answer.is_closed());
        !waits && now.duration_since(self.seen) >= self.session
    }
}

/// What a member says of itself.
pub fn said_bytes(protocols: &[(String, Bytes)], client: &str, instance: Option<&str>) -> usize {
    let protocols: usize = protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum();
    protocols + client.len() + instance.map_or(0, str::len)
}

/// The topics of a consumer's subscription (version, then an array of names); `None` if it is not one.
pub fn subscribed_topics(mut metadata: &[u8]) -> Option<Vec<Vec<u8>>> {
    let _version = metadata.try_get_i16().ok()?;
    let count = metadata.try_get_i32().ok()?;
    let mut topics = Vec::new();
    for _ in 0..count {
        let length = usize::try_from(metadata.try_get_i16().ok()?).ok()?;
        let (name, rest) = metadata.split_at_checked(length)?;
        topics.push(name.to_vec());
        metadata = rest;
    }
    topics.sort();
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_compared_by_its_topics_alone() {
        let one = b"\0\x01\0\0\0\x02\0\x01b\0\x01a\xff\xff\xff\xff";
        let two = b"\0\x03\0\0\0\x02\0\x01a\0\x01b\0\0\0\0\0\0\0\0";
        assert_eq!(subscribed_topics(one), subscribed_topics(two));
        assert_eq!(subscribed_topics(one).unwrap().len(), 2);
        for cut in 0..one.len() - 4 {
            assert_eq!(subscribed_topics(&one[..cut]), None);
        }
    }
}
