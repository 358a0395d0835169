//! What the lab promises: nodes that are really apart, really dead when killed, really back when started, and
//! nothing left behind, however it ended.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cables;
mod commands;
mod isolation;
mod life;
mod parts;
mod support;
