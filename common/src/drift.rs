//! Drift: disagreement between what is recorded, what the sticker says and what really runs (three-way comparison).

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    manifest::Manifest,
    name::ServiceName,
    observation::{ContainerObservation, ContainerState, ProjectObservation, StickerObservation},
    order::Fence,
    phases,
};

phases! {
    /// What kind of disagreement.
    DriftKind {
        Image = "image", Config = "config", Missing = "missing", Stopped = "stopped", Extra = "extra",
        StickerEdited = "sticker_edited", StickerMissing = "sticker_missing",
    }
}

/// What is recorded for one project on one target: the last success that was to activate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Fencing token of the order that put it there.
    pub fence: Fence,
    /// What should run.
    pub manifest: Manifest,
    /// Digest of the sticker that was reported with it.
    pub sticker: Digest,
}

/// One disagreement. Its identity on a target is (project, service, kind).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// What kind.
    pub kind: DriftKind,
    /// Which service; `None` when it is about the sticker.
    pub service: Option<ServiceName>,
    /// What should be, for people.
    pub expected: String,
    /// What is, for people.
    pub actual: String,
}

/// Compares what is recorded (`None`: nothing should run) with what an agent saw. Sorted, without duplicates.
pub fn compare(recorded: Option<&Recorded>, seen: &ProjectObservation) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(recorded) = recorded {
        findings.extend(sticker(recorded, &seen.sticker));
        for (name, spec) in &recorded.manifest.services {
            let mut own: Vec<_> = seen
                .containers
                .iter()
                .filter(|container| container.service == *name && container.fence == recorded.fence)
                .collect();
            // The one that serves is judged, whatever order the engine lists them in; others that run are too many.
            own.sort_by_key(|container| (rank(container.state), &container.id));
            findings.extend(
                own.iter()
                    .skip(1)
                    .filter(|container| is_up(container))
                    .map(|container| extra(container)),
            );
            findings.extend(service(name, spec.image.digest, spec.config_digest().ok(), &own));
        }
    }
    findings.extend(
        seen.containers
            .iter()
            .filter(|container| is_extra(recorded, container))
            .map(extra),
    );
    findings.sort();
    findings.dedup_by(|a, b| (a.kind, &a.service) == (b.kind, &b.service));
    findings
}

fn sticker(recorded: &Recorded, seen: &StickerObservation) -> Option<Finding> {
    let finding = |kind, actual| {
        Some(Finding {
            kind,
            service: None,
            expected: format!("sticker {}", recorded.sticker),
            actual,
        })
    };
    match seen {
        StickerObservation::Missing => finding(DriftKind::StickerMissing, "no sticker".to_owned()),
        StickerObservation::Unreadable { digest } => finding(
            DriftKind::StickerEdited,
            format!("a file that is no sticker, {digest}"),
        ),
        StickerObservation::Present { digest, .. } if *digest != recorded.sticker => {
            finding(DriftKind::StickerEdited, format!("sticker {digest}"))
        }
        StickerObservation::Present { .. } => None,
    }
}

fn service(
    name: &ServiceName,
    image: Digest,
    config: Option<Digest>,
    containers: &[&ContainerObservation],
) -> Vec<Finding> {
    let finding = |kind, expected: String, actual: String| Finding {
        kind,
        service: Some(name.clone()),
        expected,
        actual,
    };
    let Some(container) = containers.first() else {
        return vec![finding(
            DriftKind::Missing,
            format!("a container of {image}"),
            "no container".to_owned(),
        )];
    };
    let mut findings = Vec::new();
    if !matches!(container.state, ContainerState::Running) {
        findings.push(finding(
            DriftKind::Stopped,
            "running".to_owned(),
            container.state.to_string(),
        ));
    }
    // An engine that knows no registry digest for the image (any more) cannot contradict the record.
    if container.digest.is_some_and(|digest| digest != image) {
        let actual = container
            .digest
            .map_or_else(String::new, |digest| digest.to_string());
        findings.push(finding(DriftKind::Image, image.to_string(), actual));
    }
    if container.config != config || !container.unchanged {
        let expected = config.map_or_else(String::new, |digest| format!("description {digest}"));
        let actual = if container.unchanged {
            "another description"
        } else {
            "changed on the host since it was deployed"
        };
        findings.push(finding(DriftKind::Config, expected, actual.to_owned()));
    }
    findings
}

fn is_up(container: &ContainerObservation) -> bool {
    rank(container.state) < 2
}

/// 0 runs, 1 holds on to its resources, 2 is down.
fn rank(state: ContainerState) -> u8 {
    match state {
        ContainerState::Running => 0,
        ContainerState::Restarting | ContainerState::Paused => 1,
        _ => 2,
    }
}

fn is_extra(recorded: Option<&Recorded>, container: &ContainerObservation) -> bool {
    let wanted = recorded.is_some_and(|recorded| {
        recorded.fence == container.fence && recorded.manifest.services.contains_key(&container.service)
    });
    is_up(container) && !wanted
}

fn extra(container: &ContainerObservation) -> Finding {
    Finding {
        kind: DriftKind::Extra,
        service: Some(container.service.clone()),
        expected: "nothing".to_owned(),
        actual: format!(
            "container {} of order {}",
            container.id.chars().take(12).collect::<String>(),
            container.fence
        ),
    }
}
