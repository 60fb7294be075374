//! The calls of `sealift.v1.JobService` that steer a job under way, and the one that repeats a job.

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use prost::Message;
use sealift_common::{decision::Requester, error::Reason};
use sealift_proto::v1::{
    AbortJobRequest, AbortJobResponse, PauseJobRequest, PauseJobResponse, ResumeJobRequest,
    ResumeJobResponse, RetryJobRequest, RetryJobResponse, SkipTaskRequest, SkipTaskResponse,
};
use sealift_store::{By, Job, Tx};
use serde::Serialize;

use crate::{
    app::{
        create_promotion::create_promotion,
        repeat_job::repeat_job,
        steer_job::{abort_job, pause_job, resume_job, skip_task},
    },
    caller::Caller,
    control::{
        check_etag_if_any,
        job::Jobs,
        reason, text,
        views::{find_job, find_task, job_message},
    },
    convert::job::{self, TaskExtras},
    mutate::mutate,
    names,
    status::ApiError,
};

/// What a steering call does to its job.
type Steer<'t> = BoxFuture<'t, Result<Job, ApiError>>;

impl Jobs {
    pub(super) async fn pause(
        &self,
        caller: &Caller,
        request: &PauseJobRequest,
    ) -> Result<PauseJobResponse, ApiError> {
        let reason = text("reason", &request.reason)?;
        let actor = caller.actor();
        self.steer(
            caller,
            ("sealift.v1.JobService/PauseJob", &request.request_id, request),
            (&request.name, &request.etag),
            |tx, found, now| {
                let (actor, reason) = (actor.clone(), reason.clone());
                Box::pin(async move {
                    let by = By {
                        actor: &actor,
                        reason: &reason,
                    };
                    pause_job(tx, &found, by, now).await
                })
            },
            |job| PauseJobResponse { job: Some(job) },
        )
        .await
    }

    pub(super) async fn resume(
        &self,
        caller: &Caller,
        request: &ResumeJobRequest,
    ) -> Result<ResumeJobResponse, ApiError> {
        let actor = caller.actor();
        self.steer(
            caller,
            ("sealift.v1.JobService/ResumeJob", &request.request_id, request),
            (&request.name, &request.etag),
            |tx, found, now| {
                let actor = actor.clone();
                Box::pin(async move { resume_job(tx, &found, &actor, now).await })
            },
            |job| ResumeJobResponse { job: Some(job) },
        )
        .await
    }

    pub(super) async fn abort(
        &self,
        caller: &Caller,
        request: &AbortJobRequest,
    ) -> Result<AbortJobResponse, ApiError> {
        let reason = text("reason", &request.reason)?;
        let actor = caller.actor();
        self.steer(
            caller,
            ("sealift.v1.JobService/AbortJob", &request.request_id, request),
            (&request.name, &request.etag),
            |tx, found, now| {
                let (actor, reason) = (actor.clone(), reason.clone());
                Box::pin(async move { abort_job(tx, &found, &reason, &actor, now).await })
            },
            |job| AbortJobResponse { job: Some(job) },
        )
        .await
    }

    /// Finds the job, checks its etag when one was given, changes it and answers with what it is then.
    async fn steer<Req, Resp>(
        &self,
        caller: &Caller,
        (method, request_id, request): (&'static str, &str, &Req),
        (name, etag): (&str, &str),
        change: impl for<'t> Fn(&'t mut Tx, Job, DateTime<Utc>) -> Steer<'t> + Send + Sync,
        answer: impl Fn(sealift_proto::v1::Job) -> Resp + Send + Sync,
    ) -> Result<Resp, ApiError>
    where
        Req: Serialize + Sync,
        Resp: Message + Default,
    {
        let tenant = caller.tenant_id()?;
        let id = names::job("name", name)?;
        let (change, answer) = (&change, &answer);
        mutate(
            self.app(),
            caller,
            method,
            request_id,
            request,
            name,
            move |tx, _| {
                Box::pin(async move {
                    let tx = tx;
                    let found = find_job(tx, tenant, id).await?;
                    check_etag_if_any("etag", etag, found.version, &names::of_job(id))?;
                    let changed = change(tx, found, self.app().clock.now()).await?;
                    Ok(answer(job_message(tx, &changed, false).await?))
                })
            },
        )
        .await
    }

    pub(super) async fn skip(
        &self,
        caller: &Caller,
        request: &SkipTaskRequest,
    ) -> Result<SkipTaskResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let (job_id, task_id) = names::task("name", &request.name)?;
        let reason = reason(&request.reason)?;
        let actor = caller.actor();
        mutate(
            self.app(),
            caller,
            "sealift.v1.JobService/SkipTask",
            &request.request_id,
            request,
            &request.name,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let found = find_task(tx, tenant, job_id, task_id).await?;
                    let by = By {
                        actor: &actor,
                        reason: &reason,
                    };
                    let skipped = skip_task(tx, &found, by, self.app().clock.now()).await?;
                    Ok(SkipTaskResponse {
                        task: Some(job::task(&skipped, TaskExtras::default())),
                    })
                })
            },
        )
        .await
    }

    pub(super) async fn retry(
        &self,
        caller: &Caller,
        request: &RetryJobRequest,
    ) -> Result<RetryJobResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::job("name", &request.name)?;
        let summary = text("change_summary", &request.change_summary)?;
        let requester = requester(caller)?;
        mutate(
            self.app(),
            caller,
            "sealift.v1.JobService/RetryJob",
            &request.request_id,
            request,
            &request.name,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let found = find_job(tx, tenant, id).await?;
                    let wanted = repeat_job(tx, &found, summary.clone(), requester.clone()).await?;
                    let requested = create_promotion(self.core(), tx, &wanted).await?;
                    Ok(RetryJobResponse {
                        promotion: names::of_promotion(requested.promotion.id),
                    })
                })
            },
        )
        .await
    }
}

/// A user who asks for a promotion.
pub fn requester(caller: &Caller) -> Result<Requester, ApiError> {
    let role = caller.user_role().ok_or_else(|| {
        ApiError::new(
            Reason::RoleMissing,
            "only users request promotions",
            "call with a user's certificate",
        )
    })?;
    Ok(Requester {
        actor: caller.actor(),
        role,
    })
}
