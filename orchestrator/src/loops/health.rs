//! How the background loops are: for the status page and the health service.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What is wrong with which loop. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct LoopHealth(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl LoopHealth {
    /// The loop's last activation succeeded.
    pub fn well(&self, name: &'static str) {
        self.lock().remove(name);
    }

    /// The loop's last activation failed.
    pub fn ill(&self, name: &'static str, error: &str) {
        self.lock().insert(name, error.to_owned());
    }

    /// Loops whose last activation failed, with the error; empty when all are well.
    pub fn report(&self) -> Vec<(&'static str, String)> {
        self.lock()
            .iter()
            .map(|(name, error)| (*name, error.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
