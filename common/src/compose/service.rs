//! One service.

use std::collections::BTreeMap;

use super::{
    ComposeService,
    cx::{At, Cx, quoted},
    mounts::{self, Mounts},
    ports, resources, scalar,
};
use crate::{
    digest::Digest,
    manifest::{
        DEFAULT_STOP_GRACE_PERIOD_MS, DependencyCondition, Healthcheck, PinnedImage, Probe, Resources,
        RestartPolicy, ServiceSpec, UpdateOrder,
    },
    name::ServiceName,
    swap,
};

/// Reads one service; `None` when it has no usable image (which is reported).
pub fn service(cx: &mut Cx, at: &At) -> Option<ComposeService> {
    let fields = cx.fields(at, "services.*");
    let mut spec = empty();
    let mut mounts = Mounts::default();
    for (key, at) in &fields {
        match *key {
            "command" => spec.command = command(cx, at),
            "entrypoint" => spec.entrypoint = command(cx, at),
            "ports" => spec.ports = ports::ports(cx, at),
            "volumes" => mounts::volumes(cx, at, &mut mounts),
            "tmpfs" => mounts::tmpfs(cx, at, &mut mounts),
            "networks" => spec.networks = networks(cx, at),
            "labels" => spec.labels = labels(cx, at),
            "user" => spec.user = cx.text(at),
            "working_dir" => spec.working_dir = working_dir(cx, at),
            "restart" => spec.restart = restart(cx, at),
            "healthcheck" => spec.healthcheck = healthcheck(cx, at),
            "x-sealift" => spec.probe = own(cx, at),
            "read_only" => spec.read_only = cx.flag(at).unwrap_or_default(),
            "cap_add" => spec.cap_add = capabilities(cx, at),
            "cap_drop" => spec.cap_drop = capabilities(cx, at),
            "security_opt" => spec.security_opt = security(cx, at),
            "sysctls" => spec.sysctls = cx.pairs(at, None),
            "ulimits" => spec.ulimits = resources::ulimits(cx, at),
            "extra_hosts" => spec.extra_hosts = extra_hosts(cx, at),
            "hostname" => spec.hostname = hostname(cx, at),
            "stop_signal" => spec.stop_signal = stop_signal(cx, at),
            "stop_grace_period" => {
                spec.stop_grace_period_ms = duration(cx, at).unwrap_or(DEFAULT_STOP_GRACE_PERIOD_MS);
            }
            "init" => spec.init = cx.flag(at).unwrap_or_default(),
            "logging" => spec.logging = resources::logging(cx, at),
            "deploy" => (spec.resources, spec.update_order) = resources::deploy(cx, at),
            "depends_on" => spec.depends_on = depends_on(cx, at),
            // `environment` wins over `env_file`, so both are read together below; `image` too needs more than itself.
            _ => {}
        }
    }
    if let Some(at) = fields.get("env_file") {
        env_file(cx, at, &mut spec.environment);
    }
    if let Some(at) = fields.get("environment") {
        spec.environment.extend(cx.pairs(at, None));
    }
    spec.volumes = mounts.volumes;
    spec.tmpfs = mounts.tmpfs;
    if let Some(at) = fields.get("deploy") {
        overlap(cx, at, &spec);
    }
    let Some(at) = fields.get("image") else {
        cx.wrong(at, "it has no image", "name one with `image:`");
        return None;
    };
    let image = image(cx, at)?;
    Some(ComposeService { image, spec })
}

/// An image as written.
pub fn image(cx: &mut Cx, at: &At) -> Option<String> {
    let text = cx.text(at)?;
    if text.is_empty() || text.len() > 1024 || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let advice = "write it like registry.example.com/shop/api:1.4";
        cx.wrong(at, format!("{} is no image reference", quoted(&text)), advice);
        return None;
    }
    Some(text)
}

/// A service that is started first holds nothing that only one container can have.
fn overlap(cx: &mut Cx, at: &At, spec: &ServiceSpec) {
    if spec.update_order.is_stop_first() {
        return;
    }
    for (message, advice) in swap::beside(spec) {
        let message = format!("start-first cannot be: {message}");
        cx.wrong(at, message, &format!("{advice}, or use `order: stop-first`"));
    }
}

/// A service that says nothing. Its image is never seen: [`ComposeService::pin`] replaces it.
fn empty() -> ServiceSpec {
    ServiceSpec {
        image: PinnedImage {
            repository: String::new(),
            tag: None,
            digest: Digest::of(b""),
        },
        command: None,
        entrypoint: None,
        environment: BTreeMap::new(),
        ports: Vec::new(),
        volumes: Vec::new(),
        networks: BTreeMap::new(),
        labels: BTreeMap::new(),
        user: None,
        working_dir: None,
        restart: RestartPolicy::No,
        healthcheck: None,
        probe: None,
        read_only: false,
        tmpfs: BTreeMap::new(),
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        security_opt: Vec::new(),
        sysctls: BTreeMap::new(),
        ulimits: BTreeMap::new(),
        extra_hosts: Vec::new(),
        hostname: None,
        stop_signal: None,
        stop_grace_period_ms: DEFAULT_STOP_GRACE_PERIOD_MS,
        init: false,
        logging: None,
        resources: Resources::default(),
        depends_on: BTreeMap::new(),
        update_order: UpdateOrder::default(),
    }
}

/// A command: a list, or a text that is split.
pub fn command(cx: &mut Cx, at: &At) -> Option<Vec<String>> {
    if at.is_list() {
        return Some(texts(cx, at));
    }
    let text = cx.text(at)?;
    match scalar::words(&text) {
        Ok(words) => Some(words),
        Err(fault) => {
            cx.wrong(at, format!("{} {fault}", quoted(&text)), "write it as a list");
            None
        }
    }
}

fn texts(cx: &mut Cx, at: &At) -> Vec<String> {
    let items = cx.items(at);
    items.iter().filter_map(|item| cx.text(item)).collect()
}

fn env_file(cx: &mut Cx, at: &At, environment: &mut BTreeMap<String, String>) {
    let items = if at.is_list() { cx.items(at) } else { Vec::new() };
    if !at.is_list() {
        one_env_file(cx, at, environment);
    }
    for item in &items {
        one_env_file(cx, item, environment);
    }
}

fn one_env_file(cx: &mut Cx, at: &At, environment: &mut BTreeMap<String, String>) -> Option<()> {
    let mut required = true;
    let path = if at.is_map() {
        let fields = cx.fields(at, "services.*.env_file[]");
        if let Some(at) = fields.get("required") {
            required = cx.flag(at)?;
        }
        if let Some(at) = fields.get("format") {
            let format = cx.text(at)?;
            if format != "raw" {
                cx.unsupported(at, format!("{} is not raw", quoted(&format)), "remove `format`");
            }
        }
        let Some(path) = fields.get("path") else {
            cx.wrong(at, "it has no path", "name the file");
            return None;
        };
        cx.text(path)?
    } else {
        cx.text(at)?
    };
    let Some(variables) = cx.env_file(&path) else {
        if required {
            let message = format!(
                "the variables of {} were not sent with the compose file",
                quoted(&path)
            );
            cx.wrong(
                at,
                message,
                "check that the file exists where `sealift release create` runs",
            );
        }
        return None;
    };
    for (name, value) in variables {
        let fits = !name.is_empty()
            && !name.contains(['=', '\0'])
            && !value.contains('\0')
            && name.len() + value.len() <= crate::bounds::MANIFEST_TEXT_BYTES;
        if fits && environment.len() < crate::bounds::SERVICE_ENTRIES {
            environment.insert(name.clone(), value.clone());
        } else {
            let message = format!("the variable {} is no variable, or one too many", quoted(name));
            cx.wrong(at, message, "correct the file");
            return None;
        }
    }
    Some(())
}

fn networks(cx: &mut Cx, at: &At) -> BTreeMap<ServiceName, Vec<String>> {
    let mut networks = BTreeMap::new();
    if at.is_list() {
        for item in cx.items(at) {
            if let Some(text) = cx.text(&item) {
                match text.parse::<ServiceName>() {
                    Ok(name) => {
                        if networks.insert(name, Vec::new()).is_some() {
                            cx.wrong(&item, "this network is there twice", "remove one");
                        }
                    }
                    Err(error) => cx.wrong(&item, error.to_string(), "correct the name"),
                }
            }
        }
    } else {
        for (name, at) in cx.named(at, crate::bounds::SERVICE_ENTRIES) {
            let fields = cx.fields(&at, "services.*.networks.*");
            let mut aliases = fields.get("aliases").map(|at| cx.set(at)).unwrap_or_default();
            for alias in &aliases {
                if alias.parse::<ServiceName>().is_err() {
                    cx.wrong(
                        &at,
                        format!("{} is no alias", quoted(alias)),
                        "use letters, digits, '.', '_', '-'",
                    );
                }
            }
            aliases.sort();
            networks.insert(name, aliases);
        }
    }
    // "Only the default network" has one spelling in a manifest: none.
    if networks.len() == 1
        && networks
            .iter()
            .all(|(name, aliases)| name.as_str() == "default" && aliases.is_empty())
    {
        networks.clear();
    }
    networks
}

fn labels(cx: &mut Cx, at: &At) -> BTreeMap<String, String> {
    let labels = cx.pairs(at, Some(""));
    for key in labels.keys() {
        if key.starts_with("dev.sealift.") || key.starts_with("com.docker.compose.") {
            let message = format!("the label {} is reserved", quoted(key));
            cx.wrong(at, message, "choose another name");
        }
    }
    labels
}

/// A folder in the container.
pub fn working_dir(cx: &mut Cx, at: &At) -> Option<String> {
    let text = cx.text(at)?;
    if let Some(fault) = scalar::path_fault(&text) {
        cx.wrong(
            at,
            format!("{} {fault}", quoted(&text)),
            "name an absolute path in the container",
        );
    }
    Some(text)
}

fn restart(cx: &mut Cx, at: &At) -> RestartPolicy {
    let Some(text) = cx.text(at) else {
        return RestartPolicy::No;
    };
    let retries = text
        .strip_prefix("on-failure:")
        .and_then(|number| number.parse::<u32>().ok())
        .filter(|number| i32::try_from(*number).is_ok());
    match (text.as_str(), retries) {
        // A plain `no` is a text in YAML 1.2 and false in YAML 1.1.
        ("no" | "false", _) => RestartPolicy::No,
        ("always", _) => RestartPolicy::Always,
        ("unless-stopped", _) => RestartPolicy::UnlessStopped,
        ("on-failure", _) => RestartPolicy::OnFailure { max_retries: 0 },
        (_, Some(max_retries)) => RestartPolicy::OnFailure { max_retries },
        _ => {
            cx.wrong(
                at,
                format!("{} is no restart policy", quoted(&text)),
                "use \"no\", always, unless-stopped, on-failure or on-failure:3",
            );
            RestartPolicy::No
        }
    }
}

/// A duration in milliseconds.
pub fn duration(cx: &mut Cx, at: &At) -> Option<u32> {
    let text = cx.number(at)?;
    let duration = scalar::duration_ms(&text);
    if duration.is_none() {
        let message = format!("{} is no duration", quoted(&text));
        cx.wrong(
            at,
            message,
            "write it like 10s or 1m30s, in whole milliseconds, at most 49 days",
        );
    }
    duration
}

fn healthcheck(cx: &mut Cx, at: &At) -> Option<Healthcheck> {
    let fields = cx.fields(at, "services.*.healthcheck");
    let disabled = fields
        .get("disable")
        .and_then(|at| cx.flag(at))
        .unwrap_or_default();
    let mut test = Vec::new();
    if let Some(at) = fields.get("test") {
        if at.is_list() {
            test = texts(cx, at);
            let right = match test.first().map(String::as_str) {
                Some("NONE") => test.len() == 1,
                Some("CMD") => test.len() > 1,
                Some("CMD-SHELL") => test.len() == 2,
                _ => false,
            };
            if !right {
                cx.wrong(
                    at,
                    "a test is [NONE], [CMD, program, …] or [CMD-SHELL, command]",
                    "correct the list, or write a text",
                );
            }
        } else {
            let text = cx.text(at)?;
            test = vec!["CMD-SHELL".to_owned(), text];
        }
    }
    if disabled {
        if !test.is_empty() && test.first().is_none_or(|word| word != "NONE") {
            cx.wrong(at, "it is disabled and has a test", "remove one");
        }
        test = vec!["NONE".to_owned()];
    }
    // The engine takes 0 for "as the image says", which is what nothing means here.
    let time = |cx: &mut Cx, key: &str| {
        fields
            .get(key)
            .and_then(|at| duration(cx, at))
            .filter(|ms| *ms > 0)
    };
    let (interval_ms, timeout_ms, start_period_ms) = (
        time(cx, "interval"),
        time(cx, "timeout"),
        time(cx, "start_period"),
    );
    let retries = fields
        .get("retries")
        .and_then(|at| cx.whole(at, 0, 1_000_000))
        .and_then(|value| u32::try_from(value).ok())
        .filter(|retries| *retries > 0);
    Some(Healthcheck {
        test,
        interval_ms,
        timeout_ms,
        retries,
        start_period_ms,
    })
}

/// `x-sealift`: what only Sealift knows.
pub fn own(cx: &mut Cx, at: &At) -> Option<Probe> {
    let fields = cx.fields(at, "services.*.x-sealift");
    let at = fields.get("probe")?;
    let kinds = cx.fields(at, "services.*.x-sealift.probe");
    if kinds.len() != 1 {
        cx.wrong(at, "a probe is exactly one of tcp, http, exec", "keep one");
        return None;
    }
    let (kind, at) = kinds.first_key_value()?;
    let fields = cx.fields(at, &format!("services.*.x-sealift.probe.{kind}"));
    if *kind == "exec" {
        let command = fields.get("command").and_then(|at| command(cx, at));
        if command.as_ref().is_none_or(Vec::is_empty) {
            cx.wrong(
                at,
                "it has no command",
                "name the program to run in the container",
            );
        }
        return Some(Probe::Exec { command: command? });
    }
    let Some(port) = fields.get("port") else {
        cx.wrong(at, "it has no port", "name the container's port");
        return None;
    };
    let port = u16::try_from(cx.whole(port, 1, 65_535)?).ok()?;
    if *kind == "tcp" {
        return Some(Probe::Tcp { port });
    }
    let path = match fields.get("path") {
        None => "/".to_owned(),
        Some(at) => {
            let path = cx.text(at)?;
            if !path.starts_with('/')
                || !path.bytes().all(|byte| byte.is_ascii_graphic())
                || path.len() > 2048
            {
                let message = format!("{} is no path of a URL", quoted(&path));
                cx.wrong(
                    at,
                    message,
                    "begin with / and encode blanks and other special characters",
                );
            }
            path
        }
    };
    Some(Probe::Http { port, path })
}

fn capabilities(cx: &mut Cx, at: &At) -> Vec<String> {
    let set = cx.set(at);
    for name in &set {
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        {
            cx.wrong(
                at,
                format!("{} is no capability", quoted(name)),
                "name it like NET_ADMIN",
            );
        }
    }
    set
}

fn security(cx: &mut Cx, at: &At) -> Vec<String> {
    let set = cx.set(at);
    for option in &set {
        let profile = option
            .strip_prefix("seccomp:")
            .or_else(|| option.strip_prefix("seccomp="));
        // The compose tool reads such a profile from a file beside the compose file.
        if profile.is_some_and(|profile| !matches!(profile, "unconfined" | "builtin")) {
            cx.unsupported(
                at,
                "seccomp profiles in files are not supported",
                "use a compose_host target",
            );
        }
    }
    set
}

fn extra_hosts(cx: &mut Cx, at: &At) -> Vec<String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    if at.is_list() {
        for item in cx.items(at) {
            if let Some(text) = cx.text(&item) {
                let split = text.split_once('=').or_else(|| text.split_once(':'));
                match split {
                    Some((name, address)) => pairs.push((name.to_owned(), address.to_owned())),
                    None => cx.wrong(
                        &item,
                        format!("{} has no address", quoted(&text)),
                        "write name:address",
                    ),
                }
            }
        }
    } else {
        for (name, at) in cx.entries(at, crate::bounds::SERVICE_ENTRIES) {
            for address in cx.one_or_many(&at) {
                pairs.push((name.to_owned(), address));
            }
        }
    }
    let mut hosts = Vec::new();
    for (name, address) in pairs {
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        let known = bare == "host-gateway" || bare.parse::<std::net::IpAddr>().is_ok();
        if !known || !is_hostname(&name) {
            let message = format!("{} is no name, or {} no address", quoted(&name), quoted(&address));
            cx.wrong(
                at,
                message,
                "write name:address with an IP address or host-gateway",
            );
        }
        hosts.push(format!("{name}:{bare}"));
    }
    hosts
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

fn hostname(cx: &mut Cx, at: &At) -> Option<String> {
    let text = cx.text(at)?;
    if !is_hostname(&text) {
        cx.wrong(
            at,
            format!("{} is no host name", quoted(&text)),
            "use letters, digits, dashes and dots",
        );
    }
    Some(text)
}

fn stop_signal(cx: &mut Cx, at: &At) -> Option<String> {
    let text = cx.text(at)?;
    let legal = (1..=20).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-'));
    if !legal {
        cx.wrong(
            at,
            format!("{} is no signal", quoted(&text)),
            "name it like SIGTERM",
        );
    }
    Some(text)
}

fn depends_on(cx: &mut Cx, at: &At) -> BTreeMap<ServiceName, DependencyCondition> {
    let mut needed = BTreeMap::new();
    if at.is_list() {
        for item in cx.items(at) {
            match cx.text(&item).map(|text| text.parse::<ServiceName>()) {
                Some(Ok(name)) => {
                    needed.insert(name, DependencyCondition::ServiceStarted);
                }
                Some(Err(error)) => cx.wrong(&item, error.to_string(), "correct the name"),
                None => {}
            }
        }
        return needed;
    }
    for (name, at) in cx.named(at, crate::bounds::SERVICES) {
        let fields = cx.fields(&at, "services.*.depends_on.*");
        let mut condition = DependencyCondition::ServiceStarted;
        if let Some(at) = fields.get("condition")
            && let Some(text) = cx.text(at)
        {
            match text.as_str() {
                "service_started" => {}
                "service_healthy" => condition = DependencyCondition::ServiceHealthy,
                _ => cx.unsupported(
                    at,
                    format!("the condition {} is not supported", quoted(&text)),
                    "use service_started or service_healthy, or a compose_host target",
                ),
            }
        }
        for (key, only) in [("required", true), ("restart", false)] {
            if let Some(at) = fields.get(key)
                && cx.flag(at).is_some_and(|value| value != only)
            {
                cx.unsupported(
                    at,
                    format!("{key} can only be {only}"),
                    "remove it, or use a compose_host target",
                );
            }
        }
        needed.insert(name, condition);
    }
    needed
}
