//! What each row of the table does. One file for each part of the system that the fault is in.

pub mod agent;
pub mod clock;
pub mod disk;
pub mod engine;
pub mod network;
pub mod registry;
