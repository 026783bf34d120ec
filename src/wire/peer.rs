//! Ordered calls between members: Raft messages, and the chunks of a snapshot.
//!
//! ```text
//! caller                                      callee
//!   request 1 ──────────────────────────────▶  peer_call, awaited
//!   request 2 ──────────────────────────────▶  read meanwhile, waits its turn
//!   ◀────────────────────────────── response 1
//!   ◀────────────────────────────── response 2
//! ```
//!
//! Not tarpc: it starts calls as they come and keeps no order, and here a heartbeat that overtakes an append, or a chunk
//! that overtakes another, would be a bug. The connection is tied to (group, from, to, incarnations) by its preamble
//! and hello, so no message can reach a member it was not meant for.
//!
//! Invariants
//! - a connection on which anything went wrong, or whose call was dropped, is closed, so that a late answer cannot be
//!   taken for the answer to another call;
//! - what could not be sent fails with [`Reason::Unreachable`] or with what the handshake said; what was sent and not
//!   answered with [`Reason::ConnectionLost`] or [`Reason::DeadlinePassed`];
//! - the callee handles one call of a connection at a time, and drops it when the caller has gone.
//!
//! A caller that comes back on a new connection may meet its own last call still being dropped on the old one: order
//! holds within a connection only.

use super::connection::{Broken, Connection, Patience};
use super::dial::Target;
use super::frame::{Accept, Frame, FrameType};
use super::limits::{Bounds, HELLO_BYTES_MAX, RAFT_BYTES_MAX, SNAPSHOT_BYTES_MAX, STALL};
use super::listener::{Handler, Phases};
use super::preamble::{Endpoint, Hello, Kind, PeerKind, Status};
use super::rpc::panicked;
use super::security::Security;
use super::socket::Socket;
use crate::codec::layout::{Input, Layout, Malformed};
use crate::error::{Error, Reason};
use crate::types::limits::CALL_TIMEOUT_MAX;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{Either, select};
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

/// Who calls whom, asked anew for each connection, since it changes as a group is founded or joined.
pub(crate) type Introduce = Arc<dyn Fn() -> (Endpoint, Hello) + Send + Sync>;

/// The first byte of a response: what follows is an error, or the body.
const FAILED: u8 = 0;
const DONE: u8 = 1;

impl PeerKind {
    /// The largest payload in either direction.
    pub(crate) fn payload_max(self) -> usize {
        match self {
            Self::Raft => RAFT_BYTES_MAX,
            Self::Snapshot => SNAPSHOT_BYTES_MAX,
        }
    }

    fn accept(self) -> Accept {
        // One more than a request has, for the first byte of a response.
        Accept { payload_max: self.payload_max() + 1, crc_required: true }
    }
}

/// The caller's patience. A call sets its own limit, so these only mark a connection that was forgotten.
const PATIENCE: Patience = Patience { stall: STALL, idle: Duration::from_secs(120) };

const ACCEPT_HELLO: Accept = Accept { payload_max: HELLO_BYTES_MAX, crc_required: true };

/// Calls to one member, one after the other.
pub(crate) struct PeerClient {
    kind: PeerKind,
    target: Target,
    introduce: Introduce,
    connection: Option<Connection<Socket>>,
    next_id: u64,
}

impl fmt::Debug for PeerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerClient")
            .field("kind", &self.kind)
            .field("target", &self.target)
            .field("connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

impl PeerClient {
    /// Calls to the member at `address`. Connects with the first call.
    pub(crate) fn new(
        kind: PeerKind,
        address: String,
        security: Security,
        introduce: Introduce,
    ) -> Self {
        let target = Target { address, security };
        Self { kind, target, introduce, connection: None, next_id: 1 }
    }

    /// Sends one request and waits for its answer; `time` includes connecting, if that is needed.
    ///
    /// An error that the peer's handler returned comes back as it is, and the connection lives on.
    ///
    /// # Cancel safety
    /// A dropped call closes the connection. The peer may have carried it out.
    pub(crate) async fn call(
        &mut self,
        method: u16,
        body: Bytes,
        time: Duration,
    ) -> Result<Bytes, Error> {
        let started = Instant::now();
        let deadline = started + time.min(CALL_TIMEOUT_MAX);
        if body.len() > self.kind.payload_max() {
            let (actual, limit) = (body.len() as u64, self.kind.payload_max() as u64);
            return Err(Reason::RequestTooLarge { actual, limit }.into());
        }
        let mut connection = match self.take_live() {
            Some(connection) => connection,
            None => match timeout_at(deadline, self.connect()).await {
                Ok(connection) => connection?,
                Err(_) => return Err(self.target.not_in_time()),
            },
        };
        let id = self.next_id;
        self.next_id += 1;
        let request = Frame { frame_type: FrameType::Request, method, id, payload: body };
        match timeout_at(deadline, exchange(&mut connection, &request)).await {
            Ok(Ok(answer)) => {
                // Only now is the connection known to be in step.
                self.connection = Some(connection);
                answer
            }
            Ok(Err(broken)) => {
                tracing::debug!(address = self.target.address, %broken, "peer connection lost");
                Err(Reason::ConnectionLost.into())
            }
            Err(_) => Err(Reason::DeadlinePassed { waited: started.elapsed() }.into()),
        }
    }

    /// The connection of the last call, unless the peer has closed it since, or said goodbye.
    fn take_live(&mut self) -> Option<Connection<Socket>> {
        let mut connection = self.connection.take()?;
        connection.next().now_or_never().is_none().then_some(connection)
    }

    async fn connect(&self) -> Result<Connection<Socket>, Error> {
        let (who, hello) = (self.introduce)();
        let (socket, callee) = self.target.open(Kind::Peer(self.kind), who, hello.to).await?;
        let check =
            |status: Status| status.check(&self.target.address, who.node, hello.to, callee.node);
        if callee.node != hello.to {
            check(Status::WrongTarget)?;
        }
        let mut connection = Connection::new(socket, ACCEPT_HELLO, PATIENCE);
        let payload = hello.to_payload();
        let greeted = async {
            connection.send(&Frame { payload, ..Frame::bare(FrameType::Hello) }).await?;
            expect(FrameType::Hello, connection.next().await?)
        };
        let answer = greeted.await.map_err(|broken| self.target.unreachable(&broken))?;
        check(Status::from_payload(answer.payload)?)?;
        connection.accept(self.kind.accept(), PATIENCE);
        Ok(connection)
    }
}

/// One request, and the answer to it: the outer error ends the connection, the inner one is the handler's.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    request: &Frame,
) -> Result<Result<Bytes, Error>, Broken> {
    connection.send(request).await?;
    let response = expect(FrameType::Response, connection.next().await?)?;
    if response.id != request.id || response.method != request.method {
        return Err(Broken::Unexpected(FrameType::Response));
    }
    read_answer(response.payload).map_err(|Malformed| Broken::Unexpected(FrameType::Response))
}

fn expect(frame_type: FrameType, frame: Frame) -> Result<Frame, Broken> {
    if frame.frame_type == frame_type {
        Ok(frame)
    } else {
        Err(Broken::Unexpected(frame.frame_type))
    }
}

fn write_answer(answer: Result<Bytes, Error>, payload_max: usize) -> Bytes {
    let mut payload = Vec::new();
    match answer {
        Ok(body) => {
            payload.reserve_exact(1 + body.len());
            payload.push(DONE);
            payload.extend_from_slice(&body);
        }
        Err(error) => {
            payload.push(FAILED);
            error.write(&mut payload);
        }
    }
    if payload.len() <= 1 + payload_max {
        return payload.into();
    }
    let limit = payload_max as u64;
    write_answer(Err(Reason::ResultTooLarge { limit }.into()), payload_max)
}

pub(super) fn read_answer(payload: Bytes) -> Result<Result<Bytes, Error>, Malformed> {
    let mut input = Input::new(payload);
    match u8::read(&mut input)? {
        DONE => Ok(Ok(input.rest())),
        FAILED => Error::from_bytes(input.rest()).map(Err),
        _ => Err(Malformed),
    }
}

/// Reads the hello of a caller whose preamble was welcome, and answers it.
pub(super) async fn receive_hello<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    kind: PeerKind,
    caller: u64,
    handler: &dyn Handler,
    bounds: &Bounds,
) -> Result<Option<Connection<S>>, Broken> {
    let patience = Patience { stall: bounds.stall, idle: bounds.peer_idle };
    let mut connection = Connection::new(stream, ACCEPT_HELLO, patience);
    let frame = expect(FrameType::Hello, connection.next().await?)?;
    let hello = Hello::from_payload(frame.payload);
    let hello = hello.map_err(|Malformed| Broken::Unexpected(FrameType::Hello))?;
    if hello.from != caller {
        return Err(Broken::Unexpected(FrameType::Hello));
    }
    let status = handler.hello(kind, &hello);
    let payload = status.to_payload();
    connection.send(&Frame { payload, ..Frame::bare(FrameType::Hello) }).await?;
    connection.accept(kind.accept(), patience);
    Ok((status == Status::Ok).then_some(connection))
}

/// Serves the calls of one member, in order, until either side ends it.
///
/// # Cancel safety
/// Dropping it drops the call under way.
pub(super) async fn serve_peer<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<S>,
    kind: PeerKind,
    from: u64,
    handler: Arc<dyn Handler>,
    phases: Phases,
) -> Result<(), Broken> {
    let mut draining = pin!(phases.clone().draining());
    let mut ahead = None;
    while !phases.is_draining() {
        let request = match ahead.take() {
            Some(request) => request,
            None => match select(draining.as_mut(), pin!(connection.next())).await {
                Either::Left(_) => break,
                Either::Right((request, _)) => request?,
            },
        };
        let Frame { method, id, payload, .. } = expect(FrameType::Request, request)?;
        let handled = async { handler.peer_call(kind, from, method, payload).await };
        let handled = pin!(AssertUnwindSafe(handled).catch_unwind());
        let answer = match while_present(handled, &mut connection, &mut ahead).await? {
            Ok(answer) => answer,
            Err(panic) => Err(panicked(&*panic).into()),
        };
        let payload = write_answer(answer, kind.payload_max());
        connection.send(&Frame { frame_type: FrameType::Response, method, id, payload }).await?;
    }
    connection.send(&Frame::bare(FrameType::Goodbye)).await
}

/// Waits for a handler as long as its caller is there, and reads one request ahead.
async fn while_present<S: AsyncRead + AsyncWrite + Unpin, T>(
    mut handled: Pin<&mut impl Future<Output = T>>,
    connection: &mut Connection<S>,
    ahead: &mut Option<Frame>,
) -> Result<T, Broken> {
    if ahead.is_none() {
        match select(handled.as_mut(), pin!(connection.next())).await {
            Either::Left((output, _)) => return Ok(output),
            Either::Right((request, _)) => *ahead = Some(request?),
        }
    }
    Ok(handled.await)
}
