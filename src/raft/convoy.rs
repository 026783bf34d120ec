//! The way from a member's gateway to the leader's: small writes travel together.
//!
//! A call between members costs both of them about as much as the write that it carries. So only a few are under way at
//! once, and who comes meanwhile goes with the next.
//!
//! ```text
//! write ─┐
//! write ─┼─▶ waiting ── a place is free ─▶ call with all who wait ─▶ the leader's gateway
//! write ─┘
//! ```
//!
//! Calls are made by tasks of this member, never by a caller's own future: one that its application does not poll any
//! more would keep its place, and with it everybody else from leaving.
//!
//! Invariants
//! - no more than [`PLACES`] calls of small writes are under way to one leader, so that a busy member's calls grow instead
//!   of their number; those to a leader that is gone, which may hang for long, take no place of its successor's;
//! - a write that has not left when its caller's time is up never leaves, takes no memory any more, and its caller is told
//!   that it was not appended; one that has left has an unknown outcome;
//! - what could have a large answer, or has to wait for a lease, travels alone: together, answers could be larger than
//!   one may be, and one would hold up the others.

use super::Payload;
use super::gateway::Tried;
use super::member::{Leadership, Shared};
use crate::api::{Applied, Call, Proposal, Request, Response};
use crate::error::{Error, Reason};
use crate::fault::{Point, point};
use crate::types::limits;
use crate::wire::RpcClient;
use futures::future::{Either, select};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Calls of small writes that may be under way.
const PLACES: usize = 4;
/// Requests that may wait for one.
const WAITING_MAX: usize = 4096;
/// Bytes of proposals after which a call takes no more on.
const CALL_BYTES: usize = 1 << 20;

/// Where writes are sent to the leader from.
#[derive(Clone, Debug)]
pub(crate) struct Convoy {
    places: Arc<Mutex<Places>>,
    waiting: mpsc::Sender<Passenger>,
}

/// A term, and who leads in it. A term may have several leaders, one after the other, by their ids.
type Reign = (u64, Option<u64>);

/// The places of calls to one leader.
#[derive(Debug)]
struct Places {
    reign: Reign,
    free: Arc<Semaphore>,
}

/// A request that waits for a call to go with.
#[derive(Debug)]
pub(crate) struct Passenger {
    luggage: Luggage,
    deadline: Instant,
    answer: oneshot::Sender<Vec<Tried>>,
}

/// What is to be sent. Whoever takes it decides: the call that takes it along, or its caller who gives up.
#[derive(Clone, Debug, Default)]
struct Luggage(Arc<Mutex<Option<Vec<Payload>>>>);

impl Luggage {
    fn new(payloads: Vec<Payload>) -> Self {
        Self(Arc::new(Mutex::new(Some(payloads))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Payload>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many proposals, and how many bytes.
    fn size(&self) -> (usize, usize) {
        let luggage = self.lock();
        let payloads = luggage.iter().flatten();
        payloads.fold((0, 0), |(count, bytes), payload| (count + 1, bytes + payload.bytes.len()))
    }
}

impl Convoy {
    /// The two ends; the other is for [`travel`].
    pub(crate) fn new() -> (Self, mpsc::Receiver<Passenger>) {
        let (waiting, passengers) = mpsc::channel(WAITING_MAX);
        let places = Places { reign: (0, None), free: Arc::new(Semaphore::new(PLACES)) };
        (Self { places: Arc::new(Mutex::new(places)), waiting }, passengers)
    }

    /// The places of calls to the leader of `reign`, or of the newest one that was heard of.
    fn places(&self, reign: Reign) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.reign < reign {
            *places = Places { reign, free: Arc::new(Semaphore::new(PLACES)) };
        }
        Arc::clone(&places.free)
    }

    /// Sends proposals to the leader, and returns what became of each.
    ///
    /// # Cancel safety
    /// What has not left when the future is dropped never leaves.
    pub(crate) async fn send(
        &self,
        shared: &Shared,
        leader: (&Leadership, &RpcClient),
        batch: &[&Payload],
        deadline: Instant,
    ) -> Vec<Tried> {
        if batch.iter().all(|payload| payload.proposal.command.is_small()) {
            self.wait(batch, deadline).await
        } else {
            // Seldom, and large: not in the future of each write.
            Box::pin(forward(shared, leader, batch, deadline)).await
        }
    }

    async fn wait(&self, batch: &[&Payload], deadline: Instant) -> Vec<Tried> {
        let started = Instant::now();
        let not_appended = |reason: Reason| {
            let error = Error::from(reason);
            batch.iter().map(|_| Tried::NotAppended(error.clone())).collect::<Vec<_>>()
        };
        let (answer, mut answered) = oneshot::channel();
        let luggage = Luggage::new(batch.iter().map(|payload| (*payload).clone()).collect());
        let kept = GivenUp(luggage.clone());
        let late = || Reason::DeadlinePassed { waited: started.elapsed() };
        let passenger = Passenger { luggage, deadline, answer };
        match timeout_at(deadline, self.waiting.send(passenger)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return not_appended(Reason::Closed),
            Err(_) => return not_appended(late()),
        }
        let answered = timeout_at(deadline, &mut answered).await;
        let has_left = kept.0.lock().take().is_none();
        match answered {
            Ok(Ok(tried)) => tried,
            Ok(Err(_)) if has_left => unknown(batch.len(), &Reason::Closed.into()),
            Ok(Err(_)) => not_appended(Reason::Closed),
            Err(_) if has_left => unknown(batch.len(), &late().into()),
            Err(_) => not_appended(late()),
        }
    }
}

/// Keeps a write whose caller has gone from leaving, and from taking memory.
struct GivenUp(Luggage);

impl Drop for GivenUp {
    fn drop(&mut self) {
        drop(self.0.lock().take());
    }
}

/// Takes those who wait along, until nobody can wait any more.
pub(crate) async fn travel(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Passenger>) {
    let mut leaderships = shared.leadership_changes();
    let mut calls = JoinSet::new();
    let mut left_behind = None;
    loop {
        let first = match left_behind.take() {
            Some(passenger) => Some(passenger),
            None => waiting.recv().await,
        };
        let Some(first) = first else { return };
        // First a place, then whoever waits by then. If the leader changes meanwhile, so do the places.
        let place = loop {
            let reign = {
                let leadership = leaderships.borrow_and_update();
                (leadership.term, leadership.leader)
            };
            let place = shared.convoy.places(reign).acquire_owned();
            match select(pin!(place), pin!(leaderships.changed())).await {
                Either::Left((place, _)) => break place.expect("the places are never closed"),
                Either::Right((Ok(()), _)) => {}
                Either::Right((Err(_), _)) => return,
            }
        };
        let aboard;
        (aboard, left_behind) = board(first, &mut waiting);
        while calls.try_join_next().is_some() {}
        calls.spawn(take_along(Arc::clone(&shared), aboard, place));
    }
}

/// As many of those who wait as one call takes, and the first who has to wait for the next.
fn board(
    first: Passenger,
    waiting: &mut mpsc::Receiver<Passenger>,
) -> (Vec<Passenger>, Option<Passenger>) {
    let (mut aboard, mut count, mut bytes) = (Vec::new(), 0, 0);
    let mut next = Some(first);
    while let Some(passenger) = next.take().or_else(|| waiting.try_recv().ok()) {
        let (added, its_bytes) = passenger.luggage.size();
        count += added;
        bytes += its_bytes;
        if !aboard.is_empty() && (bytes > CALL_BYTES || count > limits::BATCH_MAX) {
            return (aboard, Some(passenger));
        }
        aboard.push(passenger);
    }
    (aboard, None)
}

/// One call. It ends when it is answered, or nobody waits for it any more.
async fn take_along(shared: Arc<Shared>, aboard: Vec<Passenger>, _place: OwnedSemaphorePermit) {
    let mut batch = Vec::new();
    let mut travellers = Vec::new();
    let mut deadline = Instant::now();
    for Passenger { luggage, deadline: its, answer } in aboard {
        let Some(payloads) = luggage.lock().take() else { continue };
        travellers.push((payloads.len(), answer));
        batch.extend(payloads);
        deadline = deadline.max(its);
    }
    if travellers.is_empty() {
        return;
    }
    let batch: Vec<&Payload> = batch.iter().collect();
    let answered = async {
        let leadership = shared.leadership();
        match shared.leader_client(&leadership) {
            Some(leader) => forward(&shared, (&leadership, &leader), &batch, deadline).await,
            // They look for the leader again, which may be this member by now.
            None => {
                let nobody = || Tried::NotAppended(Reason::NoLeader.into());
                batch.iter().map(|_| nobody()).collect()
            }
        }
    };
    let all_gone = async {
        for (_, answer) in &mut travellers {
            answer.closed().await;
        }
    };
    let tried = match select(pin!(answered), pin!(all_gone)).await {
        Either::Left((tried, _)) => tried,
        Either::Right(_) => return,
    };
    let mut tried = tried.into_iter();
    for (count, answer) in travellers {
        // Whoever asked may have gone.
        let _ = answer.send(tried.by_ref().take(count).collect());
    }
}

/// Sends proposals to the leader's gateway, in one call.
async fn forward(
    shared: &Shared,
    (leadership, leader): (&Leadership, &RpcClient),
    batch: &[&Payload],
    deadline: Instant,
) -> Vec<Tried> {
    let proposals = batch.iter().map(|payload| Proposal::clone(&payload.proposal)).collect();
    let timeout = deadline.saturating_duration_since(Instant::now());
    let request = Request::Propose { proposals, forwarded: true };
    point(Point::ConvoyLeaves);
    let call = Call { request, timeout };
    let answer = leader.call_until(call, shared.led_by_another(leadership)).await;
    point(Point::ForwardAnswered);
    match answer {
        Ok(Response::Propose(outcomes)) if outcomes.len() == batch.len() => {
            outcomes.into_iter().map(sort).collect()
        }
        Ok(_) => {
            let malformed = Reason::Malformed { what: "answer of the leader".to_owned() };
            unknown(batch.len(), &malformed.into())
        }
        Err(error) => batch.iter().map(|_| sort(Err(error.clone()))).collect(),
    }
}

/// Whether the leader's answer to a forwarded proposal is one, or says that it did not append it.
pub(super) fn sort(outcome: Result<Applied, Error>) -> Tried {
    match outcome {
        Err(error) if error.may_have_applied() || error.reason().is_of_clients() => {
            Tried::Answered(Err(error))
        }
        // A leader that is shutting down, or a connection that could not be made, took nothing.
        Err(error) if error.is_retryable() || *error.reason() == Reason::Closed => {
            Tried::NotAppended(error)
        }
        outcome => Tried::Answered(outcome),
    }
}

fn unknown(count: usize, error: &Error) -> Vec<Tried> {
    let answer = || Tried::Answered(Err(error.clone().unknown_outcome()));
    std::iter::repeat_with(answer).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Command;
    use crate::types::{LeaseId, Op, TxnOp};
    use futures::FutureExt;
    use std::time::Duration;

    fn put(value_bytes: usize) -> Payload {
        let put = Op::put("k", vec![7; value_bytes]);
        Proposal::from(Command::Txn(TxnOp::single(put.0))).into()
    }

    fn passenger(payloads: Vec<Payload>) -> (Passenger, oneshot::Receiver<Vec<Tried>>) {
        let (answer, answered) = oneshot::channel();
        let deadline = Instant::now() + PATIENCE;
        (Passenger { luggage: Luggage::new(payloads), deadline, answer }, answered)
    }

    const PATIENCE: Duration = Duration::from_secs(1);

    /// A call is bounded in bytes and in number, takes who fits in order, and one that is too large goes by itself.
    #[tokio::test]
    async fn a_call_takes_on_what_fits() {
        let (convoy, mut waiting) = Convoy::new();
        let half = CALL_BYTES / 2;
        for payloads in [vec![put(half)], vec![put(half)], vec![put(10); limits::BATCH_MAX]] {
            convoy.waiting.send(passenger(payloads).0).await.unwrap();
        }
        let (aboard, left) = board(passenger(vec![put(10)]).0, &mut waiting);
        assert_eq!(aboard.len(), 2, "the first, and one half");
        let (aboard, left) = board(left.unwrap(), &mut waiting);
        assert_eq!((aboard.len(), aboard[0].luggage.size().0), (1, 1), "the other half");
        let (aboard, left) = board(left.unwrap(), &mut waiting);
        assert_eq!((aboard.len(), aboard[0].luggage.size().0), (1, limits::BATCH_MAX));
        assert!(left.is_none());
        let (aboard, _) = board(passenger(vec![put(2 * CALL_BYTES)]).0, &mut waiting);
        assert_eq!(aboard.len(), 1);
    }

    /// The caller may do it again: it is certain that it has not happened, and will not.
    #[tokio::test(start_paused = true)]
    async fn a_write_that_never_left_is_not_appended() {
        let (convoy, mut waiting) = Convoy::new();
        let payload = put(10);
        let tried = convoy.wait(&[&payload], Instant::now() + Duration::from_secs(1)).await;
        assert!(matches!(&tried[..], [Tried::NotAppended(error)] if !error.may_have_applied()));
        let late = waiting.recv().await.unwrap();
        assert!(late.luggage.lock().is_none(), "no call takes it along, and it takes no memory");

        let batch = [&payload];
        let dropped = convoy.wait(&batch, Instant::now() + Duration::from_secs(1));
        assert!(dropped.now_or_never().is_none());
        assert!(waiting.recv().await.unwrap().luggage.lock().is_none());
    }

    /// A leader that hangs must not keep writes from the one that follows it.
    #[test]
    fn a_new_leader_has_places_of_its_own() {
        let (convoy, _waiting) = Convoy::new();
        let hanging = convoy.places((1, Some(1))).try_acquire_many_owned(PLACES as u32).unwrap();
        assert!(convoy.places((1, Some(1))).try_acquire().is_err());
        // Also of the same term.
        for successor in [(1, Some(2)), (2, None), (2, Some(1))] {
            assert_eq!(convoy.places(successor).available_permits(), PLACES);
        }
        drop(hanging);
        assert_eq!(convoy.places((2, Some(1))).available_permits(), PLACES, "and no more");
    }

    /// Of a write that has left nobody can say what became of it.
    #[tokio::test(start_paused = true)]
    async fn a_write_that_has_left_has_an_unknown_outcome() {
        let (convoy, mut waiting) = Convoy::new();
        for answers in [false, true] {
            let payload = put(10);
            let batch = [&payload];
            let mut wait = std::pin::pin!(convoy.wait(&batch, Instant::now() + PATIENCE));
            assert!(futures::poll!(&mut wait).is_pending());
            let passenger = waiting.recv().await.unwrap();
            assert!(passenger.luggage.lock().take().is_some());
            if answers {
                let kept = passenger;
                let tried = wait.await;
                assert!(matches!(&tried[..], [Tried::Answered(Err(it))] if it.may_have_applied()));
                drop(kept);
            } else {
                drop(passenger);
                let tried = wait.await;
                assert!(matches!(&tried[..], [Tried::Answered(Err(it))] if it.may_have_applied()));
            }
        }
    }

    #[test]
    fn what_may_be_answered_at_length_or_late_travels_alone() {
        let small = |op: Op| Command::Txn(TxnOp::single(op.0)).is_small();
        assert!(small(Op::put("k", "v")) && small(Op::delete("k")));
        assert!(!small(Op::put("k", "v").prev()) && !small(Op::delete("k").prev()));
        assert!(!small(Op::get("k")) && !small(Op::range("a".."b")));
        assert!(!small(Op::put("k", "v").lease(LeaseId::from(7))));
        assert!(!small(Op::txn([], [Op::get("k")], [])) && small(Op::txn([], [], [])));
        assert!(!Command::Compact(crate::types::Revision::from(1)).is_small());
    }
}
