//! Resource names as they appear on the wire: `environments/prod/targets/web-1`. Parsing names the field that is wrong.

use std::fmt::Display;

use sealift_common::{
    id::{AgentId, DriftId, HoldId, JobId, PacketId, PromotionId, ReleaseId, TaskId},
    name::{ComponentName, Name, ReleaseAlias},
};

use crate::status::ApiError;

/// What a list may be narrowed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parent {
    /// Everything of the tenant.
    All,
    /// One environment.
    Environment(Name),
    /// One target of an environment.
    Target(Name, Name),
    /// One job.
    Job(JobId),
}

fn wrong(field: &str, pattern: &str, text: &str) -> ApiError {
    let given: String = text.chars().take(100).collect();
    ApiError::invalid(field, format!("{given:?} is not of the form {pattern}"))
}

fn one<'a>(field: &str, collection: &str, pattern: &str, text: &'a str) -> Result<&'a str, ApiError> {
    text.strip_prefix(collection)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|rest| !rest.is_empty())
        .ok_or_else(|| wrong(field, pattern, text))
}

/// A name that people choose, without its collection (`environment_id`, `target_id`, `user_id` …).
pub fn chosen(field: &str, text: &str) -> Result<Name, ApiError> {
    text.parse()
        .map_err(|error: sealift_common::name::InvalidName| ApiError::invalid(field, error.to_string()))
}

/// `environments/<name>`
pub fn environment(field: &str, text: &str) -> Result<Name, ApiError> {
    chosen(field, one(field, "environments", "environments/<name>", text)?)
}

/// `environments/<environment>/targets/<target>`
pub fn target(field: &str, text: &str) -> Result<(Name, Name), ApiError> {
    let pattern = "environments/<environment>/targets/<target>";
    let rest = one(field, "environments", pattern, text)?;
    let (environment, target) = rest
        .split_once("/targets/")
        .ok_or_else(|| wrong(field, pattern, text))?;
    Ok((chosen(field, environment)?, chosen(field, target)?))
}

/// `users/<name>`
pub fn user(field: &str, text: &str) -> Result<Name, ApiError> {
    chosen(field, one(field, "users", "users/<name>", text)?)
}

/// `components/<name>`, where the name may have several segments.
pub fn component(field: &str, text: &str) -> Result<ComponentName, ApiError> {
    component_id(field, one(field, "components", "components/<name>", text)?)
}

/// A component's name without its collection.
pub fn component_id(field: &str, text: &str) -> Result<ComponentName, ApiError> {
    text.parse()
        .map_err(|error: sealift_common::name::InvalidName| ApiError::invalid(field, error.to_string()))
}

/// `releases/<id>`, `releases/<project>#<number>` or `releases/<repository>/<project>@<commit>`; the collection may be left out.
pub fn release(field: &str, text: &str) -> Result<ReleaseAlias, ApiError> {
    text.strip_prefix("releases/")
        .unwrap_or(text)
        .parse()
        .map_err(|error: sealift_common::name::InvalidName| ApiError::invalid(field, error.to_string()))
}

macro_rules! by_id {
    ($($(#[$doc:meta])* $function:ident, $collection:literal, $id:ty;)+) => {$(
        $(#[$doc])*
        pub fn $function(field: &str, text: &str) -> Result<$id, ApiError> {
            let pattern = concat!($collection, "/<uid> (lists show the UID)");
            one(field, $collection, pattern, text)?.parse().map_err(|_| wrong(field, pattern, text))
        }
    )+};
}

by_id! {
    /// `agents/<uid>`
    agent, "agents", AgentId;
    /// `holds/<uid>`
    hold, "holds", HoldId;
    /// `promotions/<uid>`
    promotion, "promotions", PromotionId;
    /// `jobs/<uid>`
    job, "jobs", JobId;
    /// `packets/<uid>`
    packet, "packets", PacketId;
    /// `drift/<uid>`
    drift, "drift", DriftId;
}

/// `jobs/<job>/tasks/<task>`
pub fn task(field: &str, text: &str) -> Result<(JobId, TaskId), ApiError> {
    let pattern = "jobs/<uid>/tasks/<uid>";
    let parts = one(field, "jobs", pattern, text)?.split_once("/tasks/");
    let ids = parts.and_then(|(job, task)| Some((job.parse().ok()?, task.parse().ok()?)));
    ids.ok_or_else(|| wrong(field, pattern, text))
}

/// `jobs/<uid>` or `jobs/<uid>/tasks/<uid>`
pub fn job_or_task(field: &str, text: &str) -> Result<(JobId, Option<TaskId>), ApiError> {
    if text.contains("/tasks/") {
        task(field, text).map(|(job, task)| (job, Some(task)))
    } else {
        job(field, text).map(|job| (job, None))
    }
}

/// Nothing (or `environments/-`), `environments/<name>`, `environments/<name>/targets/<name>` or `jobs/<uid>`.
pub fn parent(field: &str, text: &str) -> Result<Parent, ApiError> {
    if text.is_empty() || text == "environments/-" {
        Ok(Parent::All)
    } else if text.starts_with("jobs/") {
        job(field, text).map(Parent::Job)
    } else if text.contains("/targets/") {
        target(field, text).map(|(environment, target)| Parent::Target(environment, target))
    } else {
        environment(field, text).map(Parent::Environment)
    }
}

/// Nothing (for all) or `environments/<name>`.
pub fn environment_or_all(field: &str, text: &str) -> Result<Option<Name>, ApiError> {
    if text.is_empty() || text == "environments/-" {
        Ok(None)
    } else {
        environment(field, text).map(Some)
    }
}

/// `tenants/<name>`
pub fn of_tenant(name: &Name) -> String {
    format!("tenants/{name}")
}

/// `users/<name>`
pub fn of_user(name: &Name) -> String {
    format!("users/{name}")
}

/// `environments/<name>`
pub fn of_environment(name: &Name) -> String {
    format!("environments/{name}")
}

/// `environments/<environment>/targets/<target>`
pub fn of_target(environment: &Name, target: &Name) -> String {
    format!("environments/{environment}/targets/{target}")
}

/// `components/<name>`
pub fn of_component(name: &ComponentName) -> String {
    format!("components/{name}")
}

/// `agents/<uid>`
pub fn of_agent(id: AgentId) -> String {
    format!("agents/{id}")
}

/// `releases/<uid>`
pub fn of_release(id: ReleaseId) -> String {
    format!("releases/{id}")
}

/// `promotions/<uid>`
pub fn of_promotion(id: PromotionId) -> String {
    format!("promotions/{id}")
}

/// `jobs/<uid>`
pub fn of_job(id: JobId) -> String {
    format!("jobs/{id}")
}

/// `jobs/<job>/tasks/<uid>`
pub fn of_task(job: JobId, task: TaskId) -> String {
    format!("jobs/{job}/tasks/{task}")
}

/// `holds/<uid>`
pub fn of_hold(id: HoldId) -> String {
    format!("holds/{id}")
}

/// `packets/<uid>`
pub fn of_packet(id: PacketId) -> String {
    format!("packets/{id}")
}

/// `drift/<uid>`
pub fn of_drift(id: DriftId) -> String {
    format!("drift/{id}")
}

/// The etag of a revision: quoted, as HTTP wants it.
pub fn etag(revision: impl Display) -> String {
    format!("\"{revision}\"")
}

/// Reads an etag that [`etag`] made. Anything else cannot be that of the newest revision.
pub fn revision(text: &str) -> Option<u64> {
    text.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn names_round_trip() {
        let now = DateTime::from_timestamp(1_000, 0).unwrap();
        assert_eq!(
            environment("name", &of_environment(&name("prod"))).unwrap(),
            name("prod")
        );
        let both = target("name", &of_target(&name("prod"), &name("web-1"))).unwrap();
        assert_eq!(both, (name("prod"), name("web-1")));
        let (job_id, task_id) = (JobId::new(now), TaskId::new(now));
        assert_eq!(
            task("name", &of_task(job_id, task_id)).unwrap(),
            (job_id, task_id)
        );
        assert_eq!(job_or_task("name", &of_job(job_id)).unwrap(), (job_id, None));
        assert_eq!(parent("parent", "environments/-").unwrap(), Parent::All);
        assert_eq!(parent("parent", &of_job(job_id)).unwrap(), Parent::Job(job_id));
        assert_eq!(revision(&etag(7)), Some(7));
        let component_name = "acme/shop-api".parse().unwrap();
        assert_eq!(
            component("name", &of_component(&component_name)).unwrap(),
            component_name
        );
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_field() {
        for text in [
            "",
            "environments",
            "environments/",
            "environments/A",
            "envs/a",
            "environments/a/b",
            "environments/a/targets/",
        ] {
            let error = environment("name", text).unwrap_err();
            assert!(error.to_string().starts_with("field name: "), "{text}: {error}");
        }
        for text in [
            "",
            "environments/a",
            "environments/a/targets/",
            "environments/a/targets/b/c",
            "environments//targets/b",
        ] {
            assert!(target("name", text).is_err(), "{text}");
        }
        for text in ["jobs/", "jobs/x", "jobs/x/tasks/y", "promotions/x"] {
            assert!(job("name", text).is_err(), "{text}");
        }
        for text in ["", "1", "\"\"", "\"-1\"", "\"x\""] {
            assert_eq!(revision(text), None, "{text}");
        }
    }
}
