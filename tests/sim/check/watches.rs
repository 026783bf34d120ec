//! **A watch is told all that matches, from where it began, in order, each revision once and whole**, with what was
//! there before. The rules by name:
//!
//! 1. *filter*: only what matches the range and the kind;
//! 2. *ordered* by revision;
//! 3. *unique*;
//! 4. *atomic*: a revision comes whole, in the order of its changes;
//! 5. *bookmarkable*: everything below a reported position was told before it, and nothing below it after; positions go
//!    forward;
//! 6. *reliable*: nothing is left out;
//! 7. *resumable*: the first is the first that matches;
//! 8. *previous value*: that of the revision before, and present whenever the key was;
//! 9. *creation*: `create_revision == mod_revision` if and only if the key was not there;
//! 10. *not early*: nothing below the beginning, no position below it.
//!
//! Whoever listens to the end of the run has been told everything.

use super::agreement::Truth;
use super::replay::{State, text};
use crate::book::{Pages, Watched};
use quorate::{Changes, Event};

pub fn check(pages: &Pages, truth: &Truth, violations: &mut Vec<String>) {
    let annotated = annotate(truth, violations);
    for watched in &pages.watches {
        let before = violations.len();
        check_one(watched, pages, &annotated, truth.head(), violations);
        for violation in &mut violations[before..] {
            let Watched { name, prefix, puts, deletes, from, .. } = watched;
            violation.push_str(&format!(
                " (watch of {name} of {prefix}, puts {puts}, deletes {deletes}, from {from})"
            ));
        }
    }
}

/// The history with the previous values that a replay gives, after it was checked against those that the members keep.
fn annotate(truth: &Truth, violations: &mut Vec<String>) -> Vec<Changes> {
    let mut state = State { revision: 1, ..State::default() };
    let mut annotated = Vec::new();
    for (revision, changes) in &truth.history {
        let mut changes = changes.clone();
        for event in &mut changes.events {
            match event {
                Event::Put { kv, prev } => {
                    *prev = state.keys.get(&text(&kv.key)).cloned();
                    let is_creation = kv.create_revision == kv.mod_revision;
                    if is_creation != prev.is_none() {
                        violations.push(format!("watches: creation: {kv:?} after {prev:?}"));
                    }
                }
                Event::Delete { key, prev, .. } => *prev = state.keys.get(&text(key)).cloned(),
                other => panic!("an event of a new kind: {other:?}"),
            }
        }
        state.advance(truth, *revision);
        annotated.push(changes);
    }
    annotated
}

fn matches(watched: &Watched, event: &Event) -> bool {
    match event {
        Event::Put { kv, .. } => watched.puts && text(&kv.key).starts_with(&watched.prefix),
        Event::Delete { key, .. } => watched.deletes && text(key).starts_with(&watched.prefix),
        other => panic!("an event of a new kind: {other:?}"),
    }
}

/// What a watch is to be told.
fn expected<'a>(watched: &Watched, history: impl Iterator<Item = &'a Changes>) -> Vec<Changes> {
    let history = history.filter(|changes| changes.revision.get() >= watched.from);
    let matching = history.filter_map(|changes| {
        let mut changes = changes.clone();
        changes.events.retain(|event| matches(watched, event));
        (!changes.events.is_empty()).then_some(changes)
    });
    matching.collect()
}

/// Those who still listen and have not been told everything, with how much of it they were.
pub fn behind(pages: &Pages, truth: &Truth) -> Vec<String> {
    let lacks = |watched: &&Watched| {
        pages.is_heard(watched)
            && watched.told.len() < expected(watched, truth.history.values()).len()
    };
    let behind = pages.watches.iter().filter(lacks);
    let named = behind
        .map(|it| format!("{} of {} from {}: {}", it.name, it.prefix, it.from, it.told.len()));
    named.collect()
}

fn check_one(
    watched: &Watched,
    pages: &Pages,
    history: &[Changes],
    head: u64,
    violations: &mut Vec<String>,
) {
    let expected = expected(watched, history.iter());
    let differs = watched.told.iter().zip(&expected).position(|(told, expected)| told != expected);
    if let Some(index) = differs {
        violations.push(format!(
            "watches: told {:?}, and was to be told {:?}",
            watched.told[index], expected[index]
        ));
        return;
    }
    if watched.told.len() > expected.len() {
        violations.push(format!("watches: told {:?}, which is lost", watched.told[expected.len()]));
        return;
    }
    let mut last = watched.from;
    for (told, position) in &watched.positions {
        let below = expected.iter().filter(|it| it.revision.get() < *position).count();
        if below > *told || *position < last {
            violations.push(format!(
                "watches: position {position} after {last}, when {told} of {below} below it were told"
            ));
        }
        last = *position;
    }
    // Below a position nothing comes any more: it is in order, so it is enough to look at what comes next.
    for (told, position) in &watched.positions {
        if expected.get(*told).is_some_and(|next| next.revision.get() < *position) {
            violations.push(format!("watches: position {position} was reported too early"));
        }
    }
    if let Some(at) = watched.compacted
        && !pages.compactions.iter().any(|compacted| *compacted > at)
    {
        violations.push(format!("watches: compacted at {at}, and nobody asked for that"));
    }
    if pages.is_heard(watched) && watched.told.len() < expected.len() {
        violations.push(format!(
            "watches: at revision {head} it was not told {:?}, to the end",
            expected[watched.told.len()]
        ));
    }
}
