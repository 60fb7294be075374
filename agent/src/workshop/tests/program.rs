//! Exchanges of the agent's own program on the fake engine, with a launcher that only chooses.

mod mishaps;

use std::path::PathBuf;

use sealift_common::{
    agent_manifest::{AgentKind, AgentManifest},
    observation::ContainerState,
    order::TargetBinding,
    program::{PROGRAM_PATH, ProgramStatement, SERVICE, SIGNATURE_PATH},
};
use tokio::{sync::watch, time::Instant};

use super::*;
use crate::program::{
    Answers, Link, Program, UpdatePolicy,
    launcher::{Launched, own_version},
    marker::{Choice, Marker, Stand},
};

const PUBLISHER: [u8; 32] = [5; 32];

/// A host whose agent runs one program after another.
struct Host {
    engine: FakeHost,
    dir: tempfile::TempDir,
    clock: TestClock,
    agent: Agent,
    link: watch::Sender<Link>,
    hand_over: CancellationToken,
    own: PathBuf,
    settings: Settings,
}

/// What a process is started with.
#[derive(Default)]
struct Settings {
    policy: UpdatePolicy,
    reserve: u64,
    problem: Option<&'static str>,
}

impl Settings {
    fn trusting() -> Self {
        let policy = UpdatePolicy {
            publishers: vec![publisher().public()],
            ..UpdatePolicy::default()
        };
        Self {
            policy,
            ..Self::default()
        }
    }
}

impl Host {
    async fn start(publishers: Vec<sealift_common::keys::PublicKey>) -> Self {
        let (engine, dir, clock) = (engine(), tempfile::tempdir().unwrap(), samples::clock());
        let own = dir.path().join("packaged");
        std::fs::write(&own, "packaged").unwrap();
        let settings = Settings {
            policy: UpdatePolicy {
                publishers,
                ..UpdatePolicy::default()
            },
            ..Settings::default()
        };
        let (agent, link, hand_over) = Self::process(&engine, dir.path(), &clock, &settings, &own).await;
        Self {
            engine,
            dir,
            clock,
            agent,
            link,
            hand_over,
            own,
            settings,
        }
    }

    /// Another process with the same program, as after a crash.
    async fn again(self, settings: Settings) -> Self {
        self.agent.down().await;
        let (agent, link, hand_over) =
            Self::process(&self.engine, self.dir.path(), &self.clock, &settings, &self.own).await;
        Self {
            agent,
            link,
            hand_over,
            settings,
            ..self
        }
    }

    async fn process(
        engine: &FakeHost,
        dir: &Path,
        clock: &TestClock,
        settings: &Settings,
        own: &Path,
    ) -> (Agent, watch::Sender<Link>, CancellationToken) {
        let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (link, answers) = watch::channel(None);
        let hand_over = CancellationToken::new();
        let workshop = Workshop::start(WorkshopParts {
            host: engine.clone(),
            state_dir: dir.to_owned(),
            clock: Arc::new(clock.clone()),
            identity: AgentIdentity {
                bindings: Bindings::fixed(vec![samples::binding(), other_binding()]),
                ..identity()
            },
            compose: samples::no_compose(dir),
            policy: HostPolicy::default(),
            prune: PrunePolicy::default(),
            program: ProgramParts {
                policy: settings.policy.clone(),
                launched: Launched {
                    launcher: Some(dir.join("packaged")),
                    own: own.to_owned(),
                    is_supervised: own.ends_with(SERVICE),
                    problem: settings.problem.map(str::to_owned),
                    ..Launched::default()
                },
                link: answers,
                hand_over: hand_over.clone(),
                reserve: settings.reserve,
            },
            hostname: "host".to_owned(),
            shutdown: shutdown.clone(),
            tracker: tracker.clone(),
        })
        .await;
        let agent = Agent {
            workshop,
            shutdown,
            tracker,
        };
        (agent, link, hand_over)
    }

    fn files(&self) -> Files {
        Files::new(self.dir.path())
    }

    fn marker(&self) -> Marker {
        self.files().marker().unwrap()
    }

    /// The process ends; the launcher chooses the next one.
    async fn next_process(self) -> Self {
        self.agent.down().await;
        let files = Files::new(self.dir.path());
        let (marker, choice) = files.marker().unwrap().next_start(false);
        if marker != Marker::default() {
            files.set_marker(&marker).unwrap();
        }
        let own = match choice {
            Choice::Packaged => self.dir.path().join("packaged"),
            Choice::Current(current) => files.program(current.program),
            Choice::Try(trial) => files.program(trial.installed.program),
        };
        let settings = &self.settings;
        let (agent, link, hand_over) =
            Self::process(&self.engine, self.dir.path(), &self.clock, settings, &own).await;
        Self {
            agent,
            link,
            hand_over,
            own,
            ..self
        }
    }

    async fn offer(&self, order: &Order<AgentManifest>) {
        let bytes = sign_order(order, &samples::order_key()).unwrap();
        self.agent
            .workshop
            .offer(order.task_id, order.attempt, bytes)
            .await;
    }

    fn finished(&self, order: &Order<AgentManifest>) -> Option<Finished> {
        self.agent.reports().into_iter().rev().find_map(|report| {
            let ours = report.task_id == order.task_id.to_string();
            match report.event {
                Some(Event::Finished(finished)) if ours => Some(finished),
                _ => None,
            }
        })
    }

    /// The orchestrator has answered all the time for as long as it must, from now on.
    fn answered(&self) {
        let since = Instant::now();
        let last = since + Duration::from_hours(1);
        self.link.send_replace(Some(Answers { since, last }));
    }

    /// What the agent says is wrong with its own state.
    fn problems(&self) -> String {
        let facts = self.agent.workshop.facts().borrow().clone();
        let told = facts.degraded.iter();
        let ours = told.filter(|told| told.is(ConditionCode::AgentState));
        ours.map(|told| told.detail.clone())
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// What lies in the folder of programs.
    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join(crate::program::files::FOLDER)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    async fn ended(&self, order: &Order<AgentManifest>) -> Finished {
        loop {
            if let Some(finished) = self.finished(order) {
                return finished;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn publisher() -> SigningKey {
    SigningKey::from_seed(&PUBLISHER)
}

/// An image with a signed program; gives the program's digest.
fn publish(engine: &FakeHost, version: &str, signer: &SigningKey) -> Digest {
    let content = format!("program {version}");
    let program = Digest::of(content.as_bytes());
    let statement = ProgramStatement {
        program,
        bytes: content.len() as u64,
        version: own_version(),
        platform: Program::platform(),
    };
    let image = samples::image(version).digest;
    engine.publish_file(image, PROGRAM_PATH, content.as_bytes());
    engine.publish_file(image, SIGNATURE_PATH, &statement.sign(signer).unwrap());
    program
}

fn order(fence: u64, version: &str) -> Order<AgentManifest> {
    let manifest = AgentManifest {
        kind: AgentKind::AgentHost,
        services: [(SERVICE.parse().unwrap(), samples::image(version))].into(),
    };
    samples::with_manifest(fence, manifest)
}

#[tokio::test(start_paused = true)]
async fn r3_r15_a_program_is_exchanged_proven_and_seen() {
    let host = Host::start(vec![publisher().public()]).await;
    assert!(
        host.agent
            .workshop
            .facts()
            .borrow()
            .capabilities
            .contains(&"agent_host".to_owned())
    );
    let program = publish(&host.engine, "p2", &publisher());
    let order = order(1, "p2");
    host.offer(&order).await;
    host.hand_over.cancelled().await;
    assert_eq!(host.finished(&order).map(|finished| finished.result()), None);
    let host = host.next_process().await;
    assert_eq!(host.own, host.files().program(program));
    // Without an answer of the orchestrator it is not healthy, however long it is connected otherwise.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(host.finished(&order).map(|finished| finished.result()), None);
    host.answered();
    let finished = host.ended(&order).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    let key = AttemptKey {
        task: order.task_id,
        attempt: 1,
    };
    assert_eq!(host.marker().stand(key), Stand::Installed);
    let said = statement(&finished);
    let digest = Digest::of(&sign_order(&order, &samples::order_key()).unwrap());
    said.predicate.check_order(&order, digest).unwrap();
    said.check().unwrap();
    let observed = said.predicate.services[0].observed.as_ref().unwrap();
    assert_eq!(observed.image_id, program.to_string());

    let mut seen = host.agent.workshop.take_observations().unwrap();
    host.agent.workshop.shared.observer.request_all(Vec::new());
    let seen = loop {
        let seen = seen.recv().await.unwrap();
        if !seen.busy && !seen.projects.is_empty() {
            break seen;
        }
    };
    let project = seen.project(&order.release.project).unwrap();
    let [container] = &project.containers[..] else {
        panic!("{project:?}")
    };
    assert_eq!(container.digest, Some(samples::image("p2").digest));
    assert!(container.unchanged && container.state == ContainerState::Running);
    assert_eq!(container.fence, order.fence);
    assert_eq!(container.image_id, program.to_string());
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_a_program_that_is_not_answered_gives_itself_up() {
    let host = Host::start(vec![publisher().public()]).await;
    let program = publish(&host.engine, "p2", &publisher());
    let order = order(1, "p2");
    host.offer(&order).await;
    host.hand_over.cancelled().await;
    let host = host.next_process().await;
    assert_eq!(host.own, host.files().program(program));
    host.hand_over.cancelled().await;
    let host = host.next_process().await;
    assert_eq!(host.own, host.dir.path().join("packaged"));
    let finished = host.ended(&order).await;
    assert_eq!(finished.result(), Wire::Failed);
    assert_eq!(code(&finished), FailureCode::AgentUpdateNotHealthy.as_str());
    statement(&finished).check().unwrap();
    host.agent.idle().await;
    assert!(!host.files().program(program).exists(), "it is tidied away");
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_a_stop_brings_the_program_before_back() {
    let host = Host::start(vec![publisher().public()]).await;
    publish(&host.engine, "p2", &publisher());
    let order = order(1, "p2");
    host.offer(&order).await;
    host.hand_over.cancelled().await;
    let host = host.next_process().await;
    host.agent.workshop.stop(order.task_id).await;
    host.hand_over.cancelled().await;
    let host = host.next_process().await;
    assert_eq!(host.own, host.dir.path().join("packaged"));
    assert_eq!(host.ended(&order).await.result(), Wire::Stopped);
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r4_an_agent_that_trusts_nobody_refuses_and_others_refuse_strangers() {
    let host = Host::start(Vec::new()).await;
    assert!(
        !host
            .agent
            .workshop
            .facts()
            .borrow()
            .capabilities
            .contains(&"agent_host".to_owned())
    );
    publish(&host.engine, "p2", &publisher());
    let first = order(1, "p2");
    host.offer(&first).await;
    let refused = host.ended(&first).await;
    assert_eq!(refused.result(), Wire::Refused);
    assert_eq!(code(&refused), FailureCode::AgentUpdateRefused.as_str());
    host.agent.down().await;

    let host = Host::start(vec![publisher().public()]).await;
    publish(&host.engine, "p3", &SigningKey::from_seed(&[6; 32]));
    let second = order(2, "p3");
    host.offer(&second).await;
    let refused = host.ended(&second).await;
    assert_eq!(refused.result(), Wire::Failed);
    assert_eq!(code(&refused), FailureCode::AgentUpdateRefused.as_str());
    assert_eq!(host.marker(), Marker::default());
    let mut odd = order(3, "p2");
    odd.manifest.services = [("web".parse().unwrap(), samples::image("p2"))].into();
    odd = samples::with_manifest(3, odd.manifest);
    host.offer(&odd).await;
    assert_eq!(code(&host.ended(&odd).await), FailureCode::OrderRefused.as_str());
    host.agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn an_exchange_cuts_no_other_task_and_others_wait_for_it() {
    let host = Host::start(vec![publisher().public()]).await;
    publish(&host.engine, "p2", &publisher());
    // Under way: never healthy, so it takes its whole deadline.
    let slow = samples::order(1, &[("web", "slow")]);
    host.agent.offer(&slow).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let update = order_elsewhere(2, "p2");
    host.offer(&update).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!host.hand_over.is_cancelled(), "it waits");
    // What comes after the exchange waits for it.
    let later = samples::order(3, &[("web", "v1")]);
    host.agent.offer(&later).await;
    host.hand_over.cancelled().await;
    let ended = host.agent.finished(&slow).unwrap();
    assert_eq!(
        code(&ended),
        FailureCode::HealthDeadline.as_str(),
        "nothing was cut"
    );
    assert!(host.agent.finished(&later).is_none());

    let host = host.next_process().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        running(&host.engine).is_empty(),
        "nothing begins while a program is on trial"
    );
    host.answered();
    assert_eq!(host.ended(&update).await.result(), Wire::Succeeded);
    host.agent.idle().await;
    assert_eq!(host.agent.finished(&later).unwrap().result(), Wire::Succeeded);
    assert_eq!(running(&host.engine), set(&[("web", "v1")]));
    host.agent.down().await;
}

/// Another target of the same agent.
fn other_binding() -> TargetBinding {
    TargetBinding {
        environment: "agents".parse().unwrap(),
        target_id: samples::id(3),
        ..samples::binding()
    }
}

/// An order for another target of the same agent.
fn order_elsewhere(fence: u64, version: &str) -> Order<AgentManifest> {
    let other = other_binding();
    Order {
        environment: other.environment,
        target: other.target,
        target_id: other.target_id,
        ..order(fence, version)
    }
}
