//! Which cursors a touched key wakes.
//!
//! ```text
//! key jobs/7 ─┬─ keys      jobs/7           one look
//!             ├─ prefixes  j, jobs/         one look for each length that there is
//!             └─ others    jobs/ ─ 5..8     the same, by what all keys of a range begin with; and then who has it
//! ```
//!
//! Invariant: a key costs by how many lengths of prefixes there are, and by those who wait for what begins like it; not by
//! how many wait for something else.

use crate::api::CursorId;
use crate::types::KeyRange;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Names a cursor on this member.
pub(super) type Waiter = (u64, CursorId);

#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<Bytes, Waiters>,
    prefixes: ByPrefix<Waiters>,
    others: ByPrefix<BTreeMap<Waiter, KeyRange>>,
}

impl Index {
    pub(super) fn add(&mut self, waiter: Waiter, range: &KeyRange) {
        match Place::of(range) {
            Place::Key(key) => self.keys.entry(key.clone()).or_default().add(waiter),
            Place::Prefix(prefix) => self.prefixes.entry(prefix).add(waiter),
            Place::Other(common) => {
                self.others.entry(&common).insert(waiter, range.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, waiter: Waiter, range: &KeyRange) {
        match Place::of(range) {
            Place::Key(key) => {
                if self.keys.get_mut(key).is_some_and(|waiters| waiters.remove(waiter)) {
                    self.keys.remove(key);
                }
            }
            Place::Prefix(prefix) => self.prefixes.change(prefix, |it| it.remove(waiter)),
            Place::Other(common) => self.others.change(&common, |ranges| {
                ranges.remove(&waiter);
                ranges.is_empty()
            }),
        }
    }

    /// Calls `wake` with each whose range has the key.
    pub(super) fn for_each(&self, key: &[u8], mut wake: impl FnMut(Waiter)) {
        self.keys.get(key).into_iter().for_each(|waiters| waiters.for_each(&mut wake));
        self.prefixes.of(key).for_each(|waiters| waiters.for_each(&mut wake));
        let others = self.candidates(key).filter(|(_, range)| range.contains(key));
        others.for_each(|(waiter, _)| wake(*waiter));
    }

    /// The ranges that have to be looked at.
    fn candidates<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = (&'a Waiter, &'a KeyRange)> {
        self.others.of(key).flatten()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.prefixes.is_empty() && self.others.is_empty()
    }

    /// The most that wait for one and the same.
    #[cfg(test)]
    pub(super) fn largest(&self) -> usize {
        let of_prefixes = self.prefixes.entries.values();
        self.keys.values().chain(of_prefixes).map(Waiters::count).max().unwrap_or(0)
    }
}

/// Where a range is filed.
enum Place<'a> {
    Key(&'a Bytes),
    Prefix(&'a Bytes),
    /// What all its keys begin with.
    Other(Bytes),
}

impl<'a> Place<'a> {
    fn of(range: &'a KeyRange) -> Self {
        if let Some(key) = range.as_key() {
            return Self::Key(key);
        }
        let start = &range.start;
        if *range == KeyRange::prefix(start) {
            return Self::Prefix(start);
        }
        // Keys lie between its ends, and so begin with what both do. Without an end that is nothing.
        let end = range.end.as_deref().unwrap_or_default();
        let common = start.iter().zip(end).take_while(|(start, end)| start == end).count();
        Self::Other(start.slice(..common))
    }
}

/// Things by prefix, of which those are found that a key begins with.
#[derive(Debug)]
struct ByPrefix<T> {
    entries: HashMap<Bytes, T>,
    /// How many there are of each length.
    lengths: BTreeMap<usize, usize>,
}

impl<T> Default for ByPrefix<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), lengths: BTreeMap::new() }
    }
}

impl<T: Default> ByPrefix<T> {
    fn entry(&mut self, prefix: &Bytes) -> &mut T {
        self.entries.entry(prefix.clone()).or_insert_with(|| {
            *self.lengths.entry(prefix.len()).or_default() += 1;
            T::default()
        })
    }

    /// Takes an entry away if `change` leaves nothing of it, which it says.
    fn change(&mut self, prefix: &Bytes, change: impl FnOnce(&mut T) -> bool) {
        if self.entries.get_mut(prefix).is_some_and(change) {
            self.entries.remove(prefix);
            if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&prefix.len());
                }
            }
        }
    }

    fn of<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a T> {
        let lengths = self.lengths.range(..=key.len()).map(|(length, _)| *length);
        lengths.filter_map(|length| self.entries.get(&key[..length]))
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.lengths.is_empty()
    }
}

/// Who waits for the same. Mostly one, and then it takes no more than that.
#[derive(Debug)]
enum Waiters {
    One(Waiter),
    Many(BTreeSet<Waiter>),
}

impl Default for Waiters {
    fn default() -> Self {
        Self::Many(BTreeSet::new())
    }
}

impl Waiters {
    fn add(&mut self, waiter: Waiter) {
        match self {
            Self::One(one) if *one == waiter => {}
            Self::One(one) => *self = Self::Many(BTreeSet::from([*one, waiter])),
            Self::Many(many) if many.is_empty() => *self = Self::One(waiter),
            Self::Many(many) => drop(many.insert(waiter)),
        }
    }

    /// Whether nobody is left.
    fn remove(&mut self, waiter: Waiter) -> bool {
        match self {
            Self::One(one) => *one == waiter,
            Self::Many(many) => {
                many.remove(&waiter);
                many.is_empty()
            }
        }
    }

    fn for_each(&self, mut wake: impl FnMut(Waiter)) {
        match self {
            Self::One(one) => wake(*one),
            Self::Many(many) => many.iter().for_each(|waiter| wake(*waiter)),
        }
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(many) => many.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn woken(index: &Index, key: &[u8]) -> Vec<u64> {
        let mut woken = Vec::new();
        index.for_each(key, |(_, id)| woken.push(id.0));
        woken.sort_unstable();
        woken
    }

    /// Ranges side by side, of which each key lies in one: it is not looked at the others.
    #[test]
    fn a_key_does_not_cost_by_the_ranges_of_others() {
        let mut index = Index::default();
        let key = |number: u64| Bytes::from(format!("jobs/{number:06}"));
        for number in (0..100_000).step_by(2) {
            index.add((1, CursorId(number)), &KeyRange::from(key(number)..key(number + 2)));
        }
        for number in [0, 1, 47_110, 99_999] {
            assert_eq!(woken(&index, &key(number)), [number / 2 * 2]);
            let looked_at = index.candidates(&key(number)).count();
            assert!(looked_at < 100, "{looked_at} ranges");
        }
    }

    fn ranges() -> impl Strategy<Value = KeyRange> {
        let key = || proptest::collection::vec(0u8..3, 0..4).prop_map(Bytes::from);
        prop_oneof![
            key().prop_map(KeyRange::key),
            key().prop_map(KeyRange::prefix),
            (key(), key()).prop_map(|(start, end)| KeyRange::from(start..end)),
            key().prop_map(|start| KeyRange::from(start..)),
        ]
    }

    proptest! {
        /// Whoever has the key is woken, once, and nobody else; and nothing is left of those who have gone.
        #[test]
        fn those_are_woken_whose_range_has_the_key(
            ranges in proptest::collection::vec(ranges(), 0..20),
            gone in proptest::collection::vec(any::<bool>(), 20),
            keys in proptest::collection::vec(proptest::collection::vec(0u8..3, 0..4), 1..20),
        ) {
            let mut index = Index::default();
            let waiter = |number: usize| (1, CursorId(number as u64));
            ranges.iter().enumerate().for_each(|(number, it)| index.add(waiter(number), it));
            let all = || ranges.iter().enumerate();
            all().filter(|(at, _)| gone[*at]).for_each(|(at, it)| index.remove(waiter(at), it));
            for key in keys {
                let expected = all().filter(|(at, it)| !gone[*at] && it.contains(&key));
                let expected: Vec<u64> = expected.map(|(number, _)| number as u64).collect();
                prop_assert_eq!(woken(&index, &key), expected);
            }
            all().for_each(|(number, range)| index.remove(waiter(number), range));
            prop_assert!(index.is_empty());
        }
    }
}
