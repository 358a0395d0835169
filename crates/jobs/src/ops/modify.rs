//! `OP_INSTANCE_SET_PARAMS`: changes of an instance's configuration; they take effect at its next start.

use std::collections::BTreeMap;

use model::params::{self, ParamDef};
use model::{AdminState, Command, InstanceChange, Nic, ParamValue, Params, Provision, State};
use opcodes::Failure;
use opcodes::op::{InstanceSetParams, ListAction, NicChange};
use serde_json::{Value, json};

use super::create::{check_memory_bounds, checked_ip, checked_mac, nic_params, plan_nics};
use super::instance::{current_run, find};
use super::{wrong_input, wrong_state};
use crate::agent::Call;
use crate::context::{Context, Halt};

type Changes = BTreeMap<String, Option<ParamValue>>;

pub async fn set_params(ctx: &Context, op: InstanceSetParams) -> Result<Value, Halt> {
    if let Some(template) = op.disk_template {
        return super::convert::convert(ctx, &op, template).await;
    }
    let (id, change, told): (_, InstanceChange, Vec<(String, String)>) =
        ctx.step("check", || async { plan(ctx, &op).await }).await?;
    ctx.commit("modify", vec![Command::ModifyInstance { instance: id, change: Box::new(change) }]).await?;
    Ok(json!(told))
}

async fn plan(
    ctx: &Context,
    op: &InstanceSetParams,
) -> Result<(model::InstanceId, InstanceChange, Vec<(String, String)>), Halt> {
    let state = ctx.state();
    let instance = find(&state, &op.instance_name)?;
    let mut told = Vec::new();
    let hvdefs = params::hypervisor(&instance.hypervisor).unwrap_or(&[]);
    let hvparams = checked(hvdefs, &op.hvparams)?;
    let beparams = checked(params::BACKEND, &op.beparams)?;
    let mut after = instance.beparams.clone();
    overlay(&mut after, &beparams);
    check_memory_bounds(&state.filled_beparams(&after))?;
    for (prefix, changes) in [("hv", &op.hvparams), ("be", &op.beparams), ("os", &op.osparams)] {
        for (name, value) in changes {
            let value = value.as_ref().map_or_else(|| "default".to_owned(), ToString::to_string);
            told.push((format!("{prefix}/{name}"), value));
        }
    }
    let mut change = InstanceChange { hvparams, beparams, osparams: op.osparams.clone(), ..InstanceChange::default() };
    if let Some(os) = &op.os_name {
        let mut next = instance.clone();
        next.os.clone_from(os);
        let spec = Box::new(super::spec::spec(&state, &next, &Params::new(), &Params::new()));
        ctx.call(instance.primary, Call::CheckInstance { spec, install: true }).await?;
        change.os = Some(os.clone());
        told.push(("os".into(), os.clone()));
    }
    if !op.nics.is_empty() {
        let mut nics = instance.nics.clone();
        for request in &op.nics {
            change_nic(ctx, &state, &mut nics, request, &mut told)?;
        }
        change.nics = Some(nics);
    }
    match op.offline {
        Some(true) if current_run(&state, instance).is_some() => {
            return Err(wrong_state(format!(
                "Instance '{}' is running, stop it before it is marked offline",
                instance.name
            ))
            .into());
        }
        Some(true) => change.want = Some(AdminState::Offline),
        Some(false) if instance.want == AdminState::Offline => change.want = Some(AdminState::Down),
        _ => {}
    }
    if let Some(want) = change.want {
        told.push(("admin_state".into(), want.word().into()));
    }
    if let Some(node) = &op.remote_node {
        return Err(wrong_input(format!(
            "A secondary node ('{node}') can be given only with a disk template that needs one; 'gnt-instance replace-disks -n \
             {node} {}' changes that of a mirrored instance",
            instance.name
        ))
        .into());
    }
    if told.is_empty() {
        return Err(wrong_input("No changes submitted").into());
    }
    debug_assert_eq!(instance.provision, Provision::Ready);
    Ok((instance.id, change, told))
}

/// Checks values; `memory` stands for both bounds.
fn checked(defs: &[ParamDef], changes: &Changes) -> Result<Changes, Failure> {
    let given: Params =
        changes.iter().filter_map(|(name, value)| value.clone().map(|value| (name.clone(), value))).collect();
    let refused = |error: params::ParamError| wrong_input(error.to_string());
    let mut all: Changes =
        params::check(defs, &given).map_err(refused)?.into_iter().map(|(name, value)| (name, Some(value))).collect();
    for name in changes.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.as_str()) {
        let names: &[&str] = if name == "memory" { &["maxmem", "minmem"] } else { &[name] };
        for name in names {
            if !defs.iter().any(|def| def.name == *name) {
                return Err(refused(params::ParamError::Unknown((*name).to_owned())));
            }
            all.insert((*name).to_owned(), None);
        }
    }
    Ok(all)
}

fn overlay(params: &mut Params, changes: &Changes) {
    for (name, value) in changes {
        match value {
            Some(value) => params.insert(name.clone(), value.clone()),
            None => params.remove(name),
        };
    }
}

fn change_nic(
    ctx: &Context,
    state: &State,
    nics: &mut Vec<Nic>,
    request: &NicChange,
    told: &mut Vec<(String, String)>,
) -> Result<(), Failure> {
    let end = if request.action == ListAction::Add { nics.len() } else { nics.len().saturating_sub(1) };
    let index = match request.index {
        -1 => end,
        index => usize::try_from(index).map_err(|_| wrong_input(format!("Invalid interface index {index}")))?,
    };
    let limit = if request.action == ListAction::Add { nics.len() + 1 } else { nics.len() };
    if index >= limit {
        return Err(wrong_input(format!("There is no interface {index}, the instance has {}", nics.len())));
    }
    match request.action {
        ListAction::Add => {
            let new = plan_nics(ctx, state, std::slice::from_ref(&request.nic))?;
            for nic in new {
                told.push((format!("nic.{index}"), format!("add:mac={}", nic.mac)));
                nics.insert(index, nic);
            }
        }
        ListAction::Remove => {
            nics.remove(index);
            told.push((format!("nic.{index}"), "remove".into()));
        }
        ListAction::Modify => {
            let nic = &mut nics[index];
            if let Some(mac) = &request.nic.mac {
                nic.mac = checked_mac(mac)?;
                told.push((format!("nic.mac/{index}"), nic.mac.clone()));
            }
            match request.nic.ip.as_deref() {
                None => {}
                Some("none" | "") => {
                    nic.ip = None;
                    told.push((format!("nic.ip/{index}"), "None".into()));
                }
                Some(ip) => {
                    nic.ip = Some(checked_ip(ip)?);
                    told.push((format!("nic.ip/{index}"), ip.to_owned()));
                }
            }
            if let Some(name) = &request.nic.name {
                nic.name = Some(name.clone());
                told.push((format!("nic.name/{index}"), name.clone()));
            }
            for (name, value) in nic_params(&request.nic)? {
                told.push((format!("nic.{name}/{index}"), value.to_string()));
                nic.params.insert(name, value);
            }
        }
    }
    Ok(())
}
