//! Brings a job forward by what its waves and tasks allow, as [`sealift_common::rollout::next`] says: opens waves, watches them
//! bake, closes the rest after failures, orders further attempts, passes a stop on, and ends the job or has it undone. Each call
//! does one piece of work and says whether there is more. Whatever has to be looked at before is read outside the transaction that
//! writes: that one changes a bounded number of rows, and nobody waits for more.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    decision::GateAnswer,
    failure::Failure,
    id::JobId,
    job::{JobEvent, Pause, PauseReason, Stop, StopWish},
    recipe::{OnFailure, Recipe},
    rollout::{self, Next, Progress, Situation, WaveSummary},
    strategy::Then,
    task::{SkipReason, TaskEvent, Wanted},
};
use sealift_store::{Job, JobTally, JobWave, StoreError, Task, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        ask_again::closed_gate,
        assign_tasks::{Patience, is_between_attempts},
        attempts,
        end_job::end_job,
        order_tasks::{Waiting, order_tasks},
        roll_back::undo_job,
        spoiled::{Proof, proof, unproven},
        turn::Turn,
    },
    status::ApiError,
};

/// Most tasks that one transaction changes.
pub const BATCH: usize = 100;
/// The same, as statements take it.
const LIMIT: u32 = BATCH as u32;

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

/// What is known of a job. Tasks are only counted here, along one index, and read where something is done to them.
struct Known {
    job: Job,
    recipe: Recipe,
    /// The first wave that has not passed.
    wave: Option<JobWave>,
    /// Whether a person has let that wave pass, where one has to.
    approved: bool,
    tasks: JobTally,
    first_failure: Option<Failure>,
    /// The gate that keeps a wave from beginning; asked only where one would begin, or the job waits behind a gate.
    closed_gate: Option<GateAnswer>,
}

impl Known {
    async fn of(tx: &mut Tx, job: Job) -> Result<Self, ApiError> {
        let recipe = tx.recipe_of_promotion(job.promotion_id).await?;
        let wave = tx.wave_ahead(job.id).await?;
        let tasks = tx.tally_tasks(job.id, wave.map(|wave| wave.ordinal)).await?;
        // Of all waves of a job only a canary waits for a person, so that the yes is the job's.
        let asks =
            wave.is_some_and(|wave| matches!(wave.then, Then::Approve { .. }) && wave.settled_at.is_some());
        let approved = asks && tx.was_resumed_from(job.id, PauseReason::Canary).await?;
        let first_failure = if tasks.all.failed > 0 {
            tx.first_task_failure(job.id).await?
        } else {
            None
        };
        let behind_gate = matches!(job.state.pause(), Some(Pause::Gate(_)));
        let closed_gate = if behind_gate || tasks.wave.pending > 0 {
            closed_gate(tx, &job).await?
        } else {
            None
        };
        Ok(Self {
            closed_gate,
            recipe: recipe.ok_or_else(|| ApiError::internal("a job without its promotion"))?,
            job,
            wave,
            approved,
            tasks,
            first_failure,
        })
    }
}

/// Does the next piece of work of the job.
pub async fn advance_job(
    core: &Core,
    turn: &Turn,
    id: JobId,
    waiting: &mut Waiting,
) -> Result<Advance, ApiError> {
    let mut tx = turn.read().await?;
    let Some(job) = tx.job_by_id(id).await? else {
        return Ok(Advance::Idle);
    };
    if !job.state.phase().occupies_lane() {
        return Ok(Advance::Idle);
    }
    let known = Known::of(&mut tx, job).await?;
    drop(tx);
    let now = core.clock.now();
    let next = decide(&known, now);
    act(core, turn, &known, next, now, waiting).await
}

async fn act(
    core: &Core,
    turn: &Turn,
    known: &Known,
    next: Next,
    now: DateTime<Utc>,
    waiting: &mut Waiting,
) -> Result<Advance, ApiError> {
    let Known { job, .. } = known;
    match next {
        Next::Wait(_) => attend(core, turn, known, None, waiting).await,
        Next::OpenWave(wave) => attend(core, turn, known, Some(wave), waiting).await,
        Next::CloseRest => close_rest(core, turn, job).await,
        Next::SettleWave(wave) => {
            let mut tx = turn.write().await?;
            tx.settle_wave(job.id, wave, now).await?;
            tx.commit().await?;
            Ok(Advance::Worked)
        }
        Next::PassWave(wave) => match judge(core, turn, known, now).await? {
            Judgement::Passes => pass_wave(turn, job, wave, now).await,
            Judgement::Later => Ok(Advance::Idle),
            Judgement::Fails(failure) => halt(turn, known, failure, now).await,
        },
        // Nobody is asked to let a canary pass that does not run any more.
        Next::Pause(why @ Pause::Canary) => match judge(core, turn, known, now).await? {
            Judgement::Passes => happened(turn, job, &JobEvent::Paused { why }, now).await,
            Judgement::Later => Ok(Advance::Idle),
            Judgement::Fails(failure) => halt(turn, known, failure, now).await,
        },
        Next::Pause(why) => happened(turn, job, &JobEvent::Paused { why }, now).await,
        Next::Resume => happened(turn, job, &JobEvent::Resumed, now).await,
        Next::Halt(failure) => halt(turn, known, failure, now).await,
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

async fn happened(turn: &Turn, job: &Job, event: &JobEvent, now: DateTime<Utc>) -> Result<Advance, ApiError> {
    let mut tx = turn.write().await?;
    tx.apply_job_event(job, event, ORCHESTRATOR, now).await?;
    tx.commit().await?;
    Ok(Advance::Worked)
}

fn decide(known: &Known, now: DateTime<Utc>) -> Next {
    let wave = known.wave.map(|wave| WaveSummary {
        ordinal: wave.ordinal,
        then: wave.then,
        settled_at: wave.settled_at,
        approved: known.approved,
        tasks: known.tasks.wave,
    });
    rollout::next(&Situation {
        waves: wave.as_slice(),
        tasks: known.tasks.all,
        first_failure: known.first_failure.as_ref(),
        stop: known.job.stop.as_ref(),
        paused: known.job.state.pause(),
        closed_gate: known.closed_gate.as_ref(),
        failures: known.recipe.failures,
        accepted_failures: known.job.accepted_failures,
        progress_due: progress_due(known),
        now,
    })
}

fn progress_due(known: &Known) -> Option<DateTime<Utc>> {
    let open = known.wave.filter(|wave| wave.settled_at.is_none())?;
    let progress = Progress {
        opened_at: open.opened_at,
        last_begun: known.tasks.last_begun,
        last_success: known.tasks.last_success,
        resumed_at: known.job.resumed_at,
    };
    progress.due(known.recipe.progress_deadline())
}

/// After failures or a stop: what has not begun never begins.
async fn close_rest(core: &Core, turn: &Turn, job: &Job) -> Result<Advance, ApiError> {
    let event = match &job.stop {
        Some(Stop {
            wish: StopWish::Finish | StopWish::Cancel | StopWish::RollBack,
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
    for task in tx.pending_tasks(job.id, LIMIT).await? {
        unless_it_moved(tx.apply_task_event(&task, &event, ORCHESTRATOR, now).await)?;
    }
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// Stops what is under way because the job fails; what follows is as the recipe says.
async fn halt(turn: &Turn, known: &Known, failure: Failure, now: DateTime<Utc>) -> Result<Advance, ApiError> {
    let wish = match known.recipe.failures.on_failure {
        _ if known.job.stop.is_some() => StopWish::Cancel,
        OnFailure::RollBack => StopWish::RollBack,
        OnFailure::Stop | OnFailure::Pause | OnFailure::Continue => StopWish::Fail,
    };
    let mut tx = turn.write().await?;
    tx.request_job_stop(&known.job, &Stop { wish, failure }, ORCHESTRATOR, now)
        .await?;
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// What is to become of the wave ahead, which is over.
enum Judgement {
    Passes,
    /// A host of it is away that may come back.
    Later,
    Fails(Failure),
}

/// Judges the wave ahead after its bake, where it has one. Where a person had to let it pass that may have been long after the bake.
/// A silent host has the progress deadline to come back.
async fn judge(core: &Core, turn: &Turn, known: &Known, now: DateTime<Utc>) -> Result<Judgement, ApiError> {
    let baked = |wave: &JobWave| matches!(wave.then, Then::Bake { .. } | Then::Approve { .. });
    let Some(wave) = known.wave.filter(baked) else {
        return Ok(Judgement::Passes);
    };
    let mut tx = turn.read().await?;
    Ok(match proof(core, &mut tx, &known.job, wave.ordinal).await? {
        Proof::Holds => Judgement::Passes,
        Proof::Spoiled(failure) => Judgement::Fails(failure),
        Proof::Silent(target) => {
            let settled = wave.settled_at.unwrap_or(now);
            let baked = settled + TimeDelta::milliseconds(wave.then.ms().into());
            let since = known.job.resumed_at.map_or(baked, |resumed| resumed.max(baked));
            let in_time = now < since + known.recipe.progress_deadline();
            if in_time || core.reconnect_until().is_some() {
                Judgement::Later
            } else {
                Judgement::Fails(unproven(&target))
            }
        }
    })
}

async fn pass_wave(turn: &Turn, job: &Job, wave: u32, now: DateTime<Utc>) -> Result<Advance, ApiError> {
    let mut tx = turn.write().await?;
    // Whoever has steered the job since it was looked at is heard first.
    if tx.lock_job(job).await? {
        tx.pass_wave(job.id, wave, now).await?;
        tx.commit().await?;
    }
    Ok(Advance::Worked)
}

/// What tasks need: a stop passed on, the time of the next attempt, or an order; orders for pending tasks only of `wave`.
async fn attend(
    core: &Core,
    turn: &Turn,
    known: &Known,
    wave: Option<u32>,
    waiting: &mut Waiting,
) -> Result<Advance, ApiError> {
    let Known { job, .. } = known;
    let now = core.clock.now();
    // Looking costs a read; only what is found is worth a transaction that writes.
    let mut tx = turn.read().await?;
    if job.stop.is_some() {
        let told = match &job.stop {
            // Nothing of these is on a host.
            Some(stop) if stop.wish == StopWish::Finish => tx.tasks_between_attempts(job.id, LIMIT).await?,
            _ => tx.tasks_to_stop(job.id, LIMIT).await?,
        };
        drop(tx);
        return stop(core, turn, &told).await;
    }
    let undated = tx.undated_tasks(job.id, LIMIT).await?;
    drop(tx);
    if undated.is_empty() {
        let patience = Patience::of(&known.recipe, job);
        return order_tasks(core, turn, job, patience, wave, waiting).await;
    }
    let mut tx = turn.write().await?;
    for task in &undated {
        let wait = attempts::retry_wait(task.id, task.attempt);
        let wait = TimeDelta::from_std(wait).unwrap_or(TimeDelta::minutes(1));
        unless_it_moved(tx.set_task_retry(task, now + wait, ORCHESTRATOR, now).await)?;
    }
    tx.commit().await?;
    Ok(Advance::Worked)
}

async fn stop(core: &Core, turn: &Turn, tasks: &[Task]) -> Result<Advance, ApiError> {
    if tasks.is_empty() {
        return Ok(Advance::Idle);
    }
    let now = core.clock.now();
    let mut tx = turn.write().await?;
    for task in tasks {
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
