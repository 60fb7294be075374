//! Promotions and the decisions about them. Their state is written by one statement, used by [`Tx::apply_promotion_event`] and
//! [`Tx::supersede_promotion`], and nothing else.

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    failure::Failure,
    id::{EnvironmentId, JobId, PromotionId, TargetId, TenantId},
    promotion::PromotionEvent,
    recipe::Recipe,
};
use sqlx::{FromRow, types::Json};
use uuid::Uuid;

use crate::{
    Change, Cursor, DecisionRow, EntityKind, Page, PageRequest, Promotion, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, int, json_opt, one},
    transitions::NewTransition,
};

macro_rules! columns {
    () => {
        "id, tenant_id, environment_id, environment, release_id, state, plan_json, plan_digest, recipe, scope, \
         rollback_of, rerun_of, superseded_by, change_summary, requested_by, requester_role, failure, version, created_at, finished_at"
    };
}

// Lists show no plans, and a plan grows with the fleet.
macro_rules! listed_columns {
    () => {
        "id, tenant_id, environment_id, environment, release_id, state, '' AS plan_json, plan_digest, recipe, scope, \
         rollback_of, rerun_of, superseded_by, change_summary, requested_by, requester_role, failure, version, created_at, finished_at"
    };
}

macro_rules! decision_columns {
    () => {
        "id, promotion_id, digest, record, passed, created_at"
    };
}

statements! {
    INSERT = {
        "INSERT INTO promotions (", columns!(), ") ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)"
    };
    BY_ID = { "SELECT ", columns!(), " FROM promotions WHERE tenant_id = $1 AND id = $2" };
    RECIPE = { "SELECT recipe FROM promotions WHERE id = $1" };
    LIST = {
        "SELECT ", listed_columns!(), " FROM promotions WHERE tenant_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3"
    };
    LIST_OF_ENVIRONMENT = {
        "SELECT ", listed_columns!(), " FROM promotions WHERE tenant_id = $1 AND environment_id = $2 AND id < $3 ",
        "ORDER BY id DESC LIMIT $4"
    };
    SET_STATE = {
        "UPDATE promotions SET state = $3, failure = $4, finished_at = $5, ",
        "superseded_by = COALESCE($6, superseded_by), version = version + 1 ",
        "WHERE id = $1 AND version = $2 RETURNING ", columns!()
    };
    SET_PLAN = {
        "UPDATE promotions SET plan_json = $3, plan_digest = $4, version = version + 1 ",
        "WHERE id = $1 AND version = $2 RETURNING ", columns!()
    };
    INSERT_DECISION = { "INSERT INTO decisions (", decision_columns!(), ") VALUES ($1, $2, $3, $4, $5, $6)" };
    LATEST_DECISION = {
        "SELECT ", decision_columns!(), " FROM decisions WHERE promotion_id = $1 ",
        "ORDER BY created_at DESC, id DESC LIMIT 1"
    };
}

#[derive(FromRow)]
struct PromotionRow {
    id: Uuid,
    tenant_id: Uuid,
    environment_id: Uuid,
    environment: String,
    release_id: Uuid,
    state: String,
    plan_json: String,
    plan_digest: String,
    recipe: Json<Recipe>,
    scope: Option<Json<Vec<TargetId>>>,
    rollback_of: Option<Uuid>,
    rerun_of: Option<Uuid>,
    superseded_by: Option<Uuid>,
    change_summary: String,
    requested_by: String,
    requester_role: String,
    failure: Option<String>,
    version: i64,
    created_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
}

impl TryFrom<PromotionRow> for Promotion {
    type Error = StoreError;

    fn try_from(row: PromotionRow) -> Result<Self> {
        let at = At::new("promotions", row.id);
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            environment_id: row.environment_id.into(),
            environment: at.parse("environment", &row.environment)?,
            release_id: row.release_id.into(),
            state: at.parse("state", &row.state)?,
            plan_json: row.plan_json,
            plan_digest: at.parse("plan_digest", &row.plan_digest)?,
            recipe: row.recipe.0,
            scope: row.scope.map(|scope| scope.0),
            rollback_of: row.rollback_of.map(JobId::from),
            rerun_of: row.rerun_of.map(JobId::from),
            superseded_by: row.superseded_by.map(PromotionId::from),
            change_summary: row.change_summary,
            requested_by: row.requested_by,
            requester_role: at.parse("requester_role", &row.requester_role)?,
            failure: at.json_opt("failure", row.failure.as_deref())?,
            version: at.number("version", row.version)?,
            created_at: row.created_at,
            finished_at: row.finished_at,
        })
    }
}

#[derive(FromRow)]
struct DecisionColumns {
    id: Uuid,
    promotion_id: Uuid,
    digest: String,
    record: Vec<u8>,
    passed: bool,
    created_at: DateTime<Utc>,
}

impl TryFrom<DecisionColumns> for DecisionRow {
    type Error = StoreError;

    fn try_from(row: DecisionColumns) -> Result<Self> {
        let at = At::new("decisions", row.id);
        Ok(Self {
            id: row.id.into(),
            promotion_id: row.promotion_id.into(),
            digest: at.parse("digest", &row.digest)?,
            record: row.record,
            passed: row.passed,
            created_at: row.created_at,
        })
    }
}

impl Tx {
    /// Writes a new promotion; its version should be 0, so that the history counts from 1.
    pub async fn insert_promotion(&mut self, promotion: &Promotion) -> Result<()> {
        let (version, failure) = (int(promotion.version)?, json_opt(promotion.failure.as_ref())?);
        on!(self, |conn| sqlx::query(INSERT)
            .bind(promotion.id.uuid())
            .bind(promotion.tenant_id.uuid())
            .bind(promotion.environment_id.uuid())
            .bind(promotion.environment.as_str())
            .bind(promotion.release_id.uuid())
            .bind(promotion.state.as_str())
            .bind(promotion.plan_json.as_str())
            .bind(promotion.plan_digest.to_string())
            .bind(Json(&promotion.recipe))
            .bind(promotion.scope.as_ref().map(Json))
            .bind(promotion.rollback_of.map(JobId::uuid))
            .bind(promotion.rerun_of.map(JobId::uuid))
            .bind(promotion.superseded_by.map(PromotionId::uuid))
            .bind(promotion.change_summary.as_str())
            .bind(promotion.requested_by.as_str())
            .bind(promotion.requester_role.as_str())
            .bind(failure)
            .bind(version)
            .bind(promotion.created_at)
            .bind(promotion.finished_at)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Promotion(promotion.id));
        Ok(())
    }

    /// A promotion.
    pub async fn promotion(&mut self, tenant: TenantId, id: PromotionId) -> Result<Option<Promotion>> {
        let row: Option<PromotionRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// The recipe of a promotion, without its plan, which may be megabytes. Not scoped by tenant: its job is.
    pub async fn recipe_of_promotion(&mut self, id: PromotionId) -> Result<Option<Recipe>> {
        let recipe: Option<Json<Recipe>> = on!(self, |conn| sqlx::query_scalar(RECIPE)
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        Ok(recipe.map(|recipe| recipe.0))
    }

    /// Promotions newest first, of one environment or of all; without their plans (`plan_json` is empty).
    pub async fn list_promotions(
        &mut self,
        tenant: TenantId,
        environment: Option<EnvironmentId>,
        page: &PageRequest,
    ) -> Result<Page<Promotion>> {
        let below = page.below_id()?;
        let rows: Vec<PromotionRow> = match environment {
            None => on!(self, |conn| sqlx::query_as(LIST)
                .bind(tenant.uuid())
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?,
            Some(environment) => on!(self, |conn| sqlx::query_as(LIST_OF_ENVIRONMENT)
                .bind(tenant.uuid())
                .bind(environment.uuid())
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?,
        };
        Ok(Page::of(all(rows)?, page, |promotion: &Promotion| {
            Cursor::of(&[&promotion.id])
        }))
    }

    /// Moves a promotion, with its history row. An event that changes nothing writes nothing. [`StoreError::Conflict`] when the
    /// promotion is not the newest version.
    pub async fn apply_promotion_event(
        &mut self,
        promotion: &Promotion,
        event: PromotionEvent,
        failure: Option<&Failure>,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Promotion> {
        self.set_promotion_state(promotion, event, None, failure, actor, now)
            .await
    }

    /// The same for one that waits and whose place `newer` takes.
    pub async fn supersede_promotion(
        &mut self,
        promotion: &Promotion,
        newer: PromotionId,
        failure: &Failure,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Promotion> {
        let event = PromotionEvent::Superseded;
        self.set_promotion_state(promotion, event, Some(newer), Some(failure), actor, now)
            .await
    }

    /// The one place that writes `promotions.state`.
    async fn set_promotion_state(
        &mut self,
        promotion: &Promotion,
        event: PromotionEvent,
        newer: Option<PromotionId>,
        failure: Option<&Failure>,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Promotion> {
        let Some(next) = promotion.state.apply(event)? else {
            return Ok(promotion.clone());
        };
        let version = int(promotion.version)?;
        let failure = failure.or(promotion.failure.as_ref());
        let failure_text = json_opt(failure)?;
        let finished_at = next.is_terminal().then_some(now);
        let row: Option<PromotionRow> = on!(self, |conn| sqlx::query_as(SET_STATE)
            .bind(promotion.id.uuid())
            .bind(version)
            .bind(next.as_str())
            .bind(failure_text)
            .bind(finished_at)
            .bind(newer.map(PromotionId::uuid))
            .fetch_optional(conn)
            .await)?;
        let changed: Promotion = row.ok_or(StoreError::Conflict)?.try_into()?;
        self.insert_transition(NewTransition {
            kind: EntityKind::Promotion,
            id: changed.id.uuid(),
            seq: changed.version,
            from: promotion.state.as_str(),
            to: next.as_str(),
            event: event.as_str(),
            actor,
            detail: failure.map_or("", |failure| failure.code.as_str()),
            failure,
            at: now,
        })
        .await?;
        self.note(Change::Promotion(changed.id));
        Ok(changed)
    }

    /// Replaces the plan when it is made again at the start of the job. The history gets a row `replanned`.
    pub async fn update_promotion_plan(
        &mut self,
        promotion: &Promotion,
        plan_json: &str,
        plan_digest: Digest,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Promotion> {
        let version = int(promotion.version)?;
        let row: Option<PromotionRow> = on!(self, |conn| sqlx::query_as(SET_PLAN)
            .bind(promotion.id.uuid())
            .bind(version)
            .bind(plan_json)
            .bind(plan_digest.to_string())
            .fetch_optional(conn)
            .await)?;
        let changed: Promotion = row.ok_or(StoreError::Conflict)?.try_into()?;
        self.insert_transition(NewTransition {
            kind: EntityKind::Promotion,
            id: changed.id.uuid(),
            seq: changed.version,
            from: changed.state.as_str(),
            to: changed.state.as_str(),
            event: "replanned",
            actor,
            detail: &plan_digest.to_string(),
            failure: None,
            at: now,
        })
        .await?;
        self.note(Change::Promotion(changed.id));
        Ok(changed)
    }

    /// Writes a decision record. Insert-only.
    pub async fn insert_decision(&mut self, decision: &DecisionRow) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT_DECISION)
            .bind(decision.id.uuid())
            .bind(decision.promotion_id.uuid())
            .bind(decision.digest.to_string())
            .bind(decision.record.as_slice())
            .bind(decision.passed)
            .bind(decision.created_at)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// The newest decision about a promotion.
    pub async fn latest_decision(&mut self, promotion: PromotionId) -> Result<Option<DecisionRow>> {
        let row: Option<DecisionColumns> = on!(self, |conn| sqlx::query_as(LATEST_DECISION)
            .bind(promotion.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }
}
