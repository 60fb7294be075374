//! Makes a release: reads the compose file and asks the registries outside any transaction, then numbers and freezes what came
//! out of it in one.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sealift_common::{
    any_manifest::{AnyManifest, Described},
    bounds, canonical,
    compose::{self, ComposeErrors, EnvFiles, agents, hosted},
    digest::Digest,
    error::Reason,
    id::{ComponentId, ProjectId, ReleaseId, TenantId},
    inventory::Component,
    manifest::PinnedImage,
    name::{ComponentName, ServiceName, SourceRef},
    release::{Release, ReleaseComponent, ReleaseState},
};
use sealift_store::{StoreError, Tx};

use crate::{registry::Registry, status::ApiError};

/// Everything that a release is made of, before it is numbered.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Where it came from.
    pub source: SourceRef,
    /// What to run, every image pinned.
    pub manifest: AnyManifest,
    /// Digest of that.
    pub content: Digest,
    /// What the image of each service is built for, where its registry said. No part of the content: it follows from the digests.
    pub platforms: Platforms,
}

/// What the image of each service is built for.
pub type Platforms = BTreeMap<ServiceName, Vec<String>>;

/// How a compose file is to be read: by the kind of target that the release is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// By us, whole, with the contents of the files that it names.
    DockerHost(EnvFiles),
    /// By the host's Compose, with these profiles switched on.
    ComposeHost(BTreeSet<String>),
    /// By us, for the one image that holds the program of agents.
    AgentHost,
}

/// Reads a compose file and resolves its images.
pub async fn prepare(
    registry: &Registry,
    source: SourceRef,
    compose: &[u8],
    reading: &Reading,
) -> Result<Draft, ApiError> {
    if compose.is_empty() {
        return Err(ApiError::invalid("compose", "is missing"));
    }
    let text = std::str::from_utf8(compose).map_err(|_| ApiError::invalid("compose", "is not UTF-8 text"))?;
    let (manifest, platforms): (AnyManifest, _) = match reading {
        Reading::DockerHost(env_files) => {
            let file = compose::parse(text, env_files).map_err(|errors| refused(&errors))?;
            let images = resolve(registry, &file.images(), &file.hook_images()).await?;
            let manifest = file
                .pin(&images.services, &images.hooks)
                .map_err(ApiError::internal)?;
            (manifest.into(), images.platforms)
        }
        Reading::ComposeHost(profiles) => {
            let file = hosted::parse_new(text, profiles).map_err(|errors| refused(&errors))?;
            let images = resolve(registry, &file.images(), &file.hook_images()).await?;
            let manifest = file
                .pin(&images.services, &images.hooks)
                .map_err(ApiError::internal)?;
            (manifest.into(), images.platforms)
        }
        Reading::AgentHost => {
            let file = agents::parse(text).map_err(|errors| refused(&errors))?;
            let images = resolve(registry, &file.images(), &BTreeMap::new()).await?;
            let manifest = file.pin(&images.services).map_err(ApiError::internal)?;
            (manifest.into(), images.platforms)
        }
    };
    check_size(&manifest)?;
    let content = manifest.content_digest().map_err(ApiError::internal)?;
    Ok(Draft {
        source,
        manifest,
        content,
        platforms,
    })
}

/// Orders carry the manifest, so one that is too large for them could never be deployed. Files that are small may become large
/// when they are read: anchors and variable files repeat text.
fn check_size(manifest: &AnyManifest) -> Result<(), ApiError> {
    let bytes = canonical::to_vec(manifest).map_err(ApiError::internal)?.len();
    if bytes <= bounds::MANIFEST_BYTES {
        return Ok(());
    }
    let most = bounds::MANIFEST_BYTES;
    Err(ApiError::new(
        Reason::InvalidManifest,
        format!("the release has {bytes} bytes once anchors and variable files are filled in, and {most} are allowed"),
        "move large values out of the compose file and its variable files, into images or mounted files",
    )
    .field("compose", format!("has more than {most} bytes when filled in")))
}

/// What registries said of the images of a file, by the name of the service or hook.
#[derive(Default)]
struct Resolved {
    services: BTreeMap<ServiceName, PinnedImage>,
    /// What the images of the services are built for.
    platforms: Platforms,
    hooks: BTreeMap<ServiceName, PinnedImage>,
}

/// The image of every service and every hook. All that fail are named in one answer, each at its place.
async fn resolve(
    registry: &Registry,
    services: &BTreeMap<&ServiceName, &str>,
    hooks: &BTreeMap<&ServiceName, &str>,
) -> Result<Resolved, ApiError> {
    let images = services.values().chain(hooks.values()).copied();
    let answers = registry.resolve_all(images).await;
    let mut refusal: Option<ApiError> = None;
    let mut resolved = Resolved::default();
    let Resolved {
        services: of_services,
        platforms,
        hooks: of_hooks,
    } = &mut resolved;
    for (name, image) in services {
        if let Some(Ok(answer)) = answers.get(*image) {
            platforms.insert((*name).clone(), answer.platforms.clone());
        }
    }
    for (kind, place, images, found) in [
        ("service", "services", services, of_services),
        ("hook", "x-sealift.hooks", hooks, of_hooks),
    ] {
        for (name, image) in images {
            match answers.get(*image) {
                Some(Ok(answer)) => {
                    found.insert((*name).clone(), answer.pinned.clone());
                }
                Some(Err(error)) => {
                    let first = refusal.take().unwrap_or_else(|| {
                        let message = format!("{kind} {name}: {error}");
                        ApiError::new(error.reason(), message, error.advice())
                    });
                    refusal = Some(first.field(format!("compose.{place}.{name}.image"), error.to_string()));
                }
                None => {}
            }
        }
    }
    match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(resolved),
    }
}

/// All errors of the file in one answer, each with its place.
fn refused(errors: &ComposeErrors) -> ApiError {
    let start = ApiError::new(
        errors.reason(),
        errors.to_string(),
        "correct the compose file, then create the release again",
    );
    errors.errors.iter().fold(start, |api, error| {
        let path = if error.path.is_empty() {
            "compose".to_owned()
        } else {
            format!("compose.{}", error.path)
        };
        api.field(path, error.to_string())
    })
}

/// Numbers and freezes a draft. The same commit with the same content is the release that exists already; with other content it
/// is refused, because a release never changes.
pub async fn create_release(
    tx: &mut Tx,
    tenant: TenantId,
    draft: Draft,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Release, ApiError> {
    let project = tx.ensure_project(tenant, &draft.source.project, now).await?;
    if let Some(existing) = tx.release_by_commit(project, &draft.source.commit).await? {
        return same_or_refused(existing, &draft);
    }
    let components = components(tx, tenant, &draft.manifest, now).await?;
    for image in draft.manifest.images().into_values() {
        if let (Some(component), Some(tag)) = (components.get(&image.repository), &image.tag) {
            tx.record_version(component.id, tag, image.digest, now).await?;
        }
    }
    let number = tx.next_release_number(project).await?;
    let release = assemble(
        tenant,
        project,
        number,
        ReleaseState::Ready,
        draft,
        &components,
        actor,
        now,
    );
    tx.insert_release(&release).await.map_err(again)?;
    Ok(release)
}

/// Somebody registered the same at the same time: what they made is found in the next try.
fn again(error: StoreError) -> StoreError {
    match error {
        StoreError::Duplicate { .. } => StoreError::Conflict,
        other => other,
    }
}

/// The release as it would be, with number 0 and nothing stored.
pub async fn preview_release(
    tx: &mut Tx,
    tenant: TenantId,
    draft: Draft,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Release, ApiError> {
    if let Some(project) = tx.project(tenant, &draft.source.project).await?
        && let Some(existing) = tx.release_by_commit(project, &draft.source.commit).await?
    {
        return same_or_refused(existing, &draft);
    }
    let mut components = BTreeMap::new();
    for repository in repositories(&draft.manifest) {
        let component = match tx.component_by_repository(tenant, &repository).await? {
            Some(component) => component,
            None => new_component(tx, tenant, &repository, now).await?,
        };
        components.insert(repository, component);
    }
    let project = ProjectId::new(now);
    Ok(assemble(
        tenant,
        project,
        0,
        ReleaseState::Draft,
        draft,
        &components,
        actor,
        now,
    ))
}

fn same_or_refused(existing: Release, draft: &Draft) -> Result<Release, ApiError> {
    if existing.content == draft.content {
        return Ok(existing);
    }
    Err(ApiError::new(
        Reason::AlreadyExists,
        format!(
            "{} exists as {} with other content ({}, not {})",
            draft.source,
            existing.reference(),
            existing.content.short(),
            draft.content.short()
        ),
        "a release never changes: promote the one that exists, or make a new commit (a tag that moved gives another digest, too)",
    )
    .meta("release", existing.id.to_string()))
}

fn repositories(manifest: &AnyManifest) -> BTreeSet<String> {
    manifest
        .images()
        .into_values()
        .map(|image| image.repository.clone())
        .collect()
}

/// Components of all images; those that are new are registered.
async fn components(
    tx: &mut Tx,
    tenant: TenantId,
    manifest: &AnyManifest,
    now: DateTime<Utc>,
) -> Result<BTreeMap<String, Component>, ApiError> {
    let mut components = BTreeMap::new();
    for repository in repositories(manifest) {
        let known = tx.component_by_repository(tenant, &repository).await?;
        let component = if let Some(component) = known {
            component
        } else {
            let component = new_component(tx, tenant, &repository, now).await?;
            tx.insert_component(&component).await.map_err(again)?;
            component
        };
        components.insert(repository, component);
    }
    Ok(components)
}

/// Named by the repository without its registry; by the whole repository when that name is taken.
async fn new_component(
    tx: &mut Tx,
    tenant: TenantId,
    repository: &str,
    now: DateTime<Utc>,
) -> Result<Component, ApiError> {
    let parse = |text: &str| {
        text.parse::<ComponentName>().map_err(|error| {
            ApiError::new(
                Reason::InvalidImageReference,
                error.to_string(),
                format!(
                    "use an image repository of at most 255 bytes; {} services share the limit",
                    bounds::SERVICES
                ),
            )
        })
    };
    let short = parse(Component::default_name(repository))?;
    let name = match tx.component_by_name(tenant, &short).await? {
        None => short,
        Some(_) => parse(repository)?,
    };
    Ok(Component {
        id: ComponentId::new(now),
        tenant_id: tenant,
        name,
        repository: repository.to_owned(),
        created_at: now,
    })
}

#[expect(clippy::too_many_arguments, reason = "the parts of one release, given once")]
fn assemble(
    tenant_id: TenantId,
    project_id: ProjectId,
    number: u64,
    state: ReleaseState,
    mut draft: Draft,
    components: &BTreeMap<String, Component>,
    actor: &str,
    now: DateTime<Utc>,
) -> Release {
    let services = draft
        .manifest
        .images()
        .into_iter()
        .filter_map(|(service, image)| {
            let component = components.get(&image.repository)?;
            let part = ReleaseComponent {
                component_id: component.id,
                component: component.name.clone(),
                digest: image.digest,
                platforms: draft.platforms.remove(service).unwrap_or_default(),
            };
            Some((service.clone(), part))
        })
        .collect();
    Release {
        id: ReleaseId::new(now),
        tenant_id,
        project_id,
        source: draft.source,
        number,
        state,
        content: draft.content,
        manifest: draft.manifest,
        components: services,
        created_by: actor.to_owned(),
        created_at: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r1_a_release_too_large_for_an_order_is_refused_when_it_is_made() {
        let of_size = |bytes: usize| -> AnyManifest {
            let image = serde_json::json!({ "repository": "registry.test/a", "digest": Digest::of(b"a") });
            let service = serde_json::json!({
                "image": image, "environment": { "A": "x".repeat(bytes) }, "stop_grace_period_ms": 10_000
            });
            serde_json::from_value(serde_json::json!({ "services": { "web": service } })).unwrap()
        };
        check_size(&of_size(bounds::MANIFEST_BYTES / 2)).unwrap();
        let refused = check_size(&of_size(bounds::MANIFEST_BYTES)).unwrap_err();
        assert_eq!(refused.reason(), Reason::InvalidManifest);
    }
}
