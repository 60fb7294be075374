//! The central orchestrator: decides what runs where, and keeps the proof.

pub mod app;
pub mod authz;
pub mod caller;
pub mod config;
pub mod control;
pub mod convert;
pub mod gate;
pub mod gateway;
pub mod health;
pub mod identity;
pub mod loops;
pub mod mutate;
pub mod names;
pub mod orchestrator;
pub mod paging;
pub mod registry;
pub mod revocations;
pub mod server;
pub mod state;
pub mod status;
pub mod watch;

pub use orchestrator::{Orchestrator, Running, StartError};

/// The version of this orchestrator.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
