//! What holds whatever is proposed in whatever order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::testing::{cluster_of, new_cluster, new_node};
use super::*;
use crate::{
    Applied, ClusterChange, Evidence, ForkPoint, Happening, Incarnation, JobStatus, NewNode, NodeChange, Proposal,
    Rejection,
};

/// Small numbers, so that commands meet each other.
fn node() -> impl Strategy<Value = NodeId> {
    (1u64..6).prop_map(NodeId)
}

fn id() -> impl Strategy<Value = InstanceId> {
    prop::sample::select(vec![VM1, VM2, VM3])
}

fn job() -> impl Strategy<Value = JobId> {
    (1u64..9).prop_map(JobId)
}

fn token() -> impl Strategy<Value = Uuid> {
    (0u128..3).prop_map(Uuid::from_u128)
}

fn life() -> impl Strategy<Value = Life> {
    (0u64..8).prop_map(Life)
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let lease_ended = Evidence::LeaseEnded { silent_ms: 1460, wait_ms: 1451, of_older_master: false, voters: vec![] };
    prop::sample::select(vec![lease_ended, Evidence::NewBoot { boot: "boot1".into() }, Evidence::AssertedOff])
}

fn joining() -> impl Strategy<Value = NewNode> {
    (1u8..7, any::<bool>(), any::<bool>()).prop_map(|(number, master_capable, vm_capable)| NewNode {
        master_capable,
        vm_capable,
        ..new_node(number)
    })
}

fn admin_state() -> impl Strategy<Value = AdminState> {
    prop::sample::select(vec![AdminState::Up, AdminState::Down, AdminState::Offline])
}

fn instance_change() -> impl Strategy<Value = InstanceChange> {
    let provisions = vec![Provision::Ready, Provision::Creating(JobId(1)), Provision::Removing(JobId(2))];
    let nics = prop::option::of(id().prop_map(|id| instance(id, "", 1).nics));
    let primary = prop::option::weighted(0.2, node());
    (prop::option::of(admin_state()), prop::option::of(prop::sample::select(provisions)), nics, primary).prop_map(
        |(want, provision, nics, primary)| InstanceChange {
            want,
            provision,
            nics,
            primary,
            ..InstanceChange::default()
        },
    )
}

fn node_change() -> impl Strategy<Value = NodeChange> {
    let flag = || prop::option::weighted(0.3, any::<bool>());
    (flag(), flag(), flag(), flag(), flag()).prop_map(
        |(master_candidate, master_capable, vm_capable, offline, drained)| NodeChange {
            master_candidate,
            master_capable,
            vm_capable,
            offline,
            drained,
            ..NodeChange::default()
        },
    )
}

fn job_change() -> impl Strategy<Value = JobChange> {
    let op = || 0usize..3;
    let step = || prop::sample::select(vec!["a".to_owned(), "b".to_owned()]);
    prop_oneof![
        op().prop_map(|op| JobChange::Waiting { op }),
        op().prop_map(|op| JobChange::Running { op }),
        op().prop_map(|op| JobChange::Log { op, message: "a line".into() }),
        (op(), step()).prop_map(|(op, step)| JobChange::StepBegun { op, step }),
        (op(), step(), any::<bool>()).prop_map(|(op, step, some)| JobChange::StepDone {
            op,
            step,
            output: if some { json!(1) } else { Value::Null }
        }),
        (op(), step()).prop_map(|(op, step)| JobChange::Committed { op, step }),
        op().prop_map(|op| ended(op, JobEnd::Success(json!("result")))),
        op().prop_map(|op| ended(op, JobEnd::Error(json!("error")))),
        op().prop_map(|op| ended(op, JobEnd::Canceled)),
    ]
}

fn new_job() -> impl Strategy<Value = Command> {
    let dependency = (0u64..9, prop::sample::subsequence(vec![JobStatus::Success, JobStatus::Error], 0..=2))
        .prop_map(|(job, wanted)| (JobId(job), wanted));
    (0usize..3, -22i8..21, prop::collection::vec(dependency, 0..2)).prop_map(|(ops, priority, depends)| {
        let ops = (0..ops).map(|op| (json!({ "OP_ID": op }), op.to_string())).collect();
        Command::SubmitJob(NewJob { ops, priority, depends, user: "root".into() })
    })
}

fn on_cluster() -> impl Strategy<Value = Command> {
    let identity = || (0u64..4, 0u128..3).prop_map(|(n, id)| Incarnation { n, id: Uuid::from_u128(id) });
    prop_oneof![
        1 => (0u128..3, joining()).prop_map(|(id, node)| Command::Init {
            cluster: Box::new(new_cluster()),
            incarnation: Uuid::from_u128(id),
            group: Uuid::from_u128(0x9),
            node,
        }),
        1 => Just(Command::Destroy),
        1 => (prop::option::of(any::<bool>()), prop::option::of(any::<bool>()))
            .prop_map(|(drained, ha)| Command::ModifyCluster(ClusterChange { drained, ha, ..ClusterChange::default() })),
        3 => (node(), 0u64..8).prop_map(|(node, term)| Command::TakeOffice { node, term }),
        3 => prop::option::of(node()).prop_map(Command::SetAddressOwner),
        1 => (identity(), prop::option::of(node()), prop::collection::vec(node(), 0..3)).prop_map(
            |(incarnation, node, off)| {
                Command::Found { incarnation, fork_point: ForkPoint { term: 1, index: 1 }, node, off }
            }
        ),

    ]
}

fn on_nodes() -> impl Strategy<Value = Command> {
    prop_oneof![
        (token(), joining(), 0u64..60).prop_map(|(id, node, expires)| Command::AddToken {
            id,
            secret_sha256: String::new(),
            node,
            expires: Timestamp(expires),
        }),
        token().prop_map(|id| Command::DropToken { id }),
        token().prop_map(|token| Command::AddNode { token }),
        (node(), node_change()).prop_map(|(node, change)| Command::ModifyNode { node, change }),
        node().prop_map(|node| Command::RemoveNode { node }),
        (node(), life(), evidence()).prop_map(|(node, life, evidence)| Command::NodeDead { node, life, evidence }),
        (node(), life()).prop_map(|(node, life)| Command::Arm { node, life }),
        node().prop_map(|node| Command::Disarm { node }),
        node().prop_map(|node| Command::Note(Box::new(Happening::Office { node }))),
        (node(), 0u8..3, 0u64..8, prop::collection::vec((1u64..8).prop_map(RunId), 0..3)).prop_map(
            |(node, boot, previous, runs)| Command::JoinNode {
                node,
                boot: format!("boot{boot}"),
                previous: Life(previous),
                runs,
            }
        ),
    ]
}

fn on_instances() -> impl Strategy<Value = Command> {
    let name = prop::sample::select(vec!["vm1", "vm2", "vm3"]);
    prop_oneof![
        (id(), name, 1u64..6).prop_map(|(id, name, node)| Command::AddInstance(Box::new(instance(id, name, node)))),
        (id(), instance_change())
            .prop_map(|(instance, change)| Command::ModifyInstance { instance, change: Box::new(change) }),
        id().prop_map(|instance| Command::RemoveInstance { instance }),
        (id(), node()).prop_map(|(instance, node)| Command::Own { instance, node }),
        (id(), node()).prop_map(|(instance, to)| Command::Takeover { instance, to, reason: "it has all data".into() }),
        (id(), (1u64..8).prop_map(RunId), prop::option::of(admin_state()))
            .prop_map(|(instance, run, want)| Command::Disown { instance, run, want }),
    ]
}

fn on_jobs() -> impl Strategy<Value = Command> {
    prop_oneof![
        2 => new_job(),
        4 => (job(), prop::collection::vec(job_change(), 0..4))
            .prop_map(|(job, changes)| Command::RecordJob { job, changes }),
        1 => job().prop_map(|job| Command::CancelJob { job }),
        1 => job().prop_map(|job| Command::ArchiveJob { job }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![1 => on_cluster(), 2 => on_nodes(), 3 => on_instances(), 3 => on_jobs()]
}

/// Who proposes: mostly the master in office, sometimes one of the past, of the future, or of another cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Proposer {
    InOffice,
    OldOffice,
    NoOffice,
    Elsewhere,
}

fn history() -> impl Strategy<Value = Vec<(Proposer, Vec<Command>)>> {
    let proposer = prop_oneof![
        12 => Just(Proposer::InOffice),
        1 => Just(Proposer::OldOffice),
        1 => Just(Proposer::NoOffice),
        1 => Just(Proposer::Elsewhere),
    ];
    let batch = prop_oneof![4 => prop::collection::vec(command(), 1..2), 1 => prop::collection::vec(command(), 0..5)];
    prop::collection::vec((proposer, batch), 1..60)
}

fn proposal(state: &State, proposer: Proposer, commands: Vec<Command>, at: u64) -> Proposal {
    let term = state.office.map_or(0, |office| office.term);
    let (incarnation, office) = match proposer {
        Proposer::InOffice => (state.incarnation, Some(term)),
        Proposer::OldOffice => (state.incarnation, Some(term.wrapping_sub(1))),
        Proposer::NoOffice => (state.incarnation, None),
        Proposer::Elsewhere => (Incarnation { id: Uuid::from_u128(0xbad), ..state.incarnation }, Some(term)),
    };
    Proposal { incarnation, office, at: Timestamp(at), commands }
}

/// Whether a command is heard from whoever leads, in office or not.
fn needs_no_office(command: &Command) -> bool {
    matches!(
        command,
        Command::Init { .. } | Command::Found { .. } | Command::TakeOffice { .. } | Command::JoinNode { .. }
    )
}

/// The highest numbers given so far: of nodes, jobs, lives and runs. They only ascend, also when the cluster is destroyed
/// and made again, so none is given twice.
struct Given {
    node: u64,
    job: u64,
    life: u64,
    run: u64,
}

impl Given {
    fn by(state: &State) -> Self {
        Self { node: state.last_node, job: state.last_job, life: state.last_life, run: state.last_run }
    }

    fn check(&mut self, commands: &[Command], applied: &[Applied]) {
        assert_eq!(commands.len(), applied.len());
        for (command, applied) in commands.iter().zip(applied) {
            let (highest, fresh) = match (applied, command) {
                (Applied::Done | Applied::Refused(_), _) => continue,
                // A daemon that joins again on the same boot goes on in its life.
                (Applied::Life(life), Command::JoinNode { previous, .. }) if life == previous => continue,
                (Applied::Life(life), _) => (&mut self.life, life.0),
                (Applied::Node(id), _) => (&mut self.node, id.0),
                (Applied::Job(id), _) => (&mut self.job, id.0),
                (Applied::Run(id), _) => (&mut self.run, id.0),
            };
            assert!(fresh > *highest, "a number was given twice: {applied:?}");
            *highest = fresh;
        }
    }
}

fn rank(status: JobStatus) -> u8 {
    match status {
        JobStatus::Queued => 0,
        JobStatus::Waiting => 1,
        JobStatus::Running | JobStatus::Canceling => 2,
        JobStatus::Canceled | JobStatus::Success | JobStatus::Error => 3,
    }
}

fn check_step(before: &State, after: &State, commands: &[Command]) {
    for (id, old) in &before.jobs {
        let Some(new) = after.jobs.get(id) else { continue };
        assert!(!old.status.is_final() || old.status == new.status, "job {id} ended twice");
        assert_eq!(new.status.is_final(), new.end.is_some());
        assert!(new.log_serial >= old.log_serial);
        for (was, is) in old.ops.iter().zip(&new.ops) {
            assert!(rank(was.status) <= rank(is.status), "an opcode of job {id} went back");
            assert!(!was.status.is_final() || was == is, "an opcode of job {id} changed after its end");
            assert!(is.log.starts_with(&was.log), "a log of job {id} lost a line");
            for (name, step) in was.steps.iter().filter(|(_, step)| step.done.is_some()) {
                assert_eq!(is.steps.get(name), Some(step), "step '{name}' of job {id} was done again");
            }
        }
    }
    for (id, new) in &after.instances {
        let old = before.instances.get(id).and_then(|old| old.owner);
        let own = |owner| matches!(commands, [Command::Own { .. } | Command::Takeover { .. }]) && after.is_void(owner);
        assert!(new.owner == old || !new.owner.is_some_and(own), "{} was given to a dead life", new.name);
    }
    for (id, node) in &after.nodes {
        let armed_before = before.nodes.get(id).is_some_and(|before| before.armed);
        let disarmed = |command: &Command| {
            matches!(command, Command::Disarm { .. } | Command::Found { .. } | Command::Destroy | Command::Init { .. })
        };
        assert!(node.armed || !armed_before || commands.iter().any(disarmed), "node {id} lost its arms");
    }
    for (id, old) in &before.instances {
        let Some(new) = after.instances.get(id) else { continue };
        // Only one command can take the right to run an instance from a living owner: the giving back of that run.
        if let (Some(owner), Some(run)) = (old.owner, old.run)
            && new.run != Some(run)
        {
            let given_back =
                commands.iter().any(|command| matches!(command, Command::Disown { run: ended, .. } if *ended == run));
            let life_over = after.is_void(owner);
            let replaced = commands.iter().any(|command| matches!(command, Command::RemoveInstance { .. }));
            assert!(given_back || life_over || replaced, "{} was taken from its living owner", old.name);
        }
    }
    let passes_nobody = commands.iter().any(|command| {
        matches!(
            command,
            Command::SetAddressOwner(None)
                | Command::RemoveNode { .. }
                | Command::Destroy
                | Command::Init { .. }
                | Command::Found { .. }
        )
    });
    if let (Some(old), Some(new)) = (before.address_owner, after.address_owner) {
        assert!(old == new || passes_nobody, "the address went from node {old} to {new} directly");
    }
}

fn check_state(state: &State) {
    let unique = |values: Vec<String>| values.iter().collect::<BTreeSet<_>>().len() == values.len();
    assert!(unique(state.nodes.values().map(|node| node.name.clone()).collect()), "two nodes of one name");
    assert!(unique(state.instances.values().map(|instance| instance.name.clone()).collect()));
    let nics = || state.instances.values().flat_map(|instance| &instance.nics);
    assert!(unique(nics().map(|nic| nic.mac.clone()).collect()), "one hardware address twice");
    let runs: Vec<String> =
        state.instances.values().filter_map(|instance| instance.run).map(|run| run.to_string()).collect();
    assert!(unique(runs), "two instances in one run");
    for instance in state.instances.values() {
        assert!(state.nodes.contains_key(&instance.primary), "an instance without its node");
        assert_eq!(instance.owner.is_some(), instance.run.is_some(), "a run without an owner, or the reverse");
    }
    for (id, node) in &state.nodes {
        assert!(!node.dead || state.live(*id).is_none(), "a dead node lives");
    }
    assert!(state.history.iter().count() <= crate::history::MAX_RECORDS);
    for job in state.jobs.values() {
        let serials: Vec<u64> = job.ops.iter().flat_map(|op| &op.log).map(|line| line.serial).collect();
        let mut ascending = serials.clone();
        ascending.sort_unstable();
        assert_eq!(ascending, (1..=job.log_serial).collect::<Vec<_>>(), "serials of job {}", job.id);
        assert!(job.ops.iter().all(|op| op.log.windows(2).all(|pair| pair[0].serial < pair[1].serial)));
    }
    if let Some(office) = state.office
        && let Some(node) = state.nodes.get(&office.node)
    {
        assert!(node.may_be_master(), "the master may not be master");
    }
    // A voter that starts from a snapshot has the same state, to the byte.
    let bytes = serde_json::to_vec(state).unwrap();
    let copy: State = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(&copy, state);
    assert_eq!(serde_json::to_vec(&copy).unwrap(), bytes);
}

fn play(mut state: State, history: Vec<(Proposer, Vec<Command>)>) {
    let mut given = Given::by(&state);
    // A second voter, which is sent each entry as bytes.
    let mut other = state.clone();
    let mut highest_term: BTreeMap<(u64, Uuid), u64> = BTreeMap::new();
    for (at, (proposer, commands)) in history.into_iter().enumerate() {
        let before = state.clone();
        let proposal = proposal(&state, proposer, commands.clone(), at as u64);
        let outcome = state.apply(&proposal);

        let sent: Proposal = serde_json::from_slice(&serde_json::to_vec(&proposal).unwrap()).unwrap();
        assert_eq!(sent, proposal);
        assert_eq!(other.apply(&sent), outcome);
        assert_eq!(serde_json::to_vec(&other).unwrap(), serde_json::to_vec(&state).unwrap());

        match outcome {
            Ok(applied) => {
                given.check(&commands, &applied);
                check_step(&before, &state, &commands);
            }
            Err(_) => assert_eq!(state, before, "a rejected proposal has changed the state"),
        }
        if before.cluster.is_some() && proposer != Proposer::InOffice && !commands.is_empty() {
            let first = &commands[0];
            let heard = match proposer {
                Proposer::Elsewhere => matches!(first, Command::Found { .. }),
                _ => needs_no_office(first),
            };
            assert!(heard || state == before, "{proposer:?} was heard: {first:?}");
        }
        if let Some(office) = state.office {
            let highest = highest_term.entry((state.incarnation.n, state.incarnation.id)).or_default();
            assert!(office.term >= *highest, "an office of an earlier term");
            *highest = office.term;
        }
        check_state(&state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_history_from_nothing_keeps_every_promise(history in history()) {
        play(State::default(), history);
    }

    #[test]
    fn a_history_of_a_small_cluster_keeps_every_promise(history in history()) {
        play(cluster_of("ccw"), history);
    }

    #[test]
    fn a_history_of_a_busy_cluster_keeps_every_promise(history in history()) {
        play(busy(), history);
    }

    /// A batch does what its commands do one by one, or nothing.
    #[test]
    fn a_batch_is_the_sum_of_its_commands_or_nothing(commands in prop::collection::vec(command(), 2..6)) {
        let start = busy();
        let single = |state: &mut State, command: &Command| {
            let proposal = Proposal {
                incarnation: start.incarnation,
                office: Some(1),
                at: Timestamp(5),
                commands: vec![command.clone()],
            };
            state.apply(&proposal)
        };
        let mut by_one = start.clone();
        let each: Result<Vec<Vec<Applied>>, Rejection> =
            commands.iter().map(|command| single(&mut by_one, command)).collect();
        let mut at_once = start.clone();
        let batch =
            Proposal { incarnation: start.incarnation, office: Some(1), at: Timestamp(5), commands: commands.clone() };
        match (at_once.apply(&batch), each) {
            (Ok(applied), Ok(each)) => {
                prop_assert_eq!(applied, each.concat());
                // but for what a committed step remembers of its batch
                let has_committed = commands.iter().any(|command| matches!(
                    command,
                    Command::RecordJob { changes, .. }
                        if changes.iter().any(|change| matches!(change, JobChange::Committed { .. }))
                ));
                prop_assert!(has_committed || at_once == by_one);
            }
            (Err(together), Err(apart)) => {
                prop_assert_eq!(together, apart);
                prop_assert_eq!(at_once, start);
            }
            (together, apart) => prop_assert!(false, "{together:?} but {apart:?}"),
        }
    }
}
