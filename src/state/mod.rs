//! To be written.
pub struct TaskState;
#[derive(Debug, thiserror::Error)]
pub enum StateError {}
