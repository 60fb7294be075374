//! What an agent sees on its host: sticker and runtime, per target and project. Facts only; judging them is [`crate::drift`].

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    id::TargetId,
    name::{ProjectRef, ServiceName},
    order::Fence,
    phases,
};

phases! {
    /// What the engine says about a container.
    ContainerState {
        Created = "created", Running = "running", Restarting = "restarting", Paused = "paused",
        Exited = "exited", Dead = "dead", Removing = "removing", Unknown = "unknown",
    }
}

phases! {
    /// What the engine's health check says.
    ContainerHealth {
        None = "none", Starting = "starting", Healthy = "healthy", Unhealthy = "unhealthy",
    }
}

/// One container that carries the labels of this target. In order of their identifiers; what follows only orders lists of an agent
/// that says one twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerObservation {
    /// The engine's identifier.
    pub id: String,
    /// The service that its label names.
    pub service: ServiceName,
    /// Fencing token of the order that made it, from its label.
    pub fence: Fence,
    /// Image identifier of the running container (the engine's configuration digest).
    pub image_id: String,
    /// The registry digest under which the engine knows that image; `None` when it knows none.
    pub digest: Option<Digest>,
    /// Digest of the service's description, from its label.
    pub config: Option<Digest>,
    /// Whether what the engine reports still equals what it reported when the attempt was committed.
    pub unchanged: bool,
    /// State.
    pub state: ContainerState,
    /// Health.
    pub health: ContainerHealth,
}

/// The sticker file as found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "sticker", rename_all = "snake_case")]
pub enum StickerObservation {
    /// There is none.
    Missing,
    /// There is one that cannot be read as a sticker.
    Unreadable {
        /// Digest of its bytes.
        digest: Digest,
    },
    /// There is one.
    Present {
        /// Its digest.
        digest: Digest,
        /// Content digest of the release that it names.
        release: Digest,
        /// Fencing token that it names.
        fence: Fence,
    },
}

phases! {
    /// What the engine says happened to a container.
    EngineAction {
        Create = "create", Start = "start", Die = "die", Stop = "stop", Destroy = "destroy", Rename = "rename",
        Update = "update", Pause = "pause", Unpause = "unpause", Oom = "oom",
    }
}

/// Something that happened to a container while no task of ours was under way. Engines do not say who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineEvent {
    /// What happened.
    pub action: EngineAction,
    /// The engine's identifier of the container.
    pub container: String,
    /// The project that its label names (`repository/project`).
    pub project: String,
    /// The service that its label names.
    pub service: ServiceName,
    /// When, by the engine's clock.
    pub at: DateTime<Utc>,
}

/// One project on one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectObservation {
    /// The sticker file.
    pub sticker: StickerObservation,
    /// Containers with the labels of this target and project.
    pub containers: Vec<ContainerObservation>,
}

impl ProjectObservation {
    /// What a project looks like of which there is nothing.
    pub const fn nothing() -> Self {
        Self {
            sticker: StickerObservation::Missing,
            containers: Vec::new(),
        }
    }
}

/// All that an agent sees of one target at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetObservation {
    /// The target.
    pub target_id: TargetId,
    /// When, by the host's clock.
    pub observed_at: DateTime<Utc>,
    /// A task is under way, so that a mixture is to be expected.
    pub busy: bool,
    /// By project (`repository/project`).
    pub projects: BTreeMap<String, ProjectObservation>,
    /// What the engine said since the observation before, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EngineEvent>,
}

impl TargetObservation {
    /// What one project looks like here.
    pub fn project(&self, project: &ProjectRef) -> Option<&ProjectObservation> {
        self.projects.get(&project.to_string())
    }
}
