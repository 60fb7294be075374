//! What the watches of promotions and jobs tell of a job: the tasks that changed, a bounded number per message, and the job itself
//! once they are told.

use std::collections::BTreeMap;

use sealift_common::{id::TaskId, task::TaskPhase};
use sealift_proto::v1 as pb;
use sealift_store::{Job, Task, Tx};

use crate::{
    control::views::{job_failed_at, release_called},
    convert::job::{self, JobExtras, TaskExtras},
    status::ApiError,
};

/// Most tasks in one message: at their longest they stay well below the message limit.
pub const TASKS: usize = 200;

/// What a watcher was told of a job.
#[derive(Debug, Default)]
pub struct Told {
    job: Option<u64>,
    tasks: BTreeMap<TaskId, u64>,
}

/// What it is to be told next.
#[derive(Debug, Default)]
pub struct News {
    /// The job when anything of it changed.
    pub job: Option<pb::Job>,
    /// The tasks that changed.
    pub tasks: Vec<pb::Task>,
}

impl Told {
    /// Reads the job's tasks and says what is new of them and of the job.
    pub async fn news(&mut self, tx: &mut Tx, item: &Job) -> Result<News, ApiError> {
        let tasks = tx.tasks_of_job(item.id).await?;
        let changed = self.changed(tx, &tasks).await?;
        if changed.is_empty() && self.job == Some(item.version) {
            return Ok(News::default());
        }
        self.job = Some(item.version);
        let mut counts: BTreeMap<TaskPhase, u32> = BTreeMap::new();
        for task in &tasks {
            let count = counts.entry(task.state.phase()).or_default();
            *count = count.saturating_add(1);
        }
        let called = release_called(tx, item.release_id).await?;
        let extras = JobExtras {
            task_counts: Some(counts),
            failed_at: job_failed_at(tx, item).await?,
            ..JobExtras::default()
        };
        Ok(News {
            job: Some(job::job(item, &called, &extras)),
            tasks: changed,
        })
    }

    async fn changed(&mut self, tx: &mut Tx, tasks: &[Task]) -> Result<Vec<pb::Task>, ApiError> {
        let new = |task: &&Task| self.tasks.insert(task.id, task.version) != Some(task.version);
        let new: Vec<&Task> = tasks.iter().filter(new).collect();
        let failed: Vec<TaskId> = new
            .iter()
            .filter(|task| task.state.phase() == TaskPhase::Failed)
            .map(|task| task.id)
            .collect();
        let mut places = BTreeMap::new();
        for page in failed.chunks(TASKS) {
            places.extend(tx.failed_places(page).await?);
        }
        let message = |task: &Task| {
            let place = places.get(&task.id).copied();
            job::task(
                task,
                TaskExtras {
                    place,
                    ..TaskExtras::default()
                },
            )
        };
        Ok(new.into_iter().map(message).collect())
    }
}

/// Spreads tasks over messages: all but the last are full, and there is always a last one, for what belongs behind the tasks.
pub fn spread(mut tasks: Vec<pb::Task>) -> (Vec<Vec<pb::Task>>, Vec<pb::Task>) {
    let mut full = Vec::new();
    while tasks.len() > TASKS {
        let rest = tasks.split_off(TASKS);
        full.push(std::mem::replace(&mut tasks, rest));
    }
    (full, tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_holds_more_tasks_than_fit_and_none_is_lost() {
        for count in [0, 1, TASKS, TASKS + 1, 5 * TASKS, 10_000] {
            let task = |number: usize| pb::Task {
                uid: number.to_string(),
                ..pb::Task::default()
            };
            let tasks: Vec<pb::Task> = (0..count).map(task).collect();
            let (full, last) = spread(tasks.clone());
            assert!(full.iter().all(|message| message.len() == TASKS), "{count}");
            assert!(last.len() <= TASKS, "{count}");
            assert_eq!(full.into_iter().flatten().chain(last).collect::<Vec<_>>(), tasks);
        }
    }
}
