//! Plans.

use sealift_common::{
    digest::Digest,
    name::Name,
    plan::{Action, Change, Plan, PlanTarget},
};
use sealift_proto::v1::{self as pb, plan_change::Action as Wire};

use crate::names;

/// Writes a plan with its digest; `environment` is what the targets' resource names begin with.
pub fn plan(plan: &Plan, digest: Digest, environment: &Name) -> pb::Plan {
    pb::Plan {
        digest: digest.to_string(),
        targets: plan
            .targets
            .iter()
            .map(|planned| target(planned, environment))
            .collect(),
        variables: plan
            .variables
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

fn target(planned: &PlanTarget, environment: &Name) -> pb::PlanTarget {
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
