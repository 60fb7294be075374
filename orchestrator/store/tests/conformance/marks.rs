//! Quality marks, and which releases an environment could go back to.

use sealift_common::{id::ReleaseId, rollback::QualityMark};
use sealift_store::Mark;

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, environment},
};

conformance![
    the_newest_mark_of_a_candidate_counts,
    only_what_was_active_there_is_a_candidate,
    of_each_release_of_a_page_the_newest_mark_is_told,
];

fn seen(release_id: ReleaseId, mark: QualityMark, seconds: i64) -> Mark {
    Mark {
        release_id,
        mark,
        reason: "seen".to_owned(),
        actor: "user/alice".to_owned(),
        at: at(seconds),
    }
}

async fn the_newest_mark_of_a_candidate_counts(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let release = &made.release;
    for seconds in [1, 2] {
        tx.activate_release(seed.environment.id, release, made.job.id, at(seconds))
            .await
            .unwrap();
    }
    for (mark, seconds) in [(QualityMark::Stable, 3), (QualityMark::Unstable, 4)] {
        tx.insert_mark(&seen(release.id, mark, seconds)).await.unwrap();
    }
    let found = tx
        .rollback_candidates(seed.environment.id, release.project_id)
        .await
        .unwrap();
    assert_eq!(found.len(), 1, "once, however often it was active");
    assert_eq!(
        (found[0].release, found[0].mark, found[0].active_since),
        (release.id, Some(QualityMark::Unstable), at(2))
    );
    let marks = tx.marks_of_release(release.id, 9).await.unwrap();
    let newest: Vec<_> = marks.iter().map(|mark| mark.mark).collect();
    assert_eq!(newest, [QualityMark::Unstable, QualityMark::Stable]);
}

async fn only_what_was_active_there_is_a_candidate(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let elsewhere = environment(&seed.tenant, "elsewhere", 9);
    let made = seed.deployment(&world.db, at(0)).await;
    let (here, job) = (seed.environment.id, made.job.id);
    let mut tx = world.db.write().await.unwrap();
    tx.insert_environment(&elsewhere).await.unwrap();
    let mut release = async |project| {
        let release = seed.release(&mut tx, project, at(1)).await.unwrap();
        (release.project_id, release)
    };
    let (project, only_elsewhere) = release("github.com/acme/shop/api").await;
    let (_, never_active) = release("github.com/acme/shop/api").await;
    let (other_project, of_another) = release("github.com/acme/shop/web").await;
    assert_ne!(never_active.id, only_elsewhere.id);
    for (environment, release) in [
        (here, &made.release),
        (elsewhere.id, &only_elsewhere),
        (here, &of_another),
    ] {
        tx.activate_release(environment, release, job, at(2))
            .await
            .unwrap();
    }
    for (environment, project, wanted) in [
        (here, project, made.release.id),
        (elsewhere.id, project, only_elsewhere.id),
        (here, other_project, of_another.id),
    ] {
        let found = tx.rollback_candidates(environment, project).await.unwrap();
        let found: Vec<_> = found.iter().map(|candidate| candidate.release).collect();
        assert_eq!(found, [wanted]);
    }
}

async fn of_each_release_of_a_page_the_newest_mark_is_told(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    let mut releases = Vec::new();
    for _ in 0..3 {
        let release = seed.release(&mut tx, "github.com/acme/shop/api", at(1)).await;
        releases.push(release.unwrap().id);
    }
    let (first, without, second) = (releases[0], releases[1], releases[2]);
    for (release, mark, seconds) in [
        (first, QualityMark::Stable, 2),
        (second, QualityMark::Unstable, 3),
        (first, QualityMark::Deprecated, 4),
        (second, QualityMark::Stable, 5),
    ] {
        tx.insert_mark(&seen(release, mark, seconds)).await.unwrap();
    }
    let found = tx.newest_marks(&releases).await.unwrap();
    assert_eq!(found[&first], seen(first, QualityMark::Deprecated, 4));
    assert_eq!(found[&second], seen(second, QualityMark::Stable, 5));
    assert!(!found.contains_key(&without));
    let of_one = tx.newest_marks(&[second]).await.unwrap();
    assert_eq!(of_one.into_keys().collect::<Vec<_>>(), [second]);
    assert_eq!(tx.newest_marks(&[]).await.unwrap().len(), 0);
}
