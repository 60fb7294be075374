//! Maintenance over real packets: what is stored is verified again, and what was changed past the orchestrator is found.

use sealift_common::maintenance::{MaintenanceKind, MaintenanceState};
use sealift_store::MaintenanceRun;
use sqlx::{Connection as _, PgConnection, SqliteConnection};

use super::*;

/// Asks for a run and waits for its end.
async fn run(fleet: &Fleet, kind: MaintenanceKind) -> MaintenanceRun {
    let db = &fleet.running.app.db;
    let mut tx = db.write().await.unwrap();
    // One that was due at the start may be under way: it may have begun before what the test has done.
    while let Some(open) = tx.open_maintenance().await.unwrap() {
        drop(tx);
        ended(fleet, &open).await;
        tx = db.write().await.unwrap();
    }
    let now = fleet.running.app.clock.now();
    let run = tx.request_maintenance(kind, "user/test", now).await.unwrap();
    assert_eq!(run.state, MaintenanceState::Pending);
    let same = tx.request_maintenance(kind, "user/other", now).await.unwrap();
    assert_eq!(same, run, "one of a kind at a time");
    tx.commit().await.unwrap();
    ended(fleet, &run).await
}

async fn ended(fleet: &Fleet, run: &MaintenanceRun) -> MaintenanceRun {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let over = async {
        loop {
            looks.tick().await;
            let mut tx = fleet.running.app.db.read().await.unwrap();
            let page = tx.list_maintenance(&PageRequest::first(100)).await.unwrap();
            let found = page.items.into_iter().find(|one| one.id == run.id).unwrap();
            if found.state.is_terminal() {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, over).await.unwrap()
}

/// Whoever owns the schema can take the guard away and change what was written.
async fn forge(fleet: &Fleet) {
    let change = "UPDATE packets SET envelope = substr(envelope, 1, length(envelope) - 1)";
    let url = &fleet.database.url;
    if url.starts_with("sqlite:") {
        let mut raw = SqliteConnection::connect(url).await.unwrap();
        sqlx::raw_sql("DROP TRIGGER packets_no_update")
            .execute(&mut raw)
            .await
            .unwrap();
        sqlx::raw_sql(change).execute(&mut raw).await.unwrap();
    } else {
        let mut raw = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql("ALTER TABLE packets DISABLE TRIGGER ALL")
            .execute(&mut raw)
            .await
            .unwrap();
        sqlx::raw_sql(change).execute(&mut raw).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_stored_packets_are_verified_again_and_a_changed_one_is_found() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let agent = fleet.run_agent(&state, engine(&["v1"])).unwrap();
    fleet.connected(1).await.unwrap();
    let job = fleet.promote("v1").await.unwrap();
    assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Succeeded);

    let good = run(&fleet, MaintenanceKind::Evidence).await;
    assert_eq!(
        (good.state, good.progress.items),
        (MaintenanceState::Succeeded, 1),
        "{good:?}"
    );
    assert_eq!(good.summary, "1 packets verified");
    let audit = run(&fleet, MaintenanceKind::Audit).await;
    assert_eq!(audit.state, MaintenanceState::Succeeded, "{audit:?}");
    assert!(audit.progress.items > 0, "{audit:?}");
    let cleanup = run(&fleet, MaintenanceKind::Cleanup).await;
    assert_eq!(cleanup.state, MaintenanceState::Succeeded, "{cleanup:?}");

    forge(&fleet).await;
    let bad = run(&fleet, MaintenanceKind::Evidence).await;
    assert_eq!(
        (bad.state, bad.progress.problems),
        (MaintenanceState::Failed, 1),
        "{bad:?}"
    );
    assert!(bad.summary.contains("packets/"), "{}", bad.summary);
    agent.stop.cancel();
    assert!(fleet.running.stop().await);
}
