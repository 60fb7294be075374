//! The host's policy on a compose file as the host's Compose resolved it: after merge, extends and interpolation, so that nothing
//! can hide behind them. What is not known to be harmless is refused.

use std::{collections::BTreeSet, path::Path};

use sealift_common::evidence::Allowance;
use serde_json::Value;

use super::{
    Forbidden, HostPolicy,
    borrowed::{called, is_external, not_of_another},
    bounded,
};

/// Keys of a service that ask nothing of the host, or whose values are judged below.
const SERVICE_KEYS: &[&str] = &[
    "annotations",
    "attach",
    "blkio_config",
    "build",
    "cap_add",
    "cap_drop",
    "cgroup",
    "command",
    "configs",
    "container_name",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "cpus",
    "cpuset",
    "depends_on",
    "deploy",
    "develop",
    "dns",
    "dns_opt",
    "dns_search",
    "domainname",
    "entrypoint",
    "env_file",
    "environment",
    "expose",
    "extends",
    "extra_hosts",
    "group_add",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "ipc",
    "isolation",
    "labels",
    "links",
    "logging",
    "mac_address",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memswap_limit",
    "network_mode",
    "networks",
    "oom_kill_disable",
    "oom_score_adj",
    "pid",
    "pids_limit",
    "platform",
    "ports",
    "post_start",
    "pre_stop",
    "privileged",
    "profiles",
    "pull_policy",
    "read_only",
    "restart",
    "scale",
    "secrets",
    "security_opt",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "storage_opt",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "user",
    "userns_mode",
    "uts",
    "volumes",
    "volumes_from",
    "working_dir",
];
/// Keys of the file.
const TOP_KEYS: &[&str] = &[
    "configs", "name", "networks", "secrets", "services", "version", "volumes",
];
/// Drivers of networks that stay away from the host's own.
const NETWORK_DRIVERS: &[&str] = &["", "bridge", "default", "overlay"];

fn asks(path: impl Into<String>, what: &'static str) -> Forbidden {
    Forbidden::Asks {
        path: path.into(),
        what,
    }
}

pub(super) fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty() && text != "false",
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

pub(super) fn entries(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}

pub(super) fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

impl HostPolicy {
    /// Whether everything that the `active` services of a resolved model ask of the host is allowed, and what of it is so because
    /// the settings say it. What is below `files_dir` the host's owner has set aside for it; names that begin with `own_prefix` are
    /// the target's own. Blocks: follows symbolic links on the host.
    pub fn check_model(
        &self,
        model: &Value,
        active: &BTreeSet<String>,
        files_dir: Option<&Path>,
        own_prefix: &str,
    ) -> Result<Vec<Allowance>, Forbidden> {
        let policy = Self {
            files_dir: files_dir.map(Into::into),
            ..self.clone()
        };
        let mut allowances = BTreeSet::new();
        for (key, _) in entries(Some(model)) {
            if !TOP_KEYS.contains(&key.as_str()) && !key.starts_with("x-") {
                return Err(asks(key, "is not a key that the agent can judge"));
            }
        }
        for (name, volume) in entries(model.get("volumes")) {
            allowances.extend(policy.volume(name, volume)?);
            not_of_another("volume", called(name, volume), own_prefix)?;
        }
        for (name, network) in entries(model.get("networks")) {
            network_of(name, network)?;
            not_of_another("network", called(name, network), own_prefix)?;
        }
        for kind in ["configs", "secrets"] {
            for (name, entry) in entries(model.get(kind)) {
                if let Some(file) = entry.get("file").and_then(Value::as_str) {
                    allowances.extend(policy.check_path(&format!("{kind}.{name}"), file)?);
                }
            }
        }
        for (name, service) in entries(model.get("services")).filter(|(name, _)| active.contains(*name)) {
            allowances.extend(policy.service(name, service)?);
        }
        Ok(bounded(allowances))
    }

    /// A volume of the `local` driver may be a folder or a device of the host.
    fn volume(&self, name: &str, volume: &Value) -> Result<Option<Allowance>, Forbidden> {
        let device = text(
            volume
                .get("driver_opts")
                .and_then(|options| options.get("device")),
        );
        if device.starts_with('/') {
            return self.check_path(&format!("volumes.{name}"), device);
        }
        Ok(None)
    }

    fn service(&self, name: &str, service: &Value) -> Result<BTreeSet<Allowance>, Forbidden> {
        let at = |key: &str| format!("services.{name}.{key}");
        for (key, _) in entries(Some(service)) {
            if !SERVICE_KEYS.contains(&key.as_str()) && !key.starts_with("x-") {
                return Err(asks(at(key), "is not a key that the agent can judge"));
            }
        }
        if service.get("privileged").is_some_and(is_set) {
            return Err(asks(at("privileged"), "gives the container the whole host"));
        }
        for hook in ["post_start", "pre_stop"] {
            if items(service.get(hook)).any(|step| step.get("privileged").is_some_and(is_set)) {
                return Err(asks(at(hook), "runs a privileged command"));
            }
        }
        for (key, allowed) in [
            ("cgroup", &["", "private"][..]),
            ("ipc", &["", "none", "private", "shareable"]),
            ("network_mode", &["", "bridge", "default", "none"]),
            ("pid", &[""]),
            ("userns_mode", &[""]),
            ("uts", &[""]),
        ] {
            let value = text(service.get(key));
            let of_service = matches!(key, "ipc" | "network_mode" | "pid") && value.starts_with("service:");
            if !allowed.contains(&value) && !of_service {
                return Err(asks(
                    at(key),
                    "joins a namespace of the host or of another project",
                ));
            }
        }
        if items(service.get("volumes_from")).any(|from| text(Some(from)).starts_with("container:")) {
            return Err(asks(at("volumes_from"), "takes the volumes of another project"));
        }
        let reservations = service
            .get("deploy")
            .and_then(|deploy| deploy.get("resources")?.get("reservations")?.get("devices"));
        if reservations.is_some_and(is_set) {
            return Err(asks(
                at("deploy.resources.reservations.devices"),
                "takes devices of the host",
            ));
        }
        let mut allowances = BTreeSet::new();
        for capability in items(service.get("cap_add")) {
            allowances.extend(self.check_capability(name, text(Some(capability)))?);
        }
        for option in items(service.get("security_opt")) {
            allowances.extend(self.check_security_option(name, text(Some(option)))?);
        }
        for mount in items(service.get("volumes")) {
            if let Some(source) = host_path(mount, &at("volumes"))? {
                allowances.extend(self.check_path(name, source)?);
            }
        }
        Ok(allowances)
    }
}

/// The path of the host that a mount names, if it does.
fn host_path<'a>(mount: &'a Value, at: &str) -> Result<Option<&'a str>, Forbidden> {
    match mount {
        Value::String(short) => {
            let (source, target) = short.split_once(':').unwrap_or(("", short));
            let is_path = source.starts_with(['/', '.', '~', '\\']) || source.contains('/');
            Ok(Some(source).filter(|_| is_path && !target.is_empty()))
        }
        Value::Object(long) => match text(long.get("type")) {
            "bind" => Ok(Some(text(long.get("source")))),
            "volume" | "tmpfs" => Ok(None),
            _ => Err(asks(at, "has a mount of a type that the agent cannot judge")),
        },
        _ => Err(asks(at, "has a mount that the agent cannot read")),
    }
}

fn network_of(name: &str, network: &Value) -> Result<(), Forbidden> {
    let at = format!("networks.{name}");
    let driver = text(network.get("driver"));
    if !NETWORK_DRIVERS.contains(&driver) {
        return Err(asks(
            at,
            "uses a driver that reaches into the host's own networks",
        ));
    }
    if is_external(network) && matches!(called(name, network), "host" | "none") {
        return Err(asks(at, "is the host's own network"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sealift_common::{compose::hosted, evidence::AllowedBy};

    use super::*;

    fn check(yaml: &str) -> Result<Vec<Allowance>, Forbidden> {
        let policy = HostPolicy {
            allowed_host_paths: vec!["/srv/app".into()],
            engine_socket: Some("/var/run/docker.sock".into()),
            state_dir: Some("/var/lib/sealift-agent".into()),
            ..HostPolicy::default()
        };
        let model = hosted::document(yaml).unwrap();
        policy.check_model(
            &model,
            &["a".to_owned()].into(),
            Some(Path::new("/srv/files")),
            "sealift-0a-",
        )
    }

    fn service(body: &str) -> Result<Vec<Allowance>, Forbidden> {
        check(&format!("services: {{a: {{image: a, {body}}}}}"))
    }

    #[test]
    fn t16_what_reaches_the_host_is_refused_with_place_and_advice() {
        for (body, said) in [
            ("privileged: true", "services.a.privileged"),
            ("privileged: 'true'", "services.a.privileged"),
            ("pid: host", "services.a.pid"),
            ("pid: 'container:x'", "services.a.pid"),
            ("ipc: host", "services.a.ipc"),
            ("uts: host", "services.a.uts"),
            ("userns_mode: host", "services.a.userns_mode"),
            ("cgroup: host", "services.a.cgroup"),
            ("cgroup_parent: x", "services.a.cgroup_parent"),
            ("network_mode: host", "services.a.network_mode"),
            ("network_mode: 'container:x'", "services.a.network_mode"),
            ("network_mode: other_default", "services.a.network_mode"),
            ("devices: [/dev/sda]", "services.a.devices"),
            (
                "device_cgroup_rules: ['c 1:3 rwm']",
                "services.a.device_cgroup_rules",
            ),
            ("gpus: all", "services.a.gpus"),
            ("runtime: x", "services.a.runtime"),
            ("use_api_socket: true", "services.a.use_api_socket"),
            ("some_future_key: 1", "services.a.some_future_key"),
            ("volumes_from: ['container:x']", "services.a.volumes_from"),
            (
                "post_start: [{command: x, privileged: true}]",
                "services.a.post_start",
            ),
            (
                "deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}",
                "services.a.deploy.resources.reservations.devices",
            ),
            ("cap_add: [SYS_ADMIN]", "SYS_ADMIN"),
            ("cap_add: [ALL]", "ALL"),
            ("security_opt: ['seccomp:unconfined']", "unconfined"),
            ("volumes: ['/etc:/x:ro']", "/etc"),
            ("volumes: ['/var/run/docker.sock:/x']", "/var/run/docker.sock"),
            ("volumes: [{type: bind, source: /root, target: /x}]", "/root"),
            (
                "volumes: [{type: npipe, source: x, target: /x}]",
                "services.a.volumes",
            ),
            (
                "volumes: ['/var/lib/sealift-agent/compose/x:/x']",
                "/var/lib/sealift-agent",
            ),
        ] {
            let refused = service(body).unwrap_err().to_string();
            assert!(
                refused.contains(said) && refused.len() > said.len() + 20,
                "{body}: {refused}"
            );
        }
        for (yaml, said) in [
            (
                "services: {a: {image: a}}\nvolumes: {v: {driver_opts: {type: none, o: bind, device: /etc}}}",
                "/etc",
            ),
            (
                "services: {a: {image: a}}\nnetworks: {n: {driver: macvlan}}",
                "networks.n",
            ),
            (
                "services: {a: {image: a}}\nnetworks: {n: {external: true, name: host}}",
                "networks.n",
            ),
            (
                "services: {a: {image: a}}\nnetworks: {host: {external: true}}",
                "networks.host",
            ),
            (
                "services: {a: {image: a}}\nsecrets: {s: {file: /etc/shadow}}",
                "/etc/shadow",
            ),
            (
                "services: {a: {image: a}}\nnetworks: {n: {external: true, name: sealift-0b-shop_default}}",
                "sealift-0b-shop_default",
            ),
            (
                "services: {a: {image: a}}\nvolumes: {v: {name: sealift-0b-shop_data}}",
                "sealift-0b-shop_data",
            ),
            ("services: {a: {image: a}}\nmodels: {m: {}}", "models"),
        ] {
            let refused = check(yaml).unwrap_err().to_string();
            assert!(refused.contains(said), "{yaml}: {refused}");
        }
    }

    #[test]
    fn what_applications_usually_ask_for_is_allowed() {
        for body in [
            "cap_add: [NET_BIND_SERVICE], cap_drop: [ALL], read_only: true",
            "security_opt: ['no-new-privileges:true']",
            "volumes: ['data:/d:rw', /anonymous, '/srv/files/y:/y']",
            "volumes: [{type: volume, source: data, target: /d}, {type: tmpfs, target: /t}]",
            "pid: 'service:b', ipc: shareable, network_mode: 'service:b', privileged: false",
            "deploy: {resources: {limits: {cpus: '0.5'}}}, x-sealift: {}",
        ] {
            assert_eq!(service(body), Ok(Vec::new()), "{body}");
        }
        assert_eq!(
            check("services: {a: {image: a}}\nvolumes: {v: {name: sealift-0a-shop_v}}"),
            Ok(Vec::new())
        );
        // What does not run asks for nothing.
        assert_eq!(
            check("services: {a: {image: a}, off: {image: b, privileged: true, profiles: [x]}}"),
            Ok(Vec::new())
        );
        assert_eq!(
            check("services: {a: {image: a}}\nsecrets: {s: {file: /srv/files/s}}"),
            Ok(Vec::new())
        );
    }

    #[test]
    fn what_the_settings_allow_is_told() {
        let body = "volumes: ['/srv/app/x:/x:ro', '/srv/files/y:/y', '/srv/app/x:/z']";
        let wanted = Allowance::new("a", AllowedBy::HostPaths, "/srv/app/x");
        assert_eq!(service(body), Ok(vec![wanted]));
        let shared = "services: {a: {image: a}}\nvolumes: {v: {driver_opts: {type: none, o: bind, device: /srv/app/v}}}";
        let wanted = Allowance::new("volumes.v", AllowedBy::HostPaths, "/srv/app/v");
        assert_eq!(check(shared), Ok(vec![wanted]));
    }
}
