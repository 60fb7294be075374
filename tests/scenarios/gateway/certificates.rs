//! Certificates that end: by revocation, and by renewal.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_an_agent_that_was_revoked_while_it_was_away_is_dismissed_when_it_comes_back() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let app = &fleet.running.app;
    let id = fleet.agent_of(&target).await.unwrap();
    let mut tx = app.db.write().await.unwrap();
    tx.revoke_agent(id, &stolen(app.clock.now())).await.unwrap();
    tx.commit().await.unwrap();
    let agent = fleet.run_agent(&state, engine(&[])).unwrap();
    let ended = tokio::time::timeout(PATIENCE, agent.ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(matches!(ended, Finish::Dismissed { .. }));
    stop(fleet, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f24_a_certificate_is_renewed_with_a_new_key_and_work_goes_on() {
    let fleet = Fleet::start_with(|config| config.identity.agent_certificate_seconds = 60)
        .await
        .unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let store = IdentityStore::open(state.clone()).unwrap();
    let first = store.load().unwrap().unwrap().current;
    // Dated back by five minutes, so that such a short life is half over at once.
    let agent = fleet.run_agent(&state, engine(&["one"])).unwrap();
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let second = tokio::time::timeout(PATIENCE, async {
        loop {
            let kept = store.load().unwrap().unwrap();
            if kept.current != first {
                return kept.current;
            }
            looks.tick().await;
        }
    })
    .await
    .unwrap();
    assert_ne!(second.key_pem(), first.key_pem());
    fleet.connected(1).await.unwrap();
    let job = fleet.promote("one").await.unwrap();
    assert_eq!(fleet.end_of(job).await.unwrap(), JobPhase::Succeeded);
    // Not again and again.
    assert_eq!(store.load().unwrap().unwrap().current, second);
    stop(fleet, vec![agent]).await;
}
