//! Runner of an attempt on a compose host: asks [`crate::step::compose`] what comes next, does it, writes down the result.

mod effects;
mod finish;
mod hooks;
mod old;

use std::{collections::BTreeMap, sync::Arc};

use sealift_common::{
    compose_manifest::ComposeManifest,
    digest::Digest,
    failure::{Failure, FailureCode},
    name::ServiceName,
    observation::ContainerState,
    order::Order,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    LONGEST_PAUSE, OLD_SET, Trouble,
    attempt::Attempt,
    followers::Followers,
    patiently,
    prove::{LOCKS, aside},
};
use crate::{
    compose::{
        Compose,
        render::was_made_with,
        variables::{HostVariables, cleared},
    },
    host::{Host, HostError, Listed},
    journal::{AttemptKey, Cause, JournalError, Phase, Record},
    labels::{self, Labels},
    step::compose::{self, Step, World},
    workshop::Shared,
};

/// One attempt under way.
pub(crate) struct ComposeRunner<H: Host> {
    attempt: Attempt<H, ComposeManifest>,
    compose: Arc<Compose>,
    world: World,
    /// Whether the world was seen since it may have changed behind our back.
    looked: bool,
    followers: Followers,
    /// The host's values that were filled into the attempt's lock; none before there is one, `None` when they are not known.
    filled: Option<HostVariables>,
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
        Self {
            attempt: Attempt::new(shared, key, order, order_digest, records, stop),
            compose,
            world: World::default(),
            looked: false,
            followers: Followers::default(),
            filled: Some(HostVariables::default()),
        }
    }

    /// Works until the attempt is done, the agent goes down, or the journal fails.
    pub(crate) async fn run(mut self) -> Result<(), JournalError> {
        let shutdown = self.attempt.shared.shutdown.clone();
        let stop = self.attempt.stop.clone();
        if let Some(locked) = &self.attempt.state.lock {
            self.filled = self.filled_into(locked.lock).await;
        }
        while !shutdown.is_cancelled() && self.attempt.state.phase != Phase::Done {
            if !self.looked {
                let look = tokio::select! {
                    () = shutdown.cancelled() => break,
                    look = self.look() => look,
                };
                self.note_look(look).await?;
                continue;
            }
            let attempt = &self.attempt;
            let step = compose::next(
                &attempt.order.manifest,
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

    async fn note_look(&mut self, look: Result<(), HostError>) -> Result<(), JournalError> {
        let Err(error) = look else {
            self.looked = true;
            return Ok(());
        };
        match &self.attempt.state.phase {
            Phase::Preparing => {
                self.fail(&Step::Pull, Trouble::Failed(error.into())).await?;
                self.looked = true;
            }
            // The old set was not touched yet, so the end can be told without waiting for the engine.
            Phase::Restoring(_) if self.attempt.state.old.is_none() => {
                self.attempt.log.say(format!("cannot see the engine: {error}"));
                self.looked = true;
            }
            _ => {
                self.attempt.log.say(format!("waiting for the engine: {error}"));
                tokio::select! {
                    () = self.attempt.shared.shutdown.cancelled() => {}
                    () = sleep(LONGEST_PAUSE) => {}
                }
            }
        }
        Ok(())
    }

    /// Sees what is on the engine.
    async fn look(&mut self) -> Result<(), HostError> {
        let found = self.found().await?;
        let fence = self.attempt.order.fence;
        let hooks = found.iter().filter_map(|container| {
            let (hook, of) = labels::read_hook(&container.labels)?;
            (of == fence).then(|| (hook, container.id.clone()))
        });
        self.world.hooks = hooks.collect();
        let found = by_service(found);
        // After a restart of the agent, or of the engine, nobody listens to the new set.
        if matches!(
            self.attempt.state.phase,
            Phase::Proving | Phase::Moving | Phase::Baking | Phase::Committing
        ) {
            self.follow(&found);
        }
        self.world.running = found
            .into_iter()
            .map(|(service, listed)| (service, listed.state == ContainerState::Running))
            .collect();
        Ok(())
    }

    /// The project's containers.
    async fn found(&self) -> Result<Vec<Listed>, HostError> {
        let wanted = self.project();
        let host = &self.attempt.shared.host;
        patiently(self.attempt.patience(), || host.list(&wanted)).await
    }

    /// Whether the engine does not answer now.
    async fn is_engine_away(&self) -> bool {
        let answer = self.attempt.shared.host.list(&self.project()).await;
        answer.is_err_and(|error| error.is_transient())
    }

    /// The labels by which the project's containers are found.
    fn project(&self) -> Labels {
        labels::of_project(self.attempt.order.target_id, &self.attempt.order.release.project)
    }

    /// The containers of the project's services.
    async fn listed(&self) -> Result<BTreeMap<ServiceName, Listed>, HostError> {
        Ok(by_service(self.found().await?))
    }

    /// The host's values that were filled into a kept lock. The file that they came from may have been changed since.
    async fn filled_into(&self, lock: Digest) -> Option<HostVariables> {
        let (order, compose) = (&self.attempt.order, self.compose.clone());
        let (files, environment) = (compose.files(order), order.environment.clone());
        let read = aside(LOCKS, move || {
            let now = compose.host_variables(&environment).ok();
            Ok((files.text(lock)?, now))
        });
        let (text, now) = read.await.ok()?;
        let key = &self.attempt.shared.identity.evidence_key;
        let known = [self.filled.clone(), now].into_iter().flatten();
        known.into_iter().find(|host| was_made_with(&text, host, key))
    }

    /// What to do when a step did not work.
    async fn fail(&mut self, step: &Step, trouble: Trouble) -> Result<(), JournalError> {
        let trouble = match trouble {
            // It was asked for nothing that it could repeat.
            Trouble::Failed(failure) if !self.is_missing(&failure) => {
                Trouble::Failed(cleared(self.filled.as_ref(), &failure))
            }
            other => other,
        };
        let failure = self.attempt.told(trouble)?;
        match self.attempt.state.phase {
            Phase::Restoring(_) => {
                self.retry_or_give_up(step, failure).await;
                Ok(())
            }
            // The end is told already; what cannot be tidied now is tidied after the next attempt.
            Phase::Ended(_) => self.attempt.write(Record::Cleaned, Vec::new()).await,
            Phase::Done => Ok(()),
            _ => self.begin_restore(Cause::Failed { failure }).await,
        }
    }

    async fn begin_restore(&mut self, cause: Cause) -> Result<(), JournalError> {
        self.followers.drain().await;
        self.attempt.begin_restore(cause).await?;
        self.looked = false;
        Ok(())
    }

    async fn retry_or_give_up(&mut self, step: &Step, failure: Failure) {
        // An engine that is away refuses nothing, however Compose calls it: wait for it, and choose again from what it then shows.
        let is_hook = matches!(step, Step::Hook(_));
        if is_hook && failure.code == FailureCode::EngineUnavailable || self.is_engine_away().await {
            self.looked = false;
            return;
        }
        // It was waited for already. Nothing changes any more, so that callers, too, stay where they are.
        if self.is_missing(&failure) {
            self.world.given_up = true;
            if !self.runs_as_before().await {
                self.attempt.give_up_restore(OLD_SET, &failure);
            }
            return;
        }
        if self.attempt.try_again(step).await {
            return;
        }
        if let Step::Hook(step) = step {
            // A later attempt, or the observer, removes it.
            self.world.hooks.remove(step.hook());
        } else {
            self.world.restored = true;
            self.world.checked = true;
        }
        self.attempt.give_up_restore(OLD_SET, &failure);
    }

    /// Whether something failed because the host has no Compose.
    fn is_missing(&self, failure: &Failure) -> bool {
        failure.code == FailureCode::ComposeUnavailable && self.compose.is_missing()
    }

    /// Copies the output of containers into the log.
    fn follow(&mut self, found: &BTreeMap<ServiceName, Listed>) {
        for (service, listed) in found {
            self.followers.follow(
                &self.attempt.shared,
                &self.attempt.log,
                (service, &listed.id),
                listed.state,
            );
        }
    }
}

fn by_service(listed: Vec<Listed>) -> BTreeMap<ServiceName, Listed> {
    let named = listed
        .into_iter()
        .filter_map(|container| Some((labels::read(&container.labels)?.service, container)));
    named.collect()
}
