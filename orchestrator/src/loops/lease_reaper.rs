//! Notices silence: tasks whose agent said nothing for longer than its lease.

use std::time::Duration;

use sealift_common::id::ReplicaId;
use sealift_store::Change;

use crate::{
    app::{
        Core,
        expire_leases::expire_leases,
        turn::{self, Turn},
    },
    loops::driver::{Activity, Outcome},
    status::ApiError,
};

/// The reaper of one replica.
#[derive(Debug)]
pub struct LeaseReaper {
    core: Core,
    turn: Turn,
}

impl LeaseReaper {
    /// Of this replica.
    pub fn new(core: Core, replica: ReplicaId) -> Self {
        let turn = Turn::new(core.db.clone(), turn::LEASE_REAPER, replica);
        Self { core, turn }
    }

    /// While the orchestrator was away nobody could be heard: after a start, agents get the time to come back.
    fn is_patient(&self) -> bool {
        self.core.reconnect_until().is_some()
    }

    async fn is_needed(&self) -> Result<bool, ApiError> {
        let mut tx = self.turn.read().await?;
        let now = self.core.clock.now();
        Ok(
            (!self.is_patient() && !tx.expired_leases(now, 1).await?.is_empty())
                || !tx.overdue_tasks(now, 1).await?.is_empty()
                || !tx.live_tasks_of_revoked_agents(1).await?.is_empty(),
        )
    }
}

impl Activity for LeaseReaper {
    fn name(&self) -> &'static str {
        "lease_reaper"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn wants(&self, change: &Change) -> bool {
        matches!(change, Change::Agent(_))
    }

    async fn activate(&mut self) -> Result<Outcome, ApiError> {
        // Looking costs a read; only what is found is worth a turn and a transaction.
        if !self.is_needed().await? || !self.turn.hold(self.core.clock.now()).await? {
            return Ok(Outcome::Idle);
        }
        let mut tx = match self.turn.write().await {
            Ok(tx) => tx,
            Err(error) => {
                self.turn.release();
                return Err(error);
            }
        };
        let changed = expire_leases(&mut tx, self.core.clock.now(), self.is_patient()).await?;
        tx.commit().await?;
        Ok(if changed == 0 {
            Outcome::Idle
        } else {
            Outcome::More
        })
    }
}
