//! A store that is right, and a checker that is too simple to be wrong. Neither knows the checker under test.

use crate::history::{Compare, Did, Do, Key, Mode, Operation, Outcome, Txn, Value};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Store(BTreeMap<Key, Value>);

impl Store {
    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        self.0.get(key)
    }

    pub(super) fn apply(&mut self, txn: &Txn) -> (bool, Vec<Did>) {
        let holds = |compare: &Compare| match compare {
            Compare::Exists(key) => self.0.contains_key(key),
            Compare::Missing(key) => !self.0.contains_key(key),
            Compare::ValueIs(key, value) => self.0.get(key) == Some(value),
        };
        let succeeded = txn.when.iter().all(holds);
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let results = branch.iter().map(|op| self.perform(op)).collect();
        (succeeded, results)
    }

    fn perform(&mut self, op: &Do) -> Did {
        match op {
            Do::Get(key) => Did::Got(self.0.get(key).cloned()),
            Do::Put(key, value) => {
                self.0.insert(key.clone(), value.clone());
                Did::Put
            }
            Do::Delete(key) => Did::Deleted(self.0.remove(key).is_some()),
        }
    }
}

/// Tries all orders of all operations; only nothing twice.
pub(super) fn is_linearizable(operations: &[Operation]) -> bool {
    let counts = |operation: &&Operation| {
        let is_read = !operation.txn.may_write();
        let may_be_old = operation.mode == Mode::Serializable;
        let says_nothing = may_be_old || operation.outcome == Outcome::Unknown;
        operation.outcome != Outcome::Refused && !(is_read && says_nothing)
    };
    let all: Vec<&Operation> = operations.iter().filter(counts).collect();
    let mut keys: Vec<BTreeSet<&Key>> = all.iter().map(|operation| operation.txn.keys()).collect();
    for _ in &all {
        for keys in &mut keys {
            for others in all.iter().map(|operation| operation.txn.keys()) {
                if !keys.is_disjoint(&others) {
                    keys.extend(others);
                }
            }
        }
    }
    let left: Vec<usize> = (0..all.len()).collect();
    goes_on(&all, &keys, &left, &Store::default(), &mut BTreeSet::new())
}

/// Whether the operations that are left have a right order from here.
fn goes_on(
    all: &[&Operation],
    keys: &[BTreeSet<&Key>],
    left: &[usize],
    store: &Store,
    tried: &mut BTreeSet<(Vec<usize>, Store)>,
) -> bool {
    if !tried.insert((left.to_vec(), store.clone())) {
        return false;
    }
    let is_unknown = |index: &usize| all[*index].outcome == Outcome::Unknown;
    left.iter().all(is_unknown)
        || left.iter().any(|&index| {
            let operation = all[index];
            let must_wait = left.iter().any(|&other| {
                let end = all[other].end();
                // Within a moment the order of one client counts, for keys that have to do with each other.
                let is_earlier = all[other].client == operation.client && other < index;
                let is_tied = is_earlier && keys[other] == keys[index];
                end.is_some_and(|end| end < operation.start || (is_tied && end == operation.start))
            });
            let mut store = store.clone();
            let (ok, did) = store.apply(&operation.txn);
            let is_right = match &operation.outcome {
                Outcome::Done { succeeded, results, .. } => (ok, &did) == (*succeeded, results),
                Outcome::Refused | Outcome::Unknown => true,
            };
            let rest: Vec<usize> = left.iter().copied().filter(|it| *it != index).collect();
            !must_wait && is_right && goes_on(all, keys, &rest, &store, tried)
        })
}
