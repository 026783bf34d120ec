//! Backups for the application: from a running node, and into the folders of a new group.
//!
//! ```text
//! node.backup(writer)  ─▶  file  ─▶  Backup::inspect(file)
//!                           │
//!                           └─▶  Backup::restore(file, folder)  on each founder  ─▶  Node::builder(folder).form(…)
//! ```
//!
//! What is read from a disk is read beside the async tasks: of the node, for a backup; on a thread of its own otherwise, so
//! that it works on any executor.

use super::builder::STATE_MAP_BYTES;
use super::{Node, unless_failed};
use crate::error::{Error, Fault, Result};
use crate::raft::backup::{self, BackupReader};
use crate::raft::{aside, member::Shared};
use crate::types::{BackupInfo, Restored};
use bytes::Bytes;
use futures::future::{Either, select};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::sleep;

/// How much of a backup is in memory at once.
const CHUNK_BYTES: usize = 512 << 10;
/// How long a writer may take for that much. The pages of the backup's moment are kept for it.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

impl Node {
    /// Writes a backup of this member's state: keys, leases and history, as they were at one moment.
    ///
    /// It has all that this member had applied when it was called, perhaps more, and nothing in part. It asks nobody, so
    /// that the last member of a group that has lost its majority can be backed up too. A member that lags behind makes a
    /// backup that lags behind: with [`ready`](Self::ready) before it, it has every write that was acknowledged until then.
    ///
    /// Nothing waits for it: neither writes nor heartbeats. But as long as it goes on the disk keeps the pages of its moment,
    /// and the state's file grows by what is written meanwhile; so do not send it through a slow connection, but to a file
    /// first. It takes about a megabyte of memory, and the largest value.
    ///
    /// The writer is flushed in the end, and not synced: a file that has to survive a loss of power needs a `sync_all`. What
    /// was written is verified on the way, so that a disk that lies is noticed now.
    ///
    /// # Errors
    ///
    /// If the writer fails, with its error as the source, or takes more than a minute for half a mebibyte (one that is only
    /// slow is waited for, while the file of the state grows by what is written meanwhile); if this member has failed, or
    /// does so now because its disk does;
    /// [`ErrorKind::Overloaded`](crate::ErrorKind::Overloaded) if there are a thousand readers. What was written is of no use
    /// then, and is refused when it is read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves a backup without an end, which is refused when it is read. At the last moment it may be
    /// whole.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("backup");
    /// # let node = quorate::Node::builder(folder.path().join("data")).solo().await?;
    /// node.client().put("greeting", "hello").await?;
    ///
    /// let mut file = tokio::fs::File::create(&path).await?;
    /// let info = node.backup(&mut file).await?;
    /// file.sync_all().await?;
    /// assert_eq!(info.keys, 1);
    /// # Ok(()) }
    /// ```
    pub async fn backup(&self, writer: impl AsyncWrite + Unpin + Send) -> Result<BackupInfo> {
        self.backup_within(WRITE_PATIENCE, writer).await
    }

    pub(super) async fn backup_within(
        &self,
        patience: Duration,
        mut writer: impl AsyncWrite + Unpin + Send,
    ) -> Result<BackupInfo> {
        let (shared, failed) = (Arc::clone(self.shared()), self.running().member.failed());
        let begun = async move { unless_failed(failed, shared.backup()).await };
        let mut reader = self.runtime.run(begun).await?;
        loop {
            // Whoever waits here has an executor of its own, which need not be one of tokio's.
            let read = self.runtime.run(read(Arc::clone(self.shared()), reader));
            let chunk;
            (reader, chunk) = read.await?;
            match chunk {
                Some(chunk) => self.written(patience, writer.write_all(&chunk)).await?,
                None => break,
            }
        }
        let info = self.shared().end_backup(reader)?;
        writer.flush().await.map_err(not_written)?;
        Ok(info)
    }

    /// Waits until something was written, and not for ever.
    async fn written(
        &self,
        patience: Duration,
        writing: impl Future<Output = io::Result<()>>,
    ) -> Result<()> {
        // The executor of whoever waits here may have no timers.
        let late = self.runtime.run(async move {
            sleep(patience).await;
            Ok(())
        });
        let written = match select(pin!(writing), pin!(late)).await {
            Either::Left((written, _)) => written,
            Either::Right((ended, _)) => {
                ended?;
                Err(io::Error::new(io::ErrorKind::TimedOut, "its writer takes nothing"))
            }
        };
        written.map_err(not_written)
    }
}

fn not_written(error: io::Error) -> Error {
    Fault::disk("cannot write the backup", error).into()
}

/// Reads the next piece, beside the node's tasks.
async fn read(
    shared: Arc<Shared>,
    mut reader: BackupReader,
) -> Result<(BackupReader, Option<Bytes>)> {
    let read = aside(move || {
        let chunk = shared.read_backup(&mut reader, CHUNK_BYTES)?;
        Ok((reader, chunk))
    });
    read.await?
}

/// What can be done with a backup, once it is a file: look at it, and make a new group of it.
///
/// Restoring is done offline, in the folder of each founder, before the first start:
///
/// 1. [`Backup::restore`] the same file into an empty folder on each host;
/// 2. start every founder with [`Node::builder`] on its folder, and [`form`](crate::NodeBuilder::form) as always.
///
/// The group that they found is a new one, with an id and a log of its own. It has the keys with their values and all that
/// is said of them (revisions, version, lease), and the leases, which get their full time when it has its first leader. It has
/// no history: its first revision is above all of the old group's, and whoever asks for an earlier one is told that it was
/// [compacted](crate::Reason::Compacted).
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let in_folder = |name: &str| folder.path().join(name);
/// # let (path, old, new) = (in_folder("backup"), in_folder("old"), in_folder("new"));
/// use quorate::{Backup, Node};
///
/// let node = Node::builder(old).solo().await?;
/// let written = node.client().put("greeting", "hello").await?;
/// let mut file = tokio::fs::File::create(&path).await?;
/// node.backup(&mut file).await?;
/// node.shutdown().await?;
///
/// assert_eq!(Backup::inspect(&path).await?.keys, 1);
/// Backup::restore(&path, &new).await?;
///
/// let node = Node::builder(&new).solo().await?;
/// let read = node.client().get("greeting").await?.expect("it was restored");
/// assert_eq!(read.mod_revision, written);
/// assert!(node.client().put("greeting", "goodbye").await?.get() > written.get() + 1_000_000_000);
/// # node.shutdown().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Backup;

impl Backup {
    /// How far above those of the backup the revisions of the new group go on, unless said otherwise.
    ///
    /// It has to be more than all that the old group has done after the backup was made: then no watch, no cache and no
    /// fencing token of that time can be taken for one of the new group. A billion is a thousand writes a second for eleven
    /// days.
    ///
    /// ```
    /// assert_eq!(quorate::Backup::REVISION_BUMP, 1_000_000_000);
    /// ```
    pub const REVISION_BUMP: u64 = 1_000_000_000;

    /// Verifies a backup, and says what it holds.
    ///
    /// Every byte is looked at: each row is known, sealed and legal, and stands where it belongs; all of them are there, and
    /// add up to the hash of the state. It takes a few megabytes of memory, however large the file is, and a thread of its
    /// own.
    ///
    /// # Errors
    ///
    /// - [`Reason::BackupDamaged`](crate::Reason::BackupDamaged), with the place of the damage, if the file is not what was
    ///   written, or not all of it;
    /// - [`Reason::UnreadableFormat`](crate::Reason::UnreadableFormat) if a newer version wrote it;
    /// - if it cannot be read.
    ///
    /// # Cancel safety
    ///
    /// May be dropped: it changes nothing.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("backup");
    /// # let node = quorate::Node::builder(folder.path().join("data")).solo().await?;
    /// # let mut bytes = Vec::new();
    /// # let written = node.backup(&mut bytes).await?;
    /// # std::fs::write(&path, &bytes)?;
    /// use quorate::{Backup, Reason};
    ///
    /// assert_eq!(Backup::inspect(&path).await?, written);
    ///
    /// bytes[100] ^= 1;
    /// std::fs::write(&path, &bytes)?;
    /// let error = Backup::inspect(&path).await.unwrap_err();
    /// assert!(matches!(error.reason(), Reason::BackupDamaged { .. }));
    /// println!("{error}"); // … at byte 66, in table meta, row head
    /// # Ok(()) }
    /// ```
    pub async fn inspect(path: impl AsRef<Path>) -> Result<BackupInfo> {
        let path = path.as_ref().to_owned();
        on_a_thread(move |go_on| backup::inspect(&path, go_on)).await
    }

    /// Makes the folder of a founder out of a backup, with revisions that go on [`REVISION_BUMP`](Self::REVISION_BUMP) above
    /// those of the backup.
    ///
    /// The folder is empty, or does not exist. What is restored survives a loss of power when this returns. Before that it
    /// is no data folder: no node starts on it, and it can be restored into again.
    ///
    /// # Errors
    ///
    /// - [`Reason::FolderNotEmpty`](crate::Reason::FolderNotEmpty);
    /// - [`Reason::BackupDamaged`](crate::Reason::BackupDamaged) or
    ///   [`Reason::UnreadableFormat`](crate::Reason::UnreadableFormat), as [`inspect`](Self::inspect) has them;
    /// - [`Reason::AlreadyOpen`](crate::Reason::AlreadyOpen) if somebody else is at work in the folder;
    /// - if the file cannot be read, or the folder cannot be written.
    ///
    /// After an error the folder is empty again, if the disk allows.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the work a moment later, as an error would. If it was about to be done, it may be done.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("backup");
    /// # let node = quorate::Node::builder(folder.path().join("data")).solo().await?;
    /// # node.backup(&mut tokio::fs::File::create(&path).await?).await?;
    /// use quorate::{Backup, Reason};
    ///
    /// let data = folder.path().join("new");
    /// Backup::restore(&path, &data).await?;
    ///
    /// let twice = Backup::restore(&path, &data).await.unwrap_err();
    /// assert!(matches!(twice.reason(), Reason::FolderNotEmpty { .. }));
    /// # Ok(()) }
    /// ```
    pub async fn restore(path: impl AsRef<Path>, folder: impl AsRef<Path>) -> Result<Restored> {
        Self::restore_with(path, folder, Self::REVISION_BUMP).await
    }

    /// The same with another bump, which has to be the same on all founders. It is at least 1.
    ///
    /// # Errors
    ///
    /// As for [`restore`](Self::restore); and [`Reason::BadOption`](crate::Reason::BadOption) if the bump is 0, or leaves no
    /// revisions for the group.
    ///
    /// # Cancel safety
    ///
    /// As for [`restore`](Self::restore).
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let (path, data) = (folder.path().join("backup"), folder.path().join("new"));
    /// # let node = quorate::Node::builder(folder.path().join("data")).solo().await?;
    /// # node.backup(&mut tokio::fs::File::create(&path).await?).await?;
    /// // The backup is old, and the group was busy.
    /// let restored = quorate::Backup::restore_with(&path, data, 1_000_000_000_000).await?;
    /// assert!(restored.revision.get() > 1_000_000_000_000);
    /// # Ok(()) }
    /// ```
    pub async fn restore_with(
        path: impl AsRef<Path>,
        folder: impl AsRef<Path>,
        bump: u64,
    ) -> Result<Restored> {
        let (path, folder) = (path.as_ref().to_owned(), folder.as_ref().to_owned());
        let map_bytes = usize::try_from(STATE_MAP_BYTES).unwrap_or(usize::MAX);
        on_a_thread(move |go_on| backup::restore(&path, &folder, bump, map_bytes, go_on)).await
    }
}

/// Does work that blocks on a thread of its own, and tells it to end when nobody waits for it any more.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, result) = oneshot::channel();
    let run = move || {
        let worked = work(&|| !done.is_closed());
        // Whoever asked may have gone.
        let _ = done.send(worked);
    };
    let started = std::thread::Builder::new().name("quorate-backup".to_owned()).spawn(run);
    started.map_err(|error| Fault::disk("cannot start a thread", error))?;
    result.await.unwrap_or_else(|_| Err(Fault::assertion("the thread of a backup panicked").into()))
}
