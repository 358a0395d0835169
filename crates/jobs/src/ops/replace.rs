//! Giving a mirrored instance another second replica.

use opcodes::Failure;
use serde_json::Value;

use crate::context::{Context, Halt};

pub async fn replace(_ctx: &Context, _op: opcodes::op::InstanceReplaceDisks) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}
