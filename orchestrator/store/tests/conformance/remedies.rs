//! Remediation: policies of environments, places where drift may be put right, what was done and what was given up.

use chrono::TimeDelta;
use sealift_common::{
    drift::{DriftKind, Severity},
    inventory::Environment,
    remedy::{Limits, Remediation, Try},
};
use sealift_store::{Acknowledgement, Change, DriftFilter, DriftRow, DriftedPlace, PageRequest, Remedy, Tx};

use crate::{
    drift::found,
    harness::{Raw, World, at, conformance},
    seed::Seed,
};

conformance![
    environments_keep_what_is_done_about_drift,
    places_are_those_where_drift_may_be_put_right,
    acts_are_counted_per_place_and_shown_with_each_finding,
    what_was_given_up_stays_severe_until_it_is_taken_up_again,
    r7_what_was_done_cannot_be_changed,
];

const PLACE: &str = "p/a";

async fn policy(tx: &mut Tx, environment: &Environment, remediation: Remediation) -> Environment {
    let wanted = Environment {
        remediation,
        ..environment.clone()
    };
    tx.update_environment(&wanted, at(1)).await.unwrap()
}

async fn rows(tx: &mut Tx, seed: &Seed) -> Vec<DriftRow> {
    let filter = DriftFilter {
        include_resolved: true,
        ..DriftFilter::default()
    };
    let page = tx
        .list_drift(seed.tenant.id, filter, &PageRequest::first(50))
        .await;
    page.unwrap().items
}

async fn places(tx: &mut Tx, after: Option<&DriftedPlace>) -> Vec<DriftedPlace> {
    tx.drifted_places(after, 10).await.unwrap()
}

async fn environments_keep_what_is_done_about_drift(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let (tenant, mut environment) = (seed.tenant.id, seed.environment.clone());
    let mut tx = world.db.write().await.unwrap();
    let stored = tx.environment(tenant, environment.id).await.unwrap().unwrap();
    assert_eq!(stored.remediation, Remediation::Alert);
    let limits = Limits {
        max_tries: 10,
        min_severity: Severity::Critical,
        pause_ms: 0,
    };
    for wanted in [
        Remediation::Reconcile(Limits::default()),
        Remediation::Reconcile(limits),
        Remediation::Alert,
    ] {
        environment = policy(&mut tx, &environment, wanted).await;
        assert_eq!(environment.remediation, wanted);
        let stored = tx.environment(tenant, environment.id).await.unwrap();
        assert_eq!(stored.as_ref(), Some(&environment));
    }
}

async fn places_are_those_where_drift_may_be_put_right(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let stopped = [
        found(DriftKind::Stopped, Some("api"), Severity::High),
        found(DriftKind::StickerMissing, None, Severity::Medium),
    ];
    let extra = [found(DriftKind::Extra, Some("api"), Severity::Low)];
    let mut tx = world.db.write().await.unwrap();
    for target in &seed.targets {
        tx.reconcile_drift(target.id, PLACE, &stopped, at(0))
            .await
            .unwrap();
        tx.reconcile_drift(target.id, "p/b", &extra, at(0)).await.unwrap();
    }
    assert!(places(&mut tx, None).await.is_empty(), "alert only");
    let reconcile = Remediation::Reconcile(Limits::default());
    policy(&mut tx, &seed.environment, reconcile).await;
    let all = places(&mut tx, None).await;
    assert_eq!(all.len(), 2, "one for each target, none for what is foreign");
    assert!(all.iter().all(|place| place.project == PLACE
        && place.tenant_id == seed.tenant.id
        && place.environment_id == seed.environment.id));
    assert_eq!(places(&mut tx, Some(&all[0])).await, all[1..]);
    assert!(places(&mut tx, Some(&all[1])).await.is_empty());
    assert_eq!(tx.drifted_places(None, 1).await.unwrap(), all[..1]);

    tx.reconcile_drift(all[0].target_id, PLACE, &[], at(1))
        .await
        .unwrap();
    assert_eq!(places(&mut tx, None).await, all[1..]);
    let other = tx.target(seed.tenant.id, all[1].target_id).await.unwrap();
    tx.archive_target(&other.unwrap(), at(2)).await.unwrap();
    assert!(places(&mut tx, None).await.is_empty());
}

async fn acts_are_counted_per_place_and_shown_with_each_finding(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let both = [
        found(DriftKind::Stopped, Some("api"), Severity::High),
        found(DriftKind::Missing, Some("web"), Severity::High),
    ];
    let mut changes = world.db.changes();
    let mut tx = world.db.write().await.unwrap();
    policy(
        &mut tx,
        &seed.environment,
        Remediation::Reconcile(Limits::default()),
    )
    .await;
    let target = seed.targets[0].id;
    tx.reconcile_drift(target, PLACE, &both, at(0)).await.unwrap();
    let place = places(&mut tx, None).await.remove(0);
    assert_eq!(tx.newest_remedy(seed.environment.id).await.unwrap(), None);
    let release = seed.release(&mut tx, "github.com/acme/shop/api", at(0)).await;
    let release = release.unwrap();
    let mut promotions = Vec::new();
    for number in 1..=2 {
        let when = at(i64::from(number) * 10);
        // The second act is about what is left.
        let open = tx.open_drift_at(&place).await.unwrap();
        let drift: Vec<_> = open.iter().map(|one| one.id).collect();
        let promotion = seed.promotion(&mut tx, &release, when).await.id;
        let remedy = Remedy {
            promotion,
            number,
            at: when,
        };
        tx.insert_remedy(target, &drift, &remedy).await.unwrap();
        promotions.push(promotion);
        tx.reconcile_drift(target, PLACE, &both[..1], when + TimeDelta::seconds(1))
            .await
            .unwrap();
    }
    let tries = |numbers: &[u32]| -> Vec<Try> {
        let all = numbers.iter().map(|number| Try {
            number: *number,
            at: at(i64::from(*number) * 10),
        });
        all.collect()
    };
    assert_eq!(tx.remedies_at(&place, at(0)).await.unwrap(), tries(&[2, 1]));
    assert_eq!(tx.remedies_at(&place, at(10)).await.unwrap(), tries(&[2]));
    let other = DriftedPlace {
        project: "p/b".to_owned(),
        ..place.clone()
    };
    assert!(tx.remedies_at(&other, at(0)).await.unwrap().is_empty());
    assert_eq!(tx.newest_remedy(seed.environment.id).await.unwrap(), Some(at(20)));
    for row in rows(&mut tx, &seed).await {
        let told = match row.finding.kind {
            DriftKind::Stopped => (2, Some(promotions[1])),
            _ => (1, Some(promotions[0])),
        };
        assert_eq!((row.tries, row.last_promotion), told, "{:?}", row.finding);
    }
    tx.commit().await.unwrap();
    let mut told = std::iter::from_fn(|| changes.try_recv().ok());
    assert!(told.any(|change| change == Change::Drift(target)));
}

async fn what_was_given_up_stays_severe_until_it_is_taken_up_again(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let target = seed.targets[0].id;
    let low = [found(DriftKind::StickerMissing, None, Severity::Low)];
    let mut tx = world.db.write().await.unwrap();
    policy(
        &mut tx,
        &seed.environment,
        Remediation::Reconcile(Limits::default()),
    )
    .await;
    tx.reconcile_drift(target, PLACE, &low, at(0)).await.unwrap();
    let place = places(&mut tx, None).await.remove(0);
    let open = tx.open_drift_at(&place).await.unwrap().remove(0);
    assert!(!open.gave_up && !open.owned);
    assert!(tx.give_up_drift(target, &open, at(5)).await.unwrap());
    assert!(
        !tx.give_up_drift(target, &open, at(6)).await.unwrap(),
        "it is no news"
    );
    let row = rows(&mut tx, &seed).await.remove(0);
    assert_eq!((row.severity, row.gave_up_at), (Severity::High, Some(at(5))));
    // The next look judges the kind as before.
    tx.reconcile_drift(target, PLACE, &low, at(100)).await.unwrap();
    assert_eq!(rows(&mut tx, &seed).await[0].severity, Severity::High);

    let said = Acknowledgement {
        owner: "team-a".to_owned(),
        note: String::new(),
        by: "user/alice".to_owned(),
        at: at(101),
    };
    tx.acknowledge_drift(seed.tenant.id, &row, &said).await.unwrap();
    let open = tx.open_drift_at(&place).await.unwrap().remove(0);
    assert!(open.gave_up && open.owned);

    let release = seed.release(&mut tx, "github.com/acme/shop/api", at(0)).await;
    let promotion = seed.promotion(&mut tx, &release.unwrap(), at(200)).await.id;
    let remedy = Remedy {
        promotion,
        number: 1,
        at: at(200),
    };
    tx.insert_remedy(target, &[open.id], &remedy).await.unwrap();
    tx.reconcile_drift(target, PLACE, &low, at(300)).await.unwrap();
    let row = rows(&mut tx, &seed).await.remove(0);
    assert_eq!((row.severity, row.gave_up_at), (Severity::Low, None));
}

async fn r7_what_was_done_cannot_be_changed(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let target = seed.targets[0].id;
    let mut tx = world.db.write().await.unwrap();
    let one = [found(DriftKind::Stopped, Some("api"), Severity::High)];
    tx.reconcile_drift(target, PLACE, &one, at(0)).await.unwrap();
    let drift = rows(&mut tx, &seed).await.remove(0).id;
    let remedy = Remedy {
        promotion: made.promotion.id,
        number: 1,
        at: at(1),
    };
    tx.insert_remedy(target, &[drift], &remedy).await.unwrap();
    tx.commit().await.unwrap();
    let mut raw = Raw::open(&world.config.url).await;
    for sql in [
        "UPDATE drift_remedies SET number = 2",
        "DELETE FROM drift_remedies",
    ] {
        let refused = raw.run(sql).await.unwrap_err().to_string();
        assert!(refused.contains("insert-only"), "{sql}: {refused}");
    }
}
