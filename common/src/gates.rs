//! The gates of a promotion: one pure function each, over the inputs of a decision.

use chrono::SecondsFormat;

use crate::{
    decision::{AgentSituation, Gate, GateAnswer, HoldFacts, Inputs, Situation, Stage, TargetGroup, Verdict},
    gate_reason::GateReason,
    inventory::{AgentIntent, AgentStatus},
    lane::LanePolicy,
    name::{Name, ProjectRef, few},
    promotion::PromotionKind,
    recipe::OfflinePolicy,
    release::ReleaseState,
};

/// How many target names a message lists before it only counts.
const NAMES_SHOWN: usize = 5;

/// What `gate` says about `inputs`.
pub fn answer(gate: Gate, inputs: &Inputs) -> GateAnswer {
    let said = match gate {
        Gate::ReleaseReady => release_ready(inputs),
        Gate::TargetsPresent => targets_present(inputs),
        Gate::TargetsFit => targets_fit(inputs),
        Gate::SwapFits => swap_fits(inputs),
        Gate::AgentsPresent => agents_present(inputs),
        Gate::PlanUnchanged => plan_unchanged(inputs),
        Gate::Hold => {
            let held = inputs.hold.as_ref().map(|hold| Held {
                environment: &inputs.environment_name,
                project: &inputs.release.project,
                hold,
            });
            hold(inputs.kind, inputs.stage == Stage::Start, held)
        }
        Gate::Lane => lane(inputs),
    };
    said.by(gate)
}

/// What may have changed about a job since it was started.
#[derive(Debug, Clone, Copy)]
pub struct Meanwhile<'a> {
    /// What it is for.
    pub kind: PromotionKind,
    /// The hold on its project, if there is one.
    pub held: Option<Held<'a>>,
}

/// A hold, and what it holds where.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// The environment.
    pub environment: &'a Name,
    /// The project.
    pub project: &'a ProjectRef,
    /// The hold.
    pub hold: &'a HoldFacts,
}

/// What `gate` says to a job that is about to begin a wave; `None` where what it looks at is settled once a job has started.
pub fn answer_again(gate: Gate, meanwhile: &Meanwhile<'_>) -> Option<GateAnswer> {
    let said = match gate {
        // Frozen with the release, or with the waves and the plan.
        Gate::ReleaseReady
        | Gate::TargetsPresent
        | Gate::TargetsFit
        | Gate::SwapFits
        | Gate::PlanUnchanged => return None,
        // Asked of each target when its order is made: one absent host of many must not stop the others, and what becomes of it is
        // as the recipe says.
        Gate::AgentsPresent => return None,
        // It has its place.
        Gate::Lane => return None,
        Gate::Hold => hold(meanwhile.kind, true, meanwhile.held),
    };
    Some(said.by(gate))
}

/// The gate that keeps a job from beginning a wave: one that only a person opens before one that is only waited for.
pub fn closed_meanwhile(meanwhile: &Meanwhile<'_>) -> Option<GateAnswer> {
    Gate::ALL
        .iter()
        .filter_map(|gate| answer_again(*gate, meanwhile))
        .filter(|answer| answer.verdict != Verdict::Pass)
        .max_by_key(|answer| answer.verdict)
}

struct Said {
    verdict: Verdict,
    reason: &'static str,
    message: String,
    advice: String,
}

impl Said {
    fn by(self, gate: Gate) -> GateAnswer {
        GateAnswer {
            gate,
            verdict: self.verdict,
            reason: self.reason.to_owned(),
            message: self.message,
            advice: self.advice,
        }
    }
}

fn pass(reason: &'static str, message: impl Into<String>) -> Said {
    Said {
        verdict: Verdict::Pass,
        reason,
        message: message.into(),
        advice: String::new(),
    }
}

fn fail(reason: GateReason, message: impl Into<String>, advice: impl Into<String>) -> Said {
    Said {
        verdict: Verdict::Fail,
        reason: reason.as_str(),
        message: message.into(),
        advice: advice.into(),
    }
}

fn wait(reason: GateReason, message: impl Into<String>, advice: impl Into<String>) -> Said {
    Said {
        verdict: Verdict::Wait,
        ..fail(reason, message, advice)
    }
}

fn release_ready(inputs: &Inputs) -> Said {
    let release = &inputs.release;
    let name = format!("{}#{}", release.project, release.number);
    match release.state {
        ReleaseState::Ready => pass("RELEASE_READY", format!("{name} is ready")),
        ReleaseState::Draft => fail(
            GateReason::ReleaseNotReady,
            format!("{name} is still a draft"),
            "finish the release, then promote again",
        ),
    }
}

fn targets_present(inputs: &Inputs) -> Said {
    let count: usize = inputs.targets.iter().map(|group| group.targets.len()).sum();
    let environment = &inputs.environment_name;
    if count == 0 {
        return fail(
            GateReason::NoTargets,
            format!("{environment} has no target"),
            format!("create one: sealift target create {environment}/<name>"),
        );
    }
    if count > inputs.target_limit as usize {
        return fail(
            GateReason::TooManyTargets,
            format!("{environment} has more than {} targets", inputs.target_limit),
            "spread the targets over several environments",
        );
    }
    pass(
        "TARGETS_PRESENT",
        format!("{count} {}", plural(count, "target", "targets")),
    )
}

/// A compose file and a set of containers are different things: neither kind of target can take the other's.
fn targets_fit(inputs: &Inputs) -> Said {
    let kind = inputs.release.kind;
    let others: Vec<_> = inputs
        .targets
        .iter()
        .filter(|group| group.situation.kind != kind)
        .collect();
    let Some(first) = others.first() else {
        return pass(
            "TARGETS_FIT",
            format!("the release and all targets are of kind {kind}"),
        );
    };
    let message: Vec<_> = others
        .iter()
        .map(|group| format!("{} ({})", names(group), group.situation.kind))
        .collect();
    fail(
        GateReason::KindMismatch,
        format!("the release is for {kind}, not for {}", message.join("; ")),
        format!(
            "make a release of that kind (sealift release create --kind {}), or use an environment whose targets are all {kind}",
            first.situation.kind.as_str().replace('_', "-")
        ),
    )
}

/// Whether what runs can give way as the recipe says: an agent would refuse the order otherwise.
fn swap_fits(inputs: &Inputs) -> Said {
    let untouched = inputs.targets.iter().all(|group| group.situation.no_op);
    if inputs.swap_unfit.is_empty() || untouched {
        return pass("SWAP_FITS", "the release can be swapped in the wanted way");
    }
    let message: Vec<_> = inputs.swap_unfit.iter().map(ToString::to_string).collect();
    let mut advice: Vec<&str> = Vec::new();
    for unfit in &inputs.swap_unfit {
        if !advice.contains(&unfit.advice.as_str()) {
            advice.push(&unfit.advice);
        }
    }
    fail(
        GateReason::SwapUnfit,
        format!(
            "the release cannot be swapped in the wanted way: {}",
            message.join("; ")
        ),
        advice.join("; "),
    )
}

/// Why nobody can do anything on a target, whoever waits for it.
fn nobody_serves(situation: &Situation) -> Option<Said> {
    let Some(agent) = &situation.agent else {
        return Some(fail(
            GateReason::AgentMissing,
            "no agent is enrolled",
            "make a join token (sealift target token) and enrol an agent on the host",
        ));
    };
    match agent.intent {
        AgentIntent::Revoked => Some(fail(
            GateReason::AgentRevoked,
            "its agent is revoked",
            "enrol a new agent for the target",
        )),
        AgentIntent::Paused | AgentIntent::Draining | AgentIntent::Active => None,
    }
}

/// The targets that a rollback leaves alone, with the reason: that nobody serves one target must not keep the others from going
/// back. They catch up when they have an agent. A rollback that would leave all alone has nothing to do, and is refused.
fn left_alone(inputs: &Inputs) -> Vec<(&TargetGroup, String)> {
    if inputs.kind != PromotionKind::Rollback {
        return Vec::new();
    }
    let left: Vec<_> = inputs
        .targets
        .iter()
        .filter(|group| !group.situation.no_op)
        .filter_map(|group| Some((group, nobody_serves(&group.situation)?.message)))
        .collect();
    if left.len() == inputs.targets.len() {
        return Vec::new();
    }
    left
}

fn agents_present(inputs: &Inputs) -> Said {
    let left = left_alone(inputs);
    let found: Vec<(String, Said)> = inputs
        .targets
        .iter()
        .filter(|group| !group.situation.no_op && !left.iter().any(|(alone, _)| alone == group))
        .flat_map(|group| {
            let obstacles = obstacles(inputs, &group.situation).into_iter();
            obstacles.map(move |obstacle| (names(group), obstacle))
        })
        .collect();
    let Some(worst) = found.iter().map(|(_, obstacle)| obstacle.verdict).max() else {
        return pass(
            "AGENTS_PRESENT",
            format!(
                "every target that is to change has an agent that can do it{}{}",
                not_compared(inputs),
                said_of(&left)
            ),
        );
    };
    let first = found.iter().find(|(_, obstacle)| obstacle.verdict == worst);
    let reason = first.map_or("", |(_, obstacle)| obstacle.reason);
    let mut message: Vec<String> = Vec::new();
    let mut advice: Vec<String> = Vec::new();
    for (names, obstacle) in found {
        message.push(format!("{names}: {}", obstacle.message));
        if !advice.contains(&obstacle.advice) {
            advice.push(obstacle.advice);
        }
    }
    Said {
        verdict: worst,
        reason,
        message: message.join("; "),
        advice: advice.join("; "),
    }
}

fn said_of(left: &[(&TargetGroup, String)]) -> String {
    let said: Vec<_> = left
        .iter()
        .map(|(group, why)| format!("{} ({why})", names(group)))
        .collect();
    if said.is_empty() {
        String::new()
    } else {
        format!("; left alone until they have one: {}", said.join(", "))
    }
}

/// What the gate says about platforms that nobody told: they are no reason to refuse, and no proof either.
fn not_compared(inputs: &Inputs) -> String {
    let silent: Vec<_> = inputs
        .targets
        .iter()
        .filter(|group| !group.situation.no_op)
        .filter(|group| {
            let agent = group.situation.agent.as_ref();
            agent.is_some_and(|agent| agent.platform.is_empty())
        })
        .map(names)
        .collect();
    let hosts = if silent.is_empty() {
        String::new()
    } else {
        format!("; the platform of {} is not known", silent.join(", "))
    };
    let images = if inputs.release.platforms.is_empty() {
        "; the platforms of the images are not known"
    } else {
        ""
    };
    format!("{hosts}{images}")
}

fn obstacles(inputs: &Inputs, situation: &Situation) -> Vec<Said> {
    let mut found: Vec<_> = nobody_serves(situation).into_iter().collect();
    let Some(agent) = &situation.agent else {
        return found;
    };
    let refuses = inputs.offline == (OfflinePolicy::Fail {});
    match agent.intent {
        // Whoever skips or waits for absent agents needs none that takes orders now.
        AgentIntent::Paused if refuses => found.push(fail(
            GateReason::AgentPaused,
            "its agent is paused",
            "see why (sealift agent get), then give it orders again (sealift agent resume)",
        )),
        AgentIntent::Draining if refuses => found.push(fail(
            GateReason::AgentDraining,
            "its agent is being drained",
            "wait until the host is back (sealift agent resume), or move the target to another host",
        )),
        AgentIntent::Paused | AgentIntent::Draining | AgentIntent::Active | AgentIntent::Revoked => {}
    }
    if agent.intent.is_live() && agent.status == AgentStatus::Offline && refuses {
        found.push(offline(inputs));
    }
    let capability = situation.kind.as_str();
    if !agent.capabilities.iter().any(|can| can == capability) {
        let why = if agent.degraded.is_empty() {
            String::new()
        } else {
            format!(" ({})", agent.degraded.join(", "))
        };
        found.push(fail(
            GateReason::CapabilityMissing,
            format!("its agent cannot do {capability}{why}"),
            "mend what the agent names (sealift agent get), or update it",
        ));
    }
    found.extend(platform(inputs, agent));
    found
}

/// While the orchestrator was away nobody could be connected: after its start, absent agents are given time to come back.
fn offline(inputs: &Inputs) -> Said {
    if let Some(until) = inputs.reconnect_until {
        return wait(
            GateReason::AgentReconnecting,
            format!(
                "its agent is not back yet after a start of the orchestrator; it is expected until {}",
                until.to_rfc3339_opts(SecondsFormat::Secs, true)
            ),
            "nothing: the job starts by itself when the agent is back, and is treated as --offline says when it does not come back",
        );
    }
    fail(
        GateReason::AgentOffline,
        "its agent is offline",
        "start the agent on the host, see why it cannot reach the orchestrator, or choose what to do about it (--offline skip, --offline 30m)",
    )
}

/// An image that is known to be built for other platforms only cannot run there.
fn platform(inputs: &Inputs, agent: &AgentSituation) -> Option<Said> {
    let (service, platforms) = inputs.release.platforms.iter().find(|(_, platforms)| {
        !agent.platform.is_empty()
            && !platforms.is_empty()
            && !platforms.iter().any(|platform| fits(platform, &agent.platform))
    })?;
    Some(fail(
        GateReason::PlatformMismatch,
        format!(
            "the image of {service} is for {}, the host is {}",
            platforms.join(", "),
            agent.platform
        ),
        "build the image for the host's platform, or use targets of the image's platform",
    ))
}

/// `linux/arm64/v8` fits a host that calls itself `linux/arm64`: variants are not compared.
fn fits(image: &str, host: &str) -> bool {
    let two = |text: &str| text.splitn(3, '/').take(2).map(str::to_owned).collect::<Vec<_>>();
    two(image) == two(host)
}

fn plan_unchanged(inputs: &Inputs) -> Said {
    match inputs.plan_seen {
        None => pass("PLAN_NOT_BOUND", "no plan was named in the request"),
        Some(seen) if seen == inputs.plan => pass("PLAN_UNCHANGED", "the plan is the one that was looked at"),
        Some(seen) => fail(
            GateReason::PlanChanged,
            format!(
                "the plan is now {}, the request names {}",
                inputs.plan.short(),
                seen.short()
            ),
            "look at the plan again (sealift promote --plan) and promote with its digest",
        ),
    }
}

/// After a rollback nothing new of the project goes to the environment until a person has said so; going back always may. What
/// has its place already is not refused: it goes on when the hold is lifted.
fn hold(kind: PromotionKind, has_place: bool, held: Option<Held<'_>>) -> Said {
    let Some(Held {
        environment,
        project,
        hold,
    }) = held
    else {
        return pass("NOT_HELD", "nothing holds the project back");
    };
    let message = format!(
        "{project} is held in {environment} by {}: {}",
        hold.placed_by, hold.reason
    );
    let lift = format!(
        "see that the cause is mended, then lift it: sealift hold lift {}",
        hold.id
    );
    match kind {
        PromotionKind::Rollback => pass("HOLD_NOT_FOR_ROLLBACKS", message),
        PromotionKind::Deploy if has_place => {
            let advice = format!("{lift}; the job goes on by itself then");
            wait(GateReason::LaneHeld, message, advice)
        }
        PromotionKind::Deploy => fail(GateReason::LaneHeld, message, lift),
    }
}

fn lane(inputs: &Inputs) -> Said {
    let lane = inputs.lane;
    let environment = &inputs.environment_name;
    let replaces = match lane.replaces {
        0 => String::new(),
        count => format!(
            "; it replaces {count} {} of {} that {}",
            plural(count as usize, "promotion", "promotions"),
            inputs.release.project,
            plural(count as usize, "waits", "wait"),
        ),
    };
    if !lane.project_busy && lane.running.saturating_add(lane.start_first) < lane.capacity {
        return pass(
            "LANE_FREE",
            format!("the lane of {environment} is free{replaces}"),
        );
    }
    let why = if lane.project_busy {
        let project = &inputs.release.project;
        format!("; another job of {project} comes first, and only one of a project is under way")
    } else {
        String::new()
    };
    // Going back must always be possible.
    if lane.policy == LanePolicy::Reject && inputs.kind == PromotionKind::Deploy {
        return fail(
            GateReason::LaneOccupied,
            format!("the lane of {environment} is occupied, and nothing waits there{why}"),
            "promote again when what is under way has ended (sealift status), or let promotions wait (sealift env update --lane queue)",
        );
    }
    if lane.ahead >= lane.queue_limit {
        return fail(
            GateReason::LaneFull,
            format!("{} jobs wait in the lane of {environment} already", lane.ahead),
            "wait until the lane is shorter, or cancel what is no longer wanted",
        );
    }
    wait(
        GateReason::LaneBusy,
        format!(
            "place {} in the lane of {environment}{why}{replaces}",
            lane.ahead.saturating_add(1)
        ),
        "nothing: it starts by itself when its turn comes",
    )
}

fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

fn names(group: &TargetGroup) -> String {
    few(group.targets.iter().map(Name::as_str), NAMES_SHOWN)
}
