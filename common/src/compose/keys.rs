//! The supported keys: the one list that the parser obeys and `docs/compose-support.md` shows.

/// Every supported key by its place, with what is to know about it. `*` stands for a name that people choose, `[]` for an item.
pub const SUPPORTED: &[(&str, &str)] = &[
    (
        "name",
        "accepted; only used to recognise default names of networks and volumes",
    ),
    ("version", "obsolete in compose-spec; accepted and ignored"),
    ("services", "1 to 64 services"),
    ("networks", "networks besides `default`"),
    ("volumes", "named volumes"),
    ("x-sealift", "Sealift's own settings of the release"),
    ("x-sealift.hooks", "at most 16, see [hooks.md](hooks.md)"),
    ("x-sealift.hooks[].name", "required; unique"),
    (
        "x-sealift.hooks[].when",
        "required; `pre_deploy`, `switch` (at most one) or `post_deploy`",
    ),
    (
        "x-sealift.hooks[].image",
        "required; resolved to a digest when the release is made",
    ),
    (
        "x-sealift.hooks[].command",
        "list, or text split by POSIX quoting",
    ),
    (
        "x-sealift.hooks[].entrypoint",
        "list, or text split by POSIX quoting",
    ),
    (
        "x-sealift.hooks[].environment",
        "map or list; every variable needs a value; not `SEALIFT_…`",
    ),
    ("x-sealift.hooks[].networks", "list; `default` when missing"),
    (
        "x-sealift.hooks[].volumes",
        "short or long; only named volumes of the file",
    ),
    ("x-sealift.hooks[].user", ""),
    ("x-sealift.hooks[].working_dir", "absolute"),
    (
        "x-sealift.hooks[].timeout",
        "`1s` to `1h`; five minutes when missing",
    ),
    (
        "x-sealift.hooks[].on_failure",
        "`fail` (when missing) or `continue`; not for `switch`",
    ),
    (
        "services.*.image",
        "required; resolved to a digest when the release is made",
    ),
    ("services.*.command", "list, or text split by POSIX quoting"),
    ("services.*.entrypoint", "list, or text split by POSIX quoting"),
    (
        "services.*.environment",
        "map or list; every variable needs a value",
    ),
    (
        "services.*.env_file",
        "path, list of paths or of `path`/`required`; the caller sends the contents",
    ),
    ("services.*.env_file[].path", ""),
    ("services.*.env_file[].required", "`false`: may be missing"),
    (
        "services.*.env_file[].format",
        "`raw` is accepted and changes nothing: the caller has read the file, which has one format everywhere",
    ),
    ("services.*.ports", "short or long; ranges of equal length"),
    ("services.*.ports[].target", ""),
    (
        "services.*.ports[].published",
        "one port; empty lets the engine choose",
    ),
    ("services.*.ports[].host_ip", ""),
    ("services.*.ports[].protocol", "`tcp` or `udp`"),
    (
        "services.*.ports[].mode",
        "accepted and ignored: there is one host",
    ),
    ("services.*.ports[].name", "accepted and ignored"),
    ("services.*.ports[].app_protocol", "accepted and ignored"),
    ("services.*.volumes", "short or long; host paths must be absolute"),
    ("services.*.volumes[].type", "`volume`, `bind` or `tmpfs`"),
    ("services.*.volumes[].source", ""),
    ("services.*.volumes[].target", ""),
    ("services.*.volumes[].read_only", ""),
    (
        "services.*.volumes[].volume",
        "only empty, as `docker compose config` prints it",
    ),
    ("services.*.volumes[].bind", ""),
    (
        "services.*.volumes[].bind.create_host_path",
        "accepted and ignored",
    ),
    ("services.*.volumes[].tmpfs", ""),
    ("services.*.volumes[].tmpfs.size", ""),
    ("services.*.volumes[].tmpfs.mode", "octal digits"),
    ("services.*.networks", "list or map"),
    ("services.*.networks.*.aliases", ""),
    (
        "services.*.labels",
        "map or list; not `dev.sealift.…` or `com.docker.compose.…`",
    ),
    ("services.*.user", ""),
    ("services.*.working_dir", "absolute"),
    (
        "services.*.restart",
        "`no`, `always`, `unless-stopped`, `on-failure[:n]`",
    ),
    ("services.*.healthcheck", ""),
    (
        "services.*.healthcheck.test",
        "text, or list beginning with NONE, CMD or CMD-SHELL",
    ),
    ("services.*.healthcheck.interval", ""),
    ("services.*.healthcheck.timeout", ""),
    ("services.*.healthcheck.retries", ""),
    ("services.*.healthcheck.start_period", ""),
    ("services.*.healthcheck.disable", ""),
    ("services.*.read_only", ""),
    ("services.*.tmpfs", "path or list, options after a colon"),
    ("services.*.cap_add", ""),
    ("services.*.cap_drop", ""),
    ("services.*.security_opt", "seccomp profiles in files are refused"),
    ("services.*.sysctls", "map or list"),
    ("services.*.ulimits", "map of numbers or of soft and hard"),
    ("services.*.ulimits.*.soft", ""),
    ("services.*.ulimits.*.hard", ""),
    (
        "services.*.extra_hosts",
        "list or map; `host-gateway` is understood",
    ),
    ("services.*.hostname", ""),
    ("services.*.stop_signal", ""),
    ("services.*.stop_grace_period", "10 s when missing"),
    ("services.*.init", ""),
    ("services.*.logging", ""),
    ("services.*.logging.driver", "required when `logging` is there"),
    ("services.*.logging.options", ""),
    (
        "services.*.deploy",
        "only `resources.limits` and `update_config.order`",
    ),
    ("services.*.deploy.resources", ""),
    ("services.*.deploy.resources.limits", ""),
    (
        "services.*.deploy.resources.limits.cpus",
        "at most three decimals",
    ),
    (
        "services.*.deploy.resources.limits.memory",
        "bytes, or with `k`, `m`, `g`; at least 6 MiB",
    ),
    ("services.*.deploy.resources.limits.pids", ""),
    (
        "services.*.deploy.update_config",
        "the rest of it is the recipe's business",
    ),
    (
        "services.*.deploy.update_config.order",
        "`stop-first` (when missing) or `start-first`",
    ),
    ("services.*.depends_on", "list or map; orders the start"),
    (
        "services.*.depends_on.*.condition",
        "`service_started` or `service_healthy`",
    ),
    ("services.*.depends_on.*.required", "only `true`"),
    ("services.*.depends_on.*.restart", "only `false`"),
    ("services.*.x-sealift", "Sealift's own settings"),
    ("services.*.x-sealift.probe", "exactly one of tcp, http, exec"),
    ("services.*.x-sealift.probe.tcp", ""),
    ("services.*.x-sealift.probe.tcp.port", ""),
    ("services.*.x-sealift.probe.http", ""),
    ("services.*.x-sealift.probe.http.port", ""),
    (
        "services.*.x-sealift.probe.http.path",
        "begins with `/`; `/` when missing",
    ),
    ("services.*.x-sealift.probe.exec", ""),
    (
        "services.*.x-sealift.probe.exec.command",
        "list, or text split by POSIX quoting",
    ),
    (
        "networks.*.internal",
        "when it changes, the release gets another network",
    ),
    ("networks.*.external", "`true`"),
    ("networks.*.name", "for external networks"),
    ("networks.*.driver", "only `bridge`"),
    (
        "networks.*.ipam",
        "only empty, as `docker compose config` prints it",
    ),
    ("volumes.*.external", "`true`"),
    ("volumes.*.name", "for external volumes"),
    ("volumes.*.driver", "only `local`"),
];

/// Whether `key` is supported directly below `schema`, a place of [`SUPPORTED`] (empty: the top of the file).
pub fn is_supported(schema: &str, key: &str) -> bool {
    SUPPORTED.iter().any(|(place, _)| {
        if schema.is_empty() {
            *place == key
        } else {
            place
                .strip_prefix(schema)
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|rest| rest == key)
        }
    })
}

/// Message and advice for a key that is not supported.
pub fn refusal(schema: &str, key: &str) -> (String, &'static str) {
    if schema == "services.*" && key == "build" {
        return (
            "images are not built here".to_owned(),
            "build and push the image in CI, then name it with `image:`",
        );
    }
    if schema.starts_with("x-sealift") || schema.starts_with("services.*.x-sealift") {
        let message = format!("Sealift has no setting {} here", super::cx::quoted(key));
        return (message, "remove or correct it, see docs/compose-support.md");
    }
    (
        format!(
            "docker_host targets do not support the key {}",
            super::cx::quoted(key)
        ),
        "remove it, or use a compose_host target",
    )
}
