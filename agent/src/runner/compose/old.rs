//! What ran on a compose host before: how it is looked at before it is touched, what of it is made anew, and the way back to it.

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use sealift_common::{
    compose_manifest::Lifetime,
    digest::Digest,
    failure::{Failure, FailureCode},
    manifest::RestartPolicy,
    name::ServiceName,
    observation::ContainerState,
};
use tokio::time::{Instant, sleep};

use super::{ComposeRunner, effects::up, patiently};
use crate::{
    host::{Host, Inspected},
    journal::{LockRef, Locked, OldContainer, OldOfCompose},
    kill, labels, proof,
    runner::{
        Done, Trouble, internal, is_up,
        prove::{LOCKS, aside},
    },
};

/// How long bringing the old set up again, or taking the new one away, may take.
const RETURN_DEADLINE: Duration = Duration::from_mins(10);
/// How long an old set must stay up after it was brought up again.
const OLD_STEADY: Duration = Duration::from_millis(300);

impl<H: Host> ComposeRunner<H> {
    /// The lock that runs now. Without it there would be no way back, so nothing is begun then.
    pub(super) async fn previous_lock(&self) -> Result<Option<LockRef>, Failure> {
        let baseline = self
            .attempt
            .shared
            .journal
            .baseline(self.attempt.order.target_id, &self.attempt.order.release.project)
            .map_err(internal)?;
        let Some(lock) = baseline.and_then(|baseline| baseline.lock) else {
            return self.nothing_before("the project has containers here that this agent did not deploy");
        };
        let (files, digest) = (self.compose.files(&self.attempt.order), lock.digest);
        if aside(LOCKS, move || files.has(digest)).await? {
            return Ok(Some(lock));
        }
        self.nothing_before(&format!(
            "lock {digest} of the set that runs is gone or was changed"
        ))
    }

    /// There is no lock to go back to, which is well only when nothing is there.
    fn nothing_before(&self, why: &str) -> Result<Option<LockRef>, Failure> {
        if self.world.running.is_empty() {
            return Ok(None);
        }
        let filters = self.project().into_iter();
        let filters: Vec<String> = filters
            .map(|(label, value)| format!("--filter label={label}={value}"))
            .collect();
        let summary = format!("{why}, so there would be no way back");
        Err(Failure::new(FailureCode::AgentState, summary).with_detail(format!(
            "take the containers away by hand, then promote again (volumes stay): docker rm -f $(docker ps -aq {})",
            filters.join(" ")
        )))
    }

    /// Looks at the old set; it is what a restore is compared with.
    pub(super) async fn prepare(&mut self) -> Done {
        let (target, project) = (self.attempt.order.target_id, &self.attempt.order.release.project);
        let baseline = self.attempt.journal().baseline(target, project)?;
        let mut old = Vec::new();
        for (service, listed) in self.listed().await? {
            let (host, patience) = (&self.attempt.shared.host, self.attempt.patience());
            let Some(inspected) = patiently(patience, || host.inspect(&listed.id)).await? else {
                continue;
            };
            let digests = patiently(patience, || proof::digests_of(host, &listed.image_id)).await?;
            let labelled = labels::read(&listed.labels).and_then(|ours| ours.digest);
            let altered = baseline
                .as_ref()
                .is_some_and(|baseline| !baseline.knows(&listed.id, inspected.fingerprint));
            let services = baseline.iter().flat_map(|baseline| &baseline.services);
            let mut known = services.filter(|known| known.service == service);
            let lifetime = known.next().and_then(|known| known.lifetime);
            old.push(OldContainer {
                id: listed.id,
                service,
                running: is_up(listed.state),
                restart: RestartPolicy::No,
                grace_ms: 0,
                digest: proof::choose(&digests, labelled),
                aliases: BTreeMap::new(),
                compose: OldOfCompose {
                    restarts: inspected.restart_count,
                    altered,
                    lifetime,
                },
            });
        }
        Ok(self.attempt.note_prepared(old).await?)
    }

    /// How often the engine had restarted a container before this attempt touched anything. It counts from 0 again for one that
    /// did not run and is started.
    pub(super) fn restarts_before(&self, id: &str) -> u64 {
        let mut old = self.attempt.state.old.iter().flatten().filter(|old| old.running);
        old.find(|old| old.id == id).map_or(0, |old| old.compose.restarts)
    }

    /// Has Compose make anew what somebody changed on the host since it was deployed and what it left as it was: it compares only
    /// what it was told itself.
    pub(super) async fn renew(&self, lock: Digest, profiles: &BTreeSet<String>, until: Instant) -> Done {
        let found = self.listed().await?;
        let old = self.attempt.state.old.iter().flatten();
        let altered: Vec<&str> = old
            .filter(|old| old.compose.altered)
            .filter(|old| found.get(&old.service).is_some_and(|now| now.id == old.id))
            .map(|old| old.service.as_str())
            .collect();
        if altered.is_empty() {
            return Ok(());
        }
        let names = altered.join(", ");
        self.attempt.log.say(format!(
            "changed on the host since it was deployed, made anew: {names}"
        ));
        let left = || until.saturating_duration_since(Instant::now());
        let anew = [&up_anew()[..], &altered[..]].concat();
        self.call(lock, profiles, &anew, left()).await?;
        // Whatever shares a namespace with them follows.
        self.call(lock, profiles, &up(), left()).await
    }

    /// Brings the old lock up again, or takes the new set away without its volumes.
    pub(super) async fn go_back(&mut self) -> Done {
        let Locked { lock, previous } = self.locked()?.clone();
        kill::at("return.before");
        if let Some(old) = &previous {
            self.call(old.digest, &old.profiles, &up(), RETURN_DEADLINE)
                .await?;
        } else {
            let profiles = self.attempt.order.manifest.profiles.clone();
            self.call(lock, &profiles, &["down", "--remove-orphans"], RETURN_DEADLINE)
                .await?;
        }
        let files = self.compose.files(&self.attempt.order);
        aside(LOCKS, move || files.show(previous.map(|old| old.digest))).await?;
        kill::at("return");
        self.world.restored = true;
        Ok(())
    }

    /// Whether nothing but the old set is there, as it was before the attempt touched anything.
    pub(super) async fn runs_as_before(&self) -> bool {
        let Ok(found) = self.listed().await else {
            return false;
        };
        let old: Vec<_> = self.attempt.state.old.iter().flatten().collect();
        let is_same = |old: &&OldContainer| {
            let now = found.get(&old.service);
            now.is_some_and(|now| now.id == old.id && is_up(now.state) == old.running)
        };
        found.len() == old.len() && old.iter().all(is_same)
    }

    /// An old set that falls over at once is no restored set.
    pub(super) async fn check_old(&mut self) -> Done {
        let steady = Instant::now() + OLD_STEADY;
        loop {
            let found = self.listed().await?;
            for old in self.attempt.state.old.iter().flatten().filter(|old| old.running) {
                let Some(listed) = found.get(&old.service) else {
                    return Err(lost(&old.service));
                };
                let (host, id) = (&self.attempt.shared.host, listed.id.as_str());
                let seen = patiently(self.attempt.patience(), || host.inspect(id)).await?;
                let well = seen.is_some_and(|seen| is_back(old.compose.lifetime, &seen));
                if !well {
                    return Err(lost(&old.service));
                }
            }
            if Instant::now() >= steady {
                break;
            }
            sleep(OLD_STEADY / 3).await;
        }
        self.world.checked = true;
        Ok(())
    }
}

const fn up_anew() -> [&'static str; 6] {
    [
        "up",
        "-d",
        "--no-deps",
        "--force-recreate",
        "--no-build",
        "--quiet-pull",
    ]
}

/// Whether a container that ran before is well again. One that only had work to do may have done it.
fn is_back(lifetime: Option<Lifetime>, seen: &Inspected) -> bool {
    match seen.state {
        ContainerState::Running => true,
        ContainerState::Exited => lifetime != Some(Lifetime::Lasting) && seen.exit_code == 0,
        _ => false,
    }
}

fn lost(service: &ServiceName) -> Trouble {
    let summary = format!("service {service} of the old set does not run");
    Failure::new(FailureCode::RestoreFailed, summary).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::{
            NewContainer,
            fake::{Behaviour, FakeHost},
        },
        samples,
    };

    /// A container whose workload does this once it is started.
    async fn started(behaviour: Behaviour) -> Inspected {
        let host = FakeHost::default();
        let image = samples::image("v1");
        host.publish(image.digest, behaviour);
        let container = NewContainer {
            name: "web".to_owned(),
            service: "web".parse().unwrap(),
            spec: samples::service(image),
            labels: labels::Labels::new(),
            networks: Vec::new(),
            volumes: BTreeMap::new(),
        };
        let id = host.create(&container).await.unwrap();
        host.start(&id).await.unwrap();
        host.inspect(&id).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn r10_only_what_may_end_counts_as_back_when_it_has_ended_well() {
        let (lasting, once) = (Some(Lifetime::Lasting), Some(Lifetime::MustEnd));
        let runs = started(Behaviour::Runs).await;
        let ended = started(Behaviour::Exits(0)).await;
        let failed = started(Behaviour::Exits(1)).await;
        assert!(is_back(lasting, &runs) && is_back(once, &runs) && is_back(None, &runs));
        assert!(!is_back(lasting, &ended), "a service that ends does not run");
        assert!(is_back(once, &ended) && is_back(Some(Lifetime::MayEnd), &ended));
        assert!(is_back(None, &ended), "an older journal does not know");
        assert!(!is_back(lasting, &failed) && !is_back(once, &failed) && !is_back(None, &failed));
    }
}
