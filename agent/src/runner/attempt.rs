//! Attempt: what every runner has, whatever kind of target it works on. The order, where its journal stands, its log, and how it ends:
//! the last commit holds the journal's end, the packet and the report together.

use std::{collections::BTreeMap, fmt::Debug, io, path::Path, path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sealift_common::{
    any_manifest::Described,
    digest::Digest,
    evidence::EngineInfo,
    failure::{Failure, FailureCode},
    order::{Fence, Order},
    sticker::Sticker,
    task::Wanted,
};
use sealift_proto::agent::v1::{Progressed, report::Event};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Done, FORWARD_PATIENCE, RESTORE_PATIENCE, RESTORE_TRIES, Trouble, internal, patiently, pause_after,
    prove::{STICKER, aside},
};
use crate::{
    host::Host,
    journal::{
        AttemptKey, AttemptState, Baseline, Cause, Ending, Journal, JournalError, MOST_RESTORE_STARTS,
        OldContainer, Phase, Record, ReportDraft, Write, steps,
    },
    kill, labels,
    logs::AttemptLog,
    proof::{self, End, Running},
    stickers::Stickers,
    workshop::Shared,
};

/// One attempt under way.
pub(super) struct Attempt<H: Host, M> {
    pub(super) shared: Arc<Shared<H>>,
    pub(super) key: AttemptKey,
    pub(super) order: Order<M>,
    order_digest: Digest,
    pub(super) state: AttemptState,
    pub(super) log: AttemptLog,
    pub(super) stop: CancellationToken,
    /// Until when what has begun has to be healthy, once that is counted.
    pub(super) healthy_until: Option<Instant>,
    /// Why what ran before is not wholly back.
    pub(super) restore_failure: Option<Failure>,
    tries: BTreeMap<String, u32>,
}

impl<H: Host, M: Described> Attempt<H, M> {
    pub(super) fn new(
        shared: Arc<Shared<H>>,
        key: AttemptKey,
        order: Order<M>,
        order_digest: Digest,
        records: &[Record],
        stop: CancellationToken,
    ) -> Self {
        let state = AttemptState::fold(records);
        Self {
            log: shared.attempt_log(key, &state),
            shared,
            key,
            order,
            order_digest,
            state,
            stop,
            healthy_until: None,
            restore_failure: None,
            tries: BTreeMap::new(),
        }
    }

    pub(super) fn host(&self) -> &H {
        &self.shared.host
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.shared.clock.now()
    }

    pub(super) fn wanted(&self) -> Wanted {
        if self.stop.is_cancelled() {
            Wanted::Stop
        } else {
            Wanted::Run
        }
    }

    /// How long the engine may be away.
    pub(super) const fn patience(&self) -> Duration {
        match self.state.phase {
            Phase::Restoring(_) => RESTORE_PATIENCE,
            _ => FORWARD_PATIENCE,
        }
    }

    pub(super) fn pull_deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.order.limits.pull_deadline_ms.into())
    }

    pub(super) fn health_deadline(&mut self) -> Instant {
        let limit = Duration::from_millis(self.order.limits.healthy_deadline_ms.into());
        *self.healthy_until.get_or_insert_with(|| Instant::now() + limit)
    }

    /// Writes a record, what it reports, and whatever else belongs to it, in one commit; then it counts.
    pub(super) async fn write(&mut self, record: Record, more: Vec<Write>) -> Result<(), JournalError> {
        let mut writes = self.writes(&record);
        writes.extend(more);
        self.journal().commit(writes).await?;
        self.state.apply(&record);
        Ok(())
    }

    /// As [`Self::write`] for a record that tells only what looking at the host tells as well: nothing waits for the disk.
    pub(super) fn write_behind(&mut self, record: &Record) -> Result<(), JournalError> {
        self.journal().post(self.writes(record))?;
        self.state.apply(record);
        Ok(())
    }

    fn writes(&self, record: &Record) -> Vec<Write> {
        let reports = steps(record).into_iter().map(|(step, at)| {
            let step = step.as_str().to_owned();
            Write::Report(ReportDraft {
                key: self.key,
                at,
                event: Event::Progressed(Progressed { step }),
            })
        });
        let mut writes: Vec<Write> = reports.collect();
        writes.push(Write::Record(self.key, record.clone()));
        writes
    }

    /// Leaves the attempt in order, so that the next start is none of its making.
    pub(super) async fn rest(&mut self) -> Result<(), JournalError> {
        if matches!(self.state.phase, Phase::Ended(_) | Phase::Done) {
            return Ok(());
        }
        let at = self.now();
        self.write(Record::Rested { at }, Vec::new()).await
    }

    /// The images are there; it is written down once, and only if any had to be pulled.
    pub(super) async fn note_pulled(&mut self, pulled: bool) -> Result<(), JournalError> {
        if !pulled || self.state.pulled {
            return Ok(());
        }
        let at = self.now();
        self.write(Record::Pulled { at }, Vec::new()).await
    }

    /// What runs before the attempt touches anything; from here on it may be touched.
    pub(super) async fn note_prepared(&mut self, old: Vec<OldContainer>) -> Result<(), JournalError> {
        kill::at("old_saved");
        let at = self.now();
        kill::at("switch_journalled.before");
        self.write(Record::Prepared { at, old }, Vec::new()).await?;
        kill::at("switch_journalled");
        Ok(())
    }

    /// Whether nothing says that the project was deployed here before: neither the journal, nor a sticker, nor a container.
    pub(super) async fn is_first(&self) -> Result<bool, Failure> {
        let (target, project) = (self.order.target_id, &self.order.release.project);
        if self
            .journal()
            .baseline(target, project)
            .map_err(internal)?
            .is_some()
        {
            return Ok(false);
        }
        let sticker = match &self.state.sticker_before {
            Some(before) => before.clone(),
            None => self.read_sticker().await?,
        };
        if sticker.is_some() {
            return Ok(false);
        }
        if let Some(old) = &self.state.old {
            return Ok(old.is_empty());
        }
        let own = labels::of_project(target, project);
        let there = patiently(self.patience(), || self.host().list(&own)).await?;
        let others = there.iter().filter_map(|listed| labels::read(&listed.labels));
        Ok(others.filter(|ours| ours.fence != self.order.fence).count() == 0)
    }

    /// From here on the new set is the one that stays.
    pub(super) async fn note_healthy(&mut self) -> Done {
        let sticker_before = self.read_sticker().await?;
        let at = self.now();
        self.write(Record::Healthy { at, sticker_before }, Vec::new())
            .await?;
        kill::at("commit_journalled");
        Ok(())
    }

    /// Nothing is left to do. Losing this record only means to look once more.
    pub(super) async fn note_cleaned(&mut self) -> Result<(), JournalError> {
        let cleaned = Write::Record(self.key, Record::Cleaned);
        self.journal().note(vec![cleaned]).await?;
        self.state.apply(&Record::Cleaned);
        Ok(())
    }

    /// Says what did not work. Without the journal nothing may be done about it any more.
    pub(super) fn told(&self, trouble: Trouble) -> Result<Failure, JournalError> {
        let failure = match trouble {
            Trouble::Journal(error) => return Err(error),
            Trouble::Failed(failure) => failure,
        };
        self.log.say(failure.to_string());
        if !failure.detail.is_empty() {
            self.log.say(failure.detail.clone());
        }
        Ok(failure)
    }

    pub(super) async fn begin_restore(&mut self, cause: Cause) -> Result<(), JournalError> {
        kill::at("restore_journalled.before");
        let at = self.now();
        self.write(Record::Restoring { at, cause }, Vec::new()).await?;
        kill::at("restore_journalled");
        Ok(())
    }

    /// Waits before a step of the way back is tried again; whether it is not to be given up yet.
    pub(super) async fn try_again(&mut self, step: &impl Debug) -> bool {
        let tries = self.tries.entry(format!("{step:?}")).or_default();
        *tries += 1;
        let again = *tries < RESTORE_TRIES;
        if again {
            sleep(pause_after(*tries)).await;
        }
        again
    }

    /// `what` was not brought back. The first reason counts.
    pub(super) fn give_up_restore(&mut self, what: &str, failure: &Failure) {
        let summary = format!("{what}: {}", failure.summary);
        self.restore_failure.get_or_insert_with(|| {
            Failure::new(FailureCode::RestoreFailed, summary).with_detail(&failure.detail)
        });
    }

    /// As [`Self::give_up_restore`], for an attempt whose way back was begun too often.
    pub(super) fn note_poison(&mut self, what: &str) {
        if self.state.is_poison() {
            let summary = format!(
                "the agent was started {MOST_RESTORE_STARTS} times on the way back and never came to its end"
            );
            self.give_up_restore(what, &Failure::new(FailureCode::RestoreFailed, summary));
        }
    }
}

/// Stickers and packets.
impl<H: Host, M: Described> Attempt<H, M> {
    pub(super) fn sticker_path(&self) -> PathBuf {
        let order = &self.order;
        self.shared
            .stickers
            .path(&order.target, &order.environment, &order.release.project)
    }

    /// What the sticker file holds now.
    pub(super) async fn read_sticker(&self) -> Result<Option<String>, Failure> {
        let path = self.sticker_path();
        let before = aside(STICKER, move || Stickers::read(&path)).await?;
        Ok(before.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The sticker that follows `before`.
    pub(super) fn sticker(&self, before: Option<&str>) -> Result<Sticker, Failure> {
        let previous = before.map(|text| Stickers::digest(text.as_bytes()));
        let lock = self.state.lock.as_ref().map(|locked| locked.lock);
        Sticker::of(&self.order, lock, self.now(), previous).map_err(internal)
    }

    /// Writes the sticker, or finds it written by this very attempt before a crash; gives its bytes.
    pub(super) async fn settle_sticker(&self) -> Result<Vec<u8>, Failure> {
        let path = self.sticker_path();
        let before = self.state.sticker_before.as_ref().and_then(Option::as_deref);
        let sticker = self.sticker(before)?;
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
        aside(STICKER, write).await
    }

    /// Puts back the sticker file that this attempt may have replaced.
    pub(super) async fn unwrite_sticker(&self) {
        let Some(before) = self.state.sticker_before.clone() else {
            return;
        };
        let (path, fence) = (self.sticker_path(), self.order.fence);
        if let Err(failure) = aside(STICKER, move || put_back(&path, fence, before.as_deref())).await {
            self.log.say(format!("the sticker was not put back: {failure}"));
        }
    }

    async fn packet(
        &self,
        ending: Ending,
        failure: Option<&Failure>,
        running: &[Running],
        sticker: Option<Digest>,
    ) -> Result<Vec<u8>, Failure> {
        let engine = self.shared.engine().await.unwrap_or_else(|_| EngineInfo {
            name: "unknown".to_owned(),
            version: String::new(),
            api: String::new(),
            platform: String::new(),
        });
        let at = self.now();
        let end = End {
            order: &self.order,
            order_digest: self.order_digest,
            state: &self.state,
            ending,
            failure,
            running,
            engine,
            sticker,
            compose_lock: self.state.lock.as_ref().map(|locked| locked.lock),
            log_truncated: self.log.is_truncated(),
            at,
            orchestrator_time: self.shared.orchestrator_time(),
        };
        proof::packet(&self.shared.identity, &end).map_err(internal)
    }

    /// The end of an attempt whose new set stays, with what is remembered of that.
    pub(super) async fn end_well(
        &mut self,
        sticker: Vec<u8>,
        running: &[Running],
        baseline: Baseline,
    ) -> Done {
        let ending = Ending::Succeeded;
        let digest = Stickers::digest(&sticker);
        let packet = self.packet(ending, None, running, Some(digest)).await?;
        let baseline = Write::Baseline {
            target: self.order.target_id,
            project: self.order.release.project.clone(),
            baseline,
        };
        self.end(ending, None, packet, sticker, vec![baseline]).await?;
        Ok(())
    }

    /// The end of an attempt whose way back is over, with what else is written down about that.
    pub(super) async fn end_restored(
        &mut self,
        cause: &Cause,
        running: &[Running],
        more: Vec<Write>,
    ) -> Result<Ending, JournalError> {
        let (ending, failure) = end_of(self.restore_failure.clone(), cause);
        let failure = failure.as_ref();
        let packet = match self.packet(ending, failure, running, None).await {
            Ok(packet) => packet,
            Err(defect) => {
                // An end without a packet is still an end; the orchestrator says that the packet is missing.
                self.log.say(format!("no packet could be made: {defect}"));
                Vec::new()
            }
        };
        self.end(ending, failure, packet, Vec::new(), more).await?;
        Ok(ending)
    }

    async fn end(
        &mut self,
        ending: Ending,
        failure: Option<&Failure>,
        packet: Vec<u8>,
        sticker: Vec<u8>,
        mut writes: Vec<Write>,
    ) -> Result<(), JournalError> {
        kill::at("evidence_signed");
        let at = self.now();
        let report = ReportDraft {
            key: self.key,
            at,
            event: proof::finished(ending, failure, packet, sticker),
        };
        writes.push(Write::Finished {
            report,
            order: self.order_digest,
        });
        kill::at("outbox_synced.before");
        self.write(Record::Ended { at, ending }, writes).await?;
        kill::at("outbox_synced");
        Ok(())
    }
}

/// How a restore ends, and why.
fn end_of(restore: Option<Failure>, cause: &Cause) -> (Ending, Option<Failure>) {
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
fn put_back(path: &Path, fence: Fence, before: Option<&str>) -> io::Result<()> {
    let there = Stickers::read(path)?;
    let ours =
        there.is_some_and(|bytes| Sticker::from_file(&bytes).is_ok_and(|sticker| sticker.fence == fence));
    match (ours, before) {
        (false, _) => Ok(()),
        (true, Some(text)) => Stickers::write(path, text.as_bytes()),
        (true, None) => Stickers::remove(path),
    }
}
