//! What the engine says about a container, in our words. Every field may be missing: engines differ.

use std::{collections::BTreeMap, time::Duration};

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum,
    HealthStatusEnum,
};
use sealift_common::{
    canonical,
    digest::Digest,
    observation::{ContainerHealth, ContainerState},
};
use serde_json::{Value, json};

use super::spec::restart_of;
use crate::host::{Inspected, Listed};

const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// A container of a list.
pub fn listed(summary: ContainerSummary) -> Option<Listed> {
    let state = match summary.state {
        Some(ContainerSummaryStateEnum::CREATED) => ContainerState::Created,
        Some(ContainerSummaryStateEnum::RUNNING) => ContainerState::Running,
        Some(ContainerSummaryStateEnum::PAUSED) => ContainerState::Paused,
        Some(ContainerSummaryStateEnum::RESTARTING) => ContainerState::Restarting,
        Some(ContainerSummaryStateEnum::EXITED) => ContainerState::Exited,
        Some(ContainerSummaryStateEnum::REMOVING) => ContainerState::Removing,
        Some(ContainerSummaryStateEnum::DEAD) => ContainerState::Dead,
        _ => ContainerState::Unknown,
    };
    Some(Listed {
        id: summary.id?,
        labels: summary.labels.unwrap_or_default().into_iter().collect(),
        image_id: summary.image_id.unwrap_or_default(),
        state,
        health: health_of_status(summary.status.as_deref().unwrap_or_default()),
    })
}

/// Lists have a field of their own for health only since API 1.52; before that it is a part of the status text.
fn health_of_status(status: &str) -> ContainerHealth {
    if status.contains("(healthy)") {
        ContainerHealth::Healthy
    } else if status.contains("(unhealthy)") {
        ContainerHealth::Unhealthy
    } else if status.contains("(health: starting)") || status.contains("(starting)") {
        ContainerHealth::Starting
    } else {
        ContainerHealth::None
    }
}

/// A container in detail.
pub fn inspected(response: ContainerInspectResponse) -> Option<Inspected> {
    let fingerprint = fingerprint(&response);
    let state = response.state.unwrap_or_default();
    let config = response.config.unwrap_or_default();
    let host = response.host_config.unwrap_or_default();
    let health = state.health.unwrap_or_default();
    let id = response.id?;
    let networks = response
        .network_settings
        .and_then(|settings| settings.networks)
        .unwrap_or_default();
    let aliases = networks
        .iter()
        .map(|(name, endpoint)| {
            // The engine adds the beginning of the identifier.
            let given = endpoint.aliases.iter().flatten();
            let given = given.filter(|alias| !id.starts_with(alias.as_str()));
            (name.clone(), given.cloned().collect())
        })
        .collect();
    let addresses = networks
        .into_iter()
        .filter_map(|(name, endpoint)| {
            let address = endpoint.ip_address.filter(|text| !text.is_empty());
            let address = address.or(endpoint.global_ipv6_address)?;
            Some((name, address.parse().ok()?))
        })
        .collect();
    Some(Inspected {
        id,
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        image_id: response.image.unwrap_or_default(),
        image: config.image.unwrap_or_default(),
        state: match state.status {
            Some(ContainerStateStatusEnum::CREATED) => ContainerState::Created,
            Some(ContainerStateStatusEnum::RUNNING) => ContainerState::Running,
            Some(ContainerStateStatusEnum::PAUSED) => ContainerState::Paused,
            Some(ContainerStateStatusEnum::RESTARTING) => ContainerState::Restarting,
            Some(ContainerStateStatusEnum::EXITED) => ContainerState::Exited,
            Some(ContainerStateStatusEnum::REMOVING) => ContainerState::Removing,
            Some(ContainerStateStatusEnum::DEAD) => ContainerState::Dead,
            _ => ContainerState::Unknown,
        },
        health: match health.status {
            Some(HealthStatusEnum::STARTING) => ContainerHealth::Starting,
            Some(HealthStatusEnum::HEALTHY) => ContainerHealth::Healthy,
            Some(HealthStatusEnum::UNHEALTHY) => ContainerHealth::Unhealthy,
            _ => ContainerHealth::None,
        },
        failing_streak: health
            .failing_streak
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(0),
        health_output: health
            .log
            .unwrap_or_default()
            .pop()
            .and_then(|result| result.output)
            .unwrap_or_default(),
        exit_code: state.exit_code.unwrap_or_default(),
        oom_killed: state.oom_killed.unwrap_or_default(),
        started_at: state.started_at.unwrap_or_default(),
        restart_count: response
            .restart_count
            .and_then(|count| u64::try_from(count).ok())
            .unwrap_or(0),
        restart: restart_of(host.restart_policy.as_ref()),
        grace: config
            .stop_timeout
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(DEFAULT_GRACE, Duration::from_secs),
        aliases,
        addresses,
        fingerprint,
    })
}

fn sorted(list: Option<&Vec<String>>) -> Vec<String> {
    let mut list = list.cloned().unwrap_or_default();
    list.sort();
    list
}

/// Digest over what `docker update`, `docker network connect` or a container made anew by hand would change, and nothing that
/// changes by itself (addresses, times, states).
fn fingerprint(response: &ContainerInspectResponse) -> Digest {
    let config = response.config.clone().unwrap_or_default();
    let host = response.host_config.clone().unwrap_or_default();
    let restart = restart_of(host.restart_policy.as_ref());
    let mut mounts: Vec<Value> = response
        .mounts
        .iter()
        .flatten()
        .map(|mount| {
            let kind = mount.typ.as_ref().map(ToString::to_string);
            json!([kind, mount.name, mount.source, mount.destination, mount.rw])
        })
        .collect();
    mounts.sort_by_key(Value::to_string);
    let ports: BTreeMap<String, Value> = host
        .port_bindings
        .iter()
        .flatten()
        .map(|(port, bindings)| {
            let bindings: Vec<_> = bindings
                .iter()
                .flatten()
                .map(|binding| json!([binding.host_ip, binding.host_port]))
                .collect();
            (port.clone(), json!(bindings))
        })
        .collect();
    let networks: Vec<String> = {
        let networks = response
            .network_settings
            .as_ref()
            .and_then(|settings| settings.networks.as_ref());
        let names: Vec<String> = networks.iter().flat_map(|map| map.keys().cloned()).collect();
        sorted(Some(&names))
    };
    let number = |value: Option<i64>| value.unwrap_or(0).to_string();
    let document = json!({
        "image": response.image,
        "command": config.cmd,
        "entrypoint": config.entrypoint,
        "environment": sorted(config.env.as_ref()),
        "user": config.user,
        "workingDir": config.working_dir,
        "restart": restart,
        "memory": number(host.memory),
        "nanoCpus": number(host.nano_cpus),
        "cpuShares": number(host.cpu_shares),
        "cpuQuota": number(host.cpu_quota),
        "cpuset": host.cpuset_cpus.unwrap_or_default(),
        "pids": number(host.pids_limit),
        "privileged": host.privileged.unwrap_or(false),
        "readOnly": host.readonly_rootfs.unwrap_or(false),
        "capAdd": sorted(host.cap_add.as_ref()),
        "capDrop": sorted(host.cap_drop.as_ref()),
        "securityOpt": sorted(host.security_opt.as_ref()),
        "mounts": mounts,
        "ports": ports,
        "networks": networks,
    });
    canonical::digest(&document).unwrap_or_else(|_| Digest::of(document.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_read_from_old_engines_status_text() {
        for (status, health) in [
            ("Up 3 seconds (healthy)", ContainerHealth::Healthy),
            ("Up 3 seconds (unhealthy)", ContainerHealth::Unhealthy),
            ("Up 1 second (health: starting)", ContainerHealth::Starting),
            ("Up 1 second", ContainerHealth::None),
            ("Exited (0) 1 second ago", ContainerHealth::None),
        ] {
            assert_eq!(health_of_status(status), health, "{status}");
        }
    }

    #[test]
    fn an_answer_with_nothing_but_an_id_is_understood() {
        let response = ContainerInspectResponse {
            id: Some("x".into()),
            ..Default::default()
        };
        let seen = inspected(response).unwrap();
        assert_eq!(seen.state, ContainerState::Unknown);
        assert_eq!(seen.grace, DEFAULT_GRACE);
    }
}
