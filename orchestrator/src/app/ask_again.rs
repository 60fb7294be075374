//! The gates of a job under way: asked again before a wave begins, by the same functions that let the job start.

use sealift_common::{
    decision::{GateAnswer, HoldFacts},
    gates::{self, Held, Meanwhile},
    promotion::PromotionKind,
};
use sealift_store::{Hold, Job, Tx};

use crate::status::ApiError;

/// The gate that keeps the job from beginning a wave now.
pub async fn closed_gate(tx: &mut Tx, job: &Job) -> Result<Option<GateAnswer>, ApiError> {
    let hold = tx
        .open_hold_on_release(job.environment_id, job.release_id)
        .await?;
    let facts = hold.as_ref().map(hold_facts);
    let held = hold.as_ref().zip(facts.as_ref()).map(|(hold, facts)| Held {
        environment: &hold.environment,
        project: &hold.project,
        hold: facts,
    });
    Ok(gates::closed_meanwhile(&Meanwhile {
        kind: PromotionKind::of(job.rollback_of),
        held,
    }))
}

/// A hold as gates look at it.
pub fn hold_facts(hold: &Hold) -> HoldFacts {
    HoldFacts {
        id: hold.id,
        placed_by: hold.placed_by.clone(),
        reason: hold.reason.clone(),
    }
}
