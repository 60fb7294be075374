//! Which agents are there, as tests say it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::TimeDelta;
use sealift_common::{
    id::{AgentId, SessionId, TargetId},
    inventory::{Agent, AgentIntent, AgentStatus},
    keys::SigningKey,
    order::sign_order,
    time::{Clock as _, TestClock},
};
use sealift_orchestrator::app::{Core, Rules};
use sealift_store::{Db, Tx};

use crate::world::World;

/// An orchestrator to whom agents are there but for those in `offline`.
pub fn core(
    db: Db,
    clock: &TestClock,
    offline: &Arc<Mutex<BTreeSet<AgentId>>>,
    back: &Arc<Mutex<BTreeMap<AgentId, SessionId>>>,
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
        session_of: Arc::new(move |agent| Some(session(&back, agent.id))),
        lease_of: Arc::new(|| Duration::from_mins(1)),
        sign_order: Arc::new(move |order| sign_order(order, &key)),
        started_at: clock.now(),
        rules: Rules {
            reconnect_grace: TimeDelta::zero(),
            ..Rules::default()
        },
    }
}

/// The session that an agent is in: that in which it is back, or the first one.
fn session(back: &Mutex<BTreeMap<AgentId, SessionId>>, agent: AgentId) -> SessionId {
    let back = back.lock().unwrap().get(&agent).copied();
    back.unwrap_or_else(|| "018f0000-0000-7000-8000-000000000001".parse().unwrap())
}

impl World {
    /// The session in which something is told of a target.
    pub async fn session_for(&self, tx: &mut Tx, target: TargetId) -> SessionId {
        let target = tx.target(self.tenant, target).await.unwrap().unwrap();
        session(&self.back, target.agent_id.unwrap())
    }

    /// An agent that was away is back, and has looked at nothing yet.
    pub fn returns(&self, agent: AgentId) {
        self.offline.lock().unwrap().remove(&agent);
        let session = SessionId::new(self.clock.now());
        self.back.lock().unwrap().insert(agent, session);
    }
}
