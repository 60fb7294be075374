//! Connection: session after session, each after a back-off, each with the newest certificate; renewal runs beside them. Work on
//! the host goes on whatever happens here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sealift_common::{bounds::MESSAGE_BYTES, error::Reason, time::Clock};
use sealift_proto::agent::v1::{RenewCertificateRequest, gateway_service_client::GatewayServiceClient};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};

use crate::{
    backoff,
    credentials::Credentials,
    identity::{self, Credential, IdentityError, OrchestratorEndpoint, connect_mtls},
    session::{Ended, Memory, Session, SessionError},
    work::{Feeds, Work},
};

/// How often the clock is looked at for the renewal.
const LOOK: Duration = Duration::from_secs(30);
/// How long a renewal may take.
const RENEWAL: Duration = Duration::from_secs(30);
/// Wait after another session of the same identity took over: two copies of one identity must not push each other out in turn.
const REPLACED: u32 = 16;

/// A source of random numbers from 0 up to 1.
pub type Dice = Arc<dyn Fn() -> f64 + Send + Sync>;

/// What whoever supervises the process may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The journal is read and what it left unfinished goes on.
    Ready,
    /// The orchestrator has welcomed this agent.
    Connected,
    /// The orchestrator has answered a heartbeat.
    Answered,
    /// There is no session; the next one is tried by itself.
    Away,
}

/// Where notices go.
pub type Notices = Arc<dyn Fn(Notice) + Send + Sync>;

/// How the connection ended for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// This process was asked to stop.
    Stopped,
    /// Another program is to take this process's place.
    HandedOver,
    /// The orchestrator does not want this agent any more.
    Dismissed {
        /// Its reason.
        reason: String,
    },
}

/// The line to one orchestrator.
pub struct Line {
    /// Where it is.
    pub endpoint: OrchestratorEndpoint,
    /// Who this agent is.
    pub credentials: Arc<Credentials>,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub dice: Dice,
    /// Told whether there is a session.
    pub notices: Notices,
    /// Ends everything.
    pub stop: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Line {
    /// Keeps the agent connected until it is stopped or dismissed.
    pub async fn run<W: Work>(&self, work: &W, feeds: &mut Feeds) -> Finish {
        let mut memory = Memory::default();
        let mut failures = 0;
        loop {
            let credential = self.credentials.newest();
            let ended = self.session(work, feeds, &mut memory, &credential).await;
            if memory.welcomed {
                failures = 0;
            }
            match ended {
                Ok(Ended::Stopped) => return Finish::Stopped,
                Ok(Ended::Dismissed { reason }) => return Finish::Dismissed { reason },
                Ok(Ended::Renewed) => continue,
                Ok(Ended::Goodbye { reason }) if reason == Reason::SessionReplaced.as_str() => {
                    tracing::error!(
                        "another process uses this agent's identity: stop it, or revoke the agent and enrol anew"
                    );
                    failures = REPLACED;
                }
                Ok(Ended::Goodbye { reason }) => {
                    tracing::info!(reason, "the orchestrator ended the session");
                    failures += 1;
                }
                Err(LineError::Session(error)) if error.is_revocation() => {
                    return Finish::Dismissed {
                        reason: Reason::CertificateRefused.as_str().to_owned(),
                    };
                }
                Err(error) => {
                    self.note(&error, &credential);
                    failures += 1;
                }
            }
            (self.notices)(Notice::Away);
            let wait = backoff::wait(failures, (self.dice)());
            tracing::debug!(?wait, "connecting again");
            tokio::select! {
                () = self.stop.cancelled() => return Finish::Stopped,
                () = sleep(wait) => {}
            }
        }
    }

    async fn session<W: Work>(
        &self,
        work: &W,
        feeds: &mut Feeds,
        memory: &mut Memory,
        credential: &Credential,
    ) -> Result<Ended, LineError> {
        memory.welcomed = false;
        let renewed = self.credentials.renewed();
        let channel = tokio::select! {
            () = self.stop.cancelled() => return Ok(Ended::Stopped),
            channel = connect_mtls(&self.endpoint, &self.credentials.identity().ca_pem, credential) => channel?,
        };
        let welcomed = AtomicBool::new(false);
        let on_welcome = || {
            welcomed.store(true, Ordering::Relaxed);
            (self.notices)(Notice::Connected);
            if let Err(error) = self.credentials.welcomed(credential) {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the new certificate cannot be kept"
                );
            }
        };
        let on_answer = || (self.notices)(Notice::Answered);
        let session = Session {
            work,
            feeds,
            memory,
            clock: &*self.clock,
            dice: &*self.dice,
            stop: &self.stop,
            renewed,
            on_welcome: &on_welcome,
            on_answer: &on_answer,
        };
        tokio::select! {
            ended = Box::pin(session.run(channel.clone())) => Ok(ended?),
            never = self.renew_when_due(channel, credential) => match never {},
        }
    }

    /// Renews the certificate at a random point of 50 to 80 % of its life, with a new key; again and again until it works.
    async fn renew_when_due(&self, channel: Channel, credential: &Credential) -> std::convert::Infallible {
        let due = self.credentials.renew_at(credential, (self.dice)());
        loop {
            let left = (due - self.clock.now()).to_std().unwrap_or_default();
            if left.is_zero() {
                break;
            }
            sleep(left.min(LOOK)).await;
        }
        let mut failures = 0;
        loop {
            match timeout(RENEWAL, self.renew(channel.clone())).await {
                // The session ends with it, and this loop with the session.
                Ok(Ok(())) => tracing::info!("certificate renewed"),
                Ok(Err(error)) => tracing::warn!(error = &*error, "the certificate was not renewed"),
                Err(_) => tracing::warn!("the certificate was not renewed in time"),
            }
            failures += 1;
            sleep(backoff::wait(failures, (self.dice)()) + LOOK).await;
        }
    }

    async fn renew(&self, channel: Channel) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let key = identity::new_key()?;
        let request = RenewCertificateRequest {
            csr_pem: key.csr_pem.clone(),
        };
        let mut client = GatewayServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let answer = client.renew_certificate(request).await?.into_inner();
        self.credentials.stage(
            Credential::new(key.key_pem, answer.certificate_pem)?,
            self.clock.now(),
        )?;
        Ok(())
    }

    /// Says what went wrong, and gives up a new certificate that is refused.
    fn note(&self, error: &LineError, credential: &Credential) {
        let refused = matches!(
            error,
            LineError::Session(SessionError::Call(status))
                if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
        );
        if !refused {
            tracing::warn!(error = error as &dyn std::error::Error, orchestrator = %self.endpoint, "not connected");
            return;
        }
        match self.credentials.refused(credential) {
            Ok(true) => tracing::warn!("the renewed certificate is refused; going on with the one before it"),
            Ok(false) => tracing::error!(
                error = error as &dyn std::error::Error,
                "the orchestrator refuses this agent's certificate: it has expired or was revoked; enrol again \
                 (sealift-agent join) with a new state directory"
            ),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the refused certificate cannot be removed"
                );
            }
        }
    }
}
