//! Session: one connection of one agent, from Hello to Goodbye. One loop, one `select!`; at most one thing of the agent is worked
//! on at a time, which is the back-pressure; what goes out is in `outgoing`.
//!
//! Whatever may hold a connection to the store is a branch of the `select!` of its own, and handlers wait for nothing. What holds a
//! connection would stand still while a handler waits for one: sessions that do both wait for each other.

use std::{
    collections::HashMap,
    future::Future,
    pin::{Pin, pin},
    time::Duration,
};

use sealift_common::{
    digest::Digest,
    error::Reason,
    id::TenantId,
    id::{AgentId, JobId, SessionId, TargetId, TaskId},
    keys::PublicKey,
    name::Name,
};
use sealift_proto::{
    agent::v1::{
        ConnectRequest, ConnectResponse, Goodbye, HeartbeatSchedule, ReportAck, ServerTime, Welcome,
        connect_response::Message,
    },
    convert,
};
use sealift_store::{StoreError, Task};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{
    assignments::Told,
    hello,
    inbound::{self, Done},
    outgoing::Outgoing,
    presence::{Farewell, SILENT_INTERVALS, Seat, schedule_differs},
    refusal::Refusal,
    writer::Writer,
};
use crate::{state::App, status::ApiError};

/// How long an agent may take to say Hello.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Assignments of an agent that has some are looked at this often even when nobody says that they changed; stretched with the
/// fleet. Whether one that has none has some now is asked for the whole fleet at once (`loops/remind.rs`).
const REFRESH: Duration = Duration::from_secs(10);
/// Looked at again this soon when the store did not answer.
const REFRESH_AGAIN: Duration = Duration::from_secs(2);

/// Something of the agent that is being worked on.
pub type Work = Pin<Box<dyn Future<Output = Result<Done, Refusal>> + Send>>;

/// Its assignments as they are being read.
type Reading = Pin<Box<dyn Future<Output = Result<Vec<Task>, StoreError>> + Send>>;

/// Who is connected.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Tenant.
    pub tenant: (TenantId, Name),
    /// The agent.
    pub agent: AgentId,
    /// Identifier of the call, for audit events.
    pub request_id: String,
    /// How long its certificate still counts.
    pub certificate_life: Option<Duration>,
}

/// How a session ends when nobody is to blame.
enum Ended {
    ByAgent,
    Told(Farewell),
}

/// What cuts a session.
enum Cut {
    /// The agent said what is refused.
    Refused(Refusal),
    /// Nobody is to blame, or nobody knows who is.
    Lost(Status),
}

impl From<Refusal> for Cut {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Status> for Cut {
    fn from(status: Status) -> Self {
        Self::Lost(status)
    }
}

/// When a session has to do something by itself.
struct Times {
    /// Its certificate counts no longer.
    expiry: Option<Instant>,
    /// Assignments are to be read; not before those that are being read have come.
    refresh: Option<Instant>,
    /// The agent was silent for too long.
    silent: Instant,
}

impl Times {
    /// The first of them. While something of the agent is worked on nobody listens, so that its silence says nothing.
    fn next(&self, is_working: bool, is_reading: bool) -> Instant {
        let silent = (!is_working).then_some(self.silent);
        let refresh = self.refresh.filter(|_| !is_reading);
        let all = [self.expiry, refresh, silent];
        // The end of the work comes by itself.
        all.into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + REFRESH)
    }
}

/// One connection.
pub struct Session {
    pub(super) app: App,
    pub(super) writer: Writer,
    pub(super) peer: Peer,
    pub(super) id: SessionId,
    out: Outgoing,
    revoked: CancellationToken,
    told: Told,
    /// Tasks that the agent has, for its log lines.
    pub(super) tasks: HashMap<TaskId, (JobId, u32)>,
    /// What was last judged of each target in this session, so that the same is not stored and judged again. Never what the store
    /// has from before: that may be of a time when it was not judged.
    pub(super) seen: HashMap<TargetId, Digest>,
    interval: Duration,
}

impl Session {
    /// A session that will answer into `out`.
    pub fn new(
        app: App,
        writer: Writer,
        peer: Peer,
        out: mpsc::Sender<Result<ConnectResponse, Status>>,
        revoked: CancellationToken,
    ) -> Self {
        let id = SessionId::new(app.clock.now());
        let interval = app.presence.interval();
        Self {
            app,
            writer,
            peer,
            id,
            out: Outgoing::new(out),
            revoked,
            told: Told::default(),
            tasks: HashMap::new(),
            seen: HashMap::new(),
            interval,
        }
    }

    /// Serves until either end has enough.
    pub async fn run(mut self, mut inbound: Streaming<ConnectRequest>) {
        let agent = self.peer.agent;
        match self.serve(&mut inbound).await {
            Ok(Ended::ByAgent) => tracing::debug!(agent.id = %agent, "agent left"),
            Ok(Ended::Told(Farewell { reason, is_final })) => {
                tracing::info!(agent.id = %agent, reason = reason.as_str(), is_final, "session ended");
                let goodbye = Goodbye {
                    reason: reason.as_str().to_owned(),
                    r#final: is_final,
                };
                self.out.last(Ok(Message::Goodbye(goodbye)));
            }
            Err(status) => {
                tracing::warn!(agent.id = %agent, code = ?status.code(), message = status.message(), "session cut");
                self.out.last(Err(status));
            }
        }
    }

    async fn serve(&mut self, inbound: &mut Streaming<ConnectRequest>) -> Result<Ended, Status> {
        let shutdown = self.app.shutdown.clone();
        let revoked = self.revoked.clone();
        let opened = tokio::select! {
            () = shutdown.cancelled() => return Ok(going_down()),
            () = revoked.cancelled() => return Ok(no_longer_welcome()),
            opened = Box::pin(self.open(inbound)) => opened,
        };
        let cut = match opened {
            Err(refusal) => Cut::Refused(refusal),
            Ok((mut seat, key)) => match self.converse(inbound, &mut seat, key).await {
                Ok(ended) => return Ok(ended),
                Err(cut) => cut,
            },
        };
        Err(match cut {
            Cut::Refused(refusal) => self.blame(refusal).await,
            Cut::Lost(status) => status,
        })
    }

    /// Hello, Welcome and the first full set.
    async fn open(&mut self, inbound: &mut Streaming<ConnectRequest>) -> Result<(Seat, PublicKey), Refusal> {
        let hello = hello::receive(inbound).await?;
        let known = hello::check(self, hello).await?;
        let seat = self.app.presence.open(self.peer.agent, self.id);
        self.interval = self.app.presence.interval();
        self.out
            .say(Message::Welcome(Welcome {
                session_id: self.id.to_string(),
                acknowledged_report: known.acknowledged,
                heartbeat_interval: Some(convert::duration(self.interval)),
                time: Some(convert::timestamp(self.app.clock.now())),
            }))
            .map_err(|status| Refusal::Internal(status.message().to_owned()))?;
        Ok((seat, known.evidence_key))
    }

    async fn converse(
        &mut self,
        inbound: &mut Streaming<ConnectRequest>,
        seat: &mut Seat,
        key: PublicKey,
    ) -> Result<Ended, Cut> {
        let shutdown = self.app.shutdown.clone();
        let revoked = self.revoked.clone();
        let mut work: Option<Work> = None;
        let mut reading: Option<Reading> = None;
        let mut full = true;
        let mut times = Times {
            expiry: self.peer.certificate_life.map(|life| Instant::now() + life),
            // At once: the first set.
            refresh: Some(Instant::now()),
            silent: self.silent_at(),
        };
        // One timer for all of them, which is only ever set earlier: a heartbeat, which moves the silence on, does not touch it.
        let mut alarm = pin!(sleep_until(Instant::now()));
        loop {
            if reading.is_none() && times.refresh.is_some_and(|at| at <= Instant::now()) {
                if self.out.is_waiting() {
                    // It has not taken what it was told last.
                    times.refresh = Some(Instant::now() + REFRESH_AGAIN);
                } else {
                    times.refresh = None;
                    reading = Some(self.read_assignments());
                }
            }
            let due = times.next(work.is_some(), reading.is_some());
            if due < alarm.deadline() {
                alarm.as_mut().reset(due);
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(going_down()),
                () = revoked.cancelled() => return Ok(no_longer_welcome()),
                () = alarm.as_mut() => {
                    let now = Instant::now();
                    if times.expiry.is_some_and(|at| at <= now) {
                        return Ok(Ended::Told(Farewell { reason: Reason::CertificateRefused, is_final: false }));
                    }
                    if times.silent <= now && work.is_none() {
                        return Err(silent().into());
                    }
                    alarm.as_mut().reset(times.next(work.is_some(), reading.is_some()));
                }
                changed = seat.signal.changed() => {
                    let signal = *seat.signal.borrow_and_update();
                    if let Some(farewell) = signal.farewell {
                        return Ok(Ended::Told(farewell));
                    }
                    if changed.is_err() {
                        return Ok(going_down());
                    }
                    times.refresh = Some(Instant::now());
                }
                tasks = next(&mut reading), if reading.is_some() => {
                    reading = None;
                    let again = self.assign(tasks, seat, &mut full)?;
                    // What changed while they were read has not been waiting for as long.
                    times.refresh = times.refresh.or(again);
                }
                done = next(&mut work), if work.is_some() => {
                    work = None;
                    times.silent = self.silent_at();
                    self.finish(done?)?;
                }
                flushed = self.out.flush(), if self.out.is_waiting() => flushed?,
                message = inbound.message(), if work.is_none() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Ok(Ended::ByAgent),
                        Err(status) => return Err(unheard(status)),
                    };
                    times.silent = self.silent_at();
                    seat.heard();
                    match inbound::take(self, message, &key)? {
                        inbound::Taken::Work(next) => work = Some(next),
                        inbound::Taken::Heartbeat { wants_time } => {
                            self.tell_time(wants_time)?;
                            self.tell_schedule()?;
                        }
                        inbound::Taken::News { wants_time, work: next } => {
                            self.tell_time(wants_time)?;
                            work = Some(next);
                        }
                        inbound::Taken::Resync => {
                            full = true;
                            times.refresh = Some(Instant::now());
                        }
                        inbound::Taken::Nothing => {}
                    }
                }
            }
        }
    }

    /// Tells the agent what changed in its assignments; answers when to read them again, if that is for this session to do.
    fn assign(
        &mut self,
        tasks: Result<Vec<Task>, StoreError>,
        seat: &Seat,
        full: &mut bool,
    ) -> Result<Option<Instant>, Status> {
        let tasks = match tasks {
            Ok(tasks) => tasks,
            Err(error) => {
                // The agent works on with what it has; we look again soon.
                tracing::warn!(agent.id = %self.peer.agent, error = %crate::status::Chain(&error), "assignments cannot be read");
                return Ok(Some(Instant::now() + REFRESH_AGAIN));
            }
        };
        let messages = if std::mem::take(full) {
            self.told.full(&tasks)
        } else {
            self.told.increments(&tasks)
        };
        seat.set_tasks(tasks.iter().map(|task| task.id).collect());
        self.tasks = tasks
            .into_iter()
            .map(|task| (task.id, (task.job_id, task.attempt)))
            .collect();
        for message in messages {
            self.out.say(Message::Assignments(message))?;
        }
        let again = Instant::now() + REFRESH.max(self.interval * 2);
        Ok((!self.tasks.is_empty()).then_some(again))
    }

    fn read_assignments(&self) -> Reading {
        let (db, agent) = (self.app.db.clone(), self.peer.agent);
        Box::pin(async move {
            let mut tx = db.read().await?;
            tx.live_tasks_of_agent(agent).await
        })
    }

    fn finish(&mut self, done: Done) -> Result<(), Status> {
        match done {
            Done::Acknowledged(number) => self.out.say(Message::ReportAck(ReportAck { number })),
            Done::Seen(target, content) => {
                self.seen.insert(target, content);
                Ok(())
            }
            Done::Nothing => Ok(()),
        }
    }

    fn tell_time(&mut self, wanted: bool) -> Result<(), Status> {
        if !wanted {
            return Ok(());
        }
        let time = Some(convert::timestamp(self.app.clock.now()));
        self.out.say(Message::ServerTime(ServerTime { time }))
    }

    fn tell_schedule(&mut self) -> Result<(), Status> {
        let interval = self.app.presence.interval();
        if schedule_differs(self.interval, interval) {
            self.interval = interval;
            let interval = Some(convert::duration(interval));
            self.out
                .say(Message::HeartbeatSchedule(HeartbeatSchedule { interval }))?;
        }
        Ok(())
    }

    /// Turns a refusal into the status that ends the session; a breach of the protocol is audited first (R12, R13).
    async fn blame(&self, refusal: Refusal) -> Status {
        if let Refusal::Violation(what) = &refusal {
            tracing::error!(agent.id = %self.peer.agent, what, "agent broke the protocol");
            super::audit_agent(&self.app, &self.peer, "agent.protocol", refusal.reason()).await;
        }
        refusal.into()
    }

    fn silent_at(&self) -> Instant {
        Instant::now() + self.interval * SILENT_INTERVALS + Duration::from_secs(10)
    }
}

/// Waits for what is under way. Only called when something is.
async fn next<T>(under_way: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match under_way {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// What cannot be read is a breach of the protocol; what did not arrive is nobody's fault.
fn unheard(status: Status) -> Cut {
    match status.code() {
        Code::OutOfRange => Refusal::violation("a message that is too large").into(),
        Code::Internal if status.message().starts_with("failed to decode") => {
            Refusal::violation("a message that cannot be read").into()
        }
        _ => status.into(),
    }
}

fn silent() -> Status {
    ApiError::new(
        Reason::DeadlineExceeded,
        "the agent was silent for too long",
        "it connects again by itself",
    )
    .into()
}

const fn going_down() -> Ended {
    Ended::Told(Farewell {
        reason: Reason::ShuttingDown,
        is_final: false,
    })
}

const fn no_longer_welcome() -> Ended {
    Ended::Told(Farewell {
        reason: Reason::CertificateRefused,
        is_final: true,
    })
}
