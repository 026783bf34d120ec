//! The requests: reads, writes and transactions as values that are sent when awaited.
//!
//! ```text
//! client.put(key, value)   .lease(id) .timeout(d)    .await ─▶ Revision
//!        └ the request      └ its options             └ sends it, once
//! ```
//!
//! Invariants
//! - a request does nothing until it is awaited, and is sent once;
//! - a transaction whose branches only read never enters the log;
//! - the shape of an answer follows from the type of the request, so an option that changes it (`prev`) changes the
//!   type.

use super::Client;
use super::link::{Freshness, malformed, unexpected};
use super::pages::Pages;
use crate::api::{Applied, Command, Request, Response};
use crate::error::{Error, Result};
use crate::types::{
    Compare, Consistency, DeleteOp, GetOp, KeyRange, KeyValue, LeaseId, Op, OpKind, OpResult, Page,
    PutOp, RangeOp, Revision, SortBy, Status, TxnOp, TxnOutcome,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use std::time::Duration;

/// What every request can do: wait for a limited time, and be awaited.
macro_rules! request {
    ($name:ident -> $output:ty) => {
        impl $name<'_> {
            /// Waits at most so long for the answer, instead of as long as is usual for the client. A minute is the
            /// most.
            pub fn timeout(mut self, wait: std::time::Duration) -> Self {
                self.timeout = Some(wait);
                self
            }
        }

        impl<'a> std::future::IntoFuture for $name<'a> {
            type Output = $crate::error::Result<$output>;
            type IntoFuture = futures::future::BoxFuture<'a, Self::Output>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.send())
            }
        }
    };
}
pub(super) use request;

/// What every read can do: choose how fresh its answer must be.
macro_rules! read {
    ($name:ident) => {
        impl $name<'_> {
            /// How fresh the answer must be; [`Consistency::Linearizable`] if not said.
            pub fn consistency(mut self, consistency: Consistency) -> Self {
                self.fresh.consistency = consistency;
                self
            }

            /// Waits until the answering member has reached `revision`, whatever the consistency.
            pub fn min_revision(mut self, revision: Revision) -> Self {
                self.fresh.revision_min = Some(revision);
                self
            }
        }
    };
}

impl Client {
    /// Reads a key.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let written = client.put("greeting", "hello").await?;
    /// let kv = client.get("greeting").await?.expect("it was just written");
    /// assert_eq!((&kv.value[..], kv.mod_revision), (&b"hello"[..], written));
    /// assert_eq!(client.get("nothing").await?, None);
    /// # Ok(()) }
    /// ```
    pub fn get(&self, key: impl AsRef<[u8]>) -> Get<'_> {
        let op = GetOp { key: Bytes::copy_from_slice(key.as_ref()), at: None };
        Get { client: self, op, fresh: Freshness::default(), timeout: None }
    }

    /// Writes a key, and yields the revision of the write.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let first = client.put("greeting", "hello").await?;
    /// let (second, prev) = client.put("greeting", "goodbye").prev().await?;
    /// assert!(second > first);
    /// assert_eq!(prev.map(|kv| kv.mod_revision), Some(first));
    /// # Ok(()) }
    /// ```
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Put<'_> {
        Put { client: self, op: put_op(key.as_ref(), value.into()), timeout: None }
    }

    /// Writes a key if it does not exist. Yields the revision of the write, or `None` if the key was there.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// assert!(client.put_if_absent("owner", "me").await?.is_some());
    /// assert!(client.put_if_absent("owner", "you").await?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn put_if_absent(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> PutIf<'_> {
        let key = key.as_ref();
        let op = put_op(key, value.into());
        PutIf { client: self, when: Compare::absent(key), op, timeout: None }
    }

    /// Writes a key if its last write was at `revision`. Yields the new revision, or `None` if somebody else wrote or
    /// deleted it since.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let first = client.put("counter", "7").await?;
    /// assert!(client.update_if("counter", first, "8").await?.is_some());
    /// assert!(client.update_if("counter", first, "9").await?.is_none()); // somebody else counted
    /// # Ok(()) }
    /// ```
    pub fn update_if(
        &self,
        key: impl AsRef<[u8]>,
        revision: Revision,
        value: impl Into<Bytes>,
    ) -> PutIf<'_> {
        let key = key.as_ref();
        let when = Compare::mod_revision(key).equals(revision);
        PutIf { client: self, when, op: put_op(key, value.into()), timeout: None }
    }

    /// Deletes a key, or all keys of a range, and yields how many there were.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # use quorate::KeyRange;
    /// client.put("tmp/1", "").await?;
    /// client.put("greeting", "hello").await?;
    /// assert_eq!(client.delete(KeyRange::prefix("tmp/")).await?, 1);
    /// let gone = client.delete("greeting").prev().await?;
    /// assert_eq!(gone[0].value, "hello");
    /// # Ok(()) }
    /// ```
    pub fn delete(&self, range: impl Into<KeyRange>) -> Delete<'_> {
        let op = DeleteOp { range: range.into(), prev: false };
        Delete { client: self, op, timeout: None }
    }

    /// Deletes a key if its last write was at `revision`, and yields whether it did.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let written = client.put("job", "sweep").await?;
    /// assert!(client.delete_if("job", written).await?);
    /// assert!(!client.delete_if("job", written).await?);
    /// # Ok(()) }
    /// ```
    pub fn delete_if(&self, key: impl AsRef<[u8]>, revision: Revision) -> DeleteIf<'_> {
        DeleteIf {
            client: self,
            key: Bytes::copy_from_slice(key.as_ref()),
            revision,
            timeout: None,
        }
    }

    /// Reads a range of keys.
    ///
    /// One answer is one [`Page`]; [`stream`](RangeRead::stream) yields all entries, however many.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// use quorate::{KeyRange, SortBy};
    ///
    /// client.put("jobs/b", "").await?;
    /// client.put("jobs/a", "").await?;
    /// let jobs = KeyRange::prefix("jobs/");
    /// let newest = client.range(jobs).sort(SortBy::CreateRevision).descending().limit(1).await?;
    /// assert_eq!((newest.entries[0].key.as_ref(), newest.count), (&b"jobs/a"[..], 2));
    /// # Ok(()) }
    /// ```
    pub fn range(&self, range: impl Into<KeyRange>) -> RangeRead<'_> {
        let op = RangeOp::new(range.into());
        RangeRead { client: self, op, fresh: Freshness::default(), timeout: None }
    }

    /// Begins a transaction: if all conditions hold then some operations, else others, and all of it at once.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// use quorate::{Compare, Op};
    ///
    /// client.put("from", "7").await?;
    /// let outcome = client
    ///     .txn()
    ///     .when(Compare::value("from").equals("7"))
    ///     .then(Op::put("from", "6"))
    ///     .then(Op::put("to", "1"))
    ///     .otherwise(Op::get("from"))
    ///     .await?;
    /// assert!(outcome.succeeded);
    /// # Ok(()) }
    /// ```
    pub fn txn(&self) -> Txn<'_> {
        Txn { client: self, op: TxnOp::default(), fresh: Freshness::default(), timeout: None }
    }

    /// Forgets history before `revision`: it can then neither be read nor watched. What keys hold now is not touched.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// use quorate::ErrorKind;
    ///
    /// let first = client.put("greeting", "hello").await?;
    /// let second = client.put("greeting", "goodbye").await?;
    /// client.compact(second).await?;
    /// let gone = client.get("greeting").at(first).await.unwrap_err();
    /// assert_eq!(gone.kind(), ErrorKind::Compacted);
    /// # Ok(()) }
    /// ```
    pub fn compact(&self, revision: Revision) -> Compact<'_> {
        Compact { client: self, revision, timeout: None }
    }

    /// Asks the node that this client talks to who it is, and whom it follows.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let status = client.status().await?;
    /// assert_eq!(status.leader, Some(status.id)); // a group of one leads itself
    /// # Ok(()) }
    /// ```
    pub fn status(&self) -> StatusRead<'_> {
        StatusRead { client: self, timeout: None }
    }
}

/// Reads a key. Made by [`Client::get`].
///
/// Yields `None` if the key does not exist.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::Consistency;
///
/// let first = client.put("greeting", "hello").await?;
/// client.put("greeting", "goodbye").await?;
/// let before = client.get("greeting").at(first).await?;
/// assert_eq!(before.expect("it existed then").value, "hello");
/// // Perhaps old on another member, but never older than what this client has seen.
/// let quick = client.get("greeting").consistency(Consistency::Serializable).await?;
/// assert_eq!(quick.expect("it exists").value, "goodbye");
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Get<'a> {
    client: &'a Client,
    op: GetOp,
    fresh: Freshness,
    timeout: Option<Duration>,
}
request!(Get -> Option<KeyValue>);
read!(Get);

impl Get<'_> {
    /// Reads the key as it was at `revision`.
    pub fn at(mut self, revision: Revision) -> Self {
        self.op.at = Some(revision);
        self
    }

    async fn send(self) -> Result<Option<KeyValue>> {
        let txn = TxnOp::single(OpKind::Get(self.op));
        match only(self.client.link().query(txn, self.fresh, self.timeout).await?)?.1 {
            OpResult::Get(found) => Ok(found),
            _ => Err(malformed("outcome of a get")),
        }
    }
}

/// Writes a key. Made by [`Client::put`].
///
/// Yields the revision of the write. A key that hung on a lease is detached from it, unless the put says otherwise.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let lease = client.lease_grant(std::time::Duration::from_secs(30)).await?;
/// client.put("worker/7", "here").lease(lease.id).await?;
/// client.put("worker/7", "still here").ignore_lease().await?;
/// client.put("worker/7", "").ignore_value().lease(lease.id).await?;
/// let kv = client.get("worker/7").await?.expect("it is there");
/// assert_eq!((kv.lease, &kv.value[..]), (Some(lease.id), &b"still here"[..]));
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Put<'a> {
    client: &'a Client,
    op: PutOp,
    timeout: Option<Duration>,
}
request!(Put -> Revision);

impl<'a> Put<'a> {
    /// Attaches the key to a lease, with which it will vanish.
    pub fn lease(mut self, lease: LeaseId) -> Self {
        self.op.lease = Some(lease);
        self
    }

    /// Keeps the value that the key has. The given value must be empty and the key must exist.
    pub fn ignore_value(mut self) -> Self {
        self.op.ignore_value = true;
        self
    }

    /// Keeps the lease that the key has. No lease may be given and the key must exist.
    pub fn ignore_lease(mut self) -> Self {
        self.op.ignore_lease = true;
        self
    }

    /// Yields what the key held before, too.
    pub fn prev(self) -> PutPrev<'a> {
        PutPrev { client: self.client, op: PutOp { prev: true, ..self.op }, timeout: self.timeout }
    }

    async fn send(self) -> Result<Revision> {
        Ok(write(self.client, OpKind::Put(self.op), self.timeout).await?.0)
    }
}

/// Writes a key and yields what it held before. Made by [`Put::prev`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let (_, before) = client.put("greeting", "hello").prev().await?;
/// assert_eq!(before, None);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct PutPrev<'a> {
    client: &'a Client,
    op: PutOp,
    timeout: Option<Duration>,
}
request!(PutPrev -> (Revision, Option<KeyValue>));

impl PutPrev<'_> {
    async fn send(self) -> Result<(Revision, Option<KeyValue>)> {
        match write(self.client, OpKind::Put(self.op), self.timeout).await? {
            (revision, OpResult::Put { prev }) => Ok((revision, prev)),
            _ => Err(malformed("outcome of a put").unknown_outcome()),
        }
    }
}

/// Writes a key under a condition. Made by [`Client::put_if_absent`] and [`Client::update_if`].
///
/// Yields the revision of the write, or `None` if the condition did not hold.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// # let session = client.session(std::time::Duration::from_secs(10)).await?;
/// let mine = client.put_if_absent("owner", "me").lease(session.lease_id()).await?;
/// assert!(mine.is_some());
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct PutIf<'a> {
    client: &'a Client,
    when: Compare,
    op: PutOp,
    timeout: Option<Duration>,
}
request!(PutIf -> Option<Revision>);

impl PutIf<'_> {
    /// Attaches the key to a lease, with which it will vanish.
    pub fn lease(mut self, lease: LeaseId) -> Self {
        self.op.lease = Some(lease);
        self
    }

    async fn send(self) -> Result<Option<Revision>> {
        let then = vec![Op(OpKind::Put(self.op))];
        let txn = TxnOp { when: vec![self.when], then, otherwise: Vec::new() };
        let outcome = self.client.link().txn(txn, Freshness::default(), self.timeout).await?;
        Ok(outcome.succeeded.then_some(outcome.revision))
    }
}

/// Deletes a key or range. Made by [`Client::delete`].
///
/// Yields how many keys there were.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let existed = client.delete("greeting").await? == 1;
/// assert!(!existed);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Delete<'a> {
    client: &'a Client,
    op: DeleteOp,
    timeout: Option<Duration>,
}
request!(Delete -> u64);

impl<'a> Delete<'a> {
    /// Yields what the keys held, instead of how many they were.
    pub fn prev(self) -> DeletePrev<'a> {
        let op = DeleteOp { prev: true, ..self.op };
        DeletePrev { client: self.client, op, timeout: self.timeout }
    }

    async fn send(self) -> Result<u64> {
        match write(self.client, OpKind::Delete(self.op), self.timeout).await? {
            (_, OpResult::Deleted { count, .. }) => Ok(count),
            _ => Err(malformed("outcome of a delete").unknown_outcome()),
        }
    }
}

/// Deletes a key or range and yields what was there, in key order. Made by [`Delete::prev`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// client.put("jobs/1", "sweep").await?;
/// for kv in client.delete("jobs/".."jobs0").prev().await? {
///     assert_eq!((kv.key, kv.value), ("jobs/1".into(), "sweep".into()));
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct DeletePrev<'a> {
    client: &'a Client,
    op: DeleteOp,
    timeout: Option<Duration>,
}
request!(DeletePrev -> Vec<KeyValue>);

impl DeletePrev<'_> {
    async fn send(self) -> Result<Vec<KeyValue>> {
        match write(self.client, OpKind::Delete(self.op), self.timeout).await? {
            (_, OpResult::Deleted { prev, .. }) => Ok(prev),
            _ => Err(malformed("outcome of a delete").unknown_outcome()),
        }
    }
}

/// Deletes a key that nobody has written since. Made by [`Client::delete_if`].
///
/// Yields whether it was deleted.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let written = client.put("job", "sweep").await?;
/// client.put("job", "wipe").await?;
/// assert!(!client.delete_if("job", written).await?, "somebody wrote since");
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct DeleteIf<'a> {
    client: &'a Client,
    key: Bytes,
    revision: Revision,
    timeout: Option<Duration>,
}
request!(DeleteIf -> bool);

impl DeleteIf<'_> {
    async fn send(self) -> Result<bool> {
        let txn = TxnOp {
            // A missing key compares as revision 0, and so would "be deleted" at that revision.
            when: vec![
                Compare::exists(&self.key),
                Compare::mod_revision(&self.key).equals(self.revision),
            ],
            then: vec![Op::delete(&self.key)],
            otherwise: Vec::new(),
        };
        let outcome = self.client.link().txn(txn, Freshness::default(), self.timeout).await?;
        Ok(outcome.succeeded)
    }
}

/// Reads a range of keys. Made by [`Client::range`].
///
/// Yields one [`Page`]: at most [`limits::PAGE_BYTES_MAX`](crate::limits::PAGE_BYTES_MAX) of entries, and
/// [`more`](Page::more) says whether that was all.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::KeyRange;
///
/// let ann = client.put("users/ann", "1").await?;
/// let bob = client.put("users/bob", "2").await?;
/// let users = KeyRange::prefix("users/");
///
/// let names = client.range(users.clone()).keys_only().await?;
/// assert!(names.entries.iter().all(|kv| kv.value.is_empty()));
/// let number = client.range(users.clone()).count_only().await?;
/// assert_eq!((number.count, number.entries.len()), (2, 0));
/// let newer = client.range(users.clone()).min_mod_revision(bob).await?;
/// assert_eq!(newer.entries[0].key, "users/bob");
/// let first = client.range(users).at(ann).await?;
/// assert_eq!((first.count, first.more), (1, false));
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct RangeRead<'a> {
    client: &'a Client,
    op: RangeOp,
    fresh: Freshness,
    timeout: Option<Duration>,
}
request!(RangeRead -> Page);
read!(RangeRead);

impl RangeRead<'_> {
    /// Reads the range as it was at `revision`.
    pub fn at(mut self, revision: Revision) -> Self {
        self.op.at = Some(revision);
        self
    }

    /// At most so many entries; zero is no limit.
    pub fn limit(mut self, entries: u32) -> Self {
        self.op.limit = entries;
        self
    }

    /// Leaves the values empty.
    pub fn keys_only(mut self) -> Self {
        self.op.keys_only = true;
        self
    }

    /// Only counts.
    pub fn count_only(mut self) -> Self {
        self.op.count_only = true;
        self
    }

    /// What to sort by; by key if not said.
    pub fn sort(mut self, by: SortBy) -> Self {
        self.op.sort = by;
        self
    }

    /// The largest first.
    pub fn descending(mut self) -> Self {
        self.op.descending = true;
        self
    }

    /// Only entries that were last written at `revision` or later.
    pub fn min_mod_revision(mut self, revision: Revision) -> Self {
        self.op.mod_revision_min = Some(revision);
        self
    }

    /// Only entries that were last written at `revision` or before.
    pub fn max_mod_revision(mut self, revision: Revision) -> Self {
        self.op.mod_revision_max = Some(revision);
        self
    }

    /// Only entries whose key was created at `revision` or later.
    pub fn min_create_revision(mut self, revision: Revision) -> Self {
        self.op.create_revision_min = Some(revision);
        self
    }

    /// Only entries whose key was created at `revision` or before.
    pub fn max_create_revision(mut self, revision: Revision) -> Self {
        self.op.create_revision_max = Some(revision);
        self
    }

    /// Yields the entries one by one, however many there are, as they were at one revision.
    ///
    /// It reads page after page, each with the timeout of this request, and holds one page at a time; only an order
    /// other than by key makes it hold them all. The limit is that of the whole stream. Ends after the first error,
    /// which is [`Compacted`](crate::ErrorKind::Compacted) if history was forgotten faster than the stream was read.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// use futures::TryStreamExt;
    /// use quorate::KeyRange;
    ///
    /// client.put("users/ann", "1").await?;
    /// client.put("users/bob", "2").await?;
    /// let mut users = client.range(KeyRange::prefix("users/")).stream();
    /// while let Some(user) = users.try_next().await? {
    ///     println!("{:?}", user.key);
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use = "a stream does nothing until it is polled"]
    pub fn stream(self) -> BoxStream<'static, Result<KeyValue>> {
        self.pages().entries()
    }

    /// All entries, and the revision at which they were read.
    pub(crate) async fn read_all(self) -> Result<(Vec<KeyValue>, Revision)> {
        self.pages().read_all().await
    }

    fn pages(self) -> Pages {
        Pages::new(self.client.link().clone(), self.op, self.fresh, self.timeout)
    }

    async fn send(self) -> Result<Page> {
        let txn = TxnOp::single(OpKind::Range(self.op));
        match only(self.client.link().query(txn, self.fresh, self.timeout).await?)?.1 {
            OpResult::Range(page) => Ok(page),
            _ => Err(malformed("outcome of a range read")),
        }
    }
}

/// A transaction. Made by [`Client::txn`].
///
/// Without conditions the first branch is carried out. A transaction whose branches only read is answered as a read,
/// without an entry in the log. All changes of one transaction are one revision, and arrive at watches together.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::Op;
///
/// client.put("a", "1").await?;
/// let both = client.txn().then(Op::get("a")).then(Op::get("b")).await?; // at the same revision
/// assert_eq!(both.results.len(), 2);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Txn<'a> {
    client: &'a Client,
    op: TxnOp,
    fresh: Freshness,
    timeout: Option<Duration>,
}
request!(Txn -> TxnOutcome);

impl Txn<'_> {
    /// Adds a condition. All of them must hold.
    pub fn when(mut self, condition: impl Into<Compare>) -> Self {
        self.op.when.push(condition.into());
        self
    }

    /// Adds an operation to carry out if the conditions hold.
    pub fn then(mut self, op: Op) -> Self {
        self.op.then.push(op);
        self
    }

    /// Adds an operation to carry out if they do not.
    pub fn otherwise(mut self, op: Op) -> Self {
        self.op.otherwise.push(op);
        self
    }

    /// Of a transaction that only reads: how fresh its answer must be. A write sees the newest state in any case.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.fresh.consistency = consistency;
        self
    }

    async fn send(self) -> Result<TxnOutcome> {
        self.client.link().txn(self.op, self.fresh, self.timeout).await
    }
}

/// Forgets history. Made by [`Client::compact`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let now = client.put("greeting", "hello").await?;
/// client.compact(now).await?; // what is left of history begins here
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Compact<'a> {
    client: &'a Client,
    revision: Revision,
    timeout: Option<Duration>,
}
request!(Compact -> ());

impl Compact<'_> {
    async fn send(self) -> Result<()> {
        let command = Command::Compact(self.revision);
        match self.client.link().propose(command, self.timeout).await? {
            Applied::Compacted { .. } => Ok(()),
            _ => Err(malformed("outcome of a compaction").unknown_outcome()),
        }
    }
}

/// Asks a node about itself. Made by [`Client::status`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let healthy = client.status().timeout(std::time::Duration::from_secs(1)).await.is_ok();
/// assert!(healthy);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct StatusRead<'a> {
    client: &'a Client,
    timeout: Option<Duration>,
}
request!(StatusRead -> Status);

impl StatusRead<'_> {
    async fn send(self) -> Result<Status> {
        match self.client.link().call(Request::Status, self.timeout).await? {
            Response::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }
}

fn put_op(key: &[u8], value: Bytes) -> PutOp {
    PutOp {
        key: Bytes::copy_from_slice(key),
        value,
        lease: None,
        ignore_value: false,
        ignore_lease: false,
        prev: false,
    }
}

/// Carries out one write.
async fn write(
    client: &Client,
    op: OpKind,
    timeout: Option<Duration>,
) -> Result<(Revision, OpResult)> {
    let command = Command::Txn(TxnOp::single(op));
    match client.link().propose(command, timeout).await? {
        Applied::Txn(outcome) => only(outcome).map_err(Error::unknown_outcome),
        _ => Err(malformed("outcome of a write").unknown_outcome()),
    }
}

/// The revision, and the result of the only operation.
fn only(mut outcome: TxnOutcome) -> Result<(Revision, OpResult)> {
    match (outcome.results.pop(), outcome.results.is_empty()) {
        (Some(result), true) => Ok((outcome.revision, result)),
        _ => Err(malformed("number of results")),
    }
}

#[cfg(test)]
mod tests;
