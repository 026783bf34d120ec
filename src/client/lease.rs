//! Leases by hand: grant, keep alive, revoke, look.
//!
//! A lease is a deadline that the group keeps, and the keys that vanish with it. Most programs want a
//! [`Session`](super::Session), which keeps one alive and says when it is lost; this is for the others.

use super::Client;
use super::link::{malformed, unexpected};
use super::ops::request;
use crate::api::{Applied, Command, Request, Response};
use crate::error::Result;
use crate::types::{LeaseId, LeaseStatus};
use std::time::Duration;

impl Client {
    /// Makes a lease that lives for `ttl`, and so long again from each keep-alive.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # use std::time::Duration;
    /// let lease = client.lease_grant(Duration::from_secs(30)).await?;
    /// client.put("worker/7", "here").lease(lease.id).await?; // gone 30 seconds from now
    /// # Ok(()) }
    /// ```
    pub fn lease_grant(&self, ttl: Duration) -> LeaseGrant<'_> {
        LeaseGrant { client: self, id: None, ttl, timeout: None }
    }

    /// Pushes the deadline of a lease back, and yields its time to live from the moment of the answer at the latest.
    ///
    /// # Errors
    ///
    /// [`LeaseNotFound`](crate::Reason::LeaseNotFound) if the lease is gone.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # use std::time::Duration;
    /// let lease = client.lease_grant(Duration::from_secs(30)).await?;
    /// assert_eq!(client.lease_keep_alive(lease.id).await?, lease.ttl);
    /// # Ok(()) }
    /// ```
    pub fn lease_keep_alive(&self, lease: LeaseId) -> LeaseKeepAlive<'_> {
        LeaseKeepAlive { client: self, lease, timeout: None }
    }

    /// Ends a lease, and deletes its keys in one revision.
    ///
    /// # Errors
    ///
    /// [`LeaseNotFound`](crate::Reason::LeaseNotFound) if the lease is gone.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # use std::time::Duration;
    /// let lease = client.lease_grant(Duration::from_secs(30)).await?;
    /// client.put("worker/7", "here").lease(lease.id).await?;
    /// client.lease_revoke(lease.id).await?;
    /// assert_eq!(client.get("worker/7").await?, None);
    /// # Ok(()) }
    /// ```
    pub fn lease_revoke(&self, lease: LeaseId) -> LeaseRevoke<'_> {
        LeaseRevoke { client: self, lease, timeout: None }
    }

    /// Asks how much time is left to a lease, and which keys hang on it. `None`: it is unknown, or gone.
    ///
    /// # Errors
    ///
    /// [`ResultTooLarge`](crate::Reason::ResultTooLarge) if the keys take more than
    /// [`limits::ANSWER_BYTES_MAX`](crate::limits::ANSWER_BYTES_MAX): ask [without them](LeaseTimeToLive::without_keys).
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # use std::time::Duration;
    /// let lease = client.lease_grant(Duration::from_secs(30)).await?;
    /// client.put("worker/7", "here").lease(lease.id).await?;
    /// let status = client.lease_time_to_live(lease.id).await?.expect("it exists");
    /// assert!(status.remaining <= status.ttl);
    /// assert_eq!(status.keys, ["worker/7"]);
    /// assert_eq!(client.lease_time_to_live(12345.into()).await?, None);
    /// # Ok(()) }
    /// ```
    pub fn lease_time_to_live(&self, lease: LeaseId) -> LeaseTimeToLive<'_> {
        LeaseTimeToLive { client: self, lease, keys: true, timeout: None }
    }

    /// Lists all leases of the group, with their keys.
    ///
    /// # Errors
    ///
    /// [`ResultTooLarge`](crate::Reason::ResultTooLarge) if they take more than
    /// [`limits::ANSWER_BYTES_MAX`](crate::limits::ANSWER_BYTES_MAX): ask [without keys](LeaseList::without_keys), and then for
    /// each.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # use std::time::Duration;
    /// let lease = client.lease_grant(Duration::from_secs(30)).await?;
    /// let leases = client.lease_list().await?;
    /// assert_eq!(leases.iter().map(|it| it.id).collect::<Vec<_>>(), [lease.id]);
    /// # Ok(()) }
    /// ```
    pub fn lease_list(&self) -> LeaseList<'_> {
        LeaseList { client: self, keys: true, timeout: None }
    }
}

/// Makes a lease. Made by [`Client::lease_grant`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// # use std::time::Duration;
/// let lease = client.lease_grant(Duration::from_secs(30)).id(7.into()).await?;
/// assert_eq!(lease.id.get(), 7);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct LeaseGrant<'a> {
    client: &'a Client,
    id: Option<LeaseId>,
    ttl: Duration,
    timeout: Option<Duration>,
}
request!(LeaseGrant -> LeaseGranted);

/// A lease that was made.
///
/// ```
/// # use std::time::Duration;
/// # async fn f(client: quorate::Client) -> quorate::Result<()> {
/// let lease = client.lease_grant(Duration::from_secs(30)).await?;
/// println!("lease {} lives for {:?}", lease.id, lease.ttl);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseGranted {
    /// Its name.
    pub id: LeaseId,
    /// The time to live that was granted.
    pub ttl: Duration,
}

impl LeaseGrant<'_> {
    /// Asks for a certain id. Without it, or with 0, the group chooses one that is free.
    pub fn id(mut self, id: LeaseId) -> Self {
        self.id = Some(id);
        self
    }

    async fn send(self) -> Result<LeaseGranted> {
        let command = Command::Grant { id: self.id, ttl: self.ttl };
        match self.client.link().propose(command, self.timeout).await? {
            Applied::Granted { id, ttl, .. } => Ok(LeaseGranted { id, ttl }),
            _ => Err(malformed("outcome of a grant").unknown_outcome()),
        }
    }
}

/// Pushes the deadline of a lease back. Made by [`Client::lease_keep_alive`].
///
/// ```
/// # async fn f(client: quorate::Client, lease: quorate::LeaseId) -> quorate::Result<()> {
/// let ttl = client.lease_keep_alive(lease).await?;
/// # let _ = ttl; Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct LeaseKeepAlive<'a> {
    client: &'a Client,
    lease: LeaseId,
    timeout: Option<Duration>,
}
request!(LeaseKeepAlive -> Duration);

impl LeaseKeepAlive<'_> {
    async fn send(self) -> Result<Duration> {
        let request = Request::KeepAlive { leases: vec![self.lease], forwarded: false };
        match self.client.link().ask(request, self.timeout).await? {
            Response::KeepAlive(mut answers) if answers.len() == 1 => Ok(answers.remove(0)?),
            other => Err(unexpected(&other)),
        }
    }
}

/// Ends a lease. Made by [`Client::lease_revoke`].
///
/// ```
/// # async fn f(client: quorate::Client, lease: quorate::LeaseId) -> quorate::Result<()> {
/// client.lease_revoke(lease).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct LeaseRevoke<'a> {
    client: &'a Client,
    lease: LeaseId,
    timeout: Option<Duration>,
}
request!(LeaseRevoke -> ());

impl LeaseRevoke<'_> {
    async fn send(self) -> Result<()> {
        match self.client.link().propose(Command::Revoke(self.lease), self.timeout).await? {
            Applied::Revoked { .. } => Ok(()),
            _ => Err(malformed("outcome of a revoke").unknown_outcome()),
        }
    }
}

/// Asks about a lease. Made by [`Client::lease_time_to_live`].
///
/// ```
/// # async fn f(client: quorate::Client, lease: quorate::LeaseId) -> quorate::Result<()> {
/// if let Some(status) = client.lease_time_to_live(lease).await? {
///     println!("{:?} left", status.remaining);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct LeaseTimeToLive<'a> {
    client: &'a Client,
    lease: LeaseId,
    keys: bool,
    timeout: Option<Duration>,
}
request!(LeaseTimeToLive -> Option<LeaseStatus>);

impl LeaseTimeToLive<'_> {
    /// Leaves the keys out.
    pub fn without_keys(mut self) -> Self {
        self.keys = false;
        self
    }

    async fn send(self) -> Result<Option<LeaseStatus>> {
        let only = Some(vec![self.lease]);
        let request = Request::Leases { only, keys: self.keys, forwarded: false };
        match self.client.link().ask(request, self.timeout).await? {
            Response::Leases { mut leases, revision } if leases.len() == 1 => {
                self.client.link().saw(revision);
                Ok(leases.remove(0).map(|status| self.client.link().namespace().lease(status)))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// Lists all leases. Made by [`Client::lease_list`].
///
/// ```
/// # async fn f(client: quorate::Client) -> quorate::Result<()> {
/// for lease in client.lease_list().await? {
///     println!("lease {}: {} keys", lease.id, lease.keys.len());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct LeaseList<'a> {
    client: &'a Client,
    keys: bool,
    timeout: Option<Duration>,
}
request!(LeaseList -> Vec<LeaseStatus>);

impl LeaseList<'_> {
    /// Leaves the keys out: then a quarter of a million leases fit into the answer, whatever hangs on them.
    pub fn without_keys(mut self) -> Self {
        self.keys = false;
        self
    }

    async fn send(self) -> Result<Vec<LeaseStatus>> {
        let request = Request::Leases { only: None, keys: self.keys, forwarded: false };
        match self.client.link().ask(request, self.timeout).await? {
            Response::Leases { leases, revision } => {
                self.client.link().saw(revision);
                let namespace = self.client.link().namespace();
                Ok(leases.into_iter().flatten().map(|status| namespace.lease(status)).collect())
            }
            other => Err(unexpected(&other)),
        }
    }
}
