//! The workshop as the session sees it.

use sealift_common::{
    id::{TargetId, TaskId},
    inventory::{AgentFacts, ClockFacts},
    order::Fence,
};
use sealift_proto::agent::v1::Report;
use tokio::sync::watch;

use super::Workshop;
use crate::{
    host::Host,
    journal::JournalError,
    work::{StateError, Work},
};

/// Work on the journal, off the threads that serve connections.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, StateError> {
    Ok(tokio::task::spawn_blocking(work).await??)
}

impl<H: Host> Work for Workshop<H> {
    async fn offer(&self, task: TaskId, attempt: u32, order: Vec<u8>) {
        Self::offer(self, task, attempt, order).await;
    }

    async fn stop(&self, task: TaskId) {
        Self::stop(self, task).await;
    }

    async fn keep(&self, tasks: &[TaskId]) {
        let tasks = tasks.to_vec();
        self.forget(move |task| tasks.contains(&task)).await;
    }

    async fn drop_tasks(&self, tasks: &[TaskId]) {
        let tasks = tasks.to_vec();
        self.forget(move |task| !tasks.contains(&task)).await;
    }

    fn next_report(&self) -> u64 {
        self.shared.journal.known_next_report()
    }

    async fn pending_reports(&self, after: u64, most: usize) -> Result<Vec<Report>, StateError> {
        // An agent whose journal failed stays connected to say so; what it has to report waits for its next start.
        if self.has_failed() {
            return Ok(Vec::new());
        }
        let outbox = self.outbox.clone();
        aside(move || outbox.pending(after, most)).await
    }

    async fn acknowledge(&self, number: u64) -> Result<(), StateError> {
        if self.has_failed() {
            return Ok(());
        }
        let outbox = self.outbox.clone();
        aside(move || outbox.acknowledge(number)).await
    }

    async fn skip_reports_to(&self, number: u64) -> Result<(), StateError> {
        if self.has_failed() {
            return Ok(());
        }
        let outbox = self.outbox.clone();
        aside(move || outbox.skip_to(number)).await
    }

    fn report_tip(&self) -> watch::Receiver<u64> {
        self.outbox.changed()
    }

    fn clock_measured(&self, measured: ClockFacts) {
        self.shared.set_clock_offset(measured);
    }

    fn facts(&self) -> watch::Receiver<AgentFacts> {
        Self::facts(self)
    }

    fn wants_proof(&self) -> watch::Receiver<bool> {
        self.shared.program.wants_proof()
    }

    fn fences(&self) -> Result<Vec<(TargetId, Fence)>, StateError> {
        Ok(self.shared.journal.known_fences().into_iter().collect())
    }

    fn observe_now(&self) {
        Self::observe_now(self);
    }
}
