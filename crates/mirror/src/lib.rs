//! The replicated disk.
pub mod backing;
pub mod device;
pub mod driver;
pub mod engine;
pub mod fuse;
pub mod keeper;
pub mod nbd;
pub mod wire;
