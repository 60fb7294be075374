//! The two ends of an attempt on a compose host: the new lock committed, or the old one restored. Sticker, packet and report.

use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    evidence::EngineInfo,
    failure::{Failure, FailureCode},
    observation::{ContainerHealth, ContainerState},
};

use super::{ComposeRunner, Trouble, patiently};
use crate::{
    host::Host,
    journal::{
        Baseline, BaselineService, Cause, Ending, LockRef, MOST_RESTORE_STARTS, Record, ReportDraft, Write,
    },
    kill, labels,
    proof::{self, End, Running},
    runner::{
        Done,
        finish::{end_of, put_back, settle_sticker},
        internal,
        prove::aside,
    },
    step::hooks,
    stickers::Stickers,
};

impl<H: Host> ComposeRunner<H> {
    /// The new set was healthy: prove it and end.
    pub(super) async fn finish_well(&mut self) -> Done {
        let set = self.set().await?;
        for (service, pin) in &self.order.manifest.services {
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
        let before = self.state.sticker_before.as_ref().and_then(Option::as_deref);
        let sticker = settle_sticker(&self.shared, &self.order, before, Some(lock)).await?;
        let digest = Stickers::digest(&sticker);
        let packet = self.packet(Ending::Succeeded, None, &set, Some(digest)).await?;
        kill::at("evidence_signed");
        let at = self.now();
        let report = ReportDraft {
            key: self.key,
            at,
            event: proof::finished(Ending::Succeeded, None, packet, sticker),
        };
        let baseline = Write::Baseline {
            target: self.order.target_id,
            project: self.order.release.project.clone(),
            baseline: self.baseline(lock, &set)?,
        };
        let finished = Write::Finished {
            report,
            order: self.order_digest,
        };
        let ended = Record::Ended {
            at,
            ending: Ending::Succeeded,
        };
        kill::at("outbox_synced.before");
        self.write(ended, vec![baseline, finished]).await?;
        kill::at("outbox_synced");
        self.log.say("the new set runs");
        Ok(())
    }

    /// All containers of the project's services, also those that have ended.
    async fn set(&self) -> Result<Vec<Running>, Failure> {
        let (host, patience) = (&self.shared.host, self.patience());
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
                config: self.order.manifest.config_of(service).map_err(internal)?,
            })
        });
        Ok(Baseline {
            fence: self.order.fence,
            services: services.collect::<Result<_, Failure>>()?,
            lock: Some(LockRef {
                digest: lock,
                profiles: self.order.manifest.profiles.clone(),
            }),
            program: None,
        })
    }

    /// What is known of the set that was committed last, now that it is back: containers that Compose made anew take the place of
    /// those that the failed swap removed, so that what we did ourselves is no drift.
    fn restored(&self, set: &[Running]) -> Option<Write> {
        let (target, project) = (self.order.target_id, self.order.release.project.clone());
        let mut baseline = self.shared.journal.baseline(target, &project).ok()??;
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
        if let Some(before) = self.state.sticker_before.clone() {
            let (path, fence) = (self.sticker_path(), self.order.fence);
            if let Err(failure) = aside(move || put_back(&path, fence, before.as_deref())).await {
                self.log.say(format!("the sticker was not put back: {failure}"));
            }
        }
        if self.state.is_poison() {
            let summary = format!(
                "the old set could not be restored: the agent was started {MOST_RESTORE_STARTS} times while it restored and never came to the end"
            );
            self.restore_failure
                .get_or_insert_with(|| Failure::new(FailureCode::RestoreFailed, summary));
        }
        if let Some(stuck) = hooks::stuck(&self.order.manifest.hooks, &self.state) {
            let summary = format!("callers may not reach the old set: {}", stuck.summary);
            let failure = Failure::new(FailureCode::RestoreFailed, summary).with_detail(&stuck.detail);
            self.restore_failure.get_or_insert(failure);
        }
        let set = match self.set().await {
            Ok(set) => set,
            Err(failure) => {
                // The end is told all the same, with what is known: nothing.
                let summary = format!("what runs now is not known: {}", failure.summary);
                self.restore_failure
                    .get_or_insert_with(|| Failure::new(FailureCode::RestoreFailed, summary));
                Vec::new()
            }
        };
        let (ending, failure) = end_of(self.restore_failure.clone(), cause);
        let packet = match self.packet(ending, failure.as_ref(), &set, None).await {
            Ok(packet) => packet,
            Err(defect) => {
                // An end without a packet is still an end; the orchestrator says that the packet is missing.
                self.log.say(format!("no packet could be made: {defect}"));
                Vec::new()
            }
        };
        kill::at("evidence_signed");
        let at = self.now();
        let report = ReportDraft {
            key: self.key,
            at,
            event: proof::finished(ending, failure.as_ref(), packet, Vec::new()),
        };
        let finished = Write::Finished {
            report,
            order: self.order_digest,
        };
        let mut writes = vec![finished];
        if self.restore_failure.is_none() {
            writes.splice(0..0, self.restored(&set));
        }
        kill::at("outbox_synced.before");
        self.write(Record::Ended { at, ending }, writes)
            .await
            .map_err(Trouble::Journal)?;
        kill::at("outbox_synced");
        self.log.say(match ending {
            Ending::Stopped => "stopped; what ran before runs",
            _ => "failed",
        });
        Ok(())
    }

    async fn packet(
        &self,
        ending: Ending,
        failure: Option<&Failure>,
        set: &[Running],
        sticker: Option<Digest>,
    ) -> Result<Vec<u8>, Failure> {
        let engine = self.shared.engine().await.unwrap_or_else(|_| EngineInfo {
            name: "unknown".to_owned(),
            version: String::new(),
            api: String::new(),
            platform: String::new(),
        });
        let end = End {
            order: &self.order,
            order_digest: self.order_digest,
            state: &self.state,
            ending,
            failure,
            running: set,
            engine,
            sticker,
            compose_lock: self.state.lock.as_ref().map(|locked| locked.lock),
            log_truncated: self.log.is_truncated(),
            at: self.now(),
        };
        proof::packet(&self.shared.identity, &end).map_err(internal)
    }
}
