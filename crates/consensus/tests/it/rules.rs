//! Rules of the protocol: who is refused, and the witness that only fills in (section 2 and 8.7).

use std::sync::Arc;
use std::time::Duration;

use consensus::{Config, Log, Store};
use model::{Incarnation, NodeId, Uuid};

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_incarnation_is_refused() {
    let lab = Lab::new();
    let one = lab.found().await;
    let other = Incarnation { n: 1, id: Uuid::from_u128(0xbad) };
    // Made beforehand with an incarnation of its own; the member that is started on it finds that.
    let dir = lab.dir(2);
    drop(Store::open(&dir, NodeId(2), Some(other)).unwrap());
    let two = lab.start(2).await;
    assert_eq!(two.incarnation(), other);
    one.add_learner(NodeId(2), info(2), Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(two.status().last_log, 0);
    assert_eq!(two.incarnation(), other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_takes_the_incarnation_of_who_adds_it() {
    let lab = Lab::new();
    let one = lab.found().await;
    let two = lab.start(2).await;
    assert_eq!(two.incarnation(), Incarnation::default());
    one.add_learner(NodeId(2), info(2), LONG).await.unwrap();
    assert_eq!(two.incarnation(), one.incarnation());
    assert_eq!(one.incarnation(), Incarnation { n: 1, id: Uuid::from_u128(0x11) });
}

/// Nodes 1 and 2, and 3 as the witness.
async fn with_witness(lab: &Lab) -> [Arc<dyn Log>; 3] {
    let one = lab.found().await;
    let two = lab.start(2).await;
    let witness = Config { caretaker: true, lease: Duration::from_millis(500), ..Config::default() };
    let three = lab.start_with(3, witness).await;
    for node in [2, 3] {
        one.add_learner(NodeId(node), info(node), LONG).await.unwrap();
    }
    one.set_voters(ids([1, 2, 3]), LONG).await.unwrap();
    [one, two, three]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_votes_at_once_and_leaves_the_lead_to_others() {
    let lab = Lab::new();
    let [one, two, three] = with_witness(&lab).await;
    let term = one.status().term;
    lab.stop(1).await;
    let status = until(&three, |status| status.leader.is_some_and(|leader| leader != NodeId(1))).await;
    assert_eq!(status.leader, Some(NodeId(2)));
    // In the first election that was held.
    assert_eq!(two.status().term, term + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_with_the_longest_log_fills_in() {
    let lab = Lab::new();
    let [one, two, three] = with_witness(&lab).await;
    // Node 2 misses what 1 and 3 agree on; then 1 is lost.
    lab.net.cut(2);
    let done = propose(&one, vec![job("known to the witness")]).await.unwrap();
    until_applied(&three, done.index).await;
    lab.stop(1).await;
    lab.net.heal();
    until(&three, |status| status.is_leader).await;
    until_applied(&two, done.index).await;
    // And hands over to the node that can be master.
    three.transfer_leader(NodeId(2), LONG).await.unwrap();
    until(&two, |status| status.is_leader).await;
    assert_eq!(users(&two), ["known to the witness"]);
}
