//! `OP_INSTANCE_CREATE`. Either there is a whole instance afterwards, or nothing and a failure that says why.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{
    AdminState, Command, Disk, DiskId, DiskTemplate, Instance, InstanceChange, InstanceId, Nic, NodeId, ParamValue,
    Params, Provision, State, Timestamp, params,
};
use opcodes::format::{Units, size};
use opcodes::op::{InstanceCreate, NicRequest};
use opcodes::{ErrorCode, Failure};
use serde_json::Value;

use super::instance::start;
use super::spec::{disks, spec};
use super::{attachment, find_node, mirrors, wrong_input, wrong_state};
use crate::agent::Call;
use crate::context::{Context, Halt};

/// Longest run of an operating system's scripts: a day, as in Ganeti.
const INSTALL: Duration = Duration::from_secs(86_400);
/// Most disks and interfaces of an instance (Ganeti's limits).
const MAX_DISKS: usize = 16;
const MAX_NICS: usize = 8;

/// Name of the step that records why a creation is given up. A new master that finds it goes on undoing.
const GIVEN_UP: &str = "given-up";

pub async fn create(ctx: &Context, op: InstanceCreate) -> Result<Value, Halt> {
    let instance = ctx.step("check", || check(ctx, &op)).await?;
    if let Some(failure) = ctx.recorded::<Failure>(GIVEN_UP)? {
        return undo(ctx, &instance, failure).await;
    }
    match build(ctx, &op, &instance).await {
        Ok(()) => {}
        Err(Halt::Failed(failure)) => {
            let failure = ctx.step(GIVEN_UP, || async { Ok(failure) }).await?;
            return undo(ctx, &instance, failure).await;
        }
        Err(halt) => return Err(halt),
    }
    if op.start {
        ctx.say("* starting instance...").await?;
        start(ctx, instance.id, &Params::new(), &Params::new(), false).await?;
    }
    let state = ctx.state();
    let nodes: Vec<String> =
        std::iter::once(instance.primary).chain(instance.secondaries).map(|id| state.node_name(id)).collect();
    Ok(nodes.into())
}

/// Makes disks, installs, and marks the instance as complete.
async fn build(ctx: &Context, op: &InstanceCreate, instance: &Instance) -> Result<(), Halt> {
    for (index, disk) in instance.disks.iter().enumerate() {
        ctx.say(format!("* disk {index}, size {}", size(disk.size_mib as f64, Units::Human))).await?;
    }
    ctx.say("* creating instance disks...").await?;
    for disk in disks(&ctx.state(), instance) {
        for node in mirrors::holders(instance, &disk.disk) {
            let name = format!("disk-{}-{node}", disk.index);
            let call = Call::CreateDisk(disk.clone());
            ctx.step(&name, || async { ctx.call(node, call).await.map(|_| ()) }).await?;
        }
    }
    ctx.say(format!("adding instance {} to cluster config", instance.name)).await?;
    ctx.commit("add", vec![Command::AddInstance(Box::new(instance.clone()))]).await?;
    ctx.say("adding disks to cluster config").await?;
    if !op.no_install && instance.disk_template != DiskTemplate::Diskless {
        install(ctx, instance).await?;
    }
    let change = InstanceChange {
        provision: Some(Provision::Ready),
        want: Some(if op.start { AdminState::Up } else { AdminState::Down }),
        ..InstanceChange::default()
    };
    ctx.commit("ready", vec![Command::ModifyInstance { instance: instance.id, change: Box::new(change) }]).await?;
    Ok(())
}

/// Runs the operating system's scripts, on disks that the host has attached meanwhile if they are mirrored.
async fn install(ctx: &Context, instance: &Instance) -> Result<(), Halt> {
    let run = match instance.disk_template {
        DiskTemplate::Drbd => Some(attachment::own(ctx, "host-own", instance.id).await?),
        _ => None,
    };
    ctx.say("* running the instance OS create scripts...").await?;
    let spec = Box::new(spec(&ctx.state(), instance, &Params::new(), &Params::new()));
    ctx.step("install", || async {
        attachment::check_still(ctx, instance.id, run)?;
        ctx.call_within(instance.primary, Call::InstallSystem { spec, run }, INSTALL).await.map(drop)
    })
    .await?;
    if let Some(run) = run {
        // What the scripts may have left running has no business with the disks any more.
        ctx.step("host-detach", || attachment::detach(ctx, instance.id, Some(run), true)).await?;
        ctx.commit("host-disown", vec![Command::Disown { instance: instance.id, run, want: None }]).await?;
    }
    Ok(())
}

/// Takes away what was made, then reports why.
async fn undo(ctx: &Context, instance: &Instance, failure: Failure) -> Result<Value, Halt> {
    let run = ctx.state().instances.get(&instance.id).and_then(|instance| instance.run);
    if run.is_some()
        && let Err(halt) = attachment::detach(ctx, instance.id, run, true).await
    {
        let Halt::Failed(why) = halt else { return Err(halt) };
        ctx.warn(format!("Could not detach the disks of '{}': {}", instance.name, why.text)).await?;
    }
    for disk in disks(&ctx.state(), instance) {
        let index = disk.index;
        for node in mirrors::holders(instance, &disk.disk) {
            match ctx.call(node, Call::RemoveDisk(disk.clone())).await {
                Err(Halt::Failed(why)) => {
                    let name = ctx.state().node_name(node);
                    ctx.warn(format!(
                        "Could not remove disk {index} of '{}' on node '{name}': {}",
                        instance.name, why.text
                    ))
                    .await?;
                }
                outcome => {
                    outcome?;
                }
            }
        }
    }
    if ctx.state().instances.contains_key(&instance.id) {
        // Nobody can miss what was on the disks, whatever may still have them open.
        let mut commands: Vec<Command> =
            run.and_then(|run| attachment::disown(ctx, instance.id, run)).into_iter().collect();
        commands.push(Command::RemoveInstance { instance: instance.id });
        ctx.commit("undo", commands).await?;
    }
    Err(failure.into())
}

/// Refuses what can't work, before anything is made. The result is the whole plan: a repetition makes the same thing.
async fn check(ctx: &Context, op: &InstanceCreate) -> Result<Instance, Halt> {
    let state = ctx.state();
    let Some(cluster) = &state.cluster else {
        return Err(Failure::not_a_cluster().into());
    };
    check_name(&op.instance_name)?;
    if state.instance_by_name(&op.instance_name).is_some() {
        return Err(Failure::refused(
            ErrorCode::AlreadyExists,
            format!("Instance '{}' is already in the cluster", op.instance_name),
        )
        .into());
    }
    let hypervisor = match &op.hypervisor {
        Some(name) => name.clone(),
        None => cluster.hypervisors.first().cloned().unwrap_or_default(),
    };
    if !cluster.hypervisors.contains(&hypervisor) {
        return Err(wrong_state(format!(
            "Selected hypervisor ({hypervisor}) not enabled in the cluster ({})",
            cluster.hypervisors.join(",")
        ))
        .into());
    }
    let template = op.disk_template.or(cluster.disk_templates.first().copied()).unwrap_or(DiskTemplate::File);
    check_template(&state, template)?;
    let (primary, secondaries) = chosen_nodes(&state, op, template)?;
    let refused = |error: params::ParamError| Halt::from(wrong_input(error.to_string()));
    let hvparams = params::check(params::hypervisor(&hypervisor).unwrap_or(&[]), &op.hvparams).map_err(refused)?;
    let beparams = params::check(params::BACKEND, &op.beparams).map_err(refused)?;
    check_memory_bounds(&state.filled_beparams(&beparams))?;
    let os = match &op.os_type {
        Some(os) => os.clone(),
        None if op.no_install => String::new(),
        None => return Err(wrong_input("No guest OS or OS image specified").into()),
    };
    if op.name_check {
        let address = ctx.resolve(&op.instance_name).await?;
        if op.ip_check && ctx.world().answers(address, opcodes::wire::NODE_PORT).await {
            return Err(Failure::refused(
                ErrorCode::ResourceNotUnique,
                format!("IP {address} of instance {} already in use", op.instance_name),
            )
            .into());
        }
    }
    let instance = Instance {
        id: InstanceId(ctx.new_uuid()),
        name: op.instance_name.clone(),
        provision: Provision::Creating(ctx.job()),
        primary,
        disks: plan_disks(ctx, &state, op, template, primary, &secondaries)?,
        secondaries,
        want: AdminState::Down,
        owner: None,
        run: None,
        migration: None,
        hypervisor,
        os,
        hvparams,
        beparams,
        osparams: op.osparams.clone(),
        disk_template: template,
        nics: plan_nics(ctx, &state, &op.nics)?,
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        tags: op.tags.clone(),
    };
    check_space(ctx, &state, &instance, op.start).await?;
    let spec = Box::new(spec(&state, &instance, &Params::new(), &Params::new()));
    for node in mirrors::nodes_of(&instance) {
        // The scripts run on the primary node alone.
        let install = node == primary && !op.no_install && template != DiskTemplate::Diskless;
        ctx.call(node, Call::CheckInstance { spec: spec.clone(), install }).await?;
    }
    Ok(instance)
}

/// Refuses a template that the cluster is not to use.
pub fn check_template(state: &State, template: DiskTemplate) -> Result<(), Failure> {
    let enabled = state.cluster.as_ref().map_or(&[][..], |cluster| &cluster.disk_templates);
    if enabled.contains(&template) {
        return Ok(());
    }
    let names: Vec<&str> = enabled.iter().map(|template| template.name()).collect();
    Err(Failure {
        code: None,
        ..wrong_input(format!(
            "Disk template '{template}' is not enabled in cluster. Enabled disk templates are: {}",
            names.join(",")
        ))
    })
}

/// A host name as in RFC 1123; it becomes part of paths.
fn check_name(name: &str) -> Result<(), Failure> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(());
    }
    Err(wrong_input(format!(
        "Invalid instance name '{name}': it has to be a host name of lower-case letters, digits, '-' and '.'"
    )))
}

/// The node that gets it, and those that get further replicas of its disks.
fn chosen_nodes(state: &State, op: &InstanceCreate, template: DiskTemplate) -> Result<(NodeId, Vec<NodeId>), Failure> {
    let Some(name) = &op.pnode else {
        return Err(wrong_input("No primary node given; choose one with '-n NODE'"));
    };
    let primary = mirrors::usable_node(state, name, "primary")?;
    if template == DiskTemplate::Drbd {
        return Ok((primary, vec![mirrors::secondary_node(state, op.snode.as_deref(), primary)?]));
    }
    if let Some(secondary) = &op.snode {
        find_node(state, secondary)?;
        return Err(wrong_input(format!(
            "Disk template '{template}' is not mirrored, so it takes no secondary node ('{secondary}')"
        )));
    }
    Ok((primary, Vec::new()))
}

fn plan_disks(
    ctx: &Context,
    state: &State,
    op: &InstanceCreate,
    template: DiskTemplate,
    primary: NodeId,
    secondaries: &[NodeId],
) -> Result<Vec<Disk>, Failure> {
    match (template, op.disks.len()) {
        (DiskTemplate::Diskless, 0) => return Ok(Vec::new()),
        (DiskTemplate::Diskless, _) => {
            return Err(wrong_input("Instance is diskless, but disks were given"));
        }
        (_, 0) => return Err(wrong_input("No disk information specified")),
        (_, count) if count > MAX_DISKS => {
            return Err(wrong_input(format!("{count} disks are too many, an instance has {MAX_DISKS} at the most")));
        }
        _ => {}
    }
    let nodes: Vec<NodeId> = std::iter::once(primary).chain(secondaries.iter().copied()).collect();
    let mut disks = Vec::new();
    for (index, disk) in op.disks.iter().enumerate() {
        if disk.size == 0 {
            return Err(wrong_input(format!("Invalid size of disk {index}: it has to be 1 MiB at least")));
        }
        disks.push(Disk {
            id: DiskId(ctx.new_uuid()),
            name: disk.name.clone(),
            size_mib: disk.size,
            access: disk.mode,
            ctime: ctx.now(),
            mirror: (template == DiskTemplate::Drbd).then(|| mirrors::new_mirror(ctx, state, &nodes)),
        });
    }
    Ok(disks)
}

/// Interfaces with addresses chosen where none was given.
pub fn plan_nics(ctx: &Context, state: &State, requests: &[NicRequest]) -> Result<Vec<Nic>, Failure> {
    if requests.len() > MAX_NICS {
        let count = requests.len();
        return Err(wrong_input(format!("{count} interfaces are too many, an instance has {MAX_NICS} at the most")));
    }
    let mut taken: BTreeSet<String> =
        state.instances.values().flat_map(|instance| &instance.nics).map(|nic| nic.mac.clone()).collect();
    let mut nics = Vec::new();
    for request in requests {
        let mac = match request.mac.as_deref() {
            None | Some("auto" | "generate") => free_mac(ctx, state, &taken),
            Some(mac) => checked_mac(mac)?,
        };
        taken.insert(mac.clone());
        nics.push(Nic {
            uuid: ctx.new_uuid(),
            name: request.name.clone(),
            mac,
            ip: request.ip.clone().map(|ip| checked_ip(&ip)).transpose()?,
            params: nic_params(request)?,
        });
    }
    Ok(nics)
}

/// The parameters that a request sets.
pub fn nic_params(request: &NicRequest) -> Result<Params, Failure> {
    let given = [("mode", &request.mode), ("link", &request.link), ("vlan", &request.vlan)];
    let given = given
        .into_iter()
        .filter_map(|(name, value)| value.clone().map(|value| (name.to_owned(), ParamValue::Text(value))))
        .collect();
    params::check(params::NIC, &given).map_err(|error| wrong_input(error.to_string()))
}

/// An IPv4 address, as text.
pub fn checked_ip(ip: &str) -> Result<String, Failure> {
    match ip.parse::<std::net::Ipv4Addr>() {
        Ok(ip) => Ok(ip.to_string()),
        Err(_) => Err(wrong_input(format!("Invalid IP address '{ip}'"))),
    }
}

/// A hardware address of a single station, in lower case.
pub fn checked_mac(mac: &str) -> Result<String, Failure> {
    // `from_str_radix` alone would take a sign.
    let byte = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        if digits { u8::from_str_radix(part, 16).ok() } else { None }
    };
    let bytes: Option<Vec<u8>> = mac.split(':').map(byte).collect();
    match bytes {
        Some(bytes) if bytes.len() == 6 && bytes[0] & 1 == 0 => Ok(mac.to_ascii_lowercase()),
        _ => Err(wrong_input(format!("Invalid MAC address '{mac}'"))),
    }
}

fn free_mac(ctx: &Context, state: &State, taken: &BTreeSet<String>) -> String {
    let prefix = state.cluster.as_ref().map_or("aa:00:00", |cluster| cluster.mac_prefix.as_str());
    loop {
        let uuid = ctx.new_uuid();
        let random = uuid.as_bytes();
        let mac = format!("{prefix}:{:02x}:{:02x}:{:02x}", random[0], random[1], random[2]);
        if !taken.contains(&mac) {
            return mac;
        }
    }
}

/// Refuses bounds of memory that make no sense.
pub fn check_memory_bounds(filled: &Params) -> Result<(), Failure> {
    let value = |name: &str| filled.get(name).and_then(ParamValue::as_int).unwrap_or(0);
    let (least, most) = (value("minmem"), value("maxmem"));
    if least > most {
        return Err(wrong_input(format!("minmem ({least} MiB) is more than maxmem ({most} MiB)")));
    }
    if least < 1 {
        return Err(wrong_input("An instance needs at least 1 MiB of memory"));
    }
    if value("vcpus") < 1 {
        return Err(wrong_input("An instance needs at least one virtual CPU"));
    }
    Ok(())
}

/// Refuses a start for which the primary node has not enough free memory. An instance that runs already has its own.
pub async fn check_memory(ctx: &Context, state: &State, instance: &Instance, once: &Params) -> Result<(), Halt> {
    let facts = mirrors::facts(ctx, state, instance.primary).await?;
    if facts.instances.iter().any(|live| Some(live.run) == instance.run) {
        return Ok(());
    }
    let mut beparams = instance.beparams.clone();
    beparams.extend(once.clone());
    let needed = state.memory_mib(&Instance { beparams, ..instance.clone() });
    if needed > facts.memory_free_mib {
        return Err(not_enough_memory(state, instance, "starting", needed, facts.memory_free_mib).into());
    }
    Ok(())
}

fn not_enough_memory(state: &State, instance: &Instance, doing: &str, needed: u64, free: u64) -> Failure {
    Failure::refused(
        ErrorCode::InsufficientResources,
        format!(
            "Not enough memory on node {} for {doing} instance {}: needed {needed} MiB, available {free} MiB",
            state.node_name(instance.primary),
            instance.name
        ),
    )
}

/// Refuses what one of its nodes has not enough space for, or its primary node not enough memory.
async fn check_space(ctx: &Context, state: &State, instance: &Instance, start: bool) -> Result<(), Halt> {
    let needed_mib = instance.disks.iter().map(|disk| disk.size_mib).sum();
    for node in mirrors::nodes_of(instance) {
        let facts = mirrors::facts(ctx, state, node).await?;
        let memory = state.memory_mib(instance);
        if start && node == instance.primary && memory > facts.memory_free_mib {
            return Err(not_enough_memory(state, instance, "creating", memory, facts.memory_free_mib).into());
        }
        mirrors::check_room(state, node, &facts, instance.disk_template, needed_mib)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_to_be_a_host_name() {
        for good in ["vm1", "vm1.example.com", "a-b", "1a"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "..", "vm 1", "vm/1", "../x", "VM1", "-a", "a-", "a..b", "a\n", "é", long.as_str()] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_hardware_address_has_to_be_one_of_a_single_station() {
        assert_eq!(checked_mac("AA:00:00:12:34:5f").unwrap(), "aa:00:00:12:34:5f");
        for bad in [
            "",
            "aa:00:00:12:34",
            "01:00:00:00:00:00",
            "aa:00:00:12:34:5g",
            "aa:00:00:12:34:5f:00",
            "+a:00:00:00:00:00",
        ] {
            assert!(checked_mac(bad).is_err(), "{bad:?}");
        }
    }
}
