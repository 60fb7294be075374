//! Audit chain, idempotent answers, leases.

use sealift_common::{
    audit::{AuditEntry, AuditOutcome},
    id::{JobId, ReplicaId, TenantId},
};
use sealift_store::{PageRequest, StoreError};

use crate::{
    harness::{Raw, World, at, conformance},
    seed::{Seed, digest, tenant},
};

conformance![
    r13_audit_events_form_one_chain,
    r13_concurrent_audit_events_form_one_chain,
    r7_audit_events_cannot_be_changed,
    r7_a_forged_audit_event_is_found,
    audit_events_are_listed_newest_first,
    r16_the_same_request_gets_the_same_answer,
    r16_two_calls_at_once_leave_one_answer,
    old_answers_are_forgotten,
    taking_over_a_lease_raises_its_epoch,
    one_of_many_replicas_gets_a_lease,
    a_lease_is_checked_under_a_lock,
];

fn entry(tenant: Option<TenantId>, action: &str) -> AuditEntry {
    AuditEntry {
        tenant_id: tenant,
        actor: "user/alice".to_owned(),
        role: "admin".to_owned(),
        action: action.to_owned(),
        resource: "environments/prod".to_owned(),
        outcome: AuditOutcome::Denied,
        reason: "ROLE_MISSING".to_owned(),
        request_id: String::new(),
    }
}

async fn r13_audit_events_form_one_chain(world: World) {
    let acme = tenant("acme");
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    assert_eq!(tx.verify_audit_chain(1, 9).await.unwrap(), 0);
    for number in 1..=5 {
        // Nanoseconds are not kept, and must not spoil the hash.
        let now = at(number) + chrono::TimeDelta::nanoseconds(123);
        let seq = tx
            .append_audit(&entry(Some(acme.id), "CreateUser"), now)
            .await
            .unwrap();
        assert_eq!(seq, number as u64);
    }
    tx.commit().await.unwrap();
    let mut tx = world.db.read().await.unwrap();
    assert_eq!(tx.verify_audit_chain(1, 99).await.unwrap(), 5);
    assert_eq!(tx.verify_audit_chain(2, 2).await.unwrap(), 2);
    assert_eq!(tx.audit_head().await.unwrap().0, 5);
}

async fn r13_concurrent_audit_events_form_one_chain(world: World) {
    let append = async |number: i64| {
        let mut tx = world.db.write().await.unwrap();
        let seq = tx.append_audit(&entry(None, "X"), at(number)).await.unwrap();
        if number % 4 == 0 {
            return None;
        }
        tx.commit().await.unwrap();
        Some(seq)
    };
    let numbers = futures::future::join_all((0..20).map(append)).await;
    let mut numbers: Vec<u64> = numbers.into_iter().flatten().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=15).collect::<Vec<_>>());
    let mut tx = world.db.read().await.unwrap();
    assert_eq!(tx.verify_audit_chain(1, 99).await.unwrap(), 15);
}

async fn r7_audit_events_cannot_be_changed(world: World) {
    let mut tx = world.db.write().await.unwrap();
    tx.append_audit(&entry(None, "X"), at(1)).await.unwrap();
    tx.commit().await.unwrap();
    let mut raw = Raw::open(&world.config.url).await;
    for sql in [
        "UPDATE audit_events SET actor = 'bob'",
        "DELETE FROM audit_events",
    ] {
        let refused = raw.run(sql).await.unwrap_err().to_string();
        assert!(refused.contains("insert-only"), "{sql}: {refused}");
    }
}

async fn r7_a_forged_audit_event_is_found(world: World) {
    let mut tx = world.db.write().await.unwrap();
    for number in 1..=3 {
        tx.append_audit(&entry(None, "X"), at(number)).await.unwrap();
    }
    tx.commit().await.unwrap();
    let mut raw = Raw::open(&world.config.url).await;
    // Whoever owns the schema can drop the guard; the chain tells.
    let (drop, wanted) = match &raw {
        Raw::Sqlite(_) => ("DROP TRIGGER audit_events_no_update", "previous"),
        Raw::Postgres(_) => (
            "DROP TRIGGER audit_events_insert_only ON audit_events",
            "previous",
        ),
    };
    raw.run(drop).await.unwrap();
    for (forge, mend) in [
        (
            "UPDATE audit_events SET actor = 'bob' WHERE seq = 2",
            "UPDATE audit_events SET actor = 'user/alice'",
        ),
        (
            "UPDATE audit_events SET actor = 'bob' WHERE seq = 3",
            "UPDATE audit_events SET actor = 'user/alice'",
        ),
    ] {
        raw.run(forge).await.unwrap();
        let mut tx = world.db.read().await.unwrap();
        let found = tx.verify_audit_chain(1, 99).await;
        assert!(
            matches!(found, Err(StoreError::Corrupt { column, .. }) if column == wanted),
            "{found:?}"
        );
        raw.run(mend).await.unwrap();
    }
    let mut tx = world.db.read().await.unwrap();
    assert_eq!(tx.verify_audit_chain(1, 99).await.unwrap(), 3);
}

async fn audit_events_are_listed_newest_first(world: World) {
    let (acme, bolt) = (tenant("acme"), tenant("bolt"));
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    tx.insert_tenant(&bolt).await.unwrap();
    for (number, of) in [Some(acme.id), Some(bolt.id), None, Some(acme.id)]
        .into_iter()
        .enumerate()
    {
        tx.append_audit(&entry(of, "X"), at(number as i64)).await.unwrap();
    }
    let first = tx.list_audit(None, &PageRequest::first(3)).await.unwrap();
    assert_eq!(
        first.items.iter().map(|event| event.seq).collect::<Vec<_>>(),
        [4, 3, 2]
    );
    let rest = tx
        .list_audit(
            None,
            &PageRequest {
                size: 3,
                after: first.next,
            },
        )
        .await
        .unwrap();
    assert_eq!(rest.items[0].entry, entry(Some(acme.id), "X"));
    let own = tx
        .list_audit(Some(acme.id), &PageRequest::first(9))
        .await
        .unwrap();
    assert_eq!(
        own.items.iter().map(|event| event.seq).collect::<Vec<_>>(),
        [4, 1]
    );
}

async fn r16_the_same_request_gets_the_same_answer(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let (id, request) = (seed.tenant.id, JobId::new(at(0)).uuid());
    let mut tx = world.db.write().await.unwrap();
    assert_eq!(
        tx.idempotent_answer(id, "user/a", "M", request).await.unwrap(),
        None
    );
    tx.put_idempotent_answer(id, "user/a", "M", request, digest("body"), b"\0answer", at(0))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut tx = world.db.write().await.unwrap();
    let found = tx.idempotent_answer(id, "user/a", "M", request).await.unwrap();
    assert_eq!(found, Some((digest("body"), b"\0answer".to_vec())));
    // Other callers, methods and tenants have keys of their own.
    assert_eq!(
        tx.idempotent_answer(id, "user/b", "M", request).await.unwrap(),
        None
    );
    assert_eq!(
        tx.idempotent_answer(id, "user/a", "N", request).await.unwrap(),
        None
    );
    assert_eq!(
        tx.idempotent_answer(TenantId::new(at(0)), "user/a", "M", request)
            .await
            .unwrap(),
        None
    );
}

async fn r16_two_calls_at_once_leave_one_answer(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let (id, request) = (seed.tenant.id, JobId::new(at(0)).uuid());
    let call = async |answer: &'static str| {
        let mut tx = world.db.write().await?;
        tx.put_idempotent_answer(id, "user/a", "M", request, digest("b"), answer.as_bytes(), at(0))
            .await?;
        tx.commit().await
    };
    let (one, two) = futures::join!(call("one"), call("two"));
    assert!(one.is_ok() ^ two.is_ok(), "{one:?} {two:?}");
    let lost = one.and(two);
    assert!(
        matches!(
            lost,
            Err(StoreError::Duplicate {
                constraint: "idempotent_request"
            })
        ),
        "{lost:?}"
    );
}

async fn old_answers_are_forgotten(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let id = seed.tenant.id;
    let mut tx = world.db.write().await.unwrap();
    for seconds in [0, 10, 20] {
        let request = JobId::new(at(seconds)).uuid();
        tx.put_idempotent_answer(id, "u", "M", request, digest("b"), b"x", at(seconds))
            .await
            .unwrap();
    }
    assert_eq!(tx.purge_idempotent_answers(at(10)).await.unwrap(), 1);
    assert_eq!(tx.purge_idempotent_answers(at(99)).await.unwrap(), 2);
}

async fn taking_over_a_lease_raises_its_epoch(world: World) {
    let (one, two) = (ReplicaId::new(at(0)), ReplicaId::new(at(1)));
    let mut tx = world.db.write().await.unwrap();
    assert_eq!(
        tx.acquire_lease("scheduler", one, at(10), at(0)).await.unwrap(),
        Some(1)
    );
    assert_eq!(
        tx.acquire_lease("scheduler", two, at(15), at(5)).await.unwrap(),
        None
    );
    assert_eq!(
        tx.acquire_lease("scheduler", one, at(15), at(5)).await.unwrap(),
        Some(1),
        "kept"
    );
    assert!(tx.check_lease("scheduler", &one, 1).await.unwrap());
    assert_eq!(
        tx.acquire_lease("scheduler", two, at(30), at(16)).await.unwrap(),
        Some(2),
        "taken over"
    );
    assert!(!tx.check_lease("scheduler", &one, 1).await.unwrap());
    assert!(tx.check_lease("scheduler", &two, 2).await.unwrap());
    tx.release_lease("scheduler", two, at(17)).await.unwrap();
    assert_eq!(
        tx.acquire_lease("scheduler", two, at(30), at(17)).await.unwrap(),
        Some(2),
        "given up, and free at the same instant"
    );
    tx.release_dead_leases(at(17)).await.unwrap();
    assert_eq!(
        tx.acquire_lease("scheduler", one, at(40), at(18)).await.unwrap(),
        Some(3)
    );
    assert_eq!(
        tx.acquire_lease("other", two, at(40), at(18)).await.unwrap(),
        Some(1)
    );
}

async fn one_of_many_replicas_gets_a_lease(world: World) {
    let acquire = async |number: i64| {
        let mut tx = world.db.write().await.unwrap();
        let epoch = tx
            .acquire_lease("scheduler", ReplicaId::new(at(number)), at(10), at(0))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        epoch
    };
    let epochs = futures::future::join_all((0..10).map(acquire)).await;
    assert_eq!(epochs.into_iter().flatten().collect::<Vec<_>>(), [1]);
}

async fn a_lease_is_checked_under_a_lock(world: World) {
    let (one, two) = (ReplicaId::new(at(0)), ReplicaId::new(at(1)));
    let mut tx = world.db.write().await.unwrap();
    tx.acquire_lease("scheduler", one, at(10), at(0)).await.unwrap();
    tx.commit().await.unwrap();
    let mut work = world.db.write().await.unwrap();
    assert!(work.check_lease("scheduler", &one, 1).await.unwrap());
    work.append_audit(&entry(None, "work of epoch 1"), at(11))
        .await
        .unwrap();
    let take_over = async {
        let mut tx = world.db.write().await.unwrap();
        let epoch = tx.acquire_lease("scheduler", two, at(30), at(12)).await.unwrap();
        let (done, _) = tx.audit_head().await.unwrap();
        tx.commit().await.unwrap();
        (epoch, done)
    };
    let finish = async {
        tokio::task::yield_now().await;
        work.commit().await.unwrap();
    };
    let (taken, ()) = futures::join!(take_over, finish);
    assert_eq!(
        taken,
        (Some(2), 1),
        "the work of the old epoch is committed before the new epoch begins"
    );
}
