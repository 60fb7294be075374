use proptest::prelude::*;

use super::*;
use crate::{
    compose::{self, ComposeErrors, EnvFiles, hosted},
    error::Reason,
};

pub fn image() -> PinnedImage {
    PinnedImage {
        repository: "r.example/tool".to_owned(),
        tag: None,
        digest: Digest::of(b"tool"),
    }
}

fn file(hooks: &str) -> String {
    format!(
        "services: {{web: {{image: w}}}}\nnetworks: {{edge: {{external: true}}}}\nvolumes: {{data: {{}}}}\nx-sealift:\n  hooks:\n{hooks}"
    )
}

/// The hooks of a file, which both kinds of targets must read alike.
fn read(hooks: &str) -> Result<Vec<HookSpec>, ComposeErrors> {
    let text = file(hooks);
    let docker = compose::parse(&text, &EnvFiles::new()).map(|file| {
        let (services, hooks) = (resolved(file.images()), resolved(file.hook_images()));
        file.pin(&services, &hooks).unwrap().hooks
    });
    let hosted = hosted::parse(&text, &BTreeSet::new()).map(|file| {
        let (services, hooks) = (resolved(file.images()), resolved(file.hook_images()));
        let pinned = file.clone().pin(&services, &hooks).unwrap().hooks;
        assert!(file.has_hooks(&pinned));
        assert!(pinned.is_empty() || !file.has_hooks(&[]));
        pinned
    });
    assert_eq!(docker, hosted);
    docker
}

fn resolved(images: BTreeMap<&ServiceName, &str>) -> BTreeMap<ServiceName, PinnedImage> {
    images.into_keys().map(|name| (name.clone(), image())).collect()
}

fn refused(hook: &str) -> (String, String) {
    let found = read(&format!("    - {{{hook}}}\n")).unwrap_err();
    let first = found.errors.first().unwrap();
    assert!(!first.advice.is_empty());
    (first.path.clone(), first.message.clone())
}

#[test]
fn every_setting_of_a_hook_is_read_and_what_is_not_said_has_a_default() {
    let hooks = read(
        "
    - name: migrate
      when: pre_deploy
      image: registry.acme.com/shop/migrate:1
      command: migrate --all
      entrypoint: [/bin/tool, run]
      environment: {LEVEL: 3, PRICE: '$$5'}
      networks: [default, edge]
      volumes: ['data:/var/lib/data:ro']
      user: '1000:1000'
      working_dir: /srv
      timeout: 1m30s
      on_failure: continue
    - {name: smoke, when: post_deploy, image: curl}
    - {name: proxy, when: switch, image: proxy, networks: [default]}
",
    )
    .unwrap();
    let text = |text: &str| text.to_owned();
    assert_eq!(
        hooks[0],
        HookSpec {
            name: "migrate".parse().unwrap(),
            when: HookWhen::PreDeploy,
            image: image(),
            command: Some(vec![text("migrate"), text("--all")]),
            entrypoint: Some(vec![text("/bin/tool"), text("run")]),
            environment: [(text("LEVEL"), text("3")), (text("PRICE"), text("$5"))].into(),
            variables: BTreeSet::new(),
            networks: ["default", "edge"].map(|name| name.parse().unwrap()).into(),
            volumes: vec![HookMount {
                volume: "data".parse().unwrap(),
                target: text("/var/lib/data"),
                read_only: true,
            }],
            user: Some(text("1000:1000")),
            working_dir: Some(text("/srv")),
            timeout_ms: 90_000,
            on_failure: OnFailure::Continue,
        }
    );
    assert_eq!(
        (hooks[1].timeout_ms, hooks[1].on_failure),
        (300_000, OnFailure::Fail)
    );
    assert_eq!(hooks[2].network_names(), ["default"]);
    assert_eq!(crate::hook::switch(&hooks).unwrap().name.as_str(), "proxy");
}

#[test]
fn t16_what_a_hook_must_not_have_is_refused_with_its_place() {
    const GOOD: &str = "name: a, when: pre_deploy, image: i";
    for (hook, path, message) in [
        ("when: pre_deploy, image: i", "", "no name"),
        ("name: a, image: i", "", "no when"),
        ("name: a, when: pre_deploy", "", "no image"),
        ("name: '-', when: pre_deploy, image: i", ".name", "not possible"),
        ("name: a, when: later, image: i", ".when", "not possible"),
        (
            "name: a, when: pre_deploy, image: 'a b'",
            ".image",
            "no image reference",
        ),
        (
            "name: a, when: switch, image: i, on_failure: continue",
            "",
            "cannot count",
        ),
        (
            &format!("{GOOD}, on_failure: ignore"),
            ".on_failure",
            "not possible",
        ),
        (&format!("{GOOD}, privileged: true"), ".privileged", "no setting"),
        (&format!("{GOOD}, ports: ['80:80']"), ".ports", "no setting"),
        (&format!("{GOOD}, cap_add: [ALL]"), ".cap_add", "no setting"),
        (
            &format!("{GOOD}, network_mode: host"),
            ".network_mode",
            "no setting",
        ),
        (&format!("{GOOD}, pid: host"), ".pid", "no setting"),
        (
            &format!("{GOOD}, networks: [other]"),
            ".networks[0]",
            "not declared",
        ),
        (
            &format!("{GOOD}, networks: [edge, edge]"),
            ".networks[1]",
            "twice",
        ),
        (
            &format!("{GOOD}, volumes: ['/etc:/x']"),
            ".volumes",
            "of the host",
        ),
        (&format!("{GOOD}, volumes: [/x]"), ".volumes", "named volumes"),
        (
            &format!("{GOOD}, volumes: ['other:/x']"),
            ".volumes",
            "not declared",
        ),
        (
            &format!("{GOOD}, volumes: [{{type: tmpfs, target: /x}}]"),
            ".volumes",
            "named volumes",
        ),
        (
            &format!("{GOOD}, environment: {{SEALIFT_TARGET: x}}"),
            ".environment.SEALIFT_TARGET",
            "reserved",
        ),
        (&format!("{GOOD}, timeout: 10ms"), ".timeout", "one second"),
        (&format!("{GOOD}, timeout: 2h"), ".timeout", "one hour"),
        (&format!("{GOOD}, command: '$HOME'"), ".command", "not replaced"),
        (&format!("{GOOD}, working_dir: srv"), ".working_dir", "absolute"),
    ] {
        let (at, said) = refused(hook);
        assert_eq!(at, format!("x-sealift.hooks[0]{path}"), "{hook}: {said}");
        assert!(said.contains(message), "{hook}: {said}");
    }
    let same = "    - {name: a, when: switch, image: i}\n";
    let twice = read(&format!("{same}{same}")).unwrap_err();
    let said: Vec<_> = twice.errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(
        said,
        ["a hook is called a already", "there is another switch hook"]
    );
    let many: Vec<_> = (0..17)
        .map(|number| format!("    - {{name: a{number}, when: pre_deploy, image: i}}\n"))
        .collect();
    let many = many.concat();
    assert_eq!(read(&many).unwrap_err().errors[0].path, "x-sealift.hooks");
    for odd in ["    - x\n", "    a: 1\n"] {
        assert_eq!(read(odd).unwrap_err().reason(), Reason::InvalidManifest, "{odd}");
    }
    let other = compose::parse(
        "services: {web: {image: w}}\nx-sealift: {hook: []}\n",
        &EnvFiles::new(),
    );
    assert_eq!(other.unwrap_err().errors[0].path, "x-sealift.hook");
}

#[test]
fn a_variable_without_a_value_gets_it_on_a_compose_host_and_nowhere_else() {
    let text = file("    - {name: a, when: pre_deploy, image: i, environment: [URL, LEVEL=3]}\n");
    let refused = compose::parse(&text, &EnvFiles::new()).unwrap_err();
    assert_eq!(refused.errors[0].path, "x-sealift.hooks[0].environment[0]");
    let hosted = hosted::parse(&text, &BTreeSet::new()).unwrap();
    let (services, hooks) = (resolved(hosted.images()), resolved(hosted.hook_images()));
    let pinned = hosted.pin(&services, &hooks).unwrap();
    assert_eq!(pinned.hooks[0].variables, ["URL".to_owned()].into());
    assert_eq!(pinned.hooks[0].environment.len(), 1);
}

#[test]
fn t12_hooks_are_a_part_of_the_content() {
    let content = |hooks: &str| {
        let file = compose::parse(&file(hooks), &EnvFiles::new()).unwrap();
        let (services, hooks) = (resolved(file.images()), resolved(file.hook_images()));
        file.pin(&services, &hooks).unwrap().content_digest().unwrap()
    };
    let one = content("    - {name: a, when: pre_deploy, image: i}\n");
    assert_ne!(
        one,
        content("    - {name: a, when: pre_deploy, image: i, command: x}\n")
    );
    assert_ne!(one, content("    - {name: a, when: post_deploy, image: i}\n"));
    assert_ne!(one, content("    []\n"));
}

proptest! {
    #[test]
    fn whatever_is_read_is_within_its_bounds(
        when in prop::sample::select(vec!["pre_deploy", "switch", "post_deploy", "x", "3"]),
        name in "[a-zA-Z0-9._-]{0,70}",
        timeout in "[0-9]{1,4}(ms|s|m|h)",
        mount in "[a-z/.]{0,8}:[a-z/.]{0,8}(:ro|:rw|:z)?",
        network in prop::sample::select(vec!["default", "edge", "host", "none"]),
    ) {
        let hook = serde_json::json!({
            "name": name, "when": when, "image": "i", "timeout": timeout, "volumes": [mount], "networks": [network]
        });
        if let Ok(hooks) = read(&format!("    - {hook}\n")) {
            let hook = &hooks[0];
            prop_assert!((1_000..=MOST_TIMEOUT_MS).contains(&hook.timeout_ms));
            prop_assert!(hook.volumes.iter().all(|mount| mount.volume.as_str() == "data"));
            prop_assert!(network == "default" || network == "edge");
        }
    }
}
