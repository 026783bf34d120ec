//! An ordered map in memory that one thread writes and any number read, each as of its own moment, without a lock.
//!
//! What is put is never taken out or changed, only followed by something newer; so a moment is a number, that of the
//! entries that there were, and whoever knows it finds what was newest then.
//!
//! ```text
//! entries   0: b=1   1: a=1   2: b=2   3: b=3           each knows the one before it of its key, and one further back
//! index     hash of the key ──▶ its newest entry        finds a key
//! order     [a b]                                       keys in order, sorted when somebody asks for a range
//!
//! b as of 4: 3    b as of 3: entry 3 is not there yet, before it comes 2: 2    b as of 0: nothing
//! ```
//!
//! One entry of a key is found among many others of it in a number of steps that is logarithmic, by links further back as
//! in Myers, An applicative random-access stack (1983): how far each goes follows from how many entries there are before it.
//!
//! Everything grows in pieces that stay where they are, so that a reader may hold on to what it has found.
//!
//! Invariants
//! - one thread puts; the others have been told of a moment before they ask for it;
//! - an entry is in its place before the index leads to it.

use super::super::hash;
use arc_swap::ArcSwap;
use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering as Memory};
use std::sync::{Arc, OnceLock};

/// The entries of the first piece, or more if it is known that there will be; each further one has twice as many.
const FIRST: u64 = 64;
/// As many pieces as there are numbers for entries.
const PIECES: usize = 26;

/// The map. A later value of a key hides the earlier ones.
#[derive(Debug)]
pub(in crate::mvcc) struct Layer<V> {
    entries: Shelf<Entry<V>>,
    index: Index,
    order: ArcSwap<Order>,
}

#[derive(Debug)]
pub(in crate::mvcc) struct Entry<V> {
    pub(in crate::mvcc) key: Bytes,
    pub(in crate::mvcc) value: V,
    back: Option<Back>,
}

/// What came before an entry, of its key.
#[derive(Clone, Copy, Debug)]
struct Back {
    /// The entry before it.
    before: u32,
    /// One further back.
    far: u32,
    /// How many there are.
    count: u32,
}

impl<V> Layer<V> {
    /// An empty one. The seed keeps those who choose the keys from knowing where they come to lie.
    pub(in crate::mvcc) fn new(seed: u64) -> Self {
        Self::with_room(seed, 0)
    }

    /// The same, with room for so many keys, that none is taken which is not needed.
    pub(in crate::mvcc) fn with_room(seed: u64, keys: usize) -> Self {
        let order = ArcSwap::from_pointee(Order::default());
        Self { entries: Shelf::with_room(keys), index: Index::with_room(seed, keys), order }
    }

    /// The seed that it was made with.
    pub(in crate::mvcc) fn seed(&self) -> u64 {
        self.index.seed
    }

    /// How many entries there are.
    pub(in crate::mvcc) fn len(&self) -> u32 {
        self.entries.length.load(Memory::Acquire)
    }

    /// Puts a value over whatever the key had. For one thread only.
    pub(in crate::mvcc) fn put(&self, key: Bytes, value: V) {
        let number = self.len();
        let place = self.index.place(&key);
        let (slot, before) = self.index.slot(&self.entries, place, &key);
        let back = before.map(|before| self.back_to(before));
        self.entries.push(Entry { key, value, back });
        slot.store(filled(place, number), Memory::Release);
        if back.is_none() {
            self.index.grow();
        }
    }

    /// What the entry has that follows `before`.
    fn back_to(&self, before: u32) -> Back {
        let back = |number: u32| self.entry(number).and_then(|entry| entry.back);
        let count = |number: u32| back(number).map_or(0, |back| back.count);
        // Two ways back of one length become one of both.
        let ways = back(before).and_then(|first| Some((first.far, back(first.far)?.far)));
        let is_one = |(first, second): &(u32, u32)| {
            count(before) - count(*first) == count(*first) - count(*second)
        };
        let far = ways.filter(is_one).map_or(before, |(_, second)| second);
        Back { before, far, count: count(before) + 1 }
    }

    /// The entry with a number.
    pub(in crate::mvcc) fn entry(&self, number: u32) -> Option<&Entry<V>> {
        self.entries.get(number)
    }

    /// Where a key comes to lie, in this one and all of the same seed.
    pub(in crate::mvcc) fn place(&self, key: &[u8]) -> u32 {
        self.index.place(key)
    }

    /// The number of the newest entry of a key that lies at `place`.
    pub(in crate::mvcc) fn newest_of_all(&self, place: u32, key: &[u8]) -> Option<u32> {
        self.index.slot(&self.entries, place, key).1
    }

    /// Where each key lies, with the number of its newest entry, once nothing is put any more.
    pub(in crate::mvcc) fn places(&self) -> impl Iterator<Item = (u32, u32)> {
        let table = self.index.table(self.index.current.load(Memory::Acquire));
        table.iter().filter_map(|slot| parsed(slot.load(Memory::Acquire)))
    }

    /// How many keys there are.
    pub(in crate::mvcc) fn keys(&self) -> usize {
        self.index.keys.load(Memory::Acquire) as usize
    }

    /// The number of the newest entry of a key as of a moment.
    pub(in crate::mvcc) fn newest(&self, key: &[u8], moment: u32) -> Option<u32> {
        let newest = self.newest_of_all(self.place(key), key);
        match newest.and_then(|newest| self.oldest(newest, |number, _| number >= moment)) {
            Some(later) => self.before(later),
            None => newest,
        }
    }

    /// The entry before one of the same key.
    pub(in crate::mvcc) fn before(&self, number: u32) -> Option<u32> {
        Some(self.entry(number)?.back?.before)
    }

    /// From an entry back among those of its key: the oldest for which `holds`, which holds for all that are newer.
    pub(in crate::mvcc) fn oldest(
        &self,
        newest: u32,
        holds: impl Fn(u32, &V) -> bool,
    ) -> Option<u32> {
        let at = |number: u32| self.entry(number).filter(|entry| holds(number, &entry.value));
        let mut oldest = None;
        let mut next = at(newest).map(|entry| (newest, entry));
        while let Some((number, entry)) = next {
            oldest = Some(number);
            let found = |number: u32| at(number).map(|entry| (number, entry));
            next = entry.back.and_then(|back| found(back.far).or_else(|| found(back.before)));
        }
        oldest
    }

    /// What a key has as of a moment.
    pub(in crate::mvcc) fn get(&self, key: &[u8], moment: u32) -> Option<&V> {
        Some(&self.entry(self.newest(key, moment)?)?.value)
    }

    /// The keys between two bounds that have an entry as of a moment, in order, with the number of their newest.
    pub(in crate::mvcc) fn range(
        &self,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        moment: u32,
    ) -> Range<'_, V> {
        let order = self.ordered(moment);
        let within = |run: &Arc<[u32]>| {
            let key = |number: &u32| &*self.entries.get(*number).expect("it was sorted").key;
            let begin = run.partition_point(|number| is_before(key(number), start));
            let length = run[begin..].partition_point(|number| !is_behind(key(number), end));
            (Arc::clone(run), begin..begin + length)
        };
        let runs = order.runs.iter().map(within).filter(|(_, run)| !run.is_empty()).collect();
        Range { layer: self, moment, runs }
    }

    /// The order of all keys that there are as of a moment, and perhaps of later ones.
    fn ordered(&self, moment: u32) -> Arc<Order> {
        let now = self.order.load_full();
        if now.upto >= moment {
            return now;
        }
        let extended = Arc::new(now.extended(self, moment));
        // Somebody else may have come further meanwhile; then that is kept.
        self.order.rcu(|now| Arc::clone(if now.upto > extended.upto { now } else { &extended }));
        extended
    }
}

fn is_before(key: &[u8], start: Bound<&[u8]>) -> bool {
    match start {
        Bound::Unbounded => false,
        Bound::Included(start) => key < start,
        Bound::Excluded(start) => key <= start,
    }
}

fn is_behind(key: &[u8], end: Bound<&[u8]>) -> bool {
    match end {
        Bound::Unbounded => false,
        Bound::Included(end) => key > end,
        Bound::Excluded(end) => key >= end,
    }
}

/// The keys of a range, in order.
pub(in crate::mvcc) struct Range<'a, V> {
    layer: &'a Layer<V>,
    moment: u32,
    runs: Vec<(Arc<[u32]>, std::ops::Range<usize>)>,
}

impl<'a, V> Iterator for Range<'a, V> {
    /// The number of the newest entry, and the entry.
    type Item = (u32, &'a Entry<V>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = |(run, left): &(Arc<[u32]>, std::ops::Range<usize>)| {
                let first = left.clone().next().and_then(|at| run.get(at).copied());
                first.and_then(|number| self.layer.entry(number)).map(|entry| &entry.key)
            };
            let least = (0..self.runs.len()).reduce(|least, other| {
                match (key(&self.runs[least]), key(&self.runs[other])) {
                    (_, None) => least,
                    (Some(one), Some(two)) if one <= two => least,
                    _ => other,
                }
            })?;
            let (run, left) = &mut self.runs[least];
            let first = *run.get(left.next()?)?;
            // Each key stands in one run, as the first of its entries; a key may have come after the moment.
            let newest =
                self.layer.entry(first).and_then(|it| self.layer.newest(&it.key, self.moment));
            if let Some(newest) = newest {
                return Some((newest, self.layer.entry(newest)?));
            }
        }
    }
}

/// The keys of the first entries, sorted in runs of which each is about half as long as the one before it.
#[derive(Debug, Default)]
struct Order {
    /// It knows the keys of entries below this.
    upto: u32,
    /// The first entry of each key.
    runs: Vec<Arc<[u32]>>,
}

impl Order {
    fn extended<V>(&self, layer: &Layer<V>, upto: u32) -> Self {
        let key = |number: &u32| layer.entries.get(*number).map(|entry| &entry.key);
        let is_first = |number: &u32| layer.before(*number).is_none();
        let mut new: Vec<u32> = (self.upto..upto).filter(is_first).collect();
        new.sort_unstable_by(|one, two| key(one).cmp(&key(two)));
        let mut runs = self.runs.clone();
        while let Some(last) = runs.pop_if(|last| last.len() <= 2 * new.len()) {
            new = merged(&last, &new, |one, two| key(one).cmp(&key(two)));
        }
        if !new.is_empty() {
            runs.push(new.into());
        }
        Self { upto, runs }
    }
}

fn merged(one: &[u32], two: &[u32], compare: impl Fn(&u32, &u32) -> Ordering) -> Vec<u32> {
    let mut merged = Vec::with_capacity(one.len() + two.len());
    let (mut one, mut two) = (one.iter().copied().peekable(), two.iter().copied().peekable());
    loop {
        let next = match (one.peek(), two.peek()) {
            (Some(first), Some(second)) if compare(first, second).is_lt() => one.next(),
            (_, Some(_)) => two.next(),
            (_, None) => one.next(),
        };
        match next {
            Some(next) => merged.push(next),
            None => return merged,
        }
    }
}

/// Grows at its end, in pieces that stay where they are.
#[derive(Debug)]
struct Shelf<T> {
    /// How many entries the first piece has. The second has [`FIRST`].
    room: u32,
    pieces: [OnceLock<Box<[OnceLock<T>]>>; PIECES + 1],
    length: AtomicU32,
}

impl<T> Shelf<T> {
    fn with_room(entries: usize) -> Self {
        let room = u32::try_from(entries).unwrap_or(u32::MAX).max(FIRST as u32);
        Self { room, pieces: [const { OnceLock::new() }; PIECES + 1], length: AtomicU32::new(0) }
    }

    /// The piece in which an entry stands, and where in it.
    fn place(&self, number: u32) -> (usize, usize) {
        let Some(behind) = number.checked_sub(self.room) else { return (0, number as usize) };
        let number = u64::from(behind) + FIRST;
        let piece = number.ilog2() - FIRST.ilog2();
        (1 + piece as usize, (number - (FIRST << piece)) as usize)
    }

    fn get(&self, number: u32) -> Option<&T> {
        let (piece, at) = self.place(number);
        self.pieces.get(piece)?.get()?.get(at)?.get()
    }

    /// For one thread only.
    fn push(&self, item: T) {
        let number = self.length.load(Memory::Relaxed);
        let (piece, at) = self.place(number);
        let length =
            piece.checked_sub(1).map_or(self.room as usize, |piece| (FIRST << piece) as usize);
        let room = || std::iter::repeat_with(OnceLock::new).take(length).collect();
        let is_set = self.pieces[piece].get_or_init(room)[at].set(item).is_ok();
        assert!(is_set, "only one puts");
        self.length.store(number + 1, Memory::Release);
    }
}

/// Leads from a key to its newest entry.
///
/// A slot holds the place of its key and the number of the entry, so that a key which is not the one is mostly passed over
/// without a look at it: who looks through several layers finds nothing in most of them.
#[derive(Debug)]
struct Index {
    seed: u64,
    /// Each is twice as large as the one before it, and takes over from it.
    tables: [OnceLock<Box<[AtomicU64]>>; PIECES],
    current: AtomicUsize,
    keys: AtomicU32,
}

/// What stands in the slot of a key with an entry: its place, and the number plus one. Zero is none.
pub(super) fn filled(place: u32, number: u32) -> u64 {
    u64::from(place) << 32 | (u64::from(number) + 1)
}

/// The place of the key in a slot, and the number of its newest entry.
pub(super) fn parsed(slot: u64) -> Option<(u32, u32)> {
    let number = (slot as u32).checked_sub(1)?;
    Some(((slot >> 32) as u32, number))
}

impl Index {
    fn with_room(seed: u64, keys: usize) -> Self {
        let slots = (2 * keys as u64 + 1).next_power_of_two().max(FIRST);
        let first = (slots.ilog2() - FIRST.ilog2()) as usize;
        let tables = [const { OnceLock::new() }; PIECES];
        let index = Self { seed, tables, current: first.into(), keys: AtomicU32::new(0) };
        index.table(first);
        index
    }

    fn table(&self, number: usize) -> &[AtomicU64] {
        let length = (FIRST << number) as usize;
        let empty = || std::iter::repeat_with(|| AtomicU64::new(0)).take(length).collect();
        self.tables[number].get_or_init(empty)
    }

    /// Where a key comes to lie, in a table of any size.
    fn place(&self, key: &[u8]) -> u32 {
        hash::of_place(self.seed, key) as u32
    }

    /// The slot of a key, and the number of its newest entry, if it has one.
    fn slot<V>(
        &self,
        entries: &Shelf<Entry<V>>,
        place: u32,
        key: &[u8],
    ) -> (&AtomicU64, Option<u32>) {
        let table = self.table(self.current.load(Memory::Acquire));
        let is_it = |number: u32| entries.get(number).is_some_and(|entry| entry.key == key);
        let mut at = place as usize;
        loop {
            let slot = &table[at & (table.len() - 1)];
            match parsed(slot.load(Memory::Acquire)) {
                None => return (slot, None),
                Some((of, number)) if of == place && is_it(number) => return (slot, Some(number)),
                Some(_) => at += 1,
            }
        }
    }

    /// Takes note of a new key, and makes room for more. For one thread only.
    fn grow(&self) {
        let keys = self.keys.load(Memory::Relaxed) + 1;
        self.keys.store(keys, Memory::Relaxed);
        let current = self.current.load(Memory::Relaxed);
        let now = self.table(current);
        if (keys as usize) < now.len() / 2 {
            return;
        }
        let larger = self.table(current + 1);
        for slot in now.iter().map(|slot| slot.load(Memory::Relaxed)) {
            let Some((place, _)) = parsed(slot) else { continue };
            let places = (place as usize..).map(|at| &larger[at & (larger.len() - 1)]);
            let mut free = places.skip_while(|it| it.load(Memory::Relaxed) != 0);
            free.next().expect("it is half empty").store(slot, Memory::Release);
        }
        self.current.store(current + 1, Memory::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn all(layer: &Layer<u32>, moment: u32) -> Vec<(Bytes, u32)> {
        let all = layer.range(Bound::Unbounded, Bound::Unbounded, moment);
        all.map(|(_, entry)| (entry.key.clone(), entry.value)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// At every moment, that of a reader who looked at other moments before included.
        #[test]
        fn it_is_a_map_at_every_moment(
            puts in vec((0u8..40, any::<u32>()), 0..300),
            looks in vec((any::<prop::sample::Index>(), 0u8..40, 0u8..40), 0..20),
            room in 0usize..300,
        ) {
            let layer = Layer::with_room(7, room);
            let mut models = vec![BTreeMap::new()];
            for (key, value) in &puts {
                let key = Bytes::from(vec![*key]);
                layer.put(key.clone(), *value);
                let mut model = models.last().unwrap().clone();
                model.insert(key, *value);
                models.push(model);
            }
            for (moment, one, two) in looks {
                let moment = moment.index(models.len());
                let model = &models[moment];
                let moment = moment as u32;
                let range = [one.min(two)].to_vec()..[one.max(two)].to_vec();
                let (start, end) = (Bound::Included(&*range.start), Bound::Excluded(&*range.end));
                let found = layer.range(start, end, moment);
                let found: Vec<_> = found.map(|(_, it)| (it.key.clone(), it.value)).collect();
                let expected = model.iter().filter(|(key, _)| range.contains(&key.to_vec()));
                let expected: Vec<_> = expected.map(|(key, value)| (key.clone(), *value)).collect();
                prop_assert_eq!(found, expected);
                prop_assert_eq!(layer.get(&[one], moment), model.get(&[one][..]));
                let expected: Vec<_> = model.iter().map(|(key, value)| (key.clone(), *value)).collect();
                prop_assert_eq!(all(&layer, moment), expected);
            }
        }
    }

    /// Otherwise whoever asks for something old would wait for as long as there were changes since.
    #[test]
    fn an_old_entry_of_a_key_that_changes_often_is_a_few_steps_away() {
        const PUTS: u32 = 100_000;
        let layer = Layer::new(1);
        (0..PUTS).for_each(|number| layer.put(Bytes::from_static(b"hot"), number));
        for wanted in [0, 1, 2, 3, 4711, PUTS / 2, PUTS - 2, PUTS - 1] {
            let steps = std::cell::Cell::new(0);
            let found = layer.oldest(PUTS - 1, |number, value| {
                steps.set(steps.get() + 1);
                assert_eq!(number, *value);
                number >= wanted
            });
            assert_eq!(found, Some(wanted));
            assert!(steps.get() <= 100, "{} steps to {wanted}", steps.get());
        }
        assert_eq!(layer.oldest(PUTS - 1, |_, _| false), None);
    }

    #[test]
    fn what_was_found_stays_while_it_grows_and_others_read() {
        const PUTS: u32 = 20_000;
        let layer = Layer::new(1);
        let told = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let moment = told.load(Memory::Acquire);
                        for number in [0, moment / 2, moment.saturating_sub(1)] {
                            let key = (number % 5000).to_be_bytes();
                            let expected =
                                (0..moment).rev().find(|put| put % 5000 == number % 5000);
                            assert_eq!(layer.get(&key, moment).copied(), expected);
                        }
                        let first = layer.range(Bound::Unbounded, Bound::Unbounded, moment).count();
                        assert_eq!(first as u32, moment.min(5000));
                        if moment == PUTS {
                            return;
                        }
                    }
                });
            }
            for number in 0..PUTS {
                layer.put(Bytes::copy_from_slice(&(number % 5000).to_be_bytes()), number);
                told.store(number + 1, Memory::Release);
            }
        });
    }
}
