//! Bytes to Arrow and back: what records hold, and what refined records look like.
//!
//! Invariant: a value that can't be decoded becomes a [`Reject`] of that row, never a panic and never the
//! loss of a batch.
//! Invariant: whether a row is rejected depends on its bytes and the declared columns alone.

mod decimal;
mod instant;
pub mod json;
mod partition;

pub use partition::{murmur2, partition_for_key};

/// Why a row could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Reject {
    /// A stable code, one of [`reason`]'s.
    pub reason: &'static str,
    /// The column, the position in the value and what was expected.
    pub message: String,
}

/// The codes of rejects: they stand in the header `headwater.reason` of dead letters.
pub mod reason {
    /// Not JSON, cut off, or more than one value.
    pub const MALFORMED_JSON: &str = "malformed_json";
    /// The bytes are not UTF-8.
    pub const INVALID_UTF8: &str = "invalid_utf8";
    /// JSON, but not an object.
    pub const NOT_AN_OBJECT: &str = "not_an_object";
    /// A value of another type than the column's.
    pub const TYPE_MISMATCH: &str = "type_mismatch";
    /// A value of the column's type that it has no room for.
    pub const OUT_OF_RANGE: &str = "out_of_range";
    /// The key of a column that is read stands twice in one object.
    pub const DUPLICATE_KEY: &str = "duplicate_key";
}
