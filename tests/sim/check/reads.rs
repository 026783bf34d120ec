//! **A read is the state at one revision, whole**: the newest, one that some member has applied, or the one that was
//! asked for.

use super::agreement::Truth;
use super::replay::State;
use crate::book::{Pages, RangeRead};
use crate::work::PREFIX;
use quorate::KeyValue;

pub fn check(pages: &Pages, truth: &Truth, violations: &mut Vec<String>) {
    let revision = |read: &RangeRead| read.at.unwrap_or(read.revision);
    let mut reads: Vec<&RangeRead> = pages.reads.iter().collect();
    reads.sort_by_key(|read| revision(read));
    let mut state = State { revision: 1, ..State::default() };
    for read in reads {
        if revision(read) > truth.head() || read.revision > truth.head() {
            violations.push(format!("reads: of a revision that is lost: {read:?}"));
            continue;
        }
        state.advance(truth, revision(read).max(1));
        let keys = state.keys.iter().filter(|(key, _)| key.starts_with(PREFIX));
        let expected: Vec<&KeyValue> = keys.map(|(_, kv)| kv).collect();
        if read.entries.iter().ne(expected.iter().copied()) {
            violations.push(format!("reads: was to be {expected:?}, was {read:?}"));
        }
    }
}
