//! Consensus in one process: real time, real files, an in-memory network that can be cut.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests: a failure is a failed test")]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod recovery;
mod rules;
