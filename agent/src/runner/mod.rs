//! Runner: one actor per attempt. Asks [`crate::step`] what comes next, does it, writes down the result, until nothing is left.

mod blue_green;
mod borrowed;
pub(crate) mod compose;
mod effects;
mod finish;
mod hooks;
mod own_hooks;
pub(crate) mod program;
mod prove;
mod pull;
mod switch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    evidence::EngineInfo,
    failure::{Failure, FailureCode},
    manifest::{Manifest, RestartPolicy},
    observation::ContainerState,
    order::Order,
    task::Wanted,
};
use sealift_proto::agent::v1::{Progressed, report::Event};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    host::{Host, HostError},
    journal::{
        AttemptKey, AttemptState, Cause, Journal, JournalError, Phase, Record, ReportDraft, Write, steps,
    },
    kill, labels,
    logs::AttemptLog,
    proof,
    step::{self, Seen, Step, World},
    workshop::Shared,
};

/// How long the engine may be away while going forward, and while going back.
const FORWARD_PATIENCE: Duration = Duration::from_secs(30);
const RESTORE_PATIENCE: Duration = Duration::from_mins(10);
/// How often an effect of a restore is tried although the engine refuses it.
const RESTORE_TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the end of an attempt waits for the last lines of containers that ended.
const LOG_DRAIN: Duration = Duration::from_millis(500);

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
    shared: Arc<Shared<H>>,
    key: AttemptKey,
    order: Order<Manifest>,
    order_digest: Digest,
    state: AttemptState,
    world: World,
    /// Whether the world was seen since it may have changed behind our back.
    looked: bool,
    stop: CancellationToken,
    log: AttemptLog,
    followers: JoinSet<()>,
    engine: Option<EngineInfo>,
    starting_at: Option<DateTime<Utc>>,
    healthy_until: Option<Instant>,
    /// Images whose digests were compared.
    images: proof::Images,
    seen_healthy: Option<Vec<proof::Running>>,
    /// The sticker that waits beside its place.
    staged: Option<Vec<u8>>,
    restore_failure: Option<Failure>,
    tries: BTreeMap<String, u32>,
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
        let state = AttemptState::fold(records);
        let log = shared.attempt_log(key, &state);
        Self {
            key,
            order,
            order_digest,
            state,
            world: World::default(),
            // Of an order that nothing was done for yet there is nothing to see: its fencing token is new.
            looked: matches!(records, [Record::Accepted { .. }]),
            stop,
            log,
            followers: JoinSet::new(),
            engine: None,
            starting_at: None,
            healthy_until: None,
            images: proof::Images::new(),
            seen_healthy: None,
            staged: None,
            restore_failure: None,
            tries: BTreeMap::new(),
            shared,
        }
    }

    fn host(&self) -> &H {
        &self.shared.host
    }

    fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    fn now(&self) -> DateTime<Utc> {
        self.shared.clock.now()
    }

    /// Works until the attempt is done, the agent goes down, or the journal fails.
    pub(crate) async fn run(mut self) -> Result<(), JournalError> {
        let shutdown = self.shared.shutdown.clone();
        let stop = self.stop.clone();
        loop {
            if shutdown.is_cancelled() || self.state.phase == Phase::Done {
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
                    Err(error) if matches!(self.state.phase, Phase::Preparing) => {
                        self.fail(&Step::Pull, Trouble::Failed(error.into())).await?;
                        self.looked = true;
                    }
                    // The old set was not touched yet, so the end can be told without waiting for the engine.
                    Err(error)
                        if matches!(self.state.phase, Phase::Restoring(_)) && self.state.old.is_none() =>
                    {
                        self.log.say(format!("cannot see the engine: {error}"));
                        self.looked = true;
                    }
                    Err(error) => {
                        self.log.say(format!("waiting for the engine: {error}"));
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = sleep(LONGEST_PAUSE) => {}
                        }
                    }
                }
                continue;
            }
            let wanted = if stop.is_cancelled() {
                Wanted::Stop
            } else {
                Wanted::Run
            };
            let step = step::next(
                &self.order.manifest,
                self.order.swap,
                &self.state,
                wanted,
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
        if !matches!(self.state.phase, Phase::Ended(_) | Phase::Done) {
            let at = self.now();
            self.write(Record::Rested { at }, Vec::new()).await?;
        }
        Ok(())
    }

    /// Sees what is on the engine.
    async fn look(&mut self) -> Result<(), HostError> {
        let wanted = labels::of_project(self.order.target_id, &self.order.release.project);
        let listed = {
            let host = self.host();
            patiently(FORWARD_PATIENCE, || host.list(&wanted)).await?
        };
        self.world.new.clear();
        self.world.old.clear();
        self.world.hooks.clear();
        for container in listed {
            if let Some((hook, fence)) = labels::read_hook(&container.labels) {
                if fence == self.order.fence {
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
            if ours.fence == self.order.fence {
                self.world.new.insert(ours.service, seen);
            } else if self.is_old(&seen.id) {
                let inspected = {
                    let (host, id) = (self.host(), seen.id.as_str());
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
        self.state.old.iter().flatten().any(|old| old.id == id)
    }

    /// Writes a record, what it reports, and whatever else belongs to it, in one commit; then it counts.
    async fn write(&mut self, record: Record, more: Vec<Write>) -> Result<(), JournalError> {
        let mut writes = self.writes(&record);
        writes.extend(more);
        self.journal().commit(writes).await?;
        self.state.apply(&record);
        Ok(())
    }

    /// As [`Self::write`] for a record that tells only what looking at the host tells as well: nothing waits for the disk.
    fn write_behind(&mut self, record: &Record) -> Result<(), JournalError> {
        self.journal().post(self.writes(record))?;
        self.state.apply(record);
        Ok(())
    }

    fn writes(&self, record: &Record) -> Vec<Write> {
        let reports = steps(record).into_iter().map(|(step, at)| {
            Write::Report(ReportDraft {
                key: self.key,
                at,
                event: Event::Progressed(Progressed {
                    step: step.as_str().to_owned(),
                }),
            })
        });
        let mut writes: Vec<Write> = reports.collect();
        writes.push(Write::Record(self.key, record.clone()));
        writes
    }

    /// What to do when a step did not work.
    async fn fail(&mut self, step: &Step, trouble: Trouble) -> Result<(), JournalError> {
        let failure = match trouble {
            Trouble::Journal(error) => return Err(error),
            Trouble::Failed(failure) => failure,
        };
        self.log.say(format!("{failure}"));
        match self.state.phase.clone() {
            Phase::Preparing
            | Phase::Switching
            | Phase::Proving
            | Phase::Moving
            | Phase::Baking
            | Phase::Committing => self.begin_restore(Cause::Failed { failure }).await,
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
                    _ => self.write(Record::Cleaned, Vec::new()).await?,
                }
                Ok(())
            }
            Phase::Done => Ok(()),
        }
    }

    pub(super) async fn begin_restore(&mut self, cause: Cause) -> Result<(), JournalError> {
        kill::at("restore_journalled.before");
        self.drain_logs().await;
        let at = self.now();
        self.write(Record::Restoring { at, cause }, Vec::new()).await?;
        kill::at("restore_journalled");
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
        let tries = self.tries.entry(format!("{step:?}")).or_default();
        *tries += 1;
        // What does not run as it was seen has changed since: choose again from what is there now.
        if matches!(step, Step::CheckOld) {
            self.looked = false;
        }
        if *tries < RESTORE_TRIES {
            sleep(FIRST_PAUSE * 2_u32.pow(*tries)).await;
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
        let summary = format!("the old set could not be restored: {}", failure.summary);
        let detail = failure.detail;
        self.restore_failure
            .get_or_insert_with(|| Failure::new(FailureCode::RestoreFailed, summary).with_detail(detail));
    }

    /// Gives the followers of containers that ended a moment to read their last lines.
    async fn drain_logs(&mut self) {
        let deadline = Instant::now() + LOG_DRAIN;
        while !self.followers.is_empty() {
            match tokio::time::timeout_at(deadline, self.followers.join_next()).await {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }

    fn patience(&self) -> Duration {
        match self.state.phase {
            Phase::Restoring(_) => RESTORE_PATIENCE,
            _ => FORWARD_PATIENCE,
        }
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
