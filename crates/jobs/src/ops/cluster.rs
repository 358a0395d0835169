//! Operations on the cluster as a whole.

use std::time::Duration;

use serde_json::Value;

use crate::agent::Call;
use crate::context::{Context, Halt};
use crate::world::CallError;

/// How long a node may take to catch up with the log.
const CATCH_UP: Duration = Duration::from_secs(30);

/// Waits until every node that is not marked offline has the newest configuration.
pub async fn redistribute(ctx: &Context) -> Result<Value, Halt> {
    let state = ctx.state();
    let index = ctx.world().applied_index();
    let calls = state.nodes.iter().filter(|(_, node)| !node.offline).map(|(id, node)| async move {
        (node.name.clone(), ctx.call_once(*id, Call::CaughtUp { index }, CATCH_UP).await)
    });
    for (name, outcome) in futures::future::join_all(calls).await {
        match outcome {
            Ok(_) => {}
            Err(CallError::Deposed) => return Err(Halt::Interrupted),
            Err(CallError::Unreachable(why)) => {
                ctx.warn(format!("Copy of the configuration to node {name} failed: {why}")).await?
            }
            Err(CallError::Failed(failure)) => {
                ctx.warn(format!("Copy of the configuration to node {name} failed: {}", failure.text)).await?;
            }
        }
    }
    Ok(Value::Null)
}
