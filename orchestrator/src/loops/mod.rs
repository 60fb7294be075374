//! Background loops: what is wanted is in the store, these bring it about.

pub mod driver;
pub mod health;
pub mod heartbeats;
pub mod housekeeping;
pub mod lease_reaper;
pub mod scheduler;

use crate::{app::Core, loops::health::LoopHealth, state::App};

/// Starts scheduler, lease reaper and housekeeping. They end with `app.shutdown`.
pub fn start(app: &App, core: &Core) {
    let health: &LoopHealth = &app.loops;
    let spawn = |name: &'static str| tracing::debug!(activity = name, "loop starts");
    let scheduler = scheduler::Scheduler::new(core.clone(), app.replica);
    let reaper = lease_reaper::LeaseReaper::new(core.clone(), app.replica);
    let housekeeping = housekeeping::Housekeeping::new(core.clone());
    spawn("scheduler");
    app.tasks.spawn(driver::drive(
        scheduler,
        app.db.changes(),
        app.shutdown.clone(),
        health.clone(),
    ));
    spawn("lease_reaper");
    app.tasks.spawn(driver::drive(
        reaper,
        app.db.changes(),
        app.shutdown.clone(),
        health.clone(),
    ));
    spawn("housekeeping");
    app.tasks.spawn(driver::drive(
        housekeeping,
        app.db.changes(),
        app.shutdown.clone(),
        health.clone(),
    ));
}
