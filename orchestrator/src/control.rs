//! The operator API: one file per resource. Each handler decodes and checks every field, calls the store or a use case, and
//! encodes the answer. Handlers see one tenant only: that of their caller.

pub mod agent;
pub mod audit;
pub mod component;
pub mod current;
pub mod drift;
pub mod environment;
pub mod evidence;
mod failures;
pub mod hold;
pub mod job;
pub mod maintenance;
mod news;
mod plan;
pub mod promotion;
pub mod release;
pub mod rollback;
pub mod server;
pub mod status;
mod steer;
pub mod target;
pub mod tenant;
pub mod user;
pub mod views;

use chrono::{DateTime, Utc};
use pbjson_types::{FieldMask, Timestamp};
use sealift_common::{
    bounds,
    error::Reason,
    id::TenantId,
    inventory::{Environment, Target},
    name::Name,
};
use sealift_store::Tx;

use crate::{names, status::ApiError};

/// A time on the wire.
pub fn timestamp(time: DateTime<Utc>) -> Option<Timestamp> {
    Some(time.into())
}

/// A number on the wire: what does not fit is shown as the largest that does.
pub fn int64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A count on the wire.
pub fn int32(count: impl TryInto<i32>) -> i32 {
    count.try_into().unwrap_or(i32::MAX)
}

/// The environment of that name; [`Reason::NotFound`] when the tenant has none.
pub async fn find_environment(tx: &mut Tx, tenant: TenantId, name: &Name) -> Result<Environment, ApiError> {
    tx.environment_by_name(tenant, name)
        .await?
        .ok_or_else(|| ApiError::not_found(names::of_environment(name), "sealift env list"))
}

/// The target of that name with its environment; [`Reason::NotFound`] when the tenant has none.
pub async fn find_target(
    tx: &mut Tx,
    tenant: TenantId,
    environment: &Name,
    name: &Name,
) -> Result<(Environment, Target), ApiError> {
    let found = find_environment(tx, tenant, environment).await?;
    let target = tx
        .target_by_name(tenant, found.id, name)
        .await?
        .ok_or_else(|| ApiError::not_found(names::of_target(environment, name), "sealift target list"))?;
    Ok((found, target))
}

/// A free text for people: bounded, without control characters other than line feeds and tabs.
pub(crate) fn text(field: &str, value: &str) -> Result<String, ApiError> {
    if value.len() > bounds::TEXT_BYTES {
        return Err(ApiError::invalid(
            field,
            format!("is longer than {} bytes", bounds::TEXT_BYTES),
        ));
    }
    if value.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(ApiError::invalid(field, "holds control characters"));
    }
    Ok(value.to_owned())
}

/// A reason that must be given, because others will read it.
pub(crate) fn reason(value: &str) -> Result<String, ApiError> {
    let reason = text("reason", value)?;
    if reason.trim().is_empty() {
        return Err(ApiError::invalid(
            "reason",
            "is needed: others will want to know why",
        ));
    }
    Ok(reason)
}

/// Checks an etag against the newest revision where the caller may leave it out: who names none means whatever is there.
pub(crate) fn check_etag_if_any(
    field: &str,
    etag: &str,
    revision: u64,
    resource: &str,
) -> Result<(), ApiError> {
    if etag.is_empty() {
        return Ok(());
    }
    check_etag(field, etag, revision, resource)
}

/// Checks an etag against the newest revision.
pub(crate) fn check_etag(field: &str, etag: &str, revision: u64, resource: &str) -> Result<(), ApiError> {
    if etag.is_empty() {
        return Err(ApiError::invalid(
            field,
            "is needed: the etag of the revision that you looked at",
        ));
    }
    if names::revision(etag) == Some(revision) {
        return Ok(());
    }
    Err(ApiError::new(
        Reason::StaleEtag,
        format!("{resource} was changed since you looked at it"),
        "read it again and decide on what it is now",
    )
    .meta("resource", resource)
    .meta("newest", names::etag(revision)))
}

/// The paths of an update mask, each of which must be one of `allowed`. Without a mask, all of them.
pub(crate) fn mask<'a>(
    mask: Option<&'a FieldMask>,
    allowed: &[&'static str],
) -> Result<Vec<&'a str>, ApiError>
where
    'static: 'a,
{
    let Some(mask) = mask.filter(|mask| !mask.paths.is_empty()) else {
        return Ok(allowed.to_vec());
    };
    for path in &mask.paths {
        if !allowed.contains(&path.as_str()) {
            return Err(ApiError::invalid(
                "update_mask",
                format!(
                    "{:?} cannot be updated; possible: {}",
                    path.chars().take(64).collect::<String>(),
                    allowed.join(", ")
                ),
            ));
        }
    }
    Ok(mask.paths.iter().map(String::as_str).collect())
}

/// A message field that must be there.
pub(crate) fn needed<'a, T>(field: &str, value: Option<&'a T>) -> Result<&'a T, ApiError> {
    value.ok_or_else(|| ApiError::invalid(field, "is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_must_be_those_of_the_newest_revision() {
        assert!(check_etag("etag", "\"3\"", 3, "environments/a").is_ok());
        let stale = check_etag("etag", "\"2\"", 3, "environments/a").unwrap_err();
        assert_eq!(stale.reason(), Reason::StaleEtag);
        let missing = check_etag("etag", "", 3, "environments/a").unwrap_err();
        assert_eq!(missing.reason(), Reason::InvalidArgument);
        assert!(check_etag_if_any("etag", "", 3, "jobs/a").is_ok());
        let stale = check_etag_if_any("etag", "\"2\"", 3, "jobs/a").unwrap_err();
        assert_eq!(stale.reason(), Reason::StaleEtag);
    }

    #[test]
    fn masks_name_only_what_can_be_updated() {
        let allowed = &["labels", "position"];
        assert_eq!(mask(None, allowed).unwrap(), ["labels", "position"]);
        let one = FieldMask {
            paths: vec!["position".to_owned()],
        };
        assert_eq!(mask(Some(&one), allowed).unwrap(), ["position"]);
        let other = FieldMask {
            paths: vec!["name".to_owned()],
        };
        assert!(mask(Some(&other), allowed).is_err());
    }

    #[test]
    fn texts_are_bounded_and_printable() {
        assert!(text("reason", "because\nof this").is_ok());
        assert!(text("reason", "\u{1b}[31m").is_err());
        assert!(text("reason", &"a".repeat(bounds::TEXT_BYTES + 1)).is_err());
        assert_eq!(reason("it is slow").unwrap(), "it is slow");
        assert!(reason(" \n").is_err(), "a reason that says nothing");
    }
}
