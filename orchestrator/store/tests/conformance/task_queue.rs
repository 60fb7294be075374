//! Tasks as the scheduler and the gateway work on them: many at once, counted, found by what they need.

use std::collections::{BTreeMap, BTreeSet};

use sealift_common::{
    id::{SessionId, TargetId},
    observation::TargetObservation,
    order::Fence,
    rollout::Tally,
    task::{SkipReason, TaskEvent, TaskState, TaskStep, Wanted},
};
use sealift_store::EntityKind;

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, digest, failure, project},
};

conformance![
    events_that_follow_each_other_are_one_write_and_whole_history,
    tallies_are_those_of_the_tasks,
    the_next_tasks_of_a_job_are_found_by_what_they_need,
    what_was_seen_and_recorded_of_targets_comes_together,
];

async fn events_that_follow_each_other_are_one_write_and_whole_history(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let step = |step| TaskEvent::Progressed { step };
    // The second event says what is known already.
    let events = [
        TaskEvent::Accepted,
        TaskEvent::Accepted,
        step(TaskStep::Pulling),
        step(TaskStep::HealthWait),
        TaskEvent::Succeeded,
    ];
    let mut tx = world.db.write().await.unwrap();
    let together = seed.assign(&mut tx, &made.tasks[0], at(1)).await.unwrap();
    let mut alone = seed.assign(&mut tx, &made.tasks[1], at(1)).await.unwrap();
    let together = tx
        .apply_task_events(&together, &events, "x", at(2))
        .await
        .unwrap();
    for event in &events {
        alone = tx.apply_task_event(&alone, event, "x", at(2)).await.unwrap();
    }
    assert_eq!((together.version, together.lease_until), (5, None));
    assert_eq!((&together.state, together.version), (&alone.state, alone.version));
    assert_eq!(together.finished_at, alone.finished_at);
    // Read in the transaction that writes it, and after it.
    let history = tx
        .transitions(EntityKind::Task, together.id.uuid())
        .await
        .unwrap();
    assert_eq!(
        tx.transitions(EntityKind::Task, alone.id.uuid()).await.unwrap(),
        history
    );
    tx.commit().await.unwrap();
    let mut tx = world.db.write().await.unwrap();
    assert_eq!(
        tx.transitions(EntityKind::Task, together.id.uuid())
            .await
            .unwrap(),
        history
    );
    let told: Vec<_> = history
        .iter()
        .map(|row| (row.seq, row.to.as_str(), row.detail.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (1, "assigned", ""),
            (2, "accepted", ""),
            (3, "running", "pulling"),
            (4, "running", "health_wait"),
            (5, "succeeded", ""),
        ]
    );
    let late = tx
        .apply_task_events(&together, &events, "x", at(3))
        .await
        .unwrap();
    assert_eq!(late.version, together.version, "what comes late changes nothing");
    let nothing = tx.apply_task_events(&together, &[], "x", at(3)).await.unwrap();
    assert_eq!(nothing.version, together.version);
}

async fn tallies_are_those_of_the_tasks(world: World) {
    let seed = Seed::sow(&world.db, "acme", 6).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let job = made.job.id;
    let mut tx = world.db.write().await.unwrap();
    let mut events = vec![
        vec![TaskEvent::Succeeded],
        vec![TaskEvent::Failed { failure: failure() }],
        vec![TaskEvent::Stopped],
        vec![],
    ];
    for (index, events) in events.drain(..).enumerate() {
        let task = seed.assign(&mut tx, &made.tasks[index], at(1)).await.unwrap();
        tx.apply_task_events(&task, &events, "x", at(2 + index as i64))
            .await
            .unwrap();
    }
    let skip = TaskEvent::Skipped {
        reason: SkipReason::EarlierWaveFailed,
    };
    tx.apply_task_event(&made.tasks[4], &skip, "x", at(9))
        .await
        .unwrap();
    tx.commit().await.unwrap();

    let mut tx = world.db.read().await.unwrap();
    let stored = tx.tasks_of_job(job).await.unwrap();
    for wave in [None, Some(0), Some(1), Some(7)] {
        let tally = tx.tally_tasks(job, wave).await.unwrap();
        let (mut all, mut here) = (Tally::default(), Tally::default());
        let mut last_success = None;
        for task in &stored {
            let reason = match task.state {
                TaskState::Skipped { reason } => Some(reason),
                _ => None,
            };
            all.add(task.state.phase(), reason, 1);
            if Some(task.wave) == wave {
                here.add(task.state.phase(), reason, 1);
                if task.state == TaskState::Succeeded {
                    last_success = last_success.max(task.finished_at);
                }
            }
        }
        assert_eq!((tally.all, tally.wave), (all, here), "{wave:?}");
        assert_eq!(tally.last_success, last_success, "{wave:?}");
    }
    assert_eq!(tx.first_task_failure(job).await.unwrap(), Some(failure()));
    let other = seed.deployment(&world.db, at(20)).await.job.id;
    assert_eq!(tx.first_task_failure(other).await.unwrap(), None);
}

async fn the_next_tasks_of_a_job_are_found_by_what_they_need(world: World) {
    let seed = Seed::sow(&world.db, "acme", 6).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let (job, wave) = (made.job.id, made.tasks[0].wave);
    let ids = |tasks: Vec<sealift_store::Task>| tasks.into_iter().map(|task| task.id).collect::<Vec<_>>();
    let of_wave: Vec<_> = made.tasks.iter().filter(|task| task.wave == wave).collect();
    let other = seed.deployment(&world.db, at(1)).await;
    let occupant = other
        .tasks
        .iter()
        .find(|task| task.target_id == of_wave[0].target_id);

    let mut tx = world.db.write().await.unwrap();
    // Somebody else is on the first target.
    seed.assign(&mut tx, occupant.unwrap(), at(2)).await.unwrap();
    let free = tx.free_pending_tasks(job, wave, None, 10).await.unwrap();
    let wanted: Vec<_> = of_wave[1..].iter().map(|task| task.id).collect();
    assert_eq!(ids(free.clone()), wanted);
    let after = tx
        .free_pending_tasks(job, wave, Some(&free[0].target), 10)
        .await
        .unwrap();
    assert_eq!(ids(after), wanted[1..]);
    let pending = tx.pending_tasks(job, 3).await.unwrap();
    let mut wanted: Vec<_> = made.tasks[..3].iter().map(|task| task.id).collect();
    wanted.sort_unstable();
    assert_eq!(
        ids(pending),
        wanted,
        "the first of them, in the order in which they are changed"
    );

    let first = seed.assign(&mut tx, &free[0], at(3)).await.unwrap();
    assert_eq!(ids(tx.tasks_to_stop(job, 10).await.unwrap()), [first.id]);
    let failed = TaskEvent::AttemptFailed { failure: failure() };
    let waiting = tx.apply_task_event(&first, &failed, "x", at(4)).await.unwrap();
    assert_eq!(ids(tx.undated_tasks(job, 10).await.unwrap()), [first.id]);
    let dated = tx.set_task_retry(&waiting, at(10), "x", at(4)).await.unwrap();
    assert_eq!(ids(tx.undated_tasks(job, 10).await.unwrap()), []);
    assert_eq!(ids(tx.tasks_due_again(job, at(9), None, 10).await.unwrap()), []);
    assert_eq!(
        ids(tx.tasks_due_again(job, at(10), None, 10).await.unwrap()),
        [first.id]
    );
    let told = tx
        .set_task_wanted(&dated, Wanted::Stop, "x", at(5))
        .await
        .unwrap();
    assert_eq!(
        ids(tx.tasks_to_stop(job, 10).await.unwrap()),
        [first.id],
        "nobody else ends what waits for another attempt"
    );
    let again = seed.assign(&mut tx, &told, at(11)).await.unwrap();
    assert_eq!(ids(tx.tasks_to_stop(job, 10).await.unwrap()), [], "it was told");
    assert_eq!(
        tx.bare_task(again.id).await.unwrap().map(|task| task.order),
        Some(None)
    );
}

/// For the look at a wave that has baked: a page of it with a few statements.
async fn what_was_seen_and_recorded_of_targets_comes_together(world: World) {
    let seed = Seed::sow(&world.db, "acme", 4).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let shop = project("github.com/acme/shop/api");
    let session = SessionId::new(at(1));
    let mut tx = world.db.write().await.unwrap();
    for (index, task) in made.tasks.iter().enumerate() {
        let (inputs, sticker) = (digest("inputs"), digest(task.target.as_str()));
        let (target, release) = (task.target_id, made.release.id);
        let now = at(2);
        tx.set_current(
            target,
            &shop,
            made.job.id,
            task.id,
            release,
            Fence(7),
            inputs,
            sticker,
            now,
        )
        .await
        .unwrap();
        // Of the first nothing was told.
        if index > 0 {
            let seen = seen_empty(target);
            tx.put_observation(&seen, SessionId::new(at(0)), at(1))
                .await
                .unwrap();
            tx.put_observation(&seen, session, now).await.unwrap();
        }
    }
    tx.commit().await.unwrap();
    let mut tx = world.db.read().await.unwrap();
    let page: Vec<_> = made.tasks.iter().take(3).map(|task| task.target_id).collect();
    let looks = tx.looks(&page).await.unwrap();
    assert!(looks.keys().copied().collect::<BTreeSet<_>>() == page[1..].iter().copied().collect());
    for (target, look) in looks {
        assert_eq!((look.seen, look.session), (seen_empty(target), session));
        assert_eq!(look.received_at, at(2));
    }
    assert!(tx.looks(&[]).await.unwrap().is_empty());
    let recorded = tx.recorded_of_targets(&page).await.unwrap();
    assert_eq!(recorded.len(), page.len());
    for task in &made.tasks[..3] {
        let (project, one) = &recorded[&task.target_id][0];
        assert_eq!((project, one.sticker), (&shop, digest(task.target.as_str())));
        assert_eq!(one.manifest, made.release.manifest);
    }
    assert!(tx.recorded_of_targets(&[]).await.unwrap().is_empty());
}

fn seen_empty(target_id: TargetId) -> TargetObservation {
    TargetObservation {
        target_id,
        observed_at: at(1),
        busy: false,
        projects: BTreeMap::new(),
        events: Vec::new(),
    }
}
