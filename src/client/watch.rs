//! A watch: changes of a range, from any revision on, in order and without a gap.
//!
//! ```text
//! history   … 41  42  43  44  45 …
//!                  └───────────────▶ client.watch(range).from(42)
//! recv()          42      44         (43 changed other keys)
//! position()      42   43    45      everything below was delivered: where to resume
//! ```
//!
//! Invariants
//! - *ordered* by revision; *unique*; *reliable*: nothing that matches is left out; *atomic*: a revision comes whole;
//! - *resumable*: a watch from `position()` goes on where this one stopped, on any member;
//! - it ends only if history was compacted past it, or the client or its node was shut down or refuses for good: it has
//!   failed, or was removed from the group. An outage is waited out.
//!
//! It is not a queue of its own: one task follows all watches of a client (`follow.rs`), and a slow watch holds up
//! neither it nor other watches.

use super::Client;
use super::follow::{Plan, WatchId};
use super::slot::Slot;
use crate::api;
use crate::error::{Error, Result};
use crate::types::{Changes, Event, KeyRange, KeyValue, Revision};
use futures::Stream;
use futures::future::{BoxFuture, poll_fn};
use std::collections::{BTreeMap, VecDeque};
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Opens a watch. Made by [`Client::watch`].
///
/// Without [`from`](Self::from) or [`with_existing`](Self::with_existing) it sees what is written after it was opened:
/// everything whose answer came after this one.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// client.put("jobs/1", "sweep").await?;
/// let page = client.range("jobs/".."jobs0").await?;
/// let mut watch = client.watch("jobs/".."jobs0").from(page.revision.next()).prev().await?;
///
/// client.delete("jobs/1").await?;
/// let changes = watch.recv().await?;
/// assert!(changes.revision > page.revision);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct WatchBuilder<'a> {
    client: &'a Client,
    start: Start,
    plan: Plan,
    timeout: Option<Duration>,
}

#[derive(Debug)]
enum Start {
    Now,
    At(Revision),
    Existing,
}

impl<'a> WatchBuilder<'a> {
    pub(super) fn new(client: &'a Client, range: KeyRange) -> Self {
        let plan = Plan { range, puts: true, deletes: true, prev: false };
        Self { client, start: Start::Now, plan, timeout: None }
    }

    /// Begins at `revision`. If that has not happened yet, the watch waits for it, and sees nothing older.
    pub fn from(mut self, revision: Revision) -> Self {
        self.start = Start::At(revision.max(Revision::from(1)));
        self
    }

    /// Yields first what exists, as puts, and then what changes, without gap or overlap.
    ///
    /// What exists is grouped by the revision of its last write, oldest first, as if history had been replayed without
    /// what was overwritten. All of it is held in memory until it is taken. Replaces [`from`](Self::from).
    pub fn with_existing(mut self) -> Self {
        self.start = Start::Existing;
        self
    }

    /// Adds to each event what the key held before.
    pub fn prev(mut self) -> Self {
        self.plan.prev = true;
        self
    }

    /// Leaves deletions out. Replaces [`deletes_only`](Self::deletes_only).
    pub fn puts_only(mut self) -> Self {
        (self.plan.puts, self.plan.deletes) = (true, false);
        self
    }

    /// Leaves writes out. Replaces [`puts_only`](Self::puts_only).
    pub fn deletes_only(mut self) -> Self {
        (self.plan.puts, self.plan.deletes) = (false, true);
        self
    }

    /// Waits at most so long for what has to be asked before the watch can begin: the revision of now, or all that exists.
    pub fn timeout(mut self, wait: Duration) -> Self {
        self.timeout = Some(wait);
        self
    }

    async fn open(self) -> Result<Watch> {
        let Self { client, start, plan, timeout } = self;
        api::check_range(&plan.range)?;
        // From here on keys are those of the group, which lose their prefix when they are handed out.
        let plan = Plan { range: client.link().namespace().range(plan.range), ..plan };
        // One that is refused there would end all watches with it.
        api::check_range(&plan.range)?;
        let root = client.root();
        let (existing, next) = match start {
            Start::At(revision) => (VecDeque::new(), revision),
            // By the word of a quorum: a member that lags would begin in the past or, worse, be asked elsewhere later.
            Start::Now => (VecDeque::new(), root.link().revision(timeout).await?.next()),
            Start::Existing => {
                let mut read = root.range(plan.range.clone());
                if let Some(wait) = timeout {
                    read = read.timeout(wait);
                }
                let (entries, revision) = read.read_all().await?;
                let existing = if plan.puts { by_revision(entries) } else { VecDeque::new() };
                (existing, revision.next())
            }
        };
        let slot = Arc::new(Slot::new(existing, next));
        let range_bytes = plan.range.bytes();
        let id = client.hub().open(slot.clone(), plan)?;
        Ok(Watch { client: client.clone(), id, range_bytes, slot, ended: false })
    }
}

impl<'a> IntoFuture for WatchBuilder<'a> {
    type Output = Result<Watch>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

/// What exists, as if it had just been written.
fn by_revision(entries: Vec<KeyValue>) -> VecDeque<Changes> {
    let mut revisions = BTreeMap::<Revision, Vec<Event>>::new();
    for kv in entries {
        revisions.entry(kv.mod_revision).or_default().push(Event::Put { kv, prev: None });
    }
    revisions.into_iter().map(|(revision, events)| Changes { revision, events }).collect()
}

/// A cursor over history: yields all changes of its range, one revision at a time.
///
/// It is a [`Stream`] as well, which ends after its first error. While nobody takes from it, it holds a bounded amount
/// of changes and loses none; it fails only if history is compacted past it.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::{Event, KeyRange};
///
/// let mut watch = client.watch(KeyRange::prefix("jobs/")).await?;
/// client.put("jobs/1", "sweep").await?;
/// client.delete("jobs/1").await?;
/// let (put, deleted) = (watch.recv().await?, watch.recv().await?);
/// assert!(put.revision < deleted.revision);
/// assert!(matches!(deleted.events[0], Event::Delete { .. }));
///
/// client.compact(deleted.revision).await?;
/// let mut late = client.watch(KeyRange::prefix("jobs/")).from(put.revision).await?;
/// let error = late.recv().await.unwrap_err(); // read the range anew, and watch from there
/// assert_eq!(error.kind(), quorate::ErrorKind::Compacted);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a watch that is dropped sees nothing"]
pub struct Watch {
    client: Client,
    id: WatchId,
    range_bytes: usize,
    slot: Arc<Slot>,
    /// As a stream, it yields its error once.
    ended: bool,
}

impl Watch {
    /// Waits for the next revision that changed something in the range, and yields all its changes there.
    ///
    /// # Errors
    ///
    /// [`Compacted`](crate::ErrorKind::Compacted): history begins later than where the watch stands. Read the range
    /// anew, and watch from there. [`Closed`](crate::ErrorKind::Closed): the node or client was shut down. The cause,
    /// if the member that is watched through has failed, or was removed from the group
    /// ([`MemberRemoved`](crate::Reason::MemberRemoved)): watch from [`position`](Self::position) through another. An error
    /// is final; a call after it yields the same one. An outage is no error: the watch goes on when the group does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next call yields what this one would have.
    pub async fn recv(&mut self) -> Result<Changes> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// The first revision of which this watch has not been asked for everything yet: all before it was delivered.
    ///
    /// It moves on although nothing in the range changes, and never goes back. Until what existed was taken, of a watch
    /// [with that](WatchBuilder::with_existing), it is where that was written, which history may not hold any more.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let mut watch = client.watch("jobs/".."jobs0").await?;
    /// client.put("jobs/1", "sweep").await?;
    /// let seen = watch.recv().await?.revision;
    /// let resumed = client.watch("jobs/".."jobs0").from(watch.position()).await?;
    /// assert!(resumed.position() > seen);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn position(&self) -> Revision {
        self.client.hub().position(&self.slot)
    }

    /// How many changes, and about how many bytes of them, wait to be taken.
    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        self.slot.held()
    }

    fn poll_recv(&self, context: &Context<'_>) -> Poll<Result<Changes, Error>> {
        let taken = self.client.hub().poll_take(self.id, &self.slot, context);
        taken.map_ok(|changes| self.client.link().namespace().changes(changes))
    }
}

impl Stream for Watch {
    type Item = Result<Changes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = self.poll_recv(context);
        self.ended = matches!(item, Poll::Ready(Err(_)));
        item.map(Some)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.client.hub().close(self.id, self.range_bytes);
    }
}

#[cfg(test)]
mod tests;
