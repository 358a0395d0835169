//! A master: what its runner sees of the lab, and where it can be stopped.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jobs::agent::{Call, Reply};
use jobs::{CallError, ProposeError, Runner, World};
use model::{Applied, Command, JobId, NodeId, State, Timestamp, Uuid};
use opcodes::Failure;
use tokio::sync::oneshot;

use crate::lab::{Fault, Lab, Stop};
use crate::machine::words;

/// What a point of the master's way says.
enum Passage {
    Free,
    Doubt,
}

/// A master. When it is dropped all its jobs stop where they are.
pub struct Office {
    lab: Arc<Lab>,
    runtime: tokio::runtime::Runtime,
}

impl Office {
    /// Runs jobs from now on, in the name of an office that was taken.
    pub fn new(lab: &Arc<Lab>, term: u64) -> Self {
        let parked = Arc::clone(lab);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .on_thread_park(move || parked.nothing_happens())
            .build()
            .unwrap();
        runtime.spawn(Runner::new(Arc::new(Master { lab: Arc::clone(lab), term })).run());
        Self { lab: Arc::clone(lab), runtime }
    }

    /// Goes on until nothing happens any more, or the master is stopped. `false`: stopped.
    pub fn settle(&self) -> bool {
        self.runtime.block_on(self.lab.idle.notified());
        !self.lab.inner().halted
    }
}

struct Master {
    lab: Arc<Lab>,
    term: u64,
}

impl Master {
    /// One of the points at which the master may be stopped.
    async fn point(&self) -> Passage {
        tokio::task::yield_now().await;
        self.lab.crash_if_due();
        let halted = {
            let mut inner = self.lab.inner();
            inner.points += 1;
            match inner.stop {
                Some((at, Stop::Death)) if at == inner.points => {
                    inner.halted = true;
                    self.lab.idle.notify_one();
                }
                Some((at, Stop::Doubt)) if at == inner.points => return Passage::Doubt,
                _ => {}
            }
            inner.halted
        };
        if halted {
            std::future::pending::<()>().await;
        }
        Passage::Free
    }

    fn fault(&self, call: &str) -> Option<Fault> {
        let mut inner = self.lab.inner();
        let (_, times, fault) =
            inner.faults.iter_mut().find(|(prefix, times, _)| *times > 0 && call.starts_with(prefix.as_str()))?;
        *times -= 1;
        Some(fault.clone())
    }

    fn carry_out(&self, node: NodeId, call: &Call) -> Result<Reply, CallError> {
        let mut inner = self.lab.inner();
        let state = Arc::clone(&inner.state);
        let name = state.node_name(node);
        let Some(machine) = inner.machines.get_mut(&node) else {
            return Err(CallError::Unreachable("no route to host".into()));
        };
        if self.term < machine.term {
            return Err(CallError::Deposed);
        }
        if machine.down {
            return Err(CallError::Unreachable("no route to host".into()));
        }
        machine.term = self.term;
        let outcome = machine.carry_out(call, &state);
        crate::replicas::replicate(&mut inner.machines, &state);
        crate::migration::deliver(&mut inner.machines);
        crate::migration::check_running(&inner.machines, &state);
        inner.journal.push(format!("{name} {}", words(call)));
        outcome.map_err(CallError::Failed)
    }
}

#[async_trait]
impl World for Master {
    fn state(&self) -> Arc<State> {
        self.lab.state()
    }

    async fn changed(&self, seen: &Arc<State>) -> Arc<State> {
        let mut states = self.lab.states.subscribe();
        states.wait_for(|state| !Arc::ptr_eq(state, seen)).await.unwrap().clone()
    }

    async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Applied>, ProposeError> {
        if let Passage::Doubt = self.point().await {
            return Err(ProposeError::Interrupted);
        }
        let outcome = self.lab.propose(self.term, commands);
        if let Passage::Doubt = self.point().await {
            return Err(ProposeError::Interrupted);
        }
        outcome.map_err(ProposeError::Rejected)
    }

    async fn call(&self, node: NodeId, call: Call, _job: JobId, _deadline: Duration) -> Result<Reply, CallError> {
        let lost = || CallError::Unreachable("connection refused".into());
        if let Passage::Doubt = self.point().await {
            return Err(lost());
        }
        let answer = match self.fault(&words(&call)) {
            None => self.carry_out(node, &call),
            Some(Fault::Refused) => Err(CallError::Failed(Failure::failed("no such luck"))),
            Some(Fault::Failed) => {
                let _ = self.carry_out(node, &call);
                Err(CallError::Failed(Failure::failed("no such luck")))
            }
            Some(Fault::Unreachable) => Err(lost()),
            Some(Fault::AnswerLost) => {
                let _ = self.carry_out(node, &call);
                Err(lost())
            }
            Some(Fault::Gate) => {
                self.lab.gate.notified().await;
                self.carry_out(node, &call)
            }
        };
        if let Passage::Doubt = self.point().await {
            return Err(lost());
        }
        answer
    }

    async fn enrol(&self, node: NodeId) -> Result<(), String> {
        self.point().await;
        if self.fault("enrol").is_some() {
            return Err("it has no room".into());
        }
        self.lab.inner().members.insert(node);
        self.point().await;
        Ok(())
    }

    async fn expel(&self, node: NodeId, _address: Ipv4Addr) -> Result<Option<String>, String> {
        self.point().await;
        if let Some(fault) = self.fault("expel") {
            return match fault {
                Fault::Refused => Err("it is still a member after 20 s".into()),
                _ => {
                    self.lab.inner().members.remove(&node);
                    Ok(Some("connection refused".into()))
                }
            };
        }
        let told = {
            let mut inner = self.lab.inner();
            inner.members.remove(&node);
            inner.machines.get_mut(&node).map(|machine| std::mem::replace(&mut machine.left, true))
        };
        self.point().await;
        Ok(match told {
            Some(false) => None,
            // who has left does not answer any more
            _ => Some("connection refused".into()),
        })
    }

    async fn resolve(&self, name: &str) -> Result<Ipv4Addr, String> {
        match name.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse::<u8>() {
            Ok(number) => Ok(Ipv4Addr::new(10, 0, 0, 100 + number)),
            Err(_) => Err("Name or service not known".into()),
        }
    }

    fn applied_index(&self) -> u64 {
        self.lab.inner().index
    }

    fn check_certificates(&self) -> Vec<String> {
        Vec::new()
    }

    async fn answers(&self, _address: Ipv4Addr, _port: u16) -> bool {
        false
    }

    fn new_token(&self) -> Result<(String, String), String> {
        Ok(("word".into(), "digest".into()))
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.lab.inner().clock)
    }

    async fn sleep(&self, duration: Duration) {
        let (sender, receiver) = oneshot::channel();
        {
            let mut inner = self.lab.inner();
            let until = inner.clock + duration.as_micros() as u64;
            inner.sleepers.push((until, sender));
        }
        let _ = receiver.await;
    }

    fn new_uuid(&self) -> Uuid {
        let mut inner = self.lab.inner();
        inner.uuids += 1;
        // the first bytes differ too: hardware addresses are made of them
        Uuid::from_u128((inner.uuids << 104) | inner.uuids)
    }
}
