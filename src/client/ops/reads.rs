//! Requests that only look: a key, a range of them, and the node that answers.
//!
//! None of them enters the log. How fresh an answer has to be is said by whoever asks, and by what its client has seen.

use super::{only, request};
use crate::api::{Request, Response};
use crate::client::Client;
use crate::client::link::{Freshness, malformed, unexpected};
use crate::client::pages::Pages;
use crate::error::Result;
use crate::types::{
    Consistency, GetOp, KeyRange, KeyValue, OpKind, OpResult, Page, RangeOp, Revision, Shows,
    SortBy, Status, TxnOp,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use std::time::Duration;

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
        self.op.shows = Shows::Count;
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
        match self.client.link().ask(Request::Status, self.timeout).await? {
            Response::Status(status) => {
                self.client.link().saw(status.revision);
                Ok(*status)
            }
            other => Err(unexpected(&other)),
        }
    }
}
