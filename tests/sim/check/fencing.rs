//! **At most one holder at a time believes that it holds a lock, or leads, by its own clock; and whoever does not any
//! more can write nothing under its token.** Clocks may differ in rate, and members may stand still for as long as they
//! like: whoever goes on looks at its session first.

use super::agreement::Truth;
use super::replay::text;
use crate::book::{Act, Pages};
use crate::work::FENCED;
use quorate::Event;
use std::collections::BTreeMap;

pub fn check(pages: &Pages, truth: &Truth, violations: &mut Vec<String>) {
    let mut newest: BTreeMap<&str, &Act> = BTreeMap::new();
    for act in &pages.acts {
        let newest = newest.entry(&act.what).or_insert(act);
        if act.token < newest.token {
            violations.push(format!("fencing: {act:?} believes in itself after {newest:?}"));
        }
        if act.token == newest.token && act.who != newest.who {
            violations.push(format!("fencing: two with one token: {act:?} and {newest:?}"));
        }
        if act.token > newest.token {
            *newest = act;
        }
    }
    let mut written: BTreeMap<String, u64> = BTreeMap::new();
    for (revision, changes) in &truth.history {
        for event in &changes.events {
            let Event::Put { kv, .. } = event else { continue };
            let (key, value) = (text(&kv.key), text(&kv.value));
            if !key.starts_with(FENCED) {
                continue;
            }
            let token: u64 = value.parse().unwrap_or(0);
            let highest = written.entry(key.clone()).or_insert(token);
            if token < *highest {
                violations.push(format!(
                    "fencing: token {token} wrote {key} at revision {revision}, after token {highest}"
                ));
            }
            *highest = (*highest).max(token);
        }
    }
}
