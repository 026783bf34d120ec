//! **No two members ever disagree.** For each revision all members have the same changes, in the same order; and at the
//! same index of the log, the same hash of the state. A member that goes back, or has a gap, disagrees with itself.

use crate::book::Pages;
use crate::group::Group;
use quorate::{Changes, Node, Reason};
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

    /// What had been shown, by everybody, when that was in the book. Nobody has shown anything since.
    pub fn as_of(&self, pages: &Pages) -> Self {
        let shown = |revision: &u64| pages.seen_at.contains_key(revision);
        let history = self.history.iter().filter(|(revision, _)| shown(revision));
        let history = history.map(|(revision, changes)| (*revision, changes.clone())).collect();
        Self { history, ..Self::new(self.next.len()) }
    }

    /// The newest revision that anybody has shown.
    pub fn head(&self) -> u64 {
        self.history.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    /// Looks at what is new at every member.
    pub fn observe(&mut self, group: &Group, violations: &mut Vec<String>) {
        for member in &group.members {
            member.with(|node| self.look(member.index, member.starts, node, violations));
        }
    }

    /// Looks at what is new at a member, which was started so often.
    pub fn look(&mut self, index: usize, now: u32, node: &Node, violations: &mut Vec<String>) {
        let peek = node.peek();
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
        if starts != now {
            // It has to show everything again that its disk has kept.
            next = 2;
        }
        match node.history(next) {
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
        self.next[index] = (now, next);
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
