//! A state at one moment, and every question that can be asked of it.
//!
//! A [`View`] is a [`Moment`] and a read transaction of LMDB, so it sees one state, whole, whatever is applied meanwhile,
//! and can be handed to another thread. It is the only way to read: also a snapshot, and the log position that belongs to
//! it, come from one view.
//!
//! ```text
//! apply ──▶ 41 ──▶ 42 ──▶ 43 ──▶ …
//!                  ▲
//!                  View: revision 42, its data, its log position, its membership
//! ```
//!
//! While it lives, LMDB keeps the pages of that moment, and the file grows: ask, then drop it. There may be
//! [`VIEWS_MAX`](super::VIEWS_MAX) at once; who hands them out to the world must hand out fewer.

use super::budget;
use super::events::Events;
#[cfg(any(test, feature = "fuzz"))]
use super::lease::Lease;
use super::overlay::Moment;
use super::plan::{Effort, Plan};
use super::read::{Reader, key_value};
use super::records::{Head, Value};
use super::tables::Tables;
use super::{LogPosition, Permit, Stop, Store, hash, scrub, split, verify};
use crate::api::{Cursor, check_txn};
use crate::error::{Fault, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::lmdb::{self, OwnedReadTxn};
use crate::types::{GetOp, KeyValue, LeaseId, Op, OpKind, OpResult, Revision, TxnOp, TxnOutcome};
use bytes::Bytes;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The whole state at one moment.
pub(crate) struct View {
    moment: Arc<Moment>,
    txn: OwnedReadTxn,
    _permit: Permit,
}

/// The head of the transaction that was looked at last, so that the views of one moment look it up once. It was a third
/// of what reading a key costs.
#[derive(Clone, Debug, Default)]
pub(super) struct Newest(Arc<RwLock<Option<(usize, Head)>>>);

impl Newest {
    /// LMDB numbers what was committed, so a number stands for the same rows as long as the environment is open. But it
    /// takes a reader's number first and its roots a moment later, and in between they may have become those of the
    /// commit after the next. If the newest commit still has the number of the reader, they have not.
    fn of(&self, env: &lmdb::Env, txn: &OwnedReadTxn, tables: Tables) -> Result<Head, Fault> {
        let number = txn.id();
        if env.info().last_txn_id != number {
            return tables.meta(txn);
        }
        let known = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, head)) = known.filter(|(known, _)| *known == number) {
            return Ok(head);
        }
        let head = tables.meta(txn)?;
        let mut newest = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if newest.is_none_or(|(known, _)| known < number) {
            *newest = Some((number, head));
        }
        Ok(head)
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("head", self.head()).finish_non_exhaustive()
    }
}

impl View {
    /// The state at the moment that `newest` gives, or at a later one. Too many views at once are no damage: the fault then
    /// has [`Reason::TooManyRequests`].
    pub(crate) fn open(
        mut newest: impl FnMut() -> Result<Arc<Moment>, Fault>,
    ) -> Result<Self, Fault> {
        loop {
            // First what was applied, then what is on the disk: what leaves the one is in the other by then.
            let mut moment = newest()?;
            let store = moment.store.clone();
            let permit = store.permit()?;
            if !bug(Bug::ViewAfterTransaction) {
                point(Point::ViewBegins);
            }
            let txn = store.env.clone().static_read_txn()?;
            if bug(Bug::ViewAfterTransaction) {
                point(Point::ViewBegins);
                moment = newest()?;
            }
            let flushed = store.newest.of(&store.env, &txn, store.tables)?;
            let is_ahead =
                flushed.applied.map(|at| at.index) > moment.head.applied.map(|at| at.index);
            if !is_ahead {
                return Ok(Self { moment, txn, _permit: permit });
            }
        }
    }

    /// Whether all of it is in the tables.
    pub(super) fn is_settled(&self) -> bool {
        self.moment.front().is_empty()
    }

    /// Whose tables it reads.
    pub(crate) fn store(&self) -> Store {
        self.moment.store.clone()
    }

    /// The newest revision.
    pub(crate) fn revision(&self) -> Revision {
        self.head().revision
    }

    /// The oldest revision that can be read and watched from; 0 before the first compaction.
    pub(crate) fn compact_revision(&self) -> Revision {
        self.head().compact_revision
    }

    /// The last log entry that is in the state.
    pub(crate) fn applied(&self) -> Option<LogPosition> {
        self.head().applied
    }

    /// The last membership that was applied, and the log entry that carried it.
    pub(crate) fn membership(&self) -> Option<(LogPosition, Bytes)> {
        self.moment.membership.as_ref().map(|row| (row.position, row.members.clone()))
    }

    /// How many keys there are.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> u64 {
        self.head().keys
    }

    /// Carries out a transaction that only reads.
    pub(crate) fn query(&self, txn: &TxnOp) -> Result<Result<TxnOutcome, Reason>, Fault> {
        split(self.try_query(txn))
    }

    fn try_query(&self, txn: &TxnOp) -> Result<TxnOutcome, Stop> {
        if !txn.is_read_only() {
            return Err(Reason::BadOption { detail: "a query cannot write".into() }.into());
        }
        check_txn(txn)?;
        let state = self.reader();
        let effort = Effort::of_read();
        let plan = Plan::resolve(txn, &state, &effort)?;
        plan.check(&state)?;
        budget::check(&plan, &state, &effort)?;
        Ok(state.run(&plan)?)
    }

    /// What a watch has to be told: the events from its cursor on, up to and including `upto`. See [`Events`].
    pub(crate) fn events(
        &self,
        cursor: &Cursor,
        upto: Revision,
        bytes_max: usize,
    ) -> Result<Result<Events, Reason>, Fault> {
        split(self.reader().events(cursor, upto, bytes_max))
    }

    /// A lease with its keys.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn lease(&self, id: LeaseId) -> Result<Option<Lease>, Fault> {
        self.reader().lease_with_keys(id)
    }

    pub(crate) fn has_lease(&self, id: LeaseId) -> Result<bool, Fault> {
        Ok(self.reader().lease(id)?.is_some())
    }

    /// The keys of a lease, if they take no more than `room`, each [`KEY_BYTES`](super::KEY_BYTES) more than it has.
    pub(crate) fn lease_keys_within(
        &self,
        id: LeaseId,
        room: usize,
    ) -> Result<Option<Vec<Bytes>>, Fault> {
        self.reader().lease_keys_within(id, room)
    }

    /// Every lease with its time to live, in the order of their ids.
    pub(crate) fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, Fault> {
        self.reader().leases()
    }

    /// The hash of the state, as kept up to date by each change.
    pub(crate) fn hash(&self) -> u128 {
        hash::of_state(self.head())
    }

    /// The same hash from every row anew. Reads everything that is not history, of a view of what is flushed.
    pub(crate) fn recompute_hash(&self) -> Result<u128, Fault> {
        scrub::recompute_hash(self)
    }

    /// Checks every row, alone and against the others, of a view of what is flushed. Reads everything, and much of it
    /// several times.
    pub(crate) fn verify(&self) -> Result<(), Fault> {
        verify::verify(self)
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        let head = self.head();
        Reader {
            front: self.moment.front(),
            recent: &self.moment.recent,
            txn: &self.txn,
            tables: self.moment.store.tables,
            revision: head.revision,
            compact_revision: head.compact_revision,
        }
    }

    pub(super) fn head(&self) -> &Head {
        &self.moment.head
    }
}

/// Carries out a transaction that only reads, at the moment that `newest` gives, or at a later one. The newest state of a
/// key is often known without a look into the tables.
pub(crate) fn read(
    mut newest: impl FnMut() -> Result<Arc<Moment>, Fault>,
    txn: &TxnOp,
) -> Result<Result<TxnOutcome, Reason>, Fault> {
    match newest()?.outcome(txn) {
        Some(outcome) => Ok(Ok(outcome)),
        None => View::open(newest)?.query(txn),
    }
}

/// The key that a transaction reads, if it reads the newest state of one and does nothing else.
fn single_get(txn: &TxnOp) -> Option<&GetOp> {
    match (&txn.when[..], &txn.then[..]) {
        ([], [Op(OpKind::Get(get))]) if get.at.is_none() => Some(get),
        _ => None,
    }
}

impl Moment {
    /// What a transaction answers, if that is known without looking into the tables.
    fn outcome(&self, txn: &TxnOp) -> Option<TxnOutcome> {
        let results = match single_get(txn) {
            Some(get) => vec![OpResult::Get(self.peek(&get.key)?)],
            None if *txn == TxnOp::default() => Vec::new(),
            None => return None,
        };
        Some(TxnOutcome { succeeded: true, revision: self.revision(), results })
    }

    /// Where its tables are.
    pub(crate) fn store(&self) -> Store {
        self.store.clone()
    }

    /// The newest revision.
    pub(crate) fn revision(&self) -> Revision {
        self.head.revision
    }

    /// The oldest revision that can be read and watched from; 0 before the first compaction.
    pub(crate) fn compact_revision(&self) -> Revision {
        self.head.compact_revision
    }

    /// About how many bytes are not in the tables yet.
    pub(crate) fn bytes_ahead(&self) -> u64 {
        self.front().bytes() as u64
    }

    /// Whether nothing that takes room is applied.
    pub(crate) fn is_short_of_room(&self) -> bool {
        self.head.is_short_of_room
    }

    /// Whether there is no history that could get older.
    pub(crate) fn is_ageless(&self) -> bool {
        let Head { revision, compact_revision, ages, .. } = &self.head;
        let is_new = *revision == Revision::FIRST;
        is_new || (compact_revision == revision && ages.are_all(*revision))
    }

    /// Whether there are clients that could be forgotten.
    pub(crate) fn has_clients(&self) -> bool {
        self.head.clients > 0
    }

    /// The last log entry that is in the state.
    pub(crate) fn applied(&self) -> Option<LogPosition> {
        self.head.applied
    }

    /// The hash of the state.
    pub(crate) fn hash(&self) -> u128 {
        hash::of_state(&self.head)
    }

    /// The state of a key, if that is known so.
    fn peek(&self, key: &Bytes) -> Option<Option<KeyValue>> {
        let step = self.front().newest_step(key).or_else(|| self.recent.newest_step(key))?;
        let Some(image) = &step.new else { return Some(None) };
        let value = match (&image.value, &step.large) {
            (Value::Inline(value), _) | (_, Some(value)) => value.clone(),
            (Value::Large { .. }, None) => return None,
        };
        Some(Some(key_value(key.clone(), image, value)))
    }
}
