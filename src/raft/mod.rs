//! The shell around openraft: a pure state machine on one side, sockets on the other, and the group's agreement between.
//!
//! ```text
//!  Call ─▶ gateway ── write ──▶ openraft ──▶ log (files, one fsync for all that wait) ⇄ network ⇄ peers' server
//!             │                    │ committed
//!             │                    ▼
//!             │                 machine ─▶ state: mvcc, in memory ─▶ leases' deadlines, head, watches, answers
//!             │                              └─▶ tables, once the log is on the disk as far
//!             └── read ──▶ reads (ReadIndex, one round for all that wait) ──▶ mvcc::View
//! ```
//!
//! openraft stays behind this module: its types are converted to our own versioned ones ([`mod@format`]) before they
//! reach a disk or a socket, and never appear in the public API, so that another version of it is not a breaking change.
//!
//! Invariants
//! - a leader that restarts never resumes its term ([`config`]): entries of it that had not reached the disk would be
//!   issued again with other content, and followers compare ids only;
//! - the state never becomes durable ahead of the log ([`machine`]);
//! - nothing here is `Err` to openraft unless this node must stop.

pub(crate) mod backup;
mod compare;
pub(crate) mod config;
pub(crate) mod convoy;
mod duties;
pub(crate) mod format;
pub(crate) mod founding;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub(crate) mod gateway;
pub(crate) mod identity;
pub(crate) mod joining;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod marks;
pub(crate) mod member;
pub(crate) mod members;
pub(crate) mod network;
pub(crate) mod pace;
#[cfg(feature = "sim")]
pub(crate) mod peek;
pub(crate) mod reads;
pub(crate) mod reseed;
mod room;
mod scrub;
mod seeds;
pub(crate) mod server;
pub(crate) mod state;
pub(crate) mod watch;

#[cfg(test)]
pub(crate) mod astray;
#[cfg(test)]
mod leader_restore;
#[cfg(test)]
mod suite;

use crate::api::{Applied, Proposal};
use crate::codec::layout::{Layout, Malformed};
use crate::error::{Error, Fault, Reason};
use bytes::Bytes;
use openraft::errors::{ErrorSource, Fatal};
use std::error::Error as _;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::{fmt, io};

openraft::declare_raft_types!(
    /// The types that openraft is put together from.
    pub(crate) Types:
        D = Payload,
        R = Answer,
        NodeId = u64,
        Node = Peer,
        ErrorSource = Cause,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type EntryPayload = openraft::EntryPayload<Payload, u64, Peer>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;

/// What applying an entry answers: nothing, for an entry that is no command.
pub(crate) type Answer = Option<Result<Applied, Reason>>;

/// A member of the group, as the replicated membership names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) address: String,
    /// Drawn when its data folder was made, so that a replaced folder cannot pass for the old one.
    pub(crate) incarnation: u64,
}

/// Why storage failed, as openraft carries it: our own fault as it was, so that a disk that failed is not taken for a bug.
#[derive(Clone, Debug)]
pub(crate) struct Cause(Fault);

impl ErrorSource for Cause {
    fn from_error<E: std::error::Error + 'static>(error: &E) -> Self {
        let error: &(dyn std::error::Error + 'static) = error;
        let ours = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let ours = ours.and_then(|ours| ours.downcast_ref::<Fault>());
        ours.map_or_else(|| Self::from_string(error), |fault| Self(fault.clone()))
    }

    /// What openraft itself finds wrong: log and state that do not fit together.
    fn from_string(text: impl ToString) -> Self {
        Self(Fault::corrupt(text.to_string()))
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Cause {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Cause {}

/// Why openraft has ended, unless it was told to.
pub(crate) fn fatal(fatal: &Fatal<Types>) -> Option<Fault> {
    match fatal {
        Fatal::Stopped => None,
        Fatal::StorageError(error) => {
            let cause = error.source().and_then(|source| source.downcast_ref::<Cause>());
            Some(cause.map_or_else(|| Fault::assertion(error.to_string()), |it| it.0.clone()))
        }
        Fatal::Panicked => Some(Fault::assertion(fatal.to_string())),
    }
}

/// Does work that blocks beside the async tasks, and goes on when it is done. A panic in it goes on here.
///
/// # Errors
/// If the runtime has ended.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    #[cfg(feature = "sim")]
    if crate::sim::world().is_some() {
        return Ok(work());
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => Err(Reason::Closed.into()),
    }
}

/// Drops what may take a while to drop, beside the async tasks. Nobody waits for it but the end of the runtime.
pub(crate) fn drop_aside<T: Send + 'static>(old: T) {
    #[cfg(feature = "sim")]
    if crate::sim::world().is_some() {
        return drop(old);
    }
    drop(tokio::task::spawn_blocking(move || drop(old)));
}

/// A proposal together with its bytes, so that it is encoded once and decoded once on each member, however often it is
/// appended, replicated and applied. Cloning copies two pointers.
#[derive(Clone, PartialEq)]
pub(crate) struct Payload {
    pub(crate) proposal: Arc<Proposal>,
    pub(crate) bytes: Bytes,
}

impl From<Proposal> for Payload {
    fn from(proposal: Proposal) -> Self {
        Self { bytes: proposal.to_bytes(), proposal: Arc::new(proposal) }
    }
}

impl Payload {
    pub(crate) fn from_bytes(bytes: Bytes) -> Result<Self, Malformed> {
        let proposal = Arc::new(Proposal::from_bytes(bytes.clone())?);
        Ok(Self { proposal, bytes })
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.proposal.fmt(f)
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}
