//! **No two members ever disagree.** For each revision all members have the same changes, in the same order; and at the
//! same index of the log, the same hash of the state. A member that goes back, or has a gap, disagrees with itself.

use crate::group::Group;
use quorate::{Changes, Reason};
use std::collections::BTreeMap;

/// What the members have shown of their history: the measure of all other checks.
#[derive(Debug, Default)]
pub struct Truth {
    pub history: BTreeMap<u64, Changes>,
    /// Of each index of the log: the revision and the hash after it, and who said so first.
    at_index: BTreeMap<u64, (u64, u128, usize)>,
    /// Of each member: how often it was started, and the revision that it has to show next.
    next: Vec<(u32, u64)>,
}

impl Truth {
    pub fn new(members: usize) -> Self {
        Self { next: vec![(0, 2); members], ..Self::default() }
    }

    /// The newest revision that anybody has shown.
    pub fn head(&self) -> u64 {
        self.history.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    /// Looks at what is new at every member.
    pub fn observe(&mut self, group: &Group, violations: &mut Vec<String>) {
        for index in 0..group.members.len() {
            self.look_at(group, index, violations);
        }
    }

    fn look_at(&mut self, group: &Group, index: usize, violations: &mut Vec<String>) {
        let member = &group.members[index];
        let Some(peek) = member.peek() else { return };
        if let Some(applied) = peek.applied {
            let said = (peek.revision, peek.hash, index);
            let first = *self.at_index.entry(applied).or_insert(said);
            if (first.0, first.1) != (said.0, said.1) {
                violations.push(format!(
                    "agreement: at log index {applied} m{index} has revision {} and hash {:x}, m{} had {} and {:x}",
                    said.0, said.1, first.2, first.0, first.1
                ));
            }
        }
        let (starts, mut next) = self.next[index];
        if starts != member.starts {
            // It has to show everything again that its disk has kept.
            next = 2;
        }
        let Some(shown) = member.with(|node| node.history(next)) else { return };
        match shown {
            Ok((changes, upto)) => {
                changes.into_iter().for_each(|changes| self.compare(index, changes, violations));
                next = upto;
            }
            Err(error) => {
                // Of anything else it is about to end, or says elsewhere why it failed.
                if let Reason::Compacted { at } = error.reason() {
                    next = at.get();
                }
            }
        }
        self.next[index] = (member.starts, next);
    }

    fn compare(&mut self, index: usize, changes: Changes, violations: &mut Vec<String>) {
        let revision = changes.revision.get();
        match self.history.get(&revision) {
            Some(known) if *known == changes => {}
            Some(known) => violations.push(format!(
                "agreement: m{index} has other changes of revision {revision} than others: {changes:?}, not {known:?}"
            )),
            None => {
                self.history.insert(revision, changes);
            }
        }
    }

    /// Whether the history has no gap.
    pub fn check_whole(&self, violations: &mut Vec<String>) {
        let mut expected = 2;
        for revision in self.history.keys() {
            if *revision != expected {
                violations.push(format!("agreement: nobody has shown revision {expected}"));
            }
            expected = revision + 1;
        }
    }
}
