//! Journal: the agent's durable memory, one redb file. Orders as they were signed, the highest fencing token per target, the
//! records of each attempt, results for repeated orders, and the reports that are not yet acknowledged.
//!
//! Writes that come at the same time share one commit and so one fsync. After a failed commit the journal takes no more
//! writes: what the disk holds is then unknown until the agent is started again (F8).

mod record;
mod tables;

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use prost::Message as _;
use redb::{Database, Durability, ReadableDatabase};
use sealift_common::{
    compose_manifest::Lifetime,
    digest::Digest,
    id::{TargetId, TaskId},
    name::{ProjectRef, ServiceName},
    order::Fence,
};
use sealift_proto::agent::v1::{Report, report::Event};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

use crate::{causes::chain, files::sync_folder, prune::PulledImage};

pub use record::{
    AttemptState, Cause, Ending, HookOutcome, HookRef, HookRun, LockRef, Locked, MOST_RESTORE_STARTS,
    MOST_STARTS, OldContainer, OldOfCompose, Phase, Record, steps,
};

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "agent.redb";
/// Memory for pages of the file.
const CACHE_BYTES: usize = 8 * 1024 * 1024;
/// How long opening waits for another agent to let go of the file: two seconds in all.
const OPEN_TRIES: u32 = 40;
const OPEN_PAUSE: Duration = Duration::from_millis(50);

/// Why the journal cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The database refused.
    #[error("the agent's journal cannot be read or written")]
    Storage(#[source] Arc<redb::Error>),
    /// The file cannot be opened.
    #[error("the agent's journal cannot be opened")]
    File(#[source] Arc<std::io::Error>),
    /// What is in it is not what was written.
    #[error("the agent's journal is damaged: {0}")]
    Damaged(String),
    /// An earlier write failed.
    #[error("the agent's journal failed before: {0}")]
    Failed(String),
}

impl<E: Into<redb::Error>> From<E> for JournalError {
    fn from(error: E) -> Self {
        Self::Storage(Arc::new(error.into()))
    }
}

/// One attempt of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey {
    /// The task.
    pub task: TaskId,
    /// The attempt, from 1.
    pub attempt: u32,
}

/// A report that has no number yet.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportDraft {
    /// What it is about.
    pub key: AttemptKey,
    /// When.
    pub at: DateTime<Utc>,
    /// What happened.
    pub event: Event,
}

/// How an attempt was answered, kept for repeated orders.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Digest of the order's envelope.
    pub order: Digest,
    /// Number of the report.
    pub report: u64,
    /// The report's event.
    pub finished: Event,
}

/// What was recorded of a set when it was committed, to notice changes and to know its order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// Fencing token of the order.
    pub fence: Fence,
    /// The services in the order in which they were started.
    pub services: Vec<BaselineService>,
    /// The lock that was brought up, on a compose host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockRef>,
    /// The program that was found good, on a target that is an agent's own program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Digest>,
}

impl Baseline {
    /// Whether this container is one of the set and still as it was.
    pub fn knows(&self, container: &str, fingerprint: Digest) -> bool {
        let mut services = self.services.iter();
        services.any(|known| known.container == container && known.fingerprint == fingerprint)
    }
}

/// One service of a [`Baseline`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineService {
    /// The service.
    pub service: ServiceName,
    /// Its container.
    pub container: String,
    /// Fingerprint of the container.
    pub fingerprint: Digest,
    /// Digest of the service's description, on a compose host: its containers carry no label that changes with every order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Digest>,
    /// Whether it is meant to run for ever, on a compose host; not known of sets from before this was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Lifetime>,
}

/// An attempt as the journal has it.
#[derive(Debug, Clone)]
pub struct StoredAttempt {
    /// Which.
    pub key: AttemptKey,
    /// The order's envelope.
    pub order: Vec<u8>,
    /// Its records.
    pub records: Vec<Record>,
}

impl StoredAttempt {
    /// Whether it has come to its end, cleaned up after or not.
    pub fn is_over(&self) -> bool {
        matches!(
            AttemptState::fold(&self.records).phase,
            Phase::Ended(_) | Phase::Done
        )
    }
}

/// One thing to write.
#[derive(Debug, Clone)]
pub enum Write {
    /// An accepted order; raises the target's highest fencing token.
    Order {
        /// Which attempt.
        key: AttemptKey,
        /// The envelope's exact bytes.
        bytes: Vec<u8>,
        /// The target.
        target: TargetId,
        /// The order's fencing token.
        fence: Fence,
    },
    /// A record of an attempt.
    Record(AttemptKey, Record),
    /// A report, which gets the next number.
    Report(ReportDraft),
    /// The final report of an attempt, kept as the answer to repeated orders.
    Finished {
        /// The report.
        report: ReportDraft,
        /// Digest of the order's envelope.
        order: Digest,
    },
    /// The present step of an attempt, reported once more; nothing when it has ended. Found out in the same commit, so that it
    /// never follows a later step.
    StepAgain {
        /// Which attempt.
        key: AttemptKey,
        /// When.
        at: DateTime<Utc>,
    },
    /// What was committed on a target.
    Baseline {
        /// The target.
        target: TargetId,
        /// The project.
        project: ProjectRef,
        /// What was committed.
        baseline: Baseline,
    },
    /// An image that was not on the host and was pulled for an order.
    ImagePulled {
        /// `repository@digest`.
        reference: String,
        /// When.
        at: DateTime<Utc>,
    },
    /// An order asks for an image; nothing when it is not one that was pulled for an order.
    ImageUsed {
        /// `repository@digest`.
        reference: String,
        /// When.
        at: DateTime<Utc>,
    },
    /// A pulled image is not on the host any more.
    ImageGone {
        /// `repository@digest`.
        reference: String,
    },
    /// Everything about attempts of tasks that nobody asks for any more.
    Forget(Vec<AttemptKey>),
}

struct Request {
    writes: Vec<Write>,
    durable: bool,
    reply: oneshot::Sender<Result<(), JournalError>>,
}

type Answered = oneshot::Receiver<Result<(), JournalError>>;

struct Shared {
    database: Option<Database>,
    queue: Mutex<Vec<Request>>,
    writing: Mutex<()>,
    failed: OnceLock<String>,
    /// The highest fencing tokens, for when the file cannot be read any more.
    fences: Mutex<BTreeMap<TargetId, Fence>>,
    tip: watch::Sender<u64>,
}

/// The journal. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Opens or makes the journal in `state_dir` (mode 0600) and reads it once from end to end. Blocks.
    pub fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let database = Self::open_file(state_dir)?;
        let transaction = database.begin_write()?;
        tables::make(&transaction)?;
        transaction.commit()?;
        let journal = Self::over(Some(database));
        let next = journal.next_report()?;
        journal.shared.tip.send_replace(next);
        *lock(&journal.shared.fences) = journal.fences()?;
        journal.attempts()?;
        Ok(journal)
    }

    fn open_file(state_dir: &Path) -> Result<Database, JournalError> {
        let mut tries = 0;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(state_dir.join(FILE_NAME))
                .map_err(|error| JournalError::File(Arc::new(error)))?;
            match Database::builder().set_cache_size(CACHE_BYTES).create_file(file) {
                // The agent before this one may still be going down.
                Err(redb::DatabaseError::DatabaseAlreadyOpen) if tries < OPEN_TRIES => {
                    tries += 1;
                    std::thread::sleep(OPEN_PAUSE);
                }
                other => {
                    // A file that is new is kept only once the folder that names it is.
                    sync_folder(state_dir).map_err(|error| JournalError::File(Arc::new(error)))?;
                    return Ok(other?);
                }
            }
        }
    }

    /// A journal that cannot be used: every call gives an error, nothing is written.
    pub fn damaged(reason: &JournalError) -> Self {
        let journal = Self::over(None);
        journal.fail(reason);
        journal
    }

    fn over(database: Option<Database>) -> Self {
        Self {
            shared: Arc::new(Shared {
                database,
                queue: Mutex::default(),
                writing: Mutex::default(),
                failed: OnceLock::new(),
                fences: Mutex::default(),
                tip: watch::Sender::new(1),
            }),
        }
    }

    pub(crate) fn fail(&self, error: &JournalError) {
        // The first failure is the one that counts.
        let _ = self.shared.failed.set(chain(error));
    }

    /// Why the journal takes no more writes, if so.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failed.get().map(String::as_str)
    }

    fn database(&self) -> Result<&Database, JournalError> {
        if let Some(reason) = self.failure() {
            return Err(JournalError::Failed(reason.to_owned()));
        }
        self.shared
            .database
            .as_ref()
            .ok_or_else(|| JournalError::Failed("not open".to_owned()))
    }

    /// Writes all of `writes` or nothing, and returns when they are on the disk.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<(), JournalError> {
        self.submit(writes, true).await
    }

    /// As [`Journal::commit`], but a crash may lose the writes (never a part of them). For what is found out again anyway.
    pub async fn note(&self, writes: Vec<Write>) -> Result<(), JournalError> {
        self.submit(writes, false).await
    }

    /// As [`Journal::commit`], but for what nothing waits for: the next commit comes after it, and fails if this one did.
    pub fn post(&self, writes: Vec<Write>) -> Result<(), JournalError> {
        self.hand_in(writes, true).map(|_| ())
    }

    async fn submit(&self, writes: Vec<Write>, durable: bool) -> Result<(), JournalError> {
        let (answer, writer) = self.hand_in(writes, durable)?;
        if let Ok(result) = answer.await {
            return result;
        }
        let reason = writer.await.map_or_else(
            |error| error.to_string(),
            |()| "the writer gave no answer".to_owned(),
        );
        let error = JournalError::Damaged(reason);
        self.fail(&error);
        Err(error)
    }

    fn hand_in(&self, writes: Vec<Write>, durable: bool) -> Result<(Answered, JoinHandle<()>), JournalError> {
        self.database()?;
        let (reply, answer) = oneshot::channel();
        lock(&self.shared.queue).push(Request {
            writes,
            durable,
            reply,
        });
        let journal = self.clone();
        // Whoever gets there first writes for all that wait; the others find the queue empty.
        let writer = tokio::task::spawn_blocking(move || {
            let (requests, result) = journal.drain();
            // Whoever hears that a write is done may close the file.
            drop(journal);
            for request in requests {
                // A caller that no longer waits was dropped; its writes stand.
                let _ = request.reply.send(result.clone());
            }
        });
        Ok((answer, writer))
    }

    fn drain(&self) -> (Vec<Request>, Result<(), JournalError>) {
        let _writing = lock(&self.shared.writing);
        let requests = std::mem::take(&mut *lock(&self.shared.queue));
        if requests.is_empty() {
            return (requests, Ok(()));
        }
        let durable = requests.iter().any(|request| request.durable);
        let writes = requests.iter().flat_map(|request| &request.writes);
        let result = self.transact(durable, |transaction| {
            writes
                .into_iter()
                .try_for_each(|write| tables::write(transaction, write))
        });
        if result.is_ok() {
            let mut known = lock(&self.shared.fences);
            for write in requests.iter().flat_map(|request| &request.writes) {
                if let Write::Order { target, fence, .. } = write {
                    let highest = known.entry(*target).or_default();
                    *highest = (*highest).max(*fence);
                }
            }
        }
        (requests, result)
    }

    fn transact(
        &self,
        durable: bool,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let run = || {
            let mut transaction = self.database()?.begin_write()?;
            if !durable {
                transaction
                    .set_durability(Durability::None)
                    .map_err(|error| JournalError::Damaged(error.to_string()))?;
            }
            work(&transaction)?;
            let next = tables::next_report(&transaction)?;
            transaction.commit()?;
            Ok(next)
        };
        match run() {
            Ok(next) => {
                self.shared.tip.send_if_modified(|tip| {
                    let changed = *tip != next;
                    *tip = next;
                    changed
                });
                Ok(())
            }
            Err(error) => {
                self.fail(&error);
                Err(error)
            }
        }
    }

    /// Number that the next report gets, as far as it was ever known here.
    pub fn known_next_report(&self) -> u64 {
        *self.shared.tip.borrow()
    }

    /// Number that the next report gets; counts from 1.
    pub fn next_report(&self) -> Result<u64, JournalError> {
        tables::read_next_report(&self.database()?.begin_read()?)
    }

    /// The next report's number, as it changes.
    pub fn tip(&self) -> watch::Receiver<u64> {
        self.shared.tip.subscribe()
    }

    /// Reports above `after`, in order.
    pub fn reports(&self, after: u64, most: usize) -> Result<Vec<Report>, JournalError> {
        tables::reports(&self.database()?.begin_read()?, after, most)
    }

    /// Drops the reports up to `number`, which the orchestrator has stored. Not synced: a crash only makes them be sent again.
    pub fn acknowledge(&self, number: u64) -> Result<(), JournalError> {
        let _writing = lock(&self.shared.writing);
        self.transact(false, |transaction| tables::acknowledge(transaction, number))
    }

    /// Makes `number` the last one used, when the orchestrator knows higher numbers than this journal.
    pub fn skip_reports(&self, number: u64) -> Result<(), JournalError> {
        let _writing = lock(&self.shared.writing);
        self.transact(true, |transaction| tables::skip(transaction, number))
    }

    /// Highest fencing token seen on `target`.
    pub fn highest(&self, target: TargetId) -> Result<Fence, JournalError> {
        Ok(self.fences()?.get(&target).copied().unwrap_or_default())
    }

    /// Highest fencing token per target.
    pub fn fences(&self) -> Result<BTreeMap<TargetId, Fence>, JournalError> {
        tables::fences(&self.database()?.begin_read()?)
    }

    /// Highest fencing token per target as far as it was ever known here, whether or not the file can still be read.
    pub fn known_fences(&self) -> BTreeMap<TargetId, Fence> {
        lock(&self.shared.fences).clone()
    }

    /// How an attempt was answered, if it was.
    pub fn answer(&self, key: AttemptKey) -> Result<Option<Answer>, JournalError> {
        tables::answer(&self.database()?.begin_read()?, key)
    }

    /// The order of an attempt, if one was accepted.
    pub fn order(&self, key: AttemptKey) -> Result<Option<Vec<u8>>, JournalError> {
        tables::order(&self.database()?.begin_read()?, key)
    }

    /// One attempt with its records; the chain is checked.
    pub fn attempt(&self, key: AttemptKey) -> Result<Option<StoredAttempt>, JournalError> {
        let found = tables::attempts(&self.database()?.begin_read()?)?;
        Ok(found.into_iter().find(|stored| stored.key == key))
    }

    /// All attempts with their records; the chain of each is checked.
    pub fn attempts(&self) -> Result<Vec<StoredAttempt>, JournalError> {
        tables::attempts(&self.database()?.begin_read()?)
    }

    /// What was last committed on a target for a project.
    pub fn baseline(&self, target: TargetId, project: &ProjectRef) -> Result<Option<Baseline>, JournalError> {
        tables::baseline(&self.database()?.begin_read()?, target, project)
    }

    /// What was last committed on a target, by project.
    pub fn baselines(&self, target: TargetId) -> Result<Vec<(ProjectRef, Baseline)>, JournalError> {
        tables::baselines(&self.database()?.begin_read()?, target)
    }

    /// Images that were pulled for orders and may still be on the host, by `repository@digest`.
    pub fn images(&self) -> Result<BTreeMap<String, PulledImage>, JournalError> {
        tables::images(&self.database()?.begin_read()?)
    }

    /// Attempts that were answered, with the numbers of the reports that did it.
    pub fn answered(&self) -> Result<Vec<(AttemptKey, u64)>, JournalError> {
        tables::answered(&self.database()?.begin_read()?)
    }
}

/// A report as it goes on the wire.
fn encode_report(number: u64, draft: &ReportDraft) -> Vec<u8> {
    Report {
        number,
        task_id: draft.key.task.to_string(),
        attempt: draft.key.attempt,
        time: Some(timestamp(draft.at)),
        event: Some(draft.event.clone()),
    }
    .encode_to_vec()
}

fn timestamp(at: DateTime<Utc>) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp {
        seconds: at.timestamp(),
        nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
