//! Exchanges in which something is wrong with the image, the disk, the marker, the launcher, the link or the orchestrator.

use super::*;
use crate::{program::files::FOLDER, work::Work as _};

/// What the next copies out of images are, counted.
fn copies(host: &Host) -> usize {
    let calls = host.engine.recorded_calls();
    calls.iter().filter(|call| **call == "copy_out").count()
}

/// The marker cannot be written any more, as on a disk that is full.
fn fill(host: &Host) {
    std::fs::create_dir(host.dir.path().join(FOLDER).join(".marker.json.new")).unwrap();
}

fn make_room(host: &Host) {
    std::fs::remove_dir(host.dir.path().join(FOLDER).join(".marker.json.new")).unwrap();
}

fn spoil_marker(host: &Host) {
    std::fs::write(host.dir.path().join(FOLDER).join("marker.json"), "{").unwrap();
}

/// A good program that has been handed over to.
async fn handed_over(host: &Host) -> (Digest, Order<AgentManifest>) {
    let program = publish(&host.engine, "p2", &publisher());
    let order = order(1, "p2");
    host.offer(&order).await;
    host.hand_over.cancelled().await;
    (program, order)
}

#[tokio::test(start_paused = true)]
async fn r4_a_signature_is_judged_before_its_program_is_copied() {
    let host = Host::start(vec![publisher().public()]).await;
    publish(&host.engine, "p2", &SigningKey::from_seed(&[6; 32]));
    host.engine.record_calls();
    let first = order(1, "p2");
    host.offer(&first).await;
    assert_eq!(
        code(&host.ended(&first).await),
        FailureCode::AgentUpdateRefused.as_str()
    );
    assert_eq!(copies(&host), 1, "only what a stranger had signed it with");
    assert!(host.left().is_empty(), "{:?}", host.left());

    publish(&host.engine, "p3", &publisher());
    host.engine.record_calls();
    host.offer(&order(2, "p3")).await;
    host.hand_over.cancelled().await;
    assert_eq!(copies(&host), 2);
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r4_no_more_is_copied_than_was_signed_and_nothing_of_it_stays() {
    let host = Host::start(vec![publisher().public()]).await;
    publish(&host.engine, "p2", &publisher());
    let image = samples::image("p2").digest;
    for (fence, content) in [(1, "program p2 and more"), (2, "program")] {
        host.engine.publish_file(image, PROGRAM_PATH, content.as_bytes());
        let order = order(fence, "p2");
        host.offer(&order).await;
        let refused = host.ended(&order).await;
        assert_eq!(
            code(&refused),
            FailureCode::AgentUpdateRefused.as_str(),
            "{content}"
        );
        host.agent.idle().await;
        assert!(host.left().is_empty(), "{content}: {:?}", host.left());
    }
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_has_no_room_is_not_copied() {
    let host = Host::start(vec![publisher().public()]).await;
    let host = host
        .again(Settings {
            reserve: u64::MAX / 2,
            ..Settings::trusting()
        })
        .await;
    publish(&host.engine, "p2", &publisher());
    host.engine.record_calls();
    let order = order(1, "p2");
    host.offer(&order).await;
    let failed = host.ended(&order).await;
    assert_eq!(code(&failed), FailureCode::DiskFull.as_str());
    assert!(format!("{failed:?}").contains("MiB free"), "{failed:?}");
    assert_eq!(copies(&host), 1, "the signature says how large it is");
    assert!(host.left().is_empty(), "{:?}", host.left());
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn what_came_in_before_a_crash_is_dropped_at_the_start() {
    let host = Host::start(vec![publisher().public()]).await;
    host.files().make().unwrap();
    let (program, signature) = host.files().incoming();
    for path in [program, signature] {
        std::fs::write(path, "a part").unwrap();
    }
    let host = host.again(Settings::trusting()).await;
    assert!(host.left().is_empty(), "{:?}", host.left());
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r15_a_link_that_breaks_in_the_middle_starts_the_count_anew() {
    let host = Host::start(vec![publisher().public()]).await;
    let (_, order) = handed_over(&host).await;
    let host = host.next_process().await;
    let mut proof = host.agent.workshop.wants_proof();
    proof.wait_for(|wanted| *wanted).await.unwrap();
    let (since, wanted) = (
        Instant::now(),
        Duration::from_millis(order.limits.min_healthy_ms.into()),
    );
    let almost = wanted.checked_sub(Duration::from_millis(1)).unwrap();
    let answers = |since: Instant, lasting| {
        let last = since + lasting;
        host.link.send_replace(Some(Answers { since, last }));
    };
    answers(since, almost);
    tokio::time::sleep(wanted).await;
    assert!(host.finished(&order).is_none(), "one answer proves one moment");
    host.link.send_replace(None);
    answers(Instant::now(), almost);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(
        host.finished(&order).is_none(),
        "what was before the break does not count"
    );
    answers(Instant::now(), wanted);
    assert_eq!(host.ended(&order).await.result(), Wire::Succeeded);
    assert!(
        !*host.agent.workshop.wants_proof().borrow(),
        "asked for no longer"
    );
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_a_launcher_that_does_not_try_the_new_program_is_not_asked_again() {
    let host = Host::start(vec![publisher().public()]).await;
    let (program, order) = handed_over(&host).await;
    // The same program again: the launcher could not lock.
    let settings = Settings {
        problem: Some("new program is not tried: no space left"),
        ..Settings::trusting()
    };
    let host = host.again(settings).await;
    let failed = host.ended(&order).await;
    assert_eq!(failed.result(), Wire::Failed);
    assert_eq!(code(&failed), FailureCode::AgentState.as_str());
    assert!(format!("{failed:?}").contains("no space left"), "{failed:?}");
    assert!(host.problems().contains("no space left"));
    host.agent.idle().await;
    assert!(!host.hand_over.is_cancelled(), "that would never end");
    assert_eq!(host.marker().trial, None);
    assert!(!host.files().program(program).exists(), "it is tidied away");
    // And whatever waited goes on.
    let later = samples::order(3, &[("web", "v1")]);
    assert_eq!(host.agent.deploy(&later).await.result(), Wire::Succeeded);
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_an_exchange_whose_marker_cannot_be_written_ends_and_its_trial_later() {
    let host = Host::start(vec![publisher().public()]).await;
    let (program, order) = handed_over(&host).await;
    fill(&host);
    let host = host.again(Settings::trusting()).await;
    let failed = host.ended(&order).await;
    assert_eq!(code(&failed), FailureCode::AgentState.as_str(), "{failed:?}");
    assert!(!host.hand_over.is_cancelled());
    assert!(host.marker().trial.is_some(), "which could not be written down");
    // With room again the launcher tries it, and nobody waits for it.
    make_room(&host);
    let host = host.next_process().await;
    assert_eq!(host.own, host.files().program(program));
    host.hand_over.cancelled().await;
    assert_eq!(host.marker().trial, None);
    let host = host.next_process().await;
    assert_eq!(host.own, host.dir.path().join("packaged"));
    host.agent.idle().await;
    let later = samples::order(3, &[("web", "v1")]);
    assert_eq!(host.agent.deploy(&later).await.result(), Wire::Succeeded);
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn a_marker_that_cannot_be_read_ends_the_exchange_and_is_put_aside() {
    let host = Host::start(vec![publisher().public()]).await;
    let (program, order) = handed_over(&host).await;
    let host = host.next_process().await;
    assert_eq!(host.own, host.files().program(program));
    spoil_marker(&host);
    host.answered();
    // It cannot be found good, so the packaged program runs again.
    host.hand_over.cancelled().await;
    assert!(
        host.problems().contains("was put aside as"),
        "{}",
        host.problems()
    );
    assert_eq!(host.marker(), Marker::default());
    let host = host.next_process().await;
    assert_eq!(host.own, host.dir.path().join("packaged"));
    let failed = host.ended(&order).await;
    assert_eq!(failed.result(), Wire::Failed);
    assert_eq!(code(&failed), FailureCode::AgentState.as_str());
    host.agent.idle().await;
    assert!(host.left().contains(&"marker.unreadable.json".to_owned()));

    // The next exchange is in nobody's way, nor is an unreadable marker in its.
    spoil_marker(&host);
    let order = self::order(2, "p2");
    host.offer(&order).await;
    assert_eq!(code(&host.ended(&order).await), FailureCode::AgentState.as_str());
    let order = self::order(3, "p2");
    host.offer(&order).await;
    host.hand_over.cancelled().await;
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_has_one_program_and_refuses_a_second_target_for_it() {
    let host = Host::start(vec![publisher().public()]).await;
    let (_, first) = handed_over(&host).await;
    let refused = |finished: Finished| {
        assert_eq!(finished.result(), Wire::Refused, "{finished:?}");
        assert_eq!(code(&finished), FailureCode::AgentUpdateRefused.as_str());
        format!("{finished:?}")
    };
    // The first has only begun.
    let second = order_elsewhere(2, "p2");
    host.offer(&second).await;
    let said = refused(host.ended(&second).await);
    let owner = format!("{}/{}", first.environment, first.target);
    assert!(said.contains(&format!("is the target {owner}")), "{said}");
    let host = host.next_process().await;
    host.answered();
    assert_eq!(host.ended(&first).await.result(), Wire::Succeeded);
    host.agent.idle().await;
    let third = order_elsewhere(3, "p2");
    host.offer(&third).await;
    refused(host.ended(&third).await);
    // Which one it is, the host's owner may say.
    let mut settings = Settings::trusting();
    let other = other_binding();
    settings.policy.target = Some((other.environment, other.target));
    let host = host.again(settings).await;
    let fourth = order(4, "p2");
    host.offer(&fourth).await;
    refused(host.ended(&fourth).await);
    host.answered();
    let fifth = order_elsewhere(5, "p2");
    host.offer(&fifth).await;
    assert_eq!(host.ended(&fifth).await.result(), Wire::Succeeded);
    host.agent.down().await;
}
