//! The CA: made at first start, issues certificates for agents, users and the server.
//!
//! Of a certificate signing request only the key is used: names, usages and times are the orchestrator's decision.

use std::{net::IpAddr, path::Path};

use chrono::{DateTime, TimeDelta, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use sealift_common::{
    digest::Digest,
    id::{AgentId, UserId},
    name::Name,
    spiffe::SpiffeId,
};

use x509_parser::time::ASN1Time;

use super::{IdentityError, files};

/// How far certificates are dated back, for hosts whose clocks are behind.
const BACK_DATE: TimeDelta = TimeDelta::minutes(5);

/// How long the CA lives.
const CA_LIFE: TimeDelta = TimeDelta::days(3650);

/// Largest signing request in bytes.
const CSR_BYTES: usize = 16 * 1024;

/// The certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    not_after: DateTime<Utc>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca")
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct IssuedCertificate {
    /// The leaf, PEM.
    pub leaf_pem: String,
    /// Leaf and CA, PEM.
    pub chain_pem: String,
    /// The leaf, DER.
    pub leaf: CertificateDer<'static>,
    /// Serial, lower-case hex without separators.
    pub serial_hex: String,
    /// Start of its life (dated back by five minutes).
    pub not_before: DateTime<Utc>,
    /// End of its life.
    pub not_after: DateTime<Utc>,
}

/// What the server is called: what clients may write into their endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// A fresh key with its signing request.
pub struct NewKey {
    /// PKCS#8 PEM. A secret.
    pub key_pem: String,
    /// The request, DER.
    pub csr_der: Vec<u8>,
}

/// Makes an ECDSA P-256 key and a request for it, for `admin issue` and for tests.
pub fn new_key() -> Result<NewKey, IdentityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok(NewKey {
        key_pem: key.serialize_pem(),
        csr_der: request.der().to_vec(),
    })
}

fn asn1(time: DateTime<Utc>) -> Result<ASN1Time, IdentityError> {
    ASN1Time::from_timestamp(time.timestamp()).map_err(|_| IdentityError::Time(time))
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// 16 random bytes whose first is neither zero nor negative, so that the number has one spelling.
fn serial() -> Result<[u8; 16], IdentityError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    bytes[0] = (bytes[0] & 0x3F) | 0x40;
    Ok(bytes)
}

fn parameters(
    name: &str,
    not_before: DateTime<Utc>,
    not_after: DateTime<Utc>,
) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.not_before = asn1(not_before)?.to_datetime();
    params.not_after = asn1(not_after)?.to_datetime();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Reads a request (DER or PEM), verifies that its sender holds the key, and forgets everything but the key.
fn requested_key(csr: &[u8]) -> Result<rcgen::PublicKey, IdentityError> {
    if csr.len() > CSR_BYTES {
        return Err(IdentityError::Csr("it is larger than 16 KiB"));
    }
    let der = if csr.starts_with(b"-----BEGIN") {
        CertificateSigningRequestDer::from_pem_slice(csr).map_err(|_| IdentityError::Csr("it is not PEM"))?
    } else {
        CertificateSigningRequestDer::from(csr)
    };
    let request = CertificateSigningRequestParams::from_der(&der).map_err(|error| {
        IdentityError::Csr(match error {
            rcgen::Error::InvalidCertificationRequestSignature => "its signature does not verify",
            rcgen::Error::UnsupportedExtension => "it asks for an extension that is not known",
            _ => "it is malformed",
        })
    })?;
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(IdentityError::Csr("its key is not ECDSA P-256"));
    }
    Ok(request.public_key)
}

impl Ca {
    /// Reads `ca.key.pem` and `ca.pem` from `directory`; makes them on first start. Blocking.
    pub fn open(directory: &Path, now: DateTime<Utc>) -> Result<Self, IdentityError> {
        files::private_directory(directory)?;
        let key_path = directory.join("ca.key.pem");
        let path = directory.join("ca.pem");
        let wrong = |path: &Path, problem| IdentityError::Content {
            path: path.to_owned(),
            problem,
        };
        let key = files::read(&key_path)?
            .map(|pem| KeyPair::from_pem(&pem).map_err(|_| wrong(&key_path, "not a private key in PEM")))
            .transpose()?;
        match (key, files::read(&path)?) {
            (Some(key), Some(pem)) => Self::read(key, pem).map_err(|problem| wrong(&path, problem)),
            (None, Some(_)) => Err(wrong(
                &key_path,
                "the CA's key is missing although its certificate is there; restore both from a backup",
            )),
            // The key is written first: a start that was killed in between goes on with it.
            (key, None) => {
                let key = if let Some(key) = key {
                    key
                } else {
                    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                    files::write(&key_path, key.serialize_pem().as_bytes())?;
                    key
                };
                let mut params = parameters("Sealift CA", now - BACK_DATE, now + CA_LIFE)?;
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
                params.serial_number = Some(SerialNumber::from_slice(&serial()?));
                let pem = params.self_signed(&key)?.pem();
                files::write(&path, pem.as_bytes())?;
                Self::read(key, pem).map_err(|problem| wrong(&path, problem))
            }
        }
    }

    fn read(key: KeyPair, pem: String) -> Result<Self, &'static str> {
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "not a certificate in PEM")?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|_| "not a certificate in PEM")?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err("the certificate is not that of the key beside it");
        }
        let not_after = DateTime::from_timestamp(parsed.validity().not_after.timestamp(), 0)
            .ok_or("the certificate has no end")?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| "not a certificate that can issue others")?;
        Ok(Self {
            issuer,
            certificate,
            pem,
            not_after,
        })
    }

    /// The CA certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA certificate as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the CA certificate's DER: what join tokens pin.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// A certificate for an agent.
    pub fn issue_agent(
        &self,
        csr: &[u8],
        tenant: &Name,
        agent: AgentId,
        now: DateTime<Utc>,
        life: TimeDelta,
    ) -> Result<IssuedCertificate, IdentityError> {
        self.issue_peer(csr, &SpiffeId::agent(tenant.clone(), agent), now, life)
    }

    /// A certificate for a person or a machine that calls the operator API.
    pub fn issue_user(
        &self,
        csr: &[u8],
        tenant: &Name,
        user: UserId,
        now: DateTime<Utc>,
        life: TimeDelta,
    ) -> Result<IssuedCertificate, IdentityError> {
        self.issue_peer(csr, &SpiffeId::user(tenant.clone(), user), now, life)
    }

    fn issue_peer(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        now: DateTime<Utc>,
        life: TimeDelta,
    ) -> Result<IssuedCertificate, IdentityError> {
        let key = requested_key(csr)?;
        let uri = id
            .to_string()
            .try_into()
            .map_err(|_| IdentityError::Peer("its identity is not ASCII"))?;
        // The common name is for people who look at it; nothing reads it.
        self.issue(
            &key,
            "Sealift peer",
            vec![SanType::URI(uri)],
            ExtendedKeyUsagePurpose::ClientAuth,
            now,
            life,
        )
    }

    /// A certificate for the server itself, with a fresh key (PKCS#8 DER).
    pub(super) fn issue_server(
        &self,
        names: &ServerNames,
        now: DateTime<Utc>,
        life: TimeDelta,
    ) -> Result<(IssuedCertificate, Vec<u8>), IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut subjects = Vec::with_capacity(names.dns.len() + names.addresses.len());
        for name in &names.dns {
            let text = name
                .as_str()
                .try_into()
                .map_err(|_| IdentityError::DnsName(name.clone()))?;
            subjects.push(SanType::DnsName(text));
        }
        subjects.extend(names.addresses.iter().copied().map(SanType::IpAddress));
        let issued = self.issue(
            &key,
            "Sealift orchestrator",
            subjects,
            ExtendedKeyUsagePurpose::ServerAuth,
            now,
            life,
        )?;
        Ok((issued, key.serialize_der()))
    }

    fn issue(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        subjects: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
        now: DateTime<Utc>,
        life: TimeDelta,
    ) -> Result<IssuedCertificate, IdentityError> {
        let serial = serial()?;
        let not_before = now - BACK_DATE;
        let not_after = (now + life).min(self.not_after);
        let mut params = parameters(name, not_before, not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = subjects;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(IssuedCertificate {
            leaf_pem: certificate.pem(),
            chain_pem: format!("{}{}", certificate.pem(), self.pem),
            leaf: certificate.der().clone(),
            serial_hex: hex::encode(serial),
            not_before,
            not_after,
        })
    }
}
