//! Work: what a session needs of the workshop below it. A trait because tests of the session stand in for the workshop.

use std::future::Future;

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{TargetId, TaskId},
    inventory::{AgentFacts, ClockFacts},
    observation::TargetObservation,
    order::Fence,
};
use sealift_proto::agent::v1::Report;
use tokio::sync::{mpsc, watch};

/// Why the agent's own state could not be read or written.
pub type StateError = Box<dyn std::error::Error + Send + Sync>;

/// A line of a task's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// The task.
    pub task_id: TaskId,
    /// The attempt.
    pub attempt: u32,
    /// Grows with each line of an attempt, also over restarts of the agent.
    pub seq: u64,
    /// `agent`, the name of a service, or `hook/` and the name of a hook.
    pub source: String,
    /// The line.
    pub text: String,
    /// Whether something was left out here: the line stands for what is missing.
    pub truncated: bool,
    /// When.
    pub at: DateTime<Utc>,
}

/// What comes up from the workshop without being durable. Observations that a session missed are told anew in the next one; lines
/// of logs are not, so a session that breaks says whose may be lost.
#[derive(Debug)]
pub struct Feeds {
    /// What is seen on each target.
    pub observations: mpsc::Receiver<TargetObservation>,
    /// Lines of logs.
    pub logs: mpsc::Receiver<LogRecord>,
}

/// What a session needs of the workshop.
pub trait Work: Send + Sync + 'static {
    /// Takes up an order, or goes on with it.
    fn offer(&self, task: TaskId, attempt: u32, order: Vec<u8>) -> impl Future<Output = ()> + Send;
    /// Stops a task: what ran before runs again.
    fn stop(&self, task: TaskId) -> impl Future<Output = ()> + Send;
    /// Forgets what is kept of finished tasks other than these.
    fn keep(&self, tasks: &[TaskId]) -> impl Future<Output = ()> + Send;
    /// Forgets what is kept of these tasks, as far as they are finished.
    fn drop_tasks(&self, tasks: &[TaskId]) -> impl Future<Output = ()> + Send;
    /// Number that the next report gets.
    fn next_report(&self) -> u64;
    /// At most `most` reports above `after`, in order.
    fn pending_reports(
        &self,
        after: u64,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Report>, StateError>> + Send;
    /// Drops the reports up to `number`.
    fn acknowledge(&self, number: u64) -> impl Future<Output = Result<(), StateError>> + Send;
    /// Makes `number` the last one used.
    fn skip_reports_to(&self, number: u64) -> impl Future<Output = Result<(), StateError>> + Send;
    /// Lines of this attempt that were sent may not have arrived.
    fn lines_lost(&self, task: TaskId, attempt: u32);
    /// Changes whenever reports were added.
    fn report_tip(&self) -> watch::Receiver<u64>;
    /// Takes in what a round trip said of the host's clock.
    fn clock_measured(&self, measured: ClockFacts);
    /// What the agent says about itself.
    fn facts(&self) -> watch::Receiver<AgentFacts>;
    /// Whether the link itself is on trial: then every heartbeat asks for an answer, and none may stay away.
    fn wants_proof(&self) -> watch::Receiver<bool>;
    /// Highest fencing token seen on each target.
    fn fences(&self) -> Result<Vec<(TargetId, Fence)>, StateError>;
    /// Observes all targets soon, and tells of them whether or not they changed. What was seen before and is still `untold` is past;
    /// what the engine said by then is told with the next look.
    fn observe_anew(&self, untold: Vec<TargetObservation>);
}
