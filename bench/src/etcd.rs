//! etcd as a [`Store`]: its gRPC API over one HTTP/2 connection to one member.
//!
//! A user of etcd takes a client library. This is the least that one would do, arranged like the official Go client:
//! calls run side by side on the connection, all watches share one stream and so do all renewals of leases. Locks and
//! elections are etcd's own services, so that a member does the waiting and not the caller over the wire.
//!
//! ```text
//! Etcd (clones) ─┬─ call ────────▶ KV, Lease, Lock, Election, Maintenance ─┐
//!                ├─ watches ─────▶ one stream of Watch                     ├─▶ one connection ─▶ one member
//!                └─ renewals ────▶ one stream of LeaseKeepAlive            ┘
//! ```
//!
//! Nothing here holds etcd back: the windows are larger than those that Go's client begins with, small writes are not
//! held up by TCP, and no answer is copied. A call that fails is not tried again, and has no deadline of its own; the
//! connection is made again when the next call needs it. Which member to talk to is the workload's business.

pub(crate) mod renewals;
pub(crate) mod rpc;
pub(crate) mod server;
pub(crate) mod shared;
pub(crate) mod watches;

use crate::store::{self, Change, Fresh, Result, Store};
use bytes::Bytes;
use renewals::Renewals;
use rpc::{
    Call, CampaignRequest, Compare, LeaderKey, LeaseGrantRequest, LeaseRevokeRequest, LockRequest,
    PutRequest, RangeRequest, RequestOp, ResignRequest, TxnRequest, UnlockRequest,
};
use shared::Shared;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::transport::{Channel, Endpoint};
use watches::{Following, Watches};

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How many bytes etcd may send ahead, for one answer and for all of them. Go's client begins with 64 KiB and finds out
/// how many more the way between them holds; here an answer of ten thousand keys fits from the start.
const ANSWER_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// A connection to a member. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Etcd {
    shared: Arc<Connection>,
}

#[derive(Debug)]
struct Connection {
    channel: Channel,
    watches: Shared<Watches>,
    renewals: Shared<Renewals>,
}

impl Etcd {
    /// Connects to the member that serves clients at `endpoint`, as `host:port`.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{endpoint}"))?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_PATIENCE)
            .initial_stream_window_size(ANSWER_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect()
            .await?;
        let watches = Shared::new(channel.clone());
        let renewals = Shared::new(channel.clone());
        Ok(Self { shared: Arc::new(Connection { channel, watches, renewals }) })
    }

    async fn call<Q: Call>(&self, request: Q) -> Result<Q::Answer> {
        Ok(rpc::call(&self.shared.channel, request).await?)
    }
}

impl Store for Etcd {
    type Watch = Watch;
    type Session = Session;

    async fn put(&self, key: &Bytes, value: &Bytes) -> Result {
        self.call(put(key, value)).await?;
        Ok(())
    }

    async fn put_all(&self, pairs: Vec<(Bytes, Bytes)>) -> Result {
        let success = pairs.iter().map(|(key, value)| put(key, value).into()).collect();
        self.call(TxnRequest { compare: Vec::new(), success }).await?;
        Ok(())
    }

    async fn txn(&self, guard: &Bytes, puts: [&Bytes; 2], value: &Bytes) -> Result {
        let compare = vec![Compare::exists(guard.clone())];
        let success = puts.map(|key| put(key, value).into()).to_vec();
        let answer = self.call(TxnRequest { compare, success }).await?;
        answer.succeeded.then_some(()).ok_or_else(|| "the guard does not exist".into())
    }

    async fn get(&self, key: &Bytes, fresh: Fresh) -> Result<usize> {
        let serializable = fresh == Fresh::Serializable;
        let request = RangeRequest { key: key.clone(), serializable, ..RangeRequest::default() };
        let answer = self.call(request).await?;
        let pair = answer.kvs.first().ok_or("the key does not exist")?;
        Ok(pair.value.len())
    }

    async fn range(&self, prefix: &Bytes) -> Result<u64> {
        Ok(self.call(under(prefix)).await?.kvs.len() as u64)
    }

    async fn count(&self, prefix: &Bytes) -> Result<u64> {
        let request = RangeRequest { count_only: true, ..under(prefix) };
        Ok(self.call(request).await?.count.cast_unsigned())
    }

    async fn watch(&self, prefix: &Bytes) -> Result<Watch> {
        let following = self.shared.watches.follow(prefix).await?;
        Ok(Watch { following, _etcd: self.clone() })
    }

    async fn grant(&self, ttl: Duration) -> Result<u64> {
        // etcd counts in seconds.
        let ttl_seconds = i64::try_from(ttl.as_millis().div_ceil(1000))?;
        let answer = self.call(LeaseGrantRequest { ttl_seconds }).await?;
        Ok(answer.id.cast_unsigned())
    }

    async fn put_leased(&self, key: &Bytes, value: &Bytes, lease: u64) -> Result {
        self.call(PutRequest { lease: lease.cast_signed(), ..put(key, value) }).await?;
        Ok(())
    }

    async fn keep_alive(&self, lease: u64) -> Result {
        Ok(self.shared.renewals.renew(lease.cast_signed()).await?)
    }

    async fn revoke(&self, lease: u64) -> Result {
        self.call(LeaseRevokeRequest { id: lease.cast_signed() }).await?;
        Ok(())
    }

    async fn session(&self, ttl: Duration) -> Result<Session> {
        let lease = self.grant(ttl).await?;
        let mut renewal = JoinSet::new();
        renewal.spawn(renew(self.clone(), lease, ttl / 3));
        Ok(Session { etcd: self.clone(), lease, renewal })
    }
}

fn put(key: &Bytes, value: &Bytes) -> PutRequest {
    PutRequest { key: key.clone(), value: value.clone(), lease: 0 }
}

fn under(prefix: &Bytes) -> RangeRequest {
    let range_end = rpc::end_of(prefix);
    RangeRequest { key: prefix.clone(), range_end, ..RangeRequest::default() }
}

impl From<PutRequest> for RequestOp {
    fn from(put: PutRequest) -> Self {
        Self { put: Some(put) }
    }
}

/// See [`store::Watch`].
#[derive(Debug)]
pub(crate) struct Watch {
    following: Following,
    /// The task that reads the stream ends with the last clone.
    _etcd: Etcd,
}

impl store::Watch for Watch {
    async fn next(&mut self) -> Result<Vec<Change>> {
        Ok(self.following.next().await?)
    }
}

/// See [`store::Session`]. Dropped without `close`, its lease is left to run out.
#[derive(Debug)]
pub(crate) struct Session {
    etcd: Etcd,
    lease: u64,
    renewal: JoinSet<()>,
}

async fn renew(etcd: Etcd, lease: u64, period: Duration) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // If this fails because a member is down, the next may not. If the lease is gone, whoever uses it will hear.
        let _ = etcd.keep_alive(lease).await;
    }
}

impl store::Session for Session {
    type Held = Held;

    async fn lock(&self, name: &str) -> Result<Held> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let request = LockRequest { name, lease: self.lease.cast_signed() };
        let proof = Proof::Lock(self.etcd.call(request).await?.key);
        Ok(Held { etcd: self.etcd.clone(), proof })
    }

    async fn campaign(&self, name: &str, who: &str) -> Result<Held> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let value = Bytes::copy_from_slice(who.as_bytes());
        let request = CampaignRequest { name, lease: self.lease.cast_signed(), value };
        let leader = self.etcd.call(request).await?.leader;
        let proof = Proof::Lead(leader.ok_or("etcd made nobody the leader")?);
        Ok(Held { etcd: self.etcd.clone(), proof })
    }

    async fn close(mut self) -> Result {
        self.renewal.shutdown().await;
        self.etcd.revoke(self.lease).await
    }
}

/// See [`store::Held`]. Dropped without `release`, it is held until its session ends.
#[derive(Debug)]
pub(crate) struct Held {
    etcd: Etcd,
    proof: Proof,
}

#[derive(Debug)]
enum Proof {
    Lock(Bytes),
    Lead(LeaderKey),
}

impl store::Held for Held {
    async fn release(self) -> Result {
        match self.proof {
            Proof::Lock(key) => self.etcd.call(UnlockRequest { key }).await?,
            Proof::Lead(leader) => self.etcd.call(ResignRequest { leader: Some(leader) }).await?,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
