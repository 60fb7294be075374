//! The two ends of an attempt: the new set committed, or the old set restored. Sticker, packet and report; the last commit holds
//! the journal's end, the packet and the report together.

use std::{
    io,
    path::{Path, PathBuf},
};

use sealift_common::{
    any_manifest::Described,
    digest::Digest,
    evidence::EngineInfo,
    failure::{Failure, FailureCode},
    order::{Fence, Order},
    sticker::Sticker,
};

use super::{Runner, Trouble, internal, patiently, prove::aside};
use crate::{
    host::Host,
    journal::{Baseline, BaselineService, Cause, Ending, MOST_RESTORE_STARTS, Record, ReportDraft, Write},
    kill,
    proof::{self, End, Running},
    step::hooks,
    stickers::Stickers,
    workshop::Shared,
};

/// How a restore ends, and why.
pub(super) fn end_of(restore: Option<Failure>, cause: &Cause) -> (Ending, Option<Failure>) {
    match (restore, cause) {
        (Some(restore), Cause::Failed { failure }) => {
            let detail = format!("{} (after {failure})", restore.detail);
            (Ending::Failed, Some(restore.with_detail(detail)))
        }
        (Some(restore), Cause::Stopped) => (Ending::Failed, Some(restore)),
        (None, Cause::Failed { failure }) => (Ending::Failed, Some(failure.clone())),
        (None, Cause::Stopped) => (Ending::Stopped, None),
    }
}

/// Puts back the sticker file that an order may have replaced. Blocks.
pub(super) fn put_back(path: &Path, fence: Fence, before: Option<&str>) -> io::Result<()> {
    let there = Stickers::read(path)?;
    let ours =
        there.is_some_and(|bytes| Sticker::from_file(&bytes).is_ok_and(|sticker| sticker.fence == fence));
    match (ours, before) {
        (false, _) => Ok(()),
        (true, Some(text)) => Stickers::write(path, text.as_bytes()),
        (true, None) => Stickers::remove(path),
    }
}

/// Writes the sticker of an order, or finds it written by this very attempt before a crash. `before` is what the file held before.
pub(super) async fn settle_sticker<H: Host, M: Described>(
    shared: &Shared<H>,
    order: &Order<M>,
    before: Option<&str>,
    compose_lock: Option<Digest>,
) -> Result<Vec<u8>, Failure> {
    let path = shared
        .stickers
        .path(&order.target, &order.environment, &order.release.project);
    let previous = before.map(|text| Stickers::digest(text.as_bytes()));
    let sticker = Sticker::of(order, compose_lock, shared.clock.now(), previous).map_err(internal)?;
    let bytes = sticker.to_file().map_err(internal)?;
    let write = move || {
        let there = Stickers::read(&path)?;
        // Written before a crash: the same but for its time.
        let ours = there.filter(|there| {
            Sticker::from_file(there).is_ok_and(|there| {
                let same_time = Sticker {
                    written_at: there.written_at,
                    ..sticker
                };
                there == same_time
            })
        });
        match ours {
            Some(there) => Ok(there),
            None => Stickers::write(&path, &bytes).map(|()| bytes),
        }
    };
    aside(write).await
}

impl<H: Host> Runner<H> {
    pub(super) fn sticker_path(&self) -> PathBuf {
        let order = &self.order;
        self.shared
            .stickers
            .path(&order.target, &order.environment, &order.release.project)
    }

    /// The new set was healthy: prove it and end.
    pub(super) async fn finish_well(&mut self) -> Result<(), Trouble> {
        let running = if let Some(running) = self.seen_healthy.take() {
            running
        } else {
            let (host, order) = (self.host(), &self.order);
            patiently(self.patience(), || proof::running(host, order)).await?
        };
        let new: Vec<Running> = running
            .into_iter()
            .filter(|running| running.ours.fence == self.order.fence)
            .collect();
        for (service, spec) in &self.order.manifest.services {
            let found = new.iter().find(|running| running.ours.service == *service);
            if found.and_then(|running| running.digest) != Some(spec.image.digest) {
                let summary = format!(
                    "the engine does not report {} as running for service {service}",
                    spec.image.digest
                );
                return Err(Failure::new(FailureCode::DigestMismatch, summary).into());
            }
        }
        let sticker = self.write_sticker().await?;
        let at = self.now();
        let digest = Stickers::digest(&sticker);
        let packet = self.packet(Ending::Succeeded, None, &new, Some(digest)).await?;
        kill::at("evidence_signed");
        let report = ReportDraft {
            key: self.key,
            at,
            event: proof::finished(Ending::Succeeded, None, packet, sticker),
        };
        let baseline = Write::Baseline {
            target: self.order.target_id,
            project: self.order.release.project.clone(),
            baseline: self.baseline(&new),
        };
        let ended = Record::Ended {
            at,
            ending: Ending::Succeeded,
        };
        let finished = Write::Finished {
            report,
            order: self.order_digest,
        };
        kill::at("outbox_synced.before");
        self.write(ended, vec![baseline, finished]).await?;
        kill::at("outbox_synced");
        self.log.say("the new set runs");
        Ok(())
    }

    fn baseline(&self, new: &[Running]) -> Baseline {
        let services = self
            .order
            .manifest
            .start_order()
            .into_iter()
            .filter_map(|service| {
                let running = new.iter().find(|running| running.ours.service == *service)?;
                Some(BaselineService {
                    service: service.clone(),
                    container: running.inspected.id.clone(),
                    fingerprint: running.inspected.fingerprint,
                    config: None,
                })
            });
        Baseline {
            fence: self.order.fence,
            services: services.collect(),
            lock: None,
            program: None,
        }
    }

    /// The bytes of the sticker that follows `before`.
    pub(super) fn sticker(&self, before: Option<&str>) -> Result<Vec<u8>, Failure> {
        let previous = before.map(|text| Stickers::digest(text.as_bytes()));
        let sticker = Sticker::of(&self.order, None, self.now(), previous).map_err(internal)?;
        sticker.to_file().map_err(internal)
    }

    /// Puts the sticker in its place: the one that is staged, or, after a crash, the one that was written before it or one made
    /// anew.
    async fn write_sticker(&mut self) -> Result<Vec<u8>, Trouble> {
        let path = self.sticker_path();
        if let Some(staged) = self.staged.take() {
            aside(move || Stickers::put(&path)).await?;
            return Ok(staged);
        }
        let order = self.order.clone();
        let sticker = self.sticker(self.state.sticker_before.as_ref().and_then(Option::as_deref))?;
        let write = move || {
            let there = Stickers::read(&path)?;
            let ours = |bytes: &[u8]| {
                Sticker::from_file(bytes).is_ok_and(|sticker| {
                    sticker.task_id == order.task_id
                        && sticker.attempt == order.attempt
                        && sticker.fence == order.fence
                        && sticker.release == order.release
                })
            };
            if let Some(bytes) = there.filter(|bytes| ours(bytes)) {
                return Ok(bytes);
            }
            Stickers::write(&path, &sticker)?;
            Ok(sticker)
        };
        Ok(aside(write).await?)
    }

    /// Puts back the sticker file that this attempt may have replaced.
    async fn unwrite_sticker(&self) -> Result<(), Failure> {
        let Some(before) = self.state.sticker_before.clone() else {
            return Ok(());
        };
        let path = self.sticker_path();
        let fence = self.order.fence;
        let restore = move || put_back(&path, fence, before.as_deref());
        aside(restore).await
    }

    /// The old set is back (or as far back as could be): prove it and end.
    pub(super) async fn finish_restored(&mut self, cause: &Cause) -> Result<(), Trouble> {
        if let Err(failure) = self.unwrite_sticker().await {
            self.log.say(format!("the sticker was not put back: {failure}"));
        }
        if self.state.is_poison() {
            self.restore_failure.get_or_insert_with(|| {
                let summary = format!(
                    "the old set could not be restored: the agent was started {MOST_RESTORE_STARTS} times while it restored and never came to the end"
                );
                Failure::new(FailureCode::RestoreFailed, summary)
            });
        }
        if let Some(stuck) = hooks::stuck(&self.order.manifest.hooks, &self.state) {
            let summary = format!("callers may not reach the old set: {}", stuck.summary);
            let failure = Failure::new(FailureCode::RestoreFailed, summary).with_detail(&stuck.detail);
            self.restore_failure.get_or_insert(failure);
        }
        let running = {
            let (host, order) = (self.host(), &self.order);
            match patiently(self.patience(), || proof::running(host, order)).await {
                Ok(running) => running,
                Err(error) => {
                    // The end is told all the same, with what is known: nothing.
                    self.restore_failure.get_or_insert_with(|| {
                        let summary = format!("what runs now is not known: {}", error.0.summary);
                        Failure::new(FailureCode::RestoreFailed, summary)
                    });
                    Vec::new()
                }
            }
        };
        let (ending, failure) = end_of(self.restore_failure.clone(), cause);
        let at = self.now();
        let packet = match self.packet(ending, failure.as_ref(), &running, None).await {
            Ok(packet) => packet,
            Err(Trouble::Failed(defect)) => {
                // An end without a packet is still an end; the orchestrator says that the packet is missing.
                self.log.say(format!("no packet could be made: {defect}"));
                Vec::new()
            }
            Err(trouble) => return Err(trouble),
        };
        kill::at("evidence_signed");
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
        self.write(Record::Ended { at, ending }, vec![finished]).await?;
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
        running: &[Running],
        sticker: Option<Digest>,
    ) -> Result<Vec<u8>, Trouble> {
        let engine = match &self.engine {
            Some(engine) => engine.clone(),
            None => self.shared.engine().await.unwrap_or_else(|_| EngineInfo {
                name: "unknown".to_owned(),
                version: String::new(),
                api: String::new(),
                platform: String::new(),
            }),
        };
        let end = End {
            order: &self.order,
            order_digest: self.order_digest,
            state: &self.state,
            ending,
            failure,
            running,
            engine,
            sticker,
            compose_lock: None,
            log_truncated: self.log.is_truncated(),
            at: self.now(),
        };
        Ok(proof::packet(&self.shared.identity, &end).map_err(internal)?)
    }
}
