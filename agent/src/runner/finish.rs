//! The two ends of an attempt: the new set committed, or the old set restored.

use sealift_common::failure::{Failure, FailureCode};

use super::{
    OLD_SET, Runner, Trouble, UNKNOWN, UNREACHED, patiently,
    prove::{STICKER, aside},
};
use crate::{
    host::Host,
    journal::{Baseline, BaselineService, Cause, Ending},
    proof::{self, Running},
    step::hooks,
    stickers::Stickers,
};

impl<H: Host> Runner<H> {
    /// The new set was healthy: prove it and end.
    pub(super) async fn finish_well(&mut self) -> Result<(), Trouble> {
        let running = if let Some(running) = self.seen_healthy.take() {
            running
        } else {
            let (host, order) = (self.attempt.host(), &self.attempt.order);
            patiently(self.attempt.patience(), || proof::running(host, order)).await?
        };
        let new: Vec<Running> = running
            .into_iter()
            .filter(|running| running.ours.fence == self.attempt.order.fence)
            .collect();
        for (service, spec) in &self.attempt.order.manifest.services {
            let found = new.iter().find(|running| running.ours.service == *service);
            if found.and_then(|running| running.digest) != Some(spec.image.digest) {
                let summary = format!(
                    "the engine does not report {} as running for service {service}",
                    spec.image.digest
                );
                return Err(Failure::new(FailureCode::DigestMismatch, summary).into());
            }
        }
        let sticker = self.write_sticker().await?;
        let baseline = self.baseline(&new);
        self.attempt.end_well(sticker, &new, baseline).await?;
        self.attempt.log.say("the new set runs");
        Ok(())
    }

    fn baseline(&self, new: &[Running]) -> Baseline {
        let services = self
            .attempt
            .order
            .manifest
            .start_order()
            .into_iter()
            .filter_map(|service| {
                let running = new.iter().find(|running| running.ours.service == *service)?;
                Some(BaselineService {
                    service: service.clone(),
                    container: running.inspected.id.clone(),
                    fingerprint: running.inspected.fingerprint,
                    config: None,
                    lifetime: None,
                })
            });
        Baseline {
            fence: self.attempt.order.fence,
            services: services.collect(),
            lock: None,
            program: None,
        }
    }

    /// Puts the sticker in its place: the one that is staged, or, after a crash, the one that was written before it or one made
    /// anew.
    async fn write_sticker(&mut self) -> Result<Vec<u8>, Failure> {
        let Some(staged) = self.staged.take() else {
            return self.attempt.settle_sticker().await;
        };
        let path = self.attempt.sticker_path();
        aside(STICKER, move || Stickers::put(&path)).await?;
        Ok(staged)
    }

    /// The old set is back (or as far back as could be): prove it and end.
    pub(super) async fn finish_restored(&mut self, cause: &Cause) -> Result<(), Trouble> {
        self.attempt.unwrite_sticker().await;
        self.attempt.note_poison(OLD_SET);
        let stuck = hooks::stuck(&self.attempt.order.manifest.hooks, &self.attempt.state).cloned();
        if let Some(stuck) = stuck {
            self.attempt.give_up_restore(UNREACHED, &stuck);
        }
        let running = {
            let (host, order) = (self.attempt.host(), &self.attempt.order);
            patiently(self.attempt.patience(), || proof::running(host, order)).await
        };
        let running = running.unwrap_or_else(|error| {
            // The end is told all the same, with what is known: nothing.
            self.attempt.give_up_restore(UNKNOWN, &error.0);
            Vec::new()
        });
        let ending = self.attempt.end_restored(cause, &running, Vec::new()).await?;
        self.attempt.log.say(match ending {
            Ending::Stopped => "stopped; what ran before runs",
            _ => "failed",
        });
        Ok(())
    }
}
