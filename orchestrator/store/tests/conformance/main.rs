//! The conformance suite: every case runs on both engines, as `on_sqlite::…` and `on_postgres::…`.
//!
//! PostgreSQL comes from `SEALIFT_TEST_POSTGRES_URL`; each case makes and drops a database of its own there. Without the
//! variable the PostgreSQL cases fail, unless `SEALIFT_TEST_SKIP_POSTGRES=1` says that this is meant.

#![expect(clippy::unwrap_used, reason = "tests")]

mod damage;
mod drift;
mod engine;
mod failures;
mod harness;
mod history;
mod identity;
mod inventory;
mod jobs;
mod lanes;
mod maintenance;
mod marks;
mod outcomes;
mod plans;
mod records;
mod releases;
mod remedies;
mod schema;
mod seed;
mod task_queue;
mod tasks;
mod tenancy;
mod trail;
mod views;
