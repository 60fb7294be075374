//! Follows a stream of news to its end. A stream that breaks is taken up again, with back-off and jitter, until the orchestrator was
//! away for too long; streams begin with how things are, or where the one before broke off, so nothing is missed.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::{Instant, interval, sleep};
use tonic::{Status, Streaming};

use crate::{
    error::{CliError, Exit},
    progress::Progress,
};

/// How long the orchestrator may be away while somebody waits: a restart or an upgrade is no reason to give up, an outage is.
pub const PATIENCE: Duration = Duration::from_mins(10);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Silence after which a stream counts as broken: the orchestrator gives a sign of life every 15 seconds.
const SILENCE: Duration = Duration::from_mins(1);
/// How often it is looked whether a sign of life is due.
const LOOK: Duration = Duration::from_secs(1);

/// Pauses between tries, without end. They grow, and differ from process to process, so that many CI jobs do not come back in step.
pub fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Opens a stream and gives each of its messages to `news` until that answers. `end` is the answer of a stream that the orchestrator
/// ends in good order; without one, that is a break like any other. Fails as soon as a call is refused, and when nothing was heard
/// for `patience`.
pub async fn follow<M, T>(
    progress: &mut Progress,
    patience: Duration,
    mut open: impl AsyncFnMut() -> Result<Streaming<M>, Status>,
    end: Option<T>,
    mut news: impl FnMut(&mut Progress, M) -> Result<Option<T>, CliError>,
) -> Result<T, CliError> {
    let mut away = Away::new(patience);
    loop {
        let broken = match one_stream(progress, &mut away, &mut open, &mut news).await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => match end {
                Some(answer) => return Ok(answer),
                None => Status::unavailable("the watch ended before what it watches did").into(),
            },
            Err(error) => error,
        };
        let pause = away.pause(Instant::now(), broken)?;
        progress.say(
            "orchestrator",
            &format!("the connection ended, trying again ({})", away.breaks),
        );
        sleep(pause).await;
    }
}

async fn one_stream<M, T>(
    progress: &mut Progress,
    away: &mut Away,
    open: &mut impl AsyncFnMut() -> Result<Streaming<M>, Status>,
    news: &mut impl FnMut(&mut Progress, M) -> Result<Option<T>, CliError>,
) -> Result<Option<T>, CliError> {
    let mut life = interval(LOOK);
    let mut stream = {
        let opened = open();
        tokio::pin!(opened);
        loop {
            tokio::select! {
                stream = &mut opened => break stream?,
                _ = life.tick() => progress.tick(),
            }
        }
    };
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            _ = life.tick() => {
                progress.tick();
                if heard.elapsed() >= SILENCE {
                    return Err(Status::unavailable("the orchestrator says nothing any more").into());
                }
                continue;
            }
        };
        heard = Instant::now();
        let Some(message) = message else { return Ok(None) };
        if away.heard() {
            progress.say("orchestrator", "connected again");
        }
        if let Some(answer) = news(progress, message)? {
            return Ok(Some(answer));
        }
    }
}

/// How long and how often in a row nothing was heard.
pub struct Away {
    patience: Duration,
    since: Option<Instant>,
    breaks: u32,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
}

impl Away {
    /// For an orchestrator that may be away for so long.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            since: None,
            breaks: 0,
            pauses: Box::new(pauses()),
        }
    }

    /// Answers whether nothing was heard before.
    pub fn heard(&mut self) -> bool {
        let was_away = self.breaks > 0;
        *self = Self::new(self.patience);
        was_away
    }

    /// How long to wait before the next try; gives the error back when it is final, or when it was waited for long enough.
    pub fn pause(&mut self, now: Instant, broken: CliError) -> Result<Duration, CliError> {
        let since = *self.since.get_or_insert(now);
        if broken.exit() != Exit::Unreachable || now - since >= self.patience {
            return Err(broken);
        }
        self.breaks += 1;
        Ok(self.pauses.next().unwrap_or(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> CliError {
        Status::unavailable("away").into()
    }

    #[test]
    fn an_orchestrator_is_waited_for_with_growing_pauses_until_a_deadline() {
        let mut away = Away::new(Duration::from_mins(1));
        let begun = Instant::now();
        let (mut now, mut longest) = (begun, Duration::ZERO);
        let error = loop {
            match away.pause(now, unavailable()) {
                Ok(pause) => {
                    longest = longest.max(pause);
                    now += pause;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.exit(), Exit::Unreachable);
        assert!(now - begun >= Duration::from_mins(1));
        assert!(away.breaks < 30, "{}", away.breaks);
        // Jitter adds at most as much again.
        assert!(
            (LONGEST_PAUSE..=LONGEST_PAUSE * 2).contains(&longest),
            "{longest:?}"
        );
        away.heard();
        assert!(
            away.pause(now, unavailable()).is_ok(),
            "the deadline is for each outage"
        );
    }

    #[test]
    fn an_orchestrator_with_too_much_to_do_is_waited_for() {
        let overloaded: CliError = Status::resource_exhausted("try again in a moment").into();
        let mut away = Away::new(PATIENCE);
        assert!(away.pause(Instant::now(), overloaded).is_ok());
    }

    #[test]
    fn a_refusal_is_final() {
        let refused = Status::not_found("there is no such job").into();
        let refused = Away::new(PATIENCE).pause(Instant::now(), refused);
        assert_eq!(refused.unwrap_err().exit(), Exit::Conflict);
    }
}
