//! `gnt-cluster master-failover --no-voting`: the node goes on alone.

use std::collections::BTreeSet;

use opcodes::wire::{Recovery, Request};

use crate::confirm::confirm;
use crate::error::Error;
use crate::session::Session;

/// Says who is gone and what may be lost, asks, and has the node go on alone. `off` names the nodes that are off; without it
/// they are asked for.
pub(crate) async fn without_voting(session: &mut Session, off: Option<Vec<String>>, force: bool) -> Result<u8, Error> {
    let found: Recovery = session.client.call(&Request::Recover { off: Vec::new(), commit: false }).await?;
    say(session, &found)?;
    if !found.answering.is_empty() {
        return Err(Error::message(format!(
            "Nothing was changed: --no-voting is for when all other nodes are off, but these answer: {}. If one of them is \
             to be given up, switch that machine off first.",
            found.answering.join("; ")
        )));
    }
    confirm(
        session,
        force,
        "This node goes on alone, whatever the others may have done since they were last heard of. If one of them still runs \
         an instance, both would write to its disks from now on, and only one side's writes can be kept. Continue?",
        "--yes-do-it",
    )?;
    let off = match off {
        Some(off) => off,
        None => ask_for_names(session, &found)?,
    };
    let done: Recovery = session.client.call(&Request::Recover { off, commit: true }).await?;
    if let Some(incarnation) = done.incarnation {
        session.say(format_args!("This node is the master now, in incarnation {incarnation} of the cluster."))?;
    }
    Ok(0)
}

fn say(session: &mut Session, found: &Recovery) -> Result<(), Error> {
    match &found.master {
        Some(master) => session.say(format_args!("The last master that this node knows of is {master}."))?,
        None => session.say("This node knows of no master.")?,
    }
    let silent: Vec<&str> = found
        .others
        .iter()
        .filter(|name| !found.answering.iter().any(|answering| answering.starts_with(&format!("{name} "))))
        .map(String::as_str)
        .collect();
    if !silent.is_empty() {
        session.say(format_args!("No answer, on any network, from: {}", silent.join(", ")))?;
    }
    for risk in &found.risks {
        session.say(format_args!(" - {risk}"))?;
    }
    Ok(())
}

/// Has the operator type the names: a question that is answered with a single key is answered too fast.
fn ask_for_names(session: &mut Session, found: &Recovery) -> Result<Vec<String>, Error> {
    let wanted: BTreeSet<&str> = found.others.iter().map(String::as_str).collect();
    session.flush()?;
    let mut prompt = "Type the names of the nodes that are off, with commas in between: ".to_owned();
    loop {
        let Some(answer) = session.answers.ask(&prompt) else {
            return Err(Error::message(format!(
                "Nothing was changed: nobody said which nodes are off, and there is no terminal to ask on. If {0} surely is, \
                 type: gnt-cluster master-failover --no-voting --off={1} --yes-do-it",
                found.others.join(" and "),
                found.others.join(",")
            )));
        };
        let named: BTreeSet<&str> = answer.split([',', ' ']).map(str::trim).filter(|name| !name.is_empty()).collect();
        if named == wanted {
            return Ok(named.into_iter().map(str::to_owned).collect());
        }
        if named.is_empty() {
            session.warn("Nothing was changed.");
            return Err(Error::Declined);
        }
        prompt = format!(
            "All other nodes have to be off, and these are: {}\nType their names, or nothing to change nothing: ",
            found.others.join(", ")
        );
    }
}
