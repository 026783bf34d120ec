//! Service discovery: who offers a service, with what it says of itself.
//!
//! ```text
//! session.register("billing", &Instance { address, … }) ──▶ quorate/service/billing/00000000000000a7-0   JSON, with a lease
//! client.discover::<Instance>("billing")                ──▶ a mirror of quorate/service/billing/
//! ```
//!
//! An instance is there as long as its session lives: who crashes vanishes within its time to live, and who leaves does so
//! at once. Who looks has all instances in memory, and keeps those that he knows when the group is away: an old list
//! serves better than none.
//!
//! Invariants
//! - an instance is registered under a key that nobody else writes, ever;
//! - a registration that is dropped, also while it is being made, leaves no key behind;
//! - a change of one that is gone brings nothing back.

use super::line::escape;
use super::mirror::Mirror;
use crate::client::{Client, Codec, Session};
use crate::error::{Error, Reason, Result};
use crate::types::{Compare, Op, Revision};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::atomic::{AtomicBool, Ordering};

/// An instance of a service that can be discovered. Made by [`Session::register`].
///
/// Dropping it takes the instance out, a moment later.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let session = client.session(std::time::Duration::from_secs(10)).await?;
/// let registration = session.register("billing", &"10.0.0.7:80".to_owned()).await?;
///
/// let instances = client.discover::<String>("billing").await?;
/// assert_eq!(*instances.get(registration.id()).expect("it is there"), "10.0.0.7:80");
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the instance is taken out when this is dropped"]
pub struct Registration {
    session: Session,
    key: Bytes,
    /// Where the id begins in the key.
    id_at: usize,
    /// `None` while it is in doubt whether the key was written.
    created: Option<Revision>,
    gone: AtomicBool,
}

impl Session {
    /// Makes an instance of a service known, with what it says of itself: its address, its version, its weight. It stays
    /// as long as the registration and the session do; on the loss of the session, open another and register anew.
    ///
    /// # Errors
    ///
    /// [`LeaseNotFound`](Reason::LeaseNotFound) if the session has been lost, or what the group did not answer in time with.
    /// Nothing stays behind.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the instance is taken out again if it was registered.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let session = node.client().session(std::time::Duration::from_secs(10)).await?;
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Instance {
    ///     address: String,
    ///     weight: u32,
    /// }
    ///
    /// let instance = Instance { address: "10.0.0.7:80".to_owned(), weight: 10 };
    /// let registration = session.register("billing", &instance).await?;
    /// registration.update(&Instance { weight: 20, ..instance }).await?;
    /// registration.leave().await?;
    /// # Ok(()) }
    /// ```
    pub async fn register<T: Serialize>(
        &self,
        service: impl AsRef<str>,
        instance: &T,
    ) -> Result<Registration> {
        let value = Codec::Json.encode(instance)?;
        let prefix = prefix(service.as_ref());
        let key = format!("{prefix}{:016x}-{}", self.lease_id().get(), self.nonce());
        let mut registration = Registration {
            session: self.clone(),
            key: Bytes::from(key),
            id_at: prefix.len(),
            created: None,
            gone: AtomicBool::new(false),
        };
        let put = self.client().put(&registration.key, value).lease(self.lease_id());
        match put.await {
            Ok(revision) => registration.created = Some(revision),
            Err(error) => {
                registration.gone.store(!error.may_have_applied(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(registration)
    }
}

impl Registration {
    /// Under what the instance is known to those who look: different for each registration.
    ///
    /// ```
    /// # fn f(registration: &quorate::recipes::Registration, instances: &quorate::recipes::Mirror<String>) {
    /// let own = instances.get(registration.id());
    /// # let _ = own; }
    /// ```
    #[must_use]
    pub fn id(&self) -> &str {
        // It was made of text.
        std::str::from_utf8(&self.key[self.id_at..]).unwrap_or_default()
    }

    /// The session that it hangs on.
    ///
    /// ```
    /// # async fn f(registration: &quorate::recipes::Registration) {
    /// registration.session().lost().await; // then register anew, on another session
    /// # }
    /// ```
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Changes what the instance says of itself.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](Reason::SessionLost) if the instance is not registered any more, with its session or because somebody
    /// took it out.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the change may still happen.
    ///
    /// ```
    /// # async fn f(registration: &quorate::recipes::Registration) -> quorate::Result<()> {
    /// registration.update(&"10.0.0.8:80".to_owned()).await?;
    /// # Ok(()) }
    /// ```
    pub async fn update<T: Serialize>(&self, instance: &T) -> Result<Revision> {
        let value = Codec::Json.encode(instance)?;
        let put = Op::put(&self.key, value).lease(self.session.lease_id());
        let outcome = self.session.client().txn().when(self.there()).then(put).await?;
        if !outcome.succeeded {
            return Err(Error::new(Reason::SessionLost));
        }
        Ok(outcome.revision)
    }

    /// Takes the instance out, and returns when the group has it no more. Those who look have copies, which follow a moment
    /// later: serve on for as long as a request of them may take to come.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the instance is taken out all the same, a moment later.
    ///
    /// ```
    /// # async fn f(registration: quorate::recipes::Registration) -> quorate::Result<()> {
    /// registration.leave().await?;
    /// # Ok(()) }
    /// ```
    pub async fn leave(self) -> Result<()> {
        let client = self.session.client();
        client.txn().when(self.there()).then(Op::delete(&self.key)).await?;
        self.gone.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it is registered, and has been ever since.
    fn there(&self) -> Compare {
        Compare::create_revision(&self.key).equals(self.created.unwrap_or(Revision::from(0)))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !*self.gone.get_mut() {
            self.session.delete_later(self.key.clone(), self.created);
        }
    }
}

impl Client {
    /// All instances of a service, kept current: a [`Mirror`] from their [ids](Registration::id) to what they say of
    /// themselves.
    ///
    /// When the group is away it keeps those that it knows, so try another one if one of them does not answer.
    ///
    /// # Errors
    ///
    /// What the group did not answer in time with.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let mut instances = client.discover::<String>("billing").await?;
    /// assert!(instances.snapshot().is_empty());
    ///
    /// let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let registration = session.register("billing", &"10.0.0.7:80".to_owned()).await?;
    /// instances.changed().await?;
    /// assert_eq!(instances.snapshot().len(), 1);
    /// # drop(registration);
    /// # Ok(()) }
    /// ```
    pub async fn discover<T>(&self, service: impl AsRef<str>) -> Result<Mirror<T>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        self.mirror(prefix(service.as_ref())).await
    }
}

fn prefix(service: &str) -> String {
    format!("quorate/service/{}/", escape(service))
}

#[cfg(test)]
mod tests;
