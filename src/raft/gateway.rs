//! The door of a node: every request of every client comes in here.
//!
//! ```text
//!           ┌─ check(): refused by the rules, before anything happened
//! Call ─────┤
//!           ├─ write ─┬─ this member leads ─▶ openraft ─▶ applied ─▶ answer
//!           │         └─ another leads ─▶ its gateway, one hop, marked so that it goes no further
//!           ├─ read ──── a round (unless serializable) ─▶ wait until applied ─▶ local view
//!           ├─ lease ─── the leader, after a round ─▶ memory
//!           └─ watch ─── local history
//! ```
//!
//! Clients know no leader: whichever member they ask finds it. While there is none the gateway waits, as long as the
//! caller does.
//!
//! Invariants
//! - what was surely not appended is tried again until the deadline; what may have been never is, and its error says so;
//! - a forwarded request is never forwarded again;
//! - no request is held longer than its caller waits, and no more bytes than [`ADMISSION_UNITS`] are under way.

use super::Payload;
use super::aside;
use super::convoy;
use super::leases::Remaining;
use super::member::{ADMISSION_UNITS, Leadership, Shared};
use super::members;
use super::watch::Watchers;
use crate::api::{self, Applied, Call, Command, Proposal, Query, Request, Response};
use crate::error::{Error, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::mvcc::{KEY_BYTES, View};
use crate::types::{
    Consistency, LeaseId, LeaseStatus, NodeId, Op, OpKind, OpResult, Revision, TxnOp, TxnOutcome,
    limits,
};
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use openraft::errors::ClientWriteError;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

/// How long to wait before asking again who leads, if nobody says that it changed.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// One caller's way into a node: a connection, or a client in this process. Clones share their watches.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    shared: Arc<Shared>,
    watchers: Arc<Watchers>,
    /// Long reads of this caller that may be carried out.
    own_reads: Arc<Semaphore>,
    /// Its requests are carried out on the node's own threads, and not on those of whoever asks.
    is_remote: bool,
}

impl tower::Service<Call> for Gateway {
    type Response = Response;
    type Error = Error;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        // What waits for nothing needs no task, no timer and no future that could hold all the rest.
        if let Some(answer) = self.at_once(&call.request) {
            return ready(answer).boxed();
        }
        let Call { request, timeout } = call;
        let deadline = Instant::now() + timeout.min(limits::CALL_TIMEOUT_MAX);
        match api::check(&request, self.shared.timing.ttl_floor()) {
            Ok(()) => self.clone().answer(request, deadline),
            Err(reason) => ready(Err(reason.into())).boxed(),
        }
    }
}

/// The answer to a request, when it is there.
type Answer = BoxFuture<'static, Result<Response, Error>>;

/// What became of a write that this member tried.
#[derive(Debug)]
pub(crate) enum Tried {
    Answered(Result<Applied, Error>),
    /// It is surely in no log.
    NotAppended(Error),
}

impl Gateway {
    /// The way of a client in this process.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let watchers = Arc::new(Watchers::new(Arc::clone(&shared.state)));
        let own_reads = Arc::new(Semaphore::new(OWN_READS_MAX));
        Self { shared, watchers, own_reads, is_remote: false }
    }

    /// The way of a connection.
    pub(crate) fn remote(shared: Arc<Shared>) -> Self {
        Self { is_remote: true, ..Self::new(shared) }
    }

    /// The answer to a serializable read, if this member has come far enough.
    fn at_once(&self, request: &Request) -> Option<Result<Response, Error>> {
        let Request::Query(query) = request else { return None };
        let is_there = || {
            let revision = self.shared.head().revision;
            query.revision_min.is_none_or(|min| revision >= min)
        };
        let is_aside = self.reads_aside(query);
        if query.consistency != Consistency::Serializable || is_aside || !is_there() {
            return None;
        }
        let checked = api::check(request, self.shared.timing.ttl_floor());
        let read = checked.map_err(Error::from).and_then(|()| self.read(query));
        Some(read.map(Response::Query))
    }

    /// A future of its own for each kind of request: one is as large as the largest of its ways, and what is asked often
    /// would pay for what is asked seldom.
    fn answer(self, request: Request, deadline: Instant) -> Answer {
        match request {
            Request::Propose { proposals, forwarded } => Box::pin(async move {
                let outcomes = self.propose(proposals, forwarded, deadline).await?;
                Ok(Response::Propose(outcomes))
            }),
            Request::Query(query) => {
                Box::pin(async move { self.query(query, deadline).await.map(Response::Query) })
            }
            Request::Queries(queries) => {
                Box::pin(
                    async move { self.queries(queries, deadline).await.map(Response::Queries) },
                )
            }
            Request::Follow(follow) => {
                Box::pin(async move { self.watchers.follow(follow).await.map(Response::Follow) })
            }
            Request::KeepAlive { leases, forwarded } => Box::pin(async move {
                let again = Request::KeepAlive { leases: leases.clone(), forwarded: true };
                let own = || self.keep_alive(&leases, deadline);
                self.on_leader(own, again, forwarded, deadline).await
            }),
            Request::Leases { only, keys, forwarded } => Box::pin(async move {
                let again = Request::Leases { only: only.clone(), keys, forwarded: true };
                let own = || self.leases(only.as_deref(), keys, deadline);
                self.on_leader(own, again, forwarded, deadline).await
            }),
            Request::ReadIndex => Box::pin(async move { self.read_index(deadline).await }),
            Request::Status => ready(Ok(Response::Status(Box::new(self.shared.status())))).boxed(),
            Request::Founding(question) => {
                ready(self.shared.desk.answer(&question).map(Response::Founding)).boxed()
            }
            Request::Join { join, forwarded } => Box::pin(async move {
                let again = Request::Join { join: join.clone(), forwarded: true };
                let own = || within(deadline, members::admit(&self.shared, &join));
                self.on_leader(own, again, forwarded, deadline).await
            }),
            Request::Members { forwarded } => Box::pin(async move {
                let again = Request::Members { forwarded: true };
                let own = || within(deadline, members::list(&self.shared));
                self.on_leader(own, again, forwarded, deadline).await
            }),
            Request::Change { change, forwarded } => Box::pin(async move {
                let again = Request::Change { change, forwarded: true };
                let own = || within(deadline, members::change(&self.shared, change));
                self.on_leader(own, again, forwarded, deadline).await
            }),
        }
    }

    // ------------------------------------------------------------------------------------------------ writes

    /// Carries out proposals, here or at the leader, and returns one outcome for each, in order.
    async fn propose(
        &self,
        proposals: Vec<Proposal>,
        forwarded: bool,
        deadline: Instant,
    ) -> Result<Vec<Result<Applied, Error>>, Error> {
        let started = Instant::now();
        // Decided by the leader's own clock in its own term: nobody else may propose it.
        if proposals.iter().any(|it| it.command.is_leaders()) && !bug(Bug::ExpireOutlivesTerm) {
            return Err(Reason::Malformed {
                what: "proposal: only a leader expires leases and history".into(),
            }
            .into());
        }
        let payloads: Vec<Payload> = proposals.into_iter().map(Payload::from).collect();
        let _admitted = self.admit(&payloads, deadline).await?;
        let mut outcomes = self.without_room(&payloads);
        let mut waiting: Vec<usize> = (0..payloads.len()).collect();
        waiting.retain(|index| outcomes[*index].is_none());
        while !waiting.is_empty() {
            let leadership = self.shared.leadership();
            let batch: Vec<&Payload> = waiting.iter().map(|index| &payloads[*index]).collect();
            let tried = self.try_once(&leadership, &batch, forwarded, deadline).await;
            let mut not_appended = None;
            let mut left = Vec::new();
            for (index, tried) in waiting.into_iter().zip(tried) {
                match tried {
                    Tried::Answered(outcome) => outcomes[index] = Some(outcome),
                    Tried::NotAppended(error) => {
                        left.push(index);
                        not_appended.get_or_insert(error);
                    }
                }
            }
            waiting = left;
            let Some(error) = not_appended else { break };
            if forwarded || !self.wait_for_change(&leadership, deadline).await {
                // It is a definite "no": none of these is in any log.
                let error = if forwarded { error } else { out_of_time(&error, started) };
                waiting.iter().for_each(|index| outcomes[*index] = Some(Err(error.clone())));
                break;
            }
        }
        Ok(outcomes.into_iter().map(|it| it.expect("each was answered or given up")).collect())
    }

    /// The refusals of what would take room, if there is none.
    fn without_room(&self, payloads: &[Payload]) -> Vec<Option<Result<Applied, Error>>> {
        let is_short = self.shared.is_short_of_room();
        let refused = |it: &Payload| {
            // What was sent before may have been carried out while there was room: its answer is in the state.
            let may_be_known = it.proposal.origin.is_some_and(|origin| origin.again);
            is_short && !may_be_known && it.proposal.command.takes_room()
        };
        payloads.iter().map(|it| refused(it).then(|| Err(Reason::NoSpace.into()))).collect()
    }

    /// Takes on the bytes of a request, or refuses it before anything happened.
    async fn admit(
        &self,
        payloads: &[Payload],
        deadline: Instant,
    ) -> Result<SemaphorePermit<'_>, Error> {
        let bytes: usize = payloads.iter().map(|payload| payload.bytes.len()).sum();
        let units = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(ADMISSION_UNITS);
        match timeout_at(deadline, self.shared.admission.acquire_many(units)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Reason::Closed.into()),
            Err(_) => Err(Reason::TooManyRequests.into()),
        }
    }

    async fn try_once(
        &self,
        leadership: &Leadership,
        batch: &[&Payload],
        forwarded: bool,
        deadline: Instant,
    ) -> Vec<Tried> {
        let refuse = |reason: Reason| {
            let error = Error::from(reason);
            batch.iter().map(|_| Tried::NotAppended(error.clone())).collect()
        };
        if leadership.is_me {
            return self.append(batch, forwarded, deadline).await;
        }
        let leader = leadership.leader.map(NodeId::from);
        match self.shared.leader_client(leadership) {
            Some(_) if forwarded => refuse(Reason::NotLeader { leader }),
            Some(client) => {
                let (shared, leader) = (&*self.shared, (leadership, &client));
                let tried = shared.convoy.send(shared, leader, batch, deadline).await;
                tried.into_iter().map(|it| self.of_leader(it)).collect()
            }
            None => refuse(Reason::NoLeader),
        }
    }

    /// What became of a write that the leader tried, in the eyes of this member.
    fn of_leader(&self, tried: Tried) -> Tried {
        match tried {
            Tried::Answered(Err(error)) => convoy::sort(Err(self.shared.passed_on(error))),
            tried => tried,
        }
    }

    /// Appends proposals to this leader's log and waits until they are applied.
    async fn append(&self, batch: &[&Payload], forwarded: bool, deadline: Instant) -> Vec<Tried> {
        let started = Instant::now();
        for payload in batch {
            self.let_leases_end(&payload.proposal, deadline).await;
        }
        let payloads: Vec<Payload> = batch.iter().map(|payload| (*payload).clone()).collect();
        let late = || {
            let waited = started.elapsed();
            let error = Error::from(Reason::DeadlinePassed { waited });
            Tried::Answered(Err(match bug(Bug::RefusedMayHaveHappened) {
                false => error.unknown_outcome(),
                true => error,
            }))
        };
        let stopped = || Tried::Answered(Err(self.shared.stopped().unknown_outcome()));
        point(Point::Proposed);
        let sent = timeout_at(deadline, self.shared.raft.client_write_many(payloads)).await;
        let mut answers = match sent {
            Ok(Ok(answers)) => answers,
            // Nobody took it. The member that passed it on looks for another leader; a client of this one hears why.
            Ok(Err(_fatal)) if forwarded => {
                let closed = || Tried::NotAppended(Reason::Closed.into());
                return batch.iter().map(|_| closed()).collect();
            }
            Ok(Err(_fatal)) => {
                let stopped = || Tried::Answered(Err(self.shared.stopped()));
                return batch.iter().map(|_| stopped()).collect();
            }
            Err(_) => return batch.iter().map(|_| late()).collect(),
        };
        let mut tried = Vec::with_capacity(batch.len());
        for _ in batch {
            point(Point::ProposalApplied);
            tried.push(match timeout_at(deadline, answers.next()).await {
                Ok(Some(Ok(Ok(written)))) => Tried::Answered(written.response.map_or_else(
                    || Err(Reason::Malformed { what: "command".to_owned() }.into()),
                    |outcome| outcome.map_err(Error::from),
                )),
                Ok(Some(Ok(Err(error)))) => refused(&error),
                Ok(Some(Err(_)) | None) => stopped(),
                Err(_) => late(),
            });
        }
        tried
    }

    /// A lease that is due counts as gone from that moment: a write that names it waits until its end is in the log.
    async fn let_leases_end(&self, proposal: &Proposal, deadline: Instant) {
        let leases = named_leases(&proposal.command);
        if leases.is_empty() {
            return;
        }
        let mut head = self.shared.state.head();
        while self.shared.state.lessor.any_due(&leases) {
            if !matches!(timeout_at(deadline, head.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Waits until somebody else may lead, or it is worth asking the same again. Returns whether there is time left.
    async fn wait_for_change(&self, before: &Leadership, deadline: Instant) -> bool {
        let mut changes = self.shared.leadership_changes();
        let again = (Instant::now() + ASK_AGAIN).min(deadline);
        let changed = changes.wait_for(|now| now != before && now.leader.is_some());
        let _ = timeout_at(again, changed).await;
        Instant::now() < deadline
    }

    // ------------------------------------------------------------------------------------------------- reads

    async fn query(&self, query: Query, deadline: Instant) -> Result<TxnOutcome, Error> {
        self.come_so_far(query.consistency, query.revision_min, deadline).await?;
        if self.reads_aside(&query) {
            let gateway = self.clone();
            return self.aside(move || gateway.read(&query), deadline).await?;
        }
        point(Point::ReadAnswer);
        self.read(&query)
    }

    /// Reads one key after the other, as long as the answer has room.
    async fn queries(
        &self,
        queries: Vec<Query>,
        deadline: Instant,
    ) -> Result<Vec<Result<TxnOutcome, Error>>, Error> {
        let is_local = |query: &Query| query.consistency == Consistency::Serializable;
        let consistency = match queries.iter().all(is_local) {
            true => Consistency::Serializable,
            false => Consistency::Linearizable,
        };
        let revision_min = queries.iter().filter_map(|query| query.revision_min).max();
        self.come_so_far(consistency, revision_min, deadline).await?;
        let mut outcomes = Vec::with_capacity(queries.len());
        let mut bytes = 0;
        for (number, query) in queries.iter().enumerate() {
            if number % FEW == FEW - 1 {
                // The thread keeps time for the whole group.
                tokio::task::yield_now().await;
            }
            if bytes > QUERIES_BYTES {
                let limit = QUERIES_BYTES as u64;
                outcomes.push(Err(Reason::ResultTooLarge { limit }.into()));
                continue;
            }
            point(Point::ReadAnswer);
            let outcome = self.read(query);
            if let Ok(TxnOutcome { results, .. }) = &outcome
                && let Some(OpResult::Get(Some(kv))) = results.first()
            {
                bytes += kv.key.len() + kv.value.len();
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// Waits until this member has applied what a read must see.
    async fn come_so_far(
        &self,
        consistency: Consistency,
        revision_min: Option<Revision>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let started = Instant::now();
        if consistency == Consistency::Linearizable && !bug(Bug::ReadWithoutIndex) {
            point(Point::ReadRound);
            let position = self.round(deadline).await?;
            point(Point::ReadConfirmed);
            self.applied(position.index, deadline).await?;
            point(Point::ReadApplied);
        }
        if let Some(revision) = revision_min {
            let reached = self.shared.reached(|head| head.revision >= revision);
            timeout_at(deadline, reached).await.map_err(|_| late(started))??;
        }
        Ok(())
    }

    /// Whether a read is better not carried out on the node's own thread, which keeps time for the whole group: one of
    /// somebody elsewhere that may be long.
    fn reads_aside(&self, query: &Query) -> bool {
        self.is_remote && is_scan(&query.txn)
    }

    fn view(&self) -> Result<View, Error> {
        self.shared.state.view().map_err(|fault| self.shared.state.fail(fault))
    }

    fn read(&self, query: &Query) -> Result<TxnOutcome, Error> {
        let fail = |fault| self.shared.state.fail(fault);
        self.shared.state.read(&query.txn).map_err(fail)?.map_err(Error::from)
    }

    /// A round that confirms the leader, tried until the deadline.
    async fn round(&self, deadline: Instant) -> Result<crate::mvcc::LogPosition, Error> {
        let started = Instant::now();
        loop {
            let leadership = self.shared.leadership();
            match timeout_at(deadline, self.shared.reads.round()).await {
                Ok(Ok(position)) => return Ok(position),
                Ok(Err(error)) if !error.is_retryable() => return Err(error),
                Ok(Err(error)) => {
                    if !self.wait_for_change(&leadership, deadline).await {
                        return Err(out_of_time(&error, started));
                    }
                }
                Err(_) => return Err(late(started)),
            }
        }
    }

    async fn applied(&self, index: u64, deadline: Instant) -> Result<(), Error> {
        let started = Instant::now();
        timeout_at(deadline, self.shared.applied(index)).await.map_err(|_| late(started))?
    }

    async fn read_index(&self, deadline: Instant) -> Result<Response, Error> {
        let leadership = self.shared.leadership();
        if !leadership.is_me {
            return Err(Reason::NotLeader { leader: leadership.leader.map(Into::into) }.into());
        }
        let started = Instant::now();
        let round = timeout_at(deadline, self.shared.reads.round()).await;
        Ok(Response::ReadIndex(round.map_err(|_| late(started))??.index))
    }

    // ------------------------------------------------------------------------------------------------ leases

    /// Answers from the leader's memory: here, or one hop away.
    async fn on_leader<F: Future<Output = Result<Response, Error>>>(
        &self,
        own: impl Fn() -> F,
        again: Request,
        forwarded: bool,
        deadline: Instant,
    ) -> Result<Response, Error> {
        let started = Instant::now();
        let mut is_unknown = false;
        loop {
            let leadership = self.shared.leadership();
            let leader = leadership.leader.map(NodeId::from);
            let answer = if leadership.is_me {
                own().await
            } else {
                match self.shared.leader_client(&leadership) {
                    Some(_) if forwarded => Err(Reason::NotLeader { leader }.into()),
                    Some(client) => {
                        point(Point::ForwardCall);
                        let timeout = deadline.saturating_duration_since(Instant::now());
                        let call = Call { request: again.clone(), timeout };
                        let given_up = self.shared.led_by_another(&leadership);
                        let answer = client.call_until(call, given_up).await;
                        answer.map_err(|error| self.shared.passed_on(error))
                    }
                    None => Err(Reason::NoLeader.into()),
                }
            };
            match answer {
                // All that comes here may be done twice, and means the same.
                Err(error) if error.is_retryable() && !forwarded => {
                    is_unknown |= error.may_have_applied();
                    if !self.wait_for_change(&leadership, deadline).await {
                        let error = out_of_time(&error, started);
                        return Err(if is_unknown { error.unknown_outcome() } else { error });
                    }
                }
                // An earlier try may have been carried out, and this be what became of it.
                Err(error) if is_unknown => return Err(error.unknown_outcome()),
                answer => return answer,
            }
        }
    }

    /// Renews leases, after a quorum has confirmed that this member leads: a leader that was deposed a moment ago would
    /// push back a deadline that its successor does not know.
    async fn keep_alive(&self, leases: &[LeaseId], deadline: Instant) -> Result<Response, Error> {
        point(Point::LeaseRenew);
        let confirmed = self.round(deadline).await?;
        self.applied(confirmed.index, deadline).await?;
        // A term may have two leaders, one after the other, and it may be the other that was confirmed.
        if confirmed.node != self.shared.identity.node {
            return Err(Reason::NoLeader.into());
        }
        point(Point::LeaseConfirmed);
        let renewed = self.shared.state.lessor.renew(confirmed.term, leases);
        point(Point::LeaseRenewed);
        renewed.map(Response::KeepAlive).ok_or_else(|| Reason::NoLeader.into())
    }

    async fn leases(
        &self,
        only: Option<&[LeaseId]>,
        keys: bool,
        deadline: Instant,
    ) -> Result<Response, Error> {
        let confirmed = self.round(deadline).await?;
        self.applied(confirmed.index, deadline).await?;
        let lessor = &self.shared.state.lessor;
        let remaining = lessor.remaining(only).ok_or_else(|| Error::from(Reason::NoLeader))?;
        let gateway = self.clone();
        let read = move || gateway.lease_status(remaining, keys);
        if self.is_remote { self.aside(read, deadline).await? } else { read() }
    }

    /// What is known of leases, with the keys of each if they are wanted.
    fn lease_status(
        &self,
        remaining: Vec<(LeaseId, Option<Remaining>)>,
        keys: bool,
    ) -> Result<Response, Error> {
        let fail = |fault| self.shared.state.fail(fault);
        let view = self.view()?;
        let limit = limits::ANSWER_BYTES_MAX;
        let too_large = || Error::from(Reason::ResultTooLarge { limit: limit as u64 });
        let (mut leases, mut room) = (Vec::with_capacity(remaining.len()), limit);
        for (id, remaining) in remaining {
            room = room.checked_sub(LEASE_BYTES).ok_or_else(too_large)?;
            let is_there = view.has_lease(id).map_err(fail)?;
            let Some(Remaining { ttl, left }) = remaining.filter(|_| is_there) else {
                leases.push(None);
                continue;
            };
            let keys = match keys {
                true => view.lease_keys_within(id, room).map_err(fail)?.ok_or_else(too_large)?,
                false => Vec::new(),
            };
            room -= keys.iter().map(|key| KEY_BYTES + key.len()).sum::<usize>();
            leases.push(Some(LeaseStatus { id, ttl, remaining: left, keys }));
        }
        Ok(Response::Leases { leases, revision: view.revision() })
    }

    /// Reads beside the node's own thread. A few at a time, and of each caller fewer: each may hold as much as an answer may
    /// have, from when it is begun until its connection has taken that over, and go on though its caller has gone.
    async fn aside<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
        deadline: Instant,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let turn = async {
            let own = Arc::clone(&self.own_reads).acquire_owned().await;
            (own, Arc::clone(&self.shared.long_reads).acquire_owned().await)
        };
        let turn = Arc::new(timeout_at(deadline, turn).await.map_err(|_| late(started))?);
        let kept = Arc::clone(&turn);
        let work = move || {
            let done = read();
            drop(kept);
            done
        };
        let done = aside(work).await;
        drop(turn);
        done
    }
}

/// After so many bytes the answers to several reads take no more: what is left has to fit as well.
const QUERIES_BYTES: usize = 4 << 20;
/// What a lease takes in an answer, roughly.
const LEASE_BYTES: usize = 48;
/// How many long reads of one caller are carried out at a time.
const OWN_READS_MAX: usize = 2;
/// Keys that a read may name without being called long.
const FEW: usize = 8;

/// Whether a transaction reads more than a few keys.
fn is_scan(txn: &TxnOp) -> bool {
    let scans = |op: &Op| match &op.0 {
        OpKind::Range(_) => true,
        OpKind::Txn(nested) => is_scan(nested),
        OpKind::Get(_) | OpKind::Put(_) | OpKind::Delete(_) => false,
    };
    txn.when.len() + txn.operations().count() > FEW
        || txn.when.iter().any(|compare| compare.range.as_key().is_none())
        || txn.operations().any(scans)
}

/// What openraft's refusal of a write means.
fn refused(error: &ClientWriteError<super::Types>) -> Tried {
    match error {
        ClientWriteError::ForwardToLeader(forward) => {
            Tried::NotAppended(super::reads::not_leader(forward))
        }
        // It was in this member's log, and may be in that of the leader that follows.
        ClientWriteError::LogEntryDiscarded(_) => {
            Tried::Answered(Err(Error::from(Reason::LeaderChanged).unknown_outcome()))
        }
        ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_) => {
            Tried::Answered(Err(Reason::Malformed { what: "command".to_owned() }.into()))
        }
    }
}

/// What a change of the members comes to, unless its time is up first. What it has begun then goes on.
async fn within<T>(
    deadline: Instant,
    change: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let started = Instant::now();
    timeout_at(deadline, change).await.map_err(|_| late(started).unknown_outcome())?
}

fn late(started: Instant) -> Error {
    Reason::DeadlinePassed { waited: started.elapsed() }.into()
}

/// What stood in the way until the deadline, if that says more than that time is up.
fn out_of_time(error: &Error, started: Instant) -> Error {
    match error.reason() {
        Reason::NotLeader { .. } => Reason::NoLeader.into(),
        Reason::DeadlinePassed { .. } => late(started),
        _ => error.clone(),
    }
}

/// The leases that a command would attach keys to.
fn named_leases(command: &Command) -> Vec<LeaseId> {
    fn collect(txn: &TxnOp, leases: &mut Vec<LeaseId>) {
        for op in txn.operations() {
            match &op.0 {
                OpKind::Put(put) => leases.extend(put.lease),
                OpKind::Txn(nested) => collect(nested, leases),
                OpKind::Get(_) | OpKind::Delete(_) | OpKind::Range(_) => {}
            }
        }
    }
    let mut leases = Vec::new();
    match command {
        Command::Txn(txn) => collect(txn, &mut leases),
        // One that is granted anew must not meet the end of the one before it.
        Command::Grant { id: Some(id), .. } => leases.push(*id),
        _ => {}
    }
    leases
}
