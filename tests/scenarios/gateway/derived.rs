//! R8: what is recorded as running follows from history alone.

use std::collections::BTreeMap;

use sealift_common::{digest::Digest, id::JobId, job::JobPhase};
use sealift_e2e::fleet::{Fleet, engine};
use sealift_store::{EntityKind, Tx};

use super::stop;

/// The jobs whose history ends in success, in the order in which they did.
async fn succeeded(tx: &mut Tx, jobs: &[JobId]) -> Vec<JobId> {
    let mut ended = Vec::new();
    for job in jobs {
        let history = tx.transitions(EntityKind::Job, job.uuid()).await.unwrap();
        let end = history.last().unwrap();
        if end.to == "succeeded" {
            ended.push((end.at, *job));
        }
    }
    ended.sort_unstable();
    ended.into_iter().map(|(_, job)| job).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_what_is_recorded_can_be_told_from_history_alone() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let agent = fleet.run_agent(&state, engine(&["one", "two"])).unwrap();
    fleet.connected(1).await.unwrap();
    let mut jobs = Vec::new();
    for (content, wanted) in [
        ("one", JobPhase::Succeeded),
        ("two", JobPhase::Succeeded),
        // No registry has it.
        ("three", JobPhase::Failed),
    ] {
        let job = fleet.promote(content).await.unwrap();
        assert_eq!(fleet.end_of(job).await.unwrap(), wanted, "{content}");
        jobs.push(job);
    }

    let mut tx = fleet.running.app.db.read().await.unwrap();
    let mut active: BTreeMap<Digest, JobId> = BTreeMap::new();
    let mut current = BTreeMap::new();
    for id in succeeded(&mut tx, &jobs).await {
        let job = tx.job_by_id(id).await.unwrap().unwrap();
        let release = tx.release(fleet.tenant, job.release_id).await.unwrap().unwrap();
        // The fleet's releases have one component: the newest takes the place of the one before.
        let components = release.components.values();
        active = components.map(|component| (component.digest, id)).collect();
        for task in tx.tasks_of_job(id).await.unwrap() {
            let history = tx.transitions(EntityKind::Task, task.id.uuid()).await.unwrap();
            let packet = tx.packet_of_attempt(task.id, task.attempt).await.unwrap();
            if history.last().unwrap().to == "succeeded" && packet.unwrap().result == "succeeded" {
                current.insert(task.target_id, task.fence);
            }
        }
    }
    let recorded: BTreeMap<Digest, JobId> = tx
        .active(target.environment_id)
        .await
        .unwrap()
        .into_iter()
        .map(|row| (row.digest, row.job))
        .collect();
    assert_eq!(recorded, active);
    assert_eq!(active.keys().next(), Some(&Digest::of(b"two")));
    let found = tx.current(target.id).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(Some(&found[0].recorded.fence), current.get(&target.id));
    drop(tx);
    stop(fleet, vec![agent]).await;
}
