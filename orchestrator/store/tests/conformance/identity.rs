//! Certificates, agents, join tokens.

use sealift_common::{
    id::{AgentId, JoinTokenId, SessionId},
    inventory::{AgentFacts, AgentIntent},
    role::Role,
};
use sealift_store::{
    AuthenticatedPrincipal, Certificate, CertificateSubject, Heartbeat, JoinToken, PageRequest, StoreError,
};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, agent, note, tenant, user},
};

conformance![
    certificates_lead_to_their_principal,
    revoking_a_principal_revokes_its_certificates,
    what_is_wanted_of_an_agent_is_bound_to_what_was_seen,
    who_was_revoked_since_a_time_is_told,
    only_the_newest_certificates_of_an_agent_count,
    certificates_that_ended_are_forgotten_piece_by_piece_and_no_others,
    agents_are_kept_and_listed,
    heartbeats_only_move_forward,
    t3_a_join_token_works_once,
    reports_are_acknowledged_forward_only,
];

fn certificate(seed: &Seed, serial: &str, subject: CertificateSubject, from: i64) -> Certificate {
    Certificate {
        serial: serial.to_owned(),
        tenant_id: seed.tenant.id,
        subject,
        not_before: at(from),
        not_after: at(from + 1000),
        revoked_at: None,
    }
}

async fn certificates_lead_to_their_principal(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let alice = user(&seed.tenant, "alice", Role::Approver);
    let of_alice = certificate(&seed, "0a", CertificateSubject::User(alice.id), 0);
    let of_agent = certificate(&seed, "0b", CertificateSubject::Agent(seed.agent.id), 0);
    let mut tx = world.db.write().await.unwrap();
    tx.insert_user(&alice).await.unwrap();
    tx.insert_certificate(&of_alice).await.unwrap();
    tx.insert_certificate(&of_agent).await.unwrap();
    tx.record_heartbeats(&[beat(seed.agent.id, 7, 5)]).await.unwrap();
    assert_eq!(tx.certificate("0a").await.unwrap(), Some(of_alice.clone()));
    let found = tx.authenticate("0a").await.unwrap().unwrap();
    assert_eq!(
        (found.certificate, found.tenant),
        (of_alice, seed.tenant.name.clone())
    );
    assert_eq!(found.principal, AuthenticatedPrincipal::User(alice));
    let found = tx.authenticate("0b").await.unwrap().unwrap();
    let seen = sealift_common::inventory::Agent {
        last_seen_at: Some(at(7)),
        session: Some(session(5)),
        ..seed.agent.clone()
    };
    assert_eq!(found.principal, AuthenticatedPrincipal::Agent(seen));
    assert_eq!(tx.authenticate("0c").await.unwrap(), None);
    let again = tx.insert_certificate(&of_agent).await;
    assert!(
        matches!(
            again,
            Err(StoreError::Duplicate {
                constraint: "certificates_pkey"
            })
        ),
        "{again:?}"
    );
}

async fn revoking_a_principal_revokes_its_certificates(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let alice = user(&seed.tenant, "alice", Role::Approver);
    let mut tx = world.db.write().await.unwrap();
    tx.insert_user(&alice).await.unwrap();
    tx.insert_certificate(&certificate(&seed, "0a", CertificateSubject::User(alice.id), 0))
        .await
        .unwrap();
    tx.insert_certificate(&certificate(
        &seed,
        "0b",
        CertificateSubject::Agent(seed.agent.id),
        0,
    ))
    .await
    .unwrap();
    tx.revoke_user(alice.id, "left", at(5)).await.unwrap();
    tx.revoke_agent(seed.agent.id, &note("lost", 6)).await.unwrap();
    tx.revoke_agent(seed.agent.id, &note("again", 9)).await.unwrap();
    assert_eq!(
        tx.certificate("0a").await.unwrap().unwrap().revoked_at,
        Some(at(5))
    );
    assert_eq!(
        tx.certificate("0b").await.unwrap().unwrap().revoked_at,
        Some(at(6))
    );
    let revoked = tx.agent_by_id(seed.agent.id).await.unwrap().unwrap();
    assert_eq!(
        (revoked.intent, revoked.revoked_at),
        (AgentIntent::Revoked, Some(at(6)))
    );
}

async fn what_is_wanted_of_an_agent_is_bound_to_what_was_seen(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let seen = seed.agent.clone();
    let mut tx = world.db.write().await.unwrap();
    let disk = note("new disk", 3);
    tx.set_agent_intent(&seen, AgentIntent::Draining, &disk)
        .await
        .unwrap();
    let draining = tx.agent_by_id(seen.id).await.unwrap().unwrap();
    assert_eq!(
        (draining.intent, &draining.intent_note, draining.revision),
        (AgentIntent::Draining, &disk, seen.revision + 1)
    );
    let late = tx
        .set_agent_intent(&seen, AgentIntent::Paused, &note("late", 4))
        .await;
    assert!(matches!(late, Err(StoreError::Conflict)), "{late:?}");
    tx.revoke_agent(seen.id, &note("lost", 5)).await.unwrap();
    let revoked = tx.agent_by_id(seen.id).await.unwrap().unwrap();
    assert_eq!(
        (revoked.intent, &revoked.intent_note),
        (AgentIntent::Revoked, &note("lost", 5))
    );
    let back = tx
        .set_agent_intent(&revoked, AgentIntent::Active, &note("found", 6))
        .await;
    assert!(matches!(back, Err(StoreError::Conflict)), "{back:?}");
}

async fn who_was_revoked_since_a_time_is_told(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let alice = user(&seed.tenant, "alice", Role::Approver);
    let mut tx = world.db.write().await.unwrap();
    tx.insert_user(&alice).await.unwrap();
    assert!(tx.revoked_since(at(0)).await.unwrap().is_empty());
    tx.revoke_user(alice.id, "left", at(5)).await.unwrap();
    tx.revoke_agent(seed.agent.id, &note("lost", 6)).await.unwrap();
    let (gone, lost) = (
        CertificateSubject::User(alice.id),
        CertificateSubject::Agent(seed.agent.id),
    );
    assert_eq!(tx.revoked_since(at(5)).await.unwrap(), [gone, lost]);
    assert_eq!(tx.revoked_since(at(6)).await.unwrap(), [lost]);
    assert!(tx.revoked_since(at(7)).await.unwrap().is_empty());
}

async fn only_the_newest_certificates_of_an_agent_count(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    for (serial, from) in [("03", 30), ("01", 10), ("02", 20)] {
        let subject = CertificateSubject::Agent(seed.agent.id);
        tx.insert_certificate(&certificate(&seed, serial, subject, from))
            .await
            .unwrap();
    }
    tx.retire_agent_certificates(seed.agent.id, 2, at(40))
        .await
        .unwrap();
    let mut counts = Vec::new();
    for serial in ["01", "02", "03"] {
        counts.push(
            tx.certificate(serial)
                .await
                .unwrap()
                .unwrap()
                .revoked_at
                .is_none(),
        );
    }
    assert_eq!(counts, [false, true, true]);
}

async fn certificates_that_ended_are_forgotten_piece_by_piece_and_no_others(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let subject = CertificateSubject::Agent(seed.agent.id);
    let mut tx = world.db.write().await.unwrap();
    for (serial, from) in [("01", 1), ("02", 2), ("03", 3), ("04", 4)] {
        tx.insert_certificate(&certificate(&seed, serial, subject, from))
            .await
            .unwrap();
    }
    // Each ends a thousand seconds after its beginning, and its end is part of its life.
    let gone = [
        tx.purge_certificates(at(1004), 2).await.unwrap(),
        tx.purge_certificates(at(1004), 2).await.unwrap(),
        tx.purge_certificates(at(1004), 2).await.unwrap(),
    ];
    assert_eq!(gone, [2, 1, 0], "the oldest first");
    assert_eq!(tx.certificate("03").await.unwrap(), None);
    assert!(tx.certificate("04").await.unwrap().is_some());
}

async fn agents_are_kept_and_listed(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let second = agent(&seed.tenant, "app-1");
    let facts = AgentFacts {
        hostname: "h2".to_owned(),
        ..AgentFacts::default()
    };
    let mut tx = world.db.write().await.unwrap();
    tx.insert_agent(&second).await.unwrap();
    assert_eq!(
        tx.agent(seed.tenant.id, seed.agent.id).await.unwrap(),
        Some(seed.agent.clone())
    );
    tx.update_agent_facts(second.id, &facts, at(1)).await.unwrap();
    assert_eq!(tx.agent_by_id(second.id).await.unwrap().unwrap().facts, facts);
    let first = tx
        .list_agents(seed.tenant.id, &PageRequest::first(1))
        .await
        .unwrap();
    assert_eq!(first.items[0].id, second.id);
    let rest = tx
        .list_agents(
            seed.tenant.id,
            &PageRequest {
                size: 1,
                after: first.next,
            },
        )
        .await
        .unwrap();
    assert_eq!(rest.items, std::slice::from_ref(&seed.agent));
    assert_eq!(rest.next, None);
}

fn session(number: u8) -> SessionId {
    format!("018f0000-0000-7000-8000-0000000000{number:02}")
        .parse()
        .unwrap()
}

/// Heard at this second, in that session.
fn beat(agent_id: AgentId, seen: i64, in_session: u8) -> Heartbeat {
    Heartbeat {
        agent_id,
        session: session(in_session),
        at: at(seen),
    }
}

async fn heartbeats_only_move_forward(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let many: Vec<_> = (0..1500)
        .map(|number| agent(&seed.tenant, &format!("m-{number}")))
        .collect();
    let mut tx = world.db.write().await.unwrap();
    for agent in &many {
        tx.insert_agent(agent).await.unwrap();
    }
    let beats: Vec<_> = many.iter().map(|agent| beat(agent.id, 10, 1)).collect();
    tx.record_heartbeats(&beats).await.unwrap();
    let id = many[3].id;
    tx.record_heartbeats(&[beat(id, 30, 25), beat(id, 20, 1)])
        .await
        .unwrap();
    tx.record_heartbeats(&[beat(id, 5, 1)]).await.unwrap();
    tx.record_heartbeats(&[]).await.unwrap();
    let heard = tx.agents_by_ids(&[id, many[1499].id]).await.unwrap();
    let of = |id: AgentId| (heard[&id].last_seen_at, heard[&id].session);
    assert_eq!(of(id), (Some(at(30)), Some(session(25))));
    assert_eq!(of(many[1499].id), (Some(at(10)), Some(session(1))));
}

async fn t3_a_join_token_works_once(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let token = JoinToken {
        id: JoinTokenId::new(at(0)),
        tenant_id: seed.tenant.id,
        target_id: seed.targets[0].id,
        secret_hash: [9; 32],
        expires_at: at(100),
        created_by: "user/alice".to_owned(),
        created_at: at(0),
        used_at: None,
        used_by: None,
    };
    let late = JoinToken {
        id: JoinTokenId::new(at(0)),
        expires_at: at(10),
        ..token.clone()
    };
    let mut tx = world.db.write().await.unwrap();
    tx.insert_join_token(&token).await.unwrap();
    tx.insert_join_token(&late).await.unwrap();
    assert_eq!(tx.join_token(token.id).await.unwrap(), Some(token.clone()));
    assert_eq!(
        tx.count_live_join_tokens(token.target_id, at(5)).await.unwrap(),
        2
    );
    assert_eq!(
        tx.count_live_join_tokens(token.target_id, at(10)).await.unwrap(),
        1
    );
    tx.commit().await.unwrap();

    // Two agents at once with one token: exactly one gets in.
    let attempt = async || {
        let mut tx = world.db.write().await.unwrap();
        let used = tx.use_join_token(token.id, seed.agent.id, at(20)).await.unwrap();
        tx.commit().await.unwrap();
        used
    };
    let (first, second) = futures::join!(attempt(), attempt());
    assert!(first ^ second, "{first} {second}");
    let mut tx = world.db.write().await.unwrap();
    assert!(
        !tx.use_join_token(late.id, seed.agent.id, at(10)).await.unwrap(),
        "expired"
    );
    let used = tx.join_token(token.id).await.unwrap().unwrap();
    assert_eq!((used.used_at, used.used_by), (Some(at(20)), Some(seed.agent.id)));
}

async fn reports_are_acknowledged_forward_only(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    let mut seen = vec![tx.acknowledged_report(seed.agent.id).await.unwrap()];
    for number in [3, 7, 5] {
        tx.set_acknowledged_report(seed.agent.id, number).await.unwrap();
        seen.push(tx.acknowledged_report(seed.agent.id).await.unwrap());
    }
    assert_eq!(seen, [0, 3, 7, 7]);
    let refused = tx.set_acknowledged_report(seed.agent.id, u64::MAX).await;
    assert!(matches!(refused, Err(StoreError::TooLarge(_))), "{refused:?}");
    let mut unknown = agent(&tenant("other"), "x");
    unknown.tenant_id = sealift_common::id::TenantId::new(at(0));
    let refused = tx.insert_agent(&unknown).await;
    assert!(matches!(refused, Err(StoreError::Reference(_))), "{refused:?}");
}
