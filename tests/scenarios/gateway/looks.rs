//! In which session something was seen, and in which an agent is.

use sealift_common::{id::SessionId, inventory::Agent};
use sealift_e2e::fleet::Fleet;
use sealift_orchestrator::{app::Core, loops::heartbeats};
use sealift_proto::agent::v1::Observation;
use sealift_store::Look;

use super::{PATIENCE, Raw, Up, stop};

/// Else a canary would pass by what its host told before it was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_counts_in_the_session_in_which_it_was_told() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let app = &fleet.running.app;
    let agent = async || -> Agent {
        let mut tx = app.db.read().await.unwrap();
        let served = tx.target(target.tenant_id, target.id).await.unwrap().unwrap();
        tx.agent_by_id(served.agent_id.unwrap()).await.unwrap().unwrap()
    };
    let told = async |session: SessionId| -> Look {
        let mut changes = app.db.changes();
        let stored = async {
            loop {
                let mut tx = app.db.read().await.unwrap();
                let look = tx.looks(&[target.id]).await.unwrap().remove(&target.id);
                drop(tx);
                if let Some(look) = look.filter(|look| look.session == session) {
                    return look;
                }
                let _ = changes.recv().await;
            }
        };
        tokio::time::timeout(PATIENCE, stored).await.unwrap()
    };
    let seen = || {
        Up::Observation(Observation {
            target_id: target.id.to_string(),
            time: Some(sealift_proto::convert::timestamp(target.created_at)),
            busy: false,
            projects: Vec::new(),
            events: Vec::new(),
        })
    };
    let core = Core::of(app);

    let raw = Raw::greeted(&fleet, &state).await;
    let first = (core.session_of)(&agent().await).unwrap();
    raw.say(seen()).await;
    let before = told(first).await;
    drop(raw);

    let raw = Raw::greeted_anew(&fleet, &state).await;
    let second = (core.session_of)(&agent().await).unwrap();
    assert_ne!(second, before.session);
    // Another replica knows it from the store.
    heartbeats::flush(app).await.unwrap();
    assert_eq!(agent().await.session, Some(second));
    raw.say(seen()).await;
    assert_eq!(told(second).await.seen, before.seen);
    drop(raw);
    stop(fleet, vec![]).await;
}
