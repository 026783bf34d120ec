//! Configuration: one value that every process reads locally, and that any process or operator can change.
//!
//! ```text
//! api/limits = {"requests_per_second":100,"burst":20}      JSON, under the key that you say
//!      └─ watch ─▶ decode ─ good ─▶ the value ─▶ get(): an Arc, no wait, no lock held
//!                         └ bad ──▶ last_error(); the last good value stays
//! ```
//!
//! Invariants
//! - `get()` always has a value: what was stored, else what the program brought along;
//! - a value that cannot be decoded never takes effect, never panics, and never ends the watch;
//! - while the key does not exist, the program's own value counts.

use super::mirror::{Source, Update};
use crate::client::{Client, Codec};
use crate::error::{Error, Reason, Result};
use crate::types::{Event, KeyRange, KeyValue, Revision};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// One value that every process reads locally and any process can change. Made by [`Client::config`].
///
/// All clones share one copy and one watch, which end with the last of them.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// #[derive(Debug, serde::Serialize, serde::Deserialize)]
/// struct Limits {
///     requests_per_second: u32,
///     burst: u32,
/// }
///
/// let fallback = Limits { requests_per_second: 100, burst: 20 };
/// let mut limits = client.config("api/limits", fallback).await?;
/// assert_eq!(limits.get().requests_per_second, 100);
///
/// client.put("api/limits", r#"{"requests_per_second":250,"burst":20}"#).await?; // an operator
/// assert_eq!(limits.changed().await?.requests_per_second, 250);
///
/// client.put("api/limits", "250 I think").await?; // does not decode, so it does not count
/// assert_eq!(limits.get().requests_per_second, 250);
/// # Ok(()) }
/// ```
pub struct Config<T> {
    client: Client,
    key: Bytes,
    state: watch::Receiver<State<T>>,
    /// Owns the task that writes the state.
    _task: Arc<JoinSet<()>>,
}

struct State<T> {
    value: Arc<T>,
    /// The write that the value is of; 0 if it is the program's own.
    revision: Revision,
    last_error: Option<Error>,
    end: Option<Error>,
}

impl<T> Clone for Config<T> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            key: self.key.clone(),
            state: self.state.clone(),
            _task: self._task.clone(),
        }
    }
}

impl<T> fmt::Debug for Config<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("key", &self.key)
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a shared value, stored as JSON under `key`; writes `default` there first if nobody has yet.
    ///
    /// What is stored already but is not a `T` is left alone: `default` then counts here, and
    /// [`Config::last_error`] says why.
    ///
    /// # Errors
    ///
    /// What the group did not answer in time with.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, `default` may still be written.
    pub async fn config<T>(&self, key: impl AsRef<str>, default: T) -> Result<Config<T>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let key = Bytes::copy_from_slice(key.as_ref().as_bytes());
        if self.get(&key).await?.is_none() {
            self.put_if_absent(&key, Codec::Json.encode(&default)?).await?;
        }
        let (source, entries, _) = Source::open(self, KeyRange::key(&key)).await?;
        let default = Arc::new(default);
        let mut first = State::fallback(&default);
        first.see(Stored::of(entries.first()), &default);
        let (sender, state) = watch::channel(first);
        let mut task = JoinSet::new();
        task.spawn_on(keep_current(source, default, sender), self.link().runtime());
        Ok(Config { client: self.clone(), key, state, _task: Arc::new(task) })
    }
}

impl<T> Config<T> {
    /// The value now. Does not wait.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        self.state.borrow().value.clone()
    }

    /// The revision of the write that the value is of; 0 while the key does not exist, or nothing good was ever in it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.state.borrow().revision
    }

    /// Why the newest stored value does not count; `None` if it does.
    #[must_use]
    pub fn last_error(&self) -> Option<Error> {
        self.state.borrow().last_error.clone()
    }

    /// Waits until the value has changed since the last call of this on this clone, or since the clone was made, and
    /// yields it. Several changes in between are one; a value that makes no sense is none.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::ErrorKind::Closed) after the node or client was shut down: the value stays what it is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Result<Arc<T>> {
        let changed = self.state.changed().await;
        let state = self.state.borrow();
        match &state.end {
            Some(error) => Err(error.clone()),
            None => changed.map(|()| state.value.clone()).map_err(|_| Error::new(Reason::Closed)),
        }
    }
}

impl<T: Serialize> Config<T> {
    /// Writes the value for everybody, and yields the revision of the write. Copies follow, this one too.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the write may still happen.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let mut limit = client.config("limit", 100u32).await?;
    /// limit.set(&200).await?;
    /// assert_eq!(*limit.changed().await?, 200);
    /// # Ok(()) }
    /// ```
    pub async fn set(&self, value: &T) -> Result<Revision> {
        let value = Codec::Json.encode(value)?;
        self.client.put(&self.key, value).await
    }

    /// Writes the value if nobody else has since `revision`, which [`revision`](Self::revision) tells. Yields whether.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the write may still happen.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let limit = client.config("limit", 100u32).await?;
    /// let (seen, revision) = (limit.get(), limit.revision());
    /// assert!(limit.set_if(&(*seen * 2), revision).await?);
    /// assert!(!limit.set_if(&(*seen * 3), revision).await?, "somebody else has set it since");
    /// # Ok(()) }
    /// ```
    pub async fn set_if(&self, value: &T, revision: Revision) -> Result<bool> {
        let value = Codec::Json.encode(value)?;
        Ok(self.client.update_if(&self.key, revision, value).await?.is_some())
    }
}

/// The task behind a shared value.
async fn keep_current<T: DeserializeOwned>(
    mut source: Source,
    default: Arc<T>,
    sender: watch::Sender<State<T>>,
) {
    loop {
        let stored = match source.next().await {
            Ok(Update::All(entries, _)) => Stored::of(entries.first()),
            Ok(Update::Changes(changes)) => match changes.events.last() {
                Some(Event::Put { kv, .. }) => Stored::of(Some(kv)),
                Some(Event::Delete { .. }) => Stored::Nothing,
                None => continue,
            },
            Err(error) => return sender.send_modify(|state| state.end = Some(error)),
        };
        sender.send_if_modified(|state| state.see(stored, &default));
    }
}

/// What is under the key, decoded already: readers wait while the state is changed.
enum Stored<T> {
    Good(Arc<T>, Revision),
    Bad(Error),
    Nothing,
}

impl<T: DeserializeOwned> Stored<T> {
    fn of(stored: Option<&KeyValue>) -> Self {
        let Some(kv) = stored else { return Self::Nothing };
        match Codec::Json.decode(&kv.key, &kv.value) {
            Ok(value) => Self::Good(Arc::new(value), kv.mod_revision),
            Err(error) => Self::Bad(error),
        }
    }
}

impl<T> State<T> {
    fn fallback(default: &Arc<T>) -> Self {
        Self { value: default.clone(), revision: Revision::from(0), last_error: None, end: None }
    }

    /// Takes in what is stored. Whether the value is another one then.
    fn see(&mut self, stored: Stored<T>, default: &Arc<T>) -> bool {
        let before = self.revision;
        match stored {
            Stored::Good(value, revision) => {
                (self.value, self.revision, self.last_error) = (value, revision, None);
            }
            Stored::Bad(error) => {
                tracing::warn!(%error, "a stored value makes no sense; the last good one stays");
                self.last_error = Some(error);
            }
            Stored::Nothing => *self = Self::fallback(default),
        }
        self.revision != before
    }
}

#[cfg(test)]
mod tests;
