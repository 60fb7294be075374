//! Program: the agent's own program as something that an order may exchange ([`crate::runner::program`] does it). What runs, what
//! may run, who starts it, and how it is shown that it works.

pub mod files;
pub mod launcher;
pub mod marker;

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use sealift_common::{digest::Digest, keys::PublicKey, name::Name, program};
use semver::Version;
use tokio::{
    sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use files::Files;
use launcher::Launched;
use marker::{Installed, Marker, is_superseded};

use crate::journal::AttemptKey;

/// What stays free on the disk of the agent's state when a program comes in: journal, logs and markers still have to be written.
const RESERVE: u64 = 16 * 1024 * 1024;

/// What the orchestrator has answered in this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// When it answered a heartbeat for the first time.
    pub since: Instant,
    /// When it did for the last time.
    pub last: Instant,
}

/// The orchestrator's answers without a break: the agent is connected, welcomed, and had a heartbeat answered. `None` while it
/// does not answer; a session that ends is a break.
pub type Link = Option<Answers>;

/// What the host's owner allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpdatePolicy {
    /// Who may sign programs. Without any, no order exchanges the program.
    pub publishers: Vec<PublicKey>,
    /// No program before this one; `None` is the packaged one.
    pub oldest: Option<Version>,
    /// Environment and name of the one target that may exchange the program; `None` is the first that did.
    pub target: Option<(Name, Name)>,
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
    /// Bytes that stay free on the disk of the agent's state when a program comes in.
    pub reserve: u64,
}

impl Default for ProgramParts {
    /// Of an agent whose program nobody exchanges.
    fn default() -> Self {
        Self {
            policy: UpdatePolicy::default(),
            launched: Launched::default(),
            link: watch::Sender::new(None).subscribe(),
            hand_over: CancellationToken::new(),
            reserve: RESERVE,
        }
    }
}

/// What is seen of the agent's programs.
#[derive(Debug)]
pub(crate) struct Seen {
    /// What this process runs.
    pub(crate) running: Digest,
    /// The marker as it is now.
    pub(crate) marker: Marker,
    /// What a launcher would start now.
    pub(crate) chosen: Digest,
}

/// The agent's program, shared.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) files: Files,
    pub(crate) policy: UpdatePolicy,
    pub(crate) launched: Launched,
    pub(crate) link: watch::Receiver<Link>,
    pub(crate) reserve: u64,
    hand_over: CancellationToken,
    /// Whether a runner waits for the proof that the orchestrator answers all the time.
    wants_proof: watch::Sender<bool>,
    /// What the launcher did not start, and this process instead.
    passed_over: OnceLock<BTreeSet<AttemptKey>>,
    /// Held for reading by whoever deploys something else, for writing by whoever exchanges the program.
    turn: Arc<RwLock<()>>,
    /// The turn of an exchange that was under way when this process started, and which that is.
    kept: Mutex<Option<(AttemptKey, OwnedRwLockWriteGuard<()>)>>,
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
            reserve: parts.reserve,
            wants_proof: watch::Sender::new(false),
            passed_over: OnceLock::new(),
            turn: Arc::default(),
            kept: Mutex::default(),
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

    /// Puts a marker that cannot be read aside; gives where it is now.
    pub(crate) async fn set_marker_aside(&self) -> io::Result<PathBuf> {
        let files = self.files.clone();
        aside(move || files.set_marker_aside()).await
    }

    /// Drops what an earlier process left of a program on its way in, and finds out what the launcher passed over to start this one.
    /// Before anything else is done.
    pub(crate) async fn begin(&self) -> io::Result<()> {
        let files = self.files.clone();
        let dropped = aside(move || files.drop_incoming()).await;
        let marker = self.marker().await?;
        // Most agents never exchange their program, and then nothing has to be read for it.
        if marker.trial.is_some() || marker.current.is_some() {
            let running = self.running().await?;
            let superseded = self.is_superseded(&marker).await;
            let passed_over = marker.passed_over(superseded, running, self.launched.is_supervised);
            self.passed_over.get_or_init(|| passed_over);
        }
        dropped
    }

    /// Whether the packaged program takes over from the current one.
    async fn is_superseded(&self, marker: &Marker) -> bool {
        let packaged = self.packaged().await;
        is_superseded(marker, &self.launched.packaged, || packaged)
    }

    /// What runs, what the marker says, and what follows from it.
    pub(crate) async fn look(&self) -> io::Result<Seen> {
        let running = self.running().await?;
        let marker = self.marker().await?;
        let superseded = self.is_superseded(&marker).await;
        // A packaged program that cannot be read cannot be started either.
        let packaged = self.packaged().await.unwrap_or(running);
        let chosen = match self.passed_over.get() {
            Some(passed_over) => marker.chosen(superseded, packaged, passed_over),
            None => marker.chosen(superseded, packaged, &BTreeSet::new()),
        };
        Ok(Seen {
            running,
            marker,
            chosen,
        })
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

    /// Asks for the proof that the orchestrator answers all the time, for as long as the value lives.
    pub(crate) fn ask_for_proof(&self) -> ProofAsked<'_> {
        self.wants_proof.send_replace(true);
        ProofAsked(&self.wants_proof)
    }

    /// Whether that proof is asked for.
    pub(crate) fn wants_proof(&self) -> watch::Receiver<bool> {
        self.wants_proof.subscribe()
    }

    /// Keeps everybody else from beginning anything until the exchange that is under way has its turn. At the start, when nobody
    /// holds it yet.
    pub(crate) fn keep_turn(&self, exchange: AttemptKey) {
        if let Ok(turn) = self.turn.clone().try_write_owned() {
            *self.kept() = Some((exchange, turn));
        }
    }

    /// The turn that was kept for this exchange. Whoever ends without having gone on with it takes it too, so that nothing waits for
    /// a turn that nobody has.
    pub(crate) fn kept_turn(&self, exchange: AttemptKey) -> Option<OwnedRwLockWriteGuard<()>> {
        let mut kept = self.kept();
        kept.take_if(|(whose, _)| *whose == exchange)
            .map(|(_, turn)| turn)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<(AttemptKey, OwnedRwLockWriteGuard<()>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The proof that the orchestrator answers all the time is asked for while this lives.
#[derive(Debug)]
pub(crate) struct ProofAsked<'a>(&'a watch::Sender<bool>);

impl Drop for ProofAsked<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::samples;

    #[tokio::test]
    async fn a_kept_turn_is_for_its_exchange_and_whoever_takes_it_gives_it_back() {
        let state = tempfile::tempdir().unwrap();
        let program = Program::new(Files::new(state.path()), ProgramParts::default());
        let (ours, other) = (samples::key(1), samples::key(2));
        program.keep_turn(ours);
        program.keep_turn(other);
        assert!(program.share().now_or_never().is_none(), "nothing else begins");
        assert!(program.kept_turn(other).is_none(), "the first keeps it");
        let turn = program.kept_turn(ours).unwrap();
        assert!(program.kept_turn(ours).is_none());
        assert!(program.share().now_or_never().is_none());
        drop(turn);
        assert!(program.share().now_or_never().is_some());
    }

    #[tokio::test]
    async fn the_proof_is_asked_for_only_while_somebody_waits_for_it() {
        let state = tempfile::tempdir().unwrap();
        let program = Program::new(Files::new(state.path()), ProgramParts::default());
        let wanted = program.wants_proof();
        assert!(!*wanted.borrow());
        let asked = program.ask_for_proof();
        assert!(*wanted.borrow());
        drop(asked);
        assert!(!*wanted.borrow());
    }
}
