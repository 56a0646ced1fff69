//! `headwater topic …`: looking into topics and putting records into them, without any topology.

mod create;
mod delete;
pub(super) mod envelope;
mod infer;
mod list;
mod produce;
mod scan;
mod tail;

pub use create::{CreateOptions, create};
pub use delete::delete;
pub use infer::{InferOptions, infer};
pub use list::{ListOptions, list};
pub use produce::{ProduceOptions, produce};
pub use tail::{TailOptions, tail};

use crate::log::{Log, LogError};

use super::Result;

/// How many partitions the topic has; an error that says how to create it where there is none.
pub fn partitions_of(log: &dyn Log, topic: &str) -> Result<i32> {
    match log.partitions(topic)? {
        Some(partitions) => Ok(partitions),
        None => Err(LogError::NoTopic { topic: topic.to_owned(), brokers: log.name() }.into()),
    }
}
