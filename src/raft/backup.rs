//! Backups on the disk side: out of a running member, and into the folder of one that was not founded yet.
//!
//! ```text
//! member: flushed ─▶ view ─▶ BackupReader ─▶ pieces ····▶ whoever wants them          beside the async tasks
//!
//! file ─▶ Inspector ─▶ what is in it                                                  on a thread of its own
//!      └▶ Restorer ──▶ folder/state-000002, CURRENT                                   under the lock of the folder
//! ```
//!
//! A restore is done offline, in the folder of each founder: see `DESIGN.md`. Nothing here needs a runtime; who calls it
//! waits for the disk, and says from time to time whether it is to go on.
//!
//! Invariant: what ends before its time leaves a folder that is empty, or that is refused and can be restored into again.

use super::member::Shared;
use super::network::can_be_spared;
use crate::error::{Error, Fault, Reason};
use crate::lmdb::FolderLock;
pub(crate) use crate::mvcc::BackupReader;
use crate::mvcc::{Generations, Inspector, Origin, Restorer, Restoring};
use crate::types::{BackupInfo, Restored};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

/// How much of a file is read at once, and written in one transaction.
const READ_BYTES: usize = 4 << 20;
/// How long the state may take to be closed. Nobody reads it.
const CLOSING: Duration = Duration::from_secs(10);

impl Shared {
    /// Begins a backup of all that is applied by now.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(crate) async fn backup(&self) -> Result<BackupReader, Error> {
        let origin = Origin { group: self.identity.group, name: self.desk.name() };
        let view = self.state.flushed_view().await.map_err(|fault| self.state.fail(fault))?;
        Ok(BackupReader::new(view, &origin)?)
    }

    /// The next piece of a backup. Blocks.
    pub(crate) fn read_backup(
        &self,
        reader: &mut BackupReader,
        bytes_max: usize,
    ) -> Result<Option<Bytes>, Error> {
        reader.next_chunk(bytes_max).map_err(|fault| self.cannot_read(fault))
    }

    /// What was read, if it was all right.
    pub(crate) fn end_backup(&self, reader: BackupReader) -> Result<BackupInfo, Error> {
        reader.finish().map_err(|fault| self.cannot_read(fault))
    }

    /// Rows that are damaged are this member's end, unless the group has no majority without it: all that it has goes on as well
    /// as it can, and only whoever wants all of the rows is refused.
    fn cannot_read(&self, fault: Fault) -> Error {
        if !fault.is_of_tables() || can_be_spared(&self.membership(), 1) {
            return self.state.fail(fault);
        }
        self.state.doubt();
        fault.into()
    }
}

/// Refuses a folder into which a backup was restored only in part.
pub(crate) fn check_restored(folder: &Path) -> Result<(), Error> {
    Ok(Generations::check_restored(folder)?)
}

/// Verifies a backup, and says what it holds. Blocks, for as long as it may `go_on`.
pub(crate) fn inspect(path: &Path, go_on: &dyn Fn() -> bool) -> Result<BackupInfo, Error> {
    let mut inspector = Inspector::new();
    read(open(path)?, path, go_on, |chunk| inspector.inspect(chunk))?;
    Ok(inspector.info()?)
}

/// Restores a backup into a folder, with revisions that go on `bump` above. Blocks, for as long as it may `go_on`.
pub(crate) fn restore(
    path: &Path,
    folder: &Path,
    bump: u64,
    map_bytes: usize,
    go_on: &dyn Fn() -> bool,
) -> Result<Restored, Error> {
    let file = open(path)?;
    let _lock = FolderLock::take(folder)?;
    let restoring = Restoring::begin(folder)?;
    let state = restoring.state();
    let restorer = Restorer::new(&state, map_bytes, bump);
    let loaded = restorer.and_then(|mut restorer| {
        read(file, path, go_on, |chunk| restorer.push(chunk))?;
        finish(restorer, &state)
    });
    match loaded {
        Ok(restored) => {
            restoring.publish()?;
            Ok(restored)
        }
        Err(fault) => {
            restoring.abandon();
            Err(fault.into())
        }
    }
}

/// Makes the state whole, and closes it.
fn finish(restorer: Restorer, state: &Path) -> Result<Restored, Fault> {
    let (store, backup) = restorer.finish()?;
    let view = store.view()?;
    let restored = Restored { backup, revision: view.revision(), state_hash: view.hash() };
    drop(view);
    if store.close(CLOSING) { Ok(restored) } else { Err(Fault::already_open(state)) }
}

fn unreadable(path: &Path, error: io::Error) -> Fault {
    Fault::disk(format!("cannot read {}", path.display()), error)
}

fn open(path: &Path) -> Result<File, Fault> {
    File::open(path).map_err(|error| unreadable(path, error))
}

/// Reads a file in pieces.
fn read(
    mut file: File,
    path: &Path,
    go_on: &dyn Fn() -> bool,
    mut take: impl FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if !go_on() {
            return Err(Fault::from_reason(Reason::Closed));
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => take(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(path, error)),
        }
    }
}
