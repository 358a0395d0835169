//! The replicated disk.
pub mod backing;
pub mod device;
pub mod engine;
pub mod fuse;
pub mod nbd;
pub mod wire;
