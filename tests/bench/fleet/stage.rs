//! Everything that a measurement needs: a real orchestrator, workers full of enrolled agents, the bare server, and the operator's calls.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use sealift_agent::identity::{Credential, connect_mtls};
use sealift_e2e::{
    real::{Database, System},
    simulated::Registry,
};
use sealift_proto::v1::{
    CreateJoinTokenRequest, CreatePromotionRequest, CreateTargetRequest, Promotion, Target,
    promotion_service_client::PromotionServiceClient, target::Kind,
    target_service_client::TargetServiceClient,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::{
    book::{Book, Ended},
    lines::{Child, number, text},
};

/// Processes that hold the agents.
const WORKERS: usize = 4;
/// Calls of the operator at the same time.
const CALLS: usize = 16;
/// Longest wait for an answer of a worker.
const PATIENCE: Duration = Duration::from_mins(10);
/// Longest time of a job, of a fleet that connects, of a call.
const LONGEST: Duration = Duration::from_mins(10);
/// The environments of the two groups of agents.
pub const ENVIRONMENTS: [&str; 2] = ["small", "large"];

/// How many agents of each group.
pub type Counts = [usize; 2];

/// The bare server.
pub struct Beside {
    /// Its process.
    pub child: Child,
    /// Where it listens.
    pub endpoint: String,
    root_pem: String,
}

/// The parts of a run.
pub struct Stage {
    /// The orchestrator.
    pub system: System,
    /// Its database.
    pub book: Book,
    /// Calls as an administrator.
    pub channel: Channel,
    /// How many agents there are.
    pub sizes: Counts,
    /// How often agents are heard, in seconds.
    pub beat_seconds: u64,
    workers: Vec<Child>,
    registry: Registry,
    releases: u32,
}

/// What all workers counted.
#[derive(Debug, Default)]
pub struct Counted {
    /// Sessions that are open.
    pub connected: usize,
    /// Heartbeats so far.
    pub beats: u64,
    /// Size of an order.
    pub order_bytes: u64,
    /// Sessions that ended unasked since the last [`Stage::latencies`].
    pub lost: u64,
    errors: Vec<String>,
}

impl Stage {
    /// Starts everything and enrols all agents; says how long that took.
    pub async fn set_up(database: Database, sizes: Counts, beat_seconds: u64) -> Result<Self> {
        let registry = Registry::start().await?;
        let system = System::start(database).await?;
        for (name, position) in ENVIRONMENTS.iter().zip(1..) {
            system.environment(name, position).await?;
        }
        let channel = dial(&system).await?;
        let mut stage = Self {
            book: Book::open(&system.database_url()).await?,
            channel,
            system,
            sizes,
            beat_seconds,
            workers: (0..WORKERS)
                .map(|_| Child::start("worker", &[]))
                .collect::<Result<_>>()?,
            registry,
            releases: 0,
        };
        let begun = Instant::now();
        for (group, size) in sizes.into_iter().enumerate() {
            stage.enrol(group, size).await?;
        }
        eprintln!(
            "{} agents enrolled in {:.0} s",
            sizes.iter().sum::<usize>(),
            begun.elapsed().as_secs_f64()
        );
        Ok(stage)
    }

    async fn enrol(&mut self, group: usize, size: usize) -> Result<()> {
        let parent = format!("environments/{}", ENVIRONMENTS[group]);
        let tokens: Vec<String> = stream::iter(0..size)
            .map(|index| make_target(self.channel.clone(), parent.clone(), index))
            .buffered(CALLS)
            .try_collect()
            .await?;
        let endpoint = self.system.endpoint();
        let shares = self.workers.iter_mut().enumerate().map(|(worker, child)| {
            let mine: Vec<&String> = tokens.iter().skip(worker).step_by(WORKERS).collect();
            let command = json!({ "do": "enrol", "group": group, "endpoint": endpoint, "tokens": mine });
            async move { child.ask(&command, PATIENCE).await }
        });
        try_join_all(shares).await?;
        Ok(())
    }

    /// Has so many agents of each group connected to the orchestrator, and none else; answers how long it took.
    pub async fn connect(&mut self, counts: Counts) -> Result<Duration> {
        let at = json!({ "endpoint": self.system.endpoint(), "root_pem": Value::Null });
        self.move_to(&at, counts).await
    }

    /// The same to the bare server.
    pub async fn connect_beside(&mut self, beside: &Beside, counts: Counts) -> Result<Duration> {
        let at = json!({ "endpoint": beside.endpoint, "root_pem": beside.root_pem });
        self.move_to(&at, counts).await
    }

    async fn move_to(&mut self, at: &Value, counts: Counts) -> Result<Duration> {
        let begun = Instant::now();
        // From one server to another through nowhere, so that nobody counts who is still at the first.
        for wanted in [[0, 0], counts] {
            let beat = self.beat_seconds;
            let commands = self.workers.iter_mut().enumerate().map(|(worker, child)| {
                let share = |count: usize| (count + WORKERS - 1 - worker) / WORKERS;
                let command = json!({
                    "do": "connect", "endpoint": at["endpoint"], "root_pem": at["root_pem"], "beat_seconds": beat,
                    "group0": share(wanted[0]), "group1": share(wanted[1]),
                });
                async move { child.ask(&command, PATIENCE).await }
            });
            try_join_all(commands).await?;
            self.connected(wanted.iter().sum()).await?;
        }
        Ok(begun.elapsed())
    }

    /// Waits until so many agents have their sessions.
    pub async fn connected(&mut self, agents: usize) -> Result<()> {
        let deadline = Instant::now() + LONGEST;
        loop {
            let counted = self.counted().await?;
            if counted.connected == agents {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{} of {agents} agents are connected; {:?}",
                counted.connected,
                counted.errors
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the workers counted.
    pub async fn counted(&mut self) -> Result<Counted> {
        let mut all = Counted::default();
        for worker in &mut self.workers {
            let counts = worker.ask(&json!({ "do": "counts" }), PATIENCE).await?;
            all.connected += usize::try_from(number(&counts, "connected")?)?;
            all.beats += number(&counts, "beats")?;
            all.order_bytes = all.order_bytes.max(number(&counts, "order_bytes")?);
            all.lost += number(&counts, "lost")?;
            let errors = counts["errors"].as_array().into_iter().flatten();
            all.errors
                .extend(errors.filter_map(|error| error.as_str().map(ToOwned::to_owned)));
        }
        Ok(all)
    }

    /// Takes the times from the making of an order to its receipt, in microseconds, sorted. Forgets who was lost.
    pub async fn latencies(&mut self) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for worker in &mut self.workers {
            let taken = worker.ask(&json!({ "do": "take" }), PATIENCE).await?;
            let latencies = taken["latencies"].as_array().context("latencies")?;
            all.extend(latencies.iter().filter_map(Value::as_u64));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Fails when a session ended unasked since the last [`Stage::latencies`].
    pub async fn all_stayed(&mut self) -> Result<()> {
        let counted = self.counted().await?;
        ensure!(
            counted.lost == 0,
            "{} sessions ended unasked: {:?}\n{}",
            counted.lost,
            counted.errors,
            tail(&self.system.orchestrator_log())
        );
        Ok(())
    }

    /// A release that runs nowhere yet.
    pub async fn release(&mut self) -> Result<String> {
        self.releases += 1;
        let image = self.registry.image(&format!("v{}", self.releases));
        let release = self.system.release(&image, self.releases).await?;
        let alias = format!("shop/web#{release}");
        let found = self.system.json(&["release", "get", &alias]).await?;
        Ok(text(&found, "name")?.to_owned())
    }

    /// Asks for a release in the environment of a group, on one target or on all.
    pub async fn promote(&self, release: &str, group: usize, target: Option<usize>) -> Result<Promotion> {
        let environment = format!("environments/{}", ENVIRONMENTS[group]);
        let request = CreatePromotionRequest {
            release: release.to_owned(),
            targets: target
                .map(|index| format!("{environment}/targets/{}", target_name(index)))
                .into_iter()
                .collect(),
            environment,
            ..CreatePromotionRequest::default()
        };
        let answer = PromotionServiceClient::new(self.channel.clone())
            .max_decoding_message_size(64 * 1024 * 1024)
            .create_promotion(request)
            .await?;
        let promotion = answer.into_inner().promotion.context("a promotion")?;
        ensure!(
            !promotion.job.is_empty(),
            "it was refused: {:?}",
            promotion.state()
        );
        Ok(promotion)
    }

    /// Waits for the end of the job that runs, which must succeed.
    pub async fn succeeded(&mut self, look: Duration) -> Result<Ended> {
        let deadline = Instant::now() + LONGEST;
        while self.book.is_busy().await? {
            ensure!(
                Instant::now() < deadline,
                "a job did not end\n{}",
                tail(&self.system.orchestrator_log())
            );
            sleep(look).await;
        }
        self.book.newest_job().await
    }

    /// Starts the bare server, which takes certificates of the orchestrator's CA.
    pub async fn beside(&self) -> Result<Beside> {
        let ca = self.system.folder().join("ada").join("ca.pem");
        let mut child = Child::start("bare", &[&ca])?;
        let at = child.ask(&json!({ "do": "where" }), PATIENCE).await?;
        Ok(Beside {
            endpoint: text(&at, "endpoint")?.to_owned(),
            root_pem: text(&at, "root_pem")?.to_owned(),
            child,
        })
    }

    /// Kills the orchestrator and starts it anew: its memory is that of one that has done nothing yet.
    pub async fn restart(&mut self) -> Result<()> {
        self.system.kill_orchestrator().await?;
        self.system.start_orchestrator().await
    }

    /// The orchestrator's process.
    pub fn orchestrator(&self) -> Result<u32> {
        self.system
            .orchestrator_pid()
            .context("the orchestrator does not run")
    }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn target_name(index: usize) -> String {
    format!("t{index:05}")
}

/// Makes a target; its join token.
async fn make_target(channel: Channel, parent: String, index: usize) -> Result<String> {
    let mut client = TargetServiceClient::new(channel);
    let request = CreateTargetRequest {
        request_id: String::new(),
        parent,
        target_id: target_name(index),
        target: Some(Target {
            kind: Kind::DockerHost.into(),
            ..Target::default()
        }),
    };
    let made = client.create_target(request).await?.into_inner().target;
    let request = CreateJoinTokenRequest {
        request_id: String::new(),
        name: made.context("a target")?.name,
        life_seconds: 3_600,
    };
    Ok(client.create_join_token(request).await?.into_inner().token)
}

/// A connection as the administrator `ada`.
pub async fn dial(system: &System) -> Result<Channel> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    let folder = system.folder().join("ada");
    let credential = Credential::new(read(&folder.join("ada.key"))?, read(&folder.join("ada.pem"))?)?;
    let endpoint = system.endpoint().parse()?;
    Ok(connect_mtls(&endpoint, &read(&folder.join("ca.pem"))?, &credential).await?)
}
