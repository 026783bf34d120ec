//! How a read is asked for, and what it finds.

use super::{KeyValue, Revision};
use serde::{Deserialize, Serialize};

/// How fresh a read must be.
///
/// ```
/// # use quorate::Consistency;
/// assert_eq!(Consistency::default(), Consistency::Linearizable);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began, on whichever member. Costs one round of the
    /// leader to a quorum, shared by all reads that wait for it.
    #[default]
    Linearizable,
    /// The state that the asked member has applied: perhaps old, never wrong, available without a leader.
    Serializable,
}

/// What the entries of a range read are sorted by. All but the key need the whole range to be read first. Equal ones are in the
/// order of their keys; descending turns all of it round, them included.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::SortBy;
///
/// client.put("jobs/a", "old").await?;
/// client.put("jobs/b", "new").await?;
/// let newest = client.range("jobs/".."jobs0").sort(SortBy::ModRevision).descending().limit(1).await?;
/// assert_eq!(newest.entries[0].value, "new");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SortBy {
    /// The bytes of the key.
    #[default]
    Key,
    /// The bytes of the value.
    Value,
    /// The revision that created the key.
    CreateRevision,
    /// The revision of the last put.
    ModRevision,
    /// The number of puts.
    Version,
}

/// What a range read found.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// client.put("jobs/1", "").await?;
/// client.put("jobs/2", "").await?;
/// let page = client.range("jobs/".."jobs0").limit(1).await?;
/// assert_eq!((page.entries.len(), page.more, page.count), (1, true, 2));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Page {
    /// The entries, sorted as asked; empty if only the count was asked for.
    pub entries: Vec<KeyValue>,
    /// Whether the limit, or the size of a page ([`limits::PAGE_BYTES_MAX`](super::limits::PAGE_BYTES_MAX)), cut the
    /// entries off.
    pub more: bool,
    /// How many keys the range holds, whatever the limit and the revision filters say.
    pub count: u64,
    /// The revision of the group at the time of the read: watch from the one after it; after a read of the past, from the one
    /// after that.
    pub revision: Revision,
}
