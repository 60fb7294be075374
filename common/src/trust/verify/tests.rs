use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::{
    canonical, dsse,
    evidence::{
        Predicate,
        tests::{NOW, failed, image, predicate},
    },
    keys::SigningKey,
    trust::TrustFileError,
};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(NOW + seconds, 0).unwrap()
}

fn since(seconds: i64) -> Validity {
    Validity {
        from: at(seconds),
        until: None,
        revoked_at: None,
    }
}

fn trust(predicate: &Predicate) -> TrustFile {
    let tenant = predicate.tenant.clone();
    let other = AgentId::new(at(-1000));
    TrustFile::new(
        vec![OrchestratorKey::new(key(9).public(), since(-9999))],
        vec![
            AgentKey::new(
                predicate.agent_id,
                "web-1".into(),
                tenant.clone(),
                key(1).public(),
                since(-500),
            ),
            AgentKey::new(other, "web-2".into(), tenant, key(2).public(), since(-500)),
        ],
    )
    .unwrap()
}

fn packet(predicate: &Predicate, seeds: &[u8]) -> Vec<u8> {
    let statement = Statement::new(predicate.clone(), [&image("api")]);
    let keys: Vec<_> = seeds.iter().copied().map(key).collect();
    let payload = canonical::to_vec(&statement).unwrap();
    dsse::sign(EVIDENCE_PAYLOAD_TYPE, payload, &keys.iter().collect::<Vec<_>>())
        .unwrap()
        .to_json()
        .unwrap()
}

fn code(bytes: &[u8], trust: &TrustFile) -> &'static str {
    verify_packet(bytes, trust).map_or_else(|error| error.code(), |_| "ok")
}

#[test]
fn a_packet_with_both_signatures_verifies_offline() {
    let predicate = predicate();
    let bytes = packet(&predicate, &[1, 9]);
    let verified = verify_packet(&bytes, &trust(&predicate)).unwrap();
    assert_eq!(verified.agent, "web-1");
    assert_eq!(verified.statement.predicate, predicate);
    assert_eq!(verified.digest, Digest::of(&bytes));
}

#[test]
fn t15_missing_foreign_and_second_signatures_are_refused() {
    let predicate = predicate();
    let trust = trust(&predicate);
    assert_eq!(
        code(&packet(&predicate, &[1]), &trust),
        "COUNTERSIGNATURE_MISSING"
    );
    assert_eq!(code(&packet(&predicate, &[9]), &trust), "AGENT_SIGNATURE_MISSING");
    assert_eq!(code(&packet(&predicate, &[1, 9, 5]), &trust), "KEY_UNKNOWN");
    assert_eq!(
        code(&packet(&predicate, &[1, 2, 9]), &trust),
        "AGENT_SIGNATURE_REPEATED"
    );
    assert_eq!(code(b"{}", &trust), "ENVELOPE_MALFORMED");
}

#[test]
fn t2_an_agent_cannot_speak_for_another() {
    let predicate = predicate();
    let trust = trust(&predicate);
    assert_eq!(code(&packet(&predicate, &[2, 9]), &trust), "AGENT_MISMATCH");
}

#[test]
fn t1_evidence_after_revocation_is_refused_and_before_it_stays_good() {
    let predicate = predicate();
    let bytes = packet(&predicate, &[1, 9]);
    let mut trust = trust(&predicate);
    let finished = predicate.finished_at;
    for (revoked_at, wanted) in [
        (finished + TimeDelta::milliseconds(1), "ok"),
        (finished, "KEY_REVOKED"),
        (finished - TimeDelta::days(1), "KEY_REVOKED"),
    ] {
        trust.agents[0].validity.revoked_at = Some(revoked_at);
        assert_eq!(code(&bytes, &trust), wanted);
    }
    trust.agents[0].validity = since(100);
    assert_eq!(code(&bytes, &trust), "KEY_NOT_VALID");
    trust.agents[0].validity = Validity {
        until: Some(at(-100)),
        ..since(-500)
    };
    assert_eq!(code(&bytes, &trust), "KEY_NOT_VALID");
    trust.agents[0].validity = since(-500);
    trust.orchestrator[0].validity = since(100);
    assert_eq!(code(&bytes, &trust), "KEY_NOT_VALID");
}

#[test]
fn f9_keys_count_by_the_orchestrators_clock_when_the_host_knew_it() {
    let mut predicate = predicate();
    let mut trust = trust(&predicate);
    let truly = predicate.finished_at;
    for wrong in [TimeDelta::minutes(-3), TimeDelta::days(400)] {
        predicate.finished_at = truly + wrong;
        predicate.finished_at_orchestrator = None;
        trust.agents[0].validity = Validity {
            until: Some(at(60)),
            ..since(0)
        };
        assert_eq!(code(&packet(&predicate, &[1, 9]), &trust), "KEY_NOT_VALID");
        predicate.finished_at_orchestrator = Some(truly);
        assert_eq!(code(&packet(&predicate, &[1, 9]), &trust), "ok");
        // A clock that is behind is no way around a revocation.
        trust.agents[0].validity.revoked_at = Some(truly);
        assert_eq!(code(&packet(&predicate, &[1, 9]), &trust), "KEY_REVOKED");
    }
}

#[test]
fn a_success_that_runs_something_else_is_refused() {
    let mut other = predicate();
    other.services[0].observed.as_mut().unwrap().digest = Digest::of(b"other");
    assert_eq!(
        code(&packet(&other, &[1, 9]), &trust(&other)),
        "STATEMENT_REFUSED"
    );
    let failed = failed();
    assert_eq!(
        code(&packet(&failed, &[1, 9]), &trust(&failed)),
        "STATEMENT_REFUSED"
    );
}

#[test]
fn t15_every_flipped_bit_of_every_byte_is_noticed() {
    let predicate = predicate();
    let trust = trust(&predicate);
    let good = packet(&predicate, &[1, 9]);
    for position in 0..good.len() {
        // All eight bits at some positions would take long in a debug build; each position gets one, by turns.
        let mut bad = good.clone();
        bad[position] ^= 1 << (position % 8);
        assert!(verify_packet(&bad, &trust).is_err(), "byte {position}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn t15_any_changed_byte_is_noticed(position in 0_usize..100_000, value in any::<u8>()) {
        let predicate = predicate();
        let good = packet(&predicate, &[1, 9]);
        let position = position % good.len();
        let mut bad = good.clone();
        bad[position] = value;
        prop_assert_eq!(verify_packet(&bad, &trust(&predicate)).is_ok(), bad == good);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(verify_packet(&bytes, &trust(&predicate())).is_err());
    }
}

#[test]
fn trust_files_round_trip_and_loose_ones_are_refused() {
    let trust = trust(&predicate());
    let bytes = trust.to_json().unwrap();
    assert_eq!(TrustFile::from_json(&bytes).unwrap(), trust);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("BEGIN PUBLIC KEY"));
    let newer = text.replace("\"version\": 1", "\"version\": 2, \"more\": true");
    assert!(matches!(
        TrustFile::from_json(newer.as_bytes()),
        Err(TrustFileError::Version(2))
    ));
    let extra = text.replace("\"version\": 1", "\"version\": 1, \"more\": true");
    assert!(matches!(
        TrustFile::from_json(extra.as_bytes()),
        Err(TrustFileError::Shape(_))
    ));
    let swapped = text.replace(
        key(1).public().key_id().as_str(),
        key(3).public().key_id().as_str(),
    );
    assert!(matches!(
        TrustFile::from_json(swapped.as_bytes()),
        Err(TrustFileError::KeyId(_))
    ));
    let mut repeated = trust.clone();
    repeated.agents[1].public_key = key(9).public();
    repeated.agents[1].key_id = key(9).public().key_id();
    assert!(matches!(
        TrustFile::new(repeated.orchestrator, repeated.agents),
        Err(TrustFileError::Repeated(_))
    ));
}
