//! How jobs look that activated nothing themselves: repeated promotions of what is active, undos, and jobs for a part of the
//! environment. What is stored of them never changes (C11).

use sealift_common::{
    id::{JobId, TargetId},
    job::JobEvent,
    order::Fence,
    outcome::Outcome,
    release::Release,
};
use sealift_store::{HistoryScope, Job, PageRequest, Promotion, Tx};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, digest, project},
};

conformance![
    what_activated_nothing_is_superseded_with_the_release_that_it_brought,
    a_rollback_undoes_all_that_brought_the_release_it_goes_back_from,
    what_was_for_a_part_is_superseded_when_no_target_has_it_any_longer,
];

const SHOP: &str = "github.com/acme/shop/api";

/// What a job that succeeds is.
#[derive(Default)]
struct Success {
    only: Option<TargetId>,
    undoes: Option<JobId>,
    activates: bool,
}

/// A job for the whole environment whose release becomes the active one.
const NEW: Success = Success {
    only: None,
    undoes: None,
    activates: true,
};

/// A job for the whole environment whose release is active already.
const AGAIN: Success = Success {
    activates: false,
    ..NEW
};

/// Runs a job of a release that succeeds a second after it was made.
async fn succeed(tx: &mut Tx, seed: &Seed, release: &Release, how: Success, seconds: i64) -> Job {
    let promotion = Promotion {
        scope: how.only.map(|target| vec![target]),
        rollback_of: how.undoes,
        ..seed.new_promotion(release, at(seconds))
    };
    tx.insert_promotion(&promotion).await.unwrap();
    let queued = match how.undoes {
        Some(undone) => seed.rollback_job(tx, &promotion, undone, at(seconds)).await,
        None => seed.job(tx, &promotion, at(seconds)).await,
    };
    let mut job = queued.unwrap();
    for (event, later) in [(JobEvent::Started, 0), (JobEvent::Completed, 1)] {
        job = tx
            .apply_job_event(&job, &event, "orchestrator", at(seconds + later))
            .await
            .unwrap();
    }
    if how.activates {
        tx.activate_release(seed.environment.id, release, job.id, at(seconds + 1))
            .await
            .unwrap();
    }
    job
}

/// Outcomes, the oldest first.
async fn outcomes(tx: &mut Tx, seed: &Seed) -> Vec<Outcome> {
    let page = PageRequest::first(100);
    let rows = tx
        .history(seed.environment.id, HistoryScope::All, &page)
        .await
        .unwrap()
        .items;
    rows.iter().rev().filter_map(|row| row.fate.outcome()).collect()
}

async fn releases(tx: &mut Tx, seed: &Seed) -> [Release; 2] {
    let first = seed.release(tx, SHOP, at(0)).await.unwrap();
    let second = seed.release(tx, SHOP, at(0)).await.unwrap();
    [first, second]
}

async fn what_activated_nothing_is_superseded_with_the_release_that_it_brought(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    let [first, second] = releases(&mut tx, &seed).await;
    succeed(&mut tx, &seed, &first, NEW, 0).await;
    let again = succeed(&mut tx, &seed, &first, AGAIN, 10).await;
    let undo = Success {
        undoes: Some(again.id),
        only: Some(seed.targets[0].id),
        ..AGAIN
    };
    succeed(&mut tx, &seed, &first, undo, 20).await;
    let [_, _, undo] = outcomes(&mut tx, &seed).await[..] else {
        panic!("three jobs have ended");
    };
    assert_eq!(undo, Outcome::Succeeded, "its release is active");
    // Another project's release takes the place of nothing here.
    let other = seed
        .release(&mut tx, "github.com/acme/shop/other", at(25))
        .await
        .unwrap();
    succeed(&mut tx, &seed, &other, NEW, 25).await;
    let before = outcomes(&mut tx, &seed).await;
    assert_eq!((before[0], before[2]), (Outcome::Succeeded, Outcome::Succeeded));
    succeed(&mut tx, &seed, &second, NEW, 30).await;
    let after = outcomes(&mut tx, &seed).await;
    assert_eq!(
        (after[0], after[2], after[3], after[4]),
        (
            Outcome::Superseded,
            Outcome::Superseded,
            Outcome::Succeeded,
            Outcome::Succeeded
        )
    );
}

async fn a_rollback_undoes_all_that_brought_the_release_it_goes_back_from(world: World) {
    use Outcome::{RolledBack, Succeeded, Superseded};
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    let [first, second] = releases(&mut tx, &seed).await;
    succeed(&mut tx, &seed, &first, NEW, 0).await;
    succeed(&mut tx, &seed, &first, AGAIN, 10).await;
    assert_eq!(outcomes(&mut tx, &seed).await, [Succeeded, Succeeded]);
    let bad = succeed(&mut tx, &seed, &second, NEW, 20).await;
    succeed(&mut tx, &seed, &second, AGAIN, 30).await;
    let of_a_part = Success {
        only: Some(seed.targets[0].id),
        ..AGAIN
    };
    succeed(&mut tx, &seed, &second, of_a_part, 35).await;
    assert_eq!(
        outcomes(&mut tx, &seed).await[..4],
        [Superseded, Superseded, Succeeded, Succeeded]
    );
    let back = Success {
        undoes: Some(bad.id),
        ..NEW
    };
    succeed(&mut tx, &seed, &first, back, 40).await;
    let undone = [
        Superseded, Superseded, RolledBack, RolledBack, RolledBack, Succeeded,
    ];
    assert_eq!(outcomes(&mut tx, &seed).await, undone);
    // What comes after a rollback changes nothing about what it undid.
    succeed(&mut tx, &seed, &second, NEW, 50).await;
    let later = [
        Superseded, Superseded, RolledBack, RolledBack, RolledBack, Superseded, Succeeded,
    ];
    assert_eq!(outcomes(&mut tx, &seed).await, later);
}

async fn what_was_for_a_part_is_superseded_when_no_target_has_it_any_longer(world: World) {
    use Outcome::{Succeeded, Superseded};
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    let [first, second] = releases(&mut tx, &seed).await;
    let target = &seed.targets[0];
    let mut seen = Vec::new();
    // The second finds the first's release there and skips; the third puts it back; the fourth brings another.
    let jobs = [(&first, true), (&first, false), (&first, true), (&second, true)];
    for ((release, replaces), fence) in jobs.into_iter().zip(1..) {
        let seconds = i64::try_from(fence).unwrap() * 10;
        let how = Success {
            only: Some(target.id),
            ..AGAIN
        };
        let job = succeed(&mut tx, &seed, release, how, seconds).await;
        let task = seed.new_task(&job, target, 0, at(seconds));
        tx.insert_tasks(std::slice::from_ref(&task)).await.unwrap();
        if replaces {
            tx.set_current(
                target.id,
                &project(SHOP),
                job.id,
                task.id,
                release.id,
                Fence(fence),
                digest("inputs"),
                digest("sticker"),
                at(seconds),
            )
            .await
            .unwrap();
        }
        seen.push(outcomes(&mut tx, &seed).await);
    }
    assert_eq!(
        seen,
        [
            vec![Succeeded],
            vec![Succeeded, Succeeded],
            vec![Superseded, Superseded, Succeeded],
            vec![Superseded, Superseded, Superseded, Succeeded],
        ]
    );
}
