//! The callee's side: one task for each connection, and one for each call under way on it.
//!
//! Every request gets an answer in words: one that cannot be read, that comes while too many are under way, whose
//! handler panics or takes too long, or whose response is too large. Only a caller who has gone gets none; its handlers
//! are dropped at whatever they wait for.
//!
//! Invariants
//! - a handler is under way only as long as its connection lives, its caller waits and its deadline has not passed;
//! - requests in work and responses that wait to be written have a [`Budget`] in bytes, each connection its own; responses that
//!   wait for that have another one as large, and what does not fit there either is refused, though the work was done: whoever
//!   asks faster than he reads harms himself only.

use crate::api::{Call, Request, Response};
use crate::codec::layout::Layout;
use crate::error::{Error, Reason};
use crate::wire::connection::{Broken, Connection};
use crate::wire::limits::{Bounds, RPC_RESPONSE_BYTES_MAX};
use crate::wire::listener::Phases;
use crate::wire::transport::{Asked, Reply, ServerTransport};
use bytes::Bytes;
use futures::{FutureExt, Stream};
use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use tarpc::server::{BaseChannel, Channel};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

/// The service of one connection.
type Service = BoxCloneSyncService<Call, Response, Error>;

/// Bytes are counted by this unit, since a semaphore counts up to 32 bits at once.
const BUDGET_UNIT: usize = 1024;
/// A response that is no larger is not refused.
const SMALL: usize = 4 * 1024;
/// Finished responses that may wait for the connection's task; the handlers of more wait.
const RESPONSES_WAITING_MAX: usize = 64;

/// The memory that the requests and responses of one connection may take.
#[derive(Debug)]
struct Budget {
    left: Arc<Semaphore>,
    units: u32,
}

impl Budget {
    fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes / BUDGET_UNIT).unwrap_or(u32::MAX);
        Self { left: Arc::new(Semaphore::new(units as usize)), units }
    }

    fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.left.clone().try_acquire_many_owned(self.share(bytes)).ok()
    }

    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.left.clone().acquire_many_owned(self.share(bytes)).await.ok()
    }

    /// What alone is larger than the whole budget gets all of it, rather than never its turn.
    fn share(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX).min(self.units)
    }
}

/// What the handlers of one connection share.
struct Shared {
    service: Service,
    budget: Budget,
    waiting: Budget,
    calls: Semaphore,
    follows: Semaphore,
}

/// Serves the calls of one connection until either side ends it.
///
/// # Cancel safety
/// Dropping it drops the handlers.
pub(in crate::wire) async fn serve_rpc<S: AsyncRead + AsyncWrite + Unpin + Send>(
    connection: Connection<S>,
    service: Service,
    bounds: &Bounds,
    phases: Phases,
) {
    let overloaded = encode(&Err(Reason::TooManyRequests.into()));
    let transport = ServerTransport::new(connection, phases.clone().draining().boxed(), overloaded);
    let config = tarpc::server::Config { pending_response_buffer: RESPONSES_WAITING_MAX };
    let requests = BaseChannel::new(config, transport)
        .max_concurrent_requests(bounds.calls + bounds.follows)
        .requests();
    let shared = Arc::new(Shared {
        service,
        budget: Budget::new(bounds.bytes_in_flight),
        waiting: Budget::new(bounds.bytes_in_flight),
        calls: Semaphore::new(bounds.calls),
        follows: Semaphore::new(bounds.follows),
    });
    let mut requests = pin!(requests);
    let mut stopping = pin!(phases.stopping());
    let mut handlers = JoinSet::new();
    loop {
        // The stream of requests also writes the responses, so it is polled until its end.
        let next = poll_fn(|cx| {
            while let Poll::Ready(Some(_)) = handlers.poll_join_next(cx) {}
            match stopping.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => requests.as_mut().poll_next(cx),
            }
        });
        match next.await {
            Some(Ok(request)) => {
                let shared = shared.clone();
                handlers.spawn(request.execute(tarpc::server::serve(move |_, asked| async move {
                    Ok(shared.reply(asked).await)
                })));
            }
            Some(Err(error)) => {
                log_end(&error);
                break;
            }
            None => break,
        }
    }
    handlers.shutdown().await;
}

fn log_end(error: &tarpc::ChannelError<Broken>) {
    match std::error::Error::source(error).and_then(|source| source.downcast_ref()) {
        Some(Broken::Closed | Broken::Idle) => {}
        _ => tracing::debug!(error = error as &dyn std::error::Error, "connection lost"),
    }
}

/// A call that may be handled now.
struct Admitted<'a> {
    call: Call,
    _share: OwnedSemaphorePermit,
    _slot: SemaphorePermit<'a>,
}

impl Shared {
    async fn reply(&self, asked: Asked) -> Reply {
        let (is_write, mut payload) = self.payload(asked).await;
        // The request has given its share back by now, so requests and responses cannot wait for each other.
        if let Some(share) = self.budget.try_take(payload.len()) {
            return Reply { payload, _share: Some(share) };
        }
        let place = self.waiting.try_take(payload.len());
        // To refuse what is small would spare nothing.
        if place.is_none() && payload.len() > SMALL {
            payload = encode(&Err(unknown_if(is_write, Reason::TooManyRequests)));
        }
        let share = self.budget.take(payload.len()).await;
        Reply { payload, _share: share }
    }

    /// Whether it answers a write, and the answer.
    async fn payload(&self, asked: Asked) -> (bool, Bytes) {
        let (is_write, answer) = match self.admit(asked) {
            Ok(admitted) => (admitted.call.request.is_write(), self.handle(admitted).await),
            Err(reason) => (false, Err(reason.into())),
        };
        let payload = encode(&answer);
        if payload.len() <= RPC_RESPONSE_BYTES_MAX {
            return (is_write, payload);
        }
        let limit = RPC_RESPONSE_BYTES_MAX as u64;
        (is_write, encode(&Err(unknown_if(is_write, Reason::ResultTooLarge { limit }))))
    }

    fn admit(&self, asked: Asked) -> Result<Admitted<'_>, Reason> {
        let Asked { method, timeout, body } = asked;
        let share = self.budget.try_take(body.len()).ok_or(Reason::TooManyRequests)?;
        let request = Request::read_body(method, body).map_err(|_| Reason::Malformed {
            what: format!("request, or one of a newer version: method {method}"),
        })?;
        let follow = matches!(request, Request::Follow(_));
        let slots = if follow { &self.follows } else { &self.calls };
        let slot = slots.try_acquire().map_err(|_| Reason::TooManyRequests)?;
        Ok(Admitted { call: Call { request, timeout }, _share: share, _slot: slot })
    }

    async fn handle(&self, admitted: Admitted<'_>) -> Result<Response, Error> {
        let Admitted { call, .. } = admitted;
        let (is_write, time) = (call.request.is_write(), call.timeout);
        let handled = async { self.service.clone().oneshot(call).await };
        let failed = match timeout(time, AssertUnwindSafe(handled).catch_unwind()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(panic)) => panicked(&*panic),
            Err(_) => Reason::DeadlinePassed { waited: time },
        };
        Err(unknown_if(is_write, failed))
    }
}

/// What the caller of a handler that panicked is told.
pub(in crate::wire) fn panicked(panic: &(dyn Any + Send)) -> Reason {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Reason::AssertionFailed { detail: text.unwrap_or("a handler panicked").to_owned() }
}

fn unknown_if(is_write: bool, reason: Reason) -> Error {
    let error = Error::from(reason);
    if is_write { error.unknown_outcome() } else { error }
}

fn encode(answer: &Result<Response, Error>) -> Bytes {
    answer.to_bytes()
}
