//! Groups: assignment, fencing, taking over.

use super::*;

pub fn nothing_is_read_before_start(log: &dyn Log) {
    let partitions = topic(log, "start", 2);
    for partition in &partitions {
        produce_numbers(log, partition, 100);
    }
    let group = unique("start");
    let mut member = log.member(&options(&group, &group, &partitions[0])).unwrap();
    let mut assigned = Vec::new();
    until("the assignment", || {
        for event in member.poll(POLL).unwrap() {
            match event {
                Event::Assigned { partitions, .. } => assigned.extend(partitions),
                _ => panic!("nothing was started"),
            }
        }
        (assigned.len() == 2).then_some(())
    });
    for _ in 0..5 {
        assert!(member.poll(POLL).unwrap().is_empty(), "nothing was started");
    }
    member.start(&partitions[1], 90).unwrap();
    let mut texts = Vec::new();
    until("the started partition's end", || {
        let mut ended = None;
        for event in member.poll(POLL).unwrap() {
            match event {
                Event::Run(run) => {
                    assert_eq!(run.partition, partitions[1]);
                    texts.extend((0..run.records.len()).map(|i| text(&run.records.to_owned(i))));
                }
                Event::End { position, .. } => ended = (position == 100).then_some(()),
                _ => panic!("no rebalance is due"),
            }
        }
        ended
    });
    assert_eq!(texts, (90..100).map(|i| i.to_string()).collect::<Vec<_>>());
}

pub fn started_again_elsewhere(log: &dyn Log) {
    let partitions = topic(log, "move", 2);
    for partition in &partitions {
        produce_numbers(log, partition, 3_000);
    }
    let group = unique("move");
    let mut worker = Worker::join(log, &options(&group, &group, &partitions[0]));
    worker.await_partitions(2);
    for from in [2_000, 0, 1_000, 999, 2_999, 5] {
        // Whatever has been fetched by now belongs to the place before.
        worker.member.start(&partitions[0], from).unwrap();
        worker.owned.insert(partitions[0].clone(), from);
        worker.texts.retain(|(partition, _)| *partition != partitions[0]);
        until("the first record", || {
            worker.step();
            worker.texts.iter().any(|(partition, _)| *partition == partitions[0]).then_some(())
        });
        let first = worker.texts.iter().find(|(partition, _)| *partition == partitions[0]).unwrap();
        assert_eq!(first.1, from.to_string());
    }
    until("both ends", || {
        worker.step();
        worker.owned.values().all(|position| *position == 3_000).then_some(())
    });
    let other: Vec<&String> =
        worker.texts.iter().filter(|(partition, _)| *partition == partitions[1]).map(|(_, t)| t).collect();
    assert_eq!(other, (0..3_000).map(|i| i.to_string()).collect::<Vec<_>>().iter().collect::<Vec<_>>());
}

pub fn two_split_the_partitions_and_one_leaves(log: &dyn Log) {
    let partitions = topic(log, "split", 4);
    for partition in &partitions {
        produce_numbers(log, partition, 500);
    }
    let group = unique("split");
    let mut first = Worker::join(log, &options(&group, &format!("{group}-1"), &partitions[0]));
    first.await_partitions(4);
    until("all records", || {
        first.step();
        (first.texts.len() == 2_000).then_some(())
    });
    first.commit_settled();

    let mut second = Worker::join(log, &options(&group, &format!("{group}-2"), &partitions[0]));
    until("two partitions each", || {
        first.step();
        second.step();
        (first.owned.len() == 2 && second.owned.len() == 2).then_some(())
    });
    // Both go on committing, each under its own fence, and nothing is read twice.
    first.commit_settled();
    second.commit_settled();
    for partition in &partitions {
        assert_ne!(first.owned.contains_key(partition), second.owned.contains_key(partition));
        produce_numbers(log, partition, 10);
    }
    until("the new records", || {
        first.step();
        second.step();
        (first.texts.len() + second.texts.len() == 2_040).then_some(())
    });
    assert_eq!(second.texts.len(), 20);
    first.commit_settled();
    second.commit_settled();

    // Long before its session would have timed out, the rest is the first's again.
    second.member.leave().unwrap();
    crate::support::within(Duration::from_secs(20), "the partitions of the one that left", || {
        first.step();
        (first.owned.len() == 4).then_some(())
    });
    first.commit_settled();
    assert_eq!((first.lost, second.lost), (0, 0));
    assert_eq!(first.texts.len(), 2_020);
}

pub fn a_commit_with_the_old_fence_is_fenced(log: &dyn Log) {
    let partitions = topic(log, "fence", 2);
    let output = topic(log, "fence-out", 1).remove(0);
    let group = unique("fence");
    let mut first = Worker::join(log, &options(&group, &format!("{group}-1"), &partitions[0]));
    first.await_partitions(2);
    let old_fence = first.fence.clone().unwrap();
    let old_offsets = first.offsets();
    let mut second = Worker::join(log, &options(&group, &format!("{group}-2"), &partitions[0]));
    until("a partition each", || {
        first.step();
        second.step();
        (first.owned.len() == 1 && second.owned.len() == 1).then_some(())
    });
    // The group has moved on: an epoch from before must not commit, although the member is alive.
    first.member.begin().unwrap();
    first.member.produce(&output, &[value("never")]).unwrap();
    let error = first.member.commit(&old_fence, &old_offsets).unwrap_err();
    assert!(matches!(error, CommitError::Fenced(_)), "{error}");
    first.member.abort().unwrap();
    // It fenced the epoch, not the member.
    first.commit_settled();
    first.commit(&[(&output, "a")]).unwrap();
    assert_eq!(read_all(log, &output), ["a"]);
}

pub fn the_same_instance_takes_over(log: &dyn Log) {
    let partitions = topic(log, "takeover", 2);
    let output = topic(log, "takeover-out", 1).remove(0);
    for partition in &partitions {
        produce_numbers(log, partition, 20);
    }
    let group = unique("takeover");
    let join = options(&group, &group, &partitions[0]);
    let mut old = Worker::join(log, &join);
    old.await_partitions(2);
    until("all records", || {
        old.step();
        (old.texts.len() == 40).then_some(())
    });
    old.commit(&[(&output, "old")]).unwrap();
    // It stops in the middle of a transaction; its successor starts.
    old.member.begin().unwrap();
    old.member.produce(&output, &[value("never")]).unwrap();

    let mut new = Worker::join(log, &join);
    crate::support::within(Duration::from_secs(30), "the successor's partitions", || {
        new.step();
        (new.owned.len() == 2).then_some(())
    });
    assert!(new.texts.is_empty(), "it goes on where the old one had committed");
    new.commit(&[(&output, "new")]).unwrap();

    // The old one wakes.
    let fence = old.fence.clone().unwrap();
    let error = old.member.commit(&fence, &old.offsets()).unwrap_err();
    assert!(matches!(error, CommitError::Fenced(_)), "{error}");
    let error = until("the old one to be told", || old.member.poll(POLL).err());
    assert!(matches!(error, LogError::Fenced(_)), "{error}");
    drop(old);
    new.commit(&[(&output, "newer")]).unwrap();
    assert_eq!(read_all(log, &output), ["old", "new", "newer"]);
}

pub fn offsets_committed_from_outside(log: &dyn Log) {
    let partitions = topic(log, "outside", 2);
    for partition in &partitions {
        produce_numbers(log, partition, 10);
    }
    let group = unique("outside");
    assert_eq!(log.committed(&group, &partitions).unwrap(), [None, None]);
    log.commit_offsets(&group, &[(partitions[1].clone(), at(7, "reset"))]).unwrap();
    assert_eq!(log.committed(&group, &partitions).unwrap(), [None, Some(at(7, "reset"))]);
    let mut worker = Worker::join(log, &options(&group, &group, &partitions[0]));
    until("the rest", || {
        worker.step();
        (worker.texts.len() == 13).then_some(())
    });
    assert_eq!(worker.texts.iter().filter(|(partition, _)| *partition == partitions[1]).count(), 3);
}

pub fn dropped_in_the_middle_of_a_rebalance(log: &dyn Log) {
    let partitions = topic(log, "dropped", 2);
    let group = unique("dropped");
    let mut first = Worker::join(log, &options(&group, &format!("{group}-1"), &partitions[0]));
    first.await_partitions(2);
    let mut second = Worker::join(log, &options(&group, &format!("{group}-2"), &partitions[0]));
    // The first has been asked to give one up, and never answers.
    let mut asked = false;
    until("the first to be asked", || {
        second.step();
        asked |= first.member.poll(POLL).unwrap().iter().any(|event| matches!(event, Event::Revoked(_)));
        asked.then_some(())
    });
    let Worker { member, .. } = first;
    let ended = std::thread::spawn(move || drop(member));
    crate::support::within(Duration::from_secs(20), "the member to end", || {
        std::thread::yield_now();
        ended.is_finished().then_some(())
    });
    second.step();
    assert!(second.owned.len() < 2, "its session has not timed out");
}

pub fn a_member_that_is_gone_is_replaced_when_its_session_times_out(log: &dyn Log) {
    let partitions = topic(log, "session", 2);
    let group = unique("session");
    let mut first = Worker::join(log, &options(&group, &format!("{group}-1"), &partitions[0]));
    let brief = MemberOptions {
        session_timeout: Duration::from_secs(6),
        ..options(&group, &format!("{group}-2"), &partitions[0])
    };
    let mut second = Worker::join(log, &brief);
    until("a partition each", || {
        first.step();
        second.step();
        (first.owned.len() == 1 && second.owned.len() == 1).then_some(())
    });
    drop(second);
    until("all partitions", || {
        first.step();
        (first.owned.len() == 2).then_some(())
    });
    first.commit_settled();
}
