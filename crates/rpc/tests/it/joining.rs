//! How a machine becomes a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use rpc::join::{JOIN_PATH, join_server_config};
use rpc::{
    ClusterCa, Fault, FaultKind, Identity, JoinError, JoinReply, JoinRequest, JoinToken, NodeKey, PeerAddr,
    SecretDigest, TlsServer, join, serve_tls,
};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use uuid::Uuid;

use crate::support::{Cluster, anywhere};

struct Door {
    ca: ClusterCa,
    cluster: Uuid,
    expected: SecretDigest,
    knocks: AtomicUsize,
}

async fn let_in(
    State(door): State<Arc<Door>>,
    Extension(PeerAddr(from)): Extension<PeerAddr>,
    Json(request): Json<JoinRequest>,
) -> Result<Json<JoinReply>, (StatusCode, Json<Fault>)> {
    door.knocks.fetch_add(1, Ordering::SeqCst);
    assert!(from.ip().is_loopback());
    if !door.expected.matches(&request.secret) {
        let fault = Fault::new(FaultKind::Forbidden, "the token is not known; it may have been used or be too old");
        return Err((fault.kind.status(), Json(fault)));
    }
    let cert_pem = door.ca.sign_csr(&request.csr_pem, door.cluster, 2).unwrap();
    Ok(Json(JoinReply { cert_pem, ca_pem: door.ca.cert_pem(), extra: request.extra }))
}

/// A node with an open door, and the token for it.
async fn open_door(cluster: &Cluster) -> (TlsServer, Arc<Door>, JoinToken) {
    open_door_with(cluster, join_server_config(&cluster.node(1)).unwrap()).await
}

async fn open_door_with(cluster: &Cluster, tls: Arc<ServerConfig>) -> (TlsServer, Arc<Door>, JoinToken) {
    let token = JoinToken::generate(cluster.ca.fingerprint()).unwrap();
    let door = Arc::new(Door {
        ca: ClusterCa::from_pem(&cluster.ca.to_pem()).unwrap(),
        cluster: cluster.id,
        expected: token.secret.digest(),
        knocks: AtomicUsize::new(0),
    });
    let app = Router::new().route(JOIN_PATH, post(let_in)).with_state(door.clone());
    let listener = rpc::serve::bind(anywhere()).await.unwrap();
    (serve_tls(listener, tls, app).unwrap(), door, token)
}

fn request(token: &JoinToken, key: &NodeKey) -> JoinRequest {
    JoinRequest {
        secret: token.secret.clone(),
        node_name: "node02".into(),
        csr_pem: key.csr_pem("node02").unwrap(),
        extra: serde_json::json!({"primary": "10.0.0.6"}),
    }
}

#[tokio::test]
async fn the_right_token_makes_a_node() {
    let cluster = Cluster::new();
    let (server, door, token) = open_door(&cluster).await;
    let typed: JoinToken = token.to_string().parse().unwrap();
    let key = NodeKey::generate().unwrap();
    let reply = join(server.local_addr(), &typed, &request(&typed, &key)).await.unwrap();
    assert_eq!(reply.extra["primary"], "10.0.0.6");
    let identity = key.into_identity(&reply.cert_pem, &reply.ca_pem).unwrap();
    assert_eq!((identity.cluster_id(), identity.node_id()), (cluster.id, 2));
    assert_eq!(door.knocks.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_wrong_secret_is_refused_by_the_cluster() {
    let cluster = Cluster::new();
    let (server, _door, _token) = open_door(&cluster).await;
    let forged = JoinToken::generate(cluster.ca.fingerprint()).unwrap();
    let error = join(server.local_addr(), &forged, &request(&forged, &NodeKey::generate().unwrap())).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused(f) if f.kind == FaultKind::Forbidden), "{error:?}");
}

#[tokio::test]
async fn a_cluster_with_another_fingerprint_does_not_get_the_secret() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let (server, door, _token) = open_door(&cluster).await;
    let token = JoinToken::generate(other.ca.fingerprint()).unwrap();
    let error = join(server.local_addr(), &token, &request(&token, &NodeKey::generate().unwrap())).await.unwrap_err();
    assert!(matches!(error, JoinError::OtherCluster { .. }), "{error:?}");
    assert_eq!(door.knocks.load(Ordering::SeqCst), 0);
}

/// The CA's certificate is public: whoever shows it must also have a certificate that it signed.
#[tokio::test]
async fn an_impostor_that_shows_the_right_ca_does_not_get_the_secret() {
    let (cluster, evil) = (Cluster::new(), Cluster::new());
    let impostor: Identity = evil.node(1);
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![impostor.chain()[0].clone(), cluster.node(1).ca().clone()], impostor.key())
        .unwrap();
    let (server, door, token) = open_door_with(&cluster, Arc::new(config)).await;
    let error = join(server.local_addr(), &token, &request(&token, &NodeKey::generate().unwrap())).await.unwrap_err();
    assert!(matches!(error, JoinError::OtherCluster { .. }), "{error:?}");
    assert_eq!(door.knocks.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn nobody_at_the_address_is_said() {
    let cluster = Cluster::new();
    let (server, _door, token) = open_door(&cluster).await;
    let addr = server.local_addr();
    server.shutdown().await;
    let error = join(addr, &token, &request(&token, &NodeKey::generate().unwrap())).await.unwrap_err();
    assert!(matches!(error, JoinError::Connect { .. }), "{error:?}");
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
}
