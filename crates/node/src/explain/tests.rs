//! Texts, by what they are about.

use std::collections::BTreeMap;

use model::{
    Applied, Command, DiskId, Evidence, ForkPoint, Happening, Incarnation, InstanceId, Life, NodeChange, NodeId,
    Proposal, RunId, State, Timestamp, Uuid,
};
use opcodes::wire::Why;

use super::*;
use crate::tables::{self, testing};

/// node01 is the master, node02 has vm5, which is mirrored on both; node03 is a witness. All are armed; the clock
/// stands where vm5 was made.
struct Stage {
    state: State,
    at: u64,
    known: Known,
}

impl Stage {
    fn new() -> Self {
        let mut state = testing::cluster();
        state.history = Default::default();
        state.nodes.get_mut(&NodeId(3)).unwrap().vm_capable = false;
        let mut stage = Self { state, at: testing::MADE.0, known: Known::default() };
        let id = stage.id("vm5");
        stage.run(Command::Own { instance: id, node: NodeId(2) });
        stage.run(Command::ModifyInstance {
            instance: id,
            change: Box::new(model::InstanceChange::want(model::AdminState::Up)),
        });
        stage.state.history = Default::default();
        let rooms = [(1, 700), (2, 300)].map(|(node, mib)| (NodeId(node), Room { memory_mib: Some(mib) }));
        let live = testing::live(&stage.state).facts.into_iter().filter_map(|(id, asked)| match asked {
            tables::Asked::Answer(facts) => Some((id, facts)),
            _ => None,
        });
        stage.known = Known {
            facts: live.collect(),
            rooms: rooms.into(),
            ages: [1, 2, 3].map(|node| (NodeId(node), Duration::from_millis(120))).into(),
            unarmed: BTreeMap::new(),
            voters: [1, 2, 3].map(NodeId).into(),
            times: Times::default(),
        };
        stage
    }

    fn id(&self, name: &str) -> InstanceId {
        self.state.instance_by_name(name).unwrap().id
    }

    fn disk(&self) -> DiskId {
        self.state.instance_by_name("vm5").unwrap().disks[0].id
    }

    /// Applies a command, and moves the clock on.
    fn run(&mut self, command: Command) -> Applied {
        let office = Some(self.state.office.map_or(0, |office| office.term));
        let incarnation = self.state.incarnation;
        let proposal = Proposal { incarnation, office, at: Timestamp(self.at), commands: vec![command] };
        self.at += 250_000;
        self.state.apply(&proposal).unwrap().remove(0)
    }

    fn note(&mut self, what: Happening) {
        self.run(Command::Note(Box::new(what)));
    }

    fn die(&mut self, node: u64) {
        let life = self.state.nodes[&NodeId(node)].life;
        let voters = vec![NodeId(1), NodeId(3)];
        let evidence = Evidence::LeaseEnded { silent_ms: 1470, wait_ms: 1451, of_older_master: false, voters };
        self.run(Command::NodeDead { node: NodeId(node), life, evidence });
    }

    fn take_over(&mut self, to: u64) -> RunId {
        let reason = "node01 has all data of it in sync and 700 MiB free".into();
        match self.run(Command::Takeover { instance: self.id("vm5"), to: NodeId(to), reason }) {
            Applied::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    /// By vm5's primary: it goes on without the copy on a node.
    fn outdate(&mut self, node: u64) {
        let mirror = self.state.instance_by_name("vm5").unwrap().disks[0].mirror.as_ref().unwrap();
        let (by, epoch, ver) = (mirror.primary.unwrap(), mirror.epoch, mirror.ver);
        let replicas = vec![mirror.replica_on(NodeId(node)).unwrap().0];
        self.run(Command::Outdate { disk: self.disk(), by, epoch, ver, replicas });
    }

    fn why(&self, name: &str) -> Why {
        why(&self.state, &self.known, name).unwrap()
    }

    fn texts(&self, name: &str) -> Vec<String> {
        self.why(name).events.into_iter().map(|event| event.text).collect()
    }
}

#[test]
fn a_takeover_is_told_with_its_evidence() {
    let mut stage = Stage::new();
    stage.die(2);
    let run = stage.take_over(1);
    let (instance, name) = (stage.id("vm5"), "vm5".to_owned());
    stage.note(Happening::Started { instance, name, node: NodeId(1), run });
    stage.run(Command::JoinNode { node: NodeId(2), boot: "boot2".into(), previous: Life(2), runs: vec![] });
    let told = [
        "node02 was declared dead: no lease could have been granted to it for 1.47 s (1.45 s are enough), confirmed by node01 \
         and node03."
            .to_owned(),
        format!("vm5 was taken over from node02 by node01 (run {run}): node01 has all data of it in sync and 700 MiB free."),
        format!("vm5 runs on node01 (run {run}), 0.25 s after it was taken over."),
        "node02 is back, in life 4: it has ended what was given to others, and follows from now on.".to_owned(),
    ];
    assert_eq!(stage.texts("vm5"), told);
    assert_eq!(stage.texts("node02"), [told[0].clone(), told[1].clone(), told[3].clone()]);
    assert_eq!(stage.texts("node01"), [told[1].clone(), told[2].clone()]);
    assert_eq!(stage.texts("vm1"), Vec::<String>::new(), "it has nothing to do with node02");
    let vm5 = stage.id("vm5");
    stage.state.instances.get_mut(&vm5).unwrap().ctime = Timestamp(stage.at);
    assert_eq!(stage.texts("vm5"), told[1..3], "what its nodes did before it was made does not explain it");
    let why = stage.why("vm5");
    assert_eq!((why.kind.as_str(), why.name.as_str()), ("instance", "vm5"));
    assert_eq!(why.events[0].at, why.events[0].record.at);
    assert_eq!(stage.why("node02").kind, "node");
}

/// Each row: what happened, and how it is told.
#[test]
fn everything_that_happens_has_its_sentence() {
    let stage = Stage::new();
    let (instance, name) = (stage.id("vm5"), || "vm5".to_owned());
    let (one, two, run) = (NodeId(1), NodeId(2), RunId(7));
    let dead = |evidence| Happening::NodeDead { node: two, life: Life(2), evidence };
    let rows = [
        (Happening::Office { node: two }, "node02 took office as master (term 7)."),
        (
            dead(Evidence::LeaseEnded { silent_ms: 2000, wait_ms: 1451, of_older_master: true, voters: vec![] }),
            "node02 was declared dead: no lease could have been granted to it for 2.00 s (1.45 s are enough, counted from \
             what the master before may have granted).",
        ),
        (
            dead(Evidence::NewBoot { boot: "b7".into() }),
            "node02 was declared dead: its machine was booted anew (boot b7).",
        ),
        (dead(Evidence::AssertedOff), "node02 was declared dead: an operator asserted that it is off."),
        (
            Happening::NodeJoined { node: two, life: Life(9), was_dead: false },
            "node02 joined, in life 9: its machine was booted.",
        ),
        (
            Happening::Armed { node: two, armed: true },
            "node02 is armed: it stops its guests when its lease ends, so it may be declared dead without an operator.",
        ),
        (
            Happening::Armed { node: two, armed: false },
            "node02 is not armed any more: only an operator can say that it is dead.",
        ),
        (
            Happening::TakenOver { instance, name: name(), from: two, to: two, run, reason: "it has all data".into() },
            "vm5 was given to node02 again, in its new life (run 7): it has all data.",
        ),
        (
            Happening::NotTakenOver {
                instance,
                name: name(),
                reason: "no other node has a replica of its disks".into(),
            },
            "vm5 was not taken over: no other node has a replica of its disks.",
        ),
        (Happening::Started { instance, name: name(), node: one, run }, "vm5 runs on node01 (run 7)."),
        (
            Happening::NotStarted { instance, name: name(), node: one, run, reason: "no memory".into() },
            "vm5 could not be started on node01 (run 7): no memory.",
        ),
        (
            Happening::Crashed {
                instance,
                name: name(),
                node: two,
                run,
                how: "its hypervisor was killed by signal 9".into(),
                decision: "it is started again on node node02.".into(),
            },
            "vm5 ended on node02 although it should run (run 7): its hypervisor was killed by signal 9. It is started again \
             on node node02.",
        ),
        (
            Happening::Moved { instance, name: name(), from: two, to: one, live: true },
            "vm5 moved from node02 to node01 while it ran.",
        ),
        (
            Happening::Moved { instance, name: name(), from: two, to: one, live: false },
            "vm5 was given to node01 by a job; it was on node02 before.",
        ),
        (
            Happening::Forced { instance, name: name(), from: Some(two), to: one },
            "An operator made node01, in place of node02, go on with its copy of the disks of vm5, whatever was known about \
             it: what only other copies had is not in it. They are kept.",
        ),
        (
            Happening::Forced { instance, name: name(), from: None, to: one },
            "An operator made node01 go on with its copy of the disks of vm5, whatever was known about it: what only other \
             copies had is not in it. They are kept.",
        ),
        (
            Happening::Outdated { instance, name: name(), index: 0, nodes: vec![one] },
            "disk/0 of vm5 went on without its copy on node01, which has not followed since.",
        ),
        (
            Happening::InSync { instance, name: name(), index: 0, node: one },
            "The copy of disk/0 of vm5 on node01 has all of its data again.",
        ),
        (
            Happening::Founded { node: one, off: vec![two, NodeId(3)] },
            "An operator made node01 the master alone, without a majority ('gnt-cluster master-failover --no-voting'), and \
             asserted that node02 and node03 are off.",
        ),
    ];
    for (what, text) in rows {
        let mut stage = Stage::new();
        stage.note(what.clone());
        assert_eq!(stage.texts("vm5"), [text], "{what:?}");
    }
}

#[test]
fn a_restart_is_told_with_the_time_that_it_took() {
    let mut stage = Stage::new();
    let (instance, name) = (stage.id("vm5"), || "vm5".to_owned());
    let (node, run) = (NodeId(2), RunId(7));
    let (how, decision) = ("it was killed".into(), "It is started again.".into());
    stage.note(Happening::Crashed { instance, name: name(), node, run, how, decision });
    stage.note(Happening::Started { instance, name: name(), node, run: RunId(8) });
    stage.note(Happening::Started { instance, name: name(), node, run: RunId(9) });
    let texts = stage.texts("vm5");
    assert_eq!(texts[1], "vm5 runs on node02 (run 8), 0.25 s after its end was seen.");
    assert_eq!(texts[2], "vm5 runs on node02 (run 9).", "what came before has its answer already");
}

const BOTH: &str = "disk/0 is in sync on node02 and node01.";

/// Each row: what is done to the stage, how vm5 is then.
#[test]
fn how_an_instance_is_now() {
    type Row = (&'static str, fn(&mut Stage), &'static [&'static str]);
    let rows: &[Row] = &[
        (
            "it runs",
            |_| {},
            &[
                "vm5 runs on node02 (run 3).",
                BOTH,
                "If node02 dies, node01 takes it over: node01 has all data of it in sync and 700 MiB free.",
            ],
        ),
        (
            "its copy elsewhere is old",
            |stage| stage.outdate(1),
            &[
                "vm5 runs on node02 (run 3).",
                "disk/0 is in sync on node02 only; the copy on node01 is older, it has not followed since version 1.2.",
                "If node02 dies, nobody takes it over: no other node can run it with its data: the replica of disk/0 on node01 \
                 is not in sync: it left in version 1.2.",
            ],
        ),
        (
            "its node does not answer",
            |stage| stage.known.facts.clear(),
            &[
                "vm5 belongs to node02 (run 3), which does not answer: it is not known whether it runs.",
                BOTH,
                "If node02 dies, node01 takes it over: node01 has all data of it in sync and 700 MiB free.",
            ],
        ),
        (
            "it was stopped by the guard",
            |stage| {
                let facts = stage.known.facts.get_mut(&NodeId(2)).unwrap();
                facts.instances.iter_mut().for_each(|live| live.state = "paused".into());
            },
            &[
                "vm5 is on node02 (run 3), but its guest does not go on: it is paused.",
                BOTH,
                "If node02 dies, node01 takes it over: node01 has all data of it in sync and 700 MiB free.",
            ],
        ),
        (
            "it is not to run",
            |stage| {
                let want = Some(model::AdminState::Down);
                stage.run(Command::Disown { instance: stage.id("vm5"), run: RunId(3), want });
            },
            &["vm5 is stopped, and is not to run.", BOTH],
        ),
        (
            "nobody has it",
            |stage| {
                stage.run(Command::Disown { instance: stage.id("vm5"), run: RunId(3), want: None });
            },
            &[
                "vm5 does not run, although it should: it ended, and no node has the right to run it. 'gnt-instance startup \
                 vm5' starts it.",
                BOTH,
            ],
        ),
        (
            "it is about to be taken over",
            |stage| stage.die(2),
            &[
                "vm5 does not run: node02, which had it, is dead.",
                "It is about to be given to node01: node01 has all data of it in sync and 700 MiB free.",
                "disk/0 is in sync on node01 only; the copy on node02 (dead) is older, it has not followed since version 1.2.",
            ],
        ),
        (
            "its only good copy is on a dead node",
            |stage| {
                stage.outdate(1);
                stage.die(2);
            },
            &[
                "vm5 does not run: node02, which had it, is dead.",
                "Nobody takes it over: no other node can run it with its data: the replica of disk/0 on node01 is not in \
                 sync: it left in version 1.2.",
                "It goes on by itself when node02 is back. If node02 is surely off and stays so, 'gnt-instance failover \
                 --ignore-consistency vm5' starts it on node01 from the copies there ('gnt-node failover \
                 --ignore-consistency node02': all of its instances); what only node02 had is lost then.",
                "disk/0 is in sync on node02 (dead) only; the copy on node01 is older, it has not followed since version 1.2.",
            ],
        ),
        (
            "after a forced recovery",
            |stage| {
                stage.run(Command::Found {
                    incarnation: Incarnation { n: 2, id: Uuid::from_u128(7) },
                    fork_point: ForkPoint { term: 7, index: 70 },
                    node: Some(NodeId(1)),
                    off: vec![NodeId(2), NodeId(3)],
                });
            },
            &[
                "vm5 does not run: node02, which had it, is dead.",
                "Nobody takes it over: disk/0 is doubtful since the forced recovery of the cluster.",
                "It goes on by itself when node02 is back. If node02 is surely off and stays so, 'gnt-instance failover \
                 --ignore-consistency vm5' starts it on node01 from the copies there ('gnt-node failover \
                 --ignore-consistency node02': all of its instances); what only node02 had is lost then.",
                "disk/0 is in sync on node01 only; the copy on node02 (dead) is older, it has not followed since version 1.2; \
                 after the forced recovery that proves nothing: nobody knows which copy has the newest writes.",
            ],
        ),
    ];
    for (what, make, expected) in rows {
        let mut stage = Stage::new();
        make(&mut stage);
        assert_eq!(stage.why("vm5").now, *expected, "{what}");
    }
}

#[test]
fn an_instance_that_was_removed_is_remembered() {
    let mut stage = Stage::new();
    stage.note(Happening::NotTakenOver { instance: stage.id("vm5"), name: "vm5".into(), reason: "no room".into() });
    stage.state.instances.clear();
    let why = stage.why("vm5");
    assert_eq!(why.now, ["vm5 is not in the cluster any more."]);
    assert_eq!(why.events.len(), 1);
    let failure = super::why(&stage.state, &stage.known, "vm77").unwrap_err();
    assert!(failure.text.contains("Instance or node 'vm77' not known"), "{failure:?}");
}

#[test]
fn how_a_node_is_now() {
    let mut stage = Stage::new();
    assert_eq!(
        stage.why("node02").now,
        [
            "node02 is a member in life 2.",
            "It is armed: it stops its guests when its lease ends, so it is declared dead without an operator.",
            "Its newest lease was granted 0.12 s ago.",
            "It has the right to run vm3 and vm5.",
            "If it dies, nobody takes vm3 over: it has no disks, and without them nothing would keep two of it from running.",
            "If it dies, node01 takes vm5 over: node01 has all data of it in sync and 700 MiB free.",
        ]
    );
    assert_eq!(stage.why("node01").now[0], "node01 is the master (term 7).");
    assert_eq!(stage.why("node03").now, ["node03 is a member in life 3.", "It runs no instances."]);
    stage.run(Command::Disarm { node: NodeId(2) });
    stage.known.unarmed.insert(NodeId(2), "its guard does not ask for the node's lease".into());
    let now = stage.why("node02").now;
    assert_eq!(
        now[1],
        "It is not armed, so only an operator can say that it is dead: its guard does not ask for the node's lease."
    );
    assert!(now[5].ends_with("disk/0 is in manual mode: node02, which has a replica of it, is not armed."), "{now:?}");
    let life = stage.state.nodes[&NodeId(2)].life;
    stage.run(Command::NodeDead { node: NodeId(2), life, evidence: Evidence::AssertedOff });
    let now = stage.why("node02").now;
    assert_eq!(now[0], "node02 is dead: its life 2 has ended. When it is back it begins another one.");
}

#[test]
fn the_bound_takes_what_was_measured_or_else_what_is_allowed() {
    let mut stage = Stage::new();
    let of = |stage: &Stage, name: &str| {
        bounds(&stage.state, &stage.known).into_iter().find(|bound| bound.instance == name).unwrap()
    };
    let terms = |terms: &[(&str, u64)]| terms.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect::<Vec<_>>();
    let bound = of(&stage, "vm5");
    assert_eq!(
        bound.terms,
        terms(&[("election", 650), ("wait", 1451), ("commit", 50), ("promote", 50), ("start", 500)])
    );
    assert_eq!((bound.node.as_str(), bound.total_ms), ("node02", Some(2051)));
    assert!(bound.note.unwrap().contains("not measured") || of(&stage, "vm5").note.unwrap().starts_with("no takeover"));

    for (name, why) in [
        ("vm3", "it has no disks, and without them nothing would keep two of it from running"),
        ("vm2", "it is not to run"),
    ] {
        let bound = of(&stage, name);
        assert_eq!((bound.total_ms, bound.note.as_deref()), (None, Some(why)), "{name}");
    }

    // Taken over and back: 0.25 s, and 0.5 s.
    let (instance, name) = (stage.id("vm5"), || "vm5".to_owned());
    stage.die(2);
    let run = stage.take_over(1);
    stage.note(Happening::Started { instance, name: name(), node: NodeId(1), run });
    stage.note(Happening::TakenOver {
        instance,
        name: name(),
        from: NodeId(1),
        to: NodeId(2),
        run,
        reason: "x".into(),
    });
    stage.note(Happening::NotStarted { instance, name: name(), node: NodeId(2), run, reason: "x".into() });
    stage.note(Happening::Started { instance, name: name(), node: NodeId(2), run });
    stage.run(Command::JoinNode { node: NodeId(2), boot: "boot2".into(), previous: Life(2), runs: vec![] });
    let mirror = stage.state.instance_by_name("vm5").unwrap().disks[0].mirror.clone().unwrap();
    let replica = mirror.replica_on(NodeId(2)).unwrap().0;
    let (by, epoch, ver) = (mirror.primary.unwrap(), mirror.epoch, mirror.ver);
    stage.run(Command::InSync {
        disk: stage.disk(),
        by,
        epoch,
        ver,
        replica,
        life: stage.state.nodes[&NodeId(2)].life,
    });
    let bound = of(&stage, "vm5");
    assert_eq!(bound.terms, terms(&[("election", 650), ("wait", 1451), ("measured", 500)]));
    assert_eq!(
        (bound.total_ms, bound.note.as_deref()),
        (Some(1951), Some("commit, promotion and start as they were measured in 2 takeovers, the slowest"))
    );
}

#[test]
fn the_plan_says_what_goes_where_and_whether_it_happens_by_itself() {
    let stage = Stage::new();
    let all = plans(&stage.state, &stage.known, &[]).unwrap();
    assert_eq!(all.iter().map(|plan| plan.node.as_str()).collect::<Vec<_>>(), ["node01", "node02", "node04"]);
    let plan = &all[1];
    assert!(plan.automatic && plan.note.is_none());
    let moves: Vec<_> =
        plan.instances.iter().map(|it| (it.instance.as_str(), it.to.as_deref(), it.memory_mib)).collect();
    assert_eq!(moves, [("vm3", None, 64), ("vm5", Some("node01"), 64)]);
    assert!(plans(&stage.state, &stage.known, &["vm1".into()]).is_err());
}

/// Each row: what is done to the stage, why nothing would happen by itself.
#[test]
fn the_plan_says_why_nothing_happens_by_itself() {
    type Row = (&'static str, fn(&mut Stage), Option<&'static str>);
    let rows: &[Row] = &[
        ("all is well", |_| {}, None),
        ("dead", |stage| stage.die(2), Some("it is dead already")),
        (
            "not armed",
            |stage| {
                stage.run(Command::Disarm { node: NodeId(2) });
                stage.known.unarmed.insert(NodeId(2), "it is marked offline".into());
            },
            Some("it is not armed: it is marked offline"),
        ),
        (
            "one voter",
            |stage| stage.known.voters = [NodeId(1)].into(),
            Some("3 nodes have to vote for that, and 1 does"),
        ),
        (
            "the witness is silent",
            |stage| {
                stage.known.ages.insert(NodeId(3), Duration::from_secs(60));
            },
            Some("without it 1 of 3 votes are left, which is no majority: node03 is silent already"),
        ),
    ];
    for (what, make, expected) in rows {
        let mut stage = Stage::new();
        make(&mut stage);
        let plan = plans(&stage.state, &stage.known, &["node02".into()]).unwrap().remove(0);
        assert_eq!((plan.note.as_deref(), plan.automatic), (*expected, expected.is_none()), "{what}");
    }
}

#[test]
fn leases_are_told_of_every_node() {
    let mut stage = Stage::new();
    let change = NodeChange { offline: Some(true), ..NodeChange::default() };
    stage.run(Command::ModifyNode { node: NodeId(4), change });
    stage.known.unarmed.insert(NodeId(4), "it is marked offline".into());
    stage.die(2);
    let leases = status(&stage.state, &stage.known);
    let shown: Vec<_> =
        leases.iter().map(|it| (it.node.as_str(), it.dead, it.armed, it.age_ms, it.note.as_deref())).collect();
    assert_eq!(
        shown,
        [
            ("node01", false, true, Some(120), None),
            ("node02", true, true, Some(120), None),
            ("node03", false, true, Some(120), None),
            ("node04", false, false, None, Some("it is marked offline")),
        ]
    );
}
