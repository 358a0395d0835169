//! Joining a cluster by a one-time token, both sides.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{Applied, Command, NodeId, State, Uuid};
use opcodes::wire::{API_PORT, Join};
use opcodes::{ErrorCode, Failure};
use rpc::{ClusterCa, Fault, FaultKind, Identity, JoinReply, JoinRequest, JoinToken, NodeKey, SecretDigest};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::founding::resolve;
use crate::member::Member;

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

/// The cluster's side, on the master: checks the secret, gives the machine its number and its certificate.
pub async fn admit(member: &Arc<Member>, request: JoinRequest) -> Result<JoinReply, Fault> {
    let Some(office) = member.office.borrow().clone() else {
        let state = member.state();
        let master = state.office.map(|office| state.node_name(office.node)).unwrap_or_default();
        return Err(Fault::new(
            FaultKind::Unavailable,
            format!("'{}' is not the master; join at '{master}'", member.name()),
        ));
    };
    let state = member.state();
    let token = find_token(&state, &request).ok_or_else(|| {
        Fault::new(
            FaultKind::Forbidden,
            "the join token is not valid here: it was used, has expired, or was never given; run 'gnt-node add' again",
        )
    })?;
    let expected = &state.tokens[&token].node.name;
    if *expected != request.node_name {
        return Err(Fault::new(
            FaultKind::Conflict,
            format!("the join token is for the machine '{expected}', this one is called '{}'", request.node_name),
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
        return Err(internal(format!("a node was added without a number: {applied:?}")));
    };
    let cert_pem =
        ca.sign_csr(&request.csr_pem, cluster.uuid, *number).map_err(|error| internal(crate::chain(&error)))?;
    let new = &state.tokens[&token].node;
    let extra = Extra { is_witness: !new.master_capable && !new.vm_capable };
    let extra = serde_json::to_value(extra).map_err(|error| internal(error.to_string()))?;
    Ok(JoinReply { cert_pem, ca_pem: ca.cert_pem(), extra })
}

fn find_token(state: &State, request: &JoinRequest) -> Option<Uuid> {
    state.tokens.iter().find_map(|(id, token)| {
        let digest: SecretDigest = token.secret_sha256.parse().ok()?;
        digest.matches(&request.secret).then_some(*id)
    })
}
