//! The host's policy on a compose file as the host's Compose resolved it: after merge, extends and interpolation, so that nothing
//! can hide behind them. What is not known to be harmless is refused.

use std::{collections::BTreeSet, path::Path};

use sealift_common::evidence::Allowance;
use serde_json::Value;

use super::{
    Forbidden, HostPolicy,
    borrowed::{ENGINES_OWN, called, is_external, not_of_another},
    bounded,
};

/// Keys of a service that ask nothing of the host, or whose values are judged below.
const SERVICE_KEYS: &[&str] = &[
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
/// Keys of a volume.
const VOLUME_KEYS: &[&str] = &["driver", "driver_opts", "external", "labels", "name"];
/// Keys of a network.
const NETWORK_KEYS: &[&str] = &[
    "attachable",
    "driver",
    "driver_opts",
    "enable_ipv4",
    "enable_ipv6",
    "external",
    "internal",
    "ipam",
    "labels",
    "name",
];
/// Drivers of networks that stay away from the host's own.
const NETWORK_DRIVERS: &[&str] = &["", "bridge", "default", "overlay"];
/// Options of those drivers that do not reach beyond the network. Others name bridges and addresses of the host.
const NETWORK_OPTIONS: &[&str] = &[
    "com.docker.network.bridge.enable_icc",
    "com.docker.network.driver.mtu",
];
/// Options of a mount that only make it stricter or do not matter.
const MOUNT_FLAGS: &[&str] = &[
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nosuid",
    "relatime",
    "ro",
    "rw",
];
/// Options of a volume in memory.
const TMPFS_OPTIONS: &[&str] = &["gid", "mode", "nr_blocks", "nr_inodes", "size", "uid"];
/// What is said of a volume that is not known to be harmless.
const VOLUME: &str = "uses a driver or options that the agent cannot judge: only `local` without options, with type tmpfs, or with type \
                      none, bind among `o` and an absolute path in `device` (others: make the volume on the host and name it as external)";

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

    /// A volume of the `local` driver is whatever its options have the engine mount: a folder, a device, the kernel's own files. Plug-ins
    /// may do anything.
    fn volume(&self, name: &str, volume: &Value) -> Result<Option<Allowance>, Forbidden> {
        let at = format!("volumes.{name}");
        known_keys(&at, volume, VOLUME_KEYS)?;
        let unknown = || asks(&at, VOLUME);
        if !matches!(word(volume.get("driver")), Some("" | "local")) {
            return Err(unknown());
        }
        let options = match volume.get("driver_opts") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(options)) if options.is_empty() => return Ok(None),
            Some(Value::Object(options)) => options,
            Some(_) => return Err(unknown()),
        };
        if !options
            .keys()
            .all(|key| matches!(key.as_str(), "type" | "o" | "device"))
        {
            return Err(unknown());
        }
        let option = |key: &str| word(options.get(key)).ok_or_else(unknown);
        let (kind, device, flags) = (option("type")?, option("device")?, option("o")?);
        let is_flag = |flag: &str| MOUNT_FLAGS.contains(&flag);
        let is_bind = |flag: &str| matches!(flag, "bind" | "rbind");
        let mut flags = flags.split(',').filter(|flag| !flag.is_empty());
        match kind {
            "tmpfs" if matches!(device, "" | "tmpfs") => {
                let of_memory = |flag: &str| {
                    let option = flag.split_once('=');
                    option.is_some_and(|(option, _)| TMPFS_OPTIONS.contains(&option))
                };
                if flags.all(|flag| is_flag(flag) || of_memory(flag)) {
                    return Ok(None);
                }
            }
            "" | "none" if device.starts_with('/') => {
                let flags: Vec<_> = flags.collect();
                let is_known = flags.iter().all(|flag| is_flag(flag) || is_bind(flag));
                if is_known && flags.iter().any(|flag| is_bind(flag)) {
                    return self.check_path(&at, device);
                }
            }
            _ => {}
        }
        Err(unknown())
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
            ("network_mode", &["", "none"]),
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
        for (network, options) in entries(service.get("networks")) {
            if options.get("driver_opts").is_some_and(is_set) {
                let at = at(&format!("networks.{network}.driver_opts"));
                return Err(asks(at, "has options that the agent cannot judge"));
            }
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
            // Older engines are told both kinds in one notation, in which a name with a `/` is a path.
            "volume" if text(long.get("source")).contains(['/', '\\']) => {
                Err(asks(at, "has a volume whose name is a path"))
            }
            "volume" | "tmpfs" => Ok(None),
            _ => Err(asks(at, "has a mount of a type that the agent cannot judge")),
        },
        _ => Err(asks(at, "has a mount that the agent cannot read")),
    }
}

fn network_of(name: &str, network: &Value) -> Result<(), Forbidden> {
    let at = format!("networks.{name}");
    known_keys(&at, network, NETWORK_KEYS)?;
    if !word(network.get("driver")).is_some_and(|driver| NETWORK_DRIVERS.contains(&driver)) {
        return Err(asks(
            at,
            "uses a driver that reaches into the host's own networks",
        ));
    }
    let options = network.get("driver_opts");
    let is_list = options.is_some_and(|options| !options.is_object() && is_set(options));
    if is_list || entries(options).any(|(option, _)| !NETWORK_OPTIONS.contains(&option.as_str())) {
        let at = format!("{at}.driver_opts");
        return Err(asks(at, "has options that may name networks of the host"));
    }
    let ipam = network.get("ipam");
    let field = |key: &str| ipam.and_then(|ipam| ipam.get(key));
    let is_usual = matches!(word(field("driver")), Some("" | "default"));
    if !is_usual || field("options").is_some_and(is_set) {
        let at = format!("{at}.ipam");
        return Err(asks(
            at,
            "has its addresses from a driver that the agent cannot judge",
        ));
    }
    let is_named = is_external(network) || !text(network.get("name")).is_empty();
    if is_named && ENGINES_OWN.contains(&called(name, network)) {
        return Err(asks(at, "is the engine's own network"));
    }
    Ok(())
}

/// Refuses keys that are not known to be harmless.
fn known_keys(at: &str, entry: &Value, known: &[&str]) -> Result<(), Forbidden> {
    if !entry.is_object() && !entry.is_null() {
        return Err(asks(at, "is not written in a way that the agent can read"));
    }
    match entries(Some(entry)).find(|(key, _)| !known.contains(&key.as_str()) && !key.starts_with("x-")) {
        None => Ok(()),
        Some((key, _)) => Err(asks(
            format!("{at}.{key}"),
            "is not a key that the agent can judge",
        )),
    }
}

/// A text, empty when nothing is said; `None` when something else than a text is.
fn word(value: Option<&Value>) -> Option<&str> {
    match value {
        None | Some(Value::Null) => Some(""),
        Some(value) => value.as_str(),
    }
}

#[cfg(test)]
mod tests;
