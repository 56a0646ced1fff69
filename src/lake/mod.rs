//! The lake: tables of Parquet files that any engine reads. A replay writes a whole new version of a table,
//! and readers see it from the moment its manifest exists.
//!
//! ```text
//! <lake>/gold/hourly_delay/
//!   v000001/window_start_date=2013-01-01/part-<task>-<n>.parquet
//!   v000002/_writing …                        being written, or left by a replay that was killed
//!   _manifest/000001.json                     created once, never changed; the highest number is current
//! ```
//! [`Lake::begin`] opens a [`NewVersion`]; each task writes its rows through a [`PartWriter`] on its own
//! thread; [`NewVersion::publish`] takes the finished parts and creates the manifest.
//!
//! Invariant: readers see all of a version or nothing of it, whenever a writer dies.
//! Invariant: a version's digest ([`digest`]) depends on its rows alone.
//! Invariant: this room knows nothing of operators or topics; all calls block until they are done.

mod digest;
mod duckdb;
mod error;
mod manifest;
mod partition;
mod read;
mod store;
mod stored;
mod table;
mod version;
mod writer;

use std::sync::Arc;

use object_store::ObjectStore;

pub use digest::{Digest, digest, supports};
pub use duckdb::duckdb_query;
pub use error::{LakeError, Result};
pub use manifest::{Column, FileEntry, Manifest, OffsetRange, RunInfo};
pub use partition::PartitionBy;
pub use read::Rows;
pub use table::TableSpec;
pub use version::{NewVersion, Unpublished};
pub use writer::{FinishedPart, PartWriter, WriteLimits};

use crate::objects::Location;
use store::Store;
use table::Table;

/// A handle to a lake. Cheap to clone.
#[derive(Clone)]
pub struct Lake {
    store: Store,
    limits: WriteLimits,
}

impl Lake {
    /// Opens a folder, created if missing, by its path or `file://` URL, or a bucket by its `s3://` URL.
    pub fn open(location: impl Into<Location>) -> Result<Lake> {
        Ok(Lake { store: Store::open(&location.into())?, limits: WriteLimits::default() })
    }

    /// A lake in any object store; `name` is what messages and queries call it.
    pub fn over(objects: Arc<dyn ObjectStore>, name: &str) -> Lake {
        Lake { store: Store::over(objects, name), limits: WriteLimits::default() }
    }

    /// The same lake with other limits on what each writer may hold.
    pub fn with_limits(self, limits: WriteLimits) -> Lake {
        Lake { limits, ..self }
    }

    /// Where the lake lies: what [`duckdb_query`] takes.
    pub fn url(&self) -> &str {
        self.store.name()
    }

    /// Begins a new version of a table, which nobody sees before it is published.
    pub fn begin(&self, table: TableSpec) -> Result<NewVersion> {
        NewVersion::begin(self.store.clone(), Table::new(table)?, self.limits)
    }

    /// The published versions of a table, ascending; none for a table that was never written.
    pub fn versions(&self, table: &str) -> Result<Vec<u64>> {
        table::check_path(table)?;
        version::versions(&self.store, table)
    }

    /// The manifest of the highest version.
    pub fn current(&self, table: &str) -> Result<Option<Manifest>> {
        match self.versions(table)?.pop() {
            Some(version) => self.manifest(table, version),
            None => Ok(None),
        }
    }

    /// The manifest of one version; `None` if it was never published.
    pub fn manifest(&self, table: &str, version: u64) -> Result<Option<Manifest>> {
        table::check_path(table)?;
        let path = version::manifest_path(table, version);
        let Some(content) = self.store.get(&path)? else { return Ok(None) };
        let damaged = |detail: String| LakeError::Manifest { path: self.store.full(&path), detail };
        let manifest: Manifest =
            serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
        if manifest.format > manifest::FORMAT {
            let known = manifest::FORMAT;
            let detail = format!(
                "its format is {}, this program knows up to {known}: use a newer one",
                manifest.format
            );
            return Err(damaged(detail));
        }
        Ok(Some(manifest))
    }

    /// The version folders without a manifest: of replays that run now, or that were killed. They are only
    /// reported: whether a writer is dead can't be known from here.
    pub fn unpublished(&self, table: &str) -> Result<Vec<Unpublished>> {
        table::check_path(table)?;
        version::unpublished(&self.store, table)
    }

    /// The rows of a version.
    pub fn read(&self, manifest: &Manifest) -> Result<Rows> {
        Rows::new(self.store.clone(), manifest)
    }
}
