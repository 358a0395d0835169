//! The replicated disk.
pub mod device;
