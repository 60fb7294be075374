//! What an agent of these tests reports of its host.

use chrono::{DateTime, Utc};
use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    id::TargetId,
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, ProjectObservation, StickerObservation,
        TargetObservation,
    },
    release::Release,
    time::Clock as _,
};
use sealift_store::Task;

use crate::world::World;

/// What the host looks like after the task.
fn observation(task: &Task, release: &Release, sticker: Digest, now: DateTime<Utc>) -> TargetObservation {
    let containers = release
        .manifest
        .images()
        .into_iter()
        .map(|(service, image)| ContainerObservation {
            id: task.id.to_string(),
            service: service.clone(),
            fence: task.fence,
            image_id: "image".into(),
            digest: Some(image.digest),
            config: release.manifest.config_of(service).unwrap(),
            unchanged: true,
            state: ContainerState::Running,
            health: ContainerHealth::Healthy,
        })
        .collect();
    let sticker = StickerObservation::Present {
        digest: sticker,
        release: release.content,
        fence: task.fence,
    };
    let project = ProjectObservation { sticker, containers };
    TargetObservation {
        target_id: task.target_id,
        observed_at: now,
        busy: false,
        projects: [(release.source.project.to_string(), project)].into(),
        events: Vec::new(),
    }
}

/// The first container of every project has ended.
pub fn stopped(seen: &mut TargetObservation) {
    for project in seen.projects.values_mut() {
        project.containers[0].state = ContainerState::Exited;
    }
}

/// The sticker that a task leaves.
pub fn sticker_of(task: &Task) -> Digest {
    Digest::of(task.id.to_string().as_bytes())
}

impl World {
    /// One agent tells what its host looks like after the task; other projects are there as before.
    pub async fn look(&self, task: &Task) {
        let mut tx = self.core.db.write().await.unwrap();
        let now = self.clock.now();
        let task = tx.task(task.id).await.unwrap().unwrap();
        let job = tx.job_by_id(task.job_id).await.unwrap().unwrap();
        let release = tx.release(self.tenant, job.release_id).await.unwrap().unwrap();
        let mut seen = observation(&task, &release, sticker_of(&task), now);
        if let Some(before) = tx.observation(task.target_id).await.unwrap() {
            for (project, one) in before.projects {
                seen.projects.entry(project).or_insert(one);
            }
        }
        let session = self.session_for(&mut tx, task.target_id).await;
        tx.put_observation(&seen, session, now).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// What a host looks like is not what it was: told now.
    pub async fn tamper(&self, target: TargetId, change: impl FnOnce(&mut TargetObservation)) {
        let mut tx = self.core.db.write().await.unwrap();
        let mut seen = tx.observation(target).await.unwrap().unwrap();
        change(&mut seen);
        let session = self.session_for(&mut tx, target).await;
        tx.put_observation(&seen, session, self.clock.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
}
