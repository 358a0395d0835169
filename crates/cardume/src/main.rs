//! The one binary: every command and both processes of a node.
fn main() {}
