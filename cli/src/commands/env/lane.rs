//! What an environment does with promotions that would have to wait.

use clap::ValueEnum;
use sealift_proto::v1::environment::LanePolicy;

/// What becomes of a promotion that would have to wait. Rollbacks wait whatever it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LaneArg {
    /// It waits for its turn.
    Queue,
    /// It is refused at once.
    Reject,
    /// It waits, and takes the place of older ones of its project that wait.
    Supersede,
}

impl From<LaneArg> for LanePolicy {
    fn from(policy: LaneArg) -> Self {
        match policy {
            LaneArg::Queue => Self::Queue,
            LaneArg::Reject => Self::Reject,
            LaneArg::Supersede => Self::Supersede,
        }
    }
}

/// A policy in a word.
pub const fn shown(policy: LanePolicy) -> &'static str {
    match policy {
        LanePolicy::Unspecified | LanePolicy::Queue => "queue",
        LanePolicy::Reject => "reject",
        LanePolicy::Supersede => "supersede",
    }
}
