//! The use cases, one verb per file. Each works inside a transaction that its caller opens, so that a call, its audit event and
//! its effect are one commit. Handlers and loops call these; nothing here knows gRPC.

pub mod abandon_task;
pub mod advance_job;
pub mod ask_again;
pub mod assign_tasks;
pub mod attempts;
pub mod cancel_promotion;
pub mod catch_up;
pub mod create_promotion;
pub mod create_release;
pub mod end_job;
pub mod expire_leases;
pub mod give_up_job;
pub mod order_tasks;
pub mod reconcile;
pub mod repeat_job;
pub mod resolve_release;
pub mod roll_back;
pub mod spoiled;
pub mod start_job;
pub mod steer_job;
pub mod supersede;
pub mod survey;
pub mod trust;
pub mod turn;

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    bounds,
    id::SessionId,
    inventory::{Agent, AgentStatus},
    order::{Order, OrderError, sign_order},
    time::Clock,
};
use sealift_store::Db;

use crate::state::App;

/// Who acts when no person does.
pub const ORCHESTRATOR: &str = "orchestrator";

/// Numbers that operators may set.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Jobs that a lane lets run side by side; never two of one project.
    pub lane_capacity: u32,
    /// Most jobs that may wait in a lane.
    pub lane_queue: u32,
    /// How long after its making an order may be begun.
    pub order_life: TimeDelta,
    /// How long after a start of the orchestrator absent agents are given to come back before their absence closes a gate.
    pub reconnect_grace: TimeDelta,
    /// Most targets that one job may address.
    pub targets: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            lane_capacity: 1,
            lane_queue: 1_000,
            order_life: TimeDelta::minutes(15),
            reconnect_grace: TimeDelta::seconds(60),
            targets: bounds::TARGETS_PER_JOB as u32,
        }
    }
}

/// How an agent is, as its sessions and heartbeats tell.
pub type StatusOf = Arc<dyn Fn(&Agent) -> AgentStatus + Send + Sync>;
/// The session of an agent, or its last one.
pub type SessionOf = Arc<dyn Fn(&Agent) -> Option<SessionId> + Send + Sync>;
/// How long an agent's silence is normal once it has work.
pub type LeaseOf = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Signs an order with the orchestrator's order key.
pub type SignOrder = Arc<dyn Fn(&Order) -> Result<Vec<u8>, OrderError> + Send + Sync>;

/// What use cases need besides their transaction. Cheap to clone.
#[derive(Clone)]
pub struct Core {
    /// The store.
    pub db: Db,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// How agents are.
    pub status_of: StatusOf,
    /// In which sessions agents are.
    pub session_of: SessionOf,
    /// How long an agent may be silent before its tasks count as lost.
    pub lease_of: LeaseOf,
    /// Signs orders.
    pub sign_order: SignOrder,
    /// When the orchestrator started.
    pub started_at: DateTime<Utc>,
    /// Numbers that operators may set.
    pub rules: Rules,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Over the parts of an orchestrator.
    pub fn of(app: &App) -> Self {
        let (presence, sessions, lease, identity) = (
            Arc::clone(&app.presence),
            Arc::clone(&app.presence),
            Arc::clone(&app.presence),
            Arc::clone(&app.identity),
        );
        Self {
            db: app.db.clone(),
            clock: Arc::clone(&app.clock),
            status_of: Arc::new(move |agent| {
                let degraded = !agent.facts.conditions(crate::VERSION).is_empty();
                presence.status(agent.id, agent.intent, agent.last_seen_at, degraded)
            }),
            session_of: Arc::new(move |agent| sessions.session_of(agent.id, agent.session)),
            lease_of: Arc::new(move || lease.lease()),
            sign_order: Arc::new(move |order| sign_order(order, &identity.keys.order)),
            started_at: app.started_at,
            rules: app.config.scheduling.rules(),
        }
    }

    /// Until when agents that are away are only late: while the orchestrator was not there, nobody could be connected. `None` once
    /// that time is over. Gates, orders and leases all ask this.
    pub fn reconnect_until(&self) -> Option<DateTime<Utc>> {
        let until = self.started_at + self.rules.reconnect_grace;
        (self.clock.now() < until).then_some(until)
    }

    /// When a lease that begins now ends.
    pub fn lease_until(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now + TimeDelta::from_std((self.lease_of)()).unwrap_or(TimeDelta::minutes(1))
    }
}
