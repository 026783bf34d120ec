//! Applying: the pure function at the heart. A state and a command make the next state, and an answer.
//!
//! ```text
//! entries ──▶ a LMDB transaction, open for a while ────────────────────────────────▶ commit
//!             │ Txn      plan ─▶ check ─▶ each change: ev, kidx, latest, lease_keys │
//!             │ Grant Revoke Expire      (lease.rs)                                 │ head: applied, revision,
//!             │ Compact                  (compact.rs)                               │ compact_revision, hash, …
//!             │ Membership               kept as it is                              │
//! ```
//!
//! Everything that entries change is in that one transaction, the log position included: after a crash the state is that
//! of some entry, never between two, and the log knows from where to go on.
//!
//! Invariants
//! - what happens depends on the state and the entry alone: no clock, no randomness, no order of a hash map;
//! - a command takes the next revision if it changes a key, and none otherwise; an expiry takes one for each lease;
//! - a key changes at most once per revision;
//! - a rejected command has written nothing; an `Err(Fault)` has committed nothing.

use super::plan::{Plan, Step};
use super::read::{Reader, key_value};
use super::records::{Change, Head, Image, LargeValue, Membership, Table, Value};
use super::tables::Tables;
use super::{
    Batch, Body, Entry, Latest, LeaseChange, LogPosition, Outcome, Stop, hash, keys, split,
};
use crate::api::{Applied, Command, Position, check_txn};
use crate::error::Fault;
use crate::fault::{Point, point};
use crate::lmdb;
use crate::types::{DeleteOp, KeyRange, LeaseId, OpResult, PutOp, Revision, TxnOp, TxnOutcome};
use bytes::Bytes;
use heed::RwTxn;
use std::collections::BTreeMap;
use std::mem;
use std::ops::ControlFlow;

/// A write transaction that entries are applied in, until it is committed as one. Dropping it undoes all of them.
///
/// It belongs to the thread that began it.
pub(crate) struct Pending<'store>(Writer<'store>);

impl std::fmt::Debug for Pending<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pending").field(&self.0.head).finish()
    }
}

impl<'store> Pending<'store> {
    pub(super) fn begin(env: &'store lmdb::Env, tables: Tables) -> Result<Self, Fault> {
        Writer::begin(env, tables).map(Self)
    }

    /// Applies entries, after those before them. After an `Err` there is nothing to do but to drop all of it.
    pub(crate) fn apply(&mut self, entries: &[Entry]) -> Result<Batch, Fault> {
        let Self(writer) = self;
        let outcomes = entries.iter().map(|entry| writer.entry(entry));
        let outcomes = outcomes.collect::<Result<_, Fault>>()?;
        assert_eq!(writer.changes, 0, "a revision is ended by the command that began it");
        Ok(Batch {
            outcomes,
            revision: writer.head.revision,
            hash: hash::of_state(&writer.head),
            touched: mem::take(&mut writer.touched),
            latest: mem::take(&mut writer.latest),
            leases: mem::take(&mut writer.leases),
            compacted: writer.compacted.take(),
        })
    }

    /// Makes all of it visible.
    pub(crate) fn commit(self) -> Result<(), Fault> {
        let Self(Writer { tables, mut txn, head, .. }) = self;
        tables.put_meta(&mut txn, &head)?;
        Ok(txn.commit()?)
    }
}

/// Changes the state within one write transaction.
pub(super) struct Writer<'env> {
    pub(super) txn: RwTxn<'env>,
    pub(super) tables: Tables,
    pub(super) head: Head,
    /// How many changes the revision in the making has.
    changes: u32,
    touched: Vec<(Revision, Bytes)>,
    /// What those keys are now.
    latest: BTreeMap<Bytes, Latest>,
    pub(super) leases: Vec<LeaseChange>,
    pub(super) compacted: Option<Revision>,
}

impl<'env> Writer<'env> {
    fn begin(env: &'env lmdb::Env, tables: Tables) -> Result<Self, Fault> {
        let txn = env.write_txn()?;
        let head = tables.meta(&txn)?;
        Ok(Self {
            txn,
            tables,
            head,
            changes: 0,
            touched: Vec::new(),
            latest: BTreeMap::new(),
            leases: Vec::new(),
            compacted: None,
        })
    }

    fn entry(&mut self, entry: &Entry) -> Result<Option<Outcome>, Fault> {
        point(Point::CoreEntry);
        let position = entry.position;
        check_order(self.head.applied, position)?;
        self.head.applied = Some(position);
        match &entry.body {
            Body::Blank => Ok(None),
            Body::Membership(members) => {
                self.membership(&Membership { position, members: members.clone() })?;
                Ok(None)
            }
            Body::Command(proposal) => {
                let applied = self.command(&proposal.command, position.term);
                split(applied).map(Some)
            }
        }
    }

    fn membership(&mut self, new: &Membership) -> Result<(), Fault> {
        point(Point::CoreMembership);
        let Self { tables, txn, head, .. } = self;
        if let Some(old) = tables.find_meta(txn)? {
            head.rows_hash = head.rows_hash.wrapping_sub(hash::of_membership(&old));
        }
        head.rows_hash = head.rows_hash.wrapping_add(hash::of_membership(new));
        tables.put_meta(txn, new)
    }

    fn command(&mut self, command: &Command, term: u64) -> Result<Applied, Stop> {
        match command {
            Command::Txn(txn) => self.transaction(txn).map(Applied::Txn),
            Command::Grant { id, ttl } => self.grant(*id, *ttl),
            Command::Revoke(id) => self.revoke(*id),
            Command::Expire { deciding_term, leases } => self.expire(*deciding_term, term, leases),
            Command::Compact(revision) => self.compact(*revision),
        }
    }

    fn transaction(&mut self, txn: &TxnOp) -> Result<TxnOutcome, Stop> {
        // The gateway has checked it, but an entry is for ever: one that could not be applied would stop every member,
        // at every start.
        check_txn(txn)?;
        let state = self.reader();
        let plan = Plan::resolve(txn, &state)?;
        plan.check(&state)?;
        let outcome = self.run(&plan)?;
        self.end_revision();
        Ok(outcome)
    }

    /// Carries out a plan, depth first and in order. Nothing but a fault can stop it.
    fn run(&mut self, plan: &Plan<'_>) -> Result<TxnOutcome, Fault> {
        let mut results = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            results.push(match step {
                Step::Put(put) => self.put(put)?,
                Step::Delete(delete) => self.delete(delete)?,
                Step::Get(get) => OpResult::Get(self.reader().get(&get.key, get.at)?),
                Step::Range(range) => OpResult::Range(self.reader().page(range)?),
                Step::Txn(nested) => OpResult::Txn(self.run(nested)?),
            });
        }
        Ok(TxnOutcome { succeeded: plan.succeeded, revision: self.revision(), results })
    }

    fn put(&mut self, put: &PutOp) -> Result<OpResult, Fault> {
        let prev = self.reader().image(&put.key)?;
        let shown = prev.as_ref().filter(|_| put.prev);
        let shown =
            shown.map(|image| self.reader().key_value(put.key.clone(), image)).transpose()?;
        let (value, lease) = self.kept(put, prev.as_ref())?;
        let modified = self.position();
        let new = Image {
            create_revision: prev.as_ref().map_or(modified.revision, |prev| prev.create_revision),
            modified,
            version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
            lease,
            value: Value::of(&value),
        };
        let latest = key_value(put.key.clone(), &new, value.clone());
        self.latest.insert(put.key.clone(), Latest::is(latest));
        if let Value::Large { .. } = new.value {
            let row = LargeValue { key: put.key.clone(), value };
            self.tables.append(&mut self.txn, &keys::position(modified), &row)?;
        }
        self.change(Change { key: put.key.clone(), new: Some(new), prev })?;
        Ok(OpResult::Put { prev: shown })
    }

    /// The value and lease that a put gives its key, which may be those that it has.
    fn kept(&self, put: &PutOp, prev: Option<&Image>) -> Result<(Bytes, Option<LeaseId>), Fault> {
        let kept = || prev.expect("the plan was checked: a key that keeps something exists");
        let value = if put.ignore_value {
            self.reader().value(&put.key, kept())?
        } else {
            put.value.clone()
        };
        let lease = if put.ignore_lease { kept().lease } else { put.lease };
        Ok((value, lease))
    }

    fn delete(&mut self, delete: &DeleteOp) -> Result<OpResult, Fault> {
        let found = self.find(&delete.range)?;
        let count = found.len() as u64;
        let mut prev = Vec::new();
        for (key, image) in found {
            if delete.prev {
                prev.push(self.reader().key_value(key.clone(), &image)?);
            }
            self.remove(key, image)?;
        }
        Ok(OpResult::Deleted { count, prev })
    }

    fn find(&self, range: &KeyRange) -> Result<Vec<(Bytes, Image)>, Fault> {
        if let Some(key) = range.as_key() {
            let image = self.reader().image(key)?;
            return Ok(image.map(|image| (key.clone(), image)).into_iter().collect());
        }
        let mut found = Vec::new();
        self.reader().scan(range, None, &mut |key, row| {
            found.push((Bytes::copy_from_slice(key), row.image(key)?));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Deletes a key that is there.
    pub(super) fn remove(&mut self, key: Bytes, image: Image) -> Result<(), Fault> {
        self.latest.insert(key.clone(), Latest::Deleted);
        self.change(Change { key, new: None, prev: Some(image) })
    }

    /// Writes one change to every table that knows of it, and to the hash.
    fn change(&mut self, change: Change) -> Result<(), Fault> {
        let at = self.position();
        let Self { tables, txn, head, .. } = self;
        tables.append(txn, &keys::position(at), &change)?;
        let Change { key, new, prev } = change;
        tables.put_raw(txn, Table::History, &keys::history(&key, at), &[])?;
        if let Some(prev) = &prev {
            head.rows_hash = head.rows_hash.wrapping_sub(hash::of_key(&key, prev));
            head.keys -= 1;
        }
        match &new {
            Some(new) => {
                head.rows_hash = head.rows_hash.wrapping_add(hash::of_key(&key, new));
                head.keys += 1;
                tables.put(txn, &key, new)?;
            }
            None => tables.remove(txn, Table::Latest, &key)?,
        }
        let lease = |image: Option<Image>| image.and_then(|image| image.lease);
        self.attach(&key, lease(prev), lease(new))?;
        point(Point::CoreChange);
        self.changes += 1;
        self.touched.push((at.revision, key));
        Ok(())
    }

    /// Moves a key from one lease to another.
    fn attach(
        &mut self,
        key: &[u8],
        from: Option<LeaseId>,
        to: Option<LeaseId>,
    ) -> Result<(), Fault> {
        if from == to {
            return Ok(());
        }
        let Self { tables, txn, .. } = self;
        if let Some(from) = from {
            tables.remove(txn, Table::Attachments, &keys::attachment(from, key))?;
        }
        if let Some(to) = to {
            tables.put_raw(txn, Table::Attachments, &keys::attachment(to, key), &[])?;
        }
        Ok(())
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            txn: &self.txn,
            tables: self.tables,
            revision: self.revision(),
            compact_revision: self.head.compact_revision,
        }
    }

    /// The newest revision, that in the making included once it has a change.
    pub(super) fn revision(&self) -> Revision {
        if self.changes == 0 { self.head.revision } else { self.head.revision.next() }
    }

    /// Where the next change goes.
    fn position(&self) -> Position {
        Position { revision: self.head.revision.next(), sub: self.changes }
    }

    /// Ends the revision in the making, if anything was changed.
    pub(super) fn end_revision(&mut self) {
        self.head.revision = self.revision();
        self.changes = 0;
    }
}

/// Nothing is applied twice, and nothing late; anything else is a bug between the log and us. (That there are no gaps is
/// for whoever reads the log to see.)
fn check_order(applied: Option<LogPosition>, next: LogPosition) -> Result<(), Fault> {
    match applied {
        Some(applied) if next.index <= applied.index => Err(Fault::assertion(format!(
            "log entry {} was to be applied after {}",
            next.index, applied.index
        ))),
        _ => Ok(()),
    }
}
