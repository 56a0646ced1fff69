//! The demo: flights out of New York in January 2013, in the order in which they really left.
//!
//! Everything in it is what a user runs: the embedded broker, a producer, the topology, replays, verify.

pub mod feed;
mod story;

pub use story::demo;
