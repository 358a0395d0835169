//! The disks of an instance: showing, growing, comparing them.

use opcodes::Failure;
use serde_json::Value;

use crate::context::{Context, Halt};

pub async fn grow(_ctx: &Context, _op: opcodes::op::InstanceGrowDisk) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}

pub async fn activate(_ctx: &Context, _op: opcodes::op::InstanceActivateDisks) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}

pub async fn deactivate(_ctx: &Context, _op: opcodes::op::InstanceDeactivateDisks) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}

pub async fn verify(_ctx: &Context, _op: &str) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}
