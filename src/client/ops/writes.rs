//! Requests that change something: puts, deletes, and history that is forgotten.
//!
//! Each is one entry of the log. A condition makes a transaction of it, so that what it depends on is looked at where it is
//! carried out.

use super::{only, request};
use crate::api::{Applied, Command};
use crate::client::Client;
use crate::client::link::{Freshness, malformed};
use crate::error::{Error, Result};
use crate::types::{
    Compare, DeleteOp, KeyRange, KeyValue, LeaseId, Op, OpKind, OpResult, PutOp, Revision, TxnOp,
};
use bytes::Bytes;
use std::time::Duration;

impl Client {
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
    /// deleted it since. Revision 0 is that of a key that is not there.
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
    let outcome = client.link().write(TxnOp::single(op), timeout).await?;
    only(outcome).map_err(Error::unknown_outcome)
}
