//! From operations to calls: keys and pairs get their numbers, and answers become tests and writes.

use super::call::{Call, Pair, Test, Write};
use crate::history::{Compare, Did, Do, Key, Operation, Outcome, Txn, Value};
use std::collections::{BTreeMap, HashMap};

/// The numbers of keys and pairs.
#[derive(Debug, Default)]
pub(super) struct Names<'a> {
    pub(super) keys: Vec<&'a Key>,
    /// The pair of each key without a value.
    pub(super) missing: Vec<Pair>,
    /// All pairs, from number 1.
    pairs: Vec<(usize, Option<&'a Value>)>,
    by_key: HashMap<&'a Key, usize>,
    by_pair: HashMap<(usize, Option<&'a Value>), Pair>,
}

impl<'a> Names<'a> {
    /// One more than the greatest pair.
    pub(super) fn pair_count(&self) -> usize {
        self.pairs.len() + 1
    }

    /// The key and value of a pair, except of `ANY`.
    pub(super) fn of(&self, pair: Pair) -> Option<(&'a Key, Option<&'a Value>)> {
        let &(key, value) = self.pairs.get((pair as usize).checked_sub(1)?)?;
        Some((self.keys[key], value))
    }

    /// The names of one key, which gets the number 0. Pairs keep their numbers.
    pub(super) fn view(&self, key: usize) -> Self {
        Self {
            keys: vec![self.keys[key]],
            missing: vec![self.missing[key]],
            pairs: self.pairs.iter().map(|(_, value)| (0, *value)).collect(),
            ..Self::default()
        }
    }

    pub(super) fn call(&mut self, operation: &'a Operation) -> Call<'a> {
        match &operation.outcome {
            Outcome::Done { succeeded, results, .. } => {
                self.answered(operation, *succeeded, results)
            }
            Outcome::Refused | Outcome::Unknown => self.unknown(operation),
        }
    }

    fn answered(&mut self, operation: &'a Operation, ok: bool, results: &'a [Did]) -> Call<'a> {
        let Txn { when, then, otherwise } = &operation.txn;
        let compared: Vec<Test> = when.iter().map(|compare| self.test(compare)).collect();
        let negated = compared.iter().map(|test| test.negated()).collect();
        let (mut tests, one_of) = if ok { (compared, Vec::new()) } else { (Vec::new(), negated) };
        let branch = if ok { then } else { otherwise };
        let mut is_possible = branch.len() == results.len() && (ok || !when.is_empty());
        // What the transaction itself has written so far.
        let mut own = BTreeMap::new();
        for (op, did) in branch.iter().zip(results) {
            let key = self.key(op.key());
            let missing = self.missing[key];
            let test = match (op, did) {
                (Do::Put(_, value), Did::Put) => {
                    own.insert(key, self.pair(key, Some(value)));
                    continue;
                }
                (Do::Get(_), Did::Got(value)) => {
                    Test { key, pair: self.pair(key, value.as_ref()), is: true }
                }
                (Do::Delete(_), Did::Deleted(was)) => Test { key, pair: missing, is: !was },
                // An answer to another question.
                (Do::Put(..) | Do::Get(_) | Do::Delete(_), _) => {
                    is_possible = false;
                    continue;
                }
            };
            match own.get(&key) {
                Some(pair) => is_possible &= (*pair == test.pair) == test.is,
                None => tests.push(test),
            }
            if *did == Did::Deleted(true) {
                own.insert(key, missing);
            }
        }
        let mut call = Call::new(operation, tests, own.into_iter().collect());
        (call.one_of, call.is_possible) = (one_of, is_possible);
        call.simplified().indexed()
    }

    fn unknown(&mut self, operation: &'a Operation) -> Call<'a> {
        let Txn { when, then, otherwise } = &operation.txn;
        let tests: Vec<Test> = when.iter().map(|compare| self.test(compare)).collect();
        let mut call = Call::new(operation, tests, self.effect(then));
        if !when.is_empty() {
            call.otherwise = self.effect(otherwise);
        }
        call.indexed()
    }

    /// What a branch leaves behind.
    fn effect(&mut self, branch: &'a [Do]) -> Vec<Write> {
        let mut last = BTreeMap::new();
        for op in branch {
            let key = self.key(op.key());
            match op {
                Do::Get(_) => continue,
                Do::Put(_, value) => last.insert(key, self.pair(key, Some(value))),
                Do::Delete(_) => last.insert(key, self.missing[key]),
            };
        }
        last.into_iter().collect()
    }

    fn test(&mut self, compare: &'a Compare) -> Test {
        let key = self.key(compare.key());
        let missing = self.missing[key];
        match compare {
            Compare::Exists(_) => Test { key, pair: missing, is: false },
            Compare::Missing(_) => Test { key, pair: missing, is: true },
            Compare::ValueIs(_, value) => Test { key, pair: self.pair(key, Some(value)), is: true },
        }
    }

    fn key(&mut self, key: &'a Key) -> usize {
        if let Some(&number) = self.by_key.get(key) {
            return number;
        }
        let number = self.keys.len();
        self.keys.push(key);
        self.by_key.insert(key, number);
        let missing = self.pair(number, None);
        self.missing.push(missing);
        number
    }

    fn pair(&mut self, key: usize, value: Option<&'a Value>) -> Pair {
        *self.by_pair.entry((key, value)).or_insert_with(|| {
            self.pairs.push((key, value));
            Pair::try_from(self.pairs.len()).expect("a history fits into memory")
        })
    }
}
