//! Tasks and their attempts. Their state is written by one statement, used by [`Tx::apply_task_events`] and
//! [`Tx::assign_tasks`], and nothing else.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    bounds,
    digest::Digest,
    id::{AgentId, JobId, PacketId, TargetId, TaskId},
    order::Fence,
    task::{TaskEvent, Wanted},
};
use sqlx::QueryBuilder;
use uuid::Uuid;

use crate::{
    Attempt, Change, EntityKind, Result, StoreError, Task, Tx,
    engine::{on, push_ids, statements},
    rows::{all, int, one},
    tasks_rows::{AttemptRow, Moves, OrderedTaskRow, StateColumns, TaskRow, columns, wanted_text},
    transitions::{By, NewTransition},
};

/// A task that comes back from lost gets this long until its agent must be heard again: with no lease at all, nobody would
/// notice that the agent went away once more.
pub const LEASE_AFTER_RETURN: TimeDelta = TimeDelta::seconds(60);
/// Rows per bulk statement: far below the bound on parameters of both engines.
const BULK: usize = 500;
/// Orders per bulk statement: each is some kilobytes.
const BULK_ORDERS: usize = 100;
/// Most rows of one look.
const MOST: i64 = bounds::TARGETS_PER_JOB as i64 + 1;

macro_rules! live {
    () => {
        "state IN ('assigned', 'accepted', 'running', 'lost')"
    };
}

pub(crate) use live;

macro_rules! with_order {
    () => {
        concat!(
            "SELECT ",
            columns!("t."),
            ", a.order_envelope FROM tasks t ",
            "LEFT JOIN task_attempts a ON a.task_id = t.id AND a.number = t.attempt "
        )
    };
}

statements! {
    BY_ID = { with_order!(), "WHERE t.id = $1" };
    BARE = { "SELECT ", columns!(""), " FROM tasks WHERE id = $1" };
    OF_JOB = { "SELECT ", columns!(""), " FROM tasks WHERE job_id = $1 ORDER BY wave, target LIMIT $2" };
    LIVE_OF_AGENT = { with_order!(), "WHERE t.agent_id = $1 AND t.", live!(), " ORDER BY t.id LIMIT $2" };
    AGENTS_WITH_LIVE = {
        "SELECT DISTINCT agent_id FROM tasks WHERE agent_id > $1 AND ", live!(), " ORDER BY agent_id LIMIT $2"
    };
    LIVE_ON_TARGET = { with_order!(), "WHERE t.target_id = $1 AND t.", live!() };
    EXPIRED = {
        "SELECT ", columns!(""), " FROM tasks WHERE lease_until IS NOT NULL AND lease_until < $1 ",
        "ORDER BY lease_until LIMIT $2"
    };
    LIVE_OF_REVOKED = {
        "SELECT ", columns!(""), " FROM tasks WHERE ", live!(),
        " AND agent_id IN (SELECT id FROM agents WHERE intent = 'revoked') ORDER BY agent_id LIMIT $1"
    };
    OVERDUE = {
        "SELECT ", columns!("t."), " FROM task_attempts a JOIN tasks t ON t.id = a.task_id AND t.attempt = a.number ",
        "WHERE a.finished_at IS NULL AND a.due_at < $1 AND t.state IN ('assigned', 'accepted', 'running') ",
        "AND (t.step IS NULL OR t.step <> 'retry_wait') ORDER BY a.due_at LIMIT $2"
    };
    SET_STATE = {
        "UPDATE tasks SET state = $3, step = $4, skip_reason = $5, failure = $6, ",
        "lease_until = CASE WHEN $7 THEN $8 ELSE lease_until END, ",
        "retry_at = CASE WHEN $9 THEN retry_at ELSE NULL END, ",
        "started_at = COALESCE(started_at, $10), finished_at = $11, ",
        "agent_id = COALESCE($12, agent_id), attempt = COALESCE($13, attempt), fence = COALESCE($14, fence), ",
        "version = version + $15 WHERE id = $1 AND version = $2 RETURNING ", columns!("")
    };
    SET_WANTED = {
        "UPDATE tasks SET wanted = $3, version = version + 1 WHERE id = $1 AND version = $2 RETURNING ", columns!("")
    };
    SET_RETRY = {
        "UPDATE tasks SET retry_at = $3, version = version + 1 WHERE id = $1 AND version = $2 RETURNING ",
        columns!("")
    };
    FINISH_ATTEMPT = {
        "UPDATE task_attempts SET result = $3, packet_id = COALESCE($4, packet_id), ",
        "finished_at = COALESCE(finished_at, $5) WHERE task_id = $1 AND number = $2"
    };
    ATTEMPTS = {
        "SELECT number, fence, agent_id, order_digest, result, packet_id, started_at, finished_at ",
        "FROM task_attempts WHERE task_id = $1 ORDER BY number"
    };
}

const INSERT_ATTEMPTS: &str = "INSERT INTO task_attempts \
     (task_id, number, fence, agent_id, order_envelope, order_digest, started_at, due_at) ";
const INSERT: &str = concat!("INSERT INTO tasks (", columns!(""), ") ");
const EXTEND: &str = "UPDATE tasks SET lease_until = ";
const EXTEND_WHERE: &str = " WHERE state IN ('assigned', 'accepted', 'running') \
     AND (step IS NULL OR step <> 'retry_wait') AND id IN (";

/// The next attempt of a task.
#[derive(Debug, Clone)]
pub struct Assignment<'a> {
    /// The task as it was read.
    pub task: &'a Task,
    /// Who is to do it.
    pub agent: AgentId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Fencing token of the order.
    pub fence: Fence,
    /// The signed order.
    pub order: Vec<u8>,
    /// Until when the agent need not be heard.
    pub lease_until: DateTime<Utc>,
    /// After this nothing more is expected of the attempt ([`Tx::overdue_tasks`]), however alive its agent is.
    pub due_at: DateTime<Utc>,
}

impl Tx {
    /// Writes new tasks, many per statement; their versions should be 0. Orders are not written here.
    pub async fn insert_tasks(&mut self, tasks: &[Task]) -> Result<()> {
        for chunk in tasks.chunks(BULK) {
            let rows: Vec<(&Task, StateColumns)> = chunk
                .iter()
                .map(|task| Ok((task, StateColumns::of(&task.state)?)))
                .collect::<Result<_>>()?;
            on!(self, |conn| {
                let mut query = QueryBuilder::new(INSERT);
                query.push_values(rows, |mut row, (task, state)| {
                    row.push_bind(task.id.uuid())
                        .push_bind(task.job_id.uuid())
                        .push_bind(task.tenant_id.uuid())
                        .push_bind(task.target_id.uuid())
                        .push_bind(task.target.as_str())
                        .push_bind(task.environment.as_str())
                        .push_bind(task.agent_id.map(AgentId::uuid))
                        .push_bind(i64::from(task.wave))
                        .push_bind(state.state)
                        .push_bind(state.step)
                        .push_bind(state.skip_reason)
                        .push_bind(state.failure)
                        .push_bind(wanted_text(task.wanted))
                        .push_bind(i64::from(task.attempt))
                        .push_bind(task.fence.0 as i64)
                        .push_bind(task.lease_until)
                        .push_bind(task.retry_at)
                        .push_bind(task.version as i64)
                        .push_bind(task.created_at)
                        .push_bind(task.started_at)
                        .push_bind(task.finished_at);
                });
                query.build().execute(conn).await.map(drop)
            })?;
        }
        for task in tasks {
            self.note(Change::Job(task.job_id));
        }
        Ok(())
    }

    /// A task with its order. Not scoped by tenant: its job is.
    pub async fn task(&mut self, id: TaskId) -> Result<Option<Task>> {
        let row: Option<OrderedTaskRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// A task without its order. Not scoped by tenant: its job is.
    pub async fn bare_task(&mut self, id: TaskId) -> Result<Option<Task>> {
        let row: Option<TaskRow> = on!(self, |conn| sqlx::query_as(BARE)
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// The tasks of a job by wave and target, without orders.
    pub async fn tasks_of_job(&mut self, job: JobId) -> Result<Vec<Task>> {
        let rows: Vec<TaskRow> = on!(self, |conn| sqlx::query_as(OF_JOB)
            .bind(job.uuid())
            .bind(MOST)
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// Tasks that occupy targets of an agent, with their orders: the full set of its session.
    pub async fn live_tasks_of_agent(&mut self, agent: AgentId) -> Result<Vec<Task>> {
        let rows: Vec<OrderedTaskRow> = on!(self, |conn| sqlx::query_as(LIVE_OF_AGENT)
            .bind(agent.uuid())
            .bind(MOST)
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// Agents that have tasks which occupy targets, after one of them, by their identifiers.
    pub async fn agents_with_live_tasks(
        &mut self,
        after: Option<AgentId>,
        limit: u32,
    ) -> Result<Vec<AgentId>> {
        let after = after.map_or(Uuid::nil(), AgentId::uuid);
        let found: Vec<Uuid> = on!(self, |conn| sqlx::query_scalar(AGENTS_WITH_LIVE)
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        Ok(found.into_iter().map(AgentId::from).collect())
    }

    /// The task that occupies a target.
    pub async fn live_task_on_target(&mut self, target: TargetId) -> Result<Option<Task>> {
        let row: Option<OrderedTaskRow> = on!(self, |conn| sqlx::query_as(LIVE_ON_TARGET)
            .bind(target.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Tasks whose lease ended before `now`, the oldest first, without orders.
    pub async fn expired_leases(&mut self, now: DateTime<Utc>, limit: u32) -> Result<Vec<Task>> {
        let rows: Vec<TaskRow> = on!(self, |conn| sqlx::query_as(EXPIRED)
            .bind(now)
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// Tasks whose present attempt was due before `now` and that still count as being worked on, the longest overdue first,
    /// without orders.
    pub async fn overdue_tasks(&mut self, now: DateTime<Utc>, limit: u32) -> Result<Vec<Task>> {
        let rows: Vec<TaskRow> = on!(self, |conn| sqlx::query_as(OVERDUE)
            .bind(now)
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// Live tasks of agents that were revoked: nobody will ever report on them.
    pub async fn live_tasks_of_revoked_agents(&mut self, limit: u32) -> Result<Vec<Task>> {
        let rows: Vec<TaskRow> = on!(self, |conn| sqlx::query_as(LIVE_OF_REVOKED)
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// Moves a task, with its history row. An event that changes nothing writes nothing. [`StoreError::Conflict`] when the
    /// task is not the newest version. The lease ends with the states that have none, and begins anew
    /// ([`LEASE_AFTER_RETURN`]) when a lost task is heard of; otherwise it stays.
    pub async fn apply_task_event(
        &mut self,
        task: &Task,
        event: &TaskEvent,
        by: impl Into<By<'_>>,
        now: DateTime<Utc>,
    ) -> Result<Task> {
        self.apply_task_events(task, std::slice::from_ref(event), by, now)
            .await
    }

    /// The same for events that follow each other: one row of the history and one version for each, the task written once.
    pub async fn apply_task_events(
        &mut self,
        task: &Task,
        events: &[TaskEvent],
        by: impl Into<By<'_>>,
        now: DateTime<Utc>,
    ) -> Result<Task> {
        let changed = self.set_task_state(task, events, None, by.into(), now).await?;
        Ok(Task {
            order: task.order.clone(),
            ..changed
        })
    }

    /// Gives tasks their next attempts: the event `assigned`, the order and the attempt's row. A second live task on a target
    /// is refused by the database: [`StoreError::Duplicate`] of `one_live_task_per_target` (R1). [`StoreError::Conflict`] when one of
    /// the tasks is not the newest version.
    pub async fn assign_tasks(
        &mut self,
        assignments: Vec<Assignment<'_>>,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Vec<Task>> {
        let mut assigned = Vec::with_capacity(assignments.len());
        for new in &assignments {
            let changed = self
                .set_task_state(new.task, &[TaskEvent::Assigned], Some(new), actor.into(), now)
                .await?;
            assigned.push(changed);
        }
        for chunk in assignments.chunks(BULK_ORDERS) {
            let fences: Vec<i64> = chunk.iter().map(|new| int(new.fence.0)).collect::<Result<_>>()?;
            on!(self, |conn| {
                let mut query = QueryBuilder::new(INSERT_ATTEMPTS);
                query.push_values(chunk.iter().zip(fences), |mut row, (new, fence)| {
                    row.push_bind(new.task.id.uuid())
                        .push_bind(i64::from(new.attempt))
                        .push_bind(fence)
                        .push_bind(new.agent.uuid())
                        .push_bind(new.order.as_slice())
                        .push_bind(Digest::of(&new.order).to_string())
                        .push_bind(now)
                        .push_bind(new.due_at);
                });
                query.build().execute(conn).await.map(drop)
            })?;
        }
        for (task, new) in assigned.iter_mut().zip(assignments) {
            task.order = Some(new.order);
        }
        Ok(assigned)
    }

    /// The one place that writes `tasks.state`.
    async fn set_task_state(
        &mut self,
        task: &Task,
        events: &[TaskEvent],
        order: Option<&Assignment<'_>>,
        by: By<'_>,
        now: DateTime<Utc>,
    ) -> Result<Task> {
        let moves = Moves::of(&task.state, events, now)?;
        let Some((_, _, next)) = moves.steps.last() else {
            return Ok(task.clone());
        };
        let version = int(task.version)?;
        let columns = StateColumns::of(next)?;
        let lease = order.map(|order| order.lease_until).or(moves.lease);
        let fence = order.map(|order| int(order.fence.0)).transpose()?;
        let started_at = order.map(|_| now);
        let finished_at = next.phase().is_terminal().then_some(now);
        let row: Option<TaskRow> = on!(self, |conn| sqlx::query_as(SET_STATE)
            .bind(task.id.uuid())
            .bind(version)
            .bind(columns.state)
            .bind(columns.step)
            .bind(columns.skip_reason)
            .bind(columns.failure.as_deref())
            .bind(moves.writes_lease || lease.is_some())
            .bind(lease)
            .bind(moves.waits)
            .bind(started_at)
            .bind(finished_at)
            .bind(order.map(|order| order.agent.uuid()))
            .bind(order.map(|order| i64::from(order.attempt)))
            .bind(fence)
            .bind(moves.steps.len() as i64)
            .fetch_optional(conn)
            .await)?;
        let changed: Task = row.ok_or(StoreError::Conflict)?.try_into()?;
        for (index, (from, event, to)) in moves.steps.iter().enumerate() {
            let seq = task.version + 1 + index as u64;
            let (detail, failure) = match event {
                TaskEvent::Progressed { step } => (step.as_str(), None),
                TaskEvent::Skipped { reason } => (reason.as_str(), None),
                TaskEvent::Failed { failure } | TaskEvent::AttemptFailed { failure } => {
                    (failure.code.as_str(), Some(failure))
                }
                _ => ("", None),
            };
            self.insert_transition(NewTransition {
                kind: EntityKind::Task,
                id: task.id.uuid(),
                seq,
                from: from.as_str(),
                to: to.phase().as_str(),
                event: event.name(),
                actor: by.actor,
                detail: &by.detail(detail),
                failure,
                at: now,
            })
            .await?;
            if let Some(failure) = failure {
                self.insert_failure(&changed, seq, &moves.steps[..index], failure.code)
                    .await?;
            }
        }
        self.note_task(&changed);
        Ok(changed)
    }

    /// Writes what is wanted of a task; the history gets a row `wanted_stop` or `wanted_run`.
    pub async fn set_task_wanted(
        &mut self,
        task: &Task,
        wanted: Wanted,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Task> {
        if task.wanted == wanted {
            return Ok(task.clone());
        }
        let version = int(task.version)?;
        let row: Option<TaskRow> = on!(self, |conn| sqlx::query_as(SET_WANTED)
            .bind(task.id.uuid())
            .bind(version)
            .bind(wanted_text(wanted))
            .fetch_optional(conn)
            .await)?;
        let event = match wanted {
            Wanted::Run => "wanted_run",
            Wanted::Stop => "wanted_stop",
        };
        self.noted_change(task, row, event, "", actor, now).await
    }

    /// Says when the next attempt of a task that waits for one is due; the history gets a row `retry_planned`.
    pub async fn set_task_retry(
        &mut self,
        task: &Task,
        retry_at: DateTime<Utc>,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Task> {
        let version = int(task.version)?;
        let row: Option<TaskRow> = on!(self, |conn| sqlx::query_as(SET_RETRY)
            .bind(task.id.uuid())
            .bind(version)
            .bind(retry_at)
            .fetch_optional(conn)
            .await)?;
        self.noted_change(task, row, "retry_planned", &retry_at.to_rfc3339(), actor, now)
            .await
    }

    /// The history row of a change that leaves the state as it is.
    async fn noted_change(
        &mut self,
        task: &Task,
        row: Option<TaskRow>,
        event: &'static str,
        detail: &str,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Task> {
        let changed: Task = row.ok_or(StoreError::Conflict)?.try_into()?;
        let phase = changed.state.phase().as_str();
        self.insert_transition(NewTransition {
            kind: EntityKind::Task,
            id: task.id.uuid(),
            seq: changed.version,
            from: phase,
            to: phase,
            event,
            actor,
            detail,
            failure: None,
            at: now,
        })
        .await?;
        self.note_task(&changed);
        Ok(Task {
            order: task.order.clone(),
            ..changed
        })
    }

    fn note_task(&mut self, task: &Task) {
        self.note(Change::Task {
            job: task.job_id,
            task: task.id,
            agent: task.agent_id,
        });
    }

    /// Extends the leases of tasks that an agent works on; leases only grow, versions stay. Many per statement.
    pub async fn extend_leases(&mut self, tasks: &[TaskId], until: DateTime<Utc>) -> Result<()> {
        let mut ids: Vec<Uuid> = tasks.iter().map(|task| task.uuid()).collect();
        // One order for all writers, so that they do not deadlock.
        ids.sort_unstable();
        for chunk in ids.chunks(BULK) {
            on!(self, |conn| {
                let mut query = QueryBuilder::new(EXTEND);
                query.push_bind(until);
                query.push(EXTEND_WHERE);
                let ids = chunk.iter().copied();
                push_ids(&mut query, ids, ") AND (lease_until IS NULL OR lease_until < ");
                query.push_bind(until);
                query.push(")");
                query.build().execute(conn).await.map(drop)
            })?;
        }
        Ok(())
    }

    /// Notes how an attempt ended. The first end counts; evidence may come later.
    pub async fn finish_attempt(
        &mut self,
        task: TaskId,
        attempt: u32,
        result: &str,
        packet: Option<PacketId>,
        now: DateTime<Utc>,
    ) -> Result<()> {
        on!(self, |conn| sqlx::query(FINISH_ATTEMPT)
            .bind(task.uuid())
            .bind(i64::from(attempt))
            .bind(result)
            .bind(packet.map(PacketId::uuid))
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// The attempts of a task, oldest first.
    pub async fn attempts(&mut self, task: TaskId) -> Result<Vec<Attempt>> {
        let rows: Vec<AttemptRow> = on!(self, |conn| sqlx::query_as(ATTEMPTS)
            .bind(task.uuid())
            .fetch_all(conn)
            .await)?;
        rows.into_iter().map(|row| row.attempt(task)).collect()
    }
}
