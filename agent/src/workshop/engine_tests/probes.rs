//! Probes of the agent's own on a real engine.

use super::*;

#[tokio::test]
async fn r15_a_probe_that_hangs_on_engine_is_not_begun_again_while_it_runs() {
    images!(plain = "PLAIN");
    let mut place = Place::new(1, None).await;
    let mut spec = samples::service(plain);
    spec.probe = Some(Probe::Exec {
        command: vec!["/demo-app".into(), "sleep".into()],
    });
    let mut order = place.order(0, one(spec));
    // Time for three probes.
    order.limits.healthy_deadline_ms = 8_000;
    place.begin(&order).await;
    let filter = format!(
        "label={}={}",
        crate::labels::TARGET_ID,
        place.bindings[0].target_id
    );
    let mut most = 0;
    while place.workshop.is_busy() {
        let id = docker(&["ps", "-q", "--filter", &filter]);
        if !id.is_empty() {
            let processes = docker(&["top", &id, "-o", "pid,args"]);
            let probes = processes.lines().filter(|line| line.ends_with("sleep"));
            most = most.max(probes.count());
        }
        tokio::task::yield_now().await;
    }
    let finished = place.end(&order).await;
    assert_eq!(code(&finished), "HEALTH_DEADLINE", "{:?}", finished.failure);
    assert_eq!(most, 1);
    place.down().await;
}
