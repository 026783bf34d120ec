//! Compaction, in two steps that must not be confused.
//!
//! *Logical* compaction is a command: from one log entry on, on every member, nothing below revision C can be read or
//! watched. *Physical* compaction makes room: each member deletes the rows of those revisions when it finds the time. No
//! answer may show how far it has come, or two members would differ.
//!
//! ```text
//!                 C = 5
//! ev     2  3  4 │5  6  7        row C stays: a watch may begin at C, and a read at C needs what came after it
//!        └─────┘ deleted from the front, each with what belongs to it: a row in kidx, the large value that it replaced, and
//!                a row in gone, if it is the delete after which a key is not there
//! ```
//!
//! How old history gets is said in slices of time, which only the leader's clock knows: it proposes an [`Age`](crate::api::Command::Age)
//! after each, and the state keeps the revisions of the last few. So it needs no clock, and no member has to remember anything
//! when the leader changes; history then stays for a slice longer at most.
//!
//! Each change remembers what it replaced, so a row below C is of no use to any read at or above C. There is no question
//! of which rows are still alive, no holes, and nothing to remember between two steps: the front of `ev` is where the
//! last one ended. A large value dies with the change that replaced it; the live ones were replaced by none.

use super::Stop;
use super::apply::Writer;
use super::keys;
use super::records::{Change, Gone, Head, Record, Table, Value};
use super::tables::Tables;
use crate::api::{Applied, Position};
use crate::error::{Fault, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::lmdb;
use crate::types::Revision;
use heed::{RoTxn, RwTxn};
use std::ops::Bound;

impl Writer<'_> {
    /// Forgets what is below a revision.
    pub(super) fn compact(&mut self, at: Revision) -> Result<Applied, Stop> {
        let (compacted, current) = (self.head.compact_revision, self.head.revision);
        if at <= compacted {
            return Err(Reason::Compacted { at: compacted }.into());
        }
        if at > current {
            return Err(Reason::FutureRevision { current }.into());
        }
        self.forget(at);
        Ok(Applied::Compacted { revision: current })
    }

    /// Forgets what has become too old.
    pub(super) fn age(&mut self, deciding_term: u64, term: u64) -> Result<Applied, Stop> {
        if term != deciding_term {
            return Err(Reason::LeaderChanged.into());
        }
        let revision = self.head.revision;
        let oldest = self.head.ages.pass(revision);
        // Before the first write there was nothing.
        if oldest > self.head.compact_revision.max(Revision::FIRST) {
            self.forget(oldest);
        }
        Ok(Applied::Noted { revision })
    }

    fn forget(&mut self, before: Revision) {
        point(Point::CompactApplied);
        self.head.compact_revision = before;
        self.compacted = Some(before);
    }
}

/// Deletes up to `rows_max` events that are compacted away, and what belongs to them. Returns whether none is left.
pub(super) fn step(env: &lmdb::Env, tables: Tables, rows_max: usize) -> Result<bool, Fault> {
    assert!(rows_max > 0, "a step that deletes nothing would never be the last");
    let mut txn = env.write_txn()?;
    let dead = dead_changes(&txn, tables, rows_max)?;
    for (at, change) in &dead {
        delete(&mut txn, tables, *at, change)?;
    }
    if !dead.is_empty() {
        point(Point::CompactStepWritten);
        txn.commit()?;
    }
    Ok(dead.len() < rows_max)
}

/// How many bytes history takes that cannot go before there is another revision. None while some of it can.
pub(super) fn bytes_held(txn: &RoTxn<'_>, tables: Tables, newest: Revision) -> Result<u64, Fault> {
    let start = keys::position(Position::start_of(newest));
    let (all, start) = (Bound::Unbounded, &start[..]);
    if tables.range(txn, Table::Events, all, Bound::Excluded(start))?.next().is_some() {
        return Ok(0);
    }
    // Nothing else is left in these, and their pages are all that it takes but for what it replaced.
    let history = [Table::Events, Table::History, Table::Gone];
    let pages: u64 =
        history.into_iter().map(|table| tables.bytes(txn, table)).sum::<Result<_, _>>()?;
    let rows = tables.range(txn, Table::Events, Bound::Included(start), all)?;
    let large = rows.map(|row| {
        let (key, row) = row?;
        let prev = Change::open(key, row)?.prev;
        let large = prev.filter(|prev| matches!(prev.value, Value::Large { .. }));
        Ok(large.map_or(0, |prev| prev.value.len()) as u64)
    });
    Ok(pages + large.sum::<Result<u64, Fault>>()?)
}

/// The oldest changes that are compacted away.
fn dead_changes(
    txn: &RoTxn<'_>,
    tables: Tables,
    rows_max: usize,
) -> Result<Vec<(Position, Change)>, Fault> {
    let head: Head = tables.meta(txn)?;
    let first_kept = match bug(Bug::CompactionOneTooFar) {
        false => head.compact_revision,
        true => head.compact_revision.next().min(head.revision),
    };
    let end = keys::position(Position::start_of(first_kept));
    let rows = tables.range(txn, Table::Events, Bound::Unbounded, Bound::Excluded(&end))?;
    let dead = rows.take(rows_max).map(|row| {
        let (key, row) = row?;
        let at = keys::parse_position(key).ok_or_else(|| Table::Events.corrupt(key))?;
        Ok((at, Change::open(key, row)?))
    });
    dead.collect()
}

fn delete(txn: &mut RwTxn<'_>, tables: Tables, at: Position, change: &Change) -> Result<(), Fault> {
    tables.remove(txn, Table::Events, &keys::position(at))?;
    if change.is_restore() {
        return Ok(());
    }
    if change.turn == 0 {
        tables.remove(txn, Table::History, &keys::history(&change.key, at))?;
    }
    if change.new.is_none()
        && tables.find::<Gone>(txn, &change.key)?.is_some_and(|gone| gone.at == at)
    {
        tables.remove(txn, Table::Gone, &change.key)?;
    }
    if let Some(prev) = &change.prev
        && let Value::Large { .. } = prev.value
    {
        tables.remove(txn, Table::Values, &keys::position(prev.modified))?;
    }
    Ok(())
}
