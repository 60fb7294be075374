//! Program of an agent: what a publisher states about it, signed offline, and what a host asks of it before it lets it run. The
//! orchestrator never sees these keys, so that whoever has taken it over still cannot bring a program of his own to a host.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::{
    bounds,
    canonical::{self, CanonicalError, decimal},
    digest::Digest,
    dsse::{self, DsseError, Envelope},
    keys::{KeyError, KeyId, PublicKey, SigningKey},
};

/// DSSE payload type of a statement about a program.
pub const PROGRAM_PAYLOAD_TYPE: &str = "application/vnd.sealift.agent-program.v1+json";
/// Name of the one service of a release for agents.
pub const SERVICE: &str = "sealift-agent";
/// Where the program lies in its image.
pub const PROGRAM_PATH: &str = "/sealift-agent";
/// Where its signed statement lies in its image.
pub const SIGNATURE_PATH: &str = "/sealift-agent.dsse.json";
/// How public keys of publishers are written in settings: this, then 64 hex digits.
const KEY_PREFIX: &str = "ed25519:";

/// What a publisher states about one program for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramStatement {
    /// SHA-256 of the file.
    pub program: Digest,
    /// Its size.
    #[serde(with = "decimal")]
    pub bytes: u64,
    /// The version that it says of itself.
    pub version: Version,
    /// Operating system and architecture as images spell them: `linux/amd64`.
    pub platform: String,
}

/// Why a program is not let run. Nothing was changed on the host.
#[derive(Debug, thiserror::Error)]
pub enum ProgramRefusal {
    /// The host's owner trusts no publisher.
    #[error("this host trusts no publisher of agent programs")]
    NoPublisher,
    /// The envelope is malformed, or a trusted key's signature does not verify.
    #[error("the program's signature is refused")]
    Envelope(#[source] DsseError),
    /// Signed, but by nobody whom the host's owner trusts.
    #[error("the program is signed by no publisher that this host trusts (signed by {0})")]
    Untrusted(String),
    /// Properly signed, but no statement about a program.
    #[error("the signed statement is malformed")]
    Malformed(#[source] CanonicalError),
    /// Built for something else.
    #[error("the program is signed for {stated}, this agent runs on {here}")]
    Platform {
        /// What the statement says.
        stated: String,
        /// What the host is.
        here: String,
    },
    /// Older than the host's owner allows.
    #[error("the program is version {stated}, and this host takes none before {oldest}")]
    TooOld {
        /// What the statement says.
        stated: Version,
        /// The oldest that is allowed.
        oldest: Version,
    },
    /// Larger than any program of an agent, or not of the stated size.
    #[error("the program has {actual} bytes, {stated} were signed")]
    Size {
        /// What the statement says.
        stated: u64,
        /// What there is.
        actual: u64,
    },
    /// Other bytes than those that were signed.
    #[error("the program has digest {actual}, {stated} was signed")]
    OtherProgram {
        /// What the statement says.
        stated: Digest,
        /// What there is.
        actual: Digest,
    },
}

impl ProgramStatement {
    /// Signs the statement: the bytes of its envelope, as they lie beside the program in its image.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, ProgramRefusal> {
        let payload = canonical::to_vec(self).map_err(ProgramRefusal::Malformed)?;
        dsse::sign(PROGRAM_PAYLOAD_TYPE, payload, &[key])
            .and_then(|envelope| envelope.to_json())
            .map_err(ProgramRefusal::Envelope)
    }

    /// Opens a statement: envelope, signature by one of `publishers` over the raw bytes, and only then the payload, strictly.
    pub fn open(bytes: &[u8], publishers: &[PublicKey]) -> Result<Self, ProgramRefusal> {
        if publishers.is_empty() {
            return Err(ProgramRefusal::NoPublisher);
        }
        let envelope = Envelope::from_json(bytes).map_err(ProgramRefusal::Envelope)?;
        for key in publishers {
            match envelope.verify(PROGRAM_PAYLOAD_TYPE, key) {
                Ok(payload) => return canonical::from_slice(payload).map_err(ProgramRefusal::Malformed),
                Err(DsseError::NotSigned(_)) => {}
                Err(error) => return Err(ProgramRefusal::Envelope(error)),
            }
        }
        let signers: Vec<_> = envelope.key_ids().map(KeyId::as_str).collect();
        Err(ProgramRefusal::Untrusted(signers.join(", ")))
    }

    /// Whether a host on `platform` that takes nothing before `oldest` may run it, as far as the statement tells. Whatever
    /// comes after a `+` in a version does not count.
    pub fn fits(&self, platform: &str, oldest: &Version) -> Result<(), ProgramRefusal> {
        if self.platform != platform {
            return Err(ProgramRefusal::Platform {
                stated: self.platform.chars().take(80).collect(),
                here: platform.to_owned(),
            });
        }
        if self.version.cmp_precedence(oldest).is_lt() {
            return Err(ProgramRefusal::TooOld {
                stated: self.version.clone(),
                oldest: oldest.clone(),
            });
        }
        Ok(())
    }

    /// Whether a file of this size and digest is the one that the statement is about.
    pub fn is_about(&self, bytes: u64, digest: Digest) -> Result<(), ProgramRefusal> {
        if bytes != self.bytes || bytes > bounds::PROGRAM_BYTES {
            return Err(ProgramRefusal::Size {
                stated: self.bytes,
                actual: bytes,
            });
        }
        if digest != self.program {
            return Err(ProgramRefusal::OtherProgram {
                stated: self.program,
                actual: digest,
            });
        }
        Ok(())
    }
}

/// Reads a publisher's public key as settings write it: `ed25519:` and 64 hex digits.
pub fn publisher(text: &str) -> Result<PublicKey, KeyError> {
    let digits = text.strip_prefix(KEY_PREFIX).ok_or(KeyError::Public)?;
    let bytes = hex::decode(digits).map_err(|_| KeyError::Public)?;
    PublicKey::from_slice(&bytes)
}

/// Writes a publisher's public key as settings write it.
pub fn publisher_text(key: &PublicKey) -> String {
    format!("{KEY_PREFIX}{}", hex::encode(key.to_bytes()))
}

/// Operating system and architecture as images spell them, from the names that Rust has for them.
pub fn platform(system: &str, architecture: &str) -> String {
    let architecture = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    format!("{system}/{architecture}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn statement() -> ProgramStatement {
        ProgramStatement {
            program: Digest::of(b"program"),
            bytes: 7,
            version: Version::new(1, 2, 3),
            platform: "linux/amd64".into(),
        }
    }

    #[test]
    fn only_a_trusted_publisher_is_believed() {
        let bytes = statement().sign(&key(1)).unwrap();
        let trusted = [key(2).public(), key(1).public()];
        assert_eq!(ProgramStatement::open(&bytes, &trusted).unwrap(), statement());
        assert!(matches!(
            ProgramStatement::open(&bytes, &[]),
            Err(ProgramRefusal::NoPublisher)
        ));
        let error = ProgramStatement::open(&bytes, &[key(2).public()]).unwrap_err();
        assert!(
            error.to_string().contains(key(1).public().key_id().as_str()),
            "{error}"
        );
    }

    #[test]
    fn t4_a_statement_with_one_byte_changed_is_refused() {
        let bytes = statement().sign(&key(1)).unwrap();
        for position in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[position] ^= 1;
            assert!(
                ProgramStatement::open(&bad, &[key(1).public()]).is_err(),
                "{position}"
            );
        }
    }

    #[test]
    fn t11_an_order_of_the_same_key_is_no_statement() {
        let payload = canonical::to_vec(&statement()).unwrap();
        let other = dsse::sign(crate::order::ORDER_PAYLOAD_TYPE, payload, &[&key(1)]).unwrap();
        let bytes = other.to_json().unwrap();
        assert!(matches!(
            ProgramStatement::open(&bytes, &[key(1).public()]),
            Err(ProgramRefusal::Envelope(DsseError::PayloadType { .. }))
        ));
    }

    #[test]
    fn platform_age_size_and_bytes_count() {
        let statement = statement();
        let oldest = Version::new(1, 2, 3);
        statement.fits("linux/amd64", &oldest).unwrap();
        for (platform, oldest) in [
            ("linux/arm64", "1.2.3"),
            ("linux/amd64", "1.2.4"),
            ("linux/amd64", "2.0.0"),
        ] {
            assert!(statement.fits(platform, &oldest.parse().unwrap()).is_err());
        }
        let candidate = ProgramStatement {
            version: "1.2.3-rc.1".parse().unwrap(),
            ..statement.clone()
        };
        assert!(
            candidate.fits("linux/amd64", &oldest).is_err(),
            "before the release"
        );
        let built = ProgramStatement {
            version: "1.2.3+2".parse().unwrap(),
            ..statement.clone()
        };
        built.fits("linux/amd64", &"1.2.3+9".parse().unwrap()).unwrap();

        statement.is_about(7, Digest::of(b"program")).unwrap();
        assert!(statement.is_about(6, Digest::of(b"progra")).is_err());
        assert!(statement.is_about(7, Digest::of(b"pr0gram")).is_err());
        let huge = ProgramStatement {
            bytes: bounds::PROGRAM_BYTES + 1,
            ..statement
        };
        assert!(huge.is_about(huge.bytes, huge.program).is_err());
    }

    #[test]
    fn keys_of_publishers_are_read_as_they_are_written() {
        let key = key(3).public();
        assert_eq!(publisher(&publisher_text(&key)), Ok(key));
        for bad in [
            "",
            "ed25519:",
            "ed25519:zz",
            &"00".repeat(32),
            &publisher_text(&key)[..70],
        ] {
            assert!(publisher(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn platforms_are_spelled_as_images_spell_them() {
        assert_eq!(platform("linux", "x86_64"), "linux/amd64");
        assert_eq!(platform("linux", "aarch64"), "linux/arm64");
        assert_eq!(platform("linux", "riscv64"), "linux/riscv64");
    }
}
