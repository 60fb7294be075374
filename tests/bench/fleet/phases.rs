//! The measurements. Each gives findings: what Sealift does, what stands beside it in the same run, and the ratio of the two.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sealift_common::time::{Clock as _, SystemClock};
use sealift_e2e::real::Database;
use sealift_proto::v1::{ListEnvironmentsRequest, environment_service_client::EnvironmentServiceClient};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    Options, meter,
    stage::{Counts, Stage, dial},
};

/// Most of a server's memory, in KiB, with ten thousand agents: 1 GiB.
const MOST_MEMORY: f64 = 1_048_576.0;
/// Longest push or limit.
const LONGEST: Duration = Duration::from_mins(20);

/// One line of the table.
#[derive(Debug)]
pub struct Finding {
    goal: &'static str,
    what: String,
    ours: String,
    beside: String,
    ratio: f64,
    wanted: Wanted,
}

/// What a ratio should be.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    AtMost(f64),
    AtLeast(f64),
    /// Only told.
    Nothing,
}

impl Finding {
    /// Its cells.
    pub fn row(&self) -> [String; 7] {
        let (wanted, verdict) = match self.wanted {
            Wanted::AtMost(most) => (format!("<= {most}"), Some(self.ratio <= most)),
            Wanted::AtLeast(least) => (format!(">= {least}"), Some(self.ratio >= least)),
            Wanted::Nothing => (String::new(), None),
        };
        let verdict = match verdict {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        [
            self.goal.to_owned(),
            self.what.clone(),
            self.ours.clone(),
            self.beside.clone(),
            format!("{:.2}", self.ratio),
            wanted,
            verdict.to_owned(),
        ]
    }
}

fn seconds(value: f64) -> String {
    format!("{value:.2} s")
}

fn kib(value: f64) -> String {
    format!("{value:.1} KiB")
}

fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1_000.0)
}

/// Processor time that a process has used since it had used `before`.
fn used_since(pid: u32, before: Duration) -> Result<Duration> {
    Ok(meter::processor(pid)?.saturating_sub(before))
}

/// P4 and P5: a fleet that is connected and has nothing to do.
pub async fn idle(stage: &mut Stage, options: &Options) -> Result<Vec<Finding>> {
    let counts = [0, stage.sizes[1]];
    let agents = stage.sizes[1] as f64;
    stage.restart().await?;
    sleep(options.settle).await;
    let empty = meter::memory(stage.orchestrator()?)?;
    let took = stage.connect(counts).await?;
    eprintln!("{agents} agents connected in {:.1} s", took.as_secs_f64());
    sleep(options.settle).await;
    stage.latencies().await?;
    let pid = stage.orchestrator()?;
    let (first, commits) = (meter::memory(pid)?, stage.book.commits().await?);
    let (beats, used, begun) = (
        stage.counted().await?.beats,
        meter::processor(pid)?,
        Instant::now(),
    );
    sleep(options.idle).await;
    let (used, took) = (used_since(pid, used)?, begun.elapsed());
    let commits = stage.book.commits().await?.wrapping_sub(commits) & u64::from(u32::MAX);
    let beats = stage.counted().await?.beats - beats;
    let last = meter::memory(pid)?;
    stage.all_stayed().await?;
    eprintln!("orchestrator: {empty:?} empty, {first:?} connected, {last:?} after {took:?}");

    let mut beside = stage.beside().await?;
    let bare_pid = beside.child.pid()?;
    sleep(options.settle).await;
    let bare_empty = meter::memory(bare_pid)?;
    stage.connect_beside(&beside, counts).await?;
    sleep(options.settle).await;
    let (bare_first, bare_used, begun) = (
        meter::memory(bare_pid)?,
        meter::processor(bare_pid)?,
        Instant::now(),
    );
    sleep(options.idle.min(Duration::from_mins(1))).await;
    let bare_used = used_since(bare_pid, bare_used)?.as_secs_f64() / begun.elapsed().as_secs_f64();
    eprintln!("bare server: {bare_empty:?} empty, {bare_first:?} connected");
    // It only pushes when it is told to, and ends with this value.
    beside.child.ask(&json!({ "do": "where" }), LONGEST).await?;

    let each = first.pss.saturating_sub(empty.pss) as f64 / agents;
    let bare_each = bare_first.pss.saturating_sub(bare_empty.pss) as f64 / agents;
    let share = used.as_secs_f64() / took.as_secs_f64();
    Ok(vec![
        Finding {
            goal: "P4",
            what: "memory (PSS) for each connected agent".into(),
            ours: kib(each),
            beside: format!("{} bare stream", kib(bare_each)),
            ratio: each / bare_each,
            wanted: Wanted::AtMost(1.5),
        },
        Finding {
            goal: "P4",
            what: format!("memory (RSS) with {agents} agents"),
            ours: format!("{:.0} MiB", last.rss as f64 / 1_024.0),
            beside: "1024 MiB".into(),
            ratio: last.rss as f64 / MOST_MEMORY,
            wanted: Wanted::AtMost(1.0),
        },
        Finding {
            goal: "P4",
            what: format!("memory (PSS) after {:.0} s of heartbeats", took.as_secs_f64()),
            ours: format!("{:.0} MiB", last.pss as f64 / 1_024.0),
            beside: format!("{:.0} MiB before", first.pss as f64 / 1_024.0),
            ratio: last.pss as f64 / first.pss as f64,
            wanted: Wanted::AtMost(1.02),
        },
        Finding {
            goal: "P5",
            what: format!(
                "processor for {:.0} heartbeats a second",
                beats as f64 / took.as_secs_f64()
            ),
            ours: format!("{:.1} % of a core", share * 100.0),
            beside: format!("10 % of a core (bare stream {:.1} %)", bare_used * 100.0),
            ratio: share / 0.1,
            wanted: Wanted::AtMost(1.0),
        },
        Finding {
            goal: "P5",
            what: "commits for each heartbeat".into(),
            ours: format!("{commits} commits"),
            beside: format!("{beats} heartbeats"),
            ratio: commits as f64 / beats.max(1) as f64,
            // Some loops commit every few seconds whatever the size of the fleet.
            wanted: if stage.sizes[1] < 1_000 {
                Wanted::Nothing
            } else {
                Wanted::AtMost(0.1)
            },
        },
    ])
}

/// Half of the large fleet, with all of the small one in it.
fn half(stage: &Stage) -> Counts {
    let [small, large] = stage.sizes;
    [small, large / 2 - small]
}

fn percentile(sorted: &[u64], percent: usize) -> Result<u64> {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().context("nothing was received")
}

/// P6: from an order that is being made to the agent that has it, one at a time, while many others are connected.
pub async fn dispatch(stage: &mut Stage, options: &Options) -> Result<Vec<Finding>> {
    let counts = half(stage);
    let connected: usize = counts.iter().sum();
    stage.connect(counts).await?;
    let releases = [stage.release().await?, stage.release().await?];
    sleep(options.settle).await;
    stage.latencies().await?;
    let begun = Instant::now();
    let mut parts = [Duration::ZERO; 3];
    for turn in 0..options.dispatches {
        // Every target gets each release once before it would get the first again.
        let (target, round) = (turn % stage.sizes[0], turn / stage.sizes[0]);
        let (asked, called) = (SystemClock.now(), Instant::now());
        stage.promote(&releases[round % 2], 0, Some(target)).await?;
        let answered = called.elapsed();
        let ended = stage.succeeded(Duration::from_millis(5)).await?;
        let (started, finished) = (
            (ended.started - asked).to_std()?,
            (ended.finished - asked).to_std()?,
        );
        for (part, took) in parts.iter_mut().zip([answered, started, finished]) {
            *part += took;
        }
    }
    let every = begun.elapsed() / u32::try_from(options.dispatches)?;
    let ours = stage.latencies().await?;
    stage.all_stayed().await?;
    ensure!(
        ours.len() == options.dispatches,
        "{} orders were made, {} received",
        options.dispatches,
        ours.len()
    );
    let bytes = stage.counted().await?.order_bytes;

    let mut beside = stage.beside().await?;
    stage.connect_beside(&beside, counts).await?;
    sleep(options.settle).await;
    let command = json!({
        "do": "push", "count": options.dispatches, "bytes": bytes, "every_ms": u64::try_from(every.as_millis())?.clamp(1, 100),
    });
    beside.child.ask(&command, LONGEST).await?;
    sleep(Duration::from_secs(1)).await;
    let bare = stage.latencies().await?;
    ensure!(
        bare.len() == options.dispatches,
        "{} pushes were received",
        bare.len()
    );
    let mut findings = Vec::new();
    for (percent, wanted) in [(50, Wanted::Nothing), (99, Wanted::AtMost(3.0))] {
        let (ours, bare) = (percentile(&ours, percent)?, percentile(&bare, percent)?);
        findings.push(Finding {
            goal: "P6",
            what: format!("order made to order received, p{percent}, {connected} connected"),
            ours: millis(ours),
            beside: format!("{} bare push", millis(bare)),
            ratio: ours as f64 / bare as f64,
            wanted,
        });
    }
    let [answered, started, finished] =
        parts.map(|part| part.as_secs_f64() * 1_000.0 / options.dispatches as f64);
    eprintln!(
        "a job to one target: answered after {answered:.1} ms, started after {started:.1} ms, ended after {finished:.1} ms"
    );
    Ok(findings)
}

/// P8: all come back after the orchestrator was killed, while others call it.
pub async fn come_back(stage: &mut Stage) -> Result<Vec<Finding>> {
    let counts = half(stage);
    let connected: usize = counts.iter().sum();
    stage.connect(counts).await?;
    stage.restart().await?;
    let begun = Instant::now();
    let stop = CancellationToken::new();
    let mut calls = JoinSet::new();
    calls.spawn(call_until(stop.clone(), dial(&stage.system).await?));
    stage.connected(connected).await?;
    let took = begun.elapsed();
    stop.cancel();
    let mut asked = calls.join_next().await.context("a task of ours")???;
    asked.sort_unstable();
    stage.latencies().await?;
    Ok(vec![
        Finding {
            goal: "P8",
            what: format!("{connected} agents are back after a kill"),
            ours: seconds(took.as_secs_f64()),
            beside: "60 s".into(),
            ratio: took.as_secs_f64() / 60.0,
            wanted: Wanted::AtMost(1.0),
        },
        Finding {
            goal: "P8",
            what: "other calls meanwhile, p99".into(),
            ours: millis(percentile(&asked, 99)?),
            beside: "1000 ms".into(),
            ratio: percentile(&asked, 99)? as f64 / 1_000_000.0,
            wanted: Wanted::AtMost(1.0),
        },
    ])
}

/// Calls again and again; how long each call took, in microseconds.
async fn call_until(stop: CancellationToken, channel: Channel) -> Result<Vec<u64>> {
    let mut client = EnvironmentServiceClient::new(channel);
    let mut took = Vec::new();
    while !stop.is_cancelled() {
        let begun = Instant::now();
        client
            .list_environments(ListEnvironmentsRequest::default())
            .await?;
        took.push(u64::try_from(begun.elapsed().as_micros())?);
        sleep(Duration::from_millis(20)).await;
    }
    Ok(took)
}

/// What jobs to one environment took.
struct Rolled {
    /// Seconds for each task, from the request to the job's success.
    each: f64,
    /// Changes of tasks in one job.
    transitions: u64,
}

/// P3: one job to all agents of an environment, beside the storage alone; then the same ten times as large.
pub async fn rollout(stage: &mut Stage, options: &Options) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut both = Vec::new();
    for (group, tasks) in stage.sizes.into_iter().enumerate() {
        let mut counts = [0, 0];
        counts[group] = tasks;
        stage.connect(counts).await?;
        sleep(options.settle).await;
        let rolled = roll(stage, group, options.repeats).await?;
        let limit = storage_limit(stage, options.database, tasks, rolled.transitions).await?;
        let each_change = rolled.transitions as f64 / tasks as f64;
        for (name, wanted) in [
            ("batched", Wanted::AtLeast(0.5)),
            ("single", Wanted::Nothing),
            ("bulk", Wanted::Nothing),
        ] {
            let limit = limit[name].as_f64().context("a limit")? * each_change;
            findings.push(Finding {
                goal: "P3",
                what: format!("a task of {tasks}, {each_change:.1} changes each ({name})"),
                ours: format!("{:.3} ms", rolled.each * 1_000.0),
                beside: format!("{:.3} ms storage limit", limit * 1_000.0),
                ratio: limit / rolled.each,
                wanted,
            });
        }
        both.push(rolled.each);
    }
    if let [small, large] = both[..] {
        findings.push(Finding {
            goal: "P3",
            what: format!("a task of {} beside one of {}", stage.sizes[1], stage.sizes[0]),
            ours: format!("{:.3} ms", large * 1_000.0),
            beside: format!("{:.3} ms", small * 1_000.0),
            ratio: large / small,
            wanted: Wanted::AtMost(1.2),
        });
    }
    Ok(findings)
}

async fn roll(stage: &mut Stage, group: usize, repeats: usize) -> Result<Rolled> {
    let tasks = stage.sizes[group];
    let mut each = Vec::new();
    let mut transitions = 0;
    for _ in 0..repeats {
        let release = stage.release().await?;
        stage.latencies().await?;
        let (before, packets) = (stage.book.task_transitions().await?, stage.book.packets().await?);
        let used = meter::processor(stage.orchestrator()?)?;
        let (asked, begun) = (SystemClock.now(), Instant::now());
        stage.promote(&release, group, None).await?;
        let answered = begun.elapsed();
        let ended = stage.succeeded(Duration::from_millis(50)).await?;
        let used = used_since(stage.orchestrator()?, used)?;
        let took = (ended.finished - asked).to_std()?.as_secs_f64();
        transitions = stage.book.task_transitions().await? - before;
        let proven = stage.book.packets().await? - packets;
        ensure!(
            proven == tasks as u64,
            "{tasks} tasks succeeded with {proven} packets"
        );
        stage.all_stayed().await?;
        let latencies = stage.latencies().await?;
        ensure!(
            latencies.len() == tasks,
            "{tasks} tasks with {} orders",
            latencies.len()
        );
        let started = (ended.started - asked).to_std()?.as_secs_f64();
        eprintln!(
            "{tasks} tasks in {took:.2} s: answered after {:.2} s, started after {started:.2} s; {:.2} s of processor; order p50 {} p99 {}",
            answered.as_secs_f64(),
            used.as_secs_f64(),
            millis(percentile(&latencies, 50)?),
            millis(percentile(&latencies, 99)?),
        );
        each.push(took / tasks as f64);
    }
    each.sort_by(f64::total_cmp);
    let median = each.get(each.len() / 2).copied().context("no job was run")?;
    Ok(Rolled {
        each: median,
        transitions,
    })
}

/// What the storage alone takes for each of as many changes, by way.
async fn storage_limit(stage: &Stage, database: Database, tasks: usize, transitions: u64) -> Result<Value> {
    let folder: PathBuf = stage.system.folder().join(format!("limit-{tasks}"));
    let url = match database {
        Database::Sqlite => {
            std::fs::create_dir(&folder)?;
            format!("sqlite:{}", folder.display())
        }
        Database::Postgres => stage.system.database_url(),
    };
    let output = Command::new(std::env::current_exe()?)
        .args(["limit", &url, &tasks.to_string(), &transitions.to_string()])
        .kill_on_drop(true)
        .output();
    let output = timeout(LONGEST, output).await??;
    ensure!(
        output.status.success(),
        "the storage limit was not measured: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}
