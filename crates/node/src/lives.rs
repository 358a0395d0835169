//! This node's own part in lives and runs: it reports its boot, and ends guests that are not its any more; it reports guests
//! that have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::{Life, RunId, State};
use opcodes::Failure;
use rpc::{CallError, Lane};
use tokio::time::Instant;

use crate::failover::{Ended, Heard};
use crate::member::{Booted, ENDED_PATH, LIFE_PATH, Member};

/// How long it may take to be asked for a new life.
const LIFE: Duration = Duration::from_secs(3);
/// First pause before it is asked for again; it grows to the greatest.
const PAUSE: Duration = Duration::from_millis(50);
/// Greatest pause.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// How long the master may take to hear of the end of a guest.
const HEAR: Duration = Duration::from_secs(3);
/// Pause before it is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// Pause before that while there is no master.
const NO_MASTER: Duration = Duration::from_millis(100);
/// How often this node looks for runs of which it missed the end.
const LOOK: Duration = Duration::from_secs(5);

/// Keeps this node's life in the state one of this boot that was not declared dead. Before a new life begins, every guest is
/// ended that is not this node's any more.
pub async fn report_boot(member: Arc<Member>) {
    let mut views = member.log.watch();
    let mut pause = PAUSE;
    loop {
        let state = Arc::clone(&views.borrow_and_update().state);
        if !state.nodes.contains_key(&member.id) || member.life().is_some() {
            pause = PAUSE;
            drop(state);
            if views.changed().await.is_err() {
                return;
            }
            continue;
        }
        if let Err(failure) = begin_life(&member, &state).await {
            tracing::debug!(%failure, "this boot could not be reported yet");
        }
        // Until the new life is known here there is nothing else to do.
        let news = tokio::time::timeout(pause, views.changed()).await;
        if matches!(news, Ok(Err(_))) {
            return;
        }
        pause = (pause * 2).min(LONG_PAUSE);
    }
}

async fn begin_life(member: &Arc<Member>, state: &State) -> Result<(), Failure> {
    let Some(own) = state.nodes.get(&member.id) else { return Ok(()) };
    if own.dead {
        // Others may have what it had, and may run it already.
        member.agent.end_others(state, None, &BTreeSet::new()).await?;
    }
    let booted = Booted { boot: member.config.boot.clone(), previous: own.life, runs: member.agent.runs().await };
    let life = match member.log.status().leader {
        None => return Err(Failure::no_master("nobody leads")),
        Some(leader) if leader == member.id => member.give_life(member.id, booted).await?,
        Some(leader) => {
            let unknown = || Failure::no_master("the leader's address is not known yet");
            let address = member.address_of(leader).ok_or_else(unknown)?;
            let answer: Result<Result<Life, Failure>, CallError> = member
                .client
                .call_json(leader.0, address, Lane::Control, LIFE_PATH, &member.letter(booted), LIFE)
                .await;
            answer.map_err(|error| Failure::no_master(crate::chain(&error)))??
        }
    };
    tracing::info!(%life, boot = member.config.boot, "a new life of this node has begun");
    Ok(())
}

/// Tells the master of guests that have ended although the state has them here, again and again until it has heard or the
/// state has changed.
pub async fn report_ends(member: Arc<Member>) {
    let mut ends = member.agent.ends();
    let mut pending: BTreeMap<RunId, String> = BTreeMap::new();
    let mut look_at = Instant::now();
    let mut tell_at = None;
    loop {
        if Instant::now() >= look_at {
            for run in missing(&member).await {
                pending.entry(run).or_insert_with(|| "its process is gone".into());
            }
            look_at = Instant::now() + LOOK;
            tell_at = tell_at.or((!pending.is_empty()).then(Instant::now));
        }
        if tell_at.is_some_and(|at| Instant::now() >= at) {
            let pause = tell(&member, &mut pending).await;
            tell_at = (!pending.is_empty()).then(|| Instant::now() + pause);
        }
        tokio::select! {
            end = ends.recv() => match end {
                Some((run, how)) => {
                    pending.insert(run, how);
                    tell_at = Some(Instant::now());
                }
                None => return,
            },
            () = tokio::time::sleep_until(tell_at.unwrap_or(look_at).min(look_at)) => {}
        }
    }
}

/// The runs that are this node's by the state, and not by its hypervisors.
async fn missing(member: &Member) -> Vec<RunId> {
    let given = given(member);
    if given.is_empty() {
        return Vec::new();
    }
    let here = member.agent.runs().await;
    given.into_iter().filter(|run| !here.contains(run)).collect()
}

/// The runs that this life of the node owns.
fn given(member: &Member) -> BTreeSet<RunId> {
    let state = member.state();
    let Some(at) = member.life() else { return BTreeSet::new() };
    let owned = state.instances.values().filter(|instance| instance.owner == Some(at));
    owned.filter_map(|instance| instance.run).collect()
}

/// Tells what is still so; what was heard is done. How long to wait before the rest is told again.
async fn tell(member: &Arc<Member>, pending: &mut BTreeMap<RunId, String>) -> Duration {
    let missing = missing(member).await;
    pending.retain(|run, _| missing.contains(run));
    let mut pause = TELL_AGAIN;
    for (run, how) in pending.clone() {
        match tell_one(member, Ended { run, how }).await {
            Some(Heard::Seen) => {
                pending.remove(&run);
            }
            Some(Heard::Later) => {}
            None => pause = NO_MASTER,
        }
    }
    pause
}

async fn tell_one(member: &Arc<Member>, ended: Ended) -> Option<Heard> {
    let leader = member.log.status().leader?;
    if leader == member.id {
        let office = member.office.borrow().clone()?;
        return Some(office.hear_of_end(member.id, &ended).await);
    }
    let address = member.address_of(leader)?;
    let letter = member.letter(ended);
    let answer: Result<Option<Heard>, CallError> =
        member.client.call_json(leader.0, address, Lane::Control, ENDED_PATH, &letter, HEAR).await;
    answer.ok().flatten()
}
