//! Events of the engine: which are asked for, and what each says. Nothing here talks to the engine.

use std::collections::HashMap;

use bollard::models::{EventMessage, EventMessageTypeEnum};
use chrono::DateTime;
use sealift_common::observation::{EngineAction, EngineEvent};

use crate::{
    host::HostEvent,
    labels::{self, Labels},
};

/// Filters of the engine's stream: what may mean drift.
pub(super) fn filters() -> HashMap<String, Vec<String>> {
    let actions = EngineAction::ALL.iter().map(|action| action.as_str());
    HashMap::from([
        (
            "type".to_owned(),
            vec!["container".to_owned(), "image".to_owned()],
        ),
        (
            "event".to_owned(),
            actions.chain(["delete", "untag"]).map(str::to_owned).collect(),
        ),
    ])
}

/// What a message says. Events of foreign containers concern nobody here.
pub(super) fn read(message: EventMessage) -> Option<HostEvent> {
    let actor = message.actor?;
    let id = actor.id.unwrap_or_default();
    match message.typ? {
        EventMessageTypeEnum::CONTAINER => {
            let labels: Labels = actor.attributes?.into_iter().collect();
            let target = labels.get(labels::TARGET_ID)?.parse().ok()?;
            let event = labels::read(&labels)
                .zip(message.action.and_then(|action| action.parse().ok()))
                .zip(message.time_nano)
                .map(|((ours, action), at)| EngineEvent {
                    action,
                    container: id.clone(),
                    project: ours.project.to_string(),
                    service: ours.service,
                    at: DateTime::from_timestamp_nanos(at),
                });
            Some(HostEvent {
                target: Some(target),
                id,
                event,
            })
        }
        EventMessageTypeEnum::IMAGE => Some(HostEvent {
            target: None,
            id,
            event: None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::EventActor;

    use super::*;
    use crate::samples;

    fn message(attributes: HashMap<String, String>) -> EventMessage {
        EventMessage {
            typ: Some(EventMessageTypeEnum::CONTAINER),
            action: Some("stop".to_owned()),
            actor: Some(EventActor {
                id: Some("abc".to_owned()),
                attributes: Some(attributes),
            }),
            time_nano: Some(1_800_000_000_000_000_001),
            ..EventMessage::default()
        }
    }

    #[test]
    fn an_event_says_what_happened_to_which_service() {
        let order = samples::order(1, &[("web", "v1")]);
        let (service, spec) = order.manifest.services.iter().next().unwrap();
        let labels = labels::of_container(&order, service, spec).unwrap();
        let read = read(message(labels.into_iter().collect())).unwrap();
        assert_eq!(read.target, Some(order.target_id));
        let event = read.event.unwrap();
        assert_eq!(
            (event.action, event.container.as_str()),
            (EngineAction::Stop, "abc")
        );
        assert_eq!(event.service, *service);
        assert_eq!(event.project, order.release.project.to_string());
        assert_eq!(event.at.timestamp(), 1_800_000_000);
    }

    #[test]
    fn foreign_containers_say_nothing_and_half_labelled_ones_only_that_there_is_something_to_see() {
        assert_eq!(read(message(HashMap::new())), None);
        let target = samples::order(1, &[("web", "v1")]).target_id;
        let half = HashMap::from([(labels::TARGET_ID.to_owned(), target.to_string())]);
        let read = read(message(half)).unwrap();
        assert_eq!((read.target, read.event), (Some(target), None));
    }
}
