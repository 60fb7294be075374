//! Drift that is put right: when, how often, and when never.

use chrono::TimeDelta;
use sealift_common::{
    audit::AuditOutcome,
    drift::{DriftKind, Severity},
    failure::FailureCode,
    id::{HoldId, JobId, ReplicaId},
    inventory::{AgentIntent, Environment},
    job::JobPhase,
    observation::{ContainerState, ProjectObservation, StickerObservation},
    order::Fence,
    promotion::{PromotionKind, PromotionState},
    release::Release,
    remedy::{Limits, RECONCILER, Remediation, SETTLE},
    strategy::Strategy,
    task::TaskPhase,
    time::Clock as _,
};
use sealift_orchestrator::{
    gateway::observations,
    loops::{
        driver::{Activity as _, Outcome},
        reconcile::Reconcile,
    },
};
use sealift_store::{Acknowledgement, DriftFilter, DriftRow, Hold, PageRequest, Promotion};

use crate::{
    intents::want,
    world::{Act, World},
};

/// A world with `v1` everywhere, and the loop.
struct Stage {
    world: World,
    release: Release,
    reconcile: Reconcile,
}

impl Stage {
    async fn new(targets: usize, remediation: Remediation) -> Self {
        let mut world = World::new(targets).await;
        let wanted = Environment {
            remediation,
            ..world.environment.clone()
        };
        let mut tx = world.core.db.write().await.unwrap();
        world.environment = tx.update_environment(&wanted, world.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        let release = world.release("v1").await;
        let job = world.promote(&release).await;
        world.finish(job).await;
        let replica = ReplicaId::new(world.clock.now());
        let reconcile = Reconcile::new(world.core.clone(), replica);
        Self {
            world,
            release,
            reconcile,
        }
    }

    async fn reconciling(targets: usize) -> Self {
        Self::new(targets, Remediation::Reconcile(Limits::default())).await
    }

    /// The agent of a target looks, after `change` on its host.
    async fn look(&self, target: usize, change: impl FnOnce(&mut ProjectObservation)) {
        let now = self.world.clock.now();
        let mut tx = self.world.core.db.write().await.unwrap();
        let id = self.world.targets[target].id;
        let mut seen = tx.observation(id).await.unwrap().unwrap();
        let project = self.release.source.project.to_string();
        change(seen.projects.get_mut(&project).unwrap());
        let session = self.world.session_for(&mut tx, id).await;
        observations::apply(&mut tx, &seen, session, now).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Somebody stops the service of a target.
    async fn stop(&self, target: usize) {
        self.look(target, |seen| seen.containers[0].state = ContainerState::Exited)
            .await;
    }

    /// The loop looks at every place, once what is there has settled.
    async fn settled(&mut self) {
        self.world.clock.advance(SETTLE);
        self.round().await;
    }

    /// The loop looks at every place.
    async fn round(&mut self) {
        while self.reconcile.activate().await.unwrap() == Outcome::More {}
    }

    /// What it asked for, newest first.
    async fn requested(&self) -> Vec<Promotion> {
        let mut tx = self.world.core.db.read().await.unwrap();
        let page = PageRequest::first(100);
        let all = tx.list_promotions(self.world.tenant, None, &page).await.unwrap();
        let own = all.items.into_iter().filter(|one| one.requested_by == RECONCILER);
        own.collect()
    }

    async fn job_of(&self, promotion: &Promotion) -> JobId {
        let mut tx = self.world.core.db.read().await.unwrap();
        let job = tx.job_of_promotion(promotion.id).await.unwrap();
        job.unwrap().id
    }

    /// Lets the newest of its promotions be carried out, after which the agent looks.
    async fn carry_out(&self, target: usize) {
        let newest = self.requested().await.remove(0);
        let job = self.job_of(&newest).await;
        assert_eq!(self.world.finish(job).await, JobPhase::Succeeded);
        self.look(target, |_| {}).await;
    }

    async fn drift(&self, include_resolved: bool) -> Vec<DriftRow> {
        let filter = DriftFilter {
            include_resolved,
            ..DriftFilter::default()
        };
        let mut tx = self.world.core.db.read().await.unwrap();
        let page = PageRequest::first(100);
        tx.list_drift(self.world.tenant, filter, &page)
            .await
            .unwrap()
            .items
    }

    /// Action, resource and outcome of its audit events, oldest first.
    async fn audited(&self) -> Vec<(String, String, AuditOutcome)> {
        let mut tx = self.world.core.db.read().await.unwrap();
        let page = PageRequest::first(100);
        let events = tx.list_audit(Some(self.world.tenant), &page).await.unwrap().items;
        let own = events.into_iter().rev().map(|event| event.entry);
        own.filter(|entry| entry.actor == RECONCILER)
            .map(|entry| (entry.action, entry.resource, entry.outcome))
            .collect()
    }
}

#[tokio::test]
async fn by_default_drift_is_only_told() {
    let mut stage = Stage::new(1, Remediation::default()).await;
    stage.stop(0).await;
    stage.settled().await;
    assert!(stage.requested().await.is_empty());
    assert_eq!(stage.drift(false).await.len(), 1);
}

#[tokio::test]
async fn r13_all_that_drifts_of_a_project_on_a_target_is_put_back_by_one_promotion_with_proof() {
    let mut stage = Stage::reconciling(3).await;
    let active = stage.world.active().await;
    stage
        .look(1, |seen| {
            seen.containers[0].state = ContainerState::Exited;
            seen.sticker = StickerObservation::Missing;
        })
        .await;
    stage.round().await;
    assert!(stage.requested().await.is_empty(), "it may be a restart");
    stage.settled().await;
    stage.round().await;
    let requested = stage.requested().await;
    assert_eq!(requested.len(), 1);
    let promotion = &requested[0];
    let target = &stage.world.targets[1];
    assert_eq!(promotion.state, PromotionState::Approved);
    assert_eq!(promotion.scope, Some(vec![target.id]));
    assert_eq!(promotion.release_id, stage.release.id);
    assert_eq!(promotion.kind(), PromotionKind::Deploy);
    let why = &promotion.change_summary;
    let found = stage.drift(false).await;
    assert_eq!(found.len(), 2);
    for one in &found {
        assert!(why.contains(&one.id.to_string()), "{why}");
        assert_eq!((one.tries, one.last_promotion), (1, Some(promotion.id)));
    }
    assert!(why.contains("api#1") && why.contains("try 1 of 3"), "{why}");

    let job = stage.job_of(promotion).await;
    stage.carry_out(1).await;
    // It is no no-op, although what is recorded is what is wanted.
    let tasks = stage.world.tasks(job).await;
    let task = (tasks[0].target_id, tasks[0].state.phase());
    assert_eq!((tasks.len(), task), (1, (target.id, TaskPhase::Succeeded)));
    assert!(tasks[0].fence > Fence(1), "{:?}", tasks[0].fence);
    assert!(stage.drift(false).await.is_empty());
    assert_eq!(stage.world.active().await, active);
    let resource = format!("promotions/{}", promotion.id);
    let event = ("drift.reconcile".to_owned(), resource, AuditOutcome::Success);
    assert_eq!(stage.audited().await, [event]);
    stage.settled().await;
    assert_eq!(stage.requested().await.len(), 1, "all is well");
}

#[tokio::test]
async fn what_nothing_recorded_explains_is_left_alone() {
    let mut stage = Stage::reconciling(1).await;
    stage
        .look(0, |seen| {
            let mut foreign = seen.containers[0].clone();
            foreign.id = "foreign".to_owned();
            foreign.fence = Fence(99);
            seen.containers.push(foreign);
        })
        .await;
    stage.settled().await;
    assert_eq!(stage.drift(false).await[0].finding.kind, DriftKind::Extra);
    assert!(stage.requested().await.is_empty());
}

#[tokio::test]
async fn what_somebody_looks_after_is_left_to_them() {
    let mut stage = Stage::reconciling(1).await;
    stage.stop(0).await;
    let found = stage.drift(false).await.remove(0);
    let mut tx = stage.world.core.db.write().await.unwrap();
    let said = Acknowledgement {
        owner: "team-a".to_owned(),
        note: "the disk is being replaced".to_owned(),
        by: "user/alice".to_owned(),
        at: stage.world.clock.now(),
    };
    tx.acknowledge_drift(stage.world.tenant, &found, &said)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    stage.settled().await;
    assert!(stage.requested().await.is_empty());
}

#[tokio::test]
async fn nothing_is_put_back_on_silent_hosts_in_busy_lanes_and_against_holds() {
    let mut stage = Stage::reconciling(1).await;
    let agent = stage.world.targets[0].agent_id.unwrap();
    stage.stop(0).await;
    stage.world.offline.lock().unwrap().insert(agent);
    stage.settled().await;
    assert!(stage.requested().await.is_empty(), "silent");
    stage.world.offline.lock().unwrap().clear();

    for intent in [AgentIntent::Paused, AgentIntent::Draining] {
        want(&stage.world, agent, intent).await;
        stage.round().await;
        assert!(stage.requested().await.is_empty(), "{intent}");
    }
    want(&stage.world, agent, AgentIntent::Active).await;

    let now = stage.world.clock.now();
    let hold = Hold {
        id: HoldId::new(now),
        tenant_id: stage.world.tenant,
        environment_id: stage.world.environment.id,
        environment: stage.world.environment.name.clone(),
        project_id: stage.release.project_id,
        project: stage.release.source.project.clone(),
        reason: "rolled back".to_owned(),
        placed_by: "user/alice".to_owned(),
        placed_at: now,
        lifted: None,
    };
    let mut tx = stage.world.core.db.write().await.unwrap();
    tx.place_hold(&hold).await.unwrap();
    tx.commit().await.unwrap();
    stage.round().await;
    assert!(stage.requested().await.is_empty(), "held");
    let mut tx = stage.world.core.db.write().await.unwrap();
    tx.lift_hold(&hold, "user/alice", now).await.unwrap();
    tx.commit().await.unwrap();

    // A person's job waits in the lane.
    let next = stage.world.release("v2").await;
    let waiting = stage.world.promote(&next).await;
    stage.round().await;
    assert!(stage.requested().await.is_empty(), "busy");
    stage.world.cancel(waiting).await.unwrap();
    stage.world.settle().await;
    stage.round().await;
    assert_eq!(stage.requested().await.len(), 1);
}

#[tokio::test]
async fn r13_what_does_not_stay_is_given_up_until_somebody_deploys() {
    let mut stage = Stage::reconciling(1).await;
    let gone = |seen: &mut ProjectObservation| seen.sticker = StickerObservation::Missing;
    for number in 1..=3 {
        // Each time it is put back, and each time it goes away again: that is a new observation of the same thing.
        stage.look(0, gone).await;
        stage.world.clock.advance(TimeDelta::minutes(10));
        stage.round().await;
        assert_eq!(stage.requested().await.len(), number);
        stage.carry_out(0).await;
        assert!(stage.drift(false).await.is_empty());
    }
    stage.look(0, gone).await;
    assert_eq!(stage.drift(false).await[0].severity, Severity::Medium);
    for _ in 0..3 {
        stage.world.clock.advance(TimeDelta::minutes(10));
        stage.round().await;
    }
    assert_eq!(stage.requested().await.len(), 3);
    let given_up = stage.drift(false).await.remove(0);
    assert!(given_up.gave_up_at.is_some());
    assert_eq!((given_up.severity, given_up.tries), (Severity::High, 0));
    let audited = stage.audited().await;
    let resource = format!("drift/{}", given_up.id);
    assert_eq!(audited.len(), 4, "said once: {audited:?}");
    let event = ("drift.give_up".to_owned(), resource, AuditOutcome::Failed);
    assert_eq!(audited[3], event);
    assert_eq!(stage.drift(true).await.len(), 4);

    // A person puts it back: counting begins anew, and stays so after the next act.
    let by_hand = stage.world.promote(&stage.release).await;
    assert_eq!(stage.world.finish(by_hand).await, JobPhase::Succeeded);
    stage.look(0, |_| {}).await;
    for number in 4..=5 {
        stage.look(0, gone).await;
        stage.world.clock.advance(TimeDelta::minutes(10));
        stage.round().await;
        assert_eq!(stage.requested().await.len(), number);
        stage.carry_out(0).await;
    }
}

#[tokio::test]
async fn an_act_that_fails_is_tried_again_later_and_not_for_ever() {
    let mut stage = Stage::reconciling(1).await;
    stage.stop(0).await;
    for number in 1..=3 {
        stage.world.clock.advance(TimeDelta::minutes(10));
        stage.round().await;
        assert_eq!(stage.requested().await.len(), number);
        stage.world.settle().await;
        stage.world.act(Act::Fail(FailureCode::Unhealthy)).await;
        stage.world.settle().await;
        let newest = stage.requested().await.remove(0);
        assert_eq!(newest.state, PromotionState::Failed);
        // Not at once.
        stage.round().await;
        assert_eq!(stage.requested().await.len(), number);
    }
    let found = stage.drift(false).await.remove(0);
    assert_eq!(
        (found.tries, found.gave_up_at),
        (3, None),
        "the last one gets its time"
    );
    stage.world.clock.advance(TimeDelta::minutes(10));
    stage.round().await;
    assert_eq!(stage.requested().await.len(), 3);
    assert!(stage.drift(false).await[0].gave_up_at.is_some());

    // A day later it may be worth another try.
    stage.world.clock.advance(TimeDelta::hours(25));
    stage.round().await;
    assert_eq!(stage.requested().await.len(), 4);
    assert_eq!(stage.drift(false).await[0].gave_up_at, None);
}

#[tokio::test]
async fn one_target_after_the_other_and_never_closer_than_the_pause() {
    let limits = Limits {
        pause_ms: 600_000,
        ..Limits::default()
    };
    let mut stage = Stage::new(2, Remediation::Reconcile(limits)).await;
    stage.stop(0).await;
    stage.stop(1).await;
    stage.settled().await;
    assert_eq!(stage.requested().await.len(), 1, "one lane, one act");
    let first = stage.requested().await.remove(0).scope.unwrap();
    let done = stage
        .world
        .targets
        .iter()
        .position(|target| target.id == first[0]);
    stage.carry_out(done.unwrap()).await;
    stage.world.clock.advance(TimeDelta::seconds(599));
    stage.round().await;
    assert_eq!(stage.requested().await.len(), 1);
    stage.world.clock.advance(TimeDelta::seconds(1));
    stage.round().await;
    let second = stage.requested().await.remove(0).scope.unwrap();
    assert_ne!(first, second);
}

#[tokio::test]
async fn what_is_recorded_on_the_target_is_put_back_and_the_environment_stays_as_it_is() {
    let mut stage = Stage::reconciling(2).await;
    // One target is behind: the other got a newer release alone.
    let next = stage.world.release("v2").await;
    let mut wish = stage.world.wish(&next, Strategy::AllAtOnce {});
    wish.scope = Some(vec![stage.world.targets[1].id]);
    let job = stage.world.request(&wish).await.job.unwrap().id;
    stage.world.finish(job).await;
    let active = stage.world.active().await;
    for (target, wanted) in [(0, stage.release.id), (1, next.id)] {
        stage.stop(target).await;
        stage.world.clock.advance(TimeDelta::minutes(10));
        stage.round().await;
        let newest = stage.requested().await.remove(0);
        assert_eq!(newest.release_id, wanted, "what is recorded there");
        stage.carry_out(target).await;
    }
    assert_eq!(stage.world.active().await, active);
}
