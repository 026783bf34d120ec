//! Flushing: what has gathered in memory goes into the tables, in one transaction.
//!
//! ```text
//! overlay   changes, in their order ──▶ ev, val, kidx       appended
//!           the newest of each key, in key order ──▶ latest or gone
//! leases, attachments, clients, head, membership
//! ```
//!
//! A key that changed a thousand times has a thousand rows of history, and one of `latest`. Keys come in their order, so
//! that those which share a page are written together.
//!
//! Invariant: the log position is that of the moment that was frozen. Whoever has it flushed makes sure that the log is on
//! the disk up to there first.

use super::Store;
use super::dedup::{Changed, ClientRow};
use super::keys;
use super::overlay::{Overlay, Recent, Step};
use super::records::{Change, Gone, Head, LargeValue, Membership, Table};
use super::tables::Tables;
use crate::error::Fault;
use crate::fault::{Point, point};
use bytes::Bytes;
use heed::RwTxn;
use std::ops::Bound;
use std::sync::Arc;

/// What an overlay takes beside what is in it, about.
const EMPTY_BYTES: usize = 32 << 10;

/// What has gathered in memory, up to some log position.
#[derive(Debug)]
pub(crate) struct Flush {
    pub(super) store: Store,
    /// Where the tables stood before.
    pub(super) from: Head,
    pub(super) head: Head,
    pub(super) membership: Option<Membership>,
    pub(super) overlay: Arc<Overlay>,
    pub(super) clients: Changed,
    /// What was flushed before it.
    pub(super) recent: Recent,
}

impl Flush {
    /// The log index that the tables will stand for.
    pub(crate) fn index(&self) -> Option<u64> {
        self.head.applied.map(|at| at.index)
    }

    /// What is kept in memory once it is written. This may be kept longer than that, and lets go of it.
    pub(crate) fn take_recent(&mut self) -> Recent {
        std::mem::take(&mut self.recent).followed_by(&self.overlay)
    }

    /// Whether tables stand where this goes on: none before it is missing, and it was not written before.
    pub(crate) fn is_next_for(&self, store: &Store) -> Result<bool, Fault> {
        Ok(store.read_head()?.0 == self.from)
    }

    /// About how many bytes it keeps in memory. An overlay with one change takes more than that change.
    pub(crate) fn bytes(&self) -> usize {
        let rows = self.clients.iter().filter_map(|(_, row)| row.as_ref());
        let clients: usize = rows.map(ClientRow::bytes).sum();
        EMPTY_BYTES + self.overlay.bytes() + clients
    }

    /// Whether it is for these tables.
    pub(crate) fn is_for(&self, store: &Store) -> bool {
        self.store.is(store)
    }

    /// Writes it to the tables. Only the state's one writer thread may call this.
    ///
    /// After a loss of power the last flush may be gone, whole; the one before it is there. [`Store::force_sync`] makes
    /// sure of the last one too.
    pub(crate) fn write(&self) -> Result<(), Fault> {
        self.write_to(&self.store)
    }

    /// The same, to a copy of the tables that stands where they stood before this flush.
    pub(crate) fn write_to(&self, store: &Store) -> Result<(), Fault> {
        let Self { head, membership, overlay, clients, .. } = self;
        let mut txn = store.env.write_txn()?;
        point(Point::FlushBegun);
        let tables = store.tables;
        write_history(&mut txn, tables, overlay)?;
        write_latest(&mut txn, tables, overlay)?;
        write_leases(&mut txn, tables, overlay)?;
        write_clients(&mut txn, tables, clients)?;
        if let Some(membership) = membership {
            tables.put_meta(&mut txn, membership)?;
        }
        tables.put_meta(&mut txn, head)?;
        point(Point::FlushWritten);
        txn.commit()?;
        point(Point::FlushCommitted);
        Ok(())
    }
}

fn write_history(txn: &mut RwTxn<'_>, tables: Tables, overlay: &Overlay) -> Result<(), Fault> {
    for number in 0..overlay.changes.len() {
        let entry = overlay.changes.entry(number).expect("there are so many");
        let (key, step) = (&entry.key, &entry.value);
        let row_key = keys::position(step.at);
        if let Some(value) = &step.large {
            let row = LargeValue { key: key.clone(), value: value.clone() };
            tables.append(txn, &row_key, &row)?;
        }
        tables.append(txn, &row_key, &change(key.clone(), step))?;
        if step.turn == 0 {
            tables.put_raw(txn, Table::History, &keys::history(key, step.at), &[])?;
        }
    }
    Ok(())
}

fn change(key: Bytes, step: &Step) -> Change {
    let Step { new, prev, gone, turn, .. } = step;
    Change { key, new: new.clone(), prev: prev.clone(), gone: *gone, turn: *turn }
}

fn write_latest(txn: &mut RwTxn<'_>, tables: Tables, overlay: &Overlay) -> Result<(), Fault> {
    let changes = &overlay.changes;
    let all = Bound::Unbounded;
    for (newest, entry) in changes.range(all, all, changes.len()) {
        let (key, step) = (&entry.key, &entry.value);
        let was_there = changes
            .oldest(newest, |_, _| true)
            .and_then(|first| changes.entry(first))
            .is_some_and(|first| first.value.prev.is_some());
        match &step.new {
            Some(image) => tables.put(txn, key, image)?,
            None if was_there => tables.remove(txn, Table::Latest, key)?,
            None => {}
        }
        match step.new {
            None => tables.put(txn, key, &Gone { at: step.at, turn: step.turn })?,
            // A row that compaction has still to remove is there as well.
            Some(_) if !was_there => tables.remove_if_there(txn, Table::Gone, key)?,
            Some(_) => {}
        }
    }
    Ok(())
}

fn write_leases(txn: &mut RwTxn<'_>, tables: Tables, overlay: &Overlay) -> Result<(), Fault> {
    let all = Bound::Unbounded;
    let (leases, attachments) = (&overlay.leases, &overlay.attachments);
    for (_, entry) in leases.range(all, all, leases.len()) {
        match &entry.value {
            Some(lease) => tables.put(txn, &entry.key, lease)?,
            // It may have come and gone meanwhile.
            None => tables.remove_if_there(txn, Table::Leases, &entry.key)?,
        }
    }
    for (_, entry) in attachments.range(all, all, attachments.len()) {
        match entry.value {
            true => tables.put_raw(txn, Table::Attachments, &entry.key, &[])?,
            false => tables.remove_if_there(txn, Table::Attachments, &entry.key)?,
        }
    }
    Ok(())
}

fn write_clients(txn: &mut RwTxn<'_>, tables: Tables, clients: &Changed) -> Result<(), Fault> {
    for (id, row) in clients {
        match row {
            Some(row) => tables.put(txn, &keys::client(*id), row)?,
            // It may have come and gone meanwhile.
            None => tables.remove_if_there(txn, Table::Dedup, &keys::client(*id))?,
        }
    }
    Ok(())
}
