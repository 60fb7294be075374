//! Words about what is over, or from who does not count any more, and words that were said before.

use sealift_agent::enrol;
use sealift_common::{error::Reason, job::JobPhase, order::open_order};
use sealift_e2e::fleet::{Fleet, facts};
use sealift_orchestrator::app::abandon_task::abandon_task;
use sealift_proto::agent::v1::{
    Observation, ObservedProject, StickerMissing, observed_project::Sticker, report::Event,
};
use sealift_store::PageRequest;
use tonic::Code;

use super::{Raw, Up, audited, report, stolen, stop, succeeded};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_a_late_success_is_kept_as_proof_and_changes_no_record() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut raw = Raw::greeted(&fleet, &state).await;
    let app = &fleet.running.app;
    let job = fleet.promote("one").await.unwrap();
    let bytes = raw.order().await;
    let order = open_order(&bytes, &[app.identity.keys.order.public()]).unwrap();
    let mut tx = app.db.write().await.unwrap();
    let task = tx.task(order.task_id).await.unwrap().unwrap();
    abandon_task(&mut tx, &task, "a test", "orchestrator", app.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Failed);
    let (said, _) = succeeded(&bytes, &order, None, &raw.key).unwrap();
    raw.report(vec![report(1, order.task_id, Event::Finished(said))])
        .await;
    raw.acknowledged(1).await;
    let mut tx = app.db.read().await.unwrap();
    assert!(tx.packet_of_attempt(order.task_id, 1).await.unwrap().is_some());
    assert!(tx.current(target.id).await.unwrap().is_empty());
    drop(tx);
    drop(raw);
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_what_a_revoked_agent_says_is_not_stored_even_before_its_session_ends() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut raw = Raw::greeted(&fleet, &state).await;
    let app = &fleet.running.app;
    let job = fleet.promote("one").await.unwrap();
    let bytes = raw.order().await;
    let order = open_order(&bytes, &[app.identity.keys.order.public()]).unwrap();
    let (said, _) = succeeded(&bytes, &order, None, &raw.key).unwrap();
    // Held until the report is with the writer: whatever the session hears first, nothing of the report may count.
    let mut tx = app.db.write().await.unwrap();
    tx.revoke_agent(order.agent_id, &stolen(app.clock.now()))
        .await
        .unwrap();
    raw.report(vec![report(1, order.task_id, Event::Finished(said))])
        .await;
    tx.commit().await.unwrap();
    let end = raw.refusal().await;
    assert!(matches!(end.code(), Code::Ok | Code::Unauthenticated), "{end:?}");
    assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Failed);
    let mut tx = app.db.read().await.unwrap();
    assert!(tx.packet_of_attempt(order.task_id, 1).await.unwrap().is_none());
    assert!(tx.current(target.id).await.unwrap().is_empty());
    drop(tx);
    drop(raw);
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_what_was_seen_while_a_task_was_under_way_is_judged_when_it_is_said_again() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut raw = Raw::greeted(&fleet, &state).await;
    let app = &fleet.running.app;
    let job = fleet.promote("one").await.unwrap();
    let bytes = raw.order().await;
    let order = open_order(&bytes, &[app.identity.keys.order.public()]).unwrap();
    let seen = || {
        Up::Observation(Observation {
            target_id: target.id.to_string(),
            time: Some(sealift_proto::convert::timestamp(order.not_before)),
            busy: false,
            projects: vec![ObservedProject {
                project: order.release.project.to_string(),
                sticker: Some(Sticker::StickerMissing(StickerMissing {})),
                containers: Vec::new(),
            }],
            events: Vec::new(),
        })
    };
    raw.say(seen()).await;
    let (said, _) = succeeded(&bytes, &order, None, &raw.key).unwrap();
    raw.report(vec![report(1, order.task_id, Event::Finished(said))])
        .await;
    raw.acknowledged(1).await;
    assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Succeeded);
    drop(raw);
    // The same content, in a new session: it was stored, and never judged.
    let raw = Raw::greeted_anew(&fleet, &state).await;
    let mut changes = app.db.changes();
    raw.say(seen()).await;
    let judged = async {
        loop {
            let mut tx = app.db.read().await.unwrap();
            let open = tx.drifted_projects(target.id).await.unwrap();
            drop(tx);
            if !open.is_empty() {
                return;
            }
            let _ = changes.recv().await;
        }
    };
    tokio::time::timeout(super::PATIENCE, judged).await.unwrap();
    drop(raw);
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t3_the_second_use_of_a_join_token_is_named_whatever_else_is_refused() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let token = fleet.token(&target).await.unwrap();
    let other = fleet.target("web-2").await.unwrap();
    let endpoint = fleet.endpoint().unwrap();
    let join = async |name: &str, token: &sealift_common::join_token::JoinToken| {
        enrol::join(&fleet.folder.path().join(name), &endpoint, token, facts()).await
    };
    join("first", &token).await.unwrap();
    // Somebody without any secret opens the window in which denials of this method are only counted.
    let guess = sealift_common::join_token::JoinToken::new(
        sealift_common::id::JoinTokenId::new(fleet.running.app.clock.now()),
        [1; 32],
        *fleet.running.app.identity.ca.digest().as_bytes(),
    );
    join("guess", &guess).await.unwrap_err();
    join("second", &token).await.unwrap_err();
    assert_eq!(audited(&fleet, Reason::JoinTokenRefused.as_str()).await, 2);
    let mut tx = fleet.running.app.db.read().await.unwrap();
    let events = tx.list_audit(None, &PageRequest::first(1)).await.unwrap().items;
    assert_eq!(events[0].entry.resource, format!("joinTokens/{}", token.id()));
    drop(tx);
    // A good one still enrols.
    let good = fleet.token(&other).await.unwrap();
    join("third", &good).await.unwrap();
    stop(fleet, vec![]).await;
}
