//! Tenancy, audit, idempotency and concurrency of the inventory services, over the real port.

use sealift_common::{audit::AuditOutcome, error::Reason, role::Role};
use sealift_proto::v1::{
    self, ArchiveEnvironmentRequest, CreateEnvironmentRequest, CreateJoinTokenRequest, CreateTargetRequest,
    GetAgentRequest, GetEnvironmentRequest, GetTargetRequest, GetTrustFileRequest, ListAgentsRequest,
    ListAuditEventsRequest, ListEnvironmentsRequest, ListTargetsRequest, ListUsersRequest,
    UpdateEnvironmentRequest, UpdateTargetRequest, agent_service_client::AgentServiceClient,
    audit_service_client::AuditServiceClient, environment::Class,
    environment_service_client::EnvironmentServiceClient, evidence_service_client::EvidenceServiceClient,
    target::Kind, target_service_client::TargetServiceClient, user_service_client::UserServiceClient,
};
use sealift_store::PageRequest;
use tonic::{Code, transport::Channel};
use uuid::Uuid;

use crate::support::{World, call_empty, reason};

fn environment(name: &str, position: i32, request_id: &str) -> CreateEnvironmentRequest {
    CreateEnvironmentRequest {
        request_id: request_id.to_owned(),
        environment_id: name.to_owned(),
        environment: Some(v1::Environment {
            position,
            class: Class::NonProduction.into(),
            display_name: "For tests".to_owned(),
            ..v1::Environment::default()
        }),
    }
}

fn target(environment: &str, name: &str) -> CreateTargetRequest {
    CreateTargetRequest {
        request_id: String::new(),
        parent: format!("environments/{environment}"),
        target_id: name.to_owned(),
        target: Some(v1::Target {
            kind: Kind::DockerHost.into(),
            labels: [("region", "eu"), ("rack", "7"), ("zone", "a")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..v1::Target::default()
        }),
    }
}

async fn create_environment(channel: &Channel, name: &str) -> v1::Environment {
    EnvironmentServiceClient::new(channel.clone())
        .create_environment(environment(name, 1, ""))
        .await
        .unwrap()
        .into_inner()
        .environment
        .unwrap()
}

#[tokio::test]
async fn r12_a_tenant_sees_and_changes_nothing_of_another() {
    let world = World::start().await;
    world.tenant("acme").await;
    world.tenant("evil").await;
    let (acme, evil) = (
        world.user("acme", "alice", Role::Admin).await,
        world.user("evil", "mallory", Role::Admin).await,
    );
    let (agent, _) = world.agent("acme").await;
    let made = create_environment(&acme, "prod").await;
    let targets = TargetServiceClient::new(acme.clone())
        .create_target(target("prod", "web-1"))
        .await;
    let target_made = targets.unwrap().into_inner().target.unwrap();

    let mut environments = EnvironmentServiceClient::new(evil.clone());
    let get = GetEnvironmentRequest {
        name: made.name.clone(),
    };
    let status = environments.get_environment(get).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "NOT_FOUND")
    );
    let list = environments
        .list_environments(ListEnvironmentsRequest::default())
        .await
        .unwrap();
    assert!(list.into_inner().environments.is_empty());
    let archive = ArchiveEnvironmentRequest {
        request_id: String::new(),
        name: made.name.clone(),
        etag: made.etag.clone(),
    };
    assert_eq!(
        environments
            .archive_environment(archive)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );

    let mut targets = TargetServiceClient::new(evil.clone());
    let get = GetTargetRequest {
        name: target_made.name.clone(),
    };
    assert_eq!(targets.get_target(get).await.unwrap_err().code(), Code::NotFound);
    let list = ListTargetsRequest {
        parent: "environments/-".to_owned(),
        ..ListTargetsRequest::default()
    };
    assert!(
        targets
            .list_targets(list)
            .await
            .unwrap()
            .into_inner()
            .targets
            .is_empty()
    );
    let create = targets.create_target(target("prod", "web-2")).await;
    assert_eq!(create.unwrap_err().code(), Code::NotFound);
    let token = CreateJoinTokenRequest {
        name: target_made.name.clone(),
        ..CreateJoinTokenRequest::default()
    };
    assert_eq!(
        targets.create_join_token(token).await.unwrap_err().code(),
        Code::NotFound
    );

    let mut agents = AgentServiceClient::new(evil.clone());
    let get = GetAgentRequest {
        name: format!("agents/{agent}"),
    };
    assert_eq!(agents.get_agent(get).await.unwrap_err().code(), Code::NotFound);
    assert!(
        agents
            .list_agents(ListAgentsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .agents
            .is_empty()
    );

    let users = UserServiceClient::new(evil.clone())
        .list_users(ListUsersRequest::default())
        .await
        .unwrap();
    let names: Vec<_> = users
        .into_inner()
        .users
        .into_iter()
        .map(|user| user.name)
        .collect();
    assert_eq!(names, ["users/mallory"]);
    let events = AuditServiceClient::new(evil.clone())
        .list_audit_events(ListAuditEventsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .events;
    assert!(
        events.iter().all(|event| !event.actor.contains("alice")),
        "{events:?}"
    );
    let trust = EvidenceServiceClient::new(evil)
        .get_trust_file(GetTrustFileRequest {})
        .await
        .unwrap();
    let trust = sealift_common::trust::TrustFile::from_json(&trust.into_inner().trust_file).unwrap();
    assert!(trust.agents.is_empty());
    let trust = EvidenceServiceClient::new(acme)
        .get_trust_file(GetTrustFileRequest {})
        .await
        .unwrap();
    let trust = sealift_common::trust::TrustFile::from_json(&trust.into_inner().trust_file).unwrap();
    assert_eq!(trust.agents.len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn r13_every_change_and_every_denied_call_leaves_one_audit_event() {
    let world = World::start().await;
    let admin = world.user("default", "alice", Role::Admin).await;
    let observer = world.user("default", "olga", Role::Observer).await;
    let anonymous = world.anonymous().await;
    create_environment(&admin, "prod").await;
    let again = EnvironmentServiceClient::new(admin.clone())
        .create_environment(environment("prod", 1, ""))
        .await;
    assert_eq!(reason(&again.unwrap_err()), "ALREADY_EXISTS");
    call_empty(&observer, "/sealift.v1.TargetService/CreateTarget").await;
    call_empty(&anonymous, "/sealift.v1.AuditService/ListAuditEvents").await;
    // Reading leaves nothing.
    call_empty(&observer, "/sealift.v1.EnvironmentService/ListEnvironments").await;

    let mut tx = world.running.app.db.read().await.unwrap();
    let page = tx.list_audit(None, &PageRequest::first(100)).await.unwrap();
    let mut events: Vec<_> = page
        .items
        .iter()
        .map(|event| {
            let method = event.entry.action.rsplit('/').next().unwrap().to_owned();
            (
                method,
                event.entry.actor.clone(),
                event.entry.outcome,
                event.entry.reason.clone(),
            )
        })
        .collect();
    events.reverse();
    let expected = [
        ("IssueUserCertificate", "local", AuditOutcome::Success, ""),
        ("IssueUserCertificate", "local", AuditOutcome::Success, ""),
        ("CreateEnvironment", "user/alice", AuditOutcome::Success, ""),
        (
            "CreateEnvironment",
            "user/alice",
            AuditOutcome::Failed,
            Reason::AlreadyExists.as_str(),
        ),
        (
            "CreateTarget",
            "user/olga",
            AuditOutcome::Denied,
            Reason::RoleMissing.as_str(),
        ),
        (
            "ListAuditEvents",
            "anonymous",
            AuditOutcome::Denied,
            Reason::CertificateMissing.as_str(),
        ),
    ]
    .map(|(method, actor, outcome, reason)| {
        (method.to_owned(), actor.to_owned(), outcome, reason.to_owned())
    });
    assert_eq!(events, expected);
    // The chain: each event covers the one before it.
    for pair in page.items.windows(2) {
        assert_eq!(pair[0].previous, pair[1].hash().unwrap());
        assert_eq!(pair[0].seq, pair[1].seq + 1);
    }
    assert_eq!(page.items[2].entry.resource, "environments/prod");
    drop(tx);
    world.stop().await;
}

#[tokio::test]
async fn r16_the_same_request_id_gives_the_same_answer_and_another_body_is_refused() {
    let world = World::start().await;
    let admin = world.user("default", "alice", Role::Admin).await;
    let mut environments = EnvironmentServiceClient::new(admin.clone());
    let id = Uuid::from_u128(7).to_string();
    let first = environments
        .create_environment(environment("prod", 1, &id))
        .await
        .unwrap();
    let second = environments
        .create_environment(environment("prod", 1, &id))
        .await
        .unwrap();
    assert_eq!(first.into_inner(), second.into_inner());
    let other = environments
        .create_environment(environment("prod", 2, &id))
        .await
        .unwrap_err();
    assert_eq!(
        (other.code(), reason(&other).as_str()),
        (Code::InvalidArgument, "REQUEST_ID_REUSED")
    );
    let malformed = environments
        .create_environment(environment("x", 1, "7"))
        .await
        .unwrap_err();
    assert_eq!(reason(&malformed), "INVALID_ARGUMENT");

    // Maps have no order on the wire: the same labels are the same request.
    let mut targets = TargetServiceClient::new(admin.clone());
    let mut request = target("prod", "web-1");
    request.request_id = Uuid::from_u128(8).to_string();
    let first = targets.create_target(request.clone()).await.unwrap().into_inner();
    for _ in 0..8 {
        let mut again = request.clone();
        let labels = again.target.as_mut().unwrap();
        labels.labels = labels.labels.clone().into_iter().collect();
        assert_eq!(targets.create_target(again).await.unwrap().into_inner(), first);
    }

    // A secret is not kept: the second answer would have to be another one.
    let token = CreateJoinTokenRequest {
        request_id: Uuid::from_u128(9).to_string(),
        name: first.target.unwrap().name,
        life_seconds: 0,
    };
    let made = targets
        .create_join_token(token.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(
        made.token
            .parse::<sealift_common::join_token::JoinToken>()
            .is_ok()
    );
    let again = targets.create_join_token(token).await.unwrap_err();
    assert_eq!(reason(&again), "REQUEST_ID_REUSED");
    world.stop().await;
}

#[tokio::test]
async fn updates_need_the_newest_etag_and_change_only_what_the_mask_names() {
    let world = World::start().await;
    let admin = world.user("default", "alice", Role::Admin).await;
    let made = create_environment(&admin, "prod").await;
    let mut environments = EnvironmentServiceClient::new(admin.clone());
    let update = UpdateEnvironmentRequest {
        request_id: String::new(),
        environment: Some(v1::Environment {
            position: 9,
            display_name: "ignored".to_owned(),
            ..made.clone()
        }),
        update_mask: Some(pbjson_types::FieldMask {
            paths: vec!["position".to_owned()],
        }),
    };
    let updated = environments
        .update_environment(update.clone())
        .await
        .unwrap()
        .into_inner()
        .environment
        .unwrap();
    assert_eq!(
        (updated.position, updated.display_name.as_str()),
        (9, "For tests")
    );
    assert_ne!(updated.etag, made.etag);
    let stale = environments.update_environment(update.clone()).await.unwrap_err();
    assert_eq!(
        (stale.code(), reason(&stale).as_str()),
        (Code::Aborted, "STALE_ETAG")
    );
    let mut unknown = update;
    unknown.update_mask = Some(pbjson_types::FieldMask {
        paths: vec!["uid".to_owned()],
    });
    assert_eq!(
        reason(&environments.update_environment(unknown).await.unwrap_err()),
        "INVALID_ARGUMENT"
    );

    let mut targets = TargetServiceClient::new(admin.clone());
    let web = targets
        .create_target(target("prod", "web-1"))
        .await
        .unwrap()
        .into_inner()
        .target
        .unwrap();
    let mut relabel = web.clone();
    relabel.labels = [("region".to_owned(), "us".to_owned())].into();
    let relabel = UpdateTargetRequest {
        request_id: String::new(),
        target: Some(relabel),
        update_mask: None,
    };
    let relabelled = targets
        .update_target(relabel)
        .await
        .unwrap()
        .into_inner()
        .target
        .unwrap();
    assert_eq!(relabelled.labels.len(), 1);

    let archive = ArchiveEnvironmentRequest {
        request_id: String::new(),
        name: made.name.clone(),
        etag: updated.etag,
    };
    let used = environments.archive_environment(archive).await.unwrap_err();
    assert_eq!(
        (used.code(), reason(&used).as_str()),
        (Code::FailedPrecondition, "IN_USE")
    );
    world.stop().await;
}

#[tokio::test]
async fn lists_come_in_pages_that_belong_to_their_arguments() {
    let world = World::start().await;
    let admin = world.user("default", "alice", Role::Admin).await;
    for name in ["a", "b", "c"] {
        create_environment(&admin, name).await;
    }
    let mut environments = EnvironmentServiceClient::new(admin.clone());
    let mut names = Vec::new();
    let mut request = ListEnvironmentsRequest {
        page_size: 2,
        page_token: String::new(),
    };
    loop {
        let page = environments
            .list_environments(request.clone())
            .await
            .unwrap()
            .into_inner();
        names.extend(page.environments.into_iter().map(|environment| environment.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names, ["environments/a", "environments/b", "environments/c"]);
    let foreign = ListAgentsRequest {
        page_size: 2,
        page_token: request.page_token,
    };
    let refused = AgentServiceClient::new(admin)
        .list_agents(foreign)
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "INVALID_PAGE_TOKEN");
    world.stop().await;
}

#[tokio::test]
async fn r16_a_repeated_release_is_answered_without_asking_registries() {
    let world = World::start().await;
    let alice = world.user("default", "alice", Role::Deployer).await;
    let id = Uuid::from_u128(11);
    let request = v1::CreateReleaseRequest {
        request_id: id.to_string(),
        source: Some(v1::Source {
            repository: "github.com/acme/shop".to_owned(),
            project: "api".to_owned(),
            commit: "0123456789012345678901234567890123456789".to_owned(),
        }),
        // No registry can be asked for this one.
        compose: b"services:
  web:
    image: 127.0.0.1:1/none:v1
"
        .to_vec(),
        ..v1::CreateReleaseRequest::default()
    };
    let first = v1::CreateReleaseResponse {
        release: Some(v1::Release {
            name: "releases/first".to_owned(),
            ..v1::Release::default()
        }),
    };
    let app = &world.running.app;
    let mut tx = app.db.write().await.unwrap();
    let tenant = tx
        .tenant_by_name(&"default".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    tx.put_idempotent_answer(
        tenant.id,
        "user/alice",
        "sealift.v1.ReleaseService/CreateRelease",
        id,
        sealift_common::canonical::digest(&request).unwrap(),
        &prost::Message::encode_to_vec(&first),
        app.clock.now(),
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let mut releases = v1::release_service_client::ReleaseServiceClient::new(alice);
    let again = releases.create_release(request.clone()).await.unwrap();
    assert_eq!(again.into_inner(), first);
    let other = v1::CreateReleaseRequest {
        compose: b"services: {}".to_vec(),
        ..request
    };
    let status = releases.create_release(other).await.unwrap_err();
    assert_eq!(reason(&status), "REQUEST_ID_REUSED");
    world.stop().await;
}
