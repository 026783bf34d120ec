//! The conditions of a transaction.
//!
//! ```text
//! Compare::mod_revision(keys)   .equals(17)
//!          └ what of them        └ the relation and the right side: only now it is a condition
//! ```

use super::{KeyRange, LeaseId, Revision};
use bytes::Bytes;
use std::fmt;

/// A condition of a transaction: something about one key, or about all keys of a range.
///
/// A missing key compares as all zeros: version 0, revisions 0, no lease. A comparison with its *value* is false
/// whatever the relation. Over a range, all keys must satisfy the condition, and an empty range acts as one missing key.
///
/// ```
/// # use quorate::{Compare, KeyRange};
/// let unchanged = Compare::mod_revision("config").equals(17);
/// let free = Compare::absent("owner");
/// let nobody_waits = Compare::absent(KeyRange::prefix("line/"));
/// # let _ = (unchanged, free, nobody_waits);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a comparison does nothing outside a transaction"]
pub struct Compare {
    pub(crate) range: KeyRange,
    pub(crate) relation: Relation,
    pub(crate) operand: Operand,
}

/// How the stored side of a [`Compare`] relates to its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    Greater,
}

/// What a [`Compare`] looks at, with the value that it is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Value(Bytes),
    CreateRevision(u64),
    ModRevision(u64),
    Version(u64),
    /// Zero is "no lease".
    Lease(u64),
}

/// The left side of a comparison, which waits for its relation and right side.
///
/// ```
/// # use quorate::Compare;
/// let comparand = Compare::version("config");
/// let compare: Compare = comparand.above(3u64);
/// # let _ = compare;
/// ```
#[must_use = "a comparand needs `equals`, `differs`, `below` or `above`"]
pub struct Comparand<T> {
    range: KeyRange,
    operand: fn(T) -> Operand,
}

impl<T> fmt::Debug for Comparand<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comparand").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Compare {
    /// The key exists; of a range: it holds a key.
    pub fn exists(keys: impl Into<KeyRange>) -> Self {
        Self::version(keys).above(0u64)
    }

    /// The key does not exist; of a range: it holds no key.
    pub fn absent(keys: impl Into<KeyRange>) -> Self {
        Self::create_revision(keys).equals(0)
    }

    /// Compares the value, as bytes.
    pub fn value(keys: impl Into<KeyRange>) -> Comparand<Bytes> {
        Comparand { range: keys.into(), operand: Operand::Value }
    }

    /// Compares the revision that began the key's current life.
    pub fn create_revision(keys: impl Into<KeyRange>) -> Comparand<Revision> {
        Comparand {
            range: keys.into(),
            operand: |revision| Operand::CreateRevision(revision.get()),
        }
    }

    /// Compares the revision of the last put.
    pub fn mod_revision(keys: impl Into<KeyRange>) -> Comparand<Revision> {
        Comparand { range: keys.into(), operand: |revision| Operand::ModRevision(revision.get()) }
    }

    /// Compares the number of puts in the key's current life.
    pub fn version(keys: impl Into<KeyRange>) -> Comparand<u64> {
        Comparand { range: keys.into(), operand: Operand::Version }
    }

    /// Compares the lease; a key without one has lease 0.
    pub fn lease(keys: impl Into<KeyRange>) -> Comparand<LeaseId> {
        Comparand { range: keys.into(), operand: |lease| Operand::Lease(lease.get()) }
    }
}

impl<T> Comparand<T> {
    /// It equals `want`.
    pub fn equals(self, want: impl Into<T>) -> Compare {
        self.compare(Relation::Equal, want)
    }

    /// It differs from `want`.
    pub fn differs(self, want: impl Into<T>) -> Compare {
        self.compare(Relation::NotEqual, want)
    }

    /// It is smaller than `want`.
    pub fn below(self, want: impl Into<T>) -> Compare {
        self.compare(Relation::Less, want)
    }

    /// It is larger than `want`.
    pub fn above(self, want: impl Into<T>) -> Compare {
        self.compare(Relation::Greater, want)
    }

    fn compare(self, relation: Relation, want: impl Into<T>) -> Compare {
        Compare { range: self.range, relation, operand: (self.operand)(want.into()) }
    }
}
