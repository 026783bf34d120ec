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
//! - what does not fit into the answer any more is asked for alone.

use super::client::{Way, before};
use crate::api::{Call, QUERIES_MAX, Request, Response};
use crate::error::{Error, Reason};
use crate::types::limits::CALL_TIMEOUT_MAX;
use crate::types::{Consistency, Revision};
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Calls of one sort that may be under way.
const PLACES: usize = 2;
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
    waiting: OnceLock<mpsc::Sender<Passenger>>,
}

#[derive(Debug)]
struct Passenger {
    seat: Seat,
    deadline: Instant,
    answer: oneshot::Sender<Result<Response, Error>>,
}

/// A request that waits. Whoever takes it decides: the call that takes it along, or its caller who gives up.
#[derive(Clone, Debug)]
struct Seat(Arc<Mutex<Option<Request>>>);

impl Seat {
    fn take(&self) -> Option<Request> {
        let mut seat: MutexGuard<'_, _> = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seat.take()
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
            0 => way.send(&call).await,
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
        let again = matches!(request, Request::Query(_)).then(|| request.clone());
        let (answer, answered) = oneshot::channel();
        let seat = Seat(Arc::new(Mutex::new(Some(request))));
        let kept = GivenUp(seat.clone());
        let waiting = self.waiting(way, sort);
        let travels = async {
            let sent = waiting.send(Passenger { seat, deadline, answer }).await;
            sent.map_err(|_| ())?;
            answered.await.map_err(|_| ())
        };
        let travelled = before(pin!(way.timer(deadline)), travels).await;
        let has_left = kept.0.take().is_none();
        let error = match (travelled, again) {
            (Some(Ok(Err(error))), Some(request)) if is_too_much(&error) => {
                let timeout = deadline.saturating_duration_since(Instant::now());
                return Box::pin(way.send(&Call { request, timeout })).await;
            }
            (Some(Ok(answer)), _) => return answer,
            (Some(Err(())), _) => Error::from(Reason::Closed),
            (None, _) if has_left => Reason::DeadlinePassed { waited: started.elapsed() }.into(),
            (None, _) => way.not_in_time(),
        };
        let is_unknown = has_left && sort == Sort::Write;
        Err(if is_unknown { error.unknown_outcome() } else { error })
    }

    fn waiting(&self, way: &Arc<Way>, sort: Sort) -> mpsc::Sender<Passenger> {
        let begin = || {
            let (waiting, passengers) = mpsc::channel(WAITING_MAX);
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.spawn_on(travel(Arc::clone(way), sort, passengers), way.runtime());
            waiting
        };
        self.lines[sort as usize].waiting.get_or_init(begin).clone()
    }
}

/// Takes those who wait along, as long as there can be any.
async fn travel(way: Arc<Way>, sort: Sort, mut waiting: mpsc::Receiver<Passenger>) {
    let mut calls = FuturesUnordered::new();
    loop {
        while calls.len() >= PLACES {
            calls.next().await;
        }
        let first = loop {
            let ended = async {
                match calls.is_empty() {
                    true => pending().await,
                    false => calls.next().await,
                }
            };
            match select(pin!(waiting.recv()), pin!(ended)).await {
                Either::Left((first, _)) => break first,
                Either::Right(_) => {}
            }
        };
        let Some(first) = first else { return };
        // Who was woken by the same answer comes along.
        tokio::task::yield_now().await;
        let mut aboard = vec![first];
        while aboard.len() < QUERIES_MAX {
            let Ok(passenger) = waiting.try_recv() else { break };
            aboard.push(passenger);
        }
        calls.push(take_along(&way, sort, aboard));
    }
}

/// One call, and the answers of all who are in it.
async fn take_along(way: &Way, sort: Sort, aboard: Vec<Passenger>) {
    let mut requests = Vec::with_capacity(aboard.len());
    let mut travellers = Vec::with_capacity(aboard.len());
    let mut deadline = Instant::now();
    for passenger in aboard {
        let Some(request) = passenger.seat.take() else { continue };
        deadline = deadline.max(passenger.deadline);
        requests.push(request);
        travellers.push(passenger.answer);
    }
    if travellers.is_empty() {
        return;
    }
    let timeout = deadline.saturating_duration_since(Instant::now());
    let answer = match requests.pop() {
        Some(request) if requests.is_empty() => {
            let answer = way.send(&Call { request, timeout }).await;
            travellers.pop().into_iter().for_each(|traveller| drop(traveller.send(answer.clone())));
            return;
        }
        last => {
            requests.extend(last);
            let count = requests.len();
            let request = merge(sort, requests);
            way.send(&Call { request, timeout }).await.and_then(|answer| split(answer, count))
        }
    };
    match answer {
        // Whoever asked may have gone.
        Ok(answers) => {
            travellers.into_iter().zip(answers).for_each(|(one, answer)| drop(one.send(answer)));
        }
        Err(error) => {
            travellers.into_iter().for_each(|traveller| drop(traveller.send(Err(error.clone()))));
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

/// What each of `count` requests was answered with.
fn split(answer: Response, count: usize) -> Result<Vec<Result<Response, Error>>, Error> {
    match answer {
        Response::Propose(outcomes) if outcomes.len() == count => {
            Ok(outcomes.into_iter().map(|outcome| Ok(Response::Propose(vec![outcome]))).collect())
        }
        Response::Queries(outcomes) if outcomes.len() == count => {
            Ok(outcomes.into_iter().map(|outcome| outcome.map(Response::Query)).collect())
        }
        other => {
            let error = Error::from(Reason::Malformed { what: "answer to several calls".into() });
            let is_of_writes = matches!(other, Response::Propose(_));
            Err(if is_of_writes { error.unknown_outcome() } else { error })
        }
    }
}

/// Whether it did not fit into an answer with others.
fn is_too_much(error: &Error) -> bool {
    matches!(error.reason(), Reason::ResultTooLarge { .. })
}
