//! The state at a revision, from the history alone.
//!
//! Written apart from the library on purpose: it shares no code with what it judges.

use super::agreement::Truth;
use crate::history::{Compare, Did, Do, Txn};
use quorate::{Event, KeyValue};
use std::collections::BTreeMap;

/// All keys at a revision, by key.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub revision: u64,
    pub keys: BTreeMap<String, KeyValue>,
}

impl State {
    /// Goes forward to `revision`.
    pub fn advance(&mut self, truth: &Truth, revision: u64) {
        assert!(self.revision <= revision, "a replay goes forward");
        for (_, changes) in truth.history.range(self.revision + 1..revision + 1) {
            changes.events.iter().for_each(|event| self.change(event));
        }
        self.revision = revision;
    }

    fn change(&mut self, event: &Event) {
        match event {
            Event::Put { kv, .. } => drop(self.keys.insert(text(&kv.key), kv.clone())),
            Event::Delete { key, .. } => drop(self.keys.remove(&text(key))),
            other => panic!("an event of a new kind: {other:?}"),
        }
    }

    pub fn value(&self, key: &str) -> Option<String> {
        self.keys.get(key).map(|kv| text(&kv.value))
    }

    /// What a transaction answers on this state, and what it writes: for each key its value, or nothing if it goes.
    pub fn run(&self, txn: &Txn) -> (bool, Vec<Did>, BTreeMap<String, Option<String>>) {
        let holds = |compare: &Compare| match compare {
            Compare::Exists(key) => self.keys.contains_key(key),
            Compare::Missing(key) => !self.keys.contains_key(key),
            Compare::ValueIs(key, value) => self.value(key).as_ref() == Some(value),
        };
        let succeeded = txn.when.iter().all(holds);
        let mut written: BTreeMap<String, Option<String>> = BTreeMap::new();
        let did = (if succeeded { &txn.then } else { &txn.otherwise }).iter().map(|op| {
            let key = op.key();
            let now = written.get(key).cloned().unwrap_or_else(|| self.value(key));
            match op {
                Do::Get(_) => Did::Got(now),
                Do::Put(_, value) => {
                    written.insert(key.clone(), Some(value.clone()));
                    Did::Put
                }
                Do::Delete(_) => {
                    if now.is_some() {
                        written.insert(key.clone(), None);
                    }
                    Did::Deleted(now.is_some())
                }
            }
        });
        (succeeded, did.collect(), written)
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
