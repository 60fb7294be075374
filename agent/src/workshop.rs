//! Workshop: everything below the session. Takes orders, checks them, writes them down and has them carried out: one attempt at
//! a time per target, several targets side by side.

mod active;
mod carry;
mod check;
mod exchange;
mod identity;
mod known;
mod search;
mod work;

use active::{Active, ActiveGuard};
use carry::{capabilities, run_to_end};
use check::Checked;
pub(crate) use check::{PATHS_ANSWER, trusted, unanswered};
pub use identity::AgentIdentity;
use known::{Known, look};

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use sealift_common::{
    condition::{Condition, ConditionCode},
    digest::Digest,
    evidence::EngineInfo,
    failure::{Failure, FailureCode},
    id::{TargetId, TaskId},
    inventory::{AgentFacts, ClockFacts},
    observation::TargetObservation,
    order::{Fence, Order},
    time::Clock,
};
use sealift_proto::agent::v1::{Accepted, Progressed, report::Event};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    assignments::Act,
    clock_offset,
    compose::{Compose, Search},
    facts,
    hanging::Hanging,
    host::{Host, HostError},
    journal::{
        AttemptKey, AttemptState, Ending, Journal, JournalError, Phase, Record, ReportDraft, StoredAttempt,
        Write, steps,
    },
    kill,
    logs::{self, AttemptLog, Gap},
    observe::{self, Observer},
    outbox::Outbox,
    policy::HostPolicy,
    program::{Program, ProgramParts, files::Files},
    proof,
    prune::{self, PrunePolicy},
    stickers::Stickers,
    work::LogRecord,
};

/// Observations that wait for the session.
const OBSERVATIONS: usize = 64;

/// What a workshop is made of.
pub struct WorkshopParts<H> {
    /// The engine.
    pub host: H,
    /// Where the agent keeps its state. Must exist.
    pub state_dir: PathBuf,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// Who the agent is.
    pub identity: AgentIdentity,
    /// Where the host's Compose is looked for.
    pub compose: Search,
    /// What orders may ask of the host.
    pub policy: HostPolicy,
    /// When images are taken away.
    pub prune: PrunePolicy,
    /// The agent's own program, and who may exchange it.
    pub program: ProgramParts,
    /// Name of the host, for people.
    pub hostname: String,
    /// Ends all work; what is under way goes on when the agent is started again.
    pub shutdown: CancellationToken,
    /// Everything runs on it.
    pub tracker: TaskTracker,
}

/// When paths of the host are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Looking {
    /// When an order is taken.
    Taking,
    /// When a container is made.
    Making,
}

/// What runners and observer share.
pub(crate) struct Shared<H> {
    pub(crate) host: H,
    pub(crate) journal: Journal,
    pub(crate) stickers: Stickers,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) identity: AgentIdentity,
    /// The host's Compose; missing until it is found.
    pub(crate) compose: watch::Sender<Arc<Compose>>,
    pub(crate) policy: HostPolicy,
    pub(crate) prune: PrunePolicy,
    pub(crate) program: Program,
    pub(crate) state_dir: PathBuf,
    pub(crate) shutdown: CancellationToken,
    pub(crate) observer: Observer,
    pub(crate) facts: watch::Sender<AgentFacts>,
    engine: Mutex<Option<EngineInfo>>,
    engine_root: Mutex<Option<PathBuf>>,
    /// A time of the orchestrator's clock, and when it was that.
    orchestrator_clock: Mutex<Option<(DateTime<Utc>, Instant)>>,
    /// Looks at paths of the host, by the target whose order mounts them.
    pub(crate) paths: Hanging<(TargetId, Looking)>,
    /// Taken for writing while an image is being taken away.
    pub(crate) images: tokio::sync::RwLock<()>,
    logs: mpsc::Sender<LogRecord>,
    active: Mutex<BTreeMap<AttemptKey, Active>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<H: Host> Shared<H> {
    pub(crate) fn attempt_log(&self, key: AttemptKey, state: &AttemptState) -> AttemptLog {
        let began_at = state.began_at.unwrap_or_else(|| self.clock.now());
        let gap = lock(&self.active).get(&key).map(|active| active.gap.clone());
        let (clock, logs) = (self.clock.clone(), self.logs.clone());
        AttemptLog::new(key, began_at, clock, logs, gap.unwrap_or_default())
    }

    fn lines_lost(&self, key: AttemptKey) {
        if let Some(active) = lock(&self.active).get(&key) {
            active.gap.open();
        }
    }

    /// What the engine is. Asking costs it some processes, so what the observer heard last counts until the engine was away.
    pub(crate) async fn engine(&self) -> Result<EngineInfo, HostError> {
        let known = lock(&self.engine).clone();
        match known {
            Some(engine) => Ok(engine),
            None => self.ask_engine().await,
        }
    }

    /// Asks the engine what it is now.
    pub(crate) async fn ask_engine(&self) -> Result<EngineInfo, HostError> {
        let answer = self.host.engine().await;
        *lock(&self.engine) = answer.as_ref().ok().cloned();
        answer
    }

    /// The engine was away: another one may answer next.
    pub(crate) fn forget_engine(&self) {
        *lock(&self.engine) = None;
    }

    /// Whether an attempt is under way on `target`.
    pub(crate) fn is_busy(&self, target: TargetId) -> bool {
        lock(&self.active).values().any(|active| active.target == target)
    }

    /// Where the engine keeps its data, as it last said.
    pub(crate) fn engine_root(&self) -> Option<PathBuf> {
        lock(&self.engine_root).clone()
    }

    /// The time by the orchestrator's clock, when a session has measured how it differs. From then on it goes by the monotonic
    /// clock, which nobody sets.
    pub(crate) fn orchestrator_time(&self) -> Option<DateTime<Utc>> {
        let (then, seen) = (*lock(&self.orchestrator_clock))?;
        then.checked_add_signed(TimeDelta::from_std(seen.elapsed()).ok()?)
    }

    fn set_clock_offset(&self, measured: ClockFacts) {
        let now = clock_offset::theirs(self.clock.now(), measured);
        *lock(&self.orchestrator_clock) = now.map(|now| (now, Instant::now()));
    }

    pub(crate) fn set_engine_root(&self, root: PathBuf) {
        *lock(&self.engine_root) = Some(root).filter(|root| root.is_absolute());
    }

    /// Adds (`Some`) or takes away (`None`) the condition of this code that concerns `subject`.
    pub(crate) fn set_condition(&self, code: ConditionCode, subject: &str, found: Option<&str>) {
        let prefix = format!("{subject}: ");
        self.facts.send_if_modified(|facts| {
            let before = facts.degraded.clone();
            facts
                .degraded
                .retain(|told| !(told.is(code) && told.detail.starts_with(&prefix)));
            facts
                .degraded
                .extend(found.map(|found| Condition::new(code, format!("{prefix}{found}"))));
            facts.degraded != before
        });
    }
}

/// Everything below the session; one per agent process.
pub struct Workshop<H: Host> {
    shared: Arc<Shared<H>>,
    outbox: Outbox,
    tracker: TaskTracker,
    lanes: Mutex<BTreeMap<TargetId, Arc<tokio::sync::Mutex<()>>>>,
    offers: tokio::sync::Mutex<()>,
    /// What sessions ask for.
    acts: mpsc::Sender<Act>,
    log_feed: Mutex<Option<mpsc::Receiver<LogRecord>>>,
    observation_feed: Mutex<Option<mpsc::Receiver<TargetObservation>>>,
}

impl<H: Host> Workshop<H> {
    /// Opens the journal, takes up what it says was left unfinished, and begins to observe. A journal that cannot be used is
    /// no error: the agent then says that it is degraded and takes no orders.
    pub async fn start(parts: WorkshopParts<H>) -> Arc<Self> {
        let dir = parts.state_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Journal::open(&dir))
            .await
            .unwrap_or_else(|panic| Err(JournalError::Damaged(panic.to_string())));
        let (journal, stored) = match opened.and_then(|journal| Ok((journal.attempts()?, journal))) {
            Ok((stored, journal)) => (journal, stored),
            Err(error) => (Journal::damaged(&error), Vec::new()),
        };
        let (log_sender, log_feed) = mpsc::channel(logs::QUEUE);
        let (observation_sender, observation_feed) = mpsc::channel(OBSERVATIONS);
        let (acts, asked) = mpsc::channel(work::ACTS);
        let compose = parts.compose.look().await;
        let program = Program::new(Files::new(&parts.state_dir), parts.program);
        let facts = AgentFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: capabilities(&compose, &program),
            hostname: parts.hostname,
            ..AgentFacts::default()
        };
        let shared = Arc::new(Shared {
            host: parts.host,
            stickers: Stickers::new(&parts.state_dir),
            clock: parts.clock,
            identity: parts.identity,
            compose: watch::Sender::new(Arc::new(compose)),
            policy: parts.policy,
            prune: parts.prune,
            program,
            state_dir: parts.state_dir,
            shutdown: parts.shutdown,
            observer: Observer::default(),
            facts: watch::Sender::new(facts),
            engine: Mutex::default(),
            engine_root: Mutex::default(),
            orchestrator_clock: Mutex::default(),
            paths: Hanging::default(),
            images: tokio::sync::RwLock::default(),
            logs: log_sender,
            active: Mutex::default(),
            journal,
        });
        let workshop = Arc::new(Self {
            outbox: Outbox::new(shared.journal.clone()),
            shared: shared.clone(),
            tracker: parts.tracker.clone(),
            lanes: Mutex::default(),
            offers: tokio::sync::Mutex::default(),
            acts,
            log_feed: Mutex::new(Some(log_feed)),
            observation_feed: Mutex::new(Some(observation_feed)),
        });
        workshop.note_journal();
        workshop.begin_program(&stored).await;
        facts::refresh(&shared, true).await;
        for attempt in stored {
            let key = attempt.key;
            if let Err(error) = workshop.resume(attempt).await {
                workshop.journal_failed(&error);
            }
            workshop.release_turn(key);
        }
        let act = work::act(Arc::downgrade(&workshop), shared.shutdown.clone(), asked);
        parts.tracker.spawn(act);
        parts.tracker.spawn(search::run(shared.clone(), parts.compose));
        parts.tracker.spawn(observe::watch_events(shared.clone()));
        parts.tracker.spawn(prune::run(shared.clone()));
        parts.tracker.spawn(observe::run(shared, observation_sender));
        workshop
    }

    fn note_journal(&self) {
        let failure = self.shared.journal.failure();
        self.shared
            .set_condition(ConditionCode::AgentState, "journal", failure);
    }

    fn journal_failed(&self, error: &JournalError) {
        tracing::error!(
            error = error as &dyn std::error::Error,
            "the journal cannot be used"
        );
        self.note_journal();
    }

    /// Goes on with an attempt that an earlier run of the agent left unfinished.
    async fn resume(&self, stored: StoredAttempt) -> Result<(), JournalError> {
        let mut records = stored.records;
        let state = AttemptState::fold(&records);
        if state.phase == Phase::Done {
            return Ok(());
        }
        let order = match check::trusted(&stored.order) {
            Ok(order) => order,
            Err(error) => {
                tracing::error!(task.id = %stored.key.task, error = &error as &dyn std::error::Error, "an attempt cannot go on");
                return self.give_up(stored.key, Digest::of(&stored.order), &state).await;
            }
        };
        if !matches!(state.phase, Phase::Ended(_)) {
            let record = Record::Resumed {
                at: self.shared.clock.now(),
            };
            let write = Write::Record(stored.key, record.clone());
            self.shared.journal.commit(vec![write]).await?;
            records.push(record);
        }
        self.carry_out(stored.key, order, Digest::of(&stored.order), &records);
        Ok(())
    }

    /// Ends an attempt whose order cannot be read: what it did is not known, so nothing is touched and no packet can be made.
    async fn give_up(
        &self,
        key: AttemptKey,
        order: Digest,
        state: &AttemptState,
    ) -> Result<(), JournalError> {
        let mut writes = Vec::new();
        if !matches!(state.phase, Phase::Ended(_)) {
            let failure = Failure::new(
                FailureCode::AgentState,
                "the order of an attempt under way cannot be read any more: look at the host, nothing was changed since",
            );
            let event = proof::finished(Ending::Failed, Some(&failure), Vec::new(), Vec::new());
            let ended = Record::Ended {
                at: self.shared.clock.now(),
                ending: Ending::Failed,
            };
            writes.push(Write::Record(key, ended));
            writes.push(Write::Finished {
                report: self.draft(key, event),
                order,
            });
        }
        writes.push(Write::Record(key, Record::Cleaned));
        self.shared.journal.commit(writes).await
    }

    /// Takes an order: checks it in the order of the trust page, writes it down, has it carried out. Repeated orders are
    /// answered with what is known; orders that fail a check are refused and touch nothing.
    pub async fn offer(&self, task: TaskId, attempt: u32, envelope: Vec<u8>) {
        kill::at("received");
        // One at a time: looking at the highest fencing token and raising it belong together.
        let _turn = self.offers.lock().await;
        if let Err(error) = self.take(AttemptKey { task, attempt }, envelope).await {
            self.journal_failed(&error);
        }
    }

    async fn take(&self, key: AttemptKey, envelope: Vec<u8>) -> Result<(), JournalError> {
        let journal = &self.shared.journal;
        let digest = Digest::of(&envelope);
        let active = lock(&self.shared.active).get(&key).map(|active| active.order);
        if let Some(known) = active {
            if known != digest {
                tracing::warn!(task.id = %key.task, "another order for an attempt that is under way was dropped");
                return Ok(());
            }
            // Whoever offers it again does not know that it is under way, or took the agent for lost.
            let at = self.shared.clock.now();
            return journal.commit(vec![Write::StepAgain { key, at }]).await;
        }
        let shared = self.shared.clone();
        let looked = {
            let envelope = envelope.clone();
            tokio::task::spawn_blocking(move || look(&shared, key, digest, &envelope))
        };
        let known = looked
            .await
            .unwrap_or_else(|panic| Err(JournalError::Damaged(panic.to_string())))?;
        let judged = match known {
            Known::New(order) => check::judge(&self.shared, *order).await,
            Known::Refused(refusal) => return check::refuse(&self.shared, key, digest, &refusal).await,
            Known::Waiting => return Ok(()),
            Known::Taken => {
                tracing::warn!(task.id = %key.task, "an order for an attempt that is known already was dropped");
                return Ok(());
            }
            Known::Answered(finished) => {
                let report = self.draft(key, finished);
                return journal
                    .commit(vec![Write::Finished {
                        report,
                        order: digest,
                    }])
                    .await;
            }
        };
        let Checked { order, allowances } = match judged {
            Ok(checked) => checked,
            Err(refusal) => return check::refuse(&self.shared, key, digest, &refusal).await,
        };
        kill::at("verified");
        let at = self.shared.clock.now();
        let accepted = Record::Accepted { at, allowances };
        let mut writes = vec![
            Write::Order {
                key,
                bytes: envelope,
                target: order.target_id,
                fence: order.fence,
            },
            Write::Record(key, accepted.clone()),
            Write::Report(self.draft(key, Event::Accepted(Accepted {}))),
        ];
        writes.extend(steps(&accepted).into_iter().map(|(step, _)| {
            let step = step.as_str().to_owned();
            Write::Report(self.draft(key, Event::Progressed(Progressed { step })))
        }));
        kill::at("journalled.before");
        journal.commit(writes).await?;
        kill::at("journalled");
        self.carry_out(key, order, digest, &[accepted]);
        Ok(())
    }

    fn draft(&self, key: AttemptKey, event: Event) -> ReportDraft {
        ReportDraft {
            key,
            at: self.shared.clock.now(),
            event,
        }
    }

    fn carry_out(&self, key: AttemptKey, order: Order, digest: Digest, records: &[Record]) {
        let target = order.target_id;
        let stop = CancellationToken::new();
        let active = Active {
            target,
            order: digest,
            stop: stop.clone(),
            gap: Gap::default(),
        };
        lock(&self.shared.active).insert(key, active);
        let lane = lock(&self.lanes).entry(target).or_default().clone();
        let guard = ActiveGuard {
            shared: self.shared.clone(),
            key,
        };
        let shared = self.shared.clone();
        let records = records.to_vec();
        // R1 on the host's side: whoever came first, goes first. Asking here takes the place in the queue; a task's own order of
        // being run would not.
        let mut turn = Box::pin(lane.lock_owned());
        let mine = turn.as_mut().now_or_never();
        self.tracker.spawn(async move {
            let _lane = match mine {
                Some(lane) => lane,
                None => turn.await,
            };
            let result = run_to_end(&shared, key, records, &order, digest, &stop).await;
            drop(guard);
            if let Err(error) = result {
                tracing::error!(task.id = %key.task, error = &error as &dyn std::error::Error, "the attempt cannot go on");
                shared.set_condition(ConditionCode::AgentState, "journal", shared.journal.failure());
            }
            shared.observer.request(target);
        });
    }

    /// Stops a task: what ran before it runs again, and that is reported. Unknown tasks are left alone.
    pub async fn stop(&self, task: TaskId) {
        // After an offer that is being taken right now.
        let _turn = self.offers.lock().await;
        for (key, active) in lock(&self.shared.active).iter() {
            if key.task == task {
                active.stop.cancel();
            }
        }
    }

    /// Forgets what is kept of finished tasks that do not matter any more.
    pub async fn forget(&self, matters: impl Fn(TaskId) -> bool + Send + 'static) {
        let journal = self.shared.journal.clone();
        let gather = move || -> Result<Vec<AttemptKey>, JournalError> {
            let first_waiting = journal
                .reports(0, 1)?
                .first()
                .map_or(u64::MAX, |report| report.number);
            let done: BTreeMap<AttemptKey, bool> = journal
                .attempts()?
                .into_iter()
                .map(|stored| {
                    let state = AttemptState::fold(&stored.records);
                    (stored.key, state.phase == Phase::Done)
                })
                .collect();
            Ok(journal
                .answered()?
                .into_iter()
                .filter(|(key, report)| {
                    *report < first_waiting && !matters(key.task) && done.get(key).copied().unwrap_or(true)
                })
                .map(|(key, _)| key)
                .collect())
        };
        let gathered = tokio::task::spawn_blocking(gather)
            .await
            .unwrap_or_else(|panic| Err(JournalError::Damaged(panic.to_string())));
        let result = match gathered {
            Ok(keys) if keys.is_empty() => Ok(()),
            Ok(keys) => self.shared.journal.note(vec![Write::Forget(keys)]).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.journal_failed(&error);
        }
    }

    /// The reports that wait for the orchestrator.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// What is seen on each target, as it changes. For one taker: `None` the second time.
    pub fn take_observations(&self) -> Option<mpsc::Receiver<TargetObservation>> {
        lock(&self.observation_feed).take()
    }

    /// Lines of logs. For one taker: `None` the second time.
    pub fn take_logs(&self) -> Option<mpsc::Receiver<LogRecord>> {
        lock(&self.log_feed).take()
    }

    /// What the agent says about itself.
    pub fn facts(&self) -> watch::Receiver<AgentFacts> {
        self.shared.facts.subscribe()
    }

    /// Highest fencing token seen on each target.
    pub fn fences(&self) -> Result<Vec<(TargetId, Fence)>, JournalError> {
        Ok(self.shared.journal.fences()?.into_iter().collect())
    }

    /// Whether the journal takes no more writes. Only another start of the agent opens it again.
    pub fn has_failed(&self) -> bool {
        self.shared.journal.failure().is_some()
    }

    /// Whether an attempt is under way on any target.
    pub fn is_busy(&self) -> bool {
        !lock(&self.shared.active).is_empty()
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod engine_tests;
