//! All consumer groups, in memory, and what members ask of them. A restart of the broker forgets members;
//! their next heartbeat says so and they join again. Offsets are in the metadata log.
//!
//! Invariant: a member id is made up once and never again, so a generation of before a restart fences.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::fault::Fault;
use super::group::{Admitted, Caller, Group, Join, JoinAnswer, Phase, SyncAnswer, admit_join, check_join};
use super::lock;
use super::membership::Member;

/// Groups with members, or with ids promised to some.
const GROUPS_MAX: usize = 10_000;
/// What the members of all groups say of themselves and are assigned.
const BYTES_MAX: usize = 256 << 20;

/// All groups of the broker.
#[derive(Default)]
pub struct Groups {
    groups: Mutex<BTreeMap<String, Group>>,
    /// What they hold; requests add to it, and the clock's ticks count it anew.
    bytes: AtomicUsize,
}

impl Groups {
    /// The answer comes when the generation is complete.
    pub fn join(&self, join: Join) -> oneshot::Receiver<JoinAnswer> {
        let (sender, receiver) = oneshot::channel();
        let mut groups = lock(&self.groups);
        let now = Instant::now();
        if let Err((fault, member)) = check_join(&join) {
            let _ = sender.send(Err((fault, member)));
            return receiver;
        }
        let is_one_too_many = groups.len() >= GROUPS_MAX && !groups.contains_key(&join.group);
        if is_one_too_many || !self.take(join.bytes()) {
            let _ = sender.send(Err((Fault::GroupMaxSizeReached, join.member)));
            return receiver;
        }
        let group = groups.entry(join.group.clone()).or_insert_with(|| Group::new(now));
        match admit_join(group, &join, now) {
            Ok(Admitted::Waits(id)) => {
                let member = group.members.entry(id).or_insert_with(|| Member::new(&join, now));
                member.update(&join, now);
                member.wait_join(sender);
                group.rebalance(now);
                group.complete_join(now);
            }
            Ok(Admitted::Already(joined)) => {
                let _ = sender.send(Ok(joined));
            }
            Err(refused) => {
                let _ = sender.send(Err(refused));
            }
        }
        receiver
    }

    /// The answer comes with the leader's assignment.
    pub fn sync(
        &self,
        group: &str,
        caller: &Caller<'_>,
        assignments: Vec<(String, Bytes)>,
    ) -> Result<oneshot::Receiver<SyncAnswer>, Fault> {
        let mut groups = lock(&self.groups);
        let group = groups.get_mut(group).ok_or(Fault::UnknownMemberId)?;
        group.admit(caller.member, caller.instance)?;
        if group.generation != caller.generation {
            return Err(Fault::IllegalGeneration);
        }
        let (sender, receiver) = oneshot::channel();
        let leads = group.leader == caller.member;
        let phase = group.phase;
        let member = group.members.get_mut(caller.member).ok_or(Fault::UnknownMemberId)?;
        member.seen = Instant::now();
        match phase {
            Phase::Empty => return Err(Fault::UnknownMemberId),
            Phase::Joining => return Err(Fault::RebalanceInProgress),
            Phase::Stable => {
                let _ = sender.send(Ok(member.assignment.clone()));
                return Ok(receiver);
            }
            Phase::Syncing => member.wait_sync(sender),
        }
        if leads {
            if !self.take(assignments.iter().map(|(_, assignment)| assignment.len()).sum()) {
                return Err(Fault::GroupMaxSizeReached);
            }
            for member in group.members.values_mut() {
                member.assignment = Bytes::new();
            }
            for (id, assignment) in assignments {
                if let Some(member) = group.members.get_mut(&id) {
                    member.assignment = assignment;
                }
            }
            group.phase = Phase::Stable;
            for member in group.members.values_mut() {
                member.seen = Instant::now();
                member.answer_sync(Ok(member.assignment.clone()));
            }
        }
        Ok(receiver)
    }

    /// Whether there is room for so much more.
    fn take(&self, bytes: usize) -> bool {
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > BYTES_MAX {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            tracing::warn!("consumer groups hold {BYTES_MAX} bytes, and no member more is taken");
        }
        held <= BYTES_MAX
    }

    pub fn heartbeat(&self, group: &str, caller: &Caller<'_>) -> Result<(), Fault> {
        let mut groups = lock(&self.groups);
        let group = groups.get_mut(group).ok_or(Fault::UnknownMemberId)?;
        group.admit(caller.member, caller.instance)?;
        if group.generation != caller.generation {
            return Err(Fault::IllegalGeneration);
        }
        if let Some(member) = group.members.get_mut(caller.member) {
            member.seen = Instant::now();
        }
        if group.phase == Phase::Joining { Err(Fault::RebalanceInProgress) } else { Ok(()) }
    }

    /// A member leaves, named by its id or by its instance.
    pub fn leave(&self, group: &str, member: &str, instance: Option<&str>) -> Result<(), Fault> {
        let mut groups = lock(&self.groups);
        let group = groups.get_mut(group).ok_or(Fault::UnknownMemberId)?;
        group.promised.remove(member);
        let member = match instance {
            Some(instance) if member.is_empty() => group.instance(instance).ok_or(Fault::UnknownMemberId)?,
            _ => {
                group.admit(member, instance)?;
                member.to_owned()
            }
        };
        if group.remove(&member, Instant::now()) { Ok(()) } else { Err(Fault::UnknownMemberId) }
    }

    /// Does `act`, which commits offsets, if this caller may: no new generation can form before it is done, and read
    /// what was there before. `transactional`: in a transaction, whose offsets are also taken while the group
    /// rebalances.
    pub fn commit<T>(
        &self,
        group: &str,
        caller: &Caller<'_>,
        transactional: bool,
        act: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut groups = lock(&self.groups);
        Self::check_commit(groups.get_mut(group), caller, transactional)?;
        act()
    }

    fn check_commit(
        group: Option<&mut Group>,
        caller: &Caller<'_>,
        transactional: bool,
    ) -> Result<(), Fault> {
        let outsider = caller.generation < 0 && caller.member.is_empty() && caller.instance.is_none();
        let Some(group) = group else {
            return if caller.generation < 0 { Ok(()) } else { Err(Fault::IllegalGeneration) };
        };
        if outsider {
            // A tool may move the offsets of a group without members; a transaction of an old client says no
            // more about its group than this.
            let allowed = transactional || group.members.is_empty();
            return if allowed { Ok(()) } else { Err(Fault::UnknownMemberId) };
        }
        group.admit(caller.member, caller.instance)?;
        if group.generation != caller.generation {
            return Err(Fault::IllegalGeneration);
        }
        if let Some(member) = group.members.get_mut(caller.member) {
            member.seen = Instant::now();
        }
        if group.phase == Phase::Syncing && !transactional { Err(Fault::RebalanceInProgress) } else { Ok(()) }
    }

    /// Looks at a group that has or had members.
    pub fn look<T>(&self, group: &str, look: impl FnOnce(&Group) -> T) -> Option<T> {
        lock(&self.groups).get(group).map(look)
    }

    /// Every group in memory: name, protocol type, phase.
    pub fn list(&self) -> Vec<(String, String, Phase)> {
        let groups = lock(&self.groups);
        groups.iter().map(|(name, group)| (name.clone(), group.protocol_type.clone(), group.phase)).collect()
    }

    /// Forgets a group; refused while it has members. `Ok(false)`: there is none in memory.
    pub fn delete(&self, group: &str) -> Result<bool, Fault> {
        let mut groups = lock(&self.groups);
        match groups.get(group) {
            None => Ok(false),
            Some(held) if !held.members.is_empty() => Err(Fault::NonEmptyGroup),
            Some(_) => Ok(groups.remove(group).is_some()),
        }
    }

    /// Removes members whose session has ended, ends waits that are over, and forgets groups that nobody is in.
    pub fn tick(&self) {
        let now = Instant::now();
        let mut groups = lock(&self.groups);
        for group in groups.values_mut() {
            group.promised.retain(|_, until| *until > now);
            let dead: Vec<String> = group
                .members
                .iter()
                .filter(|(_, member)| member.is_dead(now))
                .map(|(id, _)| id.clone())
                .collect();
            for member in dead {
                tracing::info!(member, "a group member's session has ended");
                group.remove(&member, now);
            }
            group.complete_join(now);
        }
        groups.retain(|_, group| !group.is_over());
        let held = groups.iter().map(|(name, group)| name.len() + group.bytes()).sum();
        self.bytes.store(held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn join(group: &str, member: &str) -> Join {
        Join {
            group: group.to_owned(),
            member: member.to_owned(),
            instance: None,
            client: "c".to_owned(),
            host: "/127.0.0.1".to_owned(),
            session: Duration::from_millis(20),
            rebalance: Duration::from_millis(20),
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), Bytes::new())],
            id_first: true,
        }
    }

    fn tick_until(groups: &Groups, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "{what} did not come true");
            groups.tick();
        }
    }

    #[test]
    fn groups_that_nobody_is_in_any_more_are_forgotten() {
        let groups = Groups::default();
        for number in 0..100 {
            // It asks for an id and never comes back.
            let answer = groups.join(join(&format!("g{number}"), "")).blocking_recv().unwrap();
            assert!(matches!(answer, Err((Fault::MemberIdRequired, _))));
        }
        assert_eq!(groups.list().len(), 100);
        tick_until(&groups, "an empty list", || groups.list().is_empty());
    }

    #[test]
    fn what_all_groups_hold_together_is_bounded() {
        let groups = Groups::default();
        let ask = |number: usize| {
            let mut wordy = Join { session: Duration::from_secs(600), ..join(&format!("g{number}"), "") };
            wordy.id_first = false;
            wordy.protocols[0].1 = Bytes::from(vec![0; 1 << 19]);
            groups.join(wordy)
        };
        let mut waiting: Vec<_> = (0..510).map(ask).collect();
        assert!(waiting.iter_mut().all(|answer| answer.try_recv().is_err()), "they wait for their groups");
        let refused: Vec<_> = (600..610).filter_map(|number| ask(number).try_recv().ok()).collect();
        assert!(matches!(refused[..], [.., Err((Fault::GroupMaxSizeReached, _))]));
        // They hang up, and their places are free again.
        waiting.clear();
        let deadline = Instant::now() + Duration::from_secs(30);
        while ask(700).try_recv().is_ok() {
            assert!(Instant::now() < deadline, "no place is free again");
            for number in 0..510 {
                for member in groups
                    .look(&format!("g{number}"), |group| group.members.keys().cloned().collect::<Vec<_>>())
                    .unwrap_or_default()
                {
                    groups.leave(&format!("g{number}"), &member, None).unwrap();
                }
            }
            groups.tick();
        }
    }

    #[test]
    fn a_group_takes_so_many_members_and_what_one_says_is_bounded() {
        let groups = Groups::default();
        let ask = |join: Join| groups.join(join).blocking_recv().unwrap().map(|joined| joined.member);
        let patient = || Join { session: Duration::from_secs(600), ..join("g", "") };
        let answers: Vec<Fault> = (0..1_001).map(|_| ask(patient()).unwrap_err().0).collect();
        assert!(answers[..1_000].iter().all(|fault| *fault == Fault::MemberIdRequired));
        assert_eq!(answers[1_000], Fault::GroupMaxSizeReached);
        let mut wordy = join("other", "");
        wordy.protocols[0].1 = Bytes::from(vec![0; 2 << 20]);
        assert_eq!(ask(wordy).unwrap_err().0, Fault::InvalidRequest);
    }
}
