//! A session against a scripted orchestrator on loopback: what it says, when it says it again, and when it ends.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::{sync::Arc, time::Duration};

use chrono::DateTime;
use sealift_agent::{
    session::{Ended, Memory, Session, SessionError},
    work::{Feeds, LogRecord},
};
use sealift_common::{
    observation::TargetObservation,
    time::{Clock, TestClock},
};
use sealift_proto::agent::v1::{
    AddTargetRequest, AddTargetResponse, Assignment, Assignments, ConnectRequest, ConnectResponse,
    EnrollRequest, EnrollResponse, Goodbye, PingRequest, PingResponse, RenewCertificateRequest,
    RenewCertificateResponse, ReportAck, ServerTime, Welcome,
    connect_request::Message as Up,
    connect_response::Message as Down,
    gateway_service_server::{GatewayService, GatewayServiceServer},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server},
};

mod desk;
use desk::{Desk, task};

type Outgoing = mpsc::Sender<Result<ConnectResponse, Status>>;

/// Hands each connection's two ends to the test.
struct Script(mpsc::Sender<(Streaming<ConnectRequest>, Outgoing)>);

#[tonic::async_trait]
impl GatewayService for Script {
    type ConnectStream = ReceiverStream<Result<ConnectResponse, Status>>;

    async fn enroll(&self, _: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn renew_certificate(
        &self,
        _: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn add_target(&self, _: Request<AddTargetRequest>) -> Result<Response<AddTargetResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (out, outgoing) = mpsc::channel(8);
        self.0
            .send((request.into_inner(), out))
            .await
            .map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// One agent and its scripted orchestrator.
struct Stage {
    desk: Arc<Desk>,
    clock: TestClock,
    stop: CancellationToken,
    renewed: watch::Sender<u64>,
    sessions: mpsc::Receiver<(Streaming<ConnectRequest>, Outgoing)>,
    channel: Channel,
    logs: mpsc::Sender<LogRecord>,
    feeds: Option<Feeds>,
    observations: mpsc::Sender<TargetObservation>,
}

impl Stage {
    async fn new(pending: std::ops::Range<u64>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, sessions) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let server = Server::builder()
            .add_service(GatewayServiceServer::new(Script(connections)))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tokio::task::spawn_local(server);
        let channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let (observations, seen) = mpsc::channel(4);
        let (logs, lines) = mpsc::channel(64);
        Self {
            desk: Desk::new(pending),
            clock: TestClock::at(DateTime::from_timestamp(1_800_000_000, 0).unwrap()),
            stop,
            renewed: watch::Sender::new(0),
            sessions,
            channel,
            logs,
            feeds: Some(Feeds {
                observations: seen,
                logs: lines,
            }),
            observations,
        }
    }

    fn start(&mut self) -> tokio::task::JoinHandle<(Result<Ended, SessionError>, Memory)> {
        let (desk, clock, stop) = (Arc::clone(&self.desk), self.clock.clone(), self.stop.clone());
        let (channel, renewed) = (self.channel.clone(), self.renewed.subscribe());
        let mut feeds = self.feeds.take().unwrap();
        tokio::task::spawn_local(async move {
            let mut memory = Memory::default();
            let session = Session {
                work: &*desk,
                feeds: &mut feeds,
                memory: &mut memory,
                clock: &clock,
                dice: &|| 0.5,
                stop: &stop,
                renewed,
                on_welcome: &|| {},
                on_answer: &|| {},
            };
            let ended = session.run(channel).await;
            (ended, memory)
        })
    }

    /// The agent's Hello is read and answered.
    async fn welcome(&mut self, acknowledged: u64) -> (Streaming<ConnectRequest>, Outgoing) {
        let (mut up, down) = within(self.sessions.recv()).await.unwrap();
        assert!(matches!(next(&mut up).await, Up::Hello(_)));
        let welcome = Welcome {
            session_id: "s".into(),
            acknowledged_report: acknowledged,
            heartbeat_interval: Some(sealift_proto::convert::duration(Duration::from_mins(1))),
            time: Some(sealift_proto::convert::timestamp(self.clock.now())),
        };
        say(&down, Down::Welcome(welcome)).await;
        (up, down)
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("in time")
}

async fn next(up: &mut Streaming<ConnectRequest>) -> Up {
    within(up.message()).await.unwrap().unwrap().message.unwrap()
}

async fn say(down: &Outgoing, message: Down) {
    down.send(Ok(ConnectResponse {
        message: Some(message),
    }))
    .await
    .unwrap();
}

fn numbers(message: Up) -> Vec<u64> {
    match message {
        Up::Reports(batch) => batch.reports.iter().map(|report| report.number).collect(),
        other => panic!("{other:?}"),
    }
}

async fn local<T>(test: impl Future<Output = T>) -> T {
    tokio::task::LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn r9_reports_go_up_one_batch_at_a_time_from_the_first_unacknowledged() {
    local(async {
        let mut stage = Stage::new(1..5).await;
        let session = stage.start();
        let (mut up, down) = stage.welcome(2).await;
        assert_eq!(numbers(next(&mut up).await), [3, 4]);
        stage.desk.add();
        stage.desk.add();
        say(&down, Down::ReportAck(ReportAck { number: 4 })).await;
        assert_eq!(numbers(next(&mut up).await), [5, 6]);
        say(&down, Down::ReportAck(ReportAck { number: 6 })).await;
        stage.desk.add();
        assert_eq!(numbers(next(&mut up).await), [7]);
        stage.stop.cancel();
        assert!(matches!(within(session).await.unwrap().0, Ok(Ended::Stopped)));
    })
    .await;
}

#[tokio::test]
async fn r9_what_was_not_acknowledged_is_said_again_in_the_next_session() {
    local(async {
        let mut stage = Stage::new(1..4).await;
        let session = stage.start();
        let (mut up, down) = stage.welcome(0).await;
        assert_eq!(numbers(next(&mut up).await), [1, 2, 3]);
        drop((up, down));
        assert!(within(session).await.unwrap().0.is_err());
        let (_, seen) = mpsc::channel(1);
        let (_, lines) = mpsc::channel(1);
        stage.feeds = Some(Feeds {
            observations: seen,
            logs: lines,
        });
        let session = stage.start();
        let (mut up, _down) = stage.welcome(1).await;
        assert_eq!(numbers(next(&mut up).await), [2, 3]);
        stage.stop.cancel();
        within(session).await.unwrap().0.unwrap();
    })
    .await;
}

fn observation(at: i64) -> TargetObservation {
    TargetObservation {
        target_id: "018f0000-0000-7000-8000-000000000002".parse().unwrap(),
        observed_at: DateTime::from_timestamp(at, 0).unwrap(),
        busy: false,
        projects: std::collections::BTreeMap::new(),
        events: Vec::new(),
    }
}

/// Whoever hears it would take it for what is seen now.
#[tokio::test]
async fn what_was_seen_before_a_session_is_not_told_in_it() {
    local(async {
        let mut stage = Stage::new(1..1).await;
        stage.observations.send(observation(1)).await.unwrap();
        let session = stage.start();
        let (mut up, _down) = stage.welcome(0).await;
        within(async {
            while stage.desk.told().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(stage.desk.told(), ["observe, 1 untold"]);
        stage.observations.send(observation(2)).await.unwrap();
        let Up::Observation(seen) = next(&mut up).await else {
            panic!("no observation")
        };
        assert_eq!(TargetObservation::try_from(seen).unwrap(), observation(2));
        stage.stop.cancel();
        within(session).await.unwrap().0.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_measured_and_told_once() {
    local(async {
        let mut stage = Stage::new(1..1).await;
        let session = stage.start();
        let (mut up, down) = stage.welcome(0).await;
        stage.desk.facts.send_modify(|facts| facts.hostname = "h".into());
        let Up::Heartbeat(beat) = next(&mut up).await else {
            panic!("no heartbeat")
        };
        assert!(beat.wants_time && beat.facts.unwrap().degraded.is_empty());
        let theirs = stage.clock.now() - chrono::TimeDelta::seconds(30);
        let time = Some(sealift_proto::convert::timestamp(theirs));
        say(&down, Down::ServerTime(ServerTime { time })).await;
        let Up::Heartbeat(beat) = next(&mut up).await else {
            panic!("no heartbeat")
        };
        let facts = beat.facts.unwrap();
        assert_eq!(facts.degraded[0].code, "CLOCK_SKEW");
        let clock = facts.clock.unwrap();
        let measured = stage.desk.measured.lock().unwrap().unwrap();
        assert_eq!(measured.ahead_ms, clock.ahead_ms, "packets go by the same");
        assert!((30_000 - clock.ahead_ms).unsigned_abs() <= u64::from(clock.uncertainty_ms));
        assert!(!beat.wants_time, "not with every heartbeat");
        // Nobody asked again.
        say(&down, Down::ServerTime(ServerTime { time })).await;
        assert!(matches!(
            within(session).await.unwrap().0,
            Err(SessionError::Protocol(_))
        ));
    })
    .await;
}

#[tokio::test]
async fn r15_every_heartbeat_asks_while_the_link_is_on_trial_and_silence_breaks_it() {
    local(async {
        let mut stage = Stage::new(1..1).await;
        let session = stage.start();
        let (mut up, down) = stage.welcome(0).await;
        // The heartbeats that were agreed upon are a minute apart.
        stage.desk.proof.send_replace(true);
        for _ in 0..2 {
            let Up::Heartbeat(beat) = next(&mut up).await else {
                panic!("no heartbeat")
            };
            assert!(beat.wants_time, "every one asks");
            let time = Some(sealift_proto::convert::timestamp(stage.clock.now()));
            say(&down, Down::ServerTime(ServerTime { time })).await;
        }
        let Up::Heartbeat(beat) = next(&mut up).await else {
            panic!("no heartbeat")
        };
        assert!(beat.wants_time);
        // From here on nobody answers.
        tokio::time::pause();
        let (ended, _) = within(session).await.unwrap();
        assert!(matches!(ended, Err(SessionError::Deadline("answer a heartbeat"))));
    })
    .await;
}

#[tokio::test]
async fn f30_state_that_is_older_than_what_was_acknowledged_is_noticed_and_told() {
    local(async {
        let mut stage = Stage::new(1..3).await;
        let session = stage.start();
        let (mut up, down) = stage.welcome(9).await;
        // It asks for observations once it has taken the Welcome in.
        within(async {
            while stage.desk.told().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        stage.desk.add();
        assert_eq!(numbers(next(&mut up).await), [10]);
        say(&down, Down::ReportAck(ReportAck { number: 10 })).await;
        stage.desk.facts.send_modify(|facts| facts.hostname = "h".into());
        let Up::Heartbeat(beat) = next(&mut up).await else {
            panic!("no heartbeat")
        };
        assert!(
            beat.facts.unwrap().degraded[0]
                .detail
                .contains("restored from an older copy")
        );
        stage.stop.cancel();
        within(session).await.unwrap().0.unwrap();
    })
    .await;
}

#[tokio::test]
async fn f13_a_gap_in_the_assignments_is_answered_with_resync() {
    local(async {
        let mut stage = Stage::new(1..1).await;
        let session = stage.start();
        let (mut up, down) = stage.welcome(0).await;
        let upsert = Assignment {
            task_id: task().to_string(),
            attempt: 2,
            order: vec![1],
            stop: true,
        };
        let full = Assignments {
            version: 1,
            base: 0,
            upserts: vec![upsert.clone()],
            removals: vec![],
        };
        say(&down, Down::Assignments(full)).await;
        let late = Assignments {
            version: 4,
            base: 3,
            upserts: vec![upsert],
            removals: vec![],
        };
        say(&down, Down::Assignments(late)).await;
        assert!(matches!(next(&mut up).await, Up::Resync(_)));
        let expected = [
            "observe, 0 untold",
            &format!("offer {} 2", task()),
            &format!("stop {}", task()),
            "keep 1",
        ];
        assert_eq!(stage.desk.told(), expected);
        stage.stop.cancel();
        within(session).await.unwrap().0.unwrap();
    })
    .await;
}

#[tokio::test]
async fn goodbye_ends_the_session_and_a_final_one_dismisses() {
    local(async {
        for is_final in [false, true] {
            let mut stage = Stage::new(1..1).await;
            let session = stage.start();
            let (_up, down) = stage.welcome(0).await;
            say(
                &down,
                Down::Goodbye(Goodbye {
                    reason: "WHY\u{1b}[31m".into(),
                    r#final: is_final,
                }),
            )
            .await;
            let reason = match (within(session).await.unwrap().0.unwrap(), is_final) {
                (Ended::Goodbye { reason }, false) | (Ended::Dismissed { reason }, true) => reason,
                (other, _) => panic!("{other:?}"),
            };
            assert_eq!(reason, "WHY[31m");
        }
    })
    .await;
}

#[tokio::test]
async fn f24_a_new_certificate_ends_the_session_for_the_next_one() {
    local(async {
        let mut stage = Stage::new(1..1).await;
        let session = stage.start();
        let (mut up, down) = stage.welcome(0).await;
        stage.renewed.send_replace(1);
        // The agent ends its side first; then the orchestrator ends the stream.
        while let Ok(Some(_)) = within(up.message()).await {}
        drop(down);
        assert!(matches!(within(session).await.unwrap().0, Ok(Ended::Renewed)));
    })
    .await;
}

#[tokio::test]
async fn an_orchestrator_that_breaks_the_protocol_is_left() {
    local(async {
        let ack = Down::ReportAck(ReportAck { number: 1 });
        let empty = Down::Assignments(Assignments {
            version: 0,
            base: 0,
            upserts: vec![],
            removals: vec![],
        });
        for odd in [ack, Down::Welcome(Welcome::default()), empty] {
            let mut stage = Stage::new(1..1).await;
            let session = stage.start();
            let (_up, down) = stage.welcome(0).await;
            say(&down, odd).await;
            assert!(matches!(
                within(session).await.unwrap().0,
                Err(SessionError::Protocol(_))
            ));
        }
    })
    .await;
}

/// Three lines of two attempts go up.
async fn tell_lines(stage: &mut Stage) -> (Streaming<ConnectRequest>, Outgoing) {
    for (attempt, seq) in [(1, 1), (2, 1), (1, 2)] {
        let line = LogRecord {
            task_id: task(),
            attempt,
            seq,
            source: "agent".into(),
            text: "x".into(),
            truncated: false,
            at: stage.clock.now(),
        };
        stage.logs.send(line).await.unwrap();
    }
    let (mut up, down) = stage.welcome(0).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let Up::Logs(batch) = next(&mut up).await else {
            panic!("no logs")
        };
        seen.extend(batch.lines.iter().map(|line| (batch.attempt, line.seq)));
    }
    assert_eq!(seen, [(1, 1), (1, 2), (2, 1)]);
    (up, down)
}

#[tokio::test]
async fn log_lines_go_up_by_task_and_attempt_and_are_in_doubt_when_the_connection_breaks() {
    local(async {
        for breaks in [false, true] {
            let mut stage = Stage::new(1..1).await;
            let session = stage.start();
            let streams = tell_lines(&mut stage).await;
            if breaks {
                drop(streams);
            } else {
                stage.stop.cancel();
            }
            assert_eq!(within(session).await.unwrap().0.is_err(), breaks);
            let mut told = stage.desk.told();
            told.retain(|what| what.starts_with("lost"));
            let attempts = [1, 2].map(|attempt| format!("lost {} {attempt}", task()));
            assert_eq!(told, if breaks { attempts.to_vec() } else { Vec::new() });
            stage.stop.cancel();
        }
    })
    .await;
}
