//! Errors as people and CI need them: what, why, what next; and exit codes to branch on.

use std::{
    io::{self, ErrorKind},
    path::Path,
    process::ExitCode,
};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::output::text::{clean, lines};

/// Exit codes of `sealift`. `sealift exit-codes` prints this table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; with `--wait`: the promotion is deployed.
    Done,
    /// The command failed, or what it waited for ended failed or cancelled.
    Failed,
    /// With `--detailed-exitcode`: differences exist.
    Differences,
    /// Rejected by a gate.
    Rejected,
    /// No or wrong credentials, or the role does not allow it.
    Denied,
    /// Not found, or in conflict with the present state.
    Conflict,
    /// The orchestrator, or a registry that it asks, cannot be reached or did not answer in time: the same may work later.
    Unreachable,
    /// Wrong usage, or input that is not valid.
    Usage,
    /// `--timeout` passed; what was requested goes on.
    TimedOut,
    /// Ctrl-C; what was requested goes on.
    Interrupted,
}

impl Exit {
    /// Code, and what it means.
    pub const TABLE: [(Self, u8, &'static str); 10] = [
        (Self::Done, 0, "done; with --wait: the promotion is deployed"),
        (
            Self::Failed,
            1,
            "failed; with --wait: the promotion ended failed or cancelled",
        ),
        (
            Self::Differences,
            2,
            "only with --detailed-exitcode: there are differences",
        ),
        (
            Self::Rejected,
            3,
            "rejected by a gate at the request; what a gate stops later (GATE_CLOSED) ends failed: 1",
        ),
        (
            Self::Denied,
            4,
            "not authenticated, or the role does not allow it",
        ),
        (
            Self::Conflict,
            5,
            "not found, or in conflict with the present state",
        ),
        (
            Self::Unreachable,
            6,
            "the orchestrator, or a registry that it asks, cannot be reached or did not answer in time",
        ),
        (Self::Usage, 64, "wrong usage or input that is not valid"),
        (
            Self::TimedOut,
            124,
            "--timeout passed; what was requested goes on",
        ),
        (Self::Interrupted, 130, "Ctrl-C; what was requested goes on"),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        Self::TABLE
            .iter()
            .find(|(exit, ..)| *exit == self)
            .map_or(1, |(_, code, _)| *code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The orchestrator refused or failed.
    #[error("{}", .0.message())]
    Status(Box<Status>),
    /// The orchestrator cannot be reached.
    #[error("the orchestrator at {endpoint} cannot be reached")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// What the user gave does not fit.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Something on this machine failed.
    #[error("{what}")]
    Local {
        /// What failed.
        what: String,
        /// What to do.
        hint: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was started here did not do what it should.
    #[error("{message}")]
    Failed {
        /// What happened.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Evidence that does not verify.
    #[error("{0}")]
    NotVerified(String),
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl CliError {
    /// Wrong input, and what to do about it.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage {
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// Something that was started here failed, and what to do about it.
    pub fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// A file or folder that cannot be used; `problem` follows its path: "cannot be read".
    pub fn file(path: &Path, problem: &str, error: io::Error) -> Self {
        let hint = match error.kind() {
            ErrorKind::NotFound => "check the path; it is relative to where the command runs",
            ErrorKind::PermissionDenied => "check who owns it and who may use it (ls -l)",
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free space there",
            ErrorKind::ReadOnlyFilesystem => "choose a place that can be written to",
            _ => "check the path and the file system that it is on",
        };
        Self::local(format!("{} {problem}", path.display()), hint, error)
    }

    /// A failure of this machine, and what to do about it.
    pub fn local(
        what: impl Into<String>,
        hint: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Local {
            what: what.into(),
            hint: hint.into(),
            source: source.into(),
        }
    }

    /// The exit code that tells CI what kind of failure it was.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::Usage,
            Self::Local { .. } | Self::Failed { .. } | Self::NotVerified(_) => Exit::Failed,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Status(status) => match status.code() {
                Code::Unauthenticated | Code::PermissionDenied => Exit::Denied,
                Code::NotFound | Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => {
                    Exit::Conflict
                }
                Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
                // Too much to do at the moment is as good as away: the same works later.
                Code::Unavailable | Code::ResourceExhausted => Exit::Unreachable,
                // A broken connection reaches us as Unknown with a transport error behind it.
                Code::Unknown if is_transport(status) => Exit::Unreachable,
                _ if is_late(status) => Exit::Unreachable,
                _ => Exit::Failed,
            },
        }
    }

    /// Prints what, why, what next to standard error.
    pub fn print(&self) {
        anstream::eprintln!("error: {}", lines(&self.to_string(), 7));
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            anstream::eprintln!("cause: {}", lines(&error.to_string(), 7));
            cause = error.source();
        }
        match self {
            Self::Usage { hint, .. } | Self::Local { hint, .. } | Self::Failed { hint, .. }
                if !hint.is_empty() =>
            {
                anstream::eprintln!("hint: {}", clean(hint));
            }
            Self::Unreachable { .. } => {
                anstream::eprintln!(
                    "hint: check that the orchestrator runs and that `sealift context show` names the right endpoint"
                );
            }
            Self::Status(status) if is_late(status) => {
                anstream::eprintln!(
                    "hint: the orchestrator did not answer in time; what was asked for may have been done all the same, so look before you repeat it"
                );
                print_details(status);
            }
            Self::Status(status) => print_details(status),
            _ => {}
        }
    }
}

fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The orchestrator's deadline, or our own, which tonic reports as a cancelled call.
fn is_late(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

fn print_details(status: &Status) {
    let details = status.get_error_details();
    if let Some(bad) = details.bad_request() {
        for violation in &bad.field_violations {
            anstream::eprintln!("  {}: {}", clean(&violation.field), clean(&violation.description));
        }
    }
    if let Some(failure) = details.precondition_failure() {
        for violation in &failure.violations {
            anstream::eprintln!(
                "  {}: {}",
                clean(&violation.subject),
                clean(&violation.description)
            );
        }
    }
    if let Some(retry) = details.retry_info().and_then(|info| info.retry_delay) {
        anstream::eprintln!("hint: try again in {}", humantime::format_duration(retry));
    }
    if let Some(help) = details.help() {
        for link in &help.links {
            anstream::eprintln!("see: {} ({})", clean(&link.url), clean(&link.description));
        }
    }
    let request = details
        .request_info()
        .map(|info| info.request_id.clone())
        .filter(|id| !id.is_empty());
    if let Some(info) = details.error_info() {
        let reason = clean(&info.reason);
        match request {
            Some(id) => anstream::eprintln!("ref: {reason} (request {})", clean(&id)),
            None => anstream::eprintln!("ref: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_has_its_own_code() {
        let mut codes: Vec<u8> = Exit::TABLE.iter().map(|(_, code, _)| *code).collect();
        codes.dedup();
        assert_eq!(codes.len(), Exit::TABLE.len());
        assert_eq!(Exit::Rejected.code(), 3);
        assert_eq!(Exit::Usage.code(), 64);
    }

    #[test]
    fn refusals_are_told_apart() {
        let exit = |code| CliError::from(Status::new(code, "x")).exit();
        assert_eq!(exit(Code::PermissionDenied), Exit::Denied);
        assert_eq!(exit(Code::NotFound), Exit::Conflict);
        assert_eq!(exit(Code::InvalidArgument), Exit::Usage);
        assert_eq!(exit(Code::Unavailable), Exit::Unreachable);
        assert_eq!(exit(Code::Internal), Exit::Failed);
        // 124 is for --timeout alone: whoever branches on it knows that the promotion goes on.
        assert_eq!(exit(Code::DeadlineExceeded), Exit::Unreachable);
        assert_eq!(exit(Code::Cancelled), Exit::Unreachable);
    }
}
