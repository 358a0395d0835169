//! Forced recovery in the store (protocol, section 11).

use std::collections::BTreeSet;
use std::time::Duration;

use consensus::{RecoverError, Store, StoreError, discard, held, recover};
use model::{NodeId, Timestamp, Uuid};

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_member_goes_on_alone_and_the_old_ones_stay_out() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    let done = propose(&logs[0], vec![job("kept")]).await.unwrap();
    until_applied(&logs[2], done.index).await;
    let before = logs[2].state();
    for node in [1, 2, 3] {
        lab.stop(node).await;
    }
    drop(logs);

    let id = Uuid::from_u128(0x22);
    let recovered = recover(&lab.dir(3), NodeId(3), id, Vec::new(), Timestamp(5)).await.unwrap();
    assert_eq!((recovered.incarnation.n, recovered.incarnation.id), (2, id));
    assert_eq!(recovered.previous, before.incarnation);
    assert!(recovered.fork_point.index >= done.index);
    assert_eq!(recovered.others.keys().copied().collect::<BTreeSet<_>>(), ids([1, 2]));

    let three = lab.start(3).await;
    until(&three, |status| status.is_leader).await;
    three.read_barrier(LONG).await.unwrap();
    assert_eq!(three.status().voters, ids([3]));
    assert_eq!(users(&three), ["kept"]);
    assert_eq!(three.incarnation(), recovered.incarnation);
    let state = three.state();
    assert_eq!(state.incarnation, recovered.incarnation);
    assert_eq!(state.lineage, [(before.incarnation, recovered.fork_point)]);

    // An old member returns: it is refused, and it can't get through to the new incarnation either.
    let one = lab.start(1).await;
    let two = lab.start(2).await;
    let old = leader_of(&[&one, &two]).await;
    submit(&old, "in the old incarnation").await.unwrap();
    submit(&three, "in the new one").await.unwrap();
    three.add_learner(NodeId(1), info(1), Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(users(&three), ["kept", "in the new one"]);
    assert_eq!(one.incarnation(), before.incarnation);
    assert!(!users(&one).contains(&"in the new one".into()));
    three.remove(NodeId(1), LONG).await.unwrap();

    // Wiped and added under a new number, it is welcome.
    let four = lab.start(4).await;
    three.add_learner(NodeId(4), info(4), LONG).await.unwrap();
    until_applied(&four, three.view().index).await;
    assert_eq!(four.state(), three.state());
    assert_eq!(four.incarnation(), recovered.incarnation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_outbids_every_incarnation_that_was_seen() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    until_applied(&logs[1], logs[0].view().index).await;
    until_applied(&logs[2], logs[0].view().index).await;
    for node in [1, 2, 3] {
        lab.stop(node).await;
    }
    drop(logs);
    let first = recover(&lab.dir(3), NodeId(3), Uuid::from_u128(3), Vec::new(), Timestamp(5)).await.unwrap();
    let three = lab.start(3).await;
    until(&three, |status| status.is_leader).await;
    // Node 1 hears of it by being refused.
    let one = lab.start(1).await;
    three.add_learner(NodeId(1), info(1), Duration::from_millis(500)).await.unwrap_err();
    lab.stop(1).await;
    drop(one);
    let second = recover(&lab.dir(1), NodeId(1), Uuid::from_u128(1), Vec::new(), Timestamp(6)).await.unwrap();
    assert!(second.incarnation.n > first.incarnation.n);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_refuses_a_running_daemon_and_an_empty_store() {
    let lab = Lab::new();
    let one = lab.found().await;
    let error = recover(&lab.dir(1), NodeId(1), Uuid::from_u128(1), Vec::new(), Timestamp(5)).await.unwrap_err();
    assert!(matches!(error, RecoverError::Store(StoreError::InUse { .. })), "{error}");
    submit(&one, "unharmed").await.unwrap();
    let error = recover(&lab.dir(2), NodeId(2), Uuid::from_u128(1), Vec::new(), Timestamp(5)).await.unwrap_err();
    assert!(matches!(error, RecoverError::Empty), "{error}");
}

/// Two nodes, the vote on the one that dies: the other goes on from its copy as a learner. What the dead one had alone is
/// kept and told, and it gets the new log under its old number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_goes_on_alone_and_the_old_voter_comes_back_without_its_own_end_of_the_log() {
    let lab = Lab::new();
    let one = lab.found().await;
    let two = lab.start(2).await;
    one.add_learner(NodeId(2), info(2), LONG).await.unwrap();
    let common = propose(&one, vec![job("both have it")]).await.unwrap();
    until_applied(&two, common.index).await;
    lab.stop(2).await;
    drop(two);
    submit(&one, "node 1 alone has it").await.unwrap();
    lab.stop(1).await;
    drop(one);

    let recovered = recover(&lab.dir(2), NodeId(2), Uuid::from_u128(2), vec![NodeId(1)], Timestamp(5)).await.unwrap();
    let two = lab.start(2).await;
    until(&two, |status| status.is_leader).await;
    two.read_barrier(LONG).await.unwrap();
    submit(&two, "in the new incarnation").await.unwrap();

    let store = Store::open(&lab.dir(1), NodeId(1), None).unwrap();
    let old = held(&store).unwrap();
    assert_eq!((old.incarnation, old.voters), (recovered.previous, ids([1])));
    assert_eq!(
        old.state.jobs.values().map(|job| job.user.as_str()).collect::<Vec<_>>(),
        ["both have it", "node 1 alone has it"]
    );
    drop(store);
    let keep = lab.dir(1).join("kept");
    let surplus = discard(&lab.dir(1), NodeId(1), recovered.incarnation, recovered.fork_point, &keep).await.unwrap();
    let commands: Vec<_> = surplus.iter().map(|entry| (entry.index, entry.commands.clone())).collect();
    assert_eq!(commands, [(recovered.fork_point.index + 1, vec![job("node 1 alone has it")])]);
    assert!(keep.metadata().unwrap().len() > 0);

    let one = lab.start(1).await;
    assert_eq!(one.incarnation(), recovered.incarnation);
    two.add_learner(NodeId(1), info(1), LONG).await.unwrap();
    until_applied(&one, two.view().index).await;
    assert_eq!(one.state(), two.state());
    assert_eq!(users(&one), ["both have it", "in the new incarnation"]);
}
