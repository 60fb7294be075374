//! The standard health service: SERVING for every service and for the whole while the database answers and nobody asked the
//! orchestrator to go down.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{state::App, status::Chain};

/// How often the database is asked.
const PING_EVERY: Duration = Duration::from_secs(2);

/// What the health service says.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            reporter: HealthReporter::new(),
        }
    }
}

impl Health {
    /// The service to add to a server.
    pub fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// Says the same of every service and of the whole.
    async fn set(&self, names: &[&'static str], status: ServingStatus) {
        for name in names {
            self.reporter.set_service_status(*name, status).await;
        }
        self.reporter.set_service_status("", status).await;
    }

    /// Follows the database until `stop`; says NOT_SERVING then.
    pub async fn run(self, app: App, names: Vec<&'static str>, stop: CancellationToken) {
        let mut pings = tokio::time::interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = ServingStatus::Unknown;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = pings.tick() => {}
            }
            let status = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                pinged = app.db.ping() => match pinged {
                    Ok(()) => ServingStatus::Serving,
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "the database does not answer");
                        ServingStatus::NotServing
                    }
                },
            };
            if status != said {
                self.set(&names, status).await;
                said = status;
            }
        }
        self.set(&names, ServingStatus::NotServing).await;
    }
}
