//! What operators look at: the board in a fixed number of statements, histories by pages, sticker chains by pages.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use chrono::TimeDelta;
use sealift_common::{
    drift::{DriftKind, Severity},
    id::{EnvironmentId, ProjectId},
    job::{JobEvent, JobPhase},
    order::Fence,
    outcome::Outcome,
    release::Release,
    sticker::Link,
};
use sealift_store::{BoardDrift, BoardRelease, BoardService, Db, HistoryRow, HistoryScope, PageRequest, Tx};
use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

use crate::{
    drift::found,
    harness::{World, at, conformance, on_sqlite},
    seed::{Deployment, Seed, digest, environment, project, target},
};

conformance![
    the_board_counts_what_there_is,
    the_board_counts_on_how_many_targets_each_release_is,
    a_history_is_newest_first_with_derived_outcomes,
    a_success_that_was_undone_is_rolled_back_in_the_history,
    pages_of_a_history_are_the_whole_history,
    what_was_made_within_a_millisecond_is_listed_newest_first,
    releases_since_are_those_of_the_project,
    sticker_chains_are_paged_with_their_links,
];

/// Starts and ends a job well, and activates its release.
async fn succeed(tx: &mut Tx, seed: &Seed, made: &Deployment, seconds: i64) {
    let job = tx.job_by_id(made.job.id).await.unwrap().unwrap();
    let job = tx
        .apply_job_event(&job, &JobEvent::Started, "orchestrator", at(seconds))
        .await
        .unwrap();
    tx.apply_job_event(&job, &JobEvent::Completed, "orchestrator", at(seconds + 1))
        .await
        .unwrap();
    let environment = seed.environment.id;
    tx.activate_release(environment, &made.release, made.job.id, at(seconds + 1))
        .await
        .unwrap();
}

async fn the_board_counts_what_there_is(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let (tenant, environment) = (seed.tenant.id, seed.environment.id);
    let mut tx = world.db.write().await.unwrap();
    let board = tx.board(tenant).await.unwrap();
    assert_eq!(board.targets, [(environment, 2)]);
    assert_eq!(board.queued, [(environment, 1)]);
    assert_eq!(board.agents.len(), 1, "one agent serves both");
    assert!(board.jobs.is_empty() && board.drift.is_empty());

    let job = &made.job;
    tx.apply_job_event(job, &JobEvent::Started, "orchestrator", at(1))
        .await
        .unwrap();
    let severe = [found(DriftKind::Stopped, Some("api"), Severity::High)];
    for target in &seed.targets {
        tx.reconcile_drift(target.id, "p/a", &severe, at(2))
            .await
            .unwrap();
    }
    let board = tx.board(tenant).await.unwrap();
    assert!(board.queued.is_empty());
    let under_way = &board.jobs[0];
    assert_eq!((under_way.id, under_way.phase), (job.id, JobPhase::Running));
    assert_eq!((under_way.tasks, under_way.ended, under_way.failed), (2, 0, 0));
    assert_eq!((under_way.wave, under_way.waves), (0, 1));
    let drifted = BoardDrift {
        environment,
        project: "p/a".to_owned(),
        service: "api".to_owned(),
        severity: Severity::High,
        open: 2,
    };
    assert_eq!(board.drift, [drifted]);
    assert!(board.services.is_empty(), "nothing is active");
    tx.activate_release(environment, &made.release, job.id, at(3))
        .await
        .unwrap();
    let mut services = tx.board(tenant).await.unwrap().services;
    services.sort_by(|one, other| one.service.cmp(&other.service));
    let service = |service: &str| BoardService {
        environment,
        release: made.release.id,
        component: seed.component.id,
        service: service.to_owned(),
    };
    assert_eq!(services, [service("api"), service("worker")]);
    // R12
    tx.commit().await.unwrap();
    let other = Seed::sow(&world.db, "bolt", 1).await;
    let board = world
        .db
        .read()
        .await
        .unwrap()
        .board(other.tenant.id)
        .await
        .unwrap();
    assert_eq!(board.targets, [(other.environment.id, 1)]);
    assert!(board.jobs.is_empty() && board.drift.is_empty() && board.services.is_empty());
}

async fn the_board_counts_on_how_many_targets_each_release_is(world: World) {
    let seed = Seed::sow(&world.db, "acme", 3).await;
    let (old, new) = (
        seed.deployment(&world.db, at(0)).await,
        seed.deployment(&world.db, at(1)).await,
    );
    let shop = project("github.com/acme/shop/api");
    let mut tx = world.db.write().await.unwrap();
    for (place, made, fence) in [(0, &old, 5), (1, &old, 5), (2, &old, 5), (1, &new, 6)] {
        tx.set_current(
            seed.targets[place].id,
            &shop,
            made.job.id,
            made.tasks[place].id,
            made.release.id,
            Fence(fence),
            digest("inputs"),
            digest("sticker"),
            at(2),
        )
        .await
        .unwrap();
    }
    // In another environment, and of another project whose name sorts in another way where case is folded.
    let other = environment(&seed.tenant, "elsewhere", 9);
    tx.insert_environment(&other).await.unwrap();
    let away = target(&other, "away-1");
    tx.insert_target(&away).await.unwrap();
    let zoo = seed
        .release(&mut tx, "github.com/acme/shop/Zoo", at(2))
        .await
        .unwrap();
    for (place, release, project) in [
        (away.id, old.release.id, &shop),
        (seed.targets[0].id, zoo.id, &zoo.source.project),
    ] {
        tx.set_current(
            place,
            project,
            old.job.id,
            old.tasks[0].id,
            release,
            Fence(7),
            digest("inputs"),
            digest("sticker"),
            at(2),
        )
        .await
        .unwrap();
    }
    let found = tx.board(seed.tenant.id).await.unwrap().releases;
    let here = seed.environment.id;
    let release = |environment, release: &Release, targets| BoardRelease {
        environment,
        release: release.id,
        project: release.source.project.clone(),
        number: release.number,
        targets,
    };
    let (old, new) = (&old.release, &new.release);
    assert_eq!(found[..2], [release(here, &zoo, 1), release(here, new, 1)]);
    let mut last = found[2..].to_vec();
    last.sort_by_key(|one| one.targets);
    assert_eq!(last, [release(other.id, old, 1), release(here, old, 2)]);
    tx.archive_target(&seed.targets[2], at(3)).await.unwrap();
    let found = tx.board(seed.tenant.id).await.unwrap().releases;
    assert!(found.contains(&release(here, old, 1)), "{found:?}");
    // R12
    tx.commit().await.unwrap();
    let other = Seed::sow(&world.db, "bolt", 1).await;
    let mut tx = world.db.read().await.unwrap();
    assert!(tx.board(other.tenant.id).await.unwrap().releases.is_empty());
}

async fn whole(tx: &mut Tx, environment: EnvironmentId, scope: HistoryScope) -> Vec<HistoryRow> {
    let page = PageRequest::first(100);
    tx.history(environment, scope, &page).await.unwrap().items
}

async fn a_history_is_newest_first_with_derived_outcomes(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut jobs = Vec::new();
    for number in 0..4 {
        let made = seed.deployment(&world.db, at(number * 10)).await;
        let mut tx = world.db.write().await.unwrap();
        if number == 2 {
            tx.apply_job_event(&made.job, &JobEvent::Cancelled, "user/alice", at(21))
                .await
                .unwrap();
        } else if number < 3 {
            succeed(&mut tx, &seed, &made, number * 10).await;
        }
        tx.commit().await.unwrap();
        jobs.push(made);
    }
    let mut tx = world.db.read().await.unwrap();
    let rows = whole(&mut tx, seed.environment.id, HistoryScope::All).await;
    let seen: Vec<_> = rows.iter().map(|row| (row.job, row.fate.outcome())).collect();
    let wanted = [
        (jobs[3].job.id, None),
        (jobs[2].job.id, Some(Outcome::Cancelled)),
        (jobs[1].job.id, Some(Outcome::Succeeded)),
        (jobs[0].job.id, Some(Outcome::Superseded)),
    ];
    assert_eq!(seen, wanted);
    assert!(
        rows.windows(2)
            .all(|pair| pair[0].created_at > pair[1].created_at)
    );
    assert_eq!(rows[0].requested_by, "user/alice");
    // What is stored of the first one is still how it ended.
    assert_eq!(rows[3].fate.phase, JobPhase::Succeeded);
}

async fn a_success_that_was_undone_is_rolled_back_in_the_history(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    succeed(&mut tx, &seed, &made, 0).await;
    let mut rollbacks = Vec::new();
    // The first is cancelled and undoes nothing.
    for seconds in [10, 20] {
        let promotion = seed.promotion(&mut tx, &made.release, at(seconds)).await;
        let job = seed
            .rollback_job(&mut tx, &promotion, made.job.id, at(seconds))
            .await
            .unwrap();
        rollbacks.push(job);
    }
    let (environment, mut outcomes) = (seed.environment.id, Vec::new());
    for (job, events) in [
        (&rollbacks[0], &[JobEvent::Cancelled][..]),
        (&rollbacks[1], &[JobEvent::Started, JobEvent::Completed][..]),
    ] {
        let mut job = job.clone();
        for event in events {
            job = tx
                .apply_job_event(&job, event, "orchestrator", at(30))
                .await
                .unwrap();
        }
        let rows = whole(&mut tx, environment, HistoryScope::All).await;
        let undone = rows.last().unwrap();
        assert_eq!(
            (undone.job, undone.fate.phase),
            (made.job.id, JobPhase::Succeeded)
        );
        outcomes.push(undone.fate.outcome());
    }
    assert_eq!(outcomes, [Some(Outcome::Succeeded), Some(Outcome::RolledBack)]);
}

async fn pages_of_a_history_are_the_whole_history(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    for number in 0..5 {
        seed.deployment(&world.db, at(number)).await;
    }
    let mut tx = world.db.write().await.unwrap();
    // Another project with the same component, without tasks.
    let release = seed
        .release(&mut tx, "github.com/acme/shop/other", at(9))
        .await
        .unwrap();
    let promotion = seed.promotion(&mut tx, &release, at(9)).await;
    let other = seed.job(&mut tx, &promotion, at(9)).await.unwrap();
    let environment = seed.environment.id;
    let mine = project("github.com/acme/shop/api");
    let mine = tx.project(seed.tenant.id, &mine).await.unwrap().unwrap();
    let scopes = [
        (HistoryScope::All, 6),
        (HistoryScope::Project(mine), 5),
        (HistoryScope::Project(release.project_id), 1),
        (HistoryScope::Component(seed.component.id), 6),
        (HistoryScope::Target(seed.targets[1].id), 5),
    ];
    for (scope, wanted) in scopes {
        let rows = whole(&mut tx, environment, scope).await;
        assert_eq!(rows.len(), wanted, "{scope:?}");
        let of_target = matches!(scope, HistoryScope::Target(_));
        assert!(rows.iter().all(|row| row.task.is_some() == of_target));
        for size in [1, 2, 4] {
            let (mut page, mut walked) = (PageRequest::first(size), Vec::new());
            loop {
                let next = tx.history(environment, scope, &page).await.unwrap();
                walked.extend(next.items);
                page.after = next.next;
                if page.after.is_none() {
                    break;
                }
            }
            assert_eq!(walked, rows, "{scope:?} by {size}");
        }
    }
    let rows = whole(&mut tx, environment, HistoryScope::Project(release.project_id)).await;
    assert_eq!(rows[0].job, other.id);
}

async fn what_was_made_within_a_millisecond_is_listed_newest_first(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut made = Vec::new();
    for micros in 0..8 {
        let now = at(0) + TimeDelta::microseconds(micros);
        made.push(seed.deployment(&world.db, now).await);
    }
    made.reverse();
    let (jobs, promotions): (Vec<_>, Vec<_>) =
        made.iter().map(|made| (made.job.id, made.promotion.id)).unzip();
    let (tenant, page) = (seed.tenant.id, PageRequest::first(100));
    let mut tx = world.db.read().await.unwrap();
    let listed = tx.list_jobs(tenant, None, &page).await.unwrap().items;
    assert_eq!(listed.iter().map(|job| job.id).collect::<Vec<_>>(), jobs);
    let listed = tx.list_promotions(tenant, None, &page).await.unwrap().items;
    assert_eq!(
        listed.iter().map(|promotion| promotion.id).collect::<Vec<_>>(),
        promotions
    );
    let history = whole(&mut tx, seed.environment.id, HistoryScope::All).await;
    assert_eq!(history.iter().map(|row| row.job).collect::<Vec<_>>(), jobs);
}

async fn releases_since_are_those_of_the_project(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut all: Vec<Deployment> = Vec::new();
    for number in 0..3 {
        let made = seed.deployment(&world.db, at(number * 10)).await;
        let mut tx = world.db.write().await.unwrap();
        succeed(&mut tx, &seed, &made, number * 10).await;
        tx.commit().await.unwrap();
        all.push(made);
    }
    let mut tx = world.db.read().await.unwrap();
    let environment = seed.environment.id;
    for (index, behind) in [(0, 2), (1, 1), (2, 0)] {
        let (release, since) = (all[index].release.id, at(index as i64 * 10));
        let mine = all[index].release.project_id;
        let found = tx.releases_since(environment, mine, release, since).await;
        assert_eq!(found.unwrap(), behind);
    }
    let other = ProjectId::new(at(0));
    let found = tx
        .releases_since(environment, other, all[0].release.id, at(0))
        .await;
    assert_eq!(found.unwrap(), 0);
}

async fn sticker_chains_are_paged_with_their_links(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let (target, task) = (seed.targets[0].id, made.tasks[0].id);
    let mut tx = world.db.write().await.unwrap();
    // The third was written on top of one that nobody reported.
    let chain = [
        ("a", None, Link::First),
        ("b", Some("a"), Link::Linked),
        ("d", Some("c"), Link::Broken),
        ("e", Some("d"), Link::Linked),
        ("f", None, Link::Broken),
    ];
    for (number, (name, previous, _)) in (1..).zip(chain) {
        let previous = previous.map(digest);
        tx.insert_sticker(target, "p/a", task, digest(name), previous, b"{}", at(number))
            .await
            .unwrap();
        // A chain of its own.
        tx.insert_sticker(target, "p/b", task, digest("x"), None, b"{}", at(number))
            .await
            .unwrap();
    }
    for size in [1, 2, 3, 9] {
        let (mut page, mut walked) = (PageRequest::first(size), Vec::new());
        loop {
            let next = tx.list_stickers(target, "p/a", &page).await.unwrap();
            walked.extend(next.items);
            page.after = next.next;
            if page.after.is_none() {
                break;
            }
        }
        let links: Vec<_> = walked
            .iter()
            .map(|sticker| (sticker.digest, Link::of(sticker.previous, sticker.older)))
            .collect();
        let wanted: Vec<_> = chain
            .iter()
            .rev()
            .map(|(name, _, link)| (digest(name), *link))
            .collect();
        assert_eq!(links, wanted, "by {size}");
        assert!(walked.iter().all(|sticker| sticker.job == made.job.id));
    }
}

/// Counts the statements that are carried out.
#[derive(Clone, Default)]
struct Statements(Arc<AtomicU32>);

impl Subscriber for Statements {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

async fn statements_of_a_board(db: &Db, counted: &Statements, seed: &Seed) -> u32 {
    let before = counted.0.load(Ordering::SeqCst);
    let mut tx = db.read().await.unwrap();
    let board = tx.board(seed.tenant.id).await.unwrap();
    assert_eq!(board.targets.len(), 1);
    tx.active_of_tenant(seed.tenant.id).await.unwrap();
    drop(tx);
    counted.0.load(Ordering::SeqCst) - before
}

/// P10: what the board costs in statements does not grow with the fleet.
#[tokio::test]
async fn p10_a_board_of_a_thousand_targets_takes_as_many_statements_as_one_of_one() {
    let counted = Statements::default();
    tracing::subscriber::set_global_default(counted.clone()).unwrap();
    on_sqlite(async |world: World| {
        let seed = Seed::sow(&world.db, "acme", 1).await;
        let one = statements_of_a_board(&world.db, &counted, &seed).await;
        let mut tx = world.db.write().await.unwrap();
        for number in 0..999 {
            let mut more = target(&seed.environment, &format!("more-{number}"));
            more.agent_id = Some(seed.agent.id);
            tx.insert_target(&more).await.unwrap();
        }
        tx.commit().await.unwrap();
        let thousand = statements_of_a_board(&world.db, &counted, &seed).await;
        assert!(one > 0, "statements are not counted");
        assert_eq!(thousand, one);
    })
    .await;
}
