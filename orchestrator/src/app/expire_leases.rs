//! Gives up waiting for a word: tasks whose lease ran out or whose attempt takes longer than its limits allow are lost (their effect
//! is unknown, their target stays occupied), and tasks of revoked agents, which can never say anything again, have failed.

use chrono::{DateTime, Utc};
use sealift_common::task::TaskEvent;
use sealift_store::{StoreError, Task, Tx};

use crate::{
    app::{ORCHESTRATOR, abandon_task::abandon_task, advance_job::BATCH},
    status::ApiError,
};

/// Handles one batch; answers how many tasks changed. `patient`: the orchestrator has only just started, so silence says nothing
/// yet about agents.
pub async fn expire_leases(tx: &mut Tx, now: DateTime<Utc>, patient: bool) -> Result<usize, ApiError> {
    let mut changed = 0;
    let most = u32::try_from(BATCH).unwrap_or(u32::MAX);
    for task in Tx::in_order(tx.live_tasks_of_revoked_agents(most).await?) {
        let ended = abandon_task(tx, &task, "", ORCHESTRATOR, now).await?;
        changed += usize::from(ended.version != task.version);
    }
    for task in Tx::in_order(tx.overdue_tasks(now, most).await?) {
        changed += usize::from(lose(tx, &task, now).await?);
    }
    if patient {
        return Ok(changed);
    }
    for task in Tx::in_order(tx.expired_leases(now, most).await?) {
        let agent = match task.agent_id {
            Some(id) => tx.agent_by_id(id).await?,
            None => None,
        };
        // Revoked ones are in the first list; one that was revoked meanwhile is there next time.
        if agent.is_some_and(|agent| agent.intent.is_live()) {
            changed += usize::from(lose(tx, &task, now).await?);
        }
    }
    Ok(changed)
}

/// Whether that changed it. One that its agent moved at this moment is not silent, and keeps none of the others waiting.
async fn lose(tx: &mut Tx, task: &Task, now: DateTime<Utc>) -> Result<bool, StoreError> {
    match tx
        .apply_task_event(task, &TaskEvent::LeaseExpired, ORCHESTRATOR, now)
        .await
    {
        Ok(lost) => Ok(lost.version != task.version),
        Err(StoreError::Conflict) => Ok(false),
        Err(error) => Err(error),
    }
}
