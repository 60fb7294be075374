//! What runs beside calls and must not end while the process lives. A loop that panics or returns would leave the orchestrator
//! answering calls that nobody acts on: so the process goes down, and whatever started it starts it again.

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::health::LoopHealth;

/// Starts loops and notices their end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// What is waited for when the process goes down.
    pub tasks: TaskTracker,
    /// Where a loop that ended is named.
    pub health: LoopHealth,
    /// Cancelled when loops are asked to end.
    pub shutdown: CancellationToken,
    /// Cancelled when a loop ended unasked.
    pub failed: CancellationToken,
}

impl Supervisor {
    /// Runs `work` until shutdown.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let worker = self.tasks.spawn(work);
        let Self {
            health,
            shutdown,
            failed,
            ..
        } = self.clone();
        self.tasks.spawn(async move {
            let ended = worker.await;
            if shutdown.is_cancelled() {
                return;
            }
            let how = ended.map_or_else(|error| error.to_string(), |()| "it returned".to_owned());
            tracing::error!(
                activity = name,
                how,
                "a loop ended by itself: the process goes down"
            );
            health.ill(name, "it ended by itself");
            failed.cancel();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn supervisor() -> Supervisor {
        Supervisor {
            tasks: TaskTracker::new(),
            health: LoopHealth::default(),
            shutdown: CancellationToken::new(),
            failed: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn r14_a_loop_that_panics_or_returns_takes_the_process_down() {
        for panics in [true, false] {
            let supervisor = supervisor();
            supervisor.spawn("scheduler", async move { assert!(!panics, "a test") });
            tokio::time::timeout(Duration::from_secs(10), supervisor.failed.cancelled())
                .await
                .unwrap();
            assert_eq!(supervisor.health.report()[0].0, "scheduler");
        }
    }

    #[tokio::test]
    async fn a_loop_that_ends_when_it_is_asked_to_is_no_failure() {
        let supervisor = supervisor();
        let stop = supervisor.shutdown.clone();
        supervisor.spawn("scheduler", async move { stop.cancelled().await });
        supervisor.shutdown.cancel();
        supervisor.tasks.close();
        supervisor.tasks.wait().await;
        assert!(!supervisor.failed.is_cancelled() && supervisor.health.report().is_empty());
    }
}
