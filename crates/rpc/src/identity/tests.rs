//! What an identity must and must not be.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

pub(crate) struct TestCluster {
    pub(crate) id: Uuid,
    pub(crate) ca: ClusterCa,
}

impl TestCluster {
    pub(crate) fn node(&self, node: u64) -> Identity {
        let key = NodeKey::generate().unwrap();
        let cert = self.ca.sign_csr(&key.csr_pem("a.example").unwrap(), self.id, node).unwrap();
        key.into_identity(&cert, &self.ca.cert_pem()).unwrap()
    }
}

pub(crate) fn cluster() -> TestCluster {
    TestCluster { id: Uuid::new_v4(), ca: ClusterCa::generate("cluster01").unwrap() }
}

#[test]
fn the_ca_decides_which_node_a_certificate_is_for() {
    let cluster = cluster();
    let node = cluster.node(3);
    assert_eq!(node.peer(), PeerIdentity { cluster: cluster.id, node: 3 });
    assert_eq!(node.ca_fingerprint(), cluster.ca.fingerprint());
    assert_eq!(PeerIdentity::of(&node.chain()[0]).unwrap(), node.peer());
}

#[test]
fn a_leaf_has_the_uses_that_tls_and_qemu_ask_for_and_is_no_ca() {
    let leaf = cluster().node(1).chain().remove(0);
    let (_, cert) = X509Certificate::from_der(&leaf).unwrap();
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    assert!(!cert.is_ca());
    assert!(cert.validity().not_before.timestamp() < 1_600_000_000);
}

#[test]
fn the_ca_survives_pem() {
    let cluster = cluster();
    let read = ClusterCa::from_pem(&cluster.ca.to_pem()).unwrap();
    assert_eq!(read.fingerprint(), cluster.ca.fingerprint());
    let key = NodeKey::generate().unwrap();
    let cert = read.sign_csr(&key.csr_pem("b").unwrap(), cluster.id, 2).unwrap();
    assert_eq!(key.into_identity(&cert, &cluster.ca.cert_pem()).unwrap().node_id(), 2);
}

#[test]
fn a_ca_with_anothers_key_is_refused() {
    let (one, other) = (cluster(), cluster());
    let key = other.ca.to_pem().replace(&other.ca.cert_pem(), "");
    let mixed = format!("{}{key}", one.ca.cert_pem());
    assert!(matches!(ClusterCa::from_pem(&mixed), Err(IdentityError::KeyMismatch { .. })));
}

#[test]
fn a_damaged_request_is_refused() {
    let cluster = cluster();
    let csr = NodeKey::generate().unwrap().csr_pem("x").unwrap();
    for bad in ["", "hello", &csr[..csr.len() / 2]] {
        assert!(matches!(cluster.ca.sign_csr(bad, cluster.id, 1), Err(IdentityError::Request { .. })), "{bad:?}");
    }
}

#[test]
fn certificate_key_and_ca_must_belong_together() {
    let (cluster, other) = (cluster(), cluster());
    let (key, stranger) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let cert = cluster.ca.sign_csr(&key.csr_pem("a").unwrap(), cluster.id, 1).unwrap();
    let of_stranger = stranger.into_identity(&cert, &cluster.ca.cert_pem());
    assert!(matches!(of_stranger, Err(IdentityError::KeyMismatch { .. })));
    let under_other_ca = key.into_identity(&cert, &other.ca.cert_pem());
    assert!(matches!(under_other_ca, Err(IdentityError::Chain { .. })));
}

#[test]
fn an_identity_survives_the_disk_and_its_key_is_private() {
    let (cluster, tmp) = (cluster(), tempfile::tempdir().unwrap());
    let dir = tmp.path().join("state/tls");
    assert!(Identity::load(&dir).unwrap().is_none());

    let first = cluster.node(4);
    first.save(&dir).unwrap();
    let read = Identity::load(&dir).unwrap().unwrap();
    assert_eq!((read.peer(), read.chain()), (first.peer(), first.chain()));
    assert_eq!(fs::metadata(dir.join("node.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);

    let second = cluster.node(5);
    second.save(&dir).unwrap();
    assert_eq!(Identity::load(&dir).unwrap().unwrap().peer(), second.peer());
}

#[test]
fn half_an_identity_is_none_and_a_damaged_one_is_named() {
    let (cluster, tmp) = (cluster(), tempfile::tempdir().unwrap());
    let dir = tmp.path();
    cluster.node(1).save(dir).unwrap();

    for file in ["node.key", "ca.crt", "node.crt"] {
        let path = dir.join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, "-----BEGIN CERTIFICATE-----\ntorn").unwrap();
        let error = Identity::load(dir).unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{file}: {error}");
        fs::write(&path, good).unwrap();
    }

    fs::remove_file(dir.join("node.crt")).unwrap();
    assert!(Identity::load(dir).unwrap().is_none());
}
