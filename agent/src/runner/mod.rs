//! Runner: one actor per attempt. Asks [`crate::step`] what comes next, does it, writes down the result, until nothing is left.

mod attempt;
mod blue_green;
mod borrowed;
pub(crate) mod compose;
mod effects;
mod finish;
mod followers;
mod hooks;
mod own_hooks;
pub(crate) mod program;
mod prove;
mod pull;
mod switch;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    failure::{Failure, FailureCode},
    manifest::{Manifest, RestartPolicy},
    observation::ContainerState,
    order::Order,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    host::{Host, HostError},
    journal::{AttemptKey, Cause, JournalError, Phase, Record},
    labels, proof,
    step::{self, Seen, Step, World},
    workshop::Shared,
};
use attempt::Attempt;
use followers::Followers;

/// How long the engine may be away while going forward, and while going back.
const FORWARD_PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const RESTORE_PATIENCE: Duration = Duration::from_mins(10);
/// How often an effect of a restore is tried although the engine refuses it: for half a minute, as nothing may run meanwhile and
/// whoever gives up leaves it to a person.
const RESTORE_TRIES: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What a restore that is given up has not done.
const OLD_SET: &str = "the old set could not be restored";
const UNREACHED: &str = "callers may not reach the old set";
const UNKNOWN: &str = "what runs now is not known";
/// How long the end of an attempt waits for the last lines of containers that ended.
const LOG_DRAIN: Duration = Duration::from_millis(500);

/// How long to wait after so many tries that failed.
fn pause_after(tries: u32) -> Duration {
    (FIRST_PAUSE * 2_u32.saturating_pow(tries.min(16))).min(LONGEST_PAUSE)
}

/// Why a step did not work.
pub(crate) enum Trouble {
    /// The way forward is blocked: restore.
    Failed(Failure),
    /// The journal is gone: nothing may be done any more.
    Journal(JournalError),
}

type Done = Result<(), Trouble>;

/// Whether a container in this state counts as running until it is stopped.
const fn is_up(state: ContainerState) -> bool {
    matches!(
        state,
        ContainerState::Running | ContainerState::Restarting | ContainerState::Paused
    )
}

fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::Internal, error.to_string())
}

impl From<HostError> for Trouble {
    fn from(error: HostError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<JournalError> for Trouble {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

/// One attempt under way.
pub(crate) struct Runner<H: Host> {
    attempt: Attempt<H, Manifest>,
    world: World,
    /// Whether the world was seen since it may have changed behind our back.
    looked: bool,
    followers: Followers,
    starting_at: Option<DateTime<Utc>>,
    /// Images whose digests were compared.
    images: proof::Images,
    seen_healthy: Option<Vec<proof::Running>>,
    /// The sticker that waits beside its place.
    staged: Option<Vec<u8>>,
}

impl<H: Host> Runner<H> {
    pub(crate) fn new(
        shared: Arc<Shared<H>>,
        key: AttemptKey,
        order: Order<Manifest>,
        order_digest: Digest,
        records: &[Record],
        stop: CancellationToken,
    ) -> Self {
        Self {
            attempt: Attempt::new(shared, key, order, order_digest, records, stop),
            world: World::default(),
            // Of an order that nothing was done for yet there is nothing to see: its fencing token is new.
            looked: matches!(records, [Record::Accepted { .. }]),
            followers: Followers::default(),
            starting_at: None,
            images: proof::Images::new(),
            seen_healthy: None,
            staged: None,
        }
    }

    /// Works until the attempt is done, the agent goes down, or the journal fails.
    pub(crate) async fn run(mut self) -> Result<(), JournalError> {
        let shutdown = self.attempt.shared.shutdown.clone();
        let stop = self.attempt.stop.clone();
        loop {
            if shutdown.is_cancelled() || self.attempt.state.phase == Phase::Done {
                break;
            }
            if !self.looked {
                // Nothing can be decided before the engine was seen; it may be away for as long as it likes.
                let look = tokio::select! {
                    () = shutdown.cancelled() => break,
                    look = self.look() => look,
                };
                match look {
                    Ok(()) => self.looked = true,
                    Err(error) if matches!(self.attempt.state.phase, Phase::Preparing) => {
                        self.fail(&Step::Pull, Trouble::Failed(error.into())).await?;
                        self.looked = true;
                    }
                    // The old set was not touched yet, so the end can be told without waiting for the engine.
                    Err(error)
                        if matches!(self.attempt.state.phase, Phase::Restoring(_))
                            && self.attempt.state.old.is_none() =>
                    {
                        self.attempt.log.say(format!("cannot see the engine: {error}"));
                        self.looked = true;
                    }
                    Err(error) => {
                        self.attempt.log.say(format!("waiting for the engine: {error}"));
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = sleep(LONGEST_PAUSE) => {}
                        }
                    }
                }
                continue;
            }
            let attempt = &self.attempt;
            let step = step::next(
                &attempt.order.manifest,
                attempt.order.swap,
                &attempt.state,
                attempt.wanted(),
                &self.world,
            );
            let outcome = tokio::select! {
                biased;
                () = shutdown.cancelled(), if step.is_long() => break,
                () = stop.cancelled(), if step.gives_way() => continue,
                outcome = self.perform(&step) => outcome,
            };
            if let Err(trouble) = outcome {
                self.fail(&step, trouble).await?;
            }
        }
        self.followers.shutdown().await;
        self.attempt.rest().await
    }

    /// Sees what is on the engine.
    async fn look(&mut self) -> Result<(), HostError> {
        let wanted = labels::of_project(self.attempt.order.target_id, &self.attempt.order.release.project);
        let listed = {
            let host = self.attempt.host();
            patiently(FORWARD_PATIENCE, || host.list(&wanted)).await?
        };
        self.world.new.clear();
        self.world.old.clear();
        self.world.hooks.clear();
        for container in listed {
            if let Some((hook, fence)) = labels::read_hook(&container.labels) {
                if fence == self.attempt.order.fence {
                    self.world.hooks.insert(hook, container.id);
                }
                continue;
            }
            let Some(ours) = labels::read(&container.labels) else {
                continue;
            };
            let running = is_up(container.state);
            let mut seen = Seen {
                id: container.id,
                running,
                restart: RestartPolicy::No,
            };
            if ours.fence == self.attempt.order.fence {
                // After a restart of the agent, or of the engine, nobody listens to it.
                self.followers.follow(
                    &self.attempt.shared,
                    &self.attempt.log,
                    (&ours.service, &seen.id),
                    container.state,
                );
                self.world.new.insert(ours.service, seen);
            } else if self.is_old(&seen.id) {
                let inspected = {
                    let (host, id) = (self.attempt.host(), seen.id.as_str());
                    patiently(FORWARD_PATIENCE, || host.inspect(id)).await?
                };
                if let Some(inspected) = inspected {
                    seen.restart = inspected.restart;
                    self.world.old.insert(seen.id.clone(), seen);
                }
            }
        }
        Ok(())
    }

    fn is_old(&self, id: &str) -> bool {
        self.attempt.state.old.iter().flatten().any(|old| old.id == id)
    }

    /// What to do when a step did not work.
    async fn fail(&mut self, step: &Step, trouble: Trouble) -> Result<(), JournalError> {
        let failure = self.attempt.told(trouble)?;
        match self.attempt.state.phase {
            Phase::Restoring(_) => {
                self.retry_or_give_up(step, failure).await;
                Ok(())
            }
            Phase::Ended(_) => {
                // The end is told already; what cannot be tidied now is tidied by the next attempt on this target.
                match step {
                    Step::RemoveOld(id) => {
                        self.world.old.remove(id);
                    }
                    _ => self.attempt.write(Record::Cleaned, Vec::new()).await?,
                }
                Ok(())
            }
            Phase::Done => Ok(()),
            _ => self.begin_restore(Cause::Failed { failure }).await,
        }
    }

    pub(super) async fn begin_restore(&mut self, cause: Cause) -> Result<(), JournalError> {
        self.followers.drain().await;
        self.attempt.begin_restore(cause).await?;
        // A call that failed may have had its effect all the same, now or a while ago: nothing is decided on what was seen
        // before it.
        self.looked = false;
        Ok(())
    }

    async fn retry_or_give_up(&mut self, step: &Step, failure: Failure) {
        // An engine that is away refuses nothing: wait for it, and choose again from what it then shows.
        if failure.code == FailureCode::EngineUnavailable {
            self.looked = false;
            return;
        }
        // What does not run as it was seen has changed since: choose again from what is there now.
        if matches!(step, Step::CheckOld) {
            self.looked = false;
        }
        if self.attempt.try_again(step).await {
            return;
        }
        match step {
            Step::StopNew(service) | Step::RemoveNew(service) => {
                self.world.new.remove(service);
            }
            Step::JoinOld(id) => {
                self.world.back.insert(id.clone());
            }
            Step::RestorePolicy(id, _) | Step::StartOld(id) => {
                self.world.old.remove(id);
            }
            Step::Hook(step) => {
                // A later attempt, or the observer, removes it.
                self.world.hooks.remove(step.hook());
            }
            _ => self.world.old_checked = true,
        }
        self.attempt.give_up_restore(OLD_SET, &failure);
    }
}

/// Tries again while the engine is away, at most for `limit`.
async fn patiently<T, F>(limit: Duration, mut effect: impl FnMut() -> F) -> Result<T, HostError>
where
    F: Future<Output = Result<T, HostError>>,
{
    let give_up = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        match effect().await {
            Err(error) if error.is_transient() && Instant::now() + pause < give_up => {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            other => return other,
        }
    }
}
