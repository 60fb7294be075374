//! Credentials in use: the newest certificate is tried first, the one before it stays until the new one was welcomed once.

use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use crate::identity::{self, Credential, Enrolled, Identity, IdentityError, IdentityStore};

/// The agent's identity with its credentials. Everything that uses a credential asks here.
#[derive(Debug)]
pub struct Credentials {
    store: IdentityStore,
    identity: Identity,
    pair: Mutex<Pair>,
    renewed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Pair {
    current: Credential,
    next: Option<Credential>,
    /// When this process got the newest one.
    received_at: Option<DateTime<Utc>>,
}

impl Credentials {
    /// What `store` keeps of an enrolled agent.
    pub fn new(store: IdentityStore, enrolled: Enrolled) -> Self {
        let Enrolled {
            identity,
            current,
            next,
        } = enrolled;
        Self {
            store,
            identity,
            pair: Mutex::new(Pair {
                current,
                next,
                received_at: None,
            }),
            renewed: watch::Sender::new(0),
        }
    }

    /// Who the agent is.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The credential to connect with.
    pub fn newest(&self) -> Credential {
        let pair = self.pair();
        pair.next.as_ref().unwrap_or(&pair.current).clone()
    }

    /// Serial of the certificate in use, for evidence.
    pub fn serial(&self) -> String {
        self.newest().serial_hex().to_owned()
    }

    /// When to renew `credential`. Certificates are dated back, for hosts whose clocks are behind; one that was just received
    /// begins its life now, so that short-lived ones are not renewed again and again.
    pub fn renew_at(&self, credential: &Credential, dice: f64) -> DateTime<Utc> {
        let begin = self.pair().received_at.unwrap_or(credential.not_before());
        identity::renewal_instant(begin.max(credential.not_before()), credential.not_after(), dice)
    }

    /// Changes when there is a new credential.
    pub fn renewed(&self) -> watch::Receiver<u64> {
        self.renewed.subscribe()
    }

    /// Keeps a renewed credential.
    pub fn stage(&self, next: Credential, now: DateTime<Utc>) -> Result<(), IdentityError> {
        self.store.stage(&next)?;
        let mut pair = self.pair();
        pair.next = Some(next);
        pair.received_at = Some(now);
        drop(pair);
        self.renewed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// The orchestrator welcomed the holder of `used`.
    pub fn welcomed(&self, used: &Credential) -> Result<(), IdentityError> {
        let mut pair = self.pair();
        if pair.next.as_ref() == Some(used) {
            self.store.confirm()?;
            if let Some(next) = pair.next.take() {
                pair.current = next;
            }
        }
        Ok(())
    }

    /// The orchestrator refused the holder of `used`; answers whether there is another credential to try.
    pub fn refused(&self, used: &Credential) -> Result<bool, IdentityError> {
        let mut pair = self.pair();
        if pair.next.as_ref() != Some(used) {
            return Ok(false);
        }
        self.store.discard()?;
        pair.next = None;
        Ok(true)
    }

    fn pair(&self) -> MutexGuard<'_, Pair> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
