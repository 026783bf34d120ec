//! What enters the log, and what becomes of it.
//!
//! ```text
//! Proposal { origin: whose and which, command } ──▶ log ──▶ applied by every member ──▶ Applied, or a Reason
//! ```
//!
//! Invariants
//! - applying a command depends on nothing but it and the state before it;
//! - what only a leader knows, such as the time, it says by a command of its own.

use crate::types::{KeyRange, LeaseId, OpKind, Operand, Revision, TxnOp, TxnOutcome};
use bytes::Bytes;
use std::time::Duration;

/// A command and, if its sender wants it to happen once however often it is sent, whose and which it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proposal {
    pub(crate) origin: Option<Origin>,
    pub(crate) command: Command,
}

/// Names a write, so that one that is sent again can be told from a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// What [`Command::Register`] has answered.
    pub(crate) client: u64,
    pub(crate) sequence: u64,
    /// Of every smaller sequence nobody waits for an answer.
    pub(crate) lowest_outstanding: u64,
    /// It was sent before, so that its answer may be known although it would be refused now.
    pub(crate) again: bool,
}

impl Origin {
    /// No client has counted so far.
    const SEQUENCE_MAX: u64 = 1 << 62;

    /// Whether a client can have said so.
    pub(crate) fn is_possible(&self) -> bool {
        let Self { sequence, lowest_outstanding, .. } = *self;
        (1..=sequence).contains(&lowest_outstanding) && sequence <= Self::SEQUENCE_MAX
    }
}

/// What enters the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
    /// Every write of keys; a single put is a transaction without conditions.
    Txn(TxnOp),
    /// Make a lease; the group chooses the id if there is none.
    Grant { id: Option<LeaseId>, ttl: Duration },
    /// End a lease, and delete its keys.
    Revoke(LeaseId),
    /// The same for leases that are due by the clock of the leader of `deciding_term`. Void in any other term: a leader
    /// that was paused after deciding must not expire what was renewed at its successor. Never forwarded.
    Expire { deciding_term: u64, leases: Vec<LeaseId> },
    /// Forget the history before a revision.
    Compact(Revision),
    /// A slice of the time has passed for which history is kept, by the clock of the leader of `deciding_term`: forget what
    /// there was [`AGES`] slices ago. Void in any other term, whose leader has begun to count anew. Never forwarded.
    Age { deciding_term: u64 },
    /// Give an id to a client that may send a write twice.
    Register,
    /// A slice of the time has passed after which clients are forgotten that have not written, by the clock of the leader of
    /// `deciding_term`. Void in any other term. Never forwarded.
    AgeClients { deciding_term: u64 },
    /// From here on, until it is said otherwise, there is no room for more. Proposed by the leader alone, by what its state
    /// takes. Never forwarded.
    Room { is_short: bool },
}

/// How many slices the time has for which history is kept.
pub(crate) const AGES: usize = 10;
/// How many slices the time has after which a client is forgotten.
pub(crate) const CLIENT_AGES: u64 = 10;

impl Command {
    /// Whether only a leader may propose it, of itself.
    pub(crate) fn is_leaders(&self) -> bool {
        match self {
            Self::Expire { .. }
            | Self::Age { .. }
            | Self::AgeClients { .. }
            | Self::Room { .. } => true,
            Self::Txn(_)
            | Self::Grant { .. }
            | Self::Revoke(_)
            | Self::Compact(_)
            | Self::Register => false,
        }
    }

    /// Whether it is answered with little more than a revision, as soon as it is applied.
    pub(crate) fn is_small(&self) -> bool {
        match self {
            Self::Txn(txn) => is_small(txn),
            Self::Grant { .. } | Self::Revoke(_) | Self::Register => true,
            Self::Expire { .. }
            | Self::Compact(_)
            | Self::Age { .. }
            | Self::AgeClients { .. }
            | Self::Room { .. } => false,
        }
    }

    /// Whether the group refuses it when there is no room: it may put a key, in whichever branch, or make a lease.
    pub(crate) fn takes_room(&self) -> bool {
        match self {
            Self::Txn(txn) => puts(txn),
            Self::Grant { .. } => true,
            Self::Revoke(_)
            | Self::Expire { .. }
            | Self::Compact(_)
            | Self::Register
            | Self::Age { .. }
            | Self::AgeClients { .. }
            | Self::Room { .. } => false,
        }
    }
}

/// Whether a transaction may put a key.
fn puts(txn: &TxnOp) -> bool {
    txn.operations().any(|op| match &op.0 {
        OpKind::Put(_) => true,
        OpKind::Txn(nested) => puts(nested),
        OpKind::Get(_) | OpKind::Delete(_) | OpKind::Range(_) => false,
    })
}

fn is_small(txn: &TxnOp) -> bool {
    txn.operations().all(|op| match &op.0 {
        OpKind::Put(put) => !put.prev && put.lease.is_none(),
        OpKind::Delete(delete) => !delete.prev,
        OpKind::Get(_) | OpKind::Range(_) => false,
        OpKind::Txn(nested) => is_small(nested),
    })
}

/// What an operation takes beside its keys and values, at most.
const OPERATION: usize = 64;

/// What a transaction takes in a message, about, and rather more.
pub(super) fn bytes(txn: &TxnOp) -> usize {
    let of_range = |range: &KeyRange| range.start.len() + range.end.as_ref().map_or(0, Bytes::len);
    let compared = txn.when.iter().map(|compare| match &compare.operand {
        Operand::Value(value) => of_range(&compare.range) + value.len(),
        _ => of_range(&compare.range),
    });
    let done = txn.operations().map(|op| match &op.0 {
        OpKind::Put(put) => put.key.len() + put.value.len(),
        OpKind::Get(get) => get.key.len(),
        OpKind::Delete(delete) => of_range(&delete.range),
        OpKind::Range(read) => of_range(&read.range),
        OpKind::Txn(nested) => bytes(nested),
    });
    compared.chain(done).map(|bytes| OPERATION + bytes).sum()
}

/// What applying a [`Command`] did. A rejection by the rules is a [`Reason`](crate::error::Reason) instead.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Applied {
    Txn(TxnOutcome),
    Granted {
        id: LeaseId,
        ttl: Duration,
        revision: Revision,
    },
    Revoked {
        revision: Revision,
    },
    /// Those of the leases that still existed.
    Expired {
        leases: Vec<LeaseId>,
        revision: Revision,
    },
    /// A word of the leader's own.
    Noted {
        revision: Revision,
    },
    Compacted {
        revision: Revision,
    },
    /// The id of the client.
    Registered {
        client: u64,
        revision: Revision,
    },
}

impl Applied {
    /// The revision after it.
    pub(crate) fn revision(&self) -> Revision {
        match self {
            Self::Txn(outcome) => outcome.revision,
            Self::Granted { revision, .. }
            | Self::Revoked { revision }
            | Self::Expired { revision, .. }
            | Self::Noted { revision }
            | Self::Registered { revision, .. }
            | Self::Compacted { revision } => *revision,
        }
    }
}

impl From<Command> for Proposal {
    fn from(command: Command) -> Self {
        Self { origin: None, command }
    }
}
