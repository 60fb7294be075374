//! What each step does to a compose host, up to the wait for health, and on the way back.

use std::{collections::BTreeMap, collections::BTreeSet, ffi::OsString, time::Duration};

use sealift_common::{
    digest::Digest,
    failure::{Failure, FailureCode},
    hook,
    manifest::PinnedImage,
    name::ServiceName,
};
use tokio::time::{Instant, timeout};

use super::{ComposeRunner, patiently};
use crate::{
    compose::{
        render::{self, tail},
        tool::Call,
        variables::{HostVariables, NOT_SHOWN},
    },
    hanging::Hangs,
    health::{self, Watched},
    host::Host,
    journal::{Cause, Locked, Record},
    kill, labels,
    runner::{
        Done, borrowed, hooks, internal,
        prove::{LOCKS, aside},
        pull::bring,
    },
    step::compose::Step,
    workshop::unanswered,
};

/// How long resolving the file may take. Compose has less than that by its own deadline; the rest is for looking at paths.
const RENDER: Duration = Duration::from_secs(90);
/// How long removing what hooks left may take.
const TIDY: Duration = Duration::from_secs(30);
impl<H: Host> ComposeRunner<H> {
    /// Does one step and updates what is known.
    pub(super) async fn perform(&mut self, step: &Step) -> Done {
        match step {
            Step::Render => self.render().await,
            Step::Pull => self.pull().await,
            Step::Hook(step) => hooks::perform(self, step).await,
            Step::Prepare => self.prepare().await,
            Step::Up => self.up().await,
            Step::AwaitHealth => self.await_health().await,
            Step::NoteSwitched => self.note_switched().await,
            Step::Confirm => self.confirm().await,
            Step::Commit => self.finish_well().await,
            Step::Restore(cause) => Ok(self.begin_restore(Cause::clone(cause)).await?),
            Step::Return => self.go_back().await,
            Step::CheckOld => self.check_old().await,
            Step::Conclude(cause) => self.finish_restored(cause).await,
            Step::Clean => self.clean().await,
            Step::Done => Ok(()),
        }
    }

    pub(super) fn locked(&self) -> Result<&Locked, Failure> {
        self.attempt
            .state
            .lock
            .as_ref()
            .ok_or_else(|| internal("an attempt went on without a lock"))
    }

    async fn render(&mut self) -> Done {
        let previous = self.previous_lock().await?;
        let policy = self.attempt.shared.policy.of(&self.attempt.order.environment);
        let compose = &self.compose;
        let key = &self.attempt.shared.identity.evidence_key;
        let made = timeout(RENDER, render::render(compose, &self.attempt.order, policy, key))
            .await
            .unwrap_or_else(|_| Err(unanswered("the file", Hangs)))?;
        self.filled = Some(made.filled);
        borrowed::are_there(&self.attempt.shared.host, self.attempt.patience(), &made.borrowed).await?;
        let files = self.compose.files(&self.attempt.order);
        let bytes = made.bytes;
        let lock = aside(LOCKS, move || files.keep(&bytes)).await?;
        self.attempt.log.say(format!(
            "resolved by Compose {}: lock {lock}",
            self.compose.tool()?.version()
        ));
        let locked = Record::Locked {
            at: self.attempt.now(),
            lock,
            previous,
            allowances: made.allowances,
        };
        self.attempt.write(locked, Vec::new()).await?;
        kill::at("lock_journalled");
        Ok(())
    }

    async fn pull(&mut self) -> Done {
        let shared = &self.attempt.shared;
        let engine = patiently(self.attempt.patience(), || shared.engine()).await?;
        let deadline = self.attempt.pull_deadline();
        let images: BTreeMap<String, &PinnedImage> = self
            .attempt
            .order
            .manifest
            .services
            .values()
            .map(|pin| &pin.image)
            .chain(self.attempt.order.manifest.hooks.iter().map(|hook| &hook.image))
            .map(|image| (image.pull_reference(), image))
            .collect();
        kill::at("pull_begun");
        let patience = self.attempt.patience();
        let pulls = images.into_values().map(|image| {
            bring(
                shared,
                &self.attempt.log,
                image,
                &engine.platform,
                patience,
                deadline,
            )
        });
        let brought = futures::future::try_join_all(pulls).await?;
        kill::at("digest_compared");
        self.world.images = true;
        let pulled = brought.iter().any(|(_, pulled)| *pulled);
        Ok(self.attempt.note_pulled(pulled).await?)
    }

    async fn up(&mut self) -> Done {
        let lock = self.locked()?.lock;
        let policy = self.attempt.shared.policy.of(&self.attempt.order.environment);
        let model = self.model().await?;
        render::judge(&self.compose, &self.attempt.order, policy, model).await?;
        let files = self.compose.files(&self.attempt.order);
        aside(LOCKS, move || files.show(Some(lock))).await?;
        kill::at("lock_shown");
        let until = self.attempt.health_deadline();
        let deadline = until.saturating_duration_since(Instant::now());
        let starting_at = self.attempt.now();
        kill::at("up.before");
        let profiles = self.attempt.order.manifest.profiles.clone();
        let result = self.call(lock, &profiles, &up(), deadline).await;
        // Also what failed has something to say.
        if let Ok(found) = self.listed().await {
            self.follow(&found);
        }
        result?;
        self.renew(lock, &profiles, until).await?;
        kill::at("up");
        let at = self.attempt.now();
        self.attempt
            .write(Record::Started { starting_at, at }, Vec::new())
            .await?;
        kill::at("health_wait");
        self.looked = false;
        Ok(())
    }

    /// Has Compose do something with a kept lock, whose digest is checked before.
    pub(super) async fn call(
        &self,
        lock: Digest,
        profiles: &BTreeSet<String>,
        what: &[&str],
        deadline: Duration,
    ) -> Done {
        let files = self.compose.files(&self.attempt.order);
        let checked = files.clone();
        if !aside(LOCKS, move || checked.has(lock)).await? {
            let summary = format!("lock {lock} is gone or was changed on the host");
            return Err(Failure::new(FailureCode::AgentState, summary).into());
        }
        let mut arguments: Vec<OsString> =
            vec!["-p".into(), labels::compose_project(&self.attempt.order).into()];
        for profile in profiles {
            arguments.extend(["--profile".into(), profile.into()]);
        }
        arguments.extend(["--project-directory".into(), files.folder().into()]);
        arguments.extend(["-f".into(), files.lock(lock).into()]);
        arguments.extend(what.iter().map(OsString::from));
        let call = Call {
            files: &files,
            // Everything is filled in already.
            environment: self.compose.environment(
                files.folder(),
                &sealift_common::variables::Variables::default(),
                &HostVariables::default(),
            ),
            arguments,
            deadline,
        };
        let said = self.compose.tool()?.call(call).await?;
        let messages = match self.filled_into(lock).await {
            Some(filled) => filled.redact(&said.messages),
            None => NOT_SHOWN.to_owned(),
        };
        for line in messages.lines().filter(|line| !line.trim().is_empty()) {
            self.attempt.log.say(line);
        }
        if said.success {
            return Ok(());
        }
        let code = refusal(&said.messages).code;
        Err(Failure {
            code,
            ..refusal(&messages)
        }
        .into())
    }

    fn watched(&self, found: &BTreeMap<ServiceName, crate::host::Listed>) -> Result<Vec<Watched>, Failure> {
        let services = self.attempt.order.manifest.services.iter();
        let watched = services.map(|(service, pin)| {
            let listed = found.get(service).ok_or_else(|| {
                let summary = format!("service {service} has no container");
                Failure::new(FailureCode::WorkloadExited, summary)
            })?;
            Ok(Watched {
                service: service.clone(),
                id: listed.id.clone(),
                lifetime: pin.lifetime,
                probe: pin.probe.clone(),
                network: String::new(),
                restarts_before: self.restarts_before(&listed.id),
            })
        });
        watched.collect()
    }

    async fn await_health(&mut self) -> Done {
        let deadline = self.attempt.health_deadline();
        let watched = self.watched(&self.listed().await?)?;
        let min_healthy = Duration::from_millis(self.attempt.order.limits.min_healthy_ms.into());
        health::await_healthy(&self.attempt.shared.host, &watched, min_healthy, deadline).await?;
        kill::at("healthy");
        if hook::has_late(&self.attempt.order.manifest.hooks) {
            let at = self.attempt.now();
            return Ok(self.attempt.write(Record::Ready { at }, Vec::new()).await?);
        }
        self.note_healthy().await
    }

    async fn note_switched(&mut self) -> Done {
        let at = self.attempt.now();
        self.attempt.write(Record::Switched { at }, Vec::new()).await?;
        // What comes now has its own time.
        self.attempt.healthy_until = None;
        Ok(())
    }

    /// Hooks take their time, in which nobody looked.
    async fn confirm(&mut self) -> Done {
        let deadline = self.attempt.health_deadline();
        let watched = self.watched(&self.listed().await?)?;
        health::await_healthy(&self.attempt.shared.host, &watched, Duration::ZERO, deadline).await?;
        self.note_healthy().await
    }

    async fn note_healthy(&mut self) -> Done {
        self.attempt.note_healthy().await?;
        self.looked = false;
        Ok(())
    }

    /// Drops locks that nothing needs any more.
    async fn clean(&mut self) -> Done {
        let baseline = self
            .attempt
            .shared
            .journal
            .baseline(self.attempt.order.target_id, &self.attempt.order.release.project)?;
        let keep = baseline
            .and_then(|baseline| baseline.lock)
            .map(|lock| lock.digest);
        let files = self.compose.files(&self.attempt.order);
        if let Err(failure) = aside(LOCKS, move || files.tidy(keep)).await {
            self.attempt
                .log
                .say(format!("old locks were not dropped: {failure}"));
        }
        if !self.attempt.order.manifest.hooks.is_empty() {
            let swept = timeout(TIDY, hooks::sweep(&self.attempt.shared.host, &self.attempt.order)).await;
            if !matches!(swept, Ok(Ok(()))) {
                self.attempt
                    .log
                    .say("hooks left something behind that could not be removed");
            }
        }
        Ok(self.attempt.note_cleaned().await?)
    }
}

pub(super) const fn up() -> [&'static str; 5] {
    ["up", "-d", "--remove-orphans", "--no-build", "--quiet-pull"]
}

/// What a refusal of Compose or of the engine behind it means.
fn refusal(messages: &str) -> Failure {
    let lower = messages.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let code = if has(&["port is already allocated", "address already in use"]) {
        FailureCode::PortInUse
    } else if has(&["no space left on device"]) {
        FailureCode::DiskFull
    } else if has(&[
        "is the docker daemon running",
        "couldn't connect to docker",
        "connection refused",
        // An engine that went away in the middle of a call.
        "error during connect",
        "connection aborted",
        "connection reset",
        "unexpected eof",
    ]) {
        FailureCode::EngineUnavailable
    } else if has(&["is unhealthy"]) {
        FailureCode::Unhealthy
    } else if has(&["didn't complete successfully", "exited (", "exit code"]) {
        FailureCode::WorkloadExited
    } else {
        FailureCode::ContainerRejected
    };
    let last = messages.lines().rfind(|line| !line.trim().is_empty());
    Failure::new(
        code,
        format!("Compose: {}", last.unwrap_or("it failed without a word").trim()),
    )
    .with_detail(tail(messages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compose_says_becomes_a_code() {
        for (message, code) in [
            (
                "ERROR: for web  Cannot start service web: driver failed: Bind for 0.0.0.0:80 failed: port is already allocated",
                FailureCode::PortInUse,
            ),
            (
                "ERROR: for web  Container \"f1\" is unhealthy.\nERROR: Encountered errors while bringing up the project.",
                FailureCode::Unhealthy,
            ),
            (
                "service \"migrate\" didn't complete successfully: exit 3",
                FailureCode::WorkloadExited,
            ),
            ("no space left on device", FailureCode::DiskFull),
            (
                "Cannot connect to the Docker daemon at unix:///x.sock. Is the docker daemon running?",
                FailureCode::EngineUnavailable,
            ),
            (
                "error during connect: Post \"http://%2Fx.sock/v1.41/containers/f1/start\": EOF",
                FailureCode::EngineUnavailable,
            ),
            (
                "ERROR: ('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))",
                FailureCode::EngineUnavailable,
            ),
            (
                "read unix @->/x.sock: read: connection reset by peer",
                FailureCode::EngineUnavailable,
            ),
            ("unexpected EOF", FailureCode::EngineUnavailable),
            ("oh", FailureCode::ContainerRejected),
        ] {
            assert_eq!(refusal(message).code, code, "{message}");
        }
    }
}
