//! Hooks: how each step about them is done, the same for all kinds of targets. A hook is a container of its own that can do less
//! than a service: no capabilities, no new privileges, no ports, nothing of the host, bounded memory, processes and output.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sealift_common::{
    any_manifest::Described,
    bounds,
    failure::{Failure, FailureCode},
    hook::{Direction, GRACE_MS, HookSpec, HookWhen},
    manifest::{Healthcheck, Logging, MountSpec, Resources, RestartPolicy, ServiceSpec, UpdateOrder},
    observation::ContainerState,
    order::Order,
};
use tokio::time::{Instant, sleep, timeout};

use super::{Done, LOG_DRAIN, attempt::Attempt, internal, patiently};
use crate::{
    host::{Host, HostError, Inspected, NewContainer},
    journal::{HookOutcome, HookRef, Record},
    kill, labels,
    logs::{AttemptLog, Tail},
    step::hooks::{HookStep, Present},
};

/// First and longest time between two looks at a hook.
const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL_MOST: Duration = Duration::from_millis(500);
/// What a hook may use of the host's memory and processes.
const MEMORY_BYTES: u64 = 1024 * 1024 * 1024;
const PIDS: u32 = 256;
/// What the engine keeps of a hook's output on its disk.
const KEPT_OUTPUT: [(&str, &str); 2] = [("max-size", "1m"), ("max-file", "2")];

/// An attempt as its hooks need it.
pub(super) trait HookAttempt<H: Host>: Send + Sync {
    /// What was ordered.
    type Manifest: Described + Send + Sync;
    /// What every attempt has.
    fn attempt(&self) -> &Attempt<H, Self::Manifest>;
    /// The same, to write down what was done.
    fn attempt_mut(&mut self) -> &mut Attempt<H, Self::Manifest>;
    /// The containers that are there.
    fn present(&mut self) -> &mut Present;
    /// A failure without what must not leave the host.
    fn cleared(&self, failure: Failure) -> Failure {
        failure
    }
    /// The container to make, with everything around it made.
    fn container(
        &self,
        spec: &HookSpec,
        hook: &HookRef,
    ) -> impl Future<Output = Result<NewContainer, Failure>> + Send;
    /// Takes away what was made around the container.
    fn tidy(&self) -> impl Future<Output = Result<(), HostError>> + Send;
}

/// Does one step and updates what is known.
pub(super) async fn perform<H: Host, A: HookAttempt<H>>(runner: &mut A, step: &HookStep) -> Done {
    match step {
        HookStep::Begin(hook) => begin(runner, hook).await,
        HookStep::Await(hook) => wait(runner, hook).await,
        HookStep::Remove(hook) => remove(runner, hook).await,
    }
}

fn spec_of<H: Host, A: HookAttempt<H>>(runner: &A, hook: &HookRef) -> Result<HookSpec, Failure> {
    let found = runner
        .attempt()
        .order
        .manifest
        .hooks()
        .iter()
        .find(|spec| spec.name == hook.hook);
    found
        .cloned()
        .ok_or_else(|| internal(format!("hook {} is not in the order", hook.hook)))
}

async fn begin<H: Host, A: HookAttempt<H>>(runner: &mut A, hook: &HookRef) -> Done {
    let spec = spec_of(runner, hook)?;
    let began = Record::HookBegan {
        at: runner.attempt().now(),
        hook: hook.clone(),
        when: spec.when,
    };
    kill::at("hook_journalled.before");
    runner.attempt_mut().write(began, Vec::new()).await?;
    kill::at("hook_journalled");
    let made = match runner.container(&spec, hook).await {
        Ok(container) => {
            let host = &runner.attempt().shared.host;
            patiently(runner.attempt().patience(), || host.create(&container))
                .await
                .map_err(Failure::from)
        }
        Err(failure) => Err(failure),
    };
    match made {
        Ok(id) => {
            kill::at("hook_created");
            runner.present().insert(hook.clone(), id);
            Ok(())
        }
        Err(failure) => end(runner, hook, Err(failure)).await,
    }
}

async fn wait<H: Host, A: HookAttempt<H>>(runner: &mut A, hook: &HookRef) -> Done {
    let spec = spec_of(runner, hook)?;
    let began = runner.attempt().state.last_run(hook).map(|run| run.began_at);
    // What it had before the agent was started again counts.
    let spent = began.and_then(|began| (runner.attempt().now() - began).to_std().ok());
    let limit = Duration::from_millis(spec.timeout_ms.into());
    let id = runner.present().get(hook).cloned().unwrap_or_default();
    let run = Run {
        host: &runner.attempt().shared.host,
        log: &runner.attempt().log,
        patience: runner.attempt().patience(),
        spec: &spec,
        id: &id,
    };
    let outcome = run.to_end(limit.saturating_sub(spent.unwrap_or_default())).await;
    end(runner, hook, outcome).await
}

/// Writes down how a hook ended. An engine that is away is none of the hook's doing.
async fn end<H: Host, A: HookAttempt<H>>(
    runner: &mut A,
    hook: &HookRef,
    outcome: Result<HookOutcome, Failure>,
) -> Done {
    let is_away = |failure: &Failure| match failure.code {
        FailureCode::EngineUnavailable => true,
        // The way back is not given up for one slow answer; its tries are counted.
        FailureCode::EngineTimeout => hook.direction == Direction::Forward,
        _ => false,
    };
    let mut outcome = match outcome {
        Ok(outcome) => outcome,
        Err(failure) if is_away(&failure) => return Err(failure.into()),
        Err(failure) => HookOutcome {
            exit_code: None,
            is_truncated: false,
            failure: Some(cannot_run(hook, failure)),
        },
    };
    outcome.failure = outcome.failure.map(|failure| runner.cleared(failure));
    let said = outcome
        .failure
        .as_ref()
        .map_or_else(|| format!("hook {} is done", hook.hook), ToString::to_string);
    runner.attempt().log.say(said);
    let ended = Record::HookEnded {
        at: runner.attempt().now(),
        hook: hook.clone(),
        outcome,
    };
    kill::at("hook_ended.before");
    runner.attempt_mut().write(ended, Vec::new()).await?;
    kill::at("hook_ended");
    Ok(())
}

fn cannot_run(hook: &HookRef, failure: Failure) -> Failure {
    if failure.code == FailureCode::HookFailed {
        return failure;
    }
    let summary = format!("hook {} cannot run: {}", hook.hook, failure.summary);
    Failure::new(FailureCode::HookFailed, summary).with_detail(failure.detail)
}

async fn remove<H: Host, A: HookAttempt<H>>(runner: &mut A, hook: &HookRef) -> Done {
    let id = runner.present().get(hook).cloned().unwrap_or_default();
    {
        let (host, patience) = (&runner.attempt().shared.host, runner.attempt().patience());
        patiently(patience, || host.remove(&id)).await?;
        runner.tidy().await?;
    }
    kill::at("hook_removed");
    runner.present().remove(hook);
    Ok(())
}

/// Removes whatever hooks of a project left behind, of whichever order.
pub(super) async fn sweep<H: Host, M>(host: &H, order: &Order<M>) -> Result<(), HostError> {
    let all = labels::of_hooks(order.target_id, &order.release.project);
    for left in host.list(&all).await? {
        host.remove(&left.id).await?;
    }
    for network in host.networks(&all).await? {
        host.remove_network(&network).await?;
    }
    Ok(())
}

/// One run of a hook whose container is there.
struct Run<'a, H> {
    host: &'a H,
    log: &'a AttemptLog,
    patience: Duration,
    spec: &'a HookSpec,
    id: &'a str,
}

impl<H: Host> Run<'_, H> {
    /// Starts it unless it was started before, and waits until it has ended, at most for `left`; then it is ended.
    async fn to_end(&self, left: Duration) -> Result<HookOutcome, Failure> {
        let deadline = Instant::now() + left;
        if self.look().await?.state == ContainerState::Created {
            patiently(self.patience, || self.host.start(self.id)).await?;
        }
        kill::at("hook_started");
        let tail = Mutex::new(Tail::default());
        let ended = {
            let mut follow = std::pin::pin!(self.log.follow_hook(self.host, &self.spec.name, self.id, &tail));
            let mut until = std::pin::pin!(self.until_ended(deadline));
            let (ended, is_followed) = tokio::select! {
                ended = &mut until => (ended, true),
                () = &mut follow => (until.await, false),
            };
            let ended = match ended? {
                Some(ended) => Ok(ended),
                None => Err(self.kill().await?),
            };
            if is_followed {
                // Its last lines may be on their way.
                let _ = timeout(LOG_DRAIN, follow).await;
            }
            ended
        };
        let tail = tail.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(self.outcome(&ended, &tail))
    }

    async fn look(&self) -> Result<Inspected, Failure> {
        let seen = patiently(self.patience, || self.host.inspect(self.id)).await?;
        seen.ok_or_else(|| {
            let summary = format!("the container of hook {} is gone", self.spec.name);
            Failure::new(FailureCode::HookFailed, summary)
        })
    }

    /// How it ended by itself; `None` when it did not before the deadline.
    async fn until_ended(&self, deadline: Instant) -> Result<Option<Inspected>, Failure> {
        let mut pause = POLL_FIRST;
        loop {
            let seen = self.look().await?;
            if matches!(seen.state, ContainerState::Exited | ContainerState::Dead) {
                return Ok(Some(seen));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(POLL_MOST);
        }
    }

    async fn kill(&self) -> Result<Inspected, Failure> {
        let grace = Duration::from_millis(GRACE_MS.into());
        patiently(self.patience, || self.host.stop(self.id, grace)).await?;
        self.look().await
    }

    /// `ended` is an error when it had to be ended.
    fn outcome(&self, ended: &Result<Inspected, Inspected>, tail: &Tail) -> HookOutcome {
        let (Ok(seen) | Err(seen)) = ended;
        let name = &self.spec.name;
        let memory = if seen.oom_killed { " (out of memory)" } else { "" };
        let failure = match ended {
            Err(_) => {
                let limit = Duration::from_millis(self.spec.timeout_ms.into());
                let summary = format!("hook {name} took longer than {limit:?} and was ended");
                Some(Failure::new(FailureCode::HookTimeout, summary))
            }
            Ok(seen) if seen.exit_code != 0 => {
                let summary = format!("hook {name} ended with code {}{memory}", seen.exit_code);
                Some(Failure::new(FailureCode::HookFailed, summary))
            }
            Ok(_) => None,
        };
        let lines: Vec<&str> = tail.lines.iter().map(String::as_str).collect();
        let said = lines.join("\n");
        // What it said last says most.
        let start = said.ceil_char_boundary(said.len().saturating_sub(bounds::TEXT_BYTES));
        HookOutcome {
            exit_code: i32::try_from(seen.exit_code).ok(),
            is_truncated: tail.is_truncated,
            failure: failure.map(|failure| failure.with_detail(&said[start..])),
        }
    }
}

/// What a hook of an order is told of where it runs, on top of what its author gave it.
pub(super) fn environment<M>(
    order: &Order<M>,
    spec: &HookSpec,
    hook: &HookRef,
    is_first: bool,
    sets: &Sets,
) -> BTreeMap<String, String> {
    let mut environment = spec.environment.clone();
    let told = [
        ("HOOK", spec.name.to_string()),
        ("WHEN", spec.when.to_string()),
        ("TENANT", order.tenant.to_string()),
        ("ENVIRONMENT", order.environment.to_string()),
        ("TARGET", order.target.to_string()),
        ("PROJECT", order.release.project.to_string()),
        ("RELEASE", order.release.number.to_string()),
        ("COMMIT", order.release.commit.clone()),
        ("ATTEMPT", order.attempt.to_string()),
        ("FIRST", is_first.to_string()),
    ];
    let switch = [
        ("DIRECTION", hook.direction.to_string()),
        ("TO", sets.to.join(" ")),
        ("FROM", sets.from.join(" ")),
    ];
    let switch = switch.into_iter().filter(|_| spec.when == HookWhen::Switch);
    let all = told.into_iter().chain(switch);
    environment.extend(all.map(|(name, value)| (format!("SEALIFT_{name}"), value)));
    environment
}

/// The containers that callers are sent to and from, as `service=identifier`.
#[derive(Debug, Default)]
pub(super) struct Sets {
    pub(super) to: Vec<String>,
    pub(super) from: Vec<String>,
}

/// A container as a switch hook is told of it: engines resolve the beginning of the identifier as a name.
pub(super) fn called(service: &sealift_common::name::ServiceName, id: &str) -> String {
    let short: String = id.chars().take(12).collect();
    format!("{service}={short}")
}

/// The container of a hook. It can do nothing that is not named here.
pub(super) fn confined(spec: &HookSpec, environment: BTreeMap<String, String>) -> ServiceSpec {
    let options = KEPT_OUTPUT.map(|(name, value)| (name.to_owned(), value.to_owned()));
    ServiceSpec {
        image: spec.image.clone(),
        command: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        environment,
        ports: Vec::new(),
        volumes: spec
            .volumes
            .iter()
            .map(|mount| MountSpec::Volume {
                volume: mount.volume.clone(),
                target: mount.target.clone(),
                read_only: mount.read_only,
            })
            .collect(),
        networks: BTreeMap::new(),
        labels: BTreeMap::new(),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        restart: RestartPolicy::No,
        // The image's own check is for the service that it was made for.
        healthcheck: Some(Healthcheck {
            test: vec!["NONE".to_owned()],
            interval_ms: None,
            timeout_ms: None,
            retries: None,
            start_period_ms: None,
        }),
        probe: None,
        read_only: false,
        tmpfs: BTreeMap::new(),
        cap_add: Vec::new(),
        cap_drop: vec!["ALL".to_owned()],
        security_opt: vec!["no-new-privileges".to_owned()],
        sysctls: BTreeMap::new(),
        ulimits: BTreeMap::new(),
        extra_hosts: Vec::new(),
        hostname: None,
        stop_signal: None,
        stop_grace_period_ms: GRACE_MS,
        init: false,
        logging: Some(Logging {
            driver: "json-file".to_owned(),
            options: options.into(),
        }),
        resources: Resources {
            milli_cpus: 0,
            memory_bytes: MEMORY_BYTES,
            pids: PIDS,
        },
        depends_on: BTreeMap::new(),
        update_order: UpdateOrder::default(),
    }
}
