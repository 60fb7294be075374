//! DSSE 1.0.2: a signed envelope around bytes. What is signed is the payload type and the raw payload, never a re-spelling.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    bounds,
    keys::{KeyId, PublicKey, SigningKey},
};

/// Most signatures in one envelope.
pub const SIGNATURES: usize = 8;

/// Why an envelope is refused.
#[derive(Debug, thiserror::Error)]
pub enum DsseError {
    /// Larger than [`bounds::ENVELOPE_BYTES`].
    #[error("the envelope has {0} bytes, more than the {max} that are allowed", max = bounds::ENVELOPE_BYTES)]
    TooLarge(usize),
    /// Not the JSON of an envelope: malformed, unknown or repeated names, key ids that are none.
    #[error("the document is not a DSSE envelope")]
    Shape(#[source] serde_json::Error),
    /// A payload or a signature is not base64 in its one standard, padded spelling.
    #[error("the {0} is not standard padded base64")]
    Base64(&'static str),
    /// No signature, or more than [`SIGNATURES`].
    #[error("the envelope has {0} signatures, wanted 1 to {SIGNATURES}")]
    SignatureCount(usize),
    /// A signature has not 64 bytes.
    #[error("a signature has {0} bytes, wanted 64")]
    SignatureLength(usize),
    /// Two signatures by one key.
    #[error("two signatures name the key {0}")]
    SameKey(KeyId),
    /// The payload is of another type than the one expected.
    #[error("the payload type is {actual:?}, wanted {wanted:?}")]
    PayloadType {
        /// What the envelope says.
        actual: String,
        /// What was expected.
        wanted: String,
    },
    /// No signature by this key.
    #[error("the envelope carries no signature by key {0}")]
    NotSigned(KeyId),
    /// The signature by this key does not verify.
    #[error("the signature by key {0} does not verify")]
    BadSignature(KeyId),
}

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Which key is said to have made it.
    pub keyid: KeyId,
    /// Ed25519 over the pre-authentication encoding.
    pub sig: [u8; 64],
}

/// A signed envelope, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    payload_type: String,
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EnvelopeJson {
    payload_type: String,
    payload: String,
    signatures: Vec<SignatureJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureJson {
    keyid: KeyId,
    sig: String,
}

/// The pre-authentication encoding: the bytes that are signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Signs `payload` with each of `keys`. An envelope without keys, with one key twice or with more than [`SIGNATURES`] is refused.
pub fn sign(payload_type: &str, payload: Vec<u8>, keys: &[&SigningKey]) -> Result<Envelope, DsseError> {
    if keys.is_empty() {
        return Err(DsseError::SignatureCount(0));
    }
    let mut envelope = Envelope {
        payload_type: payload_type.to_owned(),
        payload,
        signatures: Vec::with_capacity(keys.len()),
    };
    for key in keys {
        envelope.countersign(key)?;
    }
    Ok(envelope)
}

impl Envelope {
    /// Reads an envelope strictly: bounded, no unknown or repeated names, canonical base64, 1 to 8 signatures, each by another
    /// key. Says nothing about whether a signature is good.
    pub fn from_json(bytes: &[u8]) -> Result<Self, DsseError> {
        if bytes.len() > bounds::ENVELOPE_BYTES {
            return Err(DsseError::TooLarge(bytes.len()));
        }
        let json: EnvelopeJson = serde_json::from_slice(bytes).map_err(DsseError::Shape)?;
        if !(1..=SIGNATURES).contains(&json.signatures.len()) {
            return Err(DsseError::SignatureCount(json.signatures.len()));
        }
        let payload = STANDARD
            .decode(&json.payload)
            .map_err(|_| DsseError::Base64("payload"))?;
        let mut signatures: Vec<Signature> = Vec::with_capacity(json.signatures.len());
        for SignatureJson { keyid, sig } in json.signatures {
            if signatures.iter().any(|other| other.keyid == keyid) {
                return Err(DsseError::SameKey(keyid));
            }
            let sig = STANDARD
                .decode(&sig)
                .map_err(|_| DsseError::Base64("signature"))?;
            let sig =
                <[u8; 64]>::try_from(sig.as_slice()).map_err(|_| DsseError::SignatureLength(sig.len()))?;
            signatures.push(Signature { keyid, sig });
        }
        Ok(Self {
            payload_type: json.payload_type,
            payload,
            signatures,
        })
    }

    /// Writes the envelope: compact JSON, the same bytes for the same envelope.
    pub fn to_json(&self) -> Result<Vec<u8>, DsseError> {
        let json = EnvelopeJson {
            payload_type: self.payload_type.clone(),
            payload: STANDARD.encode(&self.payload),
            signatures: self
                .signatures
                .iter()
                .map(|signature| SignatureJson {
                    keyid: signature.keyid.clone(),
                    sig: STANDARD.encode(signature.sig),
                })
                .collect(),
        };
        let bytes = serde_json::to_vec(&json).map_err(DsseError::Shape)?;
        if bytes.len() > bounds::ENVELOPE_BYTES {
            return Err(DsseError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Adds a signature over the same payload bytes.
    pub fn countersign(&mut self, key: &SigningKey) -> Result<(), DsseError> {
        let keyid = key.public().key_id();
        if self.signatures.iter().any(|other| other.keyid == keyid) {
            return Err(DsseError::SameKey(keyid));
        }
        if self.signatures.len() >= SIGNATURES {
            return Err(DsseError::SignatureCount(self.signatures.len() + 1));
        }
        let sig = key.sign(&pae(&self.payload_type, &self.payload));
        self.signatures.push(Signature { keyid, sig });
        Ok(())
    }

    /// Verifies the signature by `key` over the raw payload and gives that payload.
    pub fn verify(&self, payload_type: &str, key: &PublicKey) -> Result<&[u8], DsseError> {
        if self.payload_type != payload_type {
            return Err(DsseError::PayloadType {
                actual: self.payload_type.chars().take(200).collect(),
                wanted: payload_type.to_owned(),
            });
        }
        let keyid = key.key_id();
        let Some(signature) = self.signatures.iter().find(|one| one.keyid == keyid) else {
            return Err(DsseError::NotSigned(keyid));
        };
        if key.verifies(&pae(&self.payload_type, &self.payload), &signature.sig) {
            Ok(&self.payload)
        } else {
            Err(DsseError::BadSignature(keyid))
        }
    }

    /// The key ids that the envelope names, in its order. Hints: nothing is verified.
    pub fn key_ids(&self) -> impl Iterator<Item = &KeyId> {
        self.signatures.iter().map(|signature| &signature.keyid)
    }

    /// The payload type that the envelope states.
    pub fn payload_type(&self) -> &str {
        &self.payload_type
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    #[test]
    fn pae_is_that_of_the_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn what_was_signed_verifies_and_countersigning_keeps_it() {
        let mut envelope = sign("t", b"payload".to_vec(), &[&key(1)]).unwrap();
        let alone = envelope.to_json().unwrap();
        envelope.countersign(&key(2)).unwrap();
        let bytes = envelope.to_json().unwrap();
        let read = Envelope::from_json(&bytes).unwrap();
        assert_eq!(read, envelope);
        assert_eq!(read.to_json().unwrap(), bytes);
        for seed in [1, 2] {
            assert_eq!(read.verify("t", &key(seed).public()).unwrap(), b"payload");
        }
        assert!(matches!(
            read.verify("t", &key(3).public()),
            Err(DsseError::NotSigned(_))
        ));
        assert!(matches!(
            read.verify("u", &key(1).public()),
            Err(DsseError::PayloadType { .. })
        ));
        let first = Envelope::from_json(&alone).unwrap();
        assert_eq!(first.payload, read.payload);
        assert_eq!(first.signatures[0], read.signatures[0]);
    }

    #[test]
    fn a_signature_under_another_keys_name_does_not_verify() {
        let mut envelope = sign("t", b"payload".to_vec(), &[&key(1)]).unwrap();
        envelope.signatures[0].keyid = key(2).public().key_id();
        assert!(matches!(
            envelope.verify("t", &key(2).public()),
            Err(DsseError::BadSignature(_))
        ));
    }

    #[test]
    fn t11_an_envelope_of_one_type_is_not_one_of_another() {
        let mut envelope = sign("order", b"payload".to_vec(), &[&key(1)]).unwrap();
        envelope.payload_type = "evidence".into();
        assert!(matches!(
            envelope.verify("evidence", &key(1).public()),
            Err(DsseError::BadSignature(_))
        ));
    }

    #[test]
    fn loose_envelopes_are_refused() {
        let good = sign("t", b"payl".to_vec(), &[&key(1)]).unwrap();
        let text = String::from_utf8(good.to_json().unwrap()).unwrap();
        assert!(text.contains(r#""payload":"cGF5bA==""#));
        let (one, _) = text.split_once("],").map_or((text.as_str(), ""), |pair| pair);
        let inner = &one[one.find('[').unwrap() + 1..one.rfind(']').unwrap()];
        for bad in [
            text.replace("cGF5bA==", "cGF5bA"),
            text.replace("cGF5bA==", "cGF5bB=="),
            text.replace("cGF5bA==", "cGF5b_=="),
            text.replace("cGF5bA==", "cGF5\\nbA=="),
            text.replace(r#""payload":"#, r#""payload":"","payload":"#),
            text.replace(r#""payload":"#, r#""extra":1,"payload":"#),
            text.replace(r#""sig":"#, r#""cert":"","sig":"#),
            text.replace(inner, ""),
            text.replace(inner, &format!("{inner},{inner}")),
            text.replace(inner, r#"{"sig":"AAAA"}"#),
            format!("{text}x"),
            text.replace("\"keyid\":\"", "\"keyid\":\"F"),
            " ".repeat(bounds::ENVELOPE_BYTES) + &text,
        ] {
            assert!(Envelope::from_json(bad.as_bytes()).is_err(), "{bad:.200}");
        }
        assert!(matches!(
            sign("t", vec![], &[]),
            Err(DsseError::SignatureCount(0))
        ));
        assert!(matches!(
            sign("t", vec![], &[&key(1), &key(1)]),
            Err(DsseError::SameKey(_))
        ));
        let nine: Vec<_> = (0..9).map(key).collect();
        assert!(sign("t", vec![], &nine.iter().collect::<Vec<_>>()).is_err());
    }
}
