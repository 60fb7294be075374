//! Errors of calls: the single place where a [`Reason`] becomes a gRPC code with `google.rpc` details.
//!
//! The message alone names cause and next step, because many clients show nothing else; programs read the details.

use std::{collections::HashMap, error::Error as StdError, fmt, time::Duration};

use sealift_common::error::{DOMAIN, Reason};
use sealift_store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};

/// Where the page of each reason is found.
const PAGES: &str = "https://sealift.dev/errors/";

/// Longest text that is echoed in a message or in a detail.
const TEXT_CHARS: usize = 1024;

/// Why a call is refused, for people and for programs.
#[derive(Debug)]
pub struct ApiError {
    reason: Reason,
    message: String,
    hint: String,
    fields: Vec<(String, String)>,
    preconditions: Vec<(String, String, String)>,
    retry_after: Option<Duration>,
    metadata: Vec<(String, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The gRPC code of a reason.
pub const fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidArgument
        | Reason::InvalidManifest
        | Reason::UnsupportedManifestKey
        | Reason::InvalidImageReference
        | Reason::AmbiguousRelease
        | Reason::RequestIdReused
        | Reason::InvalidPageToken
        | Reason::InvalidCsr
        | Reason::ProtocolViolation => Code::InvalidArgument,
        Reason::NotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::ImageNotFound
        | Reason::RegistryDenied
        | Reason::RegistryMisbehaved
        | Reason::RegistryInsecure
        | Reason::WrongState
        | Reason::SwapUnfit
        | Reason::InUse => Code::FailedPrecondition,
        Reason::StaleEtag | Reason::SessionReplaced | Reason::Conflict => Code::Aborted,
        Reason::CertificateMissing | Reason::CertificateRefused | Reason::JoinTokenRefused => {
            Code::Unauthenticated
        }
        Reason::RoleMissing => Code::PermissionDenied,
        Reason::UnknownMethod => Code::Unimplemented,
        Reason::Overloaded => Code::ResourceExhausted,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::RegistryUnavailable | Reason::StoreUnavailable | Reason::ShuttingDown => Code::Unavailable,
        Reason::Internal => Code::Internal,
    }
}

impl ApiError {
    /// An error: `message` says what is wrong, `hint` what to do next (a sentence without full stop each).
    pub fn new(reason: Reason, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            hint: hint.into(),
            fields: Vec::new(),
            preconditions: Vec::new(),
            retry_after: None,
            metadata: Vec::new(),
            source: None,
        }
    }

    /// A field of the request is wrong: `path` as in the proto (`environment.position`), `description` says what is wrong with it.
    pub fn invalid(path: impl Into<String>, description: impl Into<String>) -> Self {
        let (path, description) = (path.into(), description.into());
        Self::new(
            Reason::InvalidArgument,
            format!("field {path}: {description}"),
            "correct the field and call again",
        )
        .field(path, description)
    }

    /// Nothing of that name exists in the caller's tenant. `list` names the way to see what there is.
    pub fn not_found(resource: impl fmt::Display, list: &str) -> Self {
        Self::new(
            Reason::NotFound,
            format!("{resource} does not exist"),
            format!("check the name; {list} shows what there is"),
        )
        .meta("resource", resource.to_string())
    }

    /// A defect of Sealift; the cause goes to the log, never to the caller.
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(
            Reason::Internal,
            "the orchestrator failed unexpectedly",
            "look for this call's request id in the orchestrator's log and report it",
        )
        .caused_by(source)
    }

    /// Adds a field violation.
    #[must_use]
    pub fn field(mut self, path: impl Into<String>, description: impl Into<String>) -> Self {
        self.fields.push((path.into(), description.into()));
        self
    }

    /// Adds a precondition that does not hold: its kind (a stable reason), on what, and what is wrong.
    #[must_use]
    pub fn precondition(
        mut self,
        kind: impl Into<String>,
        subject: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        self.preconditions
            .push((kind.into(), subject.into(), description.into()));
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Adds a dynamic value for programs (`ErrorInfo.metadata`).
    #[must_use]
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The stable reason.
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// What is wrong, without the next step.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn details(&self) -> ErrorDetails {
        let metadata: HashMap<String, String> = self
            .metadata
            .iter()
            .map(|(key, value)| (key.clone(), cut(value)))
            .collect();
        let mut details = ErrorDetails::new();
        details.set_error_info(self.reason.as_str(), DOMAIN, metadata);
        if !self.fields.is_empty() {
            let violations: Vec<_> = self
                .fields
                .iter()
                .map(|(path, text)| FieldViolation::new(path.clone(), cut(text)))
                .collect();
            details.set_bad_request(violations);
        }
        if !self.preconditions.is_empty() {
            let violations: Vec<_> = self
                .preconditions
                .iter()
                .map(|(kind, subject, text)| PreconditionViolation::new(kind, subject, cut(text)))
                .collect();
            details.set_precondition_failure(violations);
        }
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        details.add_help_link(
            "what this means and what to do",
            format!("{PAGES}{}", self.reason.as_str()),
        );
        details
    }
}

/// Texts of callers come back bounded and without control characters, so that no terminal is at their mercy.
fn cut(text: &str) -> String {
    text.chars()
        .take(TEXT_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hint.is_empty() {
            f.write_str(&cut(&self.message))
        } else {
            write!(f, "{}; {}", cut(&self.message), cut(&self.hint))
        }
    }
}

impl StdError for ApiError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::new(
                Reason::Conflict,
                "a concurrent change won",
                "read the newest state and call again",
            )
            .retry_after(Duration::from_millis(100)),
            StoreError::Collision(_) => Self::new(
                Reason::Conflict,
                "the call met another one, and the database let that one pass",
                "call again",
            )
            .retry_after(Duration::from_millis(100))
            .caused_by(error),
            StoreError::Duplicate { constraint } => Self::new(
                Reason::AlreadyExists,
                "a thing of that name or identity exists already",
                "choose another name, or use the one that exists",
            )
            .meta("constraint", constraint),
            StoreError::IllegalTransition(transition) => Self::new(
                Reason::WrongState,
                format!("the state does not allow this: {transition}"),
                "read the newest state and decide again",
            ),
            StoreError::InvalidCursor => crate::paging::invalid_token(),
            StoreError::TooLarge(number) => Self::new(
                Reason::InvalidArgument,
                format!("the number {number} is too large"),
                "use a smaller number",
            ),
            full if full.is_disk_full() => Self::new(
                Reason::StoreUnavailable,
                "the disk of the orchestrator's database is full",
                "make room on it; nothing of this call was stored",
            )
            .retry_after(Duration::from_secs(30))
            .meta("disk", "full")
            .caused_by(full),
            StoreError::Unavailable(_) | StoreError::Locked(_) => Self::new(
                Reason::StoreUnavailable,
                "the orchestrator's database does not answer",
                "try again in a moment; if it stays so, look at the database server and the orchestrator's log",
            )
            .retry_after(Duration::from_secs(2))
            .caused_by(error),
            other => Self::internal(other),
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = code(error.reason);
        if matches!(code, Code::Internal | Code::Unavailable) {
            tracing::warn!(reason = error.reason.as_str(), error = %Chain(&error), "call failed");
        }
        Self::with_error_details(code, error.to_string(), error.details())
    }
}

/// A refusal of the transport (it names no reason) with what ours have. What the caller sent and nobody can read is the caller's.
pub fn explained(status: &Status) -> Status {
    let text = status.message();
    let unreadable = status.code() == Code::Internal && text.starts_with("failed to decode");
    let (code, reason, hint) = match status.code() {
        _ if unreadable => (
            Code::InvalidArgument,
            Reason::InvalidArgument,
            "send a message of the method's type; client and orchestrator may be of different versions",
        ),
        Code::NotFound => (Code::NotFound, Reason::NotFound, "check the name"),
        code @ Code::OutOfRange => (code, Reason::InvalidArgument, "send less at once"),
        code @ (Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented) => {
            (code, Reason::InvalidArgument, "correct the call")
        }
        code @ (Code::DeadlineExceeded | Code::Cancelled) => (
            code,
            Reason::DeadlineExceeded,
            "look at the present state before you call again: it may have worked",
        ),
        _ => return ApiError::internal(text.to_owned()).into(),
    };
    let error = ApiError::new(reason, text, hint);
    Status::with_error_details(code, error.to_string(), error.details())
}

/// Prints an error with all its causes on one line; for logs.
pub struct Chain<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_code_and_its_own_text() {
        let mut texts = std::collections::BTreeSet::new();
        for reason in Reason::ALL {
            assert_ne!(code(*reason), Code::Ok, "{reason:?}");
            assert_ne!(code(*reason), Code::Unknown, "{reason:?}");
            assert!(texts.insert(reason.as_str()), "{reason:?}");
            assert!(reason.as_str().len() <= 63, "{reason:?}");
        }
    }

    #[test]
    fn a_status_carries_cause_next_step_and_details() {
        let status = Status::from(
            ApiError::invalid("environment.position", "must not be negative")
                .meta("given", "-1\u{1b}[31m")
                .retry_after(Duration::from_secs(2)),
        );
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "field environment.position: must not be negative; correct the field and call again"
        );
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("INVALID_ARGUMENT", DOMAIN)
        );
        assert_eq!(info.metadata["given"], "-1 [31m");
        assert_eq!(
            details.bad_request().unwrap().field_violations[0].field,
            "environment.position"
        );
        assert!(details.retry_info().unwrap().retry_delay.is_some());
        assert!(details.help().is_some());
    }

    #[test]
    fn an_internal_error_does_not_tell_its_cause() {
        let status = Status::from(ApiError::internal("password=hunter2"));
        assert!(!status.message().contains("hunter2"));
        assert!(!format!("{:?}", status.get_error_details()).contains("hunter2"));
    }
}
