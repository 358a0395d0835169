//! What surrounds every order to a node, and the gate that lets no order of a deposed master through.
//!
//! A leader that has lost its office may not know it yet. So each order carries the incarnation of the cluster, the term
//! of the master that sends it, and the job that it belongs to; a node refuses what is older than the newest it has seen.

use model::Incarnation;
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, FaultKind};

/// An order with the right that it is given by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// The incarnation of the cluster that the sender belongs to.
    pub inc: Incarnation,
    /// The sender's Raft term.
    pub term: u64,
    /// The job that the order belongs to, if to any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
    /// The order itself.
    pub payload: T,
}

/// The order comes from a past or from another cluster. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The sender has been succeeded.
    #[error(
        "refused: the order is of incarnation {}, term {term}; this node has seen incarnation {}, term {seen_term}",
        inc.n, seen.n
    )]
    Overtaken {
        /// The order's incarnation.
        inc: Incarnation,
        /// The order's term.
        term: u64,
        /// The highest incarnation seen.
        seen: Incarnation,
        /// The highest term seen in it.
        seen_term: u64,
    },
    /// The cluster was recovered by force twice, apart: neither side may give orders to the other's nodes.
    #[error(
        "refused: the order is of another fork of incarnation {} ({}; this node is of {}); an operator must decide which stays",
        inc.n, inc.id, seen.id
    )]
    Fork {
        /// The order's incarnation.
        inc: Incarnation,
        /// The incarnation of the same number that this node belongs to.
        seen: Incarnation,
    },
}

impl From<Stale> for Fault {
    fn from(stale: Stale) -> Self {
        let (Stale::Overtaken { seen, .. } | Stale::Fork { seen, .. }) = stale;
        let term = match stale {
            Stale::Overtaken { seen_term, .. } => Some(seen_term),
            Stale::Fork { .. } => None,
        };
        // So that the sender learns that it has been succeeded, and by whom.
        let detail = serde_json::json!({ "inc": seen, "term": term });
        Fault::new(FaultKind::Stale, stale.to_string()).with_detail(detail)
    }
}

/// Remembers the highest (incarnation, term) from which an order has come, and refuses lower ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    seen: Option<(Incarnation, u64)>,
}

impl Gate {
    /// A gate that has seen this much: what the node kept of [`highest`](Self::highest), `None` on a node that never got
    /// an order.
    pub fn new(seen: Option<(Incarnation, u64)>) -> Self {
        Self { seen }
    }

    /// Whether an order may pass. A higher incarnation or term than the highest seen is adopted.
    pub fn check(&mut self, inc: &Incarnation, term: u64) -> Result<(), Stale> {
        if let Some((seen, seen_term)) = self.seen {
            if inc.forks_from(&seen) {
                return Err(Stale::Fork { inc: *inc, seen });
            }
            if (inc.n, term) < (seen.n, seen_term) {
                return Err(Stale::Overtaken { inc: *inc, term, seen, seen_term });
            }
        }
        self.seen = Some((*inc, term));
        Ok(())
    }

    /// The highest (incarnation, term) seen.
    pub fn highest(&self) -> Option<(Incarnation, u64)> {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Uuid;

    fn inc(n: u64, id: u128) -> Incarnation {
        Incarnation { n, id: Uuid::from_u128(id) }
    }

    /// What a gate that has seen `2a/5` (incarnation 2 with identity a, term 5) says to each order, and what it has seen
    /// after that.
    const TABLE: &str = "
        2a/5   pass        2a/5
        2a/6   pass        2a/6
        2a/4   overtaken   2a/5
        2a/0   overtaken   2a/5
        2b/5   fork        2a/5
        2b/9   fork        2a/5
        2b/4   fork        2a/5
        1a/9   overtaken   2a/5
        1b/9   overtaken   2a/5
        3a/0   pass        3a/0
        3b/1   pass        3b/1
    ";

    fn read(order: &str) -> (Incarnation, u64) {
        let (inc_text, term) = order.split_once('/').unwrap();
        let (n, id) = inc_text.split_at(1);
        (inc(n.parse().unwrap(), u128::from_str_radix(id, 16).unwrap()), term.parse().unwrap())
    }

    #[test]
    fn only_the_newest_master_passes() {
        for line in TABLE.trim().lines() {
            let [order, verdict, after]: [&str; 3] = line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
            let mut gate = Gate::new(Some(read("2a/5")));
            let (inc, term) = read(order);
            let said = match gate.check(&inc, term) {
                Ok(()) => "pass",
                Err(Stale::Overtaken { .. }) => "overtaken",
                Err(Stale::Fork { .. }) => "fork",
            };
            assert_eq!(said, verdict, "{order}");
            assert_eq!(gate.highest(), Some(read(after)), "{order}");
        }
    }

    #[test]
    fn a_new_gate_takes_what_comes_first() {
        let mut gate = Gate::default();
        assert_eq!(gate.check(&inc(1, 1), 3), Ok(()));
        assert!(gate.check(&inc(1, 1), 2).is_err());
    }

    #[test]
    fn the_sender_of_a_stale_order_learns_by_whom_it_was_succeeded() {
        let mut gate = Gate::new(Some((inc(2, 1), 5)));
        let fault = Fault::from(gate.check(&inc(2, 1), 4).unwrap_err());
        assert_eq!(fault.kind, FaultKind::Stale);
        assert_eq!(fault.detail["term"], 5);
        assert_eq!(fault.detail["inc"]["n"], 2);
    }

    #[test]
    fn an_envelope_survives_the_wire() {
        let envelope = Envelope { inc: inc(u64::MAX, u128::MAX), term: 7, job: None, payload: vec![1u8, 2] };
        let text = serde_json::to_string(&envelope).unwrap();
        assert_eq!(serde_json::from_str::<Envelope<Vec<u8>>>(&text).unwrap(), envelope);
    }
}
