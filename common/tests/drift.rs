//! Drift, how severe it is, and the order in which services start: properties over random hosts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use chrono::DateTime;
use golden::golden;
use proptest::prelude::*;
use sealift_common::{
    any_manifest::{AnyManifest, Described},
    digest::Digest,
    drift::{self, AboutContainer, DriftKind, Finding, NextSteps, Recorded, Severity},
    inventory::EnvironmentClass,
    manifest::{DependencyCondition, Manifest, ServiceSpec},
    name::ServiceName,
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, EngineAction, EngineEvent, ProjectObservation,
        StickerObservation,
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
        manifest: AnyManifest::from(Manifest {
            services: services
                .iter()
                .map(|text| (name(text), spec(text, &[])))
                .collect(),
            ..Manifest::default()
        }),
        inputs: Digest::of(b"inputs"),
        sticker: Digest::of(b"sticker"),
    }
}

/// A host on which everything is as recorded.
fn faithful(recorded: &Recorded) -> ProjectObservation {
    let containers = recorded
        .manifest
        .images()
        .into_iter()
        .map(|(service, image)| ContainerObservation {
            id: format!("id of {service}"),
            service: service.clone(),
            fence: recorded.fence,
            image_id: "sha256:1".to_owned(),
            digest: Some(image.digest),
            config: recorded.manifest.config_of(service).ok().flatten(),
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
fn a_container_that_an_agent_names_twice_is_judged_in_one_way() {
    let record = recorded(&["api"]);
    let mut seen = faithful(&record);
    let mut twin = seen.containers[0].clone();
    twin.digest = Some(Digest::of(b"other"));
    seen.containers.push(twin);
    let found = drift::compare(Some(&record), &seen);
    seen.containers.reverse();
    assert_eq!(drift::compare(Some(&record), &seen), found);
}

#[test]
fn each_kind_of_drift_is_found_alone() {
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
fn a_second_container_of_a_service_is_extra() {
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
fn where_a_service_has_two_containers_the_running_one_counts() {
    let record = recorded(&["api"]);
    let mut seen = faithful(&record);
    let mut dead = seen.containers[0].clone();
    dead.id = "dead".to_owned();
    dead.state = ContainerState::Exited;
    seen.containers.insert(0, dead);
    assert_eq!(drift::compare(Some(&record), &seen), []);
}

#[test]
fn nothing_recorded_makes_everything_that_runs_extra() {
    let record = recorded(&["api"]);
    let found = drift::compare(None, &faithful(&record));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].kind, DriftKind::Extra);
}

#[test]
fn severities_are_as_documented() {
    let mut page = "# Severity of drift\n\nPrinted from the code by `common/tests/drift.rs` (`UPDATE_GOLDEN=1` rewrites it). What the \
                    kinds mean stands in [drift.md](drift.md).\n\n| kind"
        .to_owned();
    for class in EnvironmentClass::ALL {
        let _ = write!(page, " | {class}");
    }
    let _ = writeln!(page, " |\n|---{}|", "|---".repeat(EnvironmentClass::ALL.len()));
    for kind in DriftKind::ALL {
        let _ = write!(page, "| **{kind}**");
        for class in EnvironmentClass::ALL {
            let _ = write!(page, " | {}", drift::severity(*kind, *class));
        }
        page.push_str(" |\n");
    }
    golden("drift-severity.md", &page);
}

#[test]
fn production_is_one_step_worse_up_to_critical() {
    for kind in DriftKind::ALL {
        let other = drift::severity(*kind, EnvironmentClass::NonProduction) as usize;
        let production = drift::severity(*kind, EnvironmentClass::Production) as usize;
        assert_eq!(production, (other + 1).min(Severity::Critical as usize), "{kind}");
    }
}

fn event(action: EngineAction, service: &str, seconds: i64) -> EngineEvent {
    EngineEvent {
        action,
        container: format!("{action} at {seconds}"),
        project: "p/a".to_owned(),
        service: name(service),
        at: DateTime::from_timestamp(seconds, 0).unwrap(),
    }
}

fn finding(kind: DriftKind, service: Option<&str>) -> Finding {
    Finding {
        kind,
        service: service.map(name),
        expected: String::new(),
        actual: String::new(),
    }
}

#[test]
fn a_finding_is_explained_by_the_newest_telling_event_of_its_service() {
    use EngineAction::{Die, Oom, Start, Stop};
    let stopped = finding(DriftKind::Stopped, Some("api"));
    let cause = |events: &[EngineEvent]| {
        drift::cause(&stopped, "p/a", events).map(|event| (event.action, event.at.timestamp()))
    };
    assert_eq!(cause(&[]), None);
    assert_eq!(
        cause(&[event(Die, "api", 1), event(Die, "api", 2)]),
        Some((Die, 2))
    );
    // A stop by hand makes the engine say both; the wish tells more than its effect.
    assert_eq!(
        cause(&[event(Die, "api", 2), event(Stop, "api", 2)]),
        Some((Stop, 2))
    );
    assert_eq!(
        cause(&[event(Oom, "api", 1), event(Die, "api", 2)]),
        Some((Oom, 1))
    );
    assert_eq!(cause(&[event(Start, "api", 1), event(Die, "web", 2)]), None);
    assert_eq!(drift::cause(&stopped, "p/b", &[event(Die, "api", 1)]), None);
    let edited = finding(DriftKind::StickerEdited, None);
    assert_eq!(drift::cause(&edited, "p/a", &[event(Die, "api", 1)]), None);
}

#[test]
fn whoever_asks_is_told_what_to_do_next() {
    for kind in DriftKind::ALL {
        for bits in 0..128_u8 {
            let container = match bits >> 5 {
                0 => AboutContainer::Unknown,
                1 => AboutContainer::Hidden,
                _ => AboutContainer::Known("0123456789abcdef"),
            };
            let steps = NextSteps {
                kind: *kind,
                id: "the-id",
                environment: "prod",
                target: "web-1",
                release: (bits & 1 > 0).then_some("shop/api#7"),
                job: Some("the-job".to_owned()),
                container,
                resolved: bits & 2 > 0,
                owned: bits & 4 > 0,
                silent: bits & 8 > 0,
                last_try: (bits & 16 > 0).then(|| "the-promotion".to_owned()),
            };
            let list = steps.list();
            assert!(!list.is_empty(), "{steps:?}");
            // Nobody is told to overwrite what nobody deployed.
            let promotes = list
                .iter()
                .any(|(command, _)| command.contains("promote shop/api#7"));
            let mends = *kind != DriftKind::Extra && steps.release.is_some() && !steps.resolved;
            assert_eq!(promotes, mends, "{steps:?}");
            let shows = list
                .iter()
                .any(|(command, _)| command == "sealift promotion get the-promotion");
            assert_eq!(shows, steps.last_try.is_some() && !steps.resolved, "{steps:?}");
            // Which container it is is told to whoever may know, and to nobody else.
            let inspects = list.iter().any(|(command, _)| command.contains("0123456789ab"));
            let asks = !steps.resolved && (*kind == DriftKind::Extra || steps.release.is_none());
            assert_eq!(inspects, asks && bits >> 5 > 1, "{steps:?}");
            let sends_to_admins = list.iter().any(|(_, why)| why.contains("admins"));
            assert_eq!(sends_to_admins, asks && bits >> 5 == 1, "{steps:?}");
        }
    }
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

fn engine_event() -> impl Strategy<Value = EngineEvent> {
    (
        prop::sample::select(EngineAction::ALL),
        prop::sample::select(vec!["api", "web"]),
        0..4_i64,
    )
        .prop_map(|(action, service, seconds)| event(action, service, seconds))
}

proptest! {
    #[test]
    fn a_cause_is_about_its_finding_and_the_order_of_events_does_not_matter(
        events in prop::collection::vec(engine_event(), 0..8),
        kind in prop::sample::select(DriftKind::ALL),
        service in prop::option::of(prop::sample::select(vec!["api", "web"])),
    ) {
        let finding = finding(kind, service);
        let cause = drift::cause(&finding, "p/a", &events).cloned();
        if let Some(cause) = &cause {
            prop_assert_eq!(Some(&cause.service), finding.service.as_ref());
            prop_assert!(events.contains(cause));
        }
        let mut turned = events;
        turned.reverse();
        prop_assert_eq!(drift::cause(&finding, "p/a", &turned).cloned(), cause);
    }

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
