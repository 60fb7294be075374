//! Plan: what a promotion would change on each target, computed before anything happens. A pure function of the release, the
//! strategy and what the hosts themselves last reported; its digest is what approvals and decisions name.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    any_manifest::Described,
    canonical::{self, CanonicalError},
    compose_manifest::Lifetime,
    digest::Digest,
    drift::{self, Recorded},
    id::{EnvironmentId, ReleaseId, TargetId},
    inventory::TargetKind,
    name::{ComponentName, Labels, Name, ServiceName},
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, ProjectObservation, TargetObservation,
    },
    order, phases,
    recipe::Recipe,
    release::Release,
    strategy::{self, Then},
    variables::Variables,
};

phases! {
    /// What is done about one service on one target.
    Action { Keep = "keep", Create = "create", Replace = "replace", Remove = "remove" }
}

/// What happens to one service on one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The service.
    pub service: ServiceName,
    /// Which component it is; `None` when only the host knows the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<ComponentName>,
    /// What runs now, as the host itself last reported it; `None` when nothing runs or the engine knows no registry digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_now: Option<Digest>,
    /// What is to run; `None` when it is to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_next: Option<Digest>,
    /// What is done.
    pub action: Action,
}

/// What happens on one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanTarget {
    /// The target.
    pub target_id: TargetId,
    /// Its name.
    pub target: Name,
    /// Ordinal of its wave; counts from 0. Targets that need nothing are in wave 0.
    pub wave: u32,
    /// The wanted set runs already: the target is left alone.
    pub no_op: bool,
    /// By service.
    pub changes: Vec<Change>,
}

/// What a promotion would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The release.
    pub release: ReleaseId,
    /// Digest of the release's canonical manifest.
    pub content: Digest,
    /// What Compose is to fill in; nothing in releases for other kinds of targets.
    #[serde(default, skip_serializing_if = "Variables::is_empty")]
    pub variables: Variables,
    /// Where it is to run.
    pub environment: EnvironmentId,
    /// In which way.
    pub recipe: Recipe,
    /// What follows each wave, by ordinal.
    pub waves: Vec<Then>,
    /// By wave, then by name.
    pub targets: Vec<PlanTarget>,
}

/// What a stored plan says as a whole, read without its targets, of which there may be ten thousand.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PlanHead {
    /// What Compose is to fill in.
    #[serde(default)]
    pub variables: Variables,
}

/// What is known about one target when a plan is made.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The target.
    pub target_id: TargetId,
    /// Its name.
    pub target: &'a Name,
    /// Its labels.
    pub labels: &'a Labels,
    /// What its agent last saw; `None` when it never said anything.
    pub observation: Option<&'a TargetObservation>,
    /// What is recorded for the release's project: the last success that was to activate.
    pub recorded: Option<&'a Recorded>,
}

impl Plan {
    /// Plans `release` for the `places`, whose order does not matter. `variables` are those of the environment.
    pub fn new(
        release: &Release,
        environment: EnvironmentId,
        variables: &Variables,
        recipe: &Recipe,
        places: &[Place<'_>],
    ) -> Self {
        let variables = match release.manifest.kind() {
            TargetKind::ComposeHost => variables.clone(),
            TargetKind::DockerHost | TargetKind::AgentHost => Variables::default(),
        };
        // Without it nothing is taken for running already.
        let inputs = order::inputs(release.content, &variables).ok();
        let no_ops: BTreeSet<TargetId> = places
            .iter()
            .filter(|place| runs_already(release, inputs, place))
            .map(|place| place.target_id)
            .collect();
        // Targets that need nothing take no place in a wave, so that a rolling job is never slower than what it has to do.
        let to_do: Vec<_> = places
            .iter()
            .filter(|place| !no_ops.contains(&place.target_id))
            .map(|place| strategy::Place {
                name: place.target,
                id: place.target_id,
                labels: place.labels,
            })
            .collect();
        let planned = strategy::waves(&recipe.strategy, &to_do);
        let waves: BTreeMap<TargetId, u32> = (0_u32..)
            .zip(&planned)
            .flat_map(|(ordinal, wave)| wave.targets.iter().map(move |target| (*target, ordinal)))
            .collect();
        let mut targets: Vec<_> = places
            .iter()
            .map(|place| {
                let no_op = no_ops.contains(&place.target_id);
                PlanTarget {
                    target_id: place.target_id,
                    target: place.target.clone(),
                    wave: waves.get(&place.target_id).copied().unwrap_or(0),
                    no_op,
                    changes: changes(release, seen(release, place), no_op),
                }
            })
            .collect();
        targets.sort_by(|a, b| (a.wave, &a.target).cmp(&(b.wave, &b.target)));
        Self {
            release: release.id,
            content: release.content,
            variables,
            environment,
            recipe: recipe.clone(),
            waves: planned.iter().map(|wave| wave.then).collect(),
            targets,
        }
    }

    /// The plan's identity: digest of its canonical bytes.
    pub fn digest(&self) -> Result<Digest, CanonicalError> {
        canonical::digest(self)
    }

    /// How many targets would be touched.
    pub fn touched(&self) -> usize {
        self.targets.iter().filter(|target| !target.no_op).count()
    }
}

fn seen<'a>(release: &Release, place: &Place<'a>) -> Option<&'a ProjectObservation> {
    place.observation?.project(&release.source.project)
}

/// Whether the wanted set runs whole and untouched. Every doubt says no: doing it again is safe, leaving it is not.
fn runs_already(release: &Release, inputs: Option<Digest>, place: &Place<'_>) -> bool {
    let (Some(recorded), Some(seen)) = (place.recorded, seen(release, place)) else {
        return false;
    };
    if place.observation.is_some_and(|observation| observation.busy) {
        return false;
    }
    inputs == Some(recorded.inputs)
        && drift::compare(Some(recorded), seen).is_empty()
        && whole(release, recorded, seen)
}

/// What drift forgives and a plan does not: an unknown digest, a sick container, a second container of a service.
fn whole(release: &Release, recorded: &Recorded, seen: &ProjectObservation) -> bool {
    release.manifest.images().into_iter().all(|(name, image)| {
        let mut own = seen
            .containers
            .iter()
            .filter(|container| container.service == *name);
        let lasting = release.manifest.lifetime_of(name) == Lifetime::Lasting;
        let (Some(container), None) = (own.next(), own.next()) else {
            return false;
        };
        container.fence == recorded.fence
            && container.digest == Some(image.digest)
            && (!lasting
                || container.state == ContainerState::Running
                    && matches!(container.health, ContainerHealth::None | ContainerHealth::Healthy))
    })
}

fn changes(release: &Release, seen: Option<&ProjectObservation>, no_op: bool) -> Vec<Change> {
    let now = seen.map(running).unwrap_or_default();
    let mut changes: Vec<_> = release
        .manifest
        .images()
        .into_iter()
        .map(|(name, image)| {
            let current = now.get(name);
            Change {
                service: name.clone(),
                component: release
                    .components
                    .get(name)
                    .map(|component| component.component.clone()),
                digest_now: current.and_then(|container| container.digest),
                digest_next: Some(image.digest),
                action: match (current, no_op) {
                    (_, true) => Action::Keep,
                    (Some(_), false) => Action::Replace,
                    (None, false) => Action::Create,
                },
            }
        })
        .collect();
    let gone = now
        .iter()
        .filter(|(name, _)| !release.manifest.images().contains_key(**name));
    changes.extend(gone.map(|(name, container)| Change {
        service: (*name).clone(),
        component: None,
        digest_now: container.digest,
        digest_next: None,
        action: Action::Remove,
    }));
    changes.sort_by(|a, b| a.service.cmp(&b.service));
    changes
}

/// What runs of each service: of several containers the one of the newest order.
fn running(seen: &ProjectObservation) -> BTreeMap<&ServiceName, &ContainerObservation> {
    let mut running: BTreeMap<&ServiceName, &ContainerObservation> = BTreeMap::new();
    for container in &seen.containers {
        let up = matches!(
            container.state,
            ContainerState::Running | ContainerState::Restarting | ContainerState::Paused
        );
        if up
            && running
                .get(&container.service)
                .is_none_or(|other| other.fence < container.fence)
        {
            running.insert(&container.service, container);
        }
    }
    running
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        compose_manifest::{ComposeKind, ComposeManifest, ComposeServicePin},
        id::{ComponentId, ProjectId, TenantId},
        manifest::{Manifest, PinnedImage},
        observation::StickerObservation,
        order::Fence,
        release::{ReleaseComponent, ReleaseState},
    };

    type Spoil = fn(&mut ProjectObservation);

    fn at(seconds: i64) -> DateTime<chrono::Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn release(image: &[u8]) -> Release {
        let service: ServiceName = "web".parse().unwrap();
        let spec: crate::manifest::ServiceSpec = serde_json::from_value(serde_json::json!({
            "image": PinnedImage { repository: "r.example/web".into(), tag: None, digest: Digest::of(image) },
            "stop_grace_period_ms": 10_000,
        }))
        .unwrap();
        let manifest = Manifest {
            services: [(service.clone(), spec)].into(),
            ..Manifest::default()
        };
        let component = ReleaseComponent {
            component_id: ComponentId::new(at(1)),
            component: "web".parse().unwrap(),
            digest: Digest::of(image),
            platforms: Vec::new(),
        };
        Release {
            id: ReleaseId::new(at(1)),
            tenant_id: TenantId::new(at(1)),
            project_id: ProjectId::new(at(1)),
            source: format!("github.com/acme/shop/api@{}", "a".repeat(40))
                .parse()
                .unwrap(),
            number: 1,
            state: ReleaseState::Ready,
            content: manifest.content_digest().unwrap(),
            manifest: manifest.into(),
            components: [(service, component)].into(),
            created_by: "user/ci".into(),
            created_at: at(1),
        }
    }

    fn recorded(release: &Release) -> Recorded {
        Recorded {
            fence: Fence(3),
            manifest: release.manifest.clone(),
            inputs: order::inputs(release.content, &Variables::default()).unwrap(),
            sticker: Digest::of(b"sticker"),
        }
    }

    /// What a host looks like on which `release` was deployed by order 3.
    fn observation(target_id: TargetId, release: &Release) -> TargetObservation {
        let images = release.manifest.images();
        let (service, image) = images.first_key_value().unwrap();
        let container = ContainerObservation {
            id: "c1".into(),
            service: (*service).clone(),
            fence: Fence(3),
            image_id: "i1".into(),
            digest: Some(image.digest),
            config: release.manifest.config_of(service).unwrap(),
            unchanged: true,
            state: ContainerState::Running,
            health: ContainerHealth::Healthy,
        };
        let project = ProjectObservation {
            sticker: StickerObservation::Present {
                digest: Digest::of(b"sticker"),
                release: release.content,
                fence: Fence(3),
            },
            containers: vec![container],
        };
        TargetObservation {
            target_id,
            observed_at: at(5),
            busy: false,
            projects: [(release.source.project.to_string(), project)].into(),
            events: Vec::new(),
        }
    }

    fn plan_one(
        release: &Release,
        observation: Option<&TargetObservation>,
        recorded: Option<&Recorded>,
    ) -> PlanTarget {
        let name = "web-1".parse().unwrap();
        let place = Place {
            target_id: TargetId::from(uuid::Uuid::nil()),
            target: &name,
            labels: &Labels::new(),
            observation,
            recorded,
        };
        let plan = Plan::new(
            release,
            EnvironmentId::new(at(1)),
            &Variables::default(),
            &Recipe::default(),
            &[place],
        );
        plan.targets.into_iter().next().unwrap()
    }

    #[test]
    fn an_empty_host_gets_everything_created() {
        let planned = plan_one(&release(b"1"), None, None);
        assert!(!planned.no_op);
        assert_eq!(planned.changes[0].action, Action::Create);
        assert_eq!(planned.changes[0].digest_now, None);
    }

    #[test]
    fn a_whole_set_is_left_alone_and_any_doubt_is_not() {
        let release = release(b"1");
        let target = TargetId::from(uuid::Uuid::nil());
        let recorded = recorded(&release);
        let good = observation(target, &release);
        let planned = plan_one(&release, Some(&good), Some(&recorded));
        assert!(planned.no_op);
        assert_eq!(planned.changes[0].action, Action::Keep);

        assert!(!plan_one(&release, Some(&good), None).no_op, "nothing recorded");
        let spoils: [(&str, Spoil); 9] = [
            ("other image", |seen| {
                seen.containers[0].digest = Some(Digest::of(b"x"));
            }),
            ("unknown image", |seen| seen.containers[0].digest = None),
            ("other config", |seen| seen.containers[0].config = None),
            ("changed by hand", |seen| seen.containers[0].unchanged = false),
            ("stopped", |seen| {
                seen.containers[0].state = ContainerState::Exited;
            }),
            ("sick", |seen| {
                seen.containers[0].health = ContainerHealth::Unhealthy;
            }),
            ("other order", |seen| seen.containers[0].fence = Fence(2)),
            ("extra", |seen| {
                let extra = ContainerObservation {
                    service: "x".parse().unwrap(),
                    ..seen.containers[0].clone()
                };
                seen.containers.push(extra);
            }),
            ("no sticker", |seen| seen.sticker = StickerObservation::Missing),
        ];
        for (what, spoil) in spoils {
            let mut bad = observation(target, &release);
            spoil(bad.projects.values_mut().next().unwrap());
            assert!(!plan_one(&release, Some(&bad), Some(&recorded)).no_op, "{what}");
        }
        let busy = TargetObservation { busy: true, ..good };
        assert!(!plan_one(&release, Some(&busy), Some(&recorded)).no_op, "busy");
    }

    #[test]
    fn other_variables_are_another_plan_and_no_no_op_on_compose_hosts_only() {
        let docker = release(b"1");
        let images = docker.manifest.images();
        let pins = images.into_iter().map(|(name, image)| {
            let pin = ComposeServicePin {
                image: image.clone(),
                lifetime: Lifetime::Lasting,
                probe: None,
            };
            (name.clone(), pin)
        });
        let manifest = ComposeManifest {
            kind: ComposeKind::ComposeHost,
            document: "services: {web: {image: web}}".into(),
            profiles: BTreeSet::new(),
            services: pins.collect(),
            hooks: Vec::new(),
        };
        let compose = Release {
            content: manifest.content_digest().unwrap(),
            manifest: manifest.into(),
            ..docker.clone()
        };
        let changed = Variables::try_from(BTreeMap::from([("A".to_owned(), "1".to_owned())])).unwrap();
        for (release, no_op) in [(&docker, true), (&compose, false)] {
            let target = TargetId::from(uuid::Uuid::nil());
            let (recorded, seen) = (recorded(release), observation(target, release));
            let name = "web-1".parse().unwrap();
            let place = Place {
                target_id: target,
                target: &name,
                labels: &Labels::new(),
                observation: Some(&seen),
                recorded: Some(&recorded),
            };
            let plan = |variables: &Variables| {
                Plan::new(
                    release,
                    EnvironmentId::new(at(1)),
                    variables,
                    &Recipe::default(),
                    &[place],
                )
            };
            assert!(plan(&Variables::default()).targets[0].no_op);
            assert_eq!(plan(&changed).targets[0].no_op, no_op);
            assert_eq!(plan(&changed).variables.is_empty(), no_op);
        }
    }

    #[test]
    fn digest_now_is_what_the_host_reports_and_what_is_not_wanted_goes() {
        let (old, new) = (release(b"1"), release(b"2"));
        let mut seen = observation(TargetId::from(uuid::Uuid::nil()), &old);
        let project = seen.projects.values_mut().next().unwrap();
        project.containers.push(ContainerObservation {
            service: "worker".parse().unwrap(),
            ..project.containers[0].clone()
        });
        let planned = plan_one(&new, Some(&seen), Some(&recorded(&old)));
        let actions: Vec<_> = planned
            .changes
            .iter()
            .map(|change| (change.service.as_str(), change.action))
            .collect();
        assert_eq!(actions, [("web", Action::Replace), ("worker", Action::Remove)]);
        assert_eq!(planned.changes[0].digest_now, Some(Digest::of(b"1")));
        assert_eq!(planned.changes[0].digest_next, Some(Digest::of(b"2")));
    }

    #[test]
    fn the_plan_does_not_depend_on_the_order_of_targets_and_no_ops_take_no_wave() {
        let release = release(b"1");
        let recorded = recorded(&release);
        let names: Vec<Name> = ["a", "b", "c", "d"]
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        let ids: Vec<_> = (1..=4)
            .map(|n| TargetId::from(uuid::Uuid::from_u128(n)))
            .collect();
        let seen = observation(ids[0], &release);
        let labels = Labels::new();
        let mut places: Vec<_> = names
            .iter()
            .zip(&ids)
            .map(|(target, id)| Place {
                target_id: *id,
                target,
                labels: &labels,
                observation: None,
                recorded: None,
            })
            .collect();
        places[0].observation = Some(&seen);
        places[0].recorded = Some(&recorded);
        let environment = EnvironmentId::new(at(1));
        let recipe = Recipe {
            strategy: strategy::Strategy::Rolling {
                max_parallel: strategy::Share::Count(2),
                by: None,
                pause_ms: 0,
            },
            ..Recipe::default()
        };
        let variables = Variables::default();
        let make = |places: &[Place<'_>]| Plan::new(&release, environment, &variables, &recipe, places);
        let plan = make(&places);
        let waves: Vec<_> = plan
            .targets
            .iter()
            .map(|target| (target.target.as_str(), target.wave, target.no_op))
            .collect();
        assert_eq!(
            waves,
            [("a", 0, true), ("b", 0, false), ("c", 0, false), ("d", 1, false)]
        );
        places.reverse();
        assert_eq!(make(&places).digest().unwrap(), plan.digest().unwrap());
        let bytes = canonical::to_vec(&plan).unwrap();
        assert_eq!(canonical::from_slice::<Plan>(&bytes).unwrap(), plan);
    }
}
