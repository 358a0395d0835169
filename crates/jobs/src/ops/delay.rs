//! `OP_TEST_DELAY`: does nothing, for a while. Measures what a job costs.

use std::time::Duration;

use opcodes::op::TestDelay;
use serde_json::Value;

use super::{find_node, wrong_input};
use crate::agent::Call;
use crate::context::{Context, Halt};

/// Longest delay, seconds: a day.
const LONGEST: f64 = 86_400.0;

pub async fn delay(ctx: &Context, op: TestDelay) -> Result<Value, Halt> {
    if !(0.0..=LONGEST).contains(&op.duration) {
        return Err(wrong_input(format!("Duration {} is not in range [0, {LONGEST}] seconds", op.duration)).into());
    }
    let duration = Duration::from_secs_f64(op.duration);
    let state = ctx.state();
    let nodes = op.on_nodes.iter().map(|name| find_node(&state, name)).collect::<Result<Vec<_>, _>>()?;
    for _ in 0..op.repeat.max(1) {
        if op.on_master && !duration.is_zero() {
            ctx.world().sleep(duration).await;
        }
        let calls = nodes.iter().map(|node| {
            let call = Call::Delay { millis: duration.as_millis() as u64 };
            ctx.call_within(*node, call, duration + Duration::from_secs(10))
        });
        futures::future::try_join_all(calls).await?;
    }
    Ok(Value::Null)
}
