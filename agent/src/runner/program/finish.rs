//! The two ends of an attempt to exchange the agent's program: the new one runs for good, or the one before does. Sticker, packet and
//! report.

use std::{collections::BTreeMap, time::Duration};

use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    failure::Failure,
    manifest::RestartPolicy,
    observation::{ContainerHealth, ContainerState},
    order::Fence,
    program::SERVICE,
};

use super::{BEFORE, ProgramRunner, unreadable};
use crate::{
    host::{Host, Inspected},
    journal::{Baseline, BaselineService, Cause, Ending},
    labels::{Labels, Ours},
    program::marker::Installed,
    proof::Running,
    runner::{Done, internal},
};

impl<H: Host> ProgramRunner<H> {
    /// The new program was found good: prove it and end.
    pub(super) async fn finish_well(&mut self) -> Done {
        let set = self.set().await?;
        let sticker = self.attempt.settle_sticker().await?;
        let baseline = self.baseline(&set)?;
        self.attempt.end_well(sticker, &set, baseline).await?;
        self.turn = None;
        self.attempt.log.say("the new program runs for good");
        Ok(())
    }

    /// The one program that runs, as the other kinds of targets see their containers.
    async fn set(&self) -> Result<Vec<Running>, Failure> {
        let (service, _) = self.ordered()?;
        let (running, known) = self
            .attempt
            .shared
            .program
            .seen()
            .await
            .map_err(|error| unreadable(&error))?;
        let is_ours = known
            .as_ref()
            .is_some_and(|known| known.key() == self.attempt.key);
        let fence = if is_ours {
            self.attempt.order.fence
        } else {
            Fence(0)
        };
        let ours = Ours {
            target: self.attempt.order.target_id,
            project: self.attempt.order.release.project.clone(),
            service: service.clone(),
            fence,
            digest: known.as_ref().map(|known| known.image.digest),
            config: self.attempt.order.manifest.config_of(service).map_err(internal)?,
        };
        Ok(vec![Running {
            digest: ours.digest,
            ours,
            inspected: inspected(running, known.as_ref()),
        }])
    }

    fn baseline(&self, set: &[Running]) -> Result<Baseline, Failure> {
        let services = set.iter().map(|one| {
            let service = &one.ours.service;
            Ok(BaselineService {
                service: service.clone(),
                container: one.inspected.id.clone(),
                fingerprint: one.inspected.fingerprint,
                config: self.attempt.order.manifest.config_of(service).map_err(internal)?,
                lifetime: None,
            })
        });
        Ok(Baseline {
            fence: self.attempt.order.fence,
            services: services.collect::<Result<_, Failure>>()?,
            lock: None,
            program: Some(self.world.running),
        })
    }

    /// The program before runs (or as far back as could be gone): prove it and end.
    pub(super) async fn finish_restored(&mut self, cause: &Cause) -> Done {
        self.attempt.unwrite_sticker().await;
        self.attempt.note_poison(BEFORE);
        let set = self.set().await.unwrap_or_else(|failure| {
            // The end is told all the same, with what is known: nothing.
            self.attempt
                .log
                .say(format!("what runs now is not known: {failure}"));
            Vec::new()
        });
        let ending = self.attempt.end_restored(cause, &set, Vec::new()).await?;
        self.turn = None;
        self.attempt.log.say(match ending {
            Ending::Stopped => "stopped; the program before runs",
            _ => "failed; the program before runs",
        });
        Ok(())
    }
}

/// What stands where other kinds of targets have the identifier of a container.
pub(crate) fn process(running: Digest) -> String {
    format!("{SERVICE}@{}", running.short())
}

/// The program as engines describe containers: its image is the program itself.
fn inspected(running: Digest, known: Option<&Installed>) -> Inspected {
    Inspected {
        id: process(running),
        labels: Labels::new(),
        image_id: running.to_string(),
        image: known
            .map(|known| known.image.pull_reference())
            .unwrap_or_default(),
        state: ContainerState::Running,
        health: ContainerHealth::Healthy,
        failing_streak: 0,
        health_output: String::new(),
        exit_code: 0,
        oom_killed: false,
        started_at: String::new(),
        restart_count: 0,
        restart: RestartPolicy::No,
        grace: Duration::ZERO,
        aliases: BTreeMap::new(),
        addresses: BTreeMap::new(),
        fingerprint: running,
    }
}
