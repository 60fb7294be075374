//! Gives up a task whose agent was revoked: its word does not count any more, so nobody will ever say how the task ended.

use chrono::{DateTime, Utc};
use sealift_common::{
    failure::{Failure, FailureCode},
    task::TaskEvent,
};
use sealift_store::{Task, Tx};

use crate::status::ApiError;

/// How the history of attempts names one that was given up.
pub const ABANDONED: &str = "abandoned";

/// Fails the task and ends its attempt; frees its target. Repeating it changes nothing. `why` is added to the failure as its
/// detail; empty when there is nothing to add.
pub async fn abandon_task(
    tx: &mut Tx,
    task: &Task,
    why: &str,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Task, ApiError> {
    let summary = format!("the agent of {} was revoked while it worked on it", task.target);
    let mut failure = Failure::new(FailureCode::AgentRevoked, summary);
    if !why.is_empty() {
        failure = failure.with_detail(why);
    }
    let ended = tx
        .apply_task_event(task, &TaskEvent::Failed { failure }, actor, now)
        .await?;
    if ended.version != task.version && task.attempt > 0 {
        tx.finish_attempt(task.id, task.attempt, ABANDONED, None, now)
            .await?;
    }
    Ok(ended)
}
