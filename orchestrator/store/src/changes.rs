//! Changes: what a committed transaction touched, told to loops and watchers of this process. A change carries no data: the
//! reader looks at the store. Loops poll anyway, so a lost change delays, it never loses work.

use sealift_common::id::{AgentId, EnvironmentId, JobId, PromotionId, TargetId, TaskId, UserId};

/// How many changes a slow subscriber may be behind before it has to read its state again.
pub(crate) const CHANGES_KEPT: usize = 4096;

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A promotion was made or changed state.
    Promotion(PromotionId),
    /// A job was made or changed.
    Job(JobId),
    /// A task changed.
    Task {
        /// Its job.
        job: JobId,
        /// The task.
        task: TaskId,
        /// The agent that works on it, if one does.
        agent: Option<AgentId>,
    },
    /// Jobs of the environment were queued, started or ended.
    Lane(EnvironmentId),
    /// An agent was enrolled or revoked, or its targets changed.
    Agent(AgentId),
    /// A user was revoked.
    User(UserId),
    /// A target was made, changed, bound or put away.
    Target(TargetId),
    /// Log lines of a job came in.
    Logs(JobId),
    /// Drift of a target was found or went away.
    Drift(TargetId),
    /// A run of maintenance was asked for.
    Maintenance,
}
