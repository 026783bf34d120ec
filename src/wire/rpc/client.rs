//! The caller's side: a cheap handle that opens its connections when they are needed, and again when they break.

use super::lane::{Lane, Live, Peer};
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
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tarpc::client::RpcError;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// A member says who it is at once, whatever else it waits for. If that takes longer, and nothing else comes either, then
/// something on the way has forgotten the connection: nobody would say so for a quarter of an hour.
const PROBE: Duration = Duration::from_secs(2);

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
    is_probing: AtomicBool,
}

impl RpcClient {
    /// A client of whoever listens at `address`. Connects with the first call.
    pub(crate) fn new(address: String, who: Endpoint, security: Security, runtime: Handle) -> Self {
        let target = Target { address, security };
        let peer = Arc::new(Peer { target, who, group: OnceLock::new() });
        let (calls, follows) = (Lane::new(peer.clone()), Lane::new(peer.clone()));
        let is_probing = AtomicBool::new(false);
        let way = Arc::new(Way { peer, runtime, calls, follows, is_probing });
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
            None => Box::pin(way.send(&call)).await,
        }
    }

    /// The same, unless it is given up before, for a reason. It goes alone.
    pub(crate) async fn call_until(
        &self,
        call: Call,
        given_up: impl Future<Output = Reason>,
    ) -> Result<Response, Error> {
        self.0.way.send_until(&call, given_up).await
    }

    /// Waits for no news on the connection for that any more. What the member has kept for it goes with it.
    pub(crate) fn follow_no_more(&self) {
        self.0.way.follows.renew();
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
    pub(super) async fn send(self: &Arc<Self>, call: &Call) -> Result<Response, Error> {
        self.send_until(call, pending()).await
    }

    /// The same, unless it is given up before.
    async fn send_until(
        self: &Arc<Self>,
        call: &Call,
        given_up: impl Future<Output = Reason>,
    ) -> Result<Response, Error> {
        let started = Instant::now();
        let deadline = started + call.timeout.min(CALL_TIMEOUT_MAX);
        let (timer, given_up) = (pin!(self.timer(deadline)), pin!(given_up));
        let mut given_up = pin!(select(timer, given_up).map(|given_up| match given_up {
            Either::Left(_) => Reason::DeadlinePassed { waited: started.elapsed() },
            Either::Right((reason, _)) => reason,
        }));
        let lane = self.lane(&call.request);
        for _ in 0..ATTEMPTS {
            let mut payload = encode(&call.request)?;
            let live = pin!(lane.enter(&self.runtime));
            let live = match before(given_up.as_mut(), live).await {
                Ok(live) => live?,
                Err(Reason::DeadlinePassed { .. }) => return Err(self.not_in_time()),
                Err(reason) => return Err(reason.into()),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            put_timeout(&mut payload, left);
            let (ticket, came) = (Ticket::default(), live.came());
            let (method, payload) = (call.request.method(), Bytes::from(payload));
            let ask = Ask { method, payload, ticket: ticket.clone() };
            // Each is pinned where it is: what is handed on by value is in the future of whoever gets it, twice.
            let answer = pin!(live.channel.call(context_for(left), ask));
            let answer = pin!(unless_left(&live, &call.request, answer));
            let late = || Reason::DeadlinePassed { waited: started.elapsed() };
            let answer = match before(given_up.as_mut(), answer).await {
                Ok(Err(RpcError::DeadlineExceeded)) => Err(late()),
                Ok(answer) => Ok(answer),
                Err(reason) => Err(reason),
            };
            let never_left = !matches!(answer, Ok(Ok(_))) && ticket.withdraw();
            let failure = match answer {
                Ok(Ok(answer)) => return self.decode(answer, &call.request),
                Ok(Err(_)) if never_left => {
                    live.leave();
                    continue;
                }
                Ok(Err(_)) => Reason::ConnectionLost,
                Err(reason) => {
                    if live.came() == came {
                        self.probe(lane, live.clone());
                    }
                    reason
                }
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

    /// Nothing has come while a call was waited for. Asks for something that needs no waiting.
    fn probe(self: &Arc<Self>, lane: &Lane, live: Live) {
        if self.is_probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let way = Arc::downgrade(self);
        let probe = async move {
            let (came, ticket) = (live.came(), Ticket::default());
            if let Ok(mut payload) = encode(&Request::Status) {
                put_timeout(&mut payload, PROBE);
                let (method, payload) = (Request::Status.method(), Bytes::from(payload));
                let ask = Ask { method, payload, ticket: ticket.clone() };
                let _ = timeout(PROBE, live.channel.call(context_for(PROBE), ask)).await;
            }
            let Some(way) = way.upgrade() else { return };
            // One that is still behind others here has asked nothing.
            let has_left = !ticket.withdraw();
            if has_left && live.came() == came && live.leave() {
                tracing::debug!(address = way.peer.target.address, "nothing comes any more");
                // What waits for news on the other would not notice for long.
                way.follows.renew();
            }
            way.is_probing.store(false, Ordering::Release);
        };
        lane.spawn(probe, &self.runtime);
    }

    /// What is in time or of no use goes with what waits for news: on the other it could be behind megabytes.
    fn lane(&self, request: &Request) -> &Lane {
        match request {
            Request::Follow(_) | Request::KeepAlive { .. } => &self.follows,
            _ => &self.calls,
        }
    }

    /// A timer in the runtime of the sockets, wherever the caller runs.
    pub(super) fn timer(&self, deadline: Instant) -> Sleep {
        let _guard = self.runtime.enter();
        sleep_until(deadline)
    }
}

/// A wait for news ends with its connection. Other answers may still come after a goodbye.
async fn unless_left<T>(
    live: &Live,
    request: &Request,
    answer: Pin<&mut impl Future<Output = Result<T, RpcError>>>,
) -> Result<T, RpcError> {
    if !matches!(request, Request::Follow(_)) {
        return answer.await;
    }
    match select(answer, pin!(live.left())).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(RpcError::Shutdown),
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

/// What `future` gives, unless something else comes before.
pub(super) async fn before<T, E>(
    other: Pin<&mut impl Future<Output = E>>,
    future: Pin<&mut impl Future<Output = T>>,
) -> Result<T, E> {
    match select(future, other).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right((other, _)) => Err(other),
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
