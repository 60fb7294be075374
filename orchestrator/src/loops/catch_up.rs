//! Lets targets that were left alone catch up when their agents are back.

use std::time::Duration;

use sealift_common::{error::Reason, id::ReplicaId};
use sealift_store::{Change, LeftOut};

use crate::{
    app::{
        Core,
        catch_up::{CaughtUp, catch_up, put_off, ready},
        turn::{self, Turn},
    },
    loops::driver::{Activity, Outcome},
    status::{ApiError, Chain},
};

/// Most targets that one activation looks at.
const BATCH: u32 = 100;

/// The loop of one replica.
#[derive(Debug)]
pub struct CatchUp {
    core: Core,
    turn: Turn,
    /// The last one of the activation before, while there may be more behind it: each round looks at all once, however many of
    /// them are away.
    after: Option<LeftOut>,
}

impl CatchUp {
    /// Of this replica.
    pub fn new(core: Core, replica: ReplicaId) -> Self {
        let turn = Turn::new(core.db.clone(), turn::CATCH_UP, replica);
        Self {
            core,
            turn,
            after: None,
        }
    }

    /// Those of a page about which something can be done. Where the page cannot be read as a whole, that is found out one by one.
    async fn ready(&self, page: Vec<LeftOut>) -> Result<Vec<LeftOut>, ApiError> {
        let mut tx = self.turn.read().await?;
        match ready(&self.core, &mut tx, &page).await {
            Err(error) if error.reason() != Reason::StoreUnavailable => Ok(page),
            found => found,
        }
    }

    async fn look_at(&self, one: &LeftOut) -> Result<(), ApiError> {
        let mut tx = self.turn.write().await?;
        if catch_up(&self.core, &mut tx, one).await? != CaughtUp::Waits {
            tx.commit().await?;
        }
        Ok(())
    }

    /// One that cannot be looked at is put off, and stops none of the others.
    async fn put_off(&self, one: &LeftOut, error: &ApiError) -> Result<(), ApiError> {
        tracing::warn!(
            name: "catch_up.failed", error = %Chain(error), target.id = %one.target_id, "a target could not catch up"
        );
        let mut tx = self.turn.write().await?;
        put_off(&self.core, &mut tx, one).await?;
        Ok(tx.commit().await?)
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
        let page = self
            .turn
            .read()
            .await?
            .left_out(now, self.after.as_ref(), BATCH)
            .await?;
        let whole = page.len() == BATCH as usize;
        self.after = page.last().filter(|_| whole).copied();
        if page.is_empty() {
            return Ok(Outcome::Idle);
        }
        // Looking costs a read; only who is back is worth a turn and transactions.
        let ready = self.ready(page).await?;
        let mut failed = None;
        if !ready.is_empty() && self.turn.hold(now).await? {
            for one in &ready {
                let Err(error) = self.look_at(one).await else {
                    continue;
                };
                match error.reason() {
                    Reason::StoreUnavailable => return Err(error),
                    // The turn is lost, or somebody else was faster: looked at again in the next round.
                    Reason::Conflict => self.turn.release(),
                    _ => self.put_off(one, &error).await?,
                }
                failed.get_or_insert(error);
                if !self.turn.hold(now).await? {
                    break;
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None if whole => Ok(Outcome::More),
            None => Ok(Outcome::Idle),
        }
    }
}
