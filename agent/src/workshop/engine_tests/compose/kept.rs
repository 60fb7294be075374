//! Containers that Compose leaves as they are from release to release.

use super::*;

/// Only `web` changes from release to release.
const FILE: &str = "
services:
  web: {image: NEXT, stop_grace_period: 1s}
  db: {image: STEADY, restart: always, stop_grace_period: 1s, volumes: [/data]}
";

/// One field of `docker inspect` of a service's container.
fn field(place: &Place, service: &str, pointer: &str) -> Value {
    let seen = place.inspected();
    seen[service].pointer(pointer).unwrap().clone()
}

#[tokio::test]
async fn r15_an_old_crash_on_engine_of_a_service_that_stays_fails_no_later_release() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2");
    let (mut place, _files) = place().await;
    let first = place.compose(manifest(FILE, &ok_1, &ok_1)).await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let db = field(&place, "db", "/Id");
    let main = field(&place, "db", "/State/Pid").to_string();
    let killed = Command::new("kill").args(["-KILL", &main]).status().unwrap();
    assert!(killed.success());
    timeout(PATIENCE, async {
        while field(&place, "db", "/RestartCount") != 1 || field(&place, "db", "/State/Running") != true {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();

    let next = place.compose(manifest(FILE, &ok_1, &ok_2)).await;
    assert_eq!(next.result(), Wire::Succeeded, "{:?}", next.failure);
    assert_eq!(field(&place, "db", "/Id"), db, "it stayed");
    place.down().await;
}

#[tokio::test]
async fn config_drift_on_engine_is_mended_by_making_anew_what_was_changed_and_nothing_else() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2");
    let (mut place, _files) = place().await;
    let first = place.compose(manifest(FILE, &ok_1, &ok_1)).await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let other = format!("other-{}", place.bindings[0].target_id);
    docker(&["network", "create", &other]);

    // The recorded release once more, then one that changes only the other service.
    for (next, stays) in [(&ok_1, true), (&ok_2, false)] {
        let before = place.inspected();
        let id = |service: &str| before[service]["Id"].as_str().unwrap();
        docker(&["update", "--memory", "64m", "--memory-swap", "64m", id("db")]);
        docker(&["network", "connect", &other, id("db")]);
        let finished = place.compose(manifest(FILE, &ok_1, next)).await;
        assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
        let now = place.inspected();
        assert_eq!(now["db"]["HostConfig"]["Memory"], 0);
        let networks = now["db"]["NetworkSettings"]["Networks"].as_object().unwrap();
        assert_eq!(networks.len(), 1, "{networks:?}");
        let data = |of: &BTreeMap<String, Value>| of["db"]["Mounts"][0]["Name"].clone();
        assert_eq!(data(&now), data(&before), "its data is kept");
        assert_eq!(now["web"]["Id"] == before["web"]["Id"], stays);
    }
    docker(&["network", "rm", &other]);
    place.down().await;
}
