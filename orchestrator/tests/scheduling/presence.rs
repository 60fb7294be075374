//! Which agents are there, as tests say it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    id::AgentId,
    inventory::{Agent, AgentIntent, AgentStatus},
    keys::SigningKey,
    order::sign_order,
    time::{Clock as _, TestClock},
};
use sealift_orchestrator::app::{Core, Rules};
use sealift_store::Db;

use crate::world::World;

/// An orchestrator to whom agents are there but for those in `offline`.
pub fn core(
    db: Db,
    clock: &TestClock,
    offline: &Arc<Mutex<BTreeSet<AgentId>>>,
    back: &Arc<Mutex<BTreeMap<AgentId, DateTime<Utc>>>>,
) -> Core {
    let key = SigningKey::from_seed(&[7; 32]);
    let (offline, back) = (Arc::clone(offline), Arc::clone(back));
    Core {
        db,
        clock: Arc::new(clock.clone()),
        status_of: Arc::new(move |agent: &Agent| {
            let away = agent.intent == AgentIntent::Revoked || offline.lock().unwrap().contains(&agent.id);
            if away {
                AgentStatus::Offline
            } else {
                AgentStatus::Online
            }
        }),
        connected_at: Arc::new(move |agent| back.lock().unwrap().get(&agent.id).copied()),
        lease_of: Arc::new(|| Duration::from_mins(1)),
        sign_order: Arc::new(move |order| sign_order(order, &key)),
        started_at: clock.now(),
        rules: Rules {
            reconnect_grace: TimeDelta::zero(),
            ..Rules::default()
        },
    }
}

impl World {
    /// An agent that was away is back, and has looked at nothing yet.
    pub fn returns(&self, agent: AgentId) {
        self.offline.lock().unwrap().remove(&agent);
        self.back.lock().unwrap().insert(agent, self.clock.now());
    }
}
