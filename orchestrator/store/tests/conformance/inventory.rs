//! Tenants, users, environments, targets.

use sealift_common::{inventory::EnvironmentClass, order::Fence, role::Role, variables::Variables};
use sealift_store::{Cursor, PageRequest, StoreError};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, agent, environment, name, target, tenant, user},
};

conformance![
    tenants_are_kept_and_listed,
    users_are_kept_listed_and_revoked_once,
    environments_come_in_promotion_order,
    environments_change_under_their_revision,
    archived_environments_free_their_name,
    targets_are_kept_and_listed,
    targets_change_under_their_revision,
    targets_are_bound_and_unbound,
    fences_only_grow,
    pages_are_stable_under_inserts,
    cursors_of_other_lists_are_refused,
    taken_names_are_duplicates,
];

async fn tenants_are_kept_and_listed(world: World) {
    let (acme, bolt) = (tenant("acme"), tenant("bolt"));
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&bolt).await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    assert_eq!(tx.tenant(acme.id).await.unwrap(), Some(acme.clone()));
    assert_eq!(tx.tenant_by_name(&bolt.name).await.unwrap(), Some(bolt.clone()));
    assert_eq!(tx.tenant_by_name(&name("cord")).await.unwrap(), None);
    let page = tx.list_tenants(&PageRequest::first(9)).await.unwrap();
    assert_eq!(page.items, [acme, bolt]);
    assert_eq!(page.next, None);
}

async fn users_are_kept_listed_and_revoked_once(world: World) {
    let acme = tenant("acme");
    let (alice, bob) = (user(&acme, "alice", Role::Admin), user(&acme, "bob", Role::Ci));
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    tx.insert_user(&bob).await.unwrap();
    tx.insert_user(&alice).await.unwrap();
    tx.revoke_user(bob.id, "left", at(5)).await.unwrap();
    tx.revoke_user(bob.id, "again", at(9)).await.unwrap();
    let revoked = tx.user(bob.id).await.unwrap().unwrap();
    assert_eq!(revoked.revoked_at, Some(at(5)));
    assert_eq!(
        tx.user_by_name(acme.id, &alice.name).await.unwrap(),
        Some(alice.clone())
    );
    assert_eq!(
        tx.list_users(acme.id, &PageRequest::first(9))
            .await
            .unwrap()
            .items,
        [alice, revoked]
    );
}

async fn environments_come_in_promotion_order(world: World) {
    let acme = tenant("acme");
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    for (text, position) in [("prod", 9), ("test-b", 1), ("test-a", 1), ("staging", 5)] {
        tx.insert_environment(&environment(&acme, text, position))
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    let mut request = PageRequest::first(2);
    loop {
        let page = tx.list_environments(acme.id, &request).await.unwrap();
        seen.extend(
            page.items
                .into_iter()
                .map(|environment| environment.name.to_string()),
        );
        request.after = page.next;
        if request.after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["test-a", "test-b", "staging", "prod"]);
}

async fn environments_change_under_their_revision(world: World) {
    let acme = tenant("acme");
    let old = environment(&acme, "prod", 9);
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    tx.insert_environment(&old).await.unwrap();
    let mut wanted = old.clone();
    "Production".clone_into(&mut wanted.display_name);
    wanted.class = EnvironmentClass::Production;
    wanted.position = 10;
    let variables = std::collections::BTreeMap::from([("GREETING".to_owned(), "hello $you\n".to_owned())]);
    wanted.variables = Variables::try_from(variables).unwrap();
    let new = tx.update_environment(&wanted, at(3)).await.unwrap();
    assert_eq!((new.revision, new.updated_at, new.position), (2, at(3), 10));
    assert_eq!(new.variables, wanted.variables);
    assert_eq!(tx.environment(acme.id, old.id).await.unwrap(), Some(new));
    let stale = tx.update_environment(&wanted, at(4)).await;
    assert!(matches!(stale, Err(StoreError::Conflict)), "{stale:?}");
    let stale = tx.archive_environment(&wanted, at(4)).await;
    assert!(matches!(stale, Err(StoreError::Conflict)), "{stale:?}");
}

async fn archived_environments_free_their_name(world: World) {
    let acme = tenant("acme");
    let old = environment(&acme, "prod", 9);
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    tx.insert_environment(&old).await.unwrap();
    let archived = tx.archive_environment(&old, at(3)).await.unwrap();
    assert_eq!((archived.archived_at, archived.revision), (Some(at(3)), 2));
    assert_eq!(tx.environment_by_name(acme.id, &old.name).await.unwrap(), None);
    assert!(
        tx.list_environments(acme.id, &PageRequest::first(9))
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert_eq!(tx.environment(acme.id, old.id).await.unwrap(), Some(archived));
    let new = environment(&acme, "prod", 9);
    tx.insert_environment(&new).await.unwrap();
    assert_eq!(
        tx.environment_by_name(acme.id, &old.name).await.unwrap(),
        Some(new)
    );
}

async fn targets_are_kept_and_listed(world: World) {
    let seed = Seed::sow(&world.db, "acme", 3).await;
    let other = environment(&seed.tenant, "prod", 2);
    let prod = target(&other, "web-0");
    let mut tx = world.db.write().await.unwrap();
    tx.insert_environment(&other).await.unwrap();
    tx.insert_target(&prod).await.unwrap();
    let first = &seed.targets[0];
    let (tenant, environment) = (seed.tenant.id, seed.environment.id);
    assert_eq!(tx.target(tenant, first.id).await.unwrap().as_ref(), Some(first));
    assert_eq!(
        tx.target_by_name(tenant, environment, &first.name)
            .await
            .unwrap()
            .as_ref(),
        Some(first)
    );
    assert_eq!(tx.environment_targets(environment).await.unwrap(), seed.targets);
    assert_eq!(tx.targets_of_agent(seed.agent.id).await.unwrap(), seed.targets);
    let of_environment = tx
        .list_targets(tenant, Some(environment), &PageRequest::first(2))
        .await
        .unwrap();
    assert_eq!(of_environment.items, seed.targets[..2]);
    let request = PageRequest {
        size: 2,
        after: of_environment.next,
    };
    assert_eq!(
        tx.list_targets(tenant, Some(environment), &request)
            .await
            .unwrap()
            .items,
        seed.targets[2..]
    );
    let all = tx
        .list_targets(tenant, None, &PageRequest::first(2))
        .await
        .unwrap();
    assert_eq!(all.items, [prod, seed.targets[0].clone()]);
    let request = PageRequest {
        size: 9,
        after: all.next,
    };
    assert_eq!(
        tx.list_targets(tenant, None, &request).await.unwrap().items,
        seed.targets[1..]
    );
}

async fn targets_change_under_their_revision(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut wanted = seed.targets[0].clone();
    wanted.labels.insert("rack".to_owned(), "7".to_owned());
    let mut tx = world.db.write().await.unwrap();
    let new = tx.update_target(&wanted, at(2)).await.unwrap();
    assert_eq!((new.revision, &new.labels), (2, &wanted.labels));
    let stale = tx.update_target(&wanted, at(3)).await;
    assert!(matches!(stale, Err(StoreError::Conflict)), "{stale:?}");
    let archived = tx.archive_target(&new, at(4)).await.unwrap();
    assert_eq!((archived.archived_at, archived.agent_id), (Some(at(4)), None));
    assert!(
        tx.environment_targets(seed.environment.id)
            .await
            .unwrap()
            .is_empty()
    );
    tx.insert_target(&target(&seed.environment, "web-0"))
        .await
        .unwrap();
}

async fn targets_are_bound_and_unbound(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let second = agent(&seed.tenant, "web-9");
    let mut tx = world.db.write().await.unwrap();
    tx.insert_agent(&second).await.unwrap();
    let (target, seen) = (seed.targets[1].id, seed.targets[1].agent_id);
    tx.bind_target(target, seen, second.id, at(1)).await.unwrap();
    // Whoever looked before that has lost the race, whatever it saw.
    let late = tx.bind_target(target, seen, seed.agent.id, at(1)).await;
    assert!(matches!(late, Err(StoreError::Conflict)), "{late:?}");
    assert_eq!(tx.targets_of_agent(second.id).await.unwrap().len(), 1);
    let served = tx.targets_of_agents(&[seed.agent.id, second.id]).await.unwrap();
    let served: Vec<_> = served
        .into_iter()
        .map(|(agent, targets)| (agent, targets.iter().map(|target| target.id).collect::<Vec<_>>()))
        .collect();
    let mut wanted = [
        (seed.agent.id, vec![seed.targets[0].id]),
        (second.id, vec![target]),
    ];
    wanted.sort();
    assert_eq!(served, wanted);
    let serving = tx.agents_of_environment(seed.environment.id).await.unwrap();
    assert_eq!(serving, [seed.agent.clone(), second.clone()]);
    tx.unbind_agent(second.id, at(2)).await.unwrap();
    assert!(tx.targets_of_agent(second.id).await.unwrap().is_empty());
    let missing = sealift_common::id::TargetId::new(at(0));
    let refused = tx.bind_target(missing, None, second.id, at(3)).await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
}

async fn fences_only_grow(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let id = seed.targets[0].id;
    for wanted in 1..=3 {
        let mut tx = world.db.write().await.unwrap();
        // Named twice, it still takes one step.
        let fences = tx.next_fences([id, id]).await.unwrap();
        assert_eq!(fences, [(id, Fence(wanted))].into());
        tx.commit().await.unwrap();
    }
    let mut tx = world.db.write().await.unwrap();
    let refused = tx
        .next_fences([id, sealift_common::id::TargetId::new(at(0))])
        .await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    drop(tx);
    let mut tx = world.db.read().await.unwrap();
    assert_eq!(
        tx.target(seed.tenant.id, id).await.unwrap().unwrap().fence,
        Fence(3)
    );
}

async fn pages_are_stable_under_inserts(world: World) {
    let acme = tenant("acme");
    let mut tx = world.db.write().await.unwrap();
    tx.insert_tenant(&acme).await.unwrap();
    for text in ["b", "d", "f", "h"] {
        tx.insert_user(&user(&acme, text, Role::Observer)).await.unwrap();
    }
    let first = tx.list_users(acme.id, &PageRequest::first(2)).await.unwrap();
    // One before the cursor, one behind it: the first does not shift the page, the second is seen.
    for text in ["a", "e"] {
        tx.insert_user(&user(&acme, text, Role::Observer)).await.unwrap();
    }
    let rest = tx
        .list_users(
            acme.id,
            &PageRequest {
                size: 9,
                after: first.next,
            },
        )
        .await
        .unwrap();
    let names = |users: &[sealift_common::inventory::User]| -> Vec<String> {
        users.iter().map(|user| user.name.to_string()).collect()
    };
    assert_eq!(names(&first.items), ["b", "d"]);
    assert_eq!(names(&rest.items), ["e", "f", "h"]);
    assert_eq!(rest.next, None);
}

async fn cursors_of_other_lists_are_refused(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.read().await.unwrap();
    for text in ["", "x", "1|2|3|4", "a|b"] {
        let request = PageRequest {
            size: 1,
            after: Some(Cursor::from_text(text)),
        };
        let refused = tx.list_jobs(seed.tenant.id, None, &request).await;
        assert!(matches!(refused, Err(StoreError::InvalidCursor)), "{text}");
        let refused = tx.list_environments(seed.tenant.id, &request).await;
        assert!(matches!(refused, Err(StoreError::InvalidCursor)), "{text}");
    }
}

async fn taken_names_are_duplicates(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    let refused = tx.insert_tenant(&tenant("acme")).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Duplicate {
                constraint: "tenant_name"
            })
        ),
        "{refused:?}"
    );
    drop(tx);
    let mut tx = world.db.write().await.unwrap();
    let refused = tx
        .insert_environment(&environment(&seed.tenant, "staging", 3))
        .await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Duplicate {
                constraint: "environment_name"
            })
        ),
        "{refused:?}"
    );
    drop(tx);
    let mut tx = world.db.write().await.unwrap();
    let refused = tx.insert_target(&target(&seed.environment, "web-0")).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Duplicate {
                constraint: "target_name"
            })
        ),
        "{refused:?}"
    );
    drop(tx);
    let mut tx = world.db.write().await.unwrap();
    let refused = tx.insert_tenant(&seed.tenant).await;
    assert!(
        matches!(refused, Err(StoreError::Duplicate { .. })),
        "{refused:?}"
    );
}
