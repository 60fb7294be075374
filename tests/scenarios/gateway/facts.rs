//! What an agent says about itself and its host, over the real port.

use sealift_common::condition::{Condition, ConditionCode};
use sealift_e2e::fleet::{Fleet, PATIENCE, facts};
use sealift_proto::{
    agent::v1::{
        Condition as Told, Heartbeat, connect_request::Message as Up, connect_response::Message as Down,
    },
    convert,
};

use super::{Raw, assert_violation, stop};

fn beat(facts: sealift_proto::agent::v1::Facts) -> Up {
    Up::Heartbeat(Heartbeat {
        time: None,
        facts: Some(facts),
        wants_time: true,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_of_a_heartbeat_are_kept_and_the_time_is_told_to_whoever_wants_it() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let mut raw = Raw::greeted(&fleet, &state).await;
    let app = &fleet.running.app;
    let before = app.clock.now();
    let mut low = facts();
    low.degraded = vec![Condition::new(ConditionCode::DiskLow, "/ has 1 MiB free")];
    raw.say(beat(low.clone().into())).await;
    let Down::ServerTime(answer) = raw.hear().await.unwrap() else {
        panic!("no time")
    };
    let told = convert::time("time", answer.time.as_ref()).unwrap();
    assert!(before <= told && told <= app.clock.now());
    let agent = fleet.agent_of(&target).await.unwrap();
    let kept = async {
        loop {
            let mut tx = app.db.read().await.unwrap();
            if tx.agent_by_id(agent).await.unwrap().unwrap().facts == low {
                return;
            }
            drop(tx);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, kept).await.unwrap();

    let mut loud: sealift_proto::agent::v1::Facts = facts().into();
    loud.degraded = vec![Told {
        code: "DISK LOW; rm".to_owned(),
        detail: String::new(),
    }];
    raw.say(beat(loud)).await;
    assert_violation(&raw.refusal().await);
    stop(fleet, vec![]).await;
}
