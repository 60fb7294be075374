//! R12: nobody reads or refers to anything of another tenant.

use sealift_store::{DriftFilter, PacketFilter, PageRequest, StoreError};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, target},
};

conformance![
    r12_rows_of_another_tenant_are_never_returned,
    r12_rows_of_another_tenant_cannot_be_referred_to,
];

async fn r12_rows_of_another_tenant_are_never_returned(world: World) {
    let acme = Seed::sow(&world.db, "acme", 2).await;
    let made = acme.deployment(&world.db, at(0)).await;
    let bolt = Seed::sow(&world.db, "bolt", 0).await;
    let other = bolt.tenant.id;
    let page = PageRequest::first(50);
    let mut tx = world.db.read().await.unwrap();
    assert_eq!(tx.environment(other, acme.environment.id).await.unwrap(), None);
    assert_ne!(
        tx.environment_by_name(other, &acme.environment.name)
            .await
            .unwrap()
            .unwrap()
            .id,
        acme.environment.id
    );
    assert_eq!(tx.target(other, acme.targets[0].id).await.unwrap(), None);
    assert_eq!(
        tx.target_by_name(other, acme.environment.id, &acme.targets[0].name)
            .await
            .unwrap(),
        None
    );
    assert_eq!(tx.agent(other, acme.agent.id).await.unwrap(), None);
    assert_eq!(
        tx.project(other, &made.release.source.project).await.unwrap(),
        None
    );
    assert!(tx.projects_named(other, "api").await.unwrap().is_empty());
    assert_eq!(tx.release(other, made.release.id).await.unwrap(), None);
    assert_eq!(tx.promotion(other, made.promotion.id).await.unwrap(), None);
    assert_eq!(tx.job(other, made.job.id).await.unwrap(), None);
    let environment = Some(acme.environment.id);
    assert!(
        tx.list_targets(other, environment, &page)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert!(
        tx.list_targets(other, None, &page)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert!(tx.list_users(other, &page).await.unwrap().items.is_empty());
    assert_eq!(
        tx.list_agents(other, &page).await.unwrap().items,
        std::slice::from_ref(&bolt.agent)
    );
    assert_eq!(
        tx.list_components(other, &page).await.unwrap().items,
        std::slice::from_ref(&bolt.component)
    );
    assert_eq!(
        tx.list_environments(other, &page).await.unwrap().items,
        std::slice::from_ref(&bolt.environment)
    );
    for project in [None, Some(made.release.project_id)] {
        assert!(
            tx.list_releases(other, project, &page)
                .await
                .unwrap()
                .items
                .is_empty()
        );
    }
    for environment in [None, environment] {
        assert!(
            tx.list_promotions(other, environment, &page)
                .await
                .unwrap()
                .items
                .is_empty()
        );
        assert!(
            tx.list_jobs(other, environment, &page)
                .await
                .unwrap()
                .items
                .is_empty()
        );
        let filter = PacketFilter {
            environment,
            ..PacketFilter::default()
        };
        assert!(
            tx.list_packets(other, filter, true, &page)
                .await
                .unwrap()
                .items
                .is_empty()
        );
        let filter = DriftFilter {
            environment,
            ..DriftFilter::default()
        };
        assert!(
            tx.list_drift(other, filter, &page)
                .await
                .unwrap()
                .items
                .is_empty()
        );
    }
}

async fn r12_rows_of_another_tenant_cannot_be_referred_to(world: World) {
    let acme = Seed::sow(&world.db, "acme", 1).await;
    let made = acme.deployment(&world.db, at(0)).await;
    let bolt = Seed::sow(&world.db, "bolt", 1).await;

    let mut tx = world.db.write().await.unwrap();
    let mut foreign = target(&acme.environment, "web-9");
    foreign.tenant_id = bolt.tenant.id;
    let refused = tx.insert_target(&foreign).await;
    assert!(matches!(refused, Err(StoreError::Reference(_))), "{refused:?}");
    drop(tx);

    let mut tx = world.db.write().await.unwrap();
    let refused = tx
        .bind_target(bolt.targets[0].id, bolt.targets[0].agent_id, acme.agent.id, at(1))
        .await;
    assert!(matches!(refused, Err(StoreError::Reference(_))), "{refused:?}");
    drop(tx);

    let mut tx = world.db.write().await.unwrap();
    let refused = tx
        .insert_promotion(&bolt.new_promotion(&made.release, at(1)))
        .await;
    assert!(matches!(refused, Err(StoreError::Reference(_))), "{refused:?}");
    drop(tx);

    let mut tx = world.db.write().await.unwrap();
    let mut task = acme.new_task(&made.job, &acme.targets[0], 0, at(1));
    task.target_id = bolt.targets[0].id;
    let refused = tx.insert_tasks(&[task]).await;
    assert!(matches!(refused, Err(StoreError::Reference(_))), "{refused:?}");
}
