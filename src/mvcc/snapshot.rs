//! A whole state as a stream of bytes: how a member that has fallen behind the log, or is new, gets the state.
//!
//! Not a copy of the file: LMDB's pages differ between platforms and versions, and carry what only one member knows. The
//! stream is the rows, sorted, sealed as they are stored, and it is the same on every member at the same log position.
//!
//! ```text
//! header    "QSNP" ++ version: u8
//! row       table: u8 (1 to 9, never falling) ++ key length: u16 ++ key (rising) ++ row length: u32 ++ row
//! trailer   0xff ++ number of rows: u64 ++ crc32c of everything before: u32
//! ```
//!
//! [`SnapshotReader`] is pulled, and holds one [`View`]: log position, membership and data are of one moment. Rows of
//! compacted revisions are left out, also where physical compaction has not come by yet. A row that is not what was written is
//! not passed on: it is the reader's own fault, and is reported as such.
//!
//! [`SnapshotLoader`] is pushed, in pieces cut anywhere, and believes nothing: each row must be of a known table, sealed,
//! legal and above the one before it; the trailer must be right (`unpack.rs`); and the rows must add up to the hash that
//! their own `meta` claims. Only then, and when all of it is on the disk, there is a [`Store`]. Until then the folder is a
//! draft that nobody opens (`generation.rs`).
//!
//! A backup is the same stream behind a header of its own (`backup.rs`).
//!
//! Invariants
//! - the table `meta` comes last, so that a folder that was loaded halfway has no head and does not open;
//! - the loader never holds more than [`LOAD_BYTES`] and one row.

use super::records::{Gone, Record, Table, check_row};
use super::scrub::check_count;
use super::tables::Tables;
use super::unpack::{Refused, Unpacker};
use super::{Store, VERIFIED_BYTES, View, keys, lmdb, open_environment, verify};
use crate::codec::layout::Layout;
use crate::error::{Fault, Reason};
use crate::types::{Revision, limits};
use bytes::{Bytes, BytesMut};
use std::ops::Bound;
use std::path::Path;

pub(super) const MAGIC: &[u8; 4] = b"QSNP";
pub(super) const VERSION: u8 = 4;
pub(super) const HEADER_BYTES: usize = MAGIC.len() + 1;
/// Stands where a row's table would.
pub(super) const TRAILER: u8 = 0xff;
pub(super) const TRAILER_BYTES: usize = 1 + 8 + 4;
pub(super) const ROW_HEADER_BYTES: usize = 1 + 2;
/// The largest row: a change carries two images, a value row one value and its key. Membership lists fit as well.
pub(super) const ROW_BYTES_MAX: usize = 2 * limits::VALUE_BYTES_MAX;
/// How much the loader gathers for one write transaction.
pub(super) const LOAD_BYTES: usize = 8 * 1024 * 1024;

/// Reads a state as a stream. Holds a [`View`]: a reader that is not pulled keeps the file growing.
#[derive(Debug)]
pub(crate) struct SnapshotReader {
    view: View,
    /// What comes after the bytes that are ready.
    next: Next,
    ready: BytesMut,
    rows: u64,
    /// Of everything that became ready so far.
    sum: u32,
}

#[derive(Debug)]
enum Next {
    /// The rows of a table after a key, which so many were up to.
    Rows(usize, Bound<Vec<u8>>, u64),
    Trailer,
    Nothing,
}

impl SnapshotReader {
    /// A reader of a view of what is flushed: only rows travel.
    pub(crate) fn new(view: View) -> Self {
        assert!(view.is_settled(), "a snapshot is of what is in the tables");
        let mut ready = BytesMut::from(&MAGIC[..]);
        ready.extend_from_slice(&[VERSION]);
        let sum = crc32c::crc32c(&ready);
        Self { view, next: Next::Rows(0, Bound::Unbounded, 0), ready, rows: 0, sum }
    }

    /// The next piece, of `bytes_max` bytes but for the last; none when there is no more.
    pub(crate) fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, Fault> {
        assert!(bytes_max > 0, "a piece has at least one byte");
        while self.ready.len() < bytes_max {
            match std::mem::replace(&mut self.next, Next::Nothing) {
                Next::Rows(table, after, seen) => {
                    self.next = self.read_rows(table, &after, seen, bytes_max)?;
                }
                Next::Trailer => self.write_trailer(),
                Next::Nothing => break,
            }
        }
        let length = self.ready.len().min(bytes_max);
        Ok((length > 0).then(|| self.ready.split_to(length).freeze()))
    }

    /// Makes rows ready until there are `bytes_max` bytes or the table ends; returns what comes next.
    fn read_rows(
        &mut self,
        index: usize,
        after: &Bound<Vec<u8>>,
        mut seen: u64,
        bytes_max: usize,
    ) -> Result<Next, Fault> {
        let Some(table) = Table::ALL.get(index).copied() else { return Ok(Next::Trailer) };
        let Self { view, ready, rows, sum, .. } = self;
        let state = view.reader();
        let start = after.as_ref().map(|key| &key[..]);
        for row in state.tables.range(state.txn, table, start, Bound::Unbounded)? {
            let (key, row) = row?;
            seen += 1;
            if !is_needed(view, table, key, row)? {
                continue;
            }
            // Whoever gets it would refuse it, and this member would never hear that its disk has failed it.
            check_row(table, key, row)?;
            let begin = ready.len();
            write_row(table, key, row, ready);
            *sum = crc32c::crc32c_append(*sum, &ready[begin..]);
            *rows += 1;
            if ready.len() >= bytes_max {
                return Ok(Next::Rows(index, Bound::Excluded(key.to_vec()), seen));
            }
        }
        // Nor would anybody hear of those that were passed over.
        check_count(&state, table, seen)?;
        Ok(Next::Rows(index + 1, Bound::Unbounded, 0))
    }

    fn write_trailer(&mut self) {
        let mut trailer = vec![TRAILER];
        self.rows.write(&mut trailer);
        crc32c::crc32c_append(self.sum, &trailer).write(&mut trailer);
        self.ready.extend_from_slice(&trailer);
    }
}

/// Whether a row belongs to the state, and does not merely wait for physical compaction.
fn is_needed(view: &View, table: Table, key: &[u8], row: &[u8]) -> Result<bool, Fault> {
    let kept = view.compact_revision();
    match table {
        Table::Events => {
            let at = keys::parse_position(key).ok_or_else(|| table.corrupt(key))?;
            Ok(at.revision >= kept)
        }
        Table::History => {
            let (_, at) = keys::parse_history(key).ok_or_else(|| table.corrupt(key))?;
            Ok(at.revision >= kept)
        }
        Table::Values => {
            let at = keys::parse_position(key).ok_or_else(|| table.corrupt(key))?;
            let Some(before) = kept.get().checked_sub(1).filter(|_| at.revision < kept) else {
                // Whatever replaced it came later still.
                return Ok(true);
            };
            // What history begins with: then what comes after remembers it, or it is there still.
            let value = super::records::LargeValue::open(key, row)?;
            let image = view.reader().image_at(&value.key, Revision::from(before))?;
            Ok(image.is_some_and(|image| image.modified == at))
        }
        Table::Gone => Ok(Gone::open(key, row)?.at.revision >= kept),
        Table::Latest | Table::Leases | Table::Attachments | Table::Dedup | Table::Meta => Ok(true),
    }
}

fn write_row(table: Table, key: &[u8], row: &[u8], out: &mut BytesMut) {
    let key_length = u16::try_from(key.len()).expect("LMDB keys are short");
    let row_length = u32::try_from(row.len()).expect("limits keep rows below 4 GiB");
    out.reserve(ROW_HEADER_BYTES + key.len() + 4 + row.len());
    out.extend_from_slice(&[table as u8]);
    out.extend_from_slice(&key_length.to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(&row_length.to_be_bytes());
    out.extend_from_slice(row);
}

/// What is said of a snapshot that is not damaged, and cannot be read all the same.
pub(crate) const ANOTHER_VERSION: &str =
    "the snapshot is of a version that this program does not know";

/// Why a snapshot was not loaded.
#[derive(Clone, Debug)]
pub(crate) enum LoadError {
    /// The stream is not what a reader wrote. The sender, or the way, is to blame; this member is well.
    Malformed(&'static str),
    /// This member's disk.
    Fault(Fault),
}

impl From<Fault> for LoadError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Refused> for LoadError {
    fn from(refused: Refused) -> Self {
        Self::Malformed(match refused {
            Refused::Version(_) => ANOTHER_VERSION,
            Refused::Damaged { what, .. } => what,
        })
    }
}

impl From<LoadError> for Fault {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Malformed(what) => {
                Self::from_reason(Reason::Malformed { what: what.into() })
            }
            LoadError::Fault(fault) => fault,
        }
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Fault::from(self.clone()).fmt(f)
    }
}

impl std::error::Error for LoadError {}

/// Loads a stream into a new environment. After an error it is of no use, and its folder is rubbish.
pub(crate) struct SnapshotLoader {
    env: lmdb::Env,
    tables: Tables,
    stream: Unpacker,
    /// How much is gathered for one write transaction.
    gathers: usize,
}

impl std::fmt::Debug for SnapshotLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows = self.stream.rows();
        f.debug_struct("SnapshotLoader").field("rows", &rows).finish_non_exhaustive()
    }
}

impl SnapshotLoader {
    /// Begins in a folder that holds no state.
    pub(crate) fn new(folder: &Path, map_bytes: usize) -> Result<Self, Fault> {
        Self::new_with(folder, map_bytes, lmdb::Sync::LastCommitMayBeLost)
    }

    pub(super) fn new_with(
        folder: &Path,
        map_bytes: usize,
        sync: lmdb::Sync,
    ) -> Result<Self, Fault> {
        let env = open_environment(folder, map_bytes, sync)?;
        let tables = Tables::make(&env)?;
        Ok(Self { env, tables, stream: Unpacker::new(), gathers: LOAD_BYTES })
    }

    /// Writes whatever has come to so many bytes, for one that shares its disk with others who wait for it.
    pub(crate) fn gathering(self, bytes: usize) -> Self {
        assert!((1..=LOAD_BYTES).contains(&bytes), "what is gathered is bounded");
        Self { gathers: bytes, ..self }
    }

    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, chunk: &Bytes) -> Result<(), LoadError> {
        // A chunk may be of any size; what is held is not.
        for part in chunk.chunks(LOAD_BYTES) {
            self.stream.push(part);
            if self.stream.waiting() >= self.gathers {
                self.load().map_err(of_draft)?;
            }
        }
        Ok(())
    }

    /// The store, if the stream was whole and everything in it is right. It then survives a loss of power.
    pub(crate) fn finish(self) -> Result<Store, LoadError> {
        self.try_finish().map_err(of_draft)
    }

    fn try_finish(mut self) -> Result<Store, LoadError> {
        self.load()?;
        self.stream.finish()?;
        let Self { env, tables, .. } = self;
        let store = Store::of(env, tables);
        let view = match store.view() {
            Ok(view) => view,
            Err(_) => return Err(LoadError::Malformed("the snapshot has no head")),
        };
        check_sums(&view, store.bytes()? <= VERIFIED_BYTES)?;
        drop(view);
        store.force_sync()?;
        Ok(store)
    }

    /// Takes apart what was pushed, and writes it in one transaction.
    pub(super) fn load(&mut self) -> Result<(), LoadError> {
        let mut txn = self.env.write_txn().map_err(Fault::from)?;
        while let Some(row) = self.stream.next()? {
            self.tables.append_raw(&mut txn, row.table, &row.key, &row.row)?;
        }
        txn.commit().map_err(Fault::from)?;
        Ok(())
    }
}

/// A draft whose file fails its member says nothing of the state that this has.
fn of_draft(error: LoadError) -> LoadError {
    match error {
        LoadError::Fault(fault) => LoadError::Fault(fault.elsewhere()),
        malformed @ LoadError::Malformed(_) => malformed,
    }
}

/// The rows add up to the hash of the head that came with them, and those that carry no checksum of their own fit the
/// others: a member must not pass its rotten bits on.
///
/// A small state is verified at every start, so one that would not pass then must not be taken now.
pub(super) fn check_sums(view: &View, is_small: bool) -> Result<(), LoadError> {
    const WHAT: &str = "the rows of the snapshot do not belong together";
    let wrong = |_| LoadError::Malformed(WHAT);
    if is_small {
        return view.verify().map_err(wrong);
    }
    verify::check_links(view).map_err(wrong)?;
    let hash = view.recompute_hash().map_err(wrong)?;
    if hash == view.hash() { Ok(()) } else { Err(LoadError::Malformed(WHAT)) }
}
