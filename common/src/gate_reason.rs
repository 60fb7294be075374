//! Stable reasons of gates that say no, or not yet: what a decision record carries. Each has a page `docs/errors/<REASON>.md`.

crate::error::stable_codes! {
    /// Why a gate did not let a promotion pass, stable for programs.
    GateReason:
    /// The release is a draft.
    ReleaseNotReady = "RELEASE_NOT_READY";
    /// The environment, or the part of it that was asked for, has no target.
    NoTargets = "NO_TARGETS";
    /// The environment has more targets than one job may have.
    TooManyTargets = "TOO_MANY_TARGETS";
    /// A target is of another kind than the release.
    KindMismatch = "KIND_MISMATCH";
    /// What runs cannot give way as the recipe says.
    SwapUnfit = "SWAP_UNFIT";
    /// A target has no agent.
    AgentMissing = "AGENT_MISSING";
    /// The agent of a target is revoked.
    AgentRevoked = "AGENT_REVOKED";
    /// The agent of a target is paused.
    AgentPaused = "AGENT_PAUSED";
    /// The agent of a target is being drained.
    AgentDraining = "AGENT_DRAINING";
    /// The agent of a target cannot do what its kind of target needs.
    CapabilityMissing = "CAPABILITY_MISSING";
    /// The agent of a target is not back after a start of the orchestrator.
    AgentReconnecting = "AGENT_RECONNECTING";
    /// The agent of a target is offline.
    AgentOffline = "AGENT_OFFLINE";
    /// An image is built for other platforms than that of a host.
    PlatformMismatch = "PLATFORM_MISMATCH";
    /// The plan is not the one that the request names.
    PlanChanged = "PLAN_CHANGED";
    /// A hold keeps new releases of the project out of the environment.
    LaneHeld = "LANE_HELD";
    /// As many jobs wait for the environment as may.
    LaneFull = "LANE_FULL";
    /// The environment lets no promotion wait, and this one would have to.
    LaneOccupied = "LANE_OCCUPIED";
    /// Other jobs of the environment come first.
    LaneBusy = "LANE_BUSY";
}
