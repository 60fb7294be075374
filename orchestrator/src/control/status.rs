//! StatusService: the board (what runs where, since when, what drifted, what is under way) and the history of environments.

use std::collections::{HashMap, HashSet};

use sealift_common::{
    bounds::PAGE_MAX,
    drift::Severity,
    id::{EnvironmentId, TenantId},
    inventory::{AgentStatus, Environment},
    name::Name,
    outcome::Outcome,
};
use sealift_proto::v1::{
    BoardComponent, BoardEnvironment, BoardHold, BoardJob, BoardRelease, DriftCount, GetBoardRequest,
    GetBoardResponse, HistoryEntry, ListHistoryRequest, ListHistoryResponse, WatchBoardRequest,
    WatchBoardResponse, history_entry::Outcome as WireOutcome, list_history_request::Only,
    status_service_server::StatusService,
};
use sealift_store::{Active, BoardState, Change, HistoryRow, HistoryScope, Hold, PageRequest, Tx};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{find_environment, int32, target, timestamp};
use crate::{
    app::resolve_release::find_project,
    caller::Caller,
    convert::{
        job::{closed_gate, pause_reason},
        state,
    },
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
    watch::{self, Watch, Woken},
};

/// Most components, and most releases beside the active ones, shown of one environment.
const COMPONENTS: usize = 1000;

/// The service. A board shows the first [`PAGE_MAX`] environments, in promotion order.
#[derive(Debug, Clone)]
pub struct Board {
    /// Shared state.
    pub app: App,
}

/// The board of a tenant, or of one of its environments. The number of statements does not depend on how much there is.
async fn board(app: &App, tenant: TenantId, wanted: Option<&Name>) -> Result<GetBoardResponse, ApiError> {
    let mut tx = app.db.read().await?;
    let first = PageRequest::first(PAGE_MAX);
    let environments = if let Some(name) = wanted {
        vec![find_environment(&mut tx, tenant, name).await?]
    } else {
        tx.list_environments(tenant, &first).await?.items
    };
    let found = tx.board(tenant).await?;
    let holds = tx
        .list_holds(tenant, false, &PageRequest::first(PAGE_MAX))
        .await?;
    let mut active: HashMap<EnvironmentId, Vec<Active>> = HashMap::new();
    for (environment, component) in tx.active_of_tenant(tenant).await? {
        active.entry(environment).or_default().push(component);
    }
    drop(tx);
    let environments = environments.iter().map(|environment| {
        let components = active.remove(&environment.id).unwrap_or_default();
        environment_of(app, environment, &found, components, &holds.items)
    });
    Ok(GetBoardResponse {
        environments: environments.collect(),
        time: timestamp(app.clock.now()),
    })
}

fn environment_of(
    app: &App,
    environment: &Environment,
    found: &BoardState,
    components: Vec<Active>,
    holds: &[Hold],
) -> BoardEnvironment {
    let id = environment.id;
    let count = |counts: &[(EnvironmentId, u32)]| {
        let mine = counts.iter().find(|(other, _)| *other == id);
        int32(mine.map_or(0, |(_, count)| *count))
    };
    let agents = found.agents.iter().filter(|agent| agent.environment == id);
    let (mut online, mut offline) = (0, 0);
    for agent in agents {
        // Whether it is well is not on the board, so that nobody has to read what it says about itself.
        match app
            .presence
            .status(agent.id, agent.intent, agent.last_seen_at, false)
        {
            AgentStatus::Offline => offline += 1,
            AgentStatus::Online | AgentStatus::Degraded => online += 1,
        }
    }
    let mut all = DriftCount::default();
    for drift in found.drift.iter().filter(|drift| drift.environment == id) {
        add(&mut all, drift.severity, drift.open);
    }
    let counts = drift_of_components(id, found, &components);
    let recorded: Vec<_> = found
        .releases
        .iter()
        .filter(|one| one.environment == id)
        .collect();
    let others = others(&recorded, &components);
    let (mut of_release, mut of_project) = (HashMap::new(), HashMap::<_, i32>::new());
    for one in recorded {
        of_release.insert(one.release, int32(one.targets));
        let sum = of_project.entry(&one.project).or_default();
        *sum = sum.saturating_add(int32(one.targets));
    }
    let jobs: Vec<_> = found
        .jobs
        .iter()
        .filter(|job| job.environment == id)
        .map(board_job)
        .collect();
    let components = components.into_iter().zip(counts).take(COMPONENTS);
    let components = components.map(|(active, drift)| BoardComponent {
        component: names::of_component(&active.component.name),
        digest: active.digest.to_string(),
        release: names::of_release(active.release),
        release_display: state::release_display(&active.project, active.number),
        job: names::of_job(active.job),
        since: timestamp(active.since),
        drift: sum(&drift),
        drift_count: Some(drift),
        targets: of_release.get(&active.release).copied().unwrap_or_default(),
        targets_of_project: of_project.get(&active.project).copied().unwrap_or_default(),
    });
    BoardEnvironment {
        environment: names::of_environment(&environment.name),
        targets: count(&found.targets),
        agents_online: online,
        agents_offline: offline,
        running_promotion: jobs.first().map(|job| job.promotion.clone()).unwrap_or_default(),
        queued: count(&found.queued),
        components: components.collect(),
        drift: Some(all),
        jobs,
        holds: holds
            .iter()
            .filter(|hold| hold.environment_id == id)
            .map(|hold| BoardHold {
                project: hold.project.to_string(),
                reason: hold.reason.clone(),
                placed_by: hold.placed_by.clone(),
                since: timestamp(hold.placed_at),
            })
            .collect(),
        others,
    }
}

/// What is recorded on targets of an environment beside what is active there.
fn others(recorded: &[&sealift_store::BoardRelease], components: &[Active]) -> Vec<BoardRelease> {
    let active: HashSet<_> = components.iter().map(|active| active.release).collect();
    let others = recorded.iter().filter(|one| !active.contains(&one.release));
    let shown = others.take(COMPONENTS).map(|one| BoardRelease {
        release: names::of_release(one.release),
        release_display: state::release_display(&one.project, one.number),
        targets: int32(one.targets),
    });
    shown.collect()
}

/// The open drift of each of an environment's components, in their order: that of their services. What belongs to no service of
/// the active release is counted with the first component of its project, so that everything is counted, and nothing twice.
fn drift_of_components(id: EnvironmentId, found: &BoardState, components: &[Active]) -> Vec<DriftCount> {
    let projects: Vec<String> = components
        .iter()
        .map(|active| active.project.to_string())
        .collect();
    let places: HashMap<_, usize> = components
        .iter()
        .enumerate()
        .map(|(place, active)| ((active.release, active.component.id), place))
        .collect();
    let mut by_service: HashMap<(&str, &str), usize> = HashMap::new();
    for service in found.services.iter().filter(|service| service.environment == id) {
        if let Some(place) = places.get(&(service.release, service.component)) {
            by_service.insert((&projects[*place], &service.service), *place);
        }
    }
    let mut counts = vec![DriftCount::default(); components.len()];
    for drift in found.drift.iter().filter(|drift| drift.environment == id) {
        let project = drift.project.as_str();
        let first = || projects.iter().position(|other| other == project);
        let place = by_service.get(&(project, drift.service.as_str())).copied();
        if let Some(place) = place.or_else(first) {
            add(&mut counts[place], drift.severity, drift.open);
        }
    }
    counts
}

fn board_job(job: &sealift_store::BoardJob) -> BoardJob {
    BoardJob {
        job: names::of_job(job.id),
        promotion: names::of_promotion(job.promotion),
        release_display: state::release_display(&job.project, job.number),
        state: job.phase.to_string(),
        wave: int32(job.wave).saturating_add(1),
        waves: int32(job.waves),
        tasks: int32(job.tasks),
        tasks_ended: int32(job.ended),
        tasks_failed: int32(job.failed),
        start_time: job.started_at.and_then(timestamp),
        pause_reason: job.pause.as_ref().map(pause_reason).unwrap_or_default(),
        closed_gate: job.pause.as_ref().and_then(closed_gate),
    }
}

fn add(counts: &mut DriftCount, severity: Severity, open: u32) {
    let count = match severity {
        Severity::Low => &mut counts.low,
        Severity::Medium => &mut counts.medium,
        Severity::High => &mut counts.high,
        Severity::Critical => &mut counts.critical,
    };
    *count = count.saturating_add(int32(open));
}

fn sum(counts: &DriftCount) -> i32 {
    [counts.low, counts.medium, counts.high, counts.critical]
        .iter()
        .fold(0, |sum, count| sum.saturating_add(*count))
}

/// What may change the board.
fn is_on_board(change: &Change) -> bool {
    match change {
        Change::Promotion(_)
        | Change::Job(_)
        | Change::Task { .. }
        | Change::Lane(_)
        | Change::Agent(_)
        | Change::Drift(_) => true,
        // Observations come all the time; what matters of them is drift.
        Change::Target(_) | Change::User(_) | Change::Logs(_) | Change::Maintenance => false,
    }
}

async fn watch_board(
    app: App,
    tenant: TenantId,
    wanted: Option<Name>,
    mut watch: Watch,
    sender: mpsc::Sender<Result<WatchBoardResponse, Status>>,
) -> Result<(), Status> {
    let mut said: Option<Vec<BoardEnvironment>> = None;
    loop {
        let begun = Instant::now();
        let now = board(&app, tenant, wanted.as_ref()).await?;
        if said.as_ref() != Some(&now.environments) {
            said = Some(now.environments.clone());
            let message = WatchBoardResponse { board: Some(now) };
            watch.send(&sender, message).await?;
        }
        watch.rest(begun).await;
        if watch.next(is_on_board).await? == Woken::SignOfLife {
            watch.send(&sender, WatchBoardResponse::default()).await?;
        }
    }
}

fn outcome(outcome: Outcome) -> WireOutcome {
    match outcome {
        Outcome::Succeeded => WireOutcome::Succeeded,
        Outcome::Failed => WireOutcome::Failed,
        Outcome::Cancelled => WireOutcome::Cancelled,
        Outcome::RolledBack => WireOutcome::RolledBack,
        Outcome::Superseded => WireOutcome::Superseded,
    }
}

fn entry(row: &HistoryRow) -> HistoryEntry {
    HistoryEntry {
        job: names::of_job(row.job),
        promotion: names::of_promotion(row.promotion),
        release: names::of_release(row.release),
        release_display: state::release_display(&row.project, row.number),
        outcome: row
            .fate
            .outcome()
            .map_or(WireOutcome::Unspecified, outcome)
            .into(),
        state: row.fate.phase.to_string(),
        target_state: row.task.map(|phase| phase.to_string()).unwrap_or_default(),
        requested_by: row.requested_by.clone(),
        change_summary: row.change_summary.clone(),
        create_time: timestamp(row.created_at),
        start_time: row.started_at.and_then(timestamp),
        finish_time: row.finished_at.and_then(timestamp),
    }
}

/// What a history is narrowed to.
async fn scope(
    tx: &mut Tx,
    tenant: TenantId,
    environment: &Environment,
    only: Option<&Only>,
) -> Result<HistoryScope, ApiError> {
    match only {
        None => Ok(HistoryScope::All),
        Some(Only::Project(text)) => {
            let (id, _) = find_project(tx, tenant, text).await?;
            Ok(HistoryScope::Project(id))
        }
        Some(Only::Component(name)) => {
            let name = names::component("component", name)?;
            let found = tx.component_by_name(tenant, &name).await?;
            let found = found
                .ok_or_else(|| ApiError::not_found(names::of_component(&name), "sealift component list"))?;
            Ok(HistoryScope::Component(found.id))
        }
        Some(Only::Target(name)) => {
            let (place, name) = names::target("target", name)?;
            if place != environment.name {
                return Err(ApiError::invalid("target", "is not one of the environment"));
            }
            let id = target::target_id(tx, tenant, &place, &name).await?;
            Ok(HistoryScope::Target(id))
        }
    }
}

#[tonic::async_trait]
impl StatusService for Board {
    type WatchBoardStream = ReceiverStream<Result<WatchBoardResponse, Status>>;

    async fn get_board(
        &self,
        request: Request<GetBoardRequest>,
    ) -> Result<Response<GetBoardResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let wanted = names::environment_or_all("environment", &request.get_ref().environment)?;
        Ok(Response::new(board(&self.app, tenant, wanted.as_ref()).await?))
    }

    async fn watch_board(
        &self,
        request: Request<WatchBoardRequest>,
    ) -> Result<Response<Self::WatchBoardStream>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let wanted = names::environment_or_all("environment", &request.get_ref().environment)?;
        let watch = Watch::new(&self.app, &caller);
        let app = self.app.clone();
        Ok(Response::new(watch::stream(&self.app, |sender| {
            watch_board(app, tenant, wanted, watch, sender)
        })))
    }

    async fn list_history(
        &self,
        request: Request<ListHistoryRequest>,
    ) -> Result<Response<ListHistoryResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let name = names::environment("environment", &request.environment)?;
        let (kind, only) = match &request.only {
            None => ("", ""),
            Some(Only::Project(text)) => ("project", text.as_str()),
            Some(Only::Component(text)) => ("component", text.as_str()),
            Some(Only::Target(text)) => ("target", text.as_str()),
        };
        let bound_to = &["ListHistory", request.environment.as_str(), kind, only];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let environment = find_environment(&mut tx, tenant, &name).await?;
        let scope = scope(&mut tx, tenant, &environment, request.only.as_ref()).await?;
        let page = tx.history(environment.id, scope, &page).await;
        let page = page.map_err(ApiError::from)?;
        Ok(Response::new(ListHistoryResponse {
            entries: page.items.iter().map(entry).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use sealift_common::{
        digest::Digest,
        id::{ComponentId, JobId, ProjectId, ReleaseId},
        inventory::Component,
    };
    use sealift_store::{BoardDrift, BoardService};

    use super::*;

    fn id(number: u128) -> uuid::Uuid {
        uuid::Uuid::from_u128(number)
    }

    fn active(component: u128, release: u128, project: &str) -> Active {
        Active {
            component: Component {
                id: ComponentId::from(id(component)),
                tenant_id: TenantId::from(id(1)),
                name: format!("shop/c{component}").parse().unwrap(),
                repository: format!("registry.test/shop/c{component}"),
                created_at: DateTime::default(),
            },
            digest: Digest::of(b"content"),
            release: ReleaseId::from(id(release)),
            project: project.parse().unwrap(),
            project_id: ProjectId::from(id(4)),
            number: 1,
            job: JobId::from(id(3)),
            since: DateTime::default(),
        }
    }

    #[test]
    fn what_is_not_active_but_recorded_is_shown_beside_it() {
        let (api, web) = ("github.com/acme/shop/api", "github.com/acme/shop/web");
        let recorded = |release: u128, project: &str, targets: u32| sealift_store::BoardRelease {
            environment: EnvironmentId::from(id(2)),
            release: ReleaseId::from(id(release)),
            project: project.parse().unwrap(),
            number: 7,
            targets,
        };
        let found = [recorded(20, api, 2), recorded(21, api, 1), recorded(30, web, 4)];
        let found: Vec<_> = found.iter().collect();
        // Of the other project nothing is active: its first rollout ended half-way.
        let shown = others(&found, &[active(10, 20, api)]);
        let shown: Vec<_> = shown
            .iter()
            .map(|one| (one.release_display.as_str(), one.targets))
            .collect();
        assert_eq!(
            shown,
            [
                ("github.com/acme/shop/api#7", 1),
                ("github.com/acme/shop/web#7", 4)
            ]
        );
    }

    #[test]
    fn each_drift_is_counted_with_one_component_and_none_is_lost() {
        let here = EnvironmentId::from(id(2));
        let (api, web) = ("github.com/acme/shop/api", "github.com/acme/shop/web");
        // Two components of one project, and one of them in another project, too.
        let components = [active(10, 20, api), active(11, 20, api), active(10, 21, web)];
        let service = |release: u128, component: u128, service: &str| BoardService {
            environment: here,
            release: ReleaseId::from(id(release)),
            component: ComponentId::from(id(component)),
            service: service.to_owned(),
        };
        let drift = |project: &str, service: &str, open: u32| BoardDrift {
            environment: here,
            project: project.to_owned(),
            service: service.to_owned(),
            severity: Severity::High,
            open,
        };
        let elsewhere = BoardDrift {
            environment: EnvironmentId::from(id(9)),
            ..drift(api, "front", 1_000)
        };
        let found = BoardState {
            services: vec![
                service(20, 10, "front"),
                service(20, 11, "worker"),
                service(20, 11, "cron"),
                service(21, 10, "front"),
            ],
            drift: vec![
                drift(api, "front", 1),
                drift(api, "worker", 2),
                drift(api, "cron", 4),
                drift(web, "front", 8),
                // A sticker, and a service that no release has.
                drift(api, "", 16),
                drift(api, "stray", 32),
                elsewhere,
            ],
            ..BoardState::default()
        };
        let counts = drift_of_components(here, &found, &components);
        let high: Vec<i32> = counts.iter().map(|count| count.high).collect();
        assert_eq!(high, [1 + 16 + 32, 2 + 4, 8]);
    }
}
