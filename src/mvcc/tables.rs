//! The tables: nine ordered maps from bytes to bytes, in one environment, changed by one transaction at a time.
//!
//! ```text
//! latest      user key             -> Image            the state of each key that exists: what most reads need
//! gone        user key             -> Gone             the last change of each key that does not, while it is history
//! val         position             -> LargeValue       values too long for an Image, written once
//! ev          position             -> Change           history: each change, with the state before it
//! kidx        esc(key) ++ position -> nothing          history by key: a row for one of 64 changes of a key
//! lease       lease id             -> LeaseRow
//! lease_keys  lease id ++ user key -> nothing          which keys go with a lease
//! dedup       client id            -> ClientRow        what was answered to whom lately
//! meta        head, membership, format                 where the state stands
//! ```
//!
//! This file moves rows; it knows no rules. Everything reads through it, so that no row is believed unchecked.
//!
//! Invariants
//! - `ev` and `val` grow at the end only, so their pages are written full, and old ones never again;
//! - `format` is written first and read before any other row is touched.

use super::keys;
use super::records::{Change, Format, Head, LargeValue, MetaRow, Record, Table, content};
use crate::api::Position;
use crate::error::Fault;
use crate::lmdb;
use bytes::Bytes;
use heed::types::Bytes as Raw;
use heed::{CommitOrAbort, PutFlags, RoTxn, RwTxn};
use std::ops::Bound;

/// One table.
type Rows = heed::Database<'static, Raw, Raw>;

/// The open tables of an environment. Valid for as long as the environment is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables([Rows; Table::ALL.len()]);

/// The key and the content of a row, unchecked.
pub(super) type Row<'txn> = (&'txn [u8], &'txn [u8]);

/// The rows of a range of a table, in order.
pub(super) type RowsIter<'txn> = heed::RoRange<'txn, Raw, Raw>;

impl Tables {
    /// How many there are, for the options of the environment.
    pub(super) const COUNT: u32 = Table::ALL.len() as u32;

    /// Opens the tables of a state, and makes an empty state in an environment without one.
    pub(super) fn open(env: &lmdb::Env) -> Result<Self, Fault> {
        let tables = Self::open_or_make(env, check_format)?;
        tables.make_empty_state(env)?;
        Ok(tables)
    }

    /// Makes the tables in a new environment, without any row.
    pub(super) fn make(env: &lmdb::Env) -> Result<Self, Fault> {
        Self::open_or_make(env, |_| Err(Fault::corrupt("a new environment already holds a state")))
    }

    /// Opens all tables in one transaction. If there is a format row, `check` sees it before any table is made.
    fn open_or_make(
        env: &lmdb::Env,
        check: impl FnOnce(&[u8]) -> Result<(), Fault>,
    ) -> Result<Self, Fault> {
        let room = env.max_key_size();
        if room < keys::TABLE_KEY_BYTES_MAX {
            return Err(Fault::format(format!(
                "the environment takes keys of {room} bytes, and {} are needed",
                keys::TABLE_KEY_BYTES_MAX
            )));
        }
        let is_new = !lmdb::has_tables(env);
        let opened = env.create_databases_and_commit(env.write_txn()?, |opener, txn| {
            let meta = opener.open_database::<Raw, Raw>(txn, Some(Table::Meta.name()))?;
            if let Some(meta) = meta
                && let Some(row) = meta.get(txn, Format::KEY)?
            {
                check(row)?;
            }
            let mut rows = Vec::with_capacity(Table::ALL.len());
            for table in Table::ALL {
                rows.push(match opener.open_database::<Raw, Raw>(txn, Some(table.name()))? {
                    Some(there) => there,
                    None if is_new => {
                        opener.create_database::<Raw, Raw>(txn, Some(table.name()))?
                    }
                    None => {
                        return Err(Fault::damaged(format!("table {} is missing", table.name())));
                    }
                });
            }
            let rows: [_; Table::ALL.len()] =
                rows.try_into().expect("one was opened for each table");
            Ok::<_, Fault>(CommitOrAbort::<_, ()>::Commit(rows))
        })?;
        Ok(Self(opened.unwrap_commit()))
    }

    /// Writes the first rows of `meta` if there are none. An environment that has other rows already lost them.
    fn make_empty_state(&self, env: &lmdb::Env) -> Result<(), Fault> {
        let mut txn = env.write_txn()?;
        if self.find_meta::<Format>(&txn)?.is_some() {
            self.meta::<Head>(&txn)?;
            return Ok(());
        }
        for table in Table::ALL {
            if !self.rows(table).is_empty(&txn)? {
                return Err(Table::Meta.missing(Format::KEY));
            }
        }
        self.put_meta(&mut txn, &Format::CURRENT)?;
        self.put_meta(&mut txn, &Head::empty())?;
        txn.commit()?;
        Ok(())
    }

    fn rows(&self, table: Table) -> &Rows {
        &self.0[table as usize - 1]
    }

    /// The content of a row, unchecked.
    pub(super) fn raw<'txn>(
        &self,
        txn: &'txn RoTxn<'_>,
        table: Table,
        key: &[u8],
    ) -> Result<Option<&'txn [u8]>, Fault> {
        Ok(self.rows(table).get(txn, key)?)
    }

    /// The rows whose keys lie between the bounds, unchecked.
    pub(super) fn range<'txn>(
        &self,
        txn: &'txn RoTxn<'_>,
        table: Table,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
    ) -> Result<RowsIter<'txn>, Fault> {
        // LMDB cannot seek an empty key; nothing is below it.
        let start = match start {
            Bound::Included([]) => Bound::Unbounded,
            start => start,
        };
        Ok(self.rows(table).range(txn, &(start, end))?)
    }

    /// The first row at or above a key, unchecked.
    pub(super) fn seek<'txn>(
        &self,
        txn: &'txn RoTxn<'_>,
        table: Table,
        key: &[u8],
    ) -> Result<Option<Row<'txn>>, Fault> {
        Ok(self.rows(table).get_greater_than_or_equal_to(txn, key)?)
    }

    /// The last key of a table, unchecked.
    pub(super) fn last<'txn>(
        &self,
        txn: &'txn RoTxn<'_>,
        table: Table,
    ) -> Result<Option<&'txn [u8]>, Fault> {
        Ok(self.rows(table).last(txn)?.map(|(key, _)| key))
    }

    /// How many rows a table has.
    pub(super) fn count(&self, txn: &RoTxn<'_>, table: Table) -> Result<u64, Fault> {
        Ok(self.rows(table).len(txn)?)
    }

    /// How many bytes the pages of a table have.
    pub(super) fn bytes(&self, txn: &RoTxn<'_>, table: Table) -> Result<u64, Fault> {
        let stat = self.rows(table).stat(txn)?;
        let pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        Ok(pages as u64 * u64::from(stat.page_size))
    }

    /// The record under a key.
    pub(super) fn find<R: Record>(&self, txn: &RoTxn<'_>, key: &[u8]) -> Result<Option<R>, Fault> {
        let row = self.raw(txn, R::TABLE, key)?;
        row.map(|row| R::open(key, row)).transpose()
    }

    /// The record under a key that another row points to.
    fn must_find<R: Record>(&self, txn: &RoTxn<'_>, key: &[u8]) -> Result<R, Fault> {
        self.find(txn, key)?.ok_or_else(|| R::TABLE.missing(key))
    }

    /// The change of `key` at a position where something else says there is one.
    pub(super) fn change(
        &self,
        txn: &RoTxn<'_>,
        key: &[u8],
        at: Position,
    ) -> Result<Change, Fault> {
        let row_key = keys::position(at);
        let change: Change = self.must_find(txn, &row_key)?;
        if change.key == key { Ok(change) } else { Err(Table::History.corrupt(key)) }
    }

    /// The large value that a put at a position wrote.
    pub(super) fn large_value(
        &self,
        txn: &RoTxn<'_>,
        key: &[u8],
        at: Position,
    ) -> Result<Bytes, Fault> {
        let row_key = keys::position(at);
        let row = self.raw(txn, Table::Values, &row_key)?;
        let row = row.ok_or_else(|| Table::Values.missing(&row_key))?;
        match LargeValue::peek(content(Table::Values, &row_key, row)?) {
            Some((its, value)) if its == key => Ok(Bytes::copy_from_slice(value)),
            _ => Err(Table::Values.corrupt(&row_key)),
        }
    }

    /// The only record of its kind, which may not be there.
    pub(super) fn find_meta<R: MetaRow>(&self, txn: &RoTxn<'_>) -> Result<Option<R>, Fault> {
        self.find(txn, R::KEY)
    }

    /// The only record of its kind.
    pub(super) fn meta<R: MetaRow>(&self, txn: &RoTxn<'_>) -> Result<R, Fault> {
        self.must_find(txn, R::KEY)
    }

    /// Writes the only record of its kind.
    pub(super) fn put_meta<R: MetaRow>(
        &self,
        txn: &mut RwTxn<'_>,
        record: &R,
    ) -> Result<(), Fault> {
        self.put(txn, R::KEY, record)
    }

    /// Writes a record, over the one that may be there.
    pub(super) fn put<R: Record>(
        &self,
        txn: &mut RwTxn<'_>,
        key: &[u8],
        record: &R,
    ) -> Result<(), Fault> {
        self.put_raw(txn, R::TABLE, key, &record.seal(key))
    }

    /// Writes a row as it is.
    pub(super) fn put_raw(
        &self,
        txn: &mut RwTxn<'_>,
        table: Table,
        key: &[u8],
        row: &[u8],
    ) -> Result<(), Fault> {
        Ok(self.rows(table).put(txn, key, row)?)
    }

    /// Writes a record above all others of its table.
    pub(super) fn append<R: Record>(
        &self,
        txn: &mut RwTxn<'_>,
        key: &[u8],
        record: &R,
    ) -> Result<(), Fault> {
        self.append_raw(txn, R::TABLE, key, &record.seal(key))
    }

    /// Writes a row as it is, above all others of its table.
    pub(super) fn append_raw(
        &self,
        txn: &mut RwTxn<'_>,
        table: Table,
        key: &[u8],
        row: &[u8],
    ) -> Result<(), Fault> {
        match self.rows(table).put_with_flags(txn, PutFlags::APPEND, key, row) {
            // A row of the future: the head that we count from is older than the tables.
            Err(heed::Error::Mdb(heed::MdbError::KeyExist)) => Err(table.corrupt(key)),
            written => Ok(written?),
        }
    }

    /// Removes a row if it is there.
    pub(super) fn remove_if_there(
        &self,
        txn: &mut RwTxn<'_>,
        table: Table,
        key: &[u8],
    ) -> Result<(), Fault> {
        self.rows(table).delete(txn, key)?;
        Ok(())
    }

    /// Removes a row that is there.
    pub(super) fn remove(
        &self,
        txn: &mut RwTxn<'_>,
        table: Table,
        key: &[u8],
    ) -> Result<(), Fault> {
        if self.rows(table).delete(txn, key)? { Ok(()) } else { Err(table.missing(key)) }
    }
}

/// Refuses what a newer version wrote, before anything is changed.
fn check_format(row: &[u8]) -> Result<(), Fault> {
    let found = Format::open(Format::KEY, row)?;
    if found == Format::CURRENT {
        return Ok(());
    }
    Err(Fault::format(format!(
        "the state has schema {} and codec {}, and this program knows {} and {}",
        found.schema,
        found.codec,
        Format::CURRENT.schema,
        Format::CURRENT.codec
    )))
}

/// The rows that begin at a user key range, in a table whose keys are user keys.
pub(super) fn bounds(range: &crate::types::KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = range.end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&**end));
    (Bound::Included(&*range.start), end)
}
