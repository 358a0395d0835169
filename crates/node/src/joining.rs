//! Joining a cluster by a one-time token, both sides.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use model::{Applied, Command, NewNode, NodeId, State, Uuid};
use opcodes::wire::{API_PORT, Join};
use opcodes::{ErrorCode, Failure};
use rpc::{ClusterCa, Fault, FaultKind, Identity, JoinReply, JoinRequest, JoinToken, NodeKey, PeerAddr, SecretDigest};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::founding::resolve;
use crate::member::Member;

/// Bytes that a request to join may have; a certificate request has less than a thousand.
const REQUEST_LIMIT: usize = 64 << 10;
/// How long a machine may take to send it. Anybody can connect: nobody shall keep a connection by sending slowly.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// What the cluster tells a machine besides its certificate.
#[derive(Default, Serialize, Deserialize)]
struct Extra {
    is_witness: bool,
}

/// The machine's side: shows the token, gets an identity, and learns whether it is a witness.
pub async fn join(config: &Config, join: &Join) -> Result<(Identity, bool), Failure> {
    let token = JoinToken::parse(&join.token)
        .map_err(|error| Failure::refused(ErrorCode::WrongInput, format!("The join token is not valid: {error}")))?;
    let address = address(&join.address).await?;
    let failed = |error: &dyn std::error::Error| Failure::failed(crate::chain(error));
    let key = NodeKey::generate().map_err(|error| failed(&error))?;
    let request = JoinRequest {
        secret: token.secret.clone(),
        node_name: config.host_name.clone(),
        csr_pem: key.csr_pem(&config.host_name).map_err(|error| failed(&error))?,
        extra: serde_json::Value::Null,
    };
    let reply = rpc::join(address, &token, &request).await.map_err(|error| failed(&error))?;
    let extra: Extra = serde_json::from_value(reply.extra).unwrap_or_default();
    let identity = key.into_identity(&reply.cert_pem, &reply.ca_pem).map_err(|error| failed(&error))?;
    Ok((identity, extra.is_witness))
}

async fn address(text: &str) -> Result<SocketAddr, Failure> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => {
                return Err(Failure::refused(ErrorCode::WrongInput, format!("'{text}' is not an address to join")));
            }
        },
        None => (text, API_PORT),
    };
    let host = match host.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => IpAddr::V4(resolve(host).await.map_err(|why| {
            Failure::refused(ErrorCode::ResolverError, format!("The given name ({host}) does not resolve: {why}"))
        })?),
    };
    Ok(SocketAddr::new(host, port))
}

/// The cluster's side of port 5080.
pub fn router(member: Arc<Member>) -> Router {
    Router::new().route(rpc::join::JOIN_PATH, post(endpoint)).with_state(member)
}

async fn endpoint(
    Shared(member): Shared<Arc<Member>>,
    Extension(PeerAddr(from)): Extension<PeerAddr>,
    body: Body,
) -> Response {
    // Guesses are not slowed down: a secret has 128 random bits.
    let outcome = match read(body).await {
        Ok(request) => admit(&member, request).await,
        Err(fault) => Err(fault),
    };
    match outcome {
        Ok(reply) => Json(reply).into_response(),
        Err(fault) => {
            tracing::info!(target: "audit", %from, fault = fault.message, "refused to let a machine join");
            (fault.kind.status(), Json(fault)).into_response()
        }
    }
}

async fn read(body: Body) -> Result<JoinRequest, Fault> {
    match tokio::time::timeout(REQUEST_TIME, axum::body::to_bytes(body, REQUEST_LIMIT)).await {
        Ok(Ok(bytes)) => rpc::server::from_json(&bytes),
        Ok(Err(error)) => Err(Fault::new(FaultKind::BadRequest, format!("the request can't be read: {error}"))),
        Err(_) => Err(Fault::new(FaultKind::BadRequest, "the request did not come in time")),
    }
}

/// The cluster's side, on the master: checks the secret, gives the machine its number and its certificate.
async fn admit(member: &Arc<Member>, request: JoinRequest) -> Result<JoinReply, Fault> {
    let Some(office) = member.office.borrow().clone() else {
        let state = member.state();
        let master = state.office.map(|office| state.node_name(office.node)).unwrap_or_default();
        return Err(Fault::new(
            FaultKind::Unavailable,
            format!("'{}' is not the master; join at '{master}'", member.name()),
        ));
    };
    let state = member.state();
    let (token, new) = find_token(&state, &request).ok_or_else(|| {
        Fault::new(
            FaultKind::Forbidden,
            "the join token is not valid here: it was used, has expired, or was never given; run 'gnt-node add' again",
        )
    })?;
    if new.name != request.node_name {
        return Err(Fault::new(
            FaultKind::Conflict,
            format!("the join token is for the machine '{}', this one is called '{}'", new.name, request.node_name),
        ));
    }
    let internal = |text: String| Fault::new(FaultKind::Internal, text);
    let Some(cluster) = &state.cluster else { return Err(internal("there is no cluster here".into())) };
    let ca = ClusterCa::from_pem(&cluster.ca_key).map_err(|error| internal(crate::chain(&error)))?;
    // Signed for a number that is not given yet only to refuse a request that can't be signed before anything changes.
    ca.sign_csr(&request.csr_pem, cluster.uuid, 0)
        .map_err(|error| Fault::new(FaultKind::BadRequest, crate::chain(&error)))?;
    let applied = office
        .submit(vec![Command::AddNode { token }])
        .await
        .map_err(|failure| Fault::new(FaultKind::Conflict, failure.text))?;
    let [Applied::Node(NodeId(number))] = applied.as_slice() else {
        return Err(internal("the node was added, but got no number".into()));
    };
    let cert_pem =
        ca.sign_csr(&request.csr_pem, cluster.uuid, *number).map_err(|error| internal(crate::chain(&error)))?;
    let extra = Extra { is_witness: !new.master_capable && !new.vm_capable };
    let extra = serde_json::to_value(extra).map_err(|error| internal(error.to_string()))?;
    Ok(JoinReply { cert_pem, ca_pem: ca.cert_pem(), extra })
}

fn find_token<'a>(state: &'a State, request: &JoinRequest) -> Option<(Uuid, &'a NewNode)> {
    state.tokens.iter().find_map(|(id, token)| {
        let digest: SecretDigest = token.secret_sha256.parse().ok()?;
        digest.matches(&request.secret).then_some((*id, &token.node))
    })
}
