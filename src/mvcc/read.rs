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

use super::keys;
use super::plan::{Plan, Step};
use super::records::{Change, Image, LeaseRow, Record, Table, Value};
use super::tables::{self, RowsIter, Tables};
use crate::api::Position;
use crate::error::{Fault, Reason};
use crate::types::{KeyRange, KeyValue, LeaseId, OpResult, Revision, TxnOutcome};
use bytes::Bytes;
use heed::RoTxn;
use std::cmp::Ordering;
use std::ops::ControlFlow;

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
    pub(super) fn run(&self, plan: &Plan<'_>) -> Result<TxnOutcome, Fault> {
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

/// A state of a key with its value, as the API shows it.
pub(super) fn key_value(key: Bytes, image: &Image, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        value,
        create_revision: image.create_revision,
        mod_revision: image.modified.revision,
        version: image.version,
        lease: image.lease,
    }
}
