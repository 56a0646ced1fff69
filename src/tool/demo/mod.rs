//! The demo: flights out of New York in January 2013, in the order in which they really left.

pub mod feed;
