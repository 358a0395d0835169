//! Calls, and what the caller knows when there is no answer.

use std::time::Duration;

use bytes::Bytes;
use rpc::{CallError, ConnectError, FaultKind, Lane, MAX_BODY};

use crate::support::{AMPLE, Cluster, Relay, anywhere, happens, serve, serve_with};

#[tokio::test]
async fn a_call_is_answered_and_the_server_knows_who_called() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let client = cluster.client(2);

    let body = Bytes::from_static(b"hello");
    let answer = client.call(1, server.local_addr(), Lane::Control, "/echo", body.clone(), AMPLE).await.unwrap();
    assert_eq!(answer, body);
    let sent = vec![(1u32, "one".to_owned()), (2, "two".to_owned())];
    let back: Vec<(u32, String)> =
        client.call_json(1, server.local_addr(), Lane::Control, "/echo", &sent, AMPLE).await.unwrap();
    assert_eq!(back, sent);
    let callers = probe.callers.lock().unwrap();
    assert!(callers.iter().all(|c| (c.cluster, c.node) == (cluster.id, 2)), "{callers:?}");
}

#[tokio::test]
async fn a_large_body_travels_both_ways() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let body = Bytes::from(vec![7; 8 << 20]);
    let answer =
        cluster.client(2).call(1, server.local_addr(), Lane::Bulk, "/echo", body.clone(), AMPLE).await.unwrap();
    assert_eq!(answer, body);
}

#[tokio::test]
async fn connections_are_used_again_and_lanes_share_none() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let relay = Relay::to(server.local_addr()).await;
    let client = cluster.client(2);
    for _ in 0..5 {
        for lane in [Lane::Raft, Lane::Control, Lane::Bulk] {
            client.call(1, relay.addr, lane, "/echo", Bytes::new(), AMPLE).await.unwrap();
        }
    }
    assert_eq!(relay.accepted(), 3);
}

#[tokio::test]
async fn a_slow_call_holds_up_no_other() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let (client, addr) = (cluster.client(2), server.local_addr());
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.call(1, addr, Lane::Control, "/wait", Bytes::new(), AMPLE).await }
    });
    happens(&probe.entered).await;
    client.call(1, addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
    probe.release.notify_one();
    slow.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_fault_comes_back_as_it_was_sent() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let error =
        cluster.client(2).call(1, server.local_addr(), Lane::Control, "/busy", Bytes::new(), AMPLE).await.unwrap_err();
    let fault = error.fault().unwrap();
    assert_eq!((fault.kind, fault.retry_after_ms), (FaultKind::Unavailable, Some(20)));
    assert!(!error.never_sent());
    assert_eq!(error.to_string(), "node 1 refused /busy: busy");
}

#[tokio::test]
async fn a_bug_in_one_call_is_a_fault_and_ends_nothing_else() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let (client, addr) = (cluster.client(2), server.local_addr());
    let error = client.call(1, addr, Lane::Control, "/bug", Bytes::new(), AMPLE).await.unwrap_err();
    assert_eq!(error.fault().unwrap().kind, FaultKind::Internal);
    client.call(1, addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
}

#[tokio::test]
async fn nobody_there_means_never_sent() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let addr = server.local_addr();
    server.shutdown().await;
    let error = cluster.client(2).call(1, addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { source: ConnectError::Network(_), .. }), "{error:?}");
    assert!(error.never_sent());
}

#[tokio::test]
async fn a_connection_lost_during_a_call_means_unknown() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let relay = Relay::to(server.local_addr()).await;
    let client = cluster.client(2);
    let call = client.call(1, relay.addr, Lane::Control, "/wait", Bytes::new(), AMPLE);
    let cut = async {
        happens(&probe.entered).await;
        relay.cut().await;
    };
    let (result, ()) = tokio::join!(call, cut);
    let error = result.unwrap_err();
    assert!(matches!(error, CallError::Lost { .. }), "{error:?}");
    assert!(!error.never_sent() && error.fault().is_none());

    // Rightly unknown: the call goes on to its end.
    probe.release.notify_one();
    happens(&probe.finished).await;
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_replaced_unnoticed() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let relay = Relay::to(server.local_addr()).await;
    let client = cluster.client(2);
    client.call(1, relay.addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
    relay.cut().await;
    client.call(1, relay.addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
    assert_eq!((relay.accepted(), probe.calls()), (2, 2));
}

#[tokio::test]
async fn a_server_that_comes_back_on_its_port_is_called_again() {
    let cluster = Cluster::new();
    let node = cluster.node(1);
    let (server, probe) = serve(&node).await;
    let (client, addr) = (cluster.client(2), server.local_addr());
    server.shutdown().await;
    client.call(1, addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap_err();
    let _server = serve_with(&node, probe, addr).await;
    client.call(1, addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
}

#[tokio::test]
async fn no_answer_in_time_means_unknown_and_the_call_runs_to_its_end() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let (client, addr) = (cluster.client(2), server.local_addr());
    // The connection is made first, so that the short time is spent waiting for the answer.
    client.call(1, addr, Lane::Raft, "/echo", Bytes::new(), AMPLE).await.unwrap();
    let short = Duration::from_millis(50);
    let error = client.call(1, addr, Lane::Raft, "/wait", Bytes::new(), short).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline { sent: true, .. }), "{error:?}");
    assert!(!error.never_sent());
    happens(&probe.entered).await;
    probe.release.notify_one();
    happens(&probe.finished).await;
}

#[tokio::test]
async fn no_connection_in_time_means_never_sent() {
    let cluster = Cluster::new();
    // The kernel takes the connection, but nobody ever answers the TLS handshake.
    let deaf = tokio::net::TcpListener::bind(anywhere()).await.unwrap();
    let (addr, short) = (deaf.local_addr().unwrap(), Duration::from_millis(50));
    let error = cluster.client(2).call(1, addr, Lane::Raft, "/echo", Bytes::new(), short).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline { sent: false, .. }), "{error:?}");
    assert!(error.never_sent());
}

#[tokio::test]
async fn a_body_that_is_too_long_is_not_even_sent() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let body = Bytes::from(vec![0; MAX_BODY + 1]);
    let error = cluster.client(2).call(1, server.local_addr(), Lane::Bulk, "/echo", body, AMPLE).await.unwrap_err();
    assert!(error.never_sent(), "{error:?}");
    assert_eq!(probe.calls(), 0);
}

#[tokio::test]
async fn an_answer_that_is_not_what_was_expected_is_not_a_refusal() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let client = cluster.client(2);
    let error =
        client.call_json::<_, u32>(1, server.local_addr(), Lane::Control, "/echo", "text", AMPLE).await.unwrap_err();
    assert!(matches!(error, CallError::Answer { .. }), "{error:?}");
    assert!(!error.never_sent() && error.fault().is_none());
}
