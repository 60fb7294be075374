//! What is recorded and what is observed, for the wire.

use sealift_common::{
    drift::Severity,
    external::ExternalRef,
    name::ProjectRef,
    observation::{EngineEvent, ProjectObservation, StickerObservation},
    role::Role,
};
use sealift_proto::v1::{self, drift::Severity as WireSeverity};
use sealift_store::Current;

use crate::{
    control::{int64, timestamp},
    convert::external::external,
    names,
    status::ApiError,
};

/// How people point at a release of a project.
pub fn release_display(project: &ProjectRef, number: u64) -> String {
    format!("{project}#{number}")
}

/// What is recorded of one project on a target.
pub fn recorded(current: &Current) -> v1::RecordedProject {
    v1::RecordedProject {
        project: current.project.to_string(),
        release: names::of_release(current.release),
        release_display: release_display(&current.project, current.number),
        job: names::of_job(current.job),
        promotion: names::of_promotion(current.promotion),
        requested_by: current.requested_by.clone(),
        since: timestamp(current.since),
        fence: int64(current.recorded.fence.0),
        sticker: current.recorded.sticker.to_string(),
    }
}

/// The sticker file as seen.
pub fn sticker(seen: &StickerObservation) -> v1::ObservedSticker {
    match seen {
        StickerObservation::Missing => v1::ObservedSticker {
            state: "missing".to_owned(),
            ..v1::ObservedSticker::default()
        },
        StickerObservation::Unreadable { digest } => v1::ObservedSticker {
            state: "unreadable".to_owned(),
            digest: digest.to_string(),
            ..v1::ObservedSticker::default()
        },
        StickerObservation::Present {
            digest,
            release,
            fence,
        } => v1::ObservedSticker {
            state: "present".to_owned(),
            digest: digest.to_string(),
            release: release.to_string(),
            fence: int64(fence.0),
        },
    }
}

/// The containers of a project as seen, for a caller of that role.
pub fn services(project: &str, seen: &ProjectObservation, viewer: Option<Role>) -> Vec<v1::ObservedService> {
    let containers = seen.containers.iter().map(|container| v1::ObservedService {
        project: project.to_owned(),
        service: container.service.to_string(),
        digest: container
            .digest
            .map(|digest| digest.to_string())
            .unwrap_or_default(),
        state: container.state.to_string(),
        health: container.health.to_string(),
        container: Some(container_ref(&container.id, viewer)),
        fence: int64(container.fence.0),
        unchanged: container.unchanged,
    });
    containers.collect()
}

fn container_ref(id: &str, viewer: Option<Role>) -> v1::ExternalRef {
    external(ExternalRef::container(id).seen_by(viewer))
}

/// What the engine said, for a caller of that role.
pub fn event(event: &EngineEvent, viewer: Option<Role>) -> v1::EngineEvent {
    v1::EngineEvent {
        action: event.action.to_string(),
        container: Some(container_ref(&event.container, viewer)),
        time: timestamp(event.at),
    }
}

/// A severity.
pub const fn severity(severity: Severity) -> WireSeverity {
    match severity {
        Severity::Low => WireSeverity::Low,
        Severity::Medium => WireSeverity::Medium,
        Severity::High => WireSeverity::High,
        Severity::Critical => WireSeverity::Critical,
    }
}

/// The severity that a list is narrowed to.
pub fn at_least(field: &str, value: i32) -> Result<Option<Severity>, ApiError> {
    match WireSeverity::try_from(value) {
        Ok(WireSeverity::Unspecified) => Ok(None),
        Ok(WireSeverity::Low) => Ok(Some(Severity::Low)),
        Ok(WireSeverity::Medium) => Ok(Some(Severity::Medium)),
        Ok(WireSeverity::High) => Ok(Some(Severity::High)),
        Ok(WireSeverity::Critical) => Ok(Some(Severity::Critical)),
        Err(_) => Err(ApiError::invalid(
            field,
            "is not a severity that this version knows",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_round_trip_and_unknown_ones_are_refused() {
        for one in Severity::ALL {
            let wire = severity(*one).into();
            assert_eq!(at_least("at_least", wire).unwrap(), Some(*one));
        }
        assert_eq!(at_least("at_least", 0).unwrap(), None);
        assert!(at_least("at_least", 41).is_err());
    }
}
