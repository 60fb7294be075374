//! The orchestrator's Ed25519 keys: one signs orders, another countersigns evidence.

use std::path::Path;

use sealift_common::keys::SigningKey;

use super::{IdentityError, files};

/// Both keys. Kept in `order.key.pem` and `evidence.key.pem` (PKCS#8 version 1).
#[derive(Debug)]
pub struct OrchestratorKeys {
    /// Signs orders. Agents get its public half when they join.
    pub order: SigningKey,
    /// Countersigns evidence packets. Its public half goes into trust files.
    pub evidence: SigningKey,
}

impl OrchestratorKeys {
    /// Reads the keys from `directory`, making those that are missing. Blocking.
    pub fn open(directory: &Path) -> Result<Self, IdentityError> {
        files::private_directory(directory)?;
        Ok(Self {
            order: open(&directory.join("order.key.pem"))?,
            evidence: open(&directory.join("evidence.key.pem"))?,
        })
    }
}

fn open(path: &Path) -> Result<SigningKey, IdentityError> {
    let unreadable = |problem| IdentityError::Content {
        path: path.to_owned(),
        problem,
    };
    if let Some(pem) = files::read(path)? {
        return SigningKey::from_pem(&pem).map_err(|_| unreadable("not an Ed25519 key in PKCS#8 PEM"));
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    let key = SigningKey::from_seed(&seed);
    let pem = key
        .to_pem()
        .map_err(|_| unreadable("the key cannot be written"))?;
    files::write(path, pem.as_bytes())?;
    Ok(key)
}
