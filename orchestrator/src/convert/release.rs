//! Releases.

use sealift_common::{
    any_manifest::{AnyManifest, Described},
    canonical::{self, CanonicalError},
    hook::{HookSpec, HookWhen, OnFailure},
    inventory::TargetKind,
    name::{ProjectRef, SourceRef},
    release::{Release, ReleaseState},
    rollback::QualityMark,
};
use sealift_proto::v1::{
    self as pb, quality_mark::Mark as WireMark, release::State as Wire, release_hook::When, target::Kind,
};
use sealift_store::Mark;

use crate::{convert::time, names, status::ApiError};

/// Reads where a release came from.
pub fn to_source(wire: Option<&pb::Source>) -> Result<SourceRef, ApiError> {
    let wire = wire.ok_or_else(|| ApiError::invalid("source", "is missing"))?;
    for (field, text) in [
        ("source.repository", &wire.repository),
        ("source.project", &wire.project),
        ("source.commit", &wire.commit),
    ] {
        if text.is_empty() {
            return Err(ApiError::invalid(field, "is missing"));
        }
    }
    if wire.project.contains('/') {
        return Err(ApiError::invalid(
            "source.project",
            "must be one path segment, for example api",
        ));
    }
    format!("{}/{}@{}", wire.repository, wire.project, wire.commit)
        .parse()
        .map_err(|error: sealift_common::name::InvalidName| ApiError::invalid("source", error.to_string()))
}

/// Writes where a release came from.
pub fn source(source: &SourceRef) -> pb::Source {
    let SourceRef {
        project: ProjectRef { repository, project },
        commit,
    } = source.clone();
    pb::Source {
        repository,
        project,
        commit,
    }
}

/// Reads a quality mark.
pub fn to_mark(wire: WireMark) -> Result<QualityMark, ApiError> {
    match wire {
        WireMark::Unspecified => Err(ApiError::invalid(
            "mark",
            "must be stable, unstable or deprecated",
        )),
        WireMark::Stable => Ok(QualityMark::Stable),
        WireMark::Unstable => Ok(QualityMark::Unstable),
        WireMark::Deprecated => Ok(QualityMark::Deprecated),
    }
}

/// Writes a quality mark.
pub fn mark(mark: &Mark) -> pb::QualityMark {
    let wire = match mark.mark {
        QualityMark::Stable => WireMark::Stable,
        QualityMark::Unstable => WireMark::Unstable,
        QualityMark::Deprecated => WireMark::Deprecated,
    };
    pb::QualityMark {
        mark: wire.into(),
        reason: mark.reason.clone(),
        actor: mark.actor.clone(),
        time: Some(time::timestamp(mark.at)),
    }
}

/// Writes a release, with its manifest when `whole`.
pub fn release(release: &Release, whole: bool) -> Result<pb::Release, CanonicalError> {
    let manifest_json = if whole {
        String::from_utf8_lossy(&canonical::to_vec(&release.manifest)?).into_owned()
    } else {
        String::new()
    };
    Ok(pb::Release {
        name: names::of_release(release.id),
        uid: release.id.to_string(),
        source: Some(source(&release.source)),
        number: i64::try_from(release.number).unwrap_or(i64::MAX),
        state: state(release.state).into(),
        kind: kind(release.manifest.kind()).into(),
        profiles: profiles(release),
        content_digest: release.content.to_string(),
        components: components(release),
        manifest_json,
        created_by: release.created_by.clone(),
        create_time: Some(time::timestamp(release.created_at)),
        marks: Vec::new(),
        hooks: release.manifest.hooks().iter().map(hook).collect(),
    })
}

fn components(release: &Release) -> Vec<pb::ReleaseComponent> {
    let images = release.manifest.images();
    release
        .components
        .iter()
        .map(|(service, component)| {
            let image = images.get(service);
            pb::ReleaseComponent {
                service: service.to_string(),
                component: names::of_component(&component.component),
                repository: image.map(|image| image.repository.clone()).unwrap_or_default(),
                tag: image.and_then(|image| image.tag.clone()).unwrap_or_default(),
                digest: component.digest.to_string(),
                platforms: component.platforms.clone(),
            }
        })
        .collect()
}

fn hook(hook: &HookSpec) -> pb::ReleaseHook {
    pb::ReleaseHook {
        hook: hook.name.to_string(),
        when: match hook.when {
            HookWhen::PreDeploy => When::PreDeploy,
            HookWhen::Switch => When::Switch,
            HookWhen::PostDeploy => When::PostDeploy,
        }
        .into(),
        repository: hook.image.repository.clone(),
        tag: hook.image.tag.clone().unwrap_or_default(),
        digest: hook.image.digest.to_string(),
        timeout: Some(time::millis(hook.timeout_ms)),
        may_fail: hook.on_failure == OnFailure::Continue,
    }
}

/// Writes a kind of target.
pub const fn kind(kind: TargetKind) -> Kind {
    match kind {
        TargetKind::DockerHost => Kind::DockerHost,
        TargetKind::ComposeHost => Kind::ComposeHost,
        TargetKind::AgentHost => Kind::AgentHost,
    }
}

fn profiles(release: &Release) -> Vec<String> {
    match &release.manifest {
        AnyManifest::ComposeHost(manifest) => manifest.profiles.iter().cloned().collect(),
        AnyManifest::DockerHost(_) | AnyManifest::AgentHost(_) => Vec::new(),
    }
}

const fn state(state: ReleaseState) -> Wire {
    match state {
        ReleaseState::Draft => Wire::Draft,
        ReleaseState::Ready => Wire::Ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_round_trip_and_crooked_ones_are_refused() {
        let commit = "a".repeat(40);
        let value: SourceRef = format!("github.com/acme/shop/api@{commit}").parse().unwrap();
        assert_eq!(to_source(Some(&source(&value))).unwrap(), value);
        let wire = |repository: &str, project: &str, commit: &str| pb::Source {
            repository: repository.into(),
            project: project.into(),
            commit: commit.into(),
        };
        assert!(to_source(None).is_err());
        for wire in [
            wire("", "api", &commit),
            wire("a/b", "", &commit),
            wire("a/b", "api", "main"),
            wire("a/b", "x/api", &commit),
            wire("a/../b", "api", &commit),
        ] {
            assert!(to_source(Some(&wire)).is_err(), "{wire:?}");
        }
    }
}
