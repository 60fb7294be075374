//! Jobs, tasks and logs.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use sealift_common::{
    failure::{Failure, FailureCode},
    id::{JobId, PacketId, TaskId},
    job::JobPhase,
    release::Release,
    strategy::Then,
    task::{TaskPhase, TaskState},
};
use sealift_proto::v1::{self as pb, job::State as WireJob, task::State as WireTask};
use sealift_store::{Job, JobWave, StoredLogLine, Task, Transition};

use crate::{
    convert::{failure, time, transition},
    names,
};

/// Everything that a job's message is made of.
#[derive(Debug, Default)]
pub struct JobExtras {
    /// History of the job.
    pub transitions: Vec<Transition>,
    /// Histories of its tasks.
    pub task_transitions: BTreeMap<TaskId, Vec<Transition>>,
    /// Its waves.
    pub waves: Vec<JobWave>,
    /// The newest job that undoes it.
    pub rollback: Option<JobId>,
    /// Packets of its tasks, in the order of the attempts.
    pub packets: BTreeMap<TaskId, Vec<PacketId>>,
}

/// Writes a job with its tasks.
pub fn job(job: &Job, release: &Release, tasks: &[Task], extras: &JobExtras) -> pb::Job {
    pb::Job {
        name: names::of_job(job.id),
        uid: job.id.to_string(),
        promotion: names::of_promotion(job.promotion_id),
        release: names::of_release(job.release_id),
        release_display: release.reference().to_string(),
        environment: names::of_environment(&job.environment),
        state: job_state(job.state.phase()).into(),
        stopping: job.stop.is_some() && !job.state.phase().is_terminal(),
        ticket: i64::try_from(job.ticket).unwrap_or(i64::MAX),
        tasks: tasks.iter().map(|item| task(item, extras)).collect(),
        failure: job.state.failure().map(failure::failure),
        create_time: Some(time::timestamp(job.created_at)),
        start_time: job.started_at.map(time::timestamp),
        finish_time: job.finished_at.map(time::timestamp),
        transitions: transition::transitions(&extras.transitions),
        pause_reason: pause_reason(job),
        rollback_of: job.rollback_of.map(names::of_job).unwrap_or_default(),
        rollback: extras.rollback.map(names::of_job).unwrap_or_default(),
        waves: extras.waves.iter().map(wave).collect(),
        etag: names::etag(job.version),
    }
}

fn pause_reason(job: &Job) -> String {
    let reason = job.state.pause_reason();
    reason
        .map(|reason| reason.as_str().to_owned())
        .unwrap_or_default()
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

/// Writes a task.
pub fn task(task: &Task, extras: &JobExtras) -> pb::Task {
    let parts = Parts::of(&task.state);
    let packets = extras
        .packets
        .get(&task.id)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let history = extras
        .task_transitions
        .get(&task.id)
        .map(Vec::as_slice)
        .unwrap_or_default();
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
        failure: parts.failure,
        start_time: task.started_at.map(time::timestamp),
        finish_time: task.finished_at.map(time::timestamp),
        packets: packets.iter().map(|packet| names::of_packet(*packet)).collect(),
        transitions: transition::transitions(history),
    }
}

/// Writes a job as it appears in the watch of its promotion.
pub fn watched(job: &Job, tasks: &[Task]) -> pb::WatchedJob {
    pb::WatchedJob {
        name: names::of_job(job.id),
        state: job.state.phase().as_str().to_owned(),
        pause_reason: pause_reason(job),
        tasks: tasks.iter().map(watched_task).collect(),
    }
}

fn watched_task(task: &Task) -> pb::WatchedTask {
    let parts = Parts::of(&task.state);
    pb::WatchedTask {
        name: names::of_task(task.job_id, task.id),
        target: names::of_target(&task.environment, &task.target),
        wave: i32::try_from(task.wave).unwrap_or(i32::MAX),
        state: task.state.phase().as_str().to_owned(),
        step: parts.step,
        attempt: i32::try_from(task.attempt).unwrap_or(i32::MAX),
        failure: parts.failure,
        skip_reason: parts.skip_reason,
    }
}

/// The data of a task's state, as the messages spread it.
#[derive(Default)]
struct Parts {
    step: String,
    skip_reason: String,
    failure: Option<pb::Failure>,
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
                failure: Some(failure::failure(failure)),
                ..Self::default()
            },
            // Not its end, but what is known of it: what it waits for, and the way out.
            TaskState::Lost => Self {
                failure: Some(failure::failure(&Failure::new(
                    FailureCode::AgentLost,
                    "no word of the agent in time: what runs there is not known until it reports, and the job waits for that",
                ))),
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
        assert_eq!(said.code, "AGENT_LOST");
        assert!(said.advice.contains("sealift agent revoke"), "{}", said.advice);
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
