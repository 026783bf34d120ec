//! **A lease lives for its time to live after the last renewal that was answered, at least; its keys go together; and
//! when nobody renews it any more it goes.** How long that may take at most is bounded only while the group is well, so
//! it is asked of the end of a run, when it has been well for a while.
//!
//! Clocks run at different rates, which a lease is measured with: the bound is the time to live by the fastest clock.

use super::agreement::Truth;
use super::replay::{State, text};
use crate::book::Pages;
use crate::work::LEASED;
use quorate::Event;
use std::collections::BTreeMap;

/// Clocks differ by no more than so many parts of a thousand from the simulation's, either way.
pub const RATE_MAX: u32 = 20;

pub fn check(pages: &Pages, truth: &Truth, violations: &mut Vec<String>) {
    let mut gone: BTreeMap<String, u64> = BTreeMap::new();
    for (revision, changes) in &truth.history {
        for event in &changes.events {
            if let Event::Delete { key, .. } = event {
                gone.insert(text(key), *revision);
            }
        }
    }
    for lease in &pages.leases {
        let Some(revision) = gone.get(&lease.key) else { continue };
        if gone.get(&format!("{}+", lease.key)) != Some(revision) {
            violations.push(format!("leases: the keys of {lease:?} did not go together"));
        }
        let at_least = lease.ttl * (1000 - 2 * RATE_MAX) / 1000;
        let at = pages.seen_at.get(revision).copied().unwrap_or_default();
        if !lease.is_revoked && at < lease.renewed + at_least {
            violations.push(format!(
                "leases: gone {:?} after the last renewal, at revision {revision}: {lease:?}",
                at.saturating_sub(lease.renewed)
            ));
        }
    }
}

/// The keys with leases that are still there, which nobody renews.
pub fn left(pages: &Pages, truth: &Truth) -> usize {
    let mut state = State { revision: 1, ..State::default() };
    state.advance(truth, truth.head());
    let leased = state.keys.keys().filter(|key| key.starts_with(LEASED));
    let abandoned = leased.filter(|key| {
        !pages.leases.iter().any(|lease| lease.is_held && key.starts_with(&lease.key))
    });
    abandoned.count()
}
