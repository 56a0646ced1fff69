//! Hostile clients: requests of every type and version that is served, valid ones and broken ones, against a broker
//! in a process of its own. Each gets an answer or a closed connection; the broker neither panics nor hangs nor
//! grows.
//!
//! `HEADWATER_TEST_FUZZ_S` lets it run for so many seconds; `HEADWATER_TEST_SEED` repeats a run. What has found
//! something is kept in `frames.txt`, and sent first.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use kafka_protocol::messages::ApiKey;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::fuzz::mutate::{bytes_of, hexadecimal, mutate};
use crate::fuzz::seed_and_time;

/// Frames, one a line, in hexadecimal, without their length: what a broker must survive.
const CORPUS: &str = include_str!("frames.txt");
const SHORT: Duration = Duration::from_secs(5);
/// Far more than it takes, far less than frames could make a careless broker reserve.
const RESIDENT_KIB_MAX: u64 = 400 << 10;
const FILES_MAX: usize = 3_000;

/// Every request's fields in order: `1 2 4 8` bytes, `s` a string, `b` bytes, `[…]` an array of structures, `<…>` one
/// of plain values; `+3` since version 3, `-2` up to version 2. From <https://kafka.apache.org/protocol>.
const REQUESTS: &[(ApiKey, &str)] = &[
    (ApiKey::Produce, "s 2 4 [s [4 b]]"),
    (ApiKey::Fetch, "4 4 4 4 1 4+7 4+7 [s [4 4+9 8 8+5 4]] [s <4>]+7 s+11"),
    (ApiKey::ListOffsets, "4 1+2 [s [4 4+4 8]]"),
    (ApiKey::Metadata, "[s] 1+4 1+8 1+8"),
    (ApiKey::OffsetCommit, "s 4 s s+7 8-4 [s [4 8 4+6 s]]"),
    (ApiKey::OffsetFetch, "s [s <4>] 1+7"),
    (ApiKey::FindCoordinator, "s 1+1"),
    (ApiKey::JoinGroup, "s 4 4+1 s s+5 s [s b]"),
    (ApiKey::Heartbeat, "s 4 s s+3"),
    (ApiKey::LeaveGroup, "s s-2 [s s]+3"),
    (ApiKey::SyncGroup, "s 4 s s+3 [s b]"),
    (ApiKey::DescribeGroups, "<s> 1+3"),
    (ApiKey::ListGroups, "<s>+4"),
    (ApiKey::ApiVersions, "s+3 s+3"),
    (ApiKey::CreateTopics, "[s 4 2 [4 <4>] [s s]] 4 1"),
    (ApiKey::DeleteTopics, "<s> 4"),
    (ApiKey::DeleteRecords, "[s [4 8]] 4"),
    (ApiKey::InitProducerId, "s 4 8+3 2+3"),
    (ApiKey::AddPartitionsToTxn, "s 8 2 [s <4>]"),
    (ApiKey::AddOffsetsToTxn, "s 8 2 s"),
    (ApiKey::EndTxn, "s 8 2 1"),
    (ApiKey::TxnOffsetCommit, "s s 8 2 4+3 s+3 s+3 [s [4 8 4+2 s]]"),
    (ApiKey::DescribeConfigs, "[1 s <s>] 1 1+3"),
    (ApiKey::AlterConfigs, "[1 s [s s]] 1"),
    (ApiKey::IncrementalAlterConfigs, "[1 s [s 1 s]] 1"),
    (ApiKey::CreatePartitions, "[s 4 [<4>]] 4 1"),
    (ApiKey::DeleteGroups, "<s>"),
    (ApiKey::DescribeCluster, "1 1+1"),
];

/// Names of all kinds: some are there, some are not, some are no names.
const NAMES: &[&str] = &[
    "t",
    "t",
    "t",
    "c",
    "id1",
    "id2",
    "range",
    "consumer",
    "retention.ms",
    "cleanup.policy",
    "compact",
    "-1",
    "",
    "../x",
];

/// A record batch of two records with keys.
fn batch(producer: (i64, i16, i32), attributes: i16) -> Vec<u8> {
    let record = [22, 0, 0, 0, 2, b'k', 10, b'v', b'a', b'l', b'u', b'e'];
    let mut records = Vec::new();
    for delta in [0, 2] {
        let mut record = record;
        record[3] = delta;
        records.extend(record);
        records.push(0);
    }
    // The length counts what follows it.
    for start in [0, 13] {
        records[start] = 24;
    }
    let mut batch = vec![0; 61];
    batch[8..12].copy_from_slice(&((49 + records.len()) as i32).to_be_bytes());
    batch[16] = 2;
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    batch[23..27].copy_from_slice(&1i32.to_be_bytes());
    batch[27..35].copy_from_slice(&1_000i64.to_be_bytes());
    batch[35..43].copy_from_slice(&1_000i64.to_be_bytes());
    batch[43..51].copy_from_slice(&producer.0.to_be_bytes());
    batch[51..53].copy_from_slice(&producer.1.to_be_bytes());
    batch[53..57].copy_from_slice(&producer.2.to_be_bytes());
    batch[57..61].copy_from_slice(&2i32.to_be_bytes());
    batch.extend(records);
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    batch
}

/// Changes some bytes of a batch, or cuts it, and makes its length and its checksum right again, so that what is wrong
/// is seen only by who looks into it.
fn spoil(batch: &mut Vec<u8>, random: &mut SmallRng) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(21..batch.len());
        batch[at] = [0, 1, 0x7f, 0x80, 0xff, random.random()][random.random_range(0..6)];
    }
    if random.random_ratio(1, 4) {
        batch.truncate(random.random_range(61..=batch.len()));
    }
    let length = (batch.len() - 12) as i32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
}

/// Writes a request by its shape.
struct Writer<'a> {
    out: Vec<u8>,
    version: i16,
    flexible: bool,
    random: &'a mut SmallRng,
}

impl Writer<'_> {
    fn length(&mut self, length: usize, short: bool) {
        match (self.flexible, short) {
            // Long enough for two bytes at most.
            (true, _) if length + 1 < 0x80 => self.out.push(length as u8 + 1),
            (true, _) => self.out.extend([(length + 1) as u8 | 0x80, ((length + 1) >> 7) as u8]),
            (false, true) => self.out.extend((length as i16).to_be_bytes()),
            (false, false) => self.out.extend((length as i32).to_be_bytes()),
        }
    }

    fn number(&mut self, bytes: usize) {
        let number: i64 = [0, 0, 0, 1, 1, 2, 3, -1, -2, 100, 1_000][self.random.random_range(0..11)];
        self.out.extend(&number.to_be_bytes()[8 - bytes..]);
    }

    fn structure(&mut self, shape: &str) {
        self.fields(shape);
        if self.flexible {
            self.out.push(0);
        }
    }

    fn fields(&mut self, shape: &str) {
        let mut rest = shape.trim_start();
        while let Some(kind) = rest.bytes().next() {
            let mut length = 1;
            if matches!(kind, b'[' | b'<') {
                let mut depth = 0;
                let closes = |byte: u8| {
                    depth += i32::from(matches!(byte, b'[' | b'<')) - i32::from(matches!(byte, b']' | b'>'));
                    depth == 0
                };
                length = rest.bytes().position(closes).unwrap() + 1;
            }
            let (field, after) = rest.split_at(length);
            let (versions, after) = after.split_at(after.find([' ', '[', '<']).unwrap_or(after.len()));
            rest = after.trim_start();
            let version = versions.get(1..).and_then(|digits| digits.parse::<i16>().ok());
            let there = match versions.bytes().next() {
                Some(b'+') => self.version >= version.unwrap(),
                Some(b'-') => self.version <= version.unwrap(),
                _ => true,
            };
            if there {
                self.field(kind, field);
            }
        }
    }

    fn field(&mut self, kind: u8, field: &str) {
        match kind {
            b'1'..=b'8' => self.number(usize::from(kind - b'0')),
            b's' => {
                let name = NAMES[self.random.random_range(0..NAMES.len())];
                self.length(name.len(), true);
                self.out.extend(name.as_bytes());
            }
            b'b' => {
                let producer = [(-1, -1, -1), (1, 0, 0), (1_000, 0, 0)][self.random.random_range(0..3)];
                let attributes = [0, 0, 1, 2, 3, 4, 5, 7, 0x10, 0x20][self.random.random_range(0..10)];
                let mut batch = batch(producer, attributes);
                if self.random.random_ratio(1, 2) {
                    spoil(&mut batch, self.random);
                }
                self.length(batch.len(), false);
                self.out.extend(batch);
            }
            _ => {
                let count = self.random.random_range(0..3);
                self.length(count, false);
                let inside = &field[1..field.len() - 1];
                for _ in 0..count {
                    if kind == b'[' { self.structure(inside) } else { self.fields(inside) }
                }
            }
        }
    }
}

/// A request that can be read, whatever it means.
fn frame(key: ApiKey, version: i16, random: &mut SmallRng) -> Vec<u8> {
    let (_, shape) = REQUESTS.iter().find(|(known, _)| *known == key).expect("a request of every type");
    let flexible = key.request_header_version(version) >= 2;
    let mut out = Vec::new();
    out.extend((key as i16).to_be_bytes());
    out.extend(version.to_be_bytes());
    out.extend([0, 0, 0, 7, 0, 4]);
    out.extend(b"fuzz");
    if flexible {
        out.push(0);
    }
    let mut writer = Writer { out, version, flexible, random };
    writer.structure(shape);
    writer.out
}

/// Sends a frame and says no more; the broker answers or not, and closes. Panics if it does neither.
fn converse(address: SocketAddr, frame: &[u8], length: i32, what: &dyn Fn() -> String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // Either may fail: it may have closed already.
    let _ = stream.write_all(&length.to_be_bytes()).and_then(|()| stream.write_all(frame));
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert!(
            matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe),
            "neither an answer nor an end ({error}) to {}",
            what()
        );
    }
}

/// The request types and versions that it says it serves.
fn served(address: SocketAddr) -> Vec<(ApiKey, i16, i16)> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let mut numbers = answer[14..].chunks_exact(2).map(|two| i16::from_be_bytes([two[0], two[1]]));
    let mut all = Vec::new();
    while let (Some(key), Some(lowest), Some(highest)) = (numbers.next(), numbers.next(), numbers.next()) {
        all.push((ApiKey::try_from(key).unwrap(), lowest, highest));
    }
    assert!(all.len() > 25);
    all
}

#[test]
fn broken_requests_are_answered_or_closed_and_leave_no_trace() {
    let (seed, time) = seed_and_time(SHORT);
    let mut random = SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let child = Child::start(folder.path(), address);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address.to_string());
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let compacted = NewTopic::new("c", 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    let topics = [NewTopic::new("t", 2, TopicReplication::Fixed(1)), compacted];
    for created in block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap() {
        created.unwrap();
    }
    let served = served(address);
    for line in CORPUS.lines().filter(|line| !line.starts_with('#')) {
        let frame = bytes_of(line);
        converse(address, &frame, frame.len() as i32, &|| line.to_owned());
    }
    let began = Instant::now();
    let mut sent = 0;
    let mut other = Vec::new();
    let mut kept: Vec<TcpStream> = Vec::new();
    while began.elapsed() < time {
        let (key, lowest, highest) = served[random.random_range(0..served.len())];
        let version = random.random_range(lowest..=highest);
        let mut frame = frame(key, version, &mut random);
        if random.random_bool(0.9) {
            mutate(&mut frame, &other, NAMES, &mut random);
        }
        let mut length = frame.len() as i32;
        if random.random_ratio(1, 20) {
            length = [i32::MAX, -1, 0, length + 1, length / 2, 100 << 20][random.random_range(0..6)];
        }
        let what = || format!("seed {seed}, length {length}: {}", hexadecimal(&frame));
        converse(address, &frame, length, &what);
        sent += 1;
        // Some connections stay, with nothing said or half of it.
        if random.random_ratio(1, 50) && kept.len() < 200 {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream.write_all(&frame[..frame.len() / 2]);
            kept.push(stream);
        }
        if sent % 500 == 0 {
            let (resident, files) = child.takes();
            assert!(resident < RESIDENT_KIB_MAX, "{resident} KiB after {sent} requests, seed {seed}");
            assert!(files < FILES_MAX, "{files} open files after {sent} requests, seed {seed}");
        }
        other = frame;
    }
    eprintln!("{sent} requests with seed {seed}: {:?} KiB and open files", child.takes());
    drop(kept);
    let said = std::fs::read_to_string(folder.path().join("said")).unwrap();
    assert!(!said.contains("panicked"), "seed {seed}: {said}");
    // It serves as before.
    let sound = NewTopic::new("sound", 1, TopicReplication::Fixed(1));
    block_on(admin.create_topics([&sound], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    let producer: BaseProducer = config.create().unwrap();
    send(&producer, "sound", 0, numbers(0..100));
    producer.flush(PATIENCE).unwrap();
    drop(child);
    let broker = start(folder.path());
    assert_eq!(values(&broker, "sound", 0).len(), 100);
}
