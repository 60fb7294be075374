//! A service's description as the engine's create call wants it.

use std::collections::{BTreeSet, HashMap};

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
    NetworkingConfig, PortBinding, ResourcesUlimits, RestartPolicyNameEnum,
};
use sealift_common::manifest::{Healthcheck, MountSpec, PortSpec, Protocol, RestartPolicy, ServiceSpec};

use crate::host::NewContainer;

/// The body of the create call. Only the first network is named in it: engines below API 1.44 take no more than one.
pub fn body(container: &NewContainer) -> ContainerCreateBody {
    let spec = &container.spec;
    let (network, endpoint) = container
        .networks
        .first()
        .map(|(name, aliases)| (name.clone(), endpoint(aliases)))
        .unzip();
    let endpoints = network
        .clone()
        .zip(endpoint)
        .map(|(name, endpoint)| HashMap::from([(name, endpoint)]));
    let ports: BTreeSet<String> = spec.ports.iter().map(port_key).collect();
    ContainerCreateBody {
        hostname: spec.hostname.clone(),
        user: spec.user.clone(),
        exposed_ports: (!ports.is_empty()).then(|| ports.into_iter().collect()),
        env: Some(
            spec.environment
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
        ),
        cmd: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        healthcheck: spec.healthcheck.as_ref().map(health),
        image: Some(spec.image.pull_reference()),
        volumes: anonymous(spec),
        working_dir: spec.working_dir.clone(),
        labels: Some(container.labels.clone().into_iter().collect()),
        stop_signal: spec.stop_signal.clone(),
        // The engine counts whole seconds; a part of one is given in full.
        stop_timeout: Some(i64::from(spec.stop_grace_period_ms.div_ceil(1000))),
        host_config: Some(host_config(container, network)),
        networking_config: endpoints.map(|endpoints| NetworkingConfig {
            endpoints_config: Some(endpoints),
        }),
        ..Default::default()
    }
}

fn host_config(container: &NewContainer, network: Option<String>) -> HostConfig {
    let spec = &container.spec;
    let limits = spec.resources;
    HostConfig {
        memory: (limits.memory_bytes > 0).then(|| i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX)),
        nano_cpus: (limits.milli_cpus > 0).then(|| i64::from(limits.milli_cpus) * 1_000_000),
        pids_limit: (limits.pids > 0).then(|| i64::from(limits.pids)),
        init: spec.init.then_some(true),
        ulimits: Some(
            spec.ulimits
                .iter()
                .map(|(name, limit)| ResourcesUlimits {
                    name: Some(name.clone()),
                    soft: Some(i64::from(limit.soft)),
                    hard: Some(i64::from(limit.hard)),
                })
                .collect(),
        ),
        log_config: spec.logging.as_ref().map(|logging| HostConfigLogConfig {
            typ: Some(logging.driver.clone()),
            config: Some(logging.options.clone().into_iter().collect()),
        }),
        network_mode: network,
        port_bindings: bindings(&spec.ports),
        restart_policy: Some(restart(spec.restart)),
        mounts: Some(
            spec.volumes
                .iter()
                .filter_map(|mount| self::mount(container, mount))
                .collect(),
        ),
        cap_add: some(&spec.cap_add),
        cap_drop: some(&spec.cap_drop),
        extra_hosts: some(&spec.extra_hosts),
        readonly_rootfs: Some(spec.read_only),
        security_opt: some(&spec.security_opt),
        tmpfs: Some(spec.tmpfs.clone().into_iter().collect()),
        sysctls: Some(spec.sysctls.clone().into_iter().collect()),
        ..Default::default()
    }
}

fn some(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

/// Settings of an endpoint with these aliases.
pub fn endpoint(aliases: &[String]) -> EndpointSettings {
    EndpointSettings {
        aliases: Some(aliases.to_vec()),
        ..Default::default()
    }
}

fn port_key(port: &PortSpec) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}/{protocol}", port.container)
}

fn bindings(ports: &[PortSpec]) -> Option<HashMap<String, Option<Vec<PortBinding>>>> {
    let mut map: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in ports {
        map.entry(port_key(port))
            .or_default()
            .get_or_insert_default()
            .push(PortBinding {
                host_ip: port.host_ip.map(|address| address.to_string()),
                host_port: Some(port.host.map_or_else(String::new, |host| host.to_string())),
            });
    }
    (!map.is_empty()).then_some(map)
}

fn anonymous(spec: &ServiceSpec) -> Option<Vec<String>> {
    let paths: Vec<String> = spec
        .volumes
        .iter()
        .filter_map(|mount| match mount {
            MountSpec::Anonymous { target } => Some(target.clone()),
            MountSpec::Volume { .. } | MountSpec::Bind { .. } => None,
        })
        .collect();
    (!paths.is_empty()).then_some(paths)
}

fn mount(container: &NewContainer, mount: &MountSpec) -> Option<Mount> {
    match mount {
        MountSpec::Volume {
            volume,
            target,
            read_only,
        } => Some(Mount {
            typ: Some(MountType::VOLUME),
            source: container.volumes.get(volume).cloned(),
            target: Some(target.clone()),
            read_only: Some(*read_only),
            ..Default::default()
        }),
        MountSpec::Bind {
            source,
            target,
            read_only,
        } => Some(Mount {
            typ: Some(MountType::BIND),
            source: Some(source.clone()),
            target: Some(target.clone()),
            read_only: Some(*read_only),
            ..Default::default()
        }),
        MountSpec::Anonymous { .. } => None,
    }
}

fn health(check: &Healthcheck) -> HealthConfig {
    let nanos = |ms: Option<u32>| ms.map(|ms| i64::from(ms) * 1_000_000);
    HealthConfig {
        test: Some(check.test.clone()),
        interval: nanos(check.interval_ms),
        timeout: nanos(check.timeout_ms),
        retries: check.retries.map(i64::from),
        start_period: nanos(check.start_period_ms),
        ..Default::default()
    }
}

/// A restart policy in the engine's words.
pub fn restart(policy: RestartPolicy) -> bollard::models::RestartPolicy {
    let (name, retries) = match policy {
        RestartPolicy::No => (RestartPolicyNameEnum::NO, None),
        RestartPolicy::Always => (RestartPolicyNameEnum::ALWAYS, None),
        RestartPolicy::UnlessStopped => (RestartPolicyNameEnum::UNLESS_STOPPED, None),
        RestartPolicy::OnFailure { max_retries } => {
            (RestartPolicyNameEnum::ON_FAILURE, Some(i64::from(max_retries)))
        }
    };
    bollard::models::RestartPolicy {
        name: Some(name),
        maximum_retry_count: retries,
    }
}

/// The engine's restart policy in our words.
pub fn restart_of(policy: Option<&bollard::models::RestartPolicy>) -> RestartPolicy {
    let name = policy.and_then(|policy| policy.name);
    match name {
        Some(RestartPolicyNameEnum::ALWAYS) => RestartPolicy::Always,
        Some(RestartPolicyNameEnum::UNLESS_STOPPED) => RestartPolicy::UnlessStopped,
        Some(RestartPolicyNameEnum::ON_FAILURE) => RestartPolicy::OnFailure {
            max_retries: policy
                .and_then(|policy| policy.maximum_retry_count)
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(0),
        },
        Some(RestartPolicyNameEnum::NO | RestartPolicyNameEnum::EMPTY) | None => RestartPolicy::No,
    }
}
