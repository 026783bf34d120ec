//! The nouns of the public API: revisions and ids, keys with their metadata, ranges, comparisons and operations.
//!
//! Everything here is a plain value. Where the rules of the data model need a word on a type, it stands with the type;
//! the rules as a whole are those of etcd (`KV` and `Watch` of its v3 API), with the differences listed in `DESIGN.md`.
//!
//! A point of the key-value history is a *revision*; a position in the Raft log is an *index*. They are never mixed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Range, RangeFrom, RangeFull};
use std::time::Duration;

/// The limits of keys, values and requests. Each is checked before a request reaches the log.
///
/// ```
/// use quorate::limits;
/// assert!(limits::KEY_BYTES_MAX < limits::VALUE_BYTES_MAX);
/// ```
pub mod limits {
    use std::time::Duration;

    /// The longest key, in bytes.
    pub const KEY_BYTES_MAX: usize = 1024;
    /// The longest key after its zero bytes were doubled, as history stores it. Only keys with many zero bytes notice.
    pub const ESCAPED_KEY_BYTES_MAX: usize = 1900;
    /// The largest value, in bytes.
    pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
    /// The largest write, in bytes: all keys, values and comparisons of one transaction together.
    pub const REQUEST_BYTES_MAX: usize = 1536 * 1024;
    /// The most comparisons, or operations in one branch, of a transaction. A nested one may have as many as those around it
    /// leave of them; how many there are side by side is limited by [`REQUEST_BYTES_MAX`] alone.
    pub const TXN_OPERATIONS_MAX: usize = 128;
    /// How deep transactions nest.
    pub const TXN_DEPTH_MAX: usize = 8;
    /// The most writes, reads, cursors or leases in one call between processes.
    pub const BATCH_MAX: usize = 4096;
    /// The most leases that one log entry expires.
    pub const EXPIRE_LEASES_MAX: usize = 1000;
    /// The longest time to live of a lease: 100 years.
    pub const TTL_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    /// The longest that one call may wait, whatever its caller asks for.
    pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(60);
    /// The most bytes of key-values that one page of a range read carries.
    pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
    /// The most bytes of key-values that the answer of one transaction carries.
    pub const ANSWER_BYTES_MAX: usize = 12 * 1024 * 1024;
    /// The most keys that one transaction deletes.
    pub const DELETED_KEYS_MAX: u64 = 100 * 1000;
    /// The first byte that no key may begin with: the group keeps such keys for itself.
    pub const RESERVED_FIRST_BYTE: u8 = 0;
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(u64);

        impl $name {
            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(number)
            }
        }
    };
}

number! {
    /// A point in the group's history. An empty group is at 1; every write that changes a key takes the next one.
    ///
    /// ```
    /// # use quorate::Revision;
    /// let read_at = Revision::from(7);
    /// assert_eq!(read_at.next().get(), 8); // where to watch from after a read at 7
    /// ```
    Revision
}
number! {
    /// Names a member of the group for all time; never used again after its removal.
    ///
    /// ```
    /// # use quorate::NodeId;
    /// assert_eq!(NodeId::from(3).to_string(), "3");
    /// ```
    NodeId
}
number! {
    /// Names a lease. The group chooses it.
    ///
    /// ```
    /// # use quorate::LeaseId;
    /// assert!(LeaseId::from(1) < LeaseId::from(2));
    /// ```
    LeaseId
}
number! {
    /// Grows with every new holder of a lock or leadership. Hand it to the resource that you protect, and let the
    /// resource refuse a token smaller than the largest it has seen.
    ///
    /// ```
    /// # use quorate::FencingToken;
    /// let (stale, current) = (FencingToken::from(41), FencingToken::from(44));
    /// assert!(stale < current);
    /// ```
    FencingToken
}

impl Revision {
    /// The revision of an empty group.
    pub(crate) const FIRST: Self = Self(1);

    /// The first revision after this one: where to watch from after a read at `self`.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

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

/// A half-open interval of keys, in the order of their bytes.
///
/// A string or byte slice converts into the range of that one key; `"a".."b"` and `"a"..` convert into what they say.
///
/// ```
/// # use quorate::KeyRange;
/// let jobs = KeyRange::prefix("jobs/");
/// assert!(jobs.contains(b"jobs/7") && !jobs.contains(b"jobs"));
/// assert!(KeyRange::from("a".."c").contains(b"bzz"));
/// assert_eq!(KeyRange::from("a"), KeyRange::key("a"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    pub(crate) start: Bytes,
    /// Exclusive; `None` is beyond the last key.
    pub(crate) end: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// One key.
    #[must_use]
    pub fn key(key: impl AsRef<[u8]>) -> Self {
        let key = key.as_ref();
        // The smallest key above k is k followed by a zero byte, so one key is a half-open interval too.
        let mut both = Vec::with_capacity(key.len() * 2 + 1);
        both.extend_from_slice(key);
        both.extend_from_slice(key);
        both.push(0);
        let both = Bytes::from(both);
        Self { start: both.slice(..key.len()), end: Some(both.slice(key.len()..)) }
    }

    /// Every key that begins with `prefix`; the empty prefix is every key.
    #[must_use]
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref();
        let last = prefix.iter().rposition(|byte| *byte != u8::MAX);
        let end = last.map(|last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        });
        Self { start: Bytes::copy_from_slice(prefix), end }
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start <= key && self.end.as_ref().is_none_or(|end| key < end)
    }

    /// The key, if the range can hold only one.
    pub(crate) fn as_key(&self) -> Option<&Bytes> {
        let end = self.end.as_ref()?;
        let (zero, stem) = end.split_last()?;
        (*zero == 0 && stem == self.start).then_some(&self.start)
    }

    /// Whether no key can lie in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether some key can lie in both.
    #[cfg(test)]
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.end.as_ref().is_none_or(|end| other.start < end)
            && other.end.as_ref().is_none_or(|end| self.start < end)
    }
}

macro_rules! one_key {
    ($($type:ty),*) => {$(
        impl From<$type> for KeyRange {
            fn from(key: $type) -> Self {
                Self::key(key)
            }
        }
    )*};
}
one_key!(&str, String, &String, &[u8], Vec<u8>, Bytes, &Bytes);

impl<const N: usize> From<&[u8; N]> for KeyRange {
    fn from(key: &[u8; N]) -> Self {
        Self::key(key)
    }
}

impl<K: AsRef<[u8]>> From<Range<K>> for KeyRange {
    fn from(range: Range<K>) -> Self {
        let end = Some(Bytes::copy_from_slice(range.end.as_ref()));
        Self { start: Bytes::copy_from_slice(range.start.as_ref()), end }
    }
}

impl<K: AsRef<[u8]>> From<RangeFrom<K>> for KeyRange {
    fn from(range: RangeFrom<K>) -> Self {
        Self { start: Bytes::copy_from_slice(range.start.as_ref()), end: None }
    }
}

impl From<RangeFull> for KeyRange {
    fn from(_: RangeFull) -> Self {
        Self::all()
    }
}

/// What the entries of a range read are sorted by. All but the key need the whole range to be read first.
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
    /// The bytes of the value, equal values by key.
    Value,
    /// The revision that created the key.
    CreateRevision,
    /// The revision of the last put.
    ModRevision,
    /// The number of puts, equal numbers by key.
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
    /// Whether the limit, or the size of a page ([`limits::PAGE_BYTES_MAX`]), cut the entries off.
    pub more: bool,
    /// How many keys the range holds, whatever the limit and the revision filters say.
    pub count: u64,
    /// The revision of the group at the time of the read: watch from the one after it.
    pub revision: Revision,
}

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
        Comparand { range: keys.into(), operand: |revision| Operand::CreateRevision(revision.0) }
    }

    /// Compares the revision of the last put.
    pub fn mod_revision(keys: impl Into<KeyRange>) -> Comparand<Revision> {
        Comparand { range: keys.into(), operand: |revision| Operand::ModRevision(revision.0) }
    }

    /// Compares the number of puts in the key's current life.
    pub fn version(keys: impl Into<KeyRange>) -> Comparand<u64> {
        Comparand { range: keys.into(), operand: Operand::Version }
    }

    /// Compares the lease; a key without one has lease 0.
    pub fn lease(keys: impl Into<KeyRange>) -> Comparand<LeaseId> {
        Comparand { range: keys.into(), operand: |lease| Operand::Lease(lease.0) }
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
    pub(crate) count_only: bool,
    pub(crate) sort: SortBy,
    pub(crate) descending: bool,
    pub(crate) mod_revision_min: Option<Revision>,
    pub(crate) mod_revision_max: Option<Revision>,
    pub(crate) create_revision_min: Option<Revision>,
    pub(crate) create_revision_max: Option<Revision>,
}

impl RangeOp {
    pub(crate) fn new(range: KeyRange) -> Self {
        Self {
            range,
            at: None,
            limit: 0,
            keys_only: false,
            count_only: false,
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
        self.edit_range(|range| range.count_only = true)
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

/// What the group knows about a lease.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let id = client.lease_grant(std::time::Duration::from_secs(30)).await?.id;
/// let status = client.lease_time_to_live(id).await?.expect("it exists");
/// assert!(status.remaining <= status.ttl && status.keys.is_empty());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The lease.
    pub id: LeaseId,
    /// The time to live that was granted, and that each keep-alive starts anew.
    pub ttl: Duration,
    /// How much of it is left, by the clock of the leader that answered.
    pub remaining: Duration,
    /// The keys that are attached to it, in order.
    pub keys: Vec<Bytes>,
}

/// What a node knows about itself and its group.
///
/// ```
/// # async fn f(client: quorate::Client) -> quorate::Result<()> {
/// let status = client.status().await?;
/// println!("node {} at revision {}, leader {:?}", status.id, status.revision, status.leader);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// Its id in the group.
    pub id: NodeId,
    /// The group's id, the same on every member.
    pub group: u128,
    /// The leader of the group's Raft, as far as this node knows. Nothing to act on: an application's leader is made by
    /// an election, and has a token.
    pub leader: Option<NodeId>,
    /// The term of the group's Raft.
    pub term: u64,
    /// The revision that this node has applied.
    pub revision: Revision,
    /// The log index that it has applied.
    pub applied_index: Option<u64>,
    /// A hash of the whole state at that index. Equal on all members that have applied the same index.
    pub state_hash: u128,
    /// How many bytes of its state's file are in use: keys, history, leases.
    pub bytes_in_use: u64,
    /// How large that file is. It gets smaller some time after more than half of it, and more than 64 MiB, is not in use.
    pub bytes_on_disk: u64,
    /// How many bytes may be in use. With more than that, the group refuses whatever takes room.
    pub quota: u64,
    /// Whether it does.
    pub is_short_of_room: bool,
    /// The members of the group, with their addresses.
    pub members: Vec<(NodeId, String)>,
    /// The log index at which members have different states, and no majority has the same one, so that nobody can tell which
    /// is right. All go on. Compare what they answer, and rebuild those that are wrong; until then do not trust the group.
    pub states_differ_at: Option<u64>,
}

/// A member of the group, as its leader sees it: one of [`Client::members`](crate::Client::members).
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// for member in node.client().members().await? {
///     println!("{} at {}: voter {}, lacks {:?}", member.id, member.address, member.is_voter, member.behind);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Member {
    /// Its id. Never that of another, not even after it was removed.
    pub id: NodeId,
    /// Where the others reach it.
    pub address: String,
    /// Whether it counts when the group agrees. Who has joined and was not promoted does not: it is a learner, follows the
    /// log, and answers clients.
    pub is_voter: bool,
    /// Whether it is the leader, which has answered.
    pub is_leader: bool,
    /// How many entries of the leader's log it lacks; `None` if it was not heard of since this leader leads.
    pub behind: Option<u64>,
    /// How long ago it answered the leader last; `None` if it has not since this leader leads.
    pub silent_for: Option<Duration>,
}

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
#[cfg(feature = "node")]
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
    /// The hash of the state: that of [`Status`] at the same log index.
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
#[cfg(feature = "node")]
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
