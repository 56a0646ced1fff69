//! The coordinator by itself, over real files: commits, fencing, and what a restart makes of each state.

use bytes::Bytes;

use super::super::batch::tests::batch;
use super::super::config::TopicConfig;
use super::super::metadata::Committed;
use super::*;

fn cluster(folder: &std::path::Path) -> Cluster {
    let cluster = Cluster::open(folder).unwrap();
    if cluster.topic("t").is_none() {
        cluster.create_topic("t", 2, Default::default(), false).unwrap();
    }
    cluster
}

fn send(cluster: &Cluster, producer: (i64, i16), sequence: i32, index: i32) -> Result<i64, Fault> {
    let records = batch((producer.0, producer.1, sequence), true, &[1_000]);
    let config = TopicConfig::new(Default::default()).unwrap();
    let partition = cluster.partition("t", index).unwrap();
    partition.append(Bytes::from(records), &config).map(|appended| appended.base_offset)
}

fn offset(at: i64) -> PendingOffset {
    let committed = Committed { offset: at, leader_epoch: -1, metadata: "m".into() };
    PendingOffset { group: "g".into(), topic: "t".into(), partition: 0, committed }
}

fn committed(cluster: &Cluster) -> Option<i64> {
    cluster
        .metadata
        .read(|image| image.offsets.get("g").and_then(|of| of.get(&("t".into(), 0))).map(|c| c.offset))
}

fn bounds(cluster: &Cluster, index: i32) -> (i64, i64) {
    let bounds = cluster.partition("t", index).unwrap().bounds();
    (bounds.stable, bounds.end)
}

#[test]
fn records_and_offsets_appear_together_and_the_epoch_stays() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path());
    let (id, epoch) = cluster.init_transactions("x", 1000, None).unwrap();
    for round in 0..3 {
        cluster.add_partitions("x", id, epoch, &[("t".into(), 0), ("t".into(), 1)]).unwrap();
        send(&cluster, (id, epoch), round, 0).unwrap();
        cluster.add_offsets("x", id, epoch, vec![offset(i64::from(round))]).unwrap();
        assert!(cluster.offset_pending("g", "t", 0));
        let before = (round > 0).then(|| i64::from(round) - 1);
        assert_eq!((committed(&cluster), bounds(&cluster, 0).0), (before, i64::from(round) * 2));
        cluster.end_transaction("x", id, epoch, true).unwrap();
        cluster.end_transaction("x", id, epoch, true).unwrap();
        assert_eq!(committed(&cluster), Some(i64::from(round)));
        assert_eq!(bounds(&cluster, 0), (i64::from(round) * 2 + 2, i64::from(round) * 2 + 2));
        assert!(!cluster.offset_pending("g", "t", 0));
    }
    assert_eq!(bounds(&cluster, 1), (0, 0), "a partition without records gets no marker");
}

#[test]
fn a_new_instance_aborts_its_predecessor_and_fences_it() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path());
    let (id, old) = cluster.init_transactions("x", 1000, None).unwrap();
    cluster.add_partitions("x", id, old, &[("t".into(), 0)]).unwrap();
    send(&cluster, (id, old), 0, 0).unwrap();
    cluster.add_offsets("x", id, old, vec![offset(9)]).unwrap();
    let (same, new) = cluster.init_transactions("x", 1000, None).unwrap();
    assert_eq!((same, new), (id, old + 1));
    assert_eq!((bounds(&cluster, 0), committed(&cluster)), ((2, 2), None));
    assert_eq!(cluster.partition("t", 0).unwrap().aborted(0, 2, 0).unwrap().len(), 1);
    assert_eq!(cluster.end_transaction("x", id, old, true), Err(Fault::ProducerFenced));
    assert_eq!(cluster.add_partitions("x", id, old, &[]), Err(Fault::ProducerFenced));
    assert_eq!(send(&cluster, (id, old), 1, 0), Err(Fault::InvalidProducerEpoch));
    assert_eq!(send(&cluster, (id, old), 0, 1), Err(Fault::InvalidTransactionState));
    cluster.add_partitions("x", id, new, &[("t".into(), 0)]).unwrap();
    assert_eq!(send(&cluster, (id, new), 0, 0), Ok(2));
}

#[test]
fn an_open_transaction_stays_hidden_over_a_crash_until_it_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let first = cluster(folder.path());
    let (id, epoch) = first.init_transactions("x", 1, None).unwrap();
    first.add_partitions("x", id, epoch, &[("t".into(), 0)]).unwrap();
    send(&first, (id, epoch), 0, 0).unwrap();
    drop(first);
    let second = cluster(folder.path());
    assert_eq!(bounds(&second, 0), (0, 1));
    std::thread::sleep(std::time::Duration::from_millis(5));
    second.time_transactions_out();
    assert_eq!(bounds(&second, 0), (2, 2));
    assert_eq!(second.end_transaction("x", id, epoch, true), Err(Fault::ProducerFenced));
}

#[test]
fn a_decision_that_was_made_is_carried_out_after_a_crash() {
    for phase in [Phase::Committing, Phase::Aborting] {
        let folder = tempfile::tempdir().unwrap();
        let first = cluster(folder.path());
        let (id, epoch) = first.init_transactions("x", 1000, None).unwrap();
        first.add_partitions("x", id, epoch, &[("t".into(), 0), ("t".into(), 1)]).unwrap();
        send(&first, (id, epoch), 0, 0).unwrap();
        send(&first, (id, epoch), 0, 1).unwrap();
        first.add_offsets("x", id, epoch, vec![offset(5)]).unwrap();
        // The crash comes after the decision and the first of two markers.
        let mut state = first.metadata.read(|image| image.transactions["x"].clone());
        state.phase = phase;
        first.store("x", &state).unwrap();
        let config = TopicConfig::new(Default::default()).unwrap();
        let commit = phase == Phase::Committing;
        first
            .partition("t", 0)
            .unwrap()
            .end_transaction(id, epoch, commit.then_some(i64::MAX), &config)
            .unwrap();
        drop(first);
        let second = cluster(folder.path());
        assert_eq!((bounds(&second, 0), bounds(&second, 1)), ((2, 2), (2, 2)));
        assert_eq!(second.partition("t", 1).unwrap().aborted(0, 2, 0).unwrap().is_empty(), commit);
        assert_eq!(committed(&second), commit.then_some(5));
    }
}

#[test]
fn a_transaction_that_the_coordinator_does_not_know_is_aborted_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let first = cluster(folder.path());
    first.partition("t", 0).unwrap().register(99, 0);
    send(&first, (99, 0), 0, 0).unwrap();
    drop(first);
    assert_eq!(bounds(&cluster(folder.path()), 0), (2, 2));
}

#[test]
fn a_repeated_init_gets_the_same_answer_and_a_stale_one_is_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path());
    let first = cluster.init_transactions("x", 1000, None).unwrap();
    let second = cluster.init_transactions("x", 1000, Some(first)).unwrap();
    assert_eq!(cluster.init_transactions("x", 1000, Some(first)), Ok(second));
    cluster.init_transactions("x", 1000, None).unwrap();
    assert_eq!(cluster.init_transactions("x", 1000, Some(second)), Err(Fault::ProducerFenced));
    assert_eq!(cluster.init_transactions("x", 0, None), Err(Fault::InvalidTransactionTimeout));
}

#[test]
fn producer_ids_are_not_handed_out_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = cluster(folder.path());
    let seen: Vec<i64> = (0..5).map(|_| first.new_producer_id().unwrap()).collect();
    drop(first);
    let next = cluster(folder.path()).new_producer_id().unwrap();
    assert!(seen.iter().all(|id| *id < next));
}

const DAY_MS: i64 = 24 * 3600 * 1000;

fn is_stored(cluster: &Cluster, id: &str) -> bool {
    cluster.metadata.read(|image| image.transactions.contains_key(id))
}

#[test]
fn an_id_that_is_idle_for_a_week_is_forgotten_and_may_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path());
    let (producer, epoch) = cluster.init_transactions("x", 1000, None).unwrap();
    let t = [("t".to_owned(), 0)];
    cluster.add_partitions("x", producer, epoch, &t).unwrap();
    send(&cluster, (producer, epoch), 0, 0).unwrap();
    // What is open is no question of time; what times out is aborted elsewhere.
    cluster.expire_transactional_ids_at(now_ms() + 30 * DAY_MS);
    cluster.end_transaction("x", producer, epoch, true).unwrap();
    cluster.expire_transactional_ids_at(now_ms() + 6 * DAY_MS);
    cluster.add_partitions("x", producer, epoch, &t).unwrap();
    cluster.end_transaction("x", producer, epoch, false).unwrap();
    assert!(is_stored(&cluster, "x"));

    cluster.expire_transactional_ids_at(now_ms() + 7 * DAY_MS + 1000);
    assert!(!is_stored(&cluster, "x"));
    assert_eq!(cluster.add_partitions("x", producer, epoch, &t), Err(Fault::InvalidProducerIdMapping));
    let (next, epoch) = cluster.init_transactions("x", 1000, None).unwrap();
    assert!(next > producer && epoch == 0, "another producer altogether");
    cluster.add_partitions("x", next, epoch, &t).unwrap();
    assert!(is_stored(&cluster, "x"));
}

#[test]
fn ids_that_are_used_once_take_no_memory_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path());
    for number in 0..300 {
        cluster.init_transactions(&format!("once-{number}"), 1000, None).unwrap();
    }
    cluster.expire_transactional_ids_at(now_ms() + 7 * DAY_MS + 1000);
    assert!(lock(&cluster.transactions).is_empty());
    assert!(cluster.metadata.read(|image| image.transactions.is_empty()));
}

#[test]
fn a_start_forgets_what_has_expired_and_keeps_what_does_not_say_when_it_was_used() {
    let folder = tempfile::tempdir().unwrap();
    let first = cluster(folder.path());
    for (id, updated_ms) in [("old", now_ms() - 8 * DAY_MS), ("new", now_ms() - 6 * DAY_MS), ("silent", 0)] {
        first.init_transactions(id, 1000, None).unwrap();
        let state = first.metadata.read(|image| image.transactions[id].clone());
        first.store(id, &Transaction { updated_ms, ..state }).unwrap();
    }
    drop(first);
    let second = cluster(folder.path());
    assert_eq!(["old", "new", "silent"].map(|id| is_stored(&second, id)), [false, true, true]);
    assert!(second.transaction("silent").is_some() && second.transaction("old").is_none());
}
