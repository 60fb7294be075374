//! `sealift.v1.JobService`.

use std::collections::BTreeMap;

use sealift_common::{
    id::{JobId, TaskId, TenantId},
    job::JobPhase,
};
use sealift_proto::v1::{
    AbortJobRequest, AbortJobResponse, GetJobRequest, GetJobResponse, GetTaskRequest, GetTaskResponse,
    ListFailuresRequest, ListFailuresResponse, ListJobsRequest, ListJobsResponse, ListTasksRequest,
    ListTasksResponse, PauseJobRequest, PauseJobResponse, ResumeJobRequest, ResumeJobResponse,
    RetryJobRequest, RetryJobResponse, SkipTaskRequest, SkipTaskResponse, StreamJobLogsRequest,
    StreamJobLogsResponse, WatchJobRequest, WatchJobResponse, job_service_server::JobService,
};
use sealift_store::{Change, Cursor, LogCursor, Task, TaskFilter, Tx};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    app::Core,
    caller::Caller,
    control::{
        news::{self, Told, spread},
        views::{environment_filter, find_job, find_task, job_message, job_messages, task_message},
    },
    convert::job::{self, TaskExtras},
    names,
    paging::{next_token, not_given, page_request, place},
    state::App,
    status::ApiError,
    watch::{Watch, Woken, stream},
};

/// Most log lines in one message: at their longest they stay well below the message limit.
const LINES: u32 = 256;

/// The service.
#[derive(Debug, Clone)]
pub struct Jobs {
    app: App,
    core: Core,
}

impl Jobs {
    /// Over the parts that all share.
    pub const fn new(app: App, core: Core) -> Self {
        Self { app, core }
    }

    pub(super) const fn app(&self) -> &App {
        &self.app
    }

    pub(super) const fn core(&self) -> &Core {
        &self.core
    }

    async fn get(&self, caller: &Caller, request: &GetJobRequest) -> Result<GetJobResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::job("name", &request.name)?;
        let mut tx = self.app.db.read().await?;
        let found = find_job(&mut tx, tenant, id).await?;
        Ok(GetJobResponse {
            job: Some(job_message(&mut tx, &found, true).await?),
        })
    }

    async fn list(&self, caller: &Caller, request: &ListJobsRequest) -> Result<ListJobsResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let bound = ["ListJobs", request.environment.as_str()];
        let page = page_request(request.page_size, &request.page_token, &bound)?;
        let mut tx = self.app.db.read().await?;
        let environment = environment_filter(&mut tx, tenant, &request.environment).await?;
        let found = tx.list_jobs(tenant, environment, &page).await?;
        Ok(ListJobsResponse {
            jobs: job_messages(&mut tx, &found.items).await?,
            next_page_token: next_token(found.next, &bound),
        })
    }

    async fn task(&self, caller: &Caller, request: &GetTaskRequest) -> Result<GetTaskResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let (job, task) = names::task("name", &request.name)?;
        let mut tx = self.app.db.read().await?;
        let found = find_task(&mut tx, tenant, job, task).await?;
        Ok(GetTaskResponse {
            task: Some(task_message(&mut tx, &found).await?),
        })
    }

    async fn tasks(
        &self,
        caller: &Caller,
        request: &ListTasksRequest,
    ) -> Result<ListTasksResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::job("parent", &request.parent)?;
        let state = request.state.to_string();
        let bound = [
            "ListTasks",
            request.parent.as_str(),
            state.as_str(),
            request.target.as_str(),
        ];
        let mut page = page_request(request.page_size, &request.page_token, &bound)?;
        page.size = page.size.min(news::TASKS as u32);
        let wanted = (!request.target.is_empty())
            .then(|| names::target("target", &request.target))
            .transpose()?;
        let phase = job::to_task_phase("state", request.state)?;
        let mut tx = self.app.db.read().await?;
        let found = find_job(&mut tx, tenant, id).await?;
        let target = match wanted {
            Some((environment, _)) if environment != found.environment => {
                let rule = format!("must be a target of {}", found.environment);
                return Err(ApiError::invalid("target", rule));
            }
            Some((_, target)) => Some(target),
            None => None,
        };
        let tasks = tx.list_tasks(id, &TaskFilter { phase, target }, &page).await?;
        let ids: Vec<TaskId> = tasks.items.iter().map(|task| task.id).collect();
        let packets = tx.packets_of_tasks(&ids).await?;
        let places = tx.failed_places(&ids).await?;
        let message = |task: &Task| {
            let extras = TaskExtras {
                packets: packets.get(&task.id).map(Vec::as_slice).unwrap_or_default(),
                place: places.get(&task.id).copied(),
                ..TaskExtras::default()
            };
            job::task(task, extras)
        };
        Ok(ListTasksResponse {
            tasks: tasks.items.iter().map(message).collect(),
            next_page_token: next_token(tasks.next, &bound),
        })
    }

    async fn watch(
        &self,
        caller: &Caller,
        request: &WatchJobRequest,
    ) -> Result<ReceiverStream<Result<WatchJobResponse, Status>>, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::job("name", &request.name)?;
        let watch = Watch::new(&self.app, caller);
        find_job(&mut self.app.db.read().await?, tenant, id).await?;
        let app = self.app.clone();
        Ok(stream(&self.app, move |sender| {
            follow(app, watch, tenant, id, sender)
        }))
    }

    async fn logs(
        &self,
        caller: &Caller,
        request: &StreamJobLogsRequest,
    ) -> Result<ReceiverStream<Result<StreamJobLogsResponse, Status>>, ApiError> {
        let tenant = caller.tenant_id()?;
        let (job, task) = names::job_or_task("name", &request.name)?;
        let after = log_place(&request.name, &request.after)?;
        let watch = Watch::new(&self.app, caller);
        let mut tx = self.app.db.read().await?;
        match task {
            Some(task) => find_task(&mut tx, tenant, job, task).await.map(drop)?,
            None => find_job(&mut tx, tenant, job).await.map(drop)?,
        }
        drop(tx);
        let follower = Logs {
            app: self.app.clone(),
            tenant,
            name: request.name.clone(),
            job,
            task,
            follow: request.follow,
            targets: BTreeMap::new(),
            after,
        };
        Ok(stream(&self.app, move |sender| follower.run(watch, sender)))
    }
}

async fn follow(
    app: App,
    mut watch: Watch,
    tenant: TenantId,
    id: JobId,
    sender: mpsc::Sender<Result<WatchJobResponse, Status>>,
) -> Result<(), Status> {
    let mut told = Told::default();
    loop {
        let begun = Instant::now();
        let mut tx = app.db.read().await.map_err(ApiError::from)?;
        let found = find_job(&mut tx, tenant, id).await?;
        let news = told.news(&mut tx, &found).await?;
        drop(tx);
        let took = begun.elapsed();
        let (full, tasks) = spread(news.tasks);
        for tasks in full {
            watch.send(&sender, WatchJobResponse { job: None, tasks }).await?;
        }
        if news.job.is_some() {
            let job = news.job;
            watch.send(&sender, WatchJobResponse { job, tasks }).await?;
        }
        if found.state.phase().is_terminal() {
            return Ok(());
        }
        watch.breathe(took).await;
        let mine = |change: &Change| concerns(id, change);
        if watch.next(mine).await? == Woken::SignOfLife {
            watch.send(&sender, WatchJobResponse::default()).await?;
        }
    }
}

fn concerns(id: JobId, change: &Change) -> bool {
    match change {
        Change::Job(job) | Change::Task { job, .. } => *job == id,
        Change::Promotion(_)
        | Change::Lane(_)
        | Change::Agent(_)
        | Change::User(_)
        | Change::Target(_)
        | Change::Logs(_)
        | Change::Drift(_)
        | Change::Maintenance => false,
    }
}

/// One reader of a job's log.
struct Logs {
    app: App,
    tenant: TenantId,
    /// As it was asked for; cursors are bound to it.
    name: String,
    job: JobId,
    task: Option<TaskId>,
    follow: bool,
    targets: BTreeMap<TaskId, String>,
    after: Option<LogCursor>,
}

impl Logs {
    async fn run(
        mut self,
        mut watch: Watch,
        sender: mpsc::Sender<Result<StreamJobLogsResponse, Status>>,
    ) -> Result<(), Status> {
        loop {
            // Read before the lines: what is logged after this is read in the next round, unless the job had ended by now.
            let ended = self.ended().await?;
            while let Some(message) = self.next_lines().await? {
                watch.send(&sender, message).await?;
            }
            if ended || !self.follow {
                return Ok(());
            }
            let job = self.job;
            let mine = |change: &Change| match change {
                Change::Logs(other) | Change::Job(other) => *other == job,
                Change::Task { .. }
                | Change::Promotion(_)
                | Change::Lane(_)
                | Change::Agent(_)
                | Change::User(_)
                | Change::Target(_)
                | Change::Drift(_)
                | Change::Maintenance => false,
            };
            if watch.next(mine).await? == Woken::SignOfLife {
                watch.send(&sender, StreamJobLogsResponse::default()).await?;
            }
        }
    }

    async fn ended(&self) -> Result<bool, ApiError> {
        let found = find_job(&mut self.app.db.read().await?, self.tenant, self.job).await?;
        Ok(match found.state.phase() {
            // What a rollback does is logged by its own job.
            JobPhase::RollingBack => true,
            phase => phase.is_terminal(),
        })
    }

    async fn next_lines(&mut self) -> Result<Option<StreamJobLogsResponse>, ApiError> {
        let mut tx = self.app.db.read().await?;
        let lines = tx.logs(self.job, self.task, self.after, LINES).await?;
        let Some(last) = lines.last() else {
            return Ok(None);
        };
        self.after = Some(last.cursor);
        let cursor = log_token(&self.name, last.cursor);
        if lines.iter().any(|line| !self.targets.contains_key(&line.task_id)) {
            self.targets = targets(&mut tx, self.job).await?;
        }
        let lines = lines.iter().map(|line| {
            let target = self.targets.get(&line.task_id).cloned().unwrap_or_default();
            job::log_line(line, names::of_task(self.job, line.task_id), target)
        });
        Ok(Some(StreamJobLogsResponse {
            lines: lines.collect(),
            cursor,
        }))
    }
}

/// The arguments that a place in a log is bound to. Whether it is followed is none of them.
fn log_of(name: &str) -> [&str; 2] {
    ["StreamJobLogs", name]
}

fn log_token(name: &str, place: LogCursor) -> String {
    next_token(Some(Cursor::from_text(place.0.to_string())), &log_of(name))
}

/// Reads what [`log_token`] wrote.
fn log_place(name: &str, after: &str) -> Result<Option<LogCursor>, ApiError> {
    let number = |cursor: Cursor| {
        let number = cursor.as_str().parse::<i64>().ok()?;
        u64::try_from(number).ok().map(LogCursor)
    };
    place("after", after, &log_of(name))?
        .map(|cursor| number(cursor).ok_or_else(|| not_given("after")))
        .transpose()
}

async fn targets(tx: &mut Tx, job: JobId) -> Result<BTreeMap<TaskId, String>, ApiError> {
    let name = |task: Task| (task.id, names::of_target(&task.environment, &task.target));
    Ok(tx.tasks_of_job(job).await?.into_iter().map(name).collect())
}

#[tonic::async_trait]
impl JobService for Jobs {
    type WatchJobStream = ReceiverStream<Result<WatchJobResponse, Status>>;
    type StreamJobLogsStream = ReceiverStream<Result<StreamJobLogsResponse, Status>>;

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.get(&caller, request.get_ref()).await?))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.list(&caller, request.get_ref()).await?))
    }

    async fn get_task(&self, request: Request<GetTaskRequest>) -> Result<Response<GetTaskResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.task(&caller, request.get_ref()).await?))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.tasks(&caller, request.get_ref()).await?))
    }

    async fn list_failures(
        &self,
        request: Request<ListFailuresRequest>,
    ) -> Result<Response<ListFailuresResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.failures(&caller, request.get_ref()).await?))
    }

    async fn pause_job(
        &self,
        request: Request<PauseJobRequest>,
    ) -> Result<Response<PauseJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.pause(&caller, request.get_ref()).await?))
    }

    async fn resume_job(
        &self,
        request: Request<ResumeJobRequest>,
    ) -> Result<Response<ResumeJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.resume(&caller, request.get_ref()).await?))
    }

    async fn abort_job(
        &self,
        request: Request<AbortJobRequest>,
    ) -> Result<Response<AbortJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.abort(&caller, request.get_ref()).await?))
    }

    async fn skip_task(
        &self,
        request: Request<SkipTaskRequest>,
    ) -> Result<Response<SkipTaskResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.skip(&caller, request.get_ref()).await?))
    }

    async fn retry_job(
        &self,
        request: Request<RetryJobRequest>,
    ) -> Result<Response<RetryJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.retry(&caller, request.get_ref()).await?))
    }

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.watch(&caller, request.get_ref()).await?))
    }

    async fn stream_job_logs(
        &self,
        request: Request<StreamJobLogsRequest>,
    ) -> Result<Response<Self::StreamJobLogsStream>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.logs(&caller, request.get_ref()).await?))
    }
}
