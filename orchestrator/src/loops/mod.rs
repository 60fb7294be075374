//! Background loops: what is wanted is in the store, these bring it about.

pub mod catch_up;
pub mod driver;
pub mod health;
pub mod heartbeats;
pub mod lease_reaper;
pub mod maintenance;
pub mod reconcile;
pub mod remind;
pub mod scheduler;
pub mod supervisor;

use self::driver::Activity;
use crate::{app::Core, state::App};

/// Starts all of them but those of the sessions: the heartbeats' writer and the reminder. They end with `app.shutdown`.
pub fn start(app: &App, core: &Core) {
    drive(app, scheduler::Scheduler::new(core.clone(), app.replica));
    drive(app, lease_reaper::LeaseReaper::new(core.clone(), app.replica));
    drive(app, catch_up::CatchUp::new(core.clone(), app.replica));
    drive(app, reconcile::Reconcile::new(core.clone(), app.replica));
    let key = app.identity.keys.evidence.public();
    drive(app, maintenance::Maintenance::new(core.clone(), app.replica, key));
}

fn drive(app: &App, activity: impl Activity + 'static) {
    let (name, changes) = (activity.name(), app.db.changes());
    let (shutdown, health) = (app.shutdown.clone(), app.loops.clone());
    app.supervisor
        .spawn(name, driver::drive(activity, changes, shutdown, health));
}
