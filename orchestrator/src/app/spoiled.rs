//! Whether a wave that was watched still runs what it proved, and whether anybody knows.

use sealift_common::{
    condition::ConditionCode,
    drift,
    drift::Recorded,
    failure::{Failure, FailureCode},
    inventory::{Agent, AgentStatus},
    name::{Name, ProjectRef},
    observation::{ContainerHealth, ProjectObservation, StickerObservation, TargetObservation},
};
use sealift_store::{Job, Look, Task, Tx};

use crate::{
    app::{Core, resolve_release::release_of},
    status::ApiError,
};

/// Targets that are looked at with a few statements.
const PAGE: u32 = 100;

/// What a wave that was watched has proven.
#[derive(Debug)]
pub enum Proof {
    /// Its targets still run what they should, as far as their hosts have told.
    Holds,
    /// What runs on this target now is not known.
    Silent(Name),
    /// One of them does not.
    Spoiled(Failure),
}

/// What a wave has proven, as its hosts have told since their tasks ended; what they saw while a task was under way is not held
/// against them. Only the project of the job counts: what others do on these hosts says nothing of it. The whole wave is looked at,
/// so that this is for a transaction that only reads.
pub async fn proof(core: &Core, tx: &mut Tx, job: &Job, wave: u32) -> Result<Proof, ApiError> {
    let release = release_of(tx, job.tenant_id, job.release_id).await?;
    let project = &release.source.project;
    let (mut after, mut silent) = (None, None);
    loop {
        let mut page = tx.succeeded_tasks(job.id, wave, after.as_ref(), PAGE).await?;
        let targets: Vec<_> = page.iter().map(|task| task.target_id).collect();
        let agents: Vec<_> = page.iter().filter_map(|task| task.agent_id).collect();
        let agents = tx.agents_by_ids(&agents).await?;
        let recorded = tx.recorded_of_targets(&targets).await?;
        let mut looks = tx.looks(&targets).await?;
        for task in &page {
            let mut recorded = recorded.get(&task.target_id).into_iter().flatten();
            let recorded = recorded.find(|(other, _)| other == project).map(|(_, one)| one);
            let look = looks.remove(&task.target_id);
            let look = look.filter(|look| is_of_now(look, task, project, recorded));
            let failure = look.as_ref().and_then(|look| {
                let recorded = recorded?;
                wrong(&task.target, project, recorded, &look.seen)
            });
            if let Some(failure) = failure {
                return Ok(Proof::Spoiled(failure));
            }
            let agent = task.agent_id.and_then(|id| agents.get(&id));
            if silent.is_none() && agent.is_some_and(|agent| is_silent(core, agent, look.as_ref())) {
                silent = Some(task.target.clone());
            }
        }
        let is_last = page.len() < PAGE as usize;
        match page.pop() {
            Some(task) if !is_last => after = Some(task.target),
            _ => return Ok(silent.map_or(Proof::Holds, Proof::Silent)),
        }
    }
}

/// The failure of a wave about which nobody has told in time.
pub fn unproven(target: &Name) -> Failure {
    let summary = format!("{target} was healthy, and its agent has not told since whether it still runs");
    Failure::new(FailureCode::CanaryFailed, summary)
}

/// Whether a look shows what a task has left: it was told after the task's end, or shows the sticker that was written last of all.
fn is_of_now(look: &Look, task: &Task, project: &ProjectRef, recorded: Option<&Recorded>) -> bool {
    let shows_sticker = || {
        let seen = look.seen.project(project).map(|seen| &seen.sticker);
        matches!((seen, recorded), (Some(StickerObservation::Present { digest, .. }), Some(recorded)) if *digest == recorded.sticker)
    };
    let is_later = task
        .finished_at
        .is_some_and(|finished| look.received_at >= finished);
    !look.seen.busy && (is_later || shows_sticker())
}

/// Whether nobody knows: the agent is offline, its engine does not answer, or it has not told what it sees since it is back. One that
/// was revoked is gone for good, and waiting for it would be in vain.
fn is_silent(core: &Core, agent: &Agent, look: Option<&Look>) -> bool {
    let told = look.map(|look| look.session);
    let sees_nothing = || {
        let mut conditions = agent.facts.degraded.iter();
        conditions.any(|condition| condition.is(ConditionCode::EngineUnavailable))
    };
    agent.intent.is_live()
        && ((core.status_of)(agent) == AgentStatus::Offline
            || sees_nothing()
            || told.is_none()
            || told != (core.session_of)(agent))
}

fn wrong(
    target: &Name,
    project: &ProjectRef,
    recorded: &Recorded,
    seen: &TargetObservation,
) -> Option<Failure> {
    // What is gone altogether is not told of.
    let nothing = ProjectObservation::nothing();
    let observed = seen.project(project).unwrap_or(&nothing);
    let finding = drift::compare(Some(recorded), observed).into_iter().next();
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
