//! Applying proposals: pure, deterministic, all or nothing.

mod cluster;
mod disks;
mod instances;
mod jobs;
mod lives;
mod nodes;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use self::disks::Primary;
use crate::command::{Applied, Command, Proposal, Rejection};
use crate::ids::Timestamp;
use crate::state::State;

impl State {
    /// Applies a proposal. On rejection the state is as it was.
    ///
    /// # Errors
    /// [`Rejection`], the same on every node.
    pub fn apply(&mut self, proposal: &Proposal) -> Result<Vec<Applied>, Rejection> {
        // Each command checks before it changes anything, so that a single one needs no copy to go back to.
        if let [command] = proposal.commands.as_slice() {
            return self.apply_one(proposal, command, &[]).map(|applied| vec![applied]);
        }
        let mut next = self.clone();
        let mut applied = Vec::with_capacity(proposal.commands.len());
        for command in &proposal.commands {
            applied.push(next.apply_one(proposal, command, &applied)?);
        }
        *self = next;
        Ok(applied)
    }

    /// `before`: what the earlier commands of the batch did.
    fn apply_one(&mut self, proposal: &Proposal, command: &Command, before: &[Applied]) -> Result<Applied, Rejection> {
        self.admit(proposal, command)?;
        let at = proposal.at;
        match command {
            Command::Init { cluster, incarnation, group, node } => self.init(cluster, *incarnation, *group, node, at),
            Command::Destroy => self.destroy(),
            Command::ModifyCluster(change) => self.modify_cluster(change, at),
            Command::TakeOffice { node, term } => self.take_office(*node, *term, at),
            Command::SetAddressOwner(owner) => self.set_address_owner(*owner),
            Command::Found { incarnation, fork_point, node, off } => {
                self.found(*incarnation, *fork_point, *node, off, at)
            }

            Command::AddToken { id, secret_sha256, node, expires } => {
                self.add_token(*id, secret_sha256, node, *expires)
            }
            Command::DropToken { id } => self.drop_token(*id),
            Command::AddNode { token } => self.add_node(*token, at),
            Command::ModifyNode { node, change } => self.modify_node(*node, change, at),
            Command::RemoveNode { node } => self.remove_node(*node),
            Command::JoinNode { node, boot, previous, runs } => self.join_node(*node, boot, *previous, runs, at),
            Command::NodeDead { node, life, evidence } => self.node_dead(*node, *life, evidence, at),
            Command::Arm { node, life } => self.arm(*node, *life, at),
            Command::Disarm { node } => self.disarm(*node, at),
            Command::Note(what) => Ok(self.note(what, at)),

            Command::AddInstance(instance) => self.add_instance(instance, at),
            Command::ModifyInstance { instance, change } => self.modify_instance(*instance, change, at),
            Command::RemoveInstance { instance } => self.remove_instance(*instance),
            Command::Own { instance, node } => self.own(*instance, *node, at),
            Command::Disown { instance, run, want } => self.disown(*instance, *run, *want, at),

            Command::Takeover { instance, to, reason } => Ok(self.takeover(*instance, *to, reason, at)),

            Command::Outdate { disk, by, epoch, ver, replicas } => {
                self.outdate(Primary { disk: *disk, by: *by, epoch: *epoch, ver: *ver }, replicas, at)
            }
            Command::InSync { disk, by, epoch, ver, replica, life } => {
                self.in_sync(Primary { disk: *disk, by: *by, epoch: *epoch, ver: *ver }, *replica, *life, at)
            }
            Command::Solo { disk, by, epoch, ver, replicas } => {
                self.solo(Primary { disk: *disk, by: *by, epoch: *epoch, ver: *ver }, replicas, at)
            }
            Command::Prepare { instance, migration, to } => self.prepare(*instance, *migration, *to),
            Command::Handover { migration } => self.handover(*migration, at),
            Command::Cancel { migration } => self.cancel(*migration),
            Command::AddReplica { disk, ver, replica, node, slot } => {
                self.add_replica(*disk, *ver, *replica, *node, *slot)
            }
            Command::RemoveReplica { disk, ver, replica } => self.remove_replica(*disk, *ver, *replica),
            Command::Grow { disk, ver, size_mib } => self.grow(*disk, *ver, *size_mib),
            Command::Force { instance, node, bases, asserted_off } => {
                self.force(*instance, *node, bases, *asserted_off, at)
            }

            Command::SubmitJob(job) => self.submit_job(job, at),
            Command::RecordJob { job, changes } => self.record_job(*job, changes, before, at),
            Command::CancelJob { job } => self.cancel_job(*job, at),
            Command::ArchiveJob { job } => self.archive_job(*job),
        }
    }

    /// Whether the proposer may ask for this at all: right incarnation, and in office where that is needed.
    fn admit(&self, proposal: &Proposal, command: &Command) -> Result<(), Rejection> {
        match command {
            Command::Init { .. } if self.cluster.is_none() => return Ok(()),
            Command::Init { .. } => return Err(Rejection::AlreadyInitialised),
            Command::Found { .. } => return Ok(()),
            _ if self.cluster.is_none() => return Err(Rejection::NoCluster),
            _ => {}
        }
        if proposal.incarnation != self.incarnation {
            return Err(Rejection::Incarnation { now: self.incarnation.n, then: proposal.incarnation.n });
        }
        // A disk's primary proposes on its own, and with no master in office: its life, epoch and version speak for it.
        let needs_office = !matches!(
            command,
            Command::TakeOffice { .. }
                | Command::JoinNode { .. }
                | Command::Outdate { .. }
                | Command::InSync { .. }
                | Command::Solo { .. }
        );
        let now = self.office.map_or(0, |office| office.term);
        if needs_office && proposal.office != Some(now) {
            return Err(Rejection::Office { now, then: proposal.office.unwrap_or(0) });
        }
        Ok(())
    }
}

/// Notes a change of an object.
fn touch(serial_no: &mut u64, mtime: &mut Timestamp, at: Timestamp) {
    *serial_no += 1;
    *mtime = at;
}

fn unknown(kind: &str, name: impl std::fmt::Display) -> Rejection {
    Rejection::Unknown { kind: kind.to_owned(), name: name.to_string() }
}

fn exists(kind: &str, name: impl std::fmt::Display) -> Rejection {
    Rejection::Exists { kind: kind.to_owned(), name: name.to_string() }
}
