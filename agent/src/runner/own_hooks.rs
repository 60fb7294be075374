//! Hooks of a set that the agent makes itself.

use sealift_common::{
    failure::Failure,
    hook::{Direction, HookSpec},
    manifest::Manifest,
};

use super::{
    Runner,
    attempt::Attempt,
    hooks::{HookAttempt, Sets, called, confined, environment},
};
use crate::{
    host::{Host, HostError, NewContainer},
    journal::HookRef,
    labels,
    step::hooks::Present,
};

impl<H: Host> Runner<H> {
    /// Who takes over from whom.
    fn sets(&self, direction: Direction) -> Sets {
        let new = self.world.new.iter();
        let new = new.map(|(service, seen)| called(service, &seen.id)).collect();
        let old = self.attempt.state.old.iter().flatten().filter(|old| old.running);
        let old = old.map(|old| called(&old.service, &old.id)).collect();
        match direction {
            Direction::Forward => Sets { to: new, from: old },
            Direction::Back => Sets { to: old, from: new },
        }
    }
}

impl<H: Host> HookAttempt<H> for Runner<H> {
    type Manifest = Manifest;

    fn attempt(&self) -> &Attempt<H, Manifest> {
        &self.attempt
    }

    fn attempt_mut(&mut self) -> &mut Attempt<H, Manifest> {
        &mut self.attempt
    }

    fn present(&mut self) -> &mut Present {
        &mut self.world.hooks
    }

    async fn container(&self, spec: &HookSpec, hook: &HookRef) -> Result<NewContainer, Failure> {
        let order = &self.attempt.order;
        let is_first = self.attempt.is_first().await?;
        let environment = environment(order, spec, hook, is_first, &self.sets(hook.direction));
        let networks = spec.network_names().into_iter();
        let volumes = self.volumes().into_iter();
        Ok(NewContainer {
            name: labels::hook_name(order, hook),
            service: spec.name.clone(),
            spec: confined(spec, environment),
            labels: labels::of_hook(order, hook, &spec.image),
            networks: networks
                .map(|name| (self.network_name(name), Vec::new()))
                .collect(),
            volumes: volumes.map(|(volume, (name, _))| (volume, name)).collect(),
        })
    }

    async fn tidy(&self) -> Result<(), HostError> {
        // Its networks and volumes are the set's.
        Ok(())
    }
}
