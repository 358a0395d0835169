//! Moving everything off a node: one job an instance.

use opcodes::Failure;
use serde_json::Value;

use crate::context::{Context, Halt};

pub async fn migrate(_ctx: &Context, _op: opcodes::op::NodeMigrate) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}

pub async fn evacuate(_ctx: &Context, _op: opcodes::op::NodeEvacuate) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}
