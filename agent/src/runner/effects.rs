//! What each step does to the host, up to and including the wait for health, and on the way back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sealift_common::{
    failure::{Failure, FailureCode},
    manifest::{MountSpec, PinnedImage, RestartPolicy, ServiceSpec},
    name::ServiceName,
    observation::ContainerState,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

use super::{Runner, Trouble, patiently};
use crate::{
    health::{self, Watched},
    host::{Host, NewContainer, NewNetwork},
    journal::{OldContainer, Record},
    kill, labels, proof,
    step::{Seen, Step},
    stickers::Stickers,
};

/// The network that every project has.
const DEFAULT_NETWORK: &str = "default";
/// Grace period given to a new container whose description is not at hand.
const SHORT_GRACE: Duration = Duration::from_secs(10);
/// How long an old set must stay up after it was started again.
const OLD_STEADY: Duration = Duration::from_millis(300);
/// Lines that wait between engine and log.
const LINES: usize = 64;

type Done = Result<(), Trouble>;

impl<H: Host> Runner<H> {
    /// Does one step and updates what is known.
    pub(super) async fn perform(&mut self, step: &Step) -> Done {
        match step {
            Step::Pull => self.pull().await,
            Step::Surroundings => self.surroundings().await,
            Step::Create(service) => self.create(service).await,
            Step::Prepare => self.prepare().await,
            Step::QuietOld(id) => self.quiet(id).await,
            Step::StopOld(id) => self.stop_old(id).await,
            Step::AwaitDependency(service) => self.await_dependency(service).await,
            Step::StartNew(service) => self.start_new(service).await,
            Step::NoteStarted => self.note_started().await,
            Step::AwaitHealth => self.await_health().await,
            Step::Commit => self.finish_well().await,
            Step::Restore(cause) => Ok(self.begin_restore(cause.clone()).await?),
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

    fn spec(&self, service: &ServiceName) -> Result<&ServiceSpec, Failure> {
        self.order.manifest.services.get(service).ok_or_else(|| {
            let summary = format!("service {service} is not in the order");
            Failure::new(FailureCode::Internal, summary)
        })
    }

    async fn pull(&mut self) -> Done {
        let engine = {
            let shared = &self.shared;
            patiently(self.patience(), || shared.engine()).await?
        };
        let platform = engine.platform.clone();
        self.engine = Some(engine);
        let deadline = Instant::now() + Duration::from_millis(self.order.limits.pull_deadline_ms.into());
        let images: BTreeMap<String, PinnedImage> = self
            .order
            .manifest
            .services
            .values()
            .map(|spec| (spec.image.pull_reference(), spec.image.clone()))
            .collect();
        kill::at("pull_begun");
        let pulls: Vec<_> = images
            .values()
            .map(|image| self.bring(image, &platform, deadline))
            .collect();
        let pulled = futures::future::try_join_all(pulls).await?;
        kill::at("digest_compared");
        self.world.images = true;
        if pulled.contains(&true) && !self.state.pulled {
            let at = self.now();
            self.write(Record::Pulled { at }, Vec::new()).await?;
        }
        Ok(())
    }

    /// Brings one image to the host unless it is there, and compares. Answers whether it was pulled.
    async fn bring(&self, image: &PinnedImage, platform: &str, deadline: Instant) -> Result<bool, Failure> {
        let reference = image.pull_reference();
        let host = self.host();
        let mut there = patiently(self.patience(), || host.image(&reference)).await?;
        let missing = there
            .as_ref()
            .is_none_or(|local| !local.digests.contains(&image.digest));
        if missing {
            self.log.say(format!("pulling {reference}"));
            let (progress, lines) = mpsc::channel(LINES);
            let left = deadline.saturating_duration_since(Instant::now());
            let pull = async {
                let progress = progress;
                host.pull(image, &progress, left).await
            };
            let (result, ()) = tokio::join!(pull, self.tell_progress(lines));
            result?;
            there = host.image(&reference).await?;
        }
        kill::at("pull_done");
        let Some(local) = there else {
            let summary =
                format!("{reference} was pulled, but the engine does not have it under that digest");
            return Err(Failure::new(FailureCode::DigestMismatch, summary));
        };
        if !local.digests.contains(&image.digest) {
            let summary = format!("{reference} was ordered, the engine has {:?}", local.digests);
            return Err(Failure::new(FailureCode::DigestMismatch, summary));
        }
        let known = |text: &str| !text.starts_with('/') && !text.ends_with('/');
        if known(platform) && known(&local.platform) && local.platform != platform {
            let summary = format!(
                "{reference} is built for {}, the host is {platform}",
                local.platform
            );
            return Err(Failure::new(FailureCode::PlatformMismatch, summary));
        }
        Ok(missing)
    }

    async fn tell_progress(&self, mut lines: mpsc::Receiver<String>) {
        let mut last = String::new();
        while let Some(line) = lines.recv().await {
            // An engine repeats "Downloading" many times a second.
            if line != last {
                self.log.say(line.clone());
                last = line;
            }
        }
    }

    async fn surroundings(&mut self) -> Done {
        let order = &self.order;
        let own = labels::of_project(order.target_id, &order.release.project);
        let host = self.host();
        let patience = self.patience();
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
    fn networks(&self) -> BTreeMap<String, bool> {
        let manifest = &self.order.manifest;
        let used: BTreeSet<&str> = manifest
            .services
            .values()
            .flat_map(|spec| {
                let named = spec.networks.keys().map(ServiceName::as_str);
                named.chain(spec.networks.is_empty().then_some(DEFAULT_NETWORK))
            })
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

    fn network_name(&self, name: &str) -> String {
        let external = self
            .order
            .manifest
            .networks
            .get(name)
            .and_then(|spec| spec.external.clone());
        external
            .unwrap_or_else(|| labels::network_name(self.order.target_id, &self.order.release.project, name))
    }

    /// The engine's names of the used volumes and whether they are not ours to make.
    fn volumes(&self) -> BTreeMap<ServiceName, (String, bool)> {
        let order = &self.order;
        order
            .manifest
            .services
            .values()
            .flat_map(|spec| &spec.volumes)
            .filter_map(|mount| match mount {
                MountSpec::Volume { volume, .. } => Some(volume),
                MountSpec::Bind { .. } | MountSpec::Anonymous { .. } => None,
            })
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

    fn service_networks(&self, service: &ServiceName, spec: &ServiceSpec) -> Vec<(String, Vec<String>)> {
        let aliases = |more: &[String]| {
            let mut list = vec![service.to_string()];
            list.extend(
                more.iter()
                    .filter(|alias| alias.as_str() != service.as_str())
                    .cloned(),
            );
            list
        };
        if spec.networks.is_empty() {
            return vec![(self.network_name(DEFAULT_NETWORK), aliases(&[]))];
        }
        spec.networks
            .iter()
            .map(|(name, more)| (self.network_name(name.as_str()), aliases(more)))
            .collect()
    }

    async fn create(&mut self, service: &ServiceName) -> Done {
        let spec = self.spec(service)?.clone();
        let labels = labels::of_container(&self.order, service, &spec)
            .map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))?;
        let container = NewContainer {
            name: labels::container_name(&self.order, service),
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
            let host = self.host();
            patiently(self.patience(), || host.create(&container)).await?
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

    /// Looks at the old set; what is written down here is what a restore goes back to.
    async fn prepare(&mut self) -> Done {
        let old = self.capture().await?;
        kill::at("old_saved");
        for one in &old {
            let seen = Seen {
                id: one.id.clone(),
                running: one.running,
                restart: one.restart,
            };
            self.world.old.insert(one.id.clone(), seen);
        }
        let at = self.now();
        kill::at("switch_journalled.before");
        self.write(Record::Prepared { at, old }, Vec::new()).await?;
        kill::at("switch_journalled");
        Ok(())
    }

    async fn capture(&self) -> Result<Vec<OldContainer>, Trouble> {
        let order = &self.order;
        let wanted = labels::of_project(order.target_id, &order.release.project);
        let host = self.host();
        let patience = self.patience();
        let baseline = self.journal().baseline(order.target_id, &order.release.project)?;
        let rank = |id: &str| {
            baseline
                .iter()
                .flat_map(|baseline| &baseline.services)
                .position(|service| service.container == id)
                .unwrap_or(usize::MAX)
        };
        let mut found = Vec::new();
        for listed in patiently(patience, || host.list(&wanted)).await? {
            let Some(ours) = labels::read(&listed.labels) else {
                continue;
            };
            if ours.fence == order.fence {
                continue;
            }
            let id = listed.id.as_str();
            let (inspected, digest) = tokio::try_join!(
                patiently(patience, || host.inspect(id)),
                patiently(patience, || proof::digest_of(host, &listed.image_id, ours.digest)),
            )?;
            let Some(inspected) = inspected else {
                continue;
            };
            let old = OldContainer {
                running: matches!(
                    inspected.state,
                    ContainerState::Running | ContainerState::Restarting | ContainerState::Paused
                ),
                restart: inspected.restart,
                grace_ms: u64::try_from(inspected.grace.as_millis()).unwrap_or(u64::MAX),
                service: ours.service,
                id: inspected.id,
                digest,
            };
            found.push((rank(&old.id), ours.fence, old));
        }
        found.sort_by(|a, b| (a.0, a.1, &a.2.service).cmp(&(b.0, b.1, &b.2.service)));
        Ok(found.into_iter().map(|(_, _, old)| old).collect())
    }

    async fn quiet(&mut self, id: &str) -> Done {
        kill::at("old_policy_no.before");
        let host = self.host();
        patiently(self.patience(), || host.set_restart(id, RestartPolicy::No)).await?;
        kill::at("old_policy_no");
        if let Some(seen) = self.world.old.get_mut(id) {
            seen.restart = RestartPolicy::No;
        }
        Ok(())
    }

    async fn stop_old(&mut self, id: &str) -> Done {
        let old = self.state.old.iter().flatten().find(|old| old.id == id);
        let grace = old.map_or(SHORT_GRACE, |old| Duration::from_millis(old.grace_ms));
        kill::at("old_stopped.before");
        let host = self.host();
        patiently(self.patience(), || host.stop(id, grace)).await?;
        kill::at("old_stopped");
        if let Some(seen) = self.world.old.get_mut(id) {
            seen.running = false;
        }
        Ok(())
    }

    fn health_deadline(&mut self) -> Instant {
        let limit = Duration::from_millis(self.order.limits.healthy_deadline_ms.into());
        *self.healthy_until.get_or_insert_with(|| Instant::now() + limit)
    }

    fn watched(&self, service: &ServiceName) -> Result<Watched, Failure> {
        let spec = self.spec(service)?;
        let id = self.world.new.get(service).map(|seen| seen.id.clone());
        let network = self.service_networks(service, spec).into_iter().next();
        Ok(Watched {
            service: service.clone(),
            id: id.unwrap_or_default(),
            probe: spec.probe.clone(),
            network: network.map(|(name, _)| name).unwrap_or_default(),
        })
    }

    async fn await_dependency(&mut self, service: &ServiceName) -> Done {
        self.log.say(format!("waiting until {service} is healthy"));
        let deadline = self.health_deadline();
        let watched = self.watched(service)?;
        health::await_healthy(self.host(), &[watched], Duration::ZERO, deadline).await?;
        self.world.healthy.insert(service.clone());
        Ok(())
    }

    async fn start_new(&mut self, service: &ServiceName) -> Done {
        self.health_deadline();
        let now = self.now();
        self.starting_at.get_or_insert(now);
        let id = self.watched(service)?.id;
        kill::at("new_started.before");
        {
            let (host, id) = (self.host(), id.as_str());
            patiently(self.patience(), || host.start(id)).await?;
        }
        kill::at("new_started");
        self.log.say(format!("started {service}"));
        if let Some(seen) = self.world.new.get_mut(service) {
            seen.running = true;
        }
        self.follow(service.clone(), id);
        Ok(())
    }

    /// Copies the output of a new container into the log.
    fn follow(&mut self, service: ServiceName, id: String) {
        let (sender, mut lines) = mpsc::channel(LINES);
        let shared = self.shared.clone();
        let log = self.log.clone();
        self.followers.spawn(async move {
            let read = shared.host.logs(&id, sender);
            let copy = async {
                while let Some(line) = lines.recv().await {
                    log.line(service.as_str(), line);
                }
            };
            // A log that breaks off is no reason to fail.
            let (_, ()) = tokio::join!(read, copy);
        });
    }

    async fn note_started(&mut self) -> Done {
        let at = self.now();
        let starting_at = self.starting_at.unwrap_or(at);
        self.write(Record::Started { starting_at, at }, Vec::new())
            .await?;
        kill::at("health_wait");
        Ok(())
    }

    async fn await_health(&mut self) -> Done {
        let deadline = self.health_deadline();
        let watched = self
            .order
            .manifest
            .services
            .keys()
            .map(|service| self.watched(service))
            .collect::<Result<Vec<_>, _>>()?;
        let min_healthy = Duration::from_millis(self.order.limits.min_healthy_ms.into());
        health::await_healthy(self.host(), &watched, min_healthy, deadline).await?;
        kill::at("healthy");
        let path = self.sticker_path();
        let before = tokio::task::spawn_blocking(move || Stickers::read(&path))
            .await
            .map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))?
            .map_err(|error| sticker_failure(&error))?;
        let at = self.now();
        let sticker_before = before.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        // What runs is looked at while the disk writes; if that fails, the commit looks again.
        let (shared, order) = (self.shared.clone(), self.order.clone());
        let (written, running) = tokio::join!(
            self.write(Record::Healthy { at, sticker_before }, Vec::new()),
            proof::running(&shared.host, &order)
        );
        written?;
        kill::at("commit_journalled");
        self.seen_healthy = running.ok();
        // They were just seen running.
        for seen in self.world.new.values_mut() {
            seen.running = true;
        }
        Ok(())
    }

    async fn stop_new(&mut self, service: &ServiceName) -> Done {
        let grace = self.spec(service).map_or(SHORT_GRACE, |spec| {
            Duration::from_millis(spec.stop_grace_period_ms.into())
        });
        let id = self.watched(service)?.id;
        kill::at("new_stopped.before");
        let host = self.host();
        patiently(self.patience(), || host.stop(&id, grace)).await?;
        kill::at("new_stopped");
        if let Some(seen) = self.world.new.get_mut(service) {
            seen.running = false;
        }
        Ok(())
    }

    async fn remove_new(&mut self, service: &ServiceName) -> Done {
        let id = self.watched(service)?.id;
        kill::at("new_removed.before");
        let host = self.host();
        patiently(self.patience(), || host.remove(&id)).await?;
        kill::at("new_removed");
        self.world.new.remove(service);
        Ok(())
    }

    async fn restore_policy(&mut self, id: &str, policy: RestartPolicy) -> Done {
        kill::at("old_policy_restored.before");
        let host = self.host();
        patiently(self.patience(), || host.set_restart(id, policy)).await?;
        kill::at("old_policy_restored");
        if let Some(seen) = self.world.old.get_mut(id) {
            seen.restart = policy;
        }
        Ok(())
    }

    async fn start_old(&mut self, id: &str) -> Done {
        kill::at("old_started.before");
        let host = self.host();
        patiently(self.patience(), || host.start(id)).await?;
        kill::at("old_started");
        if let Some(seen) = self.world.old.get_mut(id) {
            seen.running = true;
        }
        Ok(())
    }

    /// An old set that falls over at once is no restored set.
    async fn check_old(&mut self) -> Done {
        let steady = Instant::now() + OLD_STEADY;
        loop {
            for old in self.state.old.iter().flatten().filter(|old| old.running) {
                let (host, id) = (self.host(), old.id.as_str());
                let seen = patiently(self.patience(), || host.inspect(id)).await?;
                if seen.is_none_or(|seen| seen.state != ContainerState::Running) {
                    let summary = format!("service {} of the old set does not run", old.service);
                    return Err(Failure::new(FailureCode::RestoreFailed, summary).into());
                }
            }
            if Instant::now() >= steady {
                break;
            }
            sleep(OLD_STEADY / 3).await;
        }
        self.world.old_checked = true;
        Ok(())
    }

    async fn remove_old(&mut self, id: &str) -> Done {
        kill::at("old_removed.before");
        let host = self.host();
        patiently(self.patience(), || host.remove(id)).await?;
        kill::at("old_removed");
        self.world.old.remove(id);
        Ok(())
    }

    /// Removes networks of this project that the new set does not use.
    async fn clean(&mut self) -> Done {
        let order = &self.order;
        let own = labels::of_project(order.target_id, &order.release.project);
        if self.state.phase == crate::journal::Phase::Ended(crate::journal::Ending::Succeeded) {
            let used = self.networks();
            let deadline = Instant::now() + Duration::from_secs(30);
            let tidy = async {
                for network in self.host().networks(&own).await? {
                    if !used.contains_key(&network) {
                        self.host().remove_network(&network).await?;
                    }
                }
                Ok::<_, crate::host::HostError>(())
            };
            if let Ok(Err(error)) = timeout_at(deadline, tidy).await {
                self.log.say(format!("networks were not tidied: {error}"));
            }
        }
        // Losing this record only means to look once more.
        self.journal()
            .note(vec![crate::journal::Write::Record(self.key, Record::Cleaned)])
            .await?;
        self.state.apply(&Record::Cleaned);
        Ok(())
    }
}

pub(super) fn sticker_failure(error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull => FailureCode::DiskFull,
        _ => FailureCode::AgentState,
    };
    Failure::new(code, "the sticker file cannot be read or written").with_detail(error.to_string())
}
