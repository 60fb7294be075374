//! What each step does to the host, up to the switch: images, networks and volumes, new containers, and a look at the old set.

use std::collections::{BTreeMap, BTreeSet};

use sealift_common::{
    failure::{Failure, FailureCode},
    hook::HookSpec,
    manifest::{MountSpec, PinnedImage, RestartPolicy, ServiceSpec},
    name::ServiceName,
    swap::{self, Swap},
};

use super::{Done, Runner, Trouble, borrowed, hooks, is_up, patiently, pull::bring};
use crate::{
    host::{Host, NewContainer, NewNetwork},
    journal::{OldContainer, OldOfCompose},
    kill, labels,
    policy::Borrowed,
    proof,
    step::{Seen, Step},
    workshop::{Looking, PATHS_ANSWER, unanswered},
};

impl<H: Host> Runner<H> {
    /// Does one step and updates what is known.
    pub(super) async fn perform(&mut self, step: &Step) -> Done {
        match step {
            Step::Pull => self.pull().await,
            Step::Surroundings => self.surroundings().await,
            Step::Create(service) => self.create(service).await,
            Step::Hook(step) => hooks::perform(self, step).await,
            Step::Prepare => self.prepare().await,
            Step::QuietOld(id) => self.quiet(id).await,
            Step::StopOld(id) => self.stop_old(id).await,
            Step::AwaitDependency(service) => self.await_dependency(service).await,
            Step::StartNew(service) => {
                // Engines follow the paths of mounts when they start a container, which may be long after it was made.
                let spec = self.spec(service)?.clone();
                self.still_allowed(service, &spec).await?;
                self.start_new(service).await
            }
            Step::NoteStarted => self.note_started(),
            Step::AwaitHealth => self.await_health().await,
            Step::JoinNew(service) => self.join_new(service).await,
            Step::LeaveOld(id) => self.leave_old(id).await,
            Step::NoteSwitched => self.note_switched().await,
            Step::AwaitBake => self.await_bake().await,
            Step::Commit => self.finish_well().await,
            Step::Restore(cause) => Ok(self.begin_restore(cause.clone()).await?),
            Step::JoinOld(id) => self.join_old(id).await,
            Step::StopNew(service) => self.stop_new(service).await,
            Step::RemoveNew(service) => self.remove_new(service).await,
            Step::RestorePolicy(id, policy) => self.restore_policy(id, *policy).await,
            Step::StartOld(id) => self.start_old(id).await,
            Step::CheckOld => self.check_old().await,
            Step::Conclude(cause) => self.finish_restored(cause).await,
            Step::RemoveOld(id) => self.remove_old(id).await,
            Step::Clean => self.clean().await,
            Step::Done => Ok(()),
        }
    }

    pub(super) fn spec(&self, service: &ServiceName) -> Result<&ServiceSpec, Failure> {
        self.attempt.order.manifest.services.get(service).ok_or_else(|| {
            let summary = format!("service {service} is not in the order");
            Failure::new(FailureCode::Internal, summary)
        })
    }

    async fn pull(&mut self) -> Done {
        let engine = {
            let shared = &self.attempt.shared;
            patiently(self.attempt.patience(), || shared.engine()).await?
        };
        let deadline = self.attempt.pull_deadline();
        let images: BTreeMap<String, PinnedImage> = self
            .attempt
            .order
            .manifest
            .services
            .values()
            .map(|spec| &spec.image)
            .chain(self.attempt.order.manifest.hooks.iter().map(|hook| &hook.image))
            .map(|image| (image.pull_reference(), image.clone()))
            .collect();
        kill::at("pull_begun");
        let pulls: Vec<_> = images
            .values()
            .map(|image| {
                bring(
                    &self.attempt.shared,
                    &self.attempt.log,
                    image,
                    &engine.platform,
                    self.attempt.patience(),
                    deadline,
                )
            })
            .collect();
        let brought = futures::future::try_join_all(pulls).await?;
        kill::at("digest_compared");
        self.world.images = true;
        let pulled = brought.iter().any(|(_, pulled)| *pulled);
        self.images
            .extend(brought.into_iter().map(|(local, _)| (local.id, local.digests)));
        Ok(self.attempt.note_pulled(pulled).await?)
    }

    async fn surroundings(&mut self) -> Done {
        let borrowed = Borrowed::of_manifest(&self.attempt.order.manifest);
        borrowed::are_there(self.attempt.host(), self.attempt.patience(), &borrowed).await?;
        let order = &self.attempt.order;
        let own = labels::of_project(order.target_id, &order.release.project);
        let host = self.attempt.host();
        let patience = self.attempt.patience();
        for (name, spec) in self.networks() {
            let network = NewNetwork {
                name,
                internal: spec,
                labels: own.clone(),
            };
            patiently(patience, || host.ensure_network(&network)).await?;
        }
        for (name, external) in self.volumes().into_values() {
            if !external {
                patiently(patience, || host.ensure_volume(&name, &own)).await?;
            }
        }
        kill::at("network_ready");
        self.world.surroundings = true;
        Ok(())
    }

    /// Names of the networks that the order needs and that are ours to make, with whether they are internal.
    pub(super) fn networks(&self) -> BTreeMap<String, bool> {
        let manifest = &self.attempt.order.manifest;
        let used: BTreeSet<&str> = manifest
            .services
            .values()
            .flat_map(ServiceSpec::network_names)
            .chain(manifest.hooks.iter().flat_map(HookSpec::network_names))
            .collect();
        used.into_iter()
            .filter_map(|name| {
                let spec = manifest.networks.get(name);
                if spec.is_some_and(|spec| spec.external.is_some()) {
                    return None;
                }
                Some((self.network_name(name), spec.is_some_and(|spec| spec.internal)))
            })
            .collect()
    }

    pub(super) fn network_name(&self, name: &str) -> String {
        let order = &self.attempt.order;
        let spec = order.manifest.networks.get(name);
        if let Some(external) = spec.and_then(|spec| spec.external.clone()) {
            return external;
        }
        let internal = spec.is_some_and(|spec| spec.internal);
        match order.swap {
            Swap::InPlace => labels::network_name(order.target_id, &order.release.project, name, internal),
            // Two sets that run side by side must not find each other's services by their names.
            Swap::BlueGreen { .. } => labels::set_network_name(order, name),
        }
    }

    /// The engine's names of the used volumes and whether they are not ours to make.
    pub(super) fn volumes(&self) -> BTreeMap<ServiceName, (String, bool)> {
        let order = &self.attempt.order;
        let of_hooks = order.manifest.hooks.iter().flat_map(|hook| &hook.volumes);
        order
            .manifest
            .services
            .values()
            .flat_map(|spec| &spec.volumes)
            .filter_map(|mount| match mount {
                MountSpec::Volume { volume, .. } => Some(volume),
                MountSpec::Bind { .. } | MountSpec::Anonymous { .. } => None,
            })
            .chain(of_hooks.map(|mount| &mount.volume))
            .map(|volume| {
                let external = order
                    .manifest
                    .volumes
                    .get(volume)
                    .and_then(|spec| spec.external.clone());
                let is_external = external.is_some();
                let name = external.unwrap_or_else(|| {
                    labels::volume_name(order.target_id, &order.release.project, volume.as_str())
                });
                (volume.clone(), (name, is_external))
            })
            .collect()
    }

    /// The engine's networks of a new container, with the aliases that it has from the beginning.
    pub(super) fn service_networks(
        &self,
        service: &ServiceName,
        spec: &ServiceSpec,
    ) -> Vec<(String, Vec<String>)> {
        let manifest = &self.attempt.order.manifest;
        let later = |name: &str| !self.attempt.order.swap.is_in_place() && swap::is_external(manifest, name);
        aliases(service, spec)
            .into_iter()
            .map(|(name, aliases)| {
                let now = if later(name) { Vec::new() } else { aliases };
                (self.network_name(name), now)
            })
            .collect()
    }

    async fn create(&mut self, service: &ServiceName) -> Done {
        let spec = self.spec(service)?.clone();
        self.still_allowed(service, &spec).await?;
        let labels = labels::of_container(&self.attempt.order, service, &spec)
            .map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))?;
        let container = NewContainer {
            name: labels::container_name(&self.attempt.order, service),
            service: service.clone(),
            labels,
            networks: self.service_networks(service, &spec),
            volumes: self
                .volumes()
                .into_iter()
                .map(|(volume, (name, _))| (volume, name))
                .collect(),
            spec,
        };
        kill::at("new_created.before");
        let id = {
            let host = self.attempt.host();
            patiently(self.attempt.patience(), || host.create(&container)).await?
        };
        kill::at("new_created");
        self.world.complete.insert(service.clone());
        let seen = self.world.new.entry(service.clone()).or_insert(Seen {
            id: String::new(),
            running: false,
            restart: RestartPolicy::No,
        });
        seen.id = id;
        Ok(())
    }

    /// A path that was allowed when the order was taken may lead elsewhere by now: whoever may write there may put a link in.
    async fn still_allowed(&self, service: &ServiceName, spec: &ServiceSpec) -> Result<(), Failure> {
        let (shared, service, spec) = (self.attempt.shared.clone(), service.clone(), spec.clone());
        let order = &self.attempt.order;
        let (environment, who) = (order.environment.clone(), format!("service {service}"));
        let (paths, kind) = (&self.attempt.shared.paths, (order.target_id, Looking::Making));
        let looks = spec.has_host_paths();
        let check = move || {
            let policy = shared.policy.of(&environment);
            policy.check_service(service.as_str(), &spec).map(drop)
        };
        let checked = if looks {
            let looked = paths.within(kind, PATHS_ANSWER, check).await;
            looked.map_err(|hangs| unanswered(&who, hangs))?
        } else {
            check()
        };
        checked.map_err(|forbidden| Failure::new(FailureCode::OrderRefused, forbidden.to_string()))
    }

    /// Looks at the old set; what is written down here is what a restore goes back to.
    async fn prepare(&mut self) -> Done {
        let old = self.capture().await?;
        for one in &old {
            let seen = Seen {
                id: one.id.clone(),
                running: one.running,
                restart: one.restart,
            };
            self.world.old.insert(one.id.clone(), seen);
        }
        Ok(self.attempt.note_prepared(old).await?)
    }

    /// The engine's networks on which the new set takes the old one's place.
    fn taken_over(&self) -> BTreeSet<String> {
        let manifest = &self.attempt.order.manifest;
        if self.attempt.order.swap.is_in_place() || !swap::moves_aliases(manifest) {
            return BTreeSet::new();
        }
        let names = manifest.services.values().flat_map(ServiceSpec::network_names);
        names
            .filter(|name| swap::is_external(manifest, name))
            .map(|name| self.network_name(name))
            .collect()
    }

    async fn capture(&self) -> Result<Vec<OldContainer>, Trouble> {
        let order = &self.attempt.order;
        let wanted = labels::of_project(order.target_id, &order.release.project);
        let host = self.attempt.host();
        let patience = self.attempt.patience();
        let baseline = self
            .attempt
            .journal()
            .baseline(order.target_id, &order.release.project)?;
        let rank = |id: &str| {
            baseline
                .iter()
                .flat_map(|baseline| &baseline.services)
                .position(|service| service.container == id)
                .unwrap_or(usize::MAX)
        };
        let taken = self.taken_over();
        let (mut found, mut images) = (Vec::new(), self.images.clone());
        for listed in patiently(patience, || host.list(&wanted)).await? {
            let Some(ours) = labels::read(&listed.labels) else {
                continue;
            };
            if ours.fence == order.fence {
                continue;
            }
            let id = listed.id.as_str();
            let Some(inspected) = patiently(patience, || host.inspect(id)).await? else {
                continue;
            };
            let image = &listed.image_id;
            if !images.contains_key(image) {
                let digests = patiently(patience, || proof::digests_of(host, image)).await?;
                images.insert(image.clone(), digests);
            }
            let digest = images
                .get(image)
                .and_then(|digests| proof::choose(digests, ours.digest));
            let aliases = inspected
                .aliases
                .into_iter()
                .filter(|(network, aliases)| taken.contains(network) && !aliases.is_empty())
                .collect();
            let old = OldContainer {
                aliases,
                running: is_up(inspected.state),
                restart: inspected.restart,
                grace_ms: u64::try_from(inspected.grace.as_millis()).unwrap_or(u64::MAX),
                service: ours.service,
                id: inspected.id,
                digest,
                compose: OldOfCompose::default(),
            };
            found.push((rank(&old.id), ours.fence, old));
        }
        found.sort_by(|a, b| (a.0, a.1, &a.2.service).cmp(&(b.0, b.1, &b.2.service)));
        Ok(found.into_iter().map(|(_, _, old)| old).collect())
    }
}

/// The networks of a service by their names in the manifest, with its aliases on each.
pub(super) fn aliases<'a>(service: &ServiceName, spec: &'a ServiceSpec) -> Vec<(&'a str, Vec<String>)> {
    let named = spec.network_names().into_iter().map(|name| {
        let mut aliases = vec![service.to_string()];
        let more = spec.networks.get(name).into_iter().flatten();
        aliases.extend(more.filter(|alias| alias.as_str() != service.as_str()).cloned());
        (name, aliases)
    });
    named.collect()
}
