//! Brings an image to the host by digest, whoever needs it.

use std::{collections::BTreeMap, time::Duration};

use sealift_common::{
    failure::{Failure, FailureCode},
    manifest::PinnedImage,
};
use tokio::{sync::mpsc, time::Instant};

use super::patiently;
use crate::{
    host::{Host, LocalImage},
    kill,
    logs::AttemptLog,
    prune,
    workshop::Shared,
};

/// Lines that wait between engine and log.
const LINES: usize = 64;
/// Layers whose state is remembered; an image has at most 127.
const LAYERS: usize = 256;

/// What was said of each layer of an image: an engine repeats "Downloading" many times a second, of several layers in turn.
#[derive(Default)]
struct Progress {
    said: BTreeMap<String, String>,
}

impl Progress {
    /// Whether a line says something else of its layer than the last one.
    fn is_news(&mut self, line: &str) -> bool {
        let (layer, state) = line.split_once(": ").unwrap_or(("", line));
        if self.said.get(layer).is_some_and(|said| said == state) {
            return false;
        }
        if self.said.len() >= LAYERS {
            self.said.clear();
        }
        self.said.insert(layer.to_owned(), state.to_owned());
        true
    }
}

/// Brings one image to the host unless it is there, and compares. Answers also whether it was pulled.
pub(super) async fn bring<H: Host>(
    shared: &Shared<H>,
    log: &AttemptLog,
    image: &PinnedImage,
    platform: &str,
    patience: Duration,
    deadline: Instant,
) -> Result<(LocalImage, bool), Failure> {
    let (host, reference) = (&shared.host, image.pull_reference());
    prune::claim(shared, &reference).await;
    let mut there = patiently(patience, || host.image(&reference)).await?;
    let missing = there
        .as_ref()
        .is_none_or(|local| !local.digests.contains(&image.digest));
    if missing {
        log.say(format!("pulling {reference}"));
        let (progress, lines) = mpsc::channel(LINES);
        let left = deadline.saturating_duration_since(Instant::now());
        let pull = async {
            let progress = progress;
            host.pull(image, &progress, left).await
        };
        let (result, ()) = tokio::join!(pull, tell_progress(log, lines));
        result?;
        prune::pulled(shared, &reference).await;
        there = patiently(patience, || host.image(&reference)).await?;
    }
    kill::at("pull_done");
    let Some(local) = there else {
        let summary = format!("{reference} was pulled, but the engine does not have it under that digest");
        return Err(Failure::new(FailureCode::DigestMismatch, summary));
    };
    if !local.digests.contains(&image.digest) {
        let summary = format!("{reference} was ordered, the engine has {:?}", local.digests);
        return Err(Failure::new(FailureCode::DigestMismatch, summary));
    }
    let known = |text: &str| !text.starts_with('/') && !text.ends_with('/');
    if known(platform) && known(&local.platform) && local.platform != platform {
        let summary = format!(
            "{reference} is built for {}, the host is {platform}",
            local.platform
        );
        return Err(Failure::new(FailureCode::PlatformMismatch, summary));
    }
    Ok((local, missing))
}

async fn tell_progress(log: &AttemptLog, mut lines: mpsc::Receiver<String>) {
    let mut progress = Progress::default();
    while let Some(line) = lines.recv().await {
        if progress.is_news(&line) {
            log.say(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_layers_that_take_turns_is_told_once() {
        let mut progress = Progress::default();
        let lines = [
            "Pulling from x",
            "a: Downloading",
            "b: Downloading",
            "a: Downloading",
            "b: Downloading",
        ];
        let news: Vec<_> = lines.into_iter().filter(|line| progress.is_news(line)).collect();
        assert_eq!(news, ["Pulling from x", "a: Downloading", "b: Downloading"]);
        assert!(progress.is_news("a: Pull complete"));
        for layer in 0..10 * LAYERS {
            assert!(progress.is_news(&format!("{layer}: Waiting")));
            assert!(progress.said.len() <= LAYERS);
        }
    }
}
