//! Writes a signed and countersigned evidence packet, the public keys and the trust file into a directory, so that programs in
//! other languages can be shown to accept them (`tests/python/verify_packet.py`). The keys are fixed: for tests only.

use std::{error::Error, fs, path::PathBuf};

use chrono::DateTime;
use sealift_common::{
    digest::Digest,
    evidence::{
        AgentInfo, EngineInfo, EvidenceDecision, EvidenceRelease, EvidenceResult, EvidenceService,
        EvidenceStep, Observed, Packet, Predicate, Statement,
    },
    id::{AgentId, JobId, PromotionId, ReleaseId, TargetId, TaskId},
    keys::SigningKey,
    manifest::PinnedImage,
    observation::ContainerHealth,
    order::Fence,
    spiffe::SpiffeId,
    task::TaskStep,
    trust::{AgentKey, OrchestratorKey, TrustFile, Validity, verify_packet},
};

fn main() -> Result<(), Box<dyn Error>> {
    let directory: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("usage: write_packet DIRECTORY")?
        .into();
    let agent_key = SigningKey::from_seed(&[1; 32]);
    let orchestrator_key = SigningKey::from_seed(&[2; 32]);
    let now = DateTime::from_timestamp(1_800_000_000, 0).ok_or("time")?;
    let agent_id = AgentId::new(now);
    let image = PinnedImage {
        repository: "registry.example.com/shop/api".into(),
        tag: Some("1.4.0".into()),
        digest: Digest::of(b"image"),
    };
    let observed = Observed {
        container_id: "c0ffee".into(),
        image_id: Digest::of(b"configuration").to_string(),
        digest: image.digest,
    };
    let predicate = Predicate {
        tenant: "acme".parse()?,
        environment: "production".parse()?,
        target: "web-1".parse()?,
        target_id: TargetId::new(now),
        agent_id,
        agent: AgentInfo {
            spiffe_id: SpiffeId::agent("acme".parse()?, agent_id),
            certificate_serial: "01".into(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        engine: EngineInfo {
            name: "docker".into(),
            version: "20.10.24".into(),
            api: "1.41".into(),
            platform: "linux/amd64".into(),
        },
        job_id: JobId::new(now),
        task_id: TaskId::new(now),
        attempt: 1,
        wave: 0,
        fence: Fence(7),
        decision: EvidenceDecision {
            promotion: PromotionId::new(now),
            record: Digest::of(b"record"),
            plan: Digest::of(b"plan"),
            requested_by: "Zoë".into(),
        },
        release: EvidenceRelease {
            id: ReleaseId::new(now),
            repository: "github.com/acme/shop".into(),
            project: "api".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
            number: 42,
            content: Digest::of(b"manifest"),
        },
        result: EvidenceResult::Succeeded,
        failure: None,
        services: vec![EvidenceService::of(
            &"api".parse()?,
            &image,
            Some(observed),
            ContainerHealth::Healthy,
        )],
        hooks: Vec::new(),
        allowances: Vec::new(),
        previous: [("api".parse()?, Digest::of(b"before"))].into(),
        inputs: Digest::of(b"inputs"),
        compose_lock: None,
        sticker_digest: Some(Digest::of(b"sticker")),
        log_digest: Some(Digest::of(b"log")),
        log_truncated: false,
        order_digest: Digest::of(b"order"),
        started_at: now,
        finished_at: now,
        finished_at_orchestrator: None,
        steps: vec![EvidenceStep {
            step: TaskStep::Received,
            at: now,
        }],
    };
    let statement = Statement::new(predicate, [&image]);
    let packet = Packet::sign(&statement, &agent_key)?;
    let packet = Packet::countersign(&packet, &agent_key.public(), &orchestrator_key)?;
    let validity = Validity {
        from: now,
        until: None,
        revoked_at: None,
    };
    let trust = TrustFile::new(
        vec![OrchestratorKey::new(orchestrator_key.public(), validity)],
        vec![AgentKey::new(
            agent_id,
            "web-1".into(),
            "acme".parse()?,
            agent_key.public(),
            validity,
        )],
    )?;
    verify_packet(&packet, &trust)?;

    fs::create_dir_all(&directory)?;
    fs::write(directory.join("packet.intoto.json"), packet)?;
    fs::write(directory.join("agent.pem"), agent_key.public().to_pem()?)?;
    fs::write(directory.join("agent.key.pem"), agent_key.to_pem()?.as_bytes())?;
    fs::write(
        directory.join("orchestrator.pem"),
        orchestrator_key.public().to_pem()?,
    )?;
    fs::write(directory.join("trust.json"), trust.to_json()?)?;
    Ok(())
}
