//! Tasks: one live task per target, leases, retries, attempts, history.

use sealift_common::{
    digest::Digest,
    id::{AgentId, PacketId},
    order::Fence,
    task::{SkipReason, TaskEvent, TaskPhase, TaskState, TaskStep, Wanted},
};
use sealift_store::{Change, Cursor, EntityKind, LEASE_AFTER_RETURN, PageRequest, StoreError, TaskFilter};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, failure, note},
};

conformance![
    thousands_of_tasks_are_written_at_once,
    an_assigned_task_has_order_attempt_and_lease,
    r1_the_database_refuses_a_second_live_task_on_a_target,
    r1_two_dispatchers_at_once_assign_one_task,
    a_job_has_one_task_per_target,
    live_tasks_are_counted_for_many_agents_at_once,
    a_lost_update_of_a_task_is_a_conflict,
    a_task_carries_the_data_of_its_state,
    leases_end_with_the_states_that_have_none,
    live_tasks_of_revoked_agents_are_found,
    agents_that_have_something_to_do_are_found_in_pages,
    leases_only_grow,
    a_task_that_returns_has_a_lease_again,
    retries_come_due,
    r14_an_attempt_is_overdue_until_it_ends_or_is_lost,
    what_is_wanted_is_kept_with_a_trace,
    attempts_end_once,
    pages_of_tasks_are_all_tasks_and_counts_agree,
    task_changes_name_job_and_agent,
];

async fn thousands_of_tasks_are_written_at_once(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1200).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.read().await.unwrap();
    let stored = tx.tasks_of_job(made.job.id).await.unwrap();
    assert_eq!(stored.len(), 1200);
    assert!(stored.is_sorted_by_key(|task| (task.wave, task.target.clone())));
    assert_eq!(
        tx.task(made.tasks[7].id).await.unwrap().as_ref(),
        Some(&made.tasks[7])
    );
}

async fn live_tasks_are_counted_for_many_agents_at_once(world: World) {
    let seed = Seed::sow(&world.db, "acme", 3).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    for task in &made.tasks[..2] {
        seed.assign(&mut tx, task, at(1)).await.unwrap();
    }
    let nobody = AgentId::new(at(0));
    let counted = tx.count_live_tasks_of_agents(&[seed.agent.id, nobody]).await;
    assert_eq!(counted.unwrap(), [(seed.agent.id, 2)].into());
    assert!(tx.count_live_tasks_of_agents(&[]).await.unwrap().is_empty());
}

async fn a_job_has_one_task_per_target(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    // Also not in another wave.
    let second = seed.new_task(&made.job, &seed.targets[0], 1, at(1));
    let refused = tx.insert_tasks(&[second]).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Duplicate {
                constraint: "task_target"
            })
        ),
        "{refused:?}"
    );
}

async fn an_assigned_task_has_order_attempt_and_lease(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[0], at(1)).await.unwrap();
    assert_eq!(
        (&task.state, task.attempt, task.fence),
        (&TaskState::Assigned, 1, Fence(1))
    );
    assert_eq!(
        (task.agent_id, task.lease_until),
        (Some(seed.agent.id), Some(at(31)))
    );
    assert_eq!((task.started_at, task.version), (Some(at(1)), 1));
    assert_eq!(tx.task(task.id).await.unwrap().as_ref(), Some(&task));
    assert_eq!(
        tx.live_task_on_target(task.target_id).await.unwrap().as_ref(),
        Some(&task)
    );
    assert_eq!(
        tx.live_tasks_of_agent(seed.agent.id).await.unwrap(),
        std::slice::from_ref(&task)
    );
    assert_eq!(tx.tasks_of_job(made.job.id).await.unwrap()[0].order, None);
    let attempts = tx.attempts(task.id).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(
        (attempts[0].number, attempts[0].fence, attempts[0].started_at),
        (1, Fence(1), at(1))
    );
    assert_eq!(attempts[0].order_digest, Digest::of(task.order.as_ref().unwrap()));
}

async fn r1_the_database_refuses_a_second_live_task_on_a_target(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let (first, second) = (
        seed.deployment(&world.db, at(0)).await,
        seed.deployment(&world.db, at(1)).await,
    );
    let mut tx = world.db.write().await.unwrap();
    let mut task = seed.assign(&mut tx, &first.tasks[0], at(2)).await.unwrap();
    tx.commit().await.unwrap();
    // Whatever the live state is, the target is taken; once it has ended, it is free.
    let failed = TaskEvent::AttemptFailed { failure: failure() };
    for event in [TaskEvent::Accepted, TaskEvent::LeaseExpired, failed] {
        let mut tx = world.db.write().await.unwrap();
        task = tx.apply_task_event(&task, &event, "x", at(3)).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = world.db.write().await.unwrap();
        let refused = seed.assign(&mut tx, &second.tasks[0], at(4)).await;
        let Err(StoreError::Duplicate { constraint }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(constraint, "one_live_task_per_target");
    }
    let mut tx = world.db.write().await.unwrap();
    tx.apply_task_event(&task, &TaskEvent::Succeeded, "x", at(5))
        .await
        .unwrap();
    seed.assign(&mut tx, &second.tasks[0], at(6)).await.unwrap();
}

async fn r1_two_dispatchers_at_once_assign_one_task(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let (first, second) = (
        seed.deployment(&world.db, at(0)).await,
        seed.deployment(&world.db, at(1)).await,
    );
    let assign = async |task| {
        let mut tx = world.db.write().await?;
        seed.assign(&mut tx, task, at(2)).await?;
        tx.commit().await
    };
    let (one, two) = futures::join!(assign(&first.tasks[0]), assign(&second.tasks[0]));
    assert!(one.is_ok() ^ two.is_ok(), "{one:?} {two:?}");
    let lost = one.and(two);
    assert!(
        matches!(
            lost,
            Err(StoreError::Duplicate {
                constraint: "one_live_task_per_target"
            })
        ),
        "{lost:?}"
    );
}

async fn a_lost_update_of_a_task_is_a_conflict(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let assign = async || {
        let mut tx = world.db.write().await?;
        seed.assign(&mut tx, &made.tasks[0], at(2)).await?;
        tx.commit().await
    };
    let withdraw = async || {
        let mut tx = world.db.write().await?;
        tx.apply_task_event(&made.tasks[0], &TaskEvent::Withdrawn, "x", at(2))
            .await?;
        tx.commit().await
    };
    let (one, two) = futures::join!(assign(), withdraw());
    assert!(one.is_ok() ^ two.is_ok(), "{one:?} {two:?}");
    let lost = one.and(two);
    assert!(matches!(lost, Err(StoreError::Conflict)), "{lost:?}");
    let mut tx = world.db.read().await.unwrap();
    assert_eq!(
        tx.transitions(EntityKind::Task, made.tasks[0].id.uuid())
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn a_task_carries_the_data_of_its_state(world: World) {
    let seed = Seed::sow(&world.db, "acme", 4).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let skip = TaskEvent::Skipped {
        reason: SkipReason::EarlierWaveFailed,
    };
    let skipped = tx
        .apply_task_event(&made.tasks[0], &skip, "x", at(1))
        .await
        .unwrap();
    let withdrawn = tx
        .apply_task_event(&made.tasks[1], &TaskEvent::Withdrawn, "x", at(1))
        .await
        .unwrap();
    let assigned = seed.assign(&mut tx, &made.tasks[2], at(1)).await.unwrap();
    let failed = TaskEvent::Failed { failure: failure() };
    let failed = tx.apply_task_event(&assigned, &failed, "x", at(2)).await.unwrap();
    let assigned = seed.assign(&mut tx, &made.tasks[3], at(1)).await.unwrap();
    let step = TaskStep::Pulling;
    let running = tx
        .apply_task_event(&assigned, &TaskEvent::Progressed { step }, "x", at(2))
        .await
        .unwrap();
    assert_eq!(
        skipped.state,
        TaskState::Skipped {
            reason: SkipReason::EarlierWaveFailed
        }
    );
    assert_eq!(withdrawn.state, TaskState::Cancelled);
    assert_eq!(failed.state, TaskState::Failed { failure: failure() });
    assert_eq!(running.state, TaskState::Running { step });
    assert_eq!((failed.finished_at, running.finished_at), (Some(at(2)), None));
    for task in [skipped, withdrawn, failed, running] {
        assert_eq!(tx.task(task.id).await.unwrap(), Some(task));
    }
}

async fn leases_end_with_the_states_that_have_none(world: World) {
    let seed = Seed::sow(&world.db, "acme", 3).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let accepted = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let accepted = tx
        .apply_task_event(&accepted, &TaskEvent::Accepted, "x", at(1))
        .await
        .unwrap();
    assert_eq!(accepted.lease_until, Some(at(30)), "kept");
    assert!(tx.expired_leases(at(30), 9).await.unwrap().is_empty());
    let expired = tx.expired_leases(at(31), 9).await.unwrap();
    assert_eq!(
        expired.iter().map(|task| task.id).collect::<Vec<_>>(),
        [accepted.id]
    );
    let lost = tx
        .apply_task_event(&accepted, &TaskEvent::LeaseExpired, "x", at(31))
        .await
        .unwrap();
    assert_eq!((&lost.state, lost.lease_until), (&TaskState::Lost, None));
    assert!(tx.expired_leases(at(99), 9).await.unwrap().is_empty());
    let done = seed.assign(&mut tx, &made.tasks[1], at(0)).await.unwrap();
    let done = tx
        .apply_task_event(&done, &TaskEvent::Succeeded, "x", at(1))
        .await
        .unwrap();
    assert_eq!(done.lease_until, None);
    let waiting = seed.assign(&mut tx, &made.tasks[2], at(0)).await.unwrap();
    let event = TaskEvent::AttemptFailed { failure: failure() };
    assert_eq!(
        tx.apply_task_event(&waiting, &event, "x", at(1))
            .await
            .unwrap()
            .lease_until,
        None
    );
}

async fn live_tasks_of_revoked_agents_are_found(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let live = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let ended = seed.assign(&mut tx, &made.tasks[1], at(0)).await.unwrap();
    tx.apply_task_event(&ended, &TaskEvent::Succeeded, "x", at(1))
        .await
        .unwrap();
    assert!(tx.live_tasks_of_revoked_agents(9).await.unwrap().is_empty());
    tx.revoke_agent(seed.agent.id, &note("lost", 2)).await.unwrap();
    let found = tx.live_tasks_of_revoked_agents(9).await.unwrap();
    assert_eq!(found.iter().map(|task| task.id).collect::<Vec<_>>(), [live.id]);
}

async fn agents_that_have_something_to_do_are_found_in_pages(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    assert!(tx.agents_with_live_tasks(None, 9).await.unwrap().is_empty());
    let one = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    seed.assign(&mut tx, &made.tasks[1], at(0)).await.unwrap();
    assert_eq!(
        tx.agents_with_live_tasks(None, 9).await.unwrap(),
        [seed.agent.id],
        "once"
    );
    let after = tx.agents_with_live_tasks(Some(seed.agent.id), 9).await.unwrap();
    assert!(after.is_empty(), "{after:?}");
    tx.apply_task_event(&one, &TaskEvent::Succeeded, "x", at(1))
        .await
        .unwrap();
    assert_eq!(tx.agents_with_live_tasks(None, 1).await.unwrap(), [seed.agent.id]);
}

async fn leases_only_grow(world: World) {
    let seed = Seed::sow(&world.db, "acme", 3).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let one = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let two = seed.assign(&mut tx, &made.tasks[1], at(0)).await.unwrap();
    let two = tx
        .apply_task_event(&two, &TaskEvent::LeaseExpired, "x", at(31))
        .await
        .unwrap();
    tx.extend_leases(&[one.id, two.id, made.tasks[2].id], at(60))
        .await
        .unwrap();
    tx.extend_leases(&[one.id], at(50)).await.unwrap();
    tx.extend_leases(&[], at(99)).await.unwrap();
    let extended = tx.task(one.id).await.unwrap().unwrap();
    assert_eq!(
        (extended.lease_until, extended.version),
        (Some(at(60)), one.version)
    );
    assert_eq!(tx.task(two.id).await.unwrap().unwrap().lease_until, None, "lost");
    assert_eq!(
        tx.task(made.tasks[2].id).await.unwrap().unwrap().lease_until,
        None,
        "pending"
    );
    // The version has not moved, so what was read before the extension still counts.
    tx.apply_task_event(&one, &TaskEvent::Accepted, "x", at(40))
        .await
        .unwrap();
    assert_eq!(tx.task(one.id).await.unwrap().unwrap().lease_until, Some(at(60)));
}

async fn a_task_that_returns_has_a_lease_again(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let lost = tx
        .apply_task_event(&task, &TaskEvent::LeaseExpired, "x", at(31))
        .await
        .unwrap();
    let step = TaskStep::HealthWait;
    let back = tx
        .apply_task_event(&lost, &TaskEvent::Progressed { step }, "x", at(90))
        .await
        .unwrap();
    assert_eq!(back.lease_until, Some(at(90) + LEASE_AFTER_RETURN));
}

async fn r14_an_attempt_is_overdue_until_it_ends_or_is_lost(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let one = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let two = seed.assign(&mut tx, &made.tasks[1], at(1)).await.unwrap();
    assert!(tx.overdue_tasks(at(3_600), 9).await.unwrap().is_empty());
    // However often the agent is heard.
    tx.extend_leases(&[one.id, two.id], at(9_000)).await.unwrap();
    let overdue = tx.overdue_tasks(at(4_000), 9).await.unwrap();
    assert_eq!(
        overdue.iter().map(|task| task.id).collect::<Vec<_>>(),
        [one.id, two.id]
    );
    assert_eq!(tx.overdue_tasks(at(4_000), 1).await.unwrap().len(), 1);
    tx.apply_task_event(&one, &TaskEvent::LeaseExpired, "orchestrator", at(4_000))
        .await
        .unwrap();
    let event = TaskEvent::AttemptFailed { failure: failure() };
    tx.apply_task_event(&two, &event, "agent/1", at(4_000))
        .await
        .unwrap();
    assert!(tx.overdue_tasks(at(9_000), 9).await.unwrap().is_empty());
}

async fn retries_come_due(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let event = TaskEvent::AttemptFailed { failure: failure() };
    let waiting = tx
        .apply_task_event(&task, &event, "agent/1", at(1))
        .await
        .unwrap();
    let waiting = tx
        .set_task_retry(&waiting, at(10), "orchestrator", at(1))
        .await
        .unwrap();
    let again = seed.assign(&mut tx, &waiting, at(10)).await.unwrap();
    assert_eq!((again.attempt, again.fence, again.retry_at), (2, Fence(2), None));
    assert_eq!(
        (&again.state, again.started_at),
        (
            &TaskState::Running {
                step: TaskStep::Received
            },
            Some(at(0))
        )
    );
    assert_eq!(tx.attempts(task.id).await.unwrap().len(), 2);
    let refused = tx.set_task_retry(&again, at(20), "x", at(11)).await;
    assert!(matches!(refused, Err(StoreError::Check(_))), "{refused:?}");
}

async fn what_is_wanted_is_kept_with_a_trace(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let stopping = tx
        .set_task_wanted(&task, Wanted::Stop, "user/alice", at(1))
        .await
        .unwrap();
    assert_eq!((stopping.wanted, stopping.version), (Wanted::Stop, 2));
    assert_eq!(stopping.order, task.order);
    assert_eq!(
        tx.set_task_wanted(&stopping, Wanted::Stop, "x", at(2))
            .await
            .unwrap(),
        stopping
    );
    assert_eq!(tx.task(task.id).await.unwrap(), Some(stopping));
    let history = tx.transitions(EntityKind::Task, task.id.uuid()).await.unwrap();
    assert_eq!((history.len(), history[1].event.as_str()), (2, "wanted_stop"));
}

async fn attempts_end_once(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let packet = PacketId::new(at(0));
    tx.finish_attempt(task.id, 1, "succeeded", None, at(5))
        .await
        .unwrap();
    tx.finish_attempt(task.id, 1, "succeeded", Some(packet), at(9))
        .await
        .unwrap();
    let attempts = tx.attempts(task.id).await.unwrap();
    assert_eq!(
        (attempts[0].result.as_str(), attempts[0].packet_id),
        ("succeeded", Some(packet))
    );
    assert_eq!(attempts[0].finished_at, Some(at(5)));
}

async fn pages_of_tasks_are_all_tasks_and_counts_agree(world: World) {
    let seed = Seed::sow(&world.db, "acme", 25).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let other = made.job.id;
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[3], at(1)).await.unwrap();
    let packet = PacketId::new(at(0));
    tx.finish_attempt(task.id, 1, "succeeded", Some(packet), at(5))
        .await
        .unwrap();
    let all = tx.tasks_of_job(other).await.unwrap();
    let (mut read, mut page) = (Vec::new(), PageRequest::first(7));
    loop {
        let found = tx.list_tasks(other, &TaskFilter::default(), &page).await.unwrap();
        assert!(found.items.len() <= 7);
        read.extend(found.items);
        let Some(next) = found.next else { break };
        page.after = Some(next);
    }
    assert_eq!(read, all);
    let assigned = TaskFilter {
        phase: Some(TaskPhase::Assigned),
        target: None,
    };
    let first = PageRequest::first(7);
    let found = tx.list_tasks(other, &assigned, &first).await.unwrap().items;
    assert_eq!(found.iter().map(|task| task.id).collect::<Vec<_>>(), [task.id]);
    let of_target = TaskFilter {
        phase: None,
        target: Some(made.tasks[9].target.clone()),
    };
    let found = tx.list_tasks(other, &of_target, &first).await.unwrap().items;
    assert_eq!(
        found.iter().map(|task| task.id).collect::<Vec<_>>(),
        [made.tasks[9].id]
    );
    let counts = tx.count_tasks(other).await.unwrap();
    assert_eq!(
        counts,
        [(TaskPhase::Pending, 24), (TaskPhase::Assigned, 1)].into()
    );
    let packets = tx.packets_of_tasks(&[task.id, made.tasks[0].id]).await.unwrap();
    assert_eq!(packets, [(task.id, vec![packet])].into());
    assert!(tx.packets_of_tasks(&[]).await.unwrap().is_empty());
    let strange = PageRequest {
        size: 7,
        after: Some(Cursor::from_text("of another list")),
    };
    let refused = tx.list_tasks(other, &TaskFilter::default(), &strange).await;
    assert!(matches!(refused, Err(StoreError::InvalidCursor)));
}

async fn task_changes_name_job_and_agent(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut changes = world.db.changes();
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    tx.commit().await.unwrap();
    let change = Change::Task {
        job: made.job.id,
        task: task.id,
        agent: Some(seed.agent.id),
    };
    assert_eq!(changes.try_recv().unwrap(), change);
}
