//! Promotions.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    plan::Plan,
    promotion::{PromotionKind, PromotionState},
};
use sealift_proto::v1::{
    self as pb,
    promotion::{Kind as WireKind, State as Wire},
};
use sealift_store::{Job, Promotion, Transition};

use crate::{
    convert::{failure, plan, recipe, time, transition},
    names,
    status::ApiError,
};

/// How a promotion waits in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waits {
    /// Place in the lane, 1 is next; 0 when it does not wait.
    pub position: u32,
    /// How long that may take; `None` without experience.
    pub estimate: Option<Estimate>,
}

/// An estimate of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// How long.
    pub wait: Duration,
    /// From how many jobs.
    pub samples: usize,
}

/// Everything that a promotion's message is made of.
#[derive(Debug)]
pub struct PromotionView<'a> {
    /// The promotion.
    pub promotion: &'a Promotion,
    /// What its release is called.
    pub release: &'a str,
    /// The newest decision; in lists without the gates' answers.
    pub decision: Option<pb::Decision>,
    /// Its job.
    pub job: Option<&'a Job>,
    /// How it waits in its lane.
    pub waits: Waits,
    /// Its history; empty in lists.
    pub transitions: &'a [Transition],
    /// With what the plan says (not in lists).
    pub whole: bool,
    /// When its failure was told.
    pub failed_at: Option<DateTime<Utc>>,
}

/// Writes a promotion.
pub fn promotion(view: PromotionView<'_>) -> Result<pb::Promotion, ApiError> {
    let promotion = view.promotion;
    Ok(pb::Promotion {
        name: names::of_promotion(promotion.id),
        uid: promotion.id.to_string(),
        release: names::of_release(promotion.release_id),
        release_display: view.release.to_owned(),
        environment: names::of_environment(&promotion.environment),
        state: state(promotion.state).into(),
        plan: planned(promotion, view.whole)?,
        decision: view.decision,
        job: view.job.map(|job| names::of_job(job.id)).unwrap_or_default(),
        recipe: Some(recipe::recipe(&promotion.recipe)),
        kind: match promotion.kind() {
            PromotionKind::Deploy => WireKind::Deploy,
            PromotionKind::Rollback => WireKind::Rollback,
        }
        .into(),
        change_summary: promotion.change_summary.clone(),
        requested_by: promotion.requested_by.clone(),
        failure: promotion
            .failure
            .as_ref()
            .map(|why| failure::failure(why, view.failed_at)),
        lane_position: i32::try_from(view.waits.position).unwrap_or(i32::MAX),
        estimated_wait: view.waits.estimate.map(|estimate| time::duration(estimate.wait)),
        estimated_wait_samples: view
            .waits
            .estimate
            .map_or(0, |estimate| i32::try_from(estimate.samples).unwrap_or(i32::MAX)),
        etag: names::etag(promotion.version),
        create_time: Some(time::timestamp(promotion.created_at)),
        finish_time: promotion.finished_at.map(time::timestamp),
        transitions: transition::transitions(view.transitions),
        scope_size: promotion
            .scope
            .as_ref()
            .map_or(0, |scope| i32::try_from(scope.len()).unwrap_or(i32::MAX)),
        rollback_of: promotion.rollback_of.map(names::of_job).unwrap_or_default(),
        rerun_of: promotion.rerun_of.map(names::of_job).unwrap_or_default(),
        superseded_by: promotion
            .superseded_by
            .map(names::of_promotion)
            .unwrap_or_default(),
    })
}

fn planned(promotion: &Promotion, whole: bool) -> Result<Option<pb::Plan>, ApiError> {
    if !whole {
        return Ok(Some(pb::Plan {
            digest: promotion.plan_digest.to_string(),
            ..pb::Plan::default()
        }));
    }
    let stored: Plan = serde_json::from_str(&promotion.plan_json).map_err(ApiError::internal)?;
    Ok(Some(plan::plan(&stored, promotion.plan_digest)))
}

/// Writes the state of a promotion.
pub const fn state(state: PromotionState) -> Wire {
    match state {
        PromotionState::PendingGate => Wire::PendingGate,
        PromotionState::Approved => Wire::Approved,
        PromotionState::Deploying => Wire::Deploying,
        PromotionState::Deployed => Wire::Deployed,
        PromotionState::Rejected => Wire::Rejected,
        PromotionState::Cancelled => Wire::Cancelled,
        PromotionState::Failed => Wire::Failed,
        PromotionState::RolledBack => Wire::RolledBack,
    }
}

/// Reads the digest of a plan that somebody looked at; empty is none.
pub fn to_plan_digest(field: &str, text: &str) -> Result<Option<Digest>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|error: sealift_common::digest::InvalidDigest| ApiError::invalid(field, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_number_of_its_own_in_the_order_of_the_states() {
        let numbers: Vec<i32> = PromotionState::ALL
            .iter()
            .map(|value| state(*value).into())
            .collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        for value in PromotionState::ALL {
            assert_eq!(
                state(*value).as_str_name(),
                format!("STATE_{}", value.as_str().to_uppercase())
            );
        }
    }
}
