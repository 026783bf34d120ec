//! The state machine: keys with their history, leases, and the rules by which a command changes them.
//!
//! A pure core. [`Core::apply`] turns log entries into a new state; a [`View`] is a state, and answers questions about it.
//! Nothing here waits, reads a clock, throws dice or knows of other members, and that is why all members agree.
//!
//! ```text
//!              entries                                               ┌─ query: ranges, transactions that only read
//! raft ────────────────▶ Core::apply ──▶ overlay ──▶ Moment ─▶ View ─┼─ events: one step of a watch
//!        ◀── Batch: outcomes,               │ Flush                  ├─ lease, leases
//!            touched keys                   ▼ now and then           └─ snapshot, hash
//!                                         LMDB
//! ```
//!
//! History has revisions: an empty group is at 1, and each command that changes a key makes the next one. The present
//! is stored as it is, the past as *changes that remember what they replaced*:
//!
//! ```text
//! put a=1   revision 2    ev[2.0] = put a "1", before it nothing     latest[a] = "1" {created 2, modified 2, version 1}
//! put a=2   revision 3    ev[3.0] = put a "2", before it "1" of 2.0  latest[a] = "2" {created 2, modified 3, version 2}
//! del a     revision 4    ev[4.0] = del a,     before it "2" of 3.0  latest[a]   –      gone[a] = 4.0
//! ```
//!
//! So reading the present costs one lookup however long the history is; a watch reads `ev` onwards and has previous
//! values for free; the past is read through the first change after it (`read.rs`); and history is forgotten by deleting
//! rows from its front (`compact.rs`).
//!
//! Invariants
//! - data, revision, log position, membership, leases, kept answers and hash change together, in memory and on the disk;
//! - a rejection ([`Reason`]) is an answer, the same on every member, and has changed nothing but the log position, and what
//!   is kept for the client that is answered;
//!   a [`Fault`] is this member's own, has changed nothing at all, and stops the node;
//! - revisions only grow and have no holes; nobody ever sees part of one;
//! - no answer depends on what only this member knows: how far it has compacted, when it was started.
//!
//! What is in which file: `keys` and `records` are the format, `tables` moves rows, `overlay` is what is in memory and
//! `flush` writes it down, `plan`, `apply`, `lease`, `dedup` and `compact` are the rules for writes, `view`, `read`, `chain`, `page`
//! and `events` those for reads, `hash`, `scrub` and `verify` compare and check, `snapshot` and `unpack` move a whole state to another
//! member, `backup` and `restore` to another group, and `generation` keeps several of them apart on the disk.

mod apply;
mod backup;
mod budget;
mod chain;
mod compact;
mod dedup;
mod events;
mod flush;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod generation;
mod hash;
mod keys;
mod lease;
mod overlay;
mod page;
mod plan;
mod read;
mod records;
mod restore;
mod scrub;
mod snapshot;
mod tables;
#[cfg(any(test, feature = "fuzz"))]
mod tape;
mod unpack;
mod verify;
mod view;

pub(crate) use apply::Core;
pub(crate) use backup::{BackupReader, Inspector, Origin};
pub(crate) use events::Events;
pub(crate) use flush::Flush;
pub(crate) use generation::{Generations, Restoring};
pub(crate) use hash::HASH_FORMAT;
pub(crate) use lease::KEY_BYTES;
pub(crate) use overlay::{Moment, Recent};
pub(crate) use restore::Restorer;
pub(crate) use scrub::Scrub;
pub(crate) use snapshot::{ANOTHER_VERSION, LoadError, SnapshotLoader, SnapshotReader};
pub(crate) use view::{View, read};

use crate::api::{Applied, Command, Position, Proposal};
use crate::codec::layout::layout;
use crate::error::{Fault, Reason};
use crate::lmdb;
use crate::types::{LeaseId, OpKind, Revision, TxnOp};
use bytes::Bytes;
use records::{Head, Membership, Table};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tables::Tables;

/// States up to this size are checked as a whole when they are opened or received. A checksum tells a row that has
/// changed; a row that is not found any more, because its key or the way to it has changed, is only told by all others.
pub(crate) const VERIFIED_BYTES: u64 = 32 << 20;

/// How many views there may be at once.
const VIEWS_MAX: u32 = 1024;
/// Read transactions beside them: of those who write, of an opening, of a check.
const READERS_SPARE: u32 = 16;

/// A position in the log. All that this module knows of consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogPosition {
    pub(crate) term: u64,
    /// The leader that proposed the entry.
    pub(crate) node: u64,
    pub(crate) index: u64,
}
layout!(struct LogPosition { term, node, index });

/// An entry of the log.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) position: LogPosition,
    pub(crate) body: Body,
}

impl Entry {
    /// Whether it may change many more keys than it has bytes: it deletes a range, or what leases hold.
    pub(crate) fn is_wide(&self) -> bool {
        match &self.body {
            Body::Command(proposal) => match &proposal.command {
                Command::Txn(txn) => deletes_ranges(txn),
                Command::Revoke(_) | Command::Expire { .. } => true,
                _ => false,
            },
            Body::Blank | Body::Membership(_) => false,
        }
    }
}

fn deletes_ranges(txn: &TxnOp) -> bool {
    txn.then.iter().chain(&txn.otherwise).any(|op| match &op.0 {
        OpKind::Delete(delete) => delete.range.as_key().is_none(),
        OpKind::Txn(nested) => deletes_ranges(nested),
        OpKind::Put(_) | OpKind::Get(_) | OpKind::Range(_) => false,
    })
}

/// What an [`Entry`] carries.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Nothing: a new leader's first word.
    Blank,
    Command(Arc<Proposal>),
    /// The members of the group, in the words of the consensus layer.
    Membership(Bytes),
}

/// What applying a command came to. Equal on all members.
pub(crate) type Outcome = Result<Applied, Reason>;

/// What one call of [`Core::apply`] did.
#[derive(Debug)]
pub(crate) struct Batch {
    /// One for each entry; none for those without a command.
    pub(crate) outcomes: Vec<Option<Outcome>>,
    /// The newest revision.
    pub(crate) revision: Revision,
    /// Every key that changed, in order: whom to wake.
    pub(crate) touched: Vec<(Revision, Bytes)>,
    /// What became of leases, in order: for the leader, who counts their time.
    pub(crate) leases: Vec<LeaseChange>,
    /// The revision below which there is no history any more, if it has moved.
    pub(crate) compacted: Option<Revision>,
    /// The hash after each entry whose index is a multiple of [`MARK_EVERY`].
    pub(crate) marks: Vec<Mark>,
}

/// After how many entries the hash is noted down, for members to compare. A mark costs a hash of a hundred bytes.
pub(crate) const MARK_EVERY: u64 = 16;

/// The hash of the state after the entry at an index of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) index: u64,
    pub(crate) hash: u128,
}
layout!(struct Mark { index, hash });

/// What became of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseChange {
    Granted { id: LeaseId, ttl: Duration },
    Ended { id: LeaseId },
}

/// A state on the disk. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    env: lmdb::Env,
    tables: Tables,
    newest: view::Newest,
    views: Arc<AtomicU32>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("folder", &self.env.path()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the state in a folder, or makes an empty one.
    pub(crate) fn open(folder: &Path, map_bytes: usize) -> Result<Self, Fault> {
        Self::open_with(folder, map_bytes, lmdb::Sync::LastCommitMayBeLost)
    }

    pub(crate) fn open_with(
        folder: &Path,
        map_bytes: usize,
        sync: lmdb::Sync,
    ) -> Result<Self, Fault> {
        let env = open_environment(folder, map_bytes, sync)?;
        let tables = Tables::open(&env)?;
        Ok(Self::of(env, tables))
    }

    fn of(env: lmdb::Env, tables: Tables) -> Self {
        let (newest, views) = (view::Newest::default(), Arc::default());
        Self { env, tables, newest, views }
    }

    /// Applies entries, and has them in the tables when it returns: without what makes it fast, and so what that is held
    /// against.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn apply(&self, entries: &[Entry]) -> Result<Batch, Fault> {
        let mut core = Core::new(self.clone(), 0)?;
        let batch = core.apply(entries)?;
        core.freeze().map_or(Ok(()), |flush| flush.write())?;
        Ok(batch)
    }

    /// Whether both are the same tables. No folder of a state gets its name twice while a node lives.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.env.path() == other.env.path()
    }

    /// Whether both stand for the same moment: heads, members, the number of rows of the present, and the end of history. How
    /// much of its beginning waits to be removed is each one's own.
    pub(crate) fn stands_where(&self, other: &Self) -> Result<bool, Fault> {
        Ok(self.read_head()? == other.read_head()? && self.outline()? == other.outline()?)
    }

    fn outline(&self) -> Result<(Vec<u64>, Option<Position>), Fault> {
        const PRESENT: [Table; 4] =
            [Table::Latest, Table::Leases, Table::Attachments, Table::Dedup];
        let txn = self.writers_txn()?;
        let rows = PRESENT.into_iter().map(|table| self.tables.count(&txn, table));
        let rows = rows.collect::<Result<_, Fault>>()?;
        let head: Head = self.tables.meta(&txn)?;
        let newest = self.tables.last(&txn, Table::Events)?.and_then(keys::parse_position);
        Ok((rows, newest.filter(|at| at.revision >= head.compact_revision)))
    }

    /// How many bytes its file has, and how many of them no row needs: LMDB uses them again, and never gives them back.
    pub(crate) fn free(&self) -> Result<(u64, u64), Fault> {
        let (bytes, used) = (self.bytes()?, self.bytes_of_rows(&self.env.read_txn()?)?);
        Ok((bytes, bytes.saturating_sub(used)))
    }

    fn bytes_of_rows(&self, txn: &lmdb::ReadTxn<'_>) -> Result<u64, Fault> {
        Table::ALL.into_iter().map(|table| self.tables.bytes(txn, table)).sum()
    }

    /// Deletes up to `rows_max` rows of history that are compacted away. Returns whether none is left. Only the state's
    /// one writer thread may call this; between two flushes, so that neither waits long for the other.
    pub(crate) fn compact_step(&self, rows_max: usize) -> Result<bool, Fault> {
        compact::step(&self.env, self.tables, rows_max)
    }

    /// All of its pages are about to be read, as long as what this returns is there.
    pub(crate) fn walk(&self) -> lmdb::Walk {
        lmdb::walk(&self.env)
    }

    /// Returns when everything flushed survives a loss of power.
    pub(crate) fn force_sync(&self) -> Result<(), Fault> {
        Ok(self.env.force_sync()?)
    }

    /// The size of its file.
    pub(crate) fn bytes(&self) -> Result<u64, Fault> {
        Ok(self.env.real_disk_size()?)
    }

    /// How many bytes its file can have. It may be less than was asked for.
    pub(crate) fn map_bytes(&self) -> u64 {
        self.env.info().map_size as u64
    }

    /// Commits what there is once more, for a start: the page that names the last commit may be in memory only, if a flush
    /// that was to write it failed, and another flush would not look at it. Only the state's one writer thread may call this.
    pub(crate) fn commit_again(&self) -> Result<(), Fault> {
        let mut txn = self.env.write_txn()?;
        let head: Head = self.tables.meta(&txn)?;
        self.tables.put_meta(&mut txn, &head)?;
        Ok(txn.commit()?)
    }

    /// How many bytes of it are in use, about. What was deleted is not, and is used again before the file grows.
    ///
    /// If all history but the last revision is forgotten, what that replaced does not count: it cannot go before there is
    /// another one, and if it is too much there would never be.
    pub(crate) fn bytes_in_use(&self) -> Result<u64, Fault> {
        let txn = self.env.read_txn()?;
        let pages = self.bytes_of_rows(&txn)?;
        let head: Head = self.tables.meta(&txn)?;
        let held = match head.compact_revision == head.revision {
            true => compact::bytes_held(&txn, self.tables, head.revision)?,
            false => 0,
        };
        Ok(pages.saturating_sub(held))
    }

    /// How many write transactions there have been.
    #[cfg(test)]
    pub(crate) fn commits(&self) -> usize {
        self.env.info().last_txn_id
    }

    /// Where the tables stand.
    fn read_head(&self) -> Result<(Head, Option<Membership>), Fault> {
        let txn = self.writers_txn()?;
        Ok((self.tables.meta(&txn)?, self.tables.find_meta(&txn)?))
    }

    /// A read transaction for those who write: there is always one for them.
    fn writers_txn(&self) -> Result<lmdb::ReadTxn<'_>, Fault> {
        Ok(self.env.read_txn()?)
    }

    fn permit(&self) -> Result<Permit, Fault> {
        let permit = Permit(Arc::clone(&self.views));
        if self.views.fetch_add(1, Ordering::Relaxed) < VIEWS_MAX {
            return Ok(permit);
        }
        Err(Fault::from_reason(Reason::TooManyRequests))
    }

    /// What is flushed, which stays as it is while others write.
    pub(crate) fn view(&self) -> Result<View, Fault> {
        View::open(|| {
            let (head, membership) = self.read_head()?;
            Ok(Arc::new(Moment::settled(self.clone(), head, membership)))
        })
    }

    /// Waits until no clone of the store and no view is left, so that its folder can be opened again. Returns whether
    /// that happened within `limit`.
    pub(crate) fn close(self, limit: Duration) -> bool {
        lmdb::close(self.env, limit)
    }
}

/// One of the views that there may be.
struct Permit(Arc<AtomicU32>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn open_environment(folder: &Path, map_bytes: usize, sync: lmdb::Sync) -> Result<lmdb::Env, Fault> {
    let options = lmdb::Options {
        map_bytes,
        tables: Tables::COUNT,
        readers: VIEWS_MAX + READERS_SPARE,
        sync,
    };
    lmdb::open(folder, options)
}

/// Why something was not done, while both kinds of "no" travel the same way. Taken apart by [`split`] at the border.
enum Stop {
    Rejected(Reason),
    Failed(Fault),
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Rejected(reason)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// Tells an answer of the group from a failure of this member.
fn split<T>(result: Result<T, Stop>) -> Result<Result<T, Reason>, Fault> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Stop::Rejected(reason)) => Ok(Err(reason)),
        Err(Stop::Failed(fault)) => Err(fault),
    }
}

#[cfg(test)]
mod tests;
