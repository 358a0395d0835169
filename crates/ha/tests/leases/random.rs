//! Random histories: what must hold after every step, whatever comes in.

use std::collections::{BTreeMap, BTreeSet};

use ha::grants::{self, Grants, Standing};
use ha::guard::{self, Guard, Identity};
use ha::message::{Answer, Grant, Renew};
use ha::voter::Voter;
use ha::{Now, Times};
use model::{Life, NodeId, RunId};
use proptest::prelude::*;

use crate::script::{inc, ms, times};

#[derive(Clone, Debug)]
enum ToGuard {
    Daemon(Option<u64>),
    Register(u64, bool),
    Ended(u64),
    /// The how-many-last request, life, term, runs.
    Granted(u64, u64, u64, BTreeSet<u64>),
    Over(u64, u64, u64),
    Tick,
}

fn to_guard() -> impl Strategy<Value = ToGuard> {
    let runs = prop::collection::btree_set(0u64..3, 0..3);
    prop_oneof![
        3 => prop_oneof![9 => Just(Some(7)), 1 => Just(Some(8)), 1 => Just(None)].prop_map(ToGuard::Daemon),
        2 => (0u64..3, prop::bool::weighted(0.8)).prop_map(|(run, protected)| ToGuard::Register(run, protected)),
        1 => (0u64..3).prop_map(ToGuard::Ended),
        6 => (0u64..5, 7u64..9, 5u64..8, runs).prop_map(|(q, life, term, runs)| ToGuard::Granted(q, life, term, runs)),
        1 => (0u64..3, 6u64..9, 5u64..8).prop_map(|(q, life, term)| ToGuard::Over(q, life, term)),
        4 => Just(ToGuard::Tick),
    ]
}

proptest! {
    /// A protected run goes on only under a lease that counts from a request, and if it was stopped, only when a grant of a
    /// request that was sent afterwards listed it.
    #[test]
    fn no_protected_run_goes_on_without_a_lease(history in prop::collection::vec((0u64..500, to_guard()), 1..80)) {
        let mut guard = Guard::new(times(), Now::ZERO);
        let (mut now, mut asked, mut out) = (0, BTreeMap::new(), Vec::new());
        let mut identity = None;
        let (mut runs, mut stopped): (BTreeMap<RunId, bool>, BTreeMap<RunId, u64>) = Default::default();
        let mut next_q = 1;
        for (later, event) in history {
            now += later;
            let of = |back: u64| next_q - 1 - back.min(next_q - 1);
            let mut granted = None;
            let event = match event {
                ToGuard::Daemon(life) => {
                    identity = life.map(|life| Identity { inc: inc(), node: NodeId(1), life: Life(life) });
                    guard::Event::Daemon(identity)
                }
                ToGuard::Register(run, protected) => {
                    runs.insert(RunId(run), protected);
                    guard::Event::Register { run: RunId(run), protected }
                }
                ToGuard::Ended(run) => {
                    runs.remove(&RunId(run));
                    stopped.remove(&RunId(run));
                    guard::Event::Ended(RunId(run))
                }
                ToGuard::Granted(back, life, term, runs) => {
                    let grant = Grant {
                        inc: inc(),
                        term,
                        life: Life(life),
                        q: of(back),
                        lease_ms: 1000,
                        master: NodeId(2),
                        runs: runs.into_iter().map(RunId).collect(),
                    };
                    granted = Some(grant.clone());
                    guard::Event::Answer { q: grant.q, answer: Answer::Granted(grant) }
                }
                ToGuard::Over(back, now, term) => {
                    guard::Event::Answer { q: of(back), answer: Answer::Ended { now: Life(now), term } }
                }
                ToGuard::Tick => guard::Event::Tick,
            };
            let before = guard.until();
            guard.step(ms(now), event, &mut out);
            if guard.until() > before {
                let grant = granted.as_ref().expect("only a grant extends a lease");
                prop_assert_eq!(Some(grant.life), identity.map(|identity| identity.life));
                prop_assert_eq!(Some(guard.until()), asked.get(&grant.q).map(|sent: &Now| *sent + ms(1000)));
            }
            for effect in out.drain(..) {
                match effect {
                    guard::Effect::Renew { q, .. } => {
                        asked.insert(q, ms(now));
                        next_q = q + 1;
                    }
                    guard::Effect::Stop(set) => stopped.extend(set.into_iter().map(|run| (run, next_q))),
                    guard::Effect::Continue(set) => {
                        let grant = granted.as_ref().expect("only a grant lets a run go on");
                        for run in set {
                            let since = stopped.remove(&run).expect("only a stopped run goes on");
                            prop_assert!(grant.runs.contains(&run) && grant.q >= since && guard.holds(ms(now)));
                        }
                    }
                    guard::Effect::Kill(set) => {
                        for run in set {
                            prop_assert!(runs.contains_key(&run));
                            stopped.insert(run, u64::MAX);
                        }
                    }
                    _ => {}
                }
            }
            if identity.is_some() && !guard.holds(ms(now)) {
                let free = runs.iter().find(|(run, protected)| **protected && !stopped.contains_key(run));
                prop_assert_eq!(free, None);
            }
            prop_assert!(guard.next() > ms(now) || guard.next() == ms(now), "never in the past");
        }
    }

    /// What a voter answers is never older than what it confirmed, restarts included.
    #[test]
    fn a_voter_never_forgets(history in prop::collection::vec((0u64..100, 0u64..10), 1..60)) {
        let mut voter = Voter::new(Now::ZERO);
        let (mut now, mut durable, mut confirmed) = (0, 1, BTreeMap::new());
        for (later, what) in history {
            now += later;
            match what {
                0 => voter = Voter::new(ms(now)),
                1..4 => durable += 1,
                _ => {
                    if voter.confirm(durable, durable, ms(now)) {
                        confirmed.insert(durable, ms(now));
                    }
                    prop_assert!(!voter.confirm(durable + 1, durable, ms(now)));
                    prop_assert!(durable == 0 || !voter.confirm(durable - 1, durable, ms(now)));
                }
            }
            let last = confirmed.range(..durable).map(|(_, at)| *at).max();
            let age = voter.fence(durable, durable, ms(now)).expect("it is in that term");
            prop_assert!(last.is_none_or(|last| ms(now) - age >= last));
            prop_assert_eq!(voter.fence(durable + 1, durable, ms(now)), None);
        }
    }
}

#[derive(Clone, Debug)]
enum ToMaster {
    Nodes(Vec<(u64, bool, bool)>),
    Renew(u64, u64),
    Confirmed(u64, u64),
    Fenced(u64, u64),
    Pardoned(u64),
    Tick,
}

fn to_master() -> impl Strategy<Value = ToMaster> {
    let nodes = prop::collection::vec((4u64..6, prop::bool::weighted(0.8), prop::bool::weighted(0.1)), 3);
    prop_oneof![
        1 => nodes.prop_map(ToMaster::Nodes),
        6 => (1u64..4, 4u64..6).prop_map(|(node, life)| ToMaster::Renew(node, life)),
        9 => (1u64..4, 0u64..3).prop_map(|(voter, back)| ToMaster::Confirmed(voter, back)),
        3 => (1u64..4, 0u64..3000).prop_map(|(voter, age)| ToMaster::Fenced(voter, age)),
        1 => (1u64..4).prop_map(ToMaster::Pardoned),
        4 => Just(ToMaster::Tick),
    ]
}

proptest! {
    /// Leases are granted for rounds that began after they were asked for and that a majority confirmed; and who is condemned
    /// was granted none for so long, by this master or, as the voters remember it, by another one.
    #[test]
    fn grants_and_deaths_keep_apart(history in prop::collection::vec((0u64..300, to_master()), 1..120)) {
        let times: Times = times();
        let mut grants = Grants::new(times, inc(), Now::ZERO);
        let mut out = Vec::new();
        let voters: BTreeSet<NodeId> = (1..4).map(NodeId).collect();
        grants.step(Now::ZERO, grants::Event::Voters(vec![voters]), &mut out);
        let (mut now, mut q, mut round) = (0, 0, 0);
        let mut nodes: BTreeMap<NodeId, Standing> = BTreeMap::new();
        let mut asked: BTreeMap<(NodeId, u64), Now> = BTreeMap::new();
        // Rounds: begin, and who confirmed them while they were the newest.
        let mut rounds: BTreeMap<u64, (Now, BTreeSet<u64>)> = BTreeMap::new();
        let mut granted: BTreeMap<NodeId, Now> = BTreeMap::new();
        let mut fenced: BTreeMap<u64, Now> = BTreeMap::new();
        let mut condemned: BTreeMap<NodeId, Life> = BTreeMap::new();
        for (later, event) in history {
            now += later;
            let at = ms(now);
            let event = match event {
                ToMaster::Nodes(list) => {
                    nodes = (1..4).map(NodeId).zip(list.into_iter().map(|(life, armed, dead)| {
                        Standing { life: Life(life), dead, armed }
                    })).collect();
                    condemned.retain(|node, life| nodes[node].life == *life && !nodes[node].dead);
                    grants::Event::Nodes(nodes.clone())
                }
                ToMaster::Renew(node, life) => {
                    q += 1;
                    asked.insert((NodeId(node), q), at);
                    let (node, life) = (NodeId(node), Life(life));
                    grants::Event::Renew(Renew { inc: inc(), node, life, q, without_address: 0 })
                }
                ToMaster::Confirmed(voter, back) => {
                    let round = round - back.min(round);
                    if let Some((_, by)) = rounds.get_mut(&round).filter(|_| back == 0) {
                        by.insert(voter);
                    }
                    grants::Event::Confirmed { voter: NodeId(voter), round }
                }
                ToMaster::Fenced(voter, age) => {
                    let last = at.saturating_sub(ms(age));
                    let known = fenced.entry(voter).or_insert(last);
                    *known = last.min(*known);
                    grants::Event::Fenced { voter: NodeId(voter), age: ms(age) }
                }
                ToMaster::Pardoned(node) => {
                    let life = condemned.remove(&NodeId(node)).unwrap_or_default();
                    grants::Event::Pardoned { node: NodeId(node), life }
                }
                ToMaster::Tick => grants::Event::Tick,
            };
            grants.step(at, event, &mut out);
            for effect in out.drain(..) {
                match effect {
                    grants::Effect::Confirm { round: number } => {
                        prop_assert!(!nodes.is_empty(), "only in office");
                        round = number;
                        rounds.insert(round, (at, BTreeSet::new()));
                    }
                    grants::Effect::Grant { node, life, q } => {
                        let standing = nodes[&node];
                        prop_assert!(standing.life == life && !standing.dead && condemned.get(&node) != Some(&life));
                        let sent = asked[&(node, q)];
                        let by = rounds.values().find(|(begun, by)| *begun >= sent && by.len() >= 2);
                        prop_assert!(by.is_some(), "a confirmed round that began after it was asked for");
                        granted.insert(node, sent);
                    }
                    grants::Effect::Condemn { node, life, .. } => {
                        prop_assert!(nodes[&node].armed && nodes[&node].life == life && !nodes[&node].dead);
                        prop_assert!(fenced.len() >= 2, "a majority was fenced");
                        let older = fenced.values().copied().max().unwrap_or_default();
                        let last = granted.get(&node).copied().unwrap_or_default();
                        // The fence counts what a majority had answered first; later answers are not waited for.
                        let majority = fenced.values().copied().min().unwrap_or_default();
                        prop_assert!(at >= last + times.wait() && at >= majority.min(older) + times.wait());
                        prop_assert_eq!(condemned.insert(node, life), None);
                        prop_assert!(grants.has_lapsed(node, at));
                    }
                    _ => {}
                }
            }
            prop_assert!(grants.next().is_none_or(|next| next >= at), "never in the past");
        }
    }
}
