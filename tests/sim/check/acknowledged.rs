//! **An acknowledged write is in the history, at the revision that was answered, whatever happened since. What was
//! refused is not there. Nothing is there that nobody asked for, and nothing twice.**

use super::agreement::Truth;
use super::replay::{State, text};
use crate::book::Pages;
use crate::history::{Do, Operation, Outcome};
use crate::work::PREFIX;
use quorate::Event;
use std::collections::{BTreeMap, BTreeSet};

pub fn check(pages: &Pages, truth: &Truth, violations: &mut Vec<String>) {
    let mut done: Vec<(u64, &Operation)> = Vec::new();
    for operation in &pages.operations {
        match &operation.outcome {
            Outcome::Done { revision, .. } => done.push((*revision, operation)),
            Outcome::Refused | Outcome::Unknown => {}
        }
    }
    // A write that changed nothing, and a read, is judged by the state at its revision; any other by the one before.
    done.sort_by_key(|(revision, _)| *revision);
    let mut before = State { revision: 1, ..State::default() };
    let mut at = before.clone();
    let mut claimed: BTreeMap<u64, &Operation> = BTreeMap::new();
    for (revision, operation) in done {
        if revision > truth.head() {
            violations.push(format!("acknowledged: revision {revision} is lost: {operation:?}"));
            continue;
        }
        if revision > at.revision {
            before.advance(truth, revision - 1);
            at.advance(truth, revision);
        }
        let changes = operation.txn.may_write() && changed(operation);
        let (state, writes) = if changes { (&before, true) } else { (&at, false) };
        let (succeeded, results, written) = state.run(&operation.txn);
        let Outcome::Done { succeeded: said, results: told, .. } = &operation.outcome else {
            continue;
        };
        if (succeeded, &results) != (*said, told) {
            violations.push(format!(
                "acknowledged: at revision {revision} the answer was to be {succeeded} {results:?}: {operation:?}"
            ));
        }
        if writes {
            check_changes(truth, revision, &written, operation, violations);
            if let Some(other) = claimed.insert(revision, operation) {
                violations.push(format!(
                    "acknowledged: revision {revision} was given twice: {other:?} {operation:?}"
                ));
            }
        }
    }
    check_origin(pages, truth, violations);
}

/// Whether it has changed something, by its own answer.
fn changed(operation: &Operation) -> bool {
    let Outcome::Done { succeeded, results, .. } = &operation.outcome else { return false };
    let branch = if *succeeded { &operation.txn.then } else { &operation.txn.otherwise };
    branch.iter().zip(results).any(|(op, did)| match op {
        Do::Get(_) => false,
        Do::Put(..) => true,
        Do::Delete(_) => *did == crate::history::Did::Deleted(true),
    })
}

fn check_changes(
    truth: &Truth,
    revision: u64,
    written: &BTreeMap<String, Option<String>>,
    operation: &Operation,
    violations: &mut Vec<String>,
) {
    let events = truth.history.get(&revision).map_or(&[][..], |changes| &changes.events);
    let seen: BTreeMap<String, Option<String>> = events
        .iter()
        .map(|event| match event {
            Event::Put { kv, .. } => (text(&kv.key), Some(text(&kv.value))),
            Event::Delete { key, .. } => (text(key), None),
            other => panic!("an event of a new kind: {other:?}"),
        })
        .collect();
    if seen != *written {
        violations.push(format!(
            "acknowledged: revision {revision} changed {seen:?}, and was to change {written:?}: {operation:?}"
        ));
    }
}

/// Every value in the history was asked for by somebody who was not refused, and is there once.
fn check_origin(pages: &Pages, truth: &Truth, violations: &mut Vec<String>) {
    let mut asked: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for operation in &pages.operations {
        let refused = operation.outcome == Outcome::Refused;
        for op in operation.txn.then.iter().chain(&operation.txn.otherwise) {
            if let Do::Put(key, value) = op {
                asked.insert((key, value), refused);
            }
        }
    }
    let mut seen = BTreeSet::new();
    for changes in truth.history.values() {
        for event in &changes.events {
            let Event::Put { kv, .. } = event else { continue };
            let (key, value) = (text(&kv.key), text(&kv.value));
            if !key.starts_with(PREFIX) {
                continue;
            }
            match asked.get(&(key.as_str(), value.as_str())) {
                Some(false) => {}
                Some(true) => violations
                    .push(format!("acknowledged: {key}={value} was refused, and is there")),
                None => violations.push(format!("acknowledged: nobody asked for {key}={value}")),
            }
            if !seen.insert((key.clone(), value.clone())) {
                violations.push(format!("acknowledged: {key}={value} is there twice"));
            }
        }
    }
}
