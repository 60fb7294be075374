//! What stands in for the workshop below a session.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use sealift_agent::work::{StateError, Work};
use sealift_common::{
    id::{TargetId, TaskId},
    inventory::{AgentFacts, ClockFacts},
    observation::TargetObservation,
    order::Fence,
};
use sealift_proto::agent::v1::{Accepted, Report, report::Event};
use tokio::sync::watch;

/// Remembers what it was told.
pub struct Desk {
    pub reports: Mutex<VecDeque<Report>>,
    pub next: Mutex<u64>,
    pub tip: watch::Sender<u64>,
    pub facts: watch::Sender<AgentFacts>,
    pub proof: watch::Sender<bool>,
    pub measured: Mutex<Option<ClockFacts>>,
    pub told: Mutex<Vec<String>>,
}

impl Desk {
    pub fn new(pending: std::ops::Range<u64>) -> Arc<Self> {
        let next = pending.end;
        Arc::new(Self {
            reports: Mutex::new(pending.map(report).collect()),
            next: Mutex::new(next),
            tip: watch::Sender::new(next),
            facts: watch::Sender::new(AgentFacts::default()),
            proof: watch::Sender::new(false),
            measured: Mutex::default(),
            told: Mutex::default(),
        })
    }

    pub fn add(&self) {
        let mut next = self.next.lock().unwrap();
        self.reports.lock().unwrap().push_back(report(*next));
        *next += 1;
        self.tip.send_replace(*next);
    }

    pub fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    fn note(&self, what: String) {
        self.told.lock().unwrap().push(what);
    }
}

fn report(number: u64) -> Report {
    Report {
        number,
        task_id: task().to_string(),
        attempt: 1,
        time: None,
        event: Some(Event::Accepted(Accepted {})),
    }
}

pub fn task() -> TaskId {
    "018f0000-0000-7000-8000-000000000001".parse().unwrap()
}

impl Work for Desk {
    async fn offer(&self, task: TaskId, attempt: u32, _order: Vec<u8>) {
        self.note(format!("offer {task} {attempt}"));
    }
    async fn stop(&self, task: TaskId) {
        self.note(format!("stop {task}"));
    }
    async fn keep(&self, tasks: &[TaskId]) {
        self.note(format!("keep {}", tasks.len()));
    }
    async fn drop_tasks(&self, tasks: &[TaskId]) {
        self.note(format!("drop {}", tasks.len()));
    }
    fn next_report(&self) -> u64 {
        *self.next.lock().unwrap()
    }
    async fn pending_reports(&self, after: u64, most: usize) -> Result<Vec<Report>, StateError> {
        let reports = self.reports.lock().unwrap();
        Ok(reports
            .iter()
            .filter(|one| one.number > after)
            .take(most)
            .cloned()
            .collect())
    }
    async fn acknowledge(&self, number: u64) -> Result<(), StateError> {
        self.reports.lock().unwrap().retain(|one| one.number > number);
        Ok(())
    }
    async fn skip_reports_to(&self, number: u64) -> Result<(), StateError> {
        self.reports.lock().unwrap().clear();
        *self.next.lock().unwrap() = number + 1;
        Ok(())
    }
    fn lines_lost(&self, task: TaskId, attempt: u32) {
        self.note(format!("lost {task} {attempt}"));
    }
    fn report_tip(&self) -> watch::Receiver<u64> {
        self.tip.subscribe()
    }
    fn clock_measured(&self, measured: ClockFacts) {
        *self.measured.lock().unwrap() = Some(measured);
    }
    fn facts(&self) -> watch::Receiver<AgentFacts> {
        self.facts.subscribe()
    }
    fn wants_proof(&self) -> watch::Receiver<bool> {
        self.proof.subscribe()
    }
    fn fences(&self) -> Result<Vec<(TargetId, Fence)>, StateError> {
        Ok(Vec::new())
    }
    fn observe_anew(&self, untold: Vec<TargetObservation>) {
        self.note(format!("observe, {} untold", untold.len()));
    }
}
