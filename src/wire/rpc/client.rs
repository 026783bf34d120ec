//! The caller's side: a cheap handle that opens its connections when they are needed, and again when they break.

use super::lane::{Lane, Peer};
use super::together::Together;
use crate::api::{Call, Request, Response};
use crate::codec::layout::Layout;
use crate::error::{Error, Reason};
use crate::types::limits::CALL_TIMEOUT_MAX;
use crate::wire::dial::Target;
use crate::wire::limits::RPC_REQUEST_BYTES_MAX;
use crate::wire::preamble::Endpoint;
use crate::wire::security::Security;
use crate::wire::transport::{Ask, TIMEOUT_BYTES, Ticket, context_for, put_timeout};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Either, select};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tarpc::client::RpcError;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

/// A connection on which a call was not answered in its time, and nothing else has come for so long, is not called on any
/// more: where something in between has forgotten it, nobody says so.
const SILENT: Duration = Duration::from_millis(1500);

/// A request that never left is tried on a new connection once: the old one may have died unnoticed.
const ATTEMPTS: usize = 2;

/// Calls to one address. Clones share their connections; dropping the last closes them.
///
/// It may be used from any executor: sockets and timers live in the runtime that it was given.
#[derive(Clone, Debug)]
pub(crate) struct RpcClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    way: Arc<Way>,
    together: Together,
}

/// The way to the address. The tasks of those who travel together hold it, and end with the client.
#[derive(Debug)]
pub(super) struct Way {
    peer: Arc<Peer>,
    runtime: Handle,
    calls: Lane,
    follows: Lane,
}

impl RpcClient {
    /// A client of whoever listens at `address`. Connects with the first call.
    pub(crate) fn new(address: String, who: Endpoint, security: Security, runtime: Handle) -> Self {
        let target = Target { address, security };
        let peer = Arc::new(Peer { target, who, group: OnceLock::new() });
        let (calls, follows) = (Lane::new(peer.clone()), Lane::new(peer.clone()));
        let way = Arc::new(Way { peer, runtime, calls, follows });
        Self(Arc::new(Inner { way, together: Together::default() }))
    }

    /// The group at the other end, 0 as long as it was not told. Once it is known, another one is refused.
    #[cfg(test)]
    pub(crate) fn group(&self) -> u128 {
        let peer = &self.0.way.peer;
        peer.group.get().copied().unwrap_or(peer.who.group)
    }

    /// Sends a request and waits for its answer, at most for the call's timeout.
    ///
    /// What was not sent fails with [`Reason::Unreachable`], or with what the handshake said; a write that was sent and
    /// not answered [may have been applied](Error::may_have_applied).
    ///
    /// # Cancel safety
    /// A dropped call is cancelled at the server, which may have carried it out by then.
    pub(crate) async fn call(&self, call: Call) -> Result<Response, Error> {
        let Inner { way, together } = &*self.0;
        match together.sort(&call.request) {
            Some(sort) => together.call(way, sort, call).await,
            None => way.send(&call).await,
        }
    }
}

impl Way {
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Nothing was sent within the time allowed.
    pub(super) fn not_in_time(&self) -> Error {
        self.peer.target.not_in_time()
    }

    /// Waits until calls can be made.
    pub(super) async fn is_open(&self) -> Result<(), Error> {
        self.calls.enter(&self.runtime).await.map(drop)
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn send(&self, call: &Call) -> Result<Response, Error> {
        let started = Instant::now();
        let deadline = started + call.timeout.min(CALL_TIMEOUT_MAX);
        let mut timer = pin!(self.timer(deadline));
        let lane = self.lane(&call.request);
        for _ in 0..ATTEMPTS {
            let mut payload = encode(&call.request)?;
            let Some(live) = before(timer.as_mut(), lane.enter(&self.runtime)).await else {
                return Err(self.peer.target.not_in_time());
            };
            let live = live?;
            let left = deadline.saturating_duration_since(Instant::now());
            put_timeout(&mut payload, left);
            let ticket = Ticket::default();
            live.heard.asked();
            let (method, payload) = (call.request.method(), Bytes::from(payload));
            let ask = Ask { method, payload, ticket: ticket.clone() };
            let answer = before(timer.as_mut(), live.channel.call(context_for(left), ask)).await;
            let never_left = !matches!(answer, Some(Ok(_))) && ticket.withdraw();
            let failure = match answer {
                Some(Ok(answer)) => return self.decode(answer, &call.request),
                Some(Err(_)) if never_left => {
                    lane.leave(&live);
                    continue;
                }
                Some(Err(RpcError::DeadlineExceeded)) | None => {
                    if live.heard.is_silent_for(SILENT) {
                        tracing::debug!(
                            address = self.peer.target.address,
                            "nothing comes any more"
                        );
                        lane.leave(&live);
                        // What waits for news on the other would not notice for long.
                        self.follows.renew();
                    }
                    Reason::DeadlinePassed { waited: started.elapsed() }
                }
                Some(Err(_)) => Reason::ConnectionLost,
            };
            let failure = Error::from(failure);
            let unknown = call.request.is_write() && !never_left;
            return Err(if unknown { failure.unknown_outcome() } else { failure });
        }
        Err(self.peer.target.unreachable("the connection broke"))
    }

    fn decode(&self, answer: Bytes, request: &Request) -> Result<Response, Error> {
        let answer = Result::<Response, Error>::from_bytes(answer).unwrap_or_else(|_| {
            let error = Error::from(Reason::Malformed { what: "answer to a call".into() });
            Err(if request.is_write() { error.unknown_outcome() } else { error })
        });
        answer.map_err(|error| match error.reason() {
            // It is that node which was closed, not this client: others may still answer.
            Reason::Closed => {
                let elsewhere = self.peer.target.unreachable("the node was shut down");
                if error.may_have_applied() { elsewhere.unknown_outcome() } else { elsewhere }
            }
            _ => error,
        })
    }

    fn lane(&self, request: &Request) -> &Lane {
        if matches!(request, Request::Follow(_)) { &self.follows } else { &self.calls }
    }

    /// A timer in the runtime of the sockets, wherever the caller runs.
    pub(super) fn timer(&self, deadline: Instant) -> Sleep {
        let _guard = self.runtime.enter();
        sleep_until(deadline)
    }
}

/// The payload of a request, with room in front for its timeout.
fn encode(request: &Request) -> Result<Vec<u8>, Error> {
    let mut payload = vec![0; TIMEOUT_BYTES];
    request.write_body(&mut payload);
    if payload.len() > RPC_REQUEST_BYTES_MAX {
        let (actual, limit) = (payload.len() as u64, RPC_REQUEST_BYTES_MAX as u64);
        return Err(Reason::RequestTooLarge { actual, limit }.into());
    }
    Ok(payload)
}

/// What `future` gives, unless the timer rings before.
pub(super) async fn before<T>(
    timer: Pin<&mut Sleep>,
    future: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(future), timer).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}

impl tower::Service<Call> for RpcClient {
    type Response = Response;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response, Error>>;

    /// Always ready: a call that has to wait for its turn does so within its own timeout.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let client = self.clone();
        async move { Self::call(&client, call).await }.boxed()
    }
}
