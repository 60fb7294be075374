//! Runner of an attempt on a compose host: asks [`crate::step::compose`] what comes next, does it, writes down the result.

mod effects;
mod finish;
mod hooks;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sealift_common::{
    compose_manifest::ComposeManifest,
    digest::Digest,
    failure::{Failure, FailureCode},
    name::ServiceName,
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

use super::{
    FIRST_PAUSE, FORWARD_PATIENCE, LOG_DRAIN, LONGEST_PAUSE, RESTORE_PATIENCE, RESTORE_TRIES, Trouble,
    patiently,
};
use crate::{
    compose::Compose,
    host::{Host, HostError, Listed},
    journal::{AttemptKey, AttemptState, Cause, JournalError, Phase, Record, ReportDraft, Write, steps},
    kill, labels,
    logs::AttemptLog,
    step::compose::{self, Step, World},
    workshop::Shared,
};

/// Compose's own label for containers of `compose run`, which are no services.
const ONE_OFF: &str = "com.docker.compose.oneoff";

/// One attempt under way.
pub(crate) struct ComposeRunner<H: Host> {
    shared: Arc<Shared<H>>,
    compose: Arc<Compose>,
    key: AttemptKey,
    order: Order<ComposeManifest>,
    order_digest: Digest,
    state: AttemptState,
    world: World,
    /// Whether the world was seen since it may have changed behind our back.
    looked: bool,
    stop: CancellationToken,
    log: AttemptLog,
    followers: JoinSet<()>,
    healthy_until: Option<Instant>,
    restore_failure: Option<Failure>,
    tries: BTreeMap<String, u32>,
}

impl<H: Host> ComposeRunner<H> {
    pub(crate) fn new(
        shared: Arc<Shared<H>>,
        compose: Arc<Compose>,
        key: AttemptKey,
        order: Order<ComposeManifest>,
        order_digest: Digest,
        records: &[Record],
        stop: CancellationToken,
    ) -> Self {
        let state = AttemptState::fold(records);
        Self {
            log: shared.attempt_log(key, &state),
            compose,
            key,
            order,
            order_digest,
            state,
            world: World::default(),
            looked: false,
            stop,
            followers: JoinSet::new(),
            healthy_until: None,
            restore_failure: None,
            tries: BTreeMap::new(),
            shared,
        }
    }

    fn now(&self) -> DateTime<Utc> {
        self.shared.clock.now()
    }

    fn sticker_path(&self) -> PathBuf {
        let order = &self.order;
        self.shared
            .stickers
            .path(&order.target, &order.environment, &order.release.project)
    }

    /// Works until the attempt is done, the agent goes down, or the journal fails.
    pub(crate) async fn run(mut self) -> Result<(), JournalError> {
        let shutdown = self.shared.shutdown.clone();
        let stop = self.stop.clone();
        while !shutdown.is_cancelled() && self.state.phase != Phase::Done {
            if !self.looked {
                let look = tokio::select! {
                    () = shutdown.cancelled() => break,
                    look = self.look() => look,
                };
                self.note_look(look).await?;
                continue;
            }
            let wanted = if stop.is_cancelled() {
                Wanted::Stop
            } else {
                Wanted::Run
            };
            let step = compose::next(&self.order.manifest, &self.state, wanted, &self.world);
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

    async fn note_look(&mut self, look: Result<(), HostError>) -> Result<(), JournalError> {
        let Err(error) = look else {
            self.looked = true;
            return Ok(());
        };
        match &self.state.phase {
            Phase::Preparing => {
                self.fail(&Step::Pull, Trouble::Failed(error.into())).await?;
                self.looked = true;
            }
            // The old set was not touched yet, so the end can be told without waiting for the engine.
            Phase::Restoring(_) if self.state.old.is_none() => {
                self.log.say(format!("cannot see the engine: {error}"));
                self.looked = true;
            }
            _ => {
                self.log.say(format!("waiting for the engine: {error}"));
                tokio::select! {
                    () = self.shared.shutdown.cancelled() => {}
                    () = sleep(LONGEST_PAUSE) => {}
                }
            }
        }
        Ok(())
    }

    /// Sees what is on the engine.
    async fn look(&mut self) -> Result<(), HostError> {
        let found = self.found().await?;
        let fence = self.order.fence;
        let hooks = found.iter().filter_map(|container| {
            let (hook, of) = labels::read_hook(&container.labels)?;
            (of == fence).then(|| (hook, container.id.clone()))
        });
        self.world.hooks = hooks.collect();
        self.world.running = by_service(found)
            .into_iter()
            .map(|(service, listed)| (service, listed.state == ContainerState::Running))
            .collect();
        Ok(())
    }

    /// The project's containers.
    async fn found(&self) -> Result<Vec<Listed>, HostError> {
        let wanted = labels::of_project(self.order.target_id, &self.order.release.project);
        let host = &self.shared.host;
        patiently(self.patience(), || host.list(&wanted)).await
    }

    /// The containers of the project's services.
    async fn listed(&self) -> Result<BTreeMap<ServiceName, Listed>, HostError> {
        Ok(by_service(self.found().await?))
    }

    /// Writes a record, what it reports, and whatever else belongs to it, in one commit; then it counts.
    async fn write(&mut self, record: Record, more: Vec<Write>) -> Result<(), JournalError> {
        let reports = steps(&record).into_iter().map(|(step, at)| {
            let step = step.as_str().to_owned();
            Write::Report(ReportDraft {
                key: self.key,
                at,
                event: Event::Progressed(Progressed { step }),
            })
        });
        let mut writes: Vec<Write> = reports.collect();
        writes.push(Write::Record(self.key, record.clone()));
        writes.extend(more);
        self.shared.journal.commit(writes).await?;
        self.state.apply(&record);
        Ok(())
    }

    /// What to do when a step did not work.
    async fn fail(&mut self, step: &Step, trouble: Trouble) -> Result<(), JournalError> {
        let failure = match trouble {
            Trouble::Journal(error) => return Err(error),
            Trouble::Failed(failure) => failure,
        };
        self.log.say(failure.to_string());
        if !failure.detail.is_empty() {
            self.log.say(failure.detail.clone());
        }
        match self.state.phase {
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
            // The end is told already; what cannot be tidied now is tidied after the next attempt.
            Phase::Ended(_) => self.write(Record::Cleaned, Vec::new()).await,
            Phase::Done => Ok(()),
        }
    }

    async fn begin_restore(&mut self, cause: Cause) -> Result<(), JournalError> {
        kill::at("restore_journalled.before");
        self.drain_logs().await;
        let at = self.now();
        self.write(Record::Restoring { at, cause }, Vec::new()).await?;
        kill::at("restore_journalled");
        self.looked = false;
        Ok(())
    }

    async fn retry_or_give_up(&mut self, step: &Step, failure: Failure) {
        // An engine that is away refuses no hook: wait for it, and choose again from what it then shows.
        if matches!(step, Step::Hook(_)) && failure.code == FailureCode::EngineUnavailable {
            self.looked = false;
            return;
        }
        let tries = self.tries.entry(format!("{step:?}")).or_default();
        *tries += 1;
        if *tries < RESTORE_TRIES {
            sleep(FIRST_PAUSE * 2_u32.pow(*tries)).await;
            return;
        }
        if let Step::Hook(step) = step {
            // A later attempt, or the observer, removes it.
            self.world.hooks.remove(step.hook());
        } else {
            self.world.restored = true;
            self.world.checked = true;
        }
        let summary = format!("the old set could not be restored: {}", failure.summary);
        let detail = failure.detail;
        self.restore_failure
            .get_or_insert_with(|| Failure::new(FailureCode::RestoreFailed, summary).with_detail(detail));
    }

    /// Gives the followers of containers that ended a moment to read their last lines.
    async fn drain_logs(&mut self) {
        let deadline = Instant::now() + LOG_DRAIN;
        while let Ok(Some(_)) = tokio::time::timeout_at(deadline, self.followers.join_next()).await {}
    }

    fn patience(&self) -> Duration {
        match self.state.phase {
            Phase::Restoring(_) => RESTORE_PATIENCE,
            _ => FORWARD_PATIENCE,
        }
    }

    fn health_deadline(&mut self) -> Instant {
        let limit = Duration::from_millis(self.order.limits.healthy_deadline_ms.into());
        *self.healthy_until.get_or_insert_with(|| Instant::now() + limit)
    }
}

fn by_service(listed: Vec<Listed>) -> BTreeMap<ServiceName, Listed> {
    let named = listed.into_iter().filter_map(|container| {
        let is_one_off = container.labels.get(ONE_OFF).is_some_and(|value| value == "True");
        let ours = labels::read(&container.labels).filter(|_| !is_one_off)?;
        Some((ours.service, container))
    });
    named.collect()
}
