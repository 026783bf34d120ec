//! tarpc's messages as frames, and back. tarpc's own types never reach the wire.
//!
//! ```text
//! RpcClient ─ Ask ─▶ tarpc's dispatch ─▶ ClientTransport ══ frames ══ ServerTransport ─▶ tarpc's channel ─ Asked ─▶ handler
//!           ◀ Bytes ─                  ◀──                                            ◀──               ◀─ Reply ─
//! ```
//!
//! Requests and responses pass as bytes that were encoded by whoever calls or handles them, in his own task, so that
//! one large message does not hold up the connection's.
//!
//! Invariants
//! - every payload was measured before it comes here: a message that is too large fails alone, not its connection;
//! - a deadline is clamped before tarpc sees it, on both sides: a huge one would panic the task of the connection;
//! - a request leaves only with a [`Ticket`], so that one that has not left can be told from one that was lost;
//! - the end of the caller's stream means that it has gone: whatever it still asked for is cancelled.

use super::connection::{Broken, Connection};
use super::frame::{Frame, FrameType};
use crate::types::limits::CALL_TIMEOUT_MAX;
use bytes::{Buf, BufMut, Bytes};
use futures::future::BoxFuture;
use futures::{FutureExt, Sink, Stream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tarpc::{ClientMessage, Request, Response, context, trace};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// `timeout_ms`, in front of the body of each Rpc request.
pub(super) const TIMEOUT_BYTES: usize = 4;

/// Each side waits for its own timer first, and answers in its own words; tarpc's is the net below.
const NET: Duration = Duration::from_secs(1);

/// What the client hands to tarpc.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: u16,
    /// `timeout_ms: u32 ++ body`.
    pub(super) payload: Bytes,
    pub(super) ticket: Ticket,
}

/// What the server gets from tarpc.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: u16,
    pub(super) timeout: Duration,
    pub(super) body: Bytes,
}

/// What the server hands to tarpc: the answer, and its share of the memory that answers may take.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) payload: Bytes,
    /// Given back when the answer has been sent, with the reply.
    pub(super) _share: Option<OwnedSemaphorePermit>,
}

impl tarpc::RequestName for Ask {
    fn name(&self) -> &str {
        "quorate"
    }
}

impl tarpc::RequestName for Asked {
    fn name(&self) -> &str {
        "quorate"
    }
}

/// Settles between the caller and the connection's task whether a request has left.
#[derive(Clone, Debug, Default)]
pub(super) struct Ticket(Arc<AtomicU8>);

const WAITING: u8 = 0;
const LEFT: u8 = 1;
const WITHDRAWN: u8 = 2;

impl Ticket {
    /// The request leaves now, if it was not withdrawn.
    fn leave(&self) -> bool {
        self.0.compare_exchange(WAITING, LEFT, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the request has not left; and then it never will.
    pub(super) fn withdraw(&self) -> bool {
        self.0.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A context for tarpc that ends a little after `timeout`.
pub(super) fn context_for(timeout: Duration) -> context::Context {
    let mut context = context::Context::current();
    // tarpc counts in the standard library's instants, and compares with what that clock says.
    #[expect(clippy::disallowed_methods)]
    let now = std::time::Instant::now();
    context.deadline = now + timeout.min(CALL_TIMEOUT_MAX) + NET;
    context
}

/// The client's end.
pub(super) struct ClientTransport<S> {
    connection: Connection<S>,
    /// Told when the server wants no new requests.
    goodbye: Option<oneshot::Sender<()>>,
}

impl<S> ClientTransport<S> {
    pub(super) fn new(connection: Connection<S>, goodbye: oneshot::Sender<()>) -> Self {
        Self { connection, goodbye: Some(goodbye) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for ClientTransport<S> {
    type Item = Result<Response<Bytes>, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let frame = match ready!(self.connection.poll_next(cx)) {
                Ok(frame) => frame,
                // Nobody waits for an answer by then.
                Err(Broken::Idle) => return Poll::Ready(None),
                Err(broken) => return Poll::Ready(Some(Err(broken))),
            };
            match frame.frame_type {
                FrameType::Response => {
                    let response = Response { request_id: frame.id, message: Ok(frame.payload) };
                    return Poll::Ready(Some(Ok(response)));
                }
                FrameType::Goodbye => {
                    if let Some(goodbye) = self.goodbye.take() {
                        let _ = goodbye.send(());
                    }
                }
                odd @ (FrameType::Request | FrameType::Cancel | FrameType::Hello) => {
                    return Poll::Ready(Some(Err(Broken::Unexpected(odd))));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<ClientMessage<Ask>> for ClientTransport<S> {
    type Error = Broken;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.connection.poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: ClientMessage<Ask>) -> Result<(), Broken> {
        match message {
            ClientMessage::Request(Request {
                id,
                message: Ask { method, payload, ticket },
                ..
            }) => {
                if ticket.leave() {
                    let frame = Frame { frame_type: FrameType::Request, method, id, payload };
                    self.connection.push(&frame);
                }
            }
            ClientMessage::Cancel { request_id, .. } => {
                self.connection.push(&Frame { id: request_id, ..Frame::bare(FrameType::Cancel) });
            }
            _ => tracing::warn!("tarpc has a message that quorate does not know"),
        }
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.connection.poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.connection.poll_close(cx)
    }
}

/// The server's end.
pub(super) struct ServerTransport<S> {
    connection: Connection<S>,
    /// Resolves when the server wants no new requests.
    draining: Option<BoxFuture<'static, ()>>,
    /// The answer to a request that tarpc itself turned away.
    overloaded: Bytes,
}

impl<S> ServerTransport<S> {
    pub(super) fn new(
        connection: Connection<S>,
        draining: BoxFuture<'static, ()>,
        overloaded: Bytes,
    ) -> Self {
        Self { connection, draining: Some(draining), overloaded }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerTransport<S> {
    fn poll_draining(&mut self, cx: &mut Context<'_>) {
        if let Some(draining) = &mut self.draining
            && draining.poll_unpin(cx).is_ready()
        {
            self.draining = None;
            self.connection.push(&Frame::bare(FrameType::Goodbye));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for ServerTransport<S> {
    type Item = Result<ClientMessage<Asked>, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_draining(cx);
        let frame = match ready!(self.connection.poll_next(cx)) {
            Ok(frame) => frame,
            Err(broken) => return Poll::Ready(Some(Err(broken))),
        };
        Poll::Ready(Some(match frame.frame_type {
            FrameType::Request => received(frame),
            FrameType::Cancel => Ok(ClientMessage::Cancel {
                trace_context: trace::Context::default(),
                request_id: frame.id,
            }),
            odd @ (FrameType::Response | FrameType::Hello | FrameType::Goodbye) => {
                Err(Broken::Unexpected(odd))
            }
        }))
    }
}

pub(super) fn received(frame: Frame) -> Result<ClientMessage<Asked>, Broken> {
    let Frame { method, id, payload: mut body, .. } = frame;
    if body.len() < TIMEOUT_BYTES {
        return Err(Broken::Unexpected(FrameType::Request));
    }
    let timeout = Duration::from_millis(body.get_u32().into()).min(CALL_TIMEOUT_MAX);
    let message = Asked { method, timeout, body };
    Ok(ClientMessage::Request(Request { context: context_for(timeout), id, message }))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<Response<Reply>> for ServerTransport<S> {
    type Error = Broken;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.connection.poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, response: Response<Reply>) -> Result<(), Broken> {
        // tarpc itself fails a request for one reason only: too many are under way.
        let payload = match response.message {
            Ok(reply) => reply.payload,
            Err(_) => self.overloaded.clone(),
        };
        let (frame_type, id) = (FrameType::Response, response.request_id);
        self.connection.push(&Frame { frame_type, method: 0, id, payload });
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.connection.poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.connection.poll_close(cx)
    }
}

/// The timeout of a request in front of its body.
pub(super) fn put_timeout(payload: &mut [u8], timeout: Duration) {
    let millis = timeout.min(CALL_TIMEOUT_MAX).as_nanos().div_ceil(1_000_000);
    let mut front = &mut payload[..TIMEOUT_BYTES];
    front.put_u32(u32::try_from(millis).expect("a minute of milliseconds fits"));
}
