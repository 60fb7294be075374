//! The accept loop: TCP connections become TLS connections with a known peer, and only then reach the gRPC server.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::{PeerIdentity, tls::ALPN_H2};

/// Bounds of the accept loop.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// Most connections at the same time, those in handshake included. Above it, new ones wait in the kernel's queue.
    pub connections: usize,
    /// Most handshakes at the same time.
    pub handshakes: usize,
    /// How long a handshake may take.
    pub handshake_deadline: Duration,
    /// Most connections at the same time of peers without a certificate: they enrol and go.
    pub anonymous: usize,
    /// How long such a connection may last.
    pub anonymous_life: Duration,
    /// Pause after an error of the listener itself (no file descriptors left).
    pub back_off: Duration,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshakes: 256,
            handshake_deadline: Duration::from_secs(10),
            anonymous: 256,
            anonymous_life: Duration::from_mins(1),
            back_off: Duration::from_millis(250),
        }
    }
}

/// Who is at the other end. In the extensions of every request.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Where the connection comes from.
    pub remote: SocketAddr,
    /// Who it is; `None` when no certificate was shown.
    pub identity: Option<Arc<PeerIdentity>>,
    /// The certificates as shown, leaf first; empty when none was.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
    anonymous: Option<Anonymous>,
    _permit: OwnedSemaphorePermit,
}

/// What bounds a connection whose peer showed no certificate.
#[derive(Debug)]
struct Anonymous {
    ends: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

/// The room for connections without a certificate.
#[derive(Debug, Clone)]
struct AnonymousRoom {
    permits: Arc<Semaphore>,
    life: Duration,
}

impl AnonymousRoom {
    fn enter(&self) -> Result<Anonymous, HandshakeError> {
        let permit = Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| HandshakeError::Crowded)?;
        Ok(Anonymous {
            ends: Box::pin(sleep(self.life)),
            _permit: permit,
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the handshake took too long")]
    Deadline,
    #[error("the handshake failed")]
    Io(#[source] io::Error),
    #[error("the peer did not agree on HTTP/2")]
    Protocol,
    #[error("there are as many connections without a certificate as there may be")]
    Crowded,
    #[error("the peer's certificate is refused")]
    Peer(#[source] super::IdentityError),
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    remote: SocketAddr,
    deadline: Duration,
    room: AnonymousRoom,
    permit: OwnedSemaphorePermit,
) -> Result<Connection, HandshakeError> {
    // Small frames (heartbeats, acknowledgements) must not wait for more. An error here shows up at the next read.
    let _ = tcp.set_nodelay(true);
    let stream = timeout(deadline, acceptor.accept(tcp))
        .await
        .map_err(|_| HandshakeError::Deadline)?
        .map_err(HandshakeError::Io)?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(ALPN_H2) {
        return Err(HandshakeError::Protocol);
    }
    let certificates: Arc<[CertificateDer<'static>]> = session
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect();
    let identity = certificates
        .first()
        .map(|leaf| PeerIdentity::from_der(leaf).map(Arc::new))
        .transpose()
        .map_err(HandshakeError::Peer)?;
    let anonymous = match identity {
        Some(_) => None,
        None => Some(room.enter()?),
    };
    Ok(Connection {
        stream,
        peer: PeerInfo {
            remote,
            identity,
            certificates,
        },
        anonymous,
        _permit: permit,
    })
}

struct Loop {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    limits: AcceptLimits,
    permits: Arc<Semaphore>,
    room: AnonymousRoom,
    handshakes: JoinSet<Result<Connection, (SocketAddr, HandshakeError)>>,
    paused_until: Option<Instant>,
}

/// Connections whose handshake succeeded, for `serve_with_incoming_shutdown`. Never ends and never fails: errors are logged.
/// Dropping it ends the handshakes under way.
pub fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: AcceptLimits,
) -> impl Stream<Item = Result<Connection, Infallible>> + Send {
    let state = Loop {
        listener,
        acceptor: TlsAcceptor::from(config),
        limits,
        permits: Arc::new(Semaphore::new(limits.connections)),
        room: AnonymousRoom {
            permits: Arc::new(Semaphore::new(limits.anonymous)),
            life: limits.anonymous_life,
        },
        handshakes: JoinSet::new(),
        paused_until: None,
    };
    stream::unfold(state, |mut state| async move {
        let connection = state.next().await;
        Some((Ok(connection), state))
    })
}

impl Loop {
    async fn next(&mut self) -> Connection {
        loop {
            let may_accept = self.paused_until.is_none() && self.handshakes.len() < self.limits.handshakes;
            let pause = self.paused_until.unwrap_or_else(Instant::now);
            tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Ok(connection)) => return connection,
                    // Anyone can cause these, so they are no warnings.
                    Ok(Err((remote, error))) => {
                        tracing::debug!(%remote, error = &error as &dyn std::error::Error, "connection refused");
                    }
                    Err(error) => tracing::error!(%error, "a handshake ended without result"),
                },
                () = sleep_until(pause), if self.paused_until.is_some() => self.paused_until = None,
                accepted = accept(&self.listener, &self.permits), if may_accept => match accepted {
                    Ok((tcp, remote, permit)) => {
                        let work = handshake(
                            self.acceptor.clone(),
                            tcp,
                            remote,
                            self.limits.handshake_deadline,
                            self.room.clone(),
                            permit,
                        );
                        self.handshakes.spawn(async move { work.await.map_err(|error| (remote, error)) });
                    }
                    Err(error) if is_of_connection(&error) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections; pausing");
                        self.paused_until = Some(Instant::now() + self.limits.back_off);
                    }
                },
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    // The permit first: without one the connection stays in the kernel's queue.
    let permit = Arc::clone(permits)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (tcp, remote) = listener.accept().await?;
    Ok((tcp, remote, permit))
}

/// Errors of one connection that went away before it was accepted; the listener is well.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl Connection {
    /// Whether a peer without a certificate has been here for long enough.
    fn poll_is_over(&mut self, context: &mut Context<'_>) -> bool {
        self.anonymous
            .as_mut()
            .is_some_and(|anonymous| anonymous.ends.as_mut().poll(context).is_ready())
    }

    /// Who is at the other end.
    pub const fn peer(&self) -> &PeerInfo {
        &self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A server reads for as long as a connection lives, so it hears of the end here.
        if self.poll_is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
