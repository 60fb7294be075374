//! Agents and orchestrator over the real port: the main job on fake engines, and agents that break the protocol in each way.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{path::Path, time::Duration};

use sealift_agent::{connect::Finish, enrol, identity::IdentityStore};
use sealift_common::{
    bounds::REPORT_BATCH, digest::Digest, error::Reason, failure::FailureCode, id::TaskId, job::JobPhase,
    keys::SigningKey, order::open_order, task::TaskState,
};
use sealift_e2e::fleet::{FakeAgent, Fleet, PATIENCE, engine, facts};
use sealift_e2e::packets::{refused, succeeded};
use sealift_proto::agent::v1::{
    Accepted, ConnectRequest, ConnectResponse, Finished, Heartbeat, Hello, LogBatch, LogLine, Progressed,
    Report, ReportBatch, TargetFence, connect_request::Message as Up, connect_response::Message as Down,
    finished, gateway_service_client::GatewayServiceClient, report::Event,
};
use sealift_store::PageRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

#[path = "gateway/certificates.rs"]
mod certificates;
#[path = "gateway/derived.rs"]
mod derived;
#[path = "gateway/ended.rs"]
mod ended;
#[path = "gateway/facts.rs"]
mod facts_told;
#[path = "gateway/looks.rs"]
mod looks;
#[path = "gateway/records.rs"]
mod records;
#[path = "gateway/targets.rs"]
mod targets;
#[path = "gateway/turns.rs"]
mod turns;
#[path = "gateway/upkeep.rs"]
mod upkeep;

use records::{audited, history, stolen, task_of};

/// An agent without manners: says what the test says.
struct Raw {
    out: mpsc::Sender<ConnectRequest>,
    inbound: Streaming<ConnectResponse>,
    key: SigningKey,
}

impl Raw {
    async fn open(fleet: &Fleet, state: &Path) -> Self {
        let (channel, key) = fleet.dial(state).await.unwrap();
        let (out, outgoing) = mpsc::channel(8);
        let inbound = GatewayServiceClient::new(channel)
            .connect(ReceiverStream::new(outgoing))
            .await
            .unwrap()
            .into_inner();
        Self { out, inbound, key }
    }

    /// Opened, greeted, and with its first full set.
    async fn greeted(fleet: &Fleet, state: &Path) -> Self {
        let mut raw = Self::open(fleet, state).await;
        raw.say(hello()).await;
        assert!(matches!(raw.hear().await.unwrap(), Down::Welcome(_)));
        assert!(matches!(raw.hear().await.unwrap(), Down::Assignments(set) if set.base == 0));
        raw
    }

    async fn say(&self, message: Up) {
        // The orchestrator may have ended the stream already; what it answered is what counts.
        let _ = self
            .out
            .send(ConnectRequest {
                message: Some(message),
            })
            .await;
    }

    async fn report(&self, reports: Vec<Report>) {
        self.say(Up::Reports(ReportBatch { reports })).await;
    }

    async fn hear(&mut self) -> Result<Down, Status> {
        let message = tokio::time::timeout(PATIENCE, self.inbound.message())
            .await
            .unwrap()?;
        message
            .and_then(|message| message.message)
            .ok_or_else(|| Status::ok("the end"))
    }

    /// The status that the session ends with.
    async fn refusal(&mut self) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                return status;
            }
        }
    }

    async fn order(&mut self) -> Vec<u8> {
        loop {
            if let Down::Assignments(set) = self.hear().await.unwrap()
                && let Some(assignment) = set.upserts.into_iter().next()
            {
                return assignment.order;
            }
        }
    }
}

fn hello() -> Up {
    Up::Hello(Hello {
        facts: Some(facts().into()),
        next_report: 1,
        fences: Vec::new(),
    })
}

fn report(number: u64, task: TaskId, event: Event) -> Report {
    Report {
        number,
        task_id: task.to_string(),
        attempt: 1,
        time: None,
        event: Some(event),
    }
}

fn accepted(number: u64, task: TaskId) -> Report {
    report(number, task, Event::Accepted(Accepted {}))
}

fn assert_violation(status: &Status) {
    let reason = status.get_details_error_info().map(|info| info.reason);
    assert_eq!(
        (status.code(), reason.as_deref()),
        (Code::InvalidArgument, Some(Reason::ProtocolViolation.as_str())),
        "{status:?}"
    );
}

async fn stop(fleet: Fleet, agents: Vec<FakeAgent>) {
    for agent in agents {
        agent.stop.cancel();
        assert_eq!(
            tokio::time::timeout(PATIENCE, agent.ended)
                .await
                .unwrap()
                .unwrap()
                .unwrap(),
            Finish::Stopped
        );
    }
    assert!(fleet.running.stop().await, "something did not end in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_r8_the_main_job_over_the_wire_ends_with_packets_and_records() {
    let fleet = Fleet::start().await.unwrap();
    let mut agents = Vec::new();
    for name in ["web-1", "web-2"] {
        let target = fleet.target(name).await.unwrap();
        let state = fleet.enrol(&target).await.unwrap();
        agents.push(fleet.run_agent(&state, engine(&["one", "two"])).unwrap());
    }
    fleet.connected(2).await.unwrap();
    for content in ["one", "two"] {
        let job = fleet.promote(content).await.unwrap();
        assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Succeeded);
        let mut tx = fleet.running.app.db.read().await.unwrap();
        for task in tx.tasks_of_job(job).await.unwrap() {
            let packet = tx.packet_of_attempt(task.id, 1).await.unwrap().unwrap();
            assert_eq!(packet.result, "succeeded");
            assert_eq!(tx.attempts(task.id).await.unwrap()[0].packet_id, Some(packet.id));
            let current = tx.current(task.target_id).await.unwrap();
            assert_eq!(current[0].recorded.fence, task.fence);
        }
    }
    for agent in &agents {
        let running: Vec<_> = agent.host.containers();
        assert_eq!(running.len(), 1);
        assert_eq!(running[0].image.digest, Digest::of(b"two"));
    }
    stop(fleet, agents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_an_agent_that_was_away_takes_up_its_order_when_it_is_back() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let raw = Raw::greeted(&fleet, &state).await;
    let job = fleet.promote("one").await.unwrap();
    drop(raw);
    let agent = fleet.run_agent(&state, engine(&["one"])).unwrap();
    assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Succeeded);
    stop(fleet, vec![agent]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t3_a_join_token_used_many_times_at_once_enrols_one_agent() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let token = fleet.token(&target).await.unwrap();
    let endpoint = fleet.endpoint().unwrap();
    let tries = (0..8).map(|n| {
        let state = fleet.folder.path().join(format!("host-{n}"));
        let (endpoint, token) = (endpoint.clone(), token.clone());
        async move { enrol::join(&state, &endpoint, &token, facts()).await }
    });
    let results = futures::future::join_all(tries).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let mut tx = fleet.running.app.db.read().await.unwrap();
    let page = PageRequest {
        size: 50,
        after: None,
    };
    assert_eq!(tx.list_agents(fleet.tenant, &page).await.unwrap().items.len(), 1);
    drop(tx);
    // Who came first and who was told in the transaction only differs from run to run; none of them goes unnoticed.
    let refused = audited(&fleet, Reason::JoinTokenRefused.as_str()).await;
    assert!((1..8).contains(&refused), "{refused}");
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_the_newest_session_wins_and_a_revoked_agent_is_dismissed() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut older = Raw::greeted(&fleet, &state).await;
    let agent = fleet.run_agent(&state, engine(&[])).unwrap();
    let goodbye = older.hear().await.unwrap();
    assert!(
        matches!(goodbye, Down::Goodbye(goodbye) if goodbye.reason == Reason::SessionReplaced.as_str() && !goodbye.r#final)
    );
    fleet.connected(1).await.unwrap();

    let app = &fleet.running.app;
    let id = fleet.agent_of(&target).await.unwrap();
    let mut tx = app.db.write().await.unwrap();
    tx.revoke_agent(id, &stolen(app.clock.now())).await.unwrap();
    tx.commit().await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), agent.ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        ended,
        Finish::Dismissed {
            reason: Reason::CertificateRefused.as_str().into()
        }
    );
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_broken_beginnings_are_answered_and_audited() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let ghost = TaskId::new(fleet.running.app.clock.now());
    let beat = Up::Heartbeat(Heartbeat {
        time: None,
        facts: None,
        wants_time: false,
    });
    let without_facts = Up::Hello(Hello {
        facts: None,
        next_report: 1,
        fences: Vec::new(),
    });
    let batch = Up::Reports(ReportBatch {
        reports: vec![accepted(1, ghost)],
    });
    for first in [beat, without_facts, batch] {
        let mut raw = Raw::open(&fleet, &state).await;
        raw.say(first).await;
        assert_violation(&raw.refusal().await);
    }
    let mut raw = Raw::greeted(&fleet, &state).await;
    raw.say(hello()).await;
    assert_violation(&raw.refusal().await);
    assert_eq!(audited(&fleet, Reason::ProtocolViolation.as_str()).await, 1);
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_reports_and_logs_about_foreign_tasks_change_nothing() {
    let fleet = Fleet::start().await.unwrap();
    let (mine, theirs) = (
        fleet.target("web-1").await.unwrap(),
        fleet.target("web-2").await.unwrap(),
    );
    let (victim_state, rogue_state) = (
        fleet.enrol(&mine).await.unwrap(),
        fleet.enrol(&theirs).await.unwrap(),
    );
    let mut victim = Raw::greeted(&fleet, &victim_state).await;
    // Online, so that the promotion's gates pass.
    let first = Raw::greeted(&fleet, &rogue_state).await;
    let job = fleet.promote("one").await.unwrap();
    victim.order().await;
    let mut tx = fleet.running.app.db.read().await.unwrap();
    let task = tx
        .tasks_of_job(job)
        .await
        .unwrap()
        .into_iter()
        .find(|task| task.target_id == mine.id)
        .unwrap();
    drop(tx);
    let before = history(&fleet, task.id).await;
    drop(first);

    let line = LogLine {
        seq: 1,
        source: "agent".into(),
        text: "x".into(),
        time: Some(sealift_proto::convert::timestamp(chrono::DateTime::UNIX_EPOCH)),
        truncated: false,
    };
    let logs = Up::Logs(LogBatch {
        task_id: task.id.to_string(),
        attempt: 1,
        lines: vec![line],
    });
    let progress = Event::Progressed(Progressed {
        step: "pulling".into(),
    });
    for message in [
        Up::Reports(ReportBatch {
            reports: vec![accepted(1, task.id)],
        }),
        Up::Reports(ReportBatch {
            reports: vec![report(1, task.id, progress)],
        }),
        logs,
    ] {
        let mut rogue = Raw::open(&fleet, &rogue_state).await;
        rogue.say(hello()).await;
        rogue.say(message).await;
        assert_violation(&rogue.refusal().await);
    }
    assert_eq!(history(&fleet, task.id).await, before);
    // The victim's session is not harmed.
    victim.report(vec![accepted(1, task.id)]).await;
    loop {
        if let Down::ReportAck(ack) = victim.hear().await.unwrap() {
            assert_eq!(ack.number, 1);
            break;
        }
    }
    drop(victim);
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r9_wrong_numbers_and_oversized_batches_are_refused_and_repeats_are_acknowledged() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut raw = Raw::greeted(&fleet, &state).await;
    let job = fleet.promote("one").await.unwrap();
    raw.order().await;
    let task = task_of(&fleet, job).await.id;
    drop(raw);
    let before = history(&fleet, task).await;
    let many = (1..=REPORT_BATCH as u64 + 1)
        .map(|number| accepted(number, task))
        .collect();
    let mut later = accepted(1, task);
    later.attempt = 2;
    let cases: Vec<Vec<Report>> = vec![
        vec![],
        vec![accepted(0, task)],
        vec![accepted(2, task)],
        vec![accepted(1, task), accepted(3, task)],
        many,
        vec![later],
        vec![Report {
            event: None,
            ..accepted(1, task)
        }],
    ];
    for reports in cases {
        let mut raw = Raw::greeted_anew(&fleet, &state).await;
        raw.report(reports).await;
        assert_violation(&raw.refusal().await);
    }
    assert_eq!(history(&fleet, task).await, before);
    let mut raw = Raw::greeted_anew(&fleet, &state).await;
    for _ in 0..2 {
        raw.report(vec![accepted(1, task)]).await;
        loop {
            if let Down::ReportAck(ack) = raw.hear().await.unwrap() {
                assert_eq!(ack.number, 1);
                break;
            }
        }
    }
    assert_eq!(history(&fleet, task).await, before + 1);
    drop(raw);
    stop(fleet, vec![]).await;
}

impl Raw {
    /// Waits until reports up to this number are acknowledged.
    async fn acknowledged(&mut self, number: u64) {
        loop {
            if let Down::ReportAck(ack) = self.hear().await.unwrap() {
                assert_eq!(ack.number, number);
                return;
            }
        }
    }

    /// As [`Raw::greeted`], for an agent that may have assignments.
    async fn greeted_anew(fleet: &Fleet, state: &Path) -> Self {
        let mut raw = Self::open(fleet, state).await;
        raw.say(hello()).await;
        assert!(matches!(raw.hear().await.unwrap(), Down::Welcome(_)));
        raw
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_r12_a_report_without_proof_fails_the_attempt_and_is_acknowledged() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut raw = Raw::greeted(&fleet, &state).await;
    let cases = [
        "another key",
        "another result",
        "no packet",
        "success without",
        "right",
    ];
    let other_key = SigningKey::from_seed(&[9; 32]);
    for (number, case) in (1..).zip(cases) {
        let job = fleet.promote(case).await.unwrap();
        let bytes = raw.order().await;
        let order = open_order(&bytes, &[fleet.running.app.identity.keys.order.public()]).unwrap();
        let right = refused(&bytes, &order, order.agent_id, &raw.key).unwrap();
        let said = match case {
            "another key" => refused(&bytes, &order, order.agent_id, &other_key).unwrap(),
            "another result" => Finished {
                result: finished::Result::Failed.into(),
                ..right
            },
            "no packet" => Finished {
                packet: Vec::new(),
                ..right
            },
            "success without" => Finished {
                result: finished::Result::Succeeded.into(),
                failure: None,
                ..right
            },
            _ => right,
        };
        raw.report(vec![report(number, order.task_id, Event::Finished(said))])
            .await;
        raw.acknowledged(number).await;
        assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Failed, "{case}");
        let wanted = match case {
            "no packet" | "right" => FailureCode::OrderRefused,
            _ => FailureCode::AgentState,
        };
        let task = task_of(&fleet, job).await;
        assert!(
            matches!(&task.state, TaskState::Failed { failure } if failure.code == wanted),
            "{case}: {:?}",
            task.state
        );
        let mut tx = fleet.running.app.db.read().await.unwrap();
        let packet = tx.packet_of_attempt(order.task_id, 1).await.unwrap();
        assert_eq!(packet.is_some(), case == "right", "{case}");
        let attempts = tx.attempts(order.task_id).await.unwrap();
        assert_eq!(attempts[0].packet_id, packet.map(|packet| packet.id), "{case}");
    }
    assert_eq!(audited(&fleet, FailureCode::AgentState.as_str()).await, 3);
    assert_eq!(audited(&fleet, FailureCode::OrderRefused.as_str()).await, 1);
    drop(raw);
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_a_sticker_that_does_not_follow_the_recorded_one_is_drift() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut raw = Raw::greeted(&fleet, &state).await;
    let mut last = None;
    for (number, (content, edited)) in (1..).zip([("one", false), ("two", false), ("three", true)]) {
        let job = fleet.promote(content).await.unwrap();
        let bytes = raw.order().await;
        let order = open_order(&bytes, &[fleet.running.app.identity.keys.order.public()]).unwrap();
        let previous = if edited { Some(Digest::of(b"edited")) } else { last };
        let (said, sticker) = succeeded(&bytes, &order, previous, &raw.key).unwrap();
        last = Some(sticker);
        raw.report(vec![report(number, order.task_id, Event::Finished(said))])
            .await;
        raw.acknowledged(number).await;
        assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Succeeded, "{content}");
        let mut tx = fleet.running.app.db.read().await.unwrap();
        let open = tx.drifted_projects(target.id).await.unwrap();
        assert_eq!(!open.is_empty(), edited, "{content}: {open:?}");
    }
    assert_eq!(audited(&fleet, "sticker_edited").await, 1);
    drop(raw);
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f16_a_database_that_is_older_than_its_agents_gives_no_orders() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut raw = Raw::open(&fleet, &state).await;
    let fences = vec![TargetFence {
        target_id: target.id.to_string(),
        fence: 7,
    }];
    raw.say(Up::Hello(Hello {
        facts: Some(facts().into()),
        next_report: 1,
        fences,
    }))
    .await;
    let status = raw.refusal().await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("restored from an older copy"));
    assert_eq!(audited(&fleet, Reason::WrongState.as_str()).await, 1);
    stop(fleet, vec![]).await;
}
