//! The new set takes over: by a hook, or, blue/green, by the aliases, which move from the old set to it; both are watched; and the way
//! back.

use std::{collections::BTreeMap, time::Duration};

use sealift_common::{
    name::ServiceName,
    swap::{self, Swap},
};
use tokio::time::Instant;

use super::{Done, Runner, effects, patiently};
use crate::{host::Host, journal::Record, kill};

impl<H: Host> Runner<H> {
    /// The new set is healthy.
    pub(super) async fn note_ready(&mut self) -> Done {
        let at = self.attempt.now();
        kill::at("ready_journalled.before");
        self.attempt.write(Record::Ready { at }, Vec::new()).await?;
        kill::at("ready_journalled");
        // What comes now has its own time.
        self.attempt.healthy_until = None;
        self.attempt.log.say("the new set is healthy");
        Ok(())
    }

    pub(super) async fn join_new(&mut self, service: &ServiceName) -> Done {
        let id = self.watched(service)?.id;
        let manifest = &self.attempt.order.manifest;
        let spec = self.spec(service)?;
        kill::at("new_joined.before");
        for (name, aliases) in effects::aliases(service, spec) {
            if swap::is_external(manifest, name) {
                let (host, network) = (self.attempt.host(), self.network_name(name));
                patiently(self.attempt.patience(), || {
                    host.join_network(&id, &network, &aliases)
                })
                .await?;
            }
        }
        kill::at("new_joined");
        // Its connections broke: whether it is still well is seen anew.
        self.world.healthy.remove(service);
        self.world.joined.insert(service.clone());
        Ok(())
    }

    pub(super) async fn leave_old(&mut self, id: &str) -> Done {
        kill::at("old_left.before");
        for network in self.old_aliases(id).into_keys() {
            let host = self.attempt.host();
            patiently(self.attempt.patience(), || host.join_network(id, &network, &[])).await?;
        }
        kill::at("old_left");
        self.world.left.insert(id.to_owned());
        Ok(())
    }

    pub(super) async fn join_old(&mut self, id: &str) -> Done {
        kill::at("old_joined.before");
        for (network, aliases) in self.old_aliases(id) {
            let host = self.attempt.host();
            patiently(self.attempt.patience(), || {
                host.join_network(id, &network, &aliases)
            })
            .await?;
        }
        kill::at("old_joined");
        self.world.back.insert(id.to_owned());
        Ok(())
    }

    fn old_aliases(&self, id: &str) -> BTreeMap<String, Vec<String>> {
        let old = self.attempt.state.old.iter().flatten().find(|old| old.id == id);
        old.map(|old| old.aliases.clone()).unwrap_or_default()
    }

    pub(super) async fn note_switched(&mut self) -> Done {
        let at = self.attempt.now();
        kill::at("switched_journalled.before");
        self.attempt.write(Record::Switched { at }, Vec::new()).await?;
        kill::at("switched_journalled");
        self.attempt.log.say("the new set has taken over");
        Ok(())
    }

    pub(super) async fn await_bake(&mut self) -> Done {
        let bake = match self.attempt.order.swap {
            Swap::InPlace => Duration::ZERO,
            Swap::BlueGreen { bake_ms } => Duration::from_millis(bake_ms.into()),
        };
        let limit = Duration::from_millis(self.attempt.order.limits.healthy_deadline_ms.into());
        self.watch_all(bake, Instant::now() + bake + limit).await?;
        self.note_healthy().await
    }
}
