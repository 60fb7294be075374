//! Observe: what is seen on each target, on a schedule, on events of the engine and when asked. Facts only; whether they are
//! drift is judged by the orchestrator.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sealift_common::{
    bounds::OBSERVED_EVENTS,
    condition::ConditionCode,
    digest::Digest,
    id::TargetId,
    name::ProjectRef,
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, EngineEvent, ProjectObservation,
        TargetObservation,
    },
    order::{Fence, TargetBinding},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    facts,
    host::{Host, HostError, HostEvent, Listed},
    journal::Baseline,
    labels::{self, Labels, Ours},
    runner::program::process,
    stickers::Stickers,
    workshop::{Shared, trusted},
};

/// Time between two looks at everything, before jitter.
const SCHEDULE: Duration = Duration::from_secs(30);
/// Every so many looks it is also asked what hardly ever changes.
const THOROUGH: u32 = 10;
/// How long events are gathered before a look.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// An observation that did not change is told again after this long.
const REPEAT: Duration = Duration::from_mins(5);
/// Pauses between two tries to watch the engine's events.
const WATCH_FIRST: Duration = Duration::from_secs(1);
const WATCH_MOST: Duration = Duration::from_secs(30);
/// Events that wait to be looked at.
const EVENTS: usize = 256;

/// What the observer is asked to look at.
#[derive(Debug, Default)]
struct Wishes {
    targets: BTreeSet<TargetId>,
    /// Containers whose details may have changed.
    touched: BTreeSet<String>,
    images: bool,
    all: bool,
    /// What the engine said, by target.
    events: BTreeMap<TargetId, VecDeque<EngineEvent>>,
}

/// Adds events; of too many the newest stay.
fn keep(events: &mut VecDeque<EngineEvent>, more: impl IntoIterator<Item = EngineEvent>) {
    for event in more {
        if events.len() == OBSERVED_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }
}

/// Where looks are asked for.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    wishes: Mutex<Wishes>,
    notify: Notify,
}

impl Observer {
    /// Asks for a look at one target.
    pub(crate) fn request(&self, target: TargetId) {
        self.wish(|wishes| {
            wishes.targets.insert(target);
        });
    }

    /// Asks for a look at everything, to be told even if unchanged; what was seen and told to nobody is past, but for its events.
    pub(crate) fn request_all(&self, untold: Vec<TargetObservation>) {
        self.wish(|wishes| {
            wishes.all = true;
            for seen in untold {
                keep(wishes.events.entry(seen.target_id).or_default(), seen.events);
            }
        });
    }

    fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.wishes.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    fn take(&self) -> Wishes {
        std::mem::take(&mut *self.wishes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Turns events of the engine into wishes.
pub(crate) async fn watch_events<H: Host>(shared: Arc<Shared<H>>) {
    let mut pause = WATCH_FIRST;
    loop {
        let (sender, mut events) = mpsc::channel::<HostEvent>(EVENTS);
        let began = Instant::now();
        let gather = async {
            while let Some(event) = events.recv().await {
                let Some(target) = event.target else {
                    shared.observer.wish(|wishes| wishes.images = true);
                    continue;
                };
                // Other agents may share the engine.
                if !shared
                    .identity
                    .bindings
                    .all()
                    .iter()
                    .any(|own| own.target_id == target)
                {
                    continue;
                }
                let busy = shared.is_busy(target);
                shared.observer.wish(|wishes| {
                    wishes.touched.insert(event.id);
                    wishes.targets.insert(target);
                    // What a task of ours does explains no drift.
                    if !busy {
                        keep(wishes.events.entry(target).or_default(), event.event);
                    }
                });
            }
        };
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            (result, ()) = async { tokio::join!(shared.host.watch(sender), gather) } => {
                if let Err(error) = result {
                    tracing::debug!(%error, "the engine's events broke off");
                }
            }
        }
        shared.forget_engine();
        if began.elapsed() > WATCH_MOST {
            pause = WATCH_FIRST;
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = sleep(pause) => pause = (pause * 2).min(WATCH_MOST),
        }
        // What happened meanwhile is found by looking.
        shared.observer.wish(|wishes| {
            wishes.targets.extend(
                shared
                    .identity
                    .bindings
                    .all()
                    .iter()
                    .map(|binding| binding.target_id),
            );
        });
    }
}

/// The agent's own share of the schedule, so that a fleet does not look all at once: 27 to 33 seconds.
fn period(seed: &str) -> Duration {
    let byte = Digest::of(seed.as_bytes()).as_bytes()[0];
    SCHEDULE * 9 / 10 + SCHEDULE / 5 * u32::from(byte) / 256
}

/// Looks until the agent goes down.
pub(crate) async fn run<H: Host>(shared: Arc<Shared<H>>, sender: mpsc::Sender<TargetObservation>) {
    let period = period(&shared.identity.agent_id.to_string());
    let mut memory = Memory::default();
    // The first thorough look was made at the start.
    let mut looks = 1;
    let mut next = Instant::now();
    loop {
        let scheduled = tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = sleep_until(next) => true,
            () = shared.observer.notify.notified() => false,
        };
        let mut wishes = shared.observer.take();
        if !scheduled && !wishes.all {
            tokio::select! {
                () = shared.shutdown.cancelled() => return,
                () = sleep(DEBOUNCE) => {}
            }
            let more = shared.observer.take();
            wishes.targets.extend(more.targets);
            wishes.touched.extend(more.touched);
            wishes.images |= more.images;
            wishes.all |= more.all;
            for (target, events) in more.events {
                keep(wishes.events.entry(target).or_default(), events);
            }
        }
        if scheduled {
            next = Instant::now() + period;
            memory.fingerprints.clear();
            reload_bindings(&shared).await;
            facts::refresh(&shared, looks % THOROUGH == 0).await;
            looks += 1;
        }
        if wishes.images || scheduled {
            memory.digests.clear();
        }
        for id in &wishes.touched {
            memory.fingerprints.remove(id);
        }
        if wishes.all {
            memory.told.clear();
        }
        for (target, events) in std::mem::take(&mut wishes.events) {
            keep(memory.events.entry(target).or_default(), events);
        }
        for binding in shared.identity.bindings.all().iter() {
            let wanted = scheduled || wishes.all || wishes.targets.contains(&binding.target_id);
            // While an attempt works, the target changes all the time; it is looked at when that is over.
            let busy = shared.is_busy(binding.target_id);
            if busy {
                memory.events.remove(&binding.target_id);
            }
            if !wanted || (!scheduled && !wishes.all && busy) {
                continue;
            }
            match memory.observe(&shared, binding).await {
                Ok(seen) => {
                    shared.set_condition(ConditionCode::EngineUnavailable, facts::ENGINE, None);
                    memory.tell(&sender, seen);
                }
                Err(error) => {
                    let summary = Some(error.0.summary.as_str());
                    shared.set_condition(ConditionCode::EngineUnavailable, facts::ENGINE, summary);
                }
            }
        }
    }
}

/// Another process of this host may have added a target.
async fn reload_bindings<H: Host>(shared: &Arc<Shared<H>>) {
    let shared = shared.clone();
    // It reads one small file; a panic there would be a defect and leaves what is known.
    let _ = tokio::task::spawn_blocking(move || shared.identity.bindings.reload()).await;
}

/// What was found out and told before.
#[derive(Default)]
struct Memory {
    fingerprints: BTreeMap<String, Digest>,
    digests: BTreeMap<String, Vec<Digest>>,
    told: BTreeMap<TargetId, (Instant, TargetObservation)>,
    /// What the engine said and nobody was told yet.
    events: BTreeMap<TargetId, VecDeque<EngineEvent>>,
}

impl Memory {
    fn tell(&mut self, sender: &mpsc::Sender<TargetObservation>, seen: TargetObservation) {
        let target = seen.target_id;
        let known = seen.events.is_empty()
            && self.told.get(&target).is_some_and(|(at, told)| {
                at.elapsed() < REPEAT && told.busy == seen.busy && told.projects == seen.projects
            });
        // A full queue means that nobody listens; whoever comes next asks for everything.
        if !known && sender.try_send(seen.clone()).is_ok() {
            self.events.remove(&target);
            self.told.insert(target, (Instant::now(), seen));
        }
    }

    async fn observe<H: Host>(
        &mut self,
        shared: &Arc<Shared<H>>,
        binding: &TargetBinding,
    ) -> Result<TargetObservation, HostError> {
        let target = binding.target_id;
        let busy = shared.is_busy(target);
        let wanted: Labels = [(labels::TARGET_ID.to_owned(), target.to_string())].into();
        let listed = shared.host.list(&wanted).await?;
        if !busy && !shared.is_busy(target) {
            remove_orphans(shared, target, &listed).await;
        }
        let baselines: BTreeMap<String, (ProjectRef, Baseline)> = shared
            .journal
            .baselines(target)
            .unwrap_or_default()
            .into_iter()
            .map(|(project, baseline)| (project.to_string(), (project, baseline)))
            .collect();
        let mut containers: BTreeMap<String, Vec<ContainerObservation>> = BTreeMap::new();
        let mut projects: BTreeMap<String, ProjectRef> = baselines
            .values()
            .map(|(project, _)| (project.to_string(), project.clone()))
            .collect();
        for listed in listed
            .into_iter()
            .take(sealift_common::bounds::OBSERVED_CONTAINERS)
        {
            let Some(ours) = labels::read(&listed.labels).filter(|ours| ours.target == target) else {
                continue;
            };
            let project = ours.project.to_string();
            projects.insert(project.clone(), ours.project.clone());
            let baseline = baselines.get(&project).map(|(_, baseline)| baseline);
            let seen = self.container(shared, listed, ours, baseline).await?;
            containers.entry(project).or_default().extend(seen);
        }
        self_seen(shared, &baselines, &mut containers).await;
        let stickers = read_stickers(shared.stickers.clone(), binding.clone(), projects).await;
        let projects = stickers
            .into_iter()
            .map(|(project, sticker)| {
                let mut containers = containers.remove(&project).unwrap_or_default();
                containers.sort_by(|a, b| (&a.service, &a.id).cmp(&(&b.service, &b.id)));
                (project, ProjectObservation { sticker, containers })
            })
            .collect();
        Ok(TargetObservation {
            target_id: target,
            observed_at: shared.clock.now(),
            busy: busy || shared.is_busy(target),
            projects,
            events: self.events.get(&target).into_iter().flatten().cloned().collect(),
        })
    }

    async fn container<H: Host>(
        &mut self,
        shared: &Shared<H>,
        listed: Listed,
        ours: Ours,
        baseline: Option<&Baseline>,
    ) -> Result<Option<ContainerObservation>, HostError> {
        let details = match self.details(shared, &listed).await {
            Ok(None) => return Ok(None),
            Ok(details) => details,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                tracing::warn!(container = listed.id, %error, "a container cannot be looked at");
                None
            }
        };
        // Of what the engine cannot describe nothing is known, neither that it runs nor that it was changed.
        let state = details.as_ref().map_or(ContainerState::Unknown, |_| listed.state);
        let (fingerprint, digests) = details.unzip();
        let digests = digests.unwrap_or_default();
        let labelled = ours.digest.filter(|digest| digests.contains(digest));
        // Without a baseline (the agent was enrolled anew) nothing contradicts what is there.
        let compared = baseline.zip(fingerprint);
        let unchanged =
            compared.is_none_or(|(baseline, fingerprint)| baseline.knows(&listed.id, fingerprint));
        // What Compose made says nothing of orders, so that it stays when only others change: the baseline knows.
        let made_for = baseline
            .filter(|baseline| baseline.lock.is_some())
            .and_then(|baseline| {
                let known = baseline
                    .services
                    .iter()
                    .find(|known| known.service == ours.service)?;
                Some((baseline.fence, known.config))
            });
        let (fence, config) = made_for.unwrap_or((ours.fence, ours.config));
        Ok(Some(ContainerObservation {
            id: listed.id,
            service: ours.service,
            fence,
            image_id: listed.image_id,
            digest: labelled.or_else(|| digests.first().copied()),
            config,
            unchanged,
            state,
            health: listed.health,
        }))
    }

    /// The fingerprint of a container and the digests of its image; `None` when it is gone.
    async fn details<H: Host>(
        &mut self,
        shared: &Shared<H>,
        listed: &Listed,
    ) -> Result<Option<(Digest, Vec<Digest>)>, HostError> {
        let fingerprint = if let Some(known) = self.fingerprints.get(&listed.id) {
            *known
        } else {
            let Some(inspected) = shared.host.inspect(&listed.id).await? else {
                return Ok(None);
            };
            self.fingerprints.insert(listed.id.clone(), inspected.fingerprint);
            inspected.fingerprint
        };
        if !self.digests.contains_key(&listed.image_id) {
            let image = shared.host.image(&listed.image_id).await?;
            let digests = image.map(|image| image.digests).unwrap_or_default();
            self.digests.insert(listed.image_id.clone(), digests);
        }
        let digests = self.digests.get(&listed.image_id).cloned().unwrap_or_default();
        Ok(Some((fingerprint, digests)))
    }
}

/// Adds the agent's own program where one was found good, as the container that it stands for.
async fn self_seen<H: Host>(
    shared: &Shared<H>,
    baselines: &BTreeMap<String, (ProjectRef, Baseline)>,
    containers: &mut BTreeMap<String, Vec<ContainerObservation>>,
) {
    for (name, (_, baseline)) in baselines {
        let (Some(wanted), Some(service)) = (baseline.program, baseline.services.first()) else {
            continue;
        };
        let seen = shared.program.seen().await;
        let (running, known) = match seen {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(%error, "the agent's own program cannot be seen");
                continue;
            }
        };
        containers
            .entry(name.clone())
            .or_default()
            .push(ContainerObservation {
                id: process(running),
                service: service.service.clone(),
                fence: baseline.fence,
                image_id: running.to_string(),
                digest: known.map(|known| known.image.digest),
                config: service.config,
                unchanged: running == wanted,
                state: ContainerState::Running,
                health: ContainerHealth::Healthy,
            });
    }
}

/// Removes containers of hooks whose attempt is over: its agent died and lost its memory of it, or the engine refused to. That no
/// attempt is under way in this process does not say that none goes on: it may rest until the next start, or wait for Compose.
async fn remove_orphans<H: Host>(shared: &Arc<Shared<H>>, target: TargetId, listed: &[Listed]) {
    let hooks: Vec<_> = listed
        .iter()
        .filter_map(|listed| Some((labels::read_hook(&listed.labels)?, listed)))
        .collect();
    if hooks.is_empty() || shared.shutdown.is_cancelled() {
        return;
    }
    // Without the journal nobody knows what goes on.
    let reader = shared.clone();
    let Ok(Some(going_on)) = tokio::task::spawn_blocking(move || going_on(&reader, target)).await else {
        return;
    };
    for ((hook, fence), orphan) in hooks {
        if going_on.contains(&fence) {
            continue;
        }
        match shared.host.remove(&orphan.id).await {
            Ok(()) => tracing::info!(hook = %hook.hook, "what a hook left was removed"),
            Err(error) => tracing::warn!(hook = %hook.hook, %error, "what a hook left was not removed"),
        }
    }
}

/// The fencing tokens of a target's attempts that are not over; `None` when nobody knows. Blocks.
fn going_on<H: Host>(shared: &Shared<H>, target: TargetId) -> Option<BTreeSet<Fence>> {
    let attempts = shared.journal.attempts().ok()?.into_iter();
    let going_on = attempts.filter(|attempt| !attempt.is_over()).map(|attempt| {
        let order = trusted(&attempt.order).ok()?;
        Some((order.target_id, order.fence))
    });
    let going_on: Option<Vec<_>> = going_on.collect();
    let ours = going_on?.into_iter().filter(|(of, _)| *of == target);
    Some(ours.map(|(_, fence)| fence).collect())
}

async fn read_stickers(
    stickers: Stickers,
    binding: TargetBinding,
    mut projects: BTreeMap<String, ProjectRef>,
) -> BTreeMap<String, sealift_common::observation::StickerObservation> {
    let read = move || {
        for project in stickers.projects(&binding) {
            projects.insert(project.to_string(), project);
        }
        projects
            .into_iter()
            .map(|(name, project)| {
                let path = stickers.path(&binding.target, &binding.environment, &project);
                (name, Stickers::observe(&path))
            })
            .collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}
