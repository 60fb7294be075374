//! Observations: what agents see is stored, and compared with what is recorded. The comparison itself is `common::drift`.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    drift,
    observation::{ProjectObservation, StickerObservation, TargetObservation},
};
use sealift_store::Tx;

use super::{refusal::Refusal, writer::Outcome};

/// Digest of all that an observation says except when: equal digests need no second look.
pub fn content(seen: &TargetObservation) -> Digest {
    let timeless = TargetObservation {
        observed_at: DateTime::default(),
        ..seen.clone()
    };
    sealift_common::canonical::digest(&timeless).unwrap_or_else(|_| Digest::of(&[]))
}

/// Stores an observation and, unless a task is under way on the target, what disagrees with the record.
pub async fn apply(tx: &mut Tx, seen: &TargetObservation, now: DateTime<Utc>) -> Result<Outcome, Refusal> {
    let target = seen.target_id;
    tx.put_observation(seen, now).await?;
    if seen.busy || tx.live_task_on_target(target).await?.is_some() {
        return Ok(Outcome::Deferred);
    }
    let recorded = tx.recorded(target).await?;
    let nothing = ProjectObservation {
        sticker: StickerObservation::Missing,
        containers: Vec::new(),
    };
    let projects: BTreeSet<String> = recorded
        .iter()
        .map(|(project, _)| project.to_string())
        .chain(seen.projects.keys().cloned())
        .collect();
    for project in projects {
        let record = recorded
            .iter()
            .find(|(name, _)| name.to_string() == project)
            .map(|(_, record)| record);
        let found = drift::compare(record, seen.projects.get(&project).unwrap_or(&nothing));
        tx.reconcile_drift(target, &project, &found, now).await?;
    }
    Ok(Outcome::Stored)
}
