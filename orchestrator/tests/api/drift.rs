//! DriftService over the real port: lists, explanations, owners.

use sealift_common::{
    drift::{DriftKind, Finding},
    error::Reason,
    inventory::EnvironmentClass,
    observation::{ContainerState, EngineAction, EngineEvent},
    role::Role,
};
use sealift_proto::v1::{
    AcknowledgeDriftRequest, Drift, ExplainDriftRequest, ListAuditEventsRequest, ListDriftRequest,
    audit_service_client::AuditServiceClient,
    drift::{Kind, Severity},
    drift_service_client::DriftServiceClient,
};
use tonic::{Code, transport::Channel};

use crate::{
    host::{Host, PROJECT},
    support::{World, reason},
};

async fn drift(channel: &Channel, change: impl FnOnce(&mut ListDriftRequest)) -> Vec<Drift> {
    let mut request = ListDriftRequest::default();
    change(&mut request);
    let answer = DriftServiceClient::new(channel.clone()).list_drift(request).await;
    answer.unwrap().into_inner().drift
}

fn finding(kind: DriftKind, service: &str) -> Finding {
    Finding {
        kind,
        service: Some(service.parse().unwrap()),
        expected: "this".to_owned(),
        actual: "that".to_owned(),
    }
}

#[tokio::test]
async fn drift_is_listed_by_place_and_severity_with_its_history() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let production = EnvironmentClass::Production;
    let prod = Host::new(&world, "default", &ada, "prod", "web-1", production).await;
    let other = EnvironmentClass::NonProduction;
    let staging = Host::new(&world, "default", &ada, "staging", "web-1", other).await;
    let found = vec![finding(DriftKind::Extra, "x"), finding(DriftKind::Stopped, "web")];
    prod.drifts(found.clone()).await;
    staging.drifts(found).await;

    let all = drift(&ada, |_| {}).await;
    assert_eq!(all.len(), 4);
    let severe = drift(&ada, |request| request.at_least = Severity::High.into()).await;
    let severe: Vec<_> = severe
        .iter()
        .map(|one| (one.target.as_str(), one.kind(), one.severity()))
        .collect();
    assert_eq!(
        severe,
        [
            (
                "environments/staging/targets/web-1",
                Kind::Stopped,
                Severity::High
            ),
            (
                "environments/prod/targets/web-1",
                Kind::Stopped,
                Severity::Critical
            ),
        ]
    );
    let here = drift(&ada, |request| request.parent.clone_from(&prod.name)).await;
    assert_eq!(here.len(), 2);

    prod.drifts(Vec::new()).await;
    let here = drift(&ada, |request| request.parent = "environments/prod".to_owned()).await;
    assert!(here.is_empty());
    let history = drift(&ada, |request| {
        request.parent = "environments/prod".to_owned();
        request.include_resolved = true;
    })
    .await;
    assert_eq!(history.len(), 2);
    assert!(history.iter().all(|one| one.resolve_time.is_some()));

    let request = ListDriftRequest {
        at_least: 77,
        ..ListDriftRequest::default()
    };
    let refused = DriftServiceClient::new(ada.clone()).list_drift(request).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::InvalidArgument.as_str());
    // A page's token is good for the same list only.
    let request = ListDriftRequest {
        page_size: 1,
        ..ListDriftRequest::default()
    };
    let mut client = DriftServiceClient::new(ada.clone());
    let token = client
        .list_drift(request)
        .await
        .unwrap()
        .into_inner()
        .next_page_token;
    let request = ListDriftRequest {
        page_token: token,
        at_least: Severity::High.into(),
        ..ListDriftRequest::default()
    };
    let refused = client.list_drift(request).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidPageToken.as_str());
    world.stop().await;
}

#[tokio::test]
async fn an_explanation_says_what_was_recorded_what_runs_and_what_changed_it() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::Production;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let release = host.release("one").await;
    let (promotion, task) = host.deploy(&release).await;
    let stop = EngineEvent {
        action: EngineAction::Stop,
        container: "container-of-1".to_owned(),
        project: PROJECT.to_owned(),
        service: "web".parse().unwrap(),
        at: world.running.app.clock.now(),
    };
    let stopped = |seen: &mut sealift_common::observation::ProjectObservation| {
        seen.containers[0].state = ContainerState::Exited;
    };
    host.sees(&task, &release, stopped, std::slice::from_ref(&stop))
        .await;

    let found = drift(&ada, |_| {}).await.remove(0);
    let mut client = DriftServiceClient::new(ada.clone());
    let explain = ExplainDriftRequest {
        name: found.name.clone(),
    };
    let answer = client.explain_drift(explain.clone()).await.unwrap().into_inner();
    assert_eq!(answer.drift.as_ref(), Some(&found));
    assert_eq!(found.cause.as_ref().unwrap().action, "stop");
    assert_eq!(found.job, format!("jobs/{}", task.job_id));
    let recorded = answer.recorded.unwrap();
    assert_eq!(recorded.release_display, format!("{PROJECT}#1"));
    assert_eq!((recorded.promotion, recorded.job), (promotion, found.job.clone()));
    assert_eq!(recorded.requested_by, "user/ada");
    assert_eq!(answer.recorded_now, None);
    assert_eq!(answer.sticker.unwrap().digest, recorded.sticker);
    assert_eq!(answer.observed[0].state, "exited");
    assert_eq!(answer.agent, format!("agents/{}", host.agent));
    let steps: Vec<_> = answer
        .next_steps
        .iter()
        .map(|step| step.command.as_str())
        .collect();
    assert!(
        steps[0].starts_with(&format!("sealift promote {PROJECT}#1 --to prod")),
        "{steps:?}"
    );

    // A newer release ends it; its explanation stays true.
    let two = host.release("two").await;
    host.deploy(&two).await;
    assert!(drift(&ada, |_| {}).await.is_empty());
    let answer = client.explain_drift(explain).await.unwrap().into_inner();
    assert!(answer.drift.unwrap().resolve_time.is_some());
    assert_eq!(answer.recorded.unwrap().release_display, format!("{PROJECT}#1"));
    assert_eq!(
        answer.recorded_now.unwrap().release_display,
        format!("{PROJECT}#2")
    );

    // Nobody else learns of it (R12).
    world.tenant("evil").await;
    let mallory = world.user("evil", "mallory", Role::Admin).await;
    let explain = ExplainDriftRequest { name: found.name };
    let refused = DriftServiceClient::new(mallory).explain_drift(explain).await;
    assert_eq!(refused.unwrap_err().code(), Code::NotFound);
    world.stop().await;
}

#[tokio::test]
async fn r13_r16_whoever_acknowledges_is_recorded() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let olga = world.user("default", "olga", Role::Observer).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    host.drifts(vec![finding(DriftKind::Stopped, "web")]).await;
    let found = drift(&ada, |_| {}).await.remove(0);
    let request = AcknowledgeDriftRequest {
        request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
        name: found.name.clone(),
        owner: String::new(),
        note: "the disk is being replaced".to_owned(),
    };
    let refused = DriftServiceClient::new(olga)
        .acknowledge_drift(request.clone())
        .await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::RoleMissing.as_str());
    let mut client = DriftServiceClient::new(ada.clone());
    let first = client
        .acknowledge_drift(request.clone())
        .await
        .unwrap()
        .into_inner();
    let again = client
        .acknowledge_drift(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    let said = drift(&ada, |_| {}).await.remove(0);
    assert_eq!(
        (said.owner.as_str(), said.acknowledged_by.as_str()),
        ("user/ada", "user/ada")
    );
    assert_eq!(said.note, "the disk is being replaced");

    let events = AuditServiceClient::new(ada.clone())
        .list_audit_events(ListAuditEventsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .events;
    let of_drift = events.iter().filter(|event| event.resource == found.name);
    assert_eq!(
        of_drift.count(),
        1,
        "the repeated request is one event: {events:?}"
    );

    let escape = AcknowledgeDriftRequest {
        request_id: String::new(),
        note: "\u{1b}[31m".to_owned(),
        ..request.clone()
    };
    let refused = client.acknowledge_drift(escape).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument.as_str());
    host.drifts(Vec::new()).await;
    let late = AcknowledgeDriftRequest {
        request_id: String::new(),
        ..request
    };
    let refused = client.acknowledge_drift(late).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::WrongState.as_str());
    world.stop().await;
}
