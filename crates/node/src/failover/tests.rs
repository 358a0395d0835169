//! What is read from the state and its history.

use ha::takeover::Choice;
use model::{Applied, Command, Happening, Instance, NewJob, NodeId, Proposal, RunId, State};
use opcodes::Opcode;
use opcodes::op::InstanceStartup;

use super::lives::{takeovers, unreported};
use super::starting::{Given, next_node};
use super::{newest_of, worked_on};
use crate::tables::testing::{MADE, cluster};

fn run(state: &mut State, command: Command) -> Applied {
    let office = Some(state.office.map_or(0, |office| office.term));
    let proposal = Proposal { incarnation: state.incarnation, office, at: MADE, commands: vec![command] };
    state.apply(&proposal).unwrap().remove(0)
}

fn note(state: &mut State, what: Happening) {
    run(state, Command::Note(Box::new(what)));
}

fn find<'a>(state: &'a State, name: &str) -> &'a Instance {
    state.instance_by_name(name).unwrap()
}

fn taken_over(of: &Instance, run: u64) -> Happening {
    let (instance, name, from, to, reason) = (of.id, of.name.clone(), NodeId(1), NodeId(2), String::new());
    Happening::TakenOver { instance, name, from, to, run: RunId(run), reason }
}

/// A master that dies between the takeover and the start leaves the start to the next one.
#[test]
fn what_was_taken_over_and_not_reported_is_started() {
    let mut state = cluster();
    let (vm1, vm3) = (find(&state, "vm1").clone(), find(&state, "vm3").clone());
    note(&mut state, taken_over(&vm1, 21));
    note(&mut state, taken_over(&vm3, 22));
    let given = |of: &Instance, run| Given { instance: of.id, node: NodeId(2), run: RunId(run) };
    assert_eq!(unreported(&state), [given(&vm1, 21), given(&vm3, 22)]);
    let (node, reason) = (NodeId(2), String::new());
    let started = Happening::Started { instance: vm1.id, name: vm1.name.clone(), node, run: RunId(21) };
    note(&mut state, started);
    assert_eq!(unreported(&state), [given(&vm3, 22)]);
    // It is the watcher's then.
    let failed = Happening::NotStarted { instance: vm3.id, name: vm3.name.clone(), node, run: RunId(22), reason };
    note(&mut state, failed);
    assert_eq!(unreported(&state), []);
    // Later runs count for themselves.
    note(&mut state, taken_over(&vm1, 23));
    assert_eq!(unreported(&state), [given(&vm1, 23)]);
}

#[test]
fn why_an_instance_is_not_taken_over_is_told_once() {
    let mut state = cluster();
    let vm1 = find(&state, "vm1").clone();
    let stays = |why: &str| Choice { instance: vm1.id, to: Err(why.to_owned()) };
    let [Command::Note(what)] = &takeovers(&state, &[stays("no room")])[..] else { panic!("it is not told") };
    note(&mut state, Happening::clone(what));
    assert_eq!(takeovers(&state, &[stays("no room")]), []);
    assert_eq!(takeovers(&state, &[stays("no data")]).len(), 1, "another reason is news");
    note(&mut state, taken_over(&vm1, 5));
    assert_eq!(takeovers(&state, &[stays("no room")]).len(), 1, "so is the same after something else");
    let goes = Choice { instance: vm1.id, to: Ok((NodeId(2), "it is there".into())) };
    let takeover = Command::Takeover { instance: vm1.id, to: NodeId(2), reason: "it is there".into() };
    assert_eq!(takeovers(&state, &[goes]), [takeover]);
}

#[test]
fn an_instance_is_a_jobs_from_when_it_is_queued_until_it_has_ended() {
    let mut state = cluster();
    let before = worked_on(&state);
    let op = Opcode::InstanceStartup(InstanceStartup { instance_name: "vm3".into(), ..InstanceStartup::default() });
    let ops = vec![(serde_json::to_value(&op).unwrap(), op.summary())];
    let job = NewJob { ops, priority: 0, depends: Vec::new(), user: "root".into() };
    let Applied::Job(job) = run(&mut state, Command::SubmitJob(job)) else { panic!("it has no number") };
    assert!(!before.contains("vm3") && worked_on(&state).contains("vm3"));
    run(&mut state, Command::CancelJob { job });
    assert_eq!(worked_on(&state), before);
}

#[test]
fn a_run_that_does_not_start_goes_where_all_of_its_data_are() {
    let state = cluster();
    let vm5 = find(&state, "vm5");
    assert_eq!(next_node(&state, vm5, &[NodeId(1)].into()), Some(NodeId(2)));
    assert_eq!(next_node(&state, vm5, &[NodeId(1), NodeId(2)].into()), None, "both were tried");
    assert_eq!(next_node(&state, find(&state, "vm1"), &[NodeId(1)].into()), None, "nobody else has its data");
    let mut away = state.clone();
    away.nodes.get_mut(&NodeId(2)).unwrap().dead = true;
    assert_eq!(next_node(&away, vm5, &[NodeId(1)].into()), None);
}

#[test]
fn the_newest_record_is_the_instances_own() {
    let mut state = cluster();
    let (vm1, vm3) = (find(&state, "vm1").clone(), find(&state, "vm3").clone());
    note(&mut state, taken_over(&vm1, 1));
    note(&mut state, taken_over(&vm3, 2));
    assert_eq!(newest_of(&state, vm1.id), Some(&taken_over(&vm1, 1)));
}
