//! The table is what is enforced: every method is really called with every role.

use sealift_common::role::Role;
use sealift_orchestrator::authz::{RULES, Roles};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{World, call_empty, reason};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_is_open_to_exactly_the_roles_of_the_table() {
    let world = World::start().await;
    let mut callers = vec![
        (Roles::ANONYMOUS, world.anonymous().await),
        (Roles::LOCAL, world.local().await),
        (Roles::AGENT, world.agent("default").await.1),
    ];
    for role in Role::ALL {
        let name = format!("user-{role}");
        callers.push((Roles::of_user(role), world.user("default", &name, role).await));
    }
    for rule in RULES {
        for (role, channel) in &callers {
            let status = call_empty(channel, rule.method).await;
            let refused = match reason_of_refusal(&status).as_deref() {
                Some("CERTIFICATE_MISSING") => *role == Roles::ANONYMOUS,
                Some("ROLE_MISSING") => *role != Roles::ANONYMOUS,
                _ => false,
            };
            assert_eq!(
                !refused,
                rule.allowed.contains(*role),
                "{} called as {role}: {status:?}",
                rule.method
            );
        }
    }
    world.stop().await;
}

fn reason_of_refusal(status: &tonic::Status) -> Option<String> {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
        .then(|| status.get_details_error_info())
        .flatten()
        .map(|info| info.reason)
}

#[tokio::test]
async fn a_refusal_says_why_and_what_to_do() {
    let world = World::start().await;
    let anonymous = world.anonymous().await;
    let status = call_empty(&anonymous, "/sealift.v1.EnvironmentService/ListEnvironments").await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(reason(&status), "CERTIFICATE_MISSING");
    assert!(status.message().contains("admin issue"), "{}", status.message());

    let observer = world.user("default", "olga", Role::Observer).await;
    let status = call_empty(&observer, "/sealift.v1.EnvironmentService/CreateEnvironment").await;
    assert_eq!(status.code(), Code::PermissionDenied);
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.reason, "ROLE_MISSING");
    assert_eq!(info.metadata["role"], "observer");
    assert_eq!(info.metadata["allowed"], "admin, local");
    assert_eq!(
        info.metadata["method"],
        "/sealift.v1.EnvironmentService/CreateEnvironment"
    );

    let unknown = call_empty(&observer, "/sealift.v1.EnvironmentService/DropEverything").await;
    assert_eq!(unknown.code(), Code::Unimplemented);
    world.stop().await;
}
