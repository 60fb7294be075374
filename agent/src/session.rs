//! Session: one connection's life. Any failure ends it; `connect` starts the next. Reports go up one batch at a time and again
//! until they are acknowledged (R9); what is observed is said once and said anew in the next session; lines of logs are said once.

mod batches;

use std::time::Duration;

use chrono::{DateTime, Utc};
use prost::Message as _;
use sealift_common::{
    bounds::{MESSAGE_BYTES, REPORT_BATCH},
    condition::{Condition, ConditionCode},
    error::{DOMAIN, Reason},
    inventory::{AgentFacts, ClockFacts},
    time::Clock,
};
use sealift_proto::{
    agent::v1::{
        ConnectRequest, Goodbye, Heartbeat, Hello, ReportBatch, Resync, ServerTime, TargetFence, Welcome,
        connect_request::Message as Up, connect_response::Message as Down,
        gateway_service_client::GatewayServiceClient,
    },
    convert::{self, Malformed},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    assignments::{Act, Known, Meaning},
    backoff, clock_offset, kill,
    work::{Feeds, StateError, Work},
};
use batches::{InFlight, LOG_LINES, Sent, log_batches};

/// How long the answer to a heartbeat may take while the link itself is on trial.
const PROOF_ANSWER: Duration = Duration::from_secs(10);
/// How long the orchestrator may take to answer Hello, or to take what we say.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a batch of reports may stay unacknowledged before the connection counts as broken.
const ACKNOWLEDGE: Duration = Duration::from_secs(90);
/// Most bytes of reports in one batch; a single larger report goes alone.
const BATCH_BYTES: usize = 1024 * 1024;
/// Messages that wait for the connection.
const OUTGOING: usize = 8;
/// How often the orchestrator is asked for its time.
const CLOCK_EVERY: Duration = Duration::from_mins(5);
/// The same, and a heartbeat each time, while the link itself is on trial.
const PROOF_EVERY: Duration = Duration::from_secs(1);
/// Bounds on what the orchestrator may ask for.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(10);

/// How a session ended.
#[derive(Debug)]
pub enum Ended {
    /// This process is asked to stop.
    Stopped,
    /// There is a new certificate: connect again with it, now.
    Renewed,
    /// The orchestrator is done with this session; connect again.
    Goodbye {
        /// Its reason.
        reason: String,
    },
    /// The orchestrator does not want this agent any more.
    Dismissed {
        /// Its reason.
        reason: String,
    },
}

/// Why a session broke.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The call failed.
    #[error("the orchestrator answered {:?}: {}", .0.code(), .0.message())]
    Call(Box<Status>),
    /// Something took too long.
    #[error("the orchestrator did not {0} in time")]
    Deadline(&'static str),
    /// The connection is gone.
    #[error("the connection ended")]
    Gone,
    /// The orchestrator said what it must not say.
    #[error("the orchestrator broke the protocol: {0}")]
    Protocol(String),
    /// The agent's own state cannot be read or written.
    #[error("the agent's state cannot be used")]
    State(#[source] StateError),
}

impl SessionError {
    /// Whether the orchestrator says that this agent, not only its certificate, was revoked.
    pub fn is_revocation(&self) -> bool {
        let Self::Call(status) = self else {
            return false;
        };
        status.get_details_error_info().is_some_and(|info| {
            info.domain == DOMAIN
                && info.reason == Reason::CertificateRefused.as_str()
                && info
                    .metadata
                    .get("holder")
                    .is_some_and(|holder| holder == "revoked")
        })
    }
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl From<Malformed> for SessionError {
    fn from(error: Malformed) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// What outlives a session.
#[derive(Debug, Default)]
pub struct Memory {
    /// The state was found to be older than what was acknowledged.
    state_is_old: bool,
    /// The host's clock beside the orchestrator's, as last told.
    clock: Option<ClockFacts>,
    /// Whether the last session was welcomed, so that the next wait is short again.
    pub welcomed: bool,
}

impl Memory {
    /// The workshop's facts with what sessions found out.
    fn facts(&self, mut facts: AgentFacts) -> AgentFacts {
        if self.state_is_old {
            facts.degraded.push(Condition::new(
                ConditionCode::AgentState,
                "state restored from an older copy: look at the host, enrol it again if unsure",
            ));
        }
        facts.clock = self.clock;
        facts.degraded.extend(self.clock.and_then(clock_offset::skew));
        facts
    }

    /// Takes in what a round trip said of the clocks; whether that is worth telling.
    fn learn(&mut self, measured: ClockFacts) -> bool {
        let is_news = clock_offset::is_news(self.clock, measured);
        if is_news {
            self.clock = Some(measured);
        }
        is_news
    }
}

/// One connection to be.
pub struct Session<'a, W> {
    /// What does the work.
    pub work: &'a W,
    /// What comes up from it.
    pub feeds: &'a mut Feeds,
    /// What outlives the session.
    pub memory: &'a mut Memory,
    /// The present.
    pub clock: &'a dyn Clock,
    /// A random number from 0 up to 1.
    pub dice: &'a (dyn Fn() -> f64 + Send + Sync),
    /// Ends the session because the process stops.
    pub stop: &'a CancellationToken,
    /// Changes when there is a new certificate.
    pub renewed: watch::Receiver<u64>,
    /// Called when the orchestrator has welcomed this agent.
    pub on_welcome: &'a (dyn Fn() + Send + Sync),
    /// Called when the orchestrator has answered a heartbeat.
    pub on_answer: &'a (dyn Fn() + Send + Sync),
}

/// The open stream and where it stands.
struct Stream {
    out: mpsc::Sender<ConnectRequest>,
    inbound: Streaming<sealift_proto::agent::v1::ConnectResponse>,
    known: Known,
    interval: Duration,
    /// Highest acknowledged report.
    acknowledged: u64,
    /// The batch that is on its way.
    in_flight: Option<InFlight>,
    /// When the orchestrator was asked for its time, until it has answered.
    asked_time: Option<Instant>,
    /// When it is to be asked again.
    ask_time_at: Instant,
    /// Whether every heartbeat asks for an answer.
    on_trial: bool,
}

impl Stream {
    /// Until when a question has to be answered; only a link on trial breaks for it.
    fn answer_by(&self) -> Option<Instant> {
        let asked = self.asked_time.filter(|_| self.on_trial);
        asked.map(|asked| asked + PROOF_ANSWER)
    }
}

/// All that waits in a feed.
fn drained<T>(feed: &mut mpsc::Receiver<T>) -> Vec<T> {
    std::iter::from_fn(|| feed.try_recv().ok()).collect()
}

impl<W: Work> Session<'_, W> {
    /// Connects and serves until either end has enough.
    pub async fn run(self, channel: Channel) -> Result<Ended, SessionError> {
        let (work, mut sent) = (self.work, Sent::default());
        let ended = self.serve(channel, &mut sent).await;
        // What was said before an orderly end of ours has arrived.
        if !matches!(ended, Ok(Ended::Stopped | Ended::Renewed)) {
            for (task, attempt) in sent.in_doubt() {
                work.lines_lost(task, attempt);
            }
        }
        ended
    }

    async fn serve(mut self, channel: Channel, sent: &mut Sent) -> Result<Ended, SessionError> {
        self.memory.welcomed = false;
        let mut tip = self.work.report_tip();
        let mut facts = self.work.facts();
        let mut proof = self.work.wants_proof();
        let mut stream = match self.open(channel, &mut facts).await? {
            Ok(stream) => stream,
            Err(ended) => return Ok(ended),
        };
        self.work.observe_anew(drained(&mut self.feeds.observations));
        stream.on_trial = *proof.borrow_and_update();
        let mut beat_at = self.next_beat(&stream);
        let mut lines = Vec::with_capacity(LOG_LINES);
        self.pump(&mut stream).await?;
        loop {
            let acknowledge_by = stream.in_flight.map(|batch| batch.by);
            let answer_by = stream.answer_by();
            tokio::select! {
                () = self.stop.cancelled() => {
                    close(stream).await;
                    return Ok(Ended::Stopped);
                }
                changed = self.renewed.changed() => {
                    if changed.is_ok() {
                        close(stream).await;
                        return Ok(Ended::Renewed);
                    }
                    return Err(SessionError::Gone);
                }
                message = stream.inbound.message() => {
                    let message = message?.ok_or(SessionError::Gone)?;
                    if let Some(Down::ServerTime(answer)) = &message.message {
                        if self.hear_time(&mut stream, answer)? {
                            let now = self.memory.facts(facts.borrow().clone());
                            self.beat(&mut stream, Some(now)).await?;
                        }
                    } else if let Some(ended) = self.take(&mut stream, message.message).await? {
                        return Ok(ended);
                    }
                }
                changed = tip.changed(), if stream.in_flight.is_none() => {
                    changed.map_err(|_| SessionError::Gone)?;
                    self.pump(&mut stream).await?;
                }
                () = sleep_until(beat_at) => {
                    self.beat(&mut stream, None).await?;
                    beat_at = self.next_beat(&stream);
                }
                changed = facts.changed() => {
                    changed.map_err(|_| SessionError::Gone)?;
                    let now = self.memory.facts(facts.borrow_and_update().clone());
                    self.beat(&mut stream, Some(now)).await?;
                    beat_at = self.next_beat(&stream);
                }
                changed = proof.changed() => {
                    changed.map_err(|_| SessionError::Gone)?;
                    stream.on_trial = *proof.borrow_and_update();
                    beat_at = self.next_beat(&stream);
                }
                Some(seen) = self.feeds.observations.recv() => {
                    send(&stream, Up::Observation((&seen).into())).await?;
                }
                count = self.feeds.logs.recv_many(&mut lines, LOG_LINES), if !self.feeds.logs.is_closed() || !self.feeds.logs.is_empty() => {
                    if count > 0 {
                        sent.note(&lines);
                        for batch in log_batches(lines.drain(..)) {
                            send(&stream, Up::Logs(batch)).await?;
                        }
                    }
                }
                () = sleep_until(acknowledge_by.unwrap_or_else(Instant::now)), if acknowledge_by.is_some() => {
                    return Err(SessionError::Deadline("acknowledge reports"));
                }
                () = sleep_until(answer_by.unwrap_or_else(Instant::now)), if answer_by.is_some() => {
                    return Err(SessionError::Deadline("answer a heartbeat"));
                }
            }
        }
    }

    /// Hello and Welcome.
    async fn open(
        &mut self,
        channel: Channel,
        facts: &mut watch::Receiver<AgentFacts>,
    ) -> Result<Result<Stream, Ended>, SessionError> {
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let next_report = self.work.next_report();
        let fences = self.work.fences().map_err(SessionError::State)?;
        let hello = Hello {
            facts: Some(self.memory.facts(facts.borrow_and_update().clone()).into()),
            next_report,
            fences: fences
                .into_iter()
                .map(|(target, fence)| TargetFence {
                    target_id: target.to_string(),
                    fence: fence.0,
                })
                .collect(),
        };
        let said_hello = Instant::now();
        out.send(ConnectRequest {
            message: Some(Up::Hello(hello)),
        })
        .await
        .map_err(|_| SessionError::Gone)?;
        let mut client = GatewayServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let greet = async {
            let mut inbound = client.connect(ReceiverStream::new(outgoing)).await?.into_inner();
            let first = inbound.message().await?.ok_or(SessionError::Gone)?;
            Ok::<_, SessionError>((inbound, first))
        };
        let (inbound, first) = tokio::select! {
            () = self.stop.cancelled() => return Ok(Err(Ended::Stopped)),
            greeted = timeout(ANSWER, greet) => greeted.map_err(|_| SessionError::Deadline("answer"))??,
        };
        let welcome = match first.message {
            Some(Down::Welcome(welcome)) => welcome,
            Some(Down::Goodbye(goodbye)) => return Ok(Err(ended(goodbye))),
            _ => {
                return Err(SessionError::Protocol(
                    "the first answer is not Welcome".to_owned(),
                ));
            }
        };
        let interval = interval(welcome.heartbeat_interval.as_ref())?;
        let theirs = convert::time("welcome.time", welcome.time.as_ref())?;
        self.measure(theirs, said_hello);
        self.reconcile(&welcome, next_report).await?;
        self.memory.welcomed = true;
        (self.on_welcome)();
        tracing::info!(session.id = welcome.session_id, "connected");
        Ok(Ok(Stream {
            out,
            inbound,
            known: Known::default(),
            interval,
            acknowledged: welcome.acknowledged_report,
            in_flight: None,
            asked_time: None,
            // With the first heartbeat: connecting took longer than an answer does, so Welcome says little of the clocks.
            ask_time_at: Instant::now(),
            on_trial: false,
        }))
    }

    /// Holds what the orchestrator has stored against what this agent remembers (F30).
    async fn reconcile(&mut self, welcome: &Welcome, next_report: u64) -> Result<(), SessionError> {
        let acknowledged = welcome.acknowledged_report;
        if next_report <= acknowledged {
            tracing::error!(
                next_report,
                acknowledged,
                "the orchestrator has stored reports that this agent does not remember: its state was restored from an older copy"
            );
            self.memory.state_is_old = true;
            self.work
                .skip_reports_to(acknowledged)
                .await
                .map_err(SessionError::State)?;
        } else {
            self.work
                .acknowledge(acknowledged)
                .await
                .map_err(SessionError::State)?;
        }
        Ok(())
    }

    /// Takes in the orchestrator's time; whether that is worth telling.
    fn hear_time(&mut self, stream: &mut Stream, answer: &ServerTime) -> Result<bool, SessionError> {
        let asked = stream
            .asked_time
            .take()
            .ok_or_else(|| SessionError::Protocol("the time, without having been asked for it".to_owned()))?;
        let theirs = convert::time("server_time.time", answer.time.as_ref())?;
        (self.on_answer)();
        Ok(self.measure(theirs, asked))
    }

    /// Holds the host's clock against `theirs`, the answer to what was asked at `asked`; whether that is worth telling.
    fn measure(&mut self, theirs: DateTime<Utc>, asked: Instant) -> bool {
        let measured = clock_offset::measure(theirs, self.clock.now(), asked.elapsed());
        let is_news = self.memory.learn(measured);
        // What is known best, not this trip, which may have been a slow one.
        if let Some(known) = self.memory.clock {
            self.work.clock_measured(known);
        }
        is_news
    }

    async fn take(
        &mut self,
        stream: &mut Stream,
        message: Option<Down>,
    ) -> Result<Option<Ended>, SessionError> {
        match message {
            None => {}
            Some(Down::ServerTime(_) | Down::Welcome(_)) => {
                return Err(SessionError::Protocol("a second Welcome".to_owned()));
            }
            Some(Down::Goodbye(goodbye)) => return Ok(Some(ended(goodbye))),
            Some(Down::HeartbeatSchedule(schedule)) => {
                stream.interval = interval(schedule.interval.as_ref())?;
            }
            Some(Down::ReportAck(ack)) => {
                let Some(batch) = stream.in_flight.take() else {
                    return Err(SessionError::Protocol("an acknowledgement of nothing".to_owned()));
                };
                if ack.number > batch.last || ack.number < stream.acknowledged {
                    return Err(SessionError::Protocol(
                        "an acknowledgement of what was not sent".to_owned(),
                    ));
                }
                let covers = |report: Option<u64>| report.is_some_and(|number| number <= ack.number);
                if covers(batch.accepted) {
                    kill::at("acked");
                }
                self.work
                    .acknowledge(ack.number)
                    .await
                    .map_err(SessionError::State)?;
                stream.acknowledged = ack.number;
                if covers(batch.finished) {
                    kill::at("evidence_acked");
                }
                self.pump(stream).await?;
            }
            Some(Down::Assignments(assignments)) => match stream.known.take(assignments)? {
                Meaning::Waiting => {}
                Meaning::Gap => send(stream, Up::Resync(Resync {})).await?,
                Meaning::Acts(acts) => {
                    for act in acts {
                        self.carry_out(act).await;
                    }
                }
            },
        }
        Ok(None)
    }

    async fn carry_out(&self, act: Act) {
        match act {
            Act::Offer { task, attempt, order } => self.work.offer(task, attempt, order).await,
            Act::Stop { task } => self.work.stop(task).await,
            Act::Keep { tasks } => self.work.keep(&tasks).await,
            Act::Drop { tasks } => self.work.drop_tasks(&tasks).await,
        }
    }

    /// Sends the next batch of reports unless one is on its way.
    async fn pump(&self, stream: &mut Stream) -> Result<(), SessionError> {
        if stream.in_flight.is_some() {
            return Ok(());
        }
        let mut reports = self
            .work
            .pending_reports(stream.acknowledged, REPORT_BATCH)
            .await
            .map_err(SessionError::State)?;
        let mut bytes = 0;
        let fitting = reports
            .iter()
            .take_while(|report| {
                bytes += report.encoded_len();
                bytes <= BATCH_BYTES
            })
            .count();
        reports.truncate(fitting.max(1));
        let Some(batch) = InFlight::of(&reports, Instant::now() + ACKNOWLEDGE) else {
            return Ok(());
        };
        stream.in_flight = Some(batch);
        send(stream, Up::Reports(ReportBatch { reports })).await?;
        if batch.finished.is_some() {
            kill::at("evidence_sent");
        }
        Ok(())
    }

    /// Says that the agent is there; now and then, and always while the link is on trial, with the question what time it is.
    async fn beat(&self, stream: &mut Stream, facts: Option<AgentFacts>) -> Result<(), SessionError> {
        let now = Instant::now();
        let is_time = stream.on_trial || stream.ask_time_at <= now;
        let wants_time = is_time && stream.asked_time.is_none();
        if wants_time {
            stream.asked_time = Some(now);
            stream.ask_time_at = now + CLOCK_EVERY;
        }
        let heartbeat = Heartbeat {
            time: Some(convert::timestamp(self.clock.now())),
            facts: facts.map(Into::into),
            wants_time,
        };
        send(stream, Up::Heartbeat(heartbeat)).await
    }

    fn next_beat(&self, stream: &Stream) -> Instant {
        let interval = if stream.on_trial {
            stream.interval.min(PROOF_EVERY)
        } else {
            stream.interval
        };
        Instant::now() + backoff::jittered(interval, (self.dice)())
    }
}

/// Says something; a connection that takes nothing for long is broken.
async fn send(stream: &Stream, message: Up) -> Result<(), SessionError> {
    let request = ConnectRequest {
        message: Some(message),
    };
    match timeout(ANSWER, stream.out.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(SessionError::Gone),
        Err(_) => Err(SessionError::Deadline("take what it was told")),
    }
}

/// Ends our side and lets the orchestrator end its own, so that what was sent has arrived.
async fn close(stream: Stream) {
    let Stream { out, mut inbound, .. } = stream;
    drop(out);
    let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
    // It may be gone already; nothing is lost by not waiting longer.
    drop(timeout(Duration::from_secs(2), rest).await);
}

fn ended(goodbye: Goodbye) -> Ended {
    let reason = goodbye
        .reason
        .chars()
        .filter(|c| !c.is_control())
        .take(128)
        .collect();
    if goodbye.r#final {
        Ended::Dismissed { reason }
    } else {
        Ended::Goodbye { reason }
    }
}

fn interval(value: Option<&pbjson_types::Duration>) -> Result<Duration, SessionError> {
    let interval = convert::span("heartbeat_interval", value)?;
    Ok(interval.clamp(*INTERVALS.start(), *INTERVALS.end()))
}
