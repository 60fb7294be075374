//! Compose applications as people run them (`tests/compose/<name>/compose.yaml`) on a real engine with the host's own Compose: each is
//! deployed, updated, fails, and is rolled back, and what reaches the engine is what the file says.

use std::collections::{BTreeMap, BTreeSet};

use sealift_common::{
    compose::hosted, compose_manifest::ComposeManifest, order::inputs, sticker::Sticker, variables::Variables,
};
use serde_json::Value;

use super::*;
use crate::compose::HostFiles;

mod hooks;
mod kept;

const DIGEST: &str = "registry digest";

fn source(application: &str) -> String {
    let path = format!(
        "{}/../tests/compose/{application}/compose.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read_to_string(path).unwrap()
}

/// The application with `next` as the image that changes from release to release.
fn manifest(text: &str, steady: &PinnedImage, next: &PinnedImage) -> ComposeManifest {
    let reference = |image: &PinnedImage| format!("{}:{}", image.repository, image.tag.as_deref().unwrap());
    let profiles: BTreeSet<String> = text
        .lines()
        .find_map(|line| line.strip_prefix("# profiles: "))
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect();
    let text = text
        .replace("STEADY", &reference(steady))
        .replace("NEXT", &reference(next));
    let file = hosted::parse(&text, &profiles).unwrap();
    let images = file
        .images()
        .into_iter()
        .map(|(name, image)| {
            let image = if image == reference(next) { next } else { steady };
            (name.clone(), image.clone())
        })
        .collect();
    let hooks = file
        .hook_images()
        .into_keys()
        .map(|name| (name.clone(), steady.clone()))
        .collect();
    file.pin(&images, &hooks).unwrap()
}

/// A host whose owner has set a folder aside.
async fn place() -> (Place, tempfile::TempDir) {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("password.txt"), "hunter22").unwrap();
    std::fs::create_dir(files.path().join("shared")).unwrap();
    let env_file = files.path().join("host.env");
    std::fs::write(
        &env_file,
        "SECRET_NETWORK=net-hunter22\nSECRET_FOLDER=/etc/hunter22\n",
    )
    .unwrap();
    let production = HostFiles {
        env_file: Some(files.path().join("production.env")),
        ..HostFiles::default()
    };
    std::fs::write(
        files.path().join("production.env"),
        "PRODUCTION_PASSWORD=hunter23\n",
    )
    .unwrap();
    let config = ComposeConfig {
        // tests/run runs these with Compose v2, too.
        program: std::env::var_os("SEALIFT_TEST_COMPOSE").map(Into::into),
        usual: HostFiles {
            files_dir: Some(files.path().to_owned()),
            env_file: Some(env_file),
        },
        environments: [("production".parse().unwrap(), production)].into(),
    };
    let place = Place::with_compose(1, None, Some(config)).await;
    assert!(
        !place.workshop.shared.compose.borrow().is_missing(),
        "no Compose: tests/run installs docker-compose"
    );
    (place, files)
}

impl Place {
    async fn compose(&mut self, manifest: ComposeManifest) -> Finished {
        let mut order = self.order(0, manifest);
        let variables = BTreeMap::from([("GREETING".to_owned(), "hello $world".to_owned())]);
        order.variables = Variables::try_from(variables).unwrap();
        order.inputs = inputs(order.release.content, &order.variables).unwrap();
        order.limits.healthy_deadline_ms = 90_000;
        self.begin(&order).await;
        let finished = timeout(PATIENCE * 3, self.end_slowly(&order)).await.unwrap();
        self.idle().await;
        finished
    }

    async fn end_slowly<M>(&self, order: &Order<M>) -> Finished {
        let mut tip = self.workshop.outbox().changed();
        loop {
            let reports = self.workshop.outbox().pending(0, 10_000).unwrap();
            let found = reports.into_iter().find_map(|report| match report.event {
                Some(Event::Finished(finished)) if report.task_id == order.task_id.to_string() => {
                    Some(finished)
                }
                _ => None,
            });
            match found {
                Some(finished) => return finished,
                None => tip.changed().await.unwrap(),
            }
        }
    }

    /// `docker inspect` of each container of the target, by service.
    fn inspected(&self) -> BTreeMap<String, Value> {
        let filter = format!(
            "label={}={}",
            crate::labels::TARGET_ID,
            self.bindings[0].target_id
        );
        let ids = docker(&["ps", "-aq", "--filter", &filter]);
        let mut arguments = vec!["inspect"];
        arguments.extend(ids.split_whitespace());
        if arguments.len() == 1 {
            return BTreeMap::new();
        }
        let all: Vec<Value> = serde_json::from_str(&docker(&arguments)).unwrap();
        all.into_iter()
            .map(|one| {
                let labels = &one["Config"]["Labels"];
                (labels[crate::labels::SERVICE].as_str().unwrap().to_owned(), one)
            })
            .collect()
    }

    /// The lock that people see.
    fn lock(&self) -> Option<Vec<u8>> {
        let root = self.dir.path().join("compose");
        let target = std::fs::read_dir(root).ok()?.next()?.ok()?.path();
        let project = std::fs::read_dir(target).ok()?.next()?.ok()?.path();
        std::fs::read(project.join("compose.sealift.lock.yaml")).ok()
    }
}

fn texts(value: &Value) -> BTreeSet<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Whether a container is what the resolved model says of its service.
fn assert_as_described(name: &str, service: &Value, container: &Value) {
    let (config, host) = (&container["Config"], &container["HostConfig"]);
    assert_eq!(config["Image"], service["image"], "{name}: {DIGEST}");
    let restart = service["restart"].as_str().unwrap_or("no");
    assert_eq!(
        host["RestartPolicy"]["Name"].as_str().unwrap(),
        restart.split(':').next().unwrap(),
        "{name}: restart"
    );
    assert_eq!(
        host["ReadonlyRootfs"],
        service["read_only"].as_bool().unwrap_or(false),
        "{name}: read_only"
    );
    for (key, value) in [("cap_add", &host["CapAdd"]), ("cap_drop", &host["CapDrop"])] {
        assert_eq!(texts(value), texts(&service[key]), "{name}: {key}");
    }
    let environment = texts(&config["Env"]);
    for (key, value) in service["environment"].as_object().into_iter().flatten() {
        // In a file that Compose reads again, a dollar sign is written twice.
        let value = value.as_str().unwrap().replace("$$", "$");
        assert!(
            environment.contains(&format!("{key}={value}")),
            "{name}: {key} in {environment:?}"
        );
    }
    let networks = container["NetworkSettings"]["Networks"].as_object().unwrap();
    let wanted: BTreeSet<String> = match &service["networks"] {
        Value::Object(networks) => networks.keys().cloned().collect(),
        Value::Array(_) => texts(&service["networks"]),
        _ => BTreeSet::from(["default".to_owned()]),
    };
    let joined: BTreeSet<String> = networks
        .keys()
        .filter_map(|name| Some(name.rsplit_once('_')?.1.to_owned()))
        .collect();
    assert_eq!(joined, wanted, "{name}: networks");
    let mounted: BTreeSet<&str> = container["Mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|mount| mount["Destination"].as_str())
        .collect();
    for volume in service["volumes"].as_array().into_iter().flatten() {
        let short = volume.as_str().map(|short| {
            let mut parts = short.split(':');
            let first = parts.next().unwrap();
            parts.next().unwrap_or(first)
        });
        let target = short.or_else(|| volume["target"].as_str()).unwrap();
        assert!(mounted.contains(target), "{name}: {target} in {mounted:?}");
    }
    if let Some(user) = service["user"].as_str() {
        assert_eq!(config["User"], user, "{name}: user");
    }
    if !service["mem_limit"].is_null() {
        assert_eq!(host["Memory"], 64 * 1024 * 1024, "{name}: mem_limit");
        assert_eq!(host["NanoCpus"], 500_000_000, "{name}: cpus");
        assert_eq!(host["PidsLimit"], 50, "{name}: pids_limit");
        assert_eq!(host["Ulimits"][0]["Hard"], 2048, "{name}: ulimits");
    }
}

/// The life of one application.
async fn live(application: &str) {
    images!(old = "OK_1", new = "OK_2", bad = "UNHEALTHY");
    let text = source(application);
    let (mut place, _files) = place().await;

    let finished = place.compose(manifest(&text, &old, &old)).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    let first = place.inspected();
    let lock = place.lock().unwrap();
    let model = hosted::document(std::str::from_utf8(&lock).unwrap()).unwrap();
    let wanted = manifest(&text, &old, &old);
    assert_eq!(
        first.keys().map(String::as_str).collect::<Vec<_>>(),
        wanted
            .services
            .keys()
            .map(sealift_common::name::ServiceName::as_str)
            .collect::<Vec<_>>()
    );
    for (name, container) in &first {
        assert_as_described(name, &model["services"][name], container);
    }
    // The sticker and the packet name the lock, which is on the disk as it was hashed.
    let sticker = Sticker::from_file(&finished.sticker).unwrap();
    assert_eq!(sticker.compose_lock, Some(Digest::of(&lock)));
    let key = SigningKey::from_seed(&EVIDENCE_SEED).public();
    let packet = Packet::open(&finished.packet, &key).unwrap();
    assert_eq!(packet.predicate.compose_lock, sticker.compose_lock);

    // An update makes anew what changed and leaves the rest alone.
    let finished = place.compose(manifest(&text, &old, &new)).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    let second = place.inspected();
    for (name, pin) in &manifest(&text, &old, &new).services {
        let same = first[name.as_str()]["Id"] == second[name.as_str()]["Id"];
        assert_eq!(same, pin.image == old, "{name}");
    }

    // A release that never becomes healthy leaves what ran before, by digest and by lock.
    let lock = place.lock();
    let finished = place.compose(manifest(&text, &old, &bad)).await;
    assert_eq!(
        (finished.result(), code(&finished)),
        (Wire::Failed, "UNHEALTHY"),
        "{:?}",
        finished.failure
    );
    assert_eq!(place.lock(), lock);
    let third = place.inspected();
    for (name, container) in &second {
        assert_eq!(
            container["Config"]["Image"], third[name]["Config"]["Image"],
            "{name}"
        );
        if container["State"]["Running"] == true {
            assert_eq!(third[name]["State"]["Running"], true, "{name}");
        }
    }

    // What the restore made anew is known as ours: it is no drift.
    let target = place.bindings[0].target_id;
    let filter = format!("label={}={target}", crate::labels::TARGET_ID);
    let there = docker(&["ps", "-aq", "--no-trunc", "--filter", &filter]);
    let there: BTreeSet<&str> = there.split_whitespace().collect();
    for (_, baseline) in place.workshop.shared.journal.baselines(target).unwrap() {
        for known in baseline.services {
            assert!(there.contains(known.container.as_str()), "{}", known.service);
        }
    }

    // Back to the first.
    let finished = place.compose(manifest(&text, &old, &old)).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    for (name, container) in place.inspected() {
        assert_eq!(
            container["Config"]["Image"], first[&name]["Config"]["Image"],
            "{name}"
        );
    }
    place.down().await;
}

macro_rules! applications {
    ($($test:ident = $name:literal),+ $(,)?) => {
        $(#[tokio::test]
        async fn $test() {
            live($name).await;
        })+
    };
}

applications![
    r10_r15_compose_web_db_cache_on_engine = "web-db-cache",
    r10_r15_compose_workers_on_engine = "workers",
    r10_r15_compose_migration_on_engine = "migration",
    r10_r15_compose_proxy_on_engine = "proxy",
    r10_r15_compose_volumes_on_engine = "volumes",
    r10_r15_compose_profiles_on_engine = "profiles",
    r10_r15_compose_healthchecks_on_engine = "healthchecks",
    r10_r15_compose_limits_on_engine = "limits",
];

#[tokio::test]
async fn r10_compose_refusals_on_engine_touch_nothing_and_orphans_go() {
    images!(old = "OK_1");
    let (mut place, files) = place().await;
    let text = source("migration");

    // Nothing ran before: what failed is taken away.
    let bad = text.replace("\"exit\", \"0\"", "\"exit\", \"3\"");
    let finished = place.compose(manifest(&bad, &old, &old)).await;
    assert_eq!(finished.result(), Wire::Failed);
    assert!(place.inspected().is_empty(), "{:?}", finished.failure);
    assert_eq!(place.lock(), None);

    let finished = place.compose(manifest(&text, &old, &old)).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    let before = place.inspected();

    for (bad, wanted) in [
        ("privileged: true", "HOST_POLICY"),
        ("pid: host", "HOST_POLICY"),
        ("volumes: ['/etc:/x']", "HOST_POLICY"),
        ("network_mode: bridge", "HOST_POLICY"),
        ("security_opt: ['no-new-privileges:false']", "HOST_POLICY"),
        ("environment: { A: '${NOWHERE}' }", "COMPOSE_REJECTED"),
        // Of another environment than the order's.
        ("environment: { A: '${PRODUCTION_PASSWORD}' }", "COMPOSE_REJECTED"),
        ("no_such_key: 1", "COMPOSE_REJECTED"),
    ] {
        let bad = format!("services: {{ web: {{ image: NEXT, {bad} }} }}");
        let finished = place.compose(manifest(&bad, &old, &old)).await;
        assert_eq!(code(&finished), wanted, "{bad}: {:?}", finished.failure);
        assert_eq!(
            place.inspected().keys().collect::<Vec<_>>(),
            before.keys().collect::<Vec<_>>()
        );
        assert_eq!(place.inspected()["web"]["Id"], before["web"]["Id"]);
    }

    // What the engine would mount or join of the host for a volume or network, as this Compose resolves it.
    for (bad, kind) in [
        ("{driver_opts: {type: none, o: bind, device: /etc}}", "volumes"),
        ("{driver_opts: {type: none, o: rbind, device: etc}}", "volumes"),
        (
            "{driver_opts: {type: overlay, o: 'lowerdir=/etc:/tmp', device: overlay}}",
            "volumes",
        ),
        ("{driver_opts: {type: proc, device: proc}}", "volumes"),
        ("{driver_opts: {type: ext4, device: dev/sda1}}", "volumes"),
        ("{driver: local-persist}", "volumes"),
        (
            "{driver_opts: {com.docker.network.bridge.name: docker0}}",
            "networks",
        ),
        ("{external: true, name: bridge}", "networks"),
    ] {
        let used = if kind == "volumes" { "'bad:/d'" } else { "bad" };
        let bad =
            format!("services: {{ web: {{ image: NEXT, {kind}: [{used}] }} }}\n{kind}: {{ bad: {bad} }}");
        let finished = place.compose(manifest(&bad, &old, &old)).await;
        assert_eq!(code(&finished), "HOST_POLICY", "{bad}: {:?}", finished.failure);
        assert_eq!(place.inspected()["web"]["Id"], before["web"]["Id"]);
    }

    // What a service that may write in the folder has put there.
    std::os::unix::fs::symlink("/etc/os-release", files.path().join("shared/leak.env")).unwrap();
    let bad = "services: { web: { image: NEXT, env_file: shared/leak.env } }";
    let finished = place.compose(manifest(bad, &old, &old)).await;
    assert_eq!(code(&finished), "HOST_POLICY", "{:?}", finished.failure);

    // What is borrowed and not there is found before anything is changed.
    for borrowed in [
        "services: { web: { image: NEXT, networks: [edge] } }\nnetworks: { edge: { external: true, name: no-such-network } }",
        "services: { web: { image: NEXT, volumes: ['data:/d'] } }\nvolumes: { data: { external: true, name: no-such-volume } }",
        "services: { web: { image: NEXT } }\nvolumes: { data: { external: true, name: no-such-volume } }\n\
         x-sealift: { hooks: [{ name: a, when: pre_deploy, image: STEADY, volumes: ['data:/d'] }] }",
    ] {
        let finished = place.compose(manifest(borrowed, &old, &old)).await;
        assert_eq!(code(&finished), "CONTAINER_REJECTED", "{:?}", finished.failure);
        assert_eq!(place.inspected()["web"]["Id"], before["web"]["Id"]);
    }

    // Values of the host do not leave it, wherever they were filled in.
    for (bad, wanted) in [
        (
            "services: { web: { image: NEXT, networks: [edge] } }\nnetworks: { edge: { external: true, name: '${SECRET_NETWORK}' } }",
            "CONTAINER_REJECTED",
        ),
        (
            "services: { web: { image: NEXT, volumes: ['${SECRET_FOLDER}:/d'] } }",
            "HOST_POLICY",
        ),
    ] {
        let finished = place.compose(manifest(bad, &old, &old)).await;
        let failure = finished.failure.unwrap();
        assert_eq!(failure.code, wanted, "{failure:?}");
        let said = format!("{failure:?}");
        assert!(said.contains("[hidden]") && !said.contains("hunter22"), "{said}");
    }

    // A service that the new file does not have goes.
    let one = "services: { web: { image: NEXT, stop_grace_period: 1s } }";
    let finished = place.compose(manifest(one, &old, &old)).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    assert_eq!(place.inspected().keys().collect::<Vec<_>>(), ["web"]);
    place.down().await;
}
