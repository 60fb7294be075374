//! What a session does at the same time does not stand in its own way.

use sealift_e2e::fleet::Fleet;
use sealift_proto::agent::v1::{Heartbeat, Observation, connect_response::Message as Down};

use super::{PATIENCE, Raw, Up, stop};

/// Each observation is read and judged while the session is told again and again that its assignments changed, and there is one
/// connection to the store for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_reads_its_assignments_goes_on_with_what_its_agent_said() {
    let fleet = Fleet::start_with(|config| {
        config.database.max_connections = 1;
        // Longer than the test waits: nothing here is helped by a wait that ends.
        config.database.acquire_seconds = PATIENCE.as_secs() * 2;
    })
    .await
    .unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let app = &fleet.running.app;
    let mut tx = app.db.read().await.unwrap();
    let served = tx.target(target.tenant_id, target.id).await.unwrap().unwrap();
    drop(tx);
    let agent = served.agent_id.unwrap();
    let mut raw = Raw::greeted(&fleet, &state).await;

    let presence = std::sync::Arc::clone(&app.presence);
    let mut news = tokio::task::JoinSet::new();
    news.spawn(async move {
        loop {
            presence.notify(agent);
            tokio::task::yield_now().await;
        }
    });
    for number in 0..200 {
        raw.say(Up::Observation(Observation {
            target_id: target.id.to_string(),
            time: Some(sealift_proto::convert::timestamp(target.created_at)),
            // Never the same twice in a row: that would not be looked at.
            busy: number % 2 == 0,
            projects: Vec::new(),
            events: Vec::new(),
        }))
        .await;
    }
    raw.say(Up::Heartbeat(Heartbeat {
        time: None,
        facts: None,
        wants_time: true,
    }))
    .await;
    while !matches!(raw.hear().await.unwrap(), Down::ServerTime(_)) {}
    news.abort_all();
    drop(raw);
    stop(fleet, vec![]).await;
}
