//! What agents saw on targets, and what is recorded to run there.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    any_manifest::AnyManifest,
    bounds,
    digest::Digest,
    drift::Recorded,
    id::{EnvironmentId, JobId, ReleaseId, SessionId, TargetId, TaskId},
    name::ProjectRef,
    observation::TargetObservation,
    order::Fence,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Change, Current, Result, StoreError, Tx,
    engine::{of_ids, on, statements},
    rows::{At, all, int, json},
};

statements! {
    PUT = {
        "INSERT INTO target_observations (target_id, observation, session_id, received_at) VALUES ($1, $2, $3, $4) ",
        "ON CONFLICT (target_id) DO UPDATE SET observation = excluded.observation, session_id = excluded.session_id, ",
        "received_at = excluded.received_at"
    };
    BY_TARGET = { "SELECT target_id, observation FROM target_observations WHERE target_id = $1" };
    OF_ENVIRONMENT = {
        "SELECT o.target_id, o.observation FROM target_observations o JOIN targets t ON t.id = o.target_id ",
        "WHERE t.environment_id = $1 AND t.archived_at IS NULL ORDER BY t.name LIMIT $2"
    };
    CURRENT = {
        "SELECT c.repository, c.project, c.fence, c.inputs, c.sticker, r.manifest, c.release_id, r.number, c.job_id, ",
        "c.task_id, j.promotion_id, p.requested_by, c.since FROM target_current c ",
        "JOIN releases r ON r.id = c.release_id JOIN jobs j ON j.id = c.job_id ",
        "JOIN promotions p ON p.id = j.promotion_id WHERE c.target_id = $1 ORDER BY c.repository, c.project"
    };
    RECORDED_OF_PROJECT = {
        "SELECT c.target_id, c.fence, c.inputs, c.sticker, c.release_id FROM target_current c JOIN targets t ON t.id = c.target_id ",
        "WHERE t.environment_id = $1 AND t.archived_at IS NULL AND c.repository = $2 AND c.project = $3 LIMIT $4"
    };
    MANIFEST = { "SELECT manifest FROM releases WHERE id = $1" };
    SET_CURRENT = {
        "INSERT INTO target_current (target_id, repository, project, job_id, task_id, release_id, fence, inputs, sticker, since) ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (target_id, repository, project) DO UPDATE SET ",
        "job_id = excluded.job_id, task_id = excluded.task_id, release_id = excluded.release_id, ",
        "fence = excluded.fence, inputs = excluded.inputs, sticker = excluded.sticker, since = excluded.since ",
        "WHERE target_current.fence < excluded.fence"
    };
}

const RECORDED_OF_TARGETS: &str = "SELECT target_id, repository, project, fence, inputs, sticker, release_id FROM target_current WHERE target_id IN (";

const LOOKS: &str =
    "SELECT target_id, observation, session_id, received_at FROM target_observations WHERE target_id IN (";

/// Most observations of one environment.
const MOST: i64 = bounds::TARGETS_PER_JOB as i64 + 1;

/// What was last seen of a target, and how that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What was seen.
    pub seen: TargetObservation,
    /// The session of the agent in which it was told.
    pub session: SessionId,
    /// When it was told; what did not change since is told to nobody.
    pub received_at: DateTime<Utc>,
}

#[derive(FromRow)]
struct CurrentRow {
    repository: String,
    project: String,
    fence: i64,
    inputs: String,
    sticker: String,
    manifest: String,
    release_id: Uuid,
    number: i64,
    job_id: Uuid,
    task_id: Uuid,
    promotion_id: Uuid,
    requested_by: String,
    since: DateTime<Utc>,
}

impl TryFrom<CurrentRow> for Current {
    type Error = StoreError;

    fn try_from(row: CurrentRow) -> Result<Self> {
        let at = At::new("target_current", row.task_id);
        Ok(Self {
            recorded: Recorded {
                fence: Fence(at.number("fence", row.fence)?),
                manifest: at.json("manifest", &row.manifest)?,
                inputs: at.parse("inputs", &row.inputs)?,
                sticker: at.parse("sticker", &row.sticker)?,
            },
            project: ProjectRef {
                repository: row.repository,
                project: row.project,
            },
            release: row.release_id.into(),
            number: at.number("number", row.number)?,
            job: row.job_id.into(),
            task: row.task_id.into(),
            promotion: row.promotion_id.into(),
            requested_by: row.requested_by,
            since: row.since,
        })
    }
}

fn observation((target, text): (Uuid, String)) -> Result<TargetObservation> {
    At::new("target_observations", target).json("observation", &text)
}

/// Manifests of releases: many targets run few releases, so each is read once.
#[derive(Default)]
struct Manifests(BTreeMap<Uuid, AnyManifest>);

impl Manifests {
    async fn of(&mut self, tx: &mut Tx, release: Uuid) -> Result<AnyManifest> {
        if let Some(known) = self.0.get(&release) {
            return Ok(known.clone());
        }
        let text: String = on!(tx, |conn| sqlx::query_scalar(MANIFEST)
            .bind(release)
            .fetch_one(conn)
            .await)?;
        let manifest: AnyManifest = At::new("releases", release).json("manifest", &text)?;
        self.0.insert(release, manifest.clone());
        Ok(manifest)
    }
}

/// What is recorded, from fence, inputs and sticker of its row.
fn recorded(
    target: Uuid,
    (fence, inputs, sticker): (i64, String, String),
    manifest: AnyManifest,
) -> Result<Recorded> {
    let at = At::new("target_current", target);
    Ok(Recorded {
        fence: Fence(at.number("fence", fence)?),
        manifest,
        inputs: at.parse("inputs", &inputs)?,
        sticker: at.parse("sticker", &sticker)?,
    })
}

impl Tx {
    /// Replaces what was last seen of a target, as it was told in a session of its agent.
    pub async fn put_observation(
        &mut self,
        seen: &TargetObservation,
        session: SessionId,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let text = json(seen)?;
        on!(self, |conn| sqlx::query(PUT)
            .bind(seen.target_id.uuid())
            .bind(text)
            .bind(session.uuid())
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Target(seen.target_id));
        Ok(())
    }

    /// What was last seen of a target.
    pub async fn observation(&mut self, target: TargetId) -> Result<Option<TargetObservation>> {
        let row: Option<(Uuid, String)> = on!(self, |conn| sqlx::query_as(BY_TARGET)
            .bind(target.uuid())
            .fetch_optional(conn)
            .await)?;
        row.map(observation).transpose()
    }

    /// What was last seen of the live targets of an environment, by target name.
    pub async fn observations_of_environment(
        &mut self,
        environment: EnvironmentId,
    ) -> Result<Vec<TargetObservation>> {
        let rows: Vec<(Uuid, String)> = on!(self, |conn| sqlx::query_as(OF_ENVIRONMENT)
            .bind(environment.uuid())
            .bind(MOST)
            .fetch_all(conn)
            .await)?;
        rows.into_iter().map(observation).collect()
    }

    /// What is recorded to run on a target and by whose wish, by project.
    pub async fn current(&mut self, target: TargetId) -> Result<Vec<Current>> {
        let rows: Vec<CurrentRow> = on!(self, |conn| sqlx::query_as(CURRENT)
            .bind(target.uuid())
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// What is recorded of one project on the live targets of an environment.
    pub async fn recorded_of_project(
        &mut self,
        environment: EnvironmentId,
        project: &ProjectRef,
    ) -> Result<BTreeMap<TargetId, Recorded>> {
        let rows: Vec<(Uuid, i64, String, String, Uuid)> =
            on!(self, |conn| sqlx::query_as(RECORDED_OF_PROJECT)
                .bind(environment.uuid())
                .bind(project.repository.as_str())
                .bind(project.project.as_str())
                .bind(MOST)
                .fetch_all(conn)
                .await)?;
        let mut manifests = Manifests::default();
        let mut found = BTreeMap::new();
        for (target, fence, inputs, sticker, release) in rows {
            let manifest = manifests.of(self, release).await?;
            let row = (fence, inputs, sticker);
            found.insert(target.into(), recorded(target, row, manifest)?);
        }
        Ok(found)
    }

    /// What was last seen of some targets; those of which nothing was told are left out. Of a page of targets.
    pub async fn looks(&mut self, targets: &[TargetId]) -> Result<BTreeMap<TargetId, Look>> {
        if targets.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows: Vec<(Uuid, String, Uuid, DateTime<Utc>)> = on!(self, |conn| {
            let ids = targets.iter().map(|target| target.uuid());
            let mut query = of_ids(LOOKS, ids, ")");
            query.build_query_as().fetch_all(conn).await
        })?;
        let look = |(target, text, session, received_at)| {
            let seen = observation((target, text))?;
            let session = SessionId::from(session);
            Ok((
                seen.target_id,
                Look {
                    seen,
                    session,
                    received_at,
                },
            ))
        };
        rows.into_iter().map(look).collect()
    }

    /// What is recorded to run on some targets, all of their projects. Of a page of targets.
    pub async fn recorded_of_targets(
        &mut self,
        targets: &[TargetId],
    ) -> Result<BTreeMap<TargetId, Vec<(ProjectRef, Recorded)>>> {
        type Row = (Uuid, String, String, i64, String, String, Uuid);
        if targets.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows: Vec<Row> = on!(self, |conn| {
            let ids = targets.iter().map(|target| target.uuid());
            let mut query = of_ids(
                RECORDED_OF_TARGETS,
                ids,
                ") ORDER BY target_id, repository, project",
            );
            query.build_query_as().fetch_all(conn).await
        })?;
        let mut manifests = Manifests::default();
        let mut found: BTreeMap<TargetId, Vec<_>> = BTreeMap::new();
        for (target, repository, project, fence, inputs, sticker, release) in rows {
            let manifest = manifests.of(self, release).await?;
            let project = ProjectRef { repository, project };
            let one = recorded(target, (fence, inputs, sticker), manifest)?;
            found.entry(target.into()).or_default().push((project, one));
        }
        Ok(found)
    }

    /// Records what runs on a target for a project; a fence that is not higher than the recorded one changes nothing.
    #[expect(
        clippy::too_many_arguments,
        reason = "a record is these values, and nothing else needs them together"
    )]
    pub async fn set_current(
        &mut self,
        target: TargetId,
        project: &ProjectRef,
        job: JobId,
        task: TaskId,
        release: ReleaseId,
        fence: Fence,
        inputs: Digest,
        sticker: Digest,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let fence = int(fence.0)?;
        on!(self, |conn| sqlx::query(SET_CURRENT)
            .bind(target.uuid())
            .bind(project.repository.as_str())
            .bind(project.project.as_str())
            .bind(job.uuid())
            .bind(task.uuid())
            .bind(release.uuid())
            .bind(fence)
            .bind(inputs.to_string())
            .bind(sticker.to_string())
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Target(target));
        Ok(())
    }
}
