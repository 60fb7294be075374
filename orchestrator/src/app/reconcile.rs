//! Puts back what is recorded where drift was found and the environment wants that: a promotion like any other, with plan, gates,
//! decision and packet. What to do is decided by `common::remedy`; this collects what that needs to know.

use chrono::{DateTime, Utc};
use sealift_common::{
    audit::{AuditEntry, AuditOutcome},
    decision::Requester,
    id::TenantId,
    inventory::{Environment, Target},
    promotion::PromotionState,
    recipe::{FailurePolicy, OfflinePolicy, Recipe},
    release::{Release, ReleaseState},
    remedy::{self, Decision, Deployed, Limits, RECONCILER, Seen, Situation},
    strategy::Strategy,
};
use sealift_store::{Current, DriftedPlace, OpenDrift, Remedy, Tx};

use crate::{
    app::{
        Core,
        create_promotion::{NewPromotion, create_promotion},
        resolve_release::release_of,
    },
    names,
    status::ApiError,
};

/// How many findings a summary names before it only counts.
const NAMED: usize = 3;

/// What became of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconciled {
    /// A promotion was requested that puts back what is recorded.
    Requested,
    /// It does not help: a person has to look.
    GaveUp,
    /// Nothing is to be done now.
    Left,
}

/// A place as it is.
struct View {
    environment: Environment,
    target: Target,
    open: Vec<OpenDrift>,
    /// What is recorded, and which release that is.
    recorded: Option<(Current, Release)>,
    limits: Limits,
    decision: Decision,
}

impl View {
    /// What an act would be about.
    fn mendable(&self) -> impl Iterator<Item = &OpenDrift> {
        self.open.iter().filter(|one| remedy::is_mendable(one.kind))
    }
}

/// Whether there is something to do or to say about a place. Changes nothing.
pub async fn is_due(core: &Core, tx: &mut Tx, place: &DriftedPlace) -> Result<bool, ApiError> {
    let view = look(core, tx, place).await?;
    Ok(view.is_some_and(|view| match view.decision {
        Decision::Act { .. } => true,
        Decision::GiveUp { .. } => view.mendable().any(|one| !one.gave_up),
        Decision::Wait { .. } | Decision::Leave(_) => false,
    }))
}

/// Does what is to be done about a place.
pub async fn reconcile(core: &Core, tx: &mut Tx, place: &DriftedPlace) -> Result<Reconciled, ApiError> {
    let Some(view) = look(core, tx, place).await? else {
        return Ok(Reconciled::Left);
    };
    match (view.decision, &view.recorded) {
        (Decision::Act { number }, Some((current, release))) => {
            act(core, tx, &view, current, release, number).await
        }
        (Decision::GiveUp { tries }, _) => give_up(core, tx, &view, tries).await,
        _ => Ok(Reconciled::Left),
    }
}

async fn look(core: &Core, tx: &mut Tx, place: &DriftedPlace) -> Result<Option<View>, ApiError> {
    let now = core.clock.now();
    let target = tx.target(place.tenant_id, place.target_id).await?;
    let environment = tx.environment(place.tenant_id, place.environment_id).await?;
    let (Some(target), Some(environment)) = (target, environment) else {
        return Ok(None);
    };
    let Some(limits) = environment.remediation.limits() else {
        return Ok(None);
    };
    if target.archived_at.is_some() || environment.archived_at.is_some() {
        return Ok(None);
    }
    let open = tx.open_drift_at(place).await?;
    let current = tx.current(target.id).await?;
    let current = current
        .into_iter()
        .find(|one| one.project.to_string() == place.project);
    let recorded = match current {
        None => None,
        Some(current) => {
            let release = release_of(tx, place.tenant_id, current.release).await?;
            Some((current, release))
        }
    };
    let held = match &recorded {
        None => false,
        Some((_, release)) => tx.open_hold(environment.id, release.project_id).await?.is_some(),
    };
    let agent = match target.agent_id {
        None => None,
        Some(id) => tx.agent_by_id(id).await?,
    };
    let situation = Situation {
        findings: open.iter().map(seen).collect(),
        deployed: recorded.as_ref().map(|(current, release)| Deployed {
            since: current.since,
            by_remediation: current.requested_by == RECONCILER,
            ready: release.state == ReleaseState::Ready,
        }),
        looked_at: tx.looked_at(target.id).await?,
        agent: agent.map(|agent| (agent.intent, (core.status_of)(&agent))),
        busy: is_busy(tx, &environment, &target).await?,
        held,
        tries: tx.remedies_at(place, now - remedy::WINDOW).await?,
        last_act: tx.newest_remedy(environment.id).await?,
    };
    Ok(Some(View {
        decision: remedy::decide(environment.remediation, &situation, now),
        environment,
        target,
        open,
        recorded,
        limits,
    }))
}

const fn seen(one: &OpenDrift) -> Seen {
    Seen {
        kind: one.kind,
        severity: one.severity,
        owned: one.owned,
        since: one.first_seen_at,
    }
}

async fn is_busy(tx: &mut Tx, environment: &Environment, target: &Target) -> Result<bool, ApiError> {
    Ok(tx.running_in_lane(environment.id).await? > 0
        || tx.queued_in_lane(environment.id).await? > 0
        || tx.live_task_on_target(target.id).await?.is_some())
}

async fn act(
    core: &Core,
    tx: &mut Tx,
    view: &View,
    current: &Current,
    release: &Release,
    number: u32,
) -> Result<Reconciled, ApiError> {
    let now = core.clock.now();
    let before = tx
        .promotion(view.environment.tenant_id, current.promotion)
        .await?
        .ok_or_else(|| ApiError::internal("what is recorded was brought by no promotion"))?;
    let request = NewPromotion {
        environment: view.environment.clone(),
        release: release.clone(),
        // It undoes nothing and leaves nobody for later: whatever goes wrong, this target is as before and is looked at again.
        recipe: Recipe {
            strategy: Strategy::AllAtOnce {},
            limits: before.recipe.limits,
            failures: FailurePolicy::default(),
            offline: OfflinePolicy::Fail {},
        },
        scope: Some(vec![view.target.id]),
        rollback: None,
        rerun_of: None,
        change_summary: summary(view, release, number),
        plan_seen: None,
        requester: Requester {
            actor: RECONCILER.to_owned(),
            role: before.requester_role,
        },
    };
    let requested = create_promotion(core, tx, &request).await?;
    // One that is refused counts as well: the limits are for whatever goes on for ever.
    let remedy = Remedy {
        promotion: requested.promotion.id,
        number,
        at: now,
    };
    let drift: Vec<_> = view.mendable().map(|one| one.id).collect();
    tx.insert_remedy(view.target.id, &drift, &remedy).await?;
    let (outcome, reason) = match requested.promotion.state {
        PromotionState::Rejected => (AuditOutcome::Failed, "GATE_CLOSED"),
        _ => (AuditOutcome::Success, ""),
    };
    let resource = names::of_promotion(requested.promotion.id);
    audit(
        tx,
        view.environment.tenant_id,
        "drift.reconcile",
        resource,
        outcome,
        reason,
        now,
    )
    .await?;
    tracing::info!(
        name: "drift.reconcile", environment = %view.environment.name, drift.target = %view.target.name, release = %release.reference(),
        promotion.id = %requested.promotion.id, number, "puts back what is recorded"
    );
    Ok(Reconciled::Requested)
}

async fn give_up(core: &Core, tx: &mut Tx, view: &View, tries: u32) -> Result<Reconciled, ApiError> {
    let now = core.clock.now();
    let mut news = Vec::new();
    for one in view.mendable() {
        if tx.give_up_drift(view.target.id, one, now).await? {
            news.push(one.id);
        }
    }
    if news.is_empty() {
        return Ok(Reconciled::Left);
    }
    for id in news {
        let (action, resource) = ("drift.give_up", names::of_drift(id));
        let failed = AuditOutcome::Failed;
        audit(
            tx,
            view.environment.tenant_id,
            action,
            resource,
            failed,
            "TRIES_USED",
            now,
        )
        .await?;
    }
    tracing::warn!(
        name: "drift.give_up", environment = %view.environment.name, drift.target = %view.target.name, tries,
        "what is recorded does not stay: a person has to look"
    );
    Ok(Reconciled::GaveUp)
}

async fn audit(
    tx: &mut Tx,
    tenant: TenantId,
    action: &str,
    resource: String,
    outcome: AuditOutcome,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), ApiError> {
    let entry = AuditEntry {
        tenant_id: Some(tenant),
        actor: RECONCILER.to_owned(),
        role: String::new(),
        action: action.to_owned(),
        resource,
        outcome,
        reason: reason.to_owned(),
        request_id: String::new(),
    };
    tx.append_audit(&entry, now).await?;
    Ok(())
}

fn summary(view: &View, release: &Release, number: u32) -> String {
    let mut found: Vec<_> = view
        .mendable()
        .take(NAMED)
        .map(|one| match one.service.as_str() {
            "" => format!("{} (drift {})", one.kind, one.id),
            service => format!("{} of {service} (drift {})", one.kind, one.id),
        })
        .collect();
    let more = view.mendable().count().saturating_sub(NAMED);
    if more > 0 {
        found.push(format!("{more} more"));
    }
    format!(
        "puts {} back on {}, try {number} of {}: {}",
        release.reference(),
        view.target.name,
        view.limits.max_tries,
        found.join(", ")
    )
}
