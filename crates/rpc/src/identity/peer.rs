//! The identity that a certificate vouches for.

use std::fmt;

use rustls_pki_types::CertificateDer;
use uuid::Uuid;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::IdentityError;

/// What the alternative names of our certificates begin with.
const SCHEME: &str = "cardume://";

/// A node as its certificate names it. Only ever believed after the certificate has been verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The cluster's UUID.
    pub cluster: Uuid,
    /// The node's number in it; never given twice.
    pub node: u64,
}

impl PeerIdentity {
    /// Reads the identity out of a certificate. There must be exactly one, written exactly as we write it: with two
    /// spellings for one node, two checks could disagree about who it is.
    pub fn of(cert: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let unusable = |reason: String| IdentityError::Certificate { what: "the peer's certificate", reason };
        let (_, cert) = X509Certificate::from_der(cert).map_err(|e| unusable(e.to_string()))?;
        let names = cert
            .subject_alternative_name()
            .map_err(|e| unusable(e.to_string()))?
            .ok_or_else(|| unusable("it has no alternative name".into()))?;
        let mut ours = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        match (ours.next(), ours.next()) {
            (Some(uri), None) => Self::parse(uri).ok_or_else(|| unusable(format!("{uri:?} names no node"))),
            (None, _) => Err(unusable(format!("none of its alternative names is a {SCHEME} URI"))),
            (Some(_), Some(_)) => Err(unusable(format!("more than one of its alternative names is a {SCHEME} URI"))),
        }
    }

    fn parse(uri: &str) -> Option<Self> {
        let (cluster, node) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        let parsed = Self { cluster: cluster.parse().ok()?, node: node.parse().ok()? };
        (parsed.to_string() == uri).then_some(parsed)
    }
}

/// The URI `cardume://<cluster uuid>/<node number>`.
impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cluster.hyphenated(), self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_has_one_spelling() {
        let id = PeerIdentity { cluster: Uuid::from_u128(0xabc), node: 7 };
        let uri = id.to_string();
        assert_eq!(uri, "cardume://00000000-0000-0000-0000-000000000abc/7");
        assert_eq!(PeerIdentity::parse(&uri), Some(id));
        for bad in [
            "cardume://00000000-0000-0000-0000-000000000ABC/7",
            "cardume://00000000000000000000000000000abc/7",
            "cardume://00000000-0000-0000-0000-000000000abc/07",
            "cardume://00000000-0000-0000-0000-000000000abc/+7",
            "cardume://00000000-0000-0000-0000-000000000abc/7/",
            "cardume://00000000-0000-0000-0000-000000000abc/",
            "cardume://00000000-0000-0000-0000-000000000abc",
            "cardume:///7",
            "https://00000000-0000-0000-0000-000000000abc/7",
        ] {
            assert_eq!(PeerIdentity::parse(bad), None, "{bad}");
        }
    }
}
