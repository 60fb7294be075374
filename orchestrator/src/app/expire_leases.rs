//! Gives up waiting for a word: tasks whose lease ran out or whose attempt takes longer than its limits allow are lost (their effect is unknown, their target stays occupied), and
//! tasks of revoked agents, which can never say anything again, have failed.

use chrono::{DateTime, Utc};
use sealift_common::task::TaskEvent;
use sealift_store::Tx;

use crate::{
    app::{ORCHESTRATOR, abandon_task::abandon_task, advance_job::BATCH},
    status::ApiError,
};

/// Handles one batch; answers how many tasks changed. `patient`: the orchestrator has only just started, so silence says nothing
/// yet about agents.
pub async fn expire_leases(tx: &mut Tx, now: DateTime<Utc>, patient: bool) -> Result<usize, ApiError> {
    let mut changed = 0;
    let most = u32::try_from(BATCH).unwrap_or(u32::MAX);
    for task in tx.live_tasks_of_revoked_agents(most).await? {
        abandon_task(tx, &task, "", ORCHESTRATOR, now).await?;
        changed += 1;
    }
    for task in tx.overdue_tasks(now, most).await? {
        tx.apply_task_event(&task, &TaskEvent::LeaseExpired, ORCHESTRATOR, now)
            .await?;
        changed += 1;
    }
    if patient {
        return Ok(changed);
    }
    for task in tx.expired_leases(now, most).await? {
        let agent = match task.agent_id {
            Some(id) => tx.agent_by_id(id).await?,
            None => None,
        };
        // Revoked ones are in the first list; one that was revoked meanwhile is there next time.
        if agent.is_some_and(|agent| agent.intent.is_live()) {
            tx.apply_task_event(&task, &TaskEvent::LeaseExpired, ORCHESTRATOR, now)
                .await?;
            changed += 1;
        }
    }
    Ok(changed)
}
