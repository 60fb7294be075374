//! Hooks of a set that Compose makes. Their containers join its networks and volumes and are otherwise none of its business.

use std::collections::BTreeMap;

use sealift_common::{
    compose_manifest::ComposeManifest,
    failure::{Failure, FailureCode},
    hook::{Direction, HookSpec, HookWhen},
    name::ServiceName,
};
use serde_json::Value;

use super::{ComposeRunner, patiently};
use crate::{
    compose::{names::thing, resolved, variables::cleared},
    host::{Host, HostError, NewContainer, NewNetwork},
    journal::HookRef,
    labels,
    runner::{
        attempt::Attempt,
        hooks::{HookAttempt, Sets, called, confined, environment},
        internal,
        prove::{LOCKS, aside},
    },
    step::hooks::Present,
};

/// Labels by which Compose knows what is its own.
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_VOLUME: &str = "com.docker.compose.volume";

impl<H: Host> ComposeRunner<H> {
    /// The lock as data.
    pub(super) async fn model(&self) -> Result<Value, Failure> {
        let digest = self.locked()?.lock;
        let files = self.compose.files(&self.attempt.order);
        let text = aside(LOCKS, move || files.text(digest)).await?;
        resolved::read(&text, &self.attempt.order.manifest)
    }

    /// The engine's networks of a hook. One that Compose has not made yet has nobody on it: the hook gets an empty one of its own
    /// instead, because Compose refuses networks that others made.
    async fn hook_networks(
        &self,
        model: &Value,
        spec: &HookSpec,
        hook: &HookRef,
    ) -> Result<Vec<(String, Vec<String>)>, Failure> {
        let (host, order) = (&self.attempt.shared.host, &self.attempt.order);
        let project = labels::compose_project(order);
        let own = labels::of_project(order.target_id, &order.release.project);
        let there = patiently(self.attempt.patience(), || host.networks(&own)).await?;
        let mut networks = Vec::new();
        for key in spec.network_names() {
            let network = thing(model, &project, "networks", key);
            if network.is_external || there.contains(&network.name) {
                networks.push((network.name, Vec::new()));
                continue;
            }
            let mut labels = own.clone();
            labels.insert(labels::HOOK.to_owned(), spec.name.to_string());
            let instead = NewNetwork {
                name: format!("{}-{key}", labels::hook_name(order, hook)),
                internal: network.is_internal,
                labels,
            };
            patiently(self.attempt.patience(), || host.ensure_network(&instead)).await?;
            networks.push((instead.name, Vec::new()));
        }
        Ok(networks)
    }

    /// The engine's volumes of a hook, made as Compose would make them.
    async fn hook_volumes(
        &self,
        model: &Value,
        spec: &HookSpec,
    ) -> Result<BTreeMap<ServiceName, String>, Failure> {
        let (host, order) = (&self.attempt.shared.host, &self.attempt.order);
        let project = labels::compose_project(order);
        let mut volumes = BTreeMap::new();
        for mount in &spec.volumes {
            let volume = thing(model, &project, "volumes", mount.volume.as_str());
            if !volume.is_plain {
                let summary = format!(
                    "volume {} has a driver or options of its own, and a hook mounts only plain ones",
                    mount.volume
                );
                return Err(Failure::new(FailureCode::HookFailed, summary));
            }
            if !volume.is_external {
                let mut labels = labels::of_project(order.target_id, &order.release.project);
                labels.insert(COMPOSE_PROJECT.to_owned(), project.clone());
                labels.insert(COMPOSE_VOLUME.to_owned(), mount.volume.to_string());
                patiently(self.attempt.patience(), || {
                    host.ensure_volume(&volume.name, &labels)
                })
                .await?;
            }
            volumes.insert(mount.volume.clone(), volume.name);
        }
        Ok(volumes)
    }

    /// Values for the variables that a hook only names: the host's own win, as they do for Compose.
    async fn hook_variables(&self, spec: &HookSpec) -> Result<BTreeMap<String, String>, Failure> {
        if spec.variables.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (reader, environment) = (self.compose.clone(), self.attempt.order.environment.clone());
        let host = tokio::task::spawn_blocking(move || reader.host_variables(&environment))
            .await
            .map_err(internal)?
            .map_err(internal)?;
        let given = spec.variables.iter().map(|name| {
            let value = host.get(name).or_else(|| self.attempt.order.variables.get(name));
            let value = value.ok_or_else(|| {
                let summary = format!("variable {name} is neither set on the host nor in the environment");
                Failure::new(FailureCode::HookFailed, summary)
            })?;
            Ok((name.clone(), value.to_owned()))
        });
        given.collect()
    }

    /// Who takes over from whom. What Compose replaced is gone.
    async fn sets(&self, spec: &HookSpec, direction: Direction) -> Result<Sets, HostError> {
        if spec.when != HookWhen::Switch {
            return Ok(Sets::default());
        }
        let now = self.listed().await?;
        let to = now
            .iter()
            .map(|(service, listed)| called(service, &listed.id))
            .collect();
        let old = self.attempt.state.old.iter().flatten().filter(|old| old.running);
        let old = old.filter(|_| direction == Direction::Forward);
        let from = old.map(|old| called(&old.service, &old.id)).collect();
        Ok(Sets { to, from })
    }
}

impl<H: Host> HookAttempt<H> for ComposeRunner<H> {
    type Manifest = ComposeManifest;

    fn attempt(&self) -> &Attempt<H, ComposeManifest> {
        &self.attempt
    }

    fn attempt_mut(&mut self) -> &mut Attempt<H, ComposeManifest> {
        &mut self.attempt
    }

    fn present(&mut self) -> &mut Present {
        &mut self.world.hooks
    }

    /// Its networks and volumes are called by what was filled in, and it may print what it was given.
    fn cleared(&self, failure: Failure) -> Failure {
        cleared(self.filled.as_ref(), &failure)
    }

    async fn container(&self, spec: &HookSpec, hook: &HookRef) -> Result<NewContainer, Failure> {
        let order = &self.attempt.order;
        let model = self.model().await?;
        let is_first = self.attempt.is_first().await?;
        let sets = self.sets(spec, hook.direction).await?;
        let mut variables = self.hook_variables(spec).await?;
        variables.extend(environment(order, spec, hook, is_first, &sets));
        Ok(NewContainer {
            name: labels::hook_name(order, hook),
            service: spec.name.clone(),
            networks: self.hook_networks(&model, spec, hook).await?,
            volumes: self.hook_volumes(&model, spec).await?,
            spec: confined(spec, variables),
            labels: labels::of_hook(order, hook, &spec.image),
        })
    }

    async fn tidy(&self) -> Result<(), HostError> {
        let all = labels::of_hooks(self.attempt.order.target_id, &self.attempt.order.release.project);
        let host = &self.attempt.shared.host;
        for network in patiently(self.attempt.patience(), || host.networks(&all)).await? {
            patiently(self.attempt.patience(), || host.remove_network(&network)).await?;
        }
        Ok(())
    }
}
