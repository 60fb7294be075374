//! Writer: what agents say is stored in groups. One loop takes what many sessions wait with and commits it in one transaction,
//! each item in turn; when one of them is refused, the group is rolled back and each item gets a transaction of its own, so that
//! a bad batch never spoils another agent's; when the store is away, all hear so at once. A session waits for its answer, so each has at most one item here.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{AgentId, JobId, SessionId, TaskId},
    inventory::AgentFacts,
    observation::TargetObservation,
    time::Clock,
};
use sealift_store::{Db, Engine, LogLine, StoreError, Tx};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{observations, refusal::Refusal, reports, reports::AgentReport};
use crate::loops::supervisor::Supervisor;

/// Most items in one transaction.
const GROUP: usize = 64;
/// Most items that wait. Each session has one, so a full queue is a fleet that waits, not a loss.
const QUEUE: usize = 1_024;
/// How often a transaction that met another one is tried.
const TRIES: u32 = 3;
/// Writers on an engine that has more than one.
const POSTGRES_WRITERS: usize = 4;
/// How long a group may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the items of a group that failed may take one by one, all of them together. With [`DEADLINE`] this is less than the
/// agent waits for an answer.
const ALONE_DEADLINE: Duration = Duration::from_secs(30);

/// Something an agent said that has to be stored.
#[derive(Debug)]
pub enum Item {
    /// Reports, checked.
    Reports(Vec<AgentReport>),
    /// What it sees, told in this session.
    Observation(SessionId, Box<TargetObservation>),
    /// Lines of a task's log.
    Logs {
        /// The task's job.
        job: JobId,
        /// The task.
        task: TaskId,
        /// The attempt.
        attempt: u32,
        /// The lines.
        lines: Vec<LogLine>,
    },
    /// New facts.
    Facts(Box<AgentFacts>),
}

/// What became of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All reports up to this number are stored.
    Acknowledged(u64),
    /// Stored.
    Stored,
    /// Not judged, because a task is under way: to be said again.
    Deferred,
}

struct Submission {
    agent: AgentId,
    item: Item,
    answer: oneshot::Sender<Result<Outcome, Refusal>>,
}

/// Handle to the writer loops.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Submission>,
}

impl Writer {
    /// Starts the loops; they end when the last handle is gone.
    pub fn start(db: &Db, clock: &Arc<dyn Clock>, supervisor: &Supervisor) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        let loops = match db.engine() {
            Engine::Sqlite => 1,
            Engine::Postgres => POSTGRES_WRITERS,
        };
        for _ in 0..loops {
            let work = run(db.clone(), Arc::clone(clock), Arc::clone(&waiting));
            supervisor.spawn("writer", work);
        }
        Self { queue }
    }

    /// Stores an item, together with others that wait.
    pub async fn store(&self, agent: AgentId, item: Item) -> Result<Outcome, Refusal> {
        let (answer, outcome) = oneshot::channel();
        let submission = Submission { agent, item, answer };
        self.queue
            .send(submission)
            .await
            .map_err(|_| Refusal::ShuttingDown)?;
        outcome.await.map_err(|_| Refusal::ShuttingDown)?
    }
}

async fn run(db: Db, clock: Arc<dyn Clock>, waiting: Arc<Mutex<mpsc::Receiver<Submission>>>) {
    let mut group = Vec::with_capacity(GROUP);
    loop {
        if waiting.lock().await.recv_many(&mut group, GROUP).await == 0 {
            return;
        }
        let now = clock.now();
        match tokio::time::timeout(DEADLINE, together(&db, &group, now)).await {
            Ok(Ok(outcomes)) => {
                for (submission, outcome) in group.drain(..).zip(outcomes) {
                    answer(submission, Ok(outcome));
                }
            }
            Ok(Err(refusal)) if !is_away(&refusal) => one_by_one(&db, &*clock, &mut group).await,
            // The store is away: asking it 64 times more would only keep everybody waiting.
            Ok(Err(_)) | Err(_) => refuse_all(&mut group),
        }
    }
}

/// Gives each item a transaction of its own; those that the deadline or an absent store leaves over are refused together.
async fn one_by_one(db: &Db, clock: &dyn Clock, group: &mut Vec<Submission>) {
    let until = Instant::now() + ALONE_DEADLINE;
    while let Some(submission) = group.pop() {
        let outcome = timeout_at(until, alone(db, &submission, clock.now()))
            .await
            .unwrap_or_else(|_| Err(away()));
        let is_over = outcome.as_ref().is_err_and(is_away);
        answer(submission, outcome);
        if is_over {
            refuse_all(group);
        }
    }
}

fn refuse_all(group: &mut Vec<Submission>) {
    for submission in group.drain(..) {
        answer(submission, Err(away()));
    }
}

fn away() -> Refusal {
    Refusal::Store(StoreError::out_of_time())
}

const fn is_away(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Store(StoreError::Unavailable(_)))
}

fn answer(submission: Submission, outcome: Result<Outcome, Refusal>) {
    // A session that ended meanwhile needs no answer: the agent says it again.
    drop(submission.answer.send(outcome));
}

async fn together(db: &Db, group: &[Submission], now: DateTime<Utc>) -> Result<Vec<Outcome>, Refusal> {
    let mut tx = db.write().await?;
    let mut outcomes = Vec::with_capacity(group.len());
    for submission in group {
        outcomes.push(Box::pin(apply(&mut tx, submission, now)).await?);
    }
    tx.commit().await?;
    Ok(outcomes)
}

async fn alone(db: &Db, submission: &Submission, now: DateTime<Utc>) -> Result<Outcome, Refusal> {
    let mut tries = 1;
    loop {
        let group = std::slice::from_ref(submission);
        match together(db, group, now).await {
            Err(Refusal::Store(error)) if error.is_concurrency() && tries < TRIES => tries += 1,
            outcome => {
                return outcome.map(|outcomes| outcomes.first().copied().unwrap_or(Outcome::Stored));
            }
        }
    }
}

async fn apply(tx: &mut Tx, submission: &Submission, now: DateTime<Utc>) -> Result<Outcome, Refusal> {
    let agent = submission.agent;
    // Asked here, where what it says is stored: the session that carries it may not have heard yet.
    let Some(acknowledged) = tx.standing_of_agent(agent).await? else {
        return Err(Refusal::Revoked);
    };
    match &submission.item {
        Item::Reports(reports) => {
            let number = reports::apply(tx, agent, acknowledged, reports, now).await?;
            Ok(Outcome::Acknowledged(number))
        }
        Item::Observation(session, seen) => observations::apply(tx, seen, *session, now).await,
        Item::Logs {
            job,
            task,
            attempt,
            lines,
        } => {
            tx.append_logs(*task, *job, *attempt, lines).await?;
            Ok(Outcome::Stored)
        }
        Item::Facts(facts) => {
            tx.update_agent_facts(agent, facts, now).await?;
            Ok(Outcome::Stored)
        }
    }
}
