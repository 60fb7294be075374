//! Plans.

use sealift_common::{
    digest::Digest,
    name::Name,
    plan::{Action, Change, Plan, PlanTarget},
};
use sealift_proto::v1::{self as pb, plan_change::Action as Wire};

use crate::names;

/// Writes what a plan says as a whole, with its digest.
pub fn plan(plan: &Plan, digest: Digest) -> pb::Plan {
    let int = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    pb::Plan {
        digest: digest.to_string(),
        target_count: int(plan.targets.len()),
        changed_count: int(plan.touched()),
        variables: plan
            .variables
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

/// Writes what it says about one target; `environment` is what the resource names of targets begin with.
pub fn target(planned: &PlanTarget, environment: &Name) -> pb::PlanTarget {
    pb::PlanTarget {
        target: names::of_target(environment, &planned.target),
        no_op: planned.no_op,
        wave: i32::try_from(planned.wave).unwrap_or(i32::MAX),
        changes: planned.changes.iter().map(change).collect(),
    }
}

fn change(change: &Change) -> pb::PlanChange {
    let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string()).unwrap_or_default();
    pb::PlanChange {
        service: change.service.to_string(),
        component: change
            .component
            .as_ref()
            .map(names::of_component)
            .unwrap_or_default(),
        digest_now: text(change.digest_now),
        digest_next: text(change.digest_next),
        action: action(change.action).into(),
    }
}

const fn action(action: Action) -> Wire {
    match action {
        Action::Keep => Wire::Keep,
        Action::Create => Wire::Create,
        Action::Replace => Wire::Replace,
        Action::Remove => Wire::Remove,
    }
}
