//! Agents as operators command them: pause, resume, drain, revoke.

use sealift_common::{
    audit::{AuditEvent, AuditOutcome},
    condition::{Condition, ConditionCode},
    inventory::{AgentFacts, ClockFacts, DiskFacts},
    role::Role,
};
use sealift_proto::v1::{
    DrainAgentRequest, GetAgentRequest, PauseAgentRequest, ResumeAgentRequest, RevokeAgentRequest,
    agent::Intent, agent_service_client::AgentServiceClient,
};
use sealift_store::PageRequest;

use crate::support::{World, reason};

#[tokio::test]
async fn what_an_agent_says_about_itself_is_shown_with_advice_and_its_distance_from_our_version() {
    let world = World::start().await;
    let (id, _) = world.agent("default").await;
    let said = AgentFacts {
        version: "99.0.0".to_owned(),
        cgroup_version: "2".to_owned(),
        disks: vec![DiskFacts {
            what: "engine".to_owned(),
            path: "/var/lib/docker".to_owned(),
            free_bytes: u64::MAX,
            total_bytes: 1,
        }],
        clock: Some(ClockFacts {
            ahead_ms: -3,
            uncertainty_ms: 2,
        }),
        degraded: vec![Condition::new(
            ConditionCode::DiskLow,
            "/var/lib/docker has 3 MiB free",
        )],
        ..AgentFacts::default()
    };
    let app = &world.running.app;
    let mut tx = app.db.write().await.unwrap();
    tx.update_agent_facts(id, &said, app.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    let olga = world.user("default", "olga", Role::Observer).await;
    let get = GetAgentRequest {
        name: format!("agents/{id}"),
    };
    let seen = AgentServiceClient::new(olga)
        .get_agent(get.clone())
        .await
        .unwrap();
    let seen = seen.into_inner().agent.unwrap();
    // Places on the host are for those who look after it.
    assert_eq!(seen.degraded[0].detail, "(hidden) has 3 MiB free");
    let path = seen.disks[0].path.as_ref().unwrap();
    assert_eq!(
        (path.hidden, path.id.as_str(), path.visibility.as_str()),
        (true, "", "operators")
    );
    let dora = world.user("default", "dora", Role::Deployer).await;
    let whole = AgentServiceClient::new(dora).get_agent(get).await.unwrap();
    let whole = whole.into_inner().agent.unwrap();
    assert_eq!(whole.degraded[0].detail, "/var/lib/docker has 3 MiB free");
    let path = whole.disks[0].path.as_ref().unwrap();
    assert_eq!((path.hidden, path.id.as_str()), (false, "/var/lib/docker"));
    let codes: Vec<_> = seen.degraded.iter().map(|found| found.code.as_str()).collect();
    assert_eq!(codes, ["DISK_LOW", "VERSION_SKEW"]);
    assert!(seen.degraded.iter().all(|found| !found.advice.is_empty()));
    assert_eq!(seen.disks[0].free_bytes, i64::MAX);
    assert_eq!(seen.clock.unwrap().ahead_ms, -3);
    world.stop().await;
}

#[tokio::test]
async fn what_is_wanted_of_an_agent_has_a_reason_an_etag_and_an_audit_event() {
    let world = World::start().await;
    let (id, _) = world.agent("default").await;
    let name = format!("agents/{id}");
    let ada = world.user("default", "ada", Role::Deployer).await;
    let mut agents = AgentServiceClient::new(ada);
    let get = GetAgentRequest { name: name.clone() };
    let seen = agents.get_agent(get).await.unwrap().into_inner().agent.unwrap();
    let pause = PauseAgentRequest {
        request_id: String::new(),
        name: name.clone(),
        etag: seen.etag.clone(),
        reason: "new disk".to_owned(),
    };
    let paused = agents.pause_agent(pause.clone()).await.unwrap().into_inner();
    let paused = paused.agent.unwrap();
    assert_eq!(
        (
            paused.intent(),
            paused.intent_reason.as_str(),
            paused.intent_actor.as_str()
        ),
        (Intent::Paused, "new disk", "user/ada")
    );
    let stale = agents.pause_agent(pause.clone()).await.unwrap_err();
    assert_eq!(reason(&stale), "STALE_ETAG");
    let silent = DrainAgentRequest {
        request_id: String::new(),
        name: name.clone(),
        etag: paused.etag.clone(),
        reason: " ".to_owned(),
    };
    assert_eq!(
        reason(&agents.drain_agent(silent).await.unwrap_err()),
        "INVALID_ARGUMENT"
    );
    let resume = ResumeAgentRequest {
        request_id: String::new(),
        name: name.clone(),
        etag: paused.etag,
        reason: String::new(),
    };
    let active = agents.resume_agent(resume).await.unwrap().into_inner();
    let active = active.agent.unwrap();
    assert_eq!(active.intent(), Intent::Active);

    let ci = world.user("default", "robot", Role::Ci).await;
    let denied = AgentServiceClient::new(ci).pause_agent(pause).await.unwrap_err();
    assert_eq!(reason(&denied), "ROLE_MISSING");

    let admin = world.user("default", "alice", Role::Admin).await;
    let revoke = RevokeAgentRequest {
        request_id: String::new(),
        name: name.clone(),
        reason: "sold".to_owned(),
    };
    let revoked = AgentServiceClient::new(admin).revoke_agent(revoke).await.unwrap();
    let revoked = revoked.into_inner().agent.unwrap();
    assert_eq!(
        (revoked.intent(), revoked.intent_reason.as_str()),
        (Intent::Revoked, "sold")
    );
    let back = ResumeAgentRequest {
        request_id: String::new(),
        name: name.clone(),
        etag: revoked.etag,
        reason: String::new(),
    };
    assert_eq!(
        reason(&agents.resume_agent(back).await.unwrap_err()),
        "WRONG_STATE"
    );

    let mut tx = world.running.app.db.read().await.unwrap();
    let events = tx.list_audit(None, &PageRequest::first(100)).await.unwrap().items;
    let about = |verb: &str, outcome| {
        let of = |event: &&AuditEvent| {
            event.entry.action.ends_with(verb)
                && event.entry.outcome == outcome
                && event.entry.resource == name
        };
        events.iter().filter(of).count()
    };
    assert_eq!(about("/PauseAgent", AuditOutcome::Success), 1);
    assert_eq!(about("/PauseAgent", AuditOutcome::Failed), 1);
    assert_eq!(about("/ResumeAgent", AuditOutcome::Success), 1);
    assert_eq!(about("/RevokeAgent", AuditOutcome::Success), 1);
    drop(tx);
    world.stop().await;
}
