//! Canonical JSON (RFC 8785): the bytes that are hashed and signed. Integers above 2^53 do not survive it, so 64-bit numbers are
//! written as strings (see [`decimal`]).

use serde::{Serialize, de::DeserializeOwned};

use crate::digest::Digest;

/// Why bytes are not the canonical form of a value.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// The value cannot be written as JSON.
    #[error("the value has no canonical JSON form")]
    Encode(#[source] serde_json::Error),
    /// The bytes are not JSON of this shape.
    #[error("the document does not have the expected shape")]
    Shape(#[source] serde_json::Error),
    /// The bytes are JSON of this shape, but not its canonical spelling: duplicate names, other order, other white space.
    #[error("the document is not in its canonical form (RFC 8785)")]
    NotCanonical,
}

/// The canonical bytes of `value`.
pub fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    serde_json_canonicalizer::to_vec(value).map_err(CanonicalError::Encode)
}

/// The digest of the canonical bytes of `value`.
pub fn digest<T: Serialize>(value: &T) -> Result<Digest, CanonicalError> {
    to_vec(value).map(|bytes| Digest::of(&bytes))
}

/// Reads `bytes` strictly: they must be exactly the canonical form of what they mean. Anything a second parser could read
/// differently (duplicate names, unknown fields that were dropped, odd numbers) is refused with it.
pub fn from_slice<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CanonicalError> {
    let value: T = serde_json::from_slice(bytes).map_err(CanonicalError::Shape)?;
    if to_vec(&value)? == bytes {
        Ok(value)
    } else {
        Err(CanonicalError::NotCanonical)
    }
}

/// 64-bit integers as decimal strings, for use with `#[serde(with = "canonical::decimal")]`.
pub mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes a decimal string.
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads a decimal string without sign, blanks or leading zeros.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<u64>()
            .ok()
            .filter(|value| value.to_string() == text)
            .ok_or_else(|| D::Error::custom(format_args!("{text:?} is not a decimal 64-bit number")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Map = BTreeMap<String, String>;

    #[test]
    fn only_the_canonical_spelling_is_read() {
        assert!(from_slice::<Map>(br#"{"a":"1","b":"2"}"#).is_ok());
        for bytes in [
            &br#"{"b":"2","a":"1"}"#[..],
            br#"{"a":"1", "b":"2"}"#,
            br#"{"a":"1","a":"2"}"#,
        ] {
            assert!(matches!(
                from_slice::<Map>(bytes),
                Err(CanonicalError::NotCanonical)
            ));
        }
    }
}
