//! A member that finds itself in an older incarnation of the cluster than others (protocol, 11.4).

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use consensus::Surplus;
use hypervisor::ProcessId;
use model::{ForkPoint, Incarnation, NodeId, State, params};
use nix::sys::signal::Signal;

use super::greeting::{Greeting, Relation};
use crate::agent::Agent;

/// What a member does that looks at the others' incarnations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on: it has met nobody newer.
    GoOn,
    /// It was off in between, so it gives up its own end of the log, from this point on, and joins the newer incarnation.
    Rejoin {
        /// That one.
        into: Incarnation,
        /// The end of what both have.
        fork_point: ForkPoint,
    },
    /// There is a newer incarnation, but nobody of it answers: without it this node must not go on.
    Wait(String),
    /// It kept running, and may have acted: nothing is discarded, an operator decides.
    Conflict(String),
}

/// Judges. `state` is this member's, with everything in its log; `boot` is the boot of its machine now, `highest_seen` the
/// highest number of an incarnation that it has ever heard of.
pub fn judge(
    own: &Greeting,
    state: &State,
    me: NodeId,
    boot: &str,
    highest_seen: u64,
    answers: &[(NodeId, Greeting)],
) -> Verdict {
    let newer = answers.iter().filter_map(|(node, theirs)| match own.relation(theirs) {
        Relation::Newer(fork_point) => Some((*node, theirs.incarnation, fork_point)),
        Relation::Same | Relation::Older | Relation::Fork => None,
    });
    let Some((node, into, fork_point)) = newer.max_by_key(|(_, incarnation, _)| incarnation.n) else {
        return match highest_seen > own.incarnation.n {
            true => Verdict::Wait(format!(
                "The cluster went on without this node, as incarnation {highest_seen} (this node is in {}), and no node of \
                 it answers now. This node gives no orders and takes none until one does. Nothing was changed",
                own.incarnation.n
            )),
            false => Verdict::GoOn,
        };
    };
    // Its boot in its own state: it has been in this incarnation since the machine was started.
    match state.nodes.get(&me).is_some_and(|own| own.boot == boot) {
        false => Verdict::Rejoin { into, fork_point },
        true => Verdict::Conflict(format!(
            "The cluster went on without this node: node '{}' is in its incarnation {}, this node in {}. But this node has not \
             been off since: its guests may have written what the cluster does not know. They are paused now, nothing was \
             discarded, and this node takes no orders. If what they wrote here may be given up, restart this machine: it \
             joins again then, and replicas that were written to on both sides are kept aside and reported",
            state.node_name(node),
            into.n,
            own.incarnation.n
        )),
    }
}

/// Pauses all guests of this node, for good: their processes stand still. A monitor could not be asked for it, because it
/// waits for disks that nobody serves any more.
pub async fn pause_guests(agent: &Agent) {
    for (name, _) in params::HYPERVISORS {
        let Ok(hypervisor) = agent.hypervisor(name) else { continue };
        for running in hypervisor.list().await {
            let stopped = match &running.process {
                None => hypervisor.pause(&running.run).await.map_err(|error| crate::chain(&error)),
                Some(process) => stop(process).map_err(|error| error.to_string()),
            };
            match stopped {
                Ok(()) => tracing::warn!(instance = running.instance, run = running.run, "paused"),
                Err(error) => {
                    tracing::error!(instance = running.instance, run = running.run, error, "could not be paused");
                }
            }
        }
    }
}

fn stop(process: &ProcessId) -> io::Result<()> {
    // One that is gone runs no more either.
    process.open()?.map_or(Ok(()), |process| process.signal(Signal::SIGSTOP))
}

/// Writes down what a member's log had beyond the point at which the others went on, one entry a line; nothing if it had
/// nothing.
///
/// # Errors
/// What the file system says.
pub fn report(path: &Path, surplus: &[Surplus]) -> io::Result<()> {
    if surplus.is_empty() {
        return Ok(());
    }
    // As secret as the log itself.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    for entry in surplus {
        writeln!(file, "{}", serde_json::to_string(entry)?)?;
    }
    file.sync_all()?;
    let (first, last) = (surplus[0].index, surplus[surplus.len() - 1].index);
    tracing::warn!(
        entries = surplus.len(),
        first,
        last,
        path = %path.display(),
        "this node's log had entries that the cluster has gone on without; they are in this file and count no more"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::Uuid;

    use super::*;
    use crate::tables::testing;

    fn inc(n: u64) -> Incarnation {
        Incarnation { n, id: Uuid::from_u128(u128::from(n)) }
    }

    const END: ForkPoint = ForkPoint { term: 4, index: 40 };

    fn verdict(boot: &str, highest_seen: u64, met: &[Greeting]) -> Verdict {
        let mut state = testing::cluster();
        state.nodes.get_mut(&NodeId(1)).unwrap().boot = "now".into();
        let own = Greeting { incarnation: inc(1), lineage: Some(Vec::new()), is_led: true };
        let answers: Vec<_> = met.iter().map(|greeting| (NodeId(2), greeting.clone())).collect();
        judge(&own, &state, NodeId(1), boot, highest_seen, &answers)
    }

    #[test]
    fn who_was_off_joins_again_and_who_was_not_stops() {
        let same = Greeting { incarnation: inc(1), lineage: Some(Vec::new()), is_led: true };
        let newer = Greeting { incarnation: inc(2), lineage: Some(vec![(inc(1), END)]), is_led: true };
        let newest = Greeting { incarnation: inc(3), lineage: Some(vec![(inc(1), END), (inc(2), END)]), is_led: true };
        assert_eq!(verdict("later", 1, &[]), Verdict::GoOn);
        assert_eq!(verdict("later", 1, std::slice::from_ref(&same)), Verdict::GoOn);
        assert_eq!(
            verdict("later", 1, &[same.clone(), newer.clone()]),
            Verdict::Rejoin { into: inc(2), fork_point: END }
        );
        assert_eq!(verdict("later", 2, &[newest, newer.clone()]), Verdict::Rejoin { into: inc(3), fork_point: END });
        assert!(
            matches!(verdict("now", 1, &[newer]), Verdict::Conflict(text) if text.contains("node 'node02' is in its incarnation 2"))
        );
        // It has heard of it once, and nobody is there to ask.
        assert!(matches!(verdict("later", 2, &[same]), Verdict::Wait(_)));
        assert!(matches!(verdict("now", 2, &[]), Verdict::Wait(_)));
    }

    #[test]
    fn what_was_alone_in_the_log_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.1.beyond");
        report(&path, &[]).unwrap();
        assert!(!path.exists());
        let entry = |index| Surplus { index, term: 3, at: model::Timestamp(5), commands: Vec::new() };
        report(&path, &[entry(7), entry(8)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("{\"index\":7,"), "{text}");
    }
}
