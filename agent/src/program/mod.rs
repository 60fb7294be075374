//! Program: the agent's own program as something that an order may exchange ([`crate::runner::program`] does it). What runs, what
//! may run, who starts it, and how it is shown that it works.

pub mod files;
pub mod launcher;
pub mod marker;

use std::{io, sync::Arc};

use sealift_common::{digest::Digest, keys::PublicKey, program};
use semver::Version;
use tokio::{
    sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use files::Files;
use launcher::Launched;
use marker::{Installed, Marker};

/// Since when the orchestrator answers without a break: the agent is connected, welcomed, and had a heartbeat answered. `None` while it
/// does not.
pub type Link = Option<Instant>;

/// What the host's owner allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpdatePolicy {
    /// Who may sign programs. Without any, no order exchanges the program.
    pub publishers: Vec<PublicKey>,
    /// No program before this one; `None` is the packaged one.
    pub oldest: Option<Version>,
}

/// What the program's part of a workshop is made of.
#[derive(Debug)]
pub struct ProgramParts {
    /// What is allowed.
    pub policy: UpdatePolicy,
    /// How this process came to run.
    pub launched: Launched,
    /// Whether the orchestrator answers.
    pub link: watch::Receiver<Link>,
    /// Cancelled when the process is to hand over to whatever the marker says.
    pub hand_over: CancellationToken,
}

impl Default for ProgramParts {
    /// Of an agent whose program nobody exchanges.
    fn default() -> Self {
        Self {
            policy: UpdatePolicy::default(),
            launched: Launched::default(),
            link: watch::Sender::new(None).subscribe(),
            hand_over: CancellationToken::new(),
        }
    }
}

/// The agent's program, shared.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) files: Files,
    pub(crate) policy: UpdatePolicy,
    pub(crate) launched: Launched,
    pub(crate) link: watch::Receiver<Link>,
    hand_over: CancellationToken,
    /// Held for reading by whoever deploys something else, for writing by whoever exchanges the program.
    turn: Arc<RwLock<()>>,
    /// The turn of an exchange that was under way when this process started.
    kept: std::sync::Mutex<Option<OwnedRwLockWriteGuard<()>>>,
    running: OnceCell<Digest>,
}

impl Program {
    pub(crate) fn new(files: Files, parts: ProgramParts) -> Self {
        Self {
            files,
            policy: parts.policy,
            launched: parts.launched,
            link: parts.link,
            hand_over: parts.hand_over,
            turn: Arc::default(),
            kept: std::sync::Mutex::default(),
            running: OnceCell::new(),
        }
    }

    /// Whether orders may exchange the program here.
    pub(crate) fn is_enabled(&self) -> bool {
        !self.policy.publishers.is_empty() && self.launched.launcher.is_some()
    }

    /// No program before this one.
    pub(crate) fn oldest(&self) -> &Version {
        self.policy.oldest.as_ref().unwrap_or(&self.launched.packaged)
    }

    /// What this process was built for.
    pub(crate) fn platform() -> String {
        program::platform(std::env::consts::OS, std::env::consts::ARCH)
    }

    /// Digest of the program that this process runs.
    pub(crate) async fn running(&self) -> io::Result<Digest> {
        let own = self.launched.own.clone();
        let read = || async move {
            aside(move || files::digest_of(&own))
                .await
                .map(|(digest, _)| digest)
        };
        self.running.get_or_try_init(read).await.copied()
    }

    /// Digest of the packaged program, if it can be read.
    pub(crate) async fn packaged(&self) -> Option<Digest> {
        let launcher = self.launched.launcher.clone()?;
        let (digest, _) = aside(move || files::digest_of(&launcher)).await.ok()?;
        Some(digest)
    }

    /// The marker as it is now.
    pub(crate) async fn marker(&self) -> io::Result<Marker> {
        let files = self.files.clone();
        aside(move || files.marker()).await
    }

    /// Replaces the marker.
    pub(crate) async fn set_marker(&self, marker: Marker) -> io::Result<()> {
        let files = self.files.clone();
        aside(move || files.set_marker(&marker)).await
    }

    /// What runs: its digest, and what is known of it when it is not the packaged program.
    pub(crate) async fn seen(&self) -> io::Result<(Digest, Option<Installed>)> {
        let running = self.running().await?;
        let known = self.marker().await?.known(running).cloned();
        Ok((running, known))
    }

    /// Asks the process to hand over.
    pub(crate) fn hand_over(&self) {
        self.hand_over.cancel();
    }

    /// Keeps everybody else from beginning anything until the exchange that is under way has its turn. At the start, when nobody
    /// holds it yet.
    pub(crate) fn keep_turn(&self) {
        let turn = self.turn.clone().try_write_owned().ok();
        *self
            .kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = turn;
    }

    /// The turn that was kept for an exchange.
    pub(crate) fn kept_turn(&self) -> Option<OwnedRwLockWriteGuard<()>> {
        self.kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }

    /// The turn to exchange the program: nothing else is under way, and nothing begins. Whoever comes after waits from now on.
    pub(crate) async fn exchange(&self) -> OwnedRwLockWriteGuard<()> {
        self.turn.clone().write_owned().await
    }

    /// The turn of everything else.
    pub(crate) async fn share(&self) -> OwnedRwLockReadGuard<()> {
        self.turn.clone().read_owned().await
    }
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
