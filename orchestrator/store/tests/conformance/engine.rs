//! Transactions, locks, changes.

use std::sync::Arc;

use sealift_common::{
    id::{AgentId, EnvironmentId, SessionId},
    role::Role,
};
use sealift_store::{Change, Db, Engine, Heartbeat, PageRequest, StoreError, Tx};

use crate::{
    harness::{World, at, conformance, on_postgres},
    seed::{Seed, name, tenant, user},
};

conformance![
    a_ping_is_answered,
    dropped_transactions_leave_nothing,
    r9_what_was_committed_survives_reopening,
    writes_in_a_read_transaction_fail,
    a_read_transaction_sees_one_instant,
    changes_are_told_after_commit_only,
    a_closed_database_is_unavailable,
    concurrent_writers_all_succeed,
];

async fn a_ping_is_answered(world: World) {
    world.db.ping().await.unwrap();
    let wanted = if world.config.url.starts_with("sqlite:") {
        Engine::Sqlite
    } else {
        Engine::Postgres
    };
    assert_eq!(world.db.engine(), wanted);
}

async fn dropped_transactions_leave_nothing(world: World) {
    let acme = tenant("acme");
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    drop(tx);
    let mut tx = world.db.write().await.unwrap();
    assert_eq!(tx.tenant(acme.id).await.unwrap(), None);
}

async fn r9_what_was_committed_survives_reopening(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let made = seed.deployment(&world.db, at(1)).await;
    world.db.close().await;
    let db = Db::open(&world.config).await.unwrap();
    let mut tx = db.read().await.unwrap();
    assert_eq!(
        tx.tenant(seed.tenant.id).await.unwrap(),
        Some(seed.tenant.clone())
    );
    assert_eq!(
        tx.release(seed.tenant.id, made.release.id).await.unwrap(),
        Some(made.release)
    );
    assert_eq!(
        tx.promotion(seed.tenant.id, made.promotion.id).await.unwrap(),
        Some(made.promotion)
    );
    assert_eq!(
        tx.job(seed.tenant.id, made.job.id).await.unwrap(),
        Some(made.job.clone())
    );
    assert_eq!(tx.tasks_of_job(made.job.id).await.unwrap(), made.tasks);
}

async fn writes_in_a_read_transaction_fail(world: World) {
    let mut tx = world.db.read().await.unwrap();
    let refused = tx.insert_tenant(&tenant("acme")).await;
    assert!(matches!(refused, Err(StoreError::ReadOnly)), "{refused:?}");
    drop(tx);
    let mut tx = world.db.read().await.unwrap();
    let beat = Heartbeat {
        agent_id: AgentId::new(at(0)),
        at: at(0),
        session: SessionId::new(at(0)),
    };
    let refused = tx.record_heartbeats(&[beat]).await;
    assert!(matches!(refused, Err(StoreError::ReadOnly)), "{refused:?}");
}

async fn a_read_transaction_sees_one_instant(world: World) {
    let mut reader = world.db.read().await.unwrap();
    let first = PageRequest::first(10);
    assert!(reader.list_tenants(&first).await.unwrap().items.is_empty());
    Seed::sow(&world.db, "acme", 1).await;
    assert!(reader.list_tenants(&first).await.unwrap().items.is_empty());
    drop(reader);
    let mut reader = world.db.read().await.unwrap();
    assert_eq!(reader.list_tenants(&first).await.unwrap().items.len(), 1);
}

async fn changes_are_told_after_commit_only(world: World) {
    let acme = tenant("acme");
    let alice = user(&acme, "alice", Role::Admin);
    let mut changes = world.db.changes();
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    tx.insert_user(&alice).await.unwrap();
    tx.revoke_user(alice.id, "left", at(1)).await.unwrap();
    assert!(changes.try_recv().is_err(), "told before commit");
    tx.commit().await.unwrap();
    assert_eq!(changes.try_recv().unwrap(), Change::User(alice.id));
    assert!(changes.try_recv().is_err(), "told twice");

    let mut tx = world.db.write().await.unwrap();
    tx.revoke_user(alice.id, "left", at(1)).await.unwrap();
    drop(tx);
    assert!(changes.try_recv().is_err(), "told although rolled back");
}

async fn a_closed_database_is_unavailable(world: World) {
    let clone = world.db.clone();
    world.db.close().await;
    assert!(matches!(clone.ping().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(clone.write().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(clone.read().await, Err(StoreError::Unavailable(_))));
}

async fn concurrent_writers_all_succeed(world: World) {
    let db = Arc::new(world.db);
    let writers = (0..20).map(|number| {
        let db = Arc::clone(&db);
        async move {
            let mut tx = db.write().await?;
            tx.insert_tenant(&tenant(&format!("tenant-{number}"))).await?;
            tx.commit().await
        }
    });
    for done in futures::future::join_all(writers).await {
        done.unwrap();
    }
    let mut tx = db.read().await.unwrap();
    assert_eq!(
        tx.list_tenants(&PageRequest::first(50))
            .await
            .unwrap()
            .items
            .len(),
        20
    );
    assert!(tx.tenant_by_name(&name("tenant-7")).await.unwrap().is_some());
}

mod on_sqlite_only {
    use super::*;
    use crate::harness::on_sqlite;

    #[tokio::test]
    async fn a_second_orchestrator_is_refused_until_the_first_is_gone() {
        on_sqlite(async |world: World| {
            let refused = Db::open(&world.config).await;
            let Err(StoreError::Locked(text)) = refused else {
                panic!("{refused:?}")
            };
            assert!(
                text.contains("another orchestrator") && text.contains("sealift.db"),
                "{text}"
            );
            world.db.close().await;
            Db::open(&world.config).await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn another_spelling_of_the_path_is_the_same_database() {
        on_sqlite(async |world: World| {
            let path = world.config.url.strip_prefix("sqlite:").unwrap();
            let path = std::path::Path::new(path);
            let folder = path.parent().unwrap();
            let link = folder.join("link.db");
            std::os::unix::fs::symlink(path, &link).unwrap();
            for spelled in [link, folder.join(".").join("sealift.db")] {
                let config = crate::harness::config(format!("sqlite:{}", spelled.display()));
                let refused = Db::open(&config).await;
                assert!(matches!(refused, Err(StoreError::Locked(_))), "{refused:?}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_folder_that_does_not_exist_is_named() {
        let config = crate::harness::config("sqlite:/nonexistent-folder/sealift.db".to_owned());
        let refused = Db::open(&config).await;
        assert!(matches!(refused, Err(StoreError::LockFile { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn an_unknown_kind_of_url_is_refused() {
        let refused = Db::open(&crate::harness::config("mysql://localhost/x".to_owned())).await;
        assert!(matches!(refused, Err(StoreError::Unsupported(_))), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_a_deadlock_is_told_from_a_change_that_was_faster() {
    on_postgres(async |world: World| {
        let seeds = [
            Seed::sow(&world.db, "acme", 1).await,
            Seed::sow(&world.db, "bolt", 1).await,
        ];
        let [one, other] = seeds.map(|seed| seed.environment.id);
        let mut both = world.db.write().await.unwrap();
        both.lock_lane(one).await.unwrap();
        both.lock_lane(other).await.unwrap();
        both.commit().await.unwrap();

        let mut first = world.db.write().await.unwrap();
        let mut second = world.db.write().await.unwrap();
        first.lock_lane(one).await.unwrap();
        second.lock_lane(other).await.unwrap();
        // Whoever is ended lets the other one go on.
        let crossed = async |mut tx: Tx, lane: EnvironmentId| {
            let locked = tx.lock_lane(lane).await;
            let after = tx.lock_lane(lane).await;
            locked
                .map(|()| assert!(after.is_ok()))
                .map_err(|error| (error, after))
        };
        let ended = futures::join!(crossed(first, other), crossed(second, one));
        let (error, after) = match ended {
            (Err(ended), Ok(())) | (Ok(()), Err(ended)) => ended,
            both => panic!("{both:?}"),
        };
        assert!(matches!(error, StoreError::Collision(_)), "{error:?}");
        assert!(after.is_err(), "nothing more can be said in it");
    })
    .await;
}
