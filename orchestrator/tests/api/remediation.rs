//! What environments do about drift, over the real port.

use sealift_common::{
    drift::{DriftKind, Finding},
    error::Reason,
    inventory::EnvironmentClass,
    role::Role,
};
use sealift_proto::v1::{
    self, CreateEnvironmentRequest, Environment, ExplainDriftRequest, GetEnvironmentRequest,
    ListDriftRequest, Remediation, UpdateEnvironmentRequest, drift::Severity,
    drift_service_client::DriftServiceClient, environment::Class,
    environment_service_client::EnvironmentServiceClient, remediation::Mode,
};
use sealift_store::{DriftedPlace, Remedy};
use tonic::{Status, transport::Channel};

use crate::{
    host::{Host, PROJECT},
    support::{World, reason},
};

async fn update(
    channel: &Channel,
    environment: &Environment,
    policy: Option<Remediation>,
) -> Result<Environment, Status> {
    let request = UpdateEnvironmentRequest {
        request_id: String::new(),
        environment: Some(Environment {
            remediation: policy,
            ..environment.clone()
        }),
        update_mask: Some(pbjson_types::FieldMask {
            paths: vec!["remediation".to_owned()],
        }),
    };
    let answer = EnvironmentServiceClient::new(channel.clone())
        .update_environment(request)
        .await?;
    Ok(answer.into_inner().environment.unwrap())
}

fn reconcile(max_tries: i32) -> Remediation {
    Remediation {
        mode: Mode::Reconcile.into(),
        max_tries,
        min_severity: Severity::High.into(),
        pause: Some(pbjson_types::Duration {
            seconds: 300,
            nanos: 0,
        }),
    }
}

#[tokio::test]
async fn an_environment_only_tells_drift_until_an_admin_says_otherwise() {
    let world = World::start().await;
    let admin = world.user("default", "ada", Role::Admin).await;
    let deployer = world.user("default", "dora", Role::Deployer).await;
    let mut client = EnvironmentServiceClient::new(admin.clone());
    let create = CreateEnvironmentRequest {
        request_id: String::new(),
        environment_id: "prod".to_owned(),
        environment: Some(Environment {
            class: Class::Production.into(),
            ..Environment::default()
        }),
    };
    let made = client.create_environment(create.clone()).await.unwrap();
    let made = made.into_inner().environment.unwrap();
    assert_eq!(made.remediation.as_ref().unwrap().mode(), Mode::Alert);

    let refused = update(&deployer, &made, Some(reconcile(2))).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::RoleMissing.as_str());
    let refused = update(&admin, &made, Some(reconcile(11))).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument.as_str());
    assert!(refused.message().contains("max_tries"), "{}", refused.message());
    let updated = update(&admin, &made, Some(reconcile(2))).await.unwrap();
    assert_eq!(updated.remediation, Some(reconcile(2)));
    let get = GetEnvironmentRequest {
        name: made.name.clone(),
    };
    let got = client.get_environment(get).await.unwrap().into_inner();
    assert_eq!(got.environment.as_ref(), Some(&updated));
    // Back to the default.
    let updated = update(&admin, &updated, None).await.unwrap();
    assert_eq!(updated.remediation, made.remediation);

    let create = CreateEnvironmentRequest {
        environment_id: "staging".to_owned(),
        environment: Some(Environment {
            remediation: Some(Remediation {
                mode: Mode::Reconcile.into(),
                ..Remediation::default()
            }),
            ..create.environment.unwrap()
        }),
        ..create
    };
    let made = client.create_environment(create).await.unwrap().into_inner();
    let policy = made.environment.unwrap().remediation.unwrap();
    assert_eq!((policy.max_tries, policy.min_severity()), (3, Severity::Low));
    assert_eq!(policy.pause.unwrap().seconds, 60);
    world.stop().await;
}

#[tokio::test]
async fn drift_tells_what_was_tried_and_that_it_was_given_up() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let release = host.release("one").await;
    let (promotion, _) = host.deploy(&release).await;
    host.drifts(vec![Finding {
        kind: DriftKind::StickerMissing,
        service: None,
        expected: "this".to_owned(),
        actual: "that".to_owned(),
    }])
    .await;
    let mut client = DriftServiceClient::new(ada.clone());
    let list = async |client: &mut DriftServiceClient<Channel>| -> v1::Drift {
        let answer = client.list_drift(ListDriftRequest::default()).await.unwrap();
        answer.into_inner().drift.remove(0)
    };
    let before = list(&mut client).await;
    assert_eq!((before.tries, before.last_promotion.as_str()), (0, ""));
    assert_eq!(
        (before.severity(), &before.give_up_time),
        (Severity::Medium, &None)
    );

    // As the loop would, which takes its time.
    let now = world.running.app.clock.now();
    let mut tx = host.write().await;
    let target = tx.target(host.tenant, host.target).await.unwrap().unwrap();
    let place = DriftedPlace {
        target_id: target.id,
        project: PROJECT.to_owned(),
        tenant_id: target.tenant_id,
        environment_id: target.environment_id,
    };
    let open = tx.open_drift_at(&place).await.unwrap();
    let remedy = Remedy {
        promotion: promotion.trim_start_matches("promotions/").parse().unwrap(),
        number: 1,
        at: now,
    };
    tx.insert_remedy(target.id, &[open[0].id], &remedy).await.unwrap();
    assert!(tx.give_up_drift(target.id, &open[0], now).await.unwrap());
    tx.commit().await.unwrap();

    let after = list(&mut client).await;
    assert_eq!((after.tries, &after.last_promotion), (1, &promotion));
    assert_eq!(after.severity(), Severity::High);
    assert!(after.give_up_time.is_some());
    let explain = ExplainDriftRequest {
        name: after.name.clone(),
    };
    let answer = client.explain_drift(explain).await.unwrap().into_inner();
    assert_eq!(answer.drift, Some(after));
    let id = promotion.trim_start_matches("promotions/");
    let step = answer.next_steps.first().unwrap();
    assert_eq!(step.command, format!("sealift promotion get {id}"));
    world.stop().await;
}
