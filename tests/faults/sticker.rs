//! I22: what is in a sticker's place is always a whole sticker. Read over and over while a case runs.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use sealift_agent::stickers::Stickers;
use sealift_common::sticker::Sticker;
use sealift_e2e::real::PROJECT;

const PAUSE: Duration = Duration::from_millis(2);

/// A reader of one sticker file.
pub struct Watch {
    over: Arc<AtomicBool>,
    broken: Arc<AtomicU64>,
    reader: thread::JoinHandle<()>,
}

impl Watch {
    /// Watches the sticker of a target (`environment/target`).
    pub fn start(state: &Path, target: &str) -> Result<Self> {
        let (environment, target) = target.split_once('/').context("environment/target")?;
        let path = Stickers::new(state).path(&target.parse()?, &environment.parse()?, &PROJECT.parse()?);
        let (over, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (over.clone(), broken.clone());
        let reader = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                // One that cannot be read at all is not there.
                let found = Stickers::read(&path).ok().flatten();
                if found.is_some_and(|bytes| Sticker::from_file(&bytes).is_err()) {
                    counts.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(PAUSE);
            }
        });
        Ok(Self { over, broken, reader })
    }

    /// How often it was not whole.
    pub fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }

    /// Ends the reading.
    pub fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        // A reader that panicked has nothing more to say.
        let _ = self.reader.join();
    }
}
