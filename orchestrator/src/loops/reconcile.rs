//! Puts back what is recorded where drift was found, in environments that want it.

use std::time::Duration;

use sealift_common::id::ReplicaId;
use sealift_store::{Change, DriftedPlace};

use crate::{
    app::{
        Core,
        reconcile::{is_due, reconcile},
        turn::{self, Turn},
    },
    loops::driver::{Activity, Outcome},
    status::{ApiError, Chain},
};

/// Most places that one activation looks at.
const BATCH: u32 = 100;

/// The loop of one replica.
#[derive(Debug)]
pub struct Reconcile {
    core: Core,
    turn: Turn,
    /// The last place of the activation before, while there may be more behind it: each round looks at every place once, however
    /// many of them have to wait.
    after: Option<DriftedPlace>,
}

impl Reconcile {
    /// Of this replica.
    pub fn new(core: Core, replica: ReplicaId) -> Self {
        let turn = Turn::new(core.db.clone(), turn::RECONCILE, replica);
        Self {
            core,
            turn,
            after: None,
        }
    }

    /// Those of the places at which there is something to do, and the first error: one place that cannot be looked at does not
    /// stop the others.
    async fn due(
        &self,
        places: Vec<DriftedPlace>,
    ) -> Result<(Vec<DriftedPlace>, Option<ApiError>), ApiError> {
        let mut tx = self.turn.read().await?;
        let (mut due, mut failed) = (Vec::new(), None);
        for place in places {
            match is_due(&self.core, &mut tx, &place).await {
                Ok(true) => due.push(place),
                Ok(false) => {}
                Err(error) => keep_first(&mut failed, &place, error),
            }
        }
        Ok((due, failed))
    }
}

fn keep_first(failed: &mut Option<ApiError>, place: &DriftedPlace, error: ApiError) {
    tracing::warn!(
        name: "drift.reconcile_failed", project = place.project, target.id = %place.target_id, error = %Chain(&error),
        "drift could not be put right"
    );
    failed.get_or_insert(error);
}

impl Activity for Reconcile {
    fn name(&self) -> &'static str {
        "reconcile"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn wants(&self, change: &Change) -> bool {
        // What held it up may have ended.
        matches!(change, Change::Drift(_) | Change::Lane(_))
    }

    async fn activate(&mut self) -> Result<Outcome, ApiError> {
        let places = self
            .turn
            .read()
            .await?
            .drifted_places(self.after.as_ref(), BATCH)
            .await?;
        let whole = places.len() == BATCH as usize;
        self.after = places.last().filter(|_| whole).cloned();
        if places.is_empty() {
            return Ok(Outcome::Idle);
        }
        let (due, mut failed) = self.due(places).await?;
        if !due.is_empty() && self.turn.hold(self.core.clock.now()).await? {
            for place in &due {
                let mut tx = match self.turn.write().await {
                    Ok(tx) => tx,
                    Err(error) => {
                        self.turn.release();
                        return Err(error);
                    }
                };
                // What was done for the place before is seen: an act makes the lane busy.
                match reconcile(&self.core, &mut tx, place).await {
                    Ok(_) => tx.commit().await?,
                    Err(error) => keep_first(&mut failed, place, error),
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
