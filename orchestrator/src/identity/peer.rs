//! Who the holder of a client certificate is.

use chrono::{DateTime, Utc};
use sealift_common::spiffe::SpiffeId;
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use super::IdentityError;

/// The identity in a certificate that TLS has verified against our CA. Whether it still counts (revoked, replaced) is for each
/// call to ask the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Tenant, and agent or user.
    pub spiffe: SpiffeId,
    /// Serial, lower-case hex without separators, as [`super::IssuedCertificate::serial_hex`].
    pub serial_hex: String,
    /// End of the certificate's life.
    pub not_after: DateTime<Utc>,
}

impl PeerIdentity {
    /// Reads a leaf certificate: exactly one subject alternative name, a URI, that is one of our identities (X.509-SVID).
    /// Verifies nothing.
    pub fn from_der(leaf: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf)
            .map_err(|_| IdentityError::Peer("it is malformed"))?;
        if !rest.is_empty() {
            return Err(IdentityError::Peer("bytes follow it"));
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| IdentityError::Peer("its alternative names are malformed"))?
            .ok_or(IdentityError::Peer("it has no alternative name"))?;
        let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
            return Err(IdentityError::Peer(
                "it has not exactly one URI as alternative name",
            ));
        };
        if certificate.is_ca() {
            return Err(IdentityError::Peer("it is a CA's"));
        }
        let spiffe = uri
            .parse()
            .map_err(|_| IdentityError::Peer("its URI is not an identity of this system"))?;
        let not_after = DateTime::from_timestamp(certificate.validity().not_after.timestamp(), 0)
            .ok_or(IdentityError::Peer("it has no end"))?;
        Ok(Self {
            spiffe,
            serial_hex: hex::encode(certificate.raw_serial()),
            not_after,
        })
    }
}
