//! Lanes and orders.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::{ConfigError, within};
use crate::app::Rules;

/// Lanes and orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulingConfig {
    /// Jobs that one environment's lane lets run side by side; never two of one project.
    pub lane_capacity: u32,
    /// Most jobs that may wait in one lane.
    pub lane_queue: u32,
    /// How long after its making an order may be begun.
    pub order_life_seconds: u32,
    /// How long after a start of the orchestrator absent agents are given to come back before their absence closes a gate.
    pub reconnect_grace_seconds: u32,
}

impl Default for SchedulingConfig {
    fn default() -> Self {
        Self {
            lane_capacity: 1,
            lane_queue: 1_000,
            order_life_seconds: 900,
            reconnect_grace_seconds: 60,
        }
    }
}

impl SchedulingConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        within("scheduling.lane_capacity", self.lane_capacity, 1, 1_000)?;
        within("scheduling.lane_queue", self.lane_queue, 1, 100_000)?;
        within(
            "scheduling.order_life_seconds",
            self.order_life_seconds,
            60,
            86_400,
        )?;
        within(
            "scheduling.reconnect_grace_seconds",
            self.reconnect_grace_seconds,
            0,
            3_600,
        )
    }

    /// The same for the use cases.
    pub fn rules(&self) -> Rules {
        Rules {
            lane_capacity: self.lane_capacity,
            lane_queue: self.lane_queue,
            order_life: TimeDelta::seconds(i64::from(self.order_life_seconds)),
            reconnect_grace: TimeDelta::seconds(i64::from(self.reconnect_grace_seconds)),
            ..Rules::default()
        }
    }
}
