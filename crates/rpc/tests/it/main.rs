//! Nodes that talk to one another, over real sockets on the loopback interface.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Clippy knows test functions, but not the helpers of an integration test.

mod calls;
mod joining;
mod refusals;
mod streams;
mod support;
