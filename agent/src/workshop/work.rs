//! The workshop as the session sees it.

use std::{panic::AssertUnwindSafe, sync::Weak};

use futures::FutureExt as _;
use sealift_common::{
    id::{TargetId, TaskId},
    inventory::{AgentFacts, ClockFacts},
    observation::TargetObservation,
    order::Fence,
};
use sealift_proto::agent::v1::Report;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Workshop;
use crate::{
    assignments::Act,
    host::Host,
    journal::{AttemptKey, JournalError},
    work::{StateError, Work},
};

/// Work on the journal, off the threads that serve connections.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, StateError> {
    Ok(tokio::task::spawn_blocking(work).await??)
}

/// Acts that wait. A session that has more to say waits with them.
pub(super) const ACTS: usize = 64;

/// Does what sessions ask for, one after the other: a session has heartbeats to send and does not wait for what an order needs to be
/// looked at.
pub(super) async fn act<H: Host>(
    workshop: Weak<Workshop<H>>,
    shutdown: CancellationToken,
    mut acts: mpsc::Receiver<Act>,
) {
    while let Some(Some(act)) = shutdown.run_until_cancelled(acts.recv()).await {
        let Some(workshop) = workshop.upgrade() else {
            return;
        };
        // What has begun is not cut: an order that is written down is carried out.
        if AssertUnwindSafe(workshop.act(act)).catch_unwind().await.is_err() {
            tracing::error!("a defect ended what a session asked for");
        }
    }
}

impl<H: Host> Workshop<H> {
    async fn act(&self, act: Act) {
        match act {
            Act::Offer { task, attempt, order } => Self::offer(self, task, attempt, order).await,
            Act::Stop { task } => Self::stop(self, task).await,
            Act::Keep { tasks } => self.forget(move |task| tasks.contains(&task)).await,
            Act::Drop { tasks } => self.forget(move |task| !tasks.contains(&task)).await,
        }
    }

    async fn ask(&self, act: Act) {
        // Nobody takes it when the agent goes down; the next session is asked again.
        let _ = self.acts.send(act).await;
    }
}

impl<H: Host> Work for Workshop<H> {
    async fn offer(&self, task: TaskId, attempt: u32, order: Vec<u8>) {
        self.ask(Act::Offer { task, attempt, order }).await;
    }

    async fn stop(&self, task: TaskId) {
        self.ask(Act::Stop { task }).await;
    }

    async fn keep(&self, tasks: &[TaskId]) {
        let tasks = tasks.to_vec();
        self.ask(Act::Keep { tasks }).await;
    }

    async fn drop_tasks(&self, tasks: &[TaskId]) {
        let tasks = tasks.to_vec();
        self.ask(Act::Drop { tasks }).await;
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

    fn lines_lost(&self, task: TaskId, attempt: u32) {
        self.shared.lines_lost(AttemptKey { task, attempt });
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

    fn observe_anew(&self, untold: Vec<TargetObservation>) {
        self.shared.observer.request_all(untold);
    }
}
