//! The only crate that knows SQL: one set of statements for SQLite and PostgreSQL.
//!
//! [`Db`] opens a database and begins transactions; a [`Tx`] has one method per thing that can be read or written, in one file
//! per aggregate. Every statement is a constant, listed in [`STATEMENTS`]. State columns are written by exactly one method per
//! machine, under a version check, with the history row in the same transaction. No business rule lives here: what may happen
//! is decided by `sealift_common`, what must never be is refused by the schema.

mod active;
mod agents;
mod audit;
mod board;
mod certificates;
mod changes;
mod drift;
mod engine;
mod environments;
mod error;
mod evidence;
mod failures;
mod history;
mod holds;
mod idempotency;
mod jobs;
mod lanes;
mod leases;
mod left_out;
mod listed;
mod logs;
mod maintenance;
mod marks;
mod observations;
mod pages;
mod promotions;
pub mod records;
mod releases;
mod remedies;
mod rows;
mod stickers;
mod targets;
mod task_lists;
mod task_queue;
mod tasks;
mod tasks_rows;
mod tenants;
mod transitions;
mod users;
mod versions;
mod waves;

pub use board::{BoardAgent, BoardDrift, BoardJob, BoardRelease, BoardService, BoardState};
pub use changes::Change;
pub use engine::{Db, Engine, StoreConfig, Tx};
pub use error::{Result, StoreError};
pub use evidence::StoredPacket;
pub use failures::{AttemptFailure, FailedPlace};
pub use history::{HistoryRow, HistoryScope};
pub use lanes::{LaneView, Newcomer, PROJECT_WAITERS, WaitingJob};
pub use left_out::LeftOut;
pub use listed::{DecisionHead, ReleaseName};
pub use maintenance::MaintenanceRun;
pub use observations::Look;
pub use pages::{Cursor, Page, PageRequest};
pub use records::*;
pub use remedies::{DriftedPlace, OpenDrift, Remedy};
pub use stickers::ReportedSticker;
pub use task_lists::TaskFilter;
pub use task_queue::JobTally;
pub use tasks::{Assignment, LEASE_AFTER_RETURN};
pub use transitions::By;

/// A constant statement, for the test that prepares them all on both engines.
#[derive(Debug, Clone, Copy)]
pub struct Statement {
    /// The file that it is in.
    pub file: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// Its text.
    pub sql: &'static str,
}

/// Every constant statement. Statements with lists of values are built and not in here.
pub const STATEMENTS: &[&[Statement]] = &[
    active::STATEMENTS,
    agents::STATEMENTS,
    audit::STATEMENTS,
    board::STATEMENTS,
    certificates::STATEMENTS,
    drift::STATEMENTS,
    environments::STATEMENTS,
    evidence::STATEMENTS,
    failures::STATEMENTS,
    history::STATEMENTS,
    holds::STATEMENTS,
    idempotency::STATEMENTS,
    jobs::STATEMENTS,
    lanes::STATEMENTS,
    leases::STATEMENTS,
    left_out::STATEMENTS,
    logs::STATEMENTS,
    maintenance::STATEMENTS,
    marks::STATEMENTS,
    observations::STATEMENTS,
    promotions::STATEMENTS,
    releases::STATEMENTS,
    remedies::STATEMENTS,
    stickers::STATEMENTS,
    targets::STATEMENTS,
    task_lists::STATEMENTS,
    task_queue::STATEMENTS,
    tasks::STATEMENTS,
    tenants::STATEMENTS,
    transitions::STATEMENTS,
    users::STATEMENTS,
    versions::STATEMENTS,
    waves::STATEMENTS,
];
