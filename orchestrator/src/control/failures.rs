//! `ListFailures`: what failed in a job or a task, page by page.

use sealift_proto::v1::{ListFailuresRequest, ListFailuresResponse};

use crate::{
    caller::Caller,
    control::{
        int32,
        job::Jobs,
        views::{find_job, find_task},
    },
    convert::failure,
    names,
    paging::{next_token, page_request},
    status::ApiError,
};

/// Most failures in one message: at their longest they stay well below the message limit.
const PAGE: u32 = 200;

impl Jobs {
    pub(super) async fn failures(
        &self,
        caller: &Caller,
        request: &ListFailuresRequest,
    ) -> Result<ListFailuresResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let (job, task) = names::job_or_task("parent", &request.parent)?;
        let bound = ["ListFailures", request.parent.as_str()];
        let mut page = page_request(request.page_size, &request.page_token, &bound)?;
        page.size = page.size.min(PAGE);
        let mut tx = self.app().db.read().await?;
        let (found, total) = match task {
            None => {
                find_job(&mut tx, tenant, job).await?;
                let found = tx.failures_of_job(job, &page).await?;
                (found, tx.count_failures_of_job(job).await?)
            }
            Some(task) => {
                find_task(&mut tx, tenant, job, task).await?;
                let found = tx.failures_of_task(task, &page).await?;
                (found, tx.count_failures_of_task(task).await?)
            }
        };
        Ok(ListFailuresResponse {
            failures: found.items.iter().map(failure::of_attempt).collect(),
            next_page_token: next_token(found.next, &bound),
            total_size: int32(total),
        })
    }
}
