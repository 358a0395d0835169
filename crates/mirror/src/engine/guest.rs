//! Requests of guests that are not being carried out: held until they may be, refused, or parked (W1).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::RunId;

use super::base::{Base, Job};
use super::effect::{Effect, GuestError, GuestReply, Io};
use super::event::{GuestOp, GuestRequest, IoResult, RequestId};
use crate::wire::Content;

#[derive(Default)]
pub(super) struct Guest {
    /// In the order in which they came.
    pub held: VecDeque<GuestRequest>,
    /// Begun in a role that was lost: nobody knows whether they took effect, so they get no answer until their run ends.
    parked: BTreeMap<RequestId, RunId>,
    ended: BTreeSet<RunId>,
    standby: Option<RunId>,
}

impl Guest {
    /// Whether a run is over. Numbers of runs grow, so a run is over as well when the disk serves a later one.
    pub fn is_over(&self, base: &Base, run: RunId) -> bool {
        let later = base.view.as_ref().and_then(|view| view.mirror.run).is_some_and(|now| run < now);
        self.ended.contains(&run) || later
    }

    pub fn set_standby(&mut self, run: RunId) {
        self.standby = Some(run);
    }

    pub fn park(&mut self, request: RequestId, run: RunId) {
        self.parked.insert(request, run);
    }

    pub fn end_run(&mut self, base: &mut Base, run: RunId) {
        self.ended.insert(run);
        // The number alone says it of those before the current one.
        if let Some(now) = base.view.as_ref().and_then(|view| view.mirror.run) {
            self.ended.retain(|run| *run >= now);
        }
        if self.standby == Some(run) {
            self.standby = None;
        }
        let parked: Vec<RequestId> = self.parked.iter().filter(|(_, of)| **of == run).map(|(id, _)| *id).collect();
        for id in parked {
            self.parked.remove(&id);
            base.out.push(Effect::Reply(id, GuestReply::Error(GuestError::RunOver)));
        }
        self.refuse_ended(base);
    }

    /// Refuses what is held of runs that are over.
    pub fn refuse_ended(&mut self, base: &mut Base) {
        for request in std::mem::take(&mut self.held) {
            if self.is_over(base, request.run) {
                base.out.push(Effect::Reply(request.id, GuestReply::Error(GuestError::RunOver)));
            } else {
                self.held.push_back(request);
            }
        }
    }

    /// Answers what a standby export may: reads, for probing, and flushes, of which there is nothing to do.
    pub fn serve_standby(&mut self, base: &mut Base) {
        let Some(run) = self.standby else { return };
        for request in std::mem::take(&mut self.held) {
            match request.op {
                GuestOp::Read(range) if request.run == run && !base.failed => {
                    base.submit(Io::Read(range), Job::Standby(request.id));
                    self.park(request.id, run);
                }
                GuestOp::Flush if request.run == run => {
                    base.out.push(Effect::Reply(request.id, GuestReply::Done));
                }
                _ => self.held.push_back(request),
            }
        }
    }

    pub fn standby_done(&mut self, base: &mut Base, id: RequestId, result: IoResult) {
        if self.parked.remove(&id).is_some() {
            let reply = match result {
                Ok(content) => GuestReply::Read(content.unwrap_or(Content::Zeroes)),
                Err(_) => GuestReply::Error(GuestError::Medium),
            };
            base.out.push(Effect::Reply(id, reply));
        }
    }

    /// Number of requests that wait for something.
    pub fn waiting(&self) -> usize {
        self.held.len() + self.parked.len()
    }
}
