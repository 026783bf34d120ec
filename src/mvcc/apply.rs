//! Applying: the pure function at the heart. A state and a command make the next state, and an answer.
//!
//! ```text
//! entries ──▶ plan ─▶ check ─▶ each change ──▶ the active overlay ──▶ a moment
//!             │ Txn                                                  │ head: applied, revision,
//!             │ Grant Revoke Expire      (lease.rs)                  │ compact_revision, hash, …
//!             │ Compact                  (compact.rs)                │ membership
//!             └ unless it was sent before (dedup.rs)                 └ what was answered to whom
//! ```
//!
//! Nothing is written to the disk here; [`Core::freeze`] hands over what has gathered, to be [flushed](super::flush). After
//! a crash the state is that of the last flush, which is that of some entry, never between two, and the log knows from
//! where to go on.
//!
//! Invariants
//! - what happens depends on the state and the entry alone: no clock, no randomness, no order of a hash map;
//! - a command takes the next revision if it changes a key, and none otherwise; an expiry takes one for each lease;
//! - a key changes at most once per revision;
//! - a rejected command has changed nothing but what is kept of it for its client; after an `Err(Fault)` nothing of the call is ever shown or flushed.

use super::budget;
use super::dedup::Clients;
use super::flush::Flush;
use super::lease::Attached;
use super::overlay::{Front, Moment, Overlay, Recent, Step as Change};
use super::plan::{Effort, Plan, Step};
use super::read::Reader;
use super::records::{FIRST_TURN, Head, Image, Membership, Value, next_turn};
use super::tables::Tables;
use super::{
    Batch, Body, Entry, LeaseChange, LogPosition, MARK_EVERY, Mark, Outcome, Stop, Store, hash,
    keys, split,
};
use crate::api::{Applied, Command, Origin, Position, Proposal, check_txn};
use crate::error::{Fault, Reason};
use crate::fault::{Point, point};
use crate::lmdb::ReadTxn;
use crate::types::{DeleteOp, KeyRange, LeaseId, OpResult, PutOp, Revision, TxnOp, TxnOutcome};
use bytes::Bytes;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The state, for the one thread that applies to it.
pub(crate) struct Core {
    store: Store,
    head: Head,
    membership: Option<Membership>,
    active: Arc<Overlay>,
    /// What is being flushed.
    frozen: Option<Arc<Overlay>>,
    /// What was flushed lately.
    recent: Recent,
    clients: Clients,
    attached: Attached,
    /// Where it was frozen last.
    frozen_at: Head,
    seed: u64,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Core").field(&self.head).finish()
    }
}

impl Core {
    /// Goes on where the tables of a store stand. The seed is for the places of keys in memory.
    pub(crate) fn new(store: Store, seed: u64) -> Result<Self, Fault> {
        let (head, membership) = store.read_head()?;
        let active = Arc::new(Overlay::new(seed));
        let recent = Recent::default();
        let txn = store.writers_txn()?;
        let clients = Clients::read(&txn, store.tables, &head)?;
        drop(txn);
        let (frozen, frozen_at) = (None, head);
        let attached = Attached::default();
        Ok(Self {
            store,
            head,
            membership,
            active,
            frozen,
            recent,
            clients,
            attached,
            frozen_at,
            seed,
        })
    }

    /// Applies entries, after those before them. After an `Err` there is nothing to do but to drop all of it.
    pub(crate) fn apply(&mut self, entries: &[Entry]) -> Result<Batch, Fault> {
        let txn = self.store.writers_txn()?;
        let mut writer = Writer {
            txn: &txn,
            tables: self.store.tables,
            active: &self.active,
            frozen: self.frozen.as_ref(),
            recent: &self.recent,
            clients: &mut self.clients,
            attached: &mut self.attached,
            head: &mut self.head,
            membership: &mut self.membership,
            changes: 0,
            touched: Vec::new(),
            leases: Vec::new(),
            compacted: None,
        };
        let mut marks = Vec::new();
        let outcomes = entries.iter().map(|entry| {
            let outcome = writer.entry(entry);
            // Here and not after the batch: members batch differently.
            marks.extend(writer.mark(entry.position.index));
            outcome
        });
        let outcomes = outcomes.collect::<Result<_, Fault>>()?;
        assert_eq!(writer.changes, 0, "a revision is ended by the command that began it");
        let Writer { touched, leases, compacted, .. } = writer;
        Ok(Batch { outcomes, revision: self.head.revision, touched, leases, compacted, marks })
    }

    /// All that there is now.
    pub(crate) fn moment(&self) -> Moment {
        let (head, membership) = (self.head, self.membership.clone());
        let (frozen, recent) = (self.frozen.clone(), self.recent.clone());
        Moment::new(self.store.clone(), head, membership, &self.active, frozen, recent)
    }

    /// About what is in memory and not being flushed.
    pub(crate) fn bytes(&self) -> usize {
        self.active.bytes()
    }

    /// Takes note of the size of entries that are applied next: what stays in memory of them may keep all of them there.
    pub(crate) fn charge(&self, bytes: usize) {
        self.active.takes(bytes);
    }

    /// Whether something is being flushed.
    pub(crate) fn is_flushing(&self) -> bool {
        self.frozen.is_some()
    }

    /// Takes off all that was applied since the last time, for it to be flushed; nothing if that is nothing. Only when
    /// nothing is being flushed.
    pub(crate) fn freeze(&mut self) -> Option<Flush> {
        assert!(self.frozen.is_none(), "one flush after the other");
        if self.head == self.frozen_at {
            return None;
        }
        let from = std::mem::replace(&mut self.frozen_at, self.head);
        let frozen = std::mem::replace(&mut self.active, Arc::new(Overlay::new(self.seed)));
        self.frozen = Some(Arc::clone(&frozen));
        let (head, membership) = (self.head, self.membership.clone());
        let (store, recent) = (self.store.clone(), self.recent.clone());
        let clients = self.clients.take_changed();
        Some(Flush { store, from, head, membership, overlay: frozen, clients, recent })
    }

    /// The tables that everything is applied on top of.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Goes on with a copy of the tables in their place. Only when nothing is being flushed, and the copy stands where they
    /// do: what is in memory is on top of the one as it was on top of the other.
    pub(crate) fn move_to(&mut self, copy: Store) -> Result<(), Fault> {
        assert!(
            self.frozen.is_none(),
            "what is being flushed goes to the tables that it was frozen for"
        );
        let (head, _) = copy.read_head()?;
        if head != self.frozen_at {
            return Err(Fault::assertion("a copy of the tables stands for another moment"));
        }
        self.store = copy;
        Ok(())
    }

    /// The tables have what was frozen, and `recent` is what [`Flush::recent`] says of it. Returns what is not needed any
    /// more, for it may take a while to drop.
    pub(crate) fn flushed(&mut self, recent: Recent) -> impl Send + use<> {
        (self.frozen.take(), std::mem::replace(&mut self.recent, recent))
    }
}

/// Changes the state, for as long as one call lasts.
pub(super) struct Writer<'core> {
    txn: &'core ReadTxn<'core>,
    tables: Tables,
    pub(super) active: &'core Overlay,
    frozen: Option<&'core Arc<Overlay>>,
    recent: &'core Recent,
    clients: &'core mut Clients,
    pub(super) attached: &'core mut Attached,
    pub(super) head: &'core mut Head,
    membership: &'core mut Option<Membership>,
    /// How many changes the revision in the making has.
    changes: u32,
    touched: Vec<(Revision, Bytes)>,
    pub(super) leases: Vec<LeaseChange>,
    pub(super) compacted: Option<Revision>,
}

impl Writer<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<Option<Outcome>, Fault> {
        point(Point::CoreEntry);
        let position = entry.position;
        check_order(self.head.applied, position)?;
        self.head.applied = Some(position);
        match &entry.body {
            Body::Blank => Ok(None),
            Body::Membership(members) => {
                self.membership(Membership { position, members: members.clone() });
                Ok(None)
            }
            Body::Command(proposal) => {
                let Proposal { origin, command } = &**proposal;
                self.once(origin.as_ref(), command, position.term).map(Some)
            }
        }
    }

    /// Carries out a command, unless that was done before: then the answer is what it was.
    fn once(
        &mut self,
        origin: Option<&Origin>,
        command: &Command,
        term: u64,
    ) -> Result<Outcome, Fault> {
        let Some(origin) = origin else { return split(self.command(command, term)) };
        let known = match split(self.clients.ask(self.head, origin))? {
            Ok(known) => known,
            Err(refused) => return Ok(Err(refused)),
        };
        if let Some(answer) = known {
            return Ok(answer);
        }
        let outcome = split(self.command(command, term))?;
        self.clients.keep(self.head, origin, &outcome);
        Ok(outcome)
    }

    /// The hash after an entry, if it is one of those that are noted down.
    fn mark(&self, index: u64) -> Option<Mark> {
        index.is_multiple_of(MARK_EVERY).then(|| Mark { index, hash: hash::of_state(self.head) })
    }

    fn membership(&mut self, new: Membership) {
        point(Point::CoreMembership);
        let head = &mut *self.head;
        if let Some(old) = self.membership {
            head.rows_hash = head.rows_hash.wrapping_sub(hash::of_membership(old));
        }
        head.rows_hash = head.rows_hash.wrapping_add(hash::of_membership(&new));
        *self.membership = Some(new);
    }

    fn command(&mut self, command: &Command, term: u64) -> Result<Applied, Stop> {
        // What each member takes differs a little, so only what the log says of it counts.
        if self.head.is_short_of_room && command.takes_room() {
            return Err(Reason::NoSpace.into());
        }
        match command {
            Command::Txn(txn) => self.transaction(txn).map(Applied::Txn),
            Command::Grant { id, ttl } => self.grant(*id, *ttl),
            Command::Revoke(id) => self.revoke(*id),
            Command::Expire { deciding_term, leases } => self.expire(*deciding_term, term, leases),
            Command::Compact(revision) => self.compact(*revision),
            Command::Age { deciding_term } => self.age(*deciding_term, term),
            Command::Register => {
                let client = self.clients.register(self.head)?;
                Ok(Applied::Registered { client, revision: self.head.revision })
            }
            Command::AgeClients { deciding_term } if *deciding_term != term => {
                Err(Reason::LeaderChanged.into())
            }
            Command::AgeClients { .. } => {
                self.clients.pass(self.head);
                Ok(Applied::Noted { revision: self.head.revision })
            }
            Command::Room { is_short } => {
                self.head.is_short_of_room = *is_short;
                Ok(Applied::Noted { revision: self.head.revision })
            }
        }
    }

    fn transaction(&mut self, txn: &TxnOp) -> Result<TxnOutcome, Stop> {
        // The gateway has checked it, but an entry is for ever: one that could not be applied would stop every member,
        // at every start.
        check_txn(txn)?;
        let state = self.reader();
        let effort = Effort::of_write();
        let plan = Plan::resolve(txn, &state, &effort)?;
        plan.check(&state)?;
        budget::check(&plan, &state, &effort)?;
        self.check_leases(&plan)?;
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
        if put.ignore_value {
            // It is in no entry that would be counted.
            self.active.takes(value.len());
        }
        let gone = if prev.is_none() { self.reader().gone(&put.key)? } else { None };
        let before = prev.as_ref().map(|prev| prev.turn).or(gone.map(|gone| gone.turn));
        let modified = self.position();
        let new = Image {
            create_revision: prev.as_ref().map_or(modified.revision, |prev| prev.create_revision),
            modified,
            version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
            lease,
            turn: before.map_or(FIRST_TURN, next_turn),
            value: Value::of(&value),
        };
        let large = matches!(new.value, Value::Large { .. }).then_some(value);
        let (turn, gone) = (new.turn, gone.map(|gone| gone.at));
        self.change(
            put.key.clone(),
            Change { at: modified, new: Some(new), prev, gone, turn, large },
        );
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
            self.remove(key, image);
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
    pub(super) fn remove(&mut self, key: Bytes, image: Image) {
        let (at, turn) = (self.position(), next_turn(image.turn));
        let step = Change { at, new: None, prev: Some(image), gone: None, turn, large: None };
        self.change(key, step);
    }

    /// Writes one change down, and adds it to the hash.
    fn change(&mut self, key: Bytes, step: Change) {
        let head = &mut *self.head;
        if let Some(prev) = &step.prev {
            head.rows_hash = head.rows_hash.wrapping_sub(hash::of_key(&key, prev));
            head.keys -= 1;
        }
        if let Some(new) = &step.new {
            head.rows_hash = head.rows_hash.wrapping_add(hash::of_key(&key, new));
            head.keys += 1;
        }
        let lease = |image: &Option<Image>| image.as_ref().and_then(|image| image.lease);
        self.attach(&key, lease(&step.prev), lease(&step.new));
        self.touched.push((step.at.revision, key.clone()));
        self.active.change(key, step);
        point(Point::CoreChange);
        self.changes += 1;
    }

    /// Moves a key from one lease to another.
    fn attach(&mut self, key: &[u8], from: Option<LeaseId>, to: Option<LeaseId>) {
        if from == to {
            return;
        }
        self.attached.moves(from, to);
        if let Some(from) = from {
            self.active.attach(keys::attachment(from, key), false);
        }
        if let Some(to) = to {
            self.active.attach(keys::attachment(to, key), true);
        }
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            front: Front::of_writer(self.active, self.frozen),
            recent: self.recent,
            txn: self.txn,
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
