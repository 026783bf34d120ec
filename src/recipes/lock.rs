//! A lock with a fencing token.
//!
//! Who asks first gets it first. A holder that dies or is cut off loses it with its session, and gives it up by its own
//! clock before the group hands it on.
//!
//! ```text
//! session.lock("nightly") ──waits in line──▶ LockGuard { token 44 } ──release, drop, or session lost──▶ next in line
//! ```
//!
//! Without a token check at the resource mutual exclusion does not hold; [`recipes`](super) says why.

use super::line::{Line, Place};
use crate::client::Session;
use crate::error::Result;
use crate::types::{Compare, FencingToken};
use bytes::Bytes;
use std::future::Future;

const KIND: &str = "lock";

/// Proof of a turn at the head of a line. Never `Clone`: dropping it gives the turn up.
///
/// Made by [`Session::lock`] and [`Session::try_lock`].
///
/// Without a token check at the resource mutual exclusion does not hold: hand [`token`](Self::token) to what the lock
/// protects, or [`held`](Self::held) to the transaction.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// # let session = client.session(std::time::Duration::from_secs(10)).await?;
/// use quorate::Op;
///
/// let lock = session.lock("billing/nightly").await?;
/// let mark = Op::put("billing/last-run", "2026-01-31");
/// let done = client.txn().when(lock.held()).then(mark).await?;
/// assert!(done.succeeded, "a stale holder cannot write");
/// lock.release().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard {
    place: Place,
}

impl Session {
    /// Waits for the lock of that name: in line, first come, first served.
    ///
    /// Each call stands in line for itself, so a session that asks twice waits for itself. An outage is waited out for
    /// as long as the session lives.
    ///
    /// Without a token check at the resource mutual exclusion does not hold; see [`LockGuard`].
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost) if the session was lost while it waited.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line: nobody waits for a waiter that has gone. The next call stands at the end.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let lock = session.lock("nightly").await?;
    /// let earlier = lock.token();
    /// lock.release().await?;
    /// assert!(session.lock("nightly").await?.token() > earlier);
    /// # Ok(()) }
    /// ```
    pub async fn lock(&self, name: impl AsRef<str>) -> Result<LockGuard> {
        let place = Line::new(KIND, name.as_ref()).turn(self, Bytes::new()).await?;
        Ok(LockGuard { place })
    }

    /// Takes the lock of that name if nobody holds it or waits for it.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost) if the session was lost before an answer came.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, a lock that was taken meanwhile is released.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let lock = session.try_lock("nightly").await?.expect("nobody holds it");
    /// assert!(session.try_lock("nightly").await?.is_none());
    /// lock.release().await?;
    /// # Ok(()) }
    /// ```
    pub async fn try_lock(&self, name: impl AsRef<str>) -> Result<Option<LockGuard>> {
        let place = Line::new(KIND, name.as_ref()).turn_if_free(self, Bytes::new()).await?;
        Ok(place.map(|place| LockGuard { place }))
    }
}

impl LockGuard {
    /// Larger than that of every holder before. Let the resource refuse smaller ones.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.place.token()
    }

    /// A condition for your own transactions: true only while this guard holds.
    pub fn held(&self) -> Compare {
        self.place.held()
    }

    /// Completes when the lock is lost because its session is.
    ///
    /// It does not notice an operator who deletes the key of the lock; [`held`](Self::held) does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn lost(&self) {
        self.place.session().lost().await;
    }

    /// Runs `work` until it ends or the lock is lost, whichever comes first. The lock is still held afterwards.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost). `work` is then dropped where it stood.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `work`.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output> {
        self.place.session().run(work).await
    }

    /// Gives the lock to the next in line, and waits for the answer. Dropping the guard does the same in the
    /// background.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost) if it was not held any more: somebody else may have held it since.
    /// After any other error the release goes on in the background.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the release goes on in the background.
    pub async fn release(self) -> Result<()> {
        self.place.leave().await
    }
}

#[cfg(test)]
mod tests;
