//! The scheduler: starts the heads of lanes and advances running jobs. One replica at a time holds the turn; every transaction
//! checks that it still does.

use std::{collections::BTreeMap, time::Duration};

use sealift_common::{
    error::Reason,
    id::{JobId, ReplicaId},
};
use sealift_store::Change;

use crate::{
    app::{
        Core,
        advance_job::{Advance, advance_job},
        give_up_job::give_up_job,
        order_tasks::Waiting,
        start_job::{Started, is_waiting, start_job},
        turn::{self, Turn},
    },
    loops::driver::{Activity, Outcome},
    status::{ApiError, Chain},
};

/// Most running jobs that one activation looks at; there is at most one per lane.
const JOBS: u32 = 10_000;

/// How often a job is tried that cannot be moved.
const TRIES: u32 = 5;

/// The scheduler of one replica.
#[derive(Debug)]
pub struct Scheduler {
    core: Core,
    turn: Turn,
    /// How often in a row each job could not be moved.
    stuck: BTreeMap<JobId, u32>,
    /// How far each job was looked at whose hosts are waited for.
    waiting: BTreeMap<JobId, Waiting>,
}

impl Scheduler {
    /// Of this replica.
    pub fn new(core: Core, replica: ReplicaId) -> Self {
        let turn = Turn::new(core.db.clone(), turn::SCHEDULER, replica);
        Self {
            core,
            turn,
            stuck: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    async fn start_lanes(&mut self) -> Result<bool, ApiError> {
        let mut tx = self.turn.read().await?;
        let lanes = tx.lanes_with_queued().await?;
        let mut open = Vec::with_capacity(lanes.len());
        for lane in lanes {
            if tx.running_in_lane(lane).await? >= self.core.rules.lane_capacity {
                continue;
            }
            // What waits costs no more than this look. What cannot be looked at is found again, and counted, where it would start.
            if !matches!(is_waiting(&self.core, &mut tx, lane).await, Ok(true)) {
                open.push(lane);
            }
        }
        drop(tx);
        let mut worked = false;
        for lane in open {
            let mut tx = self.turn.write().await?;
            match start_job(&self.core, &mut tx, lane).await {
                Ok(Started::Nothing | Started::NotYet) => {}
                Ok(Started::Running | Started::Refused) => {
                    tx.commit().await?;
                    worked = true;
                }
                Err(error) => {
                    drop(tx);
                    let head = self.turn.read().await?.lane_head(lane).await?;
                    worked |= self.tolerate("job.start", head.map(|job| job.id), error).await?;
                }
            }
        }
        Ok(worked)
    }

    async fn advance_jobs(&mut self) -> Result<bool, ApiError> {
        let jobs = self.turn.read().await?.jobs_in_motion(JOBS).await?;
        let mut worked = false;
        // A bound: jobs that ended another way leave their counts behind.
        if self.stuck.len() > JOBS as usize {
            self.stuck.clear();
        }
        let mut before = std::mem::take(&mut self.waiting);
        for job in jobs {
            // Of jobs that ended nothing is kept.
            let mut waiting = before.remove(&job.id).unwrap_or_default();
            let advanced = advance_job(&self.core, &self.turn, job.id, &mut waiting).await;
            self.waiting.insert(job.id, waiting);
            match advanced {
                Ok(moved) => {
                    self.stuck.remove(&job.id);
                    worked |= moved != Advance::Idle;
                }
                Err(error) => worked |= self.tolerate("job.advance", Some(job.id), error).await?,
            }
        }
        Ok(worked)
    }

    /// One job that cannot be moved must not hold up the others, nor its lane for ever: whatever the reason is, after some tries it
    /// is given up. Answers whether that was done. Only what concerns all jobs ends the activation: a store that is away or
    /// does not answer in time, or a turn that another replica has.
    async fn tolerate(
        &mut self,
        span: &'static str,
        job: Option<JobId>,
        error: ApiError,
    ) -> Result<bool, ApiError> {
        match error.reason() {
            Reason::StoreUnavailable => return Err(error),
            Reason::Conflict => {
                // Fails when the turn is lost. Otherwise a report or a call was faster: its commit, or the timer where another replica
                // made it, wakes this loop again.
                drop(self.turn.write().await?);
                return Ok(false);
            }
            _ => {}
        }
        tracing::error!(activity = span, error = %Chain(&error), "a job cannot be moved");
        let Some(job) = job else {
            return Ok(false);
        };
        let tries = self.stuck.entry(job).or_default();
        *tries += 1;
        if *tries < TRIES {
            return Ok(false);
        }
        self.stuck.remove(&job);
        let why = Chain(&error).to_string();
        match give_up_job(&self.core, &self.turn, job, &why).await {
            Ok(()) => Ok(true),
            Err(error) if error.reason() == Reason::StoreUnavailable => Err(error),
            Err(error) => {
                tracing::error!(activity = span, error = %Chain(&error), "a job cannot even be given up");
                Ok(false)
            }
        }
    }
}

impl Activity for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn period(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn wants(&self, change: &Change) -> bool {
        match change {
            Change::Job(_) | Change::Task { .. } | Change::Lane(_) | Change::Agent(_) => true,
            Change::Promotion(_)
            | Change::User(_)
            | Change::Target(_)
            | Change::Logs(_)
            | Change::Drift(_)
            | Change::Maintenance => false,
        }
    }

    async fn activate(&mut self) -> Result<Outcome, ApiError> {
        if !self.turn.hold(self.core.clock.now()).await? {
            return Ok(Outcome::Idle);
        }
        let result = async {
            let advanced = self.advance_jobs().await?;
            let started = self.start_lanes().await?;
            Ok::<_, ApiError>(advanced || started)
        };
        match result.await {
            Ok(true) => Ok(Outcome::More),
            Ok(false) => Ok(Outcome::Idle),
            Err(error) => {
                // It may be that another replica took over: ask before the next piece of work.
                self.turn.release();
                Err(error)
            }
        }
    }
}
