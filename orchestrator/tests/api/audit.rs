//! The audit log as its verifier sees it (R7, R13).

use sealift_common::{
    audit::{AuditEntry, AuditOutcome},
    role::Role,
};
use sealift_proto::v1::{
    VerifyAuditEventsRequest, VerifyAuditEventsResponse, audit_service_client::AuditServiceClient,
};
use tonic::Code;

use crate::support::World;

/// Events of one call of `VerifyAuditEvents`, and some.
const MANY: u32 = 2_000 + 10;

async fn verify(world: &World, first_seq: i64) -> VerifyAuditEventsResponse {
    AuditServiceClient::new(world.local().await)
        .verify_audit_events(VerifyAuditEventsRequest { first_seq })
        .await
        .unwrap()
        .into_inner()
}

async fn append(world: &World, count: u32) {
    let now = world.running.app.clock.now();
    let entry = AuditEntry {
        tenant_id: None,
        actor: "orchestrator".to_owned(),
        role: String::new(),
        action: "test.append".to_owned(),
        resource: String::new(),
        outcome: AuditOutcome::Success,
        reason: String::new(),
        request_id: String::new(),
    };
    let mut tx = world.running.app.db.write().await.unwrap();
    for _ in 0..count {
        tx.append_audit(&entry, now).await.unwrap();
    }
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn r13_a_long_audit_log_is_verified_piece_by_piece_to_its_end() {
    let world = World::start().await;
    let alice = world.user("default", "alice", Role::Admin).await;
    append(&world, MANY).await;
    let (newest, _) = world
        .running
        .app
        .db
        .read()
        .await
        .unwrap()
        .audit_head()
        .await
        .unwrap();
    let first = verify(&world, 0).await;
    assert_eq!((first.problem.as_str(), first.last_seq), ("", 2_000));
    assert_eq!(
        first.next_seq, 2_000,
        "the next piece begins with the last event of this one"
    );
    let rest = verify(&world, first.next_seq).await;
    assert_eq!((rest.problem.as_str(), rest.next_seq), ("", 0));
    assert_eq!(rest.last_seq, i64::try_from(newest).unwrap());
    let nothing = verify(&world, rest.last_seq + 100).await;
    assert_eq!(
        (nothing.problem.as_str(), nothing.last_seq),
        ("", 0),
        "nothing was checked"
    );
    // Only on the orchestrator's host.
    let refused = AuditServiceClient::new(alice)
        .verify_audit_events(VerifyAuditEventsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    world.stop().await;
}
