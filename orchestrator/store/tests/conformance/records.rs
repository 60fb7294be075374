//! Observations, stickers, what is recorded and active, drift, packets, logs.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use sealift_common::{
    bounds,
    id::{PacketId, SessionId},
    observation::{ProjectObservation, StickerObservation, TargetObservation},
    order::Fence,
};
use sealift_store::{LogCursor, LogLine, PacketFilter, PacketRow, PageRequest, StoreError};

use crate::{
    harness::{Raw, World, at, conformance},
    seed::{Deployment, Seed, component, digest, project},
};

conformance![
    observations_replace_each_other,
    stickers_are_chained_and_the_newest_is_found,
    what_is_recorded_follows_the_highest_fence,
    r2_one_active_release_per_component,
    r2_projects_that_share_a_component_keep_each_their_own,
    r8_a_component_that_left_the_project_is_not_active_any_more,
    packets_are_kept_byte_for_byte,
    packets_are_filtered_and_paged,
    r7_evidence_cannot_be_changed,
    log_lines_are_kept_once_and_in_order,
    logs_are_bounded,
    readers_of_a_log_miss_no_line,
];

async fn observations_replace_each_other(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let mut seen = TargetObservation {
        target_id: seed.targets[1].id,
        observed_at: at(1),
        busy: true,
        projects: BTreeMap::from([(
            "github.com/acme/shop/api".to_owned(),
            ProjectObservation {
                sticker: StickerObservation::Missing,
                containers: Vec::new(),
            },
        )]),
        events: Vec::new(),
    };
    let mut tx = world.db.write().await.unwrap();
    assert_eq!(tx.observation(seen.target_id).await.unwrap(), None);
    tx.put_observation(&seen, SessionId::new(at(1)), at(1))
        .await
        .unwrap();
    seen.busy = false;
    tx.put_observation(&seen, SessionId::new(at(2)), at(2))
        .await
        .unwrap();
    assert_eq!(
        tx.observation(seen.target_id).await.unwrap().as_ref(),
        Some(&seen)
    );
    assert_eq!(
        tx.observations_of_environment(seed.environment.id).await.unwrap(),
        [seen]
    );
}

async fn stickers_are_chained_and_the_newest_is_found(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let (target, task) = (seed.targets[0].id, made.tasks[0].id);
    let mut tx = world.db.write().await.unwrap();
    assert_eq!(tx.latest_sticker(target, "p/a").await.unwrap(), None);
    let mut previous = None;
    for text in ["one", "two"] {
        let content = text.as_bytes();
        tx.insert_sticker(target, "p/a", task, digest(text), previous, content, at(1))
            .await
            .unwrap();
        previous = Some(digest(text));
    }
    let newest = tx.latest_sticker(target, "p/a").await.unwrap().unwrap();
    assert_eq!((newest.digest, newest.content), (digest("two"), b"two".to_vec()));
    assert_eq!(tx.latest_sticker(target, "p/b").await.unwrap(), None);
}

async fn what_is_recorded_follows_the_highest_fence(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let (old, new) = (
        seed.deployment(&world.db, at(0)).await,
        seed.deployment(&world.db, at(1)).await,
    );
    let target = seed.targets[0].id;
    let shop = project("github.com/acme/shop/api");
    let mut tx = world.db.write().await.unwrap();
    for (made, fence, text) in [
        (&old, 5, "a"),
        (&new, 7, "b"),
        (&old, 6, "late"),
        (&old, 7, "same"),
    ] {
        let (job, task, release) = (made.job.id, made.tasks[0].id, made.release.id);
        tx.set_current(
            target,
            &shop,
            job,
            task,
            release,
            Fence(fence),
            digest("inputs"),
            digest(text),
            at(2),
        )
        .await
        .unwrap();
    }
    let recorded = tx.recorded_of_targets(&[target]).await.unwrap().remove(&target);
    let recorded = recorded.unwrap_or_default();
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0].0, shop);
    assert_eq!(
        (recorded[0].1.fence, recorded[0].1.sticker),
        (Fence(7), digest("b"))
    );
    assert_eq!(recorded[0].1.manifest, new.release.manifest);
    assert_eq!(recorded[0].1.inputs, digest("inputs"));
}

async fn r2_one_active_release_per_component(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let (old, new) = (
        seed.deployment(&world.db, at(0)).await,
        seed.deployment(&world.db, at(1)).await,
    );
    let environment = seed.environment.id;
    let mut tx = world.db.write().await.unwrap();
    assert!(tx.active(environment).await.unwrap().is_empty());
    tx.activate_release(environment, &old.release, old.job.id, at(2))
        .await
        .unwrap();
    tx.activate_release(environment, &new.release, new.job.id, at(3))
        .await
        .unwrap();
    let active = tx.active(environment).await.unwrap();
    assert_eq!(active.len(), 1, "two services of one component are one row");
    assert_eq!(
        (active[0].release, active[0].job, active[0].since),
        (new.release.id, new.job.id, at(3))
    );
    assert_eq!((active[0].number, &active[0].component), (2, &seed.component));
    assert_eq!(active[0].project, new.release.source.project);
    tx.commit().await.unwrap();
    let mut raw = Raw::open(&world.config.url).await;
    // What was replaced names what replaced it, and when.
    let chain = match &raw {
        Raw::Sqlite(_) => {
            "SELECT hex(release_id), COALESCE(hex(superseded_by), ''), \
             CASE WHEN superseded_at IS NULL THEN 'active' ELSE 'superseded' END FROM active_components ORDER BY since"
        }
        Raw::Postgres(_) => {
            "SELECT UPPER(REPLACE(release_id::text, '-', '')), COALESCE(UPPER(REPLACE(superseded_by::text, '-', '')), ''), \
             CASE WHEN superseded_at IS NULL THEN 'active' ELSE 'superseded' END FROM active_components ORDER BY since"
        }
    };
    let id = |release: &sealift_common::release::Release| format!("{:X}", release.id.uuid().simple());
    assert_eq!(
        raw.texts(chain).await,
        [
            (id(&old.release), id(&new.release), "superseded".to_owned()),
            (id(&new.release), String::new(), "active".to_owned())
        ]
    );
    // Not even by hand.
    let refused = raw
        .run(
            "INSERT INTO active_components (environment_id, component_id, project_id, digest, release_id, job_id, since) \
              SELECT environment_id, component_id, project_id, digest, release_id, job_id, since FROM active_components",
        )
        .await;
    assert!(
        refused
            .unwrap_err()
            .as_database_error()
            .unwrap()
            .is_unique_violation()
    );
}

async fn r2_projects_that_share_a_component_keep_each_their_own(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let environment = seed.environment.id;
    let mut tx = world.db.write().await.unwrap();
    tx.activate_release(environment, &made.release, made.job.id, at(1))
        .await
        .unwrap();
    // A cache, say: the same image beside both.
    let other = seed
        .release(&mut tx, "github.com/acme/bank/api", at(2))
        .await
        .unwrap();
    tx.activate_release(environment, &other, made.job.id, at(3))
        .await
        .unwrap();
    let active = tx.active(environment).await.unwrap();
    let mut releases: Vec<_> = active.iter().map(|one| one.release).collect();
    releases.sort();
    let mut wanted = [made.release.id, other.id];
    wanted.sort();
    assert_eq!(releases, wanted);
    assert!(active.iter().all(|one| one.component == seed.component));
}

async fn r8_a_component_that_left_the_project_is_not_active_any_more(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let environment = seed.environment.id;
    let (worker, bank) = (
        component(&seed.tenant, "shop/worker"),
        component(&seed.tenant, "bank/api"),
    );
    let mut tx = world.db.write().await.unwrap();
    for component in [&worker, &bank] {
        tx.insert_component(component).await.unwrap();
    }
    let only = |mut release: sealift_common::release::Release,
                component: &sealift_common::inventory::Component| {
        for part in release.components.values_mut() {
            part.component_id = component.id;
            part.component = component.name.clone();
        }
        release
    };
    // Another project of the same environment keeps what it has.
    let other = seed
        .release(&mut tx, "github.com/acme/bank/api", at(1))
        .await
        .unwrap();
    tx.activate_release(environment, &only(other, &bank), made.job.id, at(1))
        .await
        .unwrap();
    tx.activate_release(environment, &made.release, made.job.id, at(2))
        .await
        .unwrap();
    let next = seed
        .release(&mut tx, "github.com/acme/shop/api", at(3))
        .await
        .unwrap();
    let next = only(next, &worker);
    tx.activate_release(environment, &next, made.job.id, at(3))
        .await
        .unwrap();
    let names = |active: Vec<sealift_store::Active>| -> Vec<String> {
        active.iter().map(|row| row.component.name.to_string()).collect()
    };
    assert_eq!(
        names(tx.active(environment).await.unwrap()),
        ["bank/api", "shop/worker"]
    );
    // And back again.
    tx.activate_release(environment, &made.release, made.job.id, at(4))
        .await
        .unwrap();
    assert_eq!(
        names(tx.active(environment).await.unwrap()),
        ["bank/api", "shop/api"]
    );
}

fn packet(seed: &Seed, made: &Deployment, number: usize, seconds: i64) -> PacketRow {
    PacketRow {
        id: PacketId::new(at(seconds)),
        tenant_id: seed.tenant.id,
        environment_id: seed.environment.id,
        target_id: seed.targets[number].id,
        job_id: made.job.id,
        task_id: made.tasks[number].id,
        attempt: 1,
        agent_id: seed.agent.id,
        result: "succeeded".to_owned(),
        digest: digest("packet"),
        envelope: vec![0, 159, 146, 150],
        created_at: at(seconds),
    }
}

async fn packets_are_kept_byte_for_byte(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let packet = packet(&seed, &made, 0, 5);
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[0], at(1)).await.unwrap();
    tx.insert_packet(&packet).await.unwrap();
    assert_eq!(
        tx.packet(seed.tenant.id, packet.id).await.unwrap().as_ref(),
        Some(&packet)
    );
    assert_eq!(
        tx.packet_of_attempt(task.id, 1).await.unwrap().as_ref(),
        Some(&packet)
    );
    assert_eq!(tx.packet_of_attempt(task.id, 2).await.unwrap(), None);
    let again = PacketRow {
        id: PacketId::new(at(6)),
        ..packet
    };
    let refused = tx.insert_packet(&again).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Duplicate {
                constraint: "packet_of_attempt"
            })
        ),
        "{refused:?}"
    );
}

async fn packets_are_filtered_and_paged(world: World) {
    let seed = Seed::sow(&world.db, "acme", 3).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let mut packets = Vec::new();
    for number in 0..3 {
        seed.assign(&mut tx, &made.tasks[number], at(1)).await.unwrap();
        let packet = packet(&seed, &made, number, number as i64);
        tx.insert_packet(&packet).await.unwrap();
        packets.insert(0, packet);
    }
    let (job, environment) = (Some(made.job.id), Some(seed.environment.id));
    let all = PacketFilter::default();
    for filter in [
        all,
        PacketFilter { job, ..all },
        PacketFilter { environment, ..all },
        PacketFilter {
            job,
            environment,
            ..all
        },
    ] {
        let first = tx
            .list_packets(seed.tenant.id, filter, true, &PageRequest::first(2))
            .await
            .unwrap();
        assert_eq!(first.items, packets[..2]);
        let request = PageRequest {
            size: 2,
            after: first.next,
        };
        let rest = tx
            .list_packets(seed.tenant.id, filter, true, &request)
            .await
            .unwrap();
        assert_eq!((rest.items, rest.next), (packets[2..].to_vec(), None));
    }
    let target = Some(seed.targets[0].id);
    for filter in [
        PacketFilter { target, ..all },
        PacketFilter {
            job,
            environment,
            target,
        },
    ] {
        let found = tx
            .list_packets(seed.tenant.id, filter, true, &PageRequest::first(9))
            .await
            .unwrap();
        assert_eq!(found.items, packets[2..]);
        let without = tx
            .list_packets(seed.tenant.id, filter, false, &PageRequest::first(9))
            .await
            .unwrap();
        let packet = PacketRow {
            envelope: Vec::new(),
            ..packets[2].clone()
        };
        assert_eq!(without.items, [packet]);
    }
}

async fn r7_evidence_cannot_be_changed(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let task = seed.assign(&mut tx, &made.tasks[0], at(1)).await.unwrap();
    tx.insert_packet(&packet(&seed, &made, 0, 5)).await.unwrap();
    tx.insert_sticker(task.target_id, "p/a", task.id, digest("s"), None, b"s", at(5))
        .await
        .unwrap();
    tx.insert_decision(&sealift_store::DecisionRow {
        id: sealift_common::id::DecisionId::new(at(1)),
        promotion_id: made.promotion.id,
        digest: digest("d"),
        record: b"d".to_vec(),
        passed: true,
        created_at: at(1),
    })
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let mut raw = Raw::open(&world.config.url).await;
    for sql in [
        "UPDATE packets SET result = 'failed'",
        "DELETE FROM packets",
        "UPDATE stickers SET project = 'x'",
        "DELETE FROM stickers",
        "UPDATE decisions SET digest = 'x'",
        "DELETE FROM decisions",
    ] {
        let refused = raw.run(sql).await.unwrap_err().to_string();
        assert!(refused.contains("insert-only"), "{sql}: {refused}");
    }
}

fn line(seq: u64, text: &str) -> LogLine {
    LogLine {
        seq,
        source: "api".to_owned(),
        text: text.to_owned(),
        at: at(0) + TimeDelta::milliseconds(seq as i64),
        truncated: false,
    }
}

async fn log_lines_are_kept_once_and_in_order(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let (job, one, two) = (made.job.id, made.tasks[0].id, made.tasks[1].id);
    let mut tx = world.db.write().await.unwrap();
    tx.append_logs(one, job, 1, &[line(1, "a"), line(2, "b\0c")])
        .await
        .unwrap();
    tx.append_logs(two, job, 1, &[line(1, "x")]).await.unwrap();
    let state = tx
        .append_logs(one, job, 1, &[line(2, "again"), line(4, "d"), line(4, "twice")])
        .await
        .unwrap();
    assert!(!state.truncated);
    tx.append_logs(one, job, 1, &[line(3, "late")]).await.unwrap();
    tx.append_logs(one, job, 1, &[]).await.unwrap();
    let all = tx.logs(job, None, None, 99).await.unwrap();
    let told: Vec<_> = all
        .iter()
        .map(|line| (line.cursor.0, line.seq, line.text.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (1, 1, "a"),
            (2, 2, "b\u{fffd}c"),
            (3, 1, "x"),
            (4, 4, "d"),
            (5, 3, "late")
        ]
    );
    // Told again as a whole, after a restart: nothing is stored or counted twice, and what is new follows as it came.
    let before = tx.append_logs(one, job, 1, &[]).await.unwrap();
    let again = [line(4, "d"), line(3, "late"), line(2, "b"), line(1, "a")];
    assert_eq!(tx.append_logs(one, job, 1, &again).await.unwrap(), before);
    let new = [line(9, "e"), line(1, "a"), line(7, "f")];
    let counted = tx.append_logs(one, job, 1, &new).await.unwrap().bytes - before.bytes;
    assert_eq!(counted, 2 * (1 + bounds::LOG_LINE_OVERHEAD) as u64);
    let newest = tx.logs(job, None, Some(LogCursor(5)), 99).await.unwrap();
    let newest: Vec<_> = newest.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(newest, ["e", "f"]);
    let after = tx.logs(job, Some(one), Some(LogCursor(2)), 1).await.unwrap();
    assert_eq!((after.len(), after[0].text.as_str()), (1, "d"));
    assert_eq!(
        (after[0].task_id, after[0].attempt, after[0].at),
        (one, 1, line(4, "").at)
    );
}

async fn logs_are_bounded(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let (job, task) = (made.job.id, made.tasks[0].id);
    let full = "ä".repeat(bounds::LOG_LINE_BYTES);
    let lines: Vec<_> = (1..=200).map(|seq| line(seq, &full)).collect();
    let mut tx = world.db.write().await.unwrap();
    let state = tx.append_logs(task, job, 1, &lines).await.unwrap();
    assert!(state.truncated && state.bytes <= bounds::ATTEMPT_LOG_BYTES as u64);
    let stored = tx.logs(job, None, None, 999).await.unwrap();
    let bytes: usize = stored.iter().map(|line| line.text.len()).sum();
    let counted = bytes + stored.len() * bounds::LOG_LINE_OVERHEAD;
    assert_eq!(counted as u64, state.bytes);
    let marked: Vec<_> = stored.iter().map(|line| line.truncated).collect();
    assert!(marked[marked.len() - 1] && !marked[..marked.len() - 1].contains(&true));
    let same = tx.append_logs(task, job, 1, &[line(999, "more")]).await.unwrap();
    assert_eq!(same, state);
    // What the agent left out is marked where it was, and ends nothing.
    let gap = LogLine {
        truncated: true,
        ..line(2, "8 lines were left out here")
    };
    let state = tx
        .append_logs(task, job, 3, &[line(1, "a"), gap, line(3, "b")])
        .await
        .unwrap();
    assert!(!state.truncated);
    let stored = tx.logs(job, None, None, 999).await.unwrap();
    let marked: Vec<_> = stored
        .iter()
        .filter(|line| line.attempt == 3)
        .map(|line| (line.text.as_str(), line.truncated))
        .collect();
    assert_eq!(
        marked,
        [("a", false), ("8 lines were left out here", true), ("b", false)]
    );
    // Another attempt has room of its own.
    assert!(
        !tx.append_logs(task, job, 2, &[line(1, "more")])
            .await
            .unwrap()
            .truncated
    );
}

async fn readers_of_a_log_miss_no_line(world: World) {
    let seed = Seed::sow(&world.db, "acme", 4).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let job = made.job.id;
    let write = async |number: usize| {
        for seq in 1..=10 {
            let mut tx = world.db.write().await.unwrap();
            tx.append_logs(made.tasks[number].id, job, 1, &[line(seq, "x")])
                .await
                .unwrap();
            tx.commit().await.unwrap();
        }
    };
    let follow = async || {
        let mut seen = Vec::new();
        while seen.len() < 40 {
            let mut tx = world.db.read().await.unwrap();
            let after = seen.last().copied().map(LogCursor);
            seen.extend(
                tx.logs(job, None, after, 7)
                    .await
                    .unwrap()
                    .iter()
                    .map(|line| line.cursor.0),
            );
            tokio::task::yield_now().await;
        }
        seen
    };
    let writers = futures::future::join_all((0..4).map(write));
    let (_, seen) = futures::join!(writers, follow());
    assert_eq!(seen, (1..=40).collect::<Vec<_>>());
}
