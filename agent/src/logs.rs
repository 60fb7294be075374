//! Log of an attempt: the agent's own lines and the output of its containers since the attempt began, bounded, on the way to the
//! orchestrator. What does not fit is dropped, a marked line says so, and so does the packet; nothing waits for a reader. The same goes
//! for what may be lost with a connection that breaks, as far as the attempt is not over by then.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use chrono::{DateTime, Utc};
use sealift_common::{bounds, digest::Digest, name::ServiceName, time::Clock};
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
/// Numbers from here on are those of copied lines; below are those of the agent's own.
const COPIED: u64 = 1 << 62;
/// Bits of a number that count the lines of one container.
const LINE_BITS: u32 = 20;
// Whatever a container says beyond that is not sent any more.
const _: () = assert!(bounds::ATTEMPT_LOG_BYTES / bounds::LOG_LINE_OVERHEAD < 1 << LINE_BITS);

/// What is kept of a hook's output beside the log.
#[derive(Debug, Default)]
pub struct Tail {
    /// The last lines.
    pub lines: VecDeque<String>,
    /// Whether it said more than the log has room for.
    pub is_truncated: bool,
}

/// Whether lines of an attempt may be lost on their way to the orchestrator: nobody acknowledges them. Told with its next line.
#[derive(Debug, Clone, Default)]
pub struct Gap(Arc<AtomicBool>);

impl Gap {
    /// Lines that were sent may not have arrived.
    pub fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The log of one attempt. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AttemptLog {
    key: AttemptKey,
    began_at: DateTime<Utc>,
    clock: Arc<dyn Clock>,
    sender: mpsc::Sender<LogRecord>,
    counters: Arc<Counters>,
    gap: Gap,
}

#[derive(Debug, Default)]
struct Counters {
    /// Number of the last line of each container that was told.
    told: Mutex<BTreeMap<String, u64>>,
    seq: AtomicU64,
    bytes: AtomicUsize,
    dropped: AtomicUsize,
    is_truncated: AtomicBool,
}

impl AttemptLog {
    /// The log of `key`, an attempt that began then, sent through `sender`.
    pub fn new(
        key: AttemptKey,
        began_at: DateTime<Utc>,
        clock: Arc<dyn Clock>,
        sender: mpsc::Sender<LogRecord>,
        gap: Gap,
    ) -> Self {
        // Whoever goes on after a restart must not use a number again: it counts on from the microseconds that have passed.
        let passed = (clock.now() - began_at)
            .num_microseconds()
            .unwrap_or(i64::MAX / 2);
        let counters = Counters {
            seq: AtomicU64::new(u64::try_from(passed).unwrap_or(0)),
            ..Counters::default()
        };
        Self {
            key,
            began_at,
            clock,
            sender,
            counters: Arc::new(counters),
            gap,
        }
    }

    /// Whether something was left out, as far as this agent has seen since it was started.
    pub fn is_truncated(&self) -> bool {
        self.counters.is_truncated.load(Ordering::Relaxed) || self.gap.0.load(Ordering::Relaxed)
    }

    /// Adds a line of the agent.
    pub fn say(&self, text: impl Into<String>) {
        // Its number is the lower one.
        self.mark_gap();
        let number = self.next_number();
        self.add(AGENT, number, text.into(), false);
    }

    fn next_number(&self) -> u64 {
        self.counters.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Says that lines may be lost, unless the log is full.
    fn mark_gap(&self) {
        let is_full = self.counters.bytes.load(Ordering::Relaxed) >= bounds::ATTEMPT_LOG_BYTES;
        if is_full || !self.gap.0.swap(false, Ordering::Relaxed) {
            return;
        }
        self.counters.is_truncated.store(true, Ordering::Relaxed);
        let text = "lines before this one may be missing: the connection to the orchestrator broke";
        if !self.send(AGENT, self.next_number(), text.to_owned(), true) {
            self.gap.open();
        }
    }

    fn add(&self, source: &str, mut number: u64, mut text: String, mut is_marked: bool) {
        if text.len() > bounds::LOG_LINE_BYTES {
            let end = text.floor_char_boundary(bounds::LOG_LINE_BYTES);
            text.truncate(end);
            is_marked = true;
        }
        let counts = text.len() + bounds::LOG_LINE_OVERHEAD;
        let before = self.counters.bytes.fetch_add(counts, Ordering::Relaxed);
        if before >= bounds::ATTEMPT_LOG_BYTES {
            return;
        }
        if before + counts >= bounds::ATTEMPT_LOG_BYTES {
            "the log of this attempt is longer than 1 MiB; the rest is left out".clone_into(&mut text);
            is_marked = true;
            // Not that of the line: before a restart the line itself may have been sent.
            number = self.next_number();
        }
        self.mark_gap();
        let dropped = self.counters.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let text = format!("{dropped} lines were left out here");
            if !self.send(AGENT, self.next_number(), text, true) {
                self.counters.dropped.fetch_add(dropped, Ordering::Relaxed);
            }
        }
        if is_marked {
            self.counters.is_truncated.store(true, Ordering::Relaxed);
        }
        if !self.send(source, number, text, is_marked) {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            self.counters.is_truncated.store(true, Ordering::Relaxed);
        }
    }

    /// Copies what a container has said since the attempt began and says until it ends.
    pub async fn follow<H: Host>(&self, host: &H, service: &ServiceName, id: &str) {
        let (sender, mut lines) = mpsc::channel(FOLLOWED);
        let copy = async {
            let mut numbers = Numbers::of(id);
            while let Some(line) = lines.recv().await {
                let number = numbers.next();
                if self.is_news(id, number) {
                    self.add(service.as_str(), number, line, false);
                }
            }
        };
        // A log that breaks off is no reason to fail.
        let (_, ()) = tokio::join!(host.logs(id, self.began_at, sender), copy);
    }

    /// Whether a line of a container was not told yet: one that is followed again says everything again.
    fn is_news(&self, id: &str, number: u64) -> bool {
        let mut told = self.counters.told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.entry(id.to_owned()).or_default();
        let is_news = number > *last;
        *last = number.max(*last);
        is_news
    }

    /// Copies the output of a hook until it ends, as far as it has room, and its last lines into `tail`. What a hook says beyond its
    /// bound is read all the same: one that nobody listened to would wait.
    pub async fn follow_hook<H: Host>(&self, host: &H, hook: &ServiceName, id: &str, tail: &Mutex<Tail>) {
        let source = format!("hook/{hook}");
        let (sender, mut lines) = mpsc::channel::<String>(FOLLOWED);
        let copy = async {
            let mut bytes = 0;
            let mut numbers = Numbers::of(id);
            while let Some(line) = lines.recv().await {
                let number = numbers.next();
                let before = bytes;
                bytes += line.len() + bounds::LOG_LINE_OVERHEAD;
                if bytes <= bounds::HOOK_LOG_BYTES {
                    self.add(&source, number, line.clone(), false);
                } else if before <= bounds::HOOK_LOG_BYTES {
                    let most = bounds::HOOK_LOG_BYTES / 1024;
                    let text = format!("this hook has said more than {most} KiB; the rest is left out");
                    self.add(&source, number, text, true);
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
        let (_, ()) = tokio::join!(host.logs(id, self.began_at, sender), copy);
    }

    fn send(&self, source: &str, seq: u64, text: String, truncated: bool) -> bool {
        let record = LogRecord {
            task_id: self.key.task,
            attempt: self.key.attempt,
            seq,
            source: source.to_owned(),
            text,
            truncated,
            at: self.clock.now(),
        };
        self.sender.try_send(record).is_ok()
    }
}

/// Numbers of the lines of one container: the same for the same line however often it is read, so that what an agent tells again
/// after a restart is known to whoever has it already.
struct Numbers(u64);

impl Numbers {
    /// Of the container `id`.
    fn of(id: &str) -> Self {
        let mut drawn = [0; 8];
        drawn.copy_from_slice(&Digest::of(id.as_bytes()).as_bytes()[..8]);
        // What is left below the first two bits and above those of the line.
        let drawn = u64::from_be_bytes(drawn) >> (2 + LINE_BITS);
        Self(COPIED | drawn << LINE_BITS)
    }

    fn next(&mut self) -> u64 {
        let most = (1 << LINE_BITS) - 1;
        if self.0 & most < most {
            self.0 += 1;
        }
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn copy(log: &AttemptLog, lines: impl IntoIterator<Item = String>) {
        let mut numbers = Numbers::of("one");
        for line in lines {
            log.add("web", numbers.next(), line, false);
        }
    }

    fn log(began_at: DateTime<Utc>, room: usize) -> (AttemptLog, mpsc::Receiver<LogRecord>) {
        let (sender, receiver) = mpsc::channel(room);
        let clock = Arc::new(samples::clock());
        (
            AttemptLog::new(samples::key(1), began_at, clock, sender, Gap::default()),
            receiver,
        )
    }

    #[tokio::test]
    async fn f28_a_flood_is_bounded_and_the_gap_is_marked() {
        let (log, mut receiver) = log(samples::clock().now(), 2);
        copy(&log, (0..10).map(|number| format!("line {number}")));
        assert!(log.is_truncated());
        let mut next = async || {
            let record = receiver.recv().await.unwrap();
            (record.text, record.truncated)
        };
        assert_eq!(next().await, ("line 0".to_owned(), false));
        assert_eq!(next().await, ("line 1".to_owned(), false));
        copy(&log, ["x".repeat(bounds::LOG_LINE_BYTES * 2)]);
        assert_eq!(next().await, ("8 lines were left out here".to_owned(), true));
        let (text, is_marked) = next().await;
        assert!(text.len() == bounds::LOG_LINE_BYTES && is_marked);
    }

    #[tokio::test]
    async fn lines_that_may_be_lost_on_their_way_are_marked_and_the_packet_says_so() {
        let (log, mut receiver) = log(samples::clock().now(), 20);
        log.say("one");
        assert!(!log.is_truncated());
        log.gap.open();
        assert!(log.is_truncated(), "also when nothing is said any more");
        log.say("two");
        log.say("three");
        assert!(log.is_truncated());
        drop(log);
        let mut said = Vec::new();
        while let Some(record) = receiver.recv().await {
            said.push((record.text, record.truncated, record.seq));
        }
        let marks: Vec<bool> = said.iter().map(|(_, is_marked, _)| *is_marked).collect();
        assert_eq!(marks, [false, true, false, false], "{said:?}");
        assert!(said[1].0.contains("may be missing"));
        assert!(
            said.windows(2).all(|two| two[0].2 < two[1].2),
            "each has a number of its own"
        );
    }

    #[test]
    fn a_container_that_is_followed_again_is_not_told_again() {
        let (log, _receiver) = log(samples::clock().now(), 20);
        assert!(log.is_news("a", 7) && log.is_news("a", 8) && log.is_news("b", 7));
        assert!(!log.is_news("a", 7) && !log.is_news("a", 8) && log.is_news("a", 9));
    }

    #[tokio::test]
    async fn f28_a_full_log_ends_with_a_marked_line() {
        let (log, mut receiver) = log(samples::clock().now(), 20_000);
        let line = "x".repeat(1024);
        copy(&log, std::iter::repeat_n(line, 2000));
        drop(log);
        let mut lines = Vec::new();
        while let Some(record) = receiver.recv().await {
            lines.push(record);
        }
        let bytes: usize = lines
            .iter()
            .map(|line| line.text.len() + bounds::LOG_LINE_OVERHEAD)
            .sum();
        assert!(bytes <= bounds::ATTEMPT_LOG_BYTES, "{bytes}");
        let (last, rest) = lines.split_last().unwrap();
        assert!(last.truncated && last.text.contains("longer than 1 MiB"));
        assert!(rest.iter().all(|line| !line.truncated));
    }

    #[tokio::test]
    async fn a_restarted_agent_uses_no_number_again() {
        let now = samples::clock().now();
        let (fresh, mut first) = log(now, 2);
        fresh.say("a");
        let (resumed, mut second) = log(now - chrono::TimeDelta::seconds(1), 2);
        resumed.say("b");
        assert_eq!(first.recv().await.unwrap().seq, 1);
        assert_eq!(second.recv().await.unwrap().seq, 1_000_001);
    }

    /// What a container has said is told again by a restarted agent, under the numbers that it had; what it says later is new.
    #[tokio::test]
    async fn a_restarted_agent_tells_the_same_lines_under_the_same_numbers() {
        let now = samples::clock().now();
        let lines = |count: usize| (0..count).map(|number| format!("line {number}"));
        let mut told = Vec::new();
        for (later, count) in [(0, 3), (5, 5)] {
            let (log, mut receiver) = log(now - chrono::TimeDelta::seconds(later), 20);
            log.say("mine");
            copy(&log, lines(count));
            drop(log);
            let mut said = Vec::new();
            while let Some(record) = receiver.recv().await {
                said.push((record.seq, record.text));
            }
            told.push(said);
        }
        let (before, after) = (&told[0], &told[1]);
        assert_ne!(before[0].0, after[0].0, "its own lines are new");
        assert_eq!(before[1..], after[1..4]);
        let numbers: std::collections::BTreeSet<_> = before.iter().chain(after).map(|(seq, _)| seq).collect();
        assert_eq!(numbers.len(), 2 + 5);
        assert!(before[0].0 < COPIED && before[1..].iter().all(|(seq, _)| *seq > COPIED));
    }

    #[test]
    fn containers_have_numbers_of_their_own_that_every_database_holds() {
        let firsts: Vec<u64> = (0..1_000)
            .map(|id| Numbers::of(&format!("c{id}")).next())
            .collect();
        let distinct: std::collections::BTreeSet<_> = firsts.iter().map(|first| first >> LINE_BITS).collect();
        assert_eq!(distinct.len(), firsts.len());
        assert!(firsts.iter().all(|first| i64::try_from(*first).is_ok()));
        let mut numbers = Numbers::of("c");
        let last = (0..3 << LINE_BITS).map(|_| numbers.next()).last();
        assert_eq!(
            last.map(|last| last >> LINE_BITS),
            Some(Numbers::of("c").0 >> LINE_BITS)
        );
    }
}
