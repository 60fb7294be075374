//! Outbox: reports that the orchestrator has not acknowledged yet. In the journal's file, so that a report and the state that it
//! tells of are written together.

use sealift_proto::agent::v1::Report;
use tokio::sync::watch;

use crate::journal::{Journal, JournalError, ReportDraft, Write};

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

    /// Appends a report and returns when it is on the disk.
    pub async fn append(&self, draft: ReportDraft) -> Result<(), JournalError> {
        self.journal.commit(vec![Write::Report(draft)]).await
    }

    /// Number that the next report gets. A journal that cannot be read says 1, which tells the orchestrator that this agent's
    /// state cannot be trusted.
    pub fn next_number(&self) -> u64 {
        self.journal.next_report().unwrap_or(1)
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
