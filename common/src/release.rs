//! Release: immutable bundle of components with digests, manifest and configuration. Identity is the digest of its content.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::{
    any_manifest::AnyManifest,
    digest::Digest,
    id::{ComponentId, ProjectId, ReleaseId, TenantId},
    name::{ComponentName, ServiceName, SourceRef},
    order::ReleaseRef,
    phases,
};

phases! {
    /// Whether a release may be promoted.
    ReleaseState { Draft = "draft", Ready = "ready" }
}

/// Which component a service of a release is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseComponent {
    /// The component.
    pub component_id: ComponentId,
    /// Its name.
    pub component: ComponentName,
    /// The digest.
    pub digest: Digest,
    /// What the image is built for, as its registry said, sorted: `linux/amd64`, `linux/arm/v7`. Empty where nobody said.
    pub platforms: Vec<String>,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Identifier.
    pub id: ReleaseId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// The project that numbers it.
    pub project_id: ProjectId,
    /// Where it came from.
    pub source: SourceRef,
    /// Its number in the project, gapless from 1 (R6).
    pub number: u64,
    /// State.
    pub state: ReleaseState,
    /// Digest of the canonical manifest.
    pub content: Digest,
    /// What to run.
    pub manifest: AnyManifest,
    /// Components by service.
    pub components: BTreeMap<ServiceName, ReleaseComponent>,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl Release {
    /// How orders, stickers and packets name it.
    pub fn reference(&self) -> ReleaseRef {
        ReleaseRef {
            id: self.id,
            project: self.source.project.clone(),
            commit: self.source.commit.clone(),
            number: self.number,
            content: self.content,
        }
    }
}
