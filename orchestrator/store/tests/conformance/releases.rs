//! Components, versions, projects, releases.

use sealift_common::any_manifest::Described as _;
use sealift_store::{PageRequest, StoreError};

use crate::{
    harness::{Raw, World, at, conformance},
    seed::{Seed, commit, component, digest, project},
};

conformance![
    components_are_found_by_name_and_repository,
    versions_are_appended_when_they_change,
    projects_are_made_once,
    releases_are_found_every_way,
    r6_numbers_have_no_gap_under_concurrency,
    r6_a_rolled_back_release_uses_no_number,
    a_commit_has_one_release_per_project,
    r7_releases_are_frozen,
    releases_are_listed_newest_first,
];

async fn components_are_found_by_name_and_repository(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let other = component(&seed.tenant, "a/web");
    let mut tx = world.db.write().await.unwrap();
    tx.insert_component(&other).await.unwrap();
    let id = seed.tenant.id;
    assert_eq!(
        tx.component_by_name(id, &other.name).await.unwrap(),
        Some(other.clone())
    );
    assert_eq!(
        tx.component_by_repository(id, &other.repository).await.unwrap(),
        Some(other.clone())
    );
    assert_eq!(
        tx.component_by_repository(id, "registry.test/none")
            .await
            .unwrap(),
        None
    );
    let page = tx.list_components(id, &PageRequest::first(9)).await.unwrap();
    assert_eq!(page.items, [other.clone(), seed.component.clone()]);
    let again = tx.insert_component(&other).await;
    assert!(matches!(again, Err(StoreError::Duplicate { .. })), "{again:?}");
}

async fn versions_are_appended_when_they_change(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let id = seed.component.id;
    let mut tx = world.db.write().await.unwrap();
    let mut news = Vec::new();
    for (tag, text) in [
        ("v1", "a"),
        ("v1", "a"),
        ("latest", "a"),
        ("v1", "b"),
        ("v1", "a"),
    ] {
        news.push(tx.record_version(id, tag, digest(text), at(1)).await.unwrap());
    }
    assert_eq!(news, [true, false, true, true, true]);
    let first = tx.list_versions(id, &PageRequest::first(3)).await.unwrap();
    let seen: Vec<_> = first
        .items
        .iter()
        .map(|entry| (entry.tag.as_str(), entry.digest))
        .collect();
    assert_eq!(
        seen,
        [("v1", digest("a")), ("v1", digest("b")), ("latest", digest("a"))]
    );
    let rest = tx
        .list_versions(
            id,
            &PageRequest {
                size: 3,
                after: first.next,
            },
        )
        .await
        .unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None));
}

async fn projects_are_made_once(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let id = seed.tenant.id;
    let (one, two) = (
        project("github.com/acme/shop/api"),
        project("github.com/acme/bank/api"),
    );
    let ensure = async || {
        let mut tx = world.db.write().await.unwrap();
        let project = tx.ensure_project(id, &one, at(0)).await.unwrap();
        tx.commit().await.unwrap();
        project
    };
    let (first, second) = futures::join!(ensure(), ensure());
    assert_eq!(first, second);
    let mut tx = world.db.write().await.unwrap();
    let other = tx.ensure_project(id, &two, at(0)).await.unwrap();
    assert_eq!(tx.project(id, &one).await.unwrap(), Some(first));
    assert_eq!(
        tx.project(id, &project("github.com/acme/shop/web"))
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        tx.projects_named(id, "api").await.unwrap(),
        [(other, two), (first, one.clone())]
    );
}

async fn releases_are_found_every_way(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let mut tx = world.db.write().await.unwrap();
    let release = seed
        .release(&mut tx, "github.com/acme/shop/api", at(1))
        .await
        .unwrap();
    let id = release.project_id;
    assert_eq!(
        tx.release(seed.tenant.id, release.id).await.unwrap().as_ref(),
        Some(&release)
    );
    assert_eq!(
        tx.release_by_number(id, 1).await.unwrap().as_ref(),
        Some(&release)
    );
    assert_eq!(tx.release_by_number(id, 2).await.unwrap(), None);
    assert_eq!(tx.release_by_number(id, u64::MAX).await.unwrap(), None);
    assert_eq!(
        tx.release_by_commit(id, &commit(1)).await.unwrap().as_ref(),
        Some(&release)
    );
    assert_eq!(release.content, release.manifest.content_digest().unwrap());
}

async fn r6_numbers_have_no_gap_under_concurrency(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let create = async |number: usize| {
        let mut tx = world.db.write().await.unwrap();
        let release = seed
            .release(&mut tx, "github.com/acme/shop/api", at(1))
            .await
            .unwrap();
        // Every third one changes its mind.
        if number.is_multiple_of(3) {
            return None;
        }
        tx.commit().await.unwrap();
        Some(release.number)
    };
    let numbers = futures::future::join_all((0..30).map(create)).await;
    let mut numbers: Vec<u64> = numbers.into_iter().flatten().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
}

async fn r6_a_rolled_back_release_uses_no_number(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    for (keep, wanted) in [(true, 1), (false, 2), (true, 2), (true, 3)] {
        let mut tx = world.db.write().await.unwrap();
        let release = seed
            .release(&mut tx, "github.com/acme/shop/api", at(1))
            .await
            .unwrap();
        assert_eq!(release.number, wanted);
        if keep {
            tx.commit().await.unwrap();
        }
    }
}

async fn a_commit_has_one_release_per_project(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let mut tx = world.db.write().await.unwrap();
    let mut release = seed
        .release(&mut tx, "github.com/acme/shop/api", at(1))
        .await
        .unwrap();
    seed.release(&mut tx, "github.com/acme/shop/web", at(1))
        .await
        .unwrap();
    release.id = sealift_common::id::ReleaseId::new(at(2));
    release.number = 2;
    let refused = tx.insert_release(&release).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Duplicate {
                constraint: "release_commit"
            })
        ),
        "{refused:?}"
    );
}

async fn r7_releases_are_frozen(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let mut tx = world.db.write().await.unwrap();
    seed.release(&mut tx, "github.com/acme/shop/api", at(1))
        .await
        .unwrap();
    tx.record_version(seed.component.id, "v1", digest("a"), at(1))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut raw = Raw::open(&world.config.url).await;
    for sql in [
        "UPDATE releases SET created_by = 'mallory'",
        "DELETE FROM releases",
        "UPDATE release_components SET digest = 'x'",
        "DELETE FROM release_components",
        "UPDATE version_entries SET digest = 'x'",
        "DELETE FROM version_entries",
    ] {
        let refused = raw.run(sql).await.unwrap_err().to_string();
        assert!(refused.contains("insert-only"), "{sql}: {refused}");
    }
}

async fn releases_are_listed_newest_first(world: World) {
    let seed = Seed::sow(&world.db, "acme", 0).await;
    let mut tx = world.db.write().await.unwrap();
    let mut made = Vec::new();
    for (number, text) in ["shop/api", "shop/web", "shop/api", "shop/api"]
        .into_iter()
        .enumerate()
    {
        let text = format!("github.com/acme/{text}");
        made.push(seed.release(&mut tx, &text, at(number as i64)).await.unwrap());
    }
    made.reverse();
    let id = seed.tenant.id;
    let first = tx.list_releases(id, None, &PageRequest::first(3)).await.unwrap();
    assert_eq!(first.items, made[..3]);
    let rest = tx
        .list_releases(
            id,
            None,
            &PageRequest {
                size: 3,
                after: first.next,
            },
        )
        .await
        .unwrap();
    assert_eq!(rest.items, made[3..]);
    let api = made[0].project_id;
    let first = tx
        .list_releases(id, Some(api), &PageRequest::first(2))
        .await
        .unwrap();
    assert_eq!(first.items, made[..2]);
    let rest = tx
        .list_releases(
            id,
            Some(api),
            &PageRequest {
                size: 2,
                after: first.next,
            },
        )
        .await
        .unwrap();
    assert_eq!((rest.items, rest.next), (vec![made[3].clone()], None));
}
