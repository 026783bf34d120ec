//! A state beside the current one: received, or copied, row by row; whole and valid in the end; and then, perhaps, the current
//! one.
//!
//! ```text
//! Draft: chunks ─▶ rows, looked at ─▶ Loaded: whole, valid, on the disk ─▶ CURRENT names it
//!   └ a folder of its own, which goes with it ─────────────────────────────┘ but for this
//! ```
//!
//! Invariant: nothing of it counts before all of it is on the disk, and a name leads to it.

use super::{CLOSING, Counted, LOAD_BYTES};
use crate::error::Fault;
use crate::mvcc::{Generations, LoadError, SnapshotLoader, Store, View};
use bytes::Bytes;
use std::path::PathBuf;

/// A snapshot that is being received.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(super) loader: SnapshotLoader,
    pub(super) folder: DraftFolder,
}

impl Draft {
    pub(super) fn new(folder: DraftFolder, map_bytes: usize) -> Result<Self, Fault> {
        let loader = SnapshotLoader::new(&folder.path, map_bytes)?.gathering(LOAD_BYTES);
        Ok(Self { loader, folder })
    }

    /// The same, before there is a state to be beside of.
    pub(in crate::raft) fn beside(
        generations: &Generations,
        map_bytes: usize,
    ) -> Result<Self, Fault> {
        let folder = DraftFolder { path: generations.draft(), _receiving: None };
        Self::new(folder, map_bytes)
    }

    pub(crate) fn push(&mut self, chunk: &Bytes) -> Result<(), LoadError> {
        self.loader.push(chunk)
    }

    /// Validates the whole of it and makes it durable.
    pub(crate) fn finish(self) -> Result<Loaded, LoadError> {
        Ok(Loaded { store: self.loader.finish()?, folder: self.folder })
    }
}

/// A whole, valid and durable state that is not the current one yet.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(super) store: Store,
    pub(super) folder: DraftFolder,
}

/// A folder that goes away with its owner, unless it has become the current state.
#[derive(Debug)]
pub(super) struct DraftFolder {
    pub(super) path: PathBuf,
    /// If it is for a snapshot.
    pub(super) _receiving: Option<Counted>,
}

impl DraftFolder {
    pub(super) fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }
}

impl Drop for DraftFolder {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // What stays is removed when the node starts again.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

impl Loaded {
    /// Closes it, and makes it the state that the next opening finds.
    pub(in crate::raft) fn become_current(self, generations: &Generations) -> Result<(), Fault> {
        let Self { store, folder } = self;
        if !store.close(CLOSING) {
            return Err(Fault::already_open(&folder.path));
        }
        generations.publish(&folder.keep())
    }

    pub(crate) fn view(&self) -> Result<View, Fault> {
        self.store.view()
    }
}
