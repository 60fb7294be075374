//! The right to schedule: a lease in the store whose epoch is checked inside every transaction that schedules (I10). Whoever was
//! paused beyond the lease finds another epoch there and writes nothing.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{error::Reason, id::ReplicaId};
use sealift_store::{Db, Engine, StoreError, Tx};

use crate::status::ApiError;

/// How long a lease holds without being renewed.
const LIFE: TimeDelta = TimeDelta::seconds(15);
/// What must be left of it to go on without renewing.
const RENEW_BELOW: TimeDelta = TimeDelta::seconds(10);

/// The right to do what only one replica may do, while it holds.
#[derive(Debug, Clone)]
pub struct Turn {
    db: Db,
    name: &'static str,
    holder: ReplicaId,
    held: Option<(u64, DateTime<Utc>)>,
}

/// The turn of the loop that starts and advances jobs.
pub const SCHEDULER: &str = "scheduler";
/// The turn of the loop that notices silence.
pub const LEASE_REAPER: &str = "lease_reaper";

/// The turn of the loop that lets targets catch up.
pub const CATCH_UP: &str = "catch_up";

/// The turn of the loop that puts drift right.
pub const RECONCILE: &str = "reconcile";

/// The turn of the loop that keeps records small and sound.
pub const MAINTENANCE: &str = "maintenance";

/// At the start: what the process before this one held is free at once, when the store is one that only one process can open.
/// Elsewhere another replica may live, and its lease has to run out.
pub async fn take_over(db: &Db, now: DateTime<Utc>) -> Result<(), StoreError> {
    match db.engine() {
        Engine::Postgres => Ok(()),
        Engine::Sqlite => {
            let mut tx = db.write().await?;
            tx.release_dead_leases(now).await?;
            tx.commit().await
        }
    }
}

/// At an orderly stop, once no loop runs any more: another replica need not wait for the leases to run out.
pub async fn hand_over(db: &Db, holder: ReplicaId, now: DateTime<Utc>) -> Result<(), StoreError> {
    let mut tx = db.write().await?;
    for name in [SCHEDULER, LEASE_REAPER, CATCH_UP, RECONCILE, MAINTENANCE] {
        tx.release_lease(name, holder, now).await?;
    }
    tx.commit().await
}

impl Turn {
    /// Not held yet.
    pub const fn new(db: Db, name: &'static str, holder: ReplicaId) -> Self {
        Self {
            db,
            name,
            holder,
            held: None,
        }
    }

    /// Takes or renews the lease when that is due; whether it is ours.
    pub async fn hold(&mut self, now: DateTime<Utc>) -> Result<bool, ApiError> {
        if self.held.is_some_and(|(_, until)| until - now >= RENEW_BELOW) {
            return Ok(true);
        }
        let until = now + LIFE;
        let mut tx = self.db.write().await?;
        let epoch = tx.acquire_lease(self.name, self.holder, until, now).await?;
        tx.commit().await?;
        self.held = epoch.map(|epoch| (epoch, until));
        Ok(self.held.is_some())
    }

    /// Steps down: the next [`Turn::hold`] asks the store again.
    pub fn release(&mut self) {
        self.held = None;
    }

    /// A write transaction that is worth nothing once another replica has taken over.
    pub async fn write(&self) -> Result<Tx, ApiError> {
        let (epoch, _) = self.held.ok_or_else(|| self.lost())?;
        let mut tx = self.db.write().await?;
        if tx.check_lease(self.name, &self.holder, epoch).await? {
            Ok(tx)
        } else {
            Err(self.lost())
        }
    }

    /// A read transaction.
    pub async fn read(&self) -> Result<Tx, ApiError> {
        Ok(self.db.read().await?)
    }

    fn lost(&self) -> ApiError {
        ApiError::new(
            Reason::Conflict,
            format!("another replica holds the lease {}", self.name),
            "",
        )
    }
}
