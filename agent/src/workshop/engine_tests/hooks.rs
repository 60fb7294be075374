//! Hooks on a real engine.

use sealift_common::{
    bounds,
    evidence::{HookResult, Statement},
    hook::{Direction, HookMount, HookSpec, HookWhen, OnFailure},
    manifest::{NetworkSpec, VolumeSpec},
    name::ServiceName,
    swap::Swap,
};
use serde_json::Value;

use super::*;

fn hook(when: HookWhen, image: &PinnedImage, command: &str) -> HookSpec {
    HookSpec {
        image: image.clone(),
        command: Some(command.split_whitespace().map(str::to_owned).collect()),
        ..samples::hook(&when.as_str().replace('_', "-"), when, "v1")
    }
}

fn with(image: &PinnedImage, hooks: Vec<HookSpec>) -> Manifest {
    Manifest {
        hooks,
        ..one(samples::service(image.clone()))
    }
}

fn said(finished: &Finished) -> Statement {
    let key = SigningKey::from_seed(&EVIDENCE_SEED).public();
    Packet::open(&finished.packet, &key).unwrap()
}

impl Place {
    /// When each container of the first target was started.
    fn started(&self) -> Vec<String> {
        self.inspect("{{.State.StartedAt}} {{.State.Status}}")
    }

    fn inspect(&self, format: &str) -> Vec<String> {
        let filter = format!(
            "label={}={}",
            crate::labels::TARGET_ID,
            self.bindings[0].target_id
        );
        let ids = docker(&["ps", "-aq", "--filter", &filter]);
        ids.split_whitespace()
            .map(|id| docker(&["inspect", "--format", format, id]))
            .collect()
    }

    /// The container of the hook that is under way, as the engine has it.
    pub(super) async fn hook(&self) -> Value {
        let filter = format!(
            "label={}={}",
            crate::labels::TARGET_ID,
            self.bindings[0].target_id
        );
        let label = format!("label={}", crate::labels::HOOK);
        let wait = async {
            loop {
                let id = docker(&["ps", "-q", "--filter", &filter, "--filter", &label]);
                if !id.is_empty() {
                    break id;
                }
                tokio::task::yield_now().await;
            }
        };
        let id = timeout(PATIENCE, wait).await.unwrap();
        let all: Vec<Value> = serde_json::from_str(&docker(&["inspect", &id])).unwrap();
        all[0].clone()
    }
}

#[tokio::test]
async fn r10_a_pre_deploy_hook_on_engine_that_fails_or_takes_too_long_leaves_the_old_set_untouched() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2");
    let mut place = Place::new(1, None).await;
    let first = place
        .deploy(with(&ok_1, vec![hook(HookWhen::PreDeploy, &ok_1, "exit 0")]))
        .await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let before = place.started();
    assert_eq!(before.len(), 1);

    let mut slow = hook(HookWhen::PreDeploy, &ok_1, "sleep");
    slow.timeout_ms = 1_000;
    let mut missing = hook(HookWhen::PreDeploy, &ok_1, "x");
    missing.entrypoint = Some(vec!["/no/such/program".to_owned()]);
    for (hook, wanted, result) in [
        (
            hook(HookWhen::PreDeploy, &ok_1, "exit 3"),
            "HOOK_FAILED",
            HookResult::Failed,
        ),
        (missing, "HOOK_FAILED", HookResult::Failed),
        (slow, "HOOK_TIMEOUT", HookResult::TimedOut),
    ] {
        let finished = place.deploy(with(&ok_2, vec![hook])).await;
        assert_eq!(code(&finished), wanted, "{:?}", finished.failure);
        assert_eq!(place.started(), before, "{wanted}");
        let runs = said(&finished).predicate.hooks;
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].result, result, "{runs:?}");
        assert_eq!(runs[0].digest, ok_1.digest);
    }
    let told = place
        .deploy(with(&ok_2, vec![hook(HookWhen::PreDeploy, &ok_1, "exit 3")]))
        .await;
    let failure = told.failure.unwrap();
    assert!(failure.summary.contains("code 3"), "{failure:?}");
    assert!(failure.detail.contains("exiting with 3"), "{failure:?}");
    place.down().await;
}

#[tokio::test]
async fn r10_a_post_deploy_hook_on_engine_reaches_the_new_set_and_its_failure_brings_the_old_one_back() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2");
    let mut place = Place::new(1, None).await;
    let smoke = hook(HookWhen::PostDeploy, &ok_1, "get web:8080");
    let first = place.deploy(with(&ok_1, vec![smoke.clone()])).await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let wanted = [format!("{} always running", ok_1.pull_reference())];
    assert_eq!(place.containers(), wanted);

    let failed = place
        .deploy(with(&ok_2, vec![hook(HookWhen::PostDeploy, &ok_1, "get web:9")]))
        .await;
    assert_eq!(code(&failed), "HOOK_FAILED", "{:?}", failed.failure);
    assert_eq!(place.containers(), wanted);
    assert_eq!(said(&failed).subject[0].digest(), Ok(ok_1.digest));

    let mut harmless = hook(HookWhen::PreDeploy, &ok_1, "exit 7");
    harmless.on_failure = OnFailure::Continue;
    let second = place.deploy(with(&ok_2, vec![harmless, smoke])).await;
    assert_eq!(second.result(), Wire::Succeeded, "{:?}", second.failure);
    assert_eq!(
        place.containers(),
        [format!("{} always running", ok_2.pull_reference())]
    );
    let runs = said(&second).predicate.hooks;
    let ended: Vec<_> = runs.iter().map(|run| (run.result, run.exit_code)).collect();
    assert_eq!(
        ended,
        [(HookResult::Failed, Some(7)), (HookResult::Succeeded, Some(0))]
    );
    place.down().await;
}

#[tokio::test]
async fn t16_a_hook_on_engine_can_do_less_than_a_service_and_is_gone_when_it_is_stopped() {
    images!(ok_1 = "OK_1");
    let mut place = Place::new(1, None).await;
    let order = place.order(0, with(&ok_1, vec![hook(HookWhen::PreDeploy, &ok_1, "sleep")]));
    place.begin(&order).await;
    let seen = place.hook().await;
    let (config, host) = (&seen["Config"], &seen["HostConfig"]);
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    assert_eq!(host["CapAdd"], Value::Null);
    assert_eq!(host["SecurityOpt"], serde_json::json!(["no-new-privileges"]));
    assert_eq!(host["Privileged"], false);
    assert_eq!((&host["PidMode"], &host["Binds"]), (&"".into(), &Value::Null));
    assert_eq!(host["PidsLimit"], 256);
    assert_eq!(host["Memory"], 1_u64 << 30);
    let ports = host["PortBindings"].as_object();
    assert!(ports.is_none_or(serde_json::Map::is_empty), "{ports:?}");
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!(host["LogConfig"]["Config"]["max-size"], "1m");
    assert_eq!(config["Image"], ok_1.pull_reference());
    let environment: Vec<&str> = config["Env"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for wanted in [
        "SEALIFT_TARGET=web-0",
        "SEALIFT_FIRST=true",
        "SEALIFT_WHEN=pre_deploy",
    ] {
        assert!(environment.contains(&wanted), "{environment:?}");
    }
    place.workshop.stop(order.task_id).await;
    let finished = place.end(&order).await;
    place.idle().await;
    assert_eq!(finished.result(), Wire::Stopped, "{:?}", finished.failure);
    assert!(place.containers().is_empty(), "{:?}", place.containers());
    let runs = said(&finished).predicate.hooks;
    assert_eq!(runs[0].result, HookResult::Interrupted);
    place.down().await;
}

#[tokio::test]
async fn f28_a_hook_on_engine_that_says_too_much_is_heard_as_far_as_its_bound_and_the_rest_is_marked() {
    images!(ok_1 = "OK_1");
    let mut place = Place::new(1, None).await;
    let mut logs = place.workshop.take_logs().unwrap();
    let flood = hook(HookWhen::PreDeploy, &ok_1, "flood 32");
    let finished = place.deploy(with(&ok_1, vec![flood])).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    let (mut bytes, mut is_marked, mut is_agent_heard) = (0, false, false);
    while let Ok(line) = logs.try_recv() {
        if line.source == "hook/pre-deploy" {
            bytes += line.text.len() + bounds::LOG_LINE_OVERHEAD;
            is_marked |= line.text.contains("the rest is left out");
        }
        is_agent_heard |= line.text == "the new set runs";
    }
    assert!(bytes <= bounds::HOOK_LOG_BYTES + 1024, "{bytes}");
    assert!(is_marked && is_agent_heard);
    assert!(said(&finished).predicate.hooks[0].log_truncated);
    place.down().await;
}

#[tokio::test]
async fn a_switch_hook_on_engine_is_told_who_takes_over_and_is_run_again_on_the_way_back() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2");
    // Dropped after the place, whose containers are on it.
    let edge = super::swaps::Edge::new();
    let mut place = Place::new(1, None).await;
    let mut logs = place.workshop.take_logs().unwrap();
    let with = |image: &PinnedImage, hooks: Vec<HookSpec>| Manifest {
        hooks,
        ..edge.set(image)
    };
    let mut told = || {
        let mut sets = Vec::new();
        while let Ok(line) = logs.try_recv() {
            let known = ["SEALIFT_TO=", "SEALIFT_FROM=", "SEALIFT_DIRECTION="];
            if line.source == "hook/switch" && known.iter().any(|name| line.text.starts_with(name)) {
                sets.push(line.text);
            }
        }
        sets.sort();
        sets
    };
    let of = |place: &Place, digest: &str| -> String {
        let seen = place.inspect("{{.Config.Image}} {{.Id}}");
        let line = seen.iter().find(|line| line.contains(digest)).unwrap();
        line.split_whitespace().nth(1).unwrap()[..12].to_owned()
    };
    let switch = HookSpec {
        networks: ["edge".parse().unwrap()].into(),
        ..hook(HookWhen::Switch, &ok_1, "reach")
    };
    let first = place.deploy(with(&ok_1, vec![switch.clone()])).await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let blue = of(&place, &ok_1.digest.to_string());
    assert_eq!(
        told(),
        [
            "SEALIFT_DIRECTION=forward".to_owned(),
            "SEALIFT_FROM=".to_owned(),
            format!("SEALIFT_TO=web={blue}")
        ]
    );

    for swap in [Swap::BlueGreen { bake_ms: 100 }, Swap::InPlace] {
        let before = place.started();
        let late = hook(HookWhen::PostDeploy, &ok_1, "exit 4");
        let mut order = place.order(0, with(&ok_2, vec![switch.clone(), late]));
        order.swap = swap;
        place.begin(&order).await;
        let finished = place.end(&order).await;
        place.idle().await;
        assert_eq!(code(&finished), "HOOK_FAILED", "{:?}", finished.failure);
        let lines = told();
        let has = |wanted: String| lines.contains(&wanted);
        assert_eq!(lines.len(), 6, "{lines:?}");
        assert!(has(format!("SEALIFT_FROM=web={blue}")), "{lines:?}");
        assert!(has(format!("SEALIFT_TO=web={blue}")), "{lines:?}");
        assert!(has("SEALIFT_DIRECTION=back".to_owned()), "{lines:?}");
        let runs = said(&finished).predicate.hooks;
        let ways: Vec<_> = runs.iter().map(|run| (run.when, run.direction)).collect();
        assert_eq!(
            ways,
            [
                (HookWhen::Switch, Direction::Forward),
                (HookWhen::PostDeploy, Direction::Forward),
                (HookWhen::Switch, Direction::Back)
            ]
        );
        if !swap.is_in_place() {
            assert_eq!(place.started(), before, "the old container was never stopped");
        }
    }

    let mut order = place.order(0, with(&ok_2, vec![switch]));
    order.swap = Swap::BlueGreen { bake_ms: 100 };
    place.begin(&order).await;
    let finished = place.end(&order).await;
    place.idle().await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    let green = of(&place, &ok_2.digest.to_string());
    assert!(told().contains(&format!("SEALIFT_TO=web={green}")));
    assert_eq!(place.containers().len(), 1);
    place.down().await;
}

#[tokio::test]
async fn what_a_hook_left_behind_on_engine_is_removed_when_nothing_is_under_way() {
    images!(ok_1 = "OK_1");
    let mut place = Place::new(1, None).await;
    let order = place.order(0, one(samples::service(ok_1.clone())));
    let hook = crate::journal::HookRef {
        hook: "lost".parse::<ServiceName>().unwrap(),
        direction: Direction::Forward,
    };
    let mut arguments = vec!["create".to_owned()];
    for (key, value) in crate::labels::of_hook(&order, &hook, &ok_1) {
        arguments.extend(["--label".to_owned(), format!("{key}={value}")]);
    }
    arguments.push(ok_1.pull_reference());
    docker(&["pull", &ok_1.pull_reference()]);
    docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(place.containers().len(), 1);
    let wait = async {
        while !place.containers().is_empty() {
            place.workshop.shared.observer.request_all(Vec::new());
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
    place.down().await;
}

#[tokio::test]
async fn t16_a_hook_on_engine_borrows_nothing_that_a_service_may_not_and_nothing_that_is_not_there() {
    images!(ok_1 = "OK_1");
    let mut place = Place::new(1, None).await;
    let missing = format!("missing-{}", place.bindings[0].target_id);
    let others = "sealift-ffffffff-shop-data";
    for (network, volume, wanted) in [
        (Some("host"), None, "ORDER_REFUSED"),
        (Some("bridge"), None, "ORDER_REFUSED"),
        (None, Some(others), "ORDER_REFUSED"),
        (Some(missing.as_str()), None, "CONTAINER_REJECTED"),
        (None, Some(missing.as_str()), "CONTAINER_REJECTED"),
    ] {
        let mut hook = hook(HookWhen::PreDeploy, &ok_1, "environment");
        let mut manifest = with(&ok_1, Vec::new());
        if let Some(network) = network {
            let spec = NetworkSpec {
                internal: false,
                external: Some(network.to_owned()),
            };
            manifest.networks.insert("edge".parse().unwrap(), spec);
            hook.networks.insert("edge".parse().unwrap());
        }
        if let Some(volume) = volume {
            let spec = VolumeSpec {
                external: Some(volume.to_owned()),
            };
            manifest.volumes.insert("data".parse().unwrap(), spec);
            hook.volumes.push(HookMount {
                volume: "data".parse().unwrap(),
                target: "/d".to_owned(),
                read_only: true,
            });
        }
        manifest.hooks.push(hook);
        let finished = place.deploy(manifest).await;
        let said = &finished.failure;
        assert_eq!(code(&finished), wanted, "{network:?} {volume:?}: {said:?}");
        assert!(place.containers().is_empty());
    }
    let made = format!("name={missing}");
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", &made]), "");
    place.down().await;
}
