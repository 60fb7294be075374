//! Plans.

use prost::Message as _;
use sealift_common::{
    bounds,
    digest::Digest,
    name::Name,
    plan::{Action, Change, Plan, PlanTarget},
};
use sealift_proto::v1::{self as pb, plan_change::Action as Wire};
use sealift_store::{Cursor, PageRequest};

use crate::{names, paging::invalid_token, status::ApiError};

/// Most bytes of targets in one message.
const PAGE_BYTES: usize = bounds::MESSAGE_BYTES / 4;

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

fn target(planned: &PlanTarget, environment: &Name) -> pb::PlanTarget {
    pb::PlanTarget {
        target: names::of_target(environment, &planned.target),
        no_op: planned.no_op,
        wave: i32::try_from(planned.wave).unwrap_or(i32::MAX),
        changes: planned.changes.iter().map(change).collect(),
    }
}

/// A page of what it says about the targets. It ends early where a message would grow too large: a target may have many services.
pub fn target_page(
    plan: &Plan,
    environment: &Name,
    page: &PageRequest,
) -> Result<(Vec<pb::PlanTarget>, Option<Cursor>), ApiError> {
    let begin: usize = match &page.after {
        None => 0,
        Some(cursor) => cursor.as_str().parse().map_err(|_| invalid_token())?,
    };
    let mut bytes = 0_usize;
    let mut targets = Vec::new();
    for planned in plan.targets.iter().skip(begin).take(page.size as usize) {
        let message = target(planned, environment);
        bytes = bytes.saturating_add(message.encoded_len());
        if bytes > PAGE_BYTES && !targets.is_empty() {
            break;
        }
        targets.push(message);
    }
    let end = begin.saturating_add(targets.len());
    let next = (end < plan.targets.len()).then(|| Cursor::from_text(end.to_string()));
    Ok((targets, next))
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
