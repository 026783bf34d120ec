//! openraft's messages to the other members.
//!
//! Three connections to each member: votes and entries, heartbeats, snapshots. A heartbeat never waits behind data, and
//! a snapshot delays neither. Every connection says for which group, from whom and to whom it is (`wire`'s hello), so
//! that a wrong address is a refusal and not a vote.
//!
//! Every call has a timeout, for openraft sets none: a call that hangs would hold the log's purge for ever.

use super::config::Timing;
use super::format::position;
use super::identity::Identity;
use super::machine::{SnapshotData, SnapshotOf};
use super::{Peer, Types, Vote};
use crate::codec::layout::Layout;
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::fault::{Point, point};
use crate::mvcc::SnapshotReader;
use crate::wire::{Endpoint, Hello, PeerClient, PeerKind};
use bytes::Bytes;
use futures::future::{Either, select};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The numbers of the messages. Never reused.
pub(crate) mod method {
    pub(crate) const APPEND: u16 = 1;
    pub(crate) const VOTE: u16 = 2;
    pub(crate) const PRE_VOTE: u16 = 3;
    pub(crate) const TRANSFER: u16 = 4;
    /// Begin a snapshot; whatever was received of another is dropped.
    pub(crate) const SNAPSHOT_BEGIN: u16 = 5;
    /// `offset u64 | bytes`
    pub(crate) const SNAPSHOT_CHUNK: u16 = 6;
    /// `vote`: validate and install it.
    pub(crate) const SNAPSHOT_END: u16 = 7;
}

/// The bytes of a snapshot in one message.
const CHUNK_BYTES: usize = 512 << 10;
/// How long the receiver of a snapshot may take for one chunk, and for the installation.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Which members refuse to talk to this one, and why: not for now, as one that is down, but for who it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals {
    by: Arc<Mutex<BTreeMap<u64, Error>>>,
    removed: Arc<Notify>,
}

impl Refusals {
    pub(super) fn note<T>(&self, member: u64, answer: &Result<T, Error>) {
        let mut refusals = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(_) => drop(refusals.remove(&member)),
            // It says why it has ended itself.
            Err(error) if is_removed(error) == Some(member) => {}
            Err(error) if error.kind() == ErrorKind::WrongGroup => {
                refusals.insert(member, error.clone());
                // Every other refusal may be one member's own; this one the group has agreed on.
                if is_removed(error).is_some() {
                    self.removed.notify_one();
                }
            }
            Err(_) => {}
        }
    }

    /// Completes when a member has said that the group has removed this one.
    pub(super) async fn removed(&self) {
        self.removed.notified().await;
    }

    /// Why this member cannot take part, if so many of `voters` refuse it that the others are no majority with it.
    pub(crate) fn by_too_many(&self, voters: &BTreeSet<u64>) -> Option<Error> {
        let refusals = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refusing = refusals.iter().filter(|(member, _)| voters.contains(member));
        let others = voters.len() - refusing.clone().count();
        refusing.next().filter(|_| 2 * others <= voters.len()).map(|(_, error)| error.clone())
    }
}

/// Who was removed, if an error says so.
fn is_removed(error: &Error) -> Option<u64> {
    match error.reason() {
        Reason::MemberRemoved { node } => Some(node.get()),
        _ => None,
    }
}

/// Makes the connections.
#[derive(Debug)]
pub(crate) struct Network {
    identity: Identity,
    timing: Timing,
    plaintext: bool,
    refusals: Refusals,
}

impl Network {
    pub(crate) fn new(
        identity: Identity,
        timing: Timing,
        plaintext: bool,
        refusals: Refusals,
    ) -> Self {
        Self { identity, timing, plaintext, refusals }
    }

    fn connection(&self, kind: PeerKind, target: u64, peer: &Peer) -> Connection {
        let hello = hello(self.identity, self.timing, target, peer.incarnation);
        let who = Endpoint { group: self.identity.group, node: self.identity.node };
        let introduce = Arc::new(move || (who, hello.clone()));
        let client = PeerClient::new(kind, peer.address.clone(), self.plaintext, introduce);
        Connection { client, target, timing: self.timing, refusals: self.refusals.clone() }
    }
}

/// What a member says first to another.
pub(crate) fn hello(identity: Identity, timing: Timing, to: u64, to_incarnation: u64) -> Hello {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Hello {
        from: identity.node,
        to,
        from_incarnation: identity.incarnation,
        to_incarnation,
        heartbeat_ms: millis(timing.heartbeat),
        election_min_ms: millis(timing.election_min()),
        election_max_ms: millis(timing.election_max()),
        lease_reads: false,
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Connection {
        self.connection(PeerKind::Raft, target, node)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Peer) -> Connection {
        self.connection(PeerKind::Snapshot, target, node)
    }
}

/// A connection to one member, made when it is first used, and again after it broke.
#[derive(Debug)]
pub(crate) struct Connection {
    client: PeerClient,
    target: u64,
    timing: Timing,
    refusals: Refusals,
}

impl Connection {
    async fn call<Q: Layout, A: Layout>(
        &mut self,
        method: u16,
        request: &Q,
        option: &RPCOption,
    ) -> Result<A, RPCError<Types>> {
        // openraft's hint is made for heartbeats; bulk on a slow disk takes longer.
        let timeout = option.hard_ttl().max(self.timing.election_min());
        point(Point::PeerCall);
        let answer = self.client.call(method, request.to_bytes(), timeout).await;
        point(Point::PeerAnswered);
        self.refusals.note(self.target, &answer);
        answer.and_then(read_answer).map_err(|error| rpc_error(&error))
    }

    /// Sends the view as chunks, in order.
    async fn send(&mut self, vote: Vote, snapshot: SnapshotOf) -> Result<Vote, Error> {
        let SnapshotData::View(view) = snapshot.snapshot else {
            return Err(Fault::assertion("a received snapshot is installed, not sent").into());
        };
        let at = snapshot.meta.last_log_id.as_ref().map(position);
        tracing::info!(?at, "sending a snapshot");
        point(Point::SnapshotSend);
        self.client.call(method::SNAPSHOT_BEGIN, Bytes::new(), CHUNK_TIMEOUT).await?;
        let mut reader = SnapshotReader::new(*view);
        let mut offset = 0u64;
        while let Some(chunk) = reader.next_chunk(CHUNK_BYTES)? {
            let mut message = Vec::with_capacity(chunk.len() + 8);
            offset.write(&mut message);
            message.extend_from_slice(&chunk);
            offset += chunk.len() as u64;
            point(Point::SnapshotSendsChunk);
            self.client.call(method::SNAPSHOT_CHUNK, message.into(), CHUNK_TIMEOUT).await?;
        }
        // The view keeps pages from being reused: it goes before the receiver's work begins.
        drop(reader);
        point(Point::SnapshotSent);
        let answer =
            self.client.call(method::SNAPSHOT_END, vote.to_bytes(), INSTALL_TIMEOUT).await?;
        read_answer(answer)
    }
}

fn read_answer<A: Layout>(bytes: Bytes) -> Result<A, Error> {
    let malformed = |_| Reason::Malformed { what: "answer of a member".to_owned() }.into();
    A::from_bytes(bytes).map_err(malformed)
}

/// openraft backs off from a member that is unreachable, and tries again at once after other errors.
fn rpc_error(error: &Error) -> RPCError<Types> {
    match error.reason() {
        Reason::DeadlinePassed { .. } => RPCError::Network(NetworkError::new(error)),
        _ => RPCError::Unreachable(Unreachable::new(error)),
    }
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.call(method::APPEND, &rpc, &option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(method::VOTE, &rpc, &option).await
    }

    // openraft's own would grant without asking.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(method::PRE_VOTE, &rpc, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        match select(pin!(self.send(vote, snapshot)), pin!(cancel)).await {
            Either::Left((Ok(vote), _)) => Ok(SnapshotResponse::new(vote)),
            Either::Left((Err(error), _)) => Err(rpc_error(&error).into()),
            Either::Right((closed, _)) => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let accepted: bool = self.call(method::TRANSFER, &req, &option).await?;
        if accepted {
            return Ok(Ok(()));
        }
        let refused = Error::from(Reason::LeaderChanged);
        Err(RPCError::Unreachable(Unreachable::new(&refused)))
    }
}
