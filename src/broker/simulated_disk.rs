//! A disk for tests, in memory: it counts its operations, loses its power at a given one, fills up, and fails syncs.
//!
//! After a power cut a file holds what was synced, and of later writes whatever the seed says: none, all, the first
//! ones with a torn last one, or any of them; a folder likewise, of creations, removals and renames. A sync that
//! fails forgets what was to be written, as Linux does, although reading still shows it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::disk::{Disk, DiskFile, SharedFile};
use super::lock;

#[derive(Clone)]
enum Write {
    Bytes(u64, Vec<u8>),
    Truncate(u64),
}

fn apply(bytes: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Bytes(at, new) => {
            let end = *at as usize + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at as usize..end].copy_from_slice(new);
        }
        Write::Truncate(length) => bytes.resize(*length as usize, 0),
    }
}

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Write>,
}

type Inode = Arc<Mutex<Content>>;

#[derive(Clone)]
enum Node {
    Folder,
    File(Inode),
}

#[derive(Clone)]
enum Step {
    Name(PathBuf, Node),
    Rename(PathBuf, PathBuf, Node),
    Remove(PathBuf),
}

fn take(names: &mut BTreeMap<PathBuf, Node>, step: &Step) {
    match step {
        Step::Name(path, node) => {
            names.insert(path.clone(), node.clone());
        }
        Step::Rename(from, to, node) => {
            names.remove(from);
            names.insert(to.clone(), node.clone());
        }
        Step::Remove(path) => names.retain(|held, _| !held.starts_with(path)),
    }
}

#[derive(Default)]
struct State {
    now: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// By folder.
    pending: BTreeMap<PathBuf, Vec<Step>>,
    operations: u64,
    cut_at: Option<u64>,
    /// Bytes that still fit.
    free: Option<u64>,
    /// Syncs fail at these operations.
    failing_syncs: Vec<u64>,
    boot: u64,
}

impl State {
    fn power(&self) -> io::Result<()> {
        if self.cut_at.is_some_and(|cut| self.operations >= cut) {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(())
    }

    /// Counts a change; the one at the cut is done and not answered.
    fn count(&mut self) -> io::Result<()> {
        self.power()?;
        self.operations += 1;
        Ok(())
    }

    fn step(&mut self, step: Step) -> io::Result<()> {
        self.count()?;
        let path = match &step {
            Step::Name(path, _) | Step::Rename(_, path, _) | Step::Remove(path) => path,
        };
        let folder = path.parent().unwrap().to_owned();
        take(&mut self.now, &step);
        self.pending.entry(folder).or_default().push(step);
        self.power()
    }

    fn file(&self, path: &Path) -> io::Result<Inode> {
        match self.now.get(path) {
            Some(Node::File(inode)) => Ok(inode.clone()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, format!("no {}", path.display()))),
        }
    }
}

/// The disk; clones of the handle are the same disk.
#[derive(Clone, Default)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

struct SimulatedFile {
    disk: SimulatedDisk,
    inode: Inode,
}

impl SimulatedDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The power goes with this operation: it may or may not have happened, and everything later fails.
    pub fn cut_at(&self, operation: u64) {
        self.state().cut_at = Some(operation);
    }

    /// At most this many bytes more fit; `None`: any number.
    pub fn set_free(&self, bytes: Option<u64>) {
        self.state().free = bytes;
    }

    pub fn has_power(&self) -> bool {
        self.state().power().is_ok()
    }

    pub fn fail_sync_at(&self, operation: u64) {
        self.state().failing_syncs.push(operation);
    }

    /// The disk after the process was killed: everything written is there.
    pub fn after_kill(&self) -> SimulatedDisk {
        let old = self.state();
        SimulatedDisk(Arc::new(Mutex::new(State {
            now: old.now.clone(),
            durable: old.durable.clone(),
            pending: old.pending.clone(),
            boot: old.boot,
            ..State::default()
        })))
    }

    /// The disk after a power cut.
    pub fn after_power_cut(&self, seed: u64) -> SimulatedDisk {
        let mut random = SmallRng::seed_from_u64(seed);
        let old = self.state();
        let mut names = old.durable.clone();
        for steps in old.pending.values() {
            for step in some(&mut random, steps) {
                take(&mut names, step);
            }
        }
        // What has no folder is not there.
        let folders: Vec<PathBuf> = names
            .iter()
            .filter(|(_, node)| matches!(node, Node::Folder))
            .map(|(path, _)| path.clone())
            .collect();
        let held = |path: &Path| {
            path.ancestors()
                .skip(1)
                .filter(|a| a.starts_with(ROOT) && *a != Path::new(ROOT))
                .all(|folder| folders.binary_search(&folder.to_owned()).is_ok())
        };
        names.retain(|path, _| held(path));
        for node in names.values_mut() {
            let Node::File(inode) = node else { continue };
            let content = lock(inode);
            let mut bytes = content.durable.clone();
            for write in some(&mut random, &content.pending) {
                match write {
                    Write::Bytes(at, new) if random.random_ratio(1, 4) => {
                        let torn = new[..random.random_range(0..=new.len())].to_vec();
                        apply(&mut bytes, &Write::Bytes(*at, torn));
                    }
                    write => apply(&mut bytes, write),
                }
            }
            drop(content);
            *node = Node::File(Arc::new(Mutex::new(Content {
                now: bytes.clone(),
                durable: bytes,
                pending: Vec::new(),
            })));
        }
        let boot = old.boot + 1;
        SimulatedDisk(Arc::new(Mutex::new(State {
            now: names.clone(),
            durable: names,
            boot,
            ..State::default()
        })))
    }
}

/// Where the tests keep the broker's folder.
pub const ROOT: &str = "/broker";

/// What a power cut leaves of steps that were not synced.
fn some<'a, T>(random: &mut SmallRng, steps: &'a [T]) -> Vec<&'a T> {
    match random.random_range(0..4) {
        0 => Vec::new(),
        1 => steps.iter().collect(),
        2 => steps[..random.random_range(0..=steps.len())].iter().collect(),
        _ => steps.iter().filter(|_| random.random_bool(0.5)).collect(),
    }
}

impl DiskFile for SimulatedFile {
    fn bytes(&self) -> io::Result<u64> {
        self.disk.state().power()?;
        Ok(lock(&self.inode).now.len() as u64)
    }

    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.disk.state().power()?;
        let content = lock(&self.inode);
        let held = content.now.get(at as usize..at as usize + into.len());
        into.copy_from_slice(held.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.count()?;
        let mut content = lock(&self.inode);
        let grows = (at + bytes.len() as u64).saturating_sub(content.now.len() as u64);
        let fits = state.free.is_none_or(|free| free >= grows);
        let written = if fits { bytes } else { &bytes[..bytes.len() / 2] };
        let write = Write::Bytes(at, written.to_vec());
        apply(&mut content.now, &write);
        content.pending.push(write);
        if !fits {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        state.free = state.free.map(|free| free - grows);
        state.power()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.count()?;
        let mut content = lock(&self.inode);
        apply(&mut content.now, &Write::Truncate(bytes));
        content.pending.push(Write::Truncate(bytes));
        state.power()
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.count()?;
        state.power()?;
        let mut content = lock(&self.inode);
        let pending = std::mem::take(&mut content.pending);
        if state.failing_syncs.contains(&state.operations) {
            return Err(io::Error::other("the disk failed"));
        }
        for write in pending {
            apply(&mut content.durable, &write);
        }
        Ok(())
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path) -> io::Result<SharedFile> {
        let mut state = self.state();
        if state.free == Some(0) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if let Ok(inode) = state.file(path) {
            drop(state);
            let file = SimulatedFile { disk: self.clone(), inode };
            file.truncate(0)?;
            return Ok(Arc::new(file));
        }
        let inode = Inode::default();
        state.step(Step::Name(path.to_owned(), Node::File(inode.clone())))?;
        Ok(Arc::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<SharedFile> {
        let state = self.state();
        state.power()?;
        Ok(Arc::new(SimulatedFile { disk: self.clone(), inode: state.file(path)? }))
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.power()?;
        let inside = state.now.keys().filter(|path| path.parent() == Some(folder));
        Ok(inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn create_folders(&self, folder: &Path) -> io::Result<()> {
        let mut missing: Vec<PathBuf> = folder
            .ancestors()
            .filter(|path| path.starts_with(ROOT) && *path != Path::new(ROOT))
            .map(Path::to_owned)
            .collect();
        missing.reverse();
        let mut state = self.state();
        for path in missing {
            if !state.now.contains_key(&path) {
                state.step(Step::Name(path, Node::Folder))?;
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.file(from)?;
        state.step(Step::Rename(from.to_owned(), to.to_owned(), Node::File(inode)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.file(path)?;
        state.step(Step::Remove(path.to_owned()))
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        self.state().step(Step::Remove(folder.to_owned()))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.count()?;
        state.power()?;
        for step in state.pending.remove(folder).unwrap_or_default() {
            take(&mut state.durable, &step);
        }
        Ok(())
    }

    fn boot(&self) -> String {
        format!("boot {}", self.state().boot)
    }
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_some_of_the_rest() {
    let (mut kept, mut lost, mut nameless) = (0, 0, 0);
    for seed in 0..100 {
        let disk = SimulatedDisk::default();
        let (root, path) = (Path::new(ROOT), Path::new(ROOT).join("a"));
        let file = disk.create(&path).unwrap();
        file.write_all_at(b"one", 0).unwrap();
        file.sync().unwrap();
        if seed % 2 == 0 {
            disk.sync_folder(root).unwrap();
        }
        file.write_all_at(b"two", 3).unwrap();
        let after = disk.after_power_cut(seed);
        match after.open(&path) {
            Err(_) => nameless += 1,
            Ok(file) => {
                let bytes = super::disk::read_all(&*file).unwrap();
                assert!(bytes.starts_with(b"one") && b"onetwo".starts_with(&bytes[..]), "{bytes:?}");
                if bytes.len() == 6 { kept += 1 } else { lost += 1 }
            }
        }
        assert!(seed % 2 == 1 || after.open(&path).is_ok());
    }
    assert!(kept > 10 && lost > 10 && nameless > 10, "{kept} {lost} {nameless}");
}
