//! Finds the one release that people mean by an alias.

use sealift_common::{
    error::Reason,
    id::{ProjectId, ReleaseId, TenantId},
    name::{ProjectRef, ReleaseAlias},
    release::Release,
};
use sealift_store::Tx;

use crate::status::ApiError;

/// Most candidates that an error names.
const CANDIDATES_SHOWN: usize = 10;

/// How much of a project's name that nothing is called by is said again, in characters.
const PROJECT_SHOWN: usize = 100;

/// The release that `alias` names in the tenant.
pub async fn resolve_release(
    tx: &mut Tx,
    tenant: TenantId,
    alias: &ReleaseAlias,
) -> Result<Release, ApiError> {
    let found = match alias {
        ReleaseAlias::Id(id) => tx.release(tenant, *id).await?,
        ReleaseAlias::Number { project, number } => match resolve_project(tx, tenant, project).await? {
            Some((id, _)) => tx.release_by_number(id, *number).await?,
            None => None,
        },
        ReleaseAlias::Triplet { project, commit } => {
            let mut found = Vec::new();
            for (id, _) in candidates(tx, tenant, project).await? {
                found.extend(tx.release_by_commit(id, commit).await?);
            }
            if found.len() > 1 {
                let names = found.iter().map(|release| release.source.to_string()).collect();
                return Err(ambiguous(alias, names));
            }
            found.pop()
        }
    };
    found.ok_or_else(|| ApiError::not_found(format!("release {alias}"), "sealift release list"))
}

/// The release that another row of the tenant names. It is never taken away, so its absence is a defect.
pub async fn release_of(tx: &mut Tx, tenant: TenantId, id: ReleaseId) -> Result<Release, ApiError> {
    tx.release(tenant, id)
        .await?
        .ok_or_else(|| ApiError::internal(format!("release {id} is named and not there")))
}

/// The one project whose last segments are `wanted`.
async fn resolve_project(
    tx: &mut Tx,
    tenant: TenantId,
    wanted: &str,
) -> Result<Option<(ProjectId, ProjectRef)>, ApiError> {
    let mut fitting = candidates(tx, tenant, wanted).await?;
    if fitting.len() > 1 {
        let names = fitting.iter().map(|(_, project)| project.to_string()).collect();
        return Err(ambiguous(&wanted, names));
    }
    Ok(fitting.pop())
}

/// The same; it is an error when there is none.
pub async fn find_project(
    tx: &mut Tx,
    tenant: TenantId,
    wanted: &str,
) -> Result<(ProjectId, ProjectRef), ApiError> {
    let found = resolve_project(tx, tenant, wanted).await?;
    let shown = wanted.chars().take(PROJECT_SHOWN).collect::<String>();
    found.ok_or_else(|| ApiError::not_found(format!("project {shown}"), "sealift release list"))
}

/// Projects that `wanted` fits; the one that it names in full alone when there is such a one.
async fn candidates(
    tx: &mut Tx,
    tenant: TenantId,
    wanted: &str,
) -> Result<Vec<(ProjectId, ProjectRef)>, ApiError> {
    let last = wanted.rsplit('/').next().unwrap_or(wanted);
    let named = tx.projects_named(tenant, last).await?;
    let exact: Vec<_> = named
        .iter()
        .filter(|(_, project)| project.to_string() == wanted)
        .cloned()
        .collect();
    if !exact.is_empty() {
        return Ok(exact);
    }
    Ok(named
        .into_iter()
        .filter(|(_, project)| project.ends_with(wanted))
        .collect())
}

fn ambiguous(alias: &dyn std::fmt::Display, mut names: Vec<String>) -> ApiError {
    names.sort();
    let count = names.len();
    names.truncate(CANDIDATES_SHOWN);
    ApiError::new(
        Reason::AmbiguousRelease,
        format!("{alias} fits {count} projects: {}", names.join(", ")),
        "write more of the name",
    )
    .meta("candidates", names.join(","))
}
