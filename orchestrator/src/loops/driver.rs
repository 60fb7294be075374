//! How every background loop runs. An activation takes no input, is idempotent and does not retry inside itself: it compares
//! what is wanted with what is, and moves a step. So one code path serves the normal case, the restart and the second replica. A
//! loop is woken by changes at their commit, by a timer with jitter for what no change announces, and waits longer after errors.

use std::{future::Future, time::Duration};

use sealift_common::error::Reason;
use sealift_store::Change;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError, error::TryRecvError},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    loops::health::LoopHealth,
    status::{ApiError, Chain},
};

/// Wait after the first error; doubled by each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Longest wait after errors.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// How long an activation may take. Each statement has a deadline of its own; a connection that died without a word has none.
const DEADLINE: Duration = Duration::from_mins(2);

/// Longest rest after an activation.
const LONGEST_REST: Duration = Duration::from_millis(200);

/// A loop over much work takes at most a fifth of the time, so that bursts of changes are handled together.
fn rest_after(took: Duration) -> Duration {
    took.saturating_mul(4).min(LONGEST_REST)
}

fn out_of_time(name: &str) -> ApiError {
    ApiError::new(
        Reason::StoreUnavailable,
        format!("{name} did not come to an end within {} s", DEADLINE.as_secs()),
        "it begins anew by itself; look at the database server when it repeats",
    )
}

/// What an activation found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do until something changes.
    Idle,
    /// There is more to do now.
    More,
}

/// One background loop.
pub trait Activity: Send + Sync {
    /// Its name, in logs and health.
    fn name(&self) -> &'static str;
    /// How often it looks even when nothing changed.
    fn period(&self) -> Duration;
    /// Whether a change may give it work.
    fn wants(&self, change: &Change) -> bool;
    /// One bounded piece of work.
    fn activate(&mut self) -> impl Future<Output = Result<Outcome, ApiError>> + Send;
}

/// Runs `activity` until shutdown, which waits for the activation under way. One that takes too long is cut off and rolled back
/// with its transaction (R14).
pub async fn drive(
    activity: impl Activity,
    changes: Receiver<Change>,
    shutdown: CancellationToken,
    health: LoopHealth,
) {
    drive_within(DEADLINE, activity, changes, shutdown, health).await;
}

async fn drive_within<A: Activity>(
    deadline: Duration,
    mut activity: A,
    mut changes: Receiver<Change>,
    shutdown: CancellationToken,
    health: LoopHealth,
) {
    let mut errors: u32 = 0;
    while !shutdown.is_cancelled() {
        // What changed before this point is seen by the activation itself.
        drain(&mut changes);
        let begun = Instant::now();
        let activated = timeout(deadline, activity.activate())
            .await
            .unwrap_or_else(|_| Err(out_of_time(activity.name())));
        let wait = match activated {
            Ok(outcome) => {
                errors = 0;
                health.well(activity.name());
                if outcome == Outcome::More {
                    tokio::task::yield_now().await;
                    continue;
                }
                pause(rest_after(begun.elapsed()), &shutdown).await;
                jittered(activity.period())
            }
            // Somebody else was faster: that is how it should be, and worth looking again at once.
            Err(error) if error.reason() == Reason::Conflict && errors < 3 => {
                errors += 1;
                FIRST_BACKOFF
            }
            Err(error) => {
                errors = errors.saturating_add(1);
                tracing::warn!(name: "loop.failed", activity = activity.name(), error = %Chain(&error), "activation failed");
                health.ill(activity.name(), &error.to_string());
                pause(backoff(errors), &shutdown).await;
                continue;
            }
        };
        until_work(&activity, &mut changes, &shutdown, wait).await;
    }
}

fn drain(changes: &mut Receiver<Change>) {
    loop {
        match changes.try_recv() {
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return,
        }
    }
}

async fn until_work<A: Activity>(
    activity: &A,
    changes: &mut Receiver<Change>,
    shutdown: &CancellationToken,
    wait: Duration,
) {
    let deadline = tokio::time::sleep(wait);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = &mut deadline => return,
            change = changes.recv() => match change {
                Ok(change) if !activity.wants(&change) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                // The store is closing; the timer and the shutdown remain.
                Err(RecvError::Closed) => return pause(wait, shutdown).await,
            },
        }
    }
}

async fn pause(wait: Duration, shutdown: &CancellationToken) {
    // What takes less is not worth a timer (they tick in milliseconds).
    if wait < Duration::from_millis(5) {
        return;
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

fn backoff(errors: u32) -> Duration {
    jittered(
        FIRST_BACKOFF
            .saturating_mul(1 << errors.min(10))
            .min(LONGEST_BACKOFF),
    )
}

/// Between 75 and 125 percent, so that replicas do not march in step.
fn jittered(period: Duration) -> Duration {
    period.mul_f64(rand::random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    struct Counting {
        runs: Arc<AtomicU32>,
        failing: u32,
        ran: tokio::sync::mpsc::Sender<u32>,
    }

    impl Activity for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }
        fn period(&self) -> Duration {
            Duration::from_hours(1)
        }
        fn wants(&self, change: &Change) -> bool {
            matches!(change, Change::Job(_))
        }
        async fn activate(&mut self) -> Result<Outcome, ApiError> {
            let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
            let _ = self.ran.try_send(run);
            if run <= self.failing {
                Err(ApiError::internal("broken"))
            } else {
                Ok(Outcome::Idle)
            }
        }
    }

    #[tokio::test]
    async fn a_loop_is_woken_by_changes_and_comes_back_after_errors() {
        let (sender, changes) = tokio::sync::broadcast::channel(4);
        let (ran, mut runs) = tokio::sync::mpsc::channel(100);
        let shutdown = CancellationToken::new();
        let health = LoopHealth::default();
        let activity = Counting {
            runs: Arc::default(),
            failing: 2,
            ran,
        };
        let mut driven = tokio::task::JoinSet::new();
        driven.spawn(drive(activity, changes, shutdown.clone(), health.clone()));
        for run in 1..=3 {
            assert_eq!(runs.recv().await, Some(run), "tried again after an error");
        }
        let id = sealift_common::id::JobId::new(chrono::DateTime::default());
        let woken = async {
            loop {
                // Not wanted, then wanted.
                let _ = sender.send(Change::Logs(id));
                let _ = sender.send(Change::Job(id));
                if let Ok(run) = runs.try_recv() {
                    return run;
                }
                tokio::task::yield_now().await;
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(10), woken)
                .await
                .unwrap()
                >= 4
        );
        assert!(health.report().is_empty());
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), driven.join_all())
            .await
            .unwrap();
    }

    /// Hangs the first time.
    struct Hanging(tokio::sync::mpsc::Sender<()>);

    impl Activity for Hanging {
        fn name(&self) -> &'static str {
            "hanging"
        }
        fn period(&self) -> Duration {
            Duration::from_hours(1)
        }
        fn wants(&self, _: &Change) -> bool {
            false
        }
        async fn activate(&mut self) -> Result<Outcome, ApiError> {
            if self.0.try_send(()).is_ok() && self.0.capacity() == 1 {
                std::future::pending::<()>().await;
            }
            Ok(Outcome::Idle)
        }
    }

    #[tokio::test]
    async fn r14_an_activation_that_hangs_is_cut_off_and_begun_anew() {
        let (_sender, changes) = tokio::sync::broadcast::channel(4);
        let (begun, mut runs) = tokio::sync::mpsc::channel(2);
        let (shutdown, health) = (CancellationToken::new(), LoopHealth::default());
        let mut driven = tokio::task::JoinSet::new();
        let deadline = Duration::from_millis(20);
        let activity = Hanging(begun);
        driven.spawn(drive_within(
            deadline,
            activity,
            changes,
            shutdown.clone(),
            health,
        ));
        let twice = async {
            while runs.len() < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), twice)
            .await
            .unwrap();
        assert!(runs.recv().await.is_some());
        shutdown.cancel();
        driven.join_all().await;
    }

    #[test]
    fn backoff_grows_and_has_an_end() {
        assert!(backoff(1) < Duration::from_millis(200));
        assert!(backoff(u32::MAX) <= LONGEST_BACKOFF.mul_f64(1.25));
    }
}
