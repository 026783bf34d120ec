//! Which calls are in the order, and which configurations are known.
//!
//! Configurations are compared as they are, not by a hash of them. Those that agree except for calls without an answer
//! are kept together, because one says something about the other: what has a right order has one with fewer of those
//! calls used up as well.

use super::call::{Call, Pair};
use std::collections::HashMap;

/// The calls in the order.
#[derive(Debug)]
pub(super) struct Taken {
    /// Each call's place in a set. Those with an answer are numbered by their ends.
    places: Vec<Place>,
    answered: Vec<u32>,
    answered_count: usize,
    unknown: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    is_unknown: bool,
    at: usize,
}

/// The calls in the order, and the state that they have led to.
#[derive(Debug)]
pub(super) struct Configuration {
    key: Box<[u32]>,
    unknown: Box<[u32]>,
}

/// A set of configurations. The calls without an answer are by the rest, one set after the other.
#[derive(Debug, Default)]
pub(super) struct Memo(HashMap<Box<[u32]>, Vec<u32>>);

impl Taken {
    pub(super) fn new(calls: &[Call<'_>]) -> Self {
        let mut by_end: Vec<usize> = (0..calls.len()).collect();
        by_end.sort_by_key(|index| calls[*index].end());
        let mut places = vec![Place { is_unknown: false, at: 0 }; calls.len()];
        let (mut answered, mut unknown) = (0, 0);
        for index in by_end {
            let is_unknown = calls[index].is_unknown();
            let count = if is_unknown { &mut unknown } else { &mut answered };
            places[index] = Place { is_unknown, at: *count };
            *count += 1;
        }
        let set = |count: usize| vec![0; count.div_ceil(32).max(1)];
        Self { places, answered: set(answered), answered_count: 0, unknown: set(unknown) }
    }

    pub(super) fn has(&self, index: usize) -> bool {
        let Place { is_unknown, at } = self.places[index];
        let set = if is_unknown { &self.unknown } else { &self.answered };
        set[at / 32] >> (at % 32) & 1 == 1
    }

    pub(super) fn insert(&mut self, index: usize) {
        let Place { is_unknown, at } = self.places[index];
        self.answered_count += usize::from(!is_unknown);
        let set = if is_unknown { &mut self.unknown } else { &mut self.answered };
        set[at / 32] |= 1 << (at % 32);
    }

    pub(super) fn remove(&mut self, index: usize) {
        let Place { is_unknown, at } = self.places[index];
        self.answered_count -= usize::from(!is_unknown);
        let set = if is_unknown { &mut self.unknown } else { &mut self.answered };
        set[at / 32] &= !(1 << (at % 32));
    }

    /// The configuration with this state. All calls that end before `next` are in the order.
    pub(super) fn configuration(&self, state: &[Pair], next: usize) -> Configuration {
        let first = self.places[next].at;
        let mut key = state.to_vec();
        key.push(u32::try_from(first).expect("a history fits into memory"));
        // The set begins there, and ends with the last call that is in it.
        let mut left = self.answered_count - first;
        let mut word = self.answered[first / 32] & (u32::MAX << (first % 32));
        for next in self.answered[first / 32 + 1..].iter().chain([&0]) {
            if left == 0 {
                break;
            }
            key.push(word);
            left -= word.count_ones() as usize;
            word = *next;
        }
        Configuration { key: key.into(), unknown: self.unknown.clone().into() }
    }
}

impl Memo {
    /// Whether it has this one, or one that differs by fewer calls without an answer.
    pub(super) fn has_less(&self, it: &Configuration) -> bool {
        self.has(it, |set, own| set & !own == 0)
    }

    /// Whether it has this one, or one that differs by more calls without an answer.
    pub(super) fn has_more(&self, it: &Configuration) -> bool {
        self.has(it, |set, own| own & !set == 0)
    }

    fn has(&self, it: &Configuration, fits: impl Fn(u32, u32) -> bool) -> bool {
        let Some(sets) = self.0.get(&it.key) else { return false };
        let all_fit = |set: &[u32]| set.iter().zip(&it.unknown).all(|(set, own)| fits(*set, *own));
        sets.chunks(it.unknown.len()).any(all_fit)
    }

    pub(super) fn insert(&mut self, it: &Configuration) {
        if let Some(sets) = self.0.get_mut(&it.key) {
            sets.extend_from_slice(&it.unknown);
        } else {
            self.0.insert(it.key.clone(), it.unknown.to_vec());
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        for (key, sets) in other.0 {
            self.0.entry(key).or_default().extend(sets);
        }
    }
}
