//! Runs of maintenance.

use chrono::TimeDelta;
use sealift_common::maintenance::{MaintenanceKind, MaintenanceState, Progress};
use sealift_store::{PageRequest, StoreError};

use crate::harness::{World, at, conformance};

conformance![
    a_run_goes_from_pending_to_its_end_and_never_back,
    one_run_of_a_kind_is_not_over,
    old_runs_are_forgotten,
];

async fn a_run_goes_from_pending_to_its_end_and_never_back(world: World) {
    let mut tx = world.db.write().await.unwrap();
    let kind = MaintenanceKind::Evidence;
    assert_eq!(tx.open_maintenance().await.unwrap(), None);
    assert_eq!(tx.newest_maintenance(kind).await.unwrap(), None);
    let run = tx.request_maintenance(kind, "user/a", at(1)).await.unwrap();
    assert_eq!((run.state, run.started_at), (MaintenanceState::Pending, None));
    let progress = Progress {
        position: "here".to_owned(),
        items: 7,
        problems: 1,
        first_problem: "that one".to_owned(),
    };
    let early = tx.progress_maintenance(run.id, &progress).await;
    assert!(matches!(early, Err(StoreError::Conflict)), "{early:?}");
    tx.begin_maintenance(run.id, at(2)).await.unwrap();
    let again = tx.begin_maintenance(run.id, at(3)).await;
    assert!(matches!(again, Err(StoreError::Conflict)), "{again:?}");
    tx.progress_maintenance(run.id, &progress).await.unwrap();
    let open = tx.open_maintenance().await.unwrap().unwrap();
    assert_eq!(
        (open.state, &open.progress),
        (MaintenanceState::InProgress, &progress)
    );
    assert_eq!(open.started_at, Some(at(2)));
    tx.end_maintenance(&open, &progress, at(4)).await.unwrap();
    let late = tx.end_maintenance(&open, &progress, at(5)).await;
    assert!(matches!(late, Err(StoreError::Conflict)), "{late:?}");
    tx.commit().await.unwrap();
    let mut tx = world.db.read().await.unwrap();
    let ended = tx
        .list_maintenance(&PageRequest::first(10))
        .await
        .unwrap()
        .items
        .remove(0);
    assert_eq!(
        (ended.state, ended.ended_at),
        (MaintenanceState::Failed, Some(at(4)))
    );
    assert_eq!(ended.summary, progress.summary(kind));
    assert_eq!(tx.newest_maintenance(kind).await.unwrap(), Some(at(1)));
}

async fn one_run_of_a_kind_is_not_over(world: World) {
    let mut tx = world.db.write().await.unwrap();
    let first = tx
        .request_maintenance(MaintenanceKind::Audit, "user/a", at(1))
        .await
        .unwrap();
    let same = tx
        .request_maintenance(MaintenanceKind::Audit, "user/b", at(2))
        .await
        .unwrap();
    assert_eq!(same, first);
    let other = tx
        .request_maintenance(MaintenanceKind::Cleanup, "user/b", at(2))
        .await
        .unwrap();
    assert_ne!(other.id, first.id);
    assert_eq!(
        tx.open_maintenance().await.unwrap(),
        Some(first.clone()),
        "the oldest first"
    );
    tx.begin_maintenance(first.id, at(3)).await.unwrap();
    tx.end_maintenance(&first, &Progress::default(), at(4))
        .await
        .unwrap();
    let next = tx
        .request_maintenance(MaintenanceKind::Audit, "user/b", at(5))
        .await
        .unwrap();
    assert_ne!(next.id, first.id);
}

async fn old_runs_are_forgotten(world: World) {
    let mut tx = world.db.write().await.unwrap();
    for second in [1, 100] {
        let run = tx
            .request_maintenance(MaintenanceKind::Audit, "user/a", at(second))
            .await
            .unwrap();
        tx.begin_maintenance(run.id, at(second)).await.unwrap();
        tx.end_maintenance(&run, &Progress::default(), at(second))
            .await
            .unwrap();
    }
    let open = tx
        .request_maintenance(MaintenanceKind::Audit, "user/a", at(1))
        .await
        .unwrap();
    assert_eq!(tx.purge_maintenance(at(100)).await.unwrap(), 1);
    assert_eq!(
        tx.purge_maintenance(at(100) + TimeDelta::seconds(1))
            .await
            .unwrap(),
        1
    );
    let left = tx.list_maintenance(&PageRequest::first(10)).await.unwrap().items;
    assert_eq!(left, [open]);
}
