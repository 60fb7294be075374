//! Orders and identities for tests.

use std::{collections::BTreeMap, path::Path};

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    any_manifest::Described,
    compose_manifest::{ComposeKind, ComposeManifest, ComposeServicePin, Lifetime},
    digest::Digest,
    hook::{DEFAULT_TIMEOUT_MS, HookSpec, HookWhen, OnFailure},
    id::{AgentId, JobId, PromotionId, ReleaseId, TargetId, TaskId},
    keys::SigningKey,
    manifest::{Manifest, PinnedImage, RestartPolicy, ServiceSpec, UpdateOrder},
    order::{DecisionRef, Fence, Order, ReleaseRef, TargetBinding, inputs, sign_order},
    strategy::Limits,
    swap::Swap,
    time::{Clock as _, TestClock},
    variables::Variables,
};

use crate::{
    compose::{ComposeConfig, Search},
    journal::{AttemptKey, Record},
};

pub fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

/// An order was accepted that asks nothing of the host beyond what every order may have.
pub fn accepted(at: DateTime<Utc>) -> Record {
    Record::Accepted {
        at,
        allowances: Vec::new(),
    }
}

/// A host without Compose.
pub fn no_compose(dir: &Path) -> Search {
    let config = ComposeConfig {
        program: Some(dir.join("no-compose")),
        ..ComposeConfig::default()
    };
    Search::new(config, dir, "unix:///nowhere.sock", None)
}

pub fn clock() -> TestClock {
    TestClock::at(at(0))
}

pub fn key(task: i64) -> AttemptKey {
    AttemptKey {
        task: id(task),
        attempt: 1,
    }
}

pub fn id<T: From<uuid::Uuid>>(number: i64) -> T {
    T::from(uuid::Uuid::from_u128(u128::try_from(number).unwrap()))
}

pub fn agent_id() -> AgentId {
    id(1)
}

pub fn target_id() -> TargetId {
    id(2)
}

pub fn order_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

pub fn image(version: &str) -> PinnedImage {
    PinnedImage {
        repository: "registry.example.com/demo".to_owned(),
        tag: Some(version.to_owned()),
        digest: Digest::of(version.as_bytes()),
    }
}

pub fn service(image: PinnedImage) -> ServiceSpec {
    ServiceSpec {
        image,
        command: None,
        entrypoint: None,
        environment: BTreeMap::new(),
        ports: Vec::new(),
        volumes: Vec::new(),
        networks: BTreeMap::new(),
        labels: BTreeMap::new(),
        user: None,
        working_dir: None,
        restart: RestartPolicy::Always,
        healthcheck: None,
        probe: None,
        read_only: false,
        tmpfs: BTreeMap::new(),
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        security_opt: Vec::new(),
        sysctls: BTreeMap::new(),
        ulimits: BTreeMap::new(),
        extra_hosts: Vec::new(),
        hostname: None,
        stop_signal: None,
        stop_grace_period_ms: 1_000,
        init: false,
        logging: None,
        resources: sealift_common::manifest::Resources::default(),
        depends_on: BTreeMap::new(),
        update_order: UpdateOrder::default(),
    }
}

pub fn hook(name: &str, when: HookWhen, version: &str) -> HookSpec {
    HookSpec {
        name: name.parse().unwrap(),
        when,
        image: image(version),
        command: None,
        entrypoint: None,
        environment: BTreeMap::new(),
        variables: std::collections::BTreeSet::new(),
        networks: std::collections::BTreeSet::new(),
        volumes: Vec::new(),
        user: None,
        working_dir: None,
        timeout_ms: DEFAULT_TIMEOUT_MS,
        on_failure: OnFailure::Fail,
    }
}

pub fn binding() -> TargetBinding {
    TargetBinding {
        tenant: "acme".parse().unwrap(),
        environment: "staging".parse().unwrap(),
        target: "web-1".parse().unwrap(),
        target_id: target_id(),
    }
}

/// An order with this fencing token (also its task) for services of these versions.
pub fn order(fence: u64, services: &[(&str, &str)]) -> Order<Manifest> {
    let manifest = Manifest {
        services: services
            .iter()
            .map(|(name, version)| (name.parse().unwrap(), service(image(version))))
            .collect(),
        ..Manifest::default()
    };
    with_manifest(fence, manifest)
}

/// An order with this fencing token (also its task) for any content.
pub fn with_manifest<M: Described>(fence: u64, manifest: M) -> Order<M> {
    let now = clock().now();
    let binding = binding();
    let content = manifest.content_digest().unwrap();
    Order {
        tenant: binding.tenant,
        environment: binding.environment,
        target: binding.target,
        agent_id: agent_id(),
        target_id: binding.target_id,
        job_id: JobId::new(now),
        task_id: TaskId::from(uuid::Uuid::from_u128(1000 + u128::from(fence))),
        attempt: 1,
        wave: 0,
        fence: Fence(fence),
        not_before: now,
        expires_at: now + TimeDelta::minutes(10),
        decision: DecisionRef {
            promotion: PromotionId::new(now),
            record: Digest::of(b"record"),
            plan: Digest::of(b"plan"),
            requested_by: "alice".into(),
        },
        release: ReleaseRef {
            id: ReleaseId::new(now),
            project: "github.com/acme/shop/api".parse().unwrap(),
            commit: "0".repeat(40),
            number: fence,
            content,
        },
        manifest,
        variables: Variables::default(),
        inputs: inputs(content, &Variables::default()).unwrap(),
        limits: Limits {
            min_healthy_ms: 500,
            healthy_deadline_ms: 5_000,
            ..Limits::default()
        },
        swap: Swap::default(),
    }
}

/// An order for a compose host.
pub fn compose_order(fence: u64, services: &[(&str, &str)]) -> Order<ComposeManifest> {
    let pins = services.iter().map(|(name, version)| {
        let pin = ComposeServicePin {
            image: image(version),
            lifetime: Lifetime::Lasting,
            probe: None,
        };
        (name.parse().unwrap(), pin)
    });
    let lines = services
        .iter()
        .map(|(name, version)| format!("  {name}: {{image: 'registry.example.com/demo:{version}'}}\n"));
    let manifest = ComposeManifest {
        kind: ComposeKind::ComposeHost,
        document: std::iter::once("services:\n".to_owned()).chain(lines).collect(),
        profiles: std::collections::BTreeSet::new(),
        services: pins.collect(),
        hooks: Vec::new(),
    };
    with_manifest(fence, manifest)
}

pub fn signed(order: &Order<Manifest>) -> Vec<u8> {
    sign_order(order, &order_key()).unwrap()
}
