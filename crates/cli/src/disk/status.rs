//! `cardume disk status`.

use std::time::Duration;

use clap::Args;
use opcodes::disks::DiskReport;
use opcodes::format::ctime;
use opcodes::wire::Request;
use tokio::time::sleep;

use super::picture::{Paint, picture};
use crate::client::CallError;
use crate::error::Error;
use crate::session::Session;

pub(super) const HELP: &str = "\
For each disk one line says how it is, the next one what the cluster has agreed on, and one line per replica what its
node says:

  vm1 disk/0  4.0 GiB  node01 Primary/UpToDate <-> node02 Secondary/UpToDate  Connected C
    epoch 1.3  version 1.7  mode strict  in sync: node01, node02
    node01  cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C  ns:4096 nr:0 dw:4096 dr:128 pe:0 oos:0
    node02  cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C  ns:0 nr:4096 dw:4096 dr:0 pe:0 oos:0

  Primary    serves the guest            UpToDate      has every acknowledged write
  Secondary  follows                     Outdated      has an older state; is given the rest as soon as it is there
  <->        connected                   Inconsistent  is in the middle of a resync
  -/-        not connected               Failed        its medium failed
  ==>        a resync copies this way    DUnknown      its node says nothing
  C          a write is acknowledged when every replica in the in-sync set has it
  epoch      grows with each change of the primary; version with each change of the disk's record
  ns nr      sent to, received from other replicas since the replica was opened, KiB
  dw dr      written to, read from the medium, KiB
  pe oos     guest writes under way; what the other replica lacks, KiB

EXAMPLES
  cardume disk status
  cardume disk status --watch vm1 vm2
  cardume disk status --json vm1";

/// To the top left corner, where the picture is drawn over the one before.
const HOME: &str = "\x1b[H";
/// Clears the rest of the line, and what is below the last one.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Clears the screen.
const CLEAR: &str = "\x1b[2J";

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Only the disks of these instances
    #[arg(value_name = "INSTANCE")]
    names: Vec<String>,
    /// Show it again and again, until interrupted (Ctrl-C)
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
    /// Seconds between two pictures of --watch
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval, requires = "watch")]
    interval: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|seconds| !seconds.is_zero()).ok_or_else(|| "write a number of seconds above 0".to_owned())
}

impl StatusArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        if self.watch {
            return self.watch(session).await;
        }
        let disks = reports(session, &self.names).await?;
        if self.json {
            let shown = serde_json::to_value(&disks).map_err(|error| Error::message(error.to_string()))?;
            session.json(&shown)?;
        } else {
            let paint = Paint::of(session);
            session.print(&whole(&disks, paint))?;
        }
        Ok(0)
    }

    /// Shows it until something ends the command: a signal, or a daemon that refuses for good. A daemon that restarts, or
    /// a cluster that has no master just now, is shown as such.
    async fn watch(&self, session: &mut Session) -> Result<u8, Error> {
        let (zone, paint) = (session.zone(), Paint::of(session));
        if session.screen {
            session.print(CLEAR)?;
        }
        loop {
            let shown = match reports(session, &self.names).await {
                Ok(disks) => whole(&disks, paint),
                Err(error) if error.is_passing() => format!("{error}\n"),
                Err(error) => return Err(error.into()),
            };
            let now = jiff::Timestamp::now().as_microsecond();
            let now = model::Timestamp(u64::try_from(now).unwrap_or_default());
            let frame = format!("{}  every {:?}\n\n{shown}", ctime(now, &zone), self.interval);
            if session.screen {
                let frame = frame.replace('\n', &format!("{CLEAR_LINE}\n"));
                session.print(&format!("{HOME}{frame}{CLEAR_BELOW}"))?;
            } else {
                session.print(&frame)?;
                session.print("\n")?;
            }
            session.flush()?;
            sleep(self.interval).await;
        }
    }
}

/// What all disks look like, with an empty line between two.
fn whole(disks: &[DiskReport], paint: Paint) -> String {
    if disks.is_empty() {
        return "There are no mirrored disks.\n".to_owned();
    }
    disks.iter().map(|disk| picture(disk, paint)).collect::<Vec<_>>().join("\n")
}

/// How these instances' disks are; without names, how all mirrored disks are.
pub(super) async fn reports(session: &Session, names: &[String]) -> Result<Vec<DiskReport>, CallError> {
    session.client.call(&Request::Disks { names: names.to_vec() }).await
}
