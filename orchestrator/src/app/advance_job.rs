//! Brings a job forward by what its waves and tasks allow, as [`sealift_common::rollout::next`] says: opens waves, watches them
//! bake, closes the rest after failures, orders further attempts, passes a stop on, and ends the job or has it undone. Each call
//! does a bounded piece of work and says whether there is more.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    drift,
    failure::{Failure, FailureCode},
    id::JobId,
    job::{JobEvent, Stop, StopWish},
    observation::{ContainerHealth, TargetObservation},
    recipe::{OnFailure, Recipe},
    rollout::{self, Next, Situation, TaskSummary, WaveSummary},
    strategy::Then,
    task::{SkipReason, TaskEvent, TaskPhase, TaskState, Wanted},
};
use sealift_store::{Job, JobWave, StoreError, Task, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        assign_tasks::{Orders, assign_tasks, is_between_attempts, reaches_host, wants_order},
        attempts,
        end_job::end_job,
        roll_back::undo_job,
        turn::Turn,
    },
    status::ApiError,
};

/// Most tasks that one transaction changes.
pub const BATCH: usize = 100;

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// Nothing was to be done.
    Idle,
    /// Something was done; there may be more.
    Worked,
    /// The job has ended, or its undoing has begun.
    Ended,
}

/// Everything that is known of a job.
struct Known {
    job: Job,
    recipe: Recipe,
    waves: Vec<JobWave>,
    tasks: Vec<Task>,
}

/// Does the next piece of work of the job.
pub async fn advance_job(core: &Core, turn: &Turn, id: JobId) -> Result<Advance, ApiError> {
    let mut tx = turn.read().await?;
    let Some(job) = tx.job_by_id(id).await? else {
        return Ok(Advance::Idle);
    };
    if !job.state.phase().occupies_lane() {
        return Ok(Advance::Idle);
    }
    let promotion = tx
        .promotion(job.tenant_id, job.promotion_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its promotion"))?;
    let known = Known {
        waves: tx.waves_of_job(id).await?,
        tasks: tx.tasks_of_job(id).await?,
        recipe: promotion.recipe,
        job,
    };
    drop(tx);
    let now = core.clock.now();
    let next = decide(&known, now);
    act(core, turn, &known, next, now).await
}

async fn act(
    core: &Core,
    turn: &Turn,
    known: &Known,
    next: Next,
    now: DateTime<Utc>,
) -> Result<Advance, ApiError> {
    let Known { job, tasks, .. } = known;
    match next {
        Next::Wait(_) => attend(core, turn, known).await,
        Next::OpenWave(wave) => {
            let opened = order(core, turn, job, tasks, Some(wave)).await?;
            if opened == Advance::Idle {
                attend(core, turn, known).await
            } else {
                Ok(opened)
            }
        }
        Next::CloseRest => close_rest(core, turn, job, tasks).await,
        Next::SettleWave(wave) => {
            let mut tx = turn.write().await?;
            tx.settle_wave(job.id, wave, now).await?;
            tx.commit().await?;
            Ok(Advance::Worked)
        }
        Next::PassWave(wave) => pass_wave(turn, known, wave, now).await,
        Next::Pause(reason) => {
            let mut tx = turn.write().await?;
            tx.apply_job_event(job, &JobEvent::Paused { reason }, ORCHESTRATOR, now)
                .await?;
            tx.commit().await?;
            Ok(Advance::Worked)
        }
        Next::Halt => {
            let summary = "no further target became healthy in time";
            let failure = Failure::new(FailureCode::ProgressDeadline, summary);
            halt(turn, known, failure, now).await
        }
        Next::RollBack(failure) => {
            let mut tx = turn.write().await?;
            undo_job(core, &mut tx, job, &failure).await?;
            tx.commit().await?;
            Ok(Advance::Ended)
        }
        Next::End(event) => {
            let mut tx = turn.write().await?;
            end_job(core, &mut tx, job, &event).await?;
            tx.commit().await?;
            Ok(Advance::Ended)
        }
    }
}

fn decide(known: &Known, now: DateTime<Utc>) -> Next {
    let waves: Vec<_> = known
        .waves
        .iter()
        .map(|wave| WaveSummary {
            then: wave.then,
            settled_at: wave.settled_at,
            passed: wave.passed_at.is_some(),
        })
        .collect();
    let tasks: Vec<_> = known
        .tasks
        .iter()
        .map(|task| TaskSummary {
            wave: task.wave,
            phase: task.state.phase(),
            failure: match &task.state {
                TaskState::Failed { failure } => Some(failure.clone()),
                _ => None,
            },
            skipped: match task.state {
                TaskState::Skipped { reason } => Some(reason),
                _ => None,
            },
        })
        .collect();
    rollout::next(&Situation {
        waves: &waves,
        tasks: &tasks,
        stop: known.job.stop.as_ref(),
        paused: known.job.state.pause_reason(),
        failures: known.recipe.failures,
        accepted_failures: known.job.accepted_failures,
        progress_due: progress_due(known),
        now,
    })
}

/// When the next target must be healthy: counted from the opening of the wave that is worked on, from its last success, or from
/// the moment a person let the job go on, whichever came last.
fn progress_due(known: &Known) -> Option<DateTime<Utc>> {
    let open = known
        .waves
        .iter()
        .find(|wave| wave.opened_at.is_some() && wave.settled_at.is_none())?;
    let successes = known
        .tasks
        .iter()
        .filter(|task| task.wave == open.ordinal && task.state == TaskState::Succeeded)
        .map(|task| task.finished_at);
    let since = successes
        .chain([open.opened_at, known.job.resumed_at])
        .flatten()
        .max()?;
    Some(since + TimeDelta::milliseconds(known.recipe.limits.progress_deadline_ms.into()))
}

/// Makes orders for the first batch of those that want one: of a wave, or of all that wait between two attempts.
async fn order(
    core: &Core,
    turn: &Turn,
    job: &Job,
    tasks: &[Task],
    wave: Option<u32>,
) -> Result<Advance, ApiError> {
    let now = core.clock.now();
    let meant = |task: &Task| match wave {
        Some(wave) => task.wave == wave,
        None => is_between_attempts(task),
    };
    let waiting: Vec<&Task> = tasks
        .iter()
        .filter(|task| meant(task) && wants_order(task, now))
        .collect();
    if waiting.is_empty() {
        return Ok(Advance::Idle);
    }
    let mut tx = turn.write().await?;
    let orders = Orders::of(&mut tx, job).await?;
    // Targets that are still occupied must not keep those behind them waiting.
    let mut changed = 0;
    for batch in waiting.chunks(BATCH) {
        changed += assign_tasks(core, &mut tx, &orders, batch).await?;
        if changed >= BATCH {
            break;
        }
    }
    if changed == 0 {
        return Ok(Advance::Idle);
    }
    if let Some(wave) = wave {
        tx.open_wave(job.id, wave, now).await?;
    }
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// After failures or a stop: what has not begun never begins.
async fn close_rest(core: &Core, turn: &Turn, job: &Job, tasks: &[Task]) -> Result<Advance, ApiError> {
    let event = match &job.stop {
        Some(Stop {
            wish: StopWish::Cancel | StopWish::RollBack,
            ..
        }) => TaskEvent::Withdrawn,
        Some(Stop {
            wish: StopWish::Fail, ..
        })
        | None => TaskEvent::Skipped {
            reason: SkipReason::EarlierWaveFailed,
        },
    };
    let now = core.clock.now();
    let mut tx = turn.write().await?;
    for task in tasks
        .iter()
        .filter(|task| task.state.phase() == TaskPhase::Pending)
        .take(BATCH)
    {
        unless_it_moved(tx.apply_task_event(task, &event, ORCHESTRATOR, now).await)?;
    }
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// Stops what is under way because the job fails; what follows is as the recipe says.
async fn halt(turn: &Turn, known: &Known, failure: Failure, now: DateTime<Utc>) -> Result<Advance, ApiError> {
    let wish = match known.recipe.failures.on_failure {
        OnFailure::RollBack => StopWish::RollBack,
        OnFailure::Stop | OnFailure::Pause | OnFailure::Continue => StopWish::Fail,
    };
    let mut tx = turn.write().await?;
    tx.request_job_stop(&known.job, &Stop { wish, failure }, ORCHESTRATOR, now)
        .await?;
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// Lets the next wave begin, unless what this one proved does not hold any more.
async fn pass_wave(turn: &Turn, known: &Known, wave: u32, now: DateTime<Utc>) -> Result<Advance, ApiError> {
    let baked = known
        .waves
        .iter()
        .any(|item| item.ordinal == wave && matches!(item.then, Then::Bake { .. } | Then::Approve { .. }));
    let mut tx = turn.write().await?;
    if baked && let Some(failure) = spoiled(&mut tx, known, wave).await? {
        drop(tx);
        return halt(turn, known, failure, now).await;
    }
    tx.pass_wave(known.job.id, wave, now).await?;
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// What is wrong with a wave that was healthy, as its hosts last told; hosts that told nothing since are not held against it.
async fn spoiled(tx: &mut Tx, known: &Known, wave: u32) -> Result<Option<Failure>, ApiError> {
    let members = known
        .tasks
        .iter()
        .filter(|task| task.wave == wave && task.state == TaskState::Succeeded);
    for task in members {
        let Some(seen) = tx.observation(task.target_id).await? else {
            continue;
        };
        let recorded = tx.recorded(task.target_id).await?;
        let wrong = recorded.iter().find_map(|(project, recorded)| {
            let observed = seen.project(project)?;
            let finding = drift::compare(Some(recorded), observed).into_iter().next();
            finding.map(|finding| format!("{} instead of {}", finding.actual, finding.expected))
        });
        if let Some(wrong) = wrong.or_else(|| unhealthy(&seen)) {
            let summary = format!("{} was healthy and is not any more: {wrong}", task.target);
            return Ok(Some(Failure::new(FailureCode::CanaryFailed, summary)));
        }
    }
    Ok(None)
}

fn unhealthy(seen: &TargetObservation) -> Option<String> {
    let mut containers = seen.projects.values().flat_map(|project| &project.containers);
    containers
        .find(|container| container.health == ContainerHealth::Unhealthy)
        .map(|container| format!("service {} is unhealthy", container.service))
}

/// What live tasks need: a stop passed on, or the next attempt.
async fn attend(core: &Core, turn: &Turn, known: &Known) -> Result<Advance, ApiError> {
    let Known { job, tasks, .. } = known;
    if job.stop.is_some() {
        return stop(core, turn, tasks).await;
    }
    let now = core.clock.now();
    let undated: Vec<_> = tasks
        .iter()
        .filter(|task| is_between_attempts(task) && task.retry_at.is_none())
        .take(BATCH)
        .collect();
    if !undated.is_empty() {
        let mut tx = turn.write().await?;
        for task in undated {
            let wait =
                TimeDelta::from_std(attempts::retry_wait(task.attempt)).unwrap_or(TimeDelta::minutes(1));
            unless_it_moved(tx.set_task_retry(task, now + wait, ORCHESTRATOR, now).await)?;
        }
        tx.commit().await?;
        return Ok(Advance::Worked);
    }
    order(core, turn, job, tasks, None).await
}

async fn stop(core: &Core, turn: &Turn, tasks: &[Task]) -> Result<Advance, ApiError> {
    let now = core.clock.now();
    let told = |task: &&Task| is_between_attempts(task) || (reaches_host(task) && task.wanted == Wanted::Run);
    let batch: Vec<_> = tasks.iter().filter(told).take(BATCH).collect();
    if batch.is_empty() {
        return Ok(Advance::Idle);
    }
    let mut tx = turn.write().await?;
    for task in batch {
        unless_it_moved(if is_between_attempts(task) {
            tx.apply_task_event(task, &TaskEvent::Withdrawn, ORCHESTRATOR, now)
                .await
        } else {
            tx.set_task_wanted(task, Wanted::Stop, ORCHESTRATOR, now).await
        })?;
    }
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// A task that its agent moved meanwhile is looked at again in the next round; the others must not wait for that.
fn unless_it_moved(changed: Result<Task, StoreError>) -> Result<(), StoreError> {
    match changed {
        Ok(_) | Err(StoreError::Conflict) => Ok(()),
        Err(error) => Err(error),
    }
}
