//! Whether a wave that was watched still runs what it proved.

use sealift_common::{
    drift,
    drift::Recorded,
    failure::{Failure, FailureCode},
    id::JobId,
    name::{Name, ProjectRef},
    observation::{ContainerHealth, TargetObservation},
};
use sealift_store::Tx;

use crate::status::ApiError;

/// Targets that are looked at with one pair of statements.
const PAGE: u32 = 100;

/// What is wrong with a wave that was healthy, as its hosts last told; hosts that told nothing since are not held against it. The
/// whole wave is looked at, so that this is for a transaction that only reads.
pub async fn spoiled(tx: &mut Tx, job: JobId, wave: u32) -> Result<Option<Failure>, ApiError> {
    let mut after = None;
    loop {
        let mut page = tx.seen_of_wave(job, wave, after.as_ref(), PAGE).await?;
        let ids: Vec<_> = page.iter().map(|(_, seen)| seen.target_id).collect();
        let recorded = tx.recorded_of_targets(&ids).await?;
        for (target, seen) in &page {
            let recorded = recorded.get(&seen.target_id).map_or(&[][..], Vec::as_slice);
            if let Some(failure) = wrong(target, recorded, seen) {
                return Ok(Some(failure));
            }
        }
        let is_last = page.len() < PAGE as usize;
        match page.pop() {
            Some((target, _)) if !is_last => after = Some(target),
            _ => return Ok(None),
        }
    }
}

fn wrong(target: &Name, recorded: &[(ProjectRef, Recorded)], seen: &TargetObservation) -> Option<Failure> {
    let differs = recorded.iter().find_map(|(project, recorded)| {
        let observed = seen.project(project)?;
        let finding = drift::compare(Some(recorded), observed).into_iter().next();
        finding.map(|finding| format!("{} instead of {}", finding.actual, finding.expected))
    });
    let wrong = differs.or_else(|| unhealthy(seen))?;
    let summary = format!("{target} was healthy and is not any more: {wrong}");
    Some(Failure::new(FailureCode::CanaryFailed, summary))
}

fn unhealthy(seen: &TargetObservation) -> Option<String> {
    let mut containers = seen.projects.values().flat_map(|project| &project.containers);
    containers
        .find(|container| container.health == ContainerHealth::Unhealthy)
        .map(|container| format!("service {} is unhealthy", container.service))
}
