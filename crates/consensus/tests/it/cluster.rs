//! The life of a group: growth, loss, restart, handover.

use std::sync::Arc;
use std::time::Duration;

use consensus::{Config, MembershipError, ProposeError, ReadError, TransferError};
use model::NodeId;

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grows_from_one_voter_to_three_through_learners() {
    let lab = Lab::new();
    let one = lab.found().await;
    assert_eq!(one.status().voters, ids([1]));
    let first = submit(&one, "before").await.unwrap();

    let two = lab.start(2).await;
    one.add_learner(NodeId(2), info(2), LONG).await.unwrap();
    let status = one.status();
    assert_eq!((status.voters, status.learners), (ids([1]), ids([2])));
    assert_eq!(status.members[&NodeId(2)], info(2));

    let three = lab.start(3).await;
    one.add_learner(NodeId(3), info(3), LONG).await.unwrap();
    one.set_voters(ids([1, 2, 3]), LONG).await.unwrap();
    let status = one.status();
    assert_eq!((status.voters, status.learners), (ids([1, 2, 3]), ids([])));
    assert!(!status.joint);

    let done = propose(&one, vec![job("after")]).await.unwrap();
    for log in [&one, &two, &three] {
        until_applied(log, done.index).await;
        assert_eq!(users(log), ["before", "after"]);
        assert_eq!(log.state(), one.state());
        assert_eq!(log.incarnation(), one.state().incarnation);
    }
    assert_eq!(first.0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leads_when_the_leader_is_lost_and_nothing_is_lost_with_it() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    submit(&logs[0], "before").await.unwrap();
    let term = logs[0].status().term;
    lab.stop(1).await;
    let leader = leader_of(&[&logs[1], &logs[2]]).await;
    assert!(leader.status().term > term);
    leader.read_barrier(LONG).await.unwrap();
    assert_eq!(users(&leader), ["before"]);
    submit(&leader, "after").await.unwrap();

    let one = lab.start(1).await;
    until_applied(&one, leader.view().index).await;
    assert_eq!(users(&one), ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_confirmed_and_the_caller_is_told_soon() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    lab.net.cut(1);
    let began = std::time::Instant::now();
    let mut unknown = Vec::new();
    // Until it has noticed, what it is asked may be in its log: unknown. Then it refuses.
    loop {
        let user = format!("lost{}", unknown.len());
        match submit(&logs[0], &user).await {
            Err(ProposeError::Unknown(_)) => unknown.push(user),
            Err(ProposeError::NotLeader { .. }) => break,
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < LONG);
    }
    let barrier = logs[0].read_barrier(Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(barrier, ReadError::NoQuorum(_) | ReadError::NotLeader { .. }), "{barrier}");

    let leader = leader_of(&[&logs[1], &logs[2]]).await;
    submit(&leader, "kept").await.unwrap();
    lab.net.heal();
    until_applied(&logs[0], leader.view().index).await;
    assert_eq!(logs[0].state(), leader.state());
    assert!(users(&leader).contains(&"kept".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_refuses_and_names_the_leader() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    until(&logs[1], |status| status.leader == Some(NodeId(1))).await;
    let error = submit(&logs[1], "x").await.unwrap_err();
    assert_eq!(error, ProposeError::NotLeader { leader: Some(NodeId(1)) });
    let error = logs[1].read_barrier(LONG).await.unwrap_err();
    assert_eq!(error, ReadError::NotLeader { leader: Some(NodeId(1)) });
    let error = logs[1].add_learner(NodeId(4), info(4), LONG).await.unwrap_err();
    assert_eq!(error, MembershipError::NotLeader { leader: Some(NodeId(1)) });
    let error = logs[1].transfer_leader(NodeId(2), LONG).await.unwrap_err();
    assert_eq!(error, TransferError::NotLeader { leader: Some(NodeId(1)) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_changes_nothing_and_says_why() {
    let lab = Lab::new();
    let one = lab.found().await;
    let before = one.state();
    let error = propose(&one, vec![init()]).await.unwrap_err();
    assert_eq!(error, ProposeError::Rejected(model::Rejection::AlreadyInitialised));
    assert_eq!(one.state(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything() {
    // Few entries a snapshot, so that what is restored comes from both, snapshot and log.
    let config = Config { snapshot_every: 20, keep_entries: 5, ..Config::default() };
    let lab = Lab::with(config);
    let one = lab.found().await;
    let names: Vec<String> = (0..50).map(|number| format!("user{number}")).collect();
    for name in &names {
        submit(&one, name).await.unwrap();
    }
    let before = one.state();
    let status = one.status();
    lab.stop(1).await;
    drop(one);

    let one = lab.start(1).await;
    until(&one, |status| status.is_leader).await;
    one.read_barrier(LONG).await.unwrap();
    assert_eq!(one.state(), before);
    assert_eq!(users(&one), names);
    assert_eq!(one.incarnation(), before.incarnation);
    assert!(one.status().term > status.term);
    assert_eq!(one.status().members, status.members);
    // Known already: nothing to do, and no harm.
    one.bootstrap(info(1)).await.unwrap();
    submit(&one, "after").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_away_for_long_gets_a_snapshot() {
    let config = Config { snapshot_every: 20, keep_entries: 2, lease: Duration::from_millis(500), ..Config::default() };
    let lab = Lab::with(config);
    let logs = lab.voters(3).await;
    let leader = &logs[0];
    lab.stop(3).await;
    for number in 0..100 {
        submit(leader, &format!("user{number}")).await.unwrap();
    }
    let three = lab.start(3).await;
    until_applied(&three, leader.view().index).await;
    assert_eq!(three.state(), leader.state());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_back() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    for to in [2, 3, 1, 2] {
        let from = leader_of(&logs.iter().collect::<Vec<_>>()).await;
        let began = std::time::Instant::now();
        from.transfer_leader(NodeId(to), LONG).await.unwrap();
        eprintln!("handover to {to} took {:?}", began.elapsed());
        let next = &logs[to as usize - 1];
        until(next, |status| status.is_leader).await;
        submit(next, &format!("under{to}")).await.unwrap();
    }
    logs[1].read_barrier(LONG).await.unwrap();
    assert_eq!(users(&logs[1]), ["under2", "under3", "under1", "under2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_not_given_to_who_can_not_take_it() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    let four = lab.start(4).await;
    logs[0].add_learner(NodeId(4), info(4), LONG).await.unwrap();
    assert_eq!(logs[0].transfer_leader(NodeId(4), LONG).await, Err(TransferError::NotVoter(NodeId(4))));
    assert_eq!(logs[0].transfer_leader(NodeId(9), LONG).await, Err(TransferError::NotVoter(NodeId(9))));
    lab.stop(3).await;
    submit(&logs[0], "while 3 is away").await.unwrap();
    let within = Duration::from_millis(300);
    let error = logs[0].transfer_leader(NodeId(3), within).await.unwrap_err();
    assert_eq!(error, TransferError::TimedOut { to: NodeId(3), within });
    // It was not even tried: the leader goes on.
    submit(&logs[0], "after").await.unwrap();
    drop(four);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_voters_are_replaced_in_one_change() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    for node in [4, 5] {
        lab.start(node).await;
        logs[0].add_learner(NodeId(node), info(node), LONG).await.unwrap();
    }
    logs[0].set_voters(ids([1, 4, 5]), LONG).await.unwrap();
    let status = logs[0].status();
    assert_eq!((status.voters, status.learners, status.joint), (ids([1, 4, 5]), ids([2, 3]), false));
    for node in [2, 3] {
        logs[0].remove(NodeId(node), LONG).await.unwrap();
        lab.stop(node).await;
    }
    assert_eq!(logs[0].status().members.keys().copied().collect::<std::collections::BTreeSet<_>>(), ids([1, 4, 5]));
    // Removing twice is fine, removing oneself is not.
    logs[0].remove(NodeId(2), LONG).await.unwrap();
    assert!(matches!(logs[0].remove(NodeId(1), LONG).await, Err(MembershipError::Invalid(_))));
    // A voter is taken out in one step too.
    logs[0].remove(NodeId(5), LONG).await.unwrap();
    assert_eq!(logs[0].status().voters, ids([1, 4]));
    submit(&logs[0], "with the new voters").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_is_unreachable_is_reported_in_time() {
    let lab = Lab::new();
    let one = lab.found().await;
    let error = one.add_learner(NodeId(2), info(2), Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, MembershipError::Unknown(_)), "{error}");
    submit(&one, "still serves").await.unwrap();
    // The same again, once it is there.
    let two = lab.start(2).await;
    one.add_learner(NodeId(2), info(2), LONG).await.unwrap();
    until_applied(&two, one.view().index).await;
    assert_eq!(two.state(), one.state());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_keep_what_they_hold_while_the_state_moves_on() {
    let lab = Lab::new();
    let one = lab.found().await;
    let held = one.view();
    submit(&one, "later").await.unwrap();
    assert!(held.state.jobs.is_empty());
    assert!(one.view().index > held.index);
    assert_eq!(one.state().jobs.len(), 1);
    // Who holds nothing costs nothing: two views of one state are the same.
    assert!(Arc::ptr_eq(&one.state(), &one.state()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contact_with_a_majority_is_measured() {
    let lab = Lab::new();
    let logs = lab.voters(3).await;
    logs[0].read_barrier(LONG).await.unwrap();
    assert!(logs[0].quorum_age().is_some());
    assert!(logs[1].quorum_age().is_none());
}

/// Nothing is replicated to nobody, so nothing is acknowledged either: a sole voter counts as its own majority all the
/// same, or a cluster of one would drop its address after a second of silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_voter_is_its_own_majority() {
    let lab = Lab::new();
    let log = lab.found().await;
    assert_eq!(log.quorum_age(), Some(Duration::ZERO));
}
