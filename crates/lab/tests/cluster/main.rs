//! What a cluster promises, tried with the real daemon, real guests and real deaths. Needs root, the built binary
//! (`cargo build -p cardume`) and what guests are made of (`make guest`); without them the tests fail and say so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod guests;
mod interruptions;
mod loss;
mod membership;
mod migration;
mod mirrors;
mod moves;
mod recovery;
mod support;
mod takeover;
mod torture;
mod vigil;
