//! Runner of an attempt to exchange the agent's own program: asks [`crate::step::program`] what comes next, does it, writes down the
//! result. The process that ends an attempt is often another one than the one that began it.

mod effects;
mod finish;

pub(crate) use finish::process;

use std::{io, sync::Arc};

use sealift_common::{
    agent_manifest::AgentManifest,
    condition::ConditionCode,
    digest::Digest,
    failure::{Failure, FailureCode},
    manifest::PinnedImage,
    name::ServiceName,
    order::Order,
};
use tokio::{sync::OwnedRwLockWriteGuard, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{RESTORE_TRIES, Trouble, attempt::Attempt, internal, pause_after};
use crate::{
    host::Host,
    journal::{AttemptKey, Cause, JournalError, Phase, Record},
    program::marker::{Installed, Stand},
    step::program::{self, Step, World},
    workshop::Shared,
};

/// What a restore that is given up has not done.
const BEFORE: &str = "the program before could not be brought back";

/// One attempt under way.
pub(crate) struct ProgramRunner<H: Host> {
    attempt: Attempt<H, AgentManifest>,
    world: World,
    /// Whether the world was seen since it may have changed.
    looked: bool,
    /// The ordered program, once it is verified, or as the marker names it.
    installed: Option<Installed>,
    turn: Option<OwnedRwLockWriteGuard<()>>,
    /// Whether this process is asked to hand over.
    handing_over: bool,
    /// How often looking failed in a row.
    failed_looks: u32,
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
        let nothing = Digest::of(b"");
        Self {
            world: World {
                image: false,
                staged: None,
                turn: false,
                running: nothing,
                stand: Stand::Untouched,
                named: None,
                chosen: nothing,
                problem: shared.program.launched.problem.clone(),
                stuck: false,
            },
            looked: false,
            installed: None,
            turn: None,
            handing_over: false,
            failed_looks: 0,
            attempt: Attempt::new(shared, key, order, order_digest, records, stop),
        }
    }

    fn ordered(&self) -> Result<(&ServiceName, &PinnedImage), Failure> {
        let ordered = self.attempt.order.manifest.program();
        ordered.ok_or_else(|| internal("an order for another content was accepted"))
    }

    /// Works until the attempt is done, the agent goes down, or the journal fails.
    pub(crate) async fn run(mut self) -> Result<(), JournalError> {
        let shutdown = self.attempt.shared.shutdown.clone();
        let stop = self.attempt.stop.clone();
        self.turn = self.attempt.shared.program.kept_turn(self.attempt.key);
        self.world.turn = self.turn.is_some();
        while !shutdown.is_cancelled() && self.attempt.state.phase != Phase::Done {
            if !self.looked {
                let look = self.look().await;
                self.note_look(look).await?;
                continue;
            }
            let attempt = &self.attempt;
            let step = program::next(&attempt.state, attempt.wanted(), &self.world);
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
        let counts = self.handing_over && matches!(self.attempt.state.phase, Phase::Restoring(_));
        if counts {
            return Ok(());
        }
        self.attempt.rest().await
    }

    /// Sees what runs, what the marker says, and what the launcher would make of it.
    async fn look(&mut self) -> io::Result<()> {
        let seen = self.attempt.shared.program.look().await?;
        self.world.running = seen.running;
        self.world.chosen = seen.chosen;
        self.world.stand = seen.marker.stand(self.attempt.key);
        let trial = seen.marker.trial.as_ref().map(|trial| &trial.installed);
        let named = trial
            .into_iter()
            .chain(&seen.marker.current)
            .find(|known| known.key() == self.attempt.key);
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
        self.attempt
            .log
            .say(format!("the agent's programs cannot be seen: {error}"));
        self.failed_looks += 1;
        if self.failed_looks < RESTORE_TRIES {
            tokio::select! {
                () = self.attempt.shared.shutdown.cancelled() => {}
                () = sleep(pause_after(self.failed_looks)) => {}
            }
            return Ok(());
        }
        self.put_marker_aside(&error).await;
        if !matches!(
            self.attempt.state.phase,
            Phase::Restoring(_) | Phase::Ended(_) | Phase::Done
        ) {
            let failure = unreadable(&error);
            return self.begin_restore(Cause::Failed { failure }).await;
        }
        Ok(())
    }

    async fn put_marker_aside(&mut self, error: &io::Error) {
        let program = &self.attempt.shared.program;
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
        self.attempt.log.say(found.clone());
        self.attempt
            .shared
            .set_condition(ConditionCode::AgentState, "marker", Some(&found));
    }

    /// What to do when a step did not work.
    async fn fail(&mut self, step: &Step, trouble: Trouble) -> Result<(), JournalError> {
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
        self.attempt.begin_restore(cause).await?;
        self.looked = false;
        Ok(())
    }

    async fn retry_or_give_up(&mut self, step: &Step, failure: Failure) {
        if self.attempt.try_again(step).await {
            return;
        }
        // The marker stays as it is; the launcher gives a program on trial up by itself.
        self.world.stuck = true;
        let before = self.attempt.state.old.iter().flatten().next();
        if before.is_some_and(|before| before.id == self.world.running.to_string()) {
            return;
        }
        self.attempt.give_up_restore(BEFORE, &failure);
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
