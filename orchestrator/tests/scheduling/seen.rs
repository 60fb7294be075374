//! What an agent of these tests reports of its host.

use chrono::{DateTime, Utc};
use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, ProjectObservation, StickerObservation,
        TargetObservation,
    },
    release::Release,
};
use sealift_store::Task;

/// What the host looks like after the task.
pub fn observation(task: &Task, release: &Release, sticker: Digest, now: DateTime<Utc>) -> TargetObservation {
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
