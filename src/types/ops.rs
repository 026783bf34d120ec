//! What a transaction does, and what came of it.
//!
//! Requests outside a transaction are the same operations: each is a transaction of one.

use super::{Compare, KeyRange, KeyValue, LeaseId, Page, Revision, SortBy};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One operation of a transaction.
///
/// Options are methods; an option that does not belong to the operation is ignored.
///
/// ```
/// # use quorate::{KeyRange, LeaseId, Op};
/// let claim = Op::put("owner", "node-1").lease(LeaseId::from(7)).prev();
/// let clean = Op::delete(KeyRange::prefix("tmp/"));
/// let look = Op::range(KeyRange::prefix("jobs/")).limit(10);
/// # let _ = (claim, clean, look);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an operation does nothing outside a transaction"]
pub struct Op(pub(crate) OpKind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OpKind {
    Put(PutOp),
    Get(GetOp),
    Delete(DeleteOp),
    Range(RangeOp),
    Txn(TxnOp),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PutOp {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) lease: Option<LeaseId>,
    /// Keep the value that the key has.
    pub(crate) ignore_value: bool,
    /// Keep the lease that the key has.
    pub(crate) ignore_lease: bool,
    pub(crate) prev: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GetOp {
    pub(crate) key: Bytes,
    pub(crate) at: Option<Revision>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeleteOp {
    pub(crate) range: KeyRange,
    pub(crate) prev: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeOp {
    pub(crate) range: KeyRange,
    pub(crate) at: Option<Revision>,
    /// Zero is none.
    pub(crate) limit: u32,
    pub(crate) keys_only: bool,
    pub(crate) shows: Shows,
    pub(crate) sort: SortBy,
    pub(crate) descending: bool,
    pub(crate) mod_revision_min: Option<Revision>,
    pub(crate) mod_revision_max: Option<Revision>,
    pub(crate) create_revision_min: Option<Revision>,
    pub(crate) create_revision_max: Option<Revision>,
}

/// What a page of a range shows. To count is to go through all of the range, however short the page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shows {
    /// The entries, and how many keys the range holds.
    Both,
    /// Only how many.
    Count,
    /// Only the entries, and zero for the count.
    Entries,
}

impl RangeOp {
    pub(crate) fn new(range: KeyRange) -> Self {
        Self {
            range,
            at: None,
            limit: 0,
            keys_only: false,
            shows: Shows::Both,
            sort: SortBy::Key,
            descending: false,
            mod_revision_min: None,
            mod_revision_max: None,
            create_revision_min: None,
            create_revision_max: None,
        }
    }
}

/// If all of `when` holds then `then`, else `otherwise`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TxnOp {
    pub(crate) when: Vec<Compare>,
    pub(crate) then: Vec<Op>,
    pub(crate) otherwise: Vec<Op>,
}

impl Op {
    /// Writes a key.
    pub fn put(key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        Self(OpKind::Put(PutOp {
            key: Bytes::copy_from_slice(key.as_ref()),
            value: value.into(),
            lease: None,
            ignore_value: false,
            ignore_lease: false,
            prev: false,
        }))
    }

    /// Reads a key, as the operations before it left it.
    pub fn get(key: impl AsRef<[u8]>) -> Self {
        Self(OpKind::Get(GetOp { key: Bytes::copy_from_slice(key.as_ref()), at: None }))
    }

    /// Deletes a key or range.
    pub fn delete(range: impl Into<KeyRange>) -> Self {
        Self(OpKind::Delete(DeleteOp { range: range.into(), prev: false }))
    }

    /// Reads a range, as the operations before it left it.
    pub fn range(range: impl Into<KeyRange>) -> Self {
        Self(OpKind::Range(RangeOp::new(range.into())))
    }

    /// A transaction within the transaction. Its comparisons see the state before the outermost one.
    pub fn txn(
        when: impl IntoIterator<Item = Compare>,
        then: impl IntoIterator<Item = Op>,
        otherwise: impl IntoIterator<Item = Op>,
    ) -> Self {
        Self(OpKind::Txn(TxnOp {
            when: when.into_iter().collect(),
            then: then.into_iter().collect(),
            otherwise: otherwise.into_iter().collect(),
        }))
    }

    /// Of a put: attaches the key to the lease. Without it the key is detached from any.
    pub fn lease(self, lease: LeaseId) -> Self {
        self.edit_put(|put| put.lease = Some(lease))
    }

    /// Of a put: keeps the value that the key has. The given value must be empty and the key must exist.
    pub fn ignore_value(self) -> Self {
        self.edit_put(|put| put.ignore_value = true)
    }

    /// Of a put: keeps the lease that the key has. No lease may be given and the key must exist.
    pub fn ignore_lease(self) -> Self {
        self.edit_put(|put| put.ignore_lease = true)
    }

    /// Of a put or delete: returns the state before.
    pub fn prev(mut self) -> Self {
        match &mut self.0 {
            OpKind::Put(put) => put.prev = true,
            OpKind::Delete(delete) => delete.prev = true,
            OpKind::Get(_) | OpKind::Range(_) | OpKind::Txn(_) => {}
        }
        self
    }

    /// Of a read: reads the state at `revision`.
    pub fn at(mut self, revision: Revision) -> Self {
        match &mut self.0 {
            OpKind::Get(get) => get.at = Some(revision),
            OpKind::Range(range) => range.at = Some(revision),
            OpKind::Put(_) | OpKind::Delete(_) | OpKind::Txn(_) => {}
        }
        self
    }

    /// Of a range: returns at most so many entries; zero is no limit.
    pub fn limit(self, entries: u32) -> Self {
        self.edit_range(|range| range.limit = entries)
    }

    /// Of a range: leaves the values empty.
    pub fn keys_only(self) -> Self {
        self.edit_range(|range| range.keys_only = true)
    }

    /// Of a range: returns only the count.
    pub fn count_only(self) -> Self {
        self.edit_range(|range| range.shows = Shows::Count)
    }

    fn edit_put(mut self, edit: impl FnOnce(&mut PutOp)) -> Self {
        if let OpKind::Put(put) = &mut self.0 {
            edit(put);
        }
        self
    }

    fn edit_range(mut self, edit: impl FnOnce(&mut RangeOp)) -> Self {
        if let OpKind::Range(range) = &mut self.0 {
            edit(range);
        }
        self
    }
}

/// What one operation of a transaction did.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::{Op, OpResult};
///
/// client.put("greeting", "hello").await?;
/// let outcome = client.txn().then(Op::get("greeting")).then(Op::delete("greeting")).await?;
/// assert!(matches!(&outcome.results[0], OpResult::Get(Some(kv)) if kv.value == "hello"));
/// assert!(matches!(outcome.results[1], OpResult::Deleted { count: 1, .. }));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OpResult {
    /// The key was written.
    Put {
        /// Its state before, if it was asked for and existed.
        prev: Option<KeyValue>,
    },
    /// What the key holds.
    Get(Option<KeyValue>),
    /// The keys were deleted.
    Deleted {
        /// How many there were.
        count: u64,
        /// Their states before, in key order, if they were asked for.
        prev: Vec<KeyValue>,
    },
    /// What the range holds.
    Range(Page),
    /// What the nested transaction did.
    Txn(TxnOutcome),
}

/// What a transaction did.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::{Compare, Op};
///
/// let claim = || client.txn().when(Compare::absent("owner")).then(Op::put("owner", "me"));
/// assert!(claim().await?.succeeded);
/// assert!(!claim().await?.succeeded, "it exists by now");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TxnOutcome {
    /// Whether all comparisons held, so that the first branch was carried out.
    pub succeeded: bool,
    /// The revision that the transaction made, or the current one if it changed nothing.
    pub revision: Revision,
    /// One for each operation of the branch that was carried out, in its order.
    pub results: Vec<OpResult>,
}
