//! Reading: the latest state, and the state at any revision that is not compacted away.
//!
//! The latest state of a key is one row. An older one is not stored as such; it follows from the first change *after*
//! that time, which remembers what it replaced:
//!
//! ```text
//!                 revision    2        3        4        5        6
//!                             put 1    put 2                      delete
//! changes of a    ────────────┬────────┬──────────────────────────┬──────▶   latest[a]: absent
//!                 prev:       none     "1"                        "2"
//!
//! a at 2: the first change above 2 is 3, its prev is "1"      a at 4: that is 6, its prev is "2"
//! a at 1: that is 2, its prev is none: absent                 a at 6: there is none: latest[a], absent
//! ```
//!
//! So reading the present never gets slower with the depth of history, and the past costs one seek per key.
//!
//! Invariants
//! - a [`Reader`] looks at one LMDB transaction, so it sees whole revisions; within a write transaction it also sees what
//!   that has written so far, and the revision in the making is `revision`;
//! - no answer depends on how far physical compaction has come: rows of compacted revisions are never looked at.

use super::events::Events;
use super::lease::Lease;
use super::plan::{Plan, Step};
use super::records::{Change, Format, Head, Image, LeaseRow, Membership, Record, Table, Value};
use super::tables::{self, RowsIter, Tables};
use super::{LogPosition, Stop, hash, keys, split, verify};
use crate::api::{Cursor, Position, check_txn};
use crate::error::{Fault, Reason};
use crate::lmdb::OwnedReadTxn;
use crate::types::{
    KeyRange, KeyValue, LeaseId, OpResult, Page, RangeOp, Revision, SortBy, TxnOp, TxnOutcome,
    limits,
};
use bytes::Bytes;
use heed::RoTxn;
use std::cmp::Ordering;
use std::ops::{Bound, ControlFlow};
use std::time::Duration;

/// What each entry of a page costs beside its key and value.
const ENTRY_BYTES: usize = 64;

/// The whole state at one moment. While it lives, LMDB keeps the pages of that moment: drop it soon.
pub(crate) struct View {
    txn: OwnedReadTxn,
    tables: Tables,
    head: Head,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("head", &self.head).finish_non_exhaustive()
    }
}

impl View {
    pub(super) fn new(txn: OwnedReadTxn, tables: Tables) -> Result<Self, Fault> {
        let head = tables.meta(&txn)?;
        Ok(Self { txn, tables, head })
    }

    /// The newest revision.
    pub(crate) fn revision(&self) -> Revision {
        self.head.revision
    }

    /// The oldest revision that can be read and watched from; 0 before the first compaction.
    pub(crate) fn compact_revision(&self) -> Revision {
        self.head.compact_revision
    }

    /// The last log entry that is in the state.
    pub(crate) fn applied(&self) -> Option<LogPosition> {
        self.head.applied
    }

    /// The last membership that was applied, and the log entry that carried it.
    pub(crate) fn membership(&self) -> Result<Option<(LogPosition, Bytes)>, Fault> {
        let row: Option<Membership> = self.tables.find_meta(&self.txn)?;
        Ok(row.map(|row| (row.position, row.members)))
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> u64 {
        self.head.keys
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
        let plan = Plan::resolve(txn, &state)?;
        plan.check(&state)?;
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
    pub(crate) fn lease(&self, id: LeaseId) -> Result<Option<Lease>, Fault> {
        self.reader().lease_with_keys(id)
    }

    /// Every lease with its time to live, in the order of their ids.
    pub(crate) fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, Fault> {
        self.reader().leases()
    }

    /// The hash of the state, as kept up to date by each change.
    pub(crate) fn hash(&self) -> u128 {
        hash::of_state(&self.head)
    }

    /// The same hash from every row anew. Reads everything that is not history.
    pub(crate) fn recompute_hash(&self) -> Result<u128, Fault> {
        verify::recompute_hash(self)
    }

    /// Checks every row, alone and against the others. Reads everything, and much of it several times.
    pub(crate) fn verify(&self) -> Result<(), Fault> {
        verify::verify(self)
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            txn: &self.txn,
            tables: self.tables,
            revision: self.head.revision,
            compact_revision: self.head.compact_revision,
        }
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }
}

/// Reads within a transaction.
#[derive(Clone, Copy)]
pub(super) struct Reader<'txn> {
    pub(super) txn: &'txn RoTxn<'txn>,
    pub(super) tables: Tables,
    /// The newest revision that is visible, the one in the making included.
    pub(super) revision: Revision,
    pub(super) compact_revision: Revision,
}

/// The state of a key that a scan came by; decoded only if it is of interest.
pub(super) enum Scanned<'txn> {
    Row(&'txn [u8]),
    Image(Image),
}

impl Scanned<'_> {
    pub(super) fn image(self, key: &[u8]) -> Result<Image, Fault> {
        match self {
            Self::Row(row) => Image::open(key, row),
            Self::Image(image) => Ok(image),
        }
    }
}

/// What a scan does with each key.
pub(super) type Visit<'visit> =
    dyn FnMut(&[u8], Scanned<'_>) -> Result<ControlFlow<()>, Fault> + 'visit;

impl<'txn> Reader<'txn> {
    /// Whether a read at this revision is possible.
    pub(super) fn check_revision(&self, at: Option<Revision>) -> Result<(), Reason> {
        match at {
            Some(at) if at > self.revision => {
                Err(Reason::FutureRevision { current: self.revision })
            }
            Some(at) if at < self.compact_revision => {
                Err(Reason::Compacted { at: self.compact_revision })
            }
            _ => Ok(()),
        }
    }

    /// Carries out a plan without writes.
    fn run(&self, plan: &Plan<'_>) -> Result<TxnOutcome, Fault> {
        let results = plan.steps.iter().map(|step| match step {
            Step::Get(get) => Ok(OpResult::Get(self.get(&get.key, get.at)?)),
            Step::Range(range) => Ok(OpResult::Range(self.page(range)?)),
            Step::Txn(nested) => Ok(OpResult::Txn(self.run(nested)?)),
            Step::Put(_) | Step::Delete(_) => unreachable!("a query was checked to have no writes"),
        });
        let results = results.collect::<Result<_, Fault>>()?;
        Ok(TxnOutcome { succeeded: plan.succeeded, revision: self.revision, results })
    }

    /// What a key holds now, or held at a revision.
    pub(super) fn get(&self, key: &Bytes, at: Option<Revision>) -> Result<Option<KeyValue>, Fault> {
        let image = match self.past(at) {
            None => self.image(key)?,
            Some(at) => self.image_at(key, at)?,
        };
        image.map(|image| self.key_value(key.clone(), &image)).transpose()
    }

    /// The latest state of a key.
    pub(super) fn image(&self, key: &[u8]) -> Result<Option<Image>, Fault> {
        self.tables.image(self.txn, key)
    }

    /// A lease.
    pub(super) fn lease(&self, id: LeaseId) -> Result<Option<LeaseRow>, Fault> {
        self.tables.find(self.txn, &keys::lease(id))
    }

    /// The value of a state of a key.
    pub(super) fn value(&self, key: &[u8], image: &Image) -> Result<Bytes, Fault> {
        match &image.value {
            Value::Inline(value) => Ok(value.clone()),
            Value::Large { length, .. } => {
                let large = self.tables.large_value(self.txn, key, image.modified)?;
                let fits = large.value.len() == *length as usize;
                if fits { Ok(large.value) } else { Err(Table::Values.corrupt(key)) }
            }
        }
    }

    /// A state of a key, as the API shows it.
    pub(super) fn key_value(&self, key: Bytes, image: &Image) -> Result<KeyValue, Fault> {
        let value = self.value(&key, image)?;
        Ok(key_value(key, image, value))
    }

    /// The revision to read at, if it is not the newest one.
    fn past(&self, at: Option<Revision>) -> Option<Revision> {
        at.filter(|at| *at < self.revision)
    }

    fn image_at(&self, key: &[u8], at: Revision) -> Result<Option<Image>, Fault> {
        let image = match self.next_change(key, at)? {
            Some(change) => change.prev,
            None => self.image(key)?,
        };
        image.map(|image| made_by(key, image, at)).transpose()
    }

    /// The first change of a key after a revision.
    fn next_change(&self, key: &[u8], after: Revision) -> Result<Option<Change>, Fault> {
        let from = keys::history(key, Position::start_of(after.next()));
        match self.next_in_history(&from)? {
            Some((found, at)) if found == key => self.tables.change(self.txn, key, at).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether a large value that a put at `at` wrote is that of its key now, or was replaced at or after `from`.
    pub(super) fn needs_value(
        &self,
        key: &[u8],
        at: Position,
        from: Revision,
    ) -> Result<bool, Fault> {
        if self.image(key)?.is_some_and(|image| image.modified == at) {
            return Ok(true);
        }
        let above =
            keys::history(key, Position { revision: at.revision, sub: at.sub.saturating_add(1) });
        let replaced = self.next_in_history(&above)?;
        Ok(replaced.is_some_and(|(found, by)| found == key && by.revision >= from))
    }

    /// The first row of `kidx` at or above a bound.
    fn next_in_history(&self, from: &[u8]) -> Result<Option<(Vec<u8>, Position)>, Fault> {
        let row = self.tables.seek(self.txn, Table::History, from)?;
        let parse = |(key, _)| keys::parse_history(key).ok_or_else(|| Table::History.corrupt(key));
        row.map(parse).transpose()
    }

    /// Shows each key of a range, in order, until told to stop.
    pub(super) fn scan(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        let (start, end) = tables::bounds(range);
        let latest = self.tables.range(self.txn, Table::Latest, start, end)?;
        match self.past(at) {
            None => scan_rows(latest, visit),
            Some(at) => self.scan_past(latest, range, at, visit),
        }
    }

    /// The same at an older revision. The keys of that time are among those of now and those that changed since; both
    /// are in key order, so one pass merges them.
    fn scan_past(
        &self,
        mut latest: RowsIter<'txn>,
        range: &KeyRange,
        at: Revision,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        let mut now = latest.next().transpose()?;
        let mut then = self.first_change_in(&range.start, range, at)?;
        loop {
            let order = match (&now, &then) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((now, _)), Some(then)) => (*now).cmp(&*then.key),
            };
            let flow = match (now, &then) {
                // It has not changed since.
                (Some((key, row)), _) if order.is_lt() => {
                    visit(key, Scanned::Image(made_by(key, Image::open(key, row)?, at)?))?
                }
                // It has; what it was then, if it was there, is what the change replaced.
                (_, Some(Change { key, prev: Some(prev), .. })) => {
                    visit(key, Scanned::Image(made_by(key, prev.clone(), at)?))?
                }
                _ => ControlFlow::Continue(()),
            };
            if flow.is_break() {
                return Ok(());
            }
            if order.is_le() {
                now = latest.next().transpose()?;
            }
            if order.is_ge()
                && let Some(passed) = then.take()
            {
                let mut above = passed.key.to_vec();
                above.push(0);
                then = self.first_change_in(&above, range, at)?;
            }
        }
    }

    /// Of the first key at or above `from` that has changed after a revision: the first such change.
    fn first_change_in(
        &self,
        from: &[u8],
        range: &KeyRange,
        after: Revision,
    ) -> Result<Option<Change>, Fault> {
        let mut bound = keys::history_bound(from);
        while let Some((key, position)) = self.next_in_history(&bound)? {
            if !range.contains(&key) {
                break;
            }
            if position.revision > after {
                return self.tables.change(self.txn, &key, position).map(Some);
            }
            // An older change: go on where this key's newer ones are, or the next key's.
            bound = keys::history(&key, Position::start_of(after.next()));
        }
        Ok(None)
    }

    /// One page of a range.
    pub(super) fn page(&self, op: &RangeOp) -> Result<Page, Fault> {
        let mut count = 0;
        let mut listing = Listing::new(op, self);
        self.scan(&op.range, op.at, &mut |key, found| {
            count += 1;
            if !op.count_only && !listing.is_decided() {
                listing.add(key, found.image(key)?)?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let (entries, more) = listing.finish()?;
        Ok(Page { entries, more, count, revision: self.revision })
    }
}

/// A state that was found for a revision, unless it was made after it: then a row of `kidx` is gone.
fn made_by(key: &[u8], image: Image, at: Revision) -> Result<Image, Fault> {
    if image.modified.revision <= at { Ok(image) } else { Err(Table::History.missing(key)) }
}

fn scan_rows(rows: RowsIter<'_>, visit: &mut Visit<'_>) -> Result<(), Fault> {
    for row in rows {
        let (key, row) = row?;
        if visit(key, Scanned::Row(row))?.is_break() {
            break;
        }
    }
    Ok(())
}

fn key_value(key: Bytes, image: &Image, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        value,
        create_revision: image.create_revision,
        mod_revision: image.modified.revision,
        version: image.version,
        lease: image.lease,
    }
}

/// The entries of a page while the range is being scanned.
///
/// A page is the longest beginning of the sorted entries that keeps the limit and the budget of bytes, and holds at
/// least one. Whatever falls behind such a beginning stays behind it when more entries come, so only a few times a
/// page's size is ever held, however long the range.
struct Listing<'op, 'txn> {
    op: &'op RangeOp,
    reader: &'op Reader<'txn>,
    kept: Vec<Entry>,
    kept_bytes: usize,
    /// Whether an entry had to be dropped: there is more than the page.
    dropped: bool,
}

/// An entry of a listing, with what it is sorted by if that is its value.
struct Entry {
    key: Bytes,
    image: Image,
    value: Option<Bytes>,
    bytes: usize,
}

impl<'op, 'txn> Listing<'op, 'txn> {
    fn new(op: &'op RangeOp, reader: &'op Reader<'txn>) -> Self {
        Self { op, reader, kept: Vec::new(), kept_bytes: 0, dropped: false }
    }

    /// Whether further keys, which come in key order, cannot change the page.
    fn is_decided(&self) -> bool {
        self.dropped && self.op.sort == SortBy::Key && !self.op.descending
    }

    fn add(&mut self, key: &[u8], image: Image) -> Result<(), Fault> {
        if !passes(self.op, &image) {
            return Ok(());
        }
        let sorts_by_value = self.op.sort == SortBy::Value;
        let value_bytes = if self.op.keys_only && !sorts_by_value { 0 } else { image.value.len() };
        let value = sorts_by_value.then(|| self.reader.value(key, &image)).transpose()?;
        let bytes = ENTRY_BYTES + key.len() + value_bytes;
        self.kept_bytes += bytes;
        self.kept.push(Entry { key: Bytes::copy_from_slice(key), image, value, bytes });
        // In key order each entry beyond the page is the last; else drop them when there are many, so that the cost of
        // sorting is shared by those that came.
        let slack = if self.op.sort == SortBy::Key && !self.op.descending { 1 } else { 2 };
        if self.kept.len() > self.entries_max().saturating_mul(slack)
            || self.kept_bytes > limits::PAGE_BYTES_MAX * slack
        {
            self.trim();
        }
        Ok(())
    }

    fn entries_max(&self) -> usize {
        match self.op.limit {
            0 => usize::MAX,
            limit => limit as usize,
        }
    }

    /// Sorts, and drops what cannot be on the page.
    fn trim(&mut self) {
        let op = self.op;
        self.kept.sort_unstable_by(|a, b| {
            let order = a.compare(b, op.sort);
            if op.descending { order.reverse() } else { order }
        });
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.bytes;
            bytes <= limits::PAGE_BYTES_MAX
        };
        let page = self.kept.iter().take_while(fits).count().max(1).min(self.entries_max());
        self.dropped |= page < self.kept.len();
        self.kept.truncate(page);
        self.kept_bytes = self.kept.iter().map(|entry| entry.bytes).sum();
    }

    fn finish(mut self) -> Result<(Vec<KeyValue>, bool), Fault> {
        self.trim();
        let entries = self.kept.into_iter().map(|entry| {
            let value = match entry.value {
                _ if self.op.keys_only => Bytes::new(),
                Some(value) => value,
                None => self.reader.value(&entry.key, &entry.image)?,
            };
            Ok(key_value(entry.key, &entry.image, value))
        });
        Ok((entries.collect::<Result<_, Fault>>()?, self.dropped))
    }
}

impl Entry {
    fn compare(&self, other: &Self, sort: SortBy) -> Ordering {
        let by = match sort {
            SortBy::Key => Ordering::Equal,
            SortBy::Value => self.value.cmp(&other.value),
            SortBy::CreateRevision => self.image.create_revision.cmp(&other.image.create_revision),
            SortBy::ModRevision => self.image.modified.revision.cmp(&other.image.modified.revision),
            SortBy::Version => self.image.version.cmp(&other.image.version),
        };
        by.then_with(|| self.key.cmp(&other.key))
    }
}

/// Whether a state passes the revision filters.
fn passes(op: &RangeOp, image: &Image) -> bool {
    let within = |revision: Revision, min: Option<Revision>, max: Option<Revision>| {
        min.is_none_or(|min| revision >= min) && max.is_none_or(|max| revision <= max)
    };
    within(image.modified.revision, op.mod_revision_min, op.mod_revision_max)
        && within(image.create_revision, op.create_revision_min, op.create_revision_max)
}
