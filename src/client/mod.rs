//! The client: typed requests, watches and sessions, over a node in this process or a remote one.
//!
//! A [`Client`] is a handle. Cloning it costs a reference count, and all clones share two background tasks, which are
//! started when first needed: the *hub* follows all watches in one waiting call, and the *keeper* keeps the leases of
//! all sessions alive in shared calls. So ten thousand watches, or a thousand sessions, are one client to the group.
//!
//! ```text
//! get put delete range txn lease_* compact status ──────────────┐
//! watch ×10,000 ──▶ hub: one Follow call ───────────────────────┼──▶ Link ──▶ tower service ──▶ node, or remote stub
//! session ×1,000 ─▶ keeper: one KeepAlive call each ttl/3 ──────┘    (check, deadline)
//! ```
//!
//! Every request is a value with its options as methods, and is sent when it is awaited:
//!
//! ```
//! # use quorate::{Client, Consistency};
//! # async fn f(client: Client) -> quorate::Result<()> {
//! let written = client.put("greeting", "hello").await?;
//! let read = client.get("greeting").consistency(Consistency::Serializable).await?;
//! assert_eq!(read.map(|kv| kv.mod_revision), Some(written));
//! # Ok(()) }
//! ```
//!
//! # Cancel safety
//!
//! Dropping a request before it is answered gives up the answer, not the request: a write may still happen.
//!
//! Invariants
//! - the tasks end when the last client, watch and session is dropped; none is ever left without an owner;
//! - nothing here knows which node leads: any node passes a write on;
//! - a request whose answer is lost is sent again as long as its time lasts: a read is the same the second time, and a write
//!   has a name (`once.rs`). What a client of another process asks goes to another member, if one fails.

pub(crate) mod backoff;
#[cfg(test)]
pub(crate) mod fake;
mod follow;
pub(crate) mod home;
mod keeper;
mod lease;
mod life;
pub(crate) mod link;
mod map;
mod members;
mod namespace;
mod once;
mod ops;
mod pages;
mod remote;
mod router;
mod session;
mod slot;
mod value;
mod watch;

pub use lease::{
    LeaseGrant, LeaseGranted, LeaseKeepAlive, LeaseList, LeaseRevoke, LeaseTimeToLive,
};
pub use map::Map;
pub use members::{MemberList, PromoteMember, RemoveMember, ReplaceMember};
pub(crate) use once::Names;
pub use ops::{
    Compact, Delete, DeleteIf, DeletePrev, Get, Put, PutIf, PutPrev, RangeRead, StatusRead, Txn,
};
pub use remote::ClientBuilder;
pub use session::Session;
pub use value::Codec;
pub use watch::{Watch, WatchBuilder};

use crate::error::Result;
use crate::types::{KeyRange, KeyValue, Revision};
use follow::Hub;
use home::Home;
use keeper::Keeper;
use link::{Link, Service};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a call waits if nothing else was said.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// A handle to a group. Cheap to clone; local or remote, it behaves the same.
///
/// `Node::client` gives one that reaches its node without a socket; [`Client::connect`] one that reaches a group from
/// outside.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// client.put("jobs/1", "sweep the floor").await?;
/// let jobs = client.range("jobs/".."jobs0").await?;
/// assert_eq!(jobs.count, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What all clones of a client have in common. Watches and sessions hold it too.
struct Shared {
    link: Link,
    tasks: Arc<Tasks>,
}

/// The tasks that its namespaces share with a client. They know keys as the group does.
struct Tasks {
    link: Link,
    hub: OnceLock<Hub>,
    keeper: OnceLock<Keeper>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("link", &self.shared.link).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of whatever answers `service`. Its background tasks and timers live at `home`, and its writes get `names`.
    pub(crate) fn over(service: Service, home: Home, timeout: Duration, names: Arc<Names>) -> Self {
        Self::on(Link::new(service, home, timeout, names))
    }

    /// The same, of one that fails now and then, after which the same request can succeed.
    fn over_remote(service: Service, home: Home, timeout: Duration) -> Self {
        Self::on(Link::new(service, home, timeout, Arc::default()).repeating())
    }

    fn on(link: Link) -> Self {
        let (hub, keeper) = (OnceLock::new(), OnceLock::new());
        let tasks = Arc::new(Tasks { link: link.clone(), hub, keeper });
        Self { shared: Arc::new(Shared { link, tasks }) }
    }

    /// The same group, of which nothing is seen but the keys that begin with `prefix`, without it.
    ///
    /// All that goes through it stays there: reads, writes, watches, and what sessions and recipes write. Names of locks and
    /// elections are apart for the same reason. Leases, members and compaction are of the whole group. It shares the
    /// background tasks of the client that it is made from, and namespaces can be made within namespaces. An application that
    /// is given one needs to know nothing of it; it is an aid to order, and no wall against malice.
    ///
    /// The lease of a key is the group's, and revoking it deletes keys wherever they are. The key that is `prefix` itself
    /// shows as an empty one, which can be listed and not be named. A condition such as [`LockGuard::held`](crate::recipes::LockGuard::held) names a key, and so belongs into a
    /// transaction of the namespace that it comes from. The prefix counts for the length of a key.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let shop = client.namespace("shop/");
    /// shop.put("cart/7", "two apples").await?;
    ///
    /// assert_eq!(shop.range(..).await?.entries[0].key, "cart/7");
    /// assert_eq!(client.range(..).await?.entries[0].key, "shop/cart/7");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn namespace(&self, prefix: impl AsRef<[u8]>) -> Self {
        let link = self.link().within(prefix.as_ref());
        Self { shared: Arc::new(Shared { link, tasks: Arc::clone(&self.shared.tasks) }) }
    }

    /// Connects to a group through the first of `endpoints` that answers, each of the form `host:port`. One that lives is
    /// enough: the other members are learned from it, and used when it fails.
    ///
    /// Needs a tokio runtime with timers and sockets, on which its background tasks then run.
    ///
    /// # Errors
    ///
    /// Of kind [`Unavailable`](crate::ErrorKind::Unavailable) if none answers in time, with what each of them failed with.
    /// Or what one of them said that time would not mend.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes what was opened.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// use quorate::{Client, Node};
    ///
    /// let node = Node::builder(folder.path()).listen("127.0.0.1:0").solo().await?;
    /// let address = node.local_address().expect("it listens").to_string();
    ///
    /// let client = Client::connect([address]).await?; // from this process, or from any other
    /// client.put("greeting", "hello").await?;
    /// # node.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect<A: Into<String>>(endpoints: impl IntoIterator<Item = A>) -> Result<Self> {
        Self::builder().endpoints(endpoints).connect().await
    }

    /// Connects with options.
    ///
    /// ```
    /// let builder = quorate::Client::builder().endpoints(["10.0.0.1:7401"]).plaintext();
    /// # let _ = builder;
    /// ```
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Watches a key, or a range of keys, from now on or from any revision that history still holds.
    ///
    /// A client has a million watches at most, whose ranges take 64 MiB together; beyond that one is refused with
    /// [`TooManyRequests`](crate::Reason::TooManyRequests).
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// use quorate::KeyRange;
    ///
    /// client.put("jobs/1", "sweep the floor").await?;
    /// let mut watch = client.watch(KeyRange::prefix("jobs/")).with_existing().await?;
    /// assert_eq!(watch.recv().await?.events[0].key(), "jobs/1");
    ///
    /// client.put("jobs/2", "wipe the table").await?;
    /// assert_eq!(watch.recv().await?.events[0].key(), "jobs/2");
    /// # Ok(()) }
    /// ```
    pub fn watch(&self, range: impl Into<KeyRange>) -> WatchBuilder<'_> {
        WatchBuilder::new(self, range.into())
    }

    /// The same group, of which at most so many reads and writes are under way at once; at least one. Others wait for their
    /// turn, within their own time. For bulk work, beside which a process does something else.
    ///
    /// Clones of it count together. A limit that was said before does not count any more. Watches and sessions have no turn
    /// to wait for, but what is released, closed or taken back has: make locks and registrations with a client that has no
    /// limit.
    ///
    /// A request has its turn until it is answered or dropped, whether it is polled or not. So do not await another one of
    /// this client while some are only kept, in a `buffer_unordered` say, that nobody polls meanwhile.
    ///
    /// # Errors
    ///
    /// [`TooManyRequests`](crate::Reason::TooManyRequests) for one whose turn did not come in its time: nothing was sent.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let importer = client.concurrency(16);
    /// let puts = (0..100).map(|row| importer.put(format!("rows/{row}"), "…").into_future());
    /// futures::future::try_join_all(puts).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn concurrency(&self, requests: usize) -> Self {
        let link = self.link().limited(requests);
        Self { shared: Arc::new(Shared { link, tasks: Arc::clone(&self.shared.tasks) }) }
    }

    /// The same, and it sees all keys.
    fn root(&self) -> Self {
        let tasks = Arc::clone(&self.shared.tasks);
        Self { shared: Arc::new(Shared { link: tasks.link.clone(), tasks }) }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.shared.link
    }

    fn hub(&self) -> &Hub {
        let tasks = &self.shared.tasks;
        tasks.hub.get_or_init(|| Hub::start(tasks.link.clone()))
    }

    fn keeper(&self) -> &Keeper {
        let tasks = &self.shared.tasks;
        tasks.keeper.get_or_init(|| Keeper::start(tasks.link.clone()))
    }

    /// All keys of a range as they are at one revision, in key order, and that revision.
    pub(crate) async fn read_all(&self, range: KeyRange) -> Result<(Vec<KeyValue>, Revision)> {
        self.range(range).read_all().await
    }
}
