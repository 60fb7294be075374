//! Jobs, tasks and logs.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    failure::{Failure, FailureCode},
    id::{JobId, PacketId},
    job::{JobPhase, Pause},
    strategy::Then,
    task::{TaskPhase, TaskState},
};
use sealift_proto::v1::{self as pb, job::State as WireJob, task::State as WireTask};
use sealift_store::{AttemptFailure, FailedPlace, Job, JobWave, StoredLogLine, Task, Transition};

use crate::{
    convert::{decision, failure, time, transition},
    names,
    status::ApiError,
};

/// What a job's message holds beside the job itself.
#[derive(Debug, Default)]
pub struct JobExtras {
    /// How its tasks stand; `None` where that is not told.
    pub task_counts: Option<BTreeMap<TaskPhase, u32>>,
    /// Its history.
    pub transitions: Vec<Transition>,
    /// Its waves.
    pub waves: Vec<JobWave>,
    /// The newest job that undoes it.
    pub rollback: Option<JobId>,
    /// When its failure was told.
    pub failed_at: Option<DateTime<Utc>>,
    /// The newest failures of its tasks' attempts, newest first.
    pub failures: Vec<AttemptFailure>,
    /// How many there are.
    pub failure_count: u32,
}

/// What a task's message holds beside the task itself.
#[derive(Debug, Default, Clone, Copy)]
pub struct TaskExtras<'a> {
    /// The packets of its attempts.
    pub packets: &'a [PacketId],
    /// Its history.
    pub history: &'a [Transition],
    /// The failures of its attempts, newest first.
    pub failures: &'a [AttemptFailure],
    /// Where its last attempt failed.
    pub place: Option<FailedPlace>,
}

/// Writes a job; `release` is what its release is called.
pub fn job(job: &Job, release: &str, extras: &JobExtras) -> pb::Job {
    pb::Job {
        name: names::of_job(job.id),
        uid: job.id.to_string(),
        promotion: names::of_promotion(job.promotion_id),
        release: names::of_release(job.release_id),
        release_display: release.to_owned(),
        environment: names::of_environment(&job.environment),
        state: job_state(job.state.phase()).into(),
        stopping: job.stop.is_some() && !job.state.phase().is_terminal(),
        ticket: i64::try_from(job.ticket).unwrap_or(i64::MAX),
        task_counts: extras.task_counts.as_ref().map(counts),
        failure: job
            .state
            .failure()
            .map(|why| failure::failure(why, extras.failed_at)),
        create_time: Some(time::timestamp(job.created_at)),
        start_time: job.started_at.map(time::timestamp),
        finish_time: job.finished_at.map(time::timestamp),
        transitions: transition::transitions(&extras.transitions),
        pause_reason: job.state.pause().map(pause_reason).unwrap_or_default(),
        rollback_of: job.rollback_of.map(names::of_job).unwrap_or_default(),
        rollback: extras.rollback.map(names::of_job).unwrap_or_default(),
        waves: extras.waves.iter().map(wave).collect(),
        etag: names::etag(job.version),
        closed_gate: job.state.pause().and_then(closed_gate),
        failures: extras.failures.iter().map(failure::of_attempt).collect(),
        failure_count: i32::try_from(extras.failure_count).unwrap_or(i32::MAX),
    }
}

/// Why a job is paused, in a word.
pub fn pause_reason(why: &Pause) -> String {
    why.reason().as_str().to_owned()
}

/// What the gate says that a job waits behind.
pub fn closed_gate(why: &Pause) -> Option<pb::GateAnswer> {
    match why {
        Pause::Gate(answer) => Some(decision::gate(answer)),
        Pause::Operator | Pause::Canary | Pause::Failures => None,
    }
}

fn counts(tasks: &BTreeMap<TaskPhase, u32>) -> pb::TaskCounts {
    let int = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let of = |phase| int(tasks.get(&phase).copied().unwrap_or_default());
    pb::TaskCounts {
        total: int(tasks.values().copied().fold(0, u32::saturating_add)),
        pending: of(TaskPhase::Pending),
        assigned: of(TaskPhase::Assigned),
        accepted: of(TaskPhase::Accepted),
        running: of(TaskPhase::Running),
        lost: of(TaskPhase::Lost),
        succeeded: of(TaskPhase::Succeeded),
        failed: of(TaskPhase::Failed),
        skipped: of(TaskPhase::Skipped),
        cancelled: of(TaskPhase::Cancelled),
    }
}

fn wave(wave: &JobWave) -> pb::Wave {
    let then = match wave.then {
        Then::Next {} => "next",
        Then::Wait { .. } => "wait",
        Then::Bake { .. } => "bake",
        Then::Approve { .. } => "approve",
    };
    let due = wave
        .settled_at
        .map(|at| at + TimeDelta::milliseconds(wave.then.ms().into()));
    pb::Wave {
        ordinal: i32::try_from(wave.ordinal).unwrap_or(i32::MAX),
        then: then.to_owned(),
        open_time: wave.opened_at.map(time::timestamp),
        settle_time: wave.settled_at.map(time::timestamp),
        pass_time: wave.passed_at.map(time::timestamp),
        due_time: due.map(time::timestamp),
    }
}

/// Writes a task with what else is told of it.
pub fn task(task: &Task, extras: TaskExtras<'_>) -> pb::Task {
    let parts = Parts::of(&task.state);
    // What is known of a lost task is no end, so where an attempt before it failed does not belong to it.
    let place = extras.place.filter(|_| task.state.phase() == TaskPhase::Failed);
    pb::Task {
        name: names::of_task(task.job_id, task.id),
        uid: task.id.to_string(),
        target: names::of_target(&task.environment, &task.target),
        wave: i32::try_from(task.wave).unwrap_or(i32::MAX),
        state: task_state(task.state.phase()).into(),
        step: parts.step,
        skip_reason: parts.skip_reason,
        attempt: i32::try_from(task.attempt).unwrap_or(i32::MAX),
        fence: i64::try_from(task.fence.0).unwrap_or(i64::MAX),
        failure: parts
            .failure
            .map(|why| failure::of_task(task, &why, task.finished_at, place)),
        start_time: task.started_at.map(time::timestamp),
        finish_time: task.finished_at.map(time::timestamp),
        packets: extras
            .packets
            .iter()
            .map(|packet| names::of_packet(*packet))
            .collect(),
        transitions: transition::transitions(extras.history),
        failures: extras.failures.iter().map(failure::of_attempt).collect(),
    }
}

/// The data of a task's state, as the messages spread it.
#[derive(Default)]
struct Parts {
    step: String,
    skip_reason: String,
    failure: Option<Failure>,
}

impl Parts {
    fn of(state: &TaskState) -> Self {
        match state {
            TaskState::Running { step } => Self {
                step: step.as_str().to_owned(),
                ..Self::default()
            },
            TaskState::Skipped { reason } => Self {
                skip_reason: reason.as_str().to_owned(),
                ..Self::default()
            },
            TaskState::Failed { failure } => Self {
                failure: Some(failure.clone()),
                ..Self::default()
            },
            // Not its end, but what is known of it: what it waits for, and the way out.
            TaskState::Lost => Self {
                failure: Some(Failure::new(
                    FailureCode::AgentLost,
                    "no word of the agent in time: what runs there is not known until it reports, and the job waits for that",
                )),
                ..Self::default()
            },
            TaskState::Pending
            | TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Succeeded
            | TaskState::Cancelled => Self::default(),
        }
    }
}

const fn job_state(phase: JobPhase) -> WireJob {
    match phase {
        JobPhase::Queued => WireJob::Queued,
        JobPhase::Running => WireJob::Running,
        JobPhase::Paused => WireJob::Paused,
        JobPhase::RollingBack => WireJob::RollingBack,
        JobPhase::Succeeded => WireJob::Succeeded,
        JobPhase::Failed => WireJob::Failed,
        JobPhase::Cancelled => WireJob::Cancelled,
        JobPhase::RolledBack => WireJob::RolledBack,
        JobPhase::RollbackFailed => WireJob::RollbackFailed,
    }
}

const fn task_state(phase: TaskPhase) -> WireTask {
    match phase {
        TaskPhase::Pending => WireTask::Pending,
        TaskPhase::Assigned => WireTask::Assigned,
        TaskPhase::Accepted => WireTask::Accepted,
        TaskPhase::Running => WireTask::Running,
        TaskPhase::Lost => WireTask::Lost,
        TaskPhase::Succeeded => WireTask::Succeeded,
        TaskPhase::Failed => WireTask::Failed,
        TaskPhase::Skipped => WireTask::Skipped,
        TaskPhase::Cancelled => WireTask::Cancelled,
    }
}

/// Reads the state that a list is narrowed to; `None` when it is not.
pub fn to_task_phase(field: &str, state: i32) -> Result<Option<TaskPhase>, ApiError> {
    if state == i32::from(WireTask::Unspecified) {
        return Ok(None);
    }
    let phase = TaskPhase::ALL
        .iter()
        .find(|phase| i32::from(task_state(**phase)) == state);
    phase
        .copied()
        .map(Some)
        .ok_or_else(|| ApiError::invalid(field, format!("{state} is no state of a task")))
}

/// Writes a line of a log; `target` is the resource name of the task's target.
pub fn log_line(line: &StoredLogLine, task: String, target: String) -> pb::LogLine {
    pb::LogLine {
        task,
        target,
        attempt: i32::try_from(line.attempt).unwrap_or(i32::MAX),
        seq: i64::try_from(line.seq).unwrap_or(i64::MAX),
        source: line.source.clone(),
        text: line.text.clone(),
        time: Some(time::timestamp(line.at)),
        truncated: line.truncated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r14_a_lost_task_says_what_it_waits_for_and_the_way_out() {
        let said = Parts::of(&TaskState::Lost).failure.unwrap();
        assert_eq!(said.code, FailureCode::AgentLost);
        let advice = said.code.advice();
        assert!(advice.contains("sealift agent revoke"), "{advice}");
    }

    #[test]
    fn every_state_keeps_its_name_on_the_wire() {
        for phase in JobPhase::ALL {
            assert_eq!(
                job_state(*phase).as_str_name(),
                format!("STATE_{}", phase.as_str().to_uppercase())
            );
        }
        for phase in TaskPhase::ALL {
            assert_eq!(
                task_state(*phase).as_str_name(),
                format!("STATE_{}", phase.as_str().to_uppercase())
            );
        }
    }
}
