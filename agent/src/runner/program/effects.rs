//! What each step does about the agent's program, up to its proof, and on the way back.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use sealift_common::{
    bounds,
    failure::{Failure, FailureCode},
    manifest::RestartPolicy,
    program::{PROGRAM_PATH, ProgramRefusal, ProgramStatement, SIGNATURE_PATH},
};
use tokio::time::{timeout, timeout_at};

use super::{ProgramRunner, unreadable};
use crate::{
    causes::chain,
    facts,
    host::{Host, contents::CopyOut},
    journal::{Cause, OldContainer, OldOfCompose, Phase, Record},
    kill, labels,
    program::{
        Program,
        files::digest_of,
        launcher::own_version,
        marker::{Installed, Marker},
    },
    runner::{
        Done, internal, patiently,
        prove::{PROGRAMS, aside},
        pull::bring,
    },
    step::program::Step,
};

/// Largest signature.
const SIGNATURE_BYTES: u64 = 64 * 1024;
const MIB: u64 = 1024 * 1024;
/// How long copying out of an image may take.
const COPY: Duration = Duration::from_mins(5);

impl<H: Host> ProgramRunner<H> {
    /// Does one step and updates what is known.
    pub(super) async fn perform(&mut self, step: &Step) -> Done {
        match step {
            Step::Pull => self.pull().await,
            Step::Fetch => self.fetch().await,
            Step::AwaitTurn => self.await_turn().await,
            Step::Prepare => self.prepare().await,
            Step::Switch => self.switch().await,
            Step::HandOver => self.hand_over().await,
            Step::NoteStarted => self.note_started().await,
            Step::AwaitHealth => self.await_health().await,
            Step::Confirm => self.confirm().await,
            Step::Commit => self.finish_well().await,
            Step::Restore(cause) => Ok(self.begin_restore(Cause::clone(cause)).await?),
            Step::Withdraw => self.withdraw().await,
            Step::Conclude(cause) => self.finish_restored(cause).await,
            Step::Clean => self.clean().await,
            Step::Done => Ok(()),
        }
    }

    async fn pull(&mut self) -> Done {
        let shared = &self.attempt.shared;
        let engine = patiently(self.attempt.patience(), || shared.engine()).await?;
        let deadline = self.attempt.pull_deadline();
        let (_, image) = self.ordered()?;
        kill::at("pull_begun");
        let (_, pulled) = bring(
            shared,
            &self.attempt.log,
            image,
            &engine.platform,
            self.attempt.patience(),
            deadline,
        )
        .await?;
        kill::at("digest_compared");
        self.world.image = true;
        Ok(self.attempt.note_pulled(pulled).await?)
    }

    /// Nothing but a folder for what comes in is touched before every check has passed, and nothing stays there when one does not.
    async fn fetch(&mut self) -> Done {
        let fetched = self.fetch_checked().await;
        if fetched.is_err() {
            let files = self.attempt.shared.program.files.clone();
            if let Err(failure) = aside(PROGRAMS, move || files.drop_incoming()).await {
                self.attempt
                    .log
                    .say(format!("what came in was not removed: {failure}"));
            }
        }
        fetched
    }

    /// The signature first: what nobody trusted has signed, or what is not for this host, is not copied at all, and of the rest no
    /// more than was signed.
    async fn fetch_checked(&mut self) -> Done {
        let files = self.attempt.shared.program.files.clone();
        let (program, signature) = files.incoming();
        let cleared = files.clone();
        aside(PROGRAMS, move || {
            cleared.make().and_then(|()| cleared.drop_incoming())
        })
        .await?;
        self.copy_out(SIGNATURE_PATH, &signature, SIGNATURE_BYTES).await?;
        let statement = self.statement(signature).await?;
        let most_bytes = statement.bytes.min(bounds::PROGRAM_BYTES);
        self.check_room(most_bytes).await?;
        self.copy_out(PROGRAM_PATH, &program, most_bytes).await?;
        kill::at("program_copied");
        let (digest, bytes) = aside(PROGRAMS, move || digest_of(&program)).await?;
        statement
            .is_about(bytes, digest)
            .map_err(|refusal| refused(&refusal))?;
        kill::at("program_verified");
        aside(PROGRAMS, move || files.install(digest)).await?;
        kill::at("program_installed");
        self.attempt.log.say(format!(
            "program {} (version {}, {}) is signed by a trusted publisher and ready",
            digest.short(),
            statement.version,
            statement.platform
        ));
        self.installed = Some(Installed {
            program: digest,
            version: statement.version,
            image: self.ordered()?.1.clone(),
            task: self.attempt.key.task,
            attempt: self.attempt.key.attempt,
        });
        self.world.staged = Some(digest);
        Ok(())
    }

    /// Copies one file of the image, of at most this size.
    async fn copy_out(&self, path: &str, to: &Path, most_bytes: u64) -> Done {
        let host = &self.attempt.shared.host;
        let (_, image) = self.ordered()?;
        let copies = [CopyOut {
            path: path.to_owned(),
            to: to.to_owned(),
            most_bytes,
        }];
        let name = format!(
            "{}program-{}",
            labels::NAME_PREFIX,
            labels::short_target(self.attempt.order.target_id)
        );
        let ours = [(
            labels::TARGET_ID.to_owned(),
            self.attempt.order.target_id.to_string(),
        )]
        .into();
        let copied = patiently(self.attempt.patience(), || {
            host.copy_out(image, &copies, &name, &ours, COPY)
        });
        Ok(copied.await?)
    }

    /// What a trusted publisher states about the program, which may run here if the statement is true.
    async fn statement(&self, signature: PathBuf) -> Result<ProgramStatement, Failure> {
        let shared = self.attempt.shared.clone();
        let judge = move || {
            let program = &shared.program;
            let mut bytes = Vec::new();
            File::open(signature)?
                .take(SIGNATURE_BYTES)
                .read_to_end(&mut bytes)?;
            let judged = ProgramStatement::open(&bytes, &program.policy.publishers).and_then(|statement| {
                statement.fits(&Program::platform(), program.oldest())?;
                Ok(statement)
            });
            Ok(judged)
        };
        let judged = aside(PROGRAMS, judge).await?;
        judged.map_err(|refusal| refused(&refusal))
    }

    /// Whether the disk of the agent's state has room for a program, and for what has to be written beside it.
    async fn check_room(&self, bytes: u64) -> Result<(), Failure> {
        let shared = &self.attempt.shared;
        // A disk that does not say how full it is shows it when it is written to.
        let Some(disk) = facts::look(facts::STATE, shared.state_dir.clone()).await else {
            return Ok(());
        };
        let wanted = bytes.saturating_add(shared.program.reserve);
        if disk.free_bytes >= wanted {
            return Ok(());
        }
        let summary = format!(
            "the disk of the agent's state has {} MiB free, the new program needs {}",
            disk.free_bytes / MIB,
            wanted.div_ceil(MIB)
        );
        Err(Failure::new(FailureCode::DiskFull, summary).with_detail(format!("it is at {}", disk.path)))
    }

    async fn await_turn(&mut self) -> Done {
        let limit = Duration::from_millis(self.attempt.order.limits.progress_deadline_ms.into());
        self.attempt
            .log
            .say("waiting until nothing else is under way on this agent");
        let Ok(turn) = timeout(limit, self.attempt.shared.program.exchange()).await else {
            let summary = format!(
                "other tasks of this agent did not end within {} s, and none is cut",
                limit.as_secs()
            );
            return Err(Failure::new(FailureCode::AgentBusy, summary).into());
        };
        self.turn = Some(turn);
        self.world.turn = true;
        Ok(())
    }

    async fn prepare(&mut self) -> Done {
        let (service, _) = self.ordered()?;
        let service = service.clone();
        let (running, known) = self
            .attempt
            .shared
            .program
            .seen()
            .await
            .map_err(|error| unreadable(&error))?;
        let old = OldContainer {
            id: running.to_string(),
            service,
            running: true,
            restart: RestartPolicy::No,
            grace_ms: 0,
            digest: known.map(|known| known.image.digest),
            aliases: std::collections::BTreeMap::new(),
            compose: OldOfCompose::default(),
        };
        let at = self.attempt.now();
        kill::at("switch_journalled.before");
        self.attempt
            .write(Record::Prepared { at, old: vec![old] }, Vec::new())
            .await?;
        kill::at("switch_journalled");
        Ok(())
    }

    async fn change_marker(&mut self, change: impl FnOnce(Marker) -> Marker + Send) -> Done {
        let program = &self.attempt.shared.program;
        let marker = program.marker().await.map_err(|error| unreadable(&error))?;
        let changed = change(marker);
        program
            .set_marker(changed)
            .await
            .map_err(|error| unreadable(&error))?;
        self.looked = false;
        Ok(())
    }

    async fn switch(&mut self) -> Done {
        let installed = self
            .installed
            .clone()
            .ok_or_else(|| internal("an update went on without a program"))?;
        let packaged = self.attempt.shared.program.packaged().await;
        let is_same = installed.program == self.world.running;
        let patience = u64::from(self.attempt.order.limits.healthy_deadline_ms);
        kill::at("trial_marked.before");
        self.change_marker(|marker| {
            if is_same {
                marker.install(installed, packaged)
            } else {
                marker.try_out(installed, patience)
            }
        })
        .await?;
        kill::at("trial_marked");
        Ok(())
    }

    /// Comes back never: the process ends, and the next one goes on from the journal.
    async fn hand_over(&mut self) -> Done {
        self.attempt.log.say("handing over to the other program");
        self.handing_over = true;
        self.attempt.shared.program.hand_over();
        std::future::pending().await
    }

    async fn note_started(&mut self) -> Done {
        let at = self.attempt.now();
        self.attempt
            .write(Record::Started { starting_at: at, at }, Vec::new())
            .await?;
        kill::at("health_wait");
        self.attempt.log.say("the new program runs");
        Ok(())
    }

    /// Healthy is a program that the orchestrator has answered to without a break for as long as it must be (R15).
    async fn await_health(&mut self) -> Done {
        let deadline = self.attempt.health_deadline();
        let shared = self.attempt.shared.clone();
        let wanted = Duration::from_millis(self.attempt.order.limits.min_healthy_ms.into());
        if let Some(installed) = &self.installed
            && installed.version != own_version()
        {
            let summary = format!(
                "the new program says that it is version {}, it was signed as {}",
                own_version(),
                installed.version
            );
            return Err(Failure::new(FailureCode::AgentUpdateNotHealthy, summary).into());
        }
        // From here on every heartbeat asks for an answer, and a link without one breaks.
        let _asked = shared.program.ask_for_proof();
        let mut link = shared.program.link.clone();
        let steady = async {
            loop {
                let answers = *link.borrow_and_update();
                if answers.is_some_and(|answers| answers.last - answers.since >= wanted) {
                    return;
                }
                if link.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        if timeout_at(deadline, steady).await.is_err() {
            let summary = format!(
                "the orchestrator did not answer the new program for {} ms without a break, within {} ms",
                wanted.as_millis(),
                self.attempt.order.limits.healthy_deadline_ms
            );
            return Err(Failure::new(FailureCode::AgentUpdateNotHealthy, summary).into());
        }
        kill::at("healthy");
        self.attempt.note_healthy().await
    }

    async fn confirm(&mut self) -> Done {
        let packaged = self.attempt.shared.program.packaged().await;
        kill::at("program_confirmed.before");
        self.change_marker(|marker| marker.confirm(packaged)).await?;
        kill::at("program_confirmed");
        Ok(())
    }

    async fn withdraw(&mut self) -> Done {
        let key = self.attempt.key;
        let why = match &self.attempt.state.phase {
            Phase::Restoring(Cause::Failed { failure }) => failure.to_string(),
            _ => "it was asked to stop".to_owned(),
        };
        kill::at("program_withdrawn.before");
        self.change_marker(|marker| marker.withdraw(key, &why)).await?;
        kill::at("program_withdrawn");
        Ok(())
    }

    /// Drops programs that nothing needs any more.
    async fn clean(&mut self) -> Done {
        self.turn = None;
        let running = self.world.running;
        let marker = self
            .attempt
            .shared
            .program
            .marker()
            .await
            .map_err(|error| unreadable(&error))?;
        let files = self.attempt.shared.program.files.clone();
        let tidied = aside(PROGRAMS, move || {
            let mut needed = marker.needed();
            needed.push(running);
            files.tidy(&needed)
        });
        if let Err(failure) = tidied.await {
            self.attempt
                .log
                .say(format!("old programs were not dropped: {failure}"));
        }
        Ok(self.attempt.note_cleaned().await?)
    }
}

fn refused(refusal: &ProgramRefusal) -> Failure {
    let detail = std::error::Error::source(refusal).map(chain).unwrap_or_default();
    Failure::new(FailureCode::AgentUpdateRefused, refusal.to_string()).with_detail(detail)
}
