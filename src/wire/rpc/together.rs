//! Small calls of many callers share one.
//!
//! A call costs both of its ends far more than a small request that it carries: books on either side, a frame, a task, and
//! waking all of them. So a client has only a few calls of small requests under way, and who comes meanwhile goes with the
//! next. Who is alone goes at once.
//!
//! ```text
//!                     nobody under way ──────────────────────────▶ a call of its own
//! small request ──┤
//!                     else ──▶ waiting ── a place is free ──▶ one call with all who wait
//!
//!   writes   one Propose, with the proposals of all        each of these has a line of its own,
//!   reads    one Queries: of one key each                  and those that a quorum is asked for another
//! ```
//!
//! Invariants
//! - who travels together waits for the same: reads of what a member has, reads that need a round, or writes. Nobody is held
//!   up by what another one asks for;
//! - calls are made by a task of the client, never by a caller's own future: one that is not polled any more would hold up
//!   everybody else;
//! - what has not left when its caller's time is up, or when he has gone, never leaves, and he is told that it has not
//!   happened;
//! - what does not fit into the answer any more is asked for alone, and so are all who were refused together.

use super::client::{Way, before};
use crate::api::{Call, QUERIES_MAX, Request, Response};
use crate::error::{Error, Reason};
use crate::types::limits::{BATCH_MAX, CALL_TIMEOUT_MAX};
use crate::types::{Consistency, Revision};
use futures::StreamExt;
use futures::future::{Either, join_all, select};
use futures::stream::FuturesUnordered;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Calls of one sort that may be under way and not [slow](SLOW).
const PLACES: usize = 2;
/// After so long a call leaves its place to another.
const SLOW: Duration = Duration::from_millis(if cfg!(test) { 3000 } else { 100 });
/// Calls of one sort that may be under way at all.
const CALLS_MAX: usize = 64;
/// Bytes of requests after which a call takes no more on.
const CALL_BYTES: usize = 1 << 20;
/// Requests of one sort that may wait for one.
const WAITING_MAX: usize = 4096;

/// What small requests wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// For nothing: a member reads what it has.
    Local,
    /// For the word of a quorum.
    Round,
    /// For a place in the log.
    Write,
}

/// Those who travel together, by what they wait for.
#[derive(Debug, Default)]
pub(super) struct Together {
    lines: [Line; 3],
    /// The newest revision in an answer. Whoever waits for no more than that waits for nothing that will not come soon.
    shown: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Line {
    under_way: AtomicUsize,
    /// Made with the first who has company.
    waiting: Mutex<Option<mpsc::Sender<Passenger>>>,
}

#[derive(Debug)]
struct Passenger {
    seat: Seat,
    bytes: usize,
    deadline: Instant,
    answer: oneshot::Sender<Result<Response, Error>>,
}

/// A request that waits. Whoever takes it decides: the call that takes it along, or its caller who gives up.
#[derive(Clone, Debug)]
struct Seat(Arc<Mutex<Option<Request>>>);

impl Seat {
    fn take(&self) -> Option<Request> {
        lock(&self.0).take()
    }
}

/// Keeps a request whose caller has gone from leaving.
struct GivenUp(Seat);

impl Drop for GivenUp {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

/// Counts who is under way, waiting or not.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    /// With how many there were before.
    fn begin(count: &'a AtomicUsize) -> (Self, usize) {
        let before = count.fetch_add(1, Ordering::Relaxed);
        (Self(count), before)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Together {
    /// With whom a request may travel; `None` for one that goes alone.
    pub(super) fn sort(&self, request: &Request) -> Option<Sort> {
        if !request.is_small() {
            return None;
        }
        let Request::Query(query) = request else { return Some(Sort::Write) };
        let shown = Revision::from(self.shown.load(Ordering::Relaxed));
        let sort = match query.consistency {
            Consistency::Serializable => Sort::Local,
            Consistency::Linearizable => Sort::Round,
        };
        query.revision_min.is_none_or(|revision| revision <= shown).then_some(sort)
    }

    /// Sends a small request, alone or with others.
    ///
    /// # Cancel safety
    /// What has not left when the future is dropped never leaves.
    pub(super) async fn call(
        &self,
        way: &Arc<Way>,
        sort: Sort,
        call: Call,
    ) -> Result<Response, Error> {
        let line = &self.lines[sort as usize];
        let (_under_way, before) = UnderWay::begin(&line.under_way);
        let answer = match before {
            // Not in the future of each who shares one.
            0 => Box::pin(way.send(&call)).await,
            _ => self.share(way, sort, call).await,
        };
        if let Ok(response) = &answer {
            self.saw(response);
        }
        answer
    }

    fn saw(&self, response: &Response) {
        let revision = match response {
            Response::Query(outcome) => outcome.revision,
            Response::Propose(outcomes) => {
                let revisions = outcomes.iter().flatten().map(crate::api::Applied::revision);
                revisions.max().unwrap_or(Revision::from(0))
            }
            _ => return,
        };
        self.shown.fetch_max(revision.get(), Ordering::Relaxed);
    }

    async fn share(&self, way: &Arc<Way>, sort: Sort, call: Call) -> Result<Response, Error> {
        let Call { request, timeout } = call;
        let started = Instant::now();
        let deadline = started + timeout.min(CALL_TIMEOUT_MAX);
        let bytes = request.small_bytes();
        let again = matches!(request, Request::Query(_)).then(|| request.clone());
        let (answer, answered) = oneshot::channel();
        let seat = Seat(Arc::new(Mutex::new(Some(request))));
        let kept = GivenUp(seat.clone());
        let waiting = self.waiting(way, sort);
        let travels = async {
            let sent = waiting.send(Passenger { seat, bytes, deadline, answer }).await;
            sent.map_err(|_| ())?;
            answered.await.map_err(|_| ())
        };
        let travelled = before(pin!(way.timer(deadline)), pin!(travels)).await;
        let has_left = kept.0.take().is_none();
        let error = match (travelled, again) {
            (Ok(Ok(Err(error))), Some(request)) if is_too_much(&error) => {
                let timeout = deadline.saturating_duration_since(Instant::now());
                return Box::pin(way.send(&Call { request, timeout })).await;
            }
            (Ok(Ok(answer)), _) => return answer,
            (Ok(Err(())), _) => Error::from(Reason::Closed),
            (Err(()), _) if has_left => Reason::DeadlinePassed { waited: started.elapsed() }.into(),
            (Err(()), _) => way.not_in_time(),
        };
        let is_unknown = has_left && sort == Sort::Write;
        Err(if is_unknown { error.unknown_outcome() } else { error })
    }

    fn waiting(&self, way: &Arc<Way>, sort: Sort) -> mpsc::Sender<Passenger> {
        let mut line = lock(&self.lines[sort as usize].waiting);
        match &*line {
            Some(waiting) if !waiting.is_closed() => waiting.clone(),
            _ => {
                let (waiting, passengers) = mpsc::channel(WAITING_MAX);
                let travel = travel(Arc::clone(way), sort, passengers);
                lock(&self.tasks).spawn_on(travel, way.runtime());
                *line = Some(waiting.clone());
                waiting
            }
        }
    }
}

/// Takes those who wait along, as long as there can be any.
async fn travel(way: Arc<Way>, sort: Sort, mut waiting: mpsc::Receiver<Passenger>) {
    let places = Arc::new(Semaphore::new(PLACES));
    let mut calls = FuturesUnordered::new();
    let mut left_behind = None;
    loop {
        while calls.len() >= CALLS_MAX {
            calls.next().await;
        }
        let first = {
            let mut next = pin!(async {
                let first = match left_behind.take() {
                    Some(passenger) => Some(passenger),
                    None => waiting.recv().await,
                };
                let place = Arc::clone(&places).acquire_owned().await;
                first.zip(place.ok())
            });
            loop {
                let ended = async {
                    match calls.is_empty() {
                        true => pending().await,
                        false => calls.next().await,
                    }
                };
                if let Either::Left((first, _)) = select(next.as_mut(), pin!(ended)).await {
                    break first;
                }
            }
        };
        let Some((first, place)) = first else { return };
        // Who was woken by the same answer comes along.
        tokio::task::yield_now().await;
        let aboard;
        (aboard, left_behind) = board(sort, first, &mut waiting);
        calls.push(take_along(&way, sort, aboard, place));
    }
}

/// As many of those who wait as one call takes, and the first who has to wait for the next.
fn board(
    sort: Sort,
    first: Passenger,
    waiting: &mut mpsc::Receiver<Passenger>,
) -> (Vec<Passenger>, Option<Passenger>) {
    let most = if sort == Sort::Write { BATCH_MAX } else { QUERIES_MAX };
    let mut bytes = first.bytes;
    let mut aboard = vec![first];
    while aboard.len() < most {
        let Ok(passenger) = waiting.try_recv() else { break };
        bytes += passenger.bytes;
        if bytes > CALL_BYTES {
            return (aboard, Some(passenger));
        }
        aboard.push(passenger);
    }
    (aboard, None)
}

/// One call, and the answers of all who are in it. It ends when nobody waits for it any more.
async fn take_along(
    way: &Arc<Way>,
    sort: Sort,
    aboard: Vec<Passenger>,
    place: OwnedSemaphorePermit,
) {
    let latest = aboard.iter().map(|passenger| passenger.deadline).max();
    let latest = latest.unwrap_or_else(Instant::now);
    // Nobody has left before there is a connection to leave on.
    let open = before(pin!(way.timer(latest)), pin!(way.is_open())).await;
    let open = open.unwrap_or_else(|()| Err(way.not_in_time()));
    let now = Instant::now();
    let mut requests = Vec::with_capacity(aboard.len());
    let mut travellers = Vec::with_capacity(aboard.len());
    for Passenger { seat, deadline, answer, .. } in aboard {
        match &open {
            // What stays behind keeps its seat: if his time is up first, he sees by that that it has not left.
            Err(error) => drop(answer.send(Err(error.clone()))),
            Ok(()) if deadline <= now => drop(answer.send(Err(way.not_in_time()))),
            Ok(()) => {
                if let Some(request) = seat.take() {
                    requests.push(request);
                    travellers.push(answer);
                }
            }
        }
    }
    let answered = async {
        let call = way.exchange(sort, requests, latest);
        // One that takes long leaves its place to others: what it waits for need not be what they wait for.
        match select(pin!(call), pin!(way.timer(now + SLOW))).await {
            Either::Left((answers, _)) => answers,
            Either::Right(((), call)) => {
                drop(place);
                call.await
            }
        }
    };
    let all_gone = async {
        for traveller in &mut travellers {
            traveller.closed().await;
        }
    };
    let answers = match select(pin!(answered), pin!(all_gone)).await {
        Either::Left((answers, _)) => answers,
        Either::Right(_) => return,
    };
    // Whoever asked may have gone.
    travellers.into_iter().zip(answers).for_each(|(one, answer)| drop(one.send(answer)));
}

impl Way {
    /// What each of some requests is answered with, in one call, or alone if they are refused together.
    async fn exchange(
        self: &Arc<Self>,
        sort: Sort,
        mut requests: Vec<Request>,
        deadline: Instant,
    ) -> Vec<Result<Response, Error>> {
        let count = requests.len();
        let timeout = || deadline.saturating_duration_since(Instant::now());
        if count < 2 {
            let mut answers = Vec::with_capacity(1);
            if let Some(request) = requests.pop() {
                answers.push(self.send(&Call { request, timeout: timeout() }).await);
            }
            return answers;
        }
        let call = Call { request: merge(sort, requests), timeout: timeout() };
        let answer = self.send(&call).await.and_then(|answer| split(sort, answer, count));
        match answer {
            Ok(answers) => answers,
            // It is not known whom of them it is about, and nothing has happened.
            Err(error) if !error.is_retryable() && !error.may_have_applied() => {
                let alone = parts(call.request).into_iter().map(|request| async {
                    self.send(&Call { request, timeout: timeout() }).await
                });
                join_all(alone).await
            }
            Err(error) => vec![Err(error); count],
        }
    }
}

/// One request with all of them.
fn merge(sort: Sort, requests: Vec<Request>) -> Request {
    if sort == Sort::Write {
        let proposals = requests.into_iter().filter_map(|request| match request {
            Request::Propose { proposals, .. } => Some(proposals),
            _ => None,
        });
        return Request::Propose { proposals: proposals.flatten().collect(), forwarded: false };
    }
    let queries = requests.into_iter().filter_map(|request| match request {
        Request::Query(query) => Some(query),
        _ => None,
    });
    Request::Queries(queries.collect())
}

/// Each of those that were merged.
fn parts(merged: Request) -> Vec<Request> {
    match merged {
        Request::Propose { proposals, forwarded } => {
            let alone = |it| Request::Propose { proposals: vec![it], forwarded };
            proposals.into_iter().map(alone).collect()
        }
        Request::Queries(queries) => queries.into_iter().map(Request::Query).collect(),
        other => vec![other],
    }
}

/// What each of `count` requests was answered with.
fn split(
    sort: Sort,
    answer: Response,
    count: usize,
) -> Result<Vec<Result<Response, Error>>, Error> {
    match answer {
        Response::Propose(outcomes) if outcomes.len() == count => {
            Ok(outcomes.into_iter().map(|outcome| Ok(Response::Propose(vec![outcome]))).collect())
        }
        Response::Queries(outcomes) if outcomes.len() == count => {
            Ok(outcomes.into_iter().map(|outcome| outcome.map(Response::Query)).collect())
        }
        _ => {
            let error = Error::from(Reason::Malformed { what: "answer to several calls".into() });
            Err(if sort == Sort::Write { error.unknown_outcome() } else { error })
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether it did not fit into an answer with others.
fn is_too_much(error: &Error) -> bool {
    matches!(error.reason(), Reason::ResultTooLarge { .. })
}
