//! Launcher: the packaged program before it becomes the agent. It looks at the marker and starts what is to run: itself, the current
//! program (which takes its place), or one on trial, which it stays beside until that one has shown that it works. It is small, and
//! the only part of an agent that an update does not replace.

use std::{
    ffi::OsString, fs::File, io, os::unix::process::CommandExt as _, path::PathBuf, process::ExitStatus,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use sealift_common::digest::Digest;
use semver::Version;
use tokio::{
    process::{Child, Command},
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    files::{self, Files},
    marker::{Choice, Installed, MOST_BOOTS, Marker, Trial, Why, is_superseded},
};
use crate::kill;

/// Exit code when the orchestrator does not want this agent any more. Restarting does not help: do not (systemd:
/// `RestartPreventExitStatus=3`).
pub const DISMISSED: u8 = 3;
/// Exit code of a supervised program that asks for whatever the marker says now to be started in its place.
pub const HAND_OVER: u8 = 86;

/// Tells a started program where the packaged one is.
pub const LAUNCHER: &str = "SEALIFT_AGENT_LAUNCHER";
/// Tells a started program the version of the packaged one.
pub const PACKAGED: &str = "SEALIFT_AGENT_PACKAGED";
/// Tells a started program what kept another from being started in its place.
pub const PROBLEM: &str = "SEALIFT_AGENT_PROBLEM";
/// Tells a started program that its parent, which has this process id, supervises it.
pub const SUPERVISOR: &str = "SEALIFT_AGENT_SUPERVISOR";

/// What a program gets beyond its own deadline before it is ended: it gives itself up in order if it can.
const GRACE: Duration = Duration::from_secs(15);
/// How long a program that is told to end may take.
const ENDING: Duration = Duration::from_secs(5);
/// The same when the whole agent is told to end.
const STOPPING: Duration = Duration::from_secs(45);
/// How often it is looked whether a program has shown that it works.
const LOOK: Duration = Duration::from_millis(500);
/// Wait before the second start of a program on trial; doubled before the third.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a marker that the disk does not give is asked for before it is put aside.
const MARKER_TRIES: u32 = 3;
/// How long another launcher may take to be gone.
const CLAIM: Duration = Duration::from_secs(10);

/// How this process came to run.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The packaged program; without one this process cannot hand over to another.
    pub launcher: Option<PathBuf>,
    /// Its version.
    pub packaged: Version,
    /// Whether the parent starts whatever comes next.
    pub is_supervised: bool,
    /// The program that this process runs.
    pub own: PathBuf,
    /// What kept another program from being started in this one's place.
    pub problem: Option<String>,
}

/// The version of this program.
pub fn own_version() -> Version {
    // The compiler has put it there; cargo refuses versions that are none.
    Version::parse(env!("CARGO_PKG_VERSION")).unwrap_or_else(|_| Version::new(0, 0, 0))
}

impl Default for Launched {
    fn default() -> Self {
        Self {
            launcher: None,
            packaged: own_version(),
            is_supervised: false,
            own: PathBuf::from("/proc/self/exe"),
            problem: None,
        }
    }
}

impl Launched {
    /// What is left to a process that hands over: it becomes the launcher again, or ends so that its parent goes on. Comes back
    /// only with an exit code or an error.
    pub fn hand_over(&self, arguments: &[OsString]) -> io::Result<u8> {
        kill::at("handed_over.before");
        if self.is_supervised {
            return Ok(HAND_OVER);
        }
        let Some(launcher) = &self.launcher else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        let mut command = std::process::Command::new(launcher);
        command.args(arguments);
        for name in [LAUNCHER, PACKAGED, PROBLEM, SUPERVISOR] {
            command.env_remove(name);
        }
        Err(command.exec())
    }
}

/// What the launcher came to.
#[derive(Debug)]
pub enum Start {
    /// This process is to be the agent.
    Here(Launched),
    /// What it started has ended, and so is it to do with this exit code.
    Ended(u8),
}

/// The launcher.
pub struct Launcher<'a> {
    /// The programs.
    pub files: Files,
    /// The packaged program: this process's own.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// What is given to every program that is started.
    pub arguments: Vec<OsString>,
    /// Told every now and then that all is well while a program is on trial.
    pub beat: &'a (dyn Fn() + Send + Sync),
    /// Ends everything.
    pub stop: CancellationToken,
}

enum Next {
    /// Look at the marker again.
    Again,
    /// What was started has ended, and so does this process.
    Ended(u8),
    /// The trial cannot go on, and that cannot be written down: this is why.
    NoTrial(String),
}

impl Launcher<'_> {
    /// Starts what is to run. Comes back when that is this process, or has ended. Whatever is wrong with the disk, something runs: what
    /// cannot be locked or counted is not tried, and then a program that was found good runs, or the packaged one.
    pub async fn launch(&self) -> Start {
        let mut claim: Option<File> = None;
        loop {
            let marker = match self.marker().await {
                Ok(marker) => marker,
                Err(error) => return self.here(Some(self.without_marker(&error))),
            };
            if marker.trial.is_some() && claim.is_none() {
                match self.claim().await {
                    Ok(Some(taken)) => claim = Some(taken),
                    Ok(None) => {
                        tracing::error!("another process is starting this agent's programs");
                        return Start::Ended(1);
                    }
                    Err(error) => {
                        return self.without_trial(marker, &format!("nothing can be locked for it: {error}"));
                    }
                }
                continue;
            }
            let (next, choice) = marker.clone().next_start(self.is_superseded(&marker));
            if next != marker {
                // What cannot be counted is not tried.
                if let Err(error) = self.files.set_marker(&next) {
                    return self.without_trial(marker, &format!("its start cannot be counted: {error}"));
                }
                kill::at("launch_counted");
            }
            let next = match choice {
                Choice::Try(trial) => self.supervise(trial).await,
                Choice::Packaged | Choice::Current(_) => return self.settled(choice, None),
            };
            match next {
                Next::Again => {}
                Next::Ended(code) => return Start::Ended(code),
                Next::NoTrial(problem) => {
                    // It may have changed meanwhile, but a trial is not begun any more.
                    let now = self.files.marker().unwrap_or(marker);
                    return self.without_trial(now, &problem);
                }
            }
        }
    }

    /// The marker. What is no marker will never be one; anything else may be over in a moment.
    async fn marker(&self) -> io::Result<Marker> {
        for _ in 0..MARKER_TRIES {
            match self.files.marker() {
                Err(error) if error.kind() != io::ErrorKind::InvalidData => sleep(LOOK).await,
                read => return read,
            }
        }
        self.files.marker()
    }

    /// Starts what runs when nothing is on trial, and says what kept the trial from going on.
    fn without_trial(&self, marker: Marker, problem: &str) -> Start {
        let what = marker.trial.as_ref().map_or_else(
            || "a new program".to_owned(),
            |trial| format!("new program {}", trial.installed.program.short()),
        );
        let problem = format!("{what} is not tried: {problem}");
        tracing::error!(
            problem,
            "a program that was found good runs in place of a new one"
        );
        let settled = Marker {
            trial: None,
            ..marker
        };
        let superseded = self.is_superseded(&settled);
        self.settled(settled.next_start(superseded).1, Some(problem))
    }

    /// Starts a program that needs no trial. With a `problem`, it says so.
    fn settled(&self, choice: Choice, problem: Option<String>) -> Start {
        let Choice::Current(installed) = choice else {
            return self.here(problem);
        };
        let failed = self.become_program(&installed, problem.as_deref());
        self.here(Some(match problem {
            Some(problem) => format!("{problem}; {failed}"),
            None => failed,
        }))
    }

    /// A marker that cannot be read must not be in the way for ever: it is put aside, and the packaged program runs. Gives what to say.
    fn without_marker(&self, error: &io::Error) -> String {
        match self.files.set_marker_aside() {
            Ok(aside) => format!(
                "the marker could not be read ({error}) and was put aside as {}",
                aside.display()
            ),
            Err(moving) => format!("the marker cannot be read ({error}) nor be put aside: {moving}"),
        }
    }

    fn here(&self, problem: Option<String>) -> Start {
        if let Some(problem) = &problem {
            tracing::error!(problem, "the packaged program runs in place of another");
        }
        Start::Here(Launched {
            launcher: Some(self.program.clone()),
            packaged: self.version.clone(),
            is_supervised: false,
            problem,
            ..Launched::default()
        })
    }

    fn is_superseded(&self, marker: &Marker) -> bool {
        is_superseded(marker, &self.version, || self.own_digest())
    }

    fn own_digest(&self) -> Option<Digest> {
        files::digest_of(&self.program).ok().map(|(digest, _)| digest)
    }

    /// The right to start programs; `None` when another process keeps it.
    async fn claim(&self) -> io::Result<Option<File>> {
        let give_up = Instant::now() + CLAIM;
        loop {
            let claim = self.files.claim()?;
            if claim.is_some() || Instant::now() >= give_up || self.stop.is_cancelled() {
                return Ok(claim);
            }
            sleep(LOOK / 5).await;
        }
    }

    /// Lets a program that was found good take this process over. Comes back only with what is wrong with it.
    fn become_program(&self, installed: &Installed, problem: Option<&str>) -> String {
        let named = |problem: String| {
            format!(
                "program {} (version {}) {problem}",
                installed.program.short(),
                installed.version
            )
        };
        match self.files.is_whole(installed.program) {
            Ok(true) => {}
            Ok(false) => return named("is gone or was changed on the host".to_owned()),
            Err(error) => return named(format!("cannot be read: {error}")),
        }
        let mut command = std::process::Command::new(self.files.program(installed.program));
        command
            .args(&self.arguments)
            .env(LAUNCHER, &self.program)
            .env(PACKAGED, self.version.to_string())
            .env_remove(PROBLEM)
            .env_remove(SUPERVISOR)
            .envs(problem.map(|problem| (PROBLEM, problem)));
        named(format!("cannot be started: {}", command.exec()))
    }

    /// Starts a program on trial and stays beside it.
    async fn supervise(&self, trial: Trial) -> Next {
        let program = trial.installed.program;
        match self.files.is_whole(program) {
            Ok(true) => {}
            Ok(false) => {
                return self.give_up(
                    &trial,
                    Why::Damaged,
                    "its file is gone or was changed on the host",
                );
            }
            Err(error) => {
                return self.give_up(&trial, Why::Damaged, &format!("its file cannot be read: {error}"));
            }
        }
        tracing::info!(
            program = %program.short(), version = %trial.installed.version, start = trial.boots,
            "starting a new program on trial"
        );
        let mut command = Command::new(self.files.program(program));
        command
            .args(&self.arguments)
            .env(LAUNCHER, &self.program)
            .env(PACKAGED, self.version.to_string())
            .env(SUPERVISOR, std::process::id().to_string())
            .env_remove(PROBLEM)
            // It speaks to systemd itself.
            .env_remove("WATCHDOG_PID")
            .kill_on_drop(true);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return self.give_up(&trial, Why::Died, &format!("it cannot be started: {error}")),
        };
        kill::at("launched");
        self.watch(trial, child).await
    }

    async fn watch(&self, trial: Trial, mut child: Child) -> Next {
        let patience = Duration::from_millis(trial.patience_ms) + GRACE;
        let give_up_at = Instant::now() + patience;
        let mut on_trial = true;
        let mut looks = interval(LOOK);
        loop {
            tokio::select! {
                status = child.wait() => return self.after_end(&trial, status).await,
                () = self.stop.cancelled() => {
                    let status = end(&mut child, STOPPING).await;
                    return Next::Ended(code_of(status));
                }
                _ = looks.tick(), if on_trial => {
                    (self.beat)();
                    on_trial = self.is_on_trial(&trial);
                    if on_trial && Instant::now() >= give_up_at {
                        end(&mut child, ENDING).await;
                        let detail = format!("it did not show within {} s that it works", patience.as_secs());
                        return self.give_up(&trial, Why::Silent, &detail);
                    }
                }
            }
        }
    }

    /// Whether the program has still not shown that it works. A marker that cannot be read shows nothing.
    fn is_on_trial(&self, trial: &Trial) -> bool {
        self.files.marker().map_or(true, |marker| {
            marker.trial.is_some_and(|now| now.installed == trial.installed)
        })
    }

    async fn after_end(&self, trial: &Trial, status: io::Result<ExitStatus>) -> Next {
        let said = status
            .as_ref()
            .map_or_else(ToString::to_string, ToString::to_string);
        let code = code_of(status.ok());
        if code == HAND_OVER {
            return Next::Again;
        }
        if !self.is_on_trial(trial) {
            return Next::Ended(code);
        }
        // A program that has not shown that it works does not switch the host off: the one before finds a real dismissal itself.
        if code == DISMISSED {
            return self.give_up(trial, Why::Died, "it took itself for dismissed");
        }
        tracing::error!(
            status = said,
            start = trial.boots,
            "the program on trial ended by itself"
        );
        if trial.boots >= MOST_BOOTS {
            let detail = format!(
                "it ended by itself {} times, the last time with {said}",
                trial.boots
            );
            return self.give_up(trial, Why::Died, &detail);
        }
        let pause = PAUSE * 2_u32.pow(trial.boots.saturating_sub(1));
        tokio::select! {
            () = sleep(pause) => Next::Again,
            () = self.stop.cancelled() => Next::Ended(0),
        }
    }

    /// The program before runs again, unless this one has shown in the last moment that it works.
    fn give_up(&self, trial: &Trial, why: Why, detail: &str) -> Next {
        if !self.is_on_trial(trial) {
            return Next::Again;
        }
        tracing::error!(detail, "the new program is given up; the one before runs again");
        kill::at("given_up.before");
        let given_up = self
            .files
            .marker()
            .and_then(|marker| self.files.set_marker(&marker.give_up(why, detail)));
        kill::at("given_up");
        match given_up {
            Ok(()) => Next::Again,
            // The next start counts once more, which is bounded too.
            Err(error) => Next::NoTrial(format!("{detail}, which cannot be written down: {error}")),
        }
    }
}

/// Asks a child to end, then ends it.
async fn end(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        // One that is gone already needs no signal.
        let _ = kill_process(pid, Signal::TERM);
    }
    if let Ok(status) = timeout(patience, child.wait()).await {
        return status.ok();
    }
    if let Err(error) = child.kill().await {
        tracing::error!(%error, "a program could not be ended");
    }
    None
}

fn code_of(status: Option<ExitStatus>) -> u8 {
    status
        .and_then(|status| status.code())
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1)
}
