//! The word that an administrator carries from the cluster to a new machine.
//!
//! `cardume1_` and then, in base64url without padding, 16 bytes secret, 32 bytes fingerprint of the cluster CA, 4 bytes
//! CRC-32 over everything before it. The CRC finds every error of a single character, so a typing error is told as such
//! instead of as a wrong secret or a false CA.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;

use crate::identity::{Fingerprint, IdentityError, NotHex, encoding};

/// Format of the token. A later one has another number, and an older program says that it does not know it.
const PREFIX: &str = "cardume1_";
const FAMILY: &str = "cardume";

const SECRET: usize = 16;
const FINGERPRINT: usize = 32;
const CRC: usize = 4;

/// The secret of a [`JoinToken`]: 128 random bits. The cluster keeps only its [digest](Self::digest).
#[derive(Clone)]
pub struct JoinSecret([u8; SECRET]);

impl JoinSecret {
    /// A new random secret.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut secret = [0; SECRET];
        SystemRandom::new().fill(&mut secret).map_err(|_| IdentityError::Random { what: "a join token" })?;
        Ok(Self(secret))
    }

    /// What the cluster keeps of it. No salt and no slow hash: there are 128 random bits, nothing to guess.
    pub fn digest(&self) -> SecretDigest {
        SecretDigest(Fingerprint(encoding::sha256(&self.0)))
    }
}

/// Does not show the secret.
impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(…)")
    }
}

impl Serialize for JoinSecret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&encoding::hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for JoinSecret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        encoding::unhex(&text).map(Self).ok_or_else(|| serde::de::Error::custom("a secret is 32 hexadecimal digits"))
    }
}

/// SHA-256 of a [`JoinSecret`]; 64 hexadecimal digits as text.
#[derive(Clone, Copy, Debug)]
pub struct SecretDigest(Fingerprint);

impl SecretDigest {
    /// Whether this is the digest of that secret; takes the same time whatever the answer.
    pub fn matches(&self, secret: &JoinSecret) -> bool {
        self.0.0.ct_eq(&secret.digest().0.0).into()
    }
}

impl fmt::Display for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SecretDigest {
    type Err = NotHex;

    fn from_str(s: &str) -> Result<Self, NotHex> {
        s.parse().map(Self)
    }
}

/// What a new machine needs to join: the right to do so, once, and the means to recognise the cluster.
#[derive(Clone, Debug)]
pub struct JoinToken {
    /// The right to join.
    pub secret: JoinSecret,
    /// How the cluster is recognised.
    pub ca: Fingerprint,
}

/// Why a word is no token. Nothing in it repeats the word, which may be all but one character of a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It is something else.
    #[error("not a join token: it should begin with \"{PREFIX}\"; \"gnt-node add\" prints it")]
    NotAToken,
    /// It comes from a newer Cardume, or its prefix is mistyped.
    #[error("the join token is of a kind that this version does not know, or its beginning is mistyped")]
    Version,
    /// It has lost or won characters.
    #[error("the join token is mistyped: it has {found} characters instead of {expected}")]
    Length {
        /// Characters that a token has.
        expected: usize,
        /// Characters that this one has.
        found: usize,
    },
    /// At least one character is another.
    #[error("the join token is mistyped: its checksum does not fit")]
    Mistyped,
}

impl JoinToken {
    /// A new token for the cluster with this CA.
    pub fn generate(ca: Fingerprint) -> Result<Self, IdentityError> {
        Ok(Self { secret: JoinSecret::generate()?, ca })
    }

    /// Reads a token as [`Display`](fmt::Display) writes it. White space around it is ignored.
    pub fn parse(word: &str) -> Result<Self, TokenError> {
        let word = word.trim();
        let Some(coded) = word.strip_prefix(PREFIX) else {
            return Err(if word.starts_with(FAMILY) { TokenError::Version } else { TokenError::NotAToken });
        };
        let expected = base64::encoded_len(SECRET + FINGERPRINT + CRC, false).unwrap_or_default();
        if coded.chars().count() != expected {
            let prefix = PREFIX.len();
            return Err(TokenError::Length { expected: prefix + expected, found: prefix + coded.chars().count() });
        }
        let bytes = URL_SAFE_NO_PAD.decode(coded).map_err(|_| TokenError::Mistyped)?;
        let (content, crc) = bytes.split_last_chunk::<CRC>().ok_or(TokenError::Mistyped)?;
        if checksum(content).to_be_bytes() != *crc {
            return Err(TokenError::Mistyped);
        }
        let (secret, ca) = content.split_at(SECRET);
        match (secret.try_into(), ca.try_into()) {
            (Ok(secret), Ok(ca)) => Ok(Self { secret: JoinSecret(secret), ca: Fingerprint(ca) }),
            _ => Err(TokenError::Mistyped),
        }
    }
}

/// The word itself, secret included.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [&self.secret.0[..], &self.ca.0[..]].concat();
        bytes.extend(checksum(&bytes).to_be_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(s: &str) -> Result<Self, TokenError> {
        Self::parse(s)
    }
}

/// CRC-32 (IEEE 802.3) of the prefix and the content. Bit by bit: it runs once in the life of a token.
fn checksum(content: &[u8]) -> u32 {
    let step = |mut crc: u32, byte: &u8| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
        crc
    };
    !PREFIX.as_bytes().iter().chain(content).fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(secret: [u8; SECRET], ca: [u8; FINGERPRINT]) -> JoinToken {
        JoinToken { secret: JoinSecret(secret), ca: Fingerprint(ca) }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(secret: [u8; SECRET], ca: [u8; FINGERPRINT]) {
            let word = token(secret, ca).to_string();
            prop_assert!(word.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_'));
            let read = JoinToken::parse(&format!(" {word}\n")).unwrap();
            prop_assert_eq!((read.secret.0, read.ca.0), (secret, ca));
        }

        #[test]
        fn any_single_change_is_refused(
            secret: [u8; SECRET],
            ca: [u8; FINGERPRINT],
            at: prop::sample::Index,
            other: char,
        ) {
            let mut word: Vec<char> = token(secret, ca).to_string().chars().collect();
            let at = at.index(word.len());
            prop_assume!(word[at] != other);
            word[at] = other;
            prop_assert!(JoinToken::parse(&word.iter().collect::<String>()).is_err());
        }

        #[test]
        fn no_text_makes_it_fail_otherwise(text: String) {
            let _ = JoinToken::parse(&text);
            let _ = JoinToken::parse(&format!("{PREFIX}{text}"));
        }
    }

    /// Every character of the alphabet in every place of one word.
    #[test]
    fn every_typing_error_in_one_word_is_refused() {
        let word = token([0x5a; SECRET], [0xc3; FINGERPRINT]).to_string();
        for at in 0..word.len() {
            for other in (0x21..0x7f_u8).map(char::from).filter(|c| !word[at..].starts_with(*c)) {
                let mut typed = word.clone();
                typed.replace_range(at..=at, &other.to_string());
                assert!(JoinToken::parse(&typed).is_err(), "{typed}");
            }
        }
    }

    #[test]
    fn the_reason_is_told() {
        let word = token([1; SECRET], [2; FINGERPRINT]).to_string();
        let error = |word: &str| JoinToken::parse(word).unwrap_err();
        assert_eq!(error("hello"), TokenError::NotAToken);
        assert_eq!(error(&word.replacen('1', "2", 1)), TokenError::Version);
        assert_eq!(error(&word[..word.len() - 1]), TokenError::Length { expected: word.len(), found: word.len() - 1 });
        assert_eq!(error(&word.replace("AQEB", "AQEC")), TokenError::Mistyped);
    }

    #[test]
    fn the_digest_is_that_of_one_secret_and_survives_as_text() {
        let (secret, other) = (JoinSecret([7; SECRET]), JoinSecret([8; SECRET]));
        let kept: SecretDigest = secret.digest().to_string().parse().unwrap();
        assert!(kept.matches(&secret));
        assert!(!kept.matches(&other));
    }

    #[test]
    fn no_secret_in_a_log() {
        let token = token([7; SECRET], [2; FINGERPRINT]);
        assert!(!format!("{token:?}").contains("07"), "{token:?}");
    }

    /// Value from another implementation of it (zlib's).
    #[test]
    fn the_checksum_is_crc32() {
        assert_eq!(checksum(b"123456789"), 0x1575_e849);
    }
}
