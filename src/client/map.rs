//! A typed map: keys under one prefix, with values of one type.
//!
//! Values are JSON if nothing else is said, so that an operator can read and edit them, and so that a field can be added to
//! a type without rewriting what is stored.
//!
//! ```text
//! client.map::<Flag>("flags/").put("dark-mode", &Flag { on: true })
//!        key    flags/dark-mode
//!        value  {"on":true}
//! ```

use super::backoff::Backoff;
use super::value::{Codec, wrong_type};
use super::{Client, Watch};
use crate::error::{Error, Reason, Result};
use crate::types::{KeyRange, LeaseId, Revision};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
use std::marker::PhantomData;
use tokio::time::Instant;

/// Keys under one prefix, with values of one type, stored as JSON if no other [codec](Self::codec) was said. Made by
/// [`Client::map`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Flag {
///     on: bool,
/// }
///
/// let flags = client.map::<Flag>("flags/");
/// flags.put("dark-mode", &Flag { on: true }).await?;
/// flags.update("dark-mode", |flag| flag.map(|flag| Flag { on: !flag.on })).await?;
/// assert!(flags.get("dark-mode").await?.is_some_and(|flag| !flag.on));
///
/// for (name, flag) in flags.entries().await? {
///     println!("{name}: {}", flag.on);
/// }
/// assert!(flags.delete("dark-mode").await?);
/// # Ok(()) }
/// ```
pub struct Map<T> {
    client: Client,
    prefix: Bytes,
    codec: Codec,
    _of: PhantomData<fn() -> T>,
}

impl<T> Clone for Map<T> {
    fn clone(&self) -> Self {
        let (client, prefix) = (self.client.clone(), self.prefix.clone());
        Self { client, prefix, codec: self.codec, _of: PhantomData }
    }
}

impl<T> fmt::Debug for Map<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Client {
    /// The keys that begin with `prefix`, as a map to values of one type.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let ports = client.map::<u16>("ports/");
    /// ports.put("http", &80).await?;
    /// assert_eq!(client.get("ports/http").await?.expect("it is there").value, "80");
    /// # Ok(()) }
    /// ```
    pub fn map<T>(&self, prefix: impl AsRef<[u8]>) -> Map<T> {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        Map { client: self.clone(), prefix, codec: Codec::default(), _of: PhantomData }
    }
}

impl<T> Map<T> {
    /// Stores values in another way than as JSON. All who use the prefix have to say the same.
    ///
    /// ```
    /// # fn f(client: &quorate::Client) {
    /// let positions = client.map::<(f64, f64)>("positions/").codec(quorate::Codec::Bincode);
    /// # let _ = positions; }
    /// ```
    #[must_use]
    pub fn codec(self, codec: Codec) -> Self {
        Self { codec, ..self }
    }

    /// What a mirror of it needs.
    pub(crate) fn parts(&self) -> (&Client, &Bytes, Codec) {
        (&self.client, &self.prefix, self.codec)
    }
}

impl<T: Serialize + DeserializeOwned + Send> Map<T> {
    /// The value of a key; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`WrongType`](crate::Reason::WrongType) if the value is not one of a `T`. So too for all other reads here.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn get(&self, key: &str) -> Result<Option<T>> {
        let found = self.client.get(self.key(key)).await?;
        found.map(|kv| self.codec.decode(&kv.key, &kv.value)).transpose()
    }

    /// Writes a value, and yields the revision of the write.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the write may still happen.
    pub async fn put(&self, key: &str, value: &T) -> Result<Revision> {
        let (key, value) = (self.key(key), self.codec.encode(value)?);
        self.client.put(key, value).await
    }

    /// Writes a value that vanishes with a lease.
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
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let addresses = client.map::<String>("workers/");
    /// addresses.put_leased("7", &"10.0.0.7:80".to_owned(), session.lease_id()).await?;
    /// session.close().await?;
    /// assert_eq!(addresses.get("7").await?, None);
    /// # Ok(()) }
    /// ```
    pub async fn put_leased(&self, key: &str, value: &T, lease: LeaseId) -> Result<Revision> {
        let (key, value) = (self.key(key), self.codec.encode(value)?);
        self.client.put(key, value).lease(lease).await
    }

    /// Reads a value, edits it, and writes it back if nobody else wrote in between; else tries again, with the new
    /// value, for as long as a call of the client may take. `None` is no value, before and after. Yields the value
    /// that was written.
    ///
    /// `edit` may be called several times, and has to be free of side effects. A key keeps its lease.
    ///
    /// # Errors
    ///
    /// [`DeadlinePassed`](crate::Reason::DeadlinePassed) if others were always faster. An error that
    /// [may have been applied](crate::Error::may_have_applied) leaves open whether the last edit was written.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the write may still happen, once.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let counters = client.map::<u64>("counters/");
    /// let count = counters.update("visits", |count| Some(count.unwrap_or(0) + 1)).await?;
    /// assert_eq!(count, Some(1));
    /// # Ok(()) }
    /// ```
    pub async fn update(
        &self,
        key: &str,
        mut edit: impl FnMut(Option<T>) -> Option<T> + Send,
    ) -> Result<Option<T>> {
        let key = self.key(key);
        let (began, all) = (Instant::now(), self.client.link().timeout());
        let mut backoff = Backoff::contention();
        loop {
            let left = || all.saturating_sub(began.elapsed());
            let found = self.client.get(&key).timeout(left()).await?;
            let old = found.as_ref().map(|kv| self.codec.decode(&key, &kv.value)).transpose()?;
            let new = edit(old);
            if left().is_zero() {
                return Err(Error::new(Reason::DeadlinePassed { waited: all }));
            }
            let written = match (&found, &new) {
                (None, None) => true,
                (None, Some(new)) => {
                    let put = self.client.put_if_absent(&key, self.codec.encode(new)?);
                    put.timeout(left()).await?.is_some()
                }
                (Some(kv), Some(new)) => {
                    let mut put =
                        self.client.update_if(&key, kv.mod_revision, self.codec.encode(new)?);
                    if let Some(lease) = kv.lease {
                        put = put.lease(lease);
                    }
                    put.timeout(left()).await?.is_some()
                }
                (Some(kv), None) => {
                    self.client.delete_if(&key, kv.mod_revision).timeout(left()).await?
                }
            };
            if written {
                return Ok(new);
            }
            let (waited, pause) = (began.elapsed(), backoff.next());
            if all <= waited + pause {
                return Err(Error::new(Reason::DeadlinePassed { waited }));
            }
            self.client.link().sleep(pause).await;
        }
    }

    /// Deletes a key, and yields whether it was there.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the key may still be deleted.
    pub async fn delete(&self, key: &str) -> Result<bool> {
        Ok(self.client.delete(self.key(key)).await? > 0)
    }

    /// All keys, without the prefix, and their values, as they are at one revision, in key order.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn entries(&self) -> Result<Vec<(String, T)>> {
        let (entries, _) = self.client.read_all(KeyRange::prefix(&self.prefix)).await?;
        let named = entries.iter().map(|kv| {
            let name = String::from_utf8(kv.key[self.prefix.len()..].to_vec())
                .map_err(|error| wrong_type(&kv.key, &error))?;
            Ok((name, self.codec.decode(&kv.key, &kv.value)?))
        });
        named.collect()
    }

    /// Watches all keys of the map, from now on. Events carry whole keys, and values as they are stored.
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
    /// let ports = client.map::<u16>("ports/");
    /// let mut watch = ports.watch().await?;
    /// ports.put("http", &80).await?;
    /// assert_eq!(watch.recv().await?.events[0].key(), "ports/http");
    /// # Ok(()) }
    /// ```
    pub async fn watch(&self) -> Result<Watch> {
        self.client.watch(KeyRange::prefix(&self.prefix)).await
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [&self.prefix, key.as_bytes()].concat()
    }
}
