//! TLS between nodes: both sides present a certificate of the cluster CA, and the caller checks that it reached the very
//! node that it meant. Addresses prove nothing: they move between machines.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{Identity, PeerIdentity};

/// Why a TLS configuration can't be made of an identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The library refuses the certificates or the key.
    #[error("cannot set up TLS with this node's certificate")]
    Config(#[from] Error),
    /// The library refuses the CA's certificate.
    #[error("cannot set up TLS with the cluster CA")]
    Verifier(#[from] VerifierBuilderError),
}

/// Another node than the one that was called has answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is that of {found}, not of {expected}")]
pub struct WrongNode {
    /// Whom we meant to reach.
    pub expected: PeerIdentity,
    /// Who is there.
    pub found: PeerIdentity,
}

/// The one source of cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    PROVIDER.clone()
}

/// Checks that a certificate was signed by this CA, holds at this time, and may be used by a server.
pub(crate) fn check_chain(leaf: &CertificateDer<'_>, ca: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(leaf)?, &*roots(ca)?, &[], now, algorithms)
}

fn roots(ca: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    Ok(Arc::new(roots))
}

/// For the side that is called: TLS 1.3, and a client certificate of our CA is demanded.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots(identity.ca())?, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(identity.chain(), identity.key())?;
    // A resumed session skips the check of the certificate. Connections live long here: there is nothing to gain.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For the side that calls: TLS 1.3, our own certificate, and the other side must be node `expect` of our cluster,
/// whatever its address.
pub fn client_config(identity: &Identity, expect: u64) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = NodeVerifier {
        roots: roots(identity.ca())?,
        expect: PeerIdentity { cluster: identity.cluster_id(), node: expect },
        provider: provider(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain(), identity.key())?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts one node of one cluster.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    expect: PeerIdentity,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms)?;
        let found = PeerIdentity::of(end_entity).map_err(bad_certificate)?;
        if found != self.expect {
            return Err(bad_certificate(WrongNode { expected: self.expect, found }));
        }
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

/// A certificate refused by our own rules rather than by the library's.
pub(crate) fn bad_certificate(reason: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}
