//! The two ends of an attempt on a compose host: the new lock committed, or the old one restored.

use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    failure::{Failure, FailureCode},
    observation::{ContainerHealth, ContainerState},
};

use super::{ComposeRunner, patiently};
use crate::{
    host::Host,
    journal::{Baseline, BaselineService, Cause, Ending, LockRef, Write},
    labels,
    proof::{self, Running},
    runner::{Done, OLD_SET, UNKNOWN, UNREACHED, internal},
    step::hooks,
};

impl<H: Host> ComposeRunner<H> {
    /// The new set was healthy: prove it and end.
    pub(super) async fn finish_well(&mut self) -> Done {
        let set = self.set().await?;
        for (service, pin) in &self.attempt.order.manifest.services {
            let found = set.iter().find(|one| one.ours.service == *service);
            if found.and_then(|one| one.digest) != Some(pin.image.digest) {
                let summary = format!(
                    "the engine does not report {} as running for service {service}",
                    pin.image.digest
                );
                return Err(Failure::new(FailureCode::DigestMismatch, summary).into());
            }
        }
        let lock = self.locked()?.lock;
        let sticker = self.attempt.settle_sticker().await?;
        let baseline = self.baseline(lock, &set)?;
        self.attempt.end_well(sticker, &set, baseline).await?;
        self.attempt.log.say("the new set runs");
        Ok(())
    }

    /// All containers of the project's services, also those that have ended.
    async fn set(&self) -> Result<Vec<Running>, Failure> {
        let (host, patience) = (&self.attempt.shared.host, self.attempt.patience());
        let mut set = Vec::new();
        for listed in self.listed().await?.into_values() {
            let Some(ours) = labels::read(&listed.labels) else {
                continue;
            };
            let id = listed.id.as_str();
            let (inspected, digests) = tokio::try_join!(
                patiently(patience, || host.inspect(id)),
                patiently(patience, || proof::digests_of(host, &listed.image_id)),
            )?;
            set.extend(inspected.map(|mut inspected| {
                // An engine calls what has ended unhealthy, however it ended.
                if inspected.state != ContainerState::Running {
                    inspected.health = ContainerHealth::None;
                }
                Running {
                    digest: proof::choose(&digests, ours.digest),
                    ours,
                    inspected,
                }
            }));
        }
        Ok(set)
    }

    fn baseline(&self, lock: Digest, set: &[Running]) -> Result<Baseline, Failure> {
        let services = set.iter().map(|one| {
            let service = &one.ours.service;
            Ok(BaselineService {
                service: service.clone(),
                container: one.inspected.id.clone(),
                fingerprint: one.inspected.fingerprint,
                config: self.attempt.order.manifest.config_of(service).map_err(internal)?,
                lifetime: Some(self.attempt.order.manifest.lifetime_of(service)),
            })
        });
        Ok(Baseline {
            fence: self.attempt.order.fence,
            services: services.collect::<Result<_, Failure>>()?,
            lock: Some(LockRef {
                digest: lock,
                profiles: self.attempt.order.manifest.profiles.clone(),
            }),
            program: None,
        })
    }

    /// What is known of the set that was committed last, now that it is back: containers that Compose made anew take the place of
    /// those that the failed swap removed, so that what we did ourselves is no drift.
    fn restored(&self, set: &[Running]) -> Option<Write> {
        let (target, project) = (
            self.attempt.order.target_id,
            self.attempt.order.release.project.clone(),
        );
        let mut baseline = self.attempt.shared.journal.baseline(target, &project).ok()??;
        let is_known = |id: &str| baseline.services.iter().any(|known| known.container == id);
        let mut made: Vec<&Running> = set.iter().filter(|one| !is_known(&one.inspected.id)).collect();
        for known in &mut baseline.services {
            if set.iter().any(|one| one.inspected.id == known.container) {
                continue;
            }
            let Some(at) = made.iter().position(|one| one.ours.service == known.service) else {
                continue;
            };
            let now = made.swap_remove(at);
            known.container.clone_from(&now.inspected.id);
            known.fingerprint = now.inspected.fingerprint;
        }
        Some(Write::Baseline {
            target,
            project,
            baseline,
        })
    }

    /// The old set is back (or as far back as could be): prove it and end.
    pub(super) async fn finish_restored(&mut self, cause: &Cause) -> Done {
        self.attempt.unwrite_sticker().await;
        self.attempt.note_poison(OLD_SET);
        let stuck = hooks::stuck(&self.attempt.order.manifest.hooks, &self.attempt.state).cloned();
        if let Some(stuck) = stuck {
            self.attempt.give_up_restore(UNREACHED, &stuck);
        }
        let set = self.set().await.unwrap_or_else(|failure| {
            // The end is told all the same, with what is known: nothing.
            self.attempt.give_up_restore(UNKNOWN, &failure);
            Vec::new()
        });
        let is_back = self.attempt.restore_failure.is_none();
        let restored = self.restored(&set).filter(|_| is_back);
        let ending = self
            .attempt
            .end_restored(cause, &set, restored.into_iter().collect())
            .await?;
        self.attempt.log.say(match ending {
            Ending::Stopped => "stopped; what ran before runs",
            _ => "failed",
        });
        Ok(())
    }
}
