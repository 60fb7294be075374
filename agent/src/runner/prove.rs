//! Health of the new set, and what of the end can be got ready while the journal writes it down (R15).

use std::{io, time::Duration};

use sealift_common::{
    compose_manifest::Lifetime,
    failure::{Failure, FailureCode},
    hook,
    name::ServiceName,
};
use tokio::time::Instant;

use super::{Done, Runner, internal, is_up};
use crate::{
    health::{self, Watched},
    host::{Host, Listed},
    journal::Record,
    kill, labels, proof,
    stickers::Stickers,
};

impl<H: Host> Runner<H> {
    pub(super) fn health_deadline(&mut self) -> Instant {
        let limit = Duration::from_millis(self.order.limits.healthy_deadline_ms.into());
        *self.healthy_until.get_or_insert_with(|| Instant::now() + limit)
    }

    pub(super) fn watched(&self, service: &ServiceName) -> Result<Watched, Failure> {
        let spec = self.spec(service)?;
        let id = self.world.new.get(service).map(|seen| seen.id.clone());
        let network = self.service_networks(service, spec).into_iter().next();
        Ok(Watched {
            service: service.clone(),
            id: id.unwrap_or_default(),
            lifetime: Lifetime::Lasting,
            probe: spec.probe.clone(),
            network: network.map(|(name, _)| name).unwrap_or_default(),
        })
    }

    pub(super) async fn await_dependency(&mut self, service: &ServiceName) -> Done {
        self.log.say(format!("waiting until {service} is healthy"));
        let deadline = self.health_deadline();
        let watched = self.watched(service)?;
        health::await_healthy(self.host(), &[watched], Duration::ZERO, deadline).await?;
        self.world.healthy.insert(service.clone());
        Ok(())
    }

    pub(super) async fn await_health(&mut self) -> Done {
        let deadline = self.health_deadline();
        let min_healthy = Duration::from_millis(self.order.limits.min_healthy_ms.into());
        self.watch_all(min_healthy, deadline).await?;
        kill::at("healthy");
        if self.order.swap.is_in_place() && !hook::has_late(&self.order.manifest.hooks) {
            self.note_healthy().await
        } else {
            self.note_ready().await
        }
    }

    /// Waits until the new set was well for `time` without a break, and keeps what was seen at the end.
    pub(super) async fn watch_all(&mut self, time: Duration, deadline: Instant) -> Done {
        let services = self.order.manifest.services.keys();
        let watched = services
            .map(|service| self.watched(service))
            .collect::<Result<Vec<_>, _>>()?;
        let seen = health::await_healthy(self.host(), &watched, time, deadline).await?;
        self.seen_healthy = proof::seen_running(seen, &self.images);
        Ok(())
    }

    /// From here on the new set is the one that stays.
    pub(super) async fn note_healthy(&mut self) -> Done {
        let path = self.sticker_path();
        let before = aside(move || Stickers::read(&path)).await?;
        let sticker_before = before.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let at = self.now();
        let sticker = self.sticker(sticker_before.as_deref())?;
        // The sticker is got ready and the old set looked at while the journal writes.
        let staged = {
            let (path, bytes) = (self.sticker_path(), sticker.clone());
            aside(move || Stickers::stage(&path, &bytes))
        };
        let shared = self.shared.clone();
        let project = labels::of_project(self.order.target_id, &self.order.release.project);
        let has_old = !self.world.old.is_empty();
        let (written, staged, listed) = tokio::join!(
            self.write(Record::Healthy { at, sticker_before }, Vec::new()),
            staged,
            async {
                if has_old {
                    shared.host.list(&project).await
                } else {
                    Ok(Vec::new())
                }
            }
        );
        written?;
        kill::at("commit_journalled");
        staged?;
        self.staged = Some(sticker);
        self.note_old(listed?);
        // They were just seen running.
        for seen in self.world.new.values_mut() {
            seen.running = true;
        }
        Ok(())
    }

    /// What the old set does at the end: an engine that was started again meanwhile may have brought it back.
    fn note_old(&mut self, listed: Vec<Listed>) {
        for container in listed {
            if let Some(seen) = self.world.old.get_mut(&container.id) {
                seen.running = is_up(container.state);
            }
        }
    }
}

/// Work on files, off the threads that serve connections.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(internal)?
        .map_err(|error| sticker_failure(&error))
}

pub(super) fn sticker_failure(error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::StorageFull => FailureCode::DiskFull,
        _ => FailureCode::AgentState,
    };
    Failure::new(code, "the sticker file cannot be read or written").with_detail(error.to_string())
}
