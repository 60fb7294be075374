//! What the scenarios share: whole systems that start, answer and end with the test.
//!
//! [`fleet`] has an orchestrator and agents on fake engines in one process, on either [`database`]; [`real`] starts the real binaries against a real engine and registry; with [`simulated`] the agents of a
//! real orchestrator are in the test's process. [`packets`] makes what agents prove; [`invariants`] looks whether a database is as it
//! must be, [`described`] whether a container is what its compose file says; [`root`] is a copy of this machine to install things on;
//! [`phases`] says where agents are killed.

pub mod commands;
pub mod database;
pub mod described;
pub mod fleet;
pub mod invariants;
pub mod packets;
pub mod phases;
pub mod real;
pub mod root;
pub mod simulated;
pub mod wait;
