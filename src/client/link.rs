//! The way to the group: a boxed service, a timer of its own, and what this client has seen.
//!
//! Everything a client sends goes through [`Link::call`], which is the one place that checks a request, gives it a
//! deadline, and says what is unknown when the deadline passes.
//!
//! ```text
//! request ── check() ── service ──▶ answer in time                 → the answer
//!                │         └──────▶ deadline first: a read         → DeadlinePassed
//!                │                                  a write        → DeadlinePassed, and it may have been applied
//!                └ against a rule ──────────────────────────────────→ the Reason; nothing was sent
//! ```
//!
//! Invariants
//! - no call waits longer than its deadline, whatever the service does;
//! - timers belong to the client's runtime, so that a request may be awaited on any executor, and after the end of that
//!   runtime everything fails with [`Reason::Closed`] at once;
//! - a client never sees time go back: the newest revision it has seen goes along with every serializable read.
//!
//! It does not retry. A write that is sent twice may happen twice, and only the caller knows whether that matters.

use super::home::Home;
use crate::api::{self, Applied, Call, Command, Proposal, Query, Request, Response};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::types::{Consistency, Revision, TxnOp, TxnOutcome, limits};
use futures::future::{Either, select};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

/// A node in this process, or the stub of a remote one.
pub(crate) type Service = BoxCloneSyncService<Call, Response, Error>;

/// A service with a timer and a memory. Cheap to clone; all clones share the memory.
#[derive(Clone)]
pub(crate) struct Link {
    service: Service,
    home: Home,
    /// How long a call waits if it does not say so itself.
    timeout: Duration,
    /// The newest revision that this client has seen.
    seen: Arc<AtomicU64>,
}

/// How fresh the answer of a read must be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Freshness {
    pub(crate) consistency: Consistency,
    pub(crate) revision_min: Option<Revision>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(service: Service, home: Home, timeout: Duration) -> Self {
        Self { service, home, timeout, seen: Arc::default() }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        self.home.runtime()
    }

    /// Whether the runtime has ended, and everything with it that would answer or renew.
    pub(crate) fn has_ended(&self) -> bool {
        self.home.has_ended()
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends one request, and waits for its answer until `timeout`, or as long as is usual.
    pub(crate) async fn call(
        &self,
        request: Request,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        // The shortest time to live is the group's to say.
        api::check(&request, Duration::ZERO)?;
        let timeout = timeout.unwrap_or(self.timeout).min(limits::CALL_TIMEOUT_MAX);
        let is_write = request.is_write();
        if self.has_ended() {
            return Err(closed());
        }
        let answer = self.service.clone().oneshot(Call { request, timeout });
        // All of it inside, for whatever answers in this process has timers as well.
        let answer = self.home.inside(async {
            // Made when it is first waited for: most reads of a member in this process never are.
            let timer = async { tokio::time::sleep(timeout).await };
            match select(pin!(answer), pin!(timer)).await {
                Either::Left((answer, _)) => answer,
                Either::Right(_) => Err(Error::new(Reason::DeadlinePassed { waited: timeout })),
            }
        });
        let error = match answer.await {
            Some(Ok(response)) => return Ok(response),
            Some(Err(error)) => error,
            // It was under way when the client's runtime ended.
            None if is_write => closed().unknown_outcome(),
            None => closed(),
        };
        // A timeout says nothing about the other side, whoever noticed it.
        let unknown = is_write && error.kind() == ErrorKind::Timeout;
        Err(if unknown { error.unknown_outcome() } else { error })
    }

    /// Reads, without an entry in the log.
    pub(crate) async fn query(
        &self,
        txn: TxnOp,
        fresh: Freshness,
        timeout: Option<Duration>,
    ) -> Result<TxnOutcome> {
        // A read of a member in this process is answered at once. Without this, a task that does nothing but read would
        // never give way, not even to its own timeout.
        tokio::task::coop::consume_budget().await;
        let Freshness { consistency, mut revision_min } = fresh;
        if consistency == Consistency::Serializable {
            // Members lag behind each other; without this, the next read could show an older state than the last.
            let seen = self.seen.load(Ordering::Relaxed);
            revision_min = revision_min.max((seen > 0).then(|| Revision::from(seen)));
        }
        let request = Request::Query(Query { txn, consistency, revision_min });
        match self.call(request, timeout).await? {
            Response::Query(outcome) => {
                self.saw(outcome.revision);
                Ok(outcome)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Proposes one command.
    pub(crate) async fn propose(
        &self,
        command: Command,
        timeout: Option<Duration>,
    ) -> Result<Applied> {
        let proposals = vec![Proposal::from(command)];
        let mut outcomes = self.propose_all(proposals, timeout).await?;
        outcomes.pop().unwrap_or_else(|| Err(malformed("number of outcomes").unknown_outcome()))
    }

    /// Proposes many commands in one call. The answer has as many outcomes, in the same order.
    pub(crate) async fn propose_all(
        &self,
        proposals: Vec<Proposal>,
        timeout: Option<Duration>,
    ) -> Result<Vec<Result<Applied>>> {
        let expected = proposals.len();
        let request = Request::Propose { proposals, forwarded: false };
        match self.call(request, timeout).await? {
            Response::Propose(outcomes) if outcomes.len() == expected => {
                outcomes.iter().flatten().filter_map(revision_of).for_each(|seen| self.saw(seen));
                Ok(outcomes)
            }
            other => Err(unexpected(&other).unknown_outcome()),
        }
    }

    /// Carries out a transaction: by the log if it can change a key, else as a read.
    pub(crate) async fn txn(
        &self,
        txn: TxnOp,
        fresh: Freshness,
        timeout: Option<Duration>,
    ) -> Result<TxnOutcome> {
        if txn.is_read_only() {
            return self.query(txn, fresh, timeout).await;
        }
        match self.propose(Command::Txn(txn), timeout).await? {
            Applied::Txn(outcome) => Ok(outcome),
            _ => Err(malformed("outcome of a transaction").unknown_outcome()),
        }
    }

    /// The revision of the group now, by the word of a quorum.
    pub(crate) async fn revision(&self, timeout: Option<Duration>) -> Result<Revision> {
        let outcome = self.query(TxnOp::default(), Freshness::default(), timeout).await?;
        Ok(outcome.revision)
    }

    /// Remembers that this client knows of `revision`.
    pub(crate) fn saw(&self, revision: Revision) {
        self.seen.fetch_max(revision.get(), Ordering::Relaxed);
    }

    /// Waits, or until the runtime has ended.
    pub(crate) async fn sleep(&self, duration: Duration) {
        self.home.inside(async { tokio::time::sleep(duration).await }).await;
    }

    /// The same, up to a point in time.
    pub(crate) async fn sleep_until(&self, deadline: Instant) {
        self.home.inside(async { tokio::time::sleep_until(deadline).await }).await;
    }
}

fn closed() -> Error {
    Error::new(Reason::Closed)
}

/// The answer is not one to this question.
pub(crate) fn unexpected(response: &Response) -> Error {
    malformed(match response {
        Response::Propose(_) => "answer: a proposal's, or of another length",
        Response::Query(_) => "answer: a query's",
        Response::Follow(_) => "answer: a follow's",
        Response::KeepAlive(_) => "answer: a keep-alive's, or of another length",
        Response::Leases(_) => "answer: a list of leases, or of another length",
        Response::ReadIndex(_) => "answer: a read index",
        Response::Status(_) => "answer: a status",
        Response::Founding(_) => "answer: a founder's",
        Response::Join { .. } => "answer: to one that joins",
        Response::Members(_) => "answer: a list of members",
        Response::Change => "answer: a change of members",
    })
}

pub(crate) fn malformed(what: &str) -> Error {
    Error::new(Reason::Malformed { what: what.to_owned() })
}

fn revision_of(applied: &Applied) -> Option<Revision> {
    match applied {
        Applied::Txn(outcome) => Some(outcome.revision),
        Applied::Granted { revision, .. }
        | Applied::Revoked { revision }
        | Applied::Expired { revision, .. }
        | Applied::Noted { revision }
        | Applied::Compacted { revision } => Some(*revision),
    }
}
