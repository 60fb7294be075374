//! Revocation reaches live streams: whoever serves one asks for a token here and ends the stream when it is cancelled.
//!
//! Calls are checked one by one against the store; a stream outlives its check. The loop is woken by this process's own changes
//! and looks at the store every two seconds for those of other replicas.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    id::{AgentId, UserId},
    time::Clock,
};
use sealift_store::{CertificateSubject, Change, Db, StoreError};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::caller::{Caller, Principal};

/// How often the store is looked at for revocations by other replicas.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a look may take: with it, and the next one, a stream still ends soon after the store is back.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// How far back each look goes: covers the clocks of replicas that differ and transactions that were slow.
const LOOK_BACK: TimeDelta = TimeDelta::seconds(60);

/// Whose streams they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    User(UserId),
    Agent(AgentId),
}

impl From<CertificateSubject> for Subject {
    fn from(subject: CertificateSubject) -> Self {
        match subject {
            CertificateSubject::User(id) => Self::User(id),
            CertificateSubject::Agent(id) => Self::Agent(id),
        }
    }
}

/// Gives out tokens that are cancelled when their principal is revoked. Holds one entry for each principal that ever had a
/// stream here, so it is bounded by the number of users and agents.
#[derive(Debug, Default)]
pub struct Revocations {
    tokens: Mutex<HashMap<Subject, CancellationToken>>,
}

impl Revocations {
    /// A token for a stream of this caller. Callers without certificate and the local socket are never revoked.
    pub fn watch(&self, caller: &Caller) -> CancellationToken {
        let subject = match &caller.principal {
            Principal::User { id, .. } => Subject::User(*id),
            Principal::Agent { id } => Subject::Agent(*id),
            Principal::Local | Principal::Anonymous => return CancellationToken::new(),
        };
        self.tokens().entry(subject).or_default().child_token()
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<Subject, CancellationToken>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the streams. The entry goes too: a stream that slips in between is found by the next look.
    fn revoke(&self, subject: Subject) {
        if let Some(token) = self.tokens().remove(&subject) {
            token.cancel();
        }
    }

    /// Follows the store until `stop`.
    pub async fn run(self: Arc<Self>, db: Db, clock: Arc<dyn Clock>, stop: CancellationToken) {
        let mut changes = db.changes();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since = clock.now() - LOOK_BACK;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => {}
                change = changes.recv() => match change {
                    Ok(Change::User(_) | Change::Agent(_)) | Err(RecvError::Lagged(_)) => {}
                    Ok(_) => continue,
                    Err(RecvError::Closed) => return,
                },
            }
            let now = clock.now();
            let looked = timeout(LOOK_DEADLINE, self.look(&db, since))
                .await
                .unwrap_or_else(|_| Err(StoreError::out_of_time()));
            match looked {
                Ok(()) => since = now - LOOK_BACK,
                // Calls cannot be authenticated either while the store is away; the next look goes back as far as this one.
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot look for revocations"
                    );
                }
            }
        }
    }

    async fn look(&self, db: &Db, since: DateTime<Utc>) -> Result<(), StoreError> {
        for subject in db.read().await?.revoked_since(since).await? {
            self.revoke(subject.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sealift_common::role::Role;

    use super::*;

    fn caller(principal: Principal) -> Caller {
        Caller {
            tenant: None,
            principal,
            serial: None,
            request_id: String::new(),
            certificate_not_after: None,
            notes: Arc::default(),
        }
    }

    #[test]
    fn revoking_one_principal_ends_its_streams_and_no_others() {
        let revocations = Revocations::default();
        let id = UserId::new(DateTime::default());
        let alice = caller(Principal::User {
            id,
            name: "alice".parse().unwrap(),
            role: Role::Observer,
        });
        let agent = caller(Principal::Agent {
            id: AgentId::new(DateTime::default()),
        });
        let (first, second) = (revocations.watch(&alice), revocations.watch(&alice));
        let (other, local) = (
            revocations.watch(&agent),
            revocations.watch(&caller(Principal::Local)),
        );
        revocations.revoke(Subject::User(id));
        assert!(first.is_cancelled() && second.is_cancelled());
        assert!(!other.is_cancelled() && !local.is_cancelled());
        assert!(!revocations.watch(&alice).is_cancelled());
    }
}
