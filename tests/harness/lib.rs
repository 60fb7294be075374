//! What the scenarios share: whole systems that start, answer and end with the test.
//!
//! [`fleet`] has an orchestrator and agents on fake engines in one process, on either [`database`]; [`real`] starts the real binaries against a real engine and registry.

pub mod database;
pub mod fleet;
pub mod real;
