//! Outbox: reports that the orchestrator has not acknowledged yet. In the journal's file, so that a report and the state that it
//! tells of are written together.

use sealift_proto::agent::v1::Report;
use tokio::sync::watch;

use crate::journal::{Journal, JournalError};

/// Durable news for the orchestrator, numbered from 1 without gap.
#[derive(Clone)]
pub struct Outbox {
    journal: Journal,
}

impl Outbox {
    /// The outbox in `journal`.
    pub fn new(journal: Journal) -> Self {
        Self { journal }
    }

    /// At most `most` reports above `after`, in order.
    pub fn pending(&self, after: u64, most: usize) -> Result<Vec<Report>, JournalError> {
        self.journal.reports(after, most)
    }

    /// Drops the reports up to `number`.
    pub fn acknowledge(&self, number: u64) -> Result<(), JournalError> {
        self.journal.acknowledge(number)
    }

    /// Makes `number` the last one used.
    pub fn skip_to(&self, number: u64) -> Result<(), JournalError> {
        self.journal.skip_reports(number)
    }

    /// Changes whenever reports were added: the next number.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.journal.tip()
    }
}
