//! Denials of callers without identity: anyone can cause them, as many as they like, so they are recorded once per method and
//! minute, with how many there were. A flood of calls must not become a flood of commits on the store's one writer.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// At most one event per method in this time.
pub(super) const WINDOW: Duration = Duration::from_mins(1);

/// What methods that do not exist are counted under: their names are the caller's to choose.
pub(super) const UNKNOWN: &str = "unknown method";

/// How many refused calls are not recorded yet, by method. As many entries as there are methods, [`UNKNOWN`], and one for each
/// join token whose secret was shown and refused.
#[derive(Debug, Default)]
pub(super) struct Denials(Mutex<HashMap<String, u64>>);

impl Denials {
    /// Whether this one is to be recorded itself and opens a window; otherwise it is counted.
    pub(super) fn is_first(&self, method: &str) -> bool {
        let mut open = self.open();
        if let Some(more) = open.get_mut(method) {
            *more = more.saturating_add(1);
            return false;
        }
        open.insert(method.to_owned(), 0);
        true
    }

    /// At the end of a window: how many there were beside the recorded one. `None` ends the window, anything else begins the
    /// next one.
    pub(super) fn more(&self, method: &str) -> Option<u64> {
        let mut open = self.open();
        match open.get_mut(method).map(std::mem::take) {
            Some(more) if more > 0 => Some(more),
            _ => {
                open.remove(method);
                None
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r13_a_flood_of_denials_is_one_event_per_method_and_window() {
        let denials = Denials::default();
        assert!(denials.is_first("/a"));
        assert!(!denials.is_first("/a"));
        assert!(!denials.is_first("/a"));
        assert!(denials.is_first("/b"));
        assert_eq!(denials.more("/a"), Some(2));
        // The event of that count is the one of the next window.
        assert!(!denials.is_first("/a"));
        assert_eq!(denials.more("/a"), Some(1));
        assert_eq!(denials.more("/a"), None);
        assert!(denials.is_first("/a"));
        assert_eq!(denials.more("/b"), None);
    }
}
