//! Health: whether new containers run well for as long as they must (R15). The engine's HEALTHCHECK, a declared probe, or
//! running without a restart. A container that ends or is called unhealthy fails at once.

use std::{net::IpAddr, time::Duration};

use sealift_common::{
    compose_manifest::Lifetime,
    failure::{Failure, FailureCode},
    manifest::Probe,
    name::ServiceName,
    observation::{ContainerHealth, ContainerState},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::host::{Host, HostError, Inspected};

/// First and longest time between two looks.
const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL_MOST: Duration = Duration::from_millis(250);
/// The longest while all are well, with and without probes of the agent's own: the engine remembers restarts and failed checks
/// until the next look.
const POLL_PROBED: Duration = Duration::from_millis(500);
const POLL_WELL: Duration = Duration::from_secs(1);
/// Time that a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// How long the answer of an exec probe counts: each costs the engine a process.
const EXEC_FRESH: Duration = Duration::from_secs(1);
/// How long the engine may be away before that counts.
const ENGINE_PATIENCE: Duration = Duration::from_secs(30);

/// A container to watch.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Its service.
    pub service: ServiceName,
    /// The engine's identifier.
    pub id: String,
    /// Whether it is meant to run for ever.
    pub lifetime: Lifetime,
    /// A check that the agent makes itself.
    pub probe: Option<Probe>,
    /// The network on which the agent reaches it.
    pub network: String,
    /// How often the engine had restarted it before the attempt: engines count for as long as a container is there.
    pub restarts_before: u64,
}

struct Track<'a> {
    watched: &'a Watched,
    seen: Option<Inspected>,
    well_since: Option<Instant>,
    probed: Option<(Instant, bool)>,
    last: &'static str,
}

/// Waits until all of `watched` were well for `min_healthy` without a break, and gives what was seen of each at the end. Fails
/// at `deadline`.
pub async fn await_healthy<H: Host>(
    host: &H,
    watched: &[Watched],
    min_healthy: Duration,
    deadline: Instant,
) -> Result<Vec<Inspected>, Failure> {
    let probed = watched.iter().any(|watched| watched.probe.is_some());
    let mut tracks: Vec<Track<'_>> = watched.iter().map(Track::new).collect();
    let mut pause = POLL_FIRST;
    let mut answered = Instant::now();
    loop {
        let looks = tracks.iter_mut().map(|track| track.look(host));
        let results = futures::future::join_all(looks).await;
        let now = Instant::now();
        for result in results {
            match result {
                Ok(()) => answered = now,
                Err(Trouble::Engine(error)) if error.is_transient() && answered + ENGINE_PATIENCE > now => {}
                Err(Trouble::Engine(error)) => return Err(error.into()),
                Err(Trouble::Workload(failure)) => return Err(failure),
            }
        }
        let since = tracks
            .iter()
            .map(|track| track.well_since)
            .collect::<Option<Vec<_>>>();
        let well_at = since.and_then(|since| since.into_iter().max().or(Some(now)));
        let left = well_at.map(|since| (since + min_healthy).saturating_duration_since(now));
        if left == Some(Duration::ZERO) {
            return Ok(tracks.into_iter().filter_map(|track| track.seen).collect());
        }
        if now >= deadline {
            return Err(too_late(&tracks));
        }
        if left.is_some() && !probed {
            pause = POLL_WELL;
        }
        let wait = left.map_or(pause, |left| left.min(pause));
        sleep(
            wait.min(deadline.saturating_duration_since(now))
                .max(Duration::from_millis(1)),
        )
        .await;
        let most = if well_at.is_some() { POLL_PROBED } else { POLL_MOST };
        pause = (pause * 2).min(most);
    }
}

fn too_late(tracks: &[Track<'_>]) -> Failure {
    let slow: Vec<String> = tracks
        .iter()
        .filter(|track| track.well_since.is_none())
        .map(|track| format!("{} ({})", track.watched.service, track.last))
        .collect();
    let summary = if slow.is_empty() {
        "the services were not healthy for long enough before the deadline".to_owned()
    } else {
        format!("not healthy before the deadline: {}", slow.join(", "))
    };
    Failure::new(FailureCode::HealthDeadline, summary)
}

enum Trouble {
    Engine(HostError),
    Workload(Failure),
}

impl<'a> Track<'a> {
    fn new(watched: &'a Watched) -> Self {
        Self {
            watched,
            seen: None,
            well_since: None,
            probed: None,
            last: "not seen yet",
        }
    }

    async fn look<H: Host>(&mut self, host: &H) -> Result<(), Trouble> {
        let seen = match host.inspect(&self.watched.id).await {
            Ok(Some(seen)) => seen,
            Ok(None) => {
                let summary = format!("the container of service {} is gone", self.watched.service);
                return Err(Trouble::Workload(Failure::new(
                    FailureCode::WorkloadExited,
                    summary,
                )));
            }
            Err(error) => {
                // Nobody knows what happens meanwhile.
                self.well_since = None;
                self.last = "the engine does not answer";
                return Err(Trouble::Engine(error));
            }
        };
        let well = if self.may_have_ended(&seen) {
            self.has_ended(&seen).map_err(Trouble::Workload)?
        } else {
            self.check_run(&seen).map_err(Trouble::Workload)?;
            self.is_well(host, &seen).await.map_err(Trouble::Workload)?
        };
        self.seen = Some(seen);
        if well {
            self.well_since.get_or_insert_with(Instant::now);
        } else {
            self.well_since = None;
        }
        Ok(())
    }

    /// Whether its end says more about it than its health.
    fn may_have_ended(&self, seen: &Inspected) -> bool {
        match self.watched.lifetime {
            Lifetime::Lasting => false,
            Lifetime::MayEnd => seen.state == ContainerState::Exited && seen.exit_code == 0,
            Lifetime::MustEnd => true,
        }
    }

    /// Whether it has ended well; an engine may start it again until it does.
    fn has_ended(&mut self, seen: &Inspected) -> Result<bool, Failure> {
        self.last = "has not ended yet";
        let service = &self.watched.service;
        let memory = if seen.oom_killed { " (out of memory)" } else { "" };
        match seen.state {
            ContainerState::Exited if seen.exit_code == 0 => Ok(true),
            ContainerState::Exited | ContainerState::Dead => Err(Failure::new(
                FailureCode::WorkloadExited,
                format!(
                    "service {service} has to end with code 0 and ended with {}{memory}",
                    seen.exit_code
                ),
            )),
            _ => Ok(false),
        }
    }

    fn check_run(&self, seen: &Inspected) -> Result<(), Failure> {
        let service = &self.watched.service;
        let ended = |what: String| Err(Failure::new(FailureCode::WorkloadExited, what));
        let memory = if seen.oom_killed { " (out of memory)" } else { "" };
        match seen.state {
            ContainerState::Exited
            | ContainerState::Dead
            | ContainerState::Restarting
            | ContainerState::Removing => {
                let code = seen.exit_code;
                return ended(format!("service {service} exited with code {code}{memory}"));
            }
            ContainerState::Created => return ended(format!("service {service} was never started")),
            ContainerState::Running | ContainerState::Paused | ContainerState::Unknown => {}
        }
        let before = self.seen.as_ref();
        let other_run = before.is_some_and(|before| before.started_at != seen.started_at);
        if other_run || restarts_since(self.watched.restarts_before, seen.restart_count) > 0 {
            return ended(format!("service {service} ended and was started again{memory}"));
        }
        Ok(())
    }

    async fn is_well<H: Host>(&mut self, host: &H, seen: &Inspected) -> Result<bool, Failure> {
        if seen.state != ContainerState::Running {
            self.last = seen.state.as_str();
            return Ok(false);
        }
        if seen.health == ContainerHealth::Unhealthy {
            let summary = format!("service {} is unhealthy", self.watched.service);
            return Err(Failure::new(FailureCode::Unhealthy, summary).with_detail(&seen.health_output));
        }
        if let Some(probe) = &self.watched.probe {
            let well = self.probe(host, probe, seen).await;
            self.last = if well { "probe passes" } else { "probe fails" };
            return Ok(well);
        }
        self.last = seen.health.as_str();
        Ok(match seen.health {
            ContainerHealth::None => true,
            ContainerHealth::Healthy => seen.failing_streak == 0,
            ContainerHealth::Starting | ContainerHealth::Unhealthy => false,
        })
    }

    async fn probe<H: Host>(&mut self, host: &H, probe: &Probe, seen: &Inspected) -> bool {
        let address = seen
            .addresses
            .get(&self.watched.network)
            .or_else(|| seen.addresses.values().next())
            .copied();
        match probe {
            Probe::Tcp { port } => match address {
                Some(address) => connect(address, *port).await.is_some(),
                None => false,
            },
            Probe::Http { port, path } => match address {
                Some(address) => http_get(address, *port, path).await,
                None => false,
            },
            Probe::Exec { command } => {
                if let Some((at, well)) = self.probed
                    && at.elapsed() < EXEC_FRESH
                {
                    return well;
                }
                let result = host.exec(&self.watched.id, command, PROBE_DEADLINE).await;
                let well = matches!(result, Ok(0));
                self.probed = Some((Instant::now(), well));
                well
            }
        }
    }
}

/// How often the engine restarted a container since it had done so `before` times. It counts from 0 again when somebody starts it.
const fn restarts_since(before: u64, now: u64) -> u64 {
    if now < before { now } else { now - before }
}

async fn connect(address: IpAddr, port: u16) -> Option<TcpStream> {
    timeout(PROBE_DEADLINE, TcpStream::connect((address, port)))
        .await
        .ok()?
        .ok()
}

/// One GET. Only the status line matters, so this asks for a closed connection and reads no more than that.
async fn http_get(address: IpAddr, port: u16, path: &str) -> bool {
    if path.chars().any(|c| c.is_control() || c == ' ') {
        return false;
    }
    let exchange = async {
        let mut stream = connect(address, port).await?;
        let host = match address {
            IpAddr::V4(address) => format!("{address}:{port}"),
            IpAddr::V6(address) => format!("[{address}]:{port}"),
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sealift-agent\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut line = [0; 12];
        stream.read_exact(&mut line).await.ok()?;
        Some(line)
    };
    match timeout(PROBE_DEADLINE, exchange).await {
        Ok(Some(line)) => is_success(&line),
        _ => false,
    }
}

/// Whether `HTTP/1.x nnn` has a status of 200 to 399.
fn is_success(line: &[u8; 12]) -> bool {
    line.starts_with(b"HTTP/1.")
        && std::str::from_utf8(&line[9..])
            .ok()
            .and_then(|code| code.parse::<u16>().ok())
            .is_some_and(|code| (200..400).contains(&code))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        host::{NewContainer, fake::FakeHost},
        labels::Labels,
        samples,
    };

    #[test]
    fn restarts_are_counted_from_the_attempt_on() {
        for (before, now, since) in [(0, 0, 0), (0, 1, 1), (2, 2, 0), (2, 3, 1), (2, 0, 0), (2, 1, 1)] {
            assert_eq!(restarts_since(before, now), since, "{before} {now}");
        }
    }

    #[test]
    fn only_200_to_399_is_success() {
        for (line, well) in [
            (b"HTTP/1.1 200", true),
            (b"HTTP/1.0 399", true),
            (b"HTTP/1.1 400", false),
            (b"HTTP/1.1 503", false),
            (b"HTTP/1.1 2x0", false),
            (b"SSH-2.0-Open", false),
        ] {
            assert_eq!(is_success(line), well);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn r15_restarts_from_before_the_attempt_are_no_failure_and_later_ones_are() {
        let (host, id) = running_container().await;
        host.tamper(&id, |container| container.restarts = 1);
        let watched = |restarts_before| Watched {
            service: "db".parse().unwrap(),
            id: id.clone(),
            lifetime: Lifetime::Lasting,
            probe: None,
            network: String::new(),
            restarts_before,
        };
        let time = Duration::from_millis(500);
        let deadline = Instant::now() + Duration::from_secs(5);
        let known = await_healthy(&host, &[watched(1)], time, deadline).await;
        assert!(known.is_ok(), "{known:?}");
        let made_in_the_attempt = await_healthy(&host, &[watched(0)], time, deadline).await;
        assert_eq!(made_in_the_attempt.unwrap_err().code, FailureCode::WorkloadExited);
        host.tamper(&id, |container| container.restarts = 2);
        let again = await_healthy(&host, &[watched(1)], time, deadline).await;
        assert_eq!(again.unwrap_err().code, FailureCode::WorkloadExited);
    }

    async fn running_container() -> (FakeHost, String) {
        let host = FakeHost::default();
        let container = NewContainer {
            name: "db".to_owned(),
            service: "db".parse().unwrap(),
            spec: samples::service(samples::image("v1")),
            labels: Labels::new(),
            networks: Vec::new(),
            volumes: BTreeMap::new(),
        };
        let id = host.create(&container).await.unwrap();
        host.start(&id).await.unwrap();
        (host, id)
    }

    #[tokio::test]
    async fn an_http_probe_reads_the_status_and_nothing_else_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            for answer in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 500 Oh\r\n\r\n", ""] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let ask = async {
            let mut said = Vec::new();
            for _ in 0..3 {
                said.push(http_get(address.ip(), address.port(), "/healthz").await);
            }
            said
        };
        let ((), said) = tokio::join!(serve, ask);
        assert_eq!(said, [true, false, false]);
        assert!(!http_get(address.ip(), address.port(), "/a b").await);
    }
}
