//! Attempts that are being carried out now.

use std::sync::Arc;

use sealift_common::{digest::Digest, id::TargetId};
use tokio_util::sync::CancellationToken;

use super::{Shared, lock};
use crate::{journal::AttemptKey, logs::Gap};

/// One of them.
pub(super) struct Active {
    pub(super) target: TargetId,
    pub(super) order: Digest,
    pub(super) stop: CancellationToken,
    pub(super) gap: Gap,
}

/// Takes the entry of an attempt away when nothing carries it out any more, however that came about.
pub(super) struct ActiveGuard<H> {
    pub(super) shared: Arc<Shared<H>>,
    pub(super) key: AttemptKey,
}

impl<H> Drop for ActiveGuard<H> {
    fn drop(&mut self) {
        lock(&self.shared.active).remove(&self.key);
        // Whoever should have taken the turn that was kept for it has not.
        drop(self.shared.program.kept_turn(self.key));
    }
}
