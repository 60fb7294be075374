//! Tasks as they are shown: pages, counts, and the packets of many at once.

use std::collections::BTreeMap;

use sealift_common::{
    id::{AgentId, JobId, PacketId, TaskId},
    name::Name,
    task::TaskPhase,
};
use uuid::Uuid;

use crate::{
    Cursor, Page, PageRequest, Result, Task, Tx,
    engine::{of_ids, on, statements},
    rows::{At, all, count},
    tasks::live,
    tasks_rows::{TaskRow, columns},
};

statements! {
    LIST = {
        "SELECT ", columns!(""), " FROM tasks WHERE job_id = $1 AND (wave, target) > ($2, $3) ",
        "AND ($4 = '' OR state = $4) AND ($5 = '' OR target = $5) ORDER BY wave, target LIMIT $6"
    };
    COUNT = { "SELECT state, COUNT(*) FROM tasks WHERE job_id = $1 GROUP BY state" };
}

const LIVE_OF_AGENTS: &str = concat!(
    "SELECT agent_id, COUNT(*) FROM tasks WHERE ",
    live!(),
    " AND agent_id IN ("
);
const PACKETS_OF: &str =
    "SELECT task_id, packet_id FROM task_attempts WHERE packet_id IS NOT NULL AND task_id IN (";

/// Which tasks of a job are wanted.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Only those in this state.
    pub phase: Option<TaskPhase>,
    /// Only that of the target of this name.
    pub target: Option<Name>,
}

impl Tx {
    /// Tasks of a job by wave and target, without orders.
    pub async fn list_tasks(
        &mut self,
        job: JobId,
        filter: &TaskFilter,
        page: &PageRequest,
    ) -> Result<Page<Task>> {
        let (wave, target) = page.above_position()?;
        let phase = filter.phase.map_or("", TaskPhase::as_str);
        let wanted = filter.target.as_ref().map_or("", Name::as_str);
        let rows: Vec<TaskRow> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(job.uuid())
            .bind(wave)
            .bind(target.as_str())
            .bind(phase)
            .bind(wanted)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |task: &Task| {
            Cursor::of(&[&task.wave, &task.target])
        }))
    }

    /// How many tasks of a job are in which state.
    pub async fn count_tasks(&mut self, job: JobId) -> Result<BTreeMap<TaskPhase, u32>> {
        let rows: Vec<(String, i64)> = on!(self, |conn| sqlx::query_as(COUNT)
            .bind(job.uuid())
            .fetch_all(conn)
            .await)?;
        let at = At::new("tasks", job.uuid());
        rows.into_iter()
            .map(|(state, tasks)| Ok((at.parse("state", &state)?, count(tasks))))
            .collect()
    }

    /// How many tasks occupy targets of each of the agents; those with none are left out. At most a page of agents.
    pub async fn count_live_tasks_of_agents(&mut self, agents: &[AgentId]) -> Result<BTreeMap<AgentId, u32>> {
        if agents.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows: Vec<(Uuid, i64)> = on!(self, |conn| {
            let ids = agents.iter().map(|agent| agent.uuid());
            let mut query = of_ids(LIVE_OF_AGENTS, ids, ") GROUP BY agent_id");
            query.build_query_as().fetch_all(conn).await
        })?;
        Ok(rows
            .into_iter()
            .map(|(agent, tasks)| (agent.into(), count(tasks)))
            .collect())
    }

    /// The packets of each of the tasks, in the order of its attempts. At most a page of tasks.
    pub async fn packets_of_tasks(&mut self, tasks: &[TaskId]) -> Result<BTreeMap<TaskId, Vec<PacketId>>> {
        let mut packets: BTreeMap<TaskId, Vec<PacketId>> = BTreeMap::new();
        if tasks.is_empty() {
            return Ok(packets);
        }
        let rows: Vec<(Uuid, Uuid)> = on!(self, |conn| {
            let ids = tasks.iter().map(|task| task.uuid());
            let mut query = of_ids(PACKETS_OF, ids, ") ORDER BY task_id, number");
            query.build_query_as().fetch_all(conn).await
        })?;
        for (task, packet) in rows {
            packets.entry(task.into()).or_default().push(packet.into());
        }
        Ok(packets)
    }
}
