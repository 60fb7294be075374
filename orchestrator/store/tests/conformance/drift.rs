//! Drift observations: opened, touched, explained, acknowledged, resolved; lists that run along an index.

use chrono::DateTime;
use sealift_common::{
    drift::{DriftKind, Finding, Severity},
    id::TenantId,
    inventory::EnvironmentClass,
    observation::{EngineAction, EngineEvent},
};
use sealift_store::{
    Acknowledgement, DriftChange, DriftFilter, DriftRow, Found, PageRequest, StoreError, Tx,
};

use crate::{
    harness::{World, at, conformance},
    seed::Seed,
};

conformance![
    drift_opens_stays_and_resolves,
    drift_that_changes_is_written_at_once,
    the_first_explanation_stands_until_it_drifts_further,
    drift_names_the_job_that_was_recorded,
    drift_is_acknowledged_while_it_is_open,
    drift_is_filtered_and_paged,
    pages_of_drift_are_the_whole_list,
];

pub fn found(kind: DriftKind, service: Option<&str>, severity: Severity) -> Found {
    Found {
        finding: Finding {
            kind,
            service: service.map(|text| text.parse().unwrap()),
            expected: "running".to_owned(),
            actual: "exited".to_owned(),
        },
        severity,
        job: None,
        cause: None,
    }
}

fn event(seconds: i64) -> EngineEvent {
    EngineEvent {
        action: EngineAction::Stop,
        container: "abc".to_owned(),
        project: "p/a".to_owned(),
        service: "api".parse().unwrap(),
        at: at(seconds),
    }
}

async fn open(tx: &mut Tx, tenant: TenantId) -> Vec<DriftRow> {
    let filter = DriftFilter::default();
    let page = tx.list_drift(tenant, filter, &PageRequest::first(100)).await;
    page.unwrap().items
}

async fn drift_opens_stays_and_resolves(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let (tenant, target) = (seed.tenant.id, seed.targets[0].id);
    let both = [
        found(DriftKind::Stopped, Some("api"), Severity::High),
        found(DriftKind::StickerMissing, None, Severity::Medium),
    ];
    let mut changes = world.db.changes();
    let mut tx = world.db.write().await.unwrap();
    let class = tx.class_of_target(target).await.unwrap();
    assert_eq!(class, EnvironmentClass::NonProduction);
    assert!(tx.drifted_projects(target).await.unwrap().is_empty());
    let change = tx.reconcile_drift(target, "p/a", &both, at(0)).await.unwrap();
    assert_eq!((change.opened, change.resolved), (2, 0));
    assert_eq!(tx.drifted_projects(target).await.unwrap(), ["p/a"]);
    tx.commit().await.unwrap();
    assert_eq!(changes.try_recv().unwrap(), sealift_store::Change::Drift(target));

    let mut tx = world.db.write().await.unwrap();
    tx.reconcile_drift(target, "p/a", &both, at(59)).await.unwrap();
    let rows = open(&mut tx, tenant).await;
    assert!(
        rows.iter().all(|row| row.last_seen_at == at(0)),
        "touched more than once a minute"
    );
    let none = tx.reconcile_drift(target, "p/a", &both, at(60)).await.unwrap();
    assert_eq!(none, DriftChange::default());
    let rows = open(&mut tx, tenant).await;
    assert!(
        rows.iter()
            .all(|row| row.last_seen_at == at(60) && row.first_seen_at == at(0))
    );
    // Other projects have drift of their own.
    tx.reconcile_drift(target, "p/b", &[], at(61)).await.unwrap();
    let change = tx.reconcile_drift(target, "p/a", &both[..1], at(62)).await;
    let change = change.unwrap();
    assert_eq!((change.opened, change.resolved), (0, 1));
    let rows = open(&mut tx, tenant).await;
    assert_eq!((rows.len(), &rows[0].finding), (1, &both[0].finding));
    tx.commit().await.unwrap();
    // What comes back is a new observation.
    let mut tx = world.db.write().await.unwrap();
    tx.reconcile_drift(target, "p/a", &both, at(70)).await.unwrap();
    let all = DriftFilter {
        include_resolved: true,
        ..DriftFilter::default()
    };
    let page = PageRequest::first(9);
    let rows = tx.list_drift(tenant, all, &page).await.unwrap().items;
    assert_eq!(rows.len(), 3);
    assert!(
        rows.windows(2).all(|pair| pair[0].id > pair[1].id),
        "newest first"
    );
}

async fn drift_that_changes_is_written_at_once(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let target = seed.targets[0].id;
    let mut one = found(DriftKind::Image, Some("api"), Severity::Critical);
    let mut tx = world.db.write().await.unwrap();
    tx.reconcile_drift(target, "p/a", std::slice::from_ref(&one), at(0))
        .await
        .unwrap();
    "another".clone_into(&mut one.finding.actual);
    tx.reconcile_drift(target, "p/a", std::slice::from_ref(&one), at(1))
        .await
        .unwrap();
    assert_eq!(open(&mut tx, seed.tenant.id).await[0].last_seen_at, at(1));
    // The environment became another class.
    one.severity = Severity::Low;
    tx.reconcile_drift(target, "p/a", std::slice::from_ref(&one), at(2))
        .await
        .unwrap();
    let rows = open(&mut tx, seed.tenant.id).await;
    assert_eq!((rows[0].severity, rows[0].last_seen_at), (Severity::Low, at(2)));
    assert_eq!(rows[0].first_seen_at, at(0));
}

async fn the_first_explanation_stands_until_it_drifts_further(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let target = seed.targets[0].id;
    let mut one = found(DriftKind::Stopped, Some("api"), Severity::High);
    let mut tx = world.db.write().await.unwrap();
    // The look came before the event.
    let steps = [
        (None, "exited", None),
        (Some(1), "exited", Some(1)),
        (Some(2), "exited", Some(1)),
        (None, "paused", Some(1)),
        (Some(3), "dead", Some(3)),
    ];
    for (second, (said, actual, wanted)) in (0..).zip(steps) {
        one.cause = said.map(event);
        actual.clone_into(&mut one.finding.actual);
        tx.reconcile_drift(target, "p/a", std::slice::from_ref(&one), at(second))
            .await
            .unwrap();
        let rows = open(&mut tx, seed.tenant.id).await;
        assert_eq!(rows[0].cause, wanted.map(event), "after step {second}");
    }
}

async fn drift_names_the_job_that_was_recorded(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut one = found(DriftKind::Missing, Some("api"), Severity::High);
    one.job = Some(made.job.id);
    let mut tx = world.db.write().await.unwrap();
    tx.reconcile_drift(seed.targets[0].id, "p/a", std::slice::from_ref(&one), at(1))
        .await
        .unwrap();
    let rows = open(&mut tx, seed.tenant.id).await;
    assert_eq!(rows[0].job_id, Some(made.job.id));
    let by_id = tx.drift(seed.tenant.id, rows[0].id).await.unwrap();
    assert_eq!(by_id.as_ref(), Some(&rows[0]));
    let other = TenantId::new(DateTime::default());
    assert_eq!(tx.drift(other, rows[0].id).await.unwrap(), None);
}

async fn drift_is_acknowledged_while_it_is_open(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let (tenant, target) = (seed.tenant.id, seed.targets[0].id);
    let one = [found(DriftKind::Stopped, Some("api"), Severity::High)];
    let mut tx = world.db.write().await.unwrap();
    tx.reconcile_drift(target, "p/a", &one, at(0)).await.unwrap();
    let row = open(&mut tx, tenant).await.remove(0);
    assert_eq!(row.acknowledged, None);
    let mut said = Acknowledgement {
        owner: "team-a".to_owned(),
        note: "seen".to_owned(),
        by: "user/alice".to_owned(),
        at: at(1),
    };
    tx.acknowledge_drift(tenant, &row, &said).await.unwrap();
    "team-b".clone_into(&mut said.owner);
    tx.acknowledge_drift(tenant, &row, &said).await.unwrap();
    assert_eq!(open(&mut tx, tenant).await[0].acknowledged.as_ref(), Some(&said));
    let other = TenantId::new(DateTime::default());
    let refused = tx.acknowledge_drift(other, &row, &said).await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    tx.reconcile_drift(target, "p/a", &[], at(2)).await.unwrap();
    let refused = tx.acknowledge_drift(tenant, &row, &said).await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    // Its history keeps the owner.
    let gone = tx.drift(tenant, row.id).await.unwrap().unwrap();
    assert_eq!((gone.resolved_at, gone.acknowledged), (Some(at(2)), Some(said)));
}

async fn drift_is_filtered_and_paged(world: World) {
    let seed = Seed::sow(&world.db, "acme", 3).await;
    let one = [found(DriftKind::Image, Some("api"), Severity::Critical)];
    let mut tx = world.db.write().await.unwrap();
    for (number, target) in seed.targets.iter().enumerate() {
        tx.reconcile_drift(target.id, "p/a", &one, at(number as i64))
            .await
            .unwrap();
    }
    let tenant = seed.tenant.id;
    let filter = DriftFilter {
        environment: Some(seed.environment.id),
        ..DriftFilter::default()
    };
    let first = tx
        .list_drift(tenant, filter, &PageRequest::first(2))
        .await
        .unwrap();
    let names: Vec<_> = first.items.iter().map(|row| row.target.to_string()).collect();
    assert_eq!(names, ["web-2", "web-1"]);
    let rest = PageRequest {
        size: 2,
        after: first.next,
    };
    let rest = tx.list_drift(tenant, filter, &rest).await.unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None));
    let filter = DriftFilter {
        target: Some(seed.targets[1].id),
        ..DriftFilter::default()
    };
    let rows = tx
        .list_drift(tenant, filter, &PageRequest::first(9))
        .await
        .unwrap()
        .items;
    assert_eq!((rows.len(), rows[0].target_id), (1, seed.targets[1].id));
}

/// Whatever the filter and the size of pages: walking them gives each row once, newest first.
async fn pages_of_drift_are_the_whole_list(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let tenant = seed.tenant.id;
    let mut tx = world.db.write().await.unwrap();
    for number in 0..40_i64 {
        let severity = Severity::ALL[number as usize % 4];
        let service = format!("s{}", number % 8);
        let one = [found(DriftKind::Stopped, Some(&service), severity)];
        let target = seed.targets[number as usize % 2].id;
        // Half of them are gone again.
        tx.reconcile_drift(target, &format!("p/{number}"), &one, at(number / 4))
            .await
            .unwrap();
        if number % 3 == 0 {
            tx.reconcile_drift(target, &format!("p/{number}"), &[], at(number))
                .await
                .unwrap();
        }
    }
    let scopes = [
        (None, None),
        (Some(seed.environment.id), None),
        (None, Some(seed.targets[0].id)),
    ];
    for (environment, target) in scopes {
        for include_resolved in [false, true] {
            let mut counts = Vec::new();
            for at_least in std::iter::once(None).chain(Severity::ALL.iter().copied().map(Some)) {
                let filter = DriftFilter {
                    environment,
                    target,
                    at_least,
                    include_resolved,
                };
                let whole = tx
                    .list_drift(tenant, filter, &PageRequest::first(100))
                    .await
                    .unwrap()
                    .items;
                assert!(whole.windows(2).all(|pair| pair[0].id > pair[1].id));
                assert!(
                    whole
                        .iter()
                        .all(|row| at_least.is_none_or(|least| row.severity >= least))
                );
                assert!(
                    whole
                        .iter()
                        .all(|row| include_resolved || row.resolved_at.is_none())
                );
                for size in [1, 3, 7] {
                    let (mut page, mut walked) = (PageRequest::first(size), Vec::new());
                    loop {
                        let next = tx.list_drift(tenant, filter, &page).await.unwrap();
                        walked.extend(next.items);
                        page.after = next.next;
                        if page.after.is_none() {
                            break;
                        }
                    }
                    assert_eq!(walked, whole, "{filter:?} by {size}");
                }
                counts.push(whole.len());
            }
            assert_eq!(counts[0], counts[1], "low and above is everything");
            assert!(counts.windows(2).all(|pair| pair[0] >= pair[1]), "{counts:?}");
        }
    }
}
