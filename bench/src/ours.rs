//! quorate as one of the sides: what its users write, call for call.
//!
//! The client is the one of a member in the same process, or a remote one; nothing here can tell which.

use crate::store::{Change, Fresh, Held, Result, Session, Store, Watch};
use bytes::Bytes;
use futures::TryStreamExt;
use quorate::recipes::{Leadership, LockGuard};
use quorate::{Client, Compare, Consistency, Event, KeyRange, LeaseId, Op};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Quorate(pub(crate) Client);

impl From<Fresh> for Consistency {
    fn from(fresh: Fresh) -> Self {
        match fresh {
            Fresh::Linearizable => Self::Linearizable,
            Fresh::Serializable => Self::Serializable,
        }
    }
}

impl Store for Quorate {
    type Watch = quorate::Watch;
    type Session = quorate::Session;

    async fn put(&self, key: &Bytes, value: &Bytes) -> Result {
        self.0.put(key, value.clone()).await?;
        Ok(())
    }

    async fn put_all(&self, pairs: Vec<(Bytes, Bytes)>) -> Result {
        let puts = pairs.into_iter().map(|(key, value)| Op::put(key, value));
        puts.fold(self.0.txn(), quorate::client::Txn::then).await?;
        Ok(())
    }

    async fn txn(&self, guard: &Bytes, [first, second]: [&Bytes; 2], value: &Bytes) -> Result {
        let txn = self.0.txn().when(Compare::exists(guard));
        let txn = txn.then(Op::put(first, value.clone())).then(Op::put(second, value.clone()));
        if txn.await?.succeeded { Ok(()) } else { Err("the key to compare is missing".into()) }
    }

    async fn get(&self, key: &Bytes, fresh: Fresh) -> Result<usize> {
        let read = self.0.get(key).consistency(fresh.into()).await?;
        Ok(read.ok_or("a key that was written is missing")?.value.len())
    }

    async fn range(&self, prefix: &Bytes) -> Result<u64> {
        let entries = self.0.range(KeyRange::prefix(prefix)).stream();
        Ok(entries.try_fold(0, async |count, _| Ok(count + 1)).await?)
    }

    async fn count(&self, prefix: &Bytes) -> Result<u64> {
        Ok(self.0.range(KeyRange::prefix(prefix)).count_only().await?.count)
    }

    async fn watch(&self, prefix: &Bytes) -> Result<quorate::Watch> {
        Ok(self.0.watch(KeyRange::prefix(prefix)).await?)
    }

    async fn grant(&self, ttl: Duration) -> Result<u64> {
        Ok(self.0.lease_grant(ttl).await?.id.get())
    }

    async fn put_leased(&self, key: &Bytes, value: &Bytes, lease: u64) -> Result {
        self.0.put(key, value.clone()).lease(LeaseId::from(lease)).await?;
        Ok(())
    }

    async fn keep_alive(&self, lease: u64) -> Result {
        self.0.lease_keep_alive(LeaseId::from(lease)).await?;
        Ok(())
    }

    async fn revoke(&self, lease: u64) -> Result {
        self.0.lease_revoke(LeaseId::from(lease)).await?;
        Ok(())
    }

    async fn session(&self, ttl: Duration) -> Result<quorate::Session> {
        Ok(self.0.session(ttl).await?)
    }
}

impl Watch for quorate::Watch {
    async fn next(&mut self) -> Result<Vec<Change>> {
        let changes = self.recv().await?;
        Ok(changes.events.into_iter().map(Change::from).collect())
    }
}

impl From<Event> for Change {
    fn from(event: Event) -> Self {
        match event {
            Event::Put { kv, .. } => Self { key: kv.key, value: Some(kv.value) },
            Event::Delete { key, .. } => Self { key, value: None },
            // An event of a later version is a change as well.
            other => Self { key: other.key().clone(), value: None },
        }
    }
}

impl Session for quorate::Session {
    type Held = Place;

    async fn lock(&self, name: &str) -> Result<Place> {
        Ok(Place::Lock(quorate::Session::lock(self, name).await?))
    }

    async fn campaign(&self, name: &str, who: &str) -> Result<Place> {
        Ok(Place::Lead(self.election(name).campaign(who).await?))
    }

    async fn close(self) -> Result {
        Ok(quorate::Session::close(self).await?)
    }
}

/// A lock or a lead of quorate.
pub(crate) enum Place {
    Lock(LockGuard),
    Lead(Leadership),
}

impl Held for Place {
    async fn release(self) -> Result {
        match self {
            Self::Lock(guard) => guard.release().await?,
            Self::Lead(leadership) => leadership.resign().await?,
        }
        Ok(())
    }
}
