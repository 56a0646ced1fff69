//! Topology files to plans: goldens of whole plans and of every message.

mod flights;
