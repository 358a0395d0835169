//! opcodes
