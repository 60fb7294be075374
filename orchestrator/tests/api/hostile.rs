//! Input that is meant to hurt: it is refused with a reason, and the audit log stays readable (R13, T17).

use sealift_common::{
    audit::{AuditEvent, AuditOutcome},
    error::Reason,
    role::Role,
};
use sealift_orchestrator::authz::{RULES, Roles};
use sealift_proto::v1::{
    CreatePromotionRequest, ListReleasesRequest, promotion_service_client::PromotionServiceClient,
    release_service_client::ReleaseServiceClient,
};
use sealift_store::PageRequest;
use tonic::{Code, Request, transport::Channel};

use crate::support::{World, call_empty, reason};

async fn newest(world: &World) -> AuditEvent {
    let mut tx = world.running.app.db.read().await.unwrap();
    let page = tx.list_audit(None, &PageRequest::first(1)).await.unwrap();
    page.items.into_iter().next().unwrap()
}

async fn events(world: &World) -> u64 {
    world
        .running
        .app
        .db
        .read()
        .await
        .unwrap()
        .audit_head()
        .await
        .unwrap()
        .0
}

#[tokio::test]
async fn r13_a_caller_cannot_fill_the_audit_log_with_its_own_text() {
    let world = World::start().await;
    let mut promotions = PromotionServiceClient::new(world.user("default", "ci", Role::Ci).await);
    for text in ["x".repeat(3_000_000), "environments/\0".to_owned()] {
        let before = events(&world).await;
        let request = CreatePromotionRequest {
            environment: text,
            ..CreatePromotionRequest::default()
        };
        let refused = promotions.create_promotion(request).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_ARGUMENT");
        assert_eq!(events(&world).await, before + 1);
        let event = newest(&world).await.entry;
        assert_eq!(
            (event.actor.as_str(), event.outcome),
            ("user/ci", AuditOutcome::Failed)
        );
        assert!(event.resource.len() < 1024 && !event.resource.contains('\0'));
    }
    world.stop().await;
}

#[tokio::test]
async fn r13_each_method_that_changes_something_leaves_one_event_when_it_is_denied_and_when_it_fails() {
    let world = World::start().await;
    let observer = world.user("default", "olga", Role::Observer).await;
    let (anonymous, local) = (world.anonymous().await, world.local().await);
    let (_, agent) = world.agent("default").await;
    for rule in RULES.iter().filter(|rule| rule.mutates) {
        assert!(!rule.allowed.contains(Roles::OBSERVER), "{}", rule.method);
        let allowed = [
            (Roles::LOCAL, &local),
            (Roles::ANONYMOUS, &anonymous),
            (Roles::AGENT, &agent),
        ];
        let (_, caller) = allowed
            .iter()
            .find(|(role, _)| rule.allowed.contains(*role))
            .unwrap();
        for (channel, outcome) in [(&observer, AuditOutcome::Denied), (*caller, AuditOutcome::Failed)] {
            let before = events(&world).await;
            let status = call_empty(channel, rule.method).await;
            assert_ne!(status.code(), Code::Ok, "{}", rule.method);
            assert_eq!(events(&world).await, before + 1, "{} {outcome:?}", rule.method);
            let event = newest(&world).await.entry;
            assert_eq!(event.action, rule.method.trim_start_matches('/'));
            // A join token that is none is a denial too, whoever shows it.
            let by_token = rule.allowed == Roles::ANONYMOUS || rule.method.ends_with("/AddTarget");
            if !by_token {
                assert_eq!(event.outcome, outcome, "{}: {status:?}", rule.method);
            }
            assert_eq!(event.reason, reason(&status), "{}", rule.method);
        }
    }
    world.stop().await;
}

/// Calls a method with bytes that are whatever the test says.
async fn call_raw(channel: &Channel, path: &'static str, message: prost_bytes::Raw) -> tonic::Status {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_encoding_message_size(usize::MAX);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<prost_bytes::Raw, ()>::default();
    grpc.unary(Request::new(message), path.parse().unwrap(), codec)
        .await
        .unwrap_err()
}

mod prost_bytes {
    /// A message whose first field is text of any kind; the method expects another type there.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Raw {
        #[prost(bytes = "vec", tag = "1")]
        pub first: Vec<u8>,
    }
}

#[tokio::test]
async fn every_refusal_names_its_reason_even_when_no_handler_saw_the_call() {
    let world = World::start().await;
    let olga = world.user("default", "olga", Role::Observer).await;
    let unknown = call_empty(&olga, "/sealift.v1.EnvironmentService/DropEverything").await;
    assert_eq!(
        (unknown.code(), reason(&unknown).as_str()),
        (Code::Unimplemented, Reason::UnknownMethod.as_str())
    );
    let list = "/sealift.v1.EnvironmentService/ListEnvironments";
    let garbage = prost_bytes::Raw {
        first: b"not a number".to_vec(),
    };
    let undecodable = call_raw(&olga, list, garbage).await;
    assert_eq!(
        (undecodable.code(), reason(&undecodable).as_str()),
        (Code::InvalidArgument, "INVALID_ARGUMENT")
    );
    let huge = prost_bytes::Raw {
        first: vec![b'x'; 5 * 1024 * 1024],
    };
    let large = call_raw(&olga, list, huge).await;
    assert_eq!(
        (large.code(), reason(&large).as_str()),
        (Code::OutOfRange, "INVALID_ARGUMENT")
    );
    world.stop().await;
}

#[tokio::test]
async fn names_and_tokens_that_no_database_would_take_are_refused_before_it_sees_them() {
    let world = World::start().await;
    let mut releases = ReleaseServiceClient::new(world.user("default", "olga", Role::Observer).await);
    for project in ["a\0b".to_owned(), "x".repeat(100_000)] {
        let request = ListReleasesRequest {
            project,
            ..ListReleasesRequest::default()
        };
        let refused = releases.list_releases(request).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_ARGUMENT");
    }
    world.stop().await;
}
