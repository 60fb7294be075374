//! Runner of an attempt to exchange the agent's own program: asks [`crate::step::program`] what comes next, does it, writes down the
//! result. The process that ends an attempt is often another one than the one that began it.

mod effects;
mod finish;

pub(crate) use finish::process;

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sealift_common::{
    agent_manifest::AgentManifest,
    condition::ConditionCode,
    digest::Digest,
    failure::{Failure, FailureCode},
    manifest::PinnedImage,
    name::ServiceName,
    order::Order,
    task::Wanted,
};
use sealift_proto::agent::v1::{Progressed, report::Event};
use tokio::{
    sync::OwnedRwLockWriteGuard,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{FIRST_PAUSE, FORWARD_PATIENCE, RESTORE_TRIES, Trouble, internal};
use crate::{
    host::Host,
    journal::{AttemptKey, AttemptState, Cause, JournalError, Phase, Record, ReportDraft, Write, steps},
    kill,
    logs::AttemptLog,
    program::marker::{Installed, Stand},
    step::program::{self, Step, World},
    workshop::Shared,
};

/// One attempt under way.
pub(crate) struct ProgramRunner<H: Host> {
    shared: Arc<Shared<H>>,
    key: AttemptKey,
    order: Order<AgentManifest>,
    order_digest: Digest,
    state: AttemptState,
    world: World,
    /// Whether the world was seen since it may have changed.
    looked: bool,
    /// The ordered program, once it is verified, or as the marker names it.
    installed: Option<Installed>,
    turn: Option<OwnedRwLockWriteGuard<()>>,
    stop: CancellationToken,
    log: AttemptLog,
    healthy_until: Option<Instant>,
    /// Whether this process is asked to hand over.
    handing_over: bool,
    /// How often looking failed in a row.
    failed_looks: u32,
    restore_failure: Option<Failure>,
    tries: BTreeMap<String, u32>,
}

impl<H: Host> ProgramRunner<H> {
    pub(crate) fn new(
        shared: Arc<Shared<H>>,
        key: AttemptKey,
        order: Order<AgentManifest>,
        order_digest: Digest,
        records: &[Record],
        stop: CancellationToken,
    ) -> Self {
        let state = AttemptState::fold(records);
        Self {
            log: shared.attempt_log(key, &state),
            key,
            order,
            order_digest,
            state,
            world: World {
                image: false,
                staged: None,
                turn: false,
                running: Digest::of(b""),
                stand: Stand::Untouched,
                named: None,
                chosen: Digest::of(b""),
                problem: shared.program.launched.problem.clone(),
                stuck: false,
            },
            looked: false,
            installed: None,
            turn: None,
            stop,
            healthy_until: None,
            handing_over: false,
            failed_looks: 0,
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

    fn ordered(&self) -> Result<(&ServiceName, &PinnedImage), Failure> {
        let ordered = self.order.manifest.program();
        ordered.ok_or_else(|| internal("an order for another content was accepted"))
    }

    /// Works until the attempt is done, the agent goes down, or the journal fails.
    pub(crate) async fn run(mut self) -> Result<(), JournalError> {
        let shutdown = self.shared.shutdown.clone();
        let stop = self.stop.clone();
        self.turn = self.shared.program.kept_turn(self.key);
        self.world.turn = self.turn.is_some();
        while !shutdown.is_cancelled() && self.state.phase != Phase::Done {
            if !self.looked {
                let look = self.look().await;
                self.note_look(look).await?;
                continue;
            }
            let wanted = if stop.is_cancelled() {
                Wanted::Stop
            } else {
                Wanted::Run
            };
            let step = program::next(&self.state, wanted, &self.world);
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
        // Handing over on the way back counts as a start, so that it comes to an end whatever the launcher does.
        let counts = self.handing_over && matches!(self.state.phase, Phase::Restoring(_));
        if !counts && !matches!(self.state.phase, Phase::Ended(_) | Phase::Done) {
            let at = self.now();
            self.write(Record::Rested { at }, Vec::new()).await?;
        }
        Ok(())
    }

    /// Sees what runs, what the marker says, and what the launcher would make of it.
    async fn look(&mut self) -> io::Result<()> {
        let seen = self.shared.program.look().await?;
        self.world.running = seen.running;
        self.world.chosen = seen.chosen;
        self.world.stand = seen.marker.stand(self.key);
        let trial = seen.marker.trial.as_ref().map(|trial| &trial.installed);
        let named = trial
            .into_iter()
            .chain(&seen.marker.current)
            .find(|known| known.key() == self.key);
        self.world.named = named.map(|known| known.program);
        if let Some(named) = named {
            self.installed = Some(named.clone());
        }
        Ok(())
    }

    /// A look that fails is tried again some times; then the marker is put aside, so that it is in nobody's way, and the attempt ends.
    async fn note_look(&mut self, look: io::Result<()>) -> Result<(), JournalError> {
        let Err(error) = look else {
            self.looked = true;
            self.failed_looks = 0;
            return Ok(());
        };
        self.log
            .say(format!("the agent's programs cannot be seen: {error}"));
        self.failed_looks += 1;
        if self.failed_looks < RESTORE_TRIES {
            tokio::select! {
                () = self.shared.shutdown.cancelled() => {}
                () = sleep(FIRST_PAUSE * 2_u32.pow(self.failed_looks)) => {}
            }
            return Ok(());
        }
        self.put_marker_aside(&error).await;
        if !matches!(
            self.state.phase,
            Phase::Restoring(_) | Phase::Ended(_) | Phase::Done
        ) {
            let failure = unreadable(&error);
            return self.begin_restore(Cause::Failed { failure }).await;
        }
        Ok(())
    }

    async fn put_marker_aside(&mut self, error: &io::Error) {
        let program = &self.shared.program;
        let found = if program.marker().await.is_ok() {
            // It is something else that cannot be read.
            Err(format!("the agent's programs cannot be seen: {error}"))
        } else {
            let aside = program.set_marker_aside().await;
            aside.map_err(|moving| format!("the marker cannot be read ({error}) nor be put aside: {moving}"))
        };
        let found = match found {
            Ok(aside) => format!(
                "the marker could not be read ({error}) and was put aside as {}",
                aside.display()
            ),
            Err(found) => {
                // Nothing is known of the marker, and nothing can be done about it: what runs stays.
                self.world.stand = Stand::Untouched;
                self.world.named = None;
                self.world.chosen = self.world.running;
                self.looked = true;
                found
            }
        };
        self.log.say(found.clone());
        self.shared
            .set_condition(ConditionCode::AgentState, "marker", Some(&found));
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
        let at = self.now();
        self.write(Record::Restoring { at, cause }, Vec::new()).await?;
        kill::at("restore_journalled");
        self.looked = false;
        Ok(())
    }

    async fn retry_or_give_up(&mut self, step: &Step, failure: Failure) {
        let tries = self.tries.entry(format!("{step:?}")).or_default();
        *tries += 1;
        if *tries < RESTORE_TRIES {
            sleep(FIRST_PAUSE * 2_u32.pow(*tries)).await;
            return;
        }
        // The marker stays as it is; the launcher gives a program on trial up by itself.
        self.world.stuck = true;
        let before = self.state.old.iter().flatten().next();
        if before.is_some_and(|before| before.id == self.world.running.to_string()) {
            return;
        }
        let summary = format!(
            "the program before could not be brought back: {}",
            failure.summary
        );
        let detail = failure.detail;
        self.restore_failure
            .get_or_insert_with(|| Failure::new(FailureCode::RestoreFailed, summary).with_detail(detail));
    }

    fn health_deadline(&mut self) -> Instant {
        let limit = Duration::from_millis(self.order.limits.healthy_deadline_ms.into());
        *self.healthy_until.get_or_insert_with(|| Instant::now() + limit)
    }

    const fn patience() -> Duration {
        FORWARD_PATIENCE
    }
}

/// Why the agent's programs cannot be read or written.
fn unreadable(error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureCode::DiskFull,
        _ => FailureCode::AgentState,
    };
    Failure::new(code, "the agent's programs cannot be read or written").with_detail(error.to_string())
}
