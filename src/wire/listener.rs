//! The callee: one port, one task that accepts, one task for each connection.
//!
//! ```text
//!            accept, at most `handshakes` at once
//! port ─────────────────────▶ preamble ─▶ place of its kind? ─▶ Handler::welcome ─▶ answer
//!                                                                  │
//!                        Rpc ◀─────────────────────────────────────┴─────▶ Raft, Snapshot
//!                         │                                                  hello ─▶ Handler::hello
//!                         ▼                                                  ▼
//!                     serve_rpc                                          serve_peer
//!
//! phases: Serving ──shutdown──▶ Draining (port closed, goodbye said) ──grace over──▶ Stopping
//! ```
//!
//! Invariants
//! - [`Server`] owns the accepting task, that one the connections, and each of those its handlers: dropping the server
//!   ends them all, and [`Server::shutdown`] returns when they have ended;
//! - the accepting task outlives every error of a connection and of `accept` itself;
//! - a caller has [`Bounds::handshake`] to say who it is, and holds no place of its kind before.

use super::connection::{Broken, Connection, Patience};
use super::frame::Accept;
use super::limits::{Bounds, RPC_REQUEST_BYTES_MAX};
use super::peer::{receive_hello, serve_peer};
use super::preamble::{
    Answer, Endpoint, Hello, Kind, PREAMBLE_BYTES, PeerKind, Preamble, Status, VERSION,
};
use super::rpc::serve_rpc;
use super::security::{Security, Trust};
use super::socket::{self, Port, Socket, Stream};
use crate::api::{Call, Response};
use crate::error::{Error, Reason};
use bytes::Bytes;
use futures::future::{BoxFuture, Either, select};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::util::BoxCloneSyncService;

/// How long accepting rests after an error. Without file descriptors to spare it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who answers. A panic in any of it ends one call or one connection, not the server.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Whether a caller is welcome, and whom it has reached.
    fn welcome(&self, preamble: &Preamble) -> Welcome;

    /// Who handles the calls of one Rpc connection. Made anew for each, so it may hold what belongs to a connection, and
    /// may depend on whether the caller has shown that he is a member.
    ///
    /// A call is dropped at whatever it waits for when its caller cancels it, has gone, or has waited long enough: what
    /// has to be brought to an end belongs into a task of its own.
    fn service(&self, is_member: bool) -> BoxCloneSyncService<Call, Response, Error>;

    /// Whether a member whose preamble was welcome may go on.
    fn hello(&self, kind: PeerKind, hello: &Hello) -> Status;

    /// One call of member `from`. The calls of one connection come in order, the next when this is done; a call is
    /// dropped when its caller has gone.
    fn peer_call(
        &self,
        kind: PeerKind,
        from: u64,
        method: u16,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Error>>;
}

/// The answer of a [`Handler`] to a preamble.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Welcome {
    pub(crate) status: Status,
    /// 0 = none yet.
    pub(crate) group: u128,
    /// 0 = none yet.
    pub(crate) node: u64,
}

/// A port of this process, on which nobody answers yet.
#[derive(Debug)]
pub(crate) struct Listener {
    port: Port,
    security: Security,
    local_address: SocketAddr,
}

/// Listens on `address`; port 0 lets the system choose one.
pub(crate) async fn bind(address: &str, security: Security) -> Result<Listener, Error> {
    let port = socket::bind(address, &security).await?;
    let local_address = port.local_address().map_err(|error| Reason::BadAddress {
        detail: format!("cannot listen on {address}: {error}"),
    })?;
    Ok(Listener { port, security, local_address })
}

#[cfg(test)]
impl Listener {
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.local_address
    }
}

/// Answers callers, in tasks on the current runtime, until it is shut down or dropped.
pub(crate) fn serve(listener: Listener, handler: Arc<dyn Handler>) -> Server {
    serve_within(listener, handler, Bounds::default())
}

/// The same with bounds of the caller's choice.
pub(crate) fn serve_within(
    listener: Listener,
    handler: Arc<dyn Handler>,
    bounds: Bounds,
) -> Server {
    let (phase, phases) = watch::channel(Phase::Serving);
    let places = |count: usize| Arc::new(Semaphore::new(count));
    let shared = Shared {
        handler,
        security: listener.security,
        handshakes: places(bounds.handshakes),
        rpc: places(bounds.rpc_connections),
        raft: places(bounds.raft_connections),
        snapshot: places(bounds.snapshot_connections),
        bounds,
        phases: Phases(phases),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener.port, Arc::new(shared)));
    Server { phase, tasks, local_address: listener.local_address }
}

/// A listener that answers. Dropping it ends all its tasks, and closes its sockets, without a word.
#[derive(Debug)]
pub(crate) struct Server {
    phase: watch::Sender<Phase>,
    /// The accepting task, which owns all others.
    tasks: JoinSet<()>,
    local_address: SocketAddr,
}

impl Server {
    /// Where it listens.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// Stops accepting, says goodbye, lets the calls under way be answered for at most `grace`, then ends what is left.
    /// No task and no socket remains.
    ///
    /// # Cancel safety
    /// Dropping it is the same as dropping the server.
    pub(crate) async fn shutdown(mut self, grace: Duration) {
        self.phase.send_replace(Phase::Draining);
        if timeout(grace, self.tasks.join_next()).await.is_err() {
            self.phase.send_replace(Phase::Stopping);
            self.tasks.join_next().await;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Stopping,
}

/// How far the shutdown of a server has come.
#[derive(Clone, Debug)]
pub(super) struct Phases(watch::Receiver<Phase>);

impl Phases {
    pub(super) fn is_draining(&self) -> bool {
        *self.0.borrow() >= Phase::Draining
    }

    /// Waits until no new requests are wanted.
    pub(super) async fn draining(self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits until everything has to end.
    pub(super) async fn stopping(self) {
        self.reached(Phase::Stopping).await;
    }

    async fn reached(mut self, phase: Phase) {
        // An error means that the server was dropped: that ends everything too.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

/// What all connections share.
struct Shared {
    handler: Arc<dyn Handler>,
    security: Security,
    handshakes: Arc<Semaphore>,
    rpc: Arc<Semaphore>,
    raft: Arc<Semaphore>,
    snapshot: Arc<Semaphore>,
    bounds: Bounds,
    phases: Phases,
}

/// The accepting task.
async fn accept(port: Port, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let mut draining = pin!(shared.phases.clone().draining());
    loop {
        let mut next = pin!(next_caller(&port, &shared));
        let next = poll_fn(|cx| {
            while let Poll::Ready(Some(_)) = connections.poll_join_next(cx) {}
            match draining.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => next.as_mut().poll(cx).map(Some),
            }
        });
        let Some((socket, handshake)) = next.await else { break };
        connections.spawn(converse(socket, handshake, shared.clone()));
    }
    drop(port);
    while connections.join_next().await.is_some() {}
}

/// The next connection, once there is room for another handshake.
async fn next_caller(port: &Port, shared: &Shared) -> (Stream, OwnedSemaphorePermit) {
    loop {
        let handshake = shared.handshakes.clone().acquire_owned().await;
        let handshake = handshake.expect("nobody closes the semaphore");
        match port.accept().await {
            Ok(socket) => return (socket, handshake),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that is welcome, and the place that it holds.
struct Admitted {
    connection: Connection<Socket>,
    kind: Kind,
    caller: u64,
    trust: Trust,
    _place: OwnedSemaphorePermit,
}

/// The life of one connection.
async fn converse(socket: Stream, handshake: OwnedSemaphorePermit, shared: Arc<Shared>) {
    let admitted = {
        let admitted = pin!(timeout(shared.bounds.handshake, admit(socket, &shared)));
        match select(admitted, pin!(shared.phases.clone().stopping())).await {
            Either::Left((Ok(Ok(Some(admitted))), _)) => admitted,
            Either::Left((Ok(Ok(None)) | Err(_), _)) | Either::Right(_) => return,
            Either::Left((Ok(Err(broken)), _)) => return log_end(&broken),
        }
    };
    drop(handshake);
    let Admitted { connection, kind, caller, trust, _place } = admitted;
    let phases = shared.phases.clone();
    match kind {
        Kind::Rpc => {
            let service = shared.handler.service(trust == Trust::Member);
            serve_rpc(connection, service, &shared.bounds, phases).await;
        }
        Kind::Peer(kind) => {
            let stopping = phases.clone().stopping();
            let served = serve_peer(connection, kind, caller, shared.handler.clone(), phases);
            if let Either::Left((Err(broken), _)) = select(pin!(served), pin!(stopping)).await {
                log_end(&broken);
            }
        }
    }
}

fn log_end(broken: &Broken) {
    match broken {
        Broken::Closed | Broken::Idle => {}
        _ => tracing::debug!(%broken, "connection lost"),
    }
}

/// The handshake. `None` is a caller that was told why it is not welcome.
async fn admit(stream: Stream, shared: &Shared) -> Result<Option<Admitted>, Broken> {
    let (mut socket, trust) = shared.security.greet(stream).await.map_err(Broken::Io)?;
    let mut bytes = [0; PREAMBLE_BYTES];
    socket.read_exact(&mut bytes).await.map_err(Broken::Io)?;
    let Ok(preamble) = Preamble::decode(&bytes) else {
        return Err(Broken::Io(std::io::ErrorKind::InvalidData.into()));
    };
    let Preamble { kind, caller, .. } = preamble;
    let place = shared.place(kind);
    let welcome = shared.handler.welcome(&preamble);
    let status = shared.status(&preamble, trust, place.is_some(), &welcome);
    let callee = Endpoint { group: welcome.group, node: welcome.node };
    let answer = Answer { status, version: VERSION, features: 0, callee };
    socket.write_all(&answer.encode()).await.map_err(Broken::Io)?;
    socket.flush().await.map_err(Broken::Io)?;
    let (Status::Ok, Some(_place)) = (status, place) else { return Ok(None) };
    let connection = match kind {
        Kind::Rpc => {
            let accept = Accept { payload_max: RPC_REQUEST_BYTES_MAX, crc_required: false };
            let Bounds { stall, rpc_idle: idle, .. } = shared.bounds;
            Some(Connection::new(socket, accept, Patience { stall, idle }))
        }
        Kind::Peer(kind) => {
            receive_hello(socket, kind, caller.node, &*shared.handler, &shared.bounds).await?
        }
    };
    let caller = caller.node;
    Ok(connection.map(|connection| Admitted { connection, kind, caller, trust, _place }))
}

impl Shared {
    fn place(&self, kind: Kind) -> Option<OwnedSemaphorePermit> {
        let places = match kind {
            Kind::Rpc => &self.rpc,
            Kind::Peer(PeerKind::Raft) => &self.raft,
            Kind::Peer(PeerKind::Snapshot) => &self.snapshot,
        };
        places.clone().try_acquire_owned().ok()
    }

    fn status(
        &self,
        preamble: &Preamble,
        trust: Trust,
        has_place: bool,
        welcome: &Welcome,
    ) -> Status {
        let is_as_member = preamble.kind != Kind::Rpc || preamble.caller.node != 0;
        if preamble.common_version().is_none() {
            Status::NoCommonVersion
        } else if is_as_member && trust != Trust::Member {
            Status::NotAMember
        } else if self.phases.is_draining() {
            Status::ShuttingDown
        } else if has_place {
            welcome.status
        } else {
            Status::TooManyConnections
        }
    }
}
