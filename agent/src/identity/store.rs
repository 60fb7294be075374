//! The identity on disk. Directory of mode 0700, files of mode 0600, each replaced as a whole:
//!
//! - `evidence.key.pem`: Ed25519 key that signs evidence; made once
//! - `credential.json`: TLS key and certificate in use
//! - `credential.next.json`: after a renewal, until it was used once; the one in use stays until then
//! - `identity.json`: who the agent is; written last at enrolment, so its presence means that the agent is enrolled
//!
//! All methods block on the disk, shortly.

use std::path::PathBuf;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use sealift_common::{
    digest::Digest,
    id::AgentId,
    keys::{PublicKey, SigningKey},
    name::Name,
    order::TargetBinding,
    spiffe::Principal,
};
use serde::{Deserialize, Serialize};

use super::{Credential, IdentityError, files};

/// Who the agent is, whom it serves and whom it believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Identifier, given at enrolment.
    pub agent_id: AgentId,
    /// Tenant.
    pub tenant: Name,
    /// The targets that it was enrolled for. It refuses orders for any other.
    pub bindings: Vec<TargetBinding>,
    /// The orchestrator's CA certificate, PEM. Fixed at enrolment.
    pub ca_pem: String,
    /// Keys of which one must have signed an order.
    pub order_keys: Vec<PublicKey>,
}

impl Identity {
    /// Whether the CA is the one that the join token pins. To be asked before an answer to enrolment is believed.
    pub fn check_ca(&self, pin: &[u8; 32]) -> Result<(), IdentityError> {
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|_| IdentityError::Certificate("the CA's is not PEM"))?;
        if Digest::of(&ca).as_bytes() == pin {
            Ok(())
        } else {
            Err(IdentityError::OtherCa)
        }
    }

    fn check_credential(&self, credential: &Credential) -> Result<(), &'static str> {
        let spiffe = credential.spiffe();
        if spiffe.tenant == self.tenant && spiffe.principal == Principal::Agent(self.agent_id) {
            Ok(())
        } else {
            Err("the certificate is not this agent's")
        }
    }
}

/// An enrolled agent's identity with its credentials.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Who it is.
    pub identity: Identity,
    /// The credential in use.
    pub current: Credential,
    /// A renewed one that was not used yet. To be tried first; see [`IdentityStore::confirm`].
    pub next: Option<Credential>,
}

/// The files.
#[derive(Debug, Clone)]
pub struct IdentityStore {
    directory: PathBuf,
}

impl IdentityStore {
    /// The store in `directory`, which is made if it is missing and refused if others may enter it.
    pub fn open(directory: PathBuf) -> Result<Self, IdentityError> {
        files::private_directory(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The evidence key; made at the first call.
    pub fn evidence_key(&self) -> Result<SigningKey, IdentityError> {
        let path = self.path("evidence.key.pem");
        let wrong = |problem| IdentityError::Content {
            path: path.clone(),
            problem,
        };
        if let Some(pem) = files::read(&path)? {
            return SigningKey::from_pem(&pem).map_err(|_| wrong("not an Ed25519 key in PKCS#8 PEM"));
        }
        if files::read(&self.path("identity.json"))?.is_some() {
            // A new key would not be the one that is registered: evidence signed with it would be refused everywhere.
            return Err(wrong(
                "missing although the agent is enrolled; restore it or enrol anew",
            ));
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let key = SigningKey::from_seed(&seed);
        let pem = key.to_pem().map_err(|_| wrong("the key cannot be written"))?;
        files::write(&path, pem.as_bytes())?;
        Ok(key)
    }

    /// Keeps what enrolment gave. A second enrolment over the first is refused.
    pub fn enroll(&self, identity: &Identity, credential: &Credential) -> Result<(), IdentityError> {
        identity
            .check_credential(credential)
            .map_err(IdentityError::Certificate)?;
        let path = self.path("identity.json");
        if files::read(&path)?.is_some() {
            return Err(IdentityError::AlreadyEnrolled);
        }
        files::remove(&self.path("credential.next.json"))?;
        files::write(&self.path("credential.json"), &credential.to_json()?)?;
        self.write_identity(identity)
    }

    /// Who the agent is; `None` when it is not enrolled.
    pub fn identity(&self) -> Result<Option<Identity>, IdentityError> {
        let path = self.path("identity.json");
        let Some(text) = files::read(&path)? else {
            return Ok(None);
        };
        let identity = serde_json::from_str(&text).map_err(|_| IdentityError::Content {
            path,
            problem: "not an identity",
        })?;
        Ok(Some(identity))
    }

    /// Adds a target that the agent serves from now on. Adding it again changes nothing. Two processes at once: one after the
    /// other.
    pub fn add_binding(&self, binding: &TargetBinding) -> Result<(), IdentityError> {
        let _turn = files::lock(&self.path("identity.lock"))?;
        let mut identity = self.identity()?.ok_or(IdentityError::NotEnrolled)?;
        if binding.tenant != identity.tenant {
            return Err(IdentityError::OtherTenant);
        }
        if !identity.bindings.contains(binding) {
            // A target that was enrolled under another name before is known by its identifier.
            identity
                .bindings
                .retain(|known| known.target_id != binding.target_id);
            identity.bindings.push(binding.clone());
            self.write_identity(&identity)?;
        }
        Ok(())
    }

    fn write_identity(&self, identity: &Identity) -> Result<(), IdentityError> {
        let bytes = serde_json::to_vec_pretty(identity)
            .map_err(|_| IdentityError::Certificate("the identity cannot be written"))?;
        files::write(&self.path("identity.json"), &bytes)
    }

    /// What is kept; `None` when the agent is not enrolled.
    pub fn load(&self) -> Result<Option<Enrolled>, IdentityError> {
        let Some(identity) = self.identity()? else {
            return Ok(None);
        };
        let path = self.path("credential.json");
        let current = self
            .credential("credential.json", &identity)?
            .ok_or(IdentityError::Content {
                path,
                problem: "missing although the agent is enrolled; enrol anew",
            })?;
        Ok(Some(Enrolled {
            next: self.credential("credential.next.json", &identity)?,
            identity,
            current,
        }))
    }

    fn credential(&self, name: &str, identity: &Identity) -> Result<Option<Credential>, IdentityError> {
        let path = self.path(name);
        files::read(&path)?
            .map(|text| {
                Credential::from_json(&text)
                    .and_then(|credential| identity.check_credential(&credential).map(|()| credential))
                    .map_err(|problem| IdentityError::Content { path, problem })
            })
            .transpose()
    }

    /// Keeps a renewed credential beside the one in use.
    pub fn stage(&self, next: &Credential) -> Result<(), IdentityError> {
        files::write(&self.path("credential.next.json"), &next.to_json()?)
    }

    /// The staged credential was used successfully: it takes the place of the one in use.
    pub fn confirm(&self) -> Result<(), IdentityError> {
        files::rename(&self.path("credential.next.json"), &self.path("credential.json"))
    }

    /// The staged credential is of no use: the one in use stays.
    pub fn discard(&self) -> Result<(), IdentityError> {
        files::remove(&self.path("credential.next.json"))
    }
}
