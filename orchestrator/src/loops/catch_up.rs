//! Lets targets that were left alone catch up when their agents are back.

use std::time::Duration;

use sealift_common::id::ReplicaId;
use sealift_store::Change;

use crate::{
    app::{
        Core,
        catch_up::catch_up,
        turn::{self, Turn},
    },
    loops::driver::{Activity, Outcome},
    status::ApiError,
};

/// Most targets that one activation looks at.
const BATCH: u32 = 50;

/// The loop of one replica.
#[derive(Debug)]
pub struct CatchUp {
    core: Core,
    turn: Turn,
}

impl CatchUp {
    /// Of this replica.
    pub fn new(core: Core, replica: ReplicaId) -> Self {
        let turn = Turn::new(core.db.clone(), turn::CATCH_UP, replica);
        Self { core, turn }
    }
}

impl Activity for CatchUp {
    fn name(&self) -> &'static str {
        "catch_up"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn wants(&self, change: &Change) -> bool {
        matches!(change, Change::Agent(_))
    }

    async fn activate(&mut self) -> Result<Outcome, ApiError> {
        let now = self.core.clock.now();
        // Looking costs a read; only what is due is worth a turn and transactions.
        let due = self.turn.read().await?.left_out(now, BATCH).await?;
        if due.is_empty() || !self.turn.hold(now).await? {
            return Ok(Outcome::Idle);
        }
        for one in &due {
            let mut tx = match self.turn.write().await {
                Ok(tx) => tx,
                Err(error) => {
                    self.turn.release();
                    return Err(error);
                }
            };
            catch_up(&self.core, &mut tx, one).await?;
            tx.commit().await?;
        }
        // Whoever was looked at is not due any more.
        Ok(if due.len() == BATCH as usize {
            Outcome::More
        } else {
            Outcome::Idle
        })
    }
}
