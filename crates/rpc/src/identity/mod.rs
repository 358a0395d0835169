//! Who a node is: its key, its certificate, and the cluster CA that vouches for it.
//!
//! A key never leaves the node that made it: the node sends a signing request, and the CA answers with a certificate. What
//! the certificate says about the node is one URI among its alternative names, `cardume://<cluster uuid>/<node number>`.
//! Addresses are not in it, so that a node can be given another address without a new certificate.

mod ca;
pub(crate) mod encoding;
mod files;
mod peer;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use uuid::Uuid;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use ca::{ClusterCa, VALIDITY};
pub use peer::PeerIdentity;

use crate::tls;

/// Why an identity can't be made, read or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A key, request or certificate could not be made.
    #[error("cannot make {what}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Cause.
        #[source]
        source: rcgen::Error,
    },
    /// The system gave no randomness.
    #[error("cannot make {what}: the system's random source failed")]
    Random {
        /// What was to be made.
        what: &'static str,
    },
    /// Something is not the PEM that it should be.
    #[error("cannot read {what}: not valid PEM")]
    Pem {
        /// What was to be read.
        what: &'static str,
        /// Cause.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A signing request is damaged, or not signed with the key that it asks a certificate for.
    #[error("cannot sign the certificate request: it is damaged or not signed with its own key")]
    Request {
        /// Cause.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate is damaged or does not say which node it is for.
    #[error("cannot use {what}: {reason}")]
    Certificate {
        /// Which certificate.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Key and certificate don't belong together.
    #[error("cannot use {what}: its certificate was made for another key")]
    KeyMismatch {
        /// Whose key.
        what: &'static str,
    },
    /// The certificate is not good under the CA that came with it.
    #[error("cannot use the node certificate: it does not hold under the cluster CA (is this machine's clock right?)")]
    Chain {
        /// Cause.
        #[source]
        source: rustls::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A file that was there before, or that is there in part, holds something unusable.
    #[error("{} is damaged; restore it, or remove the node from the cluster and let it join again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<IdentityError>,
    },
}

/// SHA-256 of a certificate in DER. Shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Fingerprint of a certificate.
    pub fn of(cert: &CertificateDer<'_>) -> Self {
        Self(encoding::sha256(cert))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoding::hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a SHA-256 in hexadecimal: 64 digits are needed")]
pub struct NotHex;

impl FromStr for Fingerprint {
    type Err = NotHex;

    fn from_str(s: &str) -> Result<Self, NotHex> {
        encoding::unhex(s).map(Self).ok_or(NotHex)
    }
}

/// A node's private key before it has a certificate.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// Makes a new ECDSA P-256 key.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|source| IdentityError::Make { what: "the node key", source })
    }

    /// The request for a certificate, in PEM. The node's name in it is for the reader of logs only: the CA alone decides
    /// which node the certificate is for.
    pub fn csr_pem(&self, node_name: &str) -> Result<String, IdentityError> {
        let make = |source| IdentityError::Make { what: "the certificate request", source };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node_name);
        params.serialize_request(&self.0).and_then(|csr| csr.pem()).map_err(make)
    }

    /// Puts key, certificate and CA together, and checks that they belong together.
    pub fn into_identity(self, cert_pem: &str, ca_pem: &str) -> Result<Identity, IdentityError> {
        Identity::assemble(self.0, encoding::certificate("the node certificate", cert_pem)?, ca_pem)
    }
}

/// All that a node needs to prove who it is and to check others: its key, its certificate, and the cluster CA's.
#[derive(Debug)]
pub struct Identity {
    key: PrivatePkcs8KeyDer<'static>,
    leaf: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    me: PeerIdentity,
}

impl Identity {
    fn assemble(key: KeyPair, leaf: CertificateDer<'static>, ca_pem: &str) -> Result<Self, IdentityError> {
        let ca = encoding::certificate("the CA certificate", ca_pem)?;
        check_key("the node key", &key, &leaf)?;
        let me = PeerIdentity::of(&leaf)?;
        tls::check_chain(&leaf, &ca, UnixTime::now()).map_err(|source| IdentityError::Chain { source })?;
        Ok(Self { key: PrivatePkcs8KeyDer::from(key.serialize_der()), leaf, ca, me })
    }

    /// The cluster that this node belongs to.
    pub fn cluster_id(&self) -> Uuid {
        self.me.cluster
    }

    /// This node's number.
    pub fn node_id(&self) -> u64 {
        self.me.node
    }

    /// Cluster and number, as peers see them.
    pub fn peer(&self) -> PeerIdentity {
        self.me
    }

    /// Certificate chain as presented to peers: the node's own, then the CA's.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.leaf.clone(), self.ca.clone()]
    }

    /// The private key, for TLS.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    /// The cluster CA's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The cluster CA's certificate in PEM.
    pub fn ca_pem(&self) -> String {
        encoding::pem("CERTIFICATE", &self.ca)
    }

    /// SHA-256 of the cluster CA's certificate.
    pub fn ca_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.ca)
    }
}

/// Whether a certificate was made for a key.
fn check_key(what: &'static str, key: &KeyPair, cert: &CertificateDer<'_>) -> Result<(), IdentityError> {
    let (_, parsed) = X509Certificate::from_der(cert)
        .map_err(|e| IdentityError::Certificate { what: "the certificate", reason: e.to_string() })?;
    if parsed.public_key().raw == key.subject_public_key_info() {
        Ok(())
    } else {
        Err(IdentityError::KeyMismatch { what })
    }
}

/// Reads a PKCS #8 private key.
fn read_key(what: &'static str, pem: &str) -> Result<KeyPair, IdentityError> {
    let der =
        PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| IdentityError::Pem { what, source })?;
    KeyPair::try_from(&der).map_err(|source| IdentityError::Make { what, source })
}

#[cfg(test)]
pub(crate) mod tests;
