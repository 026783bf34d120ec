//! The way to the group: a boxed service, a timer of its own, and what this client has seen.
//!
//! Everything a client sends goes through [`Link::call`], which is the one place that checks a request, gives it a
//! deadline, and says what is unknown when the deadline passes.
//!
//! ```text
//! request ── place ── check() ── service ──▶ answer in time           → the answer
//!              │        │         └──────▶ deadline first: a read     → DeadlinePassed
//!              │        │                                  a write    → DeadlinePassed, and it may have been applied
//!              │        └ against a rule ─────────────────────────────→ the Reason; nothing was sent
//!              └ none is free in time, where they are bounded ────────→ TooManyRequests; nothing was sent
//! ```
//!
//! Invariants
//! - no call waits longer than its deadline, whatever the service does;
//! - timers belong to the client's runtime, so that a request may be awaited on any executor, and after the end of that
//!   runtime everything fails with [`Reason::Closed`] at once;
//! - what is tried again is a part of what is asked for, or waits;
//! - a client never sees time go back: the newest revision it has seen goes along with every serializable read;
//! - a write happens once, however often it is sent ([`once`](super::once)).

use super::backoff::{Backoff, jitter};
use super::home::Home;
use super::namespace::Namespace;
use super::once::{Name, Names};
use crate::api::{self, Applied, Call, Command, Proposal, Query, Request, Response};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::fault::{Bug, bug};
use crate::types::{Consistency, Revision, TxnOp, TxnOutcome, limits};
use futures::future::{Either, select};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tower::ServiceExt;
use tower::retry::budget::{Budget, TpsBudget};
use tower::util::BoxCloneSyncService;
use tracing::Instrument;

/// How long a try may take, at least, before the next.
pub(super) const ATTEMPT_MIN: Duration = Duration::from_secs(2);
/// The part of its time that a write waits for one try, if that is longer.
pub(super) const ATTEMPT_PART: u32 = 3;

/// Retries beyond a fifth of the calls of the last ten seconds, and ten a second, wait longer.
const BUDGET_TIME: Duration = Duration::from_secs(10);
const BUDGET_PER_SECOND: u32 = 10;
const BUDGET_PART: f32 = 0.2;
/// How long they wait, about.
const DRY: Duration = Duration::from_secs(1);

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
    names: Arc<Names>,
    /// Reads are sent again when they fail. A member in this process does so itself.
    repeats: bool,
    namespace: Namespace,
    /// How many of its calls may be under way, if that is bounded.
    places: Option<Arc<Semaphore>>,
    /// Retries are a part of what is asked for, so that a group in trouble is not asked many times as much.
    budget: Arc<TpsBudget>,
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
    pub(crate) fn new(service: Service, home: Home, timeout: Duration, names: Arc<Names>) -> Self {
        let budget = TpsBudget::new(BUDGET_TIME, BUDGET_PER_SECOND, BUDGET_PART);
        Self {
            service,
            home,
            timeout: timeout.min(limits::CALL_TIMEOUT_MAX),
            seen: Arc::default(),
            names,
            repeats: false,
            namespace: Namespace::default(),
            places: None,
            budget: Arc::new(budget),
        }
    }

    /// The same, for a service whose failures pass.
    pub(super) fn repeating(self) -> Self {
        Self { repeats: true, ..self }
    }

    /// Whether what fails is tried again here, and not by a member in this process.
    pub(super) fn repeats(&self) -> bool {
        self.repeats
    }

    /// The same, for what has no name, and is asked for all: it waits for no place.
    pub(super) fn without_names(&self) -> Self {
        Self { names: Arc::default(), places: None, ..self.clone() }
    }

    /// The same, for keys below a prefix.
    pub(super) fn within(&self, prefix: &[u8]) -> Self {
        Self { namespace: self.namespace.within(prefix), ..self.clone() }
    }

    /// The same, with at most so many calls under way.
    pub(super) fn limited(&self, calls: usize) -> Self {
        let places = Some(Arc::new(Semaphore::new(calls.clamp(1, Semaphore::MAX_PERMITS))));
        Self { places, ..self.clone() }
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
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

    /// How long a call waits.
    fn time(&self, timeout: Option<Duration>) -> Duration {
        timeout.unwrap_or(self.timeout).min(limits::CALL_TIMEOUT_MAX)
    }

    /// Sends one request, and waits for its answer until `timeout`, or as long as is usual.
    pub(crate) async fn call(
        &self,
        request: Request,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        // The shortest time to live is the group's to say.
        api::check(&request, Duration::ZERO)?;
        let timeout = self.time(timeout);
        let is_write = request.is_write();
        if self.has_ended() {
            return Err(closed());
        }
        let span = tracing::debug_span!("request", of = request.name(), ?timeout);
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
        let answer = answer.instrument(span.clone());
        let error = match answer.await {
            Some(Ok(response)) => return Ok(response),
            Some(Err(error)) => error,
            // It was under way when the client's runtime ended.
            None if is_write => closed().unknown_outcome(),
            None => closed(),
        };
        // A timeout says nothing about the other side, whoever noticed it.
        let unknown = is_write && error.kind() == ErrorKind::Timeout;
        let error = if unknown { error.unknown_outcome() } else { error };
        tracing::debug!(parent: &span, %error, "a request failed");
        Err(error)
    }

    /// A place among the requests under way, if their number is bounded.
    async fn place(&self, deadline: Instant) -> Result<Option<OwnedSemaphorePermit>> {
        let Some(places) = self.places.clone() else { return Ok(None) };
        let place = async { tokio::time::timeout_at(deadline, places.acquire_owned()).await };
        match self.home.inside(place).await {
            Some(Ok(place)) => Ok(place.ok()),
            // Nothing was sent.
            Some(Err(_)) => Err(Error::new(Reason::TooManyRequests)),
            None => Err(closed()),
        }
    }

    /// How long to wait before it is tried again: longer, if much of what is under way is tried again.
    fn pause(&self, backoff: &mut Backoff, deadline: Instant) -> Duration {
        let pause = backoff.next();
        match self.budget.withdraw() {
            true => pause,
            false => pause.max(jitter(DRY).min(left(deadline) / 2)),
        }
    }

    /// Sends what may be carried out twice, again if it fails, until it is answered or its time is up.
    pub(super) async fn ask(
        &self,
        request: Request,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        if !self.repeats && self.places.is_none() {
            return self.call(request, timeout).await;
        }
        let deadline = Instant::now() + self.time(timeout);
        let _place = self.place(deadline).await?;
        if !self.repeats {
            return self.call(request, Some(left(deadline))).await;
        }
        let mut backoff = Backoff::retry();
        self.budget.deposit();
        loop {
            let tried = attempt(deadline, self.time(timeout));
            let error = match self.call(request.clone(), Some(tried)).await {
                Err(error) if is_passing(&error) => error,
                Err(error) => return Err(late(error, self.time(timeout))),
                answered => return answered,
            };
            let pause = self.pause(&mut backoff, deadline);
            if left(deadline) <= pause {
                return Err(late(error, self.time(timeout)));
            }
            self.sleep(pause).await;
        }
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
            let seen = match bug(Bug::SeenIsForgotten) {
                true => 0,
                false => self.seen.load(Ordering::Relaxed),
            };
            revision_min = revision_min.max((seen > 0).then(|| Revision::from(seen)));
        }
        let txn = self.namespace.txn(txn)?;
        let request = Request::Query(Query { txn, consistency, revision_min });
        match self.ask(request, timeout).await? {
            Response::Query(outcome) => {
                self.saw(outcome.revision);
                Ok(self.namespace.outcome(outcome))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Proposes one command, and does so again if its answer is lost: it happens once.
    ///
    /// # Errors
    /// It [may have been applied](Error::may_have_applied) if its time was up, or this client was shut down, before it was
    /// answered; if the group has forgotten this client, or remembers too many others, and a try was not answered; and if its
    /// answer was lost and was not kept.
    pub(crate) async fn propose(
        &self,
        command: Command,
        timeout: Option<Duration>,
    ) -> Result<Applied> {
        // Also if this client has no name yet, and asks for one first.
        api::check_command(&command, Duration::ZERO)?;
        let total = self.time(timeout);
        let deadline = Instant::now() + total;
        let _place = self.place(deadline).await?;
        let mut backoff = Backoff::retry();
        self.budget.deposit();
        // A try before may have been applied: what became of it only the group can tell.
        let mut is_unknown = false;
        let mut name = self.name(deadline).await?;
        loop {
            let origin = name.as_ref().map(|name| name.origin(is_unknown));
            let proposal = Proposal { origin, command: command.clone() };
            // What may not be sent again has all the time.
            let wait = origin.map_or(left(deadline), |_| attempt(deadline, total));
            let error = match self.propose_one(proposal, wait).await {
                Ok(Ok(applied)) => return Ok(applied),
                // What the state says of a write, it says of each try.
                Ok(Err(error)) if is_of_state(&error) => return Err(known(error)),
                Ok(Err(error)) | Err(error) => error,
            };
            is_unknown |= error.may_have_applied();
            let in_doubt = |error: Error| match is_unknown {
                true => Err(late(error, total).unknown_outcome()),
                false => Err(late(error, total)),
            };
            if *error.reason() == Reason::AlreadyAnswered {
                // Its time was up, and the group was told that nobody waits.
                return in_doubt(Error::new(Reason::DeadlinePassed { waited: total }));
            }
            if *error.reason() == Reason::ClientForgotten {
                // The one before goes first: a number is not waited for any more.
                name.take().iter().for_each(Name::forget_client);
                if is_unknown {
                    return in_doubt(error);
                }
            }
            let may_be_sent_again = origin.is_some() || !is_unknown;
            if !may_be_sent_again || !is_passing(&error) {
                return in_doubt(error);
            }
            let pause = self.pause(&mut backoff, deadline);
            if left(deadline) <= pause {
                return in_doubt(error);
            }
            self.sleep(pause).await;
            if self.has_ended() || left(deadline).is_zero() {
                return in_doubt(error);
            }
            if origin.is_some() && name.is_none() {
                name = self.name(deadline).await?;
            }
        }
    }

    async fn name(&self, deadline: Instant) -> Result<Option<Name>> {
        if self.has_ended() {
            return Err(closed());
        }
        let wait = left(deadline);
        let next = self.names.next(self, deadline);
        match select(pin!(next), pin!(self.sleep_until(deadline))).await {
            Either::Left((name, _)) => name,
            Either::Right(_) if self.has_ended() => Err(closed()),
            Either::Right(_) => Err(self
                .names
                .trouble()
                .unwrap_or_else(|| Error::new(Reason::DeadlinePassed { waited: wait }))),
        }
    }

    /// Proposes what may happen more than once, until it has. Returns when that was sent which was answered: before it left,
    /// so that whatever the group counts begins later.
    pub(super) async fn propose_again(
        &self,
        proposal: Proposal,
        timeout: Duration,
    ) -> Result<(Applied, Instant)> {
        let total = self.time(Some(timeout));
        let deadline = Instant::now() + total;
        let mut backoff = Backoff::retry();
        loop {
            let sent = Instant::now();
            let tried = self.propose_one(proposal.clone(), attempt(deadline, total)).await;
            let pause = backoff.next();
            match tried.and_then(|outcome| outcome) {
                Err(error) if is_passing(&error) && left(deadline) > pause => {
                    self.sleep(pause).await;
                }
                Err(error) => return Err(late(error, total)),
                Ok(applied) => return Ok((applied, sent)),
            }
        }
    }

    /// What the group says, unless the call fails.
    async fn propose_one(&self, proposal: Proposal, timeout: Duration) -> Result<Result<Applied>> {
        let mut outcomes = self.propose_all(vec![proposal], Some(timeout)).await?;
        outcomes.pop().ok_or_else(|| malformed("number of outcomes").unknown_outcome())
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
                outcomes.iter().flatten().for_each(|applied| self.saw(applied.revision()));
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
        self.write(txn, timeout).await
    }

    /// Carries out a transaction by the log.
    pub(crate) async fn write(&self, txn: TxnOp, timeout: Option<Duration>) -> Result<TxnOutcome> {
        let command = Command::Txn(self.namespace.txn(txn)?);
        match self.propose(command, timeout).await? {
            Applied::Txn(outcome) => Ok(self.namespace.outcome(outcome)),
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
        Response::Queries(_) => "answer: several queries'",
        Response::Follow(_) => "answer: a follow's",
        Response::KeepAlive(_) => "answer: a keep-alive's, or of another length",
        Response::Leases { .. } => "answer: a list of leases, or of another length",
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

/// How long it is until then.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// If it says that time was up, then all of it, and not that of the last try.
pub(super) fn late(error: Error, waited: Duration) -> Error {
    match error.reason() {
        Reason::DeadlinePassed { .. } => error.for_reason(Reason::DeadlinePassed { waited }),
        _ => error,
    }
}

/// How long one try may take, so that there is time for another.
fn attempt(deadline: Instant, total: Duration) -> Duration {
    left(deadline).min(ATTEMPT_MIN.max(total / ATTEMPT_PART))
}

/// Whether it may go otherwise before long.
pub(super) fn is_passing(error: &Error) -> bool {
    error.is_retryable() && !matches!(error.reason(), Reason::TooManyClients { .. })
}

/// Whether it is what the state says to a write: no other try of it can have been told otherwise.
pub(super) fn is_of_state(error: &Error) -> bool {
    match error.kind() {
        // What is said on the way to the state is not what that says.
        ErrorKind::InvalidInput => !matches!(
            error.reason(),
            Reason::PlaintextRefused { .. }
                | Reason::BadAddress { .. }
                | Reason::RequestTooLarge { .. }
                | Reason::TtlTooSmall { .. }
        ),
        ErrorKind::NotFound
        | ErrorKind::Compacted
        | ErrorKind::LeaseExpired
        | ErrorKind::NoSpace => true,
        ErrorKind::Conflict => *error.reason() != Reason::AlreadyAnswered,
        ErrorKind::Overloaded
        | ErrorKind::Unavailable
        | ErrorKind::Timeout
        | ErrorKind::WrongGroup
        | ErrorKind::Unauthenticated
        | ErrorKind::Codec
        | ErrorKind::Storage
        | ErrorKind::Closed => false,
    }
}

/// What a write came to, though its answer is not known any more.
fn known(error: Error) -> Error {
    match error.reason() {
        Reason::AnswerNotKept { .. } => error.unknown_outcome(),
        _ => error,
    }
}
