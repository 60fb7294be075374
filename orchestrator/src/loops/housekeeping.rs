//! Forgets what nobody needs any more: answers to requests that are too old to be repeated.

use std::time::Duration;

use chrono::TimeDelta;
use sealift_store::Change;

use crate::{
    app::Core,
    loops::driver::{Activity, Outcome},
    status::ApiError,
};

/// How long a repeated request gets its first answer (R16).
pub const ANSWERS_KEPT: TimeDelta = TimeDelta::hours(24);

/// The housekeeping of one replica; harmless when several do it.
#[derive(Debug)]
pub struct Housekeeping {
    core: Core,
}

impl Housekeeping {
    /// Of this replica.
    pub const fn new(core: Core) -> Self {
        Self { core }
    }
}

impl Activity for Housekeeping {
    fn name(&self) -> &'static str {
        "housekeeping"
    }

    fn period(&self) -> Duration {
        Duration::from_mins(10)
    }

    fn wants(&self, _change: &Change) -> bool {
        false
    }

    async fn activate(&mut self) -> Result<Outcome, ApiError> {
        let mut tx = self.core.db.write().await?;
        tx.purge_idempotent_answers(self.core.clock.now() - ANSWERS_KEPT)
            .await?;
        tx.commit().await?;
        Ok(Outcome::Idle)
    }
}
