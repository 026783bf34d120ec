//! Looks at every row again, a piece at a time: what has changed on a disk since it was written is found before it is an answer.
//!
//! ```text
//! table by table, row by row ─▶ is it what was written?     its checksum
//!                            ─▶ is it found under its key?  a page above it may lead elsewhere, or back
//!                 at its end ─▶ are these all?              as many as the table says it has
//!                 at the end ─▶ are they the state?         the hash, from all of them anew
//! ```
//!
//! A checksum tells a row that has changed. One that is passed over, because the way to it has changed, tells nobody, and is
//! answered as a key that does not exist; nor do the others see it when they compare, for what they compare is kept, not counted.
//!
//! Invariant: rows are read from one view of what is flushed, or they would not add up.

use super::View;
use super::dedup::ClientRow;
use super::hash;
use super::keys;
use super::read::Reader;
use super::records::{Head, Image, LeaseRow, Membership, MetaRow, Record, Table, Value, check_row};
use crate::error::Fault;
use std::borrow::Borrow;
use std::ops::Bound;

/// The tables whose rows are in the hash. The others hold what was, and how to find it.
const HASHED: [Table; 4] = [Table::Latest, Table::Leases, Table::Dedup, Table::Meta];

/// How far it is looked.
#[derive(Debug)]
pub(crate) struct Scrub<V> {
    view: V,
    /// What is still to do, the next first.
    tables: &'static [Table],
    /// The row of the first that was looked at last, and how many of it were.
    last: Option<Vec<u8>>,
    rows: u64,
    /// What all rows until now make of an empty head.
    sum: Head,
}

impl<V: Borrow<View>> Scrub<V> {
    /// Begins with every table.
    pub(crate) fn new(view: V) -> Self {
        Self::of(view, &Table::ALL)
    }

    fn of(view: V, tables: &'static [Table]) -> Self {
        let sum = Head { rows_hash: 0, keys: 0, clients: 0, ..*view.borrow().head() };
        Self { view, tables, last: None, rows: 0, sum }
    }

    /// Whose rows it looks at.
    pub(crate) fn view(&self) -> &View {
        self.view.borrow()
    }

    /// Looks at rows until they have so many bytes, and says how many they had; none, when all were looked at and are right.
    pub(crate) fn step(&mut self, bytes_max: usize) -> Result<usize, Fault> {
        let bytes = self.go_on(bytes_max)?;
        if bytes == 0 && self.hash() != self.view().hash() {
            return Err(Fault::damaged("the state has another hash than its changes add up to"));
        }
        Ok(bytes)
    }

    /// The same, without a look at the hash.
    fn go_on(&mut self, bytes_max: usize) -> Result<usize, Fault> {
        let mut bytes = 0;
        while bytes < bytes_max {
            let Some((&table, rest)) = self.tables.split_first() else { break };
            match self.look(table, bytes_max - bytes)? {
                0 => {
                    check_count(&self.view().reader(), table, self.rows)?;
                    (self.tables, self.last, self.rows) = (rest, None, 0);
                }
                read => bytes += read,
            }
        }
        Ok(bytes)
    }

    /// The hash of the rows until now, and of the settings.
    fn hash(&self) -> u128 {
        hash::of_state(&self.sum)
    }

    /// Looks at the next rows of a table, and says how many bytes they had.
    fn look(&mut self, table: Table, bytes_max: usize) -> Result<usize, Fault> {
        let state = self.view.borrow().reader();
        let start = self.last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let (mut bytes, mut last) = (0, None);
        for row in state.tables.range(state.txn, table, start, Bound::Unbounded)? {
            let (key, row) = row?;
            // A way that leads back would have no end.
            if last.or(self.last.as_deref()).is_some_and(|last| last >= key) {
                return Err(table.corrupt(key));
            }
            check_row(table, key, row)?;
            if state.tables.raw(state.txn, table, key)? != Some(row) {
                return Err(table.missing(key));
            }
            bytes += key.len() + row.len() + add(&mut self.sum, &state, table, key, row)?;
            self.rows += 1;
            last = Some(key);
            if bytes >= bytes_max {
                break;
            }
        }
        if let Some(key) = last {
            let kept = self.last.get_or_insert_default();
            kept.clear();
            kept.extend_from_slice(key);
        }
        Ok(bytes)
    }
}

/// The hash of the state from all of its rows.
pub(super) fn recompute_hash(view: &View) -> Result<u128, Fault> {
    let mut scrub = Scrub::of(view, &HASHED);
    while scrub.go_on(usize::MAX)? > 0 {}
    Ok(scrub.hash())
}

/// A table has as many rows as were found.
pub(super) fn check_count(state: &Reader<'_>, table: Table, found: u64) -> Result<(), Fault> {
    let all = state.tables.count(state.txn, table)?;
    if found == all {
        return Ok(());
    }
    let name = table.name();
    Err(Fault::damaged(format!("table {name} has {found} rows, and should have {all}")))
}

/// Adds a row to the hash, if it is in there. Returns how many bytes were read for that elsewhere.
fn add(
    sum: &mut Head,
    state: &Reader<'_>,
    table: Table,
    key: &[u8],
    row: &[u8],
) -> Result<usize, Fault> {
    match table {
        Table::Latest => {
            let image = Image::open(key, row)?;
            let value = check_digest(state, key, &image)?;
            sum.add(hash::of_key(key, &image));
            sum.keys += 1;
            return Ok(value);
        }
        Table::Leases => {
            let id = keys::parse_lease(key).ok_or_else(|| table.corrupt(key))?;
            sum.add(hash::of_lease(id, &LeaseRow::open(key, row)?));
        }
        Table::Dedup => {
            let id = keys::parse_client(key).ok_or_else(|| table.corrupt(key))?;
            sum.add(ClientRow::open(key, row)?.hash(id));
            sum.clients += 1;
        }
        Table::Meta if key == Membership::KEY => {
            sum.add(hash::of_membership(&Membership::open(key, row)?));
        }
        Table::Meta
        | Table::Gone
        | Table::Values
        | Table::Events
        | Table::History
        | Table::Attachments => {}
    }
    Ok(0)
}

/// The value of an image is the one that it was written with. Returns how many bytes it has in a row of its own.
pub(super) fn check_digest(state: &Reader<'_>, key: &[u8], image: &Image) -> Result<usize, Fault> {
    let value = state.value(key, image)?;
    if Value::of(&value) == image.value {
        return Ok(if matches!(image.value, Value::Large { .. }) { value.len() } else { 0 });
    }
    Err(Table::Values.corrupt(&keys::position(image.modified)))
}
