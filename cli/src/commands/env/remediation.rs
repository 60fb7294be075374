//! What an environment does about drift.

use std::time::Duration;

use clap::{Args, ValueEnum};
use sealift_proto::v1::{Remediation, drift::Severity, remediation::Mode};

use crate::{
    commands::drift::{SeverityArg, severity},
    recipe::duration,
};

/// What is done about drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RemediationArg {
    /// It is told, and a person decides.
    Alert,
    /// The recorded release is put back, within limits.
    Reconcile,
}

/// What is done about drift, and how far that may go.
#[derive(Debug, Args)]
pub struct RemediationArgs {
    /// What is done about drift.
    #[arg(long, value_enum)]
    remediation: Option<RemediationArg>,
    /// Most tries for one project on one target within 24 hours: 1 to 10.
    #[arg(long, requires = "remediation")]
    max_tries: Option<i32>,
    /// What is less severe is only told.
    #[arg(long, value_enum, requires = "remediation")]
    min_severity: Option<SeverityArg>,
    /// Shortest time between two tries in the environment.
    #[arg(long, value_parser = humantime::parse_duration, requires = "remediation")]
    remediation_pause: Option<Duration>,
}

impl RemediationArgs {
    /// What is wanted; `None` when nothing was said about it.
    pub fn wanted(&self) -> Option<Remediation> {
        let mode = match self.remediation? {
            RemediationArg::Alert => Mode::Alert,
            RemediationArg::Reconcile => Mode::Reconcile,
        };
        Some(Remediation {
            mode: mode.into(),
            max_tries: self.max_tries.unwrap_or(0),
            min_severity: self
                .min_severity
                .map_or(Severity::Unspecified, Severity::from)
                .into(),
            pause: self.remediation_pause.map(duration),
        })
    }
}

/// A policy in a few words.
pub fn shown(remediation: Option<&Remediation>) -> String {
    let Some(policy) = remediation.filter(|policy| policy.mode() == Mode::Reconcile) else {
        return "alert".to_owned();
    };
    let above = match policy.min_severity() {
        Severity::Unspecified | Severity::Low => String::new(),
        least => format!(", {} and above", severity(least)),
    };
    let seconds = policy
        .pause
        .as_ref()
        .and_then(|pause| u64::try_from(pause.seconds).ok())
        .unwrap_or(0);
    format!(
        "reconcile ({} a day{above}, pause {})",
        policy.max_tries,
        humantime::format_duration(Duration::from_secs(seconds))
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RemediationArgs,
    }

    fn parse(line: &str) -> Result<Option<Remediation>, clap::Error> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args.wanted())
    }

    #[test]
    fn limits_belong_to_a_policy_that_is_named() {
        assert_eq!(parse("").unwrap(), None);
        assert!(parse("--max-tries 2").is_err());
        let alert = parse("--remediation alert").unwrap();
        assert_eq!(shown(alert.as_ref()), "alert");
        let line = "--remediation reconcile --max-tries 2 --min-severity high --remediation-pause 5m";
        let policy = parse(line).unwrap();
        assert_eq!(
            shown(policy.as_ref()),
            "reconcile (2 a day, high and above, pause 5m)"
        );
    }
}
