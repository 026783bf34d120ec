//! What a simulation sees of a member from outside, between two of its steps.
//!
//! Behind the feature `sim`, and no part of the API. Nothing here waits, and nothing changes the member.

use super::LogId;
use super::log::LogStore;
use super::member::Shared;
use crate::api::{Cursor, Position};
use crate::error::{Error, Result};
use crate::types::{Changes, KeyRange, Revision};
use openraft::async_runtime::WatchReceiver;

/// An entry of the log by name: the term and the member that led in it, and the index.
pub(crate) type EntryId = (u64, u64, u64);

/// A member, in numbers.
#[derive(Clone, Debug)]
pub struct Peek {
    /// Its id.
    pub node: u64,
    /// The term and the member that it voted for, and whether a majority did.
    pub vote: (u64, u64, bool),
    /// Whether it leads.
    pub is_leader: bool,
    /// Whom it takes for the leader.
    pub leader: Option<u64>,
    /// The end of its log.
    pub last: Option<u64>,
    /// How far it knows the log to be committed.
    pub committed: Option<EntryId>,
    /// What its last snapshot covers.
    pub snapshot: Option<EntryId>,
    /// Up to where its log was cut.
    pub purged: Option<EntryId>,
    /// The voters that it knows of.
    pub voters: Vec<u64>,
    /// The index that was applied last.
    pub applied: Option<u64>,
    /// The end of what of its log is on the disk.
    pub durable: Option<u64>,
    /// The index that its state was applied to when it was last committed.
    pub durable_state: Option<u64>,
    /// The log index of the last snapshot that was installed since the start.
    pub installed: Option<u64>,
    /// The newest revision.
    pub revision: u64,
    /// The oldest revision of its history.
    pub compacted: u64,
    /// The hash of the state there.
    pub hash: u128,
    /// Where it has found that members differ, with no majority that has the same.
    pub states_differ_at: Option<u64>,
    /// Why it has failed, if it has.
    pub failed: Option<Error>,
}

impl Shared {
    pub(crate) fn peek(&self, log: &LogStore) -> Peek {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let (head, hash) = self.state.summary();
        let leadership = self.leadership();
        let entry = |id: LogId| (id.leader_id.term, id.leader_id.node_id, id.index);
        let vote = metrics.vote;
        Peek {
            node: self.identity.node,
            vote: (vote.leader_id.term, vote.leader_id.node_id, vote.committed),
            is_leader: leadership.is_me,
            leader: leadership.leader,
            last: metrics.last_log_index,
            committed: metrics.local_committed.map(entry),
            snapshot: metrics.snapshot.map(entry),
            purged: metrics.purged.map(entry),
            voters: self.membership().voter_ids().collect(),
            applied: head.applied,
            durable: log.durable(),
            durable_state: self.state.flushed(),
            installed: self.state.installed(),
            revision: head.revision.get(),
            compacted: self.state.moment().map_or(0, |moment| moment.compact_revision().get()),
            hash,
            states_differ_at: self.states_differ_at(),
            failed: self.failed.borrow().clone(),
        }
    }

    /// Committed history from a revision on, and the revision to go on from.
    pub(crate) fn history(&self, from: u64) -> Result<(Vec<Changes>, u64)> {
        let next = Position { revision: Revision::from(from), sub: 0 };
        let cursor = Cursor { range: KeyRange::all(), next, puts: true, deletes: true, prev: true };
        let view = self.state.view()?;
        let events = view.events(&cursor, view.revision(), usize::MAX)??;
        Ok((events.changes, events.next.revision.get()))
    }
}
