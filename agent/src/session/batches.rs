//! Batches: what goes up in pieces. The reports that wait for their acknowledgement, and lines of logs in bounded messages.

use std::{collections::BTreeMap, time::Duration};

use sealift_common::id::TaskId;
use sealift_proto::{
    agent::v1::{LogBatch, LogLine, Report, report::Event},
    convert,
};
use tokio::time::Instant;

use crate::work::LogRecord;

/// Most log lines and bytes in one message.
pub(super) const LOG_LINES: usize = 256;
const LOG_BYTES: usize = 512 * 1024;

/// A batch of reports that is not acknowledged yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    /// Number of its last report.
    pub last: u64,
    /// Until when it has to be acknowledged.
    pub by: Instant,
    /// Number of its first report that an order was accepted.
    pub accepted: Option<u64>,
    /// Number of its first report that an attempt ended.
    pub finished: Option<u64>,
}

impl InFlight {
    /// What is on its way from now on; nothing when there is nothing to send.
    pub fn of(reports: &[Report], by: Instant) -> Option<Self> {
        let first = |wanted: fn(&Event) -> bool| {
            let mut fitting = reports
                .iter()
                .filter(|report| report.event.as_ref().is_some_and(wanted));
            fitting.next().map(|report| report.number)
        };
        Some(Self {
            last: reports.last()?.number,
            by,
            accepted: first(|event| matches!(event, Event::Accepted(_))),
            finished: first(|event| matches!(event, Event::Finished(_))),
        })
    }
}

/// How long a connection may be broken before that shows.
const DOUBT: Duration = Duration::from_mins(2);

/// Attempts of which lines were sent: nobody acknowledges those, so the last of them are in doubt when the connection breaks.
#[derive(Debug, Default)]
pub(super) struct Sent(BTreeMap<(TaskId, u32), Instant>);

impl Sent {
    /// These are on their way.
    pub fn note(&mut self, lines: &[LogRecord]) {
        let now = Instant::now();
        self.0.retain(|_, at| now.duration_since(*at) < DOUBT);
        self.0
            .extend(lines.iter().map(|line| ((line.task_id, line.attempt), now)));
    }

    /// The attempts of which lines were sent lately.
    pub fn in_doubt(&self) -> impl Iterator<Item = (TaskId, u32)> {
        let late = self.0.iter().filter(|(_, at)| at.elapsed() < DOUBT);
        late.map(|(attempt, _)| *attempt)
    }
}

/// Lines by task and attempt, in bounded messages, each task's in order.
pub(super) fn log_batches(lines: impl Iterator<Item = LogRecord>) -> Vec<LogBatch> {
    let mut open: BTreeMap<(TaskId, u32), (usize, LogBatch)> = BTreeMap::new();
    let mut batches = Vec::new();
    for line in lines {
        let (bytes, batch) = open.entry((line.task_id, line.attempt)).or_insert_with(|| {
            let batch = LogBatch {
                task_id: line.task_id.to_string(),
                attempt: line.attempt,
                lines: Vec::new(),
            };
            (0, batch)
        });
        if *bytes + line.text.len() > LOG_BYTES && !batch.lines.is_empty() {
            let full = LogBatch {
                lines: std::mem::take(&mut batch.lines),
                ..batch.clone()
            };
            batches.push(full);
            *bytes = 0;
        }
        *bytes += line.text.len();
        batch.lines.push(LogLine {
            seq: line.seq,
            source: line.source,
            text: line.text,
            time: Some(convert::timestamp(line.at)),
            truncated: line.truncated,
        });
    }
    batches.extend(open.into_values().map(|(_, batch)| batch));
    batches
}
