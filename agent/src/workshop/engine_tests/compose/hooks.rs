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

/// Compose v2 does not say what only hooks use.
#[tokio::test]
async fn t16_a_hook_on_engine_gets_what_the_file_names_whatever_compose_says_of_it() {
    images!(ok_1 = "OK_1");
    let (mut place, _files) = place().await;
    let lent = format!("lent-{}", place.bindings[0].target_id);
    docker(&["volume", "create", &lent]);
    docker(&["network", "create", &lent]);
    let file = format!(
        "services: {{ web: {{ image: NEXT }} }}\n\
         networks: {{ edge: {{ external: true, name: {lent} }} }}\n\
         volumes: {{ cred: {{ external: true, name: {lent} }} }}\n\
         x-sealift: {{ hooks: [{{ name: migrate, when: pre_deploy, image: STEADY, command: sleep, \
         networks: [edge], volumes: ['cred:/run/credentials:ro'] }}] }}"
    );
    let order = place.order(0, manifest(&file, &ok_1, &ok_1));
    place.begin(&order).await;
    let seen = place.hook().await;
    assert_eq!(seen["Mounts"][0]["Name"], lent.as_str());
    let networks = seen["NetworkSettings"]["Networks"].as_object().unwrap();
    assert_eq!(networks.keys().collect::<Vec<_>>(), [&lent]);
    place.workshop.stop(order.task_id).await;
    timeout(PATIENCE * 3, place.end_slowly(&order)).await.unwrap();
    place.idle().await;

    for (entry, wanted) in [
        ("external: true, name: host", "HOST_POLICY"),
        (
            "external: true, name: sealift-ffffffff-shop_default",
            "HOST_POLICY",
        ),
        ("external: true, name: '${EDGE}'", "COMPOSE_REJECTED"),
        ("driver: macvlan", "HOST_POLICY"),
    ] {
        let file = file.replace(
            &format!("external: true, name: {lent} }} }}\nvolumes"),
            &format!("{entry} }} }}\nvolumes"),
        );
        let finished = place.compose(manifest(&file, &ok_1, &ok_1)).await;
        assert_eq!(code(&finished), wanted, "{entry}: {:?}", finished.failure);
    }
    docker(&["network", "rm", &lent]);
    docker(&["volume", "rm", &lent]);
    place.down().await;
}

/// A path that was allowed when the file was resolved leads elsewhere when Compose is to carry it out.
#[tokio::test]
async fn t16_what_compose_carries_out_on_engine_is_judged_once_more() {
    images!(ok_1 = "OK_1");
    let (mut place, files) = place().await;
    let file = "services: { web: { image: NEXT, volumes: ['./shared:/shared'] } }\n\
                x-sealift: { hooks: [{ name: migrate, when: pre_deploy, image: STEADY, command: sleep, timeout: 3s, \
                on_failure: continue }] }";
    let order = place.order(0, manifest(file, &ok_1, &ok_1));
    place.begin(&order).await;
    place.hook().await;
    let shared = files.path().join("shared");
    std::fs::remove_dir(&shared).unwrap();
    std::os::unix::fs::symlink("/etc", &shared).unwrap();
    let finished = timeout(PATIENCE * 3, place.end_slowly(&order)).await.unwrap();
    place.idle().await;
    assert_eq!(code(&finished), "HOST_POLICY", "{:?}", finished.failure);
    assert!(place.inspected().is_empty());
    place.down().await;
}
