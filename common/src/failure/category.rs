//! The nine kinds of failure (row 3.10 of the seed map): what failed, and so who looks at it first.

use crate::phases;

phases! {
    /// What kind of thing failed. Every [`FailureCode`](super::FailureCode) has exactly one; `docs/failures.md` is printed from here.
    FailureCategory {
        Validation = "validation", Policy = "policy", Artifact = "artifact", Infrastructure = "infrastructure",
        Config = "config", App = "app", Timeout = "timeout", Rollback = "rollback", Unknown = "unknown",
    }
}

impl FailureCategory {
    /// What it means and who acts, in one sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Validation => {
                "What was ordered did not pass its checks, and nothing was changed: look at who made it."
            }
            Self::Policy => {
                "A rule, or somebody who may decide it, stands against it: ask whoever owns the rule or decided."
            }
            Self::Artifact => "The image or its registry: see that it is there, whole and within reach.",
            Self::Infrastructure => "The host, its engine or its agent: whoever runs the host acts.",
            Self::Config => {
                "How the workload is described: correct the description and make a new release, or set what is missing."
            }
            Self::App => {
                "The workload itself did not work: read its logs, correct it and make a new release."
            }
            Self::Timeout => "Something took longer than it may: find out why, or give it more time.",
            Self::Rollback => {
                "The way back did not work, or there is none: look at the host before anything else."
            }
            Self::Unknown => "Nobody foresaw it: report it with its detail and the logs.",
        }
    }
}
