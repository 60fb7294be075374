//! Upkeep: what the agent asks of an engine for the sake of the host, apart from deploying: where it keeps its data.

use std::{future::Future, path::PathBuf};

use super::HostError;

/// How an engine is set up. What it does not say is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineDetails {
    /// Where it keeps images and containers.
    pub root: PathBuf,
    /// Its storage driver.
    pub storage_driver: String,
    /// Version of the control groups.
    pub cgroup_version: String,
}

/// What keeps a host well.
pub trait Upkeep: Send + Sync {
    /// How the engine is set up. Costs the engine some work: not to be asked all the time.
    fn details(&self) -> impl Future<Output = Result<EngineDetails, HostError>> + Send;
}
