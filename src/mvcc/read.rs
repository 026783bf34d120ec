//! Reading: the latest state, and the state at any revision that is not compacted away.
//!
//! The latest state of a key is one entry of an [overlay](super::overlay), or else one row. An older one is not stored as
//! such; it follows from the first change *after* that time, which remembers what it replaced:
//!
//! ```text
//!                 revision    2        3        4        5        6
//!                             put 1    put 2                      delete
//! changes of a    ────────────┬────────┬──────────────────────────┬──────▶   latest[a]: absent, gone[a]: 6
//!                 prev:       none     "1"                        "2"
//!
//! a at 2: the first change above 2 is 3, its prev is "1"      a at 4: that is 6, its prev is "2"
//! a at 1: that is 2, its prev is none: absent                 a at 6: there is none: latest[a], absent
//! ```
//!
//! The newest change of a key is known, and each knows the one before it ([`chain`](super::chain)). So reading the present
//! never gets slower with the depth of history, and the past costs the way back to it, of which `kidx` cuts off all but a
//! few steps.
//!
//! Invariants
//! - a [`Reader`] looks at one moment, so it sees whole revisions; one who applies also sees what the revision in the
//!   making has changed so far, and that is `revision`;
//! - no answer depends on how far physical compaction or a flush has come: rows of compacted revisions are never looked at.

use super::keys;
use super::overlay::{Front, Recent, Step as Made};
use super::plan::Effort;
use super::plan::{Plan, Step};
use super::records::{Gone, Image, LeaseRow, Record, Table, Value};
use super::tables::{self, Row, RowsIter, Tables};
use crate::api::Position;
use crate::error::{Fault, Reason};
use crate::types::{KeyRange, KeyValue, LeaseId, OpResult, Revision, TxnOutcome};
use bytes::Bytes;
use heed::RoTxn;
use std::cmp::Ordering;
use std::ops::ControlFlow;

/// Reads at a moment.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) front: Front<'a>,
    pub(super) recent: &'a Recent,
    pub(super) txn: &'a RoTxn<'a>,
    pub(super) tables: Tables,
    /// The newest revision that is visible, the one in the making included.
    pub(super) revision: Revision,
    pub(super) compact_revision: Revision,
}

/// The state of a key that a scan came by; decoded only if it is of interest.
pub(super) enum Scanned<'a> {
    Row(&'a [u8]),
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

impl<'a> Reader<'a> {
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
        match self.front.newest_step(key).or_else(|| self.recent.newest_step(key)) {
            Some(made) => Ok(made.new.clone()),
            None => self.tables.find(self.txn, key),
        }
    }

    /// The last change of a key that is not there, for as long as that is history.
    pub(super) fn gone(&self, key: &[u8]) -> Result<Option<Gone>, Fault> {
        let gone = match self.front.newest_step(key) {
            Some(Made { new: None, at, turn, .. }) => Some(Gone { at: *at, turn: *turn }),
            Some(_) => None,
            None => self.tables.find(self.txn, key)?,
        };
        Ok(gone.filter(|gone| self.is_kept(gone.at)))
    }

    /// Whether what happened at a position has not been compacted away.
    pub(super) fn is_kept(&self, at: Position) -> bool {
        at.revision >= self.compact_revision
    }

    /// A lease.
    pub(super) fn lease(&self, id: LeaseId) -> Result<Option<LeaseRow>, Fault> {
        let row_key = keys::lease(id);
        match self.front.lease(&row_key) {
            Some(lease) => Ok(lease),
            None => self.tables.find(self.txn, &row_key),
        }
    }

    /// The value of a state of a key.
    pub(super) fn value(&self, key: &[u8], image: &Image) -> Result<Bytes, Fault> {
        let length = match &image.value {
            Value::Inline(value) => return Ok(value.clone()),
            Value::Large { length, .. } => *length as usize,
        };
        if let Some(value) = self.large_here(key, image.modified) {
            return Ok(value);
        }
        let value = self.tables.large_value(self.txn, key, image.modified)?;
        if value.len() == length { Ok(value) } else { Err(Table::Values.corrupt(key)) }
    }

    /// A large value that the tables may not have yet, or that is known without them.
    fn large_here(&self, key: &[u8], at: Position) -> Option<Bytes> {
        let in_front = self.front.oldest(key, at).map(|found| self.front.step(found));
        let made = in_front.or_else(|| self.recent.newest_step_since(key, at))?;
        made.large.clone().filter(|_| made.at == at)
    }

    /// A state of a key, as the API shows it.
    pub(super) fn key_value(&self, key: Bytes, image: &Image) -> Result<KeyValue, Fault> {
        let value = self.value(&key, image)?;
        Ok(key_value(key, image, value))
    }

    /// The revision to read at, if it is not the newest one.
    pub(super) fn past(&self, at: Option<Revision>) -> Option<Revision> {
        at.filter(|at| *at < self.revision)
    }

    /// The state of a key at an older revision.
    pub(super) fn image_at(&self, key: &[u8], at: Revision) -> Result<Option<Image>, Fault> {
        let image = match self.first_change_after(key, at)? {
            Some(change) => change.prev().cloned(),
            None => self.image(key)?,
        };
        match image {
            // Then a change is gone.
            Some(image) if image.modified.revision > at => Err(Table::Events.missing(key)),
            image => Ok(image),
        }
    }

    /// Shows each key of a range, in order, until told to stop.
    pub(super) fn scan(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        self.scan_within(range, at, &Effort::of_read(), visit)
    }

    /// The same, or as many of them as may be gone through. To look for what was there once is to go through what is there now as
    /// well, and what has gone since history begins: that is the same on all members, whatever they have flushed or removed.
    pub(super) fn scan_within(
        &self,
        range: &KeyRange,
        at: Option<Revision>,
        effort: &Effort,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        match self.past(at) {
            None => self.scan_latest(range, &mut |key, found| match effort.step() {
                ControlFlow::Continue(()) => visit(key, found),
                enough @ ControlFlow::Break(()) => Ok(enough),
            }),
            Some(at) => self.scan_past(range, at, effort, visit),
        }
    }

    /// The keys of now: those of the tables, but for what the overlays know better.
    fn scan_latest(&self, range: &KeyRange, visit: &mut Visit<'_>) -> Result<(), Fault> {
        let (start, end) = tables::bounds(range);
        let mut rows = Rows::new(self.tables.range(self.txn, Table::Latest, start, end)?)?;
        for (key, made) in self.front.changes(start, end) {
            while let Some((row_key, row)) = rows.take_below(key)? {
                if visit(row_key, Scanned::Row(row))?.is_break() {
                    return Ok(());
                }
            }
            rows.skip(key)?;
            if let Some(image) = &made.new
                && visit(key, Scanned::Image(image.clone()))?.is_break()
            {
                return Ok(());
            }
        }
        while let Some((row_key, row)) = rows.take()? {
            if visit(row_key, Scanned::Row(row))?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether a key counts where the past is looked through: one that is there, or that has gone since history begins. What
    /// else there is of it in the tables goes at any time.
    fn is_gone_through(
        &self,
        key: &[u8],
        is_here: bool,
        is_now: bool,
        was_gone: Option<&[u8]>,
    ) -> Result<bool, Fault> {
        if is_here {
            return Ok(self.image(key)?.is_some() || self.gone(key)?.is_some());
        }
        match was_gone {
            _ if is_now => Ok(true),
            Some(row) => Ok(self.is_kept(Gone::open(key, row)?.at)),
            None => Ok(false),
        }
    }

    /// The same at an older revision. The keys of that time are among those of now, those that are gone, and those that
    /// the overlays know; all three are in key order, so one pass merges them.
    fn scan_past(
        &self,
        range: &KeyRange,
        at: Revision,
        effort: &Effort,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        let (start, end) = tables::bounds(range);
        let mut now = Rows::new(self.tables.range(self.txn, Table::Latest, start, end)?)?;
        let mut gone = Rows::new(self.tables.range(self.txn, Table::Gone, start, end)?)?;
        let mut here = self.front.changes(start, end).map(|(key, _)| key).peekable();
        loop {
            let heads = [now.key(), gone.key(), here.peek().map(|key| &***key)];
            let Some(key) = heads.into_iter().flatten().min().map(Bytes::copy_from_slice) else {
                return Ok(());
            };
            let is_here = here.next_if(|next| **next == key).is_some();
            let was_gone = gone.take_at(&key)?;
            let is_now = now.take_at(&key)?;
            if !effort.has_no_end()
                && self.is_gone_through(&key, is_here, is_now.is_some(), was_gone)?
                && effort.step().is_break()
            {
                return Ok(());
            }
            let image = match is_now {
                // It has not changed since.
                Some(row) if !is_here => {
                    Some(Image::open(&key, row)?).filter(|image| image.modified.revision <= at)
                }
                _ => None,
            };
            // What is gone since before that time was not there then.
            let is_over = match was_gone {
                Some(row) if !is_here => Gone::open(&key, row)?.at.revision <= at,
                _ => false,
            };
            let image = match image {
                None if !is_over => self.image_at(&key, at)?,
                image => image,
            };
            if let Some(image) = image
                && visit(&key, Scanned::Image(image))?.is_break()
            {
                return Ok(());
            }
        }
    }
}

/// The rows of a range of a table, of which the next one is known.
pub(super) struct Rows<'a> {
    rows: RowsIter<'a>,
    next: Option<Row<'a>>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(mut rows: RowsIter<'a>) -> Result<Self, Fault> {
        let next = rows.next().transpose()?;
        Ok(Self { rows, next })
    }

    /// The key of the next row.
    fn key(&self) -> Option<&'a [u8]> {
        self.next.map(|(key, _)| key)
    }

    pub(super) fn take(&mut self) -> Result<Option<Row<'a>>, Fault> {
        let taken = self.next;
        if taken.is_some() {
            self.next = self.rows.next().transpose()?;
        }
        Ok(taken)
    }

    /// The next row, if its key is below this one.
    pub(super) fn take_below(&mut self, key: &[u8]) -> Result<Option<Row<'a>>, Fault> {
        match self.key().map(|next| next.cmp(key)) {
            Some(Ordering::Less) => self.take(),
            _ => Ok(None),
        }
    }

    /// The content of the next row, if its key is this one.
    fn take_at(&mut self, key: &[u8]) -> Result<Option<&'a [u8]>, Fault> {
        match self.key() {
            Some(next) if next == key => Ok(self.take()?.map(|(_, row)| row)),
            _ => Ok(None),
        }
    }

    /// Passes the row of a key, if it is the next one.
    pub(super) fn skip(&mut self, key: &[u8]) -> Result<(), Fault> {
        self.take_at(key).map(drop)
    }
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
