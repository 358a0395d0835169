//! Live migration (protocol, section 10).

use opcodes::Failure;
use serde_json::Value;

use crate::context::{Context, Halt};

pub async fn migrate(_ctx: &Context, _op: opcodes::op::InstanceMigrate) -> Result<Value, Halt> {
    Err(Failure::failed("not built yet").into())
}
