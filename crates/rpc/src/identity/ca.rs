//! The cluster CA: made at `gnt-cluster init`, it signs the certificates of the nodes and nothing else.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
    date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::CertificateDer;
use uuid::Uuid;

use super::{Fingerprint, IdentityError, PeerIdentity, check_key, encoding, read_key};

/// How long the CA and the certificates that it signs hold: ten years.
///
/// Long, because a certificate that runs out unnoticed takes the whole cluster down, and because a node is shut out by
/// removing it (each request is checked against the member list), not by waiting for its certificate to end. Renewal
/// belongs to a command of its own.
pub const VALIDITY: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// The cluster's certificate authority: its key and its certificate. Who holds it can make nodes.
pub struct ClusterCa {
    key: KeyPair,
    cert: CertificateDer<'static>,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// Makes a new CA (ECDSA P-256) for the cluster of that name.
    pub fn generate(cluster_name: &str) -> Result<Self, IdentityError> {
        let make = |source| IdentityError::Make { what: "the cluster CA", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = template(&format!("Cardume CA of {cluster_name}"))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(make)?;
        Ok(Self { cert: cert.der().clone(), key })
    }

    /// Reads a CA from PEM: its certificate and its private key.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let cert = encoding::certificate("the CA certificate", pem)?;
        let key = read_key("the CA key", pem)?;
        check_key("the CA key", &key, &cert)?;
        Ok(Self { key, cert })
    }

    /// Certificate and private key in PEM. Secret.
    pub fn to_pem(&self) -> String {
        format!("{}{}", self.cert_pem(), encoding::pem("PRIVATE KEY", self.key.serialized_der()))
    }

    /// The certificate alone in PEM. Public.
    pub fn cert_pem(&self) -> String {
        encoding::pem("CERTIFICATE", &self.cert)
    }

    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.cert)
    }

    /// Signs a node's request (PEM) and returns the node's certificate (PEM).
    ///
    /// Only the public key is taken from the request. Which node the certificate is for is the CA's decision, never the
    /// requester's.
    pub fn sign_csr(&self, csr_pem: &str, cluster_id: Uuid, node_id: u64) -> Result<String, IdentityError> {
        let make = |source| IdentityError::Make { what: "the node certificate", source };
        let csr =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(|source| IdentityError::Request { source })?;
        let name = PeerIdentity { cluster: cluster_id, node: node_id }.to_string();

        let mut params = template(&format!("node-{node_id}"))?;
        params.subject_alt_names = vec![SanType::URI(name.try_into().map_err(make)?)];
        // An ECDSA key can't encipher another; QEMU refuses a certificate that doesn't allow it all the same.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;

        let issuer = Issuer::from_ca_cert_der(&self.cert, &self.key).map_err(make)?;
        let cert = params.signed_by(&csr.public_key, &issuer).map_err(make)?;
        Ok(encoding::pem("CERTIFICATE", cert.der()))
    }
}

/// What all our certificates have in common.
fn template(common_name: &str) -> Result<CertificateParams, IdentityError> {
    // 20 bytes are the most that X.509 allows. Clearing the top bit keeps the number positive in that length.
    let mut serial = [0; 20];
    SystemRandom::new().fill(&mut serial).map_err(|_| IdentityError::Random { what: "a serial number" })?;
    serial[0] &= 0x7f;

    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    // Not "now": a node whose clock battery is dead boots with the date of its software, and only learns the time over
    // the network. It must be able to take part before that.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = (SystemTime::now() + VALIDITY).into();
    Ok(params)
}
