//! One page of a range: filtered, sorted, counted and cut.
//!
//! ```text
//! keys of the range ──▶ revision filters ──▶ sort ──▶ limit, budget of bytes ──▶ entries, more
//!        └─ count                                     (normalised first: a top-n is one of all that passed)
//! ```
//!
//! `count` says how many keys the range holds, whatever the filters and the limit leave of it. Who reads a range page by page
//! has no use for it, and each page would go through all that is left of the range: he says so, and a page in the
//! order of keys ends where it is full.

use super::plan::Effort;
use super::read::{Reader, key_value};
use super::records::Image;
use crate::error::Fault;
use crate::types::{KeyValue, Page, RangeOp, Revision, Shows, SortBy, limits};
use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::ControlFlow;

/// What each entry of a page costs beside its key and value.
const ENTRY_BYTES: usize = 64;

impl Reader<'_> {
    /// One page of a range.
    pub(super) fn page(&self, op: &RangeOp) -> Result<Page, Fault> {
        let (listing, count) = self.list(op, &Effort::of_read())?;
        let (entries, more) = listing.finish()?;
        Ok(Page { entries, more, count, revision: self.revision })
    }

    /// What each entry of it takes, and whether there are more; or as much of that as may be gone through.
    pub(super) fn page_sizes(
        &self,
        op: &RangeOp,
        effort: &Effort,
    ) -> Result<(Vec<usize>, bool), Fault> {
        let (mut listing, _) = self.list(op, effort)?;
        listing.trim();
        let bytes =
            |entry: &Entry| if op.keys_only { ENTRY_BYTES + entry.key.len() } else { entry.bytes };
        Ok((listing.kept.iter().map(bytes).collect(), listing.dropped))
    }

    /// What is on the page, and how many keys the range holds.
    fn list<'op>(
        &'op self,
        op: &'op RangeOp,
        effort: &Effort,
    ) -> Result<(Listing<'op, 'op>, u64), Fault> {
        let mut count = 0;
        let mut listing = Listing::new(op, self);
        self.scan_within(&op.range, op.at, effort, &mut |key, found| {
            count += u64::from(op.shows != Shows::Entries);
            if op.shows != Shows::Count && !listing.is_decided() {
                let image = found.image(key)?;
                if op.sort == SortBy::Value && effort.value(image.value.len()).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                listing.add(key, image)?;
            }
            Ok(match op.shows == Shows::Entries && listing.is_decided() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
        Ok((listing, count))
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
