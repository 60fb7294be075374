//! One agent with several targets.

use sealift_agent::enrol;
use sealift_common::{error::Reason, job::JobPhase, order::Fence};
use sealift_e2e::fleet::{Fleet, engine};

use super::{audited, stop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_agent_gets_another_target_with_fences_of_its_own() {
    let fleet = Fleet::start().await.unwrap();
    let (first, second) = (
        fleet.target("web-1").await.unwrap(),
        fleet.target("web-2").await.unwrap(),
    );
    let state = fleet.enrol(&first).await.unwrap();
    let agent = fleet.run_agent(&state, engine(&["v1", "v2"])).unwrap();
    fleet.connected(1).await.unwrap();

    let token = fleet.token(&second).await.unwrap();
    let endpoint = fleet.endpoint().unwrap();
    let added = enrol::add_target(&state, None, &token).await.unwrap();
    assert_eq!((added.target_id, &added.target), (second.id, &second.name));
    // An answer that was lost: the same agent may ask again, and nothing changes.
    assert_eq!(
        enrol::add_target(&state, Some(&endpoint), &token).await.unwrap(),
        added
    );

    for content in ["v1", "v2"] {
        let job = fleet.promote(content).await.unwrap();
        assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Succeeded);
    }
    let mut tx = fleet.running.app.db.read().await.unwrap();
    let mut agents = Vec::new();
    for target in [&first, &second] {
        let now = tx.target(fleet.tenant, target.id).await.unwrap().unwrap();
        assert_eq!(now.fence, Fence(2), "{}", now.name);
        agents.push(now.agent_id.unwrap());
    }
    assert_eq!(agents[0], agents[1]);
    drop(tx);
    assert_eq!(agent.host.containers().len(), 2, "one container on each target");
    stop(fleet, vec![agent]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_token_gives_a_target_to_one_agent_only() {
    let fleet = Fleet::start().await.unwrap();
    let (first, second, third) = (
        fleet.target("web-1").await.unwrap(),
        fleet.target("web-2").await.unwrap(),
        fleet.target("web-3").await.unwrap(),
    );
    let one = fleet.enrol(&first).await.unwrap();
    let other = fleet.enrol(&second).await.unwrap();
    let token = fleet.token(&third).await.unwrap();
    enrol::add_target(&one, None, &token).await.unwrap();
    let used = enrol::add_target(&other, None, &token).await.unwrap_err();
    assert!(used.to_string().contains("not accepted"), "{used}");
    assert_eq!(audited(&fleet, Reason::JoinTokenRefused.as_str()).await, 1);

    let taken = fleet.token(&first).await.unwrap();
    let refused = enrol::add_target(&other, None, &taken).await.unwrap_err();
    assert!(refused.to_string().contains("has an agent already"), "{refused}");
    // Whoever serves it already has nothing to do, least of all to be revoked.
    enrol::add_target(&one, None, &taken).await.unwrap();
    let nobody = tempfile::tempdir().unwrap();
    let path = nobody.path().join("state");
    let refused = enrol::add_target(&path, None, &taken).await.unwrap_err();
    assert!(refused.to_string().contains("not enrolled"), "{refused}");
    stop(fleet, vec![]).await;
}
