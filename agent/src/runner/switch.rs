//! The switch: old containers go down, new ones come up; and the way back.

use std::time::Duration;

use sealift_common::{
    failure::{Failure, FailureCode},
    manifest::RestartPolicy,
    name::ServiceName,
    observation::ContainerState,
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Done, Runner, hooks, patiently};
use crate::{
    host::{Host, HostError},
    journal::{Ending, Phase, Record},
    kill, labels,
};

/// Grace period given to a new container whose description is not at hand.
const SHORT_GRACE: Duration = Duration::from_secs(10);
/// How long an old set must stay up after it was started again.
const OLD_STEADY: Duration = Duration::from_millis(300);
/// How long removing networks may take; what is left is removed by a later attempt.
const TIDY: Duration = Duration::from_secs(30);

impl<H: Host> Runner<H> {
    pub(super) async fn quiet(&mut self, id: &str) -> Done {
        kill::at("old_policy_no.before");
        let host = self.attempt.host();
        patiently(self.attempt.patience(), || {
            host.set_restart(id, RestartPolicy::No)
        })
        .await?;
        kill::at("old_policy_no");
        if let Some(seen) = self.world.old.get_mut(id) {
            seen.restart = RestartPolicy::No;
        }
        Ok(())
    }

    pub(super) async fn stop_old(&mut self, id: &str) -> Done {
        let old = self.attempt.state.old.iter().flatten().find(|old| old.id == id);
        let grace = old.map_or(SHORT_GRACE, |old| Duration::from_millis(old.grace_ms));
        kill::at("old_stopped.before");
        let host = self.attempt.host();
        patiently(self.attempt.patience(), || host.stop(id, grace)).await?;
        kill::at("old_stopped");
        if let Some(seen) = self.world.old.get_mut(id) {
            seen.running = false;
        }
        Ok(())
    }

    pub(super) async fn start_new(&mut self, service: &ServiceName) -> Done {
        self.attempt.health_deadline();
        let now = self.attempt.now();
        self.starting_at.get_or_insert(now);
        let id = self.watched(service)?.id;
        kill::at("new_started.before");
        {
            let (host, id) = (self.attempt.host(), id.as_str());
            patiently(self.attempt.patience(), || host.start(id)).await?;
        }
        kill::at("new_started");
        self.attempt.log.say(format!("started {service}"));
        if let Some(seen) = self.world.new.get_mut(service) {
            seen.running = true;
        }
        self.followers.follow(
            &self.attempt.shared,
            &self.attempt.log,
            (service, &id),
            ContainerState::Running,
        );
        Ok(())
    }

    pub(super) fn note_started(&mut self) -> Done {
        let at = self.attempt.now();
        let starting_at = self.starting_at.unwrap_or(at);
        self.attempt.write_behind(&Record::Started { starting_at, at })?;
        kill::at("health_wait");
        Ok(())
    }

    pub(super) async fn stop_new(&mut self, service: &ServiceName) -> Done {
        let grace = self.spec(service).map_or(SHORT_GRACE, |spec| {
            Duration::from_millis(spec.stop_grace_period_ms.into())
        });
        let id = self.watched(service)?.id;
        kill::at("new_stopped.before");
        let host = self.attempt.host();
        patiently(self.attempt.patience(), || host.stop(&id, grace)).await?;
        kill::at("new_stopped");
        if let Some(seen) = self.world.new.get_mut(service) {
            seen.running = false;
        }
        Ok(())
    }

    pub(super) async fn remove_new(&mut self, service: &ServiceName) -> Done {
        let id = self.watched(service)?.id;
        kill::at("new_removed.before");
        let host = self.attempt.host();
        patiently(self.attempt.patience(), || host.remove(&id)).await?;
        kill::at("new_removed");
        self.world.new.remove(service);
        Ok(())
    }

    pub(super) async fn restore_policy(&mut self, id: &str, policy: RestartPolicy) -> Done {
        kill::at("old_policy_restored.before");
        let host = self.attempt.host();
        patiently(self.attempt.patience(), || host.set_restart(id, policy)).await?;
        kill::at("old_policy_restored");
        if let Some(seen) = self.world.old.get_mut(id) {
            seen.restart = policy;
        }
        Ok(())
    }

    pub(super) async fn start_old(&mut self, id: &str) -> Done {
        kill::at("old_started.before");
        let host = self.attempt.host();
        patiently(self.attempt.patience(), || host.start(id)).await?;
        kill::at("old_started");
        if let Some(seen) = self.world.old.get_mut(id) {
            seen.running = true;
        }
        Ok(())
    }

    /// An old set that falls over at once is no restored set.
    pub(super) async fn check_old(&mut self) -> Done {
        let steady = Instant::now() + OLD_STEADY;
        loop {
            for old in self.attempt.state.old.iter().flatten().filter(|old| old.running) {
                let (host, id) = (self.attempt.host(), old.id.as_str());
                let seen = patiently(self.attempt.patience(), || host.inspect(id)).await?;
                if seen.is_none_or(|seen| seen.state != ContainerState::Running) {
                    let summary = format!("service {} of the old set does not run", old.service);
                    return Err(Failure::new(FailureCode::RestoreFailed, summary).into());
                }
            }
            if Instant::now() >= steady {
                break;
            }
            sleep(OLD_STEADY / 3).await;
        }
        self.world.old_checked = true;
        Ok(())
    }

    pub(super) async fn remove_old(&mut self, id: &str) -> Done {
        kill::at("old_removed.before");
        let host = self.attempt.host();
        patiently(self.attempt.patience(), || host.remove(id)).await?;
        kill::at("old_removed");
        self.world.old.remove(id);
        Ok(())
    }

    /// Removes networks that nothing uses any more.
    pub(super) async fn clean(&mut self) -> Done {
        let deadline = Instant::now() + TIDY;
        match timeout_at(deadline, self.tidy_networks()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.attempt.log.say(format!("networks were not tidied: {error}")),
            Err(_) => self
                .attempt
                .log
                .say("networks were not tidied: the engine is too slow"),
        }
        if !self.attempt.order.manifest.hooks.is_empty() {
            let swept = timeout_at(
                Instant::now() + TIDY,
                hooks::sweep(self.attempt.host(), &self.attempt.order),
            )
            .await;
            if !matches!(swept, Ok(Ok(()))) {
                self.attempt
                    .log
                    .say("hooks left something behind that could not be removed");
            }
        }
        Ok(self.attempt.note_cleaned().await?)
    }

    async fn tidy_networks(&self) -> Result<(), HostError> {
        let (host, order) = (self.attempt.host(), &self.attempt.order);
        let own = labels::of_project(order.target_id, &order.release.project);
        let mine = self.networks();
        let unused: Vec<String> = if self.attempt.state.phase == Phase::Ended(Ending::Succeeded) {
            let all = host.networks(&own).await?;
            all.into_iter().filter(|name| !mine.contains_key(name)).collect()
        } else if !order.swap.is_in_place() {
            // They were for the new set alone.
            mine.into_keys().collect()
        } else if host.list(&own).await?.is_empty() {
            host.networks(&own).await?
        } else {
            // The engine would remove a network that a stopped container of the old set needs for its next start.
            return Ok(());
        };
        for network in unused {
            host.remove_network(&network).await?;
        }
        Ok(())
    }
}
