//! What all server streams that watch something share: subscribe first, then read, then read again on each change, so that there
//! is no gap; a sign of life when nothing happens; an end when the caller is revoked or the orchestrator goes down.

use std::time::Duration;

use sealift_common::error::Reason;
use sealift_store::Change;
use tokio::{
    sync::{
        broadcast::{Receiver, error::RecvError},
        mpsc,
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{caller::Caller, state::App, status::ApiError};

/// How long a stream is silent at most.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// How often the store is looked at for what another replica changed.
const LOOK: Duration = Duration::from_secs(2);
/// Shortest time between two messages of a stream that rests.
const REST: Duration = Duration::from_millis(500);
/// Messages that wait for a slow reader; then the stream waits with it, and skips what came between.
pub const BUFFER: usize = 4;

/// Why a watch goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Something may have changed: read again.
    Look,
    /// Nothing was said for a while: say so.
    SignOfLife,
}

/// One live stream.
#[derive(Debug)]
pub struct Watch {
    changes: Receiver<Change>,
    revoked: CancellationToken,
    shutdown: CancellationToken,
    said: Instant,
}

impl Watch {
    /// Subscribes; to be called before the first read.
    pub fn new(app: &App, caller: &Caller) -> Self {
        Self {
            changes: app.db.changes(),
            revoked: app.revocations.watch(caller),
            shutdown: app.shutdown.clone(),
            said: Instant::now(),
        }
    }

    /// Waits until a change that `wants` picks, the next look or the next sign of life. An error ends the stream.
    pub async fn next(&mut self, wants: impl Fn(&Change) -> bool) -> Result<Woken, Status> {
        let life = self.said + SIGN_OF_LIFE;
        let look = Instant::now() + LOOK;
        loop {
            tokio::select! {
                () = self.revoked.cancelled() => return Err(revoked()),
                () = self.shutdown.cancelled() => return Err(shutting_down()),
                () = tokio::time::sleep_until(life) => return Ok(Woken::SignOfLife),
                () = tokio::time::sleep_until(look) => return Ok(Woken::Look),
                change = self.changes.recv() => match change {
                    Ok(change) if !wants(&change) => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => return Ok(Woken::Look),
                    Err(RecvError::Closed) => return Err(shutting_down()),
                },
            }
        }
    }

    /// Sends; an error says that nobody listens any more or that the caller was revoked meanwhile.
    pub async fn send<T>(&mut self, to: &mpsc::Sender<Result<T, Status>>, message: T) -> Result<(), Status> {
        let sent = tokio::select! {
            () = self.revoked.cancelled() => return Err(revoked()),
            () = self.shutdown.cancelled() => return Err(shutting_down()),
            sent = to.send(Ok(message)) => sent,
        };
        self.said = Instant::now();
        sent.map_err(|_| Status::cancelled("the reader is gone"))
    }

    /// Waits until half a second after `begun`: for what changes all the time and is read whole each time.
    pub async fn rest(&self, begun: Instant) {
        tokio::select! {
            () = self.revoked.cancelled() => {}
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep_until(begun + REST) => {}
        }
    }

    /// After a read that took so long: pauses for the same time, so that watching a large job costs at most half of a core's time,
    /// and bursts of changes become one message. Short reads do not pause.
    pub async fn breathe(&self, took: Duration) {
        if took >= Duration::from_millis(5) {
            tokio::select! {
                () = self.revoked.cancelled() => {}
                () = self.shutdown.cancelled() => {}
                () = tokio::time::sleep(took) => {}
            }
        }
    }
}

fn revoked() -> Status {
    ApiError::new(
        Reason::CertificateRefused,
        "the certificate of this stream was revoked",
        "ask an admin for a new one",
    )
    .into()
}

fn shutting_down() -> Status {
    ApiError::new(
        Reason::ShuttingDown,
        "the orchestrator is going down",
        "connect again",
    )
    .retry_after(Duration::from_secs(1))
    .into()
}

/// Runs `serve` beside the call and hands out what it sends. `serve` ends when nobody listens; its error is the stream's last word.
pub fn stream<T, F>(
    app: &App,
    serve: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
) -> tokio_stream::wrappers::ReceiverStream<Result<T, Status>>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BUFFER);
    let serving = serve(sender.clone());
    app.tasks.spawn(async move {
        let result = tokio::select! {
            () = sender.closed() => return,
            result = serving => result,
        };
        if let Err(status) = result {
            // A reader that does not read must not keep this task for ever.
            let _ = tokio::time::timeout(Duration::from_secs(5), sender.send(Err(status))).await;
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}
