//! A new version of a table on its way: a folder of its own, then a manifest, which makes it visible.
//!
//! # Numbers
//! `begin` takes a number above every manifest and every folder, by creating `v000007/_writing`; whoever
//! creates it, and finds no manifest of that number, owns the folder, so two replays never write into one. A replay that is killed leaves its folder
//! without a manifest: no reader sees it, no later version reuses it, and nothing here deletes it, since
//! nobody can tell a dead writer from a slow one.
//!
//! The version begun last wins: one that is ready only after a version begun later was published is refused
//! ([`LakeError::Superseded`]), as readers would never see it. Each version replaces the whole table, so the
//! order of publishing matters for nothing else.
//!
//! Invariant: every file that a manifest lists is complete, and on the disk, before the manifest exists.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{SecondsFormat, Utc};

use super::digest::Digest;
use super::error::{LakeError, Result};
use super::manifest::{self, FORMAT, Manifest, RunInfo};
use super::store::Store;
use super::table::Table;
use super::writer::{FinishedPart, PartWriter, WriteLimits};

/// Marks a folder that is being written, or was when its writer died.
const MARKER: &str = "_writing";

/// A version that is being written. Dropped, it leaves its folder as a kill would; see [`NewVersion::abandon`].
pub struct NewVersion {
    store: Store,
    table: Arc<Table>,
    version: u64,
    limits: WriteLimits,
    /// Tasks that were given a writer.
    tasks: Mutex<BTreeSet<usize>>,
}

/// A version's folder that has no manifest: one being written now, or one whose writer died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    pub version: u64,
    pub folder: String,
    /// When it was begun, as its marker says.
    pub started: Option<String>,
}

impl NewVersion {
    pub(super) fn begin(store: Store, table: Table, limits: WriteLimits) -> Result<NewVersion> {
        let started = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let highest_manifest = versions(&store, &table.path)?.pop().unwrap_or(0);
        let highest_folder = folders(&store, &table.path)?.pop().unwrap_or(0);
        let mut version = highest_manifest.max(highest_folder) + 1;
        while !claim(&store, &table.path, version, &started)? {
            version += 1;
        }
        Ok(NewVersion { store, table: Arc::new(table), version, limits, tasks: Mutex::default() })
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    fn folder(&self) -> String {
        format!("{}/{}", self.table.path, manifest::folder_name(self.version))
    }

    /// The writer of one task, for that task's own thread. Each task has one only.
    pub fn writer(&self, task: usize) -> Result<PartWriter> {
        if !self.tasks.lock().unwrap_or_else(PoisonError::into_inner).insert(task) {
            return Err(self.unfinished(format!("task {task} asked for a second writer")));
        }
        Ok(PartWriter::new(self.store.clone(), Arc::clone(&self.table), self.folder(), task, self.limits))
    }

    /// Makes the version the current one, with the rows of these parts: of every writer that was handed out.
    pub fn publish(self, parts: Vec<FinishedPart>, run: RunInfo) -> Result<Manifest> {
        let folder = self.folder();
        let finished: BTreeSet<usize> = parts.iter().map(|part| part.task).collect();
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if finished != tasks || parts.len() != tasks.len() || parts.iter().any(|part| part.folder != folder) {
            return Err(self.unfinished(format!(
                "writers were handed to the tasks {tasks:?}, and finished parts came of {finished:?}"
            )));
        }
        let manifest = self.manifest(parts, run);
        let paths: Vec<String> =
            manifest.files.iter().map(|file| format!("{}/{}", self.table.path, file.path)).collect();
        self.store.sync(paths.iter().map(String::as_str))?;
        let current = versions(&self.store, &self.table.path)?.pop().unwrap_or(0);
        if current > self.version {
            return Err(LakeError::Superseded {
                table: self.table.path.clone(),
                version: self.version,
                current,
                folder: self.store.full(&folder),
            });
        }
        let path = manifest_path(&self.table.path, self.version);
        let content = serde_json::to_vec_pretty(&manifest).map_err(|error| LakeError::Manifest {
            path: self.store.full(&path),
            detail: error.to_string(),
        })?;
        if !self.store.create(&path, &content)? {
            let table = self.table.path.clone();
            return Err(LakeError::Taken {
                table,
                path: self.store.full(&path),
                folder: self.store.full(&folder),
            });
        }
        // The version is published whether or not its marker goes: a marker beside a manifest says nothing.
        let _ = self.store.delete(&marker(&self.table.path, self.version));
        Ok(manifest)
    }

    fn manifest(&self, parts: Vec<FinishedPart>, run: RunInfo) -> Manifest {
        let mut digest = Digest::default();
        let (mut rows, mut files) = (0, Vec::new());
        for part in parts {
            digest.merge(part.digest);
            rows += part.rows;
            files.extend(part.files);
        }
        files.sort_by(|left, right| left.path.cmp(&right.path));
        let text = |time: chrono::DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Millis, true);
        Manifest {
            format: FORMAT,
            version: self.version,
            table: self.table.path.clone(),
            topology: run.topology,
            fingerprint: run.fingerprint,
            offsets: run.offsets,
            late: run.late,
            columns: self.table.columns.clone(),
            rows,
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
            counts: run.counts,
            digest: digest.to_string(),
            started: text(run.started),
            ended: text(run.ended),
            written_at: text(Utc::now()),
        }
    }

    /// Gives the version up and deletes its folder, which is this run's own. Its writers must be gone.
    pub fn abandon(self) -> Result<()> {
        // The marker goes last: until then nobody can take the number.
        self.store.delete_all(&self.folder(), &marker(&self.table.path, self.version))
    }

    fn unfinished(&self, detail: String) -> LakeError {
        LakeError::Unfinished { table: self.table.path.clone(), version: self.version, detail }
    }
}

/// Takes a number by its marker; false if it is taken. A marker is gone again once its version is published,
/// so one that could be created proves nothing before the manifest, which is there first, is found missing.
fn claim(store: &Store, table: &str, version: u64, started: &str) -> Result<bool> {
    let marker = marker(table, version);
    if !store.create(&marker, started.as_bytes())? {
        return Ok(false);
    }
    if store.get(&manifest_path(table, version))?.is_some() {
        store.delete(&marker)?;
        return Ok(false);
    }
    Ok(true)
}

fn marker(table: &str, version: u64) -> String {
    format!("{table}/{}/{MARKER}", manifest::folder_name(version))
}

pub(super) fn manifest_path(table: &str, version: u64) -> String {
    format!("{table}/_manifest/{}", manifest::file_name(version))
}

/// The published versions, ascending.
pub(super) fn versions(store: &Store, table: &str) -> Result<Vec<u64>> {
    let (_, objects) = store.names(&format!("{table}/_manifest"))?;
    let mut versions: Vec<u64> = objects.iter().filter_map(|name| manifest::version_of_file(name)).collect();
    versions.sort_unstable();
    Ok(versions)
}

/// The numbers of the version folders, ascending, published or not.
fn folders(store: &Store, table: &str) -> Result<Vec<u64>> {
    let (folders, _) = store.names(table)?;
    let mut versions: Vec<u64> =
        folders.iter().filter_map(|name| manifest::version_of_folder(name)).collect();
    versions.sort_unstable();
    Ok(versions)
}

/// The folders that no manifest stands for.
pub(super) fn unpublished(store: &Store, table: &str) -> Result<Vec<Unpublished>> {
    let folders = folders(store, table)?;
    // Listed after the folders: one published in between counts as published.
    let published = versions(store, table)?;
    let unpublished = folders.into_iter().filter(|version| !published.contains(version));
    unpublished
        .map(|version| {
            let marker = store.get(&marker(table, version))?;
            Ok(Unpublished {
                version,
                folder: store.full(&format!("{table}/{}", manifest::folder_name(version))),
                started: marker.map(|text| String::from_utf8_lossy(&text).into_owned()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two replays look for a number at once; one of them publishes before the other creates its marker.
    #[test]
    fn a_number_that_was_published_meanwhile_is_not_taken_again() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory");
        assert!(claim(&store, "gold/t", 7, "then").unwrap());
        assert!(!claim(&store, "gold/t", 7, "then").unwrap(), "its marker stands");
        assert!(store.create(&manifest_path("gold/t", 7), b"{}").unwrap());
        store.delete(&marker("gold/t", 7)).unwrap();
        assert!(!claim(&store, "gold/t", 7, "then").unwrap(), "its manifest stands");
        assert_eq!(store.get(&marker("gold/t", 7)).unwrap(), None);
    }
}
