//! Messages between members.

use serde::{Deserialize, Serialize};

/// A message to another member. What is in it is between the two; the caller only carries it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RaftRequest {}

/// The answer to a [`RaftRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RaftReply {}
