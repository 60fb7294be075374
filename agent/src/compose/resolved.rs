//! What Compose made of a file, as data: with the dollar signs that Compose will make of it, and with what only hooks use. Pure.

use sealift_common::{
    compose::hosted,
    compose_manifest::ComposeManifest,
    failure::{Failure, FailureCode},
    hook::HookSpec,
    manifest::DEFAULT_NETWORK,
};
use serde_json::{Map, Value};

fn rejected(summary: impl Into<String>) -> Failure {
    Failure::new(FailureCode::ComposeRejected, summary)
}

/// Reads what Compose made of the file of a release.
pub fn read(text: &str, manifest: &ComposeManifest) -> Result<Value, Failure> {
    let mut model = hosted::document(text).map_err(|error| rejected(error.to_string()))?;
    for (key, value) in model.as_object_mut().into_iter().flatten() {
        if !key.starts_with("x-") {
            fill(value, key)?;
        }
    }
    let document = hosted::document(&manifest.document).map_err(|error| rejected(error.to_string()))?;
    complete(&mut model, &document, &manifest.hooks)?;
    Ok(model)
}

/// Compose reads its own result again when it carries it out, and fills in variables again. It doubles dollar signs against that, but v1
/// not everywhere: what is left would become something else than was judged.
fn fill(value: &mut Value, at: &str) -> Result<(), Failure> {
    match value {
        Value::String(text) if text.contains('$') => {
            if text.replace("$$", "").contains('$') {
                return Err(rejected(format!(
                    "{at} of the resolved model has a dollar sign that this host's Compose would take for a variable; \
                     write it without"
                )));
            }
            *text = text.replace("$$", "$");
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                fill(item, &format!("{at}[{index}]"))?;
            }
        }
        Value::Object(items) => {
            for (key, item) in items {
                fill(item, &format!("{at}.{key}"))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Adds the networks and volumes that only hooks use: Compose v2 leaves out what no service does. They are taken as the file has them.
fn complete(model: &mut Value, document: &Value, hooks: &[HookSpec]) -> Result<(), Failure> {
    for hook in hooks {
        for network in hook.network_names() {
            if !add(model, document, "networks", network)? && network != DEFAULT_NETWORK {
                return Err(unknown(hook, "network", network));
            }
        }
        for mount in &hook.volumes {
            if !add(model, document, "volumes", mount.volume.as_str())? {
                return Err(unknown(hook, "volume", mount.volume.as_str()));
            }
        }
    }
    Ok(())
}

fn unknown(hook: &HookSpec, kind: &str, name: &str) -> Failure {
    let hook = &hook.name;
    rejected(format!(
        "hook {hook} uses the {kind} {name}, which the file does not have"
    ))
}

/// Whether the model has the entry, then.
fn add(model: &mut Value, document: &Value, kind: &str, key: &str) -> Result<bool, Failure> {
    let entry = |of: &Value| of.get(kind)?.get(key).cloned();
    if entry(model).is_some() {
        return Ok(true);
    }
    let Some(found) = entry(document) else {
        return Ok(false);
    };
    if found.to_string().contains('$') {
        return Err(rejected(format!(
            "{kind}.{key} has variables, and only a hook uses it, so Compose fills in none; write it without"
        )));
    }
    let Some(model) = model.as_object_mut() else {
        return Ok(false);
    };
    let all = model.entry(kind).or_insert(Value::Null);
    if !all.is_object() {
        *all = Value::Object(Map::new());
    }
    if let Some(all) = all.as_object_mut() {
        all.insert(key.to_owned(), found);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use sealift_common::hook::{HookMount, HookWhen};

    use super::*;
    use crate::samples;

    fn manifest(document: &str) -> ComposeManifest {
        let mut manifest = samples::compose_order(1, &[("web", "v1")]).manifest;
        document.clone_into(&mut manifest.document);
        let mut hook = samples::hook("migrate", HookWhen::PreDeploy, "v1");
        hook.networks = ["edge", "default"].map(|name| name.parse().unwrap()).into();
        hook.volumes.push(HookMount {
            volume: "cred".parse().unwrap(),
            target: "/c".to_owned(),
            read_only: true,
        });
        manifest.hooks.push(hook);
        manifest
    }

    #[test]
    fn t16_what_compose_would_fill_in_once_more_is_refused() {
        let manifest = samples::compose_order(1, &[("web", "v1")]).manifest;
        for (text, place) in [
            (
                "services: {web: {volumes: ['/srv/app/x${X:-}:/x']}}",
                "services.web.volumes[0]",
            ),
            (
                "services: {web: {security_opt: ['label:$X']}}",
                "services.web.security_opt[0]",
            ),
            ("volumes: {v: {name: 'a$$$b'}}", "volumes.v.name"),
            ("networks: {n: {name: a$}}", "networks.n.name"),
        ] {
            let refused = read(text, &manifest).unwrap_err();
            assert_eq!(refused.code, FailureCode::ComposeRejected);
            assert!(refused.summary.starts_with(place), "{text}: {refused}");
        }
        let model = read(
            "services: {web: {command: ['$$HOME', '$$$$x'], volumes: ['/srv/$$x:/x']}}\nx-other: $X",
            &manifest,
        )
        .unwrap();
        let web = &model["services"]["web"];
        assert_eq!(web["command"], serde_json::json!(["$HOME", "$$x"]));
        assert_eq!(web["volumes"][0], "/srv/$x:/x");
    }

    #[test]
    fn t16_what_only_hooks_use_is_what_the_file_says() {
        let file = "networks: {edge: {external: true}}\nvolumes: {cred: {external: true, name: the-cred}}\n";
        // As v2 leaves it, and as v1 does.
        for resolved in [
            "services: {}\n",
            "services: {}\nnetworks: {default: {}}\nvolumes: null\n",
            "networks: {edge: {external: true}}\nvolumes: {cred: {external: true, name: the-cred}}\n",
        ] {
            let model = read(resolved, &manifest(file)).unwrap();
            assert_eq!(model["networks"]["edge"]["external"], true, "{resolved}");
            assert_eq!(model["volumes"]["cred"]["name"], "the-cred", "{resolved}");
        }
        // What Compose says of it counts more.
        let model = read(
            "networks: {edge: {external: true, name: other}}\n",
            &manifest(file),
        );
        assert_eq!(model.unwrap()["networks"]["edge"]["name"], "other");
        for (file, said) in [
            ("volumes: {cred: {}}\n", "network edge"),
            ("networks: {edge: {}}\n", "volume cred"),
            (
                "networks: {edge: {external: true, name: '${EDGE}'}}\nvolumes: {cred: {}}\n",
                "networks.edge",
            ),
            (
                "networks: {edge: {}}\nvolumes: {cred: {name: 'a$$b'}}\n",
                "volumes.cred",
            ),
        ] {
            let refused = read("services: {}\n", &manifest(file)).unwrap_err();
            assert!(refused.summary.contains(said), "{file}: {refused}");
        }
    }
}
