//! Log of an attempt: the agent's own lines and the output of the new containers, bounded, on the way to the orchestrator. What
//! does not fit is dropped and a line says so; nothing waits for a reader.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use sealift_common::{bounds, name::ServiceName, time::Clock};
use tokio::sync::mpsc;

use crate::{host::Host, journal::AttemptKey, work::LogRecord};

/// Lines that wait for the session.
pub const QUEUE: usize = 2048;
/// Lines that wait between engine and log.
const FOLLOWED: usize = 64;
/// Lines of a hook that its failure is told with.
const TAIL_LINES: usize = 8;
/// Source of the agent's own lines.
pub const AGENT: &str = "agent";

/// What is kept of a hook's output beside the log.
#[derive(Debug, Default)]
pub struct Tail {
    /// The last lines.
    pub lines: VecDeque<String>,
    /// Whether it said more than the log has room for.
    pub is_truncated: bool,
}

/// The log of one attempt. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AttemptLog {
    key: AttemptKey,
    clock: Arc<dyn Clock>,
    sender: mpsc::Sender<LogRecord>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    seq: AtomicU64,
    bytes: AtomicUsize,
    dropped: AtomicUsize,
}

impl AttemptLog {
    /// The log of `key`, sent through `sender`.
    pub fn new(key: AttemptKey, clock: Arc<dyn Clock>, sender: mpsc::Sender<LogRecord>) -> Self {
        Self {
            key,
            clock,
            sender,
            counters: Arc::default(),
        }
    }

    /// Adds a line of the agent.
    pub fn say(&self, text: impl Into<String>) {
        self.line(AGENT, text.into());
    }

    /// Adds a line of a service.
    pub fn line(&self, source: &str, mut text: String) {
        if text.len() > bounds::LOG_LINE_BYTES {
            let end = text.floor_char_boundary(bounds::LOG_LINE_BYTES);
            text.truncate(end);
        }
        let counts = text.len() + bounds::LOG_LINE_OVERHEAD;
        let before = self.counters.bytes.fetch_add(counts, Ordering::Relaxed);
        if before >= bounds::ATTEMPT_LOG_BYTES {
            return;
        }
        if before + counts >= bounds::ATTEMPT_LOG_BYTES {
            "the log of this attempt is longer than 1 MiB; the rest is left out".clone_into(&mut text);
        }
        let dropped = self.counters.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 && !self.send(AGENT, format!("{dropped} lines were left out here")) {
            self.counters.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        if !self.send(source, text) {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Copies the output of a container until it ends.
    pub async fn follow<H: Host>(&self, host: &H, service: &ServiceName, id: &str) {
        let (sender, mut lines) = mpsc::channel(FOLLOWED);
        let copy = async {
            while let Some(line) = lines.recv().await {
                self.line(service.as_str(), line);
            }
        };
        // A log that breaks off is no reason to fail.
        let (_, ()) = tokio::join!(host.logs(id, sender), copy);
    }

    /// Copies the output of a hook until it ends, as far as it has room, and its last lines into `tail`. What a hook says beyond its
    /// bound is read all the same: one that nobody listened to would wait.
    pub async fn follow_hook<H: Host>(&self, host: &H, hook: &ServiceName, id: &str, tail: &Mutex<Tail>) {
        let source = format!("hook/{hook}");
        let (sender, mut lines) = mpsc::channel::<String>(FOLLOWED);
        let copy = async {
            let mut bytes = 0;
            while let Some(line) = lines.recv().await {
                let before = bytes;
                bytes += line.len() + bounds::LOG_LINE_OVERHEAD;
                if bytes <= bounds::HOOK_LOG_BYTES {
                    self.line(&source, line.clone());
                } else if before <= bounds::HOOK_LOG_BYTES {
                    let most = bounds::HOOK_LOG_BYTES / 1024;
                    self.line(
                        &source,
                        format!("this hook has said more than {most} KiB; the rest is left out"),
                    );
                }
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.is_truncated |= bytes > bounds::HOOK_LOG_BYTES;
                if tail.lines.len() == TAIL_LINES {
                    tail.lines.pop_front();
                }
                tail.lines.push_back(line);
            }
        };
        // A log that breaks off is no reason to fail.
        let (_, ()) = tokio::join!(host.logs(id, sender), copy);
    }

    fn send(&self, source: &str, text: String) -> bool {
        let record = LogRecord {
            task_id: self.key.task,
            attempt: self.key.attempt,
            seq: self.counters.seq.fetch_add(1, Ordering::Relaxed) + 1,
            source: source.to_owned(),
            text,
            at: self.clock.now(),
        };
        self.sender.try_send(record).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[tokio::test]
    async fn a_flood_is_bounded_and_the_gap_is_marked() {
        let (sender, mut receiver) = mpsc::channel(2);
        let log = AttemptLog::new(samples::key(1), Arc::new(samples::clock()), sender);
        for number in 0..10 {
            log.line("web", format!("line {number}"));
        }
        assert_eq!(receiver.recv().await.unwrap().text, "line 0");
        assert_eq!(receiver.recv().await.unwrap().text, "line 1");
        log.line("web", "x".repeat(bounds::LOG_LINE_BYTES * 2));
        assert_eq!(receiver.recv().await.unwrap().text, "8 lines were left out here");
        assert_eq!(receiver.recv().await.unwrap().text.len(), bounds::LOG_LINE_BYTES);
    }
}
