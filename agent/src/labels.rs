//! Labels and names of what the agent makes at the engine: how its own things are told apart from everybody else's.

use std::collections::BTreeMap;

use sealift_common::{
    canonical::CanonicalError,
    compose_manifest::ComposeManifest,
    digest::Digest,
    hook::Direction,
    id::TargetId,
    manifest::{Manifest, PinnedImage, ServiceSpec},
    name::{ProjectRef, ServiceName},
    order::{Fence, Order},
};

use crate::journal::HookRef;

/// Tenant of the order.
pub const TENANT: &str = "dev.sealift.tenant";
/// Environment of the order.
pub const ENVIRONMENT: &str = "dev.sealift.environment";
/// Target, by identifier. Everything that the agent makes carries it.
pub const TARGET_ID: &str = "dev.sealift.target-id";
/// Target, by name.
pub const TARGET: &str = "dev.sealift.target";
/// `repository/project`.
pub const PROJECT: &str = "dev.sealift.project";
/// Service.
pub const SERVICE: &str = "dev.sealift.service";
/// Release, by identifier.
pub const RELEASE: &str = "dev.sealift.release";
/// Release, by number.
pub const RELEASE_NUMBER: &str = "dev.sealift.release-number";
/// Job.
pub const JOB: &str = "dev.sealift.job";
/// Task.
pub const TASK: &str = "dev.sealift.task";
/// Attempt.
pub const ATTEMPT: &str = "dev.sealift.attempt";
/// Fencing token.
pub const FENCE: &str = "dev.sealift.fence";
/// Digest of the ordered image.
pub const DIGEST: &str = "dev.sealift.digest";
/// Digest of the service's whole description.
pub const CONFIG: &str = "dev.sealift.config";

/// Name of the hook. What has it is no part of a set: it carries no service.
pub const HOOK: &str = "dev.sealift.hook";
/// Which way a hook leads.
pub const DIRECTION: &str = "dev.sealift.hook-direction";

/// Says that Compose made it. Nothing else that changes with every order is on what Compose makes, or it would make all of it anew
/// each time.
pub const COMPOSE: &str = "dev.sealift.compose";

/// Compose's own label for containers of `compose run`: they carry the labels of a service and are none.
const COMPOSE_ONE_OFF: &str = "com.docker.compose.oneoff";

/// What the names of everything that the agent makes at the engine begin with.
pub const NAME_PREFIX: &str = "sealift-";

/// Labels as the engine has them.
pub type Labels = BTreeMap<String, String>;

/// Eight hex digits for a target. Made from a hash, because the first digits of a time-ordered id are not unique.
pub fn short_target(id: TargetId) -> String {
    short(&id.to_string())
}

/// What the names of a target's networks and volumes begin with.
pub fn target_prefix(target: TargetId) -> String {
    format!("{NAME_PREFIX}{}-", short_target(target))
}

fn short(text: &str) -> String {
    Digest::of(text.as_bytes()).to_hex()[..8].to_owned()
}

/// A text that fits names of the engine and files: the first `most` bytes if it is longer, then with a hash so that it stays
/// unique. `text` is ASCII (all our names are).
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let head: String = text.chars().take(most.saturating_sub(9)).collect();
    format!("{head}-{}", short(text))
}

/// A project as a part of names: its last segment and a hash of the whole.
pub fn project_slug(project: &ProjectRef) -> String {
    let last = project.project.rsplit('/').next().unwrap_or_default();
    let clean: String = last
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(24)
        .collect();
    format!("{clean}-{}", short(&project.to_string()))
}

/// Name of the container of a service of an order.
pub fn container_name<M>(order: &Order<M>, service: &ServiceName) -> String {
    format!(
        "sealift-{}-{}-{}-{}",
        cut(order.target.as_str(), 24),
        short_target(order.target_id),
        cut(service.as_str(), 40),
        order.fence
    )
}

/// Name of the container of a hook of an order.
pub fn hook_name<M>(order: &Order<M>, hook: &HookRef) -> String {
    let back = match hook.direction {
        Direction::Forward => "",
        Direction::Back => "-back",
    };
    // Before the target, whose hash follows: no name of a service can make another container's name the same.
    format!(
        "sealift-hook-{}-{}-{}-{}{back}",
        cut(order.target.as_str(), 24),
        short_target(order.target_id),
        cut(hook.hook.as_str(), 40),
        order.fence
    )
}

/// Name of a project network. One without a way out has another name than one with: the engine cannot change a network that is
/// there, and the set before needs its own for the way back.
pub fn network_name(target: TargetId, project: &ProjectRef, network: &str, internal: bool) -> String {
    if !internal {
        return resource_name(target, project, network);
    }
    // No network of a manifest has a name that begins with a dash.
    format!(
        "{}-internal-{}",
        resource_name(target, project, ""),
        cut(network, 40)
    )
}

/// Name of a project network that only the set of one order uses.
pub fn set_network_name<M>(order: &Order<M>, network: &str) -> String {
    let shared = resource_name(order.target_id, &order.release.project, network);
    format!("{shared}-{}", order.fence)
}

/// Name of a project volume. Without the fencing token: volumes are kept from release to release.
pub fn volume_name(target: TargetId, project: &ProjectRef, volume: &str) -> String {
    resource_name(target, project, volume)
}

fn resource_name(target: TargetId, project: &ProjectRef, name: &str) -> String {
    format!(
        "sealift-{}-{}-{}",
        short_target(target),
        project_slug(project),
        cut(name, 40)
    )
}

/// Labels of networks and volumes.
pub fn of_project(target: TargetId, project: &ProjectRef) -> Labels {
    [
        (TARGET_ID.to_owned(), target.to_string()),
        (PROJECT.to_owned(), project.to_string()),
    ]
    .into()
}

/// Labels of the container of a service: ours on top of those of the manifest, so that a manifest cannot forge ours.
pub fn of_container(
    order: &Order<Manifest>,
    service: &ServiceName,
    spec: &ServiceSpec,
) -> Result<Labels, CanonicalError> {
    let mut labels = spec.labels.clone();
    labels.retain(|key, _| !key.starts_with("dev.sealift."));
    labels.extend(of_project(order.target_id, &order.release.project));
    let ours = [
        (TENANT, order.tenant.to_string()),
        (ENVIRONMENT, order.environment.to_string()),
        (TARGET, order.target.to_string()),
        (SERVICE, service.to_string()),
        (RELEASE, order.release.id.to_string()),
        (RELEASE_NUMBER, order.release.number.to_string()),
        (JOB, order.job_id.to_string()),
        (TASK, order.task_id.to_string()),
        (ATTEMPT, order.attempt.to_string()),
        (FENCE, order.fence.to_string()),
        (DIGEST, spec.image.digest.to_string()),
        (CONFIG, spec.config_digest()?.to_string()),
    ];
    labels.extend(ours.map(|(key, value)| (key.to_owned(), value)));
    Ok(labels)
}

/// Compose's name for a project on a target.
pub fn compose_project(order: &Order<ComposeManifest>) -> String {
    format!(
        "sealift-{}-{}",
        short_target(order.target_id),
        project_slug(&order.release.project)
    )
}

/// Labels of the container of a service that Compose makes.
pub fn of_compose_container(
    order: &Order<ComposeManifest>,
    service: &ServiceName,
    image: &PinnedImage,
) -> Labels {
    let mut labels = of_project(order.target_id, &order.release.project);
    let ours = [
        (COMPOSE, "true".to_owned()),
        (TENANT, order.tenant.to_string()),
        (ENVIRONMENT, order.environment.to_string()),
        (TARGET, order.target.to_string()),
        (SERVICE, service.to_string()),
        (DIGEST, image.digest.to_string()),
    ];
    labels.extend(ours.map(|(key, value)| (key.to_owned(), value)));
    labels
}

/// Labels of the container of a hook.
pub fn of_hook<M>(order: &Order<M>, hook: &HookRef, image: &PinnedImage) -> Labels {
    let mut labels = of_project(order.target_id, &order.release.project);
    let ours = [
        (HOOK, hook.hook.to_string()),
        (DIRECTION, hook.direction.to_string()),
        (TENANT, order.tenant.to_string()),
        (ENVIRONMENT, order.environment.to_string()),
        (TARGET, order.target.to_string()),
        (RELEASE, order.release.id.to_string()),
        (RELEASE_NUMBER, order.release.number.to_string()),
        (JOB, order.job_id.to_string()),
        (TASK, order.task_id.to_string()),
        (ATTEMPT, order.attempt.to_string()),
        (FENCE, order.fence.to_string()),
        (DIGEST, image.digest.to_string()),
    ];
    labels.extend(ours.map(|(key, value)| (key.to_owned(), value)));
    labels
}

/// The labels by which all hooks of a project, whatever order they are of, are found.
pub fn of_hooks(target: TargetId, project: &ProjectRef) -> Labels {
    let mut labels = of_project(target, project);
    labels.insert(HOOK.to_owned(), String::new());
    labels
}

/// Which hook a container is of, and the fencing token of its order; `None` when it is of none.
pub fn read_hook(labels: &Labels) -> Option<(HookRef, Fence)> {
    let text = |key: &str| labels.get(key).map(String::as_str);
    let hook = HookRef {
        hook: text(HOOK)?.parse().ok()?,
        direction: text(DIRECTION)?.parse().ok()?,
    };
    Some((hook, Fence(text(FENCE)?.parse().ok()?)))
}

/// What our labels say about a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// Target.
    pub target: TargetId,
    /// Project.
    pub project: ProjectRef,
    /// Service.
    pub service: ServiceName,
    /// Fencing token; 0 when Compose made it, which is below every order's.
    pub fence: Fence,
    /// Digest of the ordered image.
    pub digest: Option<Digest>,
    /// Digest of the service's description.
    pub config: Option<Digest>,
}

/// Reads our labels. `None` when they are not all there or not ours, and for what somebody runs beside the services with
/// `compose run`: such a container is never touched and is no part of a set.
pub fn read(labels: &Labels) -> Option<Ours> {
    let text = |key: &str| labels.get(key).map(String::as_str);
    if text(COMPOSE_ONE_OFF) == Some("True") {
        return None;
    }
    let fence = match (text(FENCE), text(COMPOSE)) {
        (Some(fence), _) => fence.parse().ok()?,
        (None, Some(_)) => 0,
        (None, None) => return None,
    };
    Some(Ours {
        target: text(TARGET_ID)?.parse().ok()?,
        project: text(PROJECT)?.parse().ok()?,
        service: text(SERVICE)?.parse().ok()?,
        fence: Fence(fence),
        digest: text(DIGEST).and_then(|value| value.parse().ok()),
        config: text(CONFIG).and_then(|value| value.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn names_are_unique_per_target_project_and_order_and_short() {
        let order = samples::order(1, &[("web", "v1")]);
        let mut other = order.clone();
        other.fence = Fence(u64::MAX);
        let long: ServiceName = "s".repeat(63).parse().unwrap();
        let longer: ServiceName = format!("{}x", "s".repeat(62)).parse().unwrap();
        let names = [
            container_name(&order, &long),
            container_name(&order, &longer),
            container_name(&other, &long),
        ];
        assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
        assert!(names.iter().all(|name| name.len() <= 128), "{names:?}");
        let a: ProjectRef = "github.com/a/shop/api".parse().unwrap();
        let b: ProjectRef = "github.com/b/shop/api".parse().unwrap();
        assert_ne!(project_slug(&a), project_slug(&b));
        let network = |name: &str, internal| network_name(order.target_id, &a, name, internal);
        let networks = [
            network("back", true),
            network("back", false),
            network("internal-back", false),
            network("back-internal", false),
            network("internal-back", true),
        ];
        let distinct: std::collections::BTreeSet<_> = networks.iter().collect();
        assert_eq!(distinct.len(), networks.len(), "{networks:?}");
        let own = target_prefix(order.target_id);
        assert!(
            networks
                .iter()
                .all(|name| name.starts_with(&own) && name.len() <= 128)
        );
    }

    #[test]
    fn a_hooks_container_is_told_from_a_services_by_name_and_labels() {
        let order = samples::order(1, &[("web", "v1")]);
        let hook = |direction| HookRef {
            hook: "migrate".parse().unwrap(),
            direction,
        };
        let (there, back) = (hook(Direction::Forward), hook(Direction::Back));
        let names = [
            hook_name(&order, &there),
            hook_name(&order, &back),
            container_name(&order, &"hook-migrate".parse().unwrap()),
        ];
        assert!(names[0] != names[1] && names[0] != names[2], "{names:?}");
        let labels = of_hook(&order, &back, &samples::image("tool"));
        assert_eq!(read(&labels), None, "it is no part of a set");
        assert_eq!(read_hook(&labels), Some((back, order.fence)));
        let (service, spec) = order.manifest.services.iter().next().unwrap();
        assert_eq!(read_hook(&of_container(&order, service, spec).unwrap()), None);
    }

    #[test]
    fn what_somebody_runs_with_compose_run_is_no_part_of_a_set() {
        let order = samples::compose_order(1, &[("web", "v1")]);
        let (service, pin) = order.manifest.services.iter().next().unwrap();
        let mut labels = of_compose_container(&order, service, &pin.image);
        labels.insert(COMPOSE_ONE_OFF.to_owned(), "False".to_owned());
        assert_eq!(read(&labels).unwrap().service, *service);
        labels.insert(COMPOSE_ONE_OFF.to_owned(), "True".to_owned());
        assert_eq!(read(&labels), None);
    }

    #[test]
    fn r12_a_manifest_cannot_forge_our_labels() {
        let mut order = samples::order(1, &[("web", "v1")]);
        let (name, spec) = order.manifest.services.iter_mut().next().unwrap();
        spec.labels.insert(FENCE.into(), "99".into());
        spec.labels.insert("dev.sealift.anything".into(), "x".into());
        spec.labels.insert("com.acme".into(), "kept".into());
        let (name, spec) = (name.clone(), spec.clone());
        let labels = of_container(&order, &name, &spec).unwrap();
        assert_eq!(labels["com.acme"], "kept");
        assert!(!labels.contains_key("dev.sealift.anything"));
        let read = read(&labels).unwrap();
        assert_eq!(read.fence, order.fence);
        assert_eq!(read.service, name);
    }
}
