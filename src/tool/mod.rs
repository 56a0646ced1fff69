//! What commands do, apart from the terminal: replay into a lake, verify, dead letters, topics, the demo.

pub mod replay;
pub mod verify;
