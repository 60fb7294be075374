//! Health of the new set, and what of the end can be got ready while the journal writes it down (R15).

use std::{io, time::Duration};

use sealift_common::{
    compose_manifest::Lifetime,
    failure::{Failure, FailureCode},
    hook,
    name::ServiceName,
};
use tokio::time::Instant;

use super::{Done, Runner, internal, is_up, patiently};
use crate::{
    health::{self, Watched},
    host::{Host, Listed},
    journal::Record,
    kill, labels, proof,
    stickers::Stickers,
};

impl<H: Host> Runner<H> {
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
            // It is made in this attempt.
            restarts_before: 0,
        })
    }

    pub(super) async fn await_dependency(&mut self, service: &ServiceName) -> Done {
        self.attempt
            .log
            .say(format!("waiting until {service} is healthy"));
        let deadline = self.attempt.health_deadline();
        let watched = self.watched(service)?;
        health::await_healthy(self.attempt.host(), &[watched], Duration::ZERO, deadline).await?;
        self.world.healthy.insert(service.clone());
        Ok(())
    }

    pub(super) async fn await_health(&mut self) -> Done {
        let deadline = self.attempt.health_deadline();
        let min_healthy = Duration::from_millis(self.attempt.order.limits.min_healthy_ms.into());
        self.watch_all(min_healthy, deadline).await?;
        kill::at("healthy");
        if self.attempt.order.swap.is_in_place() && !hook::has_late(&self.attempt.order.manifest.hooks) {
            self.note_healthy().await
        } else {
            self.note_ready().await
        }
    }

    /// Waits until the new set was well for `time` without a break, and keeps what was seen at the end.
    pub(super) async fn watch_all(&mut self, time: Duration, deadline: Instant) -> Done {
        let services = self.attempt.order.manifest.services.keys();
        let watched = services
            .map(|service| self.watched(service))
            .collect::<Result<Vec<_>, _>>()?;
        let seen = health::await_healthy(self.attempt.host(), &watched, time, deadline).await?;
        self.seen_healthy = proof::seen_running(seen, &self.images);
        Ok(())
    }

    /// From here on the new set is the one that stays.
    pub(super) async fn note_healthy(&mut self) -> Done {
        let sticker_before = self.attempt.read_sticker().await?;
        let at = self.attempt.now();
        let sticker = self.attempt.sticker(sticker_before.as_deref())?;
        let sticker = sticker.to_file().map_err(internal)?;
        // The sticker is got ready and the old set looked at while the journal writes.
        let staged = {
            let (path, bytes) = (self.attempt.sticker_path(), sticker.clone());
            aside(STICKER, move || Stickers::stage(&path, &bytes))
        };
        let shared = self.attempt.shared.clone();
        let project = labels::of_project(self.attempt.order.target_id, &self.attempt.order.release.project);
        let has_old = !self.world.old.is_empty();
        let patience = self.attempt.patience();
        let (written, staged, listed) = tokio::join!(
            self.attempt
                .write(Record::Healthy { at, sticker_before }, Vec::new()),
            staged,
            async {
                if has_old {
                    patiently(patience, || shared.host.list(&project)).await
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

/// What work on files is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files(&'static str);

pub(super) const STICKER: Files = Files("the sticker file");
pub(super) const LOCKS: Files = Files("the project's locks");
pub(super) const PROGRAMS: Files = Files("the agent's programs");

/// Work on files, off the threads that serve connections.
pub(super) async fn aside<T: Send + 'static>(
    files: Files,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(internal)?
        .map_err(|error| files.failure(&error))
}

impl Files {
    /// Why the work did not succeed.
    pub(super) fn failure(self, error: &io::Error) -> Failure {
        let code = match error.kind() {
            io::ErrorKind::StorageFull => FailureCode::DiskFull,
            _ => FailureCode::AgentState,
        };
        Failure::new(code, format!("{} cannot be read or written", self.0)).with_detail(error.to_string())
    }
}
