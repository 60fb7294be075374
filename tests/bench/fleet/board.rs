//! What the agents of one worker share: what is wanted of them, and what they counted.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::member::{Place, micros};

/// Handshakes at the same time in one worker.
const DIALS: usize = 32;
/// Most errors that are told.
const ERRORS: usize = 5;

/// What is wanted of the agents of a worker.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Where they are to be; nowhere when there is none.
    pub place: Option<Arc<Place>>,
    /// How many of each group, by the group's number.
    pub counts: [usize; 2],
}

/// Counters of a worker.
#[derive(Debug)]
pub struct Board {
    /// Who may connect.
    pub dials: Semaphore,
    connected: AtomicUsize,
    orders: AtomicUsize,
    order_bytes: AtomicUsize,
    beats: AtomicU64,
    lost: AtomicU64,
    latencies: Mutex<Vec<u64>>,
    errors: Mutex<Vec<String>>,
}

/// A connected agent; dropping it counts it out.
pub struct Seat(Arc<Board>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// Nothing was counted yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            dials: Semaphore::new(DIALS),
            connected: AtomicUsize::new(0),
            orders: AtomicUsize::new(0),
            order_bytes: AtomicUsize::new(0),
            beats: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            latencies: Mutex::default(),
            errors: Mutex::default(),
        })
    }

    /// An agent has its session.
    pub fn sit(self: &Arc<Self>) -> Seat {
        self.connected.fetch_add(1, Ordering::Relaxed);
        Seat(Arc::clone(self))
    }

    /// A heartbeat was sent.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// An order (or what the bare server sends in its place) that was made at `made` arrived at `heard`.
    pub fn received(&self, heard: DateTime<Utc>, made: DateTime<Utc>, bytes: usize) {
        self.orders.fetch_add(1, Ordering::Relaxed);
        self.order_bytes.fetch_max(bytes, Ordering::Relaxed);
        lock(&self.latencies).push(micros(made, heard));
    }

    /// A session ended unasked.
    pub fn lost(&self, error: &anyhow::Error) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let mut errors = lock(&self.errors);
        if errors.len() < ERRORS {
            errors.push(format!("{error:#}"));
        }
    }

    /// Everything but the latencies.
    pub fn counts(&self) -> Value {
        json!({
            "connected": self.connected.load(Ordering::Relaxed),
            "orders": self.orders.load(Ordering::Relaxed),
            "order_bytes": self.order_bytes.load(Ordering::Relaxed),
            "beats": self.beats.load(Ordering::Relaxed),
            "lost": self.lost.load(Ordering::Relaxed),
            "errors": *lock(&self.errors),
        })
    }

    /// Takes the latencies since the last call, in microseconds, and forgets the errors.
    pub fn take(&self) -> Value {
        lock(&self.errors).clear();
        self.lost.store(0, Ordering::Relaxed);
        json!({ "latencies": std::mem::take(&mut *lock(&self.latencies)) })
    }
}
