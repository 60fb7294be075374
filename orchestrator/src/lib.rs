//! The central orchestrator: decides what runs where, and keeps the proof.

pub mod caller;
pub mod identity;
pub mod names;
pub mod status;
