//! What can go wrong with the lake, by what a caller or a user can do about it.

use std::error::Error;
use std::io;

use crate::objects::messages_of;

pub type Result<T, E = LakeError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    #[error("lake '{url}': {detail}; give a folder, as a path or a file:// URL, or s3://bucket/prefix")]
    Url { url: String, detail: String },
    #[error("lake table '{table}': {detail}")]
    Table { table: String, detail: String },
    #[error(
        "no space is left to write {path}; nothing of this version is visible to readers: free some space and run the replay again"
    )]
    Full { path: String },
    #[error("cannot {what} {path}: {detail}")]
    Store { what: &'static str, path: String, detail: String },
    #[error(
        "lake table '{table}': version {version} was not published, since version {current}, begun later, is current; its files remain under {folder} and no reader sees them: delete the folder, or run the replay again if this result is the one to keep"
    )]
    Superseded { table: String, version: u64, current: u64, folder: String },
    #[error(
        "lake table '{table}': a manifest {path} exists already, and manifests are never replaced; the files of this run remain under {folder} and no reader sees them: run the replay again"
    )]
    Taken { table: String, path: String, folder: String },
    #[error("lake table '{table}': version {version} cannot be published: {detail}")]
    Unfinished { table: String, version: u64, detail: String },
    #[error("manifest {path} cannot be read: {detail}")]
    Manifest { path: String, detail: String },
    #[error("lake table '{table}': these rows are not the table's: {detail}")]
    Rows { table: String, detail: String },
    #[error(
        "lake table '{table}': an earlier write of task {task} failed and rows are missing: abandon the version and run the replay again"
    )]
    Failed { table: String, task: usize },
    #[error("{path} is damaged: {detail}; replay the topology to write a new version of the table")]
    Damaged { path: String, detail: String },
}

impl LakeError {
    /// An error of the store or of the Parquet writer upon it; a full disk is told apart however deep it lies.
    pub(super) fn store(what: &'static str, path: &str, error: &(dyn Error + 'static)) -> LakeError {
        match io_kind(error) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                LakeError::Full { path: path.to_owned() }
            }
            _ => LakeError::Store { what, path: path.to_owned(), detail: messages_of(error) },
        }
    }
}

/// The kind of the first I/O error in the chain.
pub(super) fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref::<io::Error>().map(io::Error::kind))
}
