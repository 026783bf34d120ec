//! What a member believes about the state: rows, snapshots, files and commands, for [`mod@crate::fuzz`].
//!
//! ```text
//! tables      table: u8 ++ how: u8 (1: sealed here) ++ key length: u16 ++ key ++ row     one row, alone
//! snapshot    how: u8 (bit 0: sums put right; the rest: where it is cut) ++ a stream     a state from a member that lies
//! backup      how: u8 (bit 0: sums put right; the rest: where it is cut) ++ a backup     a file that somebody restores
//! apply       how: u8 (bit 0: a tape, else proposals; the rest: how many at once) ++ …   a log that was agreed on
//! lmdb_file   which: u8 ++ patches: how: u8, place: u24, bytes                           a file from a disk that rots
//! ```
//!
//! Each state is made in the same folder, emptied before.

mod apply;
mod backup;
mod file;
mod snapshot;
mod tables;

pub(crate) use apply::apply;
pub(crate) use backup::backup;
pub(crate) use file::lmdb_file;
pub(crate) use snapshot::snapshot;
pub(crate) use tables::tables;

#[cfg(test)]
pub(super) use snapshot::{repaired, rows as rows_of, written as stream_of_rows};

use super::{Store, View};
use crate::lmdb::Sync;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Address space for a state. More than any input fills.
const MAP_BYTES: usize = 64 << 20;

/// Where a state goes; what was there is gone.
fn emptied(folder: &Path) -> PathBuf {
    let state = folder.join("state");
    for file in ["data.mdb", "lock.mdb"] {
        let removed = fs::remove_file(state.join(file));
        let is_gone = removed.is_ok() || !state.join(file).exists();
        assert!(is_gone, "the last state is in the way: {removed:?}");
    }
    state
}

fn open(folder: &Path) -> Store {
    Store::open_with(folder, MAP_BYTES, Sync::Never).expect("an empty folder takes a state")
}

fn view(store: &Store) -> View {
    store.view().expect("nobody else reads")
}

/// Closes a state, so that its folder can be used again.
fn close(store: Store) {
    assert!(store.close(Duration::from_secs(10)), "something keeps the state open");
}

/// What these targets begin with: the name of each input, and the input.
#[cfg(test)]
pub(crate) mod seeds {
    pub(crate) use super::apply::seeds as apply;
    pub(crate) use super::backup::seeds as backup;
    pub(crate) use super::file::seeds as lmdb_file;
    pub(crate) use super::snapshot::seeds as snapshot;
    pub(crate) use super::tables::seeds as tables;
}
