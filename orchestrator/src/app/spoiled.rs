//! Whether a wave that was watched still runs what it proved, and whether anybody knows.

use sealift_common::{
    drift,
    drift::Recorded,
    failure::{Failure, FailureCode},
    inventory::AgentStatus,
    name::{Name, ProjectRef},
    observation::{ContainerHealth, ProjectObservation, TargetObservation},
};
use sealift_store::{Job, Task, Tx};

use crate::{
    app::{Core, resolve_release::release_of},
    status::ApiError,
};

/// Targets that are looked at with one pair of statements.
const PAGE: u32 = 100;

/// What a wave that was watched has proven.
#[derive(Debug)]
pub enum Proof {
    /// Its targets still run what they should, as far as their hosts have told.
    Holds,
    /// The agent of this target is not there, or has not told yet what it sees since it is back, so that nobody knows.
    Silent(Name),
    /// One of them does not.
    Spoiled(Failure),
}

/// What a wave has proven, as its hosts have told since their tasks ended; what they saw while a task was under way is not held
/// against them. Only the project of the job counts: what others do on these hosts says nothing of it. The whole wave is looked at,
/// so that this is for a transaction that only reads.
pub async fn proof(core: &Core, tx: &mut Tx, job: &Job, wave: u32) -> Result<Proof, ApiError> {
    Ok(match spoiled(tx, job, wave).await? {
        Some(failure) => Proof::Spoiled(failure),
        None => silent(core, tx, job, wave)
            .await?
            .map_or(Proof::Holds, Proof::Silent),
    })
}

/// The failure of a wave about which nobody has told in time.
pub fn unproven(target: &Name) -> Failure {
    let summary =
        format!("{target} was healthy, and its agent is silent since: whether it still runs is not known");
    Failure::new(FailureCode::CanaryFailed, summary)
}

async fn spoiled(tx: &mut Tx, job: &Job, wave: u32) -> Result<Option<Failure>, ApiError> {
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

/// The first target whose agent is offline, or is back and has told nothing of it yet. One that was revoked is gone for good, and
/// waiting for it would be in vain.
async fn silent(core: &Core, tx: &mut Tx, job: &Job, wave: u32) -> Result<Option<Name>, ApiError> {
    let mut after = None;
    loop {
        let mut page = tx.succeeded_tasks(job.id, wave, after.as_ref(), PAGE).await?;
        let ids: Vec<_> = page.iter().filter_map(|task| task.agent_id).collect();
        let agents = tx.agents_by_ids(&ids).await?;
        let targets: Vec<_> = page.iter().map(|task| task.target_id).collect();
        let looked_at = tx.looked_at(&targets).await?;
        let is_silent = |task: &Task| {
            let agent = task.agent_id.and_then(|id| agents.get(&id));
            agent.filter(|agent| agent.intent.is_live()).is_some_and(|agent| {
                // Agents look at all of their targets when they connect.
                let has_looked = looked_at.get(&task.target_id).copied() >= (core.connected_at)(agent);
                (core.status_of)(agent) == AgentStatus::Offline || !has_looked
            })
        };
        if let Some(task) = page.iter().find(|task| is_silent(task)) {
            return Ok(Some(task.target.clone()));
        }
        let is_last = page.len() < PAGE as usize;
        match page.pop() {
            Some(task) if !is_last => after = Some(task.target),
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
