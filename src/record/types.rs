//! To be written.
#[derive(Clone, Debug)]
pub struct Column;
