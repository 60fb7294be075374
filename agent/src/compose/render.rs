//! Render: the lock of an order. The host's Compose merges the ordered file with a generated one that pins every image and labels
//! what is made, and fills in the variables; what comes out is compared with the order, judged by the host's policy, and kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use sealift_common::{
    compose::hosted,
    compose_manifest::ComposeManifest,
    digest::Digest,
    evidence::Allowance,
    failure::{Failure, FailureCode},
    keys::SigningKey,
    name::ServiceName,
    order::Order,
};
use serde_json::{Map, Value, json};

use super::{Compose, resolved, tool::Call, variables::HostVariables};
use crate::{
    labels,
    policy::{Borrowed, HostPolicy, stays_in},
};

/// How long Compose may take to read a file.
const DEADLINE: Duration = Duration::from_mins(1);

/// A lock, before it is kept.
#[derive(Debug)]
pub struct Lock {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it uses without making it.
    pub borrowed: Borrowed,
    /// What of it the host's settings allow, without the host's values.
    pub allowances: Vec<Allowance>,
    /// The host's values that were filled in.
    pub filled: HostVariables,
}

fn rejected(summary: impl Into<String>) -> Failure {
    Failure::new(FailureCode::ComposeRejected, summary)
}

/// Makes the lock of an order.
pub async fn render(
    compose: &Compose,
    order: &Order<ComposeManifest>,
    policy: &HostPolicy,
    key: &SigningKey,
) -> Result<Lock, Failure> {
    let (reader, environment) = (compose.clone(), order.environment.clone());
    let host = tokio::task::spawn_blocking(move || reader.host_variables(&environment))
        .await
        .map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))?
        .map_err(|error| rejected(error.to_string()))?;
    // Whatever is said may repeat what was filled in.
    match render_with(compose, order, policy, key, &host).await {
        Ok((bytes, borrowed, allowances)) => Ok(Lock {
            bytes,
            borrowed,
            allowances: host.clear_allowances(allowances),
            filled: host,
        }),
        Err(failure) => Err(host.clear(&failure)),
    }
}

async fn render_with(
    compose: &Compose,
    order: &Order<ComposeManifest>,
    policy: &HostPolicy,
    key: &SigningKey,
    host: &HostVariables,
) -> Result<(Vec<u8>, Borrowed, Vec<Allowance>), Failure> {
    // Whoever signed it: the file must not make Compose read what is not meant for it.
    let manifest = &order.manifest;
    let file =
        hosted::parse(&manifest.document, &manifest.profiles).map_err(|error| rejected(error.to_string()))?;
    if !file.images().keys().copied().eq(manifest.services.keys()) {
        return Err(rejected("the order pins other services than its file has"));
    }
    if !file.has_hooks(&manifest.hooks) {
        return Err(rejected("the order has other hooks than its file"));
    }
    let document = hosted::document(&manifest.document).map_err(|error| rejected(error.to_string()))?;
    let pins = overlay(order, &document, compose.tool()?.replaces_entries()).to_string();
    let files = compose.files(order);
    let stage = files.clone();
    let text = manifest.document.clone().into_bytes();
    let folder = tokio::task::spawn_blocking(move || {
        stage.stage(&[
            ("compose.yaml", &text),
            ("pins.json", pins.as_bytes()),
            ("none.env", b""),
        ])
    })
    .await
    .map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))?
    .map_err(|error| {
        Failure::new(
            FailureCode::ComposeUnavailable,
            "the project's folder cannot be written",
        )
        .with_detail(error.to_string())
    })?;
    let base = compose
        .files_dir(&order.environment)
        .map_or_else(|| folder.join("empty"), Path::to_owned);
    stay(&base, files_of(&document)).await?;
    let mut arguments: Vec<std::ffi::OsString> = vec!["-p".into(), labels::compose_project(order).into()];
    for profile in &manifest.profiles {
        arguments.extend(["--profile".into(), profile.into()]);
    }
    arguments.extend([
        "--project-directory".into(),
        base.into(),
        "--env-file".into(),
        folder.join("none.env").into(),
        "-f".into(),
        folder.join("compose.yaml").into(),
        "-f".into(),
        folder.join("pins.json").into(),
        "config".into(),
    ]);
    let call = Call {
        files: &files,
        environment: compose.environment(&folder, &order.variables, host),
        arguments,
        deadline: DEADLINE,
    };
    let said = compose.tool()?.call(call).await?;
    if !said.success {
        return Err(rejected("the host's Compose refuses the file").with_detail(tail(&said.messages)));
    }
    if let Some(warning) = said.messages.lines().find(|line| is_refusal(line)) {
        let summary = format!("the host's Compose warns: {}", warned(warning));
        return Err(rejected(summary).with_detail(tail(&said.messages)));
    }
    let text = String::from_utf8(said.output).map_err(|_| rejected("the host's Compose answers no text"))?;
    let model = resolved::read(&text, manifest)?;
    compare(order, &model)?;
    let borrowed = Borrowed::of_model(&model, &active(manifest), &manifest.hooks);
    let allowances = judge(compose, order, policy, model).await?;
    let lock = format!(
        "# Made by the sealift agent for {} on {}. Do not edit: its digest is in the sticker and in the evidence.\n# {}\n{}\n{text}",
        order.release,
        order.target,
        salt(order, key),
        mark(host, key)
    );
    Ok((lock.into_bytes(), borrowed, allowances))
}

/// The files that Compose reads for the services of a file.
fn files_of(document: &Value) -> Vec<String> {
    let services = document.get("services").and_then(Value::as_object);
    let named = |service: &Value, key: &str| -> Vec<String> {
        let entries = match service.get(key) {
            Some(Value::Array(entries)) => entries.as_slice(),
            Some(entry) => std::slice::from_ref(entry),
            None => &[],
        };
        let path = |entry: &Value| Some(entry.as_str().or_else(|| entry.get("path")?.as_str())?.to_owned());
        entries.iter().filter_map(path).collect()
    };
    services
        .into_iter()
        .flat_map(Map::values)
        .flat_map(|service| ["env_file", "label_file"].map(|key| named(service, key)))
        .flatten()
        .collect()
}

/// Compose reads them as the agent, so none may be a link to the agent's own: services that may write in the folder could put one there.
async fn stay(base: &Path, files: Vec<String>) -> Result<(), Failure> {
    let folder = base.to_owned();
    let strays = move || files.into_iter().find(|file| !stays_in(&folder, file));
    let stray = tokio::task::spawn_blocking(strays)
        .await
        .map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))?;
    match stray {
        None => Ok(()),
        Some(file) => Err(Failure::new(
            FailureCode::HostPolicy,
            format!(
                "{file} leads out of the folder that is set aside for files (compose.files_dir of the agent's settings)"
            ),
        )),
    }
}

fn active(manifest: &ComposeManifest) -> BTreeSet<String> {
    manifest.services.keys().map(ToString::to_string).collect()
}

/// Has the host's policy judge what Compose made of the file, and says what of it the settings allow. Asked once more before it is carried
/// out: a path that was allowed may lead elsewhere by then, because whoever may write there may put a link in.
pub async fn judge(
    compose: &Compose,
    order: &Order<ComposeManifest>,
    policy: &HostPolicy,
    model: Value,
) -> Result<Vec<Allowance>, Failure> {
    let (policy, files_dir) = (
        policy.clone(),
        compose.files_dir(&order.environment).map(ToOwned::to_owned),
    );
    let (active, own) = (active(&order.manifest), labels::target_prefix(order.target_id));
    tokio::task::spawn_blocking(move || policy.check_model(&model, &active, files_dir.as_deref(), &own))
        .await
        .map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))?
        .map_err(|forbidden| Failure::new(FailureCode::HostPolicy, forbidden.to_string()))
}

/// The last lines of what Compose said, for people.
pub fn tail(messages: &str) -> String {
    let lines: Vec<_> = messages.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// A warning that says that what would run is not what the file says.
fn is_refusal(line: &str) -> bool {
    line.contains("variable is not set") || (line.contains("will be ignored") && !line.contains("obsolete"))
}

/// What a warning says, without what a logger puts around it and without the dot at its end: more is said behind it.
fn warned(line: &str) -> String {
    let quoted = line
        .split_once("msg=\"")
        .map(|(_, said)| said.trim_end().trim_end_matches('"'));
    let said = quoted.map_or_else(|| line.to_owned(), |said| said.replace("\\\"", "\""));
    said.trim().trim_end_matches('.').to_owned()
}

/// A line that nobody without the agent's key can know, so that the lock's digest tells nothing about secret values that were filled
/// in. The same for the same order, so that a lock that is made again is the same.
fn salt(order: &Order<ComposeManifest>, key: &SigningKey) -> String {
    let message = format!("sealift compose lock {} {}", order.task_id, order.inputs);
    Digest::of(&key.sign(message.as_bytes())).to_hex()
}

/// A line of a lock that tells, to the agent alone, with which values of the host it was made: what Compose says of the lock may repeat
/// just these, and the file that they came from may hold others by now.
fn mark(host: &HostVariables, key: &SigningKey) -> String {
    let mut message = String::from("sealift compose values");
    for (name, value) in host.iter() {
        message.extend(["\n", name, "=", value]);
    }
    format!("# {}", Digest::of(&key.sign(message.as_bytes())).to_hex())
}

/// Whether a lock was made with these values of the host.
pub fn was_made_with(lock: &str, host: &HostVariables, key: &SigningKey) -> bool {
    lock.lines().nth(2) == Some(mark(host, key).as_str())
}

/// The generated file: images by digest, and labels on everything that Compose makes. Where a Compose takes `whole` networks and volumes of
/// the later file in place of the earlier one's, they are repeated: else drivers, options and `internal` would be lost.
fn overlay(order: &Order<ComposeManifest>, document: &Value, whole: bool) -> Value {
    let own = labels::of_project(order.target_id, &order.release.project);
    let services: Map<String, Value> = order
        .manifest
        .services
        .iter()
        .map(|(name, pin)| {
            let labels = labels::of_compose_container(order, name, &pin.image);
            (
                name.to_string(),
                json!({ "image": pin.image.pull_reference(), "labels": labels }),
            )
        })
        .collect();
    let ours = |kind: &str, always: Option<&str>| -> Map<String, Value> {
        let declared = document.get(kind).and_then(Value::as_object);
        let is_external = |name: &str| {
            let external = declared.and_then(|all| all.get(name)?.get("external"));
            external.is_some_and(|external| *external != Value::Bool(false))
        };
        declared
            .into_iter()
            .flat_map(Map::keys)
            .map(String::as_str)
            .chain(always)
            .filter(|name| !is_external(name) && !name.starts_with("x-"))
            .map(|name| {
                let written = declared.and_then(|all| all.get(name)).filter(|_| whole);
                (name.to_owned(), labelled(written.unwrap_or(&Value::Null), &own))
            })
            .collect()
    };
    let mut overlay = json!({
        "services": services,
        "networks": ours("networks", Some("default")),
        "volumes": ours("volumes", None),
    });
    // Compose v1 merges only files of one version.
    if let (Some(version), Some(overlay)) = (document.get("version"), overlay.as_object_mut()) {
        let version = match version {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        overlay.insert("version".to_owned(), Value::String(version));
    }
    overlay
}

/// A network or volume with labels beside its own.
fn labelled(entry: &Value, own: &labels::Labels) -> Value {
    let mut labels = labels_of(entry, |_| true);
    labels.extend(own.clone());
    let mut entry = entry.as_object().cloned().unwrap_or_default();
    entry.insert("labels".to_owned(), json!(labels));
    Value::Object(entry)
}

/// Whether what Compose made of the file is what was ordered: these services, from these images, with our labels and no forged ones.
fn compare(order: &Order<ComposeManifest>, model: &Value) -> Result<(), Failure> {
    let services = model
        .get("services")
        .and_then(Value::as_object)
        .ok_or_else(|| rejected("the resolved model has no services"))?;
    let is_on = |service: &Value| {
        let profiles = service.get("profiles").and_then(Value::as_array);
        profiles.is_none_or(|profiles| {
            profiles.is_empty()
                || profiles
                    .iter()
                    .filter_map(Value::as_str)
                    .any(|name| order.manifest.profiles.contains(name))
        })
    };
    let running: BTreeMap<&str, &Value> = services
        .iter()
        .filter(|(_, service)| is_on(service))
        .map(|(name, service)| (name.as_str(), service))
        .collect();
    let wanted: BTreeSet<&str> = order.manifest.services.keys().map(ServiceName::as_str).collect();
    if !running.keys().copied().eq(wanted) {
        let names: Vec<_> = running.keys().copied().collect();
        return Err(rejected(format!(
            "the resolved model runs {}, the order pins other services",
            names.join(", ")
        )));
    }
    for (name, pin) in &order.manifest.services {
        let service = running.get(name.as_str()).copied().unwrap_or(&Value::Null);
        let image = service.get("image").and_then(Value::as_str).unwrap_or_default();
        if image != pin.image.pull_reference() {
            return Err(rejected(format!(
                "services.{name}.image of the resolved model is {image}, not {}",
                pin.image.pull_reference()
            )));
        }
        let ours = labels::of_compose_container(order, name, &pin.image);
        if labels_of(service, |key| key.starts_with("dev.sealift.")) != ours {
            return Err(rejected(format!(
                "services.{name}.labels of the resolved model uses names that begin with dev.sealift."
            )));
        }
    }
    Ok(())
}

fn labels_of(service: &Value, wanted: impl Fn(&str) -> bool) -> labels::Labels {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let all: labels::Labels = match service.get("labels") {
        Some(Value::Object(labels)) => labels
            .iter()
            .map(|(key, value)| (key.clone(), text(value)))
            .collect(),
        Some(Value::Array(labels)) => labels
            .iter()
            .filter_map(Value::as_str)
            .map(|label| label.split_once('=').unwrap_or((label, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        _ => labels::Labels::new(),
    };
    all.into_iter().filter(|(key, _)| wanted(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    type Spoil = fn(&mut Value);

    fn model(order: &Order<ComposeManifest>) -> Value {
        let mut model = overlay(order, &Value::Null, false);
        model["services"]["debug"] = json!({ "image": "debug", "profiles": ["debug"] });
        model
    }

    #[test]
    fn r4_the_resolved_model_must_be_what_was_ordered() {
        let order = samples::compose_order(1, &[("web", "v1"), ("db", "v1")]);
        compare(&order, &model(&order)).unwrap();
        let spoils: [(&str, Spoil); 5] = [
            ("by a tag", |model| {
                model["services"]["web"]["image"] = json!("web:latest");
            }),
            ("of another service", |model| {
                model["services"]["web"]["image"] = model["services"]["extra"]["image"].clone();
            }),
            ("one more", |model| {
                model["services"]["more"] = json!({ "image": "x" });
            }),
            ("one less", |model| {
                model["services"].as_object_mut().unwrap().remove("db");
            }),
            ("forged label", |model| {
                model["services"]["web"]["labels"]["dev.sealift.fence"] = json!("9");
            }),
        ];
        for (what, spoil) in spoils {
            let mut bad = model(&order);
            spoil(&mut bad);
            let failure = compare(&order, &bad).unwrap_err();
            assert_eq!(failure.code, FailureCode::ComposeRejected, "{what}");
        }
    }

    #[test]
    fn t16_all_files_that_compose_would_read_are_known() {
        let document = hosted::document(
            "services:\n  a: {env_file: a.env}\n  b: {env_file: [b.env, {path: c.env, required: false}], label_file: d}\n  c: {}\n",
        );
        assert_eq!(files_of(&document.unwrap()), ["a.env", "b.env", "c.env", "d"]);
    }

    #[test]
    fn warnings_that_change_what_runs_are_refusals() {
        for line in [
            "The X variable is not set. Defaulting to a blank string.",
            "time=\"…\" level=warning msg=\"The \\\"X\\\" variable is not set. Defaulting to a blank string.\"",
            "Some services (web) use the 'configs' key, which will be ignored.",
        ] {
            assert!(is_refusal(line), "{line}");
            assert!(!warned(line).ends_with(['.', '"']), "{}", warned(line));
        }
        assert_eq!(
            warned("time=\"…\" level=warning msg=\"The \\\"X\\\" variable is not set.\""),
            "The \"X\" variable is not set"
        );
        assert!(!is_refusal(
            "the attribute `version` is obsolete, it will be ignored"
        ));
    }

    #[test]
    fn t16_a_lock_tells_the_agent_alone_with_which_values_it_was_made() {
        let key = SigningKey::from_seed(&[1; 32]);
        let values = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("host.env");
            std::fs::write(&path, text).unwrap();
            HostVariables::read(&path).unwrap()
        };
        let then = values("DB_PASSWORD=hunter22");
        let lock = format!("# made\n# salt\n{}\nservices: {{}}\n", mark(&then, &key));
        assert!(was_made_with(&lock, &then, &key) && !lock.contains("hunter22"));
        assert!(!was_made_with(&lock, &values("DB_PASSWORD=hunter23"), &key));
        assert!(!was_made_with(&lock, &HostVariables::default(), &key));
        assert!(!was_made_with(&lock, &then, &SigningKey::from_seed(&[2; 32])));
        assert!(!was_made_with("services: {}\n", &then, &key));
    }

    #[test]
    fn external_networks_and_volumes_are_not_labelled() {
        let order = samples::compose_order(1, &[("web", "v1")]);
        let document = json!({
            "version": 3.9,
            "networks": { "edge": { "external": true }, "back": null },
            "volumes": { "data": {}, "old": { "external": { "name": "x" } } },
        });
        let overlay = overlay(&order, &document, false);
        let names = |kind: &str| {
            overlay[kind]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(names("networks"), ["back", "default"]);
        assert_eq!(names("volumes"), ["data"]);
        assert_eq!(overlay["version"], "3.9");
    }

    #[test]
    fn t16_labels_take_nothing_else_away_where_compose_replaces_entries() {
        let order = samples::compose_order(1, &[("web", "v1")]);
        let document = json!({
            "networks": { "back": { "internal": true, "labels": ["a=b"] }, "plain": null },
            "volumes": { "data": { "driver": "local", "driver_opts": { "type": "tmpfs" } } },
        });
        let own = labels::of_project(order.target_id, &order.release.project);
        for whole in [true, false] {
            let overlay = overlay(&order, &document, whole);
            let back = &overlay["networks"]["back"];
            assert_eq!(back["internal"] == true, whole);
            assert_eq!(back["labels"]["a"] == "b", whole);
            assert_eq!(
                overlay["volumes"]["data"]["driver_opts"]["type"] == "tmpfs",
                whole
            );
            assert_eq!(overlay["networks"]["plain"], json!({ "labels": own }));
            for entry in [back, &overlay["volumes"]["data"]] {
                assert!(
                    own.iter()
                        .all(|(key, value)| entry["labels"][key] == value.as_str())
                );
            }
        }
    }
}
