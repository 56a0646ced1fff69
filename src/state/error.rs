//! What can go wrong with state, by what a user can do about it.

pub type Result<T, E = StateError> = std::result::Result<T, E>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "the disk is full: state could not be written to {place}; free some space there, or put state elsewhere \
         (data_dir, or state.url for the copies), and start again: nothing that was committed is lost"
    )]
    DiskFull { place: String },
    #[error(
        "{place} is in use by another worker or process; stop that one, or give this one a data_dir of its own"
    )]
    InUse { place: String },
    /// Recovery goes on with the next older checkpoint, or with the log.
    #[error(
        "the state in {place} is damaged: {detail}; delete it, and an older checkpoint or the log is used"
    )]
    Corrupt { place: String, detail: String },
    #[error(
        "the state in {place} belongs to another version of the topology (its fingerprint is {found}, not \
         {expected}), and is not used"
    )]
    OtherTopology { place: String, found: String, expected: String },
    /// Recovery goes on with the next older checkpoint, or with the log.
    #[error(
        "the checkpoint in {place} is of format {found}, and this program reads {reads}: another version of headwater \
         has written it"
    )]
    OtherFormat { place: String, found: u32, reads: u32 },
    #[error(
        "task {task}: no checkpoint at an offset from {log_start} to {committed} can be used, and {}{reasons}; bring back the state directory or the checkpoint copies (state.url), or \
         let the topology begin anew from its sources with: headwater reset FILE --to earliest",
        log_is_not_enough(*log_start)
    )]
    NoCheckpoint {
        task: String,
        log_start: i64,
        committed: i64,
        /// Why the checkpoints that exist could not be used: empty, or `: ` and a list.
        reasons: String,
    },
    /// The object store does not answer; it may, later.
    #[error("{0}")]
    Unreachable(String),
    /// The object store can't be used as it is configured.
    #[error("state.url: {0}")]
    Refused(String),
    #[error("{place}: {detail}")]
    Io { place: String, detail: String },
}

/// A checkpoint at offset 0 may hold what a replay has left; the log alone does not give that.
fn log_is_not_enough(log_start: i64) -> String {
    match log_start {
        0 => "what it began with may not be in the log".to_string(),
        start => format!("the log before {start} is gone"),
    }
}

impl StateError {
    /// For an I/O error at a place, or whatever wraps one.
    pub(super) fn from_error(place: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let place = place.to_string();
        let mut detail = error.to_string();
        let mut cause = Some(error);
        while let Some(current) = cause {
            let io = current.downcast_ref::<std::io::Error>();
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull) {
                return Self::DiskFull { place };
            }
            let text = current.to_string();
            if !detail.contains(&text) {
                detail = format!("{detail}: {text}");
            }
            cause = current.source();
        }
        Self::Io { place, detail }
    }
}
