//! Followers: tasks that copy the output of containers into an attempt's log, one for each container.

use std::{collections::BTreeMap, sync::Arc};

use sealift_common::{name::ServiceName, observation::ContainerState};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout_at},
};

use super::LOG_DRAIN;
use crate::{host::Host, logs::AttemptLog, workshop::Shared};

/// Those of one attempt.
#[derive(Debug, Default)]
pub(super) struct Followers {
    tasks: JoinSet<()>,
    of: BTreeMap<String, AbortHandle>,
}

impl Followers {
    /// Follows a container that was found in this state, unless it is followed already or has ended and was followed before. What it
    /// said until now is copied, too.
    pub(super) fn follow<H: Host>(
        &mut self,
        shared: &Arc<Shared<H>>,
        log: &AttemptLog,
        (service, id): (&ServiceName, &str),
        state: ContainerState,
    ) {
        let said_all = match state {
            // It has said nothing yet.
            ContainerState::Created => true,
            ContainerState::Exited | ContainerState::Dead => self.of.contains_key(id),
            // An engine that was started again broke off what it sent.
            _ => self.of.get(id).is_some_and(|task| !task.is_finished()),
        };
        if said_all {
            return;
        }
        let (shared, log, service, followed) = (shared.clone(), log.clone(), service.clone(), id.to_owned());
        let task = self
            .tasks
            .spawn(async move { log.follow(&shared.host, &service, &followed).await });
        self.of.insert(id.to_owned(), task);
    }

    /// Gives those of containers that ended a moment to read their last lines.
    pub(super) async fn drain(&mut self) {
        let deadline = Instant::now() + LOG_DRAIN;
        while let Ok(Some(_)) = timeout_at(deadline, self.tasks.join_next()).await {}
    }

    /// Ends all.
    pub(super) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}
