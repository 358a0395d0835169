//! Operations on a cluster of which only the log and the nodes are made up: what they do, in which order, and what is left
//! when they fail, or when the master is lost in any moment.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod disks;
mod evacuation;
mod failures;
mod forcing;
mod interruption;
mod lab;
mod losses;
mod machine;
mod master;
mod migration;
mod moves;
mod operations;
mod queue;
mod replicas;
mod restarts;
