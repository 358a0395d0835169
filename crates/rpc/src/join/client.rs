//! The joining machine's side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{JOIN_PATH, JoinReply, JoinRequest, JoinToken};
use crate::fault::Fault;
use crate::identity::{Fingerprint, PeerIdentity, encoding};
use crate::listen::{HANDSHAKE_TIME, tune};
use crate::tls::{TlsError, bad_certificate, check_chain, provider};

/// How long the cluster may take to answer: it commits the new member before it does.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Why a machine did not become a node. After [`Lost`](Self::Lost) it may be a member all the same: the cluster knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Our side of TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No connection.
    #[error("cannot reach the cluster at {addr}: is the address right, and does the daemon run there?")]
    Connect {
        /// The address that was tried.
        addr: SocketAddr,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else answers there. The secret was not sent.
    #[error("what answers at {addr} is not the cluster that the token is for; the token's secret was not sent")]
    OtherCluster {
        /// The address that was tried.
        addr: SocketAddr,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The cluster says no.
    #[error("the cluster refused: {0}")]
    Refused(Fault),
    /// The connection broke, or the answer makes no sense, after the secret was sent.
    #[error(
        "lost the connection to {addr} while joining; ask \"gnt-node list\" on the master whether this node is in it"
    )]
    Lost {
        /// The cluster's address.
        addr: SocketAddr,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A CA without the fingerprint, or none at all.
#[derive(Debug, thiserror::Error)]
#[error("no certificate with the token's fingerprint {0} is presented")]
struct NoSuchCa(Fingerprint);

/// Asks the cluster at `addr` (a node's API port) to let this machine in.
pub async fn join(addr: SocketAddr, token: &JoinToken, request: &JoinRequest) -> Result<JoinReply, JoinError> {
    let lost = |source: Box<dyn std::error::Error + Send + Sync>| JoinError::Lost { addr, source };
    let body = serde_json::to_vec(request).map_err(|e| lost(e.into()))?;
    let post = Request::post(JOIN_PATH)
        .header(HOST, addr.to_string())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| lost(e.into()))?;

    let stream = connect(addr, join_client_config(token)?).await?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost(e.into()))?;
    let exchange = async {
        let response = sender.send_request(post).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
    };
    let mut driver = std::pin::pin!(driver);
    let mut exchange = std::pin::pin!(exchange);
    let both = async {
        tokio::select! {
            answer = &mut exchange => return answer,
            _ = &mut driver => {}
        }
        // The connection is over; the answer may already have been read from it.
        exchange.await
    };
    let (status, body) = match tokio::time::timeout(ANSWER_TIME, both).await {
        Ok(answer) => answer.map_err(lost)?,
        Err(e) => return Err(lost(e.into())),
    };

    if status != StatusCode::OK {
        return match serde_json::from_slice(&body) {
            Ok(fault) => Err(JoinError::Refused(fault)),
            Err(_) => Err(lost(format!("answered with HTTP status {status} and no explanation").into())),
        };
    }
    let reply: JoinReply = serde_json::from_slice(&body).map_err(|e| lost(e.into()))?;
    let ca = encoding::certificate("the CA certificate", &reply.ca_pem).map_err(|e| lost(e.into()))?;
    if Fingerprint::of(&ca) != token.ca {
        return Err(lost(NoSuchCa(token.ca).into()));
    }
    Ok(reply)
}

async fn connect(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, JoinError> {
    let unreachable = |source| JoinError::Connect { addr, source };
    let connecting = async {
        let stream = TcpStream::connect(addr).await.map_err(unreachable)?;
        tune(&stream).map_err(unreachable)?;
        let name = ServerName::IpAddress(addr.ip().into());
        TlsConnector::from(config).connect(name, stream).await.map_err(|source| {
            match source.get_ref().and_then(|e| e.downcast_ref()) {
                Some(Error::InvalidCertificate(_)) => JoinError::OtherCluster { addr, source },
                _ => unreachable(source),
            }
        })
    };
    match tokio::time::timeout(HANDSHAKE_TIME, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(unreachable(std::io::ErrorKind::TimedOut.into())),
    }
}

/// For a machine that joins: TLS 1.3 to a node of the cluster whose CA has the token's fingerprint.
pub fn join_client_config(token: &JoinToken) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = TokenVerifier { ca: token.ca, provider: provider() };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Accepts any node of the cluster whose CA has this fingerprint.
#[derive(Debug)]
struct TokenVerifier {
    ca: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for TokenVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .iter()
            .find(|cert| Fingerprint::of(cert) == self.ca)
            .ok_or_else(|| bad_certificate(NoSuchCa(self.ca)))?;
        check_chain(end_entity, ca, now)?;
        PeerIdentity::of(end_entity).map_err(bad_certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
