//! The right to schedule: a lease in the store whose epoch is checked inside every transaction that schedules (I10). Whoever was
//! paused beyond the lease finds another epoch there and writes nothing.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{error::Reason, id::ReplicaId};
use sealift_store::{Db, Tx};

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
