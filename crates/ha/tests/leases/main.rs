//! Leases: the rules L1 to L9 as tables, and as properties of random histories.
#![allow(clippy::expect_used, reason = "helpers of tests are tests too")]

mod grants;
mod guard;
mod random;
mod script;
