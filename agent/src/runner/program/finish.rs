//! The two ends of an attempt to exchange the agent's program: the new one runs for good, or the one before does. Sticker, packet and
//! report.

use std::{collections::BTreeMap, time::Duration};

use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    evidence::EngineInfo,
    failure::{Failure, FailureCode},
    manifest::RestartPolicy,
    observation::{ContainerHealth, ContainerState},
    order::Fence,
    program::SERVICE,
};

use super::{ProgramRunner, unreadable};
use crate::{
    host::{Host, Inspected},
    journal::{Baseline, BaselineService, Cause, Ending, MOST_RESTORE_STARTS, Record, ReportDraft, Write},
    kill,
    labels::{Labels, Ours},
    program::marker::Installed,
    proof::{self, End, Running},
    runner::{
        Done, Trouble,
        finish::{end_of, put_back, settle_sticker},
        internal,
        prove::aside,
    },
    stickers::Stickers,
};

impl<H: Host> ProgramRunner<H> {
    /// The new program was found good: prove it and end.
    pub(super) async fn finish_well(&mut self) -> Done {
        let set = self.set().await?;
        let before = self.state.sticker_before.as_ref().and_then(Option::as_deref);
        let sticker = settle_sticker(&self.shared, &self.order, before, None).await?;
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
            baseline: self.baseline(&set)?,
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
        self.turn = None;
        self.log.say("the new program runs for good");
        Ok(())
    }

    /// The one program that runs, as the other kinds of targets see their containers.
    async fn set(&self) -> Result<Vec<Running>, Failure> {
        let (service, _) = self.ordered()?;
        let (running, known) = self
            .shared
            .program
            .seen()
            .await
            .map_err(|error| unreadable(&error))?;
        let is_ours = known.as_ref().is_some_and(|known| known.key() == self.key);
        let fence = if is_ours { self.order.fence } else { Fence(0) };
        let ours = Ours {
            target: self.order.target_id,
            project: self.order.release.project.clone(),
            service: service.clone(),
            fence,
            digest: known.as_ref().map(|known| known.image.digest),
            config: self.order.manifest.config_of(service).map_err(internal)?,
        };
        Ok(vec![Running {
            digest: ours.digest,
            ours,
            inspected: inspected(running, known.as_ref()),
        }])
    }

    fn baseline(&self, set: &[Running]) -> Result<Baseline, Failure> {
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
            lock: None,
            program: Some(self.world.running),
        })
    }

    /// The program before runs (or as far back as could be gone): prove it and end.
    pub(super) async fn finish_restored(&mut self, cause: &Cause) -> Done {
        if let Some(before) = self.state.sticker_before.clone() {
            let (path, fence) = (self.sticker_path(), self.order.fence);
            if let Err(failure) = aside(move || put_back(&path, fence, before.as_deref())).await {
                self.log.say(format!("the sticker was not put back: {failure}"));
            }
        }
        if self.state.is_poison() {
            let summary = format!(
                "the program before could not be brought back: the agent was started {MOST_RESTORE_STARTS} times while it tried and never came to the end"
            );
            self.restore_failure
                .get_or_insert_with(|| Failure::new(FailureCode::RestoreFailed, summary));
        }
        let set = match self.set().await {
            Ok(set) => set,
            Err(failure) => {
                // The end is told all the same, with what is known: nothing.
                self.log.say(format!("what runs now is not known: {failure}"));
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
        kill::at("outbox_synced.before");
        self.write(Record::Ended { at, ending }, vec![finished])
            .await
            .map_err(Trouble::Journal)?;
        kill::at("outbox_synced");
        self.turn = None;
        self.log.say(match ending {
            Ending::Stopped => "stopped; the program before runs",
            _ => "failed; the program before runs",
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
            compose_lock: None,
            log_truncated: self.log.is_truncated(),
            at: self.now(),
        };
        proof::packet(&self.shared.identity, &end).map_err(internal)
    }
}

/// What stands where other kinds of targets have the identifier of a container.
pub(crate) fn process(running: Digest) -> String {
    format!("{SERVICE}@{}", running.short())
}

/// The program as engines describe containers: its image is the program itself.
fn inspected(running: Digest, known: Option<&Installed>) -> Inspected {
    Inspected {
        id: process(running),
        labels: Labels::new(),
        image_id: running.to_string(),
        image: known
            .map(|known| known.image.pull_reference())
            .unwrap_or_default(),
        state: ContainerState::Running,
        health: ContainerHealth::Healthy,
        failing_streak: 0,
        health_output: String::new(),
        exit_code: 0,
        oom_killed: false,
        started_at: String::new(),
        restart_count: 0,
        restart: RestartPolicy::No,
        grace: Duration::ZERO,
        aliases: BTreeMap::new(),
        addresses: BTreeMap::new(),
        fingerprint: running,
    }
}
