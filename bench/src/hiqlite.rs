//! hiqlite as one of the sides: a crate like ours, whose members live in the processes of their callers.
//!
//! hiqlite is SQLite and a cache, each behind a Raft group of its own with its own leader. A member always runs both; a
//! column uses one of them while the other lies idle beside it:
//!
//! | | column `hiqlite`: the cache | column `hiqlite-sql`: SQLite |
//! |---|---|---|
//! | put | `put_bytes` | `execute` of an upsert |
//! | serializable get | `get_bytes`: the member's own memory | `query_map`: the member's own SQLite |
//! | linearizable get | none: a member reads its own memory | `query_consistent_map` |
//! | lock | `lock` | none |
//!
//! Whatever else [`Store`] asks for is an error here, and the plan has no row of it for hiqlite.
//!
//! # What is on the disk
//!
//! A write of either group is acknowledged when a majority has it on the disk, as on the other sides. That is
//! [`LogSync::Immediate`], one setting for both logs, and the cache's log is a file (`cache_storage_disk`). By default
//! hiqlite would acknowledge first and sync every 200 ms. What is not synced is what the logs can make again: SQLite runs
//! with `synchronous = OFF`, the cache's entries are in memory, and both come from a snapshot and the log after a crash.
//!
//! # What is not the same
//!
//! - A lock is given up by being dropped, and nobody can wait until the group knows. The next caller of that name waits
//!   instead, so a caller that locks one name again and again is as slow as if it did wait.
//! - A lock has no lease of its owner: hiqlite renews it every three seconds, and it lapses after ten.
//! - It keeps its own heartbeat of 500 ms and election timeout of 1.5 to 3 s, whatever the others have. They could be
//!   set, but its Raft gives each request to a follower one heartbeat to be answered: with 100 ms it changed its
//!   leader while a group was filled. So its idle members have less to do than those of the others.
//! - Puts are made of a whole `String` and `Vec` each, because that is what hiqlite takes.

use crate::agent::{HiqliteMember, Part};
use crate::store::{self, Change, Fresh, Result, Store};
use ::hiqlite::{CacheVariants, Client, Lock, LogSync, NodeConfig, Param, Row};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// As in `Cargo.toml`; the crate does not say it itself.
pub(crate) const VERSION: &str = "0.15.3";

/// How long members may take to find each other.
const PATIENCE: Duration = Duration::from_secs(45);
/// Both secrets. The members listen on loopback only, and only as long as a station takes.
const SECRET: &str = "nobody-else-is-there";

const CREATE: &str =
    "CREATE TABLE IF NOT EXISTS pairs (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT";
const PUT: &str = "INSERT INTO pairs (key, value) VALUES ($1, $2) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const GET: &str = "SELECT value FROM pairs WHERE key = $1";

/// The one cache that is used.
#[derive(Debug)]
struct Pairs;

impl CacheVariants for Pairs {
    fn hiqlite_cache_index(&self) -> usize {
        0
    }

    fn hiqlite_cache_variants() -> &'static [(usize, &'static str)] {
        &[(0, "Pairs")]
    }
}

/// A member in this process, and the way of its callers to it.
#[derive(Clone)]
pub(crate) struct Hiqlite {
    client: Client,
    part: Part,
}

impl Hiqlite {
    /// Starts a member, and waits until all members vote and it can write.
    pub(crate) async fn start(member: &HiqliteMember) -> Result<Self> {
        let client = ::hiqlite::start_node_with_cache::<Pairs>(config(member)?).await?;
        let started = Self { client, part: member.part };
        let until = Instant::now() + PATIENCE;
        while started.voters().await? < member.ports.len() {
            if Instant::now() > until {
                return Err("hiqlite's members do not find each other".into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        // Also opens the way to the leader, which the first caller would have to wait for.
        insist(|| started.first_write()).await?;
        Ok(started)
    }

    async fn first_write(&self) -> Result {
        match self.part {
            Part::Cache => self.put(&Bytes::from_static(b"p/0"), &Bytes::new()).await,
            Part::Sql => {
                self.client.execute(CREATE, Vec::new()).await?;
                Ok(())
            }
        }
    }

    pub(crate) async fn leads(&self) -> Result<bool> {
        let metrics = match self.part {
            Part::Cache => self.client.metrics_cache().await?,
            Part::Sql => self.client.metrics_db().await?,
        };
        Ok(metrics.current_leader == Some(metrics.id))
    }

    async fn voters(&self) -> Result<usize> {
        let metrics = match self.part {
            Part::Cache => self.client.metrics_cache().await?,
            Part::Sql => self.client.metrics_db().await?,
        };
        Ok(metrics.membership_config.membership().voter_ids().count())
    }

    async fn put_together(&self, pairs: &[(Bytes, Bytes)]) -> Result {
        let puts: Result<Vec<_>> =
            pairs.iter().map(|(key, value)| Ok((PUT, pair(key, value)?))).collect();
        for done in self.client.txn(puts?).await? {
            done?;
        }
        Ok(())
    }

    /// Ends the member in good order. hiqlite waits for nearly ten seconds before it begins.
    pub(crate) async fn shut_down(self) -> Result {
        Ok(self.client.shutdown().await?)
    }
}

/// Tries again while a young group still changes its leader, which fails whatever is under way. For what prepares the
/// measured work only; in that a failure counts as one.
async fn insist<F: Future<Output = Result>>(attempt: impl Fn() -> F) -> Result {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < until => sleep(Duration::from_millis(100)).await,
            done => return done,
        }
    }
}

fn config(member: &HiqliteMember) -> Result<NodeConfig> {
    let address = |port: u16| format!("127.0.0.1:{port}");
    let nodes = member.ports.iter().zip(1..).map(|((api, raft), id)| ::hiqlite::Node {
        id,
        addr_raft: address(*raft),
        addr_api: address(*api),
    });
    let folder = member.folder.to_str().ok_or("the folder's name is not UTF-8")?;
    Ok(NodeConfig {
        node_id: member.index as u64 + 1,
        nodes: nodes.collect(),
        listen_addr_api: "127.0.0.1".into(),
        listen_addr_raft: "127.0.0.1".into(),
        data_dir: folder.to_owned().into(),
        wal_sync: LogSync::Immediate,
        cache_storage_disk: true,
        secret_raft: SECRET.to_owned(),
        secret_api: SECRET.to_owned(),
        ..NodeConfig::default()
    })
}

fn text(key: &Bytes) -> Result<String> {
    Ok(String::from_utf8(key.to_vec())?)
}

fn pair(key: &Bytes, value: &Bytes) -> Result<Vec<Param>> {
    Ok(vec![Param::Text(text(key)?), Param::Blob(value.to_vec())])
}

/// What a row of `pairs` holds.
struct Value(Vec<u8>);

impl From<&mut Row<'_>> for Value {
    fn from(row: &mut Row<'_>) -> Self {
        Self(row.get("value"))
    }
}

fn none<T>(what: &str) -> Result<T> {
    Err(format!("hiqlite has no {what}").into())
}

impl Store for Hiqlite {
    type Watch = Never;
    type Session = Session;

    async fn put(&self, key: &Bytes, value: &Bytes) -> Result {
        match self.part {
            Part::Cache => {
                self.client.put_bytes(Pairs, text(key)?, value.to_vec(), None).await?;
            }
            Part::Sql => {
                self.client.execute(PUT, pair(key, value)?).await?;
            }
        }
        Ok(())
    }

    async fn put_all(&self, pairs: Vec<(Bytes, Bytes)>) -> Result {
        match self.part {
            // The cache takes them one by one only.
            Part::Cache => {
                let puts = pairs.iter().map(|(key, value)| insist(|| self.put(key, value)));
                futures::future::try_join_all(puts).await?;
                Ok(())
            }
            Part::Sql => insist(|| self.put_together(&pairs)).await,
        }
    }

    async fn txn(&self, _: &Bytes, _: [&Bytes; 2], _: &Bytes) -> Result {
        none("transactions with comparisons")
    }

    async fn get(&self, key: &Bytes, fresh: Fresh) -> Result<usize> {
        let found = match (self.part, fresh) {
            (Part::Cache, Fresh::Serializable) => self.client.get_bytes(Pairs, text(key)?).await?,
            (Part::Cache, Fresh::Linearizable) => none("linearizable reads of its cache")?,
            (Part::Sql, fresh) => {
                let key = vec![Param::Text(text(key)?)];
                let rows: Vec<Value> = match fresh {
                    Fresh::Serializable => self.client.query_map(GET, key).await?,
                    Fresh::Linearizable => self.client.query_consistent_map(GET, key).await?,
                };
                rows.into_iter().next().map(|Value(value)| value)
            }
        };
        Ok(found.ok_or("a key that was written is missing")?.len())
    }

    async fn range(&self, _: &Bytes) -> Result<u64> {
        none("ranges")
    }

    async fn count(&self, _: &Bytes) -> Result<u64> {
        none("counts")
    }

    async fn watch(&self, _: &Bytes) -> Result<Never> {
        none("watches")
    }

    async fn grant(&self, _: Duration) -> Result<u64> {
        none("leases")
    }

    async fn put_leased(&self, _: &Bytes, _: &Bytes, _: u64) -> Result {
        none("leases")
    }

    async fn keep_alive(&self, _: u64) -> Result {
        none("leases")
    }

    async fn revoke(&self, _: u64) -> Result {
        none("leases")
    }

    async fn session(&self, _: Duration) -> Result<Session> {
        match self.part {
            Part::Cache => Ok(Session(self.client.clone())),
            Part::Sql => none("locks beside its cache"),
        }
    }
}

/// A watch, which there is none of.
pub(crate) enum Never {}

impl store::Watch for Never {
    async fn next(&mut self) -> Result<Vec<Change>> {
        match *self {}
    }
}

/// Takes locks. There is no lease behind it: hiqlite keeps each lock alive for itself.
pub(crate) struct Session(Client);

impl store::Session for Session {
    type Held = Held;

    async fn lock(&self, name: &str) -> Result<Held> {
        Ok(Held { _lock: self.0.lock(name.to_owned()).await? })
    }

    async fn campaign(&self, _: &str, _: &str) -> Result<Held> {
        none("elections")
    }

    async fn close(self) -> Result {
        Ok(())
    }
}

/// A lock.
pub(crate) struct Held {
    _lock: Lock,
}

impl store::Held for Held {
    /// Returns before the group knows, see above.
    async fn release(self) -> Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
