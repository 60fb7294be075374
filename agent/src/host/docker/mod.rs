//! The Docker engine (20.10 / API 1.41 and later) and Podman's compatible socket, through bollard. The only module that knows
//! bollard. Engines differ in what they answer, so every field counts as optional.

pub mod auth;
mod contents;
mod errors;
mod events;
mod inspected;
mod lenient;
mod networks;
mod probe;
mod socket;
mod spec;
mod upkeep;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{
    Docker,
    auth::DockerCredentials,
    errors::Error,
    models::{ContainerUpdateBody, NetworkCreateRequest, VolumeCreateRequest},
    query_parameters as query,
};
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt};
use sealift_common::{
    bounds,
    evidence::EngineInfo,
    failure::{Failure, FailureCode},
    manifest::{PinnedImage, RestartPolicy},
};
use tokio::{sync::mpsc, time::timeout};

use self::{errors::Call, probe::Probes};
use crate::{
    causes::chain,
    host::{Host, HostError, HostEvent, Inspected, Listed, LocalImage, NewContainer, NewNetwork},
    labels::{self, Labels},
};

/// Deadlines of calls that only look.
const LOOK: Duration = Duration::from_secs(15);
/// Deadline of calls that change a little: policies, networks, volumes.
const CHANGE: Duration = Duration::from_secs(30);
/// Deadline of making a container: the engine may have to prepare a file system.
const CREATE: Duration = Duration::from_mins(1);
/// Deadline of starting a container.
const START: Duration = Duration::from_mins(1);
/// Deadline of stopping a container, on top of its grace period.
const STOP: Duration = Duration::from_secs(30);
/// Deadline of removing a container.
const REMOVE: Duration = Duration::from_mins(2);
/// How long a pull may go without a word before it counts as stuck.
const PULL_SILENCE: Duration = Duration::from_mins(2);

/// The engine behind one socket.
#[derive(Debug, Clone)]
pub struct DockerHost {
    docker: Docker,
    socket: String,
    credentials: Option<PathBuf>,
    probes: Probes,
}

impl DockerHost {
    /// The engine at `socket`: a path or `unix://…`. `credentials` is a docker `config.json`. Nothing is asked yet, and the socket
    /// does not need to be there: as long as it is not, calls fail with `ENGINE_UNAVAILABLE`.
    pub fn connect(socket: &str, credentials: Option<&Path>) -> Result<Self, HostError> {
        let path = socket.strip_prefix("unix://").unwrap_or(socket);
        if path.contains("://") {
            let summary = format!("the engine address {socket:?} is not a unix socket");
            return Err(HostError::new(FailureCode::EngineUnavailable, summary));
        }
        let docker = socket::client(Path::new(path))
            .map_err(|error| errors::unreachable(Call::Other, path, &error.to_string()))?
            .with_request_modifier(url_safe_credentials);
        Ok(Self {
            docker,
            socket: path.to_owned(),
            credentials: credentials.map(Path::to_owned),
            probes: Probes::default(),
        })
    }

    async fn call<T>(
        &self,
        call: Call,
        subject: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, HostError> {
        match timeout(deadline, work).await {
            Ok(result) => result.map_err(|error| self.error(call, subject, &error)),
            Err(_) => Err(errors::timeout(call, subject, deadline.as_secs())),
        }
    }

    fn error(&self, call: Call, subject: &str, error: &Error) -> HostError {
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                errors::engine(call, subject, *status_code, message)
            }
            Error::DockerStreamError { error } => errors::engine(call, subject, 200, error),
            Error::RequestTimeoutError => errors::timeout(call, subject, socket::LIMIT_SECONDS),
            Error::IOError { .. } | Error::HyperResponseError { .. } | Error::HyperLegacyError { .. } => {
                let text = format!("{}: {}", self.socket, chain(error));
                errors::unreachable(call, subject, &text)
            }
            other => errors::engine(call, subject, 0, &chain(other)),
        }
    }

    /// After a conflict of names: ours from an earlier try, or somebody else's.
    async fn same_name(&self, container: &NewContainer, message: &str) -> Result<String, HostError> {
        let there = self.inspect(&container.name).await?;
        let ours = |labels: &Labels| {
            [labels::TASK, labels::ATTEMPT, labels::FENCE, labels::SERVICE]
                .iter()
                .all(|key| labels.get(*key) == container.labels.get(*key))
        };
        match there {
            Some(there) if ours(&there.labels) => Ok(there.id),
            _ => Err(errors::engine(Call::Create, &container.name, 409, message)),
        }
    }
}

/// bollard writes the credentials header in the standard base64 alphabet; engines read the URL-safe one and silently go on
/// without credentials when they cannot.
fn url_safe_credentials(mut request: bollard::BollardRequest) -> bollard::BollardRequest {
    if let Some(value) = request.headers_mut().get_mut("X-Registry-Auth") {
        let text = value
            .to_str()
            .unwrap_or_default()
            .replace('+', "-")
            .replace('/', "_");
        if let Ok(safe) = http::HeaderValue::from_str(&text) {
            *value = safe;
        }
    }
    request
}

fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Takes the given statuses as done: gone, already so, still used.
fn tolerate(result: Result<(), Error>, statuses: &[u16]) -> Result<(), Error> {
    match result {
        Err(error) if status(&error).is_some_and(|code| statuses.contains(&code)) => Ok(()),
        other => other,
    }
}

/// Takes a container that is gone as done. An engine that does not know the call answers 404 as well, and that is not the same.
fn tolerate_gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::DockerResponseServerError {
            status_code: 404,
            message,
        }) if message.to_lowercase().contains("no such container") => Ok(()),
        other => other,
    }
}

fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

fn filters(labels: &Labels) -> HashMap<String, Vec<String>> {
    let list = labels
        .iter()
        .map(|(key, value)| {
            if value.is_empty() {
                key.clone()
            } else {
                format!("{key}={value}")
            }
        })
        .collect();
    HashMap::from([("label".to_owned(), list)])
}

impl Host for DockerHost {
    async fn engine(&self) -> Result<EngineInfo, HostError> {
        let version = self
            .call(Call::Other, "ask for the version", LOOK, self.docker.version())
            .await?;
        let names: Vec<String> = version
            .components
            .into_iter()
            .flatten()
            .map(|component| component.name.to_lowercase())
            .collect();
        let podman = names.iter().any(|name| name.contains("podman"));
        Ok(EngineInfo {
            name: if podman { "podman" } else { "docker" }.to_owned(),
            version: version.version.unwrap_or_default(),
            api: version.api_version.unwrap_or_default(),
            platform: platform(version.os, version.arch),
        })
    }

    async fn image(&self, reference: &str) -> Result<Option<LocalImage>, HostError> {
        let inspect = async { found(self.docker.inspect_image(reference).await) };
        let image = self.call(Call::Other, "look at an image", LOOK, inspect).await?;
        Ok(image.map(|image| LocalImage {
            id: image.id.unwrap_or_default(),
            digests: image
                .repo_digests
                .into_iter()
                .flatten()
                .filter_map(|text| text.rsplit_once('@')?.1.parse().ok())
                .collect(),
            platform: platform(image.os, image.architecture),
        }))
    }

    async fn pull(
        &self,
        image: &PinnedImage,
        progress: &mpsc::Sender<String>,
        deadline: Duration,
    ) -> Result<(), HostError> {
        let reference = image.pull_reference();
        let credentials = match &self.credentials {
            None => None,
            Some(file) => auth::find(file, &image.repository).await.map_err(|error| {
                let summary = format!("pull {reference}: {error}");
                HostError(Failure::new(FailureCode::RegistryDenied, summary).with_detail(chain(&error)))
            })?,
        };
        let credentials = credentials.map(|found| DockerCredentials {
            username: found.username,
            password: found.password,
            identitytoken: found.identity_token,
            serveraddress: Some(found.server),
            ..Default::default()
        });
        let options = query::CreateImageOptions {
            from_image: Some(image.repository.clone()),
            tag: Some(image.digest.to_string()),
            ..Default::default()
        };
        let mut stream = self.docker.create_image(Some(options), None, credentials);
        let work = async {
            loop {
                match timeout(PULL_SILENCE, stream.next()).await {
                    Err(_) => return Err(errors::timeout(Call::Pull, &reference, PULL_SILENCE.as_secs())),
                    Ok(None) => return Ok(()),
                    Ok(Some(Err(error))) => return Err(self.error(Call::Pull, &reference, &error)),
                    Ok(Some(Ok(info))) => {
                        if let Some(text) = info.status {
                            let line = info.id.map_or_else(|| text.clone(), |id| format!("{id}: {text}"));
                            // Nobody waits for progress.
                            let _ = progress.try_send(line);
                        }
                    }
                }
            }
        };
        timeout(deadline, work)
            .await
            .unwrap_or_else(|_| Err(errors::timeout(Call::Pull, &reference, deadline.as_secs())))
    }

    async fn ensure_network(&self, network: &NewNetwork) -> Result<(), HostError> {
        let look = async {
            found(
                self.docker
                    .inspect_network(&network.name, None::<query::InspectNetworkOptions>)
                    .await,
            )
        };
        let subject = format!("network {}", network.name);
        if self.call(Call::Other, &subject, LOOK, look).await?.is_some() {
            return Ok(());
        }
        let request = NetworkCreateRequest {
            name: network.name.clone(),
            driver: Some("bridge".to_owned()),
            internal: Some(network.internal),
            labels: Some(network.labels.clone().into_iter().collect()),
            ..Default::default()
        };
        let make = async { tolerate(self.docker.create_network(request).await.map(|_| ()), &[409]) };
        self.call(Call::Create, &subject, CHANGE, make).await
    }

    async fn networks(&self, labels: &Labels) -> Result<Vec<String>, HostError> {
        let options = query::ListNetworksOptions {
            filters: Some(filters(labels)),
        };
        let list = self.docker.list_networks(Some(options));
        let networks = self.call(Call::Other, "list networks", LOOK, list).await?;
        Ok(networks.into_iter().filter_map(|network| network.name).collect())
    }

    async fn remove_network(&self, name: &str) -> Result<(), HostError> {
        let remove = async { tolerate(self.docker.remove_network(name).await, &[403, 404, 409]) };
        self.call(Call::Other, &format!("remove network {name}"), CHANGE, remove)
            .await
    }

    async fn ensure_volume(&self, name: &str, labels: &Labels) -> Result<(), HostError> {
        // Making a volume that is there is not an error for the engine.
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels.clone().into_iter().collect()),
            ..Default::default()
        };
        let make = async { tolerate(self.docker.create_volume(request).await.map(|_| ()), &[409]) };
        self.call(Call::Create, &format!("volume {name}"), CHANGE, make)
            .await
    }

    async fn list(&self, labels: &Labels) -> Result<Vec<Listed>, HostError> {
        let options = query::ListContainersOptions {
            all: true,
            filters: Some(filters(labels)),
            ..Default::default()
        };
        let list = async {
            match self.docker.list_containers(Some(options)).await {
                Err(error) if lenient::is_unread(&error) => {
                    let filters = serde_json::json!(filters(labels));
                    Ok(lenient::list(Path::new(&self.socket), &filters).await?)
                }
                other => other,
            }
        };
        let containers = self.call(Call::Other, "list containers", LOOK, list).await?;
        Ok(containers.into_iter().filter_map(inspected::listed).collect())
    }

    async fn inspect(&self, id: &str) -> Result<Option<Inspected>, HostError> {
        let look = async {
            let seen = self
                .docker
                .inspect_container(id, None::<query::InspectContainerOptions>)
                .await;
            match seen {
                Err(error) if lenient::is_unread(&error) => {
                    Ok(lenient::inspect(Path::new(&self.socket), id).await?)
                }
                other => found(other),
            }
        };
        let response = self.call(Call::Other, "look at a container", LOOK, look).await?;
        Ok(response.and_then(inspected::inspected))
    }

    async fn create(&self, container: &NewContainer) -> Result<String, HostError> {
        let options = query::CreateContainerOptions {
            name: Some(container.name.clone()),
            ..Default::default()
        };
        let create = self.docker.create_container(Some(options), spec::body(container));
        let id = match timeout(CREATE, create).await {
            Ok(Ok(created)) => created.id,
            Ok(Err(Error::DockerResponseServerError {
                status_code: 409,
                message,
            })) => self.same_name(container, &message).await?,
            Ok(Err(error)) => return Err(self.error(Call::Create, &container.name, &error)),
            Err(_) => return Err(errors::timeout(Call::Create, &container.name, CREATE.as_secs())),
        };
        self.connect_networks(container, &id).await?;
        Ok(id)
    }

    async fn join_network(&self, id: &str, network: &str, aliases: &[String]) -> Result<(), HostError> {
        self.rejoin(id, network, aliases).await
    }

    async fn set_restart(&self, id: &str, policy: RestartPolicy) -> Result<(), HostError> {
        let body = ContainerUpdateBody {
            restart_policy: Some(spec::restart(policy)),
            ..Default::default()
        };
        let update = async {
            match tolerate_gone(self.docker.update_container(id, body).await) {
                // Podman has this call since 5.1. Before that a policy stays as the container was made with; what is stopped on
                // request stays stopped all the same, but for a restart of the host (docs/install.md).
                Err(error) if status(&error) == Some(404) => {
                    tracing::debug!(container = id, %error, "the engine has no call to change restart policies");
                    Ok(())
                }
                other => other,
            }
        };
        self.call(Call::Other, "set the restart policy", CHANGE, update)
            .await
    }

    async fn start(&self, id: &str) -> Result<(), HostError> {
        let start = async {
            let result = self
                .docker
                .start_container(id, None::<query::StartContainerOptions>)
                .await;
            tolerate(result, &[304])
        };
        self.call(Call::Start, "a container", START, start).await
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), HostError> {
        // Without a time of ours the engine takes the container's own grace period.
        let stop = async {
            let result = self
                .docker
                .stop_container(id, None::<query::StopContainerOptions>)
                .await;
            tolerate(result, &[304, 404])
        };
        self.call(Call::Other, "stop a container", grace + STOP, stop)
            .await
    }

    async fn remove(&self, id: &str) -> Result<(), HostError> {
        let options = query::RemoveContainerOptions {
            v: true,
            force: true,
            ..Default::default()
        };
        // 409: a removal is already under way.
        let remove = async { tolerate(self.docker.remove_container(id, Some(options)).await, &[404, 409]) };
        self.call(Call::Other, "remove a container", REMOVE, remove)
            .await?;
        self.probes.forget(id);
        Ok(())
    }

    async fn exec(&self, id: &str, command: &[String], deadline: Duration) -> Result<i64, HostError> {
        self.probe(id, command, deadline).await
    }

    async fn logs(
        &self,
        id: &str,
        since: DateTime<Utc>,
        lines: mpsc::Sender<String>,
    ) -> Result<(), HostError> {
        let options = query::LogsOptions {
            follow: true,
            stdout: true,
            stderr: true,
            since: i32::try_from(since.timestamp()).unwrap_or(i32::MAX),
            tail: "all".to_owned(),
            ..Default::default()
        };
        let mut stream = std::pin::pin!(self.docker.logs(id, Some(options)));
        let mut splitter = Lines::default();
        loop {
            let output = tokio::select! {
                () = lines.closed() => return Ok(()),
                output = next(&mut stream) => output,
            };
            let Some(output) = output else {
                break;
            };
            let output = output.map_err(|error| self.error(Call::Other, "read logs", &error))?;
            for line in splitter.push(&output.into_bytes()) {
                if lines.send(line).await.is_err() {
                    return Ok(());
                }
            }
        }
        if let Some(rest) = splitter.finish() {
            let _ = lines.send(rest).await;
        }
        Ok(())
    }

    async fn watch(&self, sender: mpsc::Sender<HostEvent>) -> Result<(), HostError> {
        let options = query::EventsOptions {
            filters: Some(events::filters()),
            ..Default::default()
        };
        let mut stream = std::pin::pin!(self.docker.events(Some(options)));
        loop {
            let message = tokio::select! {
                () = sender.closed() => return Ok(()),
                message = next(&mut stream) => message,
            };
            let Some(message) = message else {
                return Ok(());
            };
            let message = message.map_err(|error| self.error(Call::Other, "watch events", &error))?;
            if let Some(event) = events::read(message)
                && sender.send(event).await.is_err()
            {
                return Ok(());
            }
        }
    }
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    stream.next().await
}

/// Splits a stream of bytes into lines of bounded length.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            if *byte == b'\n' || self.rest.len() >= bounds::LOG_LINE_BYTES {
                lines.extend(self.finish());
            }
            if *byte != b'\n' {
                self.rest.push(*byte);
            }
        }
        lines
    }

    fn finish(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.rest);
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_suffix('\r').unwrap_or(&text);
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// `os/architecture`; empty when the engine does not tell both.
fn platform(os: Option<String>, architecture: Option<String>) -> String {
    match (os.unwrap_or_default(), architecture.unwrap_or_default()) {
        (os, architecture) if os.is_empty() || architecture.is_empty() => String::new(),
        (os, architecture) => format!("{os}/{architecture}"),
    }
}
