//! What a release for compose hosts is made of: the compose file exactly as its author wrote it, and what a registry held for the image
//! of every service. The host's own Compose interprets the file; nothing here does.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    canonical::{self, CanonicalError},
    digest::Digest,
    hook::HookSpec,
    manifest::{PinnedImage, Probe},
    name::ServiceName,
    phases,
};

phases! {
    /// Whether a service is meant to run for ever.
    Lifetime { Lasting = "lasting", MayEnd = "may_end", MustEnd = "must_end" }
}

/// Says in the content itself what kind of target it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ComposeKind {
    /// `compose_host`
    #[default]
    #[serde(rename = "compose_host")]
    ComposeHost,
}

/// One service of the file that the profiles switch on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComposeServicePin {
    /// The image.
    pub image: PinnedImage,
    /// Whether it is meant to run for ever: `may_end` for `restart: "no"`, `must_end` where others wait for its completion.
    pub lifetime: Lifetime,
    /// `x-sealift.probe`: a check that the agent makes itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// The content of a release for compose hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComposeManifest {
    /// Always `compose_host`.
    pub kind: ComposeKind,
    /// The compose file, to the byte.
    pub document: String,
    /// The profiles that are switched on.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub profiles: BTreeSet<String>,
    /// The services that run under these profiles; no other may.
    pub services: BTreeMap<ServiceName, ComposeServicePin>,
    /// Hooks, in the order in which those of one time run. Compose does not see them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookSpec>,
}

impl ComposeManifest {
    /// The digest of what a service is made from besides its image: the file is one whole, so it is that of the file.
    pub fn config_digest(&self) -> Result<Digest, CanonicalError> {
        canonical::digest(&(&self.document, &self.profiles))
    }
}
