//! A mirror: a local copy of a prefix, kept current by one watch. Reads never wait.
//!
//! ```text
//! read the range at 70 ─▶ all entries ─┐
//! watch from 71        ─▶ 73: k = v    ├─▶ the copy ─▶ get, snapshot, changed
//!                      ─▶ 78: k gone   ┘
//! Compacted            ─▶ read it again; what differs has changed
//! ```
//!
//! Invariants
//! - the copy is always that of one revision, and never goes back;
//! - during an outage it keeps what it knows: an empty set would be a worse answer than an old one;
//! - an entry that cannot be decoded keeps its last good value. It is reported, and ends nothing.
//!
//! It does not say how old the copy is, beyond its revision. A decision that must not rest on old data belongs into a
//! transaction.

use crate::client::backoff::Backoff;
use crate::client::{Client, Codec, Map, Watch};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::types::{Changes, Event, KeyRange, KeyValue, Revision};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// All entries of a range, and then every change: the brick under mirrors, configuration and observers.
#[derive(Debug)]
pub(super) struct Source {
    client: Client,
    range: KeyRange,
    watch: Watch,
}

/// What happened to a range.
#[derive(Debug)]
pub(super) enum Update {
    /// History was compacted: this is all there is, at that revision.
    All(Vec<KeyValue>, Revision),
    Changes(Changes),
}

impl Source {
    /// What exists, at which revision, and what will tell of changes since.
    pub(super) async fn open(
        client: &Client,
        range: KeyRange,
    ) -> Result<(Self, Vec<KeyValue>, Revision)> {
        let (entries, revision) = client.read_all(range.clone()).await?;
        let watch = client.watch(range.clone()).from(revision.next()).await?;
        Ok((Self { client: client.clone(), range, watch }, entries, revision))
    }

    /// The next update. Cancel safe. An error is final; an outage is waited out.
    pub(super) async fn next(&mut self) -> Result<Update> {
        match self.watch.recv().await {
            Ok(changes) => return Ok(Update::Changes(changes)),
            Err(error) if error.kind() == ErrorKind::Compacted => {}
            Err(error) => return Err(error),
        }
        let mut backoff = Backoff::outage();
        loop {
            match Self::open(&self.client, self.range.clone()).await {
                Ok((source, entries, revision)) => {
                    *self = source;
                    return Ok(Update::All(entries, revision));
                }
                // Compacted between two pages: once more, from the first.
                Err(error) if error.is_retryable() || error.kind() == ErrorKind::Compacted => {
                    self.client.link().sleep(backoff.next()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A local copy of a prefix, with values of one type. Made by [`Client::mirror`].
///
/// All clones share one copy and one watch, which end with the last of them.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// #[derive(serde::Deserialize)]
/// struct Worker {
///     address: String,
/// }
///
/// client.put("workers/7", r#"{"address":"10.0.0.7:80"}"#).await?;
/// let mut workers = client.mirror::<Worker>("workers/").await?;
/// assert_eq!(workers.get("7").expect("it is there").address, "10.0.0.7:80");
///
/// client.put("workers/8", r#"{"address":"10.0.0.8:80"}"#).await?;
/// workers.changed().await?;
/// for (name, worker) in workers.snapshot().iter() {
///     println!("{name} is at {}", worker.address);
/// }
/// # assert_eq!(workers.snapshot().len(), 2);
/// # Ok(()) }
/// ```
pub struct Mirror<T> {
    state: watch::Receiver<State<T>>,
    /// Owns the task that writes the state.
    _task: Arc<JoinSet<()>>,
}

struct State<T> {
    entries: Arc<BTreeMap<String, Arc<T>>>,
    /// When the value of each was written.
    written: BTreeMap<String, Revision>,
    revision: Revision,
    last_error: Option<Error>,
    resyncs: u64,
    end: Option<Error>,
}

/// How keys and values of a copy are stored.
struct Form {
    prefix: Bytes,
    codec: Codec,
}

/// Changes of a copy that are decoded already.
enum Edit<T> {
    Put(String, Arc<T>, Revision),
    /// The new value makes no sense; the old one stays.
    Bad(String, Error),
    Remove(String),
}

impl<T> Clone for Mirror<T> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), _task: self._task.clone() }
    }
}

impl<T> fmt::Debug for Mirror<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        let (revision, entries) = (state.revision, state.entries.len());
        f.debug_struct("Mirror")
            .field("revision", &revision)
            .field("entries", &entries)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Keeps a local copy of all keys that begin with `prefix`, whose values are JSON of a `T`. For values of another
    /// [codec](crate::Codec) there is [`Map::mirror`].
    ///
    /// Returns when the copy is complete. Entries that are not a `T` are left out, and reported by
    /// [`Mirror::last_error`].
    ///
    /// # Errors
    ///
    /// What the group did not answer in time with.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn mirror<T>(&self, prefix: impl AsRef<[u8]>) -> Result<Mirror<T>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        self.map::<T>(prefix).mirror().await
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> Map<T> {
    /// Keeps a local copy of all keys of the map.
    ///
    /// Returns when the copy is complete. Entries that are not a `T` are left out, and reported by
    /// [`Mirror::last_error`].
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
    /// let ports = client.map::<u16>("ports/").codec(quorate::Codec::Bincode);
    /// ports.put("http", &80).await?;
    /// assert_eq!(ports.mirror().await?.get("http").as_deref(), Some(&80));
    /// # Ok(()) }
    /// ```
    pub async fn mirror(&self) -> Result<Mirror<T>> {
        let (client, prefix, codec) = self.parts();
        let form = Form { prefix: prefix.clone(), codec };
        let (source, entries, revision) = Source::open(client, KeyRange::prefix(prefix)).await?;
        let mut first = State::empty(revision);
        first.replace(form.all(&entries), revision);
        let (sender, state) = watch::channel(first);
        let mut task = JoinSet::new();
        task.spawn_on(keep_current(source, form, sender), client.link().runtime());
        Ok(Mirror { state, _task: Arc::new(task) })
    }
}

impl<T> Mirror<T> {
    /// The value of a key, which is named without the prefix.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        self.state.borrow().entries.get(key).cloned()
    }

    /// All values by key, as of one revision. It stays as it is while the mirror goes on.
    #[must_use]
    pub fn snapshot(&self) -> Arc<BTreeMap<String, Arc<T>>> {
        self.state.borrow().entries.clone()
    }

    /// The revision of the newest change that the copy has.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.state.borrow().revision
    }

    /// The last entry that could not be decoded, if there was one.
    #[must_use]
    pub fn last_error(&self) -> Option<Error> {
        self.state.borrow().last_error.clone()
    }

    /// How often the copy was read anew because history had been compacted past it: it was cut off for longer than
    /// history is kept. What it shows is right all the same, but it may have passed over changes in between.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let mirror = client.mirror::<u64>("counters/").await?;
    /// assert_eq!(mirror.resyncs(), 0);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn resyncs(&self) -> u64 {
        self.state.borrow().resyncs
    }

    /// Waits until the copy has changed since the last call of this on this clone, or since the clone was made.
    ///
    /// Several changes in between are one.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::ErrorKind::Closed) after the node or client was shut down: the copy stays what it is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Result<()> {
        let changed = self.state.changed().await;
        match &self.state.borrow().end {
            Some(error) => Err(error.clone()),
            None => changed.map_err(|_| Error::new(Reason::Closed)),
        }
    }
}

/// The task behind a mirror.
async fn keep_current<T: DeserializeOwned>(
    mut source: Source,
    form: Form,
    sender: watch::Sender<State<T>>,
) {
    loop {
        match source.next().await {
            Ok(Update::All(entries, revision)) => {
                tracing::info!(%revision, "a mirror was read anew: history was compacted past it");
                let edits = form.all(&entries);
                sender.send_if_modified(|state| {
                    state.resyncs += 1;
                    state.replace(edits, revision)
                });
            }
            Ok(Update::Changes(changes)) => {
                let edits = changes.events.iter().map(|event| form.event(event));
                let edits = edits.collect();
                sender.send_if_modified(|state| state.apply(edits, changes.revision));
            }
            Err(error) => return sender.send_modify(|state| state.end = Some(error)),
        }
    }
}

impl<T> State<T> {
    fn empty(revision: Revision) -> Self {
        let (entries, written) = (Arc::default(), BTreeMap::new());
        Self { entries, written, revision, last_error: None, resyncs: 0, end: None }
    }

    /// Makes the edits. Whether anything is different then.
    fn apply(&mut self, edits: Vec<Edit<T>>, revision: Revision) -> bool {
        let mut different = false;
        self.revision = revision;
        for edit in edits {
            match edit {
                // Read anew, and the same as before: whoever has it need not hear of it.
                Edit::Put(key, _, revision) if self.written.get(&key) == Some(&revision) => {}
                Edit::Put(key, value, revision) => {
                    self.written.insert(key.clone(), revision);
                    Arc::make_mut(&mut self.entries).insert(key, value);
                    different = true;
                }
                Edit::Remove(key) => {
                    // Looked up first: a copy that somebody holds is not copied for nothing.
                    self.written.remove(&key);
                    if self.entries.contains_key(&key) {
                        Arc::make_mut(&mut self.entries).remove(&key);
                        different = true;
                    }
                }
                Edit::Bad(key, error) => {
                    tracing::warn!(%key, %error, "a mirrored entry makes no sense; its last good value stays");
                    self.last_error = Some(error);
                }
            }
        }
        different
    }

    /// Makes the copy what a whole range is decoded to.
    fn replace(&mut self, mut edits: Vec<Edit<T>>, revision: Revision) -> bool {
        let named = |edit: &Edit<T>| match edit {
            Edit::Put(key, ..) | Edit::Bad(key, _) | Edit::Remove(key) => key.clone(),
        };
        let present: BTreeSet<_> = edits.iter().map(named).collect();
        let absent = self.entries.keys().filter(|key| !present.contains(*key));
        edits.extend(absent.cloned().map(Edit::Remove).collect::<Vec<_>>());
        self.apply(edits, revision)
    }
}

impl Form {
    fn all<T: DeserializeOwned>(&self, entries: &[KeyValue]) -> Vec<Edit<T>> {
        entries.iter().map(|kv| self.put(kv)).collect()
    }

    fn event<T: DeserializeOwned>(&self, event: &Event) -> Edit<T> {
        match event {
            Event::Put { kv, .. } => self.put(kv),
            Event::Delete { key, .. } => Edit::Remove(name(&self.prefix, key)),
        }
    }

    fn put<T: DeserializeOwned>(&self, kv: &KeyValue) -> Edit<T> {
        let name = name(&self.prefix, &kv.key);
        match self.codec.decode(&kv.key, &kv.value) {
            Ok(value) => Edit::Put(name, Arc::new(value), kv.mod_revision),
            Err(error) => Edit::Bad(name, error),
        }
    }
}

/// A key without the prefix. One that is no text is shown with escapes, and would be taken for another that is text and spelled
/// like that.
fn name(prefix: &[u8], key: &[u8]) -> String {
    let rest = &key[prefix.len().min(key.len())..];
    match std::str::from_utf8(rest) {
        Ok(name) => name.to_owned(),
        Err(_) => rest.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests;
