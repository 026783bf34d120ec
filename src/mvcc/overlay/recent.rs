//! What was flushed last, kept in memory a while longer, for whoever looks up a key.
//!
//! Looking a key up in the tables begins a transaction, goes down a tree and checks a row, which is most of what a read
//! costs. Groups that hold configuration, locks and leaders are small, so that much of what they look up was written lately.
//!
//! ```text
//! reader ──▶ active ──▶ frozen ──▶ recent, the newest first ──▶ tables       the first that knows a key has its newest state
//!                          │       ┌──┬───┬─────╥─────────────────┐
//!                          └─────▶ │  │   │     ║ settled │ … │ … │ ─▶ dropped, the oldest first, beyond RECENT_BYTES
//!                  flushed         └──┴───┴─────╨─────────────────┘
//!                                    small ones   one index of all
//!                                    become one
//! ```
//!
//! An overlay that is small is merged with those before it that are not much larger, so that there are few, and each entry is
//! copied a number of times that is logarithmic. What is large *settles*: it is not copied any more, and one index leads
//! to the newest change of each key in all that has settled. So a look-up that finds nothing, as most do, touches few places
//! in memory, however much is written.
//!
//! Invariants
//! - all of it is in the tables too, so that nothing is lost when it is dropped;
//! - there is no gap: what is dropped is older than all that stays, and deletes are kept as well, or an older state would
//!   show;
//! - what has settled is older than all that has not;
//! - all are of one seed, so that a key comes to lie at one place in all of them.

use super::super::records::{Image, Value};
use super::layer::{Entry, filled, parsed};
use super::{Overlay, Step};
use crate::api::Position;
use crate::fault::{Bug, bug};
use bytes::Bytes;
use std::sync::Arc;

/// How much is kept, in bytes. Tests have less, so that it overflows.
const RECENT_BYTES: usize = if SMALL { 512 << 10 } else { 16 << 20 };
/// From which size on an overlay settles.
const SETTLED_BYTES: usize = if SMALL { 16 << 10 } else { 1 << 20 };
const SMALL: bool = cfg!(any(test, feature = "sim"));
/// One becomes part of the next if it is so many times as large, at most.
const MERGED_RATIO: usize = 2;

/// What was flushed last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    /// Small ones, the newest first.
    small: Arc<[Arc<Overlay>]>,
    settled: Arc<Settled>,
    /// Where the oldest of all begins. A key's newest change may be here from there on, and is not if it is older.
    begin: Option<Position>,
}

impl Recent {
    /// The newest change of a key, if that is here.
    pub(in crate::mvcc) fn newest_step(&self, key: &[u8]) -> Option<&Step> {
        let one = self.small.first().or(self.settled.parts.last().map(|part| &part.overlay))?;
        let place = one.changes.place(key);
        let step = |overlay: &'_ Arc<Overlay>| overlay.changes.newest_of_all(place, key);
        if bug(Bug::RecentShowsOlder) {
            let found = self.small.iter().rev().find_map(|it| Some((it, step(it)?)));
            let small = || found.and_then(|(it, number)| Some(&it.changes.entry(number)?.value));
            return self.settled.newest_step(place, key).or_else(small);
        }
        let found = self.small.iter().find_map(|it| Some((it, step(it)?)));
        match found {
            Some((it, number)) => Some(&it.changes.entry(number)?.value),
            None => self.settled.newest_step(place, key),
        }
    }

    /// The same, if that is a change at a position or behind it. Most that is not here is known by that alone.
    pub(in crate::mvcc) fn newest_step_since(&self, key: &[u8], at: Position) -> Option<&Step> {
        let may_be_here = self.begin.is_some_and(|begin| begin <= at);
        may_be_here.then(|| self.newest_step(key)).flatten()
    }

    fn new(small: Arc<[Arc<Overlay>]>, settled: Arc<Settled>) -> Self {
        let begin = match settled.parts.first() {
            Some(part) => part.first,
            None => small.last().and_then(|overlay| first_of(overlay)),
        };
        Self { small, settled, begin }
    }

    /// The same, with what was flushed after it.
    pub(in crate::mvcc) fn followed_by(&self, flushed: &Arc<Overlay>) -> Self {
        if flushed.bytes() >= SETTLED_BYTES {
            let before = self.settled.followed_by(self.small.iter().rev());
            let settled = Arc::new(before.followed_by([flushed]));
            return Self::new(Arc::default(), settled);
        }
        let (mut parts, mut bytes) = (vec![flushed], flushed.bytes());
        let mut older = self.small.iter().peekable();
        while let Some(part) = older.next_if(|it| it.bytes() <= MERGED_RATIO * bytes) {
            bytes += part.bytes();
            parts.push(part);
        }
        let first = if parts.len() == 1 { Arc::clone(flushed) } else { Arc::new(merged(&parts)) };
        let small = std::iter::once(first).chain(older.cloned()).collect::<Vec<_>>();
        // Then it is the only one: no small one is much larger than another that is as large as this.
        if small[0].bytes() >= SETTLED_BYTES {
            let settled = Arc::new(self.settled.followed_by(small.iter().rev()));
            return Self::new(Arc::default(), settled);
        }
        Self::new(small.into(), Arc::clone(&self.settled))
    }
}

/// Overlays that are not copied any more, under one index.
#[derive(Debug, Default)]
struct Settled {
    /// The oldest first.
    parts: Vec<Part>,
    /// In slots as those of a layer: where each key lies, and its newest entry, counted through all parts.
    slots: Box<[u64]>,
    keys: usize,
}

#[derive(Clone, Debug)]
struct Part {
    /// How many entries there are in those before it.
    begin: u32,
    overlay: Arc<Overlay>,
    /// Its first change.
    first: Option<Position>,
}

impl Part {
    fn end(&self) -> u32 {
        self.begin + self.overlay.changes.len()
    }
}

impl Settled {
    fn entry(&self, number: u32) -> Option<&Entry<Step>> {
        let part = self.parts.partition_point(|part| part.begin <= number).checked_sub(1)?;
        let part = self.parts.get(part)?;
        part.overlay.changes.entry(number - part.begin)
    }

    fn newest_step(&self, place: u32, key: &[u8]) -> Option<&Step> {
        let (_, newest) = self.slot(place, key)?;
        Some(&self.entry(newest?)?.value)
    }

    /// The slot of a key, and the number of its newest entry, if it has one; no slot if there is nothing at all.
    fn slot(&self, place: u32, key: &[u8]) -> Option<(usize, Option<u32>)> {
        let mask = self.slots.len().checked_sub(1)?;
        let is_it = |number: u32| self.entry(number).is_some_and(|entry| entry.key == key);
        let mut at = place as usize & mask;
        loop {
            match parsed(self.slots[at]) {
                None => return Some((at, None)),
                Some((of, number)) if of == place && is_it(number) => {
                    return Some((at, Some(number)));
                }
                Some(_) => at = (at + 1) & mask,
            }
        }
    }

    /// The same with newer overlays, the oldest of them first, and without what is too much then.
    fn followed_by<'a>(&self, newer: impl IntoIterator<Item = &'a Arc<Overlay>>) -> Self {
        let newer: Vec<_> = newer.into_iter().collect();
        let all = self.parts.iter().map(|part| &part.overlay).chain(newer.iter().copied());
        let all: Vec<_> = all.collect();
        let mut left = RECENT_BYTES;
        let fits = |it: &&&Arc<Overlay>| {
            let fits = it.bytes() <= left;
            left = left.saturating_sub(it.bytes());
            fits
        };
        let dropped = all.len() - all.iter().rev().take_while(fits).count();
        let before = self
            .parts
            .get(dropped)
            .map_or_else(|| self.parts.last().map_or(0, Part::end), |first| first.begin);
        let keys = self.keys + newer.iter().map(|it| it.changes.keys()).sum::<usize>();
        let mut settled = Self {
            parts: Vec::with_capacity(all.len() - dropped),
            slots: vec![0; (2 * keys + 1).next_power_of_two()].into(),
            keys: 0,
        };
        let kept = self.parts.len().saturating_sub(dropped);
        for (at, overlay) in all.iter().copied().cloned().enumerate().skip(dropped) {
            let begin = settled.parts.last().map_or(0, Part::end);
            let first = self.parts.get(at).map_or_else(|| first_of(&overlay), |part| part.first);
            settled.parts.push(Part { begin, overlay, first });
        }
        settled.take_over(self, before);
        for part in kept..settled.parts.len() {
            settled.index(part);
        }
        settled
    }

    /// Takes the keys of another one, of which the first `before` entries are not here. They are different keys, so none is
    /// looked at.
    fn take_over(&mut self, other: &Self, before: u32) {
        let mask = self.slots.len() - 1;
        for (place, number) in other.slots.iter().filter_map(|slot| parsed(*slot)) {
            let Some(number) = number.checked_sub(before) else { continue };
            let mut at = place as usize & mask;
            while self.slots[at] != 0 {
                at = (at + 1) & mask;
            }
            self.slots[at] = filled(place, number);
            self.keys += 1;
        }
    }

    /// Has a part hide the older ones.
    fn index(&mut self, part: usize) {
        let Part { begin, overlay, .. } = self.parts[part].clone();
        for (place, number) in overlay.changes.places() {
            let entry = overlay.changes.entry(number).expect("the index leads to it");
            let (at, older) = self.slot(place, &entry.key).expect("there is room for all keys");
            self.slots[at] = filled(place, begin + number);
            self.keys += usize::from(older.is_none());
        }
    }
}

/// The newest change of each key, of overlays of which the first is the newest.
fn merged(parts: &[&Arc<Overlay>]) -> Overlay {
    let seed = parts.first().map_or(0, |it| it.changes.seed());
    // There may be more, and hardly ever much more: the largest is the oldest.
    let keys = parts.iter().map(|it| it.changes.keys()).max().unwrap_or(0);
    let merged = Overlay::with_room(seed, keys);
    for part in parts {
        let newest_first = (0..part.changes.len()).rev();
        for entry in newest_first.filter_map(|number| part.changes.entry(number)) {
            let place = merged.changes.place(&entry.key);
            if merged.changes.newest_of_all(place, &entry.key).is_none() {
                let step = copied(&entry.value);
                merged.takes(value_bytes(&step));
                merged.change(Bytes::copy_from_slice(&entry.key), step);
            }
        }
    }
    merged
}

/// The first change of an overlay. Those that were [`merged`] are in no order.
fn first_of(overlay: &Overlay) -> Option<Position> {
    let entries = (0..overlay.changes.len()).filter_map(|number| overlay.changes.entry(number));
    entries.map(|entry| entry.value.at).min()
}

fn value_bytes(step: &Step) -> usize {
    match step.new.as_ref().map(|image| &image.value) {
        Some(Value::Inline(value)) => value.len(),
        _ => step.large.as_ref().map_or(0, Bytes::len),
    }
}

/// The state that a change has made, in memory of its own: it must not keep all that came with it.
fn copied(step: &Step) -> Step {
    let new = step.new.as_ref().map(|image| {
        let value = match &image.value {
            Value::Inline(value) => Value::Inline(Bytes::copy_from_slice(value)),
            large @ Value::Large { .. } => large.clone(),
        };
        Image { value, ..image.clone() }
    });
    let large = step.large.as_ref().map(|value| Bytes::copy_from_slice(value));
    Step { at: step.at, new, prev: None, gone: None, turn: step.turn, large }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Position;
    use crate::types::Revision;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn step(revision: u64, value: Option<&[u8]>) -> Step {
        let at = Position::start_of(Revision::from(revision));
        let new = value.map(|value| Image {
            create_revision: at.revision,
            modified: at,
            version: 1,
            lease: None,
            turn: 1,
            value: Value::Inline(Bytes::copy_from_slice(value)),
        });
        Step { at, new, prev: None, gone: None, turn: 1, large: None }
    }

    /// A key, a revision, and the value, if it is a put.
    type Change<'a> = (&'a str, u64, Option<&'a [u8]>);

    fn flushed(changes: &[Change<'_>]) -> Arc<Overlay> {
        let overlay = Overlay::new(7);
        for (key, revision, value) in changes {
            overlay.takes(value.map_or(0, <[u8]>::len));
            overlay.change(Bytes::copy_from_slice(key.as_bytes()), step(*revision, *value));
        }
        Arc::new(overlay)
    }

    fn shown(recent: &Recent, key: &str) -> Option<(u64, bool)> {
        let step = recent.newest_step(key.as_bytes())?;
        Some((step.at.revision.get(), step.new.is_some()))
    }

    #[test]
    fn the_newest_state_of_a_key_shows_and_a_delete_hides_what_was_before() {
        let mut recent = Recent::default();
        assert_eq!(shown(&recent, "a"), None);
        let steps: [&[Change<'_>]; 3] = [
            &[("a", 2, Some(b"1")), ("a", 3, Some(b"2")), ("b", 4, Some(b"1"))],
            &[("b", 5, None)],
            &[("c", 6, Some(b"1")), ("a", 7, Some(b"3"))],
        ];
        for changes in steps {
            recent = recent.followed_by(&flushed(changes));
        }
        assert_eq!(shown(&recent, "a"), Some((7, true)));
        assert_eq!(shown(&recent, "b"), Some((5, false)));
        assert_eq!(shown(&recent, "c"), Some((6, true)));
        assert_eq!(shown(&recent, "d"), None);
    }

    #[test]
    fn a_trickle_makes_few_overlays() {
        let mut recent = Recent::default();
        for number in 0..1000u64 {
            let key = format!("k{}", number % 300);
            recent = recent.followed_by(&flushed(&[(&key, number + 2, Some(b"v"))]));
            assert!(recent.small.len() <= 12, "{} overlays", recent.small.len());
        }
        assert!(!recent.settled.parts.is_empty());
        for number in 700..1000u64 {
            assert_eq!(shown(&recent, &format!("k{}", number % 300)), Some((number + 2, true)));
        }
    }

    #[test]
    fn the_oldest_is_dropped_and_memory_is_bounded() {
        let large = vec![0; RECENT_BYTES / 11];
        let mut recent = Recent::default();
        for number in 0..30u64 {
            recent =
                recent.followed_by(&flushed(&[(&format!("k{number}"), number + 2, Some(&large))]));
            let parts = recent.settled.parts.iter().map(|part| &part.overlay);
            let bytes: usize = parts.chain(recent.small.iter()).map(|it| it.bytes()).sum();
            assert!(bytes <= RECENT_BYTES, "{bytes}");
        }
        assert_eq!(shown(&recent, "k29"), Some((31, true)));
        assert_eq!(shown(&recent, "k0"), None);
        // One that is larger than all that may be kept leaves nothing, or something older would show.
        let huge = vec![0; RECENT_BYTES];
        recent = recent.followed_by(&flushed(&[("k29", 40, Some(&huge))]));
        assert_eq!(shown(&recent, "k29"), None);
        assert_eq!(shown(&recent, "k28"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 48, failure_persistence: None, ..ProptestConfig::default()
        })]

        /// Flushes of any size, so that some merge, some settle, and some are dropped: what shows is the newest state of a
        /// key, or nothing, and then also nothing of what was flushed before.
        #[test]
        fn what_shows_is_the_newest(
            flushes in vec(vec((0u16..400, 0usize..3000, any::<bool>()), 1..60), 1..60),
        ) {
            let (mut recent, mut revision) = (Recent::default(), 1);
            let mut model = BTreeMap::new();
            for (flush, changes) in flushes.iter().enumerate() {
                let values: Vec<_> = changes.iter().map(|(_, length, _)| vec![0; *length]).collect();
                let keys: Vec<_> = changes.iter().map(|(key, ..)| format!("k{key}")).collect();
                let mut steps: Vec<Change<'_>> = Vec::new();
                for (at, (_, _, is_put)) in changes.iter().enumerate() {
                    revision += 1;
                    steps.push((&keys[at], revision, is_put.then_some(&values[at][..])));
                    model.insert(keys[at].clone(), (revision, *is_put, flush));
                }
                recent = recent.followed_by(&flushed(&steps));
                let (mut shown_first, mut hidden_last) = (usize::MAX, None);
                for (key, (revision, is_put, flush)) in &model {
                    match shown(&recent, key) {
                        Some(found) => {
                            prop_assert_eq!(found, (*revision, *is_put));
                            let at = Position::start_of(Revision::from(*revision));
                            prop_assert!(recent.newest_step_since(key.as_bytes(), at).is_some());
                            shown_first = shown_first.min(*flush);
                        }
                        None => hidden_last = hidden_last.max(Some(*flush)),
                    }
                }
                prop_assert!(hidden_last.is_none_or(|hidden| hidden < shown_first), "a gap");
                let slots = recent.settled.slots.len();
                prop_assert!(slots == 0 || recent.settled.keys * 2 <= slots);
            }
        }
    }
}
