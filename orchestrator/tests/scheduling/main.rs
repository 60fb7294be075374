//! The way of a promotion from request to end, with the store on SQLite (or PostgreSQL: see `database.rs` of the harness) and agents that are played by the tests: one module per
//! group of rules.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod canaries;
mod cancel;
mod catch_up;
mod closed_gates;
mod gates;
mod intents;
mod lane_policies;
mod lanes;
mod large_waves;
mod presence;
mod races;
mod reconcile;
mod releases;
mod repeats;
mod restart;
mod rollbacks;
mod rollouts;
mod seen;
mod walk;
mod waves;
mod world;
