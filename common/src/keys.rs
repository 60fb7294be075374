//! Ed25519 keys: orders, evidence and countersignatures are made with them. TLS uses other keys (ECDSA P-256).
//!
//! Files are PKCS#8 **version 1** PEM (RFC 8410), which OpenSSL 3.0 and Python's `cryptography` read too (they refuse the
//! version 2 that most Rust crates write), and SubjectPublicKeyInfo PEM for public keys. Verification is the strict one:
//! weak keys and malleable signatures are refused.

use std::{fmt, str::FromStr};

use ed25519_dalek::{
    Signer,
    pkcs8::{
        DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes,
        spki::der::pem::LineEnding,
    },
};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Why something is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a private key of the supported form.
    #[error("not an Ed25519 private key in PKCS#8 PEM")]
    Private,
    /// Not a public key of the supported form.
    #[error("not an Ed25519 public key (SubjectPublicKeyInfo PEM or 32 bytes)")]
    Public,
    /// A public key of low order, under which almost any signature would verify.
    #[error("the Ed25519 public key is weak")]
    Weak,
    /// The key cannot be written as PEM.
    #[error("the key cannot be written as PEM")]
    Encode,
    /// Not a key id.
    #[error("{0:?} is not a key id: wanted 64 lower-case hex digits")]
    KeyId(String),
}

/// Name of a public key: securesystemslib's default key id, so that Python verifiers find the key without being told.
/// 64 lower-case hex digits. A hint only: it never decides whether a signature is good.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl KeyId {
    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        let legal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 64 && text.bytes().all(legal) {
            Ok(Self(text))
        } else {
            Err(KeyError::KeyId(text.chars().take(80).collect()))
        }
    }
}

impl From<KeyId> for String {
    fn from(value: KeyId) -> Self {
        value.0
    }
}

/// A private key. Wiped from memory when dropped; has no `Debug` that could print it.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey")
            .field(&self.public().key_id())
            .finish()
    }
}

impl SigningKey {
    /// The key of a 32-byte seed, which the caller draws from the operating system's generator.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Reads PKCS#8 PEM, version 1 or 2.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|_| KeyError::Private)
    }

    /// Writes PKCS#8 version 1 PEM. The text is a secret; it is wiped when dropped.
    pub fn to_pem(&self) -> Result<impl std::ops::Deref<Target = String> + use<>, KeyError> {
        // `public_key: None` is what makes it version 1.
        let bytes = KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        bytes.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Encode)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs `message`: 64 bytes (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// A public key that is on the curve and not weak.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// From the 32 raw bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Public)?;
        Self::checked(key)
    }

    /// From raw bytes of any length, as they come off the wire.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes = bytes.try_into().map_err(|_| KeyError::Public)?;
        Self::from_bytes(bytes)
    }

    /// Reads SubjectPublicKeyInfo PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_public_key_pem(pem).map_err(|_| KeyError::Public)?;
        Self::checked(key)
    }

    fn checked(key: ed25519_dalek::VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() {
            Err(KeyError::Weak)
        } else {
            Ok(Self(key))
        }
    }

    /// Writes SubjectPublicKeyInfo PEM.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.0
            .to_public_key_pem(LineEnding::LF)
            .map_err(|_| KeyError::Encode)
    }

    /// The 32 raw bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// securesystemslib's default key id: the SHA-256 of the canonical JSON of keytype, keyval and scheme.
    pub fn key_id(&self) -> KeyId {
        let text = format!(
            r#"{{"keytype":"ed25519","keyval":{{"public":"{}"}},"scheme":"ed25519"}}"#,
            hex::encode(self.to_bytes())
        );
        KeyId(Digest::of(text.as_bytes()).to_hex())
    }

    /// Whether `signature` is a good signature of `message`, by the strict rules.
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(message, &signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", hex::encode(self.to_bytes()))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let pem = self.to_pem().map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&pem)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_pem(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_are_written_as_pkcs8_version_1() {
        let key = SigningKey::from_seed(&[7; 32]);
        let pem = key.to_pem().unwrap();
        let body: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
        // Version 1 of an Ed25519 key has 48 bytes of DER: 64 characters of base64; version 2 is longer.
        assert_eq!(body.len(), 64);
        assert_eq!(SigningKey::from_pem(&pem).unwrap().public(), key.public());
    }

    #[test]
    fn public_keys_round_trip_and_weak_or_foreign_ones_are_refused() {
        let key = SigningKey::from_seed(&[7; 32]).public();
        let pem = key.to_pem().unwrap();
        assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        assert_eq!(PublicKey::from_pem(&pem), Ok(key));
        assert_eq!(PublicKey::from_slice(&key.to_bytes()), Ok(key));
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(&identity), Err(KeyError::Weak));
        assert_eq!(PublicKey::from_slice(&[0; 31]), Err(KeyError::Public));
        assert_eq!(PublicKey::from_pem("x"), Err(KeyError::Public));
        assert!(SigningKey::from_pem(&pem).is_err());
    }

    #[test]
    fn t18_debug_output_shows_no_secret() {
        let key = SigningKey::from_seed(&[7; 32]);
        let shown = format!("{key:?}");
        assert!(!shown.contains(&hex::encode([7; 32])) && !shown.contains("7, 7"));
        assert!(shown.contains(key.public().key_id().as_str()));
    }

    #[test]
    fn a_signature_of_another_message_or_key_is_refused() {
        let key = SigningKey::from_seed(&[7; 32]);
        let signature = key.sign(b"one");
        assert!(key.public().verifies(b"one", &signature));
        assert!(!key.public().verifies(b"two", &signature));
        assert!(
            !SigningKey::from_seed(&[8; 32])
                .public()
                .verifies(b"one", &signature)
        );
        // RFC 8032, 7.1, test 1.
        let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let public = SigningKey::from_seed(&seed.try_into().unwrap()).public();
        assert_eq!(
            hex::encode(public.to_bytes()),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }
}
