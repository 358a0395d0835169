//! What each command demands, what it does, and what holds whatever is proposed.

mod cluster;
mod instances;
mod jobs;
mod lives;
mod nodes;
mod properties;

use super::testing::{cluster_of, new_node, run};
use crate::{
    AdminState, Command, Disk, DiskAccess, DiskId, DiskTemplate, Instance, InstanceChange, InstanceId, JobChange,
    JobEnd, JobId, Life, NewJob, Nic, NodeId, Provision, RunId, State, Timestamp, Uuid,
};
use serde_json::{Value, json};

const VM1: InstanceId = InstanceId(Uuid::from_u128(0xf1));
const VM2: InstanceId = InstanceId(Uuid::from_u128(0xf2));
const VM3: InstanceId = InstanceId(Uuid::from_u128(0xf3));
const NOBODY: InstanceId = InstanceId(Uuid::from_u128(0xff));
const TOKEN: Uuid = Uuid::from_u128(0x7001);
const EXPIRED: Uuid = Uuid::from_u128(0x7002);

fn instance(id: InstanceId, name: &str, primary: u64) -> Instance {
    let number = id.0.as_u128() as u8;
    Instance {
        id,
        name: name.into(),
        provision: Provision::Ready,
        primary: NodeId(primary),
        secondaries: Vec::new(),
        want: AdminState::Down,
        owner: None,
        run: None,
        migration: None,
        hypervisor: "fake".into(),
        os: "busybox+default".into(),
        hvparams: Default::default(),
        beparams: Default::default(),
        osparams: Default::default(),
        disk_template: DiskTemplate::File,
        disks: vec![Disk {
            id: DiskId(id.0),
            name: None,
            size_mib: 1024,
            access: DiskAccess::Rw,
            ctime: Timestamp(0),
            mirror: None,
        }],
        nics: vec![Nic {
            uuid: id.0,
            name: None,
            mac: format!("aa:00:00:00:00:{number:02x}"),
            ip: Some(format!("10.0.0.{number}")),
            params: Default::default(),
        }],
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        tags: Default::default(),
    }
}

fn submit(ops: usize) -> Command {
    let ops = (0..ops).map(|op| (json!({"OP_ID": "OP_TEST_DELAY", "duration": op}), format!("TEST_DELAY({op})")));
    Command::SubmitJob(NewJob { ops: ops.collect(), priority: 0, depends: Vec::new(), user: "root".into() })
}

fn record(job: u64, changes: Vec<JobChange>) -> Command {
    Command::RecordJob { job: JobId(job), changes }
}

fn ended(op: usize, end: JobEnd) -> JobChange {
    JobChange::Ended { op, end }
}

fn provision(instance: InstanceId, provision: Provision) -> Command {
    let change = InstanceChange { provision: Some(provision), ..InstanceChange::default() };
    Command::ModifyInstance { instance, change: Box::new(change) }
}

/// A cluster in which something is going on.
///
/// node01 master, node02 candidate, node03 witness, node04 regular and without instances; all but node04 have joined, in
/// lives 1 to 3. vm1 runs on node01 in run 1, vm2 on node02 is stopped, vm3 on node02 is being removed. Jobs 1 to 6 have
/// two opcodes each and are queued, waiting, running, a success, an error, cancelled. A join token is unused, another
/// expired.
fn busy() -> State {
    let mut state = cluster_of("ccwr");
    let join = |node: u64| Command::JoinNode {
        node: NodeId(node),
        boot: format!("boot{node}"),
        previous: Life(0),
        runs: Vec::new(),
    };
    let token = |id, number, expires| Command::AddToken {
        id,
        secret_sha256: String::new(),
        node: new_node(number),
        expires: Timestamp(expires),
    };
    let success = || JobEnd::Success(Value::Null);
    let set_up = vec![
        join(1),
        join(2),
        join(3),
        Command::AddInstance(Box::new(instance(VM1, "vm1", 1))),
        Command::AddInstance(Box::new(instance(VM2, "vm2", 2))),
        Command::AddInstance(Box::new(instance(VM3, "vm3", 2))),
        Command::Own { instance: VM1, node: NodeId(1) },
        provision(VM3, Provision::Removing(JobId(3))),
        Command::SetAddressOwner(Some(NodeId(1))),
        token(TOKEN, 5, u64::MAX),
        token(EXPIRED, 6, 0),
        submit(2),
        submit(2),
        submit(2),
        submit(2),
        submit(2),
        submit(2),
        record(2, vec![JobChange::Waiting { op: 0 }]),
        record(3, vec![JobChange::Running { op: 0 }, JobChange::StepBegun { op: 0, step: "half".into() }]),
        record(4, vec![ended(0, success()), ended(1, success())]),
        record(5, vec![ended(0, JobEnd::Error(json!("no")))]),
        record(6, vec![ended(0, JobEnd::Canceled)]),
    ];
    run(&mut state, set_up).unwrap();
    state
}

/// Each row: what is wrong, what is proposed to the [busy] cluster, the answer. Nothing may change, neither when the
/// command stands alone nor when others that are fine precede it in its batch.
fn check_refused(rows: Vec<(&str, Command, &str)>) {
    for (what, command, answer) in rows {
        for before in [vec![], vec![submit(1), Command::Own { instance: VM2, node: NodeId(2) }]] {
            let mut state = busy();
            let mut batch = before;
            batch.push(command.clone());
            let whole = state.clone();
            let rejection = run(&mut state, batch).expect_err(what);
            assert_eq!(rejection.to_string(), answer, "{what}");
            assert_eq!(state, whole, "{what}: a rejected proposal has changed the state");
        }
    }
}

/// The busy cluster after commands that must be accepted.
fn after(commands: Vec<Command>) -> State {
    let mut state = busy();
    run(&mut state, commands).unwrap();
    state
}

fn want(state: AdminState) -> Box<InstanceChange> {
    Box::new(InstanceChange::want(state))
}

fn run_of(state: &State, id: InstanceId) -> Option<(u64, u64, u64)> {
    let instance = &state.instances[&id];
    let owner = instance.owner?;
    Some((owner.node.0, owner.life.0, instance.run.unwrap_or(RunId(0)).0))
}
