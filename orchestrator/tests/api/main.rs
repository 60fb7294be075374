//! The operator API over the real port and the admin socket, with a database of its own.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod agents;
mod audit;
mod authorization;
mod drift;
mod external;
mod failures;
mod host;
mod hostile;
mod inventory;
mod lane_policy;
mod large;
mod maintenance;
mod names;
mod process;
mod remediation;
mod rollback;
mod steering;
mod support;
mod views;
