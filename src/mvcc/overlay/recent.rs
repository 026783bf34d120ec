//! What was flushed last, kept in memory a while longer, for whoever looks up a key.
//!
//! Looking a key up in the tables begins a transaction, goes down a tree and checks a row, which is most of what a read
//! costs. Groups that hold configuration, locks and leaders are small, so that much of what they look up was written lately.
//!
//! ```text
//! reader ──▶ active ──▶ frozen ──▶ recent, the newest first ──▶ tables       the first that knows a key has its newest state
//!                          │       ┌──┬───┬─────┬────────┐
//!                          └─────▶ │  │   │     │        │ ─▶ dropped, the oldest first, beyond RECENT_BYTES
//!                  flushed         └──┴───┴─────┴────────┘
//!                                    small ones become one with those before them
//! ```
//!
//! An overlay that is small is merged with those before it that are not much larger, so that there are few, and each entry is
//! copied a number of times that is logarithmic. Under load overlays are large, and none is copied.
//!
//! Invariants
//! - all of it is in the tables too, so that nothing is lost when it is dropped;
//! - there is no gap: what is dropped is older than all that stays, and deletes are kept as well, or an older state would
//!   show.

use super::super::records::{Image, Value};
use super::{Overlay, Step};
use crate::fault::{Bug, bug};
use bytes::Bytes;
use std::sync::Arc;

/// How much is kept, in bytes.
const RECENT_BYTES: usize = 32 << 20;
/// Up to which size overlays become one.
const MERGED_BYTES: usize = 4 << 20;
/// One becomes part of the next if it is so many times as large, at most.
const MERGED_RATIO: usize = 2;

/// Overlays that were flushed, the newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent(Arc<[Arc<Overlay>]>);

impl Recent {
    /// The newest change of a key, if that is here.
    pub(in crate::mvcc) fn newest_step(&self, key: &[u8]) -> Option<&Step> {
        let step = |overlay: &'_ Arc<Overlay>| overlay.changes.newest(key, u32::MAX);
        if bug(Bug::RecentShowsOlder) {
            let found = self.0.iter().rev().find_map(|it| Some((it, step(it)?)));
            return found.and_then(|(it, number)| Some(&it.changes.entry(number)?.value));
        }
        let found = self.0.iter().find_map(|it| Some((it, step(it)?)));
        found.and_then(|(it, number)| Some(&it.changes.entry(number)?.value))
    }

    /// The same, with what was flushed after it.
    pub(in crate::mvcc) fn followed_by(&self, flushed: &Arc<Overlay>) -> Self {
        let (mut parts, mut bytes) = (vec![flushed], flushed.bytes());
        let mut older = self.0.iter().peekable();
        let is_part = |it: &&Arc<Overlay>, bytes: usize| {
            it.bytes() <= MERGED_RATIO * bytes && it.bytes() + bytes <= MERGED_BYTES
        };
        while let Some(part) = older.next_if(|it| is_part(it, bytes)) {
            bytes += part.bytes();
            parts.push(part);
        }
        let first = if parts.len() == 1 { Arc::clone(flushed) } else { Arc::new(merged(&parts)) };
        let mut left = RECENT_BYTES;
        let all = std::iter::once(first).chain(older.cloned());
        let kept = all.take_while(|it| {
            let fits = it.bytes() <= left;
            left = left.saturating_sub(it.bytes());
            fits
        });
        Self(kept.collect())
    }
}

/// The newest change of each key, of overlays of which the first is the newest.
fn merged(parts: &[&Arc<Overlay>]) -> Overlay {
    let merged = Overlay::new(parts.first().map_or(0, |it| it.changes.seed()));
    for part in parts {
        let newest_first = (0..part.changes.len()).rev();
        for entry in newest_first.filter_map(|number| part.changes.entry(number)) {
            if merged.changes.newest(&entry.key, u32::MAX).is_none() {
                let step = copied(&entry.value);
                merged.takes(value_bytes(&step));
                merged.change(Bytes::copy_from_slice(&entry.key), step);
            }
        }
    }
    merged
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
            assert!(recent.0.len() <= 12, "{} overlays", recent.0.len());
        }
        for number in 700..1000u64 {
            assert_eq!(shown(&recent, &format!("k{}", number % 300)), Some((number + 2, true)));
        }
    }

    #[test]
    fn the_oldest_is_dropped_and_memory_is_bounded() {
        let large = vec![0; 3 << 20];
        let mut recent = Recent::default();
        for number in 0..30u64 {
            recent =
                recent.followed_by(&flushed(&[(&format!("k{number}"), number + 2, Some(&large))]));
            let bytes: usize = recent.0.iter().map(|it| it.bytes()).sum();
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
}
