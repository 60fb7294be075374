//! What the store says after an agent has spoken.

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{JobId, TaskId},
    inventory::IntentNote,
};
use sealift_e2e::fleet::Fleet;
use sealift_store::{EntityKind, PageRequest, Task};

/// Why an agent is revoked.
pub fn stolen(at: DateTime<Utc>) -> IntentNote {
    IntentNote {
        reason: "stolen".to_owned(),
        by: "user/ada".to_owned(),
        at,
    }
}

pub async fn audited(fleet: &Fleet, reason: &str) -> usize {
    let page = PageRequest {
        size: 500,
        after: None,
    };
    let mut tx = fleet.running.app.db.read().await.unwrap();
    let events = tx.list_audit(None, &page).await.unwrap().items;
    events.iter().filter(|event| event.entry.reason == reason).count()
}

pub async fn task_of(fleet: &Fleet, job: JobId) -> Task {
    let mut tx = fleet.running.app.db.read().await.unwrap();
    tx.tasks_of_job(job).await.unwrap().remove(0)
}

pub async fn history(fleet: &Fleet, task: TaskId) -> usize {
    let mut tx = fleet.running.app.db.read().await.unwrap();
    tx.transitions(EntityKind::Task, task.uuid()).await.unwrap().len()
}
