//! A state in a folder of its own, and short words for what tests do with it.

use crate::api::{Applied, Command, Cursor, Position, Proposal};
use crate::error::Reason;
use crate::lmdb;
use crate::mvcc::records::Table;
pub(super) use crate::mvcc::tape::TERM;
use crate::mvcc::{Batch, Body, Entry, Events, LogPosition, Outcome, Store, View};
use crate::types::{
    Changes, Compare, Event, KeyRange, KeyValue, LeaseId, Op, OpKind, OpResult, Page, Revision,
    TxnOp, TxnOutcome,
};
use bytes::Bytes;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

pub(super) const MAP_BYTES: usize = 64 << 20;

pub(in crate::mvcc) struct Lab {
    pub(super) folder: TempDir,
    store: Option<Store>,
    pub(super) index: u64,
}

impl Lab {
    pub(in crate::mvcc) fn new() -> Self {
        Self::with_map(MAP_BYTES)
    }

    pub(super) fn with_map(map_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), map_bytes);
        Self { folder, store: Some(store), index: 0 }
    }

    pub(in crate::mvcc) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    pub(in crate::mvcc) fn view(&self) -> View {
        self.store().view().unwrap()
    }

    /// Closes the state and opens it again.
    pub(super) fn reopen(&mut self) {
        let store = self.store.take().unwrap();
        assert!(store.close(Duration::from_secs(10)), "something keeps the state open");
        self.store = Some(open(self.folder.path(), MAP_BYTES));
    }

    pub(super) fn close(mut self) -> TempDir {
        assert!(self.store.take().unwrap().close(Duration::from_secs(10)));
        self.folder
    }

    pub(in crate::mvcc) fn entry(&mut self, body: Body) -> Entry {
        self.index += 1;
        Entry { position: LogPosition { term: TERM, node: 1, index: self.index }, body }
    }

    pub(super) fn batch(&mut self, commands: impl IntoIterator<Item = Command>) -> Batch {
        let entries: Vec<_> =
            commands.into_iter().map(|command| self.entry(body(command))).collect();
        self.store().apply(&entries).unwrap()
    }

    pub(in crate::mvcc) fn apply(&mut self, command: Command) -> Outcome {
        self.batch([command]).outcomes.remove(0).unwrap()
    }

    pub(super) fn txn(
        &mut self,
        when: impl IntoIterator<Item = Compare>,
        then: impl IntoIterator<Item = Op>,
        otherwise: impl IntoIterator<Item = Op>,
    ) -> Result<TxnOutcome, Reason> {
        match self.apply(Command::Txn(txn(when, then, otherwise)))? {
            Applied::Txn(outcome) => Ok(outcome),
            other => panic!("{other:?}"),
        }
    }

    /// Carries out one operation and returns its result and the revision.
    pub(in crate::mvcc) fn run(&mut self, op: Op) -> Result<(OpResult, u64), Reason> {
        let mut outcome = self.txn([], [op], [])?;
        assert_eq!(outcome.results.len(), 1);
        Ok((outcome.results.remove(0), outcome.revision.get()))
    }

    /// Puts a key and returns the revision.
    pub(in crate::mvcc) fn put(&mut self, key: &str, value: &str) -> u64 {
        self.run(Op::put(key, value.to_owned())).unwrap().1
    }

    pub(in crate::mvcc) fn grant(&mut self) -> LeaseId {
        match self.apply(Command::Grant { id: None, ttl: Duration::from_secs(60) }) {
            Ok(Applied::Granted { id, .. }) => id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn query(&self, op: Op) -> Result<OpResult, Reason> {
        let mut outcome = self.view().query(&txn([], [op], [])).unwrap()?;
        Ok(outcome.results.remove(0))
    }

    pub(super) fn get(&self, key: &str) -> Option<KeyValue> {
        match self.query(Op::get(key)).unwrap() {
            OpResult::Get(found) => found,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn page(&self, op: Op) -> Page {
        match self.query(op).unwrap() {
            OpResult::Range(page) => page,
            other => panic!("{other:?}"),
        }
    }

    /// All events from a revision on.
    pub(super) fn watch(&self, range: impl Into<KeyRange>, from: u64) -> Result<Events, Reason> {
        let view = self.view();
        view.events(&cursor(range, from), view.revision(), usize::MAX).unwrap()
    }

    pub(super) fn lease_keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.view().lease(id).unwrap().expect("the lease exists").keys
    }
}

pub(super) fn open(folder: &std::path::Path, map_bytes: usize) -> Store {
    Store::open_with(folder, map_bytes, lmdb::Sync::Never).unwrap()
}

pub(super) fn rows(store: &Store) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let txn = store.env.read_txn().unwrap();
    let mut all = Vec::new();
    for table in Table::ALL {
        let rows = store.tables.range(&txn, table, Bound::Unbounded, Bound::Unbounded).unwrap();
        all.extend(rows.map(|row| {
            let (key, row) = row.unwrap();
            (table, key.to_vec(), row.to_vec())
        }));
    }
    all
}

pub(super) fn body(command: Command) -> Body {
    Body::Command(Arc::new(Proposal::from(command)))
}

pub(super) fn txn(
    when: impl IntoIterator<Item = Compare>,
    then: impl IntoIterator<Item = Op>,
    otherwise: impl IntoIterator<Item = Op>,
) -> TxnOp {
    match Op::txn(when, then, otherwise).0 {
        OpKind::Txn(txn) => txn,
        other => panic!("{other:?}"),
    }
}

pub(super) fn cursor(range: impl Into<KeyRange>, from: u64) -> Cursor {
    let next = Position::start_of(Revision::from(from));
    Cursor { range: range.into(), next, puts: true, deletes: true, prev: true }
}

/// `key{created,modified,version}=value`, as the stories write it.
pub(super) fn show(kv: &KeyValue) -> String {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
    let lease = lease.map(|lease| format!("@{lease}")).unwrap_or_default();
    let (key, value) = (key.escape_ascii(), value.escape_ascii());
    format!("{key}{{{create_revision},{mod_revision},{version}}}{lease}={value}")
}

/// One line for each revision.
pub(super) fn show_changes(changes: &[Changes]) -> Vec<String> {
    let event = |event: &Event| {
        let before = |prev: &Option<KeyValue>| {
            prev.as_ref().map(|prev| format!(" was {}", show(prev))).unwrap_or_default()
        };
        match event {
            Event::Put { kv, prev } => format!("put {}{}", show(kv), before(prev)),
            Event::Delete { key, prev, .. } => {
                format!("delete {}{}", key.escape_ascii(), before(prev))
            }
        }
    };
    let line = |changes: &Changes| {
        let events: Vec<_> = changes.events.iter().map(event).collect();
        format!("{}: {}", changes.revision, events.join(", "))
    };
    changes.iter().map(line).collect()
}
