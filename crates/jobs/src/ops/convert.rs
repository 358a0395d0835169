//! Changing how the disks of a stopped instance are stored.
