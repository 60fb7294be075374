//! The workshop as the session sees it.

use sealift_common::{
    id::{TargetId, TaskId},
    inventory::AgentFacts,
    order::Fence,
};
use sealift_proto::agent::v1::Report;
use tokio::sync::watch;

use super::Workshop;
use crate::{
    host::Host,
    work::{StateError, Work},
};

impl<H: Host> Work for Workshop<H> {
    async fn offer(&self, task: TaskId, attempt: u32, order: Vec<u8>) {
        Self::offer(self, task, attempt, order).await;
    }

    async fn stop(&self, task: TaskId) {
        Self::stop(self, task).await;
    }

    async fn keep(&self, tasks: &[TaskId]) {
        self.forget(tasks).await;
    }

    fn next_report(&self) -> u64 {
        self.outbox.next_number()
    }

    fn pending_reports(&self, after: u64, most: usize) -> Result<Vec<Report>, StateError> {
        Ok(self.outbox.pending(after, most)?)
    }

    fn acknowledge(&self, number: u64) -> Result<(), StateError> {
        Ok(self.outbox.acknowledge(number)?)
    }

    fn skip_reports_to(&self, number: u64) -> Result<(), StateError> {
        Ok(self.outbox.skip_to(number)?)
    }

    fn report_tip(&self) -> watch::Receiver<u64> {
        self.outbox.changed()
    }

    fn facts(&self) -> watch::Receiver<AgentFacts> {
        Self::facts(self)
    }

    fn fences(&self) -> Result<Vec<(TargetId, Fence)>, StateError> {
        Ok(Self::fences(self)?)
    }

    fn observe_now(&self) {
        Self::observe_now(self);
    }
}
