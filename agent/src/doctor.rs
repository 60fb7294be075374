//! Doctor: is this host fit to be an agent? One line for each check: ok, warn or fail, and what to do about it.

mod orchestrator;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::time::Clock;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    compose::tool::Tool,
    config::Config,
    facts,
    host::{Host, docker::auth},
    identity::{Enrolled, IdentityError, IdentityStore},
};

/// How long one check may take.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long a registry may take to be reached.
const REACH: Duration = Duration::from_secs(5);
/// Most registries that are tried.
const REGISTRIES: usize = 8;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but not for long or not well.
    Warn,
    /// Does not work.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How it ended.
    pub verdict: Verdict,
    /// What was looked at.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// What to do; empty when nothing.
    pub advice: String,
}

impl Line {
    fn new(verdict: Verdict, what: &'static str, found: impl Into<String>, advice: &str) -> Self {
        let advice = if verdict == Verdict::Ok {
            String::new()
        } else {
            advice.to_owned()
        };
        Self {
            verdict,
            what,
            found: found.into(),
            advice,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let clean = |text: &str| {
            text.chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect::<String>()
        };
        write!(f, "{verdict}  {:<12} {}", self.what, clean(&self.found))?;
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

/// Makes all checks. Changes nothing but a temporary file in the state directory.
pub async fn examine<H: Host>(config: &Config, host: Option<&H>, clock: &dyn Clock) -> Vec<Line> {
    let mut lines = vec![
        writable(&config.state_dir),
        disk("state disk", config.state_dir.clone(), facts::STATE_MIN_FREE).await,
    ];
    if !config.update.publishers.is_empty() {
        lines.push(updates(&config.state_dir));
    }
    lines.extend(engine(config, host).await);
    lines.push(compose(config.compose.program.as_deref()).await);
    lines.push(registries(config).await);
    match enrolled(&config.state_dir) {
        Err(error) => lines.push(Line::new(
            Verdict::Fail,
            "identity",
            error.to_string(),
            "see the message; run this as the agent's user (runuser -u sealift-agent -- sealift-agent doctor)",
        )),
        Ok(None) => lines.push(Line::new(
            Verdict::Fail,
            "identity",
            "this host is not enrolled",
            "get a join token (sealift target token) and run sealift-agent join",
        )),
        Ok(Some(enrolled)) => {
            lines.push(certificate(&enrolled, clock.now()));
            lines.extend(orchestrator::examine(config, &enrolled, clock).await);
        }
    }
    lines
}

/// Who the agent is. The store makes its directory, which is not for a look to do.
fn enrolled(state_dir: &Path) -> Result<Option<Enrolled>, IdentityError> {
    if !state_dir.is_dir() {
        return Ok(None);
    }
    IdentityStore::open(state_dir.to_owned())?.load()
}

fn writable(state_dir: &Path) -> Line {
    let path = state_dir.join(".doctor");
    let found = format!("{}", state_dir.display());
    let tried = std::fs::write(&path, b"sealift").and_then(|()| std::fs::remove_file(&path));
    match tried {
        // Whoever makes it decides who may enter it, and that is for the agent's user alone to say.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Line::new(
            Verdict::Fail,
            "state",
            format!("{found} is missing"),
            "sealift-agent join makes it, run as the agent's user",
        ),
        Ok(()) => Line::new(Verdict::Ok, "state", found, ""),
        Err(error) => Line::new(
            Verdict::Fail,
            "state",
            format!("{found}: {error}"),
            "the agent's user must be able to write there",
        ),
    }
}

async fn disk(what: &'static str, path: PathBuf, min_free: u64) -> Line {
    let advice =
        "free space on the host (docker system df), or let the agent do it ([prune] of its settings)";
    let shown = path.display().to_string();
    match facts::look(facts::STATE, path).await {
        Some(disk) => {
            let verdict = match disk.free_bytes {
                free if free < min_free / 10 => Verdict::Fail,
                _ if facts::is_low(&disk, min_free, false) => Verdict::Warn,
                _ => Verdict::Ok,
            };
            let found = format!("{} MiB free at {shown}", disk.free_bytes / (1024 * 1024));
            Line::new(verdict, what, found, advice)
        }
        None => Line::new(
            Verdict::Warn,
            what,
            format!("{shown} does not say how full it is"),
            "it cannot be seen from here, or its file system hangs: look at the host",
        ),
    }
}

async fn engine<H: Host>(config: &Config, host: Option<&H>) -> Vec<Line> {
    let advice = "check the engine (systemctl status docker), its socket, and that the agent's user may use it (group docker)";
    let Some(host) = host else {
        return vec![Line::new(
            Verdict::Fail,
            "engine",
            "its socket cannot be used",
            advice,
        )];
    };
    let engine = match timeout(DEADLINE, host.engine()).await {
        Err(_) => return vec![Line::new(Verdict::Fail, "engine", "does not answer", advice)],
        Ok(Err(error)) => return vec![Line::new(Verdict::Fail, "engine", error.to_string(), advice)],
        Ok(Ok(engine)) => engine,
    };
    let verdict = if facts::is_old(&engine.api) {
        Verdict::Fail
    } else {
        Verdict::Ok
    };
    let found = format!("{} {} on {}", engine.name, engine.version, engine.platform);
    let mut lines = vec![
        Line::new(Verdict::Ok, "engine", found, ""),
        Line::new(
            verdict,
            "engine API",
            engine.api,
            "1.41 (Engine 20.10) or newer is needed: update the engine",
        ),
    ];
    if let Ok(Ok(details)) = timeout(DEADLINE, host.details()).await
        && details.root.is_absolute()
    {
        lines.push(disk("engine disk", details.root, config.prune.min_free).await);
    }
    lines
}

/// Whether programs that orders bring could be started from where they lie.
fn updates(state_dir: &Path) -> Line {
    match rustix::fs::statvfs(state_dir) {
        Ok(stat) if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC) => Line::new(
            Verdict::Fail,
            "updates",
            format!(
                "the file system of {} forbids programs (noexec)",
                state_dir.display()
            ),
            "mount it without noexec, or take the publishers out of section [update]",
        ),
        Ok(_) => Line::new(
            Verdict::Ok,
            "updates",
            "programs of trusted publishers can be started",
            "",
        ),
        Err(error) => Line::new(
            Verdict::Warn,
            "updates",
            format!("{} cannot be looked at: {error}", state_dir.display()),
            "see that it is there",
        ),
    }
}

/// The host's Compose, found as the agent finds it: `compose.program`, or where programs of the system are.
async fn compose(program: Option<&Path>) -> Line {
    const WHAT: &str = "compose";
    if let Some(tool) = Tool::detect(program).await {
        return Line::new(Verdict::Ok, WHAT, tool.to_string(), "");
    }
    match program {
        Some(program) => Line::new(
            Verdict::Fail,
            WHAT,
            format!("{} does not work", program.display()),
            "correct program in section [compose] of the settings, or leave it out",
        ),
        None => Line::new(
            Verdict::Warn,
            WHAT,
            "there is none",
            "only compose-host targets need it: install docker-compose-plugin or docker-compose",
        ),
    }
}

/// Whether the registries that the host has credentials for can be reached. Whether a password counts shows with a pull.
async fn registries(config: &Config) -> Line {
    const WHAT: &str = "registries";
    let Some(file) = &config.docker_config_file else {
        return Line::new(
            Verdict::Ok,
            WHAT,
            "no credentials are set: public images only",
            "",
        );
    };
    let found = match auth::registries(file).await {
        Ok(found) => found,
        Err(error) => {
            let advice = "make it anew (docker login), readable for the agent's user";
            return Line::new(
                Verdict::Fail,
                WHAT,
                format!("{}: {error}", file.display()),
                advice,
            );
        }
    };
    let mut away = Vec::new();
    for registry in found.iter().take(REGISTRIES) {
        let address = if registry.contains(':') {
            registry.clone()
        } else {
            format!("{registry}:443")
        };
        if !matches!(timeout(REACH, TcpStream::connect(&address)).await, Ok(Ok(_))) {
            away.push(registry.as_str());
        }
    }
    if away.is_empty() {
        let found = format!("credentials for {} in {}", found.len(), file.display());
        return Line::new(Verdict::Ok, WHAT, found, "");
    }
    let advice = "check name, DNS and firewall: images there cannot be pulled";
    Line::new(
        Verdict::Warn,
        WHAT,
        format!("not reached: {}", away.join(", ")),
        advice,
    )
}

fn certificate(enrolled: &Enrolled, now: DateTime<Utc>) -> Line {
    let credential = enrolled.next.as_ref().unwrap_or(&enrolled.current);
    let left = credential.not_after() - now;
    if now < credential.not_before() {
        let advice = "the host's clock is behind: synchronise it (timedatectl)";
        return Line::new(Verdict::Fail, "certificate", "is not valid yet", advice);
    }
    let found = format!("ends in {} h", left.num_hours());
    if left <= TimeDelta::zero() {
        let advice = "check the clock; if it is right, enrol the host again with a new state directory";
        return Line::new(Verdict::Fail, "certificate", "has expired", advice);
    }
    let life = credential.not_after() - credential.not_before();
    let verdict = if left < life / 5 {
        Verdict::Warn
    } else {
        Verdict::Ok
    };
    Line::new(
        verdict,
        "certificate",
        found,
        "it should have been renewed by now: is the agent running and connected?",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_never_carry_control_characters() {
        let line = Line::new(Verdict::Fail, "engine", "bad\u{1b}[31m", "look");
        assert_eq!(line.to_string(), "FAIL  engine       bad [31m; look");
    }

    #[tokio::test]
    async fn compose_is_the_program_that_the_agent_would_run() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-compose");
        let line = compose(Some(&program)).await;
        assert_eq!(line.verdict, Verdict::Fail);
        assert!(line.found.contains(program.to_str().unwrap()), "{line}");
        std::fs::write(&program, "#!/bin/sh\necho v2.30.1\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let line = compose(Some(&program)).await;
        assert_eq!(line.verdict, Verdict::Ok);
        assert_eq!(line.found, format!("2.30.1 ({})", program.display()));
    }

    #[test]
    fn a_look_at_a_host_without_a_state_directory_makes_none() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("state");
        let line = writable(&missing);
        assert_eq!(line.verdict, Verdict::Fail);
        assert!(line.to_string().contains("is missing"), "{line}");
        assert!(enrolled(&missing).unwrap().is_none());
        assert!(!missing.exists());
        assert_eq!(writable(folder.path()).verdict, Verdict::Ok);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn programs_need_a_file_system_that_lets_them_start() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(updates(folder.path()).verdict, Verdict::Ok);
        assert_eq!(updates(&folder.path().join("absent")).verdict, Verdict::Warn);
        // The kernel's own files are never programs, on every system with systemd.
        let proc = updates(Path::new("/proc"));
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let forbids = mounts
            .lines()
            .rfind(|line| line.contains(" /proc proc "))
            .is_some_and(|line| line.contains("noexec"));
        assert_eq!(proc.verdict == Verdict::Fail, forbids, "{proc}");
    }
}
