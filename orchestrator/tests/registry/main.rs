//! Resolving images against Debian's docker-registry and against servers that misbehave.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod server;

use std::time::{Duration, Instant};

use sealift_common::{
    any_manifest::Described as _,
    compose::EnvFiles,
    digest::Digest,
    error::Reason,
    name::{ServiceName, SourceRef},
};
use sealift_orchestrator::{
    app::create_release::{Reading, prepare},
    registry::{Registry, RegistryConfig, RegistryError},
};
use serde_json::json;
use server::{Answer, Fake, PASSWORD, RealRegistry, docker_config, ok, status};

fn registry() -> Registry {
    registry_with(None)
}

fn registry_with(docker_config: Option<std::path::PathBuf>) -> Registry {
    Registry::new(RegistryConfig {
        docker_config,
        deadline: Duration::from_secs(20),
        retry_delay: Duration::from_millis(1),
        ..RegistryConfig::default()
    })
    .unwrap()
}

fn repository() -> String {
    format!("test/{}", uuid::Uuid::from_u128(rand::random()))
}

fn index() -> String {
    json!({"schemaVersion": 2, "manifests": [{"platform": {"os": "linux", "architecture": "amd64"}}]})
        .to_string()
}

async fn refused(fake: &Fake) -> RegistryError {
    registry().resolve(&fake.image("shop:1")).await.unwrap_err()
}

#[tokio::test]
async fn a_tag_and_a_digest_resolve_to_what_the_registry_holds() {
    let real = RealRegistry::open();
    let repository = repository();
    let digest = real.push(&repository, "1.0").await;
    let name = format!("{}/{repository}", real.host);
    let registry = registry();

    let found = registry.resolve(&format!("{name}:1.0")).await.unwrap();
    assert_eq!(found.pinned.repository, name);
    assert_eq!(found.pinned.tag.as_deref(), Some("1.0"));
    assert_eq!(found.pinned.digest, digest);
    assert_eq!(found.platforms, ["linux/arm64"]);

    let found = registry.resolve(&format!("{name}@{digest}")).await.unwrap();
    assert_eq!((found.pinned.digest, found.pinned.tag), (digest, None));

    for missing in [
        format!("{name}:2.0"),
        format!("{name}@{}", Digest::of(b"")),
        format!("{name}x:1.0"),
    ] {
        let error = registry.resolve(&missing).await.unwrap_err();
        assert_eq!(error.reason(), Reason::ImageNotFound, "{missing}");
    }
}

#[tokio::test]
async fn an_index_names_all_platforms_and_many_resolve_side_by_side() {
    let real = RealRegistry::open();
    let repository = repository();
    let image = real.push(&repository, "arm").await;
    let media = "application/vnd.oci.image.manifest.v1+json";
    let entry = |architecture: &str| {
        json!({"mediaType": media, "digest": image, "size": 1,
               "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                       "manifests": [entry("arm64"), entry("amd64"), entry("unknown")]});
    let digest = real.push_manifest(&repository, "all", &index).await;
    let name = format!("{}/{repository}", real.host);

    let images = [
        format!("{name}:all"),
        format!("{name}:arm"),
        format!("{name}:all"),
        "Bad Name".to_owned(),
    ];
    let found = registry().resolve_all(images.iter().map(String::as_str)).await;
    assert_eq!(found.len(), 3);
    let all = found[&images[0]].as_ref().unwrap();
    assert_eq!(all.pinned.digest, digest);
    assert_eq!(all.platforms, ["linux/amd64", "linux/arm64"]);
    assert_eq!(found[&images[1]].as_ref().unwrap().pinned.digest, image);
    assert!(found["Bad Name"].is_err());
}

#[tokio::test]
async fn images_of_hooks_are_resolved_like_those_of_services_and_missing_ones_are_named_at_their_place() {
    let real = RealRegistry::open();
    let repository = repository();
    let digest = real.push(&repository, "1").await;
    let name = format!("{}/{repository}", real.host);
    let file = |tag: &str| {
        let hook = format!("{{name: migrate, when: pre_deploy, image: '{name}:{tag}'}}");
        format!("services: {{web: {{image: '{name}:1'}}}}\nx-sealift: {{hooks: [{hook}]}}\n")
    };
    let source: SourceRef = format!("github.com/acme/shop/web@{}", "0".repeat(40))
        .parse()
        .unwrap();
    for reading in [
        Reading::DockerHost(EnvFiles::new()),
        Reading::ComposeHost(std::collections::BTreeSet::new()),
    ] {
        let made = prepare(&registry(), source.clone(), file("1").as_bytes(), &reading)
            .await
            .unwrap();
        let hooks = made.manifest.hooks();
        assert_eq!((hooks.len(), hooks[0].image.digest), (1, digest));
        let refused = prepare(&registry(), source.clone(), file("2").as_bytes(), &reading)
            .await
            .unwrap_err();
        assert_eq!(refused.reason(), Reason::ImageNotFound);
        assert!(
            format!("{refused:?}").contains("compose.x-sealift.hooks.migrate.image"),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn the_image_of_a_release_for_agents_is_resolved_like_any_other() {
    let real = RealRegistry::open();
    let repository = repository();
    let digest = real.push(&repository, "1.5.0").await;
    let name = format!("{}/{repository}", real.host);
    let source: SourceRef = format!("github.com/acme/agents/agent@{}", "0".repeat(40))
        .parse()
        .unwrap();
    let file = |tag: &str| sealift_common::compose::agents::document(&format!("{name}:{tag}"));
    let made = prepare(
        &registry(),
        source.clone(),
        file("1.5.0").as_bytes(),
        &Reading::AgentHost,
    )
    .await
    .unwrap();
    let content = made.manifest.agent().unwrap();
    assert_eq!(content.program().unwrap().1.digest, digest);
    let refused = prepare(
        &registry(),
        source.clone(),
        file("2").as_bytes(),
        &Reading::AgentHost,
    )
    .await
    .unwrap_err();
    assert_eq!(refused.reason(), Reason::ImageNotFound);
    let other = format!("services: {{web: {{image: '{name}:1.5.0'}}}}");
    let refused = prepare(&registry(), source, other.as_bytes(), &Reading::AgentHost)
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), Reason::InvalidManifest);
}

#[tokio::test]
async fn credentials_are_read_again_at_each_use_and_never_shown() {
    let real = RealRegistry::start(true);
    let digest = real.push("private/shop", "1").await;
    let image = format!("{}/private/shop:1", real.host);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");

    let error = registry().resolve(&image).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Denied { anonymous: true, .. }),
        "{error}"
    );

    let registry = registry_with(Some(path.clone()));
    let error = registry.resolve(&image).await.unwrap_err();
    assert!(matches!(error, RegistryError::Credentials { .. }), "{error}");

    docker_config(&path, &real.host, "t0ps3cret");
    let error = registry.resolve(&image).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryDenied);
    assert!(!format!("{error} {error:?}").contains("t0ps3cret"));

    docker_config(&path, &real.host, PASSWORD);
    assert_eq!(registry.resolve(&image).await.unwrap().pinned.digest, digest);
}

#[tokio::test]
async fn a_token_server_is_asked_for_the_right_scope() {
    let fake = Fake::start(|head, _| {
        let host = head
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .unwrap_or_default()
            .to_owned();
        if head.starts_with("GET /token?scope=repository%3Ashop%3Apull&service=s ") {
            ok("", json!({"token": "abc"}).to_string())
        } else if head.contains("authorization: Bearer abc") {
            ok("", index())
        } else {
            let header = format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
            status("401 Unauthorized", &header, "")
        }
    })
    .await;
    let found = registry().resolve(&fake.image("shop:1")).await.unwrap();
    assert_eq!(found.pinned.digest, Digest::of(index().as_bytes()));
    assert_eq!(fake.asked(), 3);
}

#[tokio::test]
async fn other_bytes_than_promised_are_refused() {
    let wrong = Digest::of(b"something else");
    let fake = Fake::start(move |_, _| ok(&format!("docker-content-digest: {wrong}\r\n"), index())).await;
    assert_eq!(refused(&fake).await.reason(), Reason::RegistryMisbehaved);

    // Asked for by digest, without a claim of its own.
    let fake = Fake::start(|_, _| ok("", index())).await;
    let image = format!("{}@{wrong}", fake.image("shop"));
    let error = registry().resolve(&image).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryMisbehaved);

    let fake = Fake::start(move |head, _| {
        if head.contains("/blobs/") {
            ok("", json!({"os": "linux", "architecture": "amd64"}).to_string())
        } else {
            ok("", json!({"config": {"digest": wrong}}).to_string())
        }
    })
    .await;
    assert_eq!(refused(&fake).await.reason(), Reason::RegistryMisbehaved);
}

#[tokio::test]
async fn endless_and_oversized_answers_end_early() {
    let start = Instant::now();
    let fake = Fake::start(|_, _| Answer::Endless("HTTP/1.1 200 OK\r\n".to_owned())).await;
    assert_eq!(refused(&fake).await.reason(), Reason::RegistryMisbehaved);
    let fake =
        Fake::start(|_, _| Answer::Endless("HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n".to_owned()))
            .await;
    assert_eq!(refused(&fake).await.reason(), Reason::RegistryMisbehaved);
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_silent_registry_costs_one_deadline() {
    let fake = Fake::start(|_, _| Answer::Silence).await;
    let registry = Registry::new(RegistryConfig {
        deadline: Duration::from_millis(300),
        ..RegistryConfig::default()
    })
    .unwrap();
    let start = Instant::now();
    let error = registry.resolve(&fake.image("shop:1")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn only_transient_errors_are_tried_again() {
    let fake = Fake::start(|_, number| match number {
        0 => status("500 Internal Server Error", "", ""),
        1 => status("429 Too Many Requests", "", ""),
        2 => status("503 Service Unavailable", "", ""),
        _ => ok("", index()),
    })
    .await;
    assert!(registry().resolve(&fake.image("shop:1")).await.is_ok());
    assert_eq!(fake.asked(), 4);

    let fake = Fake::start(|_, _| status("500 Internal Server Error", "", "secret page")).await;
    let error = refused(&fake).await;
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
    assert!(!error.to_string().contains("secret page"));
    assert_eq!(fake.asked(), 5);

    for (line, reason) in [
        ("404 Not Found", Reason::ImageNotFound),
        ("403 Forbidden", Reason::RegistryDenied),
        ("418 I'm a teapot", Reason::RegistryMisbehaved),
        ("401 Unauthorized", Reason::RegistryMisbehaved),
    ] {
        let fake = Fake::start(move |_, _| status(line, "", "")).await;
        assert_eq!(refused(&fake).await.reason(), reason, "{line}");
        assert_eq!(fake.asked(), 1, "{line}");
    }
}

#[tokio::test]
async fn nobody_listening_is_unavailable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = format!("{}/shop:1", listener.local_addr().unwrap());
    drop(listener);
    let error = registry().resolve(&image).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryUnavailable);
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn manifests_are_not_followed_elsewhere_and_blobs_without_credentials() {
    let elsewhere = Fake::start(|head, _| {
        assert!(!head.to_lowercase().contains("authorization"), "{head}");
        ok("", json!({"os": "linux", "architecture": "amd64"}).to_string())
    })
    .await;
    let target = elsewhere.address;
    let moved = Fake::start(move |_, _| {
        status(
            "307 Temporary Redirect",
            &format!("location: http://{target}/x\r\n"),
            "",
        )
    })
    .await;
    assert_eq!(refused(&moved).await.reason(), Reason::RegistryMisbehaved);
    assert_eq!(elsewhere.asked(), 0);

    let config = Digest::of(
        json!({"os": "linux", "architecture": "amd64"})
            .to_string()
            .as_bytes(),
    );
    let partly = Fake::start(move |head, _| {
        if !head.contains("authorization: Basic") {
            status("401 Unauthorized", "www-authenticate: Basic realm=\"x\"\r\n", "")
        } else if head.contains("/blobs/") {
            status(
                "307 Temporary Redirect",
                &format!("location: http://{target}/x\r\n"),
                "",
            )
        } else {
            ok("", json!({"config": {"digest": config}}).to_string())
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    docker_config(&path, &partly.address.to_string(), PASSWORD);
    let found = registry_with(Some(path))
        .resolve(&partly.image("shop:1"))
        .await
        .unwrap();
    assert_eq!(found.platforms, ["linux/amd64"]);
    assert_eq!(elsewhere.asked(), 1);

    for place in [
        "http://registry.invalid/x",
        "ftp://127.0.0.1/x",
        "nowhere://",
        "http://",
    ] {
        let fake = Fake::start(move |head, _| {
            if head.contains("/blobs/") {
                status("302 Found", &format!("location: {place}\r\n"), "")
            } else {
                ok("", json!({"config": {"digest": config}}).to_string())
            }
        })
        .await;
        let reason = refused(&fake).await.reason();
        assert!(
            matches!(reason, Reason::RegistryInsecure | Reason::RegistryMisbehaved),
            "{place}: {reason:?}"
        );
    }
    let fake = Fake::start(|head, _| {
        if head.contains("/blobs/") {
            status("302 Found", "location: /v2/again/blobs/x\r\n", "")
        } else {
            ok("", json!({"config": {"digest": Digest::of(b"")}}).to_string())
        }
    })
    .await;
    assert_eq!(
        refused(&fake).await.reason(),
        Reason::RegistryMisbehaved,
        "a loop ends"
    );
}

#[tokio::test]
async fn credentials_go_to_no_token_server_in_plain_http_elsewhere() {
    let fake = Fake::start(|_, _| {
        let header = "www-authenticate: Bearer realm=\"http://registry.invalid/token\"\r\n";
        status("401 Unauthorized", header, "")
    })
    .await;
    assert_eq!(refused(&fake).await.reason(), Reason::RegistryInsecure);
}

#[tokio::test]
async fn plain_http_needs_loopback_or_configuration() {
    // Reaches loopback, but is no loopback name by its spelling.
    let fake = Fake::start(|_, _| ok("", index())).await;
    let host = format!("127.1:{}", fake.address.port());
    let config = |insecure: Vec<String>| RegistryConfig {
        insecure,
        deadline: Duration::from_secs(20),
        retry_delay: Duration::from_millis(1),
        ..RegistryConfig::default()
    };
    let image = format!("{host}/shop:1");
    let strict = Registry::new(config(Vec::new())).unwrap();
    let error = strict.resolve(&image).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryInsecure, "{error:?}");
    let open = Registry::new(config(vec![host])).unwrap();
    assert!(open.resolve(&image).await.is_ok());
}

#[tokio::test]
async fn what_an_image_is_built_for_becomes_part_of_the_release() {
    let fake = Fake::start(|head, _| {
        let platforms = if head.contains("/shop/") {
            json!([
                {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
                {"platform": {"os": "linux", "architecture": "amd64"}},
            ])
        } else {
            json!([{"platform": {"os": "linux", "architecture": "s390x"}}])
        };
        ok(
            "",
            json!({"schemaVersion": 2, "manifests": platforms}).to_string(),
        )
    })
    .await;
    let compose = format!(
        "services:\n  web: {{image: {}}}\n  cache: {{image: {}}}\n",
        fake.image("shop:1"),
        fake.image("cache:1")
    );
    for reading in [
        Reading::DockerHost(EnvFiles::new()),
        Reading::ComposeHost(std::collections::BTreeSet::new()),
    ] {
        let source = format!("github.com/acme/shop/api@{}", "a".repeat(40));
        let draft = prepare(&registry(), source.parse().unwrap(), compose.as_bytes(), &reading)
            .await
            .unwrap();
        let told = |service: &str| draft.platforms[&service.parse::<ServiceName>().unwrap()].clone();
        assert_eq!(told("web"), ["linux/amd64", "linux/arm64/v8"]);
        assert_eq!(told("cache"), ["linux/s390x"]);
    }
}
