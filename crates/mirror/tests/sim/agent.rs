//! What the agents and the jobs of the cluster do about the instance: starting it where it can run, planned failovers,
//! live migrations, and (as later the master will) taking it over from a node that is cut off.

use mirror::engine::{Event, Notice, RoleStatus};
use model::{Applied, Command, NodeLife, RunId, Uuid};

use crate::guest;
use crate::log::{INSTANCE, boot_name, index, node_id};
use crate::rng::Rng;
use crate::world::{Ev, World};

/// What is going on on purpose.
#[derive(Clone, Debug, PartialEq)]
pub enum Doing {
    Nothing,
    /// The guest was stopped, and its disk is being released; where it shall start.
    Failover {
        run: RunId,
        to: usize,
    },
    /// A live migration, and what has been done of it.
    Migration {
        id: Uuid,
        run: RunId,
        from: usize,
        to: usize,
        quiesced: bool,
        give_up_at: u64,
    },
    /// A node's life was ended although it runs; it joins again at that time.
    Zombie {
        node: usize,
        run: Option<RunId>,
        until: u64,
    },
}

#[derive(Debug)]
pub struct Agent {
    pub doing: Doing,
    migrations: u128,
    /// Where the instance shall start next.
    next_home: Option<usize>,
    next_view: u64,
    suspended_since: Option<u64>,
}

impl Agent {
    pub fn new(_rng: &mut Rng) -> Self {
        Self { doing: Doing::Nothing, migrations: 0, next_home: None, next_view: 0, suspended_since: None }
    }

    pub fn is_busy(&self) -> bool {
        self.doing != Doing::Nothing
    }
}

/// Looks at what is, and does what is due.
pub fn act(world: &mut World) {
    let pause = world.rng.range(5_000, 30_000);
    world.after(pause, Ev::Agent);
    if world.now >= world.agent.next_view {
        world.agent.next_view = world.now + 200_000;
        world.changed();
    }
    if !world.faults {
        for node in 0..world.nodes.len() {
            match world.nodes[node].up {
                true => world.start_daemon(node),
                false => world.after(0, Ev::Boot(node)),
            }
        }
    }
    give_up_suspended(world);
    get_on(world);
    match world.owner() {
        None => own(world),
        Some(owner) => serve(world, owner),
    }
}

/// A guest whose only member has lost what it had answered can't go on: an operator kills it, and it is started where the
/// member is.
fn give_up_suspended(world: &mut World) {
    let Some(owner) = world.owner() else { return };
    let suspended = world.nodes[owner].daemon.as_ref().is_some_and(|daemon| daemon.status().suspended);
    if !suspended {
        world.agent.suspended_since = None;
        return;
    }
    let since = *world.agent.suspended_since.get_or_insert(world.now);
    let Some(run) = world.log.instance().run.filter(|_| world.now - since > 3_000_000) else { return };
    world.note(|| format!("agent: run {run} is given up, its last member is lost"));
    guest::stop(world);
    world.agent.doing = Doing::Nothing;
    if world.log.apply(Command::Disown { instance: INSTANCE, run, want: None }).is_ok() {
        world.changed();
    }
}

/// The instance runs nowhere: start it.
fn own(world: &mut World) {
    if matches!(world.agent.doing, Doing::Failover { .. }) || world.faults && world.rng.chance(70) {
        return;
    }
    let log = &world.log;
    let can = |node: &usize| {
        let here = &world.nodes[*node];
        here.up
            && here.daemon.is_some()
            && log.boot(*node) == boot_name(*node, here.boot)
            && log.mirror().is_member_on(node_id(*node))
    };
    let mut able: Vec<usize> = (0..world.nodes.len()).filter(can).collect();
    let intact = |node: &usize| {
        let member = log.mirror().replica_on(node_id(*node)).and_then(|(_, replica)| replica.member.clone());
        member.as_deref() == Some(log.boot(*node))
    };
    if able.iter().any(intact) {
        able.retain(intact);
    }
    let wish = world.agent.next_home.take().filter(|home| able.contains(home));
    let Some(node) = wish.or_else(|| world.rng.pick(&able).copied()) else { return };
    // What was left of the last run is gone.
    if let Ok(Applied::Run(run)) = world.log.apply(Command::Own { instance: INSTANCE, node: node_id(node) }) {
        guest::begin(world, node, run);
        world.changed();
        let view = world.log.view();
        world.tell(node, Event::Promote(view));
    }
}

/// The instance has a home: it is served there, and given back if its guest is gone.
fn serve(world: &mut World, owner: usize) {
    let Some(daemon) = &world.nodes[owner].daemon else { return };
    let epoch = world.log.mirror().epoch;
    let status = daemon.status();
    if status.role == RoleStatus::Secondary && world.agent.doing_failover().is_none() {
        let view = world.log.view();
        world.tell(owner, Event::Promote(view));
    }
    let run = world.log.instance().run;
    let lives = world.guest.alive && Some(world.guest.run) == run && world.guest.node == owner;
    if !lives && world.agent.doing == Doing::Nothing && status.epoch == epoch {
        fail_over(world, owner);
    }
}

impl Agent {
    fn doing_failover(&self) -> Option<usize> {
        match self.doing {
            Doing::Failover { to, .. } => Some(to),
            _ => None,
        }
    }
}

/// Stops the guest and gives the disk back; it is started somewhere else, or in the same place.
pub fn fail_over(world: &mut World, owner: usize) {
    let Some(run) = world.log.instance().run else { return };
    let to = world.rng.range(0, world.nodes.len() as u64) as usize;
    world.agent.doing = Doing::Failover { run, to };
    world.note(|| format!("agent: failover of run {run} from node {owner} to node {to}"));
    guest::stop(world);
    world.tell(owner, Event::EndRun(run));
    world.tell(owner, Event::Release);
}

/// Begins a live migration.
pub fn migrate(world: &mut World, from: usize, to: usize) {
    world.agent.migrations += 1;
    let id = Uuid::from_u128(0x3160_0000 + world.agent.migrations);
    let prepare = Command::Prepare { instance: INSTANCE, migration: id, to: node_id(to) };
    if let Ok(Applied::Run(run)) = world.log.apply(prepare) {
        world.note(|| format!("agent: migration {id} from node {from} to node {to} as run {run}"));
        let give_up_at = world.now + world.rng.range(20_000, 3_000_000);
        world.agent.doing = Doing::Migration { id, run, from, to, quiesced: false, give_up_at };
        world.changed();
        world.tell(to, Event::Standby(run));
        // Its hypervisor looks at the first sector.
        world.guest.paused = true;
    }
}

/// Ends a node's life in the log while it still runs: its lease is over, its guest is stopped.
pub fn take_over(world: &mut World, node: usize) {
    let run = world.log.instance().run;
    world.note(|| format!("agent: node {node} is declared dead"));
    world.tell(node, Event::Lease(false));
    guest::stop(world);
    let boot = format!("nowhere-{}", world.now);
    world.log.join(node, boot, Vec::new());
    world.changed();
    let until = world.now + world.rng.range(50_000, 2_000_000);
    world.agent.doing = Doing::Zombie { node, run, until };
}

/// Gets on with what is going on.
fn get_on(world: &mut World) {
    match world.agent.doing.clone() {
        Doing::Nothing => {}
        Doing::Failover { run, to } => {
            if world.log.instance().run != Some(run) {
                world.agent.doing = Doing::Nothing;
                world.agent.next_home = Some(to);
            } else if let Some(owner) = world.owner() {
                let view = world.log.view();
                let role = world.nodes[owner].daemon.as_ref().map(|daemon| daemon.status().role);
                // After a restart of the daemon the disk has to be opened again to be ended in order.
                if role == Some(RoleStatus::Secondary) {
                    world.tell(owner, Event::Promote(view));
                }
                world.tell(owner, Event::EndRun(run));
                world.tell(owner, Event::Release);
            } else {
                world.agent.doing = Doing::Nothing;
            }
        }
        Doing::Migration { id, run, from, to, quiesced, give_up_at } => {
            get_on_migrating(world, id, run, from, to, quiesced, give_up_at);
        }
        Doing::Zombie { node, run, until } => {
            if world.now >= until || !world.faults {
                let boot = boot_name(node, world.nodes[node].boot);
                if world.nodes[node].up && world.log.boot(node) != boot {
                    let life = world.log.join(node, boot, Vec::new());
                    world.nodes[node].life = life;
                    world.changed();
                    world.tell(node, Event::Life(life));
                    world.tell(node, Event::Lease(true));
                    if let Some(run) = run {
                        world.tell(node, Event::EndRun(run));
                    }
                }
                world.agent.doing = Doing::Nothing;
            }
        }
    }
}

fn get_on_migrating(world: &mut World, id: Uuid, run: RunId, from: usize, to: usize, quiesced: bool, give_up_at: u64) {
    let instance = world.log.instance();
    let over = instance.migration.is_none_or(|migration| migration.id != id);
    if over {
        world.agent.doing = Doing::Nothing;
        let owner = instance.owner.map(|owner| index(owner.node));
        if world.log.handed_over.contains(&id) {
            if world.guest.alive && owner == Some(to) && world.nodes[to].up {
                guest::moved(world, to, run);
            } else {
                guest::stop(world);
            }
            let view = world.log.view();
            world.tell(to, Event::Promote(view));
        } else {
            // Cancelled, or the source's life has ended.
            world.guest.paused = false;
            world.tell(to, Event::EndRun(run));
            world.tell(from, Event::Resume(id));
        }
        return;
    }
    if world.now >= give_up_at {
        decide(world, Command::Cancel { migration: id });
    } else if quiesced {
        decide(world, Command::Handover { migration: id });
    } else if world.guest.is_quiet() {
        world.tell(from, Event::Quiesce(id));
    }
    // Once in a while both are under way: a job and the master that took over from it.
    if world.now >= give_up_at && world.rng.chance(30) {
        decide(world, Command::Handover { migration: id });
    }
}

fn decide(world: &mut World, command: Command) {
    if world.log_down && world.faults {
        return;
    }
    world.note(|| format!("agent: {command:?}"));
    if world.log.apply(command).is_ok() {
        world.changed();
    }
}

/// An engine reports.
pub fn told(world: &mut World, node: usize, notice: &Notice) {
    world.note(|| format!("node {node}: {notice:?}"));
    match (notice, world.agent.doing.clone()) {
        (Notice::Released, Doing::Failover { run, .. }) if world.owner() == Some(node) => {
            let by = NodeLife { node: node_id(node), life: world.nodes[node].life };
            if world.log.instance().owner == Some(by)
                && world.log.apply(Command::Disown { instance: INSTANCE, run, want: None }).is_ok()
            {
                world.changed();
            }
        }
        (Notice::Quiesced { migration, .. }, Doing::Migration { id, run, from, to, give_up_at, .. })
            if *migration == id && node == from =>
        {
            world.agent.doing = Doing::Migration { id, run, from, to, quiesced: true, give_up_at };
        }
        _ => {}
    }
}
