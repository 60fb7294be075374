//! Join token: what a new agent is given once, to prove itself and to know the orchestrator before it says anything.
//!
//! Text form: `slj1.` and the unpadded URL-safe base64 of 16 bytes id, 32 bytes secret, 32 bytes SHA-256 of the orchestrator's
//! CA certificate (DER). The orchestrator keeps the SHA-256 of the secret only. Neither `Debug` nor `Display` shows the secret.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::{digest::Digest, id::JoinTokenId};

const PREFIX: &str = "slj1.";
const BYTES: usize = 16 + 32 + 32;

/// A join token with its secret.
#[derive(Clone)]
pub struct JoinToken {
    id: JoinTokenId,
    secret: [u8; 32],
    ca: [u8; 32],
}

/// Not a join token. Says nothing about the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: wanted `slj1.` and 107 URL-safe base64 characters")]
pub struct InvalidJoinToken;

/// Digest of a join token's secret: what is stored.
#[derive(Debug, Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// From storage.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For storage.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other)
    }
}

impl Eq for SecretHash {}

impl JoinToken {
    /// A token: `secret` comes from the operating system's generator, `ca` is the digest of the CA certificate's DER.
    pub const fn new(id: JoinTokenId, secret: [u8; 32], ca: [u8; 32]) -> Self {
        Self { id, secret, ca }
    }

    /// Which token it is. No secret.
    pub const fn id(&self) -> JoinTokenId {
        self.id
    }

    /// SHA-256 of the CA certificate that the orchestrator must show.
    pub const fn ca_pin(&self) -> &[u8; 32] {
        &self.ca
    }

    /// What the orchestrator stores and compares.
    pub fn secret_hash(&self) -> SecretHash {
        SecretHash(*Digest::of(&self.secret).as_bytes())
    }

    /// The text to hand to a person or a host. It **is** the secret: never log it.
    pub fn reveal(&self) -> String {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend_from_slice(self.id.uuid().as_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.ca);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret hidden)", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(InvalidJoinToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| InvalidJoinToken)?;
        let (id, rest) = bytes.split_first_chunk::<16>().ok_or(InvalidJoinToken)?;
        let (secret, rest) = rest.split_first_chunk::<32>().ok_or(InvalidJoinToken)?;
        let ca = rest.try_into().map_err(|_| InvalidJoinToken)?;
        Ok(Self {
            id: Uuid::from_bytes(*id).into(),
            secret: *secret,
            ca,
        })
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn token() -> JoinToken {
        let id = JoinTokenId::new(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        JoinToken::new(id, [0xAB; 32], [0xCD; 32])
    }

    #[test]
    fn tokens_round_trip() {
        let token = token();
        let text = token.reveal();
        assert_eq!(text.len(), PREFIX.len() + 107);
        let read: JoinToken = format!("{text}\n").parse().unwrap();
        assert_eq!(read.id(), token.id());
        assert_eq!(read.ca_pin(), token.ca_pin());
        assert!(read.secret_hash().matches(&token.secret_hash()));
        assert!(!read.secret_hash().matches(&SecretHash::from_bytes([0; 32])));
    }

    #[test]
    fn t18_debug_output_shows_no_secret() {
        let shown = format!("{:?}", token());
        assert!(!shown.contains("abab") && !shown.contains("171") && !shown.contains(&token().reveal()));
    }

    #[test]
    fn other_texts_are_refused_without_being_repeated() {
        let good = token().reveal();
        for bad in [
            String::new(),
            "slj1.".into(),
            good.replace("slj1", "slj2"),
            good[..good.len() - 2].to_owned(),
            format!("{good}AA"),
            format!("{good}="),
        ] {
            assert_eq!(bad.parse::<JoinToken>().err(), Some(InvalidJoinToken), "{bad}");
        }
    }
}
