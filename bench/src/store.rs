//! What every side can do: the vocabulary in which the work is written, once for all of them.
//!
//! A workload is generic over [`Store`], so both sides run the same loop with the same keys and bytes. An adapter maps a
//! call to what a user of that side would write, with nothing in between that such a user would not have either.
//!
//! ```text
//! work ──▶ Store ─┬─ quorate::Client   in a member's process, or remote
//!                 ├─ etcd              gRPC over tonic
//!                 └─ hiqlite           in a member's process (feature `hiqlite`)
//! ```

use bytes::Bytes;
use std::future::Future;
use std::time::Duration;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T = ()> = std::result::Result<T, Error>;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fresh {
    Linearizable,
    Serializable,
}

/// One caller's way to a group. Cloning is cheap; clones share a connection, if there is one.
pub(crate) trait Store: Clone + Send + Sync + 'static {
    type Watch: Watch;
    type Session: Session;

    fn put(&self, key: &Bytes, value: &Bytes) -> impl Future<Output = Result> + Send;

    /// All of `pairs` in one transaction, to fill a group quickly. At most 100.
    fn put_all(&self, pairs: Vec<(Bytes, Bytes)>) -> impl Future<Output = Result> + Send;

    /// A transaction with one comparison, that `guard` exists, which holds, and two puts.
    fn txn(
        &self,
        guard: &Bytes,
        puts: [&Bytes; 2],
        value: &Bytes,
    ) -> impl Future<Output = Result> + Send;

    /// Reads a key that exists, and returns the length of its value.
    fn get(&self, key: &Bytes, fresh: Fresh) -> impl Future<Output = Result<usize>> + Send;

    /// Reads all keys under a prefix, values included, as fast as this side can: `Linearizable`, in one answer or in
    /// pages. Returns how many there were.
    fn range(&self, prefix: &Bytes) -> impl Future<Output = Result<u64>> + Send;

    /// Counts the keys under a prefix without sending them; `Linearizable`.
    fn count(&self, prefix: &Bytes) -> impl Future<Output = Result<u64>> + Send;

    /// Watches a prefix from now on. When this returns, every later change will be seen.
    fn watch(&self, prefix: &Bytes) -> impl Future<Output = Result<Self::Watch>> + Send;

    /// Makes a lease, with an id that the group chooses.
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<u64>> + Send;

    /// Puts a key that goes with a lease.
    fn put_leased(
        &self,
        key: &Bytes,
        value: &Bytes,
        lease: u64,
    ) -> impl Future<Output = Result> + Send;

    /// Renews one lease. Several callers at once should be as cheap as this side allows.
    fn keep_alive(&self, lease: u64) -> impl Future<Output = Result> + Send;

    /// Ends a lease and deletes its keys.
    fn revoke(&self, lease: u64) -> impl Future<Output = Result> + Send;

    /// A lease that is kept alive in the background, for locks and elections.
    fn session(&self, ttl: Duration) -> impl Future<Output = Result<Self::Session>> + Send;
}

/// A stream of changes. Dropping it ends the watch.
pub(crate) trait Watch: Send + 'static {
    /// Waits for the next changes, at least one: the value of each put, `None` for each delete, with the keys.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Change>>> + Send;
}

/// A change that a watch has seen.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: Bytes,
    /// `None` if it was deleted.
    pub(crate) value: Option<Bytes>,
}

/// Holds locks and leads elections.
pub(crate) trait Session: Send + Sync + 'static {
    type Held: Held;

    /// Waits until the lock is held.
    fn lock(&self, name: &str) -> impl Future<Output = Result<Self::Held>> + Send;

    /// Waits until this session leads, with `who` as its value.
    fn campaign(&self, name: &str, who: &str) -> impl Future<Output = Result<Self::Held>> + Send;

    /// Ends the session and its lease.
    fn close(self) -> impl Future<Output = Result> + Send;
}

/// A lock or a lead.
pub(crate) trait Held: Send + 'static {
    /// Gives it up, and waits until the group knows.
    fn release(self) -> impl Future<Output = Result> + Send;
}
