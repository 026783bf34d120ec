//! What is in a backup, and what was made of one.

use super::Revision;

/// What a backup holds: what [`Node::backup`](crate::Node::backup) has written, or [`Backup::inspect`](crate::Backup::inspect)
/// found.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).group_name("jobs").solo().await?;
/// let mut bytes = Vec::new();
/// let info = node.backup(&mut bytes).await?;
/// assert_eq!((info.group_name.as_str(), info.group), ("jobs", node.status().group));
/// assert_eq!(info.bytes, bytes.len() as u64);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupInfo {
    /// The name of the group that it is of.
    pub group_name: String,
    /// The id of that group.
    pub group: u128,
    /// The revision of the state.
    pub revision: Revision,
    /// The oldest revision of which it has history; 0 if that is all of it.
    pub compact_revision: Revision,
    /// How many keys it has.
    pub keys: u64,
    /// How many leases it has.
    pub leases: u64,
    /// The length of the backup.
    pub bytes: u64,
    /// The hash of the state: that of [`Status`](super::Status) at the same log index.
    pub state_hash: u128,
}

/// What [`Backup::restore`](crate::Backup::restore) has made of a backup.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path().join("old")).solo().await?;
/// # let (path, data) = (folder.path().join("backup"), folder.path().join("new"));
/// # let mut bytes = Vec::new();
/// # node.backup(&mut bytes).await?;
/// # std::fs::write(&path, bytes)?;
/// let restored = quorate::Backup::restore(path, data).await?;
/// assert_eq!(restored.revision.get(), restored.backup.revision.get() + 1_000_000_000);
/// println!("to be the same on all founders: {:032x}", restored.state_hash);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// What the backup holds.
    pub backup: BackupInfo,
    /// The revision of the restored state, and the oldest that can be read and watched from.
    pub revision: Revision,
    /// The hash of the restored state.
    pub state_hash: u128,
}
