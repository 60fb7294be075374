use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::{
    digest::Digest,
    error::Reason,
    manifest::{DependencyCondition, Healthcheck, MountSpec, Probe, Protocol, RestartPolicy, Ulimit},
};

const SHOP: &str = include_str!("../../tests/compose/shop.yaml");
const FULL: &str = include_str!("../../tests/compose/full.yaml");
const RENDERED: &str = include_str!("../../tests/compose/rendered.yaml");

fn read(text: &str) -> Result<ComposeFile, ComposeErrors> {
    parse(text, &EnvFiles::new())
}

fn pinned(file: ComposeFile) -> Manifest {
    let resolved = file
        .images()
        .into_iter()
        .map(|(name, image)| {
            let image = PinnedImage {
                repository: image.to_owned(),
                tag: None,
                digest: Digest::of(image.as_bytes()),
            };
            (name.clone(), image)
        })
        .collect();
    let hooks = file
        .hook_images()
        .into_keys()
        .map(|name| (name.clone(), hooks::tests::image()))
        .collect();
    file.pin(&resolved, &hooks).unwrap()
}

fn service(body: &str) -> Result<ServiceSpec, ComposeErrors> {
    let text = format!(
        "services:\n  web:\n    image: redis\n{}",
        body.lines()
            .map(|line| format!("    {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    read(&text).map(|file| pinned(file).services.remove("web").unwrap())
}

fn errors(text: &str) -> Vec<(String, Reason)> {
    let errors = read(text).unwrap_err().errors;
    errors
        .into_iter()
        .map(|error| (error.path, error.reason))
        .collect()
}

#[test]
fn a_shop_is_read_wholly() {
    let file = read(SHOP).unwrap();
    assert_eq!(
        file.images()[&"api".parse::<ServiceName>().unwrap()],
        "registry.acme.com:5000/shop/api:1.4.2"
    );
    let manifest = pinned(file);
    let order: Vec<_> = manifest
        .start_order()
        .into_iter()
        .map(ServiceName::as_str)
        .collect();
    assert_eq!(order, ["cache", "db", "api", "web"]);
    let api = &manifest.services["api"];
    assert_eq!(api.environment["LOG_LEVEL"], "info");
    assert_eq!(api.environment["PRICE"], "$5");
    assert_eq!(api.depends_on["db"], DependencyCondition::ServiceHealthy);
    assert_eq!(api.resources.memory_bytes, 256 << 20);
    assert_eq!(api.resources.milli_cpus, 500);
    assert_eq!(api.restart, RestartPolicy::UnlessStopped);
    assert_eq!(manifest.services["web"].restart, RestartPolicy::UnlessStopped);
    assert_eq!(
        manifest.services["cache"].command.as_deref().unwrap(),
        ["redis-server", "--save", "60 1"]
    );
}

#[test]
fn every_supported_key_is_read_into_the_manifest() {
    let given = BTreeMap::from([(
        "./web.env".to_owned(),
        BTreeMap::from([
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), "file".to_owned()),
        ]),
    )]);
    let manifest = pinned(parse(FULL, &given).unwrap());
    let web = &manifest.services["web"];
    let json = serde_json::to_value(web).unwrap();
    // No field of the manifest stays at what an empty service has, so no key is forgotten.
    let idle = serde_json::to_value(service("").unwrap()).unwrap();
    for (field, value) in json.as_object().unwrap() {
        assert!(
            idle.get(field) != Some(value),
            "{field} was not read from the full example"
        );
    }
    let config = web.clone();
    assert_eq!(
        json.as_object().unwrap().len(),
        28,
        "a field is missing in the full example: {json}"
    );
    assert_eq!(config.environment["A"], "1");
    assert_eq!(config.environment["B"], "environment wins");
    assert_eq!(
        config.ulimits["nofile"],
        Ulimit {
            soft: 20_000,
            hard: 40_000
        }
    );
    assert_eq!(
        config.ulimits["nproc"],
        Ulimit {
            soft: 65_535,
            hard: 65_535
        }
    );
    assert_eq!(
        config.healthcheck.unwrap(),
        Healthcheck {
            test: vec![
                "CMD".into(),
                "wget".into(),
                "-q".into(),
                "http://localhost/".into()
            ],
            interval_ms: Some(90_000),
            timeout_ms: Some(10_000),
            retries: Some(3),
            start_period_ms: Some(40_000),
        }
    );
    assert_eq!(
        config.probe,
        Some(Probe::Http {
            port: 80,
            path: "/health".into()
        })
    );
    assert!(config.ports.iter().any(|port| port.protocol == Protocol::Udp));
    assert!(config.volumes.contains(&MountSpec::Bind {
        source: "/srv/web".into(),
        target: "/usr/share/web".into(),
        read_only: true,
    }));
    assert_eq!(config.tmpfs["/run"], "size=64m,mode=1777");
    assert_eq!(
        config.extra_hosts,
        ["db.local:10.0.0.5", "gw:host-gateway", "six:::1"]
    );
}

#[test]
fn what_docker_compose_config_prints_is_read() {
    let manifest = pinned(read(RENDERED).unwrap());
    let web = &manifest.services["web"];
    assert!(web.networks.is_empty(), "only the default network");
    assert_eq!(web.ports[0].host, Some(8080));
    assert_eq!(web.command, None);
    assert_eq!(manifest.volumes["data"].external, None);
}

#[test]
fn the_documentation_lists_exactly_the_supported_keys() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compose-support.md");
    let page = std::fs::read_to_string(path).unwrap();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let wanted: Vec<_> = keys::SUPPORTED
        .iter()
        .map(|(key, note)| format!("| `{key}` | {note} |").replace("|  |", "| |"))
        .collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let (head, rest) = page.split_once("<!-- keys -->\n").unwrap();
        let (_, tail) = rest.split_once("<!-- end of keys -->").unwrap();
        let rows = wanted.join("\n");
        let page =
            format!("{head}<!-- keys -->\n| Key | Notes |\n|---|---|\n{rows}\n<!-- end of keys -->{tail}");
        std::fs::write(path, page).unwrap();
        return;
    }
    assert_eq!(rows, wanted, "run the test with UPDATE_GOLDEN=1");
}

#[test]
fn unsupported_keys_are_refused_with_path_and_advice() {
    let text = "
include: [other.yaml]
secrets: {a: {}}
services:
  web:
    image: redis
    network_mode: host
    privileged: true
    build: .
    profiles: [x]
    deploy: {replicas: 3, resources: {reservations: {cpus: '1'}}}
    x-other: {anything: [1]}
x-common: {a: 1}
";
    let found = read(text).unwrap_err();
    assert_eq!(found.reason(), Reason::UnsupportedManifestKey);
    let mut paths: Vec<_> = found.errors.iter().map(|error| error.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "include",
            "secrets",
            "services.web.build",
            "services.web.deploy.replicas",
            "services.web.deploy.resources.reservations",
            "services.web.network_mode",
            "services.web.privileged",
            "services.web.profiles",
        ]
    );
    let host = found
        .errors
        .iter()
        .find(|error| error.path.ends_with("network_mode"))
        .unwrap();
    assert_eq!((host.line, host.column), (Some(7), Some(5)));
    assert!(host.advice.contains("compose_host"));
    let build = found
        .errors
        .iter()
        .find(|error| error.path.ends_with("build"))
        .unwrap();
    assert!(build.advice.contains("`image:`"));
}

#[test]
fn variables_are_refused_and_doubled_dollars_unescaped() {
    for body in [
        "command: echo ${HOME}",
        "environment: {A: $B}",
        "user: ${UID:-1}",
        "hostname: a$",
    ] {
        let found = service(body).unwrap_err();
        assert!(found.errors[0].advice.contains("docker compose config"), "{body}");
    }
    assert_eq!(
        service("command: [sh, -c, 'echo $$HOME']")
            .unwrap()
            .command
            .unwrap()[2],
        "echo $HOME"
    );
}

#[test]
fn malformed_values_are_refused_at_their_place() {
    for body in [
        "environment: [A]",
        "environment: {A: }",
        "environment: ['=x']",
        "environment: {A: 1.10}",
        "environment: [A=1, A=2]",
        "environment: 3",
        "environment: {A: \"\\0\"}",
        "env_file: missing.env",
        "ports: [80:0]",
        "ports: [{published: 80}]",
        "ports: [{target: 80, published: 80-90}]",
        "ports: ['80:80', '127.0.0.1:80:81']",
        "volumes: [./data:/data]",
        "volumes: [data]",
        "volumes: [/a:/data:z]",
        "volumes: [/a/../b:/data]",
        "volumes: ['/a:/']",
        "volumes: [undeclared:/data]",
        "volumes: ['/a:/data', '/b:/data/']",
        "volumes: [{type: npipe, target: /x}]",
        "volumes: [{type: bind, target: /x}]",
        "volumes: [{type: volume, target: /x, volume: {nocopy: true}}]",
        "tmpfs: [/run, /run]",
        "networks: [unknown]",
        "networks: {default: {ipv4_address: 10.0.0.1}}",
        "labels: {com.docker.compose.project: x}",
        "labels: {dev.sealift.tenant: x}",
        "working_dir: app",
        "restart: sometimes",
        "restart: on-failure:-1",
        "restart: true",
        "healthcheck: {test: [wget]}",
        "healthcheck: {interval: 10}",
        "healthcheck: {disable: true, test: wget}",
        "healthcheck: {start_interval: 1s}",
        "stop_grace_period: 1d",
        "read_only: yes",
        "init: 1",
        "cap_add: [NET_ADMIN, NET_ADMIN]",
        "cap_add: ['NET ADMIN']",
        "security_opt: ['seccomp:profile.json']",
        "ulimits: {nofile: {soft: 2, hard: 1}}",
        "ulimits: {nofile: {soft: 2}}",
        "ulimits: {nofile: -2}",
        "extra_hosts: [somewhere]",
        "extra_hosts: ['a:b']",
        "hostname: a_/b",
        "stop_signal: ''",
        "logging: {options: {max-size: 10m}}",
        "deploy: {resources: {limits: {memory: 5m}}}",
        "deploy: {resources: {limits: {cpus: '0.0001'}}}",
        "deploy: {resources: {limits: {pids: -1}}}",
        "deploy: {update_config: {order: rolling}}",
        "deploy: {update_config: {parallelism: 2}}",
        "ports: ['80:80']\ndeploy: {update_config: {order: start-first}}",
        "volumes: ['/srv:/srv']\ndeploy: {update_config: {order: start-first}}",
        "depends_on: [nobody]",
        "depends_on: [web]",
        "depends_on: {web: {condition: service_completed_successfully}}",
        "x-sealift: {probe: {}}",
        "x-sealift: {probe: {tcp: {port: 0}}}",
        "x-sealift: {probe: {tcp: {port: 1}, exec: {command: x}}}",
        "x-sealift: {probe: {http: {port: 80, path: health}}}",
        "x-sealift: {prob: {}}",
        "command: 'echo \"'",
        "command: {a: b}",
    ] {
        let found = service(body);
        let found = found.expect_err(body);
        let error = &found.errors[0];
        assert!(error.path.starts_with("services"), "{body}: {error}");
        assert!(
            error.line.is_some() && !error.advice.is_empty(),
            "{body}: {error}"
        );
    }
}

#[test]
fn services_are_checked_against_each_other() {
    let circle = "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}, c: {image: x, depends_on: [a]}}";
    let found = read(circle).unwrap_err();
    assert_eq!(found.errors.len(), 2, "{found:?}");
    let ports = "services: {a: {image: x, ports: ['80:1']}, b: {image: x, ports: ['80:2']}}";
    assert!(read(ports).unwrap_err().to_string().contains("host port 80"));
    let different =
        "services: {a: {image: x, ports: ['127.0.0.1:80:1']}, b: {image: x, ports: ['127.0.0.2:80:2']}}";
    assert!(read(different).is_ok());
}

#[test]
fn files_that_are_no_compose_files_are_refused() {
    for text in [
        "",
        "services",
        "[]",
        "services: {}",
        "services: []",
        "services: {web: }",
        "services: {web: {image: }}",
        "services: {web: {image: 'a b'}}",
        "services: {'we b': {image: x}}",
        "services: {web: {image: x, image: y}}",
        "services: {web: {image: x}, web: {image: x}}",
        "services: {web: {image: x}}\n---\nservices: {web: {image: x}}",
        "services: {web: {image: *nothing}}",
        "services: {web: {image: !!binary aGFsbG8=}}}",
        "services: {web: {image: x}",
        "\t",
    ] {
        let found = read(text);
        assert!(found.is_err(), "{text:?}");
        assert_eq!(found.unwrap_err().reason(), Reason::InvalidManifest, "{text:?}");
    }
    let errors_of_names = errors("services: {'we b': {image: x}}");
    assert_eq!(errors_of_names[0].0, "services.we b");
    let many = format!(
        "services: {{web: {{image: x, {}}}}}",
        (0..80).map(|i| format!("k{i}: 1")).collect::<Vec<_>>().join(", ")
    );
    let found = read(&many).unwrap_err();
    assert_eq!((found.errors.len(), found.more), (error::MOST, 30));
}

#[test]
fn hostile_files_are_refused_quickly() {
    let mut bomb = String::from("x-0: &x0 [a, a, a, a, a, a, a, a, a, a]\n");
    for level in 1..12 {
        let aliases = vec![format!("*x{}", level - 1); 10].join(", ");
        bomb = format!("{bomb}x-{level}: &x{level} [{aliases}]\n");
    }
    let repeated = format!(
        "x-a: &a {}\nx-b: [{}]\n",
        "a".repeat(60_000),
        vec!["*a"; 1_900].join(",")
    );
    let block: String = (0..1_000)
        .map(|depth| format!("{}a:", " ".repeat(depth)))
        .collect::<Vec<_>>()
        .join("\n");
    for (name, text) in [
        ("alias bomb", bomb),
        ("long scalar repeated", repeated),
        (
            "nested lists",
            format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000)),
        ),
        ("nested maps", "{a: ".repeat(10_000)),
        ("nested block", block),
        ("nested block lists", "- ".repeat(10_000)),
        (
            "huge scalar",
            format!("services: {{web: {{image: x, user: {}}}}}", "a".repeat(900_000)),
        ),
        ("huge file", " ".repeat(2_000_000)),
        ("many nodes", format!("x-a: [{}]", "1,".repeat(100_000))),
        ("many documents", "---\na\n".repeat(10_000)),
        ("merge loop", "a: &a {<<: *a}".to_owned()),
        (
            "many keys",
            (0..60_000)
                .map(|i| format!("k{i}: 1"))
                .collect::<Vec<_>>()
                .join("\n"),
        ),
        ("long key", format!("? {}\n: 1\n", "k".repeat(10_000))),
    ] {
        let start = Instant::now();
        let found = read(&text);
        let took = start.elapsed();
        assert!(found.is_err(), "{name}");
        assert!(took < Duration::from_secs(5), "{name} took {took:?}");
        assert!(
            found
                .unwrap_err()
                .errors
                .iter()
                .all(|e| e.to_string().len() < 2_000),
            "{name}"
        );
    }
}

fn tree() -> impl Strategy<Value = serde_json::Value> {
    let key = prop_oneof![
        4 => prop::sample::select(
            keys::SUPPORTED
                .iter()
                .filter_map(|(path, _)| path.rsplit(['.']).next())
                .map(|key| key.trim_end_matches("[]").to_owned())
                .collect::<Vec<_>>()
        ),
        1 => "[a-z$.=\\-]{0,8}",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "[a-z0-9:/$=.\\-\\[\\]]{0,16}".prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = read(&text);
    }

    #[test]
    fn arbitrary_yaml_like_text_never_panics(text in "[ a-z0-9:\\-\\[\\]{}&*!|>'\"%@`#,?\n\t$]{0,200}") {
        let _ = read(&text);
        let _ = read(&format!("services:\n  web:\n    image: x\n    {text}"));
    }

    #[test]
    fn arbitrary_trees_never_panic(tree in tree()) {
        let _ = read(&tree.to_string());
        let _ = read(&serde_json::json!({"services": {"web": tree}}).to_string());
    }

    #[test]
    fn each_key_with_any_value_never_panics(index in 0..keys::SUPPORTED.len(), value in tree()) {
        let (path, _) = keys::SUPPORTED[index];
        let value = path.split('.').rev().fold(value, |value, segment| match segment {
            "*" => serde_json::json!({"a": value}),
            _ => match segment.strip_suffix("[]") {
                Some(key) => serde_json::json!({key: [value]}),
                None => serde_json::json!({segment: value}),
            },
        });
        let _ = read(&value.to_string());
    }

    #[test]
    fn environment_survives_in_both_syntaxes(
        environment in prop::collection::btree_map("[A-Z_]{1,8}", "[ -~é]{0,20}", 1..8)
    ) {
        let escaped: BTreeMap<_, _> =
            environment.iter().map(|(key, value)| (key.clone(), value.replace('$', "$$"))).collect();
        let list: Vec<_> = escaped.iter().map(|(key, value)| format!("{key}={value}")).collect();
        for written in [serde_json::json!(escaped), serde_json::json!(list)] {
            let text = serde_json::json!({"services": {"web": {"image": "x", "environment": written}}});
            let manifest = pinned(read(&text.to_string()).unwrap());
            prop_assert_eq!(&manifest.services["web"].environment, &environment);
        }
    }
}
