use super::*;
use crate::digest::Digest;

fn read_with(text: &str, profiles: &[&str]) -> Result<HostedFile, ComposeErrors> {
    parse(text, &profiles.iter().map(|name| (*name).to_owned()).collect())
}

fn paths_of(text: &str) -> Vec<String> {
    let errors = read_with(text, &[]).unwrap_err().errors;
    errors.into_iter().map(|error| error.path).collect()
}

const SHOP: &str = "
name: shop
x-common: &common
  restart: unless-stopped
  logging: {driver: json-file}
services:
  web:
    <<: *common
    image: registry.acme.com/web:1
    environment: {GREETING: '${GREETING:-hello}'}
    privileged: true
    some_future_key: [1, 2]
    depends_on:
      migrate: {condition: service_completed_successfully}
      db: {condition: service_healthy}
    x-sealift: {probe: {tcp: {port: 80}}}
  db: {image: postgres:16, env_file: [db.env, {path: more/db.env}]}
  migrate: {extends: {service: db}, command: [migrate]}
  once: {image: tool, restart: 'no'}
  debug: {image: '${DEBUG}', profiles: [debug], build: .}
volumes: {data: {}}
";

#[test]
fn a_file_is_kept_as_it_is_and_only_what_runs_is_known() {
    let file = read_with(SHOP, &[]).unwrap();
    let lifetimes: Vec<_> = file
        .services
        .iter()
        .map(|(name, service)| (name.as_str(), service.image.as_str(), service.lifetime))
        .collect();
    assert_eq!(
        lifetimes,
        [
            ("db", "postgres:16", Lifetime::Lasting),
            ("migrate", "postgres:16", Lifetime::MustEnd),
            ("once", "tool", Lifetime::MayEnd),
            ("web", "registry.acme.com/web:1", Lifetime::Lasting),
        ]
    );
    assert_eq!(
        file.services
            .values()
            .filter(|service| service.probe.is_some())
            .count(),
        1
    );
    let resolved = file
        .images()
        .into_iter()
        .map(|(name, image)| {
            let pin = PinnedImage {
                repository: image.to_owned(),
                tag: None,
                digest: Digest::of(image.as_bytes()),
            };
            (name.clone(), pin)
        })
        .collect();
    let content = file.pin(&resolved, &BTreeMap::new()).unwrap();
    assert_eq!(content.document, SHOP);
    assert_eq!(content.services.len(), 4);
}

#[test]
fn what_a_single_file_cannot_hold_is_refused_with_its_place() {
    for (text, path) in [
        ("services: {a: {build: .}}", "services.a.build"),
        ("services: {a: {image: a, build: .}}", "services.a.build"),
        ("services: {a: {provider: {type: x}}}", "services.a.provider"),
        ("services: {a: {}}", "services.a"),
        ("services: {a: {image: 'a:${TAG}'}}", "services.a.image"),
        ("services: {a: {image: a, scale: 2}}", "services.a.scale"),
        (
            "services: {a: {image: a, deploy: {replicas: 2}}}",
            "services.a.deploy.replicas",
        ),
        (
            "services: {a: {image: a, extends: {file: b.yaml, service: b}}}",
            "services.a.extends.file",
        ),
        ("services: {a: {image: a, extends: b}}", "services.a.extends"),
        ("services: {a: {image: a, extends: a}}", "services.a.extends"),
        ("{include: [b.yaml], services: {a: {image: a}}}", "include"),
        (
            "services: {a: {image: a, profiles: ['${P}']}, b: {image: b}}",
            "services.a.profiles[0]",
        ),
        (
            "services: {a: {image: a, depends_on: [b]}}",
            "services.a.depends_on[0]",
        ),
        (
            "services: {a: {image: a, depends_on: {b: {}}}, b: {image: b, profiles: [x]}}",
            "services.a.depends_on.b",
        ),
        ("services: {}", "services"),
        ("volumes: {}", ""),
    ] {
        assert!(
            paths_of(text).contains(&path.to_owned()),
            "{text}: {:?}",
            paths_of(text)
        );
    }
}

#[test]
fn t16_files_of_the_host_are_read_only_where_its_owner_put_them() {
    for path in [
        "/etc/shadow",
        "../x",
        "a/../../x",
        "~/x",
        "${HOME}/x",
        "a\\\\b",
        "",
    ] {
        for text in [
            format!("services: {{a: {{image: a, env_file: '{path}'}}}}"),
            format!("services: {{a: {{image: a, env_file: [{{path: '{path}'}}]}}}}"),
            format!("services: {{b: {{image: b}}, a: {{image: a, profiles: [off], env_file: ['{path}']}}}}"),
            format!("services: {{a: {{image: a, label_file: '{path}'}}}}"),
        ] {
            assert!(read_with(&text, &[]).is_err(), "{text}");
        }
    }
    assert!(read_with("services: {a: {image: a, env_file: app/web.env}}", &[]).is_ok());
}

#[test]
fn profiles_decide_what_runs() {
    let text =
        "services: {a: {image: a}, b: {image: b, profiles: [one, two]}, c: {image: c, profiles: [three]}}";
    let names = |profiles: &[&str]| -> Vec<String> {
        let file = read_with(text, profiles).unwrap();
        file.images().keys().map(ToString::to_string).collect()
    };
    assert_eq!(names(&[]), ["a"]);
    assert_eq!(names(&["two"]), ["a", "b"]);
    assert_eq!(names(&["one", "three"]), ["a", "b", "c"]);
}

#[test]
fn a_profile_that_no_service_has_is_refused_when_a_release_is_made() {
    let profiles = BTreeSet::from(["bakcup".to_owned()]);
    let told = |text: &str| parse_new(text, &profiles).unwrap_err().to_string();
    let text = "services: {a: {image: a}, b: {image: b, profiles: [backup, debug]}}";
    let some = told(text);
    assert!(
        some.contains("bakcup") && some.contains(r#""backup", "debug""#),
        "{some}"
    );
    let none = told("services: {a: {image: a}}");
    assert!(none.contains("the file has no profiles"), "{none}");
    // It is told first where nothing runs because of it.
    let idle = told("services: {b: {image: b, profiles: [backup]}}");
    assert!(idle.contains("bakcup"), "{idle}");
    let many: Vec<_> = (0..40).map(|number| format!("p{number}")).collect();
    let many = told(&format!(
        "services: {{b: {{image: b, profiles: [{}]}}}}",
        many.join(", ")
    ));
    assert!(many.contains("and 30 more"), "{many}");
    // Whoever reads a release takes it as it is.
    assert!(parse(text, &profiles).is_ok());
}

#[test]
fn a_file_that_blows_up_is_refused() {
    let mut lines = vec!["a: &a [x, x, x, x, x, x, x, x, x, x]".to_owned()];
    for (new, old) in ["b", "c", "d", "e", "f", "g"]
        .iter()
        .zip(["a", "b", "c", "d", "e", "f"])
    {
        let items = vec![format!("*{old}"); 10].join(", ");
        lines.push(format!("{new}: &{new} [{items}]"));
    }
    lines.push("services: {a: {image: a}}".to_owned());
    assert!(read_with(&lines.join("\n"), &[]).is_err());
    assert!(read_with(&"#".repeat(bounds::MANIFEST_BYTES + 1), &[]).is_err());
    let deep = format!(
        "services: {{a: {{image: a, x: {}{}}}}}",
        "[".repeat(40),
        "]".repeat(40)
    );
    assert!(read_with(&deep, &[]).is_err());
    let many: Vec<_> = (0..=bounds::SERVICES)
        .map(|number| format!("  s{number}: {{image: a}}"))
        .collect();
    assert!(read_with(&format!("services:\n{}", many.join("\n")), &[]).is_err());
}

#[test]
fn a_resolved_model_is_read_as_plain_data() {
    let model =
        document("services: {web: {image: a, ports: [{published: 8080}], cpus: 0.5, init: true}}").unwrap();
    assert_eq!(model["services"]["web"]["ports"][0]["published"], 8080);
    assert_eq!(model["services"]["web"]["cpus"], 0.5);
    assert_eq!(model["services"]["web"]["init"], true);
}
