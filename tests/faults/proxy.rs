//! What stands between two programs and does to their bytes what networks and broken peers do: holds them back in one direction or
//! both, breaks connections off, answers in a peer's place, cuts, slows and changes answers.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// Where the other side is.
#[derive(Debug, Clone)]
pub enum Peer {
    /// On this machine's loopback.
    Tcp(SocketAddr),
    /// At a socket's path.
    Unix(PathBuf),
}

/// What happens to a request, or to its answer.
#[derive(Debug, Clone, Copy)]
pub enum Deed {
    /// It is answered with a status in the peer's place.
    Status(u16),
    /// The answer begins well and ends in the middle of its JSON.
    HalfJson,
    /// The answer is 200 and then says in its stream that it failed.
    ErrorLine,
    /// It is done, but the answer ends after so many bytes.
    Cut(usize),
    /// It is done, but a byte of the answer's body is another.
    Flip,
    /// It is never answered.
    Silence,
    /// It is done, but the answer comes with so many bytes a second.
    Slow(usize),
}

/// Requests that begin with a method and have a text in their first line, the next so many times.
#[derive(Debug, Clone)]
struct Rule {
    method: &'static str,
    has: &'static str,
    left: u32,
    deed: Deed,
}

/// What is held back. Bytes wait as they would for a retransmission; nothing of them is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// From the client.
    pub up: bool,
    /// To the client.
    pub down: bool,
}

#[derive(Default)]
struct Plan {
    rules: Vec<Rule>,
    delay: Duration,
    done: u32,
}

struct Shared {
    peer: Peer,
    plan: Mutex<Plan>,
    held: watch::Sender<Held>,
    /// Counts up when all connections are to break off.
    generation: watch::Sender<u64>,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be done to a request that begins in these bytes.
    fn deed(&self, bytes: &[u8]) -> Option<Deed> {
        let end = bytes.iter().position(|byte| *byte == b'\r').unwrap_or(0);
        let line = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let mut plan = self.plan();
        let rule = plan
            .rules
            .iter_mut()
            .find(|rule| rule.left > 0 && line.starts_with(rule.method) && line.contains(rule.has))?;
        rule.left -= 1;
        let deed = rule.deed;
        plan.done += 1;
        Some(deed)
    }
}

/// A running proxy. Ends with this value.
pub struct Proxy {
    shared: Arc<Shared>,
    /// Where clients reach it.
    pub port: u16,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on loopback.
    pub async fn tcp(peer: Peer) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Self::shared(peer);
        let mut tasks = JoinSet::new();
        let server = shared.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(server.clone(), Stream::Tcp(stream)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            shared,
            port,
            _tasks: tasks,
        })
    }

    /// Listens at a path.
    pub fn unix(path: &Path, peer: Peer) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        let shared = Self::shared(peer);
        let mut tasks = JoinSet::new();
        let server = shared.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(server.clone(), Stream::Unix(stream)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            shared,
            port: 0,
            _tasks: tasks,
        })
    }

    fn shared(peer: Peer) -> Arc<Shared> {
        Arc::new(Shared {
            peer,
            plan: Mutex::default(),
            held: watch::Sender::new(Held::default()),
            generation: watch::Sender::new(0),
        })
    }

    /// Does something to the next `times` requests of this method whose first line has `has` in it.
    pub fn next(&self, times: u32, method: &'static str, has: &'static str, deed: Deed) {
        let mut plan = self.shared.plan();
        plan.rules.retain(|rule| rule.left > 0);
        plan.rules.push(Rule {
            method,
            has,
            left: times,
            deed,
        });
    }

    /// From now on nothing is done to requests any more.
    pub fn relent(&self) {
        self.shared.plan().rules.clear();
    }

    /// How many requests something was done to.
    pub fn done(&self) -> u32 {
        self.shared.plan().done
    }

    /// Holds bytes back, or lets those that were held go.
    pub fn hold(&self, held: Held) {
        self.shared.held.send_replace(held);
    }

    /// Lets every piece arrive so much later.
    pub fn delay(&self, by: Duration) {
        self.shared.plan().delay = by;
    }

    /// Breaks all connections off.
    pub fn reset(&self) {
        self.shared.generation.send_modify(|number| *number += 1);
    }
}

async fn serve(shared: Arc<Shared>, client: Stream) {
    let mut generation = shared.generation.subscribe();
    generation.mark_unchanged();
    let upstream = match &shared.peer {
        Peer::Tcp(address) => TcpStream::connect(address).await.map(Stream::Tcp),
        Peer::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
    };
    let Ok(upstream) = upstream else {
        return;
    };
    tokio::select! {
        _ = generation.changed() => {}
        // Whatever ends it: both peers see a connection that ended.
        _ = relay(&shared, client, upstream) => {}
    }
}

/// What is done to the answers of one connection.
#[derive(Default)]
struct Answers {
    deed: Option<Deed>,
    /// Bytes that were passed on since the deed.
    passed: usize,
    in_body: bool,
}

async fn relay(shared: &Shared, client: Stream, upstream: Stream) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_peer, mut to_peer) = tokio::io::split(upstream);
    let mut held = shared.held.subscribe();
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut answers = Answers::default();
    let mut open = true;
    loop {
        let now = *held.borrow_and_update();
        tokio::select! {
            changed = held.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            read = from_client.read(&mut up), if open && !now.up => {
                let count = read?;
                if count == 0 {
                    open = false;
                    to_peer.shutdown().await?;
                    continue;
                }
                let bytes = up.get(..count).unwrap_or_default();
                match shared.deed(bytes) {
                    Some(Deed::Silence) => return std::future::pending().await,
                    Some(deed @ (Deed::Status(_) | Deed::HalfJson | Deed::ErrorLine)) => {
                        to_client.write_all(&instead(deed)).await?;
                        return to_client.shutdown().await;
                    }
                    Some(deed) => answers = Answers { deed: Some(deed), ..Answers::default() },
                    None => {}
                }
                late(shared).await;
                to_peer.write_all(bytes).await?;
            }
            read = from_peer.read(&mut down), if !now.down => {
                let count = read?;
                if count == 0 {
                    return to_client.shutdown().await;
                }
                let bytes = down.get_mut(..count).unwrap_or_default();
                late(shared).await;
                if !pass_on(&mut answers, bytes, &mut to_client).await? {
                    return Ok(());
                }
            }
        }
    }
}

async fn late(shared: &Shared) {
    let delay = shared.plan().delay;
    if !delay.is_zero() {
        sleep(delay).await;
    }
}

/// Passes a piece of an answer on; `false` when the connection is to end.
async fn pass_on(
    answers: &mut Answers,
    bytes: &mut [u8],
    client: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<bool> {
    match answers.deed {
        Some(Deed::Cut(most)) if answers.passed + bytes.len() >= most => {
            let rest = bytes.get(..most - answers.passed).unwrap_or_default();
            client.write_all(rest).await?;
            client.shutdown().await?;
            return Ok(false);
        }
        Some(Deed::Flip) => flip(answers, bytes),
        Some(Deed::Slow(rate)) => {
            // In tenths of a second.
            for piece in bytes.chunks(rate.div_ceil(10).max(1)) {
                client.write_all(piece).await?;
                sleep(Duration::from_millis(100)).await;
            }
            return Ok(true);
        }
        _ => {}
    }
    answers.passed += bytes.len();
    client.write_all(bytes).await?;
    Ok(true)
}

/// Changes the last digit of a piece of the body, once: what it says is another thing, but still well said.
fn flip(answers: &mut Answers, bytes: &mut [u8]) {
    let begin = if answers.in_body {
        Some(0)
    } else {
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        head.map(|at| at + 4)
    };
    let Some(begin) = begin else {
        return;
    };
    answers.in_body = true;
    let body = bytes.iter_mut().skip(begin);
    if let Some(digit) = body.rev().find(|byte| byte.is_ascii_digit()) {
        *digit ^= 1;
        answers.deed = None;
    }
}

fn instead(deed: Deed) -> Vec<u8> {
    let text = match deed {
        Deed::Status(code) => {
            let body = r#"{"message":"the fault suite says no"}"#;
            format!(
                "HTTP/1.1 {code} Fault\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Deed::HalfJson => {
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n[{\"Id\":\"ab"
                .to_owned()
        }
        _ => {
            let line = "{\"errorDetail\":{\"message\":\"the fault suite says no\"},\"error\":\"the fault suite says no\"}\r\n";
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{:x}\r\n{line}\r\n0\r\n\r\n",
                line.len()
            )
        }
    };
    text.into_bytes()
}

/// A connection of either kind.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
