//! A simulated agent: everything that the orchestrator can see of a real one, without a host and without a disk. It enrols over the
//! wire, holds one mutually authenticated stream, verifies its orders as the agent does, and reports what a quick host would, with
//! the packet signed by its own key.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use sealift_agent::{
    backoff,
    identity::{Credential, OrchestratorEndpoint, connect_mtls, connect_pinned, new_key},
};
use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    id::{AgentId, TaskId},
    join_token::JoinToken,
    keys::{PublicKey, SigningKey},
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, ProjectObservation, StickerObservation,
        TargetObservation,
    },
    order::{Fence, Order, OrderContext, TargetBinding, open_order},
    task::TaskStep,
    time::{Clock as _, SystemClock},
};
use sealift_e2e::{fleet::facts, packets};
use sealift_proto::{
    agent::v1::{
        Accepted, Assignment, Assignments, ConnectRequest, ConnectResponse, EnrollRequest, Heartbeat, Hello,
        LogBatch, LogLine, Progressed, Report, ReportBatch, TargetFence, connect_request::Message as Up,
        connect_response::Message as Down, gateway_service_client::GatewayServiceClient, report::Event,
    },
    convert,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::board::Board;

/// How long the other end may take for an answer.
const ANSWER: Duration = Duration::from_mins(1);
/// Messages that wait for the stream.
const OUTGOING: usize = 8;
/// Most bytes of one message.
const MESSAGE_BYTES: usize = sealift_common::bounds::MESSAGE_BYTES;

/// The steps that an agent tells of, as it tells them while one batch after the other is acknowledged.
const STEPS: [&[TaskStep]; 3] = [
    &[TaskStep::Pulling, TaskStep::Verifying, TaskStep::Creating],
    &[TaskStep::Switching, TaskStep::Starting, TaskStep::HealthWait],
    &[TaskStep::Committing],
];
/// What it logs meanwhile.
const LINES: [&str; 5] = [
    "pulling 127.0.0.1/shop/web@sha256:…",
    "started web",
    "waiting until web is healthy",
    "the new set runs",
    "succeeded",
];

/// Where agents connect to.
#[derive(Debug)]
pub struct Place {
    /// The address.
    pub endpoint: OrchestratorEndpoint,
    /// The certificate that the server must come from; the orchestrator's CA when there is none.
    pub root_pem: Option<String>,
    /// Whether it is the bare server, whose orders are none.
    pub is_bare: bool,
    /// How often an agent says that it is there.
    pub beat: Duration,
}

/// An enrolled agent.
pub struct Member {
    id: AgentId,
    binding: TargetBinding,
    ca_pem: String,
    order_keys: Vec<PublicKey>,
    credential: Credential,
    key: SigningKey,
    /// Number of the next report.
    next_report: u64,
    /// Highest fencing token seen.
    fence: Fence,
    /// The sticker that lies on the host that is not there.
    sticker: Option<Digest>,
    /// The newest attempt that was begun.
    begun: Option<(TaskId, u32)>,
    /// Batches of reports that are not acknowledged, the first of which may be on its way.
    waiting: VecDeque<Vec<Report>>,
    /// Whether the first of them is.
    is_sent: bool,
    /// What is told once all of them are.
    told_last: Option<TargetObservation>,
}

fn now() -> DateTime<Utc> {
    SystemClock.now()
}

impl Member {
    /// Enrols an agent with its join token.
    pub async fn enrol(endpoint: &OrchestratorEndpoint, token: &JoinToken, number: u64) -> Result<Self> {
        let mut seed = *Digest::of(format!("{number} {}", now()).as_bytes()).as_bytes();
        seed[0] ^= std::process::id() as u8;
        let key = SigningKey::from_seed(&seed);
        let tls = new_key()?;
        let channel = connect_pinned(endpoint, *token.ca_pin()).await?;
        let request = EnrollRequest {
            join_token: token.reveal(),
            csr_pem: tls.csr_pem,
            evidence_public_key: key.public().to_bytes().to_vec(),
            facts: Some(facts().into()),
        };
        let mut client = GatewayServiceClient::new(channel);
        let answer = timeout(ANSWER, client.enroll(request)).await??.into_inner();
        let binding = answer.binding.context("an enrolment without a target")?;
        Ok(Self {
            id: answer.agent_id.parse()?,
            binding: TargetBinding {
                tenant: binding.tenant.parse()?,
                environment: binding.environment.parse()?,
                target: binding.target.parse()?,
                target_id: binding.target_id.parse()?,
            },
            ca_pem: answer.ca_pem,
            order_keys: answer
                .order_public_keys
                .iter()
                .map(|key| PublicKey::from_slice(key))
                .collect::<Result<_, _>>()?,
            credential: Credential::new(tls.key_pem, answer.certificate_pem)?,
            key,
            next_report: 1,
            fence: Fence::default(),
            sticker: None,
            begun: None,
            waiting: VecDeque::new(),
            is_sent: false,
            told_last: None,
        })
    }

    /// Holds a session until it is not wanted any more. An error is a session that ended unasked.
    pub async fn serve(
        &mut self,
        place: &Place,
        board: &Arc<Board>,
        dice: f64,
        unwanted: impl Future<Output = ()>,
    ) -> Result<()> {
        let (mut stream, _seat) = {
            let _turn = board.dials.acquire().await?;
            self.open(place, board).await?
        };
        let mut beat_at = Instant::now() + place.beat.mul_f64(dice);
        tokio::pin!(unwanted);
        self.report(&mut stream).await?;
        loop {
            tokio::select! {
                () = &mut unwanted => return Ok(()),
                () = sleep_until(beat_at) => {
                    beat_at = Instant::now() + backoff::jittered(place.beat, dice);
                    let time = Some(convert::timestamp(now()));
                    stream.say(Up::Heartbeat(Heartbeat { time, facts: None, wants_time: false })).await?;
                    board.beat();
                }
                message = stream.inbound.message() => {
                    let heard = now();
                    match message?.and_then(|message| message.message) {
                        Some(Down::Assignments(set)) if place.is_bare => board.received(heard, sent_at(&set)?, 0),
                        Some(Down::Assignments(set)) => self.take(&mut stream, set, heard, board).await?,
                        Some(Down::ReportAck(ack)) => self.acknowledged(&mut stream, ack.number).await?,
                        Some(Down::Goodbye(goodbye)) => bail!("dismissed: {}", goodbye.reason),
                        Some(Down::Welcome(_)) => bail!("welcomed twice"),
                        Some(Down::HeartbeatSchedule(_) | Down::ServerTime(_)) => {}
                        None => bail!("the stream ended"),
                    }
                }
            }
        }
    }

    async fn open(&mut self, place: &Place, board: &Arc<Board>) -> Result<(Stream, crate::board::Seat)> {
        self.is_sent = false;
        let root = place.root_pem.as_ref().unwrap_or(&self.ca_pem);
        let channel: Channel = connect_mtls(&place.endpoint, root, &self.credential).await?;
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let mut client = GatewayServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let hello = Hello {
            facts: Some(facts().into()),
            next_report: self.next_report,
            fences: vec![TargetFence {
                target_id: self.binding.target_id.to_string(),
                fence: self.fence.0,
            }],
        };
        let mut opened = {
            out.send(request(Up::Hello(hello))).await?;
            let inbound = timeout(ANSWER, client.connect(ReceiverStream::new(outgoing))).await??;
            Stream {
                out,
                inbound: inbound.into_inner(),
                _client: client,
            }
        };
        match timeout(ANSWER, opened.inbound.message())
            .await??
            .and_then(|first| first.message)
        {
            Some(Down::Welcome(welcome)) => self.forget(welcome.acknowledged_report),
            other => bail!("wanted a welcome, heard {other:?}"),
        }
        let seat = board.sit();
        match timeout(ANSWER, opened.inbound.message())
            .await??
            .and_then(|second| second.message)
        {
            Some(Down::Assignments(set)) if set.base == 0 => {
                if !place.is_bare {
                    self.take(&mut opened, set, now(), board).await?;
                }
            }
            other => bail!("wanted a full set, heard {other:?}"),
        }
        Ok((opened, seat))
    }

    /// Takes orders up that are new.
    async fn take(
        &mut self,
        stream: &mut Stream,
        set: Assignments,
        heard: DateTime<Utc>,
        board: &Board,
    ) -> Result<()> {
        for assignment in set.upserts {
            let task: TaskId = assignment.task_id.parse()?;
            if self.begun == Some((task, assignment.attempt)) {
                continue;
            }
            let order = self.check(&assignment, heard)?;
            board.received(heard, order.not_before, assignment.order.len());
            self.begun = Some((task, assignment.attempt));
            self.fence = order.fence;
            self.carry_out(&assignment.order, &order)?;
            self.report(stream).await?;
        }
        Ok(())
    }

    /// The checks of an agent, in its order: signature, then address, time, fence, content, limits.
    fn check(&self, assignment: &Assignment, heard: DateTime<Utc>) -> Result<Order> {
        ensure!(!assignment.stop, "a stop that nobody asked for");
        let order = open_order(&assignment.order, &self.order_keys)?;
        order.check(&OrderContext {
            agent_id: self.id,
            target: Some(&self.binding),
            highest: self.fence,
            now: heard,
        })?;
        Ok(order)
    }

    /// What a host would have done, as reports in three batches, and what would be seen there afterwards.
    fn carry_out(&mut self, bytes: &[u8], order: &Order) -> Result<()> {
        let (finished, sticker) = packets::succeeded(bytes, order, self.sticker, &self.key)?;
        let mut finished = Some(Event::Finished(finished));
        for (number, steps) in STEPS.iter().enumerate() {
            let mut events = Vec::with_capacity(steps.len() + 1);
            if number == 0 {
                events.push(Event::Accepted(Accepted {}));
            }
            events.extend(steps.iter().map(|step| {
                Event::Progressed(Progressed {
                    step: step.as_str().to_owned(),
                })
            }));
            if number == STEPS.len() - 1 {
                events.extend(finished.take());
            }
            let reports = events.into_iter().map(|event| self.numbered(order, event));
            let batch = reports.collect();
            self.waiting.push_back(batch);
        }
        self.told_last = Some(self.seen(order, sticker)?);
        self.sticker = Some(sticker);
        Ok(())
    }

    fn numbered(&mut self, order: &Order, event: Event) -> Report {
        let number = self.next_report;
        self.next_report += 1;
        Report {
            number,
            task_id: order.task_id.to_string(),
            attempt: order.attempt,
            time: Some(convert::timestamp(now())),
            event: Some(event),
        }
    }

    fn seen(&self, order: &Order, sticker: Digest) -> Result<TargetObservation> {
        let mut containers = Vec::new();
        for (service, image) in order.manifest.images() {
            containers.push(ContainerObservation {
                id: format!("{service}-{}", order.fence),
                service: service.clone(),
                fence: order.fence,
                image_id: image.digest.to_string(),
                digest: Some(image.digest),
                config: order.manifest.config_of(service)?,
                unchanged: true,
                state: ContainerState::Running,
                health: ContainerHealth::Healthy,
            });
        }
        let project = ProjectObservation {
            sticker: StickerObservation::Present {
                digest: sticker,
                release: order.release.content,
                fence: order.fence,
            },
            containers,
        };
        Ok(TargetObservation {
            target_id: self.binding.target_id,
            observed_at: now(),
            busy: false,
            projects: [(order.release.project.to_string(), project)].into(),
            events: Vec::new(),
        })
    }

    /// Sends the first batch that waits, unless it is on its way.
    async fn report(&mut self, stream: &mut Stream) -> Result<()> {
        let Some(reports) = self.waiting.front().filter(|_| !self.is_sent) else {
            return Ok(());
        };
        self.is_sent = true;
        stream
            .say(Up::Reports(ReportBatch {
                reports: reports.clone(),
            }))
            .await
    }

    async fn acknowledged(&mut self, stream: &mut Stream, number: u64) -> Result<()> {
        let before = self.waiting.len();
        self.forget(number);
        self.is_sent = false;
        ensure!(
            self.waiting.len() < before,
            "report {number} was acknowledged twice"
        );
        if before == STEPS.len() {
            stream.say(Up::Logs(self.lines())).await?;
        }
        self.report(stream).await?;
        if self.waiting.is_empty()
            && let Some(seen) = self.told_last.take()
        {
            stream.say(Up::Observation((&seen).into())).await?;
        }
        Ok(())
    }

    /// Drops the batches that are stored.
    fn forget(&mut self, acknowledged: u64) {
        while let Some(last) = self.waiting.front().and_then(|batch| batch.last())
            && last.number <= acknowledged
        {
            self.waiting.pop_front();
        }
    }

    fn lines(&self) -> LogBatch {
        let (task_id, attempt) = self
            .begun
            .map(|(task, attempt)| (task.to_string(), attempt))
            .unwrap_or_default();
        let lines = (1..).zip(LINES).map(|(seq, text)| LogLine {
            seq,
            source: "agent".to_owned(),
            text: text.to_owned(),
            time: Some(convert::timestamp(now())),
            truncated: false,
        });
        LogBatch {
            task_id,
            attempt,
            lines: lines.collect(),
        }
    }
}

/// One open stream.
struct Stream {
    out: mpsc::Sender<ConnectRequest>,
    inbound: Streaming<ConnectResponse>,
    /// The connection lives as long as this.
    _client: GatewayServiceClient<Channel>,
}

impl Stream {
    async fn say(&self, message: Up) -> Result<()> {
        Ok(timeout(ANSWER, self.out.send(request(message))).await??)
    }
}

const fn request(message: Up) -> ConnectRequest {
    ConnectRequest {
        message: Some(message),
    }
}

/// When the bare server sent something: it says so in place of the version.
fn sent_at(set: &Assignments) -> Result<DateTime<Utc>> {
    DateTime::from_timestamp_micros(i64::try_from(set.version)?).context("a time that is none")
}

/// Waits until the agent of this place in its group is (not) wanted; gives where it is to be.
pub async fn until(
    wishes: &mut watch::Receiver<crate::board::Wish>,
    is_it: impl Fn(&crate::board::Wish) -> bool,
) -> Result<Option<Arc<Place>>> {
    let wish = wishes.wait_for(|wish| is_it(wish)).await?;
    Ok(wish.place.clone())
}

/// Microseconds from one moment to another, none below zero.
pub fn micros(from: DateTime<Utc>, to: DateTime<Utc>) -> u64 {
    (to - from)
        .max(TimeDelta::zero())
        .num_microseconds()
        .and_then(|micros| u64::try_from(micros).ok())
        .unwrap_or(u64::MAX)
}
