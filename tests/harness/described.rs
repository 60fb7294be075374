//! What a compose file says of its services, beside what `docker inspect` says of their containers. Every key of a service is
//! compared, and one that is not known here is a difference too, so that nothing passes because nobody looked.

use std::{collections::BTreeMap, path::Path};

use chrono::DateTime;
use serde_json::{Map, Value, json};

/// Where compose files that are delivered as secrets are seen by a container.
const SECRETS: &str = "/run/secrets";
/// The engine counts in nanoseconds.
const SECOND: f64 = 1e9;

/// Around a file: what it is filled in with, and where.
#[derive(Debug)]
pub struct Around<'a> {
    /// Values of the variables.
    pub variables: BTreeMap<&'a str, &'a str>,
    /// The folder of relative paths.
    pub files: &'a Path,
}

/// One service with its container.
struct Pair<'a> {
    name: &'a str,
    service: &'a Value,
    container: &'a Value,
    around: &'a Around<'a>,
    found: Vec<String>,
}

/// How a container differs from its service of the `file` (a compose file as JSON). `image` is `docker image inspect` of the image that the file
/// names. Empty when it is what the file says.
pub fn differences(
    file: &Value,
    name: &str,
    container: &Value,
    image: &Value,
    around: &Around<'_>,
) -> Vec<String> {
    let mut pair = Pair {
        name,
        service: &file["services"][name],
        container,
        around,
        found: Vec::new(),
    };
    pair.image(image);
    pair.keys();
    pair.environment(image);
    pair.restart();
    pair.limits();
    pair.confinement();
    pair.health(image);
    pair.ports();
    pair.mounts(file);
    pair.networks();
    pair.logging();
    pair.found
}

/// Whether services began in the order that `depends_on` asks for.
pub fn order_differences(file: &Value, containers: &BTreeMap<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    let services = file["services"].as_object().into_iter().flatten();
    for (name, service) in services.filter(|(name, _)| containers.contains_key(*name)) {
        let began = moment(&containers[name]["State"]["StartedAt"]);
        let conditions: Vec<(&str, &str)> = match &service["depends_on"] {
            Value::Object(map) => map
                .iter()
                .map(|(on, how)| (on.as_str(), how["condition"].as_str().unwrap_or_default()))
                .collect(),
            Value::Array(list) => list.iter().filter_map(|on| Some((on.as_str()?, ""))).collect(),
            _ => Vec::new(),
        };
        for (on, condition) in conditions {
            let state = containers.get(on).map(|container| &container["State"]);
            let event = if condition == "service_completed_successfully" {
                "FinishedAt"
            } else {
                "StartedAt"
            };
            let before = state.and_then(|state| moment(&state[event]));
            if before.is_none() || before > began {
                found.push(format!(
                    "{name} began at {began:?}, before {on} ({condition}): {before:?}"
                ));
            }
        }
    }
    found
}

fn moment(value: &Value) -> Option<DateTime<chrono::FixedOffset>> {
    DateTime::parse_from_rfc3339(value.as_str()?).ok()
}

impl Pair<'_> {
    fn same(&mut self, key: &str, wanted: Value, is: &Value) {
        if wanted != *is {
            self.found
                .push(format!("{}: {key} is {is}, not {wanted}", self.name));
        }
    }

    fn config(&self, key: &str) -> Value {
        self.container["Config"][key].clone()
    }

    fn host(&self, key: &str) -> Value {
        self.container["HostConfig"][key].clone()
    }

    /// The text with its variables filled in.
    fn filled(&self, text: &str) -> String {
        let variables = self.around.variables.iter();
        // Apart first, so that a dollar sign of a value is not read again.
        let mut parts: Vec<String> = text.split("$$").map(str::to_owned).collect();
        for (name, value) in variables {
            for part in &mut parts {
                *part = part.replace(&format!("${{{name}}}"), value);
            }
        }
        parts.join("$")
    }

    fn image(&mut self, image: &Value) {
        self.same("image", image["Id"].clone(), &self.container["Image"].clone());
        let written = self.config("Image");
        let pinned = written.as_str().is_some_and(|image| image.contains("@sha256:"));
        if !pinned {
            self.found.push(format!("{}: {written} is no digest", self.name));
        }
    }

    fn keys(&mut self) {
        const KNOWN: [&str; 23] = [
            "cap_add",
            "cap_drop",
            "command",
            "cpus",
            "depends_on",
            "environment",
            "healthcheck",
            "image",
            "logging",
            "mem_limit",
            "networks",
            "pids_limit",
            "ports",
            "profiles",
            "read_only",
            "restart",
            "secrets",
            "security_opt",
            "stop_grace_period",
            "tmpfs",
            "ulimits",
            "user",
            "volumes",
        ];
        let keys = self.service.as_object().into_iter().flat_map(Map::keys);
        let unknown: Vec<_> = keys.filter(|key| !KNOWN.contains(&key.as_str())).collect();
        if !unknown.is_empty() {
            self.found
                .push(format!("{}: {unknown:?} are not compared", self.name));
        }
        if let Value::Array(command) = &self.service["command"] {
            let command = Value::Array(command.clone());
            self.same("command", command, &self.config("Cmd"));
        }
        if let Some(user) = self.service["user"].as_str() {
            self.same("user", json!(user), &self.config("User"));
        }
        if let Some(grace) = self.service["stop_grace_period"].as_str() {
            let whole = nanoseconds(grace).map(|time| (time / SECOND) as i64);
            self.same("stop_grace_period", json!(whole), &self.config("StopTimeout"));
        }
    }

    fn environment(&mut self, image: &Value) {
        let mut wanted: BTreeMap<String, String> = texts(&image["Config"]["Env"])
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        for (name, value) in self.service["environment"].as_object().into_iter().flatten() {
            wanted.insert(name.clone(), self.filled(value.as_str().unwrap_or_default()));
        }
        let is = self.config("Env");
        let is: BTreeMap<String, String> = texts(&is)
            .filter_map(|line| line.split_once('='))
            // A hint of Compose v1 to a scheduler of long ago, on what it makes anew with an anonymous volume.
            .filter(|(name, _)| *name != "affinity:container")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        self.same("environment", json!(wanted), &json!(is));
    }

    fn restart(&mut self) {
        let written = self.service["restart"].as_str().unwrap_or("no");
        let (name, tries) = written.split_once(':').unwrap_or((written, "0"));
        let wanted = json!({ "Name": name, "MaximumRetryCount": tries.parse::<i64>().ok() });
        let mut is = self.host("RestartPolicy");
        // Compose v1 leaves it out where it is "no".
        if is["Name"] == "" {
            is["Name"] = json!("no");
        }
        self.same("restart", wanted, &is);
    }

    fn limits(&mut self) {
        let service = self.service;
        let memory = service["mem_limit"].as_str().and_then(|text| {
            let mebibytes: i64 = text.strip_suffix('m')?.parse().ok()?;
            Some(mebibytes * 1024 * 1024)
        });
        self.same("mem_limit", json!(memory.unwrap_or(0)), &self.host("Memory"));
        let cpus = service["cpus"].as_f64().map_or(0, |cpus| (cpus * SECOND) as i64);
        self.same("cpus", json!(cpus), &self.host("NanoCpus"));
        let processes = service["pids_limit"].as_i64().unwrap_or(0);
        self.same(
            "pids_limit",
            json!(processes),
            &json!(self.host("PidsLimit").as_i64().unwrap_or(0)),
        );
        let wanted: Vec<Value> = service["ulimits"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, limit)| json!({ "Name": name, "Soft": limit["soft"], "Hard": limit["hard"] }))
            .collect();
        let is = self.host("Ulimits");
        self.same(
            "ulimits",
            json!(wanted),
            &json!(is.as_array().cloned().unwrap_or_default()),
        );
    }

    fn confinement(&mut self) {
        let read_only = self.service["read_only"].as_bool().unwrap_or(false);
        self.same("read_only", json!(read_only), &self.host("ReadonlyRootfs"));
        self.same("privileged", json!(false), &self.host("Privileged"));
        for (key, name) in [
            ("cap_add", "CapAdd"),
            ("cap_drop", "CapDrop"),
            ("security_opt", "SecurityOpt"),
        ] {
            let (wanted, is) = (list(&self.service[key]), list(&self.host(name)));
            self.same(key, json!(wanted), &json!(is));
        }
        let folders: Vec<String> = match &self.service["tmpfs"] {
            Value::String(one) => vec![one.clone()],
            other => list(other),
        };
        let is = self.host("Tmpfs");
        let is: Vec<&String> = is.as_object().into_iter().flat_map(Map::keys).collect();
        self.same("tmpfs", json!(folders), &json!(is));
    }

    fn health(&mut self, image: &Value) {
        let is = self.config("Healthcheck");
        let Value::Object(check) = &self.service["healthcheck"] else {
            return self.same("healthcheck", image["Config"]["Healthcheck"].clone(), &is);
        };
        if check.get("disable") == Some(&Value::Bool(true)) {
            return self.same("healthcheck", json!(["NONE"]), &is["Test"]);
        }
        for (key, value) in check {
            let (wanted, field) = match key.as_str() {
                "test" => (value.clone(), "Test"),
                "retries" => (value.clone(), "Retries"),
                "interval" => (time(value), "Interval"),
                "timeout" => (time(value), "Timeout"),
                "start_period" => (time(value), "StartPeriod"),
                other => {
                    self.found
                        .push(format!("{}: healthcheck.{other} is not compared", self.name));
                    continue;
                }
            };
            self.same(&format!("healthcheck.{key}"), wanted, &is[field]);
        }
    }

    /// Ports as `ADDRESS:[PORT]:CONTAINER`.
    fn ports(&mut self) {
        let mut wanted = Map::new();
        for written in texts(&self.service["ports"]) {
            let mut parts = written.rsplitn(3, ':');
            let (Some(inner), Some(outer), Some(address)) = (parts.next(), parts.next(), parts.next()) else {
                self.found
                    .push(format!("{}: port {written} is not compared", self.name));
                continue;
            };
            let binding = json!([{ "HostIp": address, "HostPort": outer }]);
            wanted.insert(format!("{inner}/tcp"), binding);
            let given = &self.container["NetworkSettings"]["Ports"][format!("{inner}/tcp")][0];
            if given["HostIp"] != address || given["HostPort"].as_str().is_none_or(str::is_empty) {
                self.found
                    .push(format!("{}: {written} is published as {given}", self.name));
            }
        }
        let is = self.host("PortBindings");
        let is = is.as_object().cloned().unwrap_or_default();
        self.same("ports", json!(wanted), &json!(is));
    }

    /// Volumes as `NAME:PATH`, `PATH` or `./PATH:PATH[:ro]`, and secrets.
    fn mounts(&mut self, file: &Value) {
        // What is mounted, from where, and whether for writing; what has no name has no place to compare.
        let mut wanted: BTreeMap<String, (String, String, bool)> = BTreeMap::new();
        for written in texts(&self.service["volumes"]) {
            let parts: Vec<&str> = written.split(':').collect();
            let (target, what) = match parts.as_slice() {
                [target] => (*target, ("volume".to_owned(), String::new(), true)),
                [source, target, options @ ..] if source.starts_with("./") => {
                    let source = self.around.files.join(&source[2..]).display().to_string();
                    (*target, ("bind".to_owned(), source, !options.contains(&"ro")))
                }
                [name, target, options @ ..] => {
                    let volume = ("volume".to_owned(), (*name).to_owned(), !options.contains(&"ro"));
                    (*target, volume)
                }
                [] => continue,
            };
            wanted.insert(target.to_owned(), what);
        }
        for secret in texts(&self.service["secrets"]) {
            let from = file["secrets"][secret]["file"].as_str().unwrap_or_default();
            let from = self.around.files.join(from.trim_start_matches("./"));
            let what = ("bind".to_owned(), from.display().to_string(), false);
            wanted.insert(format!("{SECRETS}/{secret}"), what);
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let is: BTreeMap<String, (String, String, bool)> = self.container["Mounts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|mount| {
                let kind = text(&mount["Type"]);
                let target = text(&mount["Destination"]);
                let from = if kind == "volume" {
                    // A project's volumes are called after it; one without a name has a name that says nothing.
                    let name = text(&mount["Name"]);
                    let known = wanted.get(&target).is_some_and(|(_, name, _)| name.is_empty());
                    if known {
                        String::new()
                    } else {
                        name.rsplit('_').next().unwrap_or_default().to_owned()
                    }
                } else {
                    text(&mount["Source"])
                };
                (target, (kind, from, mount["RW"] == true))
            })
            .collect();
        self.same("mounts", json!(wanted), &json!(is));
    }

    fn networks(&mut self) {
        let wanted: BTreeMap<String, Vec<String>> = match &self.service["networks"] {
            Value::Object(networks) => networks
                .iter()
                .map(|(name, how)| (name.clone(), list(&how["aliases"])))
                .collect(),
            Value::Array(names) => names
                .iter()
                .filter_map(|name| Some((name.as_str()?.to_owned(), Vec::new())))
                .collect(),
            _ => BTreeMap::from([("default".to_owned(), Vec::new())]),
        };
        let is = self.container["NetworkSettings"]["Networks"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        let joined: BTreeMap<&str, &Value> = is
            .iter()
            .map(|(name, endpoint)| (name.rsplit('_').next().unwrap_or_default(), endpoint))
            .collect();
        let names: Vec<&str> = joined.keys().copied().collect();
        self.same(
            "networks",
            json!(wanted.keys().collect::<Vec<_>>()),
            &json!(names),
        );
        for (network, aliases) in wanted {
            let given = list(&joined.get(network.as_str()).copied().unwrap_or(&Value::Null)["Aliases"]);
            let all = aliases.into_iter().chain([self.name.to_owned()]);
            let absent: Vec<String> = all.filter(|alias| !given.contains(alias)).collect();
            if !absent.is_empty() {
                self.found.push(format!(
                    "{}: on {network} without {absent:?}: {given:?}",
                    self.name
                ));
            }
        }
    }

    fn logging(&mut self) {
        let Value::Object(logging) = &self.service["logging"] else {
            return;
        };
        let is = self.host("LogConfig");
        self.same("logging.driver", json!(logging.get("driver")), &is["Type"]);
        // The engine adds its own defaults.
        for (name, value) in logging
            .get("options")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            self.same(
                &format!("logging.options.{name}"),
                value.clone(),
                &is["Config"][name],
            );
        }
    }
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The texts of a list, sorted.
fn list(value: &Value) -> Vec<String> {
    let mut list: Vec<String> = texts(value).map(str::to_owned).collect();
    list.sort();
    list
}

/// `5s`, `1.5s`; other units are not used by the applications.
fn nanoseconds(text: &str) -> Option<f64> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    Some(seconds * SECOND)
}

fn time(value: &Value) -> Value {
    json!(value.as_str().and_then(nanoseconds).map(|time| time as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&mut Value);

    fn around(files: &Path) -> Around<'_> {
        Around {
            variables: BTreeMap::from([("GREETING", "hello $$PRICE")]),
            files,
        }
    }

    fn container() -> Value {
        json!({
            "Image": "sha256:1",
            "Config": {
                "Image": "web@sha256:2", "StopTimeout": 1, "User": "",
                "Env": ["PATH=/bin", "GREETING=hello $$PRICE", "PRICE=$5"],
            },
            "HostConfig": {
                "RestartPolicy": { "Name": "always", "MaximumRetryCount": 0 },
                "Memory": 0, "NanoCpus": 0, "ReadonlyRootfs": false, "Privileged": false,
                "PortBindings": { "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "" }] },
            },
            "NetworkSettings": {
                "Networks": { "p_default": { "Aliases": ["web", "0123"] } },
                "Ports": { "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "49153" }] },
            },
            "Mounts": [
                { "Type": "volume", "Name": "p_data", "Destination": "/data", "RW": true },
                { "Type": "bind", "Source": "/files/password.txt", "Destination": "/run/secrets/password", "RW": false },
            ],
        })
    }

    #[test]
    fn what_is_as_the_file_says_is_no_difference_and_everything_else_is() {
        let file = json!({
            "services": { "web": {
                "image": "web", "restart": "always", "stop_grace_period": "1s",
                "environment": { "GREETING": "${GREETING}", "PRICE": "$$5" },
                "ports": ["127.0.0.1::80"], "volumes": ["data:/data"], "secrets": ["password"],
            } },
            "secrets": { "password": { "file": "./password.txt" } },
        });
        let image = json!({ "Id": "sha256:1", "Config": { "Env": ["PATH=/bin"] } });
        let around = around(Path::new("/files"));
        let compare = |container: &Value| differences(&file, "web", container, &image, &around);
        assert_eq!(compare(&container()), Vec::<String>::new());

        let spoils: [(&str, Spoil); 10] = [
            ("image", |seen| seen["Image"] = json!("sha256:3")),
            ("no digest", |seen| seen["Config"]["Image"] = json!("web:latest")),
            ("environment", |seen| {
                seen["Config"]["Env"] = json!(["PATH=/bin", "PRICE=5"]);
            }),
            ("restart", |seen| {
                seen["HostConfig"]["RestartPolicy"]["Name"] = json!("no");
            }),
            ("privileged", |seen| {
                seen["HostConfig"]["Privileged"] = json!(true);
            }),
            ("cap_add", |seen| {
                seen["HostConfig"]["CapAdd"] = json!(["SYS_ADMIN"]);
            }),
            ("published", |seen| seen["NetworkSettings"]["Ports"] = json!({})),
            ("mounts", |seen| seen["Mounts"][1]["RW"] = json!(true)),
            ("networks", |seen| {
                seen["NetworkSettings"]["Networks"]["host"] = json!({});
            }),
            ("without", |seen| {
                seen["NetworkSettings"]["Networks"]["p_default"] = json!({});
            }),
        ];
        for (what, spoil) in spoils {
            let mut spoiled = container();
            spoil(&mut spoiled);
            let found = compare(&spoiled);
            assert!(
                found.iter().any(|found| found.contains(what)),
                "{what}: {found:?}"
            );
        }
    }

    #[test]
    fn a_key_that_nobody_compares_is_told() {
        let file = json!({ "services": { "web": { "image": "web", "sysctls": [] } } });
        let found = differences(&file, "web", &container(), &json!({}), &around(Path::new("/")));
        assert!(found.iter().any(|found| found.contains("sysctls")), "{found:?}");
    }

    #[test]
    fn who_depends_on_others_begins_after_them() {
        let file = json!({ "services": {
            "web": { "depends_on": { "migrate": { "condition": "service_completed_successfully" } } },
            "migrate": {},
        } });
        let at = |began: &str, ended: &str| json!({ "State": { "StartedAt": began, "FinishedAt": ended } });
        let mut containers = BTreeMap::from([
            ("web".to_owned(), at("2026-01-01T00:00:02.5Z", "")),
            (
                "migrate".to_owned(),
                at("2026-01-01T00:00:01.25Z", "2026-01-01T00:00:02.123456789Z"),
            ),
        ]);
        assert_eq!(order_differences(&file, &containers), Vec::<String>::new());
        containers.insert("web".to_owned(), at("2026-01-01T00:00:02.1Z", ""));
        assert_eq!(order_differences(&file, &containers).len(), 1);
    }
}
