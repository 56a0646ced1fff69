//! Folders that change while the connector runs, stops and is killed: each line once.

use std::io::Write;
use std::path::Path;

use crate::connect::Connector;
use crate::connect::files::FilesSource;
use crate::connect::run::prepare;
use crate::log::memory::Faults;

use super::*;

struct Folder {
    world: World,
    home: tempfile::TempDir,
    connector: Connector,
}

impl Folder {
    /// `keys` are what the connector's file has besides its path.
    fn new(keys: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let text = format!("connector: files\npath: {}\nevery: 1ms\n{keys}\n", home.path().display());
        let connector = Connector::parse(&text, Path::new("c.yaml")).unwrap();
        Self { world: World::new(), home, connector }
    }

    fn job(&self) -> Arc<Job> {
        let files = self.connector.files.clone();
        self.world.job("a", Box::new(move |_, at| Ok(Box::new(FilesSource::open(&files, at)?))))
    }

    fn read(&self) -> Vec<String> {
        self.world.finish(&self.job()).unwrap();
        let mut values = self.world.values();
        values.sort();
        values
    }

    fn append(&self, name: &str, text: &str) {
        let path = self.home.path().join(name);
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.home.path().join(from), self.home.path().join(to)).unwrap();
    }

    fn letters(&self) -> Vec<(String, String)> {
        let letter = |record: OwnedRecord| {
            let named = |name: &str| {
                let found = record.headers.iter().find(|header| header.name == name).unwrap();
                String::from_utf8(found.value.clone().unwrap()).unwrap()
            };
            let message = named("__connect.errors.exception.message");
            let name = message.rsplit('/').next().unwrap().to_owned();
            (
                format!("{} {name}", named("headwater.reason")),
                String::from_utf8(record.value.clone().unwrap()).unwrap(),
            )
        };
        self.world.records(&dead_topic(NAME)).into_iter().map(letter).collect()
    }
}

fn rows(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("{{\"n\":{number}}}")).collect()
}
fn lines(numbers: std::ops::Range<u32>) -> String {
    rows(numbers).iter().map(|row| format!("{row}\n")).collect()
}

#[test]
fn files_that_come_and_grow_are_read_line_by_line_once() {
    let folder = Folder::new("settle: 1h");
    folder.append("a.jsonl", &lines(10..12));
    assert_eq!(folder.read(), rows(10..12));
    assert_eq!(folder.read(), rows(10..12), "nothing new");
    folder.append("a.jsonl", &lines(12..15));
    folder.append("b.ndjson", &lines(15..18));
    assert_eq!(folder.read(), rows(10..18));
    // Touched, or copied over itself: no line of it is new.
    let text = std::fs::read(folder.home.path().join("a.jsonl")).unwrap();
    std::fs::write(folder.home.path().join("new"), &text).unwrap();
    folder.rename("new", "a.jsonl");
    assert_eq!(folder.read(), rows(10..18));
    assert_eq!(folder.world.committed(), 8);
}

#[test]
fn a_last_line_without_an_end_waits_until_the_file_stands_still() {
    let folder = Folder::new("settle: 5s");
    folder.append("a.jsonl", &format!("{}{{\"n\":11", lines(10..11)));
    let job = folder.job();
    let mut runner = folder.world.join(&job).unwrap();
    for _ in 0..50 {
        folder.world.pass(TICK);
        assert!(
            runner.step(folder.world.now(), false).unwrap().is_none(),
            "not caught up: a line is unfinished"
        );
    }
    assert_eq!(folder.world.values(), rows(10..11));
    folder.append("a.jsonl", "}\n");
    runner.step(folder.world.now(), true).unwrap();
    assert_eq!(folder.read(), rows(10..12), "its end has come");
    folder.append("a.jsonl", "{\"n\":12}");
    assert_eq!(folder.read(), rows(10..13), "it stands still");
    folder.append("a.jsonl", "\n{\"n\":13}");
    assert_eq!(folder.read(), rows(10..14));
    folder.append("a.jsonl", " rest\n{\"n\":14}\n");
    assert_eq!(folder.read(), rows(10..15));
    let letters = folder.letters();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].0.starts_with("continued a.jsonl:4: "), "{letters:?}");
}

#[test]
fn rotated_files_go_on_and_no_line_is_lost_or_read_twice() {
    for copied in [false, true] {
        let folder = Folder::new("match: app.log*\nformat: jsonl\nsettle: 1h");
        let path = |name: &str| folder.home.path().join(name);
        folder.append("app.log", &lines(10..14));
        assert_eq!(folder.read(), rows(10..14));
        folder.append("app.log", &lines(14..16)); // not read before it is rotated
        if copied {
            std::fs::copy(path("app.log"), path("app.log.1")).unwrap();
            assert_eq!(folder.read(), rows(10..16), "the copy is there before the file is truncated");
            std::fs::write(path("app.log"), "").unwrap();
        } else {
            folder.rename("app.log", "app.log.1");
        }
        folder.append("app.log", &lines(16..19));
        assert_eq!(folder.read(), rows(10..19));
        folder.rename("app.log.1", "app.log.2");
        folder.rename("app.log", "app.log.1");
        folder.append("app.log", &lines(19..20));
        assert_eq!(folder.read(), rows(10..20));
        assert!(folder.letters().is_empty());
    }
}

#[test]
fn a_file_that_is_packed_when_it_is_rotated_is_not_read_again() {
    let folder = Folder::new("match: app.log*\nformat: jsonl\nsettle: 1ms");
    folder.append("app.log", &lines(100..300));
    assert_eq!(folder.read(), rows(100..300));
    folder.append("app.log", &lines(300..310));
    let text = std::fs::read(folder.home.path().join("app.log")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(&text).unwrap();
    std::fs::write(folder.home.path().join("app.log.1.gz"), packed.finish().unwrap()).unwrap();
    std::fs::remove_file(folder.home.path().join("app.log")).unwrap();
    folder.append("app.log", &lines(310..320));
    assert_eq!(folder.read(), rows(100..320));
}

#[test]
fn packed_files_are_read_and_one_that_is_cut_off_says_so() {
    let folder = Folder::new("settle: 1ms");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(lines(10..20).as_bytes()).unwrap();
    std::fs::write(folder.home.path().join("a.jsonl.gz"), packed.finish().unwrap()).unwrap();
    let zstd = zstd::stream::encode_all(lines(20..30).as_bytes(), 1).unwrap();
    std::fs::write(folder.home.path().join("b.jsonl.zst"), zstd).unwrap();
    assert_eq!(folder.read(), rows(10..30));
    assert_eq!(folder.read(), rows(10..30));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    packed.write_all(lines(30..40).as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    std::fs::write(folder.home.path().join("c.jsonl.gz"), &packed[..packed.len() - 60]).unwrap();
    let first = folder.read();
    assert!(folder.letters()[0].0.starts_with("damaged c.jsonl.gz"), "{:?}", folder.letters());
    std::fs::write(folder.home.path().join("c.jsonl.gz"), &packed).unwrap();
    assert!(first.len() < 30 && folder.read() == rows(10..40), "the rest once it is whole");
}

#[test]
fn another_content_under_the_same_name_is_a_new_file_or_stops() {
    for (on_change, stops) in [("append", false), ("stop", true)] {
        let folder = Folder::new(&format!("settle: 1h\non_change: {on_change}"));
        folder.append("a.jsonl", &lines(10..12));
        folder.read();
        std::fs::write(folder.home.path().join("a.jsonl"), lines(50..52)).unwrap();
        match folder.world.finish(&folder.job()) {
            Ok(()) => assert!(!stops && folder.world.values().len() == 4),
            Err(error) => assert!(stops && error.to_string().contains("something else"), "{error}"),
        }
    }
}

#[test]
fn lines_that_are_no_records_are_letters_with_file_and_line() {
    let folder = Folder::new(
        "key: [id]\nformat: {csv: {types: {amount: double}}}\ncolumns: [_file, _row]\nsettle: 1ms",
    );
    folder.append("a.csv", "\u{feff}id,amount\n1,2.5\n2\n\"3\n4\",x\n5,1\n");
    let mut values = folder.read();
    values.sort();
    assert_eq!(
        values,
        [
            r#"{"id":"1","amount":2.5,"_file":"a.csv","_row":2}"#,
            r#"{"id":"5","amount":1,"_file":"a.csv","_row":6}"#
        ]
    );
    let letters = folder.letters();
    assert_eq!(letters[0], ("fields a.csv:3: 1 cells, and the header has 2".into(), "2".into()));
    assert_eq!(letters[1], ("type a.csv:4: column 'amount': 'x' is no double".into(), "\"3\n4\",x".into()));
    let key = |record: &OwnedRecord| String::from_utf8(record.key.clone().unwrap()).unwrap();
    let keys: Vec<String> = folder.world.records(TOPIC).iter().map(key).collect();
    assert!(keys.contains(&r#"{"id":"1"}"#.to_owned()), "{keys:?}");
}

#[test]
fn a_crash_at_any_step_reads_each_line_once() {
    let run = |faults: Faults| {
        let folder = Folder::new("settle: 1ms");
        (0..4)
            .for_each(|file| folder.append(&format!("{file}.jsonl"), &lines(file * 10 + 10..file * 10 + 20)));
        folder.world.log.set_faults(faults);
        let crashed = folder.world.finish(&folder.job()).is_err();
        let steps = folder.world.log.steps();
        folder.world.log.set_faults(Faults::default());
        folder.append("0.jsonl", &lines(90..99));
        let values = folder.read();
        assert_eq!(values, [rows(10..50), rows(90..99)].concat());
        (crashed, steps)
    };
    let (_, steps) = run(Faults::default());
    let crashed = (1..=steps).filter(|at| run(Faults { crash_at: Some(*at), ..Faults::default() }).0).count();
    // How many looks a run takes depends on when the files were written.
    assert!(crashed > 4, "{crashed} of {steps}");
}

#[test]
fn topics_are_made_as_they_should_be() {
    let folder = Folder::new("name: shop\ntopics: {partitions: 2, config: {retention.ms: '5'}}");
    let job = prepare(&folder.connector, &folder.world.log, "i".into(), false).unwrap();
    assert_eq!((&*job.streams[0].topic, job.streams[0].partitions), ("shop", 2));
    let config = |topic: &str, key: &str| folder.world.log.topic_config(topic).unwrap()[key].clone();
    assert_eq!(config("shop", "retention.ms"), "5");
    assert_eq!(config("shop", "message.timestamp.type"), "LogAppendTime");
    assert_eq!(config("shop.connect", "cleanup.policy"), "compact");
    assert_eq!(config("shop.connect.dead", "max.message.bytes"), "1114124");
}
