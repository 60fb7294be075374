//! Releases: numbers, sameness, aliases.

use sealift_common::{error::Reason, name::ReleaseAlias, time::Clock as _};
use sealift_orchestrator::app::{create_release::create_release, resolve_release::resolve_release};

use crate::world::World;

#[tokio::test]
async fn r6_release_numbers_are_gapless_also_when_creations_fail() {
    let world = World::new(0).await;
    let now = world.clock.now();
    for round in 1..=5_u64 {
        let mut tx = world.core.db.write().await.unwrap();
        let draft = World::draft(&format!("lost {round}"));
        let lost = create_release(&mut tx, world.tenant, draft, "user/ci", now)
            .await
            .unwrap();
        assert_eq!(lost.number, round);
        // The call fails after the number was taken.
        drop(tx);
        assert_eq!(world.release(&format!("v{round}")).await.number, round);
    }
}

#[tokio::test]
async fn r6_release_numbers_are_gapless_whatever_runs_at_once() {
    let world = World::new(0).await;
    let releases = (0..20).map(|n| {
        let content = format!("v{n}");
        let world = &world;
        async move { world.release(&content).await.number }
    });
    let mut numbers = futures::future::join_all(releases).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn r16_the_same_commit_gives_the_same_release_and_other_content_is_refused() {
    let world = World::new(0).await;
    let first = world.release("v1").await;
    assert_eq!(world.release("v1").await, first);
    let mut other = World::draft("v2");
    other.source = World::draft("v1").source;
    let mut tx = world.core.db.write().await.unwrap();
    let error = create_release(&mut tx, world.tenant, other, "user/ci", world.clock.now())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::AlreadyExists);
}

#[tokio::test]
async fn short_names_find_the_one_project_that_they_fit() {
    let world = World::new(0).await;
    let release = world.release("v1").await;
    let mut tx = world.core.db.write().await.unwrap();
    let mut twin = World::draft("twin");
    twin.source = format!("gitlab.com/other/shop/api@{}", twin.source.commit)
        .parse()
        .unwrap();
    create_release(&mut tx, world.tenant, twin, "user/ci", world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();

    let mut tx = world.core.db.read().await.unwrap();
    for alias in [
        release.id.to_string(),
        "acme/shop/api#1".to_owned(),
        "github.com/acme/shop/api#1".to_owned(),
        format!("shop/api@{}", release.source.commit),
        format!("github.com/acme/shop/api/{}", release.source.commit),
    ] {
        let found = resolve_release(&mut tx, world.tenant, &alias.parse().unwrap())
            .await
            .unwrap();
        assert_eq!(found.id, release.id, "{alias}");
    }
    let reason = async |tx: &mut sealift_store::Tx, alias: &str| {
        let alias: ReleaseAlias = alias.parse().unwrap();
        resolve_release(tx, world.tenant, &alias)
            .await
            .unwrap_err()
            .reason()
    };
    assert_eq!(reason(&mut tx, "shop/api#1").await, Reason::AmbiguousRelease);
    assert_eq!(reason(&mut tx, "acme/shop/api#2").await, Reason::NotFound);
    assert_eq!(reason(&mut tx, "hop/api#1").await, Reason::NotFound);
}

#[tokio::test]
async fn components_are_registered_with_the_shortest_free_name() {
    let world = World::new(0).await;
    let first = world.release("v1").await;
    let mut other = World::draft("elsewhere");
    let mut manifest = other.manifest.docker().unwrap();
    for spec in manifest.services.values_mut() {
        spec.image.repository = "other.example.com/shop/api".into();
    }
    other.content = manifest.content_digest().unwrap();
    other.manifest = manifest.into();
    let mut tx = world.core.db.write().await.unwrap();
    let second = create_release(&mut tx, world.tenant, other, "user/ci", world.clock.now())
        .await
        .unwrap();
    let name = |release: &sealift_common::release::Release| {
        release.components.values().next().unwrap().component.to_string()
    };
    assert_eq!(name(&first), "shop/api");
    assert_eq!(name(&second), "other.example.com/shop/api");
}
