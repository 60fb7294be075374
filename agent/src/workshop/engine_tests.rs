//! The workshop on a real engine with a real registry. `tests/run` gives both; without them these tests fail.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use sealift_common::{
    any_manifest::Described,
    evidence::Packet,
    id::{AgentId, TaskId},
    keys::SigningKey,
    manifest::{Manifest, MountSpec, PinnedImage, PortSpec, Probe, Protocol, Resources, ServiceSpec, Ulimit},
    order::sign_order,
    spiffe::SpiffeId,
    time::SystemClock,
};
use sealift_proto::agent::v1::{Finished, finished::Result as Wire};
use tokio::time::{Instant, timeout};

use sealift_common::order::TargetBinding;

use super::*;
use crate::{bindings::Bindings, compose::ComposeConfig, host::docker::DockerHost, samples};

const EVIDENCE_SEED: [u8; 32] = [9; 32];
const PATIENCE: Duration = Duration::from_mins(1);

/// What the environment must say. A test that passes without an engine would prove nothing.
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this through `tests/run engine`"))
}

fn image(name: &str) -> PinnedImage {
    let reference = setting(&format!("SEALIFT_TEST_IMAGE_{name}"));
    let (repository, tag) = reference.rsplit_once(':').unwrap();
    pin(repository, tag, repository)
}

/// What the open registry holds under a tag, as an image of `repository`.
fn pin(open: &str, tag: &str, repository: &str) -> PinnedImage {
    let (registry, path) = open.split_once('/').unwrap();
    let mut stream = TcpStream::connect(registry).unwrap();
    write!(
        stream,
        "HEAD /v2/{path}/manifests/{tag} HTTP/1.1\r\nHost: {registry}\r\n\
         Accept: application/vnd.docker.distribution.manifest.v2+json\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let digest = answer.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("docker-content-digest: ")
            .map(str::to_owned)
    });
    PinnedImage {
        repository: repository.to_owned(),
        tag: Some(tag.to_owned()),
        digest: digest
            .unwrap_or_else(|| panic!("{answer}"))
            .trim()
            .parse()
            .unwrap(),
    }
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// One agent with its own targets; everything that it made is removed in the end, whatever happens.
struct Place {
    workshop: Arc<Workshop<DockerHost>>,
    bindings: Vec<TargetBinding>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
    dir: tempfile::TempDir,
    next: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        for binding in &self.bindings {
            let filter = format!("label={}={}", crate::labels::TARGET_ID, binding.target_id);
            for (list, remove) in [
                (vec!["ps", "-aq", "--filter", &filter], vec!["rm", "-fv"]),
                (
                    vec!["network", "ls", "-q", "--filter", &filter],
                    vec!["network", "rm"],
                ),
                (
                    vec!["volume", "ls", "-q", "--filter", &filter],
                    vec!["volume", "rm"],
                ),
            ] {
                let found = docker(&list);
                let mut arguments = remove;
                arguments.extend(found.split_whitespace());
                if !found.is_empty() {
                    docker(&arguments);
                }
            }
        }
    }
}

fn random() -> uuid::Uuid {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    uuid::Uuid::from_bytes(bytes)
}

impl Place {
    async fn new(targets: usize, credentials: Option<&Path>) -> Self {
        Self::made(targets, credentials, PrunePolicy::default(), None).await
    }

    async fn pruning(targets: usize, credentials: Option<&Path>, prune: PrunePolicy) -> Self {
        Self::made(targets, credentials, prune, None).await
    }

    /// With the host's Compose, if it is to have one.
    async fn with_compose(
        targets: usize,
        credentials: Option<&Path>,
        compose: Option<ComposeConfig>,
    ) -> Self {
        Self::made(targets, credentials, PrunePolicy::default(), compose).await
    }

    async fn made(
        targets: usize,
        credentials: Option<&Path>,
        prune: PrunePolicy,
        compose: Option<ComposeConfig>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bindings: Vec<TargetBinding> = (0..targets)
            .map(|number| TargetBinding {
                target: format!("web-{number}").parse().unwrap(),
                target_id: random().into(),
                ..samples::binding()
            })
            .collect();
        let socket = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "/var/run/docker.sock".to_owned());
        let compose = compose.map(|config| {
            let socket = format!("unix://{}", socket.trim_start_matches("unix://"));
            Search::new(config, dir.path(), &socket, None)
        });
        let compose = compose.unwrap_or_else(|| samples::no_compose(dir.path()));
        let shutdown = CancellationToken::new();
        let tracker = TaskTracker::new();
        let agent_id = AgentId::from(random());
        let workshop = Workshop::start(WorkshopParts {
            host: DockerHost::connect(&socket, credentials).unwrap(),
            state_dir: dir.path().to_owned(),
            clock: Arc::new(SystemClock),
            identity: AgentIdentity {
                agent_id,
                bindings: Bindings::fixed(bindings.clone()),
                order_keys: vec![samples::order_key().public()],
                evidence_key: SigningKey::from_seed(&EVIDENCE_SEED),
                spiffe_id: SpiffeId::agent("acme".parse().unwrap(), agent_id),
                certificate_serial: Box::new(|| "0a".to_owned()),
            },
            compose,
            policy: HostPolicy::default(),
            prune,
            program: ProgramParts::default(),
            hostname: "host".to_owned(),
            shutdown: shutdown.clone(),
            tracker: tracker.clone(),
        })
        .await;
        Self {
            workshop,
            bindings,
            shutdown,
            tracker,
            dir,
            next: 0,
        }
    }

    fn order<M: Described>(&mut self, target: usize, manifest: M) -> Order<M> {
        self.next += 1;
        let mut order = samples::with_manifest(self.next, manifest);
        let now = SystemClock.now();
        order.agent_id = self.workshop.shared.identity.agent_id;
        order.target = self.bindings[target].target.clone();
        order.target_id = self.bindings[target].target_id;
        order.task_id = TaskId::from(random());
        order.not_before = now;
        order.expires_at = now + chrono::TimeDelta::minutes(5);
        order.limits.min_healthy_ms = 300;
        order.limits.healthy_deadline_ms = 20_000;
        order
    }

    async fn begin<M: serde::Serialize>(&self, order: &Order<M>) {
        let bytes = sign_order(order, &samples::order_key()).unwrap();
        self.workshop.offer(order.task_id, 1, bytes).await;
    }

    async fn end<M>(&self, order: &Order<M>) -> Finished {
        let find = || {
            let reports = self.workshop.outbox().pending(0, 10_000).unwrap();
            reports.into_iter().find_map(|report| match report.event {
                Some(Event::Finished(finished)) if report.task_id == order.task_id.to_string() => {
                    Some(finished)
                }
                _ => None,
            })
        };
        let mut tip = self.workshop.outbox().changed();
        let wait = async {
            loop {
                if let Some(finished) = find() {
                    break finished;
                }
                tip.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, wait).await.unwrap()
    }

    async fn deploy<M: Described>(&mut self, manifest: M) -> Finished {
        let order = self.order(0, manifest);
        self.begin(&order).await;
        let finished = self.end(&order).await;
        self.idle().await;
        finished
    }

    async fn idle(&self) {
        let wait = async {
            while self.workshop.is_busy() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap();
    }

    /// `image policy state` of each container of the first target.
    fn containers(&self) -> Vec<String> {
        let filter = format!(
            "label={}={}",
            crate::labels::TARGET_ID,
            self.bindings[0].target_id
        );
        let ids = docker(&["ps", "-aq", "--filter", &filter]);
        ids.split_whitespace()
            .map(|id| {
                docker(&[
                    "inspect",
                    "--format",
                    "{{.Config.Image}} {{.HostConfig.RestartPolicy.Name}} {{.State.Status}}",
                    id,
                ])
            })
            .collect()
    }

    async fn down(self) {
        self.shutdown.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.unwrap();
    }
}

fn is_podman() -> bool {
    docker(&[
        "version",
        "--format",
        "{{range .Server.Components}}{{.Name}} {{end}}",
    ])
    .contains("Podman")
}

fn one(spec: ServiceSpec) -> Manifest {
    Manifest {
        services: [("web".parse().unwrap(), spec)].into(),
        ..Manifest::default()
    }
}

fn code(finished: &Finished) -> &str {
    finished.failure.as_ref().map_or("", |failure| &failure.code)
}

macro_rules! images {
    ($($name:ident = $key:literal),+) => {
        $(let $name = image($key);)+
    };
}

mod compose;

#[tokio::test]
async fn r10_r15_releases_on_engine_replace_each_other_or_leave_the_old_one() {
    images!(
        ok_1 = "OK_1",
        ok_2 = "OK_2",
        unhealthy = "UNHEALTHY",
        crash = "CRASH"
    );
    let mut place = Place::new(1, None).await;
    let first = place.deploy(one(samples::service(ok_1.clone()))).await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let began = Instant::now();
    let second = place.deploy(one(samples::service(ok_2.clone()))).await;
    eprintln!("one swap with 300 ms min_healthy took {:?}", began.elapsed());
    assert_eq!(second.result(), Wire::Succeeded, "{:?}", second.failure);
    let wanted = vec![format!("{} always running", ok_2.pull_reference())];
    assert_eq!(place.containers(), wanted);
    let key = SigningKey::from_seed(&EVIDENCE_SEED).public();
    let said = Packet::open(&second.packet, &key).unwrap();
    assert_eq!(said.subject[0].digest(), Ok(ok_2.digest));
    assert_eq!(
        said.predicate.previous.values().copied().collect::<Vec<_>>(),
        [ok_1.digest]
    );

    for (image, wanted_code) in [(unhealthy, "UNHEALTHY"), (crash, "WORKLOAD_EXITED")] {
        let failed = place.deploy(one(samples::service(image))).await;
        assert_eq!(code(&failed), wanted_code, "{:?}", failed.failure);
        assert_eq!(place.containers(), wanted, "{wanted_code}");
        let said = Packet::open(&failed.packet, &key).unwrap();
        assert_eq!(said.subject[0].digest(), Ok(ok_2.digest));
    }
    let mut logs = place.workshop.take_logs().unwrap();
    let mut seen = Vec::new();
    while let Ok(line) = logs.try_recv() {
        seen.push(line.text);
    }
    assert!(
        seen.iter().any(|line| line.contains("exiting with 3")),
        "{seen:#?}"
    );
    place.down().await;
}

#[tokio::test]
async fn bad_input_on_engine_has_a_code_each_and_changes_nothing() {
    images!(ok = "OK_1", plain = "PLAIN");
    let mut place = Place::new(1, None).await;
    let good = place.deploy(one(samples::service(ok.clone()))).await;
    assert_eq!(good.result(), Wire::Succeeded, "{:?}", good.failure);
    let before = place.containers();

    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let mut port = samples::service(ok.clone());
    port.ports.push(PortSpec {
        container: 8080,
        host: Some(taken.local_addr().unwrap().port()),
        host_ip: None,
        protocol: Protocol::Tcp,
    });
    let mut command = samples::service(ok.clone());
    command.entrypoint = Some(vec!["/no/such/program".into()]);
    let mut nowhere = samples::service(ok.clone());
    nowhere.image.digest = Digest::of(b"nowhere");
    // Digests that no other test has brought here: Podman finds an image by its digest, whatever its repository is called.
    let mut closed = samples::service(ok.clone());
    closed.image.digest = Digest::of(b"closed");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    closed.image.repository = format!("{free}/x");
    let mut bind = samples::service(ok.clone());
    bind.volumes.push(MountSpec::Bind {
        source: "/no/such/folder/on/this/host".into(),
        target: "/x".into(),
        read_only: true,
    });
    let mut dead = samples::service(plain);
    dead.probe = Some(Probe::Tcp { port: 9 });
    let locked = setting("SEALIFT_TEST_AUTH_REGISTRY");
    let mut denied = samples::service(ok);
    denied.image.digest = Digest::of(b"denied");
    denied.image.repository = format!("{locked}/{}", denied.image.repository.split_once('/').unwrap().1);
    let cases = [
        (port, "PORT_IN_USE"),
        (command, "CONTAINER_REJECTED"),
        (nowhere, "IMAGE_NOT_FOUND"),
        (closed, "REGISTRY_UNAVAILABLE"),
        (bind, "ORDER_REFUSED"),
        (dead, "HEALTH_DEADLINE"),
        (denied, "REGISTRY_DENIED"),
    ];
    for (spec, wanted) in cases {
        let mut order = place.order(0, one(spec));
        order.limits.healthy_deadline_ms = 3_000;
        place.begin(&order).await;
        let finished = place.end(&order).await;
        place.idle().await;
        assert_eq!(code(&finished), wanted, "{:?}", finished.failure);
        assert_eq!(place.containers(), before, "{wanted}");
    }
    place.down().await;
}

#[tokio::test]
async fn t18_credentials_on_engine_come_from_the_docker_config_file() {
    images!(ok = "OK_1");
    let variable = |name: &str| setting(&format!("SEALIFT_TEST_AUTH_{name}"));
    let (locked, user, password) = (variable("REGISTRY"), variable("USER"), variable("PASSWORD"));
    let dir = tempfile::tempdir().unwrap();
    let file: PathBuf = dir.path().join("config.json");
    let token = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("{user}:{password}"),
    );
    std::fs::write(
        &file,
        format!(r#"{{"auths":{{"{locked}":{{"auth":"{token}"}}}}}}"#),
    )
    .unwrap();
    let mut place = Place::new(1, Some(&file)).await;
    let mut spec = samples::service(ok);
    spec.image.repository = format!("{locked}/{}", spec.image.repository.split_once('/').unwrap().1);
    let finished = place.deploy(one(spec)).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    place.down().await;
}

#[tokio::test]
async fn every_supported_key_reaches_the_container_on_engine() {
    images!(plain = "PLAIN");
    let mut place = Place::new(1, None).await;
    let mut spec = samples::service(plain);
    spec.environment.insert("PORT".into(), "9090".into());
    spec.hostname = Some("demo".into());
    spec.user = Some("65534".into());
    spec.working_dir = Some("/".into());
    spec.read_only = true;
    spec.init = true;
    spec.tmpfs.insert("/tmp".into(), "size=1m".into());
    spec.cap_drop = vec!["ALL".into()];
    spec.cap_add = vec!["NET_BIND_SERVICE".into()];
    spec.security_opt = vec!["no-new-privileges:true".into()];
    spec.ulimits.insert(
        "nofile".into(),
        Ulimit {
            soft: 512,
            hard: 1024,
        },
    );
    spec.extra_hosts = vec!["example:127.0.0.1".into()];
    spec.stop_signal = Some("SIGINT".into());
    spec.labels.insert("com.acme".into(), "kept".into());
    spec.resources = Resources {
        milli_cpus: 500,
        memory_bytes: 64 * 1024 * 1024,
        pids: 32,
    };
    spec.volumes.push(MountSpec::Volume {
        volume: "data".parse().unwrap(),
        target: "/data".into(),
        read_only: false,
    });
    spec.ports.push(PortSpec {
        container: 9090,
        host: None,
        host_ip: Some("127.0.0.1".parse().unwrap()),
        protocol: Protocol::Tcp,
    });
    spec.networks
        .insert("front".parse().unwrap(), vec!["shop".into()]);
    spec.networks.insert("back".parse().unwrap(), Vec::new());
    spec.probe = Some(Probe::Http {
        port: 9090,
        path: "/healthz".into(),
    });
    let mut manifest = one(spec);
    manifest.volumes.insert(
        "data".parse().unwrap(),
        sealift_common::manifest::VolumeSpec::default(),
    );
    let finished = place.deploy(manifest.clone()).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    let filter = format!(
        "label={}={}",
        crate::labels::TARGET_ID,
        place.bindings[0].target_id
    );
    let id = docker(&["ps", "-q", "--filter", &filter]);
    let format = "{{.Config.Hostname}} {{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Init}} \
                  {{.HostConfig.CapDrop}} {{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} \
                  {{.Config.StopSignal}} {{len .NetworkSettings.Networks}} {{len .Mounts}} {{index .Config.Labels \"com.acme\"}}";
    assert_eq!(
        docker(&["inspect", "--format", format, &id]),
        "demo 65534 true true [ALL] 67108864 500000000 32 SIGINT 2 1 kept"
    );

    // The networks that the next release does not use are removed, the volume stays.
    let mut less = manifest;
    let web = less.services.values_mut().next().unwrap();
    web.networks.clear();
    let finished = place.deploy(less).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    let networks = docker(&["network", "ls", "--format", "{{.Name}}", "--filter", &filter]);
    assert!(
        networks.ends_with("-default") && networks.lines().count() == 1,
        "{networks}"
    );
    assert_eq!(
        docker(&["volume", "ls", "-q", "--filter", &filter])
            .lines()
            .count(),
        1
    );
    place.down().await;
}

#[tokio::test]
async fn r12_targets_side_by_side_on_engine_do_not_touch_each_other_or_foreign_containers() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2");
    let foreign = format!("foreign-{}", random().simple());
    docker(&["create", "--name", &foreign, &ok_1.pull_reference()]);
    let mut place = Place::new(4, None).await;
    for image in [ok_1, ok_2] {
        let began = Instant::now();
        let mut orders = Vec::new();
        for target in 0..place.bindings.len() {
            let order = place.order(target, one(samples::service(image.clone())));
            place.begin(&order).await;
            orders.push(order);
        }
        for order in &orders {
            let finished = place.end(order).await;
            assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
        }
        place.idle().await;
        eprintln!("{} targets took {:?}", orders.len(), began.elapsed());
        assert_eq!(
            place.containers(),
            [format!("{} always running", image.pull_reference())]
        );
    }
    let name = docker(&["inspect", "--format", "{{.State.Status}}", &foreign]);
    docker(&["rm", "-f", &foreign]);
    assert_eq!(name, "created");
    place.down().await;
}

#[tokio::test]
async fn changes_by_hand_on_engine_are_observed() {
    images!(ok = "OK_1");
    let mut place = Place::new(1, None).await;
    let mut feed = place.workshop.take_observations().unwrap();
    place.deploy(one(samples::service(ok))).await;
    let filter = format!(
        "label={}={}",
        crate::labels::TARGET_ID,
        place.bindings[0].target_id
    );
    let id = docker(&["ps", "-q", "--filter", &filter]);
    let mut expect =
        async |what: &str, holds: &dyn Fn(&sealift_common::observation::ContainerObservation) -> bool| {
            let wait = async {
                loop {
                    let seen = feed.recv().await.unwrap();
                    let mut containers = seen.projects.values().flat_map(|project| &project.containers);
                    if !seen.busy && containers.next().is_some_and(holds) {
                        break;
                    }
                }
            };
            timeout(Duration::from_secs(10), wait)
                .await
                .unwrap_or_else(|_| panic!("{what}"));
        };
    expect("deployed", &|container| {
        container.unchanged && container.digest.is_some()
    })
    .await;
    // Podman has no such call before 5.1.
    if !is_podman() {
        docker(&["update", "--restart", "no", &id]);
        expect("updated", &|container| !container.unchanged).await;
        docker(&["update", "--restart", "always", &id]);
        expect("put back", &|container| container.unchanged).await;
    }
    docker(&["stop", "-t", "1", &id]);
    expect("stopped", &|container| container.state.as_str() == "exited").await;
    place.down().await;
}

// Below the macro that they use.
mod hooks;
mod images;
mod probes;
mod swaps;
