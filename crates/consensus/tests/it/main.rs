//! Consensus in one process: real time, real files, an in-memory network that can be cut.

mod cluster;
mod fixture;
mod recovery;
mod rules;
