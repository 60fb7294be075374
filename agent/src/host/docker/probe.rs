//! Probes that run a command in a container. An engine has no call to end such a command, so of a container whose last one did not
//! end in time no further one is begun before it did: probes that hang would otherwise fill the container with processes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::{
    exec::{StartExecOptions, StartExecResults},
    models::ExecConfig,
};
use futures::StreamExt as _;

use super::{DockerHost, errors, errors::Call, found};
use crate::host::HostError;

/// The commands that may still run: the engine's identifier of each by container. Never more than one of a container.
#[derive(Debug, Clone, Default)]
pub(super) struct Probes {
    begun: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Probes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, container: &str, command: &str) {
        self.lock().insert(container.to_owned(), command.to_owned());
    }

    fn of(&self, container: &str) -> Option<String> {
        self.lock().get(container).cloned()
    }

    /// It has ended, or its container is gone.
    pub(super) fn forget(&self, container: &str) {
        self.lock().remove(container);
    }
}

impl DockerHost {
    /// See [`crate::host::Host::exec`].
    pub(super) async fn probe(
        &self,
        id: &str,
        command: &[String],
        deadline: Duration,
    ) -> Result<i64, HostError> {
        const SUBJECT: &str = "run a probe";
        let work = async {
            if let Some(last) = self.probes.of(id) {
                let seen = found(self.docker.inspect_exec(&last).await)?;
                if seen.is_some_and(|seen| seen.running == Some(true)) {
                    return Ok(None);
                }
                self.probes.forget(id);
            }
            let config = ExecConfig {
                cmd: Some(command.to_vec()),
                attach_stdout: Some(true),
                attach_stderr: Some(true),
                ..Default::default()
            };
            let exec = self.docker.create_exec(id, config).await?;
            // From here on it may run, whether or not an answer is waited for.
            self.probes.note(id, &exec.id);
            let started = self.docker.start_exec(&exec.id, None::<StartExecOptions>).await?;
            if let StartExecResults::Attached { mut output, .. } = started {
                // The output is not kept, only waited for.
                while output.next().await.transpose()?.is_some() {}
            }
            let result = self.docker.inspect_exec(&exec.id).await?;
            self.probes.forget(id);
            Ok(Some(result.exit_code.unwrap_or(-1)))
        };
        let code = self.call(Call::Other, SUBJECT, deadline, work).await?;
        code.ok_or_else(|| errors::timeout(Call::Other, SUBJECT, deadline.as_secs()))
    }
}
