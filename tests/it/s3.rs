//! S3: the lake, copies of checkpoints, what is said when a store can't be used, and a store that hangs while a
//! topology runs. Against MinIO, as `tests/stack/s3` starts it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use headwater::config::Secret;
use headwater::engine::TopicNames;
use headwater::lake::{Lake, LakeError, TableSpec};
use headwater::log::Log;
use headwater::objects::Location;
use headwater::record::TopicPartition;
use headwater::state::{Checkpoints, MemoryStore, StateError, Store};

use crate::lake::fixtures::{TABLE, by_origin_and_day, publish, read, rows, run_info, sorted, spec};
use crate::project::{Project, Running};
use crate::support::{TestS3, connect, counters, test_s3, unique, until};

#[test]
fn a_lake_in_a_bucket_is_as_good_as_one_in_a_folder() {
    let Some(s3) = test_s3() else { return };
    let lake = Lake::open(s3.location(&unique("lake"))).unwrap();
    assert!(lake.url().starts_with(&format!("s3://{}/lake.", s3.bucket)), "{}", lake.url());
    let manifest = publish(&lake, spec(by_origin_and_day()), 300, 40, 3);
    assert_eq!(sorted(&read(&lake, &manifest)), sorted(&[rows(0..300)]));
    let next = publish(&lake, spec(Vec::new()), 100, 100, 1);
    assert_eq!((next.version, lake.versions(TABLE).unwrap()), (2, vec![1, 2]));
    assert_eq!(lake.current(TABLE).unwrap().unwrap(), next);

    // An abandoned version leaves nothing, and its number is free again.
    let abandoned = lake.begin(spec(Vec::new())).unwrap();
    let mut writer = abandoned.writer(0).unwrap();
    writer.write(&rows(0..50)).unwrap();
    drop(writer);
    abandoned.abandon().unwrap();
    assert_eq!(lake.unpublished(TABLE).unwrap().len(), 0);
}

#[test]
fn a_file_of_many_parts_arrives_whole_in_a_bucket() {
    let Some(s3) = test_s3() else { return };
    let lake = Lake::open(s3.location(&unique("large"))).unwrap();
    // Random bytes do not compress: more than two parts of an upload, of 5 MiB each.
    let mut random = 1u64;
    let mut texts: Vec<String> = Vec::new();
    for _ in 0..1500 {
        let mut text = String::new();
        while text.len() < 8192 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(&format!("{:x}", random >> 8));
        }
        texts.push(text);
    }
    let column: arrow::array::ArrayRef = Arc::new(arrow::array::StringArray::from(texts));
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let table = TableSpec { path: "large".to_owned(), schema: batch.schema(), partition_by: Vec::new() };
    let version = lake.begin(table).unwrap();
    let mut writer = version.writer(0).unwrap();
    for start in (0..batch.num_rows()).step_by(100) {
        writer.write(&batch.slice(start, 100)).unwrap();
    }
    let manifest = version.publish(vec![writer.finish().unwrap()], run_info()).unwrap();
    assert!(manifest.files[0].bytes > 11 << 19, "{} bytes are one part", manifest.files[0].bytes);
    assert_eq!(sorted(&read(&lake, &manifest)), sorted(&[batch]));
}

#[test]
fn racing_publishers_in_a_bucket_never_replace_a_manifest() {
    let Some(s3) = test_s3() else { return };
    // What one has published, and taken its marker away, between another's attempt at the marker and its look at it is
    // seen once in some races.
    (0..5).for_each(|_| race(&s3.location(&unique("race"))));
}

fn race(location: &Location) {
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let publish = |count: i64| {
            let lake = Lake::open(location).unwrap();
            move || {
                let version = lake.begin(spec(Vec::new())).unwrap();
                let mut writer = version.writer(0).unwrap();
                writer.write(&rows(0..count)).unwrap();
                let part = writer.finish().unwrap();
                (version.version(), version.publish(vec![part], run_info()))
            }
        };
        let threads: Vec<_> = (1..=6).map(|count| scope.spawn(publish(count))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut numbers: Vec<u64> = outcomes.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6], "each replay has a number of its own");
    let lake = Lake::open(location).unwrap();
    for (number, outcome) in outcomes {
        match outcome {
            Ok(manifest) => assert_eq!(lake.manifest(TABLE, number).unwrap().unwrap(), manifest),
            Err(LakeError::Superseded { current, .. }) => assert!(current > number),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn copies_in_a_bucket_are_written_once_loaded_pruned_and_cleared() {
    let Some(s3) = test_s3() else { return };
    let copies = Checkpoints::open(s3.location(&unique("copies")), "flights").unwrap();
    assert!(copies.check().unwrap().is_none());
    assert_eq!(copies.list("t-0").unwrap(), Vec::<i64>::new());
    let store = MemoryStore::new();
    store.clear("f1").unwrap();
    let value = vec![7u8; 100_000];
    let mut previous: Option<(i64, String)> = None;
    for offset in [10i64, 20, 30] {
        // The first copy takes several chunks.
        let keys: Vec<Vec<u8>> = (0..60).map(|key| format!("{offset}-{key:03}").into_bytes()).collect();
        let changes: Vec<_> = keys.iter().map(|key| (key.as_slice(), Some(value.as_slice()))).collect();
        store.apply(&changes, offset).unwrap();
        let on = previous.as_ref().map(|(offset, copy)| (*offset, &copy[..]));
        let stats = copies.upload("t-0", "f1", offset, on, &changes, &store).unwrap();
        assert!(!stats.existed && stats.chunks >= 2, "{stats:?}");
        let again = copies.upload("t-0", "f1", offset, on, &changes, &store).unwrap();
        assert!(again.existed, "a checkpoint is never overwritten");
        previous = store.copy().map(|copy| (offset, copy));
    }
    assert_eq!(copies.list("t-0").unwrap(), [10, 20, 30]);
    copies.prune("t-0", 2).unwrap();
    assert_eq!(copies.list("t-0").unwrap(), [20, 30]);
    let loaded = MemoryStore::new();
    copies.load("t-0", 30, "f1", &loaded).unwrap();
    assert_eq!(loaded.offset(), Some(30));
    assert_eq!(loaded.get(b"10-059").unwrap().as_deref(), Some(&value[..]));
    copies.clear().unwrap();
    assert_eq!(copies.list("t-0").unwrap(), Vec::<i64>::new());
}

#[test]
fn what_is_wrong_with_a_bucket_is_told_apart() {
    let Some(s3) = test_s3() else { return };
    let right = s3.location("errors");
    let wrong = |change: &dyn Fn(&mut Location)| {
        let mut location = right.clone();
        change(&mut location);
        let lake = Lake::open(&location).err().expect("it can't be opened").to_string();
        let copies = Checkpoints::open(&location, "flights").and_then(|copies| copies.check());
        (lake, copies)
    };
    let (lake, copies) = wrong(&|location| location.url = "s3://no-such-bucket/x".into());
    assert!(lake.contains("there is no bucket 'no-such-bucket'") && lake.contains("create it"), "{lake}");
    assert!(matches!(copies, Err(StateError::Refused(_))), "{copies:?}");
    let (lake, copies) = wrong(&|location| location.s3.secret_access_key = Some(Secret::new("guessed")));
    assert!(lake.contains("access is denied (SignatureDoesNotMatch"), "{lake}");
    assert!(lake.contains("s3.secret_access_key"), "{lake}");
    assert!(matches!(copies, Err(StateError::Refused(_))), "{copies:?}");
    let (lake, copies) = wrong(&|location| location.s3.endpoint = Some("http://127.0.0.1:1".into()));
    assert!(lake.contains("http://127.0.0.1:1 can't be reached") && lake.contains("s3.endpoint"), "{lake}");
    // An outage: work goes on without copies.
    assert!(matches!(copies, Ok(Some(StateError::Unreachable(_)))), "{copies:?}");
    let (lake, _) = wrong(&|location| location.s3.access_key_id = None);
    assert!(lake.contains("set s3.access_key_id and s3.secret_access_key in the config"), "{lake}");
    let (lake, _) = wrong(&|location| location.s3.endpoint = Some("localhost:9000".into()));
    assert!(lake.contains("begin it with https:// or http://"), "{lake}");
}

/// Stands between the program and S3, and can hold everything back.
struct Proxy {
    endpoint: String,
    holding: Arc<AtomicBool>,
    connections: Arc<Mutex<HashMap<usize, TcpStream>>>,
}

impl Proxy {
    fn before(endpoint: &str) -> Self {
        let to = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let holding = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(HashMap::new()));
        let (held, open) = (Arc::clone(&holding), Arc::clone(&connections));
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&to)) else { continue };
                open.lock().unwrap().insert(number, client.try_clone().unwrap());
                for (mut from, mut into) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    let held = Arc::clone(&held);
                    std::thread::spawn(move || {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(count @ 1..) = from.read(&mut buffer) {
                            while held.load(Ordering::SeqCst) {
                                std::thread::sleep(Duration::from_millis(10));
                            }
                            if into.write_all(&buffer[..count]).is_err() {
                                break;
                            }
                        }
                        let _ = into.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { endpoint, holding, connections }
    }

    /// Nothing comes through any more, and nobody is told.
    fn hold(&self) {
        self.holding.store(true, Ordering::SeqCst);
    }

    fn let_go(&self) {
        self.holding.store(false, Ordering::SeqCst);
        for (_, connection) in self.connections.lock().unwrap().drain() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

const TOPOLOGY: &str = "name: hanging
sources:
  in: {topic: in, format: json, columns: {id: bigint, key: varchar, at: timestamp}, event_time: at}
views:
  per_key: |
    select window_start, window_end, key, count(*) as n from tumble(in, at, interval '1 minute')
    group by window_start, window_end, key
sinks:
  per_key: {topic: {name: hanging.out, format: json, key: [key, window_start]}}
";

struct Hanging {
    project: Project,
    brokers: String,
    log: Arc<dyn Log>,
    copies: Checkpoints,
}

impl Hanging {
    fn produce(&self, ids: std::ops::Range<i64>) {
        let lines: Vec<String> = ids
            .map(|id| {
                let (minute, second) = (id / 60 % 60, id % 60);
                format!(r#"{{"id":{id},"key":"k{}","at":"2024-01-01T00:{minute:02}:{second:02}Z"}}"#, id % 7)
            })
            .collect();
        let arguments = ["topic", "produce", "in", "--partitions", "2", "--brokers", &self.brokers];
        let outcome = self.project.run_with(&arguments, &lines.join("\n"));
        assert_eq!(outcome.code, 0, "{}", outcome.err);
    }

    fn start(&self) -> Running {
        self.project.start(&["run", "t.yaml", "--brokers", &self.brokers, "--config", "c.yaml"])
    }

    fn await_read(&self, count: u64, running: &mut Running) {
        until(&format!("{count} records read"), || {
            assert_eq!(running.ended(), None, "{}", self.project.printed().1);
            std::thread::sleep(Duration::from_millis(20));
            (counters(&*self.log, "headwater.hanging", "in").read == count).then_some(())
        });
    }

    /// The newest copy of each partition's task.
    fn newest(&self) -> Vec<i64> {
        let newest = |partition| {
            let copies = self.copies.list(&format!("hanging.exchange.per_key-{partition}")).unwrap();
            copies.last().copied().unwrap_or(0)
        };
        (0..4).map(newest).collect()
    }

    fn await_newer(&self, than: &[i64]) -> Vec<i64> {
        until("newer copies of every task", || {
            std::thread::sleep(Duration::from_millis(50));
            let newest = self.newest();
            newest.iter().zip(than).all(|(newest, than)| newest > than).then_some(newest)
        })
    }
}

#[test]
fn a_bucket_that_hangs_stops_no_epoch_and_is_caught_up_with() {
    let Some(s3) = test_s3() else { return };
    let project = Project::new();
    let server = project.broker();
    let proxy = Proxy::before(&s3.endpoint);
    let prefix = unique("hanging");
    let behind = TestS3 { endpoint: proxy.endpoint.clone(), ..s3.clone() };
    project.write("t.yaml", TOPOLOGY);
    let config = format!(
        "state: {{url: '{}'}}\n{}worker: {{threads: 1, epoch: 50ms, checkpoint_interval: 200ms}}\n\
         http: {{listen: '127.0.0.1:0'}}\n",
        behind.url(&prefix),
        behind.section()
    );
    project.write("c.yaml", &config);
    let copies = Checkpoints::open(s3.location(&prefix), "hanging").unwrap();
    let hanging = Hanging { log: connect(&server.address), brokers: server.address.clone(), project, copies };
    hanging.produce(0..600);
    let mut running = hanging.start();
    hanging.await_read(600, &mut running);
    let copied = hanging.await_newer(&[0; 4]);

    proxy.hold();
    hanging.produce(600..1200);
    hanging.await_read(1200, &mut running);
    // Told to stop, it does not wait for a copy to come through.
    running.signal("-TERM");
    assert_eq!(running.wait(Duration::from_secs(40)).0, 0, "{}", hanging.project.printed().1);

    // What lies on this machine is enough to start from.
    let mut running = hanging.start();
    hanging.produce(1200..1800);
    hanging.await_read(1800, &mut running);
    let err = hanging.project.printed().1;
    assert!(err.contains("checkpoints stay on this machine until their copies can be written"), "{err}");
    assert_eq!(hanging.newest(), copied, "nothing came through");

    proxy.let_go();
    hanging.produce(1800..2400);
    hanging.await_read(2400, &mut running);
    hanging.await_newer(&copied);
    running.signal("-TERM");
    assert_eq!(running.wait(Duration::from_secs(40)).0, 0, "{}", hanging.project.printed().1);

    // A machine that has nothing goes on from the copies: the exchange is trimmed, so nothing else will do.
    let exchange = TopicNames::of(
        &headwater::tool::topology_file::load(&hanging.project.path().join("t.yaml")).unwrap(),
    );
    let exchange = exchange.exchanges.into_iter().flatten().next().unwrap();
    let start = |partition| hanging.log.bounds(&TopicPartition::new(&*exchange, partition)).unwrap().start;
    assert!((0..4).any(|partition| start(partition) > 0), "nothing was trimmed");
    std::fs::remove_dir_all(hanging.project.path().join(".headwater/state")).unwrap();
    hanging.project.ok(&[
        "run",
        "t.yaml",
        "--until-end",
        "--brokers",
        &hanging.brokers,
        "--config",
        "c.yaml",
    ]);
    let verified = hanging.project.ok(&["verify", "t.yaml", "--brokers", &hanging.brokers]);
    assert!(verified.contains("EQUAL") && !verified.contains("DIFFERENT"), "{verified}");
}
