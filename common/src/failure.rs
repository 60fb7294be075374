//! Failure: the normalised cause of what went wrong on a target or in a job.

mod category;

use serde::{Deserialize, Serialize};

use crate::task::TaskStep;

pub use category::FailureCategory;

macro_rules! failure_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $category:ident, $retryable:literal, $advice:literal;)+) => {
        /// Stable code of a failure. Programs may branch on it; each has one category, one advice, and says whether trying
        /// again may help without anybody changing anything.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum FailureCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)+
        }

        impl FailureCode {
            /// All codes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable text.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
            /// What kind of thing failed, and so who has to act.
            pub const fn category(self) -> FailureCategory {
                match self { $(Self::$name => FailureCategory::$category,)+ }
            }
            /// Whether another attempt may succeed with nothing changed.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)+ }
            }
            /// What to do next.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)+ }
            }
        }
    };
}

failure_codes! {
    /// The image is not at the registry under this digest.
    ImageNotFound = "IMAGE_NOT_FOUND", Artifact, false, "push the image again or make a new release from what the registry holds";
    /// The registry refused the host's credentials.
    RegistryDenied = "REGISTRY_DENIED", Artifact, false, "give the agent's host credentials for this registry (docker login, or the agent's docker config file)";
    /// The registry could not be reached or broke off.
    RegistryUnavailable = "REGISTRY_UNAVAILABLE", Artifact, true, "check that the registry is up and that the host reaches it, then promote again";
    /// What arrived has another digest than what was ordered.
    DigestMismatch = "DIGEST_MISMATCH", Artifact, false, "the registry sends other bytes than it promised: treat it as compromised until explained";
    /// The image is built for another platform than the host's.
    PlatformMismatch = "PLATFORM_MISMATCH", Artifact, false, "build the image for the host's platform, or use targets of the image's platform";
    /// The engine does not answer.
    EngineUnavailable = "ENGINE_UNAVAILABLE", Infrastructure, true, "check the Docker engine on the host (systemctl status docker)";
    /// The engine answered with an error that has no code of its own.
    EngineError = "ENGINE_ERROR", Infrastructure, false, "read the engine's message in the failure's detail";
    /// The engine took longer than the deadline of the call.
    EngineTimeout = "ENGINE_TIMEOUT", Timeout, true, "the engine is overloaded or hangs: check it on the host";
    /// A host port is taken by something else.
    PortInUse = "PORT_IN_USE", Infrastructure, false, "free the port on the host or publish another one";
    /// A path of the host that a service mounts does not answer.
    HostPathTimeout = "HOST_PATH_TIMEOUT", Timeout, true, "look at the file system on the host that the summary's path is on (a network file system whose server is away hangs), then promote again";
    /// The host's disk is full.
    DiskFull = "DISK_FULL", Infrastructure, false, "free space on the host (docker system df), then promote again";
    /// The host's Compose is missing, cannot be started, or its files cannot be written.
    ComposeUnavailable = "COMPOSE_UNAVAILABLE", Infrastructure, false, "see that docker compose or docker-compose works on the host (sealift-agent doctor), then restart the agent if it did not find it by itself";
    /// The host's Compose took longer than its deadline.
    ComposeTimeout = "COMPOSE_TIMEOUT", Timeout, false, "the host is overloaded, or a dependency never becomes healthy: read the log of the attempt (sealift job logs)";
    /// The host's Compose refuses the file, or makes something else of it than was ordered.
    ComposeRejected = "COMPOSE_REJECTED", Config, false, "correct the compose file as is said, set the variable (sealift env set-variable, or compose.env_file on the host), or use a newer Compose on the host";
    /// The resolved compose file asks for what the host does not allow.
    HostPolicy = "HOST_POLICY", Policy, false, "take what the summary names out of the compose file, or let the host's owner allow it in section [policy] of the agent's settings";
    /// The container could not be created or started as described.
    ContainerRejected = "CONTAINER_REJECTED", Config, false, "correct the service's description in the compose file and make a new release";
    /// The workload ended by itself.
    WorkloadExited = "WORKLOAD_EXITED", App, false, "read the container's last log lines (sealift job logs), correct and make a new release";
    /// The workload said that it is not healthy.
    Unhealthy = "UNHEALTHY", App, false, "read the health check's output and the logs (sealift job logs), correct and make a new release";
    /// The workload did not become healthy before the deadline.
    HealthDeadline = "HEALTH_DEADLINE", Timeout, false, "the workload needs longer (raise --healthy-deadline) or never becomes healthy: read its logs";
    /// A hook ended with an error, or could not be started.
    HookFailed = "HOOK_FAILED", App, false, "read the hook's last log lines (sealift job logs), correct it and make a new release";
    /// A hook took longer than its timeout and was ended.
    HookTimeout = "HOOK_TIMEOUT", Timeout, false, "read the hook's last log lines (sealift job logs); if it only needs longer, raise its `timeout` in a new release";
    /// The order was refused by the agent.
    OrderRefused = "ORDER_REFUSED", Validation, false, "the detail says which check failed; an order that does not verify is a reason to look at the orchestrator";
    /// The order expired before the agent could begin.
    OrderExpired = "ORDER_EXPIRED", Timeout, false, "the host was away too long: promote again when it is back";
    /// Nobody can say what happened on the target: its agent is silent, or there is none.
    AgentLost = "AGENT_LOST", Infrastructure, false, "bring the host back, and its agent reports what it finds; if it never comes back, sealift agent revoke ends the wait";
    /// The agent was revoked.
    AgentRevoked = "AGENT_REVOKED", Policy, false, "enrol a new agent for the target";
    /// The agent was paused for longer than an order may wait.
    AgentPaused = "AGENT_PAUSED", Policy, false, "give the agent orders again (sealift agent resume), then promote again";
    /// The agent is being drained and takes no orders.
    AgentDraining = "AGENT_DRAINING", Policy, false, "wait until the host is back (sealift agent resume), then promote again";
    /// The old set could not be restored.
    RestoreFailed = "RESTORE_FAILED", Rollback, false, "look at the host: neither set is known to run whole";
    /// The job was cancelled.
    Cancelled = "CANCELLED", Policy, false, "targets that had succeeded keep the release (sealift job get); promote again to deploy to all, or promote what ran before";
    /// An earlier wave failed, so this one never began.
    EarlierWaveFailed = "EARLIER_WAVE_FAILED", Policy, false, "correct what failed in the earlier wave, then promote again";
    /// No further target became healthy for too long.
    ProgressDeadline = "PROGRESS_DEADLINE", Timeout, false, "see which targets did not become healthy (sealift job get), mend them or raise --progress-deadline, then promote again";
    /// Somebody ended the job before its time and had it undone.
    Aborted = "ABORTED", Policy, false, "nothing has to be done; to deploy after all, lift the hold that the abort placed (sealift hold list) and promote again";
    /// A canary was healthy and then was not any more.
    CanaryFailed = "CANARY_FAILED", App, false, "read what the canary logged (sealift job logs) and its drift (sealift drift), correct and make a new release";
    /// There is no release that a rollback could go back to.
    NoRollbackTarget = "NO_ROLLBACK_TARGET", Rollback, false, "see why (sealift rollback --explain), then promote a release that is known to be good";
    /// A rollback did not succeed everywhere.
    RollbackFailed = "ROLLBACK_FAILED", Rollback, false, "look at the targets of the rollback's job (sealift job get): some run what was to be undone";
    /// A gate that passed at approval no longer passes.
    GateClosed = "GATE_CLOSED", Policy, false, "see the newest decision of the promotion, mend what it names, then promote again";
    /// A job left every target alone: no host took an order, and none ran the release before.
    NothingChanged = "NOTHING_CHANGED", Policy, false, "see why each target was left alone (sealift job get), bring the hosts back (sealift agent list), then promote again";
    /// Another release of the project became active while a repeat waited for its turn.
    Overtaken = "OVERTAKEN", Policy, false, "nothing has to be done where the newer release is wanted; otherwise promote the release that is wanted";
    /// A new program of the agent was refused: by whom it is signed, what it is for, how old it is, or what it is.
    AgentUpdateRefused = "AGENT_UPDATE_REFUSED", Validation, false, "see what the summary names; which publishers a host trusts stands in section [update] of its agent's settings";
    /// A new program of the agent did not work; the one before runs again.
    AgentUpdateNotHealthy = "AGENT_UPDATE_NOT_HEALTHY", App, false, "nothing has to be mended on the host: read the detail and the agent's log, correct the program, sign and release it again";
    /// Other tasks of the agent did not end in time, so its program was not exchanged.
    AgentBusy = "AGENT_BUSY", Timeout, true, "wait until the agent's other tasks have ended (sealift job list), then promote again";
    /// The agent's own state cannot be trusted (journal damaged, restored from a copy).
    AgentState = "AGENT_STATE", Infrastructure, false, "read the agent's log on the host; re-enrol the host if its state directory was restored or damaged";
    /// A defect of Sealift.
    Internal = "INTERNAL", Unknown, false, "report it with the detail and the logs of orchestrator and agent";
}

/// What went wrong, in a form that people can read and programs can branch on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The stable code.
    pub code: FailureCode,
    /// One line for people: what failed, on what.
    pub summary: String,
    /// What the lower layer said, bounded; empty when there is nothing more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The longest beginning of `text` that has at most `most` bytes and no broken character.
#[must_use]
pub fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

impl Failure {
    /// A failure without detail. A summary longer than [`TEXT_BYTES`](crate::bounds::TEXT_BYTES) is cut: whoever reads it next
    /// holds it to that bound.
    pub fn new(code: FailureCode, summary: impl Into<String>) -> Self {
        Self {
            code,
            summary: cut(summary.into(), crate::bounds::TEXT_BYTES),
            detail: String::new(),
        }
    }

    /// Adds what the lower layer said, cut to a bound.
    #[must_use]
    pub fn with_detail(mut self, detail: impl AsRef<str>) -> Self {
        self.detail = detail.as_ref().chars().take(crate::bounds::TEXT_BYTES).collect();
        self
    }
}

impl FailureCode {
    /// In which step an attempt failed with this code. `last` is the last step that it began on its way forward: what it did
    /// afterwards to get back to the old set did not fail, unless the code says just that.
    #[must_use]
    pub const fn failed_in(self, last: Option<TaskStep>) -> Option<TaskStep> {
        match self {
            Self::RestoreFailed => Some(TaskStep::Restoring),
            _ => last,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.summary)
    }
}

impl std::str::FromStr for FailureCode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a failure code"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::TEXT_BYTES;

    #[test]
    fn a_summary_is_cut_by_bytes_and_never_inside_a_character() {
        let failure = Failure::new(FailureCode::Internal, "ä".repeat(TEXT_BYTES));
        assert_eq!(failure.summary, "ä".repeat(TEXT_BYTES / 2));
        let odd = Failure::new(FailureCode::Internal, format!("x{}", "ä".repeat(TEXT_BYTES)));
        assert_eq!(odd.summary.len(), TEXT_BYTES - 1);
        assert_eq!(Failure::new(FailureCode::Internal, "short").summary, "short");
    }

    #[test]
    fn every_code_has_one_of_the_nine_categories_and_every_category_a_code() {
        let texts: Vec<_> = FailureCategory::ALL.iter().map(|one| one.as_str()).collect();
        assert_eq!(
            texts,
            [
                "validation",
                "policy",
                "artifact",
                "infrastructure",
                "config",
                "app",
                "timeout",
                "rollback",
                "unknown"
            ]
        );
        for category in FailureCategory::ALL {
            assert_eq!(category.as_str().parse(), Ok(*category));
            assert!(
                FailureCode::ALL.iter().any(|code| code.category() == *category),
                "{category} has no code"
            );
        }
        for code in FailureCode::ALL {
            let unforeseen = code.category() == FailureCategory::Unknown;
            assert_eq!(unforeseen, *code == FailureCode::Internal, "{code:?}");
        }
    }

    #[test]
    fn an_attempt_failed_on_its_way_forward_unless_the_way_back_failed() {
        for code in FailureCode::ALL {
            let step = code.failed_in(Some(TaskStep::HealthWait));
            let wanted = match code {
                FailureCode::RestoreFailed => TaskStep::Restoring,
                _ => TaskStep::HealthWait,
            };
            assert_eq!(step, Some(wanted), "{code:?}");
        }
        assert_eq!(FailureCode::OrderRefused.failed_in(None), None);
    }
}
