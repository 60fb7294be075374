//! Death of the agent at every effect, and series of deaths.

use super::*;

#[tokio::test(start_paused = true)]
async fn f21_an_attempt_that_always_kills_the_agent_is_given_up() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    agent.down().await;
    let order = samples::order(2, &[("web", "v2")]);
    for start in 0..3 {
        assert!(killed(dir.path(), &host, &order, 1, false), "start {start}");
    }
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(code(&finished), "AGENT_STATE");
    assert_eq!(running(&host), set(&[("web", "v1")]));
    let finished = agent.deploy(&samples::order(3, &[("web", "v3")])).await;
    assert_eq!(finished.result(), Wire::Succeeded, "others are served");
    agent.down().await;
}

/// An agent that gets `order` and dies at its `at`-th effect. Answers whether it came to that.
fn killed(dir: &Path, host: &FakeHost, order: &Order<Manifest>, at: u64, after: bool) -> bool {
    let (runtime_dir, order, host_in) = (dir.to_owned(), order.clone(), host.clone());
    // A runtime of its own, so that dropping it ends everything at once, as a kill does.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            host_in.hang_at(at, after);
            let agent = Agent::start(&host_in, &runtime_dir, &samples::clock()).await;
            agent.offer(&order).await;
            until(|| !agent.workshop.is_busy() || host_in.is_hung()).await;
        });
    })
    .join()
    .unwrap();
    host.revive()
}

/// What became of `order` in spite of deaths.
async fn survive(dir: &Path, host: &FakeHost, order: &Order<Manifest>, deaths: &[(u64, bool)]) -> Finished {
    for (at, after) in deaths {
        killed(dir, host, order, *at, *after);
    }
    let agent = Agent::start(host, dir, &samples::clock()).await;
    agent.offer(order).await;
    agent.idle().await;
    let finished = agent.finished(order).unwrap();
    agent.down().await;
    finished
}

fn check_whole(host: &FakeHost, dir: &Path, finished: &Finished, wanted_version: &str, context: &str) {
    let old = set(&[("web", "v1"), ("db", "v1")]);
    let new = set(&[("web", wanted_version), ("db", "v2")]);
    let stickers = Stickers::new(dir);
    let order = samples::order(2, &[]);
    let path = stickers.path(&order.target, &order.environment, &order.release.project);
    let sticker = Sticker::from_file(&Stickers::read(&path).unwrap().unwrap()).unwrap();
    match finished.result() {
        Wire::Succeeded => {
            assert_eq!(running(host), new, "{context}");
            assert_eq!(sticker.fence, Fence(2), "{context}");
        }
        Wire::Failed => {
            assert_ne!(code(finished), "RESTORE_FAILED", "{context}");
            assert_eq!(running(host), old, "{context}");
            assert_eq!(sticker.fence, Fence(1), "{context}");
        }
        other => panic!("{other:?} {context}"),
    }
    assert_eq!(ours(host).len(), 2, "{context}");
    let silent = |container: &FakeContainer| container.networks.get(swaps::EDGE).is_some_and(Vec::is_empty);
    assert!(!ours(host).iter().any(silent), "{context}");
    statement(finished);
}

async fn crash_case(version: &str, deaths: &[(u64, bool)]) {
    crash_case_of(|order| order, version, deaths).await;
}

/// `shape` makes of both orders what they are to be.
pub(super) async fn crash_case_of(
    shape: impl Fn(Order<Manifest>) -> Order<Manifest>,
    version: &str,
    deaths: &[(u64, bool)],
) {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent
        .deploy(&shape(samples::order(1, &[("web", "v1"), ("db", "v1")])))
        .await;
    agent.down().await;
    let order = shape(samples::order(2, &[("web", version), ("db", "v2")]));
    let finished = survive(dir.path(), &host, &order, deaths).await;
    check_whole(
        &host,
        dir.path(),
        &finished,
        version,
        &format!("{version} {deaths:?}"),
    );
}

#[tokio::test(start_paused = true)]
async fn r10_death_at_every_effect_of_a_start_first_swap_ends_with_a_whole_set() {
    for version in ["v2", "ill"] {
        for at in 1..=16 {
            for after in [false, true] {
                crash_case_of(swaps::start_first, version, &[(at, after)]).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r10_death_at_every_effect_of_a_blue_green_swap_ends_with_a_whole_set() {
    for at in 1..=20 {
        for after in [false, true] {
            crash_case_of(swaps::blue_green, "v2", &[(at, after)]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r10_death_at_every_effect_ends_with_the_old_or_the_new_set_whole() {
    for version in ["v2", "crash"] {
        for at in 1..=18 {
            for after in [false, true] {
                crash_case(version, &[(at, after)]).await;
            }
        }
    }
}

mod any_history {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn r10_any_series_of_deaths_ends_with_a_whole_set(
            deaths in prop::collection::vec((1_u64..16, any::<bool>()), 1..5),
            good in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(crash_case(if good { "v2" } else { "ill" }, &deaths));
        }
    }
}
