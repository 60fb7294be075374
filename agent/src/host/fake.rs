//! A container engine in memory, for tests and simulation: behaves like the real one as far as the agent can see, fails and
//! hangs on command.

mod contents;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sealift_common::{
    canonical,
    digest::Digest,
    evidence::EngineInfo,
    failure::FailureCode,
    manifest::{PinnedImage, RestartPolicy},
    observation::{ContainerHealth, ContainerState},
};
use serde_json::json;
use tokio::sync::{broadcast, mpsc};

use self::upkeep::matches;
use super::{Host, HostError, HostEvent, Inspected, Listed, LocalImage, NewContainer, NewNetwork};
use crate::labels::{self, Labels};

/// How the workload of an image behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Behaviour {
    /// Runs; has no health check.
    #[default]
    Runs,
    /// Runs and is healthy.
    Healthy,
    /// Runs and is never healthy nor unhealthy.
    Starting,
    /// Runs and is unhealthy.
    Unhealthy,
    /// Ends at once with this code.
    Exits(i64),
}

/// A container of the fake.
#[derive(Debug, Clone)]
pub struct FakeContainer {
    /// Identifier.
    pub id: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Image.
    pub image: PinnedImage,
    /// Environment.
    pub environment: BTreeMap<String, String>,
    /// Restart policy.
    pub restart: RestartPolicy,
    /// Whether it runs.
    pub running: bool,
    /// Whether it ever ran.
    pub started: u32,
    /// How often the engine restarted it by itself.
    pub restarts: u64,
    /// Networks with the aliases on each.
    pub networks: BTreeMap<String, Vec<String>>,
    /// Grace period in milliseconds.
    pub grace_ms: u32,
}

struct Fault {
    call: &'static str,
    times: u32,
    error: HostError,
}

#[derive(Clone, Copy)]
struct Hang {
    at: u64,
    after: bool,
}

#[derive(Default)]
struct Inner {
    containers: BTreeMap<String, FakeContainer>,
    networks: BTreeMap<String, Labels>,
    volumes: BTreeSet<String>,
    images: BTreeSet<Digest>,
    registry: BTreeMap<Digest, Behaviour>,
    files: BTreeMap<(Digest, String), Vec<u8>>,
    faults: Vec<Fault>,
    defects: BTreeMap<&'static str, u32>,
    hang: Option<Hang>,
    hung: bool,
    effects: u64,
    calls: Option<Vec<&'static str>>,
    next_id: u64,
}

/// The engine. Clones share it.
#[derive(Clone)]
pub struct FakeHost {
    inner: Arc<Mutex<Inner>>,
    events: broadcast::Sender<HostEvent>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self {
            inner: Arc::default(),
            events: broadcast::Sender::new(256),
        }
    }
}

fn image_id(digest: Digest) -> String {
    Digest::of(digest.as_bytes()).to_string()
}

impl FakeHost {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an image into the registry.
    pub fn publish(&self, digest: Digest, behaviour: Behaviour) {
        self.lock().registry.insert(digest, behaviour);
    }

    /// Makes the next `times` calls of this name fail: `pull`, `create`, `start`, `stop`, `remove`, `set_restart`, `list` ...
    pub fn fail(&self, call: &'static str, times: u32, error: HostError) {
        self.lock().faults.push(Fault { call, times, error });
    }

    /// Makes the next `times` calls of this name end in a panic, as a defect of the agent would.
    pub fn panic_at(&self, call: &'static str, times: u32) {
        self.lock().defects.insert(call, times);
    }

    /// Lets the `at`-th effect from now (from 1) never return, before or after it took place, and every call after it neither:
    /// to the agent, that is the instant of its own death.
    pub fn hang_at(&self, at: u64, after: bool) {
        let mut inner = self.lock();
        inner.hang = Some(Hang {
            at: inner.effects + at,
            after,
        });
    }

    /// Writes down the names of all calls from now on.
    pub fn record_calls(&self) {
        self.lock().calls = Some(Vec::new());
    }

    /// The calls so far, in order; ends the recording.
    pub fn recorded_calls(&self) -> Vec<&'static str> {
        self.lock().calls.take().unwrap_or_default()
    }

    fn record(&self, call: &'static str) {
        if let Some(calls) = &mut self.lock().calls {
            calls.push(call);
        }
    }

    /// Ends a hang; answers whether there was one.
    pub fn revive(&self) -> bool {
        let mut inner = self.lock();
        inner.hang = None;
        std::mem::take(&mut inner.hung)
    }

    /// Whether a call hangs.
    pub fn is_hung(&self) -> bool {
        self.lock().hung
    }

    /// All containers.
    pub fn containers(&self) -> Vec<FakeContainer> {
        self.lock().containers.values().cloned().collect()
    }

    /// Names of all networks but those that were lent.
    pub fn network_names(&self) -> Vec<String> {
        let inner = self.lock();
        let made = inner.networks.iter().filter(|(_, labels)| !labels.is_empty());
        made.map(|(name, _)| name.clone()).collect()
    }

    /// Changes a container by hand, as somebody on the host would, and tells of it.
    pub fn tamper(&self, id: &str, change: impl FnOnce(&mut FakeContainer)) {
        let mut inner = self.lock();
        if let Some(container) = inner.containers.get_mut(id) {
            change(container);
            let event = event_of(container);
            drop(inner);
            // Without a listener nobody needs to know.
            let _ = self.events.send(event);
        }
    }

    /// Adds a container that is none of ours.
    pub fn add_foreign(&self, name: &str) {
        let mut inner = self.lock();
        inner.next_id += 1;
        let id = format!("foreign{}", inner.next_id);
        let image = PinnedImage {
            repository: "foreign".to_owned(),
            tag: None,
            digest: Digest::of(b"foreign"),
        };
        let container = FakeContainer {
            id: id.clone(),
            name: name.to_owned(),
            labels: Labels::new(),
            image,
            environment: BTreeMap::new(),
            restart: RestartPolicy::Always,
            running: true,
            started: 1,
            restarts: 0,
            networks: BTreeMap::new(),
            grace_ms: 0,
        };
        inner.containers.insert(id, container);
    }

    async fn gate(&self, call: &'static str) -> Result<(), HostError> {
        self.record(call);
        let defect = self.lock().defects.get_mut(call).is_some_and(|left| {
            let due = *left > 0;
            *left = left.saturating_sub(1);
            due
        });
        if defect {
            std::panic::resume_unwind(Box::new("a defect was asked for"));
        }
        let verdict = {
            let mut inner = self.lock();
            if inner.hung {
                None
            } else {
                let fault = inner
                    .faults
                    .iter_mut()
                    .find(|fault| fault.call == call && fault.times > 0);
                Some(match fault {
                    Some(fault) => {
                        fault.times -= 1;
                        Err(fault.error.clone())
                    }
                    None => Ok(()),
                })
            }
        };
        match verdict {
            Some(result) => result,
            None => std::future::pending().await,
        }
    }

    async fn effect<T>(
        &self,
        call: &'static str,
        work: impl FnOnce(&mut Inner) -> Result<T, HostError> + Send,
    ) -> Result<T, HostError> {
        self.gate(call).await?;
        let result = {
            let mut inner = self.lock();
            inner.effects += 1;
            let hang = inner.hang.filter(|hang| inner.effects >= hang.at);
            if hang.is_some() {
                inner.hung = true;
            }
            match hang {
                Some(Hang { after: false, .. }) => None,
                Some(Hang { after: true, .. }) => {
                    // What it answers is never heard.
                    let _ = work(&mut inner);
                    None
                }
                None => Some(work(&mut inner)),
            }
        };
        match result {
            Some(result) => result,
            None => std::future::pending().await,
        }
    }

    fn tell(&self, id: &str) {
        if let Some(container) = self.lock().containers.get(id) {
            // Without a listener nobody needs to know.
            let _ = self.events.send(event_of(container));
        }
    }
}

fn event_of(container: &FakeContainer) -> HostEvent {
    HostEvent {
        target: container
            .labels
            .get(labels::TARGET_ID)
            .and_then(|id| id.parse().ok()),
        id: container.id.clone(),
        event: None,
    }
}

fn gone(id: &str) -> HostError {
    HostError::new(FailureCode::EngineError, format!("no such container: {id}"))
}

fn state(container: &FakeContainer) -> ContainerState {
    match (container.running, container.started) {
        (true, _) => ContainerState::Running,
        (false, 0) => ContainerState::Created,
        (false, _) => ContainerState::Exited,
    }
}

impl Inner {
    fn behaviour(&self, container: &FakeContainer) -> Behaviour {
        self.registry
            .get(&container.image.digest)
            .copied()
            .unwrap_or_default()
    }

    fn health(&self, container: &FakeContainer) -> ContainerHealth {
        match self.behaviour(container) {
            Behaviour::Healthy => ContainerHealth::Healthy,
            Behaviour::Starting => ContainerHealth::Starting,
            Behaviour::Unhealthy => ContainerHealth::Unhealthy,
            Behaviour::Runs | Behaviour::Exits(_) => ContainerHealth::None,
        }
    }
}

impl Host for FakeHost {
    async fn engine(&self) -> Result<EngineInfo, HostError> {
        self.gate("engine").await?;
        Ok(EngineInfo {
            name: "fake".to_owned(),
            version: "1.0".to_owned(),
            api: "1.41".to_owned(),
            platform: "linux/amd64".to_owned(),
        })
    }

    async fn image(&self, reference: &str) -> Result<Option<LocalImage>, HostError> {
        self.gate("image").await?;
        let inner = self.lock();
        let wanted = inner
            .images
            .iter()
            .find(|digest| reference.ends_with(&format!("@{digest}")) || reference == image_id(**digest));
        Ok(wanted.map(|digest| LocalImage {
            id: image_id(*digest),
            digests: vec![*digest],
            platform: "linux/amd64".to_owned(),
        }))
    }

    async fn pull(
        &self,
        image: &PinnedImage,
        progress: &mpsc::Sender<String>,
        _deadline: Duration,
    ) -> Result<(), HostError> {
        // Nobody waits for progress.
        let _ = progress.try_send(format!("pulling {}", image.pull_reference()));
        self.effect("pull", |inner| {
            if inner.registry.contains_key(&image.digest) {
                inner.images.insert(image.digest);
                Ok(())
            } else {
                let summary = format!("pull {}: manifest unknown", image.pull_reference());
                Err(HostError::new(FailureCode::ImageNotFound, summary))
            }
        })
        .await
    }

    async fn ensure_network(&self, network: &NewNetwork) -> Result<(), HostError> {
        self.effect("ensure_network", |inner| {
            inner
                .networks
                .insert(network.name.clone(), network.labels.clone());
            Ok(())
        })
        .await
    }

    async fn networks(&self, labels: &Labels) -> Result<Vec<String>, HostError> {
        self.gate("networks").await?;
        let inner = self.lock();
        let fits = inner.networks.iter().filter(|(_, own)| matches(own, labels));
        Ok(fits.map(|(name, _)| name.clone()).collect())
    }

    async fn remove_network(&self, name: &str) -> Result<(), HostError> {
        self.effect("remove_network", |inner| {
            let used = inner
                .containers
                .values()
                .any(|container| container.networks.contains_key(name));
            if !used {
                inner.networks.remove(name);
            }
            Ok(())
        })
        .await
    }

    async fn ensure_volume(&self, name: &str, _labels: &Labels) -> Result<(), HostError> {
        self.effect("ensure_volume", |inner| {
            inner.volumes.insert(name.to_owned());
            Ok(())
        })
        .await
    }

    async fn list(&self, labels: &Labels) -> Result<Vec<Listed>, HostError> {
        self.gate("list").await?;
        let inner = self.lock();
        let fits = inner
            .containers
            .values()
            .filter(|container| matches(&container.labels, labels));
        Ok(fits
            .map(|container| Listed {
                id: container.id.clone(),
                labels: container.labels.clone(),
                image_id: image_id(container.image.digest),
                state: state(container),
                health: inner.health(container),
            })
            .collect())
    }

    async fn inspect(&self, id: &str) -> Result<Option<Inspected>, HostError> {
        self.gate("inspect").await?;
        let inner = self.lock();
        Ok(inner.containers.get(id).map(|container| {
            let exit_code = match inner.behaviour(container) {
                Behaviour::Exits(code) => code,
                _ => 0,
            };
            let networks: Vec<_> = container.networks.keys().collect();
            let fingerprint = json!([container.image, container.restart, networks]);
            Inspected {
                id: container.id.clone(),
                labels: container.labels.clone(),
                image_id: image_id(container.image.digest),
                image: container.image.pull_reference(),
                state: state(container),
                health: inner.health(container),
                failing_streak: 0,
                health_output: String::new(),
                exit_code,
                oom_killed: false,
                started_at: container.started.to_string(),
                restart_count: container.restarts,
                restart: container.restart,
                grace: Duration::from_millis(container.grace_ms.into()),
                aliases: container.networks.clone(),
                addresses: BTreeMap::new(),
                fingerprint: canonical::digest(&fingerprint).unwrap_or_else(|_| Digest::of(b"")),
            }
        }))
    }

    async fn create(&self, container: &NewContainer) -> Result<String, HostError> {
        self.effect("create", |inner| {
            let same = inner
                .containers
                .values()
                .find(|other| other.name == container.name);
            if let Some(other) = same {
                return if other.labels == container.labels {
                    Ok(other.id.clone())
                } else {
                    Err(HostError::new(FailureCode::ContainerRejected, "name taken"))
                };
            }
            inner.next_id += 1;
            let id = format!("c{}", inner.next_id);
            let made = FakeContainer {
                id: id.clone(),
                name: container.name.clone(),
                labels: container.labels.clone(),
                image: container.spec.image.clone(),
                environment: container.spec.environment.clone(),
                restart: container.spec.restart,
                running: false,
                started: 0,
                restarts: 0,
                networks: container.networks.iter().cloned().collect(),
                grace_ms: container.spec.stop_grace_period_ms,
            };
            inner.containers.insert(id.clone(), made);
            Ok(id)
        })
        .await
    }

    async fn join_network(&self, id: &str, network: &str, aliases: &[String]) -> Result<(), HostError> {
        self.effect("join_network", |inner| {
            let container = inner.containers.get_mut(id).ok_or_else(|| gone(id))?;
            container.networks.insert(network.to_owned(), aliases.to_vec());
            Ok(())
        })
        .await
    }

    async fn set_restart(&self, id: &str, policy: RestartPolicy) -> Result<(), HostError> {
        self.effect("set_restart", |inner| {
            if let Some(container) = inner.containers.get_mut(id) {
                container.restart = policy;
            }
            Ok(())
        })
        .await
    }

    async fn start(&self, id: &str) -> Result<(), HostError> {
        self.effect("start", |inner| {
            let exits = inner
                .containers
                .get(id)
                .map(|container| inner.behaviour(container));
            let container = inner.containers.get_mut(id).ok_or_else(|| gone(id))?;
            if !container.running {
                container.started += 1;
                container.running = !matches!(exits, Some(Behaviour::Exits(_)));
            }
            Ok(())
        })
        .await?;
        self.tell(id);
        Ok(())
    }

    async fn stop(&self, id: &str, _grace: Duration) -> Result<(), HostError> {
        self.effect("stop", |inner| {
            if let Some(container) = inner.containers.get_mut(id) {
                container.running = false;
            }
            Ok(())
        })
        .await?;
        self.tell(id);
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), HostError> {
        self.effect("remove", |inner| {
            inner.containers.remove(id);
            Ok(())
        })
        .await
    }

    async fn exec(&self, _id: &str, _command: &[String], _deadline: Duration) -> Result<i64, HostError> {
        self.gate("exec").await?;
        Ok(0)
    }

    async fn logs(
        &self,
        id: &str,
        _since: DateTime<Utc>,
        lines: mpsc::Sender<String>,
    ) -> Result<(), HostError> {
        self.record("logs");
        // A listener that is gone needs no log.
        let _ = lines.send(format!("{id} says hello")).await;
        Ok(())
    }

    async fn watch(&self, events: mpsc::Sender<HostEvent>) -> Result<(), HostError> {
        let mut stream = self.events.subscribe();
        while let Ok(event) = stream.recv().await {
            if events.send(event).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}
