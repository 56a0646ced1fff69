//! Checkpoints as a disk or an object store may give them back: what is loaded is what was written, or the state is
//! called damaged, with what to do.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use headwater::state::{Checkpoints, MemoryStore, StateDir, StateError, Store, recover};
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, PutPayload};
use rand::RngExt;
use rand::rngs::SmallRng;
use xxhash_rust::xxh3::xxh3_64;

use super::Target;
use super::mutate::mutate;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

const WORDS: [&str; 12] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    "\"parts\":",
    "\"chunks\":",
    "\"offset\":",
    "\"object\":\"../x\"",
    "null",
    "\"bytes\":",
    "\"version\":3",
];

fn rows(store: &dyn Store) -> Result<Rows, StateError> {
    let mut rows = Rows::new();
    store.scan(&[], &[], &mut |key, value| {
        rows.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

/// What a step of the state changes: some keys twice, some away again, some values long.
fn changes(step: u8) -> Changes {
    let change = |number: u8| {
        let value = (number % 5 != step).then(|| vec![number ^ step; if number == 7 { 9_000 } else { 12 }]);
        (format!("key {number:03}").into_bytes(), value)
    };
    (step * 10..step * 10 + 40).map(change).collect()
}

fn apply(store: &dyn Store, changes: &Changes, offset: i64) {
    let changes: Vec<_> = changes.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
    store.apply(&changes, offset).unwrap();
}

/// An error that a user can act on.
fn check(error: &StateError) {
    let text = error.to_string();
    let acts = ["delete it", "is not used", "and this program reads", "is in use", "bring back"];
    assert!(acts.iter().any(|acts| text.contains(acts)), "it does not say what to do: {text}");
}

/// Copies in an object store. An input is the number of an object, 1 where its checksums are to fit again, and what
/// it holds.
pub struct Copies {
    objects: Vec<(String, Vec<u8>)>,
    rows: Rows,
}

const TASK: &str = "exchange-0";

impl Copies {
    pub fn new() -> Self {
        let memory = Arc::new(InMemory::new());
        let copies = Checkpoints::over(memory.clone(), "fuzz", "memory");
        let store = MemoryStore::new();
        store.clear("f").unwrap();
        let mut previous: Option<(i64, String)> = None;
        for step in 0..3 {
            let (offset, changes) = (i64::from(step) * 10, changes(step));
            apply(&store, &changes, offset);
            let borrowed: Vec<_> = changes.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
            let on = previous.as_ref().map(|(offset, copy)| (*offset, &copy[..]));
            copies.upload(TASK, "f", offset, on, &borrowed, &store).unwrap();
            previous = store.copy().map(|copy| (offset, copy));
        }
        let objects = futures::executor::block_on(async {
            use futures::TryStreamExt;
            use object_store::ObjectStore;
            let mut objects = Vec::new();
            for listed in memory.list(None).try_collect::<Vec<_>>().await.unwrap() {
                let bytes = memory.get(&listed.location).await.unwrap().bytes().await.unwrap();
                objects.push((listed.location.to_string(), bytes.to_vec()));
            }
            objects.sort();
            objects
        });
        Self { objects, rows: rows(&store).unwrap() }
    }

    /// The objects with one replaced; with `fits`, every checksum is made one of what is there.
    fn with(&self, number: usize, bytes: &[u8], fits: bool) -> Vec<(String, Vec<u8>)> {
        let mut objects = self.objects.clone();
        let (name, old) = objects[number].clone();
        objects[number].1 = bytes.to_vec();
        if fits {
            let of = |bytes: &[u8]| format!("{:016x}", xxh3_64(bytes));
            let (was, is) = (of(&old), of(bytes));
            for (object, held) in objects.iter_mut().filter(|(object, _)| object.ends_with(".json")) {
                let manifest = match *object == name {
                    true => String::from_utf8_lossy(bytes).into_owned(),
                    false => manifest(held)
                        .replace(&format!("\"checksum\":\"{was}\""), &format!("\"checksum\":\"{is}\"")),
                };
                *held = format!("{{\"checksum\":\"{}\",\"manifest\":{manifest}}}", of(manifest.as_bytes()))
                    .into_bytes();
            }
        }
        objects
    }
}

/// The manifest within its envelope.
fn manifest(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let (_, manifest) = text.split_once("\"manifest\":").unwrap();
    manifest.strip_suffix('}').unwrap().to_owned()
}

impl Target for Copies {
    fn corpus(&self) -> Vec<Vec<u8>> {
        let whole =
            |(number, (_, bytes)): (usize, &(String, Vec<u8>))| [&[number as u8, 0][..], bytes].concat();
        let mut all: Vec<Vec<u8>> = self.objects.iter().enumerate().map(whole).collect();
        let last_manifest = self.objects.iter().rposition(|(name, _)| name.ends_with(".json")).unwrap() as u8;
        let chunk = self.objects.iter().position(|(name, _)| name.ends_with(".chunk")).unwrap() as u8;
        let deep = "[".repeat(20_000).into_bytes();
        all.push([&[last_manifest, 0][..], &deep].concat());
        all.push([&[last_manifest, 1][..], &deep].concat());
        // Keys that are not in order, lengths that are not there, deletions of nothing as far as there is room.
        all.push([&[chunk, 1][..], &[1, 1, 1, b'b', b'x', 1, 1, 1, b'a', b'y']].concat());
        all.push(
            [
                &[chunk, 1][..],
                &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f],
            ]
            .concat(),
        );
        all.push([&[chunk, 1][..], &[0; 60_000]].concat());
        all
    }

    fn input(&self, random: &mut SmallRng) -> Vec<u8> {
        let number = random.random_range(0..self.objects.len());
        let (_, other) = &self.objects[random.random_range(0..self.objects.len())];
        let fits = random.random_bool(0.5);
        let (name, bytes) = &self.objects[number];
        let mut bytes =
            if fits && name.ends_with(".json") { manifest(bytes).into_bytes() } else { bytes.clone() };
        mutate(&mut bytes, other, &WORDS, random);
        [&[number as u8, u8::from(fits)][..], &bytes].concat()
    }

    fn run(&self, input: &[u8]) {
        let [number, fits, bytes @ ..] = input else { return };
        let fits = *fits == 1;
        let memory = Arc::new(InMemory::new());
        for (name, bytes) in self.with(usize::from(*number) % self.objects.len(), bytes, fits) {
            let path = name.into();
            futures::executor::block_on(memory.put(&path, PutPayload::from(bytes))).unwrap();
        }
        let copies = Checkpoints::over(memory, "fuzz", "memory");
        assert_eq!(copies.list(TASK).unwrap(), [0, 10, 20]);
        let store = MemoryStore::new();
        let verified = copies.verify(TASK, 20, "f");
        match copies.load(TASK, 20, "f", &store) {
            Ok(()) => {
                verified.unwrap();
                assert!(
                    fits || rows(&store).unwrap() == self.rows,
                    "what was loaded is not what was written"
                );
            }
            Err(error) => {
                check(&error);
                assert_eq!(
                    (store.offset(), rows(&store).unwrap().len()),
                    (None, 0),
                    "the store is empty then"
                );
            }
        }
        // The way a task goes: what cannot be used is passed over with a word.
        match recover(TASK, &store, Some(&copies), "f", 0, 20) {
            Ok(recovered) => recovered.warnings.iter().for_each(check),
            Err(error) => check(&error),
        }
        copies.prune(TASK, 2).unwrap();
    }

    fn bytes_max(&self, input: &[u8]) -> usize {
        (2 << 20) + 64 * input.len()
    }
}

/// The state directory of a process. An input is what a disk did to it: the number of a file, what was done, where, and
/// with what.
pub struct StateFolder {
    files: Vec<(PathBuf, Vec<u8>)>,
    /// By offset.
    rows: BTreeMap<i64, Rows>,
}

const DAMAGE_BYTES: usize = 14;

impl StateFolder {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = BTreeMap::new();
        {
            let dir = StateDir::open(folder.path()).unwrap();
            let store = dir.task(TASK).unwrap();
            store.clear("f").unwrap();
            for step in 0..3 {
                apply(&store, &changes(step), i64::from(step) * 10);
                kept.insert(i64::from(step) * 10, rows(&store).unwrap());
            }
        }
        let mut files = Vec::new();
        let mut folders = vec![folder.path().to_owned()];
        while let Some(at) = folders.pop() {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    files.push((path.strip_prefix(folder.path()).unwrap().to_owned(), bytes));
                }
            }
        }
        files.sort();
        Self { files, rows: kept }
    }

    fn write(&self, folder: &Path, damages: &[u8]) {
        let mut files: Vec<Option<Vec<u8>>> =
            self.files.iter().map(|(_, bytes)| Some(bytes.clone())).collect();
        for damage in damages.chunks_exact(DAMAGE_BYTES) {
            let number = usize::from(damage[0]) % files.len();
            let Some(bytes) = &mut files[number] else { continue };
            let at = u32::from_le_bytes([damage[2], damage[3], damage[4], damage[5]]) as usize;
            let at = at % (bytes.len() + 1);
            let value = &damage[6..DAMAGE_BYTES];
            let end = (at + value.len()).min(bytes.len());
            match damage[1] % 6 {
                0 if at < bytes.len() => bytes[at] ^= 1 << (value[0] % 8),
                1 => bytes[at..end].copy_from_slice(&value[..end - at]),
                2 => bytes.truncate(at),
                3 => {
                    let end = (at + 512).min(bytes.len());
                    bytes[at..end].fill(0);
                }
                4 if value[0] < 50 => files[number] = None,
                _ if at < bytes.len() => bytes[at] = value[0],
                _ => {}
            }
        }
        for ((path, _), bytes) in self.files.iter().zip(files) {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if let Some(bytes) = bytes {
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
}

impl Target for StateFolder {
    fn corpus(&self) -> Vec<Vec<u8>> {
        let text = include_str!("corpus/state.txt");
        let found = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        std::iter::once(Vec::new()).chain(found.map(super::mutate::bytes_of)).collect()
    }

    fn input(&self, random: &mut SmallRng) -> Vec<u8> {
        let mut damages = Vec::new();
        for _ in 0..random.random_range(1..4) {
            let number = random.random_range(0..self.files.len());
            // Where something is: the rest is zeros.
            let bytes = &self.files[number].1;
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let at = random.random_range(0..=used) as u32;
            damages.push(number as u8);
            damages.push(random.random());
            damages.extend(at.to_le_bytes());
            let value = [random.random::<u64>(), 0, u64::MAX, 1 << 40, u64::from(random.random::<u8>())];
            damages.extend(value[random.random_range(0..value.len())].to_le_bytes());
        }
        damages
    }

    fn run(&self, input: &[u8]) {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path(), input);
        let dir = match StateDir::open(folder.path()) {
            Ok(dir) => dir,
            Err(error) => return check(&error),
        };
        let store = match dir.task(TASK) {
            Ok(store) => store,
            Err(error) => return check(&error),
        };
        if let Err(error) = store.check() {
            check(&error);
            assert_eq!(store.offset(), None);
        }
        match (store.offset(), rows(&store)) {
            (Some(offset), Ok(rows)) => {
                assert!(
                    self.rows.get(&offset) == Some(&rows),
                    "rows of offset {offset} that were never written"
                );
            }
            (_, Err(error)) => check(&error),
            (None, Ok(_)) => {}
        }
        // It can be begun anew.
        if store.clear("f").is_ok() {
            apply(&store, &changes(1), 30);
            assert_eq!(store.offset(), Some(30));
        }
    }

    fn bytes_max(&self, _: &[u8]) -> usize {
        // sled's cache and its segments.
        96 << 20
    }
}
