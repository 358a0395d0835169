//! Who is not let in.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use rpc::{CallError, ConnectError, FaultKind, Identity, Lane, MAX_BODY, tls};
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::{AMPLE, Cluster, Relay, anywhere, serve};

fn trust(identity: &Identity) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca().clone()).unwrap();
    roots
}

/// TLS to node 1 of our cluster, presenting what another identity has to present, or nothing. (A [`Client`](rpc::Client)
/// wouldn't do: it refuses a server of another CA before it comes to its own certificate.)
async fn connect(addr: SocketAddr, trusted: &Identity, present: Option<&Identity>) -> TlsStream<TcpStream> {
    let ours = tls::client_config(trusted, 1).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(trust(trusted))
        .with_no_client_auth();
    if let Some(identity) = present {
        config.client_auth_cert_resolver = tls::client_config(identity, 1).unwrap().client_auth_cert_resolver.clone();
    }
    // The check of the server is not what is tested: take the one that knows no host names.
    let mut checked = (*ours).clone();
    checked.client_auth_cert_resolver = config.client_auth_cert_resolver;
    let name = ServerName::IpAddress(addr.ip().into());
    TlsConnector::from(Arc::new(checked)).connect(name, TcpStream::connect(addr).await.unwrap()).await.unwrap()
}

/// Sends a call by hand and returns what comes back until the server hangs up.
async fn raw_call(mut stream: TlsStream<TcpStream>, head: &str) -> std::io::Result<String> {
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

const ECHO: &str = "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_member_by_hand_is_served() {
    // So that the refusals below are not for another reason.
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let me = cluster.node(2);
    let answer = raw_call(connect(server.local_addr(), &me, Some(&me)).await, ECHO).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(probe.calls(), 1);
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let (server, probe) = serve(&cluster.node(1)).await;
    let stream = connect(server.local_addr(), &cluster.node(2), Some(&other.node(2))).await;
    // Both CAs have the same name, so that only the signature gives the stranger away.
    let error = raw_call(stream, ECHO).await.unwrap_err().to_string();
    assert!(error.contains("fatal alert"), "{error}");
    assert_eq!(probe.calls(), 0);
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let (server, probe) = serve(&cluster.node(1)).await;
    let client = other.client(2);
    let error = client.call(1, server.local_addr(), Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { source: ConnectError::Identity(_), .. }), "{error:?}");
    assert_eq!(probe.calls(), 0);
}

#[tokio::test]
async fn the_same_ca_but_another_cluster_is_refused() {
    let cluster = Cluster::new();
    let other = Cluster { id: uuid::Uuid::new_v4(), ca: rpc::ClusterCa::from_pem(&cluster.ca.to_pem()).unwrap() };
    let (server, probe) = serve(&cluster.node(1)).await;
    let stream = connect(server.local_addr(), &cluster.node(2), Some(&other.node(2))).await;
    let answer = raw_call(stream, ECHO).await;
    assert!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(String::is_empty), "{answer:?}");
    assert_eq!(probe.calls(), 0);
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let stream = connect(server.local_addr(), &cluster.node(2), None).await;
    let error = raw_call(stream, ECHO).await.unwrap_err().to_string();
    assert!(error.contains("CertificateRequired"), "{error}");
    assert_eq!(probe.calls(), 0);
}

#[tokio::test]
async fn a_server_that_refuses_our_certificate_has_not_done_the_call() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let node = cluster.node(1);
    let provider = Arc::new(default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(trust(&other.node(9))), provider.clone());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(node.chain(), node.key())
        .unwrap();
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (_, mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).into_fallible().await.err().unwrap();
        while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {}
    });
    let error = cluster.client(2).call(1, addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { source: ConnectError::Identity(_), .. }), "{error:?}");
    assert!(error.never_sent());
    server.await.unwrap();
}

#[tokio::test]
async fn another_node_behind_the_address_is_refused() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let error =
        cluster.client(2).call(3, server.local_addr(), Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap_err();
    let CallError::NotSent { source: ConnectError::WrongNode(wrong), .. } = &error else { panic!("{error:?}") };
    assert_eq!((wrong.expected.node, wrong.found.node), (3, 1));
    assert_eq!(probe.calls(), 0);
}

#[tokio::test]
async fn a_removed_node_is_refused_on_its_open_connection_and_on_a_new_one() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let relay = Relay::to(server.local_addr()).await;
    let client = cluster.client(2);
    client.call(1, relay.addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();

    probe.remove_the_caller();
    for connections in [1, 2] {
        let error = client.call(1, relay.addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap_err();
        assert_eq!(error.fault().map(|f| f.kind), Some(FaultKind::Forbidden), "{error:?}");
        assert_eq!(relay.accepted(), connections);
        // Refused, and hung up on.
        relay.closed_by_caller().await;
    }
    assert_eq!(probe.calls(), 1);
}

#[tokio::test]
async fn a_removed_node_loses_its_idle_connections() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let relay = Relay::to(server.local_addr()).await;
    let client = cluster.client(2);
    client.call(1, relay.addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();

    // One that is still a member keeps its own.
    server.recheck();
    client.call(1, relay.addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
    assert_eq!(relay.accepted(), 1);

    probe.remove_the_caller();
    server.recheck();
    relay.closed_by_caller().await;

    // When it comes again it is still told why not.
    let again = client.call(1, relay.addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap_err();
    assert_eq!(again.fault().map(|f| f.kind), Some(FaultKind::Forbidden), "{again:?}");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_before_it_comes() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let me = cluster.node(2);
    let head = format!("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", MAX_BODY + 1);
    let answer = raw_call(connect(server.local_addr(), &me, Some(&me)).await, &head).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(probe.calls(), 0);
}

#[tokio::test]
async fn what_is_not_http_is_hung_up_on() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let me = cluster.node(2);
    let answer =
        raw_call(connect(server.local_addr(), &me, Some(&me)).await, "\x16\x03 rubbish\r\n\r\n").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(probe.calls(), 0);
}
