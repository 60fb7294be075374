//! Agent: a whole agent in one value, for `main` and for tests that run thousands of them with a fake engine in one process.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sealift_common::{spiffe::SpiffeId, time::Clock};
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    bindings::Bindings,
    compose::Search,
    config::Config,
    connect::{Dice, Finish, Line, Notice, Notices},
    credentials::Credentials,
    enrol,
    host::Host,
    identity::{IdentityError, IdentityStore},
    program::{Answers, Link, ProgramParts, launcher::Launched},
    work::Feeds,
    workshop::{AgentIdentity, Workshop, WorkshopParts},
};

/// How long steps that are under way may take to be written down when the process stops.
const STOPPING: Duration = Duration::from_secs(30);
/// How long work that is under way may go on after the orchestrator has dismissed the agent.
const FINISHING: Duration = Duration::from_hours(1);

/// How long an agent before this one may take to be gone.
const GOING_DOWN: Duration = Duration::from_secs(2);
/// How long an agent whose journal failed stays to say so, before it ends to be started again.
const FAILED_STAY: Duration = Duration::from_mins(5);

/// What an agent is made of.
pub struct AgentOptions<H> {
    /// Settings.
    pub config: Config,
    /// The container engine.
    pub host: H,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// Random numbers from 0 up to 1.
    pub dice: Dice,
    /// How this process came to run.
    pub launched: Launched,
    /// Name of the host, for people.
    pub hostname: String,
    /// Told how the agent is.
    pub notices: Notices,
    /// Ends the agent; work that is under way goes on when it is started again.
    pub shutdown: CancellationToken,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another agent works with the state directory.
    #[error("another agent uses {0}: only one process may; stop it first")]
    InUse(PathBuf),
    /// The state directory cannot be used.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The journal takes no more writes.
    #[error("the agent's journal failed: see the log for why; start the agent again to go on")]
    Journal,
    /// The identity cannot be read.
    #[error("the agent's identity cannot be used")]
    Identity(#[from] IdentityError),
    /// The host was never enrolled.
    #[error("this host is not enrolled: get a join token (sealift target token) and run sealift-agent join")]
    NotEnrolled,
    /// No orchestrator is known.
    #[error("no orchestrator is known: name it with --orchestrator https://host:port")]
    NoOrchestrator,
}

/// Keeps every other agent from the state directory, for as long as it lives.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock as soon as the process that has it is gone, which may be going down right now.
    pub async fn await_free(state_dir: &Path) -> Result<Self, AgentError> {
        let give_up = Instant::now() + GOING_DOWN;
        loop {
            match Self::take(state_dir) {
                Err(AgentError::InUse(_)) if Instant::now() < give_up => sleep(GOING_DOWN / 40).await,
                other => return other,
            }
        }
    }

    /// Takes the lock or says that another process has it.
    pub fn take(state_dir: &Path) -> Result<Self, AgentError> {
        let path = state_dir.join("lock");
        let failed = |source| AgentError::Lock {
            path: path.clone(),
            source,
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(AgentError::InUse(state_dir.to_owned())),
            Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// Runs an agent until it is stopped or dismissed. What the journal says was left unfinished is taken up first.
pub async fn run<H: Host>(options: AgentOptions<H>) -> Result<Finish, AgentError> {
    let AgentOptions {
        config,
        host,
        clock,
        dice,
        launched,
        hostname,
        notices,
        shutdown,
    } = options;
    let (link, notices) = linked(notices);
    let hand_over = CancellationToken::new();
    let store = IdentityStore::open(config.state_dir.clone())?;
    let _lock = StateLock::await_free(&config.state_dir).await?;
    let enrolled = store.load()?.ok_or(AgentError::NotEnrolled)?;
    let endpoint = config
        .orchestrator
        .or_else(|| enrol::enrolled_at(&config.state_dir))
        .ok_or(AgentError::NoOrchestrator)?;
    let evidence_key = store.evidence_key()?;
    let credentials = Arc::new(Credentials::new(store.clone(), enrolled));
    let identity = credentials.identity().clone();
    let serial = Arc::clone(&credentials);
    let tracker = TaskTracker::new();
    let work_stop = CancellationToken::new();
    let compose = Search::new(
        config.compose,
        &config.state_dir,
        &config.engine_socket,
        config.docker_config_file.as_deref(),
    );
    let workshop = Workshop::start(WorkshopParts {
        host,
        state_dir: config.state_dir,
        clock: Arc::clone(&clock),
        identity: AgentIdentity {
            agent_id: identity.agent_id,
            bindings: Bindings::of(store.clone(), identity.bindings.clone()),
            order_keys: identity.order_keys.clone(),
            evidence_key,
            spiffe_id: SpiffeId::agent(identity.tenant.clone(), identity.agent_id),
            certificate_serial: Box::new(move || serial.serial()),
        },
        compose,
        policy: config.policy,
        prune: config.prune,
        program: ProgramParts {
            policy: config.update,
            launched,
            link,
            hand_over: hand_over.clone(),
            ..ProgramParts::default()
        },
        hostname,
        shutdown: work_stop.clone(),
        tracker: tracker.clone(),
    })
    .await;
    let line = Line {
        endpoint,
        credentials,
        clock,
        dice,
        notices: Arc::clone(&notices),
        stop: shutdown.clone(),
    };
    notices(Notice::Ready);
    let finish = match (workshop.take_observations(), workshop.take_logs()) {
        (Some(observations), Some(logs)) => {
            let mut feeds = Feeds { observations, logs };
            tokio::select! {
                finish = line.run(&*workshop, &mut feeds) => Ok(finish),
                () = failed_for_long(&workshop) => Err(AgentError::Journal),
                () = hand_over.cancelled() => Ok(Finish::HandedOver),
            }
        }
        // A workshop that was just made has both.
        _ => Ok(Finish::Stopped),
    };
    if let Ok(Finish::Dismissed { reason }) = &finish {
        tracing::error!(
            reason,
            "the orchestrator does not want this agent any more; what runs on the host stays as it is"
        );
        wait_idle(&workshop, &shutdown).await;
    }
    work_stop.cancel();
    tracker.close();
    if timeout(STOPPING, tracker.wait()).await.is_err() {
        tracing::warn!(
            "some steps did not end in time; they are taken up from the journal at the next start"
        );
    }
    finish
}

/// How the orchestrator answers, found out from what is told anyway.
fn linked(notices: Notices) -> (watch::Receiver<Link>, Notices) {
    let (sender, link) = watch::channel(None);
    let told = move |notice| {
        match notice {
            Notice::Answered => {
                let last = Instant::now();
                sender.send_modify(|link| {
                    let since = link.map_or(last, |answers: Answers| answers.since);
                    *link = Some(Answers { since, last });
                });
            }
            // Whatever was answered before counts no more.
            Notice::Connected | Notice::Away => {
                sender.send_if_modified(|link| link.take().is_some());
            }
            Notice::Ready => {}
        }
        notices(notice);
    };
    (link, Arc::new(told))
}

/// Returns when the journal failed a while ago and nothing is under way: the disk may be well again, and only a new process can
/// open the file anew.
pub(crate) async fn failed_for_long<H: Host>(workshop: &Workshop<H>) {
    let mut looks = interval(Duration::from_secs(1));
    while !workshop.has_failed() {
        looks.tick().await;
    }
    sleep(FAILED_STAY).await;
    while workshop.is_busy() {
        looks.tick().await;
    }
}

async fn wait_idle<H: Host>(workshop: &Workshop<H>, shutdown: &CancellationToken) {
    let idle = async {
        let mut looks = interval(Duration::from_secs(1));
        while workshop.is_busy() {
            looks.tick().await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        idle = timeout(FINISHING, idle) => {
            if idle.is_err() {
                tracing::warn!("work is still under way after an hour; it is left to the journal");
            }
        }
    }
}

/// Name of this host, for people.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().chars().take(64).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_count_from_the_first_of_a_session() {
        let (link, notices) = linked(Arc::new(|_: Notice| {}));
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        for notice in [Notice::Ready, Notice::Connected] {
            notices(notice);
            assert_eq!(*link.borrow(), None, "connected is not answered");
        }
        notices(Notice::Answered);
        tokio::time::advance(second).await;
        notices(Notice::Answered);
        let (since, last) = (begin, begin + second);
        assert_eq!(*link.borrow(), Some(Answers { since, last }));
        // A link that breaks starts the count anew.
        notices(Notice::Away);
        assert_eq!(*link.borrow(), None);
        notices(Notice::Connected);
        tokio::time::advance(second).await;
        notices(Notice::Answered);
        let since = begin + 2 * second;
        assert_eq!(*link.borrow(), Some(Answers { since, last: since }));
    }

    #[test]
    fn only_one_process_may_use_a_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateLock::take(directory.path()).unwrap();
        assert!(matches!(
            StateLock::take(directory.path()),
            Err(AgentError::InUse(_))
        ));
        drop(first);
        StateLock::take(directory.path()).unwrap();
    }
}
