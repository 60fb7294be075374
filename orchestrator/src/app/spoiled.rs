//! Whether a wave that was watched still runs what it proved.

use sealift_common::{
    drift,
    drift::Recorded,
    failure::{Failure, FailureCode},
    name::{Name, ProjectRef},
    observation::{ContainerHealth, ProjectObservation, TargetObservation},
};
use sealift_store::{Job, Tx};

use crate::{app::resolve_release::release_of, status::ApiError};

/// Targets that are looked at with one pair of statements.
const PAGE: u32 = 100;

/// What is wrong with a wave that was healthy, as its hosts have told since; hosts that told nothing since, or nothing but what they
/// saw while a task was under way, are not held against it. Only the project of the job counts: what others do on these hosts says
/// nothing of it. The whole wave is looked at, so that this is for a transaction that only reads.
pub async fn spoiled(tx: &mut Tx, job: &Job, wave: u32) -> Result<Option<Failure>, ApiError> {
    let release = release_of(tx, job.tenant_id, job.release_id).await?;
    let project = &release.source.project;
    let mut after = None;
    loop {
        let mut page = tx.seen_of_wave(job.id, wave, after.as_ref(), PAGE).await?;
        let ids: Vec<_> = page.iter().map(|(_, seen)| seen.target_id).collect();
        let recorded = tx.recorded_of_targets(&ids).await?;
        for (target, seen) in page.iter().filter(|(_, seen)| !seen.busy) {
            let mut recorded = recorded.get(&seen.target_id).into_iter().flatten();
            let recorded = recorded.find(|(other, _)| other == project);
            if let Some(failure) = wrong(target, project, recorded.map(|(_, one)| one), seen) {
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

fn wrong(
    target: &Name,
    project: &ProjectRef,
    recorded: Option<&Recorded>,
    seen: &TargetObservation,
) -> Option<Failure> {
    // What is gone altogether is not told of.
    let nothing = ProjectObservation::nothing();
    let observed = seen.project(project).unwrap_or(&nothing);
    let finding = drift::compare(Some(recorded?), observed).into_iter().next();
    let differs = finding.map(|finding| format!("{} instead of {}", finding.actual, finding.expected));
    let wrong = differs.or_else(|| unhealthy(observed))?;
    let summary = format!("{target} was healthy and is not any more: {wrong}");
    Some(Failure::new(FailureCode::CanaryFailed, summary))
}

fn unhealthy(seen: &ProjectObservation) -> Option<String> {
    let mut containers = seen.containers.iter();
    containers
        .find(|container| container.health == ContainerHealth::Unhealthy)
        .map(|container| format!("service {} is unhealthy", container.service))
}
