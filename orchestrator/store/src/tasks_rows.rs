//! Columns of tasks and attempts, and what they mean together.

use chrono::{DateTime, Utc};
use sealift_common::{
    failure::Failure,
    id::{AgentId, PacketId, TaskId},
    order::Fence,
    task::{SkipReason, TaskEvent, TaskPhase, TaskState, TaskStep, Wanted},
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Attempt, LEASE_AFTER_RETURN, Result, StoreError, Task,
    rows::{At, json_opt},
};

/// The columns of a task, each with the given prefix.
macro_rules! columns {
    ($prefix:literal) => {
        concat!(
            $prefix,
            "id, ",
            $prefix,
            "job_id, ",
            $prefix,
            "tenant_id, ",
            $prefix,
            "target_id, ",
            $prefix,
            "target, ",
            $prefix,
            "environment, ",
            $prefix,
            "agent_id, ",
            $prefix,
            "wave, ",
            $prefix,
            "state, ",
            $prefix,
            "step, ",
            $prefix,
            "skip_reason, ",
            $prefix,
            "failure, ",
            $prefix,
            "wanted, ",
            $prefix,
            "attempt, ",
            $prefix,
            "fence, ",
            $prefix,
            "lease_until, ",
            $prefix,
            "retry_at, ",
            $prefix,
            "version, ",
            $prefix,
            "created_at, ",
            $prefix,
            "started_at, ",
            $prefix,
            "finished_at"
        )
    };
}

pub(crate) use columns;

/// The state as it is written.
pub(crate) struct StateColumns {
    pub(crate) state: &'static str,
    pub(crate) step: Option<&'static str>,
    pub(crate) skip_reason: Option<&'static str>,
    pub(crate) failure: Option<String>,
}

impl StateColumns {
    pub(crate) fn of(state: &TaskState) -> Result<Self> {
        let (step, skip_reason, failure) = match state {
            TaskState::Running { step } => (Some(step.as_str()), None, None),
            TaskState::Skipped { reason } => (None, Some(reason.as_str()), None),
            TaskState::Failed { failure } => (None, None, Some(failure)),
            TaskState::Pending
            | TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Lost
            | TaskState::Succeeded
            | TaskState::Cancelled => (None, None, None),
        };
        Ok(Self {
            state: state.phase().as_str(),
            step,
            skip_reason,
            failure: json_opt(failure)?,
        })
    }
}

/// Where events lead a task: pure.
pub(crate) struct Moves<'a> {
    /// From which phase, by which event, to which state; without events that change nothing.
    pub(crate) steps: Vec<(TaskPhase, &'a TaskEvent, TaskState)>,
    /// Whether the lease ended or began anew on the way.
    pub(crate) writes_lease: bool,
    /// The lease then.
    pub(crate) lease: Option<DateTime<Utc>>,
    /// Whether it waits for another attempt all the way: when that is due stays written.
    pub(crate) waits: bool,
}

impl<'a> Moves<'a> {
    pub(crate) fn of(state: &TaskState, events: &'a [TaskEvent], now: DateTime<Utc>) -> Result<Self> {
        let mut moves = Self {
            steps: Vec::with_capacity(events.len()),
            writes_lease: false,
            lease: None,
            waits: true,
        };
        let mut state = state.clone();
        for event in events {
            let Some(next) = state.apply(event)? else {
                continue;
            };
            let waits = matches!(
                next,
                TaskState::Running {
                    step: TaskStep::RetryWait
                }
            );
            let leased = matches!(
                next.phase(),
                TaskPhase::Assigned | TaskPhase::Accepted | TaskPhase::Running
            ) && !waits;
            if !leased || state == TaskState::Lost {
                moves.writes_lease = true;
                moves.lease = leased.then_some(now + LEASE_AFTER_RETURN);
            }
            moves.waits &= waits;
            moves.steps.push((state.phase(), event, next.clone()));
            state = next;
        }
        Ok(moves)
    }
}

pub(crate) const fn wanted_text(wanted: Wanted) -> &'static str {
    match wanted {
        Wanted::Run => "run",
        Wanted::Stop => "stop",
    }
}

#[derive(FromRow)]
pub(crate) struct TaskRow {
    id: Uuid,
    job_id: Uuid,
    tenant_id: Uuid,
    target_id: Uuid,
    target: String,
    environment: String,
    agent_id: Option<Uuid>,
    wave: i64,
    state: String,
    step: Option<String>,
    skip_reason: Option<String>,
    failure: Option<String>,
    wanted: String,
    attempt: i64,
    fence: i64,
    lease_until: Option<DateTime<Utc>>,
    retry_at: Option<DateTime<Utc>>,
    version: i64,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl TaskRow {
    /// Only the combinations that a state can have are read.
    fn state(&self, at: &At) -> Result<TaskState> {
        let phase: TaskPhase = at.parse("state", &self.state)?;
        let step: Option<TaskStep> = at.parse_opt("step", self.step.as_deref())?;
        let reason: Option<SkipReason> = at.parse_opt("skip_reason", self.skip_reason.as_deref())?;
        let failure: Option<Failure> = at.json_opt("failure", self.failure.as_deref())?;
        Ok(match (phase, step, reason, failure) {
            (TaskPhase::Pending, None, None, None) => TaskState::Pending,
            (TaskPhase::Assigned, None, None, None) => TaskState::Assigned,
            (TaskPhase::Accepted, None, None, None) => TaskState::Accepted,
            (TaskPhase::Running, Some(step), None, None) => TaskState::Running { step },
            (TaskPhase::Lost, None, None, None) => TaskState::Lost,
            (TaskPhase::Succeeded, None, None, None) => TaskState::Succeeded,
            (TaskPhase::Failed, None, None, Some(failure)) => TaskState::Failed { failure },
            (TaskPhase::Skipped, None, Some(reason), None) => TaskState::Skipped { reason },
            (TaskPhase::Cancelled, None, None, None) => TaskState::Cancelled,
            _ => return Err(at.corrupt("state")),
        })
    }
}

impl TryFrom<TaskRow> for Task {
    type Error = StoreError;

    fn try_from(row: TaskRow) -> Result<Self> {
        let at = At::new("tasks", row.id);
        Ok(Self {
            state: row.state(&at)?,
            id: row.id.into(),
            job_id: row.job_id.into(),
            tenant_id: row.tenant_id.into(),
            target_id: row.target_id.into(),
            target: at.parse("target", &row.target)?,
            environment: at.parse("environment", &row.environment)?,
            agent_id: row.agent_id.map(AgentId::from),
            wave: at.small("wave", row.wave)?,
            wanted: match row.wanted.as_str() {
                "run" => Wanted::Run,
                "stop" => Wanted::Stop,
                _ => return Err(at.corrupt("wanted")),
            },
            attempt: at.small("attempt", row.attempt)?,
            fence: Fence(at.number("fence", row.fence)?),
            order: None,
            lease_until: row.lease_until,
            retry_at: row.retry_at,
            version: at.number("version", row.version)?,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}

/// A task with the order of its newest attempt.
#[derive(FromRow)]
pub(crate) struct OrderedTaskRow {
    #[sqlx(flatten)]
    task: TaskRow,
    order_envelope: Option<Vec<u8>>,
}

impl TryFrom<OrderedTaskRow> for Task {
    type Error = StoreError;

    fn try_from(row: OrderedTaskRow) -> Result<Self> {
        Ok(Self {
            order: row.order_envelope,
            ..row.task.try_into()?
        })
    }
}

#[derive(FromRow)]
pub(crate) struct AttemptRow {
    number: i64,
    fence: i64,
    agent_id: Uuid,
    order_digest: String,
    result: String,
    packet_id: Option<Uuid>,
    started_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
}

impl AttemptRow {
    pub(crate) fn attempt(self, task: TaskId) -> Result<Attempt> {
        let at = At::new("task_attempts", task);
        Ok(Attempt {
            number: at.small("number", self.number)?,
            fence: Fence(at.number("fence", self.fence)?),
            agent_id: self.agent_id.into(),
            order_digest: at.parse("order_digest", &self.order_digest)?,
            result: self.result,
            packet_id: self.packet_id.map(PacketId::from),
            started_at: self.started_at,
            finished_at: self.finished_at,
        })
    }
}
