//! What is wrong with SQL, in our words where DataFusion has none for users.
//!
//! Invariant: no text of DataFusion's or Arrow's that names their parts reaches a user.

use std::error::Error;
use std::fmt;

use datafusion_common::DataFusionError;

/// Of whoever plans a part; whoever catches it knows the place.
#[derive(Debug)]
struct Words {
    message: String,
    help: String,
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Words {}

/// An error that says in a user's words what is wrong and what to write.
pub(super) fn problem(message: impl Into<String>, help: impl Into<String>) -> DataFusionError {
    DataFusionError::External(Box::new(Words { message: message.into(), help: help.into() }))
}

/// The words of an error that was made by [`problem`].
pub(super) fn of(error: &DataFusionError) -> Option<(String, Option<String>)> {
    let DataFusionError::External(inner) = error.find_root() else { return None };
    let words = inner.downcast_ref::<Words>()?;
    Some((words.message.clone(), Some(words.help.clone()).filter(|help| !help.is_empty())))
}
