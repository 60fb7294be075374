//! Doctor: is this host fit to be an agent? One line for each check: ok, warn or fail, and what to do about it.

use std::{fmt, path::Path, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::time::Clock;
use tokio::{process::Command, time::timeout};

use crate::{
    config::Config,
    enrol,
    host::Host,
    identity::{Enrolled, IdentityStore, connect_mtls},
};

/// How long one check may take.
const DEADLINE: Duration = Duration::from_secs(15);
/// Oldest engine API that is supported.
const OLDEST_API: (u32, u32) = (1, 41);
/// Less free space than this is a warning, or a failure below a tenth of it.
const FREE_KIB: u64 = 2 * 1024 * 1024;

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
    let mut lines = vec![writable(&config.state_dir), disk(&config.state_dir).await];
    lines.extend(engine(host).await);
    let enrolled = IdentityStore::open(config.state_dir.clone()).and_then(|store| store.load());
    match enrolled {
        Err(error) => lines.push(Line::new(
            Verdict::Fail,
            "identity",
            error.to_string(),
            "see the message",
        )),
        Ok(None) => lines.push(Line::new(
            Verdict::Fail,
            "identity",
            "this host is not enrolled",
            "get a join token (sealift target token) and run sealift-agent join",
        )),
        Ok(Some(enrolled)) => {
            lines.push(certificate(&enrolled, clock.now()));
            lines.push(orchestrator(config, &enrolled).await);
        }
    }
    lines
}

fn writable(state_dir: &Path) -> Line {
    let path = state_dir.join(".doctor");
    let tried = std::fs::create_dir_all(state_dir)
        .and_then(|()| std::fs::write(&path, b"sealift"))
        .and_then(|()| std::fs::remove_file(&path));
    let found = format!("{}", state_dir.display());
    match tried {
        Ok(()) => Line::new(Verdict::Ok, "state", found, ""),
        Err(error) => Line::new(
            Verdict::Fail,
            "state",
            format!("{found}: {error}"),
            "the agent's user must be able to write there",
        ),
    }
}

async fn disk(state_dir: &Path) -> Line {
    let advice = "free space on the host (docker system df)";
    let df = Command::new("df")
        .arg("-Pk")
        .arg(state_dir)
        .kill_on_drop(true)
        .output();
    match timeout(DEADLINE, df).await {
        Ok(Ok(output)) => match free_kib(&String::from_utf8_lossy(&output.stdout)) {
            Some(free) => {
                let verdict = match free {
                    free if free < FREE_KIB / 10 => Verdict::Fail,
                    free if free < FREE_KIB => Verdict::Warn,
                    _ => Verdict::Ok,
                };
                Line::new(verdict, "disk", format!("{} MiB free", free / 1024), advice)
            }
            None => Line::new(Verdict::Warn, "disk", "df says nothing that can be read", advice),
        },
        Ok(Err(error)) => Line::new(
            Verdict::Warn,
            "disk",
            format!("df cannot be run: {error}"),
            advice,
        ),
        Err(_) => Line::new(
            Verdict::Fail,
            "disk",
            "df does not answer",
            "a file system hangs: look at the host",
        ),
    }
}

/// The fourth column of the second line of `df -Pk`.
fn free_kib(output: &str) -> Option<u64> {
    output.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()
}

async fn engine<H: Host>(host: Option<&H>) -> Vec<Line> {
    let advice =
        "check the engine (systemctl status docker), its socket, and that the agent's user may use it";
    let Some(host) = host else {
        return vec![Line::new(
            Verdict::Fail,
            "engine",
            "its socket cannot be used",
            advice,
        )];
    };
    match timeout(DEADLINE, host.engine()).await {
        Err(_) => vec![Line::new(Verdict::Fail, "engine", "does not answer", advice)],
        Ok(Err(error)) => vec![Line::new(Verdict::Fail, "engine", error.to_string(), advice)],
        Ok(Ok(engine)) => {
            let is_new = version(&engine.api).is_some_and(|api| api >= OLDEST_API);
            let verdict = if is_new { Verdict::Ok } else { Verdict::Fail };
            vec![
                Line::new(
                    Verdict::Ok,
                    "engine",
                    format!("{} {} on {}", engine.name, engine.version, engine.platform),
                    "",
                ),
                Line::new(
                    verdict,
                    "engine API",
                    engine.api,
                    "1.41 (Engine 20.10) or newer is needed: update the engine",
                ),
            ]
        }
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
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

async fn orchestrator(config: &Config, enrolled: &Enrolled) -> Line {
    let endpoint = config
        .orchestrator
        .clone()
        .or_else(|| enrol::enrolled_at(&config.state_dir));
    let Some(endpoint) = endpoint else {
        return Line::new(
            Verdict::Fail,
            "orchestrator",
            "none is known",
            "name it with --orchestrator https://host:port",
        );
    };
    let credential = enrolled.next.as_ref().unwrap_or(&enrolled.current);
    let advice = "check name, port, firewall and clock; the agent only needs to reach this one address";
    match timeout(
        DEADLINE,
        connect_mtls(&endpoint, &enrolled.identity.ca_pem, credential),
    )
    .await
    {
        Ok(Ok(_)) => Line::new(Verdict::Ok, "orchestrator", endpoint.to_string(), ""),
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            Line::new(Verdict::Fail, "orchestrator", format!("{error}{cause}"), advice)
        }
        Err(_) => Line::new(
            Verdict::Fail,
            "orchestrator",
            format!("{endpoint} does not answer"),
            advice,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_is_read_by_columns() {
        let output = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/x 100 40 60 40% /\n";
        assert_eq!(free_kib(output), Some(60));
        assert_eq!(free_kib("nonsense"), None);
    }

    #[test]
    fn api_levels_compare_as_numbers() {
        assert!(version("1.41") >= Some(OLDEST_API));
        assert!(version("1.100") > version("1.99"));
        assert!(version("1.40") < Some(OLDEST_API));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn lines_never_carry_control_characters() {
        let line = Line::new(Verdict::Fail, "engine", "bad\u{1b}[31m", "look");
        assert_eq!(line.to_string(), "FAIL  engine       bad [31m; look");
    }
}
