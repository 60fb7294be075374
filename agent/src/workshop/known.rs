//! What is known of an attempt before anything is done for it.

use sealift_common::{digest::Digest, order::Order};
use sealift_proto::agent::v1::report::Event;

use super::{Shared, check};
use crate::{
    host::Host,
    journal::{AttemptKey, JournalError},
};

/// What is known of an attempt that is offered and not under way.
pub(super) enum Known {
    /// Nothing, and the order is good as far as the host's policy allows it.
    New(Box<Order>),
    /// Nothing, and the order is not good.
    Refused(Box<check::Refusal>),
    /// It was answered, and the orchestrator no longer knows or never heard.
    Answered(Event),
    /// It was answered, and the answer still waits to be sent.
    Waiting,
    /// An order was taken for it before.
    Taken,
}

/// Looks an attempt up, and checks its order if there is nothing. Blocks.
pub(super) fn look<H: Host>(
    shared: &Shared<H>,
    key: AttemptKey,
    digest: Digest,
    envelope: &[u8],
) -> Result<Known, JournalError> {
    let journal = &shared.journal;
    if let Some(answer) = journal.answer(key)?
        && answer.order == digest
    {
        let waiting = journal.reports(answer.report.saturating_sub(1), 1)?;
        let waits = waiting
            .first()
            .is_some_and(|report| report.number == answer.report);
        return Ok(if waits {
            Known::Waiting
        } else {
            Known::Answered(answer.finished)
        });
    }
    if journal.order(key)?.is_some() {
        return Ok(Known::Taken);
    }
    Ok(match check::check(shared, key, envelope)? {
        Ok(order) => Known::New(Box::new(order)),
        Err(refusal) => Known::Refused(Box::new(refusal)),
    })
}
