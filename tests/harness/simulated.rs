//! Hosts without an engine for whole programs: agents on fake engines that connect to a real orchestrator process, and a registry that
//! has every image anybody asks for. What a scenario proves about the orchestrator then needs nothing but this machine.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use sealift_agent::{
    agent::{self, AgentError, AgentOptions},
    config::Settings,
    connect::Finish,
    enrol,
    host::fake::{Behaviour, FakeHost},
    program::launcher::Launched,
};
use sealift_common::{digest::Digest, time::SystemClock};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::facts,
    real::{System, eventually},
};

/// Longest head of a request.
const HEAD_BYTES: usize = 16 * 1024;

/// Agents on fake engines in this process. Dropping them ends them without a word, as a host does whose power fails.
#[derive(Default)]
pub struct Agents {
    running: JoinSet<Result<Finish, AgentError>>,
}

impl Agents {
    /// Makes a target, enrols an agent for it and waits until it is online.
    pub async fn join(&mut self, system: &System, target: &str, host: FakeHost) -> Result<()> {
        system.sealift(&["target", "create", target]).await?;
        let token = system.sealift(&["target", "token", target]).await?;
        let state = system.folder().join("simulated").join(target);
        std::fs::create_dir_all(state.parent().context("a state folder has a parent")?)?;
        let endpoint = system.endpoint().parse()?;
        enrol::join(&state, &endpoint, &token.trim().parse()?, facts()).await?;
        let config = Settings {
            state_dir: Some(state),
            ..Settings::default()
        };
        // Each its own luck, spread evenly, and the same in every run.
        let luck = (self.running.len() as f64 * 0.618).fract();
        self.running.spawn(agent::run(AgentOptions {
            config: config.check()?,
            host,
            clock: Arc::new(SystemClock),
            dice: Arc::new(move || luck),
            launched: Launched::default(),
            hostname: "fake".to_owned(),
            notices: Arc::new(|_| {}),
            shutdown: CancellationToken::new(),
        }));
        eventually(&format!("the agent of {target} is online"), async || {
            let seen = system.json(&["target", "get", target]).await?;
            Ok((seen["agentStatus"] == "online").then_some(()))
        })
        .await
    }

    /// Fails when one of them has ended.
    pub fn all_run(&mut self) -> Result<()> {
        let ended = self.running.try_join_next();
        ensure!(ended.is_none(), "an agent ended: {ended:?}");
        Ok(())
    }
}

/// A registry on a loopback port whose images are all for `linux/amd64`; each name and tag is an image of its own.
pub struct Registry {
    address: SocketAddr,
    _served: JoinSet<()>,
}

impl Registry {
    /// Starts it; it ends when it is dropped.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let mut served = JoinSet::new();
        served.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move { drop(answer(stream).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            _served: served,
        })
    }

    /// The reference of an image.
    pub fn image(&self, tag: &str) -> String {
        format!("{}/shop/web:{tag}", self.address)
    }

    /// A fake engine that can pull these images, which run well.
    pub fn engine(&self, tags: &[&str]) -> FakeHost {
        let host = FakeHost::default();
        for tag in tags {
            let index = index(&format!("/v2/shop/web/manifests/{tag}"));
            host.publish(Digest::of(index.as_bytes()), Behaviour::Healthy);
        }
        host
    }
}

/// The manifest behind a path.
fn index(path: &str) -> String {
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{ "platform": { "os": "linux", "architecture": "amd64" } }],
        "annotations": { "path": path },
    })
    .to_string()
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split_whitespace().nth(1).unwrap_or_default();
    let body = index(path);
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
