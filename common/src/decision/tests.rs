use proptest::prelude::*;

use super::*;

fn agent() -> AgentSituation {
    AgentSituation {
        intent: AgentIntent::Active,
        status: AgentStatus::Online,
        platform: "linux/amd64".into(),
        capabilities: vec!["docker_host".into()],
        degraded: Vec::new(),
    }
}

fn situation(agent: Option<AgentSituation>) -> Situation {
    Situation {
        kind: TargetKind::DockerHost,
        no_op: false,
        agent,
    }
}

fn inputs(targets: Vec<(Name, Situation)>) -> Inputs {
    Inputs {
        tenant: TenantId::from(uuid::Uuid::from_u128(1)),
        promotion: Some(PromotionId::from(uuid::Uuid::from_u128(2))),
        kind: PromotionKind::Deploy,
        choice: None,
        stage: Stage::Request,
        at: DateTime::from_timestamp(1_000, 0).unwrap(),
        requester: Requester {
            actor: "user/alice".into(),
            role: Role::Deployer,
        },
        environment: EnvironmentId::from(uuid::Uuid::from_u128(3)),
        environment_name: "staging".parse().unwrap(),
        release: ReleaseFacts {
            id: ReleaseId::from(uuid::Uuid::from_u128(4)),
            project: "github.com/acme/shop/api".parse().unwrap(),
            number: 42,
            content: Digest::of(b"content"),
            state: ReleaseState::Ready,
            kind: TargetKind::DockerHost,
            platforms: BTreeMap::new(),
        },
        plan: Digest::of(b"plan"),
        plan_seen: None,
        targets: group(targets),
        target_limit: 100,
        offline: OfflinePolicy::Fail {},
        reconnect_until: None,
        swap_unfit: Vec::new(),
        hold: None,
        lane: LaneFacts {
            running: 0,
            ahead: 0,
            start_first: 0,
            project_busy: false,
            capacity: 1,
            queue_limit: 10,
            policy: LanePolicy::Queue,
            replaces: 0,
        },
    }
}

fn one(agent: Option<AgentSituation>) -> Inputs {
    inputs(vec![("web".parse().unwrap(), situation(agent))])
}

fn reason(record: &DecisionRecord, gate: Gate) -> (&str, Verdict) {
    let answer = record.gates.iter().find(|answer| answer.gate == gate).unwrap();
    (answer.reason.as_str(), answer.verdict)
}

#[test]
fn all_gates_answer_even_when_all_fail() {
    let mut inputs = inputs(Vec::new());
    inputs.release.state = ReleaseState::Draft;
    inputs.plan_seen = Some(Digest::of(b"other plan"));
    inputs.lane = LaneFacts {
        running: 1,
        ahead: 10,
        start_first: 1,
        project_busy: false,
        capacity: 1,
        queue_limit: 10,
        policy: LanePolicy::Queue,
        replaces: 0,
    };
    let record = evaluate(inputs);
    let gates: Vec<_> = record.gates.iter().map(|answer| answer.gate).collect();
    assert_eq!(gates, Gate::ALL);
    assert_eq!(record.result, Verdict::Fail);
    assert_eq!(
        reason(&record, Gate::ReleaseReady),
        ("RELEASE_NOT_READY", Verdict::Fail)
    );
    assert_eq!(
        reason(&record, Gate::TargetsPresent),
        ("NO_TARGETS", Verdict::Fail)
    );
    assert_eq!(
        reason(&record, Gate::PlanUnchanged),
        ("PLAN_CHANGED", Verdict::Fail)
    );
    assert_eq!(reason(&record, Gate::Lane), ("LANE_FULL", Verdict::Fail));
    assert!(
        record
            .gates
            .iter()
            .all(|answer| answer.verdict == Verdict::Pass || !answer.advice.is_empty())
    );
}

#[test]
fn a_rollback_leaves_targets_alone_that_nobody_serves_and_a_deploy_is_refused() {
    let revoked = AgentSituation {
        intent: AgentIntent::Revoked,
        ..agent()
    };
    let targets = || {
        vec![
            ("good".parse().unwrap(), situation(Some(agent()))),
            ("empty".parse().unwrap(), situation(None)),
            ("gone".parse().unwrap(), situation(Some(revoked.clone()))),
        ]
    };
    let gate = Gate::AgentsPresent;
    let deploy = evaluate(inputs(targets()));
    assert_eq!(reason(&deploy, gate), ("AGENT_MISSING", Verdict::Fail));
    let rollback = |targets| {
        let inputs = Inputs {
            kind: PromotionKind::Rollback,
            ..inputs(targets)
        };
        evaluate(inputs)
    };
    let record = rollback(targets());
    assert_eq!(reason(&record, gate), ("AGENTS_PRESENT", Verdict::Pass));
    let answer = record.gates.iter().find(|answer| answer.gate == gate).unwrap();
    for said in ["empty (no agent is enrolled)", "gone (its agent is revoked)"] {
        assert!(answer.message.contains(said), "{}", answer.message);
    }
    // What an agent that is there cannot do is no less in the way.
    let mut unable = targets();
    unable[0].1.agent.as_mut().unwrap().capabilities.clear();
    assert_eq!(
        reason(&rollback(unable), gate),
        ("CAPABILITY_MISSING", Verdict::Fail)
    );
    // Where nobody serves any, there is nothing to go back on.
    let none = rollback(targets().split_off(1));
    assert_eq!(reason(&none, gate), ("AGENT_MISSING", Verdict::Fail));
}

#[test]
fn an_agent_that_cannot_do_it_closes_the_gate() {
    let spoil = |change: fn(&mut AgentSituation)| {
        let mut agent = agent();
        change(&mut agent);
        evaluate(one(Some(agent)))
    };
    let gate = Gate::AgentsPresent;
    assert_eq!(reason(&evaluate(one(Some(agent()))), gate).1, Verdict::Pass);
    assert_eq!(reason(&evaluate(one(None)), gate).0, "AGENT_MISSING");
    assert_eq!(
        reason(&spoil(|agent| agent.status = AgentStatus::Offline), gate).0,
        "AGENT_OFFLINE"
    );
    assert_eq!(
        reason(&spoil(|agent| agent.intent = AgentIntent::Revoked), gate).0,
        "AGENT_REVOKED"
    );
    assert_eq!(
        reason(&spoil(|agent| agent.intent = AgentIntent::Paused), gate).0,
        "AGENT_PAUSED"
    );
    assert_eq!(
        reason(&spoil(|agent| agent.intent = AgentIntent::Draining), gate).0,
        "AGENT_DRAINING"
    );
    assert_eq!(
        reason(&spoil(|agent| agent.capabilities.clear()), gate).0,
        "CAPABILITY_MISSING"
    );
    assert_eq!(
        reason(&spoil(|agent| agent.status = AgentStatus::Degraded), gate).1,
        Verdict::Pass
    );
    let mut untouched = situation(None);
    untouched.no_op = true;
    let record = evaluate(inputs(vec![("web".parse().unwrap(), untouched)]));
    assert_eq!(
        reason(&record, gate).1,
        Verdict::Pass,
        "a target that is left alone needs no agent"
    );
}

#[test]
fn a_release_for_another_kind_of_target_closes_the_gate() {
    let gate = Gate::TargetsFit;
    assert_eq!(
        reason(&evaluate(one(Some(agent()))), gate),
        ("TARGETS_FIT", Verdict::Pass)
    );
    let mut inputs = one(Some(agent()));
    inputs.release.kind = TargetKind::ComposeHost;
    let record = evaluate(inputs);
    assert_eq!(reason(&record, gate), ("KIND_MISMATCH", Verdict::Fail));
    let answer = record.gates.iter().find(|answer| answer.gate == gate).unwrap();
    assert!(answer.message.contains("web (docker_host)"), "{}", answer.message);
    assert!(answer.advice.contains("--kind docker-host"), "{}", answer.advice);
}

#[test]
fn an_image_for_another_platform_closes_the_gate() {
    let with = |platforms: &[&str]| {
        let mut inputs = one(Some(agent()));
        let platforms = platforms.iter().map(|text| (*text).to_owned()).collect();
        inputs.release.platforms.insert("web".parse().unwrap(), platforms);
        evaluate(inputs)
    };
    assert_eq!(
        reason(&with(&["linux/arm64"]), Gate::AgentsPresent).0,
        "PLATFORM_MISMATCH"
    );
    assert!(with(&["linux/arm64/v8", "linux/amd64"]).passed());
    assert!(with(&[]).passed(), "nothing known");
}

#[test]
fn a_platform_that_nobody_told_is_no_verdict_and_the_gate_says_so() {
    let said = |platforms: &[&str], host: &str| {
        let mut inputs = one(Some(AgentSituation {
            platform: host.to_owned(),
            ..agent()
        }));
        let platforms: Vec<_> = platforms.iter().map(|text| (*text).to_owned()).collect();
        if !platforms.is_empty() {
            inputs.release.platforms.insert("web".parse().unwrap(), platforms);
        }
        let record = evaluate(inputs);
        let answer = record
            .gates
            .iter()
            .find(|answer| answer.gate == Gate::AgentsPresent)
            .unwrap();
        assert_eq!(
            (answer.reason.as_str(), answer.verdict),
            ("AGENTS_PRESENT", Verdict::Pass)
        );
        answer.message.clone()
    };
    assert!(!said(&["linux/amd64"], "linux/amd64").contains("not known"));
    let host = said(&["linux/arm64"], "");
    assert!(host.contains("the platform of web is not known"), "{host}");
    let image = said(&[], "linux/amd64");
    assert!(
        image.contains("the platforms of the images are not known"),
        "{image}"
    );
}

#[test]
fn an_agent_that_may_only_be_late_is_waited_for_and_another_obstacle_is_not() {
    let mut late = agent();
    late.status = AgentStatus::Offline;
    let mut inputs = one(Some(late.clone()));
    inputs.reconnect_until = Some(inputs.at + chrono::TimeDelta::seconds(60));
    let record = evaluate(inputs.clone());
    assert_eq!(
        reason(&record, Gate::AgentsPresent),
        ("AGENT_RECONNECTING", Verdict::Wait)
    );
    assert!(record.passed());
    late.capabilities.clear();
    inputs.targets = group([("web".parse().unwrap(), situation(Some(late)))]);
    let record = evaluate(inputs);
    assert_eq!(
        reason(&record, Gate::AgentsPresent),
        ("CAPABILITY_MISSING", Verdict::Fail)
    );
}

#[test]
fn a_release_that_cannot_be_swapped_in_the_wanted_way_closes_the_gate() {
    let unfit = |service: Option<&str>| Unfit {
        service: service.map(|name| name.parse().unwrap()),
        message: "it publishes host port 80".to_owned(),
        advice: "publish it behind a proxy".to_owned(),
    };
    let mut inputs = one(Some(agent()));
    let gate = Gate::SwapFits;
    assert_eq!(
        reason(&evaluate(inputs.clone()), gate),
        ("SWAP_FITS", Verdict::Pass)
    );
    inputs.swap_unfit = vec![unfit(Some("web")), unfit(Some("api"))];
    let record = evaluate(inputs.clone());
    assert_eq!(reason(&record, gate), ("SWAP_UNFIT", Verdict::Fail));
    let answer = record.gates.iter().find(|answer| answer.gate == gate).unwrap();
    assert!(
        answer
            .message
            .contains("service web: it publishes host port 80; service api: ")
    );
    assert_eq!(answer.advice, "publish it behind a proxy", "each advice once");
    for group in &mut inputs.targets {
        group.situation.no_op = true;
    }
    assert!(evaluate(inputs).passed(), "nothing is swapped");
}

#[test]
fn a_busy_lane_waits_and_does_not_refuse() {
    let mut inputs = one(Some(agent()));
    inputs.lane = LaneFacts {
        running: 1,
        ahead: 2,
        start_first: 1,
        project_busy: false,
        capacity: 1,
        queue_limit: 10,
        policy: LanePolicy::Queue,
        replaces: 0,
    };
    let record = evaluate(inputs);
    assert_eq!(reason(&record, Gate::Lane), ("LANE_BUSY", Verdict::Wait));
    assert_eq!(record.result, Verdict::Wait);
    assert!(record.passed());
    assert!(record.gates.last().unwrap().message.contains("place 3"));
}

#[test]
fn a_wide_lane_is_free_only_when_nothing_starts_before() {
    const FREE: (&str, Verdict) = ("LANE_FREE", Verdict::Pass);
    const BUSY: (&str, Verdict) = ("LANE_BUSY", Verdict::Wait);
    let mut inputs = one(Some(agent()));
    // Those who wait for something else than room take none.
    for (running, ahead, start_first, project_busy, wanted) in [
        (1, 0, 0, false, FREE),
        (1, 0, 0, true, BUSY),
        (1, 7, 0, false, FREE),
        (1, 7, 3, false, FREE),
        (1, 7, 4, false, BUSY),
        (5, 0, 0, false, BUSY),
        (0, 1, 1, true, BUSY),
    ] {
        inputs.lane = LaneFacts {
            running,
            ahead,
            start_first,
            project_busy,
            capacity: 5,
            queue_limit: 10,
            policy: LanePolicy::Queue,
            replaces: 0,
        };
        let record = evaluate(inputs.clone());
        assert_eq!(reason(&record, Gate::Lane), wanted, "{:?}", inputs.lane);
        let said = &record.gates.last().unwrap().message;
        assert_eq!(said.contains("comes first"), project_busy, "{said}");
    }
}

#[test]
fn a_lane_that_lets_nothing_wait_refuses_and_lets_rollbacks_wait_all_the_same() {
    let mut inputs = one(Some(agent()));
    inputs.lane.policy = LanePolicy::Reject;
    inputs.lane.capacity = 1;
    inputs.lane.queue_limit = 10;
    for (running, project_busy, kind, wanted) in [
        (0, false, PromotionKind::Deploy, ("LANE_FREE", Verdict::Pass)),
        (1, false, PromotionKind::Deploy, ("LANE_OCCUPIED", Verdict::Fail)),
        (0, true, PromotionKind::Deploy, ("LANE_OCCUPIED", Verdict::Fail)),
        (0, false, PromotionKind::Rollback, ("LANE_FREE", Verdict::Pass)),
        (1, true, PromotionKind::Rollback, ("LANE_BUSY", Verdict::Wait)),
    ] {
        inputs.lane.running = running;
        inputs.lane.project_busy = project_busy;
        inputs.kind = kind;
        assert_eq!(
            reason(&evaluate(inputs.clone()), Gate::Lane),
            wanted,
            "{:?}",
            inputs.lane
        );
    }
}

#[test]
fn whoever_replaces_those_that_wait_is_told_so() {
    let mut inputs = one(Some(agent()));
    inputs.lane.policy = LanePolicy::Supersede;
    inputs.lane.capacity = 1;
    inputs.lane.queue_limit = 10;
    for (running, replaces, wanted) in [(0, 1, "LANE_FREE"), (1, 2, "LANE_BUSY"), (1, 0, "LANE_BUSY")] {
        inputs.lane.running = running;
        inputs.lane.replaces = replaces;
        let record = evaluate(inputs.clone());
        let lane = record.gates.last().unwrap();
        assert_eq!(lane.reason, wanted);
        assert_eq!(
            lane.message.contains(&format!("replaces {replaces} promotion")),
            replaces > 0
        );
    }
}

#[test]
fn equal_targets_become_one_group() {
    let targets = (0..1_000)
        .map(|n| (format!("web-{n:04}").parse().unwrap(), situation(Some(agent()))))
        .rev()
        .collect();
    let inputs = inputs(targets);
    assert_eq!(inputs.targets.len(), 1);
    assert!(evaluate(inputs).to_bytes().unwrap().len() < 20_000);
}

prop_compose! {
    fn any_situation()(
        no_op: bool, enrolled: bool, status in 0_usize..3, capable: bool, platform in "(linux/amd64|linux/arm64|)",
    ) -> Situation {
        let agent = AgentSituation {
            status: AgentStatus::ALL[status],
            platform,
            capabilities: if capable { vec!["docker_host".into()] } else { Vec::new() },
            ..agent()
        };
        Situation { no_op, ..situation(enrolled.then_some(agent)) }
    }
}

proptest! {
    /// I16: a stored record evaluated again gives the same bytes.
    #[test]
    fn i16_a_decision_is_a_pure_function_of_its_inputs(
        situations in prop::collection::vec(any_situation(), 0..6),
        running in 0_u32..3, ahead in 0_u32..12, seen in prop::option::of(any::<bool>()),
    ) {
        let targets: Vec<(Name, Situation)> =
            (0..).zip(situations).map(|(n, situation)| (format!("t{n}").parse().unwrap(), situation)).collect();
        let mut first = inputs(targets.clone());
        first.lane.running = running;
        first.lane.ahead = ahead;
        first.lane.start_first = ahead / 2;
        first.plan_seen = seen.map(|same| if same { first.plan } else { Digest::of(b"other") });
        let mut shuffled = first.clone();
        shuffled.targets = group(targets.into_iter().rev());
        let bytes = evaluate(first).to_bytes().unwrap();
        prop_assert_eq!(&evaluate(shuffled).to_bytes().unwrap(), &bytes);
        let stored = DecisionRecord::from_bytes(&bytes).unwrap();
        prop_assert_eq!(&evaluate(stored.inputs.clone()).to_bytes().unwrap(), &bytes);
    }
}
