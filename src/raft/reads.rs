//! Linearizable reads: one round of the leader to a quorum serves everybody who waits for it.
//!
//! ```text
//! read ─┐                     ┌─ this member leads: heartbeats to a quorum ─┐
//! read ─┼─▶ waiting ─▶ round ─┤                                             ├─▶ index: apply up to it, then read
//! read ─┘   (the next round)  └─ another does: ask it, once                 ┘
//! ```
//!
//! Invariant: a round serves only reads that came before it began. One that was under way already might have asked its
//! quorum before the write that the read must see.

use super::format::position;
use super::member::Shared;
use crate::api::{Call, Request, Response};
use crate::error::{Error, Reason};
use crate::fault::{Bug, bug};
use crate::mvcc::LogPosition;
use openraft::ReadPolicy;
use openraft::errors::{ForwardToLeader, LinearizableReadError, RaftError};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// How many reads may wait to be taken into a round.
const WAITING_MAX: usize = 4096;

type Waiting = oneshot::Sender<Result<LogPosition, Error>>;

/// Where reads ask for a round.
#[derive(Clone, Debug)]
pub(crate) struct Reads {
    waiting: mpsc::Sender<Waiting>,
}

impl Reads {
    /// The two ends; the other is for [`rounds`].
    pub(crate) fn new() -> (Self, mpsc::Receiver<Waiting>) {
        let (waiting, rounds) = mpsc::channel(WAITING_MAX);
        (Self { waiting }, rounds)
    }

    /// The position up to which a read that begins now has to wait, and, if this member leads, the term in which a
    /// quorum has confirmed it.
    ///
    /// # Cancel safety
    /// A dropped future leaves a round that somebody else may use.
    pub(crate) async fn round(&self) -> Result<LogPosition, Error> {
        let (answer, position) = oneshot::channel();
        let closed = || Error::from(Reason::Closed);
        self.waiting.send(answer).await.map_err(|_| closed())?;
        position.await.map_err(|_| closed())?
    }
}

/// Carries out round after round, until nobody can ask any more.
pub(crate) async fn rounds(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut served = Vec::new();
    while waiting.recv_many(&mut served, WAITING_MAX).await > 0 {
        let limit = shared.timing.election_max();
        let round = tokio::time::timeout(limit, round(&shared)).await;
        let round = round.unwrap_or_else(|_| Err(Reason::NoLeader.into()));
        for waiting in served.drain(..) {
            // Whoever asked may have gone.
            let _ = waiting.send(round.clone());
        }
    }
}

async fn round(shared: &Shared) -> Result<LogPosition, Error> {
    let leadership = shared.leadership();
    if leadership.is_me {
        return confirm(shared).await;
    }
    let Some(leader) = shared.leader_client(&leadership) else {
        return Err(Reason::NoLeader.into());
    };
    let call = Call { request: Request::ReadIndex, timeout: shared.timing.election_max() };
    let answer = leader.call_until(call, shared.led_by_another(&leadership)).await;
    match answer.map_err(|error| shared.passed_on(error))? {
        Response::ReadIndex(index) => {
            Ok(LogPosition { term: leadership.term, node: leadership.leader.unwrap_or(0), index })
        }
        _ => Err(Reason::Malformed { what: "answer of the leader".to_owned() }.into()),
    }
}

/// Has a quorum confirm that this member leads, and returns what it has committed, which is of its own term.
async fn confirm(shared: &Shared) -> Result<LogPosition, Error> {
    let policy = match bug(Bug::LeaseReadWithoutConditions) {
        false => ReadPolicy::ReadIndex,
        true => ReadPolicy::LeaseRead,
    };
    match shared.raft.get_read_log_id(policy).await {
        Ok((read, _applied)) => Ok(position(read.log_id())),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
            Err(not_leader(&forward))
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            Err(Reason::NoLeader.into())
        }
        Err(RaftError::Fatal(_)) => Err(shared.stopped()),
    }
}

/// This member did not take the request; somebody else may.
pub(crate) fn not_leader(forward: &ForwardToLeader<super::Types>) -> Error {
    Reason::NotLeader { leader: forward.leader_id.map(Into::into) }.into()
}
