//! The replicated disk.
