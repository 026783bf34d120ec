//! What a key holds, and how that changes: what reads return, and what watches deliver.

use super::{LeaseId, Revision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A key with its value and the metadata that the group keeps about it.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// client.put("greeting", "hello").await?;
/// client.put("greeting", "goodbye").await?;
/// let kv = client.get("greeting").await?.expect("it is there");
/// assert_eq!((kv.version, kv.lease), (2, None));
/// assert!(kv.create_revision < kv.mod_revision);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value; empty when only keys were asked for.
    pub value: Bytes,
    /// The revision of the put that began the key's current life.
    pub create_revision: Revision,
    /// The revision of its last put.
    pub mod_revision: Revision,
    /// How often it was put in this life, from 1.
    pub version: u64,
    /// The lease that it is attached to, and vanishes with.
    pub lease: Option<LeaseId>,
}

/// A change of one key.
///
/// ```
/// # use quorate::Event;
/// fn describe(event: &Event) -> String {
///     match event {
///         Event::Put { kv, prev: None } => format!("{:?} appeared", kv.key),
///         Event::Put { kv, prev: Some(_) } => format!("{:?} changed", kv.key),
///         Event::Delete { key, .. } => format!("{key:?} is gone"),
///         _ => String::new(),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// The key was written.
    Put {
        /// Its new state.
        kv: KeyValue,
        /// Its state before, if it existed and the watch asked for it.
        prev: Option<KeyValue>,
    },
    /// The key was deleted, by a request or with its lease.
    Delete {
        /// The key.
        key: Bytes,
        /// The revision of the deletion.
        revision: Revision,
        /// Its state before, if the watch asked for it.
        prev: Option<KeyValue>,
    },
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { kv, .. } => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { kv, .. } => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// All events of one revision: a transaction is never seen half.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::{KeyRange, Op};
///
/// let mut watch = client.watch(KeyRange::all()).await?;
/// client.txn().then(Op::put("a", "1")).then(Op::put("b", "2")).await?;
/// let changes = watch.recv().await?;
/// assert_eq!(changes.events.len(), 2);
/// assert!(changes.events.iter().all(|event| event.revision() == changes.revision));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Changes {
    /// The revision that all of them belong to.
    pub revision: Revision,
    /// In the order in which the transaction made them. Each key at most once.
    pub events: Vec<Event>,
}
