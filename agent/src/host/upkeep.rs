//! Upkeep: what the agent asks of an engine for the sake of the host, apart from deploying: where it keeps its
//! data, and what is there that it did not make.

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

/// An image with all its names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageNames {
    /// The engine's identifier.
    pub id: String,
    /// Tags (`repository:tag`) and digests (`repository@digest`).
    pub names: Vec<String>,
    /// Its size, with layers that it shares.
    pub bytes: u64,
}

/// What keeps a host well.
pub trait Upkeep: Send + Sync {
    /// How the engine is set up. Costs the engine some work: not to be asked all the time.
    fn details(&self) -> impl Future<Output = Result<EngineDetails, HostError>> + Send;

    /// The names of an image; `None` when the engine does not have it.
    fn image_names(
        &self,
        reference: &str,
    ) -> impl Future<Output = Result<Option<ImageNames>, HostError>> + Send;

    /// Takes an image away unless something uses it; whether it is gone.
    fn remove_image(&self, reference: &str) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// Whether there is a network of exactly this name: an identifier, which the engine takes in place of one, is none.
    fn has_network(&self, name: &str) -> impl Future<Output = Result<bool, HostError>> + Send;

    /// Whether there is a volume of this name. The engine would make one that a container asks for.
    fn has_volume(&self, name: &str) -> impl Future<Output = Result<bool, HostError>> + Send;
}
