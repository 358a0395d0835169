//! How an instance or a node is now, in sentences.

use ha::takeover::{plan, rehearse};
use model::{AdminState, Disk, Instance, NodeId, NodeLife, Provision, State};

use super::sentences::full;
use super::{Known, listed, named, seconds};

/// Where an instance runs, or why it does not; how its disks are; what happens if its node dies.
pub fn instance(state: &State, known: &Known, instance: &Instance) -> Vec<String> {
    let name = &instance.name;
    let owner = instance.owner;
    let mut now = match instance.provision {
        Provision::Creating(job) => vec![format!("{name} is being made, by job {job}.")],
        Provision::Removing(job) => vec![format!("{name} is being removed, by job {job}.")],
        Provision::Converting(job) => vec![format!("The disks of {name} are being converted, by job {job}.")],
        Provision::Ready => match owner {
            None => vec![idle(instance)],
            Some(owner) if state.is_void(owner) => orphaned(state, known, instance, owner),
            Some(owner) => vec![owned(state, known, instance, owner)],
        },
    };
    if let Some(migration) = instance.migration {
        let to = state.node_name(migration.to.node);
        now.push(format!("It is moving to {to}: until that is decided it belongs to the node that has it."));
    }
    now.extend(instance.disks.iter().enumerate().map(|(index, it)| disk(state, instance, index, it)));
    now.extend(owner.and_then(|owner| prospect(state, known, instance, owner)));
    now
}

/// Nobody has it.
fn idle(instance: &Instance) -> String {
    let name = &instance.name;
    match instance.want {
        AdminState::Down => format!("{name} is stopped, and is not to run."),
        AdminState::Offline => format!("{name} is stopped and marked offline."),
        AdminState::Up => format!(
            "{name} does not run, although it should: it ended, and no node has the right to run it. 'gnt-instance startup \
             {name}' starts it."
        ),
    }
}

/// A node has it in its current life.
fn owned(state: &State, known: &Known, instance: &Instance, owner: NodeLife) -> String {
    let (name, node) = (&instance.name, state.node_name(owner.node));
    let run = instance.run.map(|run| format!(" (run {run})")).unwrap_or_default();
    let Some(facts) = known.facts.get(&owner.node) else {
        return format!("{name} belongs to {node}{run}, which does not answer: it is not known whether it runs.");
    };
    match facts.instances.iter().find(|live| Some(live.run) == instance.run) {
        Some(live) if live.state == "running" => format!("{name} runs on {node}{run}."),
        Some(live) => format!("{name} is on {node}{run}, but its guest does not go on: it is {}.", live.state),
        None if instance.want == AdminState::Up => {
            format!(
                "{name} should run on {node}{run}, but it is not there: it has just ended, or is just being started."
            )
        }
        None => format!("{name} was on {node}{run} and has ended there."),
    }
}

/// The life of the node that had it has ended.
fn orphaned(state: &State, known: &Known, instance: &Instance, owner: NodeLife) -> Vec<String> {
    let (name, had) = (&instance.name, state.node_name(owner.node));
    let past = match state.nodes.get(&owner.node) {
        None => "has left the cluster",
        Some(node) if node.dead => "is dead",
        Some(_) => "has been booted anew since",
    };
    let mut now = vec![format!("{name} does not run: {had}, which had it, {past}.")];
    if instance.want != AdminState::Up {
        now.push(format!("It is not to run either: it is configured to be {}.", instance.want.word()));
        return now;
    }
    let choice = plan(state, &known.rooms).into_iter().find(|choice| choice.instance == instance.id);
    match choice.map(|choice| choice.to) {
        Some(Ok((to, why))) => now.push(format!("It is about to be given to {}: {}", state.node_name(to), full(&why))),
        Some(Err(why)) => {
            now.push(format!("Nobody takes it over: {}", full(&why)));
            now.extend(way_out(state, instance, owner));
        }
        None => {}
    }
    now
}

/// What an operator can do about an instance that nobody may take over.
fn way_out(state: &State, instance: &Instance, owner: NodeLife) -> Option<String> {
    let has_all = |node: &NodeId| {
        let has = |disk: &Disk| disk.mirror.as_ref().is_some_and(|mirror| mirror.replica_on(*node).is_some());
        instance.disks.iter().all(has)
    };
    let to = instance.secondaries.iter().find(|node| has_all(node) && state.live(**node).is_some())?;
    let (had, to, name) = (state.node_name(owner.node), state.node_name(*to), &instance.name);
    if instance.disks.iter().any(|disk| disk.mirror.is_none()) {
        return None;
    }
    Some(format!(
        "It goes on by itself when {had} is back. If {had} is surely off and stays so, 'gnt-instance failover \
         --ignore-consistency {name}' starts it on {to} from the copies there ('gnt-node failover --ignore-consistency {had}': \
         all of its instances); what only {had} had is lost then."
    ))
}

fn disk(state: &State, instance: &Instance, index: usize, disk: &Disk) -> String {
    let Some(mirror) = &disk.mirror else {
        return format!("disk/{index} is a file on {} alone.", state.node_name(instance.primary));
    };
    let dead = |node: NodeId| state.nodes.get(&node).is_none_or(|node| node.dead);
    let with_state = |node: NodeId| {
        let name = state.node_name(node);
        if dead(node) { format!("{name} (dead)") } else { name }
    };
    // The one where it lives first.
    let mut replicas: Vec<_> = mirror.replicas.values().collect();
    replicas.sort_by_key(|replica| (replica.node != instance.primary, replica.node));
    let members = replicas.iter().filter(|replica| replica.member.is_some());
    let members: Vec<String> = members.map(|replica| with_state(replica.node)).collect();
    let only = if members.len() == 1 { " only" } else { "" };
    let mut text = format!("disk/{index} is in sync on {}{only}", listed(&members));
    for replica in replicas.iter().filter(|replica| replica.member.is_none()) {
        let node = with_state(replica.node);
        if replica.left.v == 0 {
            text += &format!("; the copy on {node} is not complete yet");
        } else {
            text += &format!("; the copy on {node} is older, it has not followed since version {}", replica.left);
        }
    }
    if mirror.doubtful {
        text += "; after the forced recovery that proves nothing: nobody knows which copy has the newest writes";
    }
    text + "."
}

/// What happens to a running instance if its node dies.
fn prospect(state: &State, known: &Known, instance: &Instance, owner: NodeLife) -> Option<String> {
    let choices = rehearse(state, owner.node, &known.rooms);
    let choice = choices.into_iter().find(|choice| choice.instance == instance.id)?;
    let node = state.node_name(owner.node);
    Some(match choice.to {
        Ok((to, why)) => format!("If {node} dies, {} takes it over: {}", state.node_name(to), full(&why)),
        Err(why) => format!("If {node} dies, nobody takes it over: {}", full(&why)),
    })
}

/// How a node is, and what happens if it dies.
pub fn node(state: &State, known: &Known, id: NodeId) -> Vec<String> {
    let Some(node) = state.nodes.get(&id) else { return Vec::new() };
    let name = &node.name;
    let mut now = Vec::new();
    if let Some(office) = state.office.filter(|office| office.node == id) {
        now.push(format!("{name} is the master (term {}).", office.term));
    }
    now.push(match state.live(id) {
        Some(at) => format!("{name} is a member in life {}.", at.life),
        None if node.dead => {
            format!("{name} is dead: its life {} has ended. When it is back it begins another one.", node.life)
        }
        None => format!("{name} has not joined yet."),
    });
    if node.offline {
        now.push(
            "It is marked offline: it is not asked for anything ('gnt-node modify --offline=no' ends that).".into(),
        );
    }
    if node.drained {
        now.push("It is marked drained: it gets instances only if nobody else can have them.".into());
    }
    if !node.vm_capable {
        now.push("It runs no instances.".into());
        return now;
    }
    if node.armed {
        now.push(
            "It is armed: it stops its guests when its lease ends, so it is declared dead without an operator.".into(),
        );
    } else {
        let why = known.why_unarmed(state, id);
        now.push(format!("It is not armed, so only an operator can say that it is dead: {}", full(&why)));
    }
    match known.ages.get(&id) {
        Some(age) => now.push(format!("Its newest lease was granted {} ago.", seconds(*age))),
        None => now.push("The master in office has granted it no lease yet.".into()),
    }
    let has = |instance: &&Instance| instance.owner.is_some_and(|owner| owner.node == id && !state.is_void(owner));
    let mut has: Vec<String> = state.instances.values().filter(has).map(|instance| instance.name.clone()).collect();
    has.sort_by(|one, other| opcodes::format::natural_cmp(one, other));
    match has.is_empty() {
        true => now.push("It has no instances to run.".into()),
        false => now.push(format!("It has the right to run {}.", listed(&has))),
    }
    for choice in rehearse(state, id, &known.rooms) {
        let instance = state.instances.get(&choice.instance).map_or_else(String::new, |it| it.name.clone());
        now.push(match choice.to {
            Ok((to, why)) => format!("If it dies, {} takes {instance} over: {}", named(state, [to]), full(&why)),
            Err(why) => format!("If it dies, nobody takes {instance} over: {}", full(&why)),
        });
    }
    now
}
