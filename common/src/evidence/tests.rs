use chrono::DateTime;

use super::*;
use crate::{
    digest::Digest,
    failure::FailureCode,
    id::{AgentId, JobId, PromotionId, ReleaseId, TargetId, TaskId},
    manifest::PinnedImage,
    observation::ContainerHealth,
    order::Fence,
    spiffe::SpiffeId,
    task::TaskStep,
};

pub(crate) const NOW: i64 = 1_800_000_000;

pub(crate) fn image(name: &str) -> PinnedImage {
    PinnedImage {
        repository: format!("registry.example.com/{name}"),
        tag: Some("1.0".into()),
        digest: Digest::of(name.as_bytes()),
    }
}

pub(crate) fn predicate() -> Predicate {
    let at = |seconds| DateTime::from_timestamp(NOW + seconds, 123_000_000).unwrap();
    let agent_id = AgentId::new(at(-100));
    let api = image("api");
    Predicate {
        tenant: "acme".parse().unwrap(),
        environment: "staging".parse().unwrap(),
        target: "web-1".parse().unwrap(),
        target_id: TargetId::new(at(-90)),
        agent_id,
        agent: AgentInfo {
            spiffe_id: SpiffeId::agent("acme".parse().unwrap(), agent_id),
            certificate_serial: "0a1b".into(),
            version: "0.1.0".into(),
        },
        engine: EngineInfo {
            name: "docker".into(),
            version: "20.10.24".into(),
            api: "1.41".into(),
            platform: "linux/amd64".into(),
        },
        job_id: JobId::new(at(-5)),
        task_id: TaskId::new(at(-5)),
        attempt: 1,
        wave: 0,
        fence: Fence(u64::MAX),
        decision: EvidenceDecision {
            promotion: PromotionId::new(at(-10)),
            record: Digest::of(b"record"),
            plan: Digest::of(b"plan"),
            requested_by: "alice".into(),
        },
        release: EvidenceRelease {
            id: ReleaseId::new(at(-20)),
            repository: "github.com/acme/shop".into(),
            project: "api".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
            number: 42,
            content: Digest::of(b"manifest"),
        },
        result: EvidenceResult::Succeeded,
        failure: None,
        services: vec![EvidenceService::of(
            &"api".parse().unwrap(),
            &api,
            Some(Observed {
                container_id: "c0ffee".into(),
                image_id: "sha256:1234".into(),
                digest: api.digest,
            }),
            ContainerHealth::Healthy,
        )],
        hooks: Vec::new(),
        allowances: Vec::new(),
        previous: [("api".parse().unwrap(), image("old").digest)].into(),
        inputs: Digest::of(b"inputs"),
        compose_lock: None,
        sticker_digest: Some(Digest::of(b"sticker")),
        log_truncated: false,
        order_digest: Digest::of(b"order"),
        started_at: at(0),
        finished_at: at(12),
        finished_at_orchestrator: None,
        steps: vec![EvidenceStep {
            step: TaskStep::Pulling,
            at: at(1),
        }],
    }
}

pub(crate) fn failed() -> Predicate {
    let mut failed = predicate();
    failed.result = EvidenceResult::Failed;
    failed.failure = Some(EvidenceFailure {
        code: FailureCode::Unhealthy,
        summary: "api is unhealthy".into(),
    });
    failed.services[0].observed = None;
    failed.services[0].health = ContainerHealth::None;
    failed.previous.clear();
    failed
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

#[test]
fn a_packet_opens_under_its_key_and_keeps_its_payload_when_countersigned() {
    let statement = Statement::new(predicate(), [&image("api")]);
    let bytes = Packet::sign(&statement, &key(1)).unwrap();
    assert_eq!(Packet::open(&bytes, &key(1).public()).unwrap(), statement);
    let both = Packet::countersign(&bytes, &key(1).public(), &key(2)).unwrap();
    assert_eq!(Packet::open(&both, &key(1).public()).unwrap(), statement);
    assert_eq!(Packet::open(&both, &key(2).public()).unwrap(), statement);
    assert!(Packet::open(&both, &key(3).public()).is_err());
    assert!(Packet::countersign(&bytes, &key(3).public(), &key(2)).is_err());
    assert!(Packet::countersign(&both, &key(1).public(), &key(2)).is_err());
}

#[test]
fn statement_json_is_that_of_in_toto() {
    let statement = Statement::new(predicate(), [&image("api")]);
    let json = serde_json::to_value(&statement).unwrap();
    assert_eq!(json["_type"], STATEMENT_TYPE);
    assert_eq!(json["predicateType"], PREDICATE_TYPE);
    assert_eq!(json["subject"][0]["name"], "registry.example.com/api");
    assert_eq!(
        json["subject"][0]["digest"]["sha256"],
        image("api").digest.to_hex()
    );
    let predicate = &json["predicate"];
    assert_eq!(predicate["fence"], "18446744073709551615");
    assert_eq!(predicate["startedAt"], "2027-01-15T08:00:00.123Z");
    assert_eq!(
        predicate["services"][0]["orderedDigest"],
        image("api").digest.to_string()
    );
    assert_eq!(predicate["services"][0]["observed"]["containerId"], "c0ffee");
    assert!(predicate.get("composeLock").is_none());
}

#[test]
fn when_nothing_runs_the_release_is_the_subject() {
    let statement = Statement::new(failed(), []);
    assert_eq!(statement.subject[0].name, "release:github.com/acme/shop/api#42");
    assert_eq!(statement.subject[0].digest(), Ok(Digest::of(b"manifest")));
    assert_eq!(statement.check(), Ok(()));
}

#[test]
fn after_a_restore_the_subjects_are_the_set_before() {
    let mut restored = failed();
    restored
        .previous
        .insert("api".parse().unwrap(), image("old").digest);
    assert_eq!(Statement::new(restored.clone(), [&image("old")]).check(), Ok(()));
    assert!(matches!(
        Statement::new(restored, [&image("other")]).check(),
        Err(Inconsistent::SubjectUnknown(_))
    ));
}

#[test]
fn statements_that_contradict_themselves_are_not_signed() {
    let mut cases = Vec::new();
    cases.push(Statement::new(predicate(), []));
    cases.push(Statement::new(predicate(), [&image("other")]));
    cases.push(Statement::new(predicate(), [&image("api"), &image("other")]));
    let mut other = predicate();
    other.services[0].observed.as_mut().unwrap().digest = Digest::of(b"x");
    cases.push(Statement::new(other, [&image("api")]));
    let mut other = predicate();
    other.services[0].observed = None;
    cases.push(Statement::new(other, [&image("api")]));
    let mut other = predicate();
    other.services[0].health = ContainerHealth::Unhealthy;
    cases.push(Statement::new(other, [&image("api")]));
    let mut other = predicate();
    other.failure = failed().failure;
    cases.push(Statement::new(other, [&image("api")]));
    let mut other = failed();
    other.failure = None;
    cases.push(Statement::new(other, []));
    let mut other = predicate();
    other.tenant = "evil".parse().unwrap();
    cases.push(Statement::new(other, [&image("api")]));
    let mut other = Statement::new(predicate(), [&image("api")]);
    other.subject.push(other.subject[0].clone());
    cases.push(other);
    for (number, case) in cases.into_iter().enumerate() {
        assert!(Packet::sign(&case, &key(1)).is_err(), "{number}");
    }
}

#[test]
fn loose_payloads_are_refused_although_signed() {
    let statement = Statement::new(predicate(), [&image("api")]);
    let text = String::from_utf8(canonical::to_vec(&statement).unwrap()).unwrap();
    for bad in [
        text.replace("deployment/v1", "deployment/v2"),
        text.replacen('{', "{ ", 1),
        text.replacen("{\"_type\"", "{\"Extra\":1,\"_type\"", 1),
        text.replace("Statement/v1", "Statement/v0.1"),
        text.replace(".123Z", ".123+00:00"),
    ] {
        assert_ne!(bad, text);
        let envelope = dsse::sign(EVIDENCE_PAYLOAD_TYPE, bad.clone().into_bytes(), &[&key(1)]).unwrap();
        let bytes = envelope.to_json().unwrap();
        assert!(Packet::open(&bytes, &key(1).public()).is_err(), "{bad:.100}");
    }
}
