//! The process as a whole: health, reflection, revocation of live streams, going down, and not twice on one directory.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use sealift_common::{role::Role, time::SystemClock};
use sealift_orchestrator::{Orchestrator, StartError, config::Config};
use sealift_proto::v1::{
    GetCallerRequest, GetServerInfoRequest, RevokeAgentRequest, RevokeUserRequest,
    agent_service_client::AgentServiceClient, server_service_client::ServerServiceClient,
    user_service_client::UserServiceClient,
};
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{World, call_empty, config, reason};

const SECONDS: Duration = Duration::from_secs(5);

#[tokio::test]
async fn health_reflection_and_identity_are_told_to_everyone_with_a_certificate() {
    let world = World::start().await;
    let observer = world.user("default", "olga", Role::Observer).await;
    let mut health = HealthClient::new(observer.clone());
    for service in ["", "sealift.v1.TargetService"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        // The first ping may still be under way.
        let mut watch = health.watch(request).await.unwrap().into_inner();
        timeout(SECONDS, async {
            while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
        })
        .await
        .unwrap();
    }
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(observer.clone())
        .server_reflection_info(futures::stream::iter([list]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(listed)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
    for name in [
        "sealift.v1.EnvironmentService",
        "sealift.agent.v1.GatewayService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.iter().any(|listed| listed == name), "{name} in {names:?}");
    }
    let mut server = ServerServiceClient::new(observer);
    let caller = server.get_caller(GetCallerRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (
            caller.tenant.as_str(),
            caller.principal.as_str(),
            caller.role.as_str()
        ),
        ("default", "user/olga", "observer")
    );
    assert!(caller.certificate_expire_time.is_some());
    let info = server.get_server_info(GetServerInfoRequest {}).await.unwrap();
    assert!(info.metadata().contains_key("x-request-id"));
    let engine = if world.database.is_shared() {
        "postgres"
    } else {
        "sqlite"
    };
    assert_eq!(info.into_inner().database, engine);
    world.stop().await;
}

#[tokio::test]
async fn a_revoked_user_is_refused_at_once_and_its_live_streams_end_within_seconds() {
    let world = World::start().await;
    let admin = world.user("default", "alice", Role::Admin).await;
    let olga = world.user("default", "olga", Role::Observer).await;
    let watch = HealthClient::new(olga.clone())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap();
    let (_, agent) = world.agent("default").await;
    let request = RevokeUserRequest {
        request_id: String::new(),
        name: "users/olga".to_owned(),
        reason: "left the company".to_owned(),
    };
    let revoked = UserServiceClient::new(admin)
        .revoke_user(request)
        .await
        .unwrap()
        .into_inner();
    assert!(revoked.user.unwrap().revoke_time.is_some());
    let status = call_empty(&olga, "/sealift.v1.ServerService/GetCaller").await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "CERTIFICATE_REFUSED")
    );
    let end = timeout(SECONDS, async {
        let mut watch = watch.into_inner();
        loop {
            match watch.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return status,
                None => panic!("the stream ended without a reason"),
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(reason(&end), "CERTIFICATE_REFUSED");
    // Others are not touched.
    let other = call_empty(&agent, "/grpc.health.v1.Health/Check").await;
    assert_eq!(other.code(), Code::Ok, "{other:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_revoked_agent_is_refused_at_once() {
    let world = World::start().await;
    let admin = world.user("default", "alice", Role::Admin).await;
    let (id, agent) = world.agent("default").await;
    let request = RevokeAgentRequest {
        request_id: String::new(),
        name: format!("agents/{id}"),
        reason: "stolen".to_owned(),
    };
    let mut agents = AgentServiceClient::new(admin);
    let revoked = agents
        .revoke_agent(request.clone())
        .await
        .unwrap()
        .into_inner()
        .agent
        .unwrap();
    assert!(revoked.revoke_time.is_some() && revoked.targets.is_empty());
    let status = call_empty(&agent, "/sealift.agent.v1.GatewayService/RenewCertificate").await;
    assert_eq!(reason(&status), "CERTIFICATE_REFUSED");
    // Doing it again changes nothing.
    let again = agents
        .revoke_agent(request)
        .await
        .unwrap()
        .into_inner()
        .agent
        .unwrap();
    assert_eq!(again.revoke_time, revoked.revoke_time);
    world.stop().await;
}

#[tokio::test]
async fn going_down_ends_streams_and_leaves_no_socket() {
    let world = World::start().await;
    let olga = world.user("default", "olga", Role::Observer).await;
    let socket = world.running.app.config.admin_socket();
    assert!(socket.exists());
    let World {
        running,
        database,
        folder,
    } = world;
    drop(olga);
    assert!(running.stop().await);
    assert!(!socket.exists());
    // The directory is free again, and what was in it is still there.
    let again = Orchestrator::start(config(&folder, &database), Arc::new(SystemClock))
        .await
        .unwrap();
    assert!(again.stop().await);
}

#[tokio::test]
async fn a_second_orchestrator_on_the_same_directory_does_not_start() {
    let world = World::start().await;
    let error = Orchestrator::start(config(&world.folder, &world.database), Arc::new(SystemClock))
        .await
        .unwrap_err();
    assert!(
        matches!(error, StartError::Store(_) | StartError::Socket { .. }),
        "{error:?}"
    );
    let error = Orchestrator::start_admin(config(&world.folder, &world.database), Arc::new(SystemClock))
        .await
        .unwrap_err();
    assert!(
        matches!(error, StartError::Store(_) | StartError::Socket { .. }),
        "{error:?}"
    );
    world.stop().await;
}

/// A typo must not make a second authority that nobody trusts.
#[tokio::test]
async fn administration_of_an_orchestrator_that_was_never_there_fails_and_makes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let existing = tempfile::tempdir().unwrap();
    for folder in [parent.path().join("typo"), existing.path().to_owned()] {
        let config = Config {
            data_dir: folder.clone(),
            ..Config::default()
        };
        let error = Orchestrator::start_admin(config, Arc::new(SystemClock))
            .await
            .unwrap_err();
        assert!(matches!(&error, StartError::NoData { path } if *path == folder));
        let said = format!("no orchestrator's data in {}", folder.display());
        assert!(error.to_string().starts_with(&said), "{error}");
    }
    for folder in [&parent, &existing] {
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
