//! Copies of checkpoints in an object store, so that a task can move to another machine.
//!
//! ```text
//! <topology>/<task>/<offset, 20 digits>.json                       the manifest: written last
//! <topology>/<task>/<offset, 20 digits>-<number>-<checksum>.chunk  packed changes
//! ```
//! Invariant: a checkpoint is created once and never overwritten (rule R2). Chunks are named by what they hold,
//! so whoever writes one a second time writes the same bytes.
//! Invariant: a manifest exists only once all its chunks do. On a local folder both are flushed to disk, for the
//! log is trimmed on the strength of them.
//! Invariant: copying and loading hold one chunk in memory, whatever the state's size.

use std::collections::BTreeSet;
use std::fs::File;
use std::future::Future;
use std::ops::ControlFlow;
use std::path::Path as FilePath;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutPayload};

use super::manifest::{Chunk, Manifest, Part, checksum};
use super::packing::{pack, unpack};
use super::requests::{RequestCounts, Requests};
use super::{Change, Result, StateError, Store};
use crate::objects::{Location, ObjectError, Objects, Patience};
use crate::planted::{Fault, note, planted, sized};

/// A chunk is closed when it holds this much. A longer value makes a longer chunk.
const CHUNK_BYTES: usize = 4 << 20;
const OFFSET_DIGITS: usize = 20;

/// One topology's checkpoint copies.
#[derive(Clone)]
pub struct Checkpoints {
    objects: Objects,
    topology: String,
    /// For messages: the URL as it was given.
    place: String,
    requests: Arc<Requests>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// The whole state was copied, not only what the checkpoint changed.
    pub base: bool,
    pub chunks: usize,
    pub bytes: u64,
    /// The checkpoint was there already: nothing was copied.
    pub existed: bool,
}

impl Checkpoints {
    /// Opens a folder, which is created if need be, or a bucket, of which nothing is asked yet.
    pub fn open(location: impl Into<Location>, topology: &str) -> Result<Self> {
        let location = location.into();
        let place = location.url.clone();
        let objects = Objects::open(&location).map_err(|error| failed(&place, &error))?;
        Ok(Self { objects, topology: topology.to_string(), place, requests: Arc::default() })
    }

    /// Over any object store whose futures need no particular runtime; `place` names it in messages.
    pub fn over(objects: Arc<dyn ObjectStore>, topology: &str, place: &str) -> Self {
        let objects = Objects::over(objects, place);
        let (topology, place) = (topology.to_string(), place.to_string());
        Self { objects, topology, place, requests: Arc::default() }
    }

    /// Whether the store can be used. One that does not answer is no error, but a warning for the user: work goes
    /// on without it, and the log is not trimmed.
    pub fn check(&self) -> Result<Option<StateError>> {
        match self.objects.check() {
            Ok(()) => Ok(None),
            Err(error @ ObjectError::Unreachable { .. }) => Ok(Some(failed(&self.place, &error))),
            Err(error) => Err(failed(&self.place, &error)),
        }
    }

    /// The same copies for someone whose patience may end.
    pub fn with_patience(&self, patience: &Patience) -> Self {
        Self { objects: self.objects.with_patience(patience), ..self.clone() }
    }

    /// The same copies for someone who can do without them: a store that does not answer soon is not waited for.
    pub fn hurried(&self) -> Self {
        Self { objects: self.objects.hurried(), ..self.clone() }
    }

    /// What this and everything that shares these copies has asked the store for.
    pub fn requests(&self) -> RequestCounts {
        self.requests.counts()
    }

    /// The offsets of the task's checkpoints, ascending.
    pub fn list(&self, task: &str) -> Result<Vec<i64>> {
        let mut offsets: Vec<i64> =
            self.names(task)?.iter().filter_map(|name| manifest_offset(name)).collect();
        offsets.sort_unstable();
        Ok(offsets)
    }

    /// Copies the checkpoint at `offset`, which `store` holds. `changes` are those since `previous`, an offset and
    /// the identity of the copy that equals the store's contents there: they are enough where that copy is there to
    /// build on, unless the deltas outgrow their base. Another owner's copy of the same offset will not do: it holds
    /// the same state, but its rows may be laid out differently.
    pub fn upload(
        &self,
        task: &str,
        fingerprint: &str,
        offset: i64,
        previous: Option<(i64, &str)>,
        changes: &[Change<'_>],
        store: &dyn Store,
    ) -> Result<CopyStats> {
        if self.get(task, &manifest_name(offset))?.is_some() {
            match self.manifest(task, offset, fingerprint) {
                Ok(held) => {
                    note("another's copy is there already");
                    if planted(Fault::AnothersCopyTakenForOwn) {
                        store.set_copy(&self.identity(&held)?)?;
                    }
                    return Ok(CopyStats { existed: true, ..CopyStats::default() });
                }
                // It is of no use to anybody, and recovery has said so: it is written anew.
                Err(StateError::Corrupt { .. } | StateError::OtherFormat { .. }) => {
                    self.delete(task, &manifest_name(offset))?;
                }
                Err(error) => return Err(error),
            }
        }
        let parent = match previous {
            // A parent that can not be read is not built on; it is reported by whoever recovers.
            Some((offset, identity)) => {
                let same = |parent: &Manifest| parent.identity().is_ok_and(|found| found == identity);
                self.manifest(task, offset, fingerprint).ok().filter(same)
            }
            None => None,
        };
        let parent = parent.filter(|parent| !parent.wants_base());
        let base = parent.is_none();
        let mut chunks =
            ChunkWriter { copies: self, task, offset, packed: Vec::new(), changes: 0, written: Vec::new() };
        if base {
            chunks.add_all(store)?;
        } else {
            changes.iter().try_for_each(|&change| chunks.add(change))?;
        }
        let chunks = chunks.finish()?;
        let stats = CopyStats {
            base,
            chunks: chunks.len(),
            bytes: chunks.iter().map(|chunk| chunk.bytes).sum(),
            existed: false,
        };
        let mut parts = parent.map_or_else(Vec::new, |parent| parent.parts);
        parts.push(Part { offset, chunks });
        let manifest = Manifest::new(&self.topology, task, offset, fingerprint, parts);
        let (encoded, identity) =
            manifest.encode().map_err(|error| StateError::from_error(&self.place, &error))?;
        let created = self.create(task, &manifest_name(offset), encoded)?;
        // Its answer may have been lost, so that it was created again.
        if created || self.manifest(task, offset, fingerprint).is_ok_and(|held| held == manifest) {
            store.set_copy(&identity)?;
        }
        if planted(Fault::CopyReplacesNewer) {
            for newer in self.list(task)?.into_iter().filter(|&newer| newer > offset) {
                self.delete(task, &manifest_name(newer))?;
            }
        }
        Ok(CopyStats { existed: !created, ..stats })
    }

    /// Whether the checkpoint is whole: every chunk there and as it was written.
    pub fn verify(&self, task: &str, offset: i64, fingerprint: &str) -> Result<()> {
        let manifest = self.manifest(task, offset, fingerprint)?;
        manifest.chunks().try_for_each(|chunk| self.chunk(task, chunk).map(drop))
    }

    /// Replaces what is in the store by the checkpoint. On an error the store is empty.
    pub fn load(&self, task: &str, offset: i64, fingerprint: &str, into: &dyn Store) -> Result<()> {
        into.clear(fingerprint)?;
        let loaded = self.load_chunks(task, offset, fingerprint, into);
        if loaded.is_err() {
            into.clear(fingerprint)?;
        }
        loaded
    }

    fn load_chunks(&self, task: &str, offset: i64, fingerprint: &str, into: &dyn Store) -> Result<()> {
        let manifest = self.manifest(task, offset, fingerprint)?;
        for chunk in manifest.chunks() {
            let bytes = self.chunk(task, chunk)?;
            let whole = unpack(&bytes).filter(|changes| changes.is_sorted_by(|left, right| left.0 < right.0));
            let Some(changes) = whole else {
                return Err(self.corrupt(task, &chunk.object, "it does not hold packed changes"));
            };
            into.fill(&changes)?;
        }
        into.apply(&[], offset)?;
        into.set_copy(&self.identity(&manifest)?)
    }

    fn identity(&self, manifest: &Manifest) -> Result<String> {
        manifest.identity().map_err(|error| StateError::from_error(&self.place, &error))
    }

    /// Deletes all but the `keep` newest checkpoints that can be read, and the chunks that only they used.
    /// Nothing newer than those is touched: its chunks may belong to a checkpoint that is being copied. Yields the
    /// offsets of those that are kept, ascending.
    pub fn prune(&self, task: &str, keep: usize) -> Result<Vec<i64>> {
        assert!(keep > 0, "the newest checkpoint is never pruned");
        let names = self.names(task)?;
        let mut offsets: Vec<i64> = names.iter().filter_map(|name| manifest_offset(name)).collect();
        offsets.sort_unstable();
        let mut kept = Vec::new();
        while let Some(offset) = offsets.pop() {
            match self.read_manifest(task, offset) {
                Ok(manifest) => kept.push(manifest),
                Err(StateError::Corrupt { .. } | StateError::OtherFormat { .. }) => continue,
                Err(error) => return Err(error),
            }
            if kept.len() == keep {
                break;
            }
        }
        let at: Vec<i64> = kept.iter().rev().map(|manifest| manifest.offset).collect();
        let (Some(&oldest), true) = (at.first(), at.len() == keep) else {
            return Ok(at);
        };
        let used: BTreeSet<&str> =
            kept.iter().flat_map(Manifest::chunks).map(|chunk| &chunk.object[..]).collect();
        // Manifests first: a chunk that is missing must not be named by one.
        for offset in offsets {
            self.delete(task, &manifest_name(offset))?;
        }
        for name in &names {
            if chunk_offset(name).is_some_and(|offset| offset < oldest) && !used.contains(&name[..]) {
                self.delete(task, name)?;
            }
        }
        Ok(at)
    }

    /// Deletes every checkpoint of the topology.
    pub fn clear(&self) -> Result<()> {
        let folder = Path::from(self.topology.as_str());
        let mut listed = self.wait(self.objects.store().list(Some(&folder)).try_collect::<Vec<_>>())?;
        // Manifests first: a chunk that is missing must not be named by one.
        listed.sort_by_key(|object| object.location.extension() != Some("json"));
        listed.iter().try_for_each(|object| self.wait(self.objects.store().delete(&object.location)))
    }

    /// The manifest, if it is whole and of this topology.
    fn manifest(&self, task: &str, offset: i64, fingerprint: &str) -> Result<Manifest> {
        let manifest = self.read_manifest(task, offset)?;
        if manifest.fingerprint != fingerprint {
            return Err(StateError::OtherTopology {
                place: self.name_of(task, &manifest_name(offset)),
                found: manifest.fingerprint,
                expected: fingerprint.to_string(),
            });
        }
        Ok(manifest)
    }

    fn read_manifest(&self, task: &str, offset: i64) -> Result<Manifest> {
        let name = manifest_name(offset);
        let Some(bytes) = self.get(task, &name)? else {
            return Err(self.corrupt(task, &name, "there is no such checkpoint"));
        };
        if let Some((found, reads)) = Manifest::other_format(&bytes) {
            return Err(StateError::OtherFormat { place: self.name_of(task, &name), found, reads });
        }
        let manifest = Manifest::decode(&bytes).map_err(|detail| self.corrupt(task, &name, &detail))?;
        if (manifest.task.as_str(), manifest.offset, manifest.topology.as_str())
            != (task, offset, &self.topology)
        {
            return Err(self.corrupt(task, &name, "it is the manifest of another checkpoint"));
        }
        Ok(manifest)
    }

    fn chunk(&self, task: &str, chunk: &Chunk) -> Result<Vec<u8>> {
        match self.get(task, &chunk.object)? {
            Some(bytes) if checksum(&bytes) == chunk.checksum => Ok(bytes),
            Some(_) => Err(self.corrupt(task, &chunk.object, "its checksum does not match")),
            None => Err(self.corrupt(task, &chunk.object, "it is missing")),
        }
    }

    fn corrupt(&self, task: &str, name: &str, detail: &str) -> StateError {
        StateError::Corrupt { place: self.name_of(task, name), detail: detail.to_string() }
    }

    fn name_of(&self, task: &str, name: &str) -> String {
        format!("{}/{}", self.place, self.path(task, name))
    }

    fn path(&self, task: &str, name: &str) -> Path {
        Path::from_iter([self.topology.as_str(), task, name])
    }

    fn wait<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T> {
        self.objects.wait(future).map_err(|error| failed(&self.place, &error))
    }

    /// The names of the objects in a task's folder.
    fn names(&self, task: &str) -> Result<Vec<String>> {
        let folder = Path::from_iter([self.topology.as_str(), task]);
        self.requests.list();
        let listed = self.wait(self.objects.store().list(Some(&folder)).try_collect::<Vec<_>>())?;
        Ok(listed.iter().filter_map(|object| object.location.filename().map(str::to_string)).collect())
    }

    fn get(&self, task: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(task, name);
        self.requests.get();
        let found = self.wait(async {
            match self.objects.store().get(&path).await {
                Ok(object) => Ok(Some(object.bytes().await?.to_vec())),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        self.requests.got(found.as_ref().map_or(0, Vec::len));
        Ok(found)
    }

    /// Creates an object; false if it was there already.
    fn create(&self, task: &str, name: &str, bytes: Vec<u8>) -> Result<bool> {
        let path = self.path(task, name);
        self.requests.put(bytes.len());
        let created = self
            .objects
            .create(&path, PutPayload::from(bytes))
            .map_err(|error| failed(&self.place, &error))?;
        self.sync(&path)?;
        Ok(created)
    }

    /// Flushes an object of a local folder to disk, and the folders that lead to it.
    fn sync(&self, path: &Path) -> Result<()> {
        let Some(folder) = self.objects.folder() else { return Ok(()) };
        let io = |error: std::io::Error| StateError::from_error(&self.place, &error);
        let mut place = folder.join(FilePath::new(path.as_ref()));
        loop {
            File::open(&place).and_then(|file| file.sync_all()).map_err(io)?;
            if place == folder || !place.pop() {
                return Ok(());
            }
        }
    }

    fn delete(&self, task: &str, name: &str) -> Result<()> {
        let path = self.path(task, name);
        self.requests.delete();
        self.wait(async {
            match self.objects.store().delete(&path).await {
                // Two workers may prune at once.
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }
}

/// What an error of the store means to a user of state.
fn failed(place: &str, error: &ObjectError) -> StateError {
    match error {
        ObjectError::Unreachable { .. } => StateError::Unreachable(error.to_string()),
        // These name the place themselves.
        ObjectError::NoBucket { .. }
        | ObjectError::Denied { .. }
        | ObjectError::Refused { .. }
        | ObjectError::Url { .. } => StateError::Refused(error.to_string()),
        error => StateError::from_error(place, error),
    }
}

/// Packs changes into chunk objects.
struct ChunkWriter<'a> {
    copies: &'a Checkpoints,
    task: &'a str,
    offset: i64,
    packed: Vec<u8>,
    changes: u64,
    written: Vec<Chunk>,
}

impl ChunkWriter<'_> {
    fn add(&mut self, change: Change<'_>) -> Result<()> {
        pack(change, &mut self.packed);
        self.changes += 1;
        if self.packed.len() < sized(CHUNK_BYTES, 1_000) { Ok(()) } else { self.write() }
    }

    fn add_all(&mut self, store: &dyn Store) -> Result<()> {
        let mut added = Ok(());
        store.scan(&[], &[], &mut |key, value| {
            added = self.add((key, Some(value)));
            if added.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        added
    }

    fn write(&mut self) -> Result<()> {
        let checksum = checksum(&self.packed);
        let number = self.written.len();
        let object = format!("{:0OFFSET_DIGITS$}-{number:06}-{checksum}.chunk", self.offset);
        let bytes = std::mem::take(&mut self.packed);
        let changes = std::mem::take(&mut self.changes);
        let chunk = Chunk { object, bytes: bytes.len() as u64, changes, checksum };
        if !self.copies.create(self.task, &chunk.object, bytes.clone())? {
            // Left by an upload that did not finish. If the machine failed then, it may not be whole.
            match self.copies.chunk(self.task, &chunk) {
                Err(StateError::Corrupt { .. }) => {
                    self.copies.delete(self.task, &chunk.object)?;
                    self.copies.create(self.task, &chunk.object, bytes)?;
                }
                whole => drop(whole?),
            }
        }
        self.written.push(chunk);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Chunk>> {
        if self.changes > 0 {
            self.write()?;
        }
        Ok(self.written)
    }
}

fn manifest_name(offset: i64) -> String {
    format!("{offset:0OFFSET_DIGITS$}.json")
}

fn manifest_offset(name: &str) -> Option<i64> {
    let digits = name.strip_suffix(".json")?;
    if digits.len() == OFFSET_DIGITS { digits.parse().ok() } else { None }
}

fn chunk_offset(name: &str) -> Option<i64> {
    name.strip_suffix(".chunk")?.split('-').next()?.parse().ok()
}
