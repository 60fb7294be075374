//! The agent's TLS key and certificate, and when to replace them.

use chrono::{DateTime, TimeDelta, Utc};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{crypto::ring::default_provider, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sealift_common::spiffe::SpiffeId;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;

use super::IdentityError;

/// A fresh key with its signing request.
pub struct NewKey {
    /// PKCS#8 PEM. A secret that never leaves the host.
    pub key_pem: String,
    /// The request, PEM.
    pub csr_pem: String,
}

/// Makes an ECDSA P-256 key and a request for it. The names in the request mean nothing: the orchestrator decides them.
pub fn new_key() -> Result<NewKey, IdentityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let csr_pem = CertificateParams::default().serialize_request(&key)?.pem()?;
    Ok(NewKey {
        key_pem: key.serialize_pem(),
        csr_pem,
    })
}

/// A key and its certificate. One value and one file, so that they can never be of different age.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pems: Pems,
    facts: Facts,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pems {
    key_pem: String,
    chain_pem: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    spiffe: SpiffeId,
    serial_hex: String,
    not_before: DateTime<Utc>,
    not_after: DateTime<Utc>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Credential").field(&self.facts).finish()
    }
}

fn read_facts(key_pem: &str, chain_pem: &str) -> Result<Facts, &'static str> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| "the certificate is not PEM")?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| "the key is not PEM")?;
    let leaf = chain.first().cloned().ok_or("there is no certificate")?;
    CertifiedKey::from_der(chain, key, &default_provider())
        .map_err(|_| "the certificate is not that of the key")?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&leaf).map_err(|_| "the certificate is malformed")?;
    let names = parsed
        .subject_alternative_name()
        .ok()
        .flatten()
        .ok_or("the certificate has no name")?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
        return Err("the certificate has not exactly one name");
    };
    let time = |seconds| DateTime::from_timestamp(seconds, 0).ok_or("the certificate has no sensible time");
    Ok(Facts {
        spiffe: uri.parse().map_err(|_| "the certificate names no peer")?,
        serial_hex: hex::encode(parsed.raw_serial()),
        not_before: time(parsed.validity().not_before.timestamp())?,
        not_after: time(parsed.validity().not_after.timestamp())?,
    })
}

impl Credential {
    /// A key with the certificate that the orchestrator issued for it: `chain_pem` is the leaf, with or without the CA after it.
    /// Checks that they belong together and that the certificate names a peer.
    pub fn new(key_pem: String, chain_pem: String) -> Result<Self, IdentityError> {
        Self::checked(Pems { key_pem, chain_pem }).map_err(IdentityError::Certificate)
    }

    fn checked(pems: Pems) -> Result<Self, &'static str> {
        let facts = read_facts(&pems.key_pem, &pems.chain_pem)?;
        Ok(Self { pems, facts })
    }

    /// Reads what [`Self::to_json`] wrote, with all the checks of [`Self::new`].
    pub(super) fn from_json(text: &str) -> Result<Self, &'static str> {
        Self::checked(serde_json::from_str(text).map_err(|_| "not a credential")?)
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, IdentityError> {
        serde_json::to_vec(&self.pems).map_err(|_| IdentityError::Certificate("it cannot be written"))
    }

    /// Private key, PKCS#8 PEM. A secret.
    pub fn key_pem(&self) -> &str {
        &self.pems.key_pem
    }

    /// Certificate chain, leaf first, PEM.
    pub fn chain_pem(&self) -> &str {
        &self.pems.chain_pem
    }

    /// Who the certificate says that this is.
    pub const fn spiffe(&self) -> &SpiffeId {
        &self.facts.spiffe
    }

    /// Serial of the certificate, lower-case hex, as evidence names it.
    pub fn serial_hex(&self) -> &str {
        &self.facts.serial_hex
    }

    /// Start of the certificate's life.
    pub const fn not_before(&self) -> DateTime<Utc> {
        self.facts.not_before
    }

    /// End of the certificate's life.
    pub const fn not_after(&self) -> DateTime<Utc> {
        self.facts.not_after
    }
}

/// When to renew a certificate: at 50 to 80 % of its life, so that a fleet that enrolled together does not renew together.
/// `fraction` is a random number from 0 to 1; anything else counts as the nearer end.
pub fn renewal_instant(not_before: DateTime<Utc>, not_after: DateTime<Utc>, fraction: f64) -> DateTime<Utc> {
    let fraction = if fraction.is_nan() {
        0.0
    } else {
        fraction.clamp(0.0, 1.0)
    };
    let life = (not_after - not_before).max(TimeDelta::zero());
    let share = 0.5 + 0.3 * fraction;
    not_before + TimeDelta::milliseconds((life.num_milliseconds() as f64 * share) as i64)
}
