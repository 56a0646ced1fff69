//! A consumer group in memory: members, generations, cooperative assignment, committed offsets.
//!
//! Invariant: a rebalance is complete, and the generation moves, when every member has polled since it began.
//! Invariant: a partition has one owner at most: who gains it waits until who loses it has released it.

use std::collections::{BTreeMap, BTreeSet};

use crate::log::Position;
use crate::record::TopicPartition;

pub(super) struct Membership {
    /// Which of the members that have come under this instance: the last one.
    pub incarnation: u64,
    pub topics: Vec<String>,
    pub session_ms: i64,
    pub seen_ms: i64,
    pub owned: BTreeSet<TopicPartition>,
    target: BTreeSet<TopicPartition>,
    rejoined: bool,
    /// The generation whose events it has been given.
    told: i32,
}

#[derive(Default)]
pub(super) struct Group {
    pub generation: i32,
    pub members: BTreeMap<String, Membership>,
    pub offsets: BTreeMap<TopicPartition, Position>,
    rebalancing: bool,
}

/// What a member is told at a poll.
pub(super) struct Told {
    pub generation: i32,
    pub added: Vec<TopicPartition>,
    pub revoked: Vec<TopicPartition>,
}

impl Group {
    pub fn join(
        &mut self,
        instance: &str,
        incarnation: u64,
        topics: Vec<String>,
        session_ms: i64,
        now_ms: i64,
    ) {
        self.members.insert(
            instance.to_owned(),
            Membership {
                incarnation,
                topics,
                session_ms,
                seen_ms: now_ms,
                owned: BTreeSet::new(),
                target: BTreeSet::new(),
                rejoined: false,
                told: 0,
            },
        );
        self.rebalance();
    }

    pub fn leave(&mut self, instance: &str, incarnation: u64) {
        if self.is_member(instance, incarnation) {
            self.members.remove(instance);
            self.rebalance();
        }
    }

    pub fn is_member(&self, instance: &str, incarnation: u64) -> bool {
        self.members.get(instance).is_some_and(|member| member.incarnation == incarnation)
    }

    /// Begins a rebalance: every member has to poll.
    pub fn rebalance(&mut self) {
        self.rebalancing = true;
        for member in self.members.values_mut() {
            member.rejoined = false;
        }
    }

    /// Removes the members that have not polled within their session.
    pub fn expire(&mut self, now_ms: i64) {
        let before = self.members.len();
        self.members.retain(|_, member| member.seen_ms + member.session_ms >= now_ms);
        if self.members.len() < before {
            self.rebalance();
        }
    }

    pub fn poll(&mut self, instance: &str, now_ms: i64, partitions: &[TopicPartition]) -> Option<Told> {
        let member = self.members.get_mut(instance)?;
        member.seen_ms = now_ms;
        member.rejoined = true;
        if self.rebalancing && self.members.values().all(|member| member.rejoined) {
            self.rebalancing = false;
            self.generation += 1;
            self.balance(partitions);
        }
        let taken: BTreeSet<TopicPartition> = self
            .members
            .iter()
            .filter(|(other, _)| *other != instance)
            .flat_map(|(_, member)| member.owned.iter().cloned())
            .collect();
        let generation = self.generation;
        let member = self.members.get_mut(instance)?;
        if member.told == generation {
            return None;
        }
        member.told = generation;
        let revoked: Vec<TopicPartition> = member.owned.difference(&member.target).cloned().collect();
        let added: Vec<TopicPartition> = member
            .target
            .difference(&member.owned)
            .filter(|partition| !taken.contains(*partition))
            .cloned()
            .collect();
        member.owned.extend(added.iter().cloned());
        Some(Told { generation, added, revoked })
    }

    pub fn release(&mut self, instance: &str, incarnation: u64, partitions: &[TopicPartition]) {
        if !self.is_member(instance, incarnation) {
            return;
        }
        let mut released = false;
        if let Some(member) = self.members.get_mut(instance) {
            for partition in partitions {
                released |= member.owned.remove(partition);
            }
        }
        if released {
            self.rebalance();
        }
    }

    /// Sticky and even: who owns a partition keeps it up to a fair share; the rest goes to who has least.
    fn balance(&mut self, partitions: &[TopicPartition]) {
        let count = self.members.len();
        if count == 0 {
            return;
        }
        let wanted = |member: &Membership, partition: &TopicPartition| {
            member.topics.iter().any(|topic| **topic == *partition.topic)
        };
        let mut free: BTreeSet<TopicPartition> = partitions
            .iter()
            .filter(|partition| self.members.values().any(|member| wanted(member, partition)))
            .cloned()
            .collect();
        let (share, mut extra) = (free.len() / count, free.len() % count);
        for member in self.members.values_mut() {
            let mut kept: BTreeSet<TopicPartition> = BTreeSet::new();
            for partition in &member.owned {
                let limit = if extra > 0 { share + 1 } else { share };
                if kept.len() < limit && free.remove(partition) {
                    kept.insert(partition.clone());
                }
            }
            if kept.len() > share {
                extra -= 1;
            }
            member.target = kept;
        }
        for partition in free {
            let least = self
                .members
                .values_mut()
                .filter(|member| wanted(member, &partition))
                .min_by_key(|member| member.target.len());
            if let Some(member) = least {
                member.target.insert(partition);
            }
        }
    }
}
