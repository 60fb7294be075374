//! Histories.

use sealift_proto::v1 as pb;
use sealift_store::Transition;

use crate::convert::time;

/// Writes a history.
pub fn transitions(history: &[Transition]) -> Vec<pb::Transition> {
    history
        .iter()
        .map(|transition| pb::Transition {
            seq: i64::try_from(transition.seq).unwrap_or(i64::MAX),
            from: transition.from.clone(),
            to: transition.to.clone(),
            event: transition.event.clone(),
            actor: transition.actor.clone(),
            detail: transition.detail.clone(),
            at: Some(time::timestamp(transition.at)),
        })
        .collect()
}
