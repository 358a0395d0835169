//! Moving an instance to its other node by stopping and starting it.

use opcodes::Failure;
use serde_json::Value;

use crate::context::{Context, Halt};

pub async fn failover(_ctx: &Context, _op: opcodes::op::InstanceFailover) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}
