//! What an agent sees on its host. Bounded: a host must not be able to fill the orchestrator.

use std::collections::BTreeMap;

use sealift_common::{
    bounds::{OBSERVED_CONTAINERS, OBSERVED_EVENTS, TEXT_BYTES},
    name::ProjectRef,
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, EngineAction, EngineEvent, ProjectObservation,
        StickerObservation, TargetObservation,
    },
    order::Fence,
};

use super::{Malformed, bounded, parse, time, timestamp};
use crate::agent::v1::{self as pb, observed_project::Sticker};

impl From<&TargetObservation> for pb::Observation {
    fn from(seen: &TargetObservation) -> Self {
        let TargetObservation {
            target_id,
            observed_at,
            busy,
            projects,
            events,
        } = seen;
        Self {
            target_id: target_id.to_string(),
            time: Some(timestamp(*observed_at)),
            busy: *busy,
            projects: projects
                .iter()
                .map(|(project, seen)| pb::ObservedProject {
                    project: project.clone(),
                    sticker: Some(sticker_to_wire(&seen.sticker)),
                    containers: seen.containers.iter().map(container_to_wire).collect(),
                })
                .collect(),
            events: events.iter().map(event_to_wire).collect(),
        }
    }
}

fn event_to_wire(event: &EngineEvent) -> pb::EngineEvent {
    let EngineEvent {
        action,
        container,
        project,
        service,
        at,
    } = event;
    pb::EngineEvent {
        action: action.to_string(),
        container: container.clone(),
        project: project.clone(),
        service: service.to_string(),
        time: Some(timestamp(*at)),
    }
}

fn sticker_to_wire(sticker: &StickerObservation) -> Sticker {
    match sticker {
        StickerObservation::Missing => Sticker::StickerMissing(pb::StickerMissing {}),
        StickerObservation::Unreadable { digest } => Sticker::StickerUnreadable(pb::StickerUnreadable {
            digest: digest.to_string(),
        }),
        StickerObservation::Present {
            digest,
            release,
            fence,
        } => Sticker::StickerPresent(pb::StickerPresent {
            digest: digest.to_string(),
            release: release.to_string(),
            fence: fence.0,
        }),
    }
}

fn container_to_wire(container: &ContainerObservation) -> pb::ObservedContainer {
    let ContainerObservation {
        id,
        service,
        fence,
        image_id,
        digest,
        config,
        unchanged,
        state,
        health,
    } = container;
    let text = |digest: &Option<sealift_common::digest::Digest>| {
        digest.map(|one| one.to_string()).unwrap_or_default()
    };
    pb::ObservedContainer {
        id: id.clone(),
        service: service.to_string(),
        fence: fence.0,
        image_id: image_id.clone(),
        digest: text(digest),
        config: text(config),
        unchanged: *unchanged,
        state: state.to_string(),
        health: health.to_string(),
    }
}

impl TryFrom<pb::Observation> for TargetObservation {
    type Error = Malformed;

    fn try_from(seen: pb::Observation) -> Result<Self, Malformed> {
        let pb::Observation {
            target_id,
            time: at,
            busy,
            projects,
            events,
        } = seen;
        let containers: usize = projects.iter().map(|project| project.containers.len()).sum();
        if containers > OBSERVED_CONTAINERS || projects.len() > OBSERVED_CONTAINERS {
            return Err(Malformed::new(
                "projects",
                format!("more than {OBSERVED_CONTAINERS} containers or projects"),
            ));
        }
        if events.len() > OBSERVED_EVENTS {
            return Err(Malformed::new("events", format!("more than {OBSERVED_EVENTS}")));
        }
        let mut known = BTreeMap::new();
        for project in projects {
            // Through the domain's own parser, so that one project has one spelling.
            let name = parse::<ProjectRef>("projects[].project", &project.project)?.to_string();
            if known.insert(name, project_from_wire(project)?).is_some() {
                return Err(Malformed::new("projects[].project", "is there twice"));
            }
        }
        Ok(Self {
            target_id: parse("target_id", &target_id)?,
            observed_at: time("time", at.as_ref())?,
            busy,
            projects: known,
            events: events
                .into_iter()
                .filter_map(|event| event_from_wire(event).transpose())
                .collect::<Result<_, _>>()?,
        })
    }
}

/// `None` for what a newer agent knows to tell and this orchestrator does not.
fn event_from_wire(event: pb::EngineEvent) -> Result<Option<EngineEvent>, Malformed> {
    let pb::EngineEvent {
        action,
        container,
        project,
        service,
        time: at,
    } = event;
    let Ok(action) = action.parse::<EngineAction>() else {
        return Ok(None);
    };
    Ok(Some(EngineEvent {
        action,
        container: bounded("events[].container", container, TEXT_BYTES)?,
        project: parse::<ProjectRef>("events[].project", &project)?.to_string(),
        service: parse("events[].service", &service)?,
        at: time("events[].time", at.as_ref())?,
    }))
}

fn project_from_wire(project: pb::ObservedProject) -> Result<ProjectObservation, Malformed> {
    let sticker = match project.sticker {
        None => return Err(Malformed::new("projects[].sticker", "is missing")),
        Some(Sticker::StickerMissing(pb::StickerMissing {})) => StickerObservation::Missing,
        Some(Sticker::StickerUnreadable(pb::StickerUnreadable { digest })) => {
            StickerObservation::Unreadable {
                digest: parse("projects[].sticker_unreadable.digest", &digest)?,
            }
        }
        Some(Sticker::StickerPresent(pb::StickerPresent {
            digest,
            release,
            fence,
        })) => StickerObservation::Present {
            digest: parse("projects[].sticker_present.digest", &digest)?,
            release: parse("projects[].sticker_present.release", &release)?,
            fence: Fence(fence),
        },
    };
    let containers = project
        .containers
        .into_iter()
        .map(container_from_wire)
        .collect::<Result<_, _>>()?;
    Ok(ProjectObservation { sticker, containers })
}

fn container_from_wire(container: pb::ObservedContainer) -> Result<ContainerObservation, Malformed> {
    let pb::ObservedContainer {
        id,
        service,
        fence,
        image_id,
        digest,
        config,
        unchanged,
        state,
        health,
    } = container;
    let optional = |field, text: String| {
        if text.is_empty() {
            Ok(None)
        } else {
            parse(field, &text).map(Some)
        }
    };
    Ok(ContainerObservation {
        id: bounded("containers[].id", id, TEXT_BYTES)?,
        service: parse("containers[].service", &service)?,
        fence: Fence(fence),
        image_id: bounded("containers[].image_id", image_id, TEXT_BYTES)?,
        digest: optional("containers[].digest", digest)?,
        config: optional("containers[].config", config)?,
        unchanged,
        // Newer engines and agents may know more states and health values than this orchestrator.
        state: state.parse::<ContainerState>().unwrap_or(ContainerState::Unknown),
        health: health.parse::<ContainerHealth>().unwrap_or(ContainerHealth::None),
    })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use sealift_common::{digest::Digest, id::TargetId};

    use super::*;

    fn observation() -> TargetObservation {
        let now = DateTime::from_timestamp(1_800_000_000, 5_000).unwrap();
        let digest = Digest::of(b"x");
        let stickers = [
            StickerObservation::Missing,
            StickerObservation::Unreadable { digest },
            StickerObservation::Present {
                digest,
                release: Digest::of(b"r"),
                fence: Fence(u64::MAX),
            },
        ];
        let containers = ContainerState::ALL.iter().flat_map(|state| {
            ContainerHealth::ALL.iter().map(|health| ContainerObservation {
                id: "0123456789abcdef".into(),
                service: "web".parse().unwrap(),
                fence: Fence(7),
                image_id: "sha256:1".into(),
                digest: (*health == ContainerHealth::Healthy).then_some(digest),
                config: (*state == ContainerState::Running).then_some(digest),
                unchanged: *state == ContainerState::Running,
                state: *state,
                health: *health,
            })
        });
        let containers: Vec<_> = containers.collect();
        TargetObservation {
            target_id: "018f0000-0000-7000-8000-000000000001"
                .parse::<TargetId>()
                .unwrap(),
            observed_at: now,
            busy: true,
            projects: stickers
                .into_iter()
                .enumerate()
                .map(|(n, sticker)| {
                    let containers = containers.clone();
                    (
                        format!("github.com/acme/shop/p{n}"),
                        ProjectObservation { sticker, containers },
                    )
                })
                .collect(),
            events: EngineAction::ALL
                .iter()
                .map(|action| EngineEvent {
                    action: *action,
                    container: "b".repeat(64),
                    project: "github.com/acme/shop/p0".to_owned(),
                    service: "web".parse().unwrap(),
                    at: now,
                })
                .collect(),
        }
    }

    #[test]
    fn observations_round_trip_in_every_state() {
        assert_eq!(
            TargetObservation::try_from(pb::Observation::from(&observation())),
            Ok(observation())
        );
    }

    #[test]
    fn observations_are_bounded() {
        let mut wire = pb::Observation::from(&observation());
        let one = wire.projects[0].containers[0].clone();
        wire.projects[0].containers = vec![one; OBSERVED_CONTAINERS + 1];
        assert_eq!(TargetObservation::try_from(wire).unwrap_err().field, "projects");
    }

    #[test]
    fn hostile_observations_are_refused_by_field() {
        type Change = fn(&mut pb::Observation);
        let cases: [(&str, Change); 6] = [
            ("target_id", |o| o.target_id = "x".into()),
            ("time", |o| o.time = None),
            ("projects[].project", |o| {
                o.projects[1].project = o.projects[0].project.clone();
            }),
            ("projects[].sticker", |o| o.projects[0].sticker = None),
            ("containers[].service", |o| {
                o.projects[0].containers[0].service = "../x".into();
            }),
            ("containers[].digest", |o| {
                o.projects[0].containers[0].digest = "sha256:zz".into();
            }),
        ];
        for (field, change) in cases {
            let mut wire = pb::Observation::from(&observation());
            change(&mut wire);
            assert_eq!(TargetObservation::try_from(wire).unwrap_err().field, field);
        }
    }

    #[test]
    fn unknown_states_of_newer_engines_are_kept_as_unknown() {
        let mut wire = pb::Observation::from(&observation());
        wire.projects[0].containers[0].state = "hibernating".into();
        let seen = TargetObservation::try_from(wire).unwrap();
        let first = seen.projects.values().next().unwrap();
        assert_eq!(first.containers[0].state, ContainerState::Unknown);
    }
}
