//! The replicated disk.
pub mod device;
pub mod engine;
pub mod nbd;
pub mod wire;
