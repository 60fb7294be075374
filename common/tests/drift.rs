//! Drift and the order in which services start: properties over random hosts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sealift_common::{
    digest::Digest,
    drift::{self, DriftKind, Recorded},
    manifest::{DependencyCondition, Manifest, ServiceSpec},
    name::ServiceName,
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, ProjectObservation, StickerObservation,
    },
    order::Fence,
};

fn spec(image: &str, needs: &[ServiceName]) -> ServiceSpec {
    let mut spec: ServiceSpec = serde_json::from_value(serde_json::json!({
        "image": {"repository": "acme.com/shop", "digest": Digest::of(image.as_bytes())},
        "stop_grace_period_ms": 10_000,
    }))
    .unwrap();
    spec.depends_on = needs
        .iter()
        .map(|name| (name.clone(), DependencyCondition::ServiceStarted))
        .collect();
    spec
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn recorded(services: &[&str]) -> Recorded {
    Recorded {
        fence: Fence(7),
        manifest: Manifest {
            services: services
                .iter()
                .map(|text| (name(text), spec(text, &[])))
                .collect(),
            ..Manifest::default()
        },
        sticker: Digest::of(b"sticker"),
    }
}

/// A host on which everything is as recorded.
fn faithful(recorded: &Recorded) -> ProjectObservation {
    let containers = recorded
        .manifest
        .services
        .iter()
        .map(|(service, spec)| ContainerObservation {
            id: format!("id of {service}"),
            service: service.clone(),
            fence: recorded.fence,
            image_id: "sha256:1".to_owned(),
            digest: Some(spec.image.digest),
            config: spec.config_digest().ok(),
            unchanged: true,
            state: ContainerState::Running,
            health: ContainerHealth::Healthy,
        })
        .collect();
    ProjectObservation {
        sticker: StickerObservation::Present {
            digest: recorded.sticker,
            release: Digest::of(b"release"),
            fence: recorded.fence,
        },
        containers,
    }
}

#[test]
fn r14_each_kind_of_drift_is_found_alone() {
    let record = recorded(&["api", "web"]);
    assert_eq!(drift::compare(Some(&record), &faithful(&record)), []);
    let check = |kind: DriftKind, change: &dyn Fn(&mut ProjectObservation)| {
        let mut seen = faithful(&record);
        change(&mut seen);
        let found: Vec<_> = drift::compare(Some(&record), &seen)
            .into_iter()
            .map(|finding| finding.kind)
            .collect();
        assert_eq!(found, [kind]);
    };
    check(DriftKind::Image, &|seen| {
        seen.containers[0].digest = Some(Digest::of(b"other"));
    });
    check(DriftKind::Config, &|seen| seen.containers[0].config = None);
    check(DriftKind::Config, &|seen| seen.containers[0].unchanged = false);
    check(DriftKind::Missing, &|seen| drop(seen.containers.remove(0)));
    check(DriftKind::Stopped, &|seen| {
        seen.containers[0].state = ContainerState::Exited;
    });
    check(DriftKind::Extra, &|seen| {
        let mut extra = seen.containers[0].clone();
        extra.service = name("stranger");
        seen.containers.push(extra);
    });
    // The container of an older order that still runs.
    check(DriftKind::Extra, &|seen| {
        let mut old = seen.containers[0].clone();
        old.fence = Fence(6);
        seen.containers.push(old);
    });
    check(DriftKind::StickerMissing, &|seen| {
        seen.sticker = StickerObservation::Missing;
    });
    check(DriftKind::StickerEdited, &|seen| {
        seen.sticker = StickerObservation::Unreadable {
            digest: Digest::of(b"x"),
        };
    });
}

#[test]
fn r14_a_second_container_of_a_service_is_extra() {
    let record = recorded(&["api"]);
    let mut seen = faithful(&record);
    let mut second = seen.containers[0].clone();
    second.id = "another".to_owned();
    seen.containers.push(second);
    let found: Vec<_> = drift::compare(Some(&record), &seen)
        .into_iter()
        .map(|finding| finding.kind)
        .collect();
    assert_eq!(found, [DriftKind::Extra]);
}

#[test]
fn r14_where_a_service_has_two_containers_the_running_one_counts() {
    let record = recorded(&["api"]);
    let mut seen = faithful(&record);
    let mut dead = seen.containers[0].clone();
    dead.id = "dead".to_owned();
    dead.state = ContainerState::Exited;
    seen.containers.insert(0, dead);
    assert_eq!(drift::compare(Some(&record), &seen), []);
}

#[test]
fn r14_nothing_recorded_makes_everything_that_runs_extra() {
    let record = recorded(&["api"]);
    let found = drift::compare(None, &faithful(&record));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].kind, DriftKind::Extra);
}

fn observation() -> impl Strategy<Value = ProjectObservation> {
    let digest = || prop::sample::select(vec![Digest::of(b"api"), Digest::of(b"web"), Digest::of(b"x")]);
    let container = (
        "[0-9a-fé]{0,20}",
        prop::sample::select(vec!["api", "web", "other"]),
        0..9_u64,
        prop::option::of(digest()),
        prop::option::of(digest()),
        any::<bool>(),
        prop::sample::select(ContainerState::ALL),
    )
        .prop_map(
            |(id, service, fence, digest, config, unchanged, state)| ContainerObservation {
                id,
                service: name(service),
                fence: Fence(fence),
                image_id: String::new(),
                digest,
                config,
                unchanged,
                state,
                health: ContainerHealth::None,
            },
        );
    let sticker = prop_oneof![
        Just(StickerObservation::Missing),
        digest().prop_map(|digest| StickerObservation::Unreadable { digest }),
        digest().prop_map(|digest| StickerObservation::Present {
            digest,
            release: digest,
            fence: Fence(7)
        }),
    ];
    (sticker, prop::collection::vec(container, 0..8))
        .prop_map(|(sticker, containers)| ProjectObservation { sticker, containers })
}

proptest! {
    #[test]
    fn comparing_never_panics_and_findings_have_one_identity_each(seen in observation(), known in any::<bool>()) {
        let record = recorded(&["api", "web"]);
        let found = drift::compare(known.then_some(&record), &seen);
        let identities: BTreeSet<_> = found.iter().map(|finding| (finding.kind, finding.service.clone())).collect();
        prop_assert_eq!(identities.len(), found.len());
        let mut shuffled = seen.clone();
        shuffled.containers.reverse();
        let again: BTreeSet<_> = drift::compare(known.then_some(&record), &shuffled)
            .into_iter()
            .map(|finding| (finding.kind, finding.service))
            .collect();
        prop_assert_eq!(again, identities, "the order in which the engine lists containers does not matter");
    }

    #[test]
    fn services_start_after_what_they_need(
        edges in prop::collection::btree_map(0..12_usize, prop::collection::btree_set(0..12_usize, 0..4), 0..12)
    ) {
        // Only edges to lower numbers: no circles, as the compose reader guarantees.
        let services: BTreeMap<_, _> = (0..12)
            .map(|index| {
                let needs: Vec<_> = edges
                    .get(&index)
                    .into_iter()
                    .flatten()
                    .filter(|needed| **needed < index)
                    .map(|needed| name(&format!("s{}", 11 - needed)))
                    .collect();
                (name(&format!("s{}", 11 - index)), spec("x", &needs))
            })
            .collect();
        let manifest = Manifest { services, ..Manifest::default() };
        let order = manifest.start_order();
        prop_assert_eq!(order.iter().copied().collect::<BTreeSet<_>>().len(), 12);
        for (name, spec) in &manifest.services {
            let at = |wanted: &ServiceName| order.iter().position(|name| *name == wanted).unwrap();
            prop_assert!(spec.depends_on.keys().all(|needed| at(needed) < at(name)));
        }
    }

    #[test]
    fn circles_still_name_every_service_once(
        edges in prop::collection::vec((0..8_usize, 0..8_usize), 0..20)
    ) {
        let services: BTreeMap<_, _> = (0..8)
            .map(|index| {
                let needs: Vec<_> = edges
                    .iter()
                    .filter(|(from, _)| *from == index)
                    .map(|(_, to)| name(&format!("s{to}")))
                    .collect();
                (name(&format!("s{index}")), spec("x", &needs))
            })
            .collect();
        let manifest = Manifest { services, ..Manifest::default() };
        let order: BTreeSet<_> = manifest.start_order().into_iter().collect();
        prop_assert_eq!(order.len(), 8);
        prop_assert_eq!(manifest.start_order().len(), 8);
    }
}
