//! The content of a release, whatever kind of target it is for, and what all kinds have in common: a set of services, each with a
//! pinned image. Plans, stickers, packets and the drift check see no more than that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    agent_manifest::AgentManifest,
    canonical::{self, CanonicalError},
    compose_manifest::{ComposeManifest, Lifetime},
    digest::Digest,
    hook::HookSpec,
    inventory::TargetKind,
    manifest::{Manifest, PinnedImage, ServiceSpec},
    name::ServiceName,
};

/// What every content answers.
pub trait Described: Serialize + Sized {
    /// The kind of target that it is for.
    fn kind(&self) -> TargetKind;

    /// The image of each service.
    fn images(&self) -> BTreeMap<&ServiceName, &PinnedImage>;

    /// The hooks.
    fn hooks(&self) -> &[HookSpec];

    /// Digest of the description of a service; `None` when there is no such service.
    fn config_of(&self, service: &ServiceName) -> Result<Option<Digest>, CanonicalError>;

    /// Whether a service is meant to run for ever.
    fn lifetime_of(&self, service: &ServiceName) -> Lifetime;

    /// The identity of the content: digest of its canonical bytes.
    fn content_digest(&self) -> Result<Digest, CanonicalError> {
        canonical::digest(self)
    }
}

impl Described for Manifest {
    fn kind(&self) -> TargetKind {
        TargetKind::DockerHost
    }

    fn images(&self) -> BTreeMap<&ServiceName, &PinnedImage> {
        self.services
            .iter()
            .map(|(name, spec)| (name, &spec.image))
            .collect()
    }

    fn hooks(&self) -> &[HookSpec] {
        &self.hooks
    }

    fn config_of(&self, service: &ServiceName) -> Result<Option<Digest>, CanonicalError> {
        self.services
            .get(service)
            .map(ServiceSpec::config_digest)
            .transpose()
    }

    fn lifetime_of(&self, _: &ServiceName) -> Lifetime {
        Lifetime::Lasting
    }
}

impl Described for ComposeManifest {
    fn kind(&self) -> TargetKind {
        TargetKind::ComposeHost
    }

    fn images(&self) -> BTreeMap<&ServiceName, &PinnedImage> {
        self.services
            .iter()
            .map(|(name, pin)| (name, &pin.image))
            .collect()
    }

    fn hooks(&self) -> &[HookSpec] {
        &self.hooks
    }

    fn config_of(&self, service: &ServiceName) -> Result<Option<Digest>, CanonicalError> {
        self.services
            .get(service)
            .map(|_| self.config_digest())
            .transpose()
    }

    fn lifetime_of(&self, service: &ServiceName) -> Lifetime {
        self.services
            .get(service)
            .map_or(Lifetime::Lasting, |pin| pin.lifetime)
    }
}

impl Described for AgentManifest {
    fn kind(&self) -> TargetKind {
        TargetKind::AgentHost
    }

    fn images(&self) -> BTreeMap<&ServiceName, &PinnedImage> {
        self.services.iter().collect()
    }

    fn hooks(&self) -> &[HookSpec] {
        &[]
    }

    fn config_of(&self, service: &ServiceName) -> Result<Option<Digest>, CanonicalError> {
        self.services
            .get(service)
            .map(|_| Self::config_digest())
            .transpose()
    }

    fn lifetime_of(&self, _: &ServiceName) -> Lifetime {
        Lifetime::Lasting
    }
}

/// The content of a release. In JSON it says its kind but for `docker_host`, which is older and says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AnyManifest {
    /// For `compose_host`.
    ComposeHost(ComposeManifest),
    /// For `agent_host`.
    AgentHost(AgentManifest),
    /// For `docker_host`.
    DockerHost(Manifest),
}

impl Described for AnyManifest {
    fn kind(&self) -> TargetKind {
        match self {
            Self::ComposeHost(manifest) => manifest.kind(),
            Self::AgentHost(manifest) => manifest.kind(),
            Self::DockerHost(manifest) => manifest.kind(),
        }
    }

    fn images(&self) -> BTreeMap<&ServiceName, &PinnedImage> {
        match self {
            Self::ComposeHost(manifest) => manifest.images(),
            Self::AgentHost(manifest) => manifest.images(),
            Self::DockerHost(manifest) => manifest.images(),
        }
    }

    fn hooks(&self) -> &[HookSpec] {
        match self {
            Self::ComposeHost(manifest) => manifest.hooks(),
            Self::AgentHost(manifest) => manifest.hooks(),
            Self::DockerHost(manifest) => manifest.hooks(),
        }
    }

    fn config_of(&self, service: &ServiceName) -> Result<Option<Digest>, CanonicalError> {
        match self {
            Self::ComposeHost(manifest) => manifest.config_of(service),
            Self::AgentHost(manifest) => manifest.config_of(service),
            Self::DockerHost(manifest) => manifest.config_of(service),
        }
    }

    fn lifetime_of(&self, service: &ServiceName) -> Lifetime {
        match self {
            Self::ComposeHost(manifest) => manifest.lifetime_of(service),
            Self::AgentHost(manifest) => manifest.lifetime_of(service),
            Self::DockerHost(manifest) => manifest.lifetime_of(service),
        }
    }
}

impl AnyManifest {
    /// The content for `docker_host`, if it is one.
    pub fn docker(self) -> Option<Manifest> {
        match self {
            Self::DockerHost(manifest) => Some(manifest),
            Self::ComposeHost(_) | Self::AgentHost(_) => None,
        }
    }

    /// The content for `compose_host`, if it is one.
    pub fn compose(self) -> Option<ComposeManifest> {
        match self {
            Self::ComposeHost(manifest) => Some(manifest),
            Self::DockerHost(_) | Self::AgentHost(_) => None,
        }
    }

    /// The content for `agent_host`, if it is one.
    pub fn agent(self) -> Option<AgentManifest> {
        match self {
            Self::AgentHost(manifest) => Some(manifest),
            Self::DockerHost(_) | Self::ComposeHost(_) => None,
        }
    }
}

impl From<Manifest> for AnyManifest {
    fn from(manifest: Manifest) -> Self {
        Self::DockerHost(manifest)
    }
}

impl From<ComposeManifest> for AnyManifest {
    fn from(manifest: ComposeManifest) -> Self {
        Self::ComposeHost(manifest)
    }
}

impl From<AgentManifest> for AnyManifest {
    fn from(manifest: AgentManifest) -> Self {
        Self::AgentHost(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent_manifest::AgentKind,
        compose_manifest::{ComposeKind, ComposeServicePin},
    };

    fn compose() -> ComposeManifest {
        let image = PinnedImage {
            repository: "r.example/web".into(),
            tag: None,
            digest: Digest::of(b"1"),
        };
        let pin = ComposeServicePin {
            image,
            lifetime: Lifetime::Lasting,
            probe: None,
        };
        ComposeManifest {
            kind: ComposeKind::ComposeHost,
            document: "services: {}\n".into(),
            profiles: ["debug".to_owned()].into(),
            services: [("web".parse().unwrap(), pin)].into(),
            hooks: Vec::new(),
        }
    }

    #[test]
    fn all_kinds_are_read_back_as_what_they_are() {
        let pins = compose().services;
        let agent = AgentManifest {
            kind: AgentKind::AgentHost,
            services: pins.into_iter().map(|(name, pin)| (name, pin.image)).collect(),
        };
        for content in [
            AnyManifest::from(compose()),
            agent.into(),
            Manifest::default().into(),
        ] {
            let bytes = canonical::to_vec(&content).unwrap();
            assert_eq!(canonical::from_slice::<AnyManifest>(&bytes).unwrap(), content);
        }
        let docker = Manifest::default();
        assert_eq!(
            docker.content_digest().unwrap(),
            AnyManifest::from(docker).content_digest().unwrap()
        );
        assert!(canonical::from_slice::<AnyManifest>(br#"{"kind":"docker_host","services":{}}"#).is_err());
    }

    #[test]
    fn t12_file_profiles_pins_and_kind_are_one_content() {
        let whole = compose();
        let digest = whole.content_digest().unwrap();
        let changes: [fn(&mut ComposeManifest); 4] = [
            |content| content.document.push('#'),
            |content| content.profiles.clear(),
            |content| {
                content
                    .services
                    .values_mut()
                    .for_each(|pin| pin.image.digest = Digest::of(b"2"));
            },
            |content| {
                content
                    .services
                    .values_mut()
                    .for_each(|pin| pin.lifetime = Lifetime::MayEnd);
            },
        ];
        for change in changes {
            let mut other = whole.clone();
            change(&mut other);
            assert_ne!(other.content_digest().unwrap(), digest);
        }
    }
}
