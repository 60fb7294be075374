//! Prune: which images the agent takes away from the host, by the policy of whoever runs the host (section `[prune]` of the
//! settings).

/// When images are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// `prune.min_free_mib`, in bytes: less free space on the engine's disk than this is low.
    pub min_free: u64,
}

impl Default for PrunePolicy {
    fn default() -> Self {
        Self {
            min_free: 2 * 1024 * 1024 * 1024,
        }
    }
}
