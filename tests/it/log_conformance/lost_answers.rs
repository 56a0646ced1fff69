//! Answers that do not come: a proxy keeps them from a client.

use super::proxy::{Behind, CREATE_TOPICS, END_TXN, FIND_COORDINATOR, PRODUCE};
use super::*;
use crate::project::Project;

/// A worker that has these partitions and may hold a transaction open for so many seconds. One has begun.
fn in_transaction<'a>(
    log: &'a dyn Log,
    group: &str,
    partitions: &[TopicPartition],
    seconds: u64,
) -> Worker<'a> {
    let transaction_timeout = Duration::from_secs(seconds);
    let options = MemberOptions { transaction_timeout, ..options(group, group, &partitions[0]) };
    let mut worker = Worker::join(log, &options);
    worker.await_partitions(partitions.len());
    worker.member.begin().unwrap();
    worker
}

/// A machine that does not come back leaves a transaction until its time is over, longer than librdkafka waits.
fn a_transaction_left_open_is_waited_for(Behind { log: behind, direct, proxy, .. }: &Behind) {
    let partitions = topic(direct, "left-open", 2);
    let group = unique("left-open");
    direct.commit_offsets(&group, &[(partitions[0].clone(), at(3, ""))]).unwrap();
    // Kafka looks for those whose time is over every ten seconds.
    let mut worker = in_transaction(behind, &group, &partitions, 14);
    worker.member.produce(&partitions[1], &[value("result")]).unwrap();
    proxy.keep(END_TXN);
    let fence = worker.fence.clone().unwrap();
    std::thread::scope(|scope| {
        let member = &mut worker.member;
        let offsets = [(partitions[0].clone(), at(7, ""))];
        scope.spawn(move || member.commit(&fence, &offsets).unwrap_err());
        // Its offsets have come to the group by now.
        std::thread::sleep(Duration::from_secs(2));
        let since = Instant::now();
        // Who looks on does not wait.
        let so_far = direct.committed_so_far(&group, &partitions, Duration::from_secs(1)).unwrap();
        assert_eq!(so_far[0].as_ref().unwrap().offset, 3);
        assert!(since.elapsed() < Duration::from_secs(5), "it was waited for: {:?}", since.elapsed());
        let committed = direct.committed(&group, &partitions).unwrap();
        assert_eq!(committed[0].as_ref().unwrap().offset, 3);
        assert!(since.elapsed() > Duration::from_secs(10), "it was not open for long: {:?}", since.elapsed());
    });
}

#[test]
fn the_embedded_brokers_transaction_left_open_is_waited_for() {
    a_transaction_left_open_is_waited_for(&Behind::start(&[]));
}

#[test]
fn kafkas_transaction_left_open_is_waited_for() {
    if let Some(behind) = Behind::kafka() {
        a_transaction_left_open_is_waited_for(&behind);
    }
}

/// As one that Kafka has lost: it is open for longer than anybody waits, who goes on from its offsets.
#[test]
fn a_transaction_that_is_not_ended_is_told_from_brokers_that_do_not_answer() {
    let Behind { log: behind, direct, proxy, .. } = &Behind::start(&[]);
    let partitions = topic(direct, "hangs", 3);
    let group = unique("hangs");
    let mut worker = in_transaction(behind, &group, &partitions, 120);
    proxy.keep(END_TXN);
    let fence = worker.fence.clone().unwrap();
    std::thread::scope(|scope| {
        let member = &mut worker.member;
        let offsets = [(partitions[1].clone(), at(7, ""))];
        scope.spawn(move || member.commit(&fence, &offsets));
        std::thread::sleep(Duration::from_secs(2));
        let error = direct.committed(&group, &partitions).unwrap_err();
        proxy.pass(END_TXN);
        let LogError::Undecided { group: named, partition, .. } = &error else { panic!("{error}") };
        assert_eq!((named, partition), (&group, &partitions[1]));
    });
}

/// librdkafka waits for a coordinator without end. A successor goes on.
#[test]
fn a_coordinator_that_is_not_found_fails_the_commit() {
    let Behind { log, proxy, .. } = &Behind::start(&[]);
    let partitions = topic(log, "no-coordinator", 2);
    let group = unique("no-coordinator");
    let mut outcomes = Vec::new();
    for hidden in [true, false] {
        let mut worker = in_transaction(log, &group, &partitions, 3);
        worker.member.produce(&partitions[1], &[value("result")]).unwrap();
        if hidden {
            proxy.keep(FIND_COORDINATOR);
        }
        let fence = worker.fence.clone().unwrap();
        outcomes.push(worker.member.commit(&fence, &[(partitions[0].clone(), at(7, ""))]));
        proxy.pass(FIND_COORDINATOR);
    }
    assert!(
        matches!(&outcomes[..], [Err(CommitError::Unknown(why)), Ok(())] if why.contains(&group)),
        "{outcomes:?}"
    );
    assert_eq!(read_all(log, &partitions[1]), ["result"]);
}

#[test]
fn offsets_are_asked_for_again_where_the_question_for_the_coordinator_was_lost() {
    let Behind { log, proxy, .. } = &Behind::start(&[]);
    let partitions = topic(log, "lost-question", 1);
    let group = unique("lost-question");
    log.commit_offsets(&group, &[(partitions[0].clone(), at(3, ""))]).unwrap();
    for so_far in [false, true] {
        proxy.keep(FIND_COORDINATOR);
        let since = Instant::now();
        let committed = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(2));
                proxy.pass(FIND_COORDINATOR);
            });
            match so_far {
                false => log.committed(&group, &partitions).unwrap(),
                true => log.committed_so_far(&group, &partitions, Duration::ZERO).unwrap(),
            }
        });
        assert_eq!(committed, [Some(at(3, ""))]);
        assert!(since.elapsed() > Duration::from_secs(2), "nothing was lost");
        assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    }
}

/// As where a process stands still for longer than a record may be on its way. The broker is there: it may have ended the
/// transaction by itself meanwhile, and a successor goes on.
fn records_that_time_out_end_their_transaction_only(Behind { log, proxy, .. }: &Behind) {
    let partitions = topic(log, "timed-out", 2);
    let group = unique("timed-out");
    let mut worker = in_transaction(log, &group, &partitions, 3);
    proxy.keep(PRODUCE);
    let refused = within(Duration::from_secs(60), "a record that times out", || {
        std::thread::sleep(Duration::from_millis(50));
        worker.member.produce(&partitions[1], &[value("lost")]).err()
    });
    assert!(matches!(refused, LogError::Abort(_)), "{refused:?}");
    proxy.pass(PRODUCE);
    let aborted = worker.member.abort();
    assert!(matches!(aborted, Ok(()) | Err(LogError::Fenced(_))), "{aborted:?}");
    drop(worker);
    let mut worker = in_transaction(log, &group, &partitions, 3);
    worker.member.produce(&partitions[1], &[value("result")]).unwrap();
    let fence = worker.fence.clone().unwrap();
    worker.member.commit(&fence, &[(partitions[0].clone(), at(7, ""))]).unwrap();
    assert_eq!(read_all(log, &partitions[1]), ["result"]);
}

#[test]
fn records_that_time_out_on_their_way_to_the_embedded_broker() {
    records_that_time_out_end_their_transaction_only(&Behind::start(&[]));
}

#[test]
fn records_that_time_out_on_their_way_to_kafka() {
    if let Some(behind) = Behind::kafka() {
        records_that_time_out_end_their_transaction_only(&behind);
    }
}

/// A machine that sleeps, or is moved, between the request and its answer.
#[test]
fn topics_are_created_by_a_process_that_stood_still_meanwhile() {
    let Behind { direct, proxy, .. } = &Behind::start(&[]);
    let (project, topic) = (Project::new(), unique("stood-still"));
    proxy.keep(CREATE_TOPICS);
    let address = proxy.address.to_string();
    let running = project.start(&["topic", "create", &topic, "--partitions", "2", "--brokers", &address]);
    std::thread::sleep(Duration::from_secs(2));
    running.signal("-STOP");
    proxy.pass(CREATE_TOPICS);
    std::thread::sleep(Duration::from_secs(14));
    running.signal("-CONT");
    let (code, _) = running.wait(Duration::from_secs(30));
    assert_eq!(code, 0, "{}", project.printed().1);
    assert_eq!(direct.partitions(&topic).unwrap(), Some(2));
}
