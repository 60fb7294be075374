//! Failures of attempts: one insert-only row each, listed along indexes that hold nothing else. What failed and when stands in the
//! task's history and is read from there; the row says where to look, which attempt it was and in which step.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    failure::{Failure, FailureCode},
    id::{JobId, TaskId},
    name::Name,
    task::{TaskEvent, TaskPhase, TaskState, TaskStep},
};
use sqlx::{FromRow, QueryBuilder};
use uuid::Uuid;

use crate::{
    Cursor, EntityKind, Page, PageRequest, Result, StoreError, Task, Tx,
    engine::{of_ids, on, push_ids, statements},
    rows::{At, all, count, int},
};

macro_rules! listed {
    () => {
        // CROSS JOIN keeps SQLite to the order that is written here: along the failures, newest first.
        "SELECT f.id, f.job_id, f.task_id, k.environment, k.target, f.attempt, f.step, t.failure, t.at \
         FROM failures f CROSS JOIN tasks k CROSS JOIN transitions t \
         WHERE k.id = f.task_id AND t.entity_kind = 'task' AND t.entity_id = f.task_id AND t.seq = f.seq "
    };
}

statements! {
    INSERT = { "INSERT INTO failures (job_id, task_id, seq, attempt, step) VALUES ($1, $2, $3, $4, $5)" };
    OF_JOB = { listed!(), "AND f.job_id = $1 AND f.id < $2 ORDER BY f.id DESC LIMIT $3" };
    OF_TASK = { listed!(), "AND f.task_id = $1 AND f.id < $2 ORDER BY f.id DESC LIMIT $3" };
    COUNT_OF_JOB = { "SELECT COUNT(*) FROM failures WHERE job_id = $1" };
    COUNT_OF_TASK = { "SELECT COUNT(*) FROM failures WHERE task_id = $1" };
    LAST_STEP = {
        "SELECT event, detail FROM transitions WHERE entity_kind = 'task' AND entity_id = $1 AND seq < $2 ",
        "AND event IN ('assigned', 'progressed', 'attempt_failed') AND detail <> 'restoring' ORDER BY seq DESC LIMIT 1"
    };
}

const PLACES: &str = "SELECT task_id, attempt, step FROM failures WHERE task_id IN (";
const TIMES: &str =
    "SELECT entity_id, failure, at FROM transitions WHERE failure IS NOT NULL AND entity_kind = ";

/// A failure of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptFailure {
    /// Position among all failures; newer ones have higher ones.
    pub position: i64,
    /// The job.
    pub job_id: JobId,
    /// The task.
    pub task_id: TaskId,
    /// Environment of its target.
    pub environment: Name,
    /// Its target.
    pub target: Name,
    /// Which attempt failed, from 1; 0 when no order had been made.
    pub attempt: u32,
    /// In which step; `None` when none had begun.
    pub step: Option<TaskStep>,
    /// Why.
    pub failure: Failure,
    /// When it was told.
    pub at: DateTime<Utc>,
}

/// Which attempt of a task failed last, and in which step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedPlace {
    /// The attempt.
    pub attempt: u32,
    /// The step.
    pub step: Option<TaskStep>,
}

#[derive(FromRow)]
struct FailureRow {
    id: i64,
    job_id: Uuid,
    task_id: Uuid,
    environment: String,
    target: String,
    attempt: i64,
    step: Option<String>,
    failure: Option<String>,
    at: DateTime<Utc>,
}

impl TryFrom<FailureRow> for AttemptFailure {
    type Error = StoreError;

    fn try_from(row: FailureRow) -> Result<Self> {
        let at = At::new("failures", row.id);
        let failure = row.failure.ok_or_else(|| at.corrupt("seq"))?;
        Ok(Self {
            position: row.id,
            job_id: row.job_id.into(),
            task_id: row.task_id.into(),
            environment: at.parse("environment", &row.environment)?,
            target: at.parse("target", &row.target)?,
            attempt: at.small("attempt", row.attempt)?,
            step: at.parse_opt("step", row.step.as_deref())?,
            failure: at.json("failure", &failure)?,
            at: row.at,
        })
    }
}

/// What a task was doing on its way forward once this had happened.
enum Doing {
    /// This step.
    Step(TaskStep),
    /// Nothing yet: an attempt begins.
    Nothing,
}

impl Doing {
    /// `None` when an event says nothing about that.
    fn after(event: &TaskEvent) -> Option<Self> {
        match event {
            TaskEvent::Progressed { step } if *step != TaskStep::Restoring => Some(Self::Step(*step)),
            TaskEvent::AttemptFailed { .. } => Some(Self::Step(TaskStep::RetryWait)),
            TaskEvent::Assigned => Some(Self::Nothing),
            _ => None,
        }
    }
}

impl Tx {
    /// Notes that an attempt of a task failed: the row `seq` of its history, which came after the events `before` of the same batch.
    pub(crate) async fn insert_failure(
        &mut self,
        task: &Task,
        seq: u64,
        before: &[(TaskPhase, &TaskEvent, TaskState)],
        code: FailureCode,
    ) -> Result<()> {
        let last = match before.iter().rev().find_map(|(_, event, _)| Doing::after(event)) {
            Some(Doing::Step(step)) => Some(step),
            Some(Doing::Nothing) => None,
            None if task.attempt == 0 => None,
            None => self.last_step(task.id, int(seq)?).await?,
        };
        let (seq, step) = (int(seq)?, code.failed_in(last));
        on!(self, |conn| sqlx::query(INSERT)
            .bind(task.job_id.uuid())
            .bind(task.id.uuid())
            .bind(seq)
            .bind(i64::from(task.attempt))
            .bind(step.map(TaskStep::as_str))
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// The same from the history of the task's present attempt, before the row `seq`.
    async fn last_step(&mut self, task: TaskId, seq: i64) -> Result<Option<TaskStep>> {
        self.write_history_of(task.uuid()).await?;
        let row: Option<(String, String)> = on!(self, |conn| sqlx::query_as(LAST_STEP)
            .bind(task.uuid())
            .bind(seq)
            .fetch_optional(conn)
            .await)?;
        match row.as_ref().map(|(event, detail)| (event.as_str(), detail)) {
            Some(("progressed", step)) => At::new("transitions", task).parse("detail", step).map(Some),
            Some(("attempt_failed", _)) => Ok(Some(TaskStep::RetryWait)),
            _ => Ok(None),
        }
    }

    /// The failures of a job's tasks, newest first.
    pub async fn failures_of_job(&mut self, job: JobId, page: &PageRequest) -> Result<Page<AttemptFailure>> {
        self.failures(OF_JOB, job.uuid(), page).await
    }

    /// The failures of a task's attempts, newest first.
    pub async fn failures_of_task(
        &mut self,
        task: TaskId,
        page: &PageRequest,
    ) -> Result<Page<AttemptFailure>> {
        self.failures(OF_TASK, task.uuid(), page).await
    }

    async fn failures(
        &mut self,
        statement: &'static str,
        of: Uuid,
        page: &PageRequest,
    ) -> Result<Page<AttemptFailure>> {
        self.write_history().await?;
        let below = page.below_number()?;
        let rows: Vec<FailureRow> = on!(self, |conn| sqlx::query_as(statement)
            .bind(of)
            .bind(below)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |failure: &AttemptFailure| {
            Cursor::of(&[&failure.position])
        }))
    }

    /// How many failures the tasks of a job have had.
    pub async fn count_failures_of_job(&mut self, job: JobId) -> Result<u32> {
        self.count_failures(COUNT_OF_JOB, job.uuid()).await
    }

    /// How many failures a task has had.
    pub async fn count_failures_of_task(&mut self, task: TaskId) -> Result<u32> {
        self.count_failures(COUNT_OF_TASK, task.uuid()).await
    }

    async fn count_failures(&mut self, statement: &'static str, of: Uuid) -> Result<u32> {
        let failures: i64 = on!(self, |conn| sqlx::query_scalar(statement)
            .bind(of)
            .fetch_one(conn)
            .await)?;
        Ok(count(failures))
    }

    /// Where each of the tasks failed last, of those that did. At most a page of tasks.
    pub async fn failed_places(&mut self, tasks: &[TaskId]) -> Result<BTreeMap<TaskId, FailedPlace>> {
        let mut places = BTreeMap::new();
        if tasks.is_empty() {
            return Ok(places);
        }
        let rows: Vec<(Uuid, i64, Option<String>)> = on!(self, |conn| {
            let ids = tasks.iter().map(|task| task.uuid());
            let mut query = of_ids(PLACES, ids, ") ORDER BY task_id, id");
            query.build_query_as().fetch_all(conn).await
        })?;
        for (task, attempt, step) in rows {
            let at = At::new("failures", task);
            let place = FailedPlace {
                attempt: at.small("attempt", attempt)?,
                step: at.parse_opt("step", step.as_deref())?,
            };
            // The newest of a task comes last.
            places.insert(task.into(), place);
        }
        Ok(places)
    }

    /// When each of these promotions or jobs was first said to have the failure that stands beside it. At most a page of them.
    pub async fn failure_times(
        &mut self,
        kind: EntityKind,
        of: &[(Uuid, &Failure)],
    ) -> Result<BTreeMap<Uuid, DateTime<Utc>>> {
        let mut times = BTreeMap::new();
        if of.is_empty() {
            return Ok(times);
        }
        self.write_history().await?;
        let rows: Vec<(Uuid, String, DateTime<Utc>)> = on!(self, |conn| {
            let mut query = QueryBuilder::new(TIMES);
            query.push_bind(kind.as_str()).push(" AND entity_id IN (");
            let ids = of.iter().map(|(id, _)| *id);
            push_ids(&mut query, ids, ") ORDER BY entity_id, seq");
            query.build_query_as().fetch_all(conn).await
        })?;
        let wanted: BTreeMap<Uuid, &Failure> = of.iter().copied().collect();
        for (id, failure, at) in rows {
            let failure: Failure = At::new("transitions", id).json("failure", &failure)?;
            if wanted.get(&id) == Some(&&failure) {
                times.entry(id).or_insert(at);
            }
        }
        Ok(times)
    }
}
