//! What was applied and is not in the tables yet, in memory.
//!
//! Applying writes here alone, which costs no page and no flush. From time to time what has gathered is *frozen*, another
//! overlay takes its place, and a thread of its own [flushes](super::flush) the frozen one into the tables: all of it in
//! one transaction, with the log position that it stands for. Readers look through both overlays down to the tables.
//!
//! ```text
//!            newest first
//! reader ──▶ active ──▶ frozen ──▶ tables        the first that knows a key has its newest state
//!              ▲          └─ flush ──▶ ┘
//!            apply
//! ```
//!
//! What was flushed lately is kept for those who look up a key ([`recent`]).
//!
//! A [`Moment`] is what there was at one time: how much of each overlay counts, and the head. Publishing one is all that
//! it takes to show what was applied.
//!
//! Invariants
//! - together, overlays and tables lack nothing: a frozen overlay is part of each moment until its flush is visible, and
//!   what is there twice is there the same;
//! - whoever reads knows its moment first, and begins its transaction then. The tables may be ahead of the overlays that
//!   it was begun for, never behind; if they are ahead of the moment itself, another one is taken
//!   ([`View::open`](super::View::open));
//! - history in the overlays is the end of history, without a gap.

pub(super) mod layer;
mod recent;

use super::Store;
use super::records::{Head, Image, LeaseRow, Membership, Value};
use crate::api::Position;
use bytes::Bytes;
use layer::{Layer, Range};
pub(crate) use recent::Recent;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What an entry takes beside its key and its values, about.
const ENTRY_BYTES: usize = 384;

/// What was applied since something.
#[derive(Debug)]
pub(super) struct Overlay {
    /// Changes by key; their numbers are in the order of history.
    pub(super) changes: Layer<Step>,
    /// Leases by the key of their row; none has ended.
    pub(super) leases: Layer<Option<LeaseRow>>,
    /// Whether a key is attached to a lease, by the key of that row.
    pub(super) attachments: Layer<bool>,
    bytes: AtomicUsize,
}

/// A change of a key.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) at: Position,
    pub(super) new: Option<Image>,
    pub(super) prev: Option<Image>,
    pub(super) gone: Option<Position>,
    pub(super) turn: u8,
    /// The value, if it is too long for the image.
    pub(super) large: Option<Bytes>,
}

impl Step {
    /// The change before it of its key, if there was one since history begins, or began.
    pub(super) fn before(&self) -> Option<Position> {
        self.prev.as_ref().map(|prev| prev.modified).or(self.gone)
    }
}

/// How much of an overlay counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    changes: u32,
    leases: u32,
    attachments: u32,
}

impl Marks {
    /// Everything, also what is being made.
    const ALL: Self = Self { changes: u32::MAX, leases: u32::MAX, attachments: u32::MAX };
}

impl Overlay {
    pub(super) fn new(seed: u64) -> Self {
        Self::with_room(seed, 0)
    }

    /// The same, with room for changes of so many keys.
    fn with_room(seed: u64, keys: usize) -> Self {
        Self {
            changes: Layer::with_room(seed, keys),
            leases: Layer::new(seed),
            attachments: Layer::new(seed),
            bytes: AtomicUsize::new(0),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.marks() == Marks::default()
    }

    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes note of so many bytes more.
    pub(super) fn takes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn change(&self, key: Bytes, step: Step) {
        // What was read from the tables. What is new is part of an entry.
        let prev = match step.prev.as_ref().map(|image| &image.value) {
            Some(Value::Inline(value)) => value.len(),
            _ => 0,
        };
        self.takes(ENTRY_BYTES + key.len() + prev);
        self.changes.put(key, step);
    }

    pub(super) fn lease(&self, row_key: &[u8], lease: Option<LeaseRow>) {
        self.takes(ENTRY_BYTES + row_key.len());
        self.leases.put(Bytes::copy_from_slice(row_key), lease);
    }

    pub(super) fn attach(&self, row_key: Vec<u8>, is_attached: bool) {
        self.takes(ENTRY_BYTES + row_key.len());
        self.attachments.put(row_key.into(), is_attached);
    }

    fn marks(&self) -> Marks {
        Marks {
            changes: self.changes.len(),
            leases: self.leases.len(),
            attachments: self.attachments.len(),
        }
    }

    /// The number of the first change at or behind a position.
    pub(super) fn seek(&self, at: Position, upto: u32) -> u32 {
        let (mut low, mut high) = (0, upto.min(self.changes.len()));
        while low < high {
            let middle = low + (high - low) / 2;
            match self.changes.entry(middle) {
                Some(entry) if entry.value.at < at => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }
}

/// All that there was at one time.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    pub(super) store: Store,
    pub(super) head: Head,
    pub(super) membership: Option<Membership>,
    active: Option<(Arc<Overlay>, Marks)>,
    frozen: Option<Arc<Overlay>>,
    pub(super) recent: Recent,
}

impl Moment {
    pub(super) fn new(
        store: Store,
        head: Head,
        membership: Option<Membership>,
        active: &Arc<Overlay>,
        frozen: Option<Arc<Overlay>>,
        recent: Recent,
    ) -> Self {
        let active = (!active.is_empty()).then(|| (Arc::clone(active), active.marks()));
        Self { store, head, membership, active, frozen, recent }
    }

    /// What the tables hold, and nothing else.
    pub(super) fn settled(store: Store, head: Head, membership: Option<Membership>) -> Self {
        let recent = Recent::default();
        Self { store, head, membership, active: None, frozen: None, recent }
    }

    pub(super) fn front(&self) -> Front<'_> {
        let active = self.active.as_ref().map(|(overlay, marks)| (&**overlay, *marks));
        let frozen = self.frozen.as_ref().map(|overlay| (&**overlay, Marks::ALL));
        Front([active, frozen])
    }
}

/// The overlays that a reader looks through, the newer one first.
#[derive(Clone, Copy)]
pub(super) struct Front<'a>([Option<(&'a Overlay, Marks)>; 2]);

/// A change in an overlay: which, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    overlay: usize,
    number: u32,
}

impl<'a> Front<'a> {
    /// What one who applies sees.
    pub(super) fn of_writer(active: &'a Overlay, frozen: Option<&'a Arc<Overlay>>) -> Self {
        Self([Some((active, Marks::ALL)), frozen.map(|overlay| (&**overlay, Marks::ALL))])
    }

    pub(super) fn is_empty(self) -> bool {
        self.overlays(0).next().is_none()
    }

    /// About what they take in memory.
    pub(super) fn bytes(self) -> usize {
        self.overlays(0).map(|(_, overlay, _)| overlay.bytes()).sum()
    }

    fn overlays(self, newer_than: usize) -> impl Iterator<Item = (usize, &'a Overlay, Marks)> {
        let all = self.0.into_iter().enumerate().skip(newer_than);
        all.filter_map(|(which, it)| it.map(|(overlay, marks)| (which, overlay, marks)))
    }

    /// The newest change of a key that is here.
    pub(super) fn newest(self, key: &[u8]) -> Option<Found> {
        self.newest_in(key, 0)
    }

    fn newest_in(self, key: &[u8], from: usize) -> Option<Found> {
        self.overlays(from).find_map(|(overlay, it, marks)| {
            let number = it.changes.newest(key, marks.changes)?;
            Some(Found { overlay, number })
        })
    }

    /// The oldest change of a key that is here, of those from a position on.
    pub(super) fn oldest(self, key: &[u8], from: Position) -> Option<Found> {
        let oldest = self.overlays(0).filter_map(|(overlay, it, marks)| {
            let newest = it.changes.newest(key, marks.changes)?;
            let number = it.changes.oldest(newest, |_, step| step.at >= from)?;
            Some(Found { overlay, number })
        });
        oldest.last()
    }

    /// The change before one of the same key, if that is here too.
    pub(super) fn before(self, key: &[u8], found: Found) -> Option<Found> {
        let (overlay, _) = self.0[found.overlay]?;
        match overlay.changes.before(found.number) {
            Some(number) => Some(Found { number, ..found }),
            None => self.newest_in(key, found.overlay + 1),
        }
    }

    pub(super) fn step(self, found: Found) -> &'a Step {
        let overlay = self.0[found.overlay].map(|(overlay, _)| overlay);
        let entry = overlay.and_then(|overlay| overlay.changes.entry(found.number));
        &entry.expect("it was found there").value
    }

    /// The newest change of a key that is here.
    pub(super) fn newest_step(self, key: &[u8]) -> Option<&'a Step> {
        self.newest(key).map(|found| self.step(found))
    }

    /// A lease, if it is known here: none has ended.
    pub(super) fn lease(self, row_key: &[u8]) -> Option<Option<LeaseRow>> {
        self.overlays(0).find_map(|(_, it, marks)| it.leases.get(row_key, marks.leases).copied())
    }

    /// Where history goes on here.
    pub(super) fn first(self) -> Option<Position> {
        let oldest = self.overlays(0).filter_map(|(_, it, marks)| {
            it.changes.entry(0).filter(|_| marks.changes > 0).map(|entry| entry.value.at)
        });
        oldest.last()
    }

    /// The changes from a position on, in order, with their keys.
    pub(super) fn history(self, from: Position) -> impl Iterator<Item = (&'a Bytes, &'a Step)> {
        let oldest_first = self.0.into_iter().rev().flatten();
        oldest_first.flat_map(move |(overlay, marks)| {
            let begin = overlay.seek(from, marks.changes);
            let numbers = begin..marks.changes.min(overlay.changes.len());
            let entries = numbers.map_while(|number| overlay.changes.entry(number));
            entries.map(|entry| (&entry.key, &entry.value))
        })
    }

    /// The newest change of each key of a range that has one here, in order.
    pub(super) fn changes(self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Both<'a, Step> {
        self.both(|overlay, marks| {
            overlay.changes.range(start, end, marks.changes.min(overlay.changes.len()))
        })
    }

    /// All leases that are known here, in order.
    pub(super) fn leases(self) -> Both<'a, Option<LeaseRow>> {
        let all = Bound::Unbounded;
        self.both(|overlay, marks| {
            overlay.leases.range(all, all, marks.leases.min(overlay.leases.len()))
        })
    }

    /// What is known here of the keys of a lease, in order.
    pub(super) fn attachments(self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Both<'a, bool> {
        self.both(|overlay, marks| {
            overlay.attachments.range(start, end, marks.attachments.min(overlay.attachments.len()))
        })
    }

    fn both<V>(self, range: impl Fn(&'a Overlay, Marks) -> Range<'a, V>) -> Both<'a, V> {
        let of =
            |which: usize| self.0[which].map(|(overlay, marks)| range(overlay, marks).peekable());
        Both([of(0), of(1)])
    }
}

/// The keys of a range in both overlays, in order; the newer one counts.
pub(super) struct Both<'a, V>([Option<Peekable<Range<'a, V>>>; 2]);

impl<'a, V> Iterator for Both<'a, V> {
    type Item = (&'a Bytes, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let [newer, older] = &mut self.0;
        let key = |range: &mut Option<Peekable<Range<'a, V>>>| -> Option<&'a Bytes> {
            range.as_mut().and_then(|range| range.peek()).map(|(_, entry)| &entry.key)
        };
        let order = match (key(newer), key(older)) {
            (Some(one), Some(two)) => one.cmp(two),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, _) => std::cmp::Ordering::Greater,
        };
        let take = |range: &mut Option<Peekable<Range<'a, V>>>| range.as_mut()?.next();
        let of_newer = if order.is_le() { take(newer) } else { None };
        let of_older = if order.is_ge() { take(older) } else { None };
        of_newer.or(of_older).map(|(_, entry)| (&entry.key, &entry.value))
    }
}
