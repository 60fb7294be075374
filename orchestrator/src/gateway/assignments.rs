//! What an agent has been told to do, and what it has to be told next: a full set first, then increments that name their base.

use std::collections::BTreeMap;

use sealift_common::{
    bounds::MESSAGE_BYTES,
    id::TaskId,
    task::{TaskState, TaskStep, Wanted},
};
use sealift_proto::agent::v1::{Assignment, Assignments};
use sealift_store::Task;

/// Bytes of orders in one message: leaves room for everything else below [`MESSAGE_BYTES`].
const ORDER_BYTES: usize = MESSAGE_BYTES - 512 * 1024;

/// What the agent was told, as its session remembers it.
#[derive(Debug, Default)]
pub struct Told {
    version: u64,
    tasks: BTreeMap<TaskId, Work>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    attempt: u32,
    stop: bool,
}

impl Told {
    /// The messages that tell everything anew; the first is a full set, those after it (when the orders do not fit one message)
    /// are increments.
    pub fn full(&mut self, tasks: &[Task]) -> Vec<Assignments> {
        *self = Self::default();
        let mut messages = self.increments(tasks);
        if messages.is_empty() {
            messages.push(self.next(Vec::new(), Vec::new()));
        }
        messages
    }

    /// The messages that tell what changed; none when nothing did.
    pub fn increments(&mut self, tasks: &[Task]) -> Vec<Assignments> {
        let wanted: BTreeMap<TaskId, (Work, &[u8])> = tasks.iter().filter_map(work).collect();
        let removals: Vec<TaskId> = self
            .tasks
            .keys()
            .filter(|id| !wanted.contains_key(id))
            .copied()
            .collect();
        let mut removed = Vec::with_capacity(removals.len());
        for id in removals {
            self.tasks.remove(&id);
            removed.push(id.to_string());
        }
        let mut messages = Vec::new();
        let mut upserts = Vec::new();
        let mut bytes = 0;
        for (id, (work, order)) in wanted {
            if self.tasks.get(&id) == Some(&work) {
                continue;
            }
            if bytes + order.len() > ORDER_BYTES && !upserts.is_empty() {
                messages.push(self.next(std::mem::take(&mut upserts), std::mem::take(&mut removed)));
                bytes = 0;
            }
            bytes += order.len();
            self.tasks.insert(id, work);
            upserts.push(Assignment {
                task_id: id.to_string(),
                attempt: work.attempt,
                order: order.to_vec(),
                stop: work.stop,
            });
        }
        if !upserts.is_empty() || !removed.is_empty() {
            messages.push(self.next(upserts, removed));
        }
        messages
    }

    fn next(&mut self, upserts: Vec<Assignment>, removals: Vec<String>) -> Assignments {
        let base = self.version;
        self.version += 1;
        Assignments {
            version: self.version,
            base,
            upserts,
            removals,
        }
    }
}

/// What a task asks of its agent; nothing while it has no order, and nothing between two attempts.
fn work(task: &Task) -> Option<(TaskId, (Work, &[u8]))> {
    let asks = match &task.state {
        TaskState::Assigned | TaskState::Accepted | TaskState::Lost => true,
        TaskState::Running { step } => *step != TaskStep::RetryWait,
        TaskState::Pending
        | TaskState::Succeeded
        | TaskState::Failed { .. }
        | TaskState::Skipped { .. }
        | TaskState::Cancelled => false,
    };
    let order = task.order.as_deref().filter(|_| asks)?;
    let work = Work {
        attempt: task.attempt,
        stop: task.wanted == Wanted::Stop,
    };
    Some((task.id, (work, order)))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use sealift_common::{
        id::{AgentId, JobId, TargetId, TenantId},
        order::Fence,
    };

    use super::*;

    fn task(n: u8, state: TaskState) -> Task {
        let now = DateTime::from_timestamp(1_800_000_000 + i64::from(n), 0).unwrap();
        Task {
            id: TaskId::new(now),
            job_id: JobId::new(now),
            tenant_id: TenantId::new(now),
            target_id: TargetId::new(now),
            target: "web1".parse().unwrap(),
            environment: "prod".parse().unwrap(),
            agent_id: Some(AgentId::new(now)),
            wave: 0,
            state,
            wanted: Wanted::Run,
            attempt: 1,
            fence: Fence(1),
            order: Some(vec![n; 8]),
            lease_until: None,
            retry_at: None,
            version: 1,
            created_at: now,
            started_at: None,
            finished_at: None,
        }
    }

    #[test]
    fn the_first_set_is_full_even_when_empty() {
        let mut told = Told::default();
        let first = told.full(&[]);
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].base, first[0].version), (0, 1));
        assert!(told.increments(&[]).is_empty());
    }

    #[test]
    fn increments_say_what_changed_and_apply_to_the_version_before() {
        let mut told = Told::default();
        let (one, mut two) = (task(1, TaskState::Assigned), task(2, TaskState::Accepted));
        assert_eq!(told.full(std::slice::from_ref(&one))[0].upserts.len(), 1);
        let next = told.increments(&[one.clone(), two.clone()]);
        assert_eq!((next[0].base, next[0].version, next[0].upserts.len()), (1, 2, 1));
        two.wanted = Wanted::Stop;
        let next = told.increments(&[one.clone(), two.clone()]);
        assert!(next[0].upserts[0].stop);
        one_removed(&told.increments(std::slice::from_ref(&two)), one.id);
        assert!(told.increments(&[two]).is_empty());
    }

    fn one_removed(messages: &[Assignments], id: TaskId) {
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].removals, vec![id.to_string()]);
        assert!(messages[0].upserts.is_empty());
    }

    #[test]
    fn only_tasks_that_ask_something_of_the_agent_are_told() {
        let mut without_order = task(1, TaskState::Assigned);
        without_order.order = None;
        let resting = task(
            2,
            TaskState::Running {
                step: TaskStep::RetryWait,
            },
        );
        let mut told = Told::default();
        let full = told.full(&[
            without_order,
            resting,
            task(3, TaskState::Pending),
            task(4, TaskState::Succeeded),
        ]);
        assert!(full[0].upserts.is_empty());
        assert_eq!(told.full(&[task(5, TaskState::Lost)])[0].upserts.len(), 1);
    }

    #[test]
    fn a_new_attempt_is_told_again() {
        let mut told = Told::default();
        let mut one = task(1, TaskState::Assigned);
        told.full(std::slice::from_ref(&one));
        one.attempt = 2;
        assert_eq!(told.increments(&[one])[0].upserts[0].attempt, 2);
    }

    #[test]
    fn large_sets_are_split_below_the_message_bound() {
        let tasks: Vec<_> = (1..=5)
            .map(|n| Task {
                order: Some(vec![n; 1024 * 1024]),
                ..task(n, TaskState::Assigned)
            })
            .collect();
        let mut told = Told::default();
        let messages = told.full(&tasks);
        assert_eq!(messages.iter().map(|m| m.upserts.len()).sum::<usize>(), 5);
        for (at, message) in messages.iter().enumerate() {
            assert_eq!((message.base, message.version), (at as u64, at as u64 + 1));
            assert!(prost::Message::encoded_len(message) < MESSAGE_BYTES);
        }
        assert!(messages.len() > 1);
    }
}
