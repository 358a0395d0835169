//! `cardume why`: what happened to an instance or a node, and on what evidence it was decided.

use clap::Parser;
use jiff::tz::TimeZone;
use model::Timestamp;
use opcodes::format::date_time;
use opcodes::wire::{Request, Why};

use crate::error::Error;
use crate::session::Session;
use crate::usage;

const HELP: &str = "\
First comes how it is now: where it runs, or why it does not; which copies of its disks have all of its data; what happens
if its node dies. Then what happened, the newest last, each with its evidence: who was declared dead and why that was safe,
who took over what and why that node, what crashed and what was done about it. The cluster remembers the newest 1000 events,
of all instances and nodes together; an instance that was removed can still be asked for.

EXAMPLES
  cardume why vm1
  cardume why node02
  cardume why vm1 --json | jq '.events[].text'";

/// Tells what happened to an instance or a node, and why
#[derive(Parser)]
#[command(after_help = HELP)]
pub(crate) struct Tool {
    /// Name of an instance or a node
    #[arg(value_name = "INSTANCE|NODE")]
    args: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Tool {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [name] = usage::exactly("why", self.args)?;
        let why: Why = session.client.call(&Request::Why { name }).await?;
        if self.json {
            let shown = serde_json::to_value(&why).map_err(|error| Error::message(error.to_string()))?;
            session.json(&shown)?;
            return Ok(0);
        }
        let zone = session.zone();
        session.print(&story(&why, &zone))?;
        Ok(0)
    }
}

fn story(why: &Why, zone: &TimeZone) -> String {
    let mut text = format!("{} {} now:\n", if why.kind == "node" { "Node" } else { "Instance" }, why.name);
    for sentence in &why.now {
        text += &format!("  {sentence}\n");
    }
    if why.events.is_empty() {
        text += "Nothing that the cluster remembers has happened to it.\n";
        return text;
    }
    text += "What happened:\n";
    for event in &why.events {
        text += &format!("  {}  {}\n", moment(event.at, zone), event.text);
    }
    text
}

/// With milliseconds: seconds matter here.
fn moment(at: Timestamp, zone: &TimeZone) -> String {
    format!("{}.{:03}", date_time(at, zone), at.subsec_micros() / 1000)
}
