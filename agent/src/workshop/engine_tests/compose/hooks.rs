//! Hooks of releases for compose hosts.

use sealift_common::evidence::{HookResult, Statement};

use super::*;

const FILE: &str = "
services:
  web: {image: NEXT, networks: [default, back]}
networks: {back: {}}
volumes: {data: {}}
x-sealift:
  hooks:
    - name: migrate
      when: pre_deploy
      image: STEADY
      command: environment
      environment: [GREETING]
      networks: [default, back]
      volumes: ['data:/data']
    - {name: proxy, when: switch, image: STEADY, command: environment}
    - {name: smoke, when: post_deploy, image: STEADY, command: [get, 'web:8080'], networks: [back]}
";

fn said(finished: &Finished) -> Statement {
    let key = SigningKey::from_seed(&EVIDENCE_SEED).public();
    Packet::open(&finished.packet, &key).unwrap()
}

#[tokio::test]
async fn hooks_on_engine_run_beside_what_compose_makes_and_their_failure_brings_the_old_lock_back() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2");
    let (mut place, _files) = place().await;
    let mut logs = place.workshop.take_logs().unwrap();
    let first = place.compose(manifest(FILE, &ok_1, &ok_1)).await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let results = |finished: &Finished| -> Vec<HookResult> {
        let runs = said(finished).predicate.hooks;
        runs.iter().map(|run| run.result).collect()
    };
    assert_eq!(results(&first), [HookResult::Succeeded; 3]);
    let mut heard = Vec::new();
    while let Ok(line) = logs.try_recv() {
        heard.push(format!("{} {}", line.source, line.text));
    }
    let has = |wanted: &str| heard.iter().any(|line| line.starts_with(wanted));
    assert!(has("hook/migrate SEALIFT_FIRST=true"), "{heard:#?}");
    assert!(has("hook/proxy SEALIFT_TO=web="), "{heard:#?}");
    let (lock, before) = (place.lock(), place.inspected());
    assert_eq!(before.len(), 1);

    for (broken, result) in [
        (
            FILE.replace("command: environment\n", "command: exit 3\n"),
            Wire::Failed,
        ),
        (FILE.replace("web:8080", "web:9"), Wire::Failed),
        (FILE.to_owned(), Wire::Succeeded),
    ] {
        let finished = place.compose(manifest(&broken, &ok_1, &ok_2)).await;
        assert_eq!(finished.result(), result, "{:?}", finished.failure);
        let seen = place.inspected();
        assert_eq!(seen.len(), 1);
        if result == Wire::Succeeded {
            assert_ne!(place.lock(), lock);
            continue;
        }
        assert_eq!(code(&finished), "HOOK_FAILED");
        assert_eq!(place.lock(), lock, "the old lock is back");
        assert_eq!(seen["web"]["Config"]["Image"], ok_1.pull_reference());
        if broken.contains("exit 3") {
            assert_eq!(seen["web"]["Id"], before["web"]["Id"], "nothing was touched");
        }
    }
    let filter = format!(
        "label={}={}",
        crate::labels::TARGET_ID,
        place.bindings[0].target_id
    );
    let label = format!("label={}", crate::labels::HOOK);
    for kind in ["container", "network"] {
        let left = docker(&[kind, "ls", "-q", "--filter", &filter, "--filter", &label]);
        assert_eq!(left, "", "{kind}");
    }
    place.down().await;
}
