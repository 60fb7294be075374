//! Sticker: the JSON file on a target that says what runs there and by whose decision, chained to the sticker before it.
//!
//! One file per target and project. Its bytes are the canonical JSON of [`Sticker`] and a line feed; [`Sticker::digest`] covers
//! the canonical bytes. The evidence packet of the attempt names that digest, so a sticker is as trustworthy as the packet.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    any_manifest::Described,
    canonical::{self, CanonicalError},
    digest::Digest,
    id::{AgentId, JobId, TargetId, TaskId},
    manifest::PinnedImage,
    name::{Name, ServiceName},
    order::{DecisionRef, Fence, Order, ReleaseRef},
};

/// What a sticker says about one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StickerService {
    /// The image.
    pub image: PinnedImage,
    /// Digest of the service's whole description.
    pub config: Digest,
}

/// How a sticker follows the one that was reported before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// There was none, and it names none.
    First,
    /// It names the one before it.
    Linked,
    /// It names another one: somebody wrote to the file, or a report never came.
    Broken,
}

impl Link {
    /// Of the sticker that one names and the one that was reported before it.
    pub fn of(named: Option<Digest>, reported: Option<Digest>) -> Self {
        match (named, reported) {
            (None, None) => Self::First,
            (Some(named), Some(reported)) if named == reported => Self::Linked,
            _ => Self::Broken,
        }
    }
}

/// What runs on a target, by whose decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sticker {
    /// Tenant.
    pub tenant: Name,
    /// Environment.
    pub environment: Name,
    /// Target.
    pub target: Name,
    /// Target.
    pub target_id: TargetId,
    /// The agent that wrote it.
    pub agent_id: AgentId,
    /// Job, task and attempt that put it there.
    pub job_id: JobId,
    /// The task.
    pub task_id: TaskId,
    /// The attempt.
    pub attempt: u32,
    /// Fencing token of the order.
    pub fence: Fence,
    /// Who decided.
    pub decision: DecisionRef,
    /// The release.
    pub release: ReleaseRef,
    /// Digest over content and variables of the order.
    pub inputs: Digest,
    /// Digest of the compose file as the host's Compose resolved and locked it; only on compose hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compose_lock: Option<Digest>,
    /// What runs.
    pub services: BTreeMap<ServiceName, StickerService>,
    /// When it was written, by the host's clock.
    pub written_at: DateTime<Utc>,
    /// Digest of the sticker before it for this target and project; absent on the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
}

impl Sticker {
    /// The sticker for a carried-out order. `compose_lock` is what a compose host made of the order's file.
    pub fn of<M: Described>(
        order: &Order<M>,
        compose_lock: Option<Digest>,
        written_at: DateTime<Utc>,
        previous: Option<Digest>,
    ) -> Result<Self, CanonicalError> {
        let services = order
            .manifest
            .images()
            .into_iter()
            .filter_map(|(name, image)| {
                let config = order.manifest.config_of(name).transpose()?;
                let image = image.clone();
                Some(config.map(|config| (name.clone(), StickerService { image, config })))
            })
            .collect::<Result<_, CanonicalError>>()?;
        Ok(Self {
            tenant: order.tenant.clone(),
            environment: order.environment.clone(),
            target: order.target.clone(),
            target_id: order.target_id,
            agent_id: order.agent_id,
            job_id: order.job_id,
            task_id: order.task_id,
            attempt: order.attempt,
            fence: order.fence,
            decision: order.decision.clone(),
            release: order.release.clone(),
            inputs: order.inputs,
            compose_lock,
            services,
            written_at,
            previous,
        })
    }

    /// Canonical bytes and a line feed: the content of the file.
    pub fn to_file(&self) -> Result<Vec<u8>, CanonicalError> {
        let mut bytes = canonical::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a file strictly.
    pub fn from_file(bytes: &[u8]) -> Result<Self, CanonicalError> {
        canonical::from_slice(bytes.strip_suffix(b"\n").unwrap_or(bytes))
    }

    /// Digest of the canonical bytes.
    pub fn digest(&self) -> Result<Digest, CanonicalError> {
        canonical::digest(self)
    }
}
