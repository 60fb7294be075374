//! What lists show of promotions and jobs beside the rows themselves: for a page at once, and without what lists do not show
//! (manifests, records of decisions).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    id::{PromotionId, ReleaseId},
    name::ProjectRef,
};
use uuid::Uuid;

use crate::{
    Result, Tx,
    engine::{of_ids, on},
    rows::At,
};

const RELEASES: &str = "SELECT id, repository, project, number FROM releases WHERE id IN (";
const DECISIONS: &str =
    "SELECT promotion_id, digest, passed, created_at FROM decisions WHERE promotion_id IN (";
const OLDEST_FIRST: &str = ") ORDER BY promotion_id, created_at, id";

/// How people point at a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseName {
    /// Its project.
    pub project: ProjectRef,
    /// Its number there.
    pub number: u64,
}

/// A decision without its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionHead {
    /// Digest of the record.
    pub digest: Digest,
    /// Whether all gates passed.
    pub passed: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl Tx {
    /// What releases are called. Of a page of what a tenant has.
    pub async fn release_names(
        &mut self,
        releases: &[ReleaseId],
    ) -> Result<BTreeMap<ReleaseId, ReleaseName>> {
        if releases.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows: Vec<(Uuid, String, String, i64)> = on!(self, |conn| {
            let ids = releases.iter().map(|release| release.uuid());
            let mut query = of_ids(RELEASES, ids, ")");
            query.build_query_as().fetch_all(conn).await
        })?;
        let named = |(id, repository, project, number): (Uuid, _, _, _)| {
            let number = At::new("releases", id).number("number", number)?;
            let project = ProjectRef { repository, project };
            Ok((id.into(), ReleaseName { project, number }))
        };
        rows.into_iter().map(named).collect()
    }

    /// The newest decision about each of these promotions. Of a page of what a tenant has.
    pub async fn decision_heads(
        &mut self,
        promotions: &[PromotionId],
    ) -> Result<BTreeMap<PromotionId, DecisionHead>> {
        if promotions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows: Vec<(Uuid, String, bool, DateTime<Utc>)> = on!(self, |conn| {
            let ids = promotions.iter().map(|promotion| promotion.uuid());
            let mut query = of_ids(DECISIONS, ids, OLDEST_FIRST);
            query.build_query_as().fetch_all(conn).await
        })?;
        // A later row takes the place of an earlier one.
        let head = |(promotion, digest, passed, created_at): (Uuid, String, _, _)| {
            let digest = At::new("decisions", promotion).parse("digest", &digest)?;
            let head = DecisionHead {
                digest,
                passed,
                created_at,
            };
            Ok((promotion.into(), head))
        };
        rows.into_iter().map(head).collect()
    }
}
