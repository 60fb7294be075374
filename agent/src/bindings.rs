//! Bindings: the targets that this agent serves, as its identity on the disk names them. `sealift-agent join --add-target` adds to
//! them while the agent runs, so they are read again now and then, and before an order for an unknown target is refused.

use std::sync::{Arc, PoisonError, RwLock};

use sealift_common::{id::TargetId, order::TargetBinding};

use crate::identity::IdentityStore;

/// The targets, shared.
#[derive(Debug)]
pub struct Bindings {
    store: Option<IdentityStore>,
    known: RwLock<Arc<[TargetBinding]>>,
}

impl Bindings {
    /// These and no others, for ever.
    pub fn fixed(bindings: Vec<TargetBinding>) -> Self {
        Self {
            store: None,
            known: RwLock::new(bindings.into()),
        }
    }

    /// Those of the identity in `store`.
    pub fn of(store: IdentityStore, bindings: Vec<TargetBinding>) -> Self {
        Self {
            store: Some(store),
            ..Self::fixed(bindings)
        }
    }

    /// All that are known now.
    pub fn all(&self) -> Arc<[TargetBinding]> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The binding of a target. Blocks on the disk, shortly, when it is not known yet.
    pub fn find(&self, target: TargetId) -> Option<TargetBinding> {
        let known = |all: &[TargetBinding]| all.iter().find(|binding| binding.target_id == target).cloned();
        known(&self.all()).or_else(|| {
            self.reload();
            known(&self.all())
        })
    }

    /// Reads the identity again. Blocks on the disk, shortly.
    pub fn reload(&self) {
        let Some(store) = &self.store else { return };
        match store.identity() {
            Ok(Some(identity)) if *identity.bindings != *self.all() => {
                tracing::info!(
                    targets = identity.bindings.len(),
                    "serving other targets from now on"
                );
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = identity.bindings.into();
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the identity cannot be read again"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn fixed_bindings_know_only_themselves() {
        let bindings = Bindings::fixed(vec![samples::binding()]);
        assert_eq!(bindings.find(samples::target_id()), Some(samples::binding()));
        assert_eq!(bindings.find(samples::id(77)), None);
        assert_eq!(bindings.all().len(), 1);
    }
}
