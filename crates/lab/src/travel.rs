//! What a guest's users see while it travels from one node to another.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use model::{Job, JobId};
use opcodes::wire::Request;
use serde_json::Value;

use crate::probe::{PingLoss, Pings};
use crate::{Api, Error, Lab, Node};

/// Between two pings, and how many of them are waited for before and after.
const OFTEN: (Duration, usize) = (Duration::from_millis(10), 30);
const SELDOM: (Duration, usize) = (Duration::from_millis(100), 3);
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest that is pinged from the client while it travels.
#[derive(Debug)]
pub(crate) struct Travel {
    often: Pings,
    seldom: Pings,
}

/// What came of the pings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Travelled {
    /// Of a ping every 10 ms.
    pub often: PingLoss,
    /// Of a ping every 100 ms.
    pub seldom: PingLoss,
}

impl Travel {
    /// Begins to ping it. Returns once it answers.
    pub fn begin(lab: &Lab, guest: Ipv4Addr) -> Result<Travel, Error> {
        let client = lab.client()?;
        let mut often = Pings::start(&client, guest, OFTEN.0)?;
        let mut seldom = Pings::start(&client, guest, SELDOM.0)?;
        often.wait(OFTEN.1, PATIENCE)?;
        seldom.wait(SELDOM.1, PATIENCE)?;
        Ok(Travel { often, seldom })
    }

    /// Waits until it answers again, and tells what was lost.
    pub fn end(mut self) -> Result<Travelled, Error> {
        self.often.wait(OFTEN.1, PATIENCE)?;
        self.seldom.wait(SELDOM.1, PATIENCE)?;
        Ok(Travelled { often: self.often.finish(), seldom: self.seldom.finish() })
    }
}

/// For how many milliseconds the guest of the newest job, a migration, stood still, as QEMU says; `None` when it does
/// not: its daemon was a new one.
pub(crate) fn qemu_downtime(node: &Node) -> anyhow::Result<Option<f64>> {
    let jobs = node.exec(["gnt-job", "list", "--no-headers", "-o", "id"])?.stdout;
    let newest = jobs.lines().filter_map(|id| id.trim().parse().ok()).max().context("there is no job")?;
    let job: Job = Api::of(node)?.call(&Request::Job { id: JobId(newest), after: 0, status: None, wait: 0 })?;
    let steps = job.ops.iter().flat_map(|op| op.steps.values()).filter_map(|step| step.done.as_ref());
    Ok(steps.filter_map(|done| find(&done.output, "downtime_ms")).filter_map(Value::as_f64).next())
}

/// A field, however deep it is.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => fields.get(name).or_else(|| fields.values().find_map(|value| find(value, name))),
        Value::Array(values) => values.iter().find_map(|value| find(value, name)),
        _ => None,
    }
}
