//! A session: a lease that is kept alive in the background, and that says when it is lost.
//!
//! Whatever must not outlive its process hangs on one: locks, leaderships, registrations. While the session lives, so
//! do its keys; when the process dies, is cut off, or closes it, the group deletes them.
//!
//! ```text
//!            renewed in time                       the deadline passed, or the group says that the lease is gone
//! alive ─────────┘   │ └──────────────────▶ lost, for good
//!                    └ close(), or the last clone dropped ─▶ revoked, and lost
//! ```
//!
//! Invariants
//! - `lost()` fires before the group can let the lease expire (`life.rs` says how), so a holder that is cut off
//!   stops before another can begin;
//! - a lost session never comes back. Open a new one;
//! - dropping the last clone asks the keeper to revoke the lease. It does not wait, spawn or panic.
//!
//! It cannot stop a process that does not look: one that was paused past the deadline, say, may write once more before
//! it notices. So without a token check at the resource mutual exclusion does not hold.

use super::Client;
use super::life::{Life, unless_lost};
use super::link::malformed;
use crate::api::{self, Applied, Command};
use crate::error::{Error, Reason, Result};
use crate::types::{LeaseId, Revision};
use bytes::Bytes;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// A heartbeat: one lease, kept alive until this is closed or every clone is dropped.
///
/// It counts as lost a tenth of its time to live (100 ms at least) before the group could let it expire, and every
/// clone sees that at once. A session in two tasks is one session: what it holds is held by both.
///
/// Without a token check at the resource mutual exclusion does not hold: a process can be paused after it looked, for
/// longer than any deadline. Hand the [`FencingToken`](crate::FencingToken) of a lock or leadership to what it
/// protects.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// # use std::time::Duration;
/// let session = client.session(Duration::from_secs(10)).await?;
/// client.put("workers/7", "here").lease(session.lease_id()).await?;
/// session.run(work()).await?; // stopped if the session is lost
/// session.close().await?;
/// assert_eq!(client.get("workers/7").await?, None);
/// # async fn work() {}
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "the lease is revoked when the session is dropped"]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    life: Arc<Life>,
    /// How many names were made for keys of this session.
    nonces: AtomicU64,
    /// Somebody said `close`.
    closed: watch::Sender<bool>,
    /// The lease is known to be gone, or the keeper sees to it.
    revoked: AtomicBool,
}

impl Inner {
    /// Has the lease revoked in the background, unless that was done. Does not wait, spawn or panic.
    fn revoke_later(&self) {
        if !self.revoked.swap(true, Ordering::Relaxed) {
            self.client.keeper().revoke(self.life.clone());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.revoke_later();
    }
}

/// A `close` that may fail or be dropped, while others still hold the session.
struct Closing<'a>(&'a Inner);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.revoke_later();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lease = self.lease_id();
        f.debug_struct("Session").field("lease", &lease).field("alive", &self.is_alive()).finish()
    }
}

impl Client {
    /// Opens a session whose lease lives for `ttl`: that long after this process is gone, its keys are. Each change of the leader
    /// meanwhile gives it that long anew.
    ///
    /// Shorter is not better. The group refuses less than a change of its leader takes, and a pause of this process
    /// of about the time to live ends the session.
    ///
    /// # Errors
    ///
    /// [`TtlTooSmall`](crate::Reason::TtlTooSmall), or what the group did not answer in time with.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a lease behind, which nobody renews and which expires after `ttl`.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # use std::time::Duration;
    /// let session = client.session(Duration::from_secs(10)).await?;
    /// assert!(session.is_alive());
    /// # Ok(()) }
    /// ```
    pub async fn session(&self, ttl: Duration) -> Result<Session> {
        let command = Command::Grant { id: None, ttl };
        api::check_command(&command, Duration::ZERO)?;
        // Asked for again it is another lease. Of the first one the time might be over when its answer comes.
        let granted = self.link().propose_again(command.into(), self.link().timeout()).await?;
        let (Applied::Granted { id, ttl, .. }, sent) = granted else {
            return Err(malformed("outcome of a grant"));
        };
        let life = Arc::new(Life::new(id, ttl, sent));
        let inner = Inner {
            client: self.clone(),
            life: life.clone(),
            nonces: AtomicU64::new(0),
            closed: watch::Sender::new(false),
            revoked: AtomicBool::new(false),
        };
        let session = Session { inner: Arc::new(inner) };
        self.keeper().keep(life, sent)?;
        if session.is_alive() { Ok(session) } else { Err(Error::new(Reason::SessionLost)) }
    }
}

impl Session {
    /// The client it belongs to.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Its lease: attach keys to it that shall vanish with the session.
    #[must_use]
    pub fn lease_id(&self) -> LeaseId {
        self.inner.life.lease()
    }

    /// The time to live of its lease.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.inner.life.ttl()
    }

    /// Whether it lives, as of now.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inner.life.is_alive()
    }

    /// Completes when the session is lost: before the group can let its lease expire, or as soon as it is known to be
    /// gone. Also after the process was stopped for longer than that, before it does anything else about the session.
    ///
    /// A machine that is suspended stops the clock by which that is told: afterwards this completes when the next renewal is
    /// answered, after a third of the time to live or so. What must not happen twice even then carries a
    /// [fencing token](crate::FencingToken).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let watchdog = session.clone();
    /// session.close().await?;
    /// watchdog.lost().await;
    /// assert!(!watchdog.is_alive());
    /// # Ok(()) }
    /// ```
    pub async fn lost(&self) {
        self.inner.life.lost(self.client().link()).await;
    }

    /// Runs `work` until it ends or the session is lost, whichever comes first.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost). `work` is then dropped where it stood.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `work`.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let sum = session.run(async { 40 + 2 }).await?;
    /// assert_eq!(sum, 42);
    /// # Ok(()) }
    /// ```
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output> {
        unless_lost(&self.inner.life, self.client().link(), work).await
    }

    /// Ends the session for all its clones, and waits until the group has deleted its keys.
    ///
    /// # Errors
    ///
    /// What the group did not answer in time with. The session is lost all the same, and the keeper goes on trying.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the rest to the keeper.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let lease = session.lease_id();
    /// session.close().await?;
    /// assert_eq!(client.lease_time_to_live(lease).await?, None);
    /// # Ok(()) }
    /// ```
    pub async fn close(self) -> Result<()> {
        self.inner.closed.send_replace(true);
        self.lose();
        let _closing = Closing(&self.inner);
        match self.client().lease_revoke(self.lease_id()).await {
            Err(error) if !matches!(error.reason(), Reason::LeaseNotFound { .. }) => Err(error),
            Ok(()) | Err(_) => {
                self.inner.revoked.store(true, Ordering::Relaxed);
                self.client().keeper().forget(self.lease_id());
                Ok(())
            }
        }
    }

    /// Completes when somebody closes it, also after it was lost.
    pub(crate) async fn closed(&self) {
        // It has a sender for as long as there is a session.
        let _ = self.inner.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Counts the session as lost from now on.
    pub(crate) fn lose(&self) {
        self.inner.life.lose();
    }

    /// A number that this session has not given before.
    pub(crate) fn nonce(&self) -> u64 {
        self.inner.nonces.fetch_add(1, Ordering::Relaxed)
    }

    /// Has a key deleted in the background, if it is of the life that began at `created`. Without that, the key may be
    /// about to be written, so it must be one that nobody writes twice. Does not wait, spawn or panic.
    pub(crate) fn delete_later(&self, key: Bytes, created: Option<Revision>) {
        let key = self.client().link().namespace().key(key);
        self.client().keeper().delete(&self.inner.life, key, created);
    }
}

#[cfg(test)]
mod tests;
