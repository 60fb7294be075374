//! Makes the orders that a running job wants: for tasks whose next attempt is due, and for the pending ones of the wave that is
//! open. What can be done is looked for without the right to write, page by page: where all hosts are waited for, nothing is
//! written and nobody else waits. Each write changes one page.

use sealift_common::{id::JobId, name::Name};
use sealift_store::{Job, Task, Tx};

use crate::{
    app::{
        Core,
        advance_job::{Advance, BATCH},
        ask_again::closed_gate,
        assign_tasks::{Orders, Patience, assign_tasks, would_assign},
        turn::Turn,
    },
    status::ApiError,
};

/// Most pages of one list that change before the job is looked at anew.
const ROUNDS: usize = 10;
/// Most pages of one list that are looked at in vain before the rest is left to the next time.
const LOOKS: usize = 10;

/// How far the tasks of a job were looked at whose hosts are waited for: the next look goes on behind these targets. Only a
/// hint; without it the look begins with the first.
#[derive(Debug, Clone, Default)]
pub struct Waiting {
    again: Option<Name>,
    pending: Option<Name>,
}

/// Where orders are looked for.
#[derive(Debug, Clone, Copy)]
enum List {
    /// Tasks whose next attempt is due.
    Again,
    /// The pending tasks of this wave.
    Pending(u32),
}

impl List {
    async fn page(
        self,
        core: &Core,
        tx: &mut Tx,
        job: JobId,
        after: Option<&Name>,
    ) -> Result<Vec<Task>, ApiError> {
        let limit = BATCH as u32;
        Ok(match self {
            Self::Again => tx.tasks_due_again(job, core.clock.now(), after, limit).await?,
            Self::Pending(wave) => tx.free_pending_tasks(job, wave, after, limit).await?,
        })
    }

    fn place(self, waiting: &mut Waiting) -> &mut Option<Name> {
        match self {
            Self::Again => &mut waiting.again,
            Self::Pending(_) => &mut waiting.pending,
        }
    }
}

/// Makes orders, some pages of them: for due attempts, and for `wave` if one is open or may open.
pub async fn order_tasks(
    core: &Core,
    turn: &Turn,
    job: &Job,
    patience: Patience,
    wave: Option<u32>,
    waiting: &mut Waiting,
) -> Result<Advance, ApiError> {
    let mut orders = None;
    let mut did = Advance::Idle;
    for list in [Some(List::Again), wave.map(List::Pending)].into_iter().flatten() {
        let place = list.place(waiting);
        for _ in 0..ROUNDS {
            let mut tx = turn.read().await?;
            if !look(core, &mut tx, job, patience, list, place).await? {
                break;
            }
            if orders.is_none() {
                orders = Some(Orders::of(&mut tx, job).await?);
            }
            drop(tx);
            let Some(orders) = &orders else { break };
            if !order_page(core, turn, orders, job, patience, list, place.as_ref()).await? {
                break;
            }
            did = Advance::Worked;
        }
    }
    Ok(did)
}

/// Whether the page behind `place` has a task that would change; moves `place` to the next such page.
async fn look(
    core: &Core,
    tx: &mut Tx,
    job: &Job,
    patience: Patience,
    list: List,
    place: &mut Option<Name>,
) -> Result<bool, ApiError> {
    for _ in 0..LOOKS {
        let page = list.page(core, tx, job.id, place.as_ref()).await?;
        if would_assign(core, tx, patience, &page).await? {
            return Ok(true);
        }
        let is_last = page.len() < BATCH;
        *place = page.into_iter().next_back().map(|task| task.target);
        if is_last {
            *place = None;
            return Ok(false);
        }
    }
    Ok(false)
}

/// Makes the orders of one page, read anew: what has changed since the look counts.
async fn order_page(
    core: &Core,
    turn: &Turn,
    orders: &Orders,
    job: &Job,
    patience: Patience,
    list: List,
    after: Option<&Name>,
) -> Result<bool, ApiError> {
    let mut tx = turn.write().await?;
    // Whoever steered the job meanwhile is heard before the next page.
    if !tx.lock_job(job).await? {
        return Ok(false);
    }
    // So is a gate that has closed since the look: the next one pauses the job.
    if matches!(list, List::Pending(_)) && closed_gate(&mut tx, job).await?.is_some() {
        return Ok(false);
    }
    let page = list.page(core, &mut tx, job.id, after).await?;
    if assign_tasks(core, &mut tx, orders, patience, &page).await? == 0 {
        return Ok(false);
    }
    if let List::Pending(wave) = list {
        tx.open_wave(job.id, wave, core.clock.now()).await?;
    }
    tx.commit().await?;
    Ok(true)
}
