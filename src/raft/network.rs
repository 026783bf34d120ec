//! openraft's messages to the other members.
//!
//! Three connections to each member: votes and entries, heartbeats, snapshots. A heartbeat never waits behind data, and
//! a snapshot delays neither. (A fourth, of [`super::compare`], is not openraft's.) Every connection says for which group, from whom and to whom it is (`wire`'s hello), so
//! that a wrong address is a refusal and not a vote.
//!
//! Every call has a timeout, for openraft sets none: a call that hangs would hold the log's purge for ever.
//!
//! A snapshot is read piece by piece from one view, and goes no faster than [`SNAPSHOT_RATE`] or what the builder says, so
//! that writes have the disk, the connection and the processors to themselves for most of the time. If its connection
//! breaks it goes on from the last chunk that has come, as long as the receiver knows it: then the view is still there. Who
//! was restarted meanwhile gets a new one. While a snapshot is being sent the log is not cut
//! ([`Machine`](super::machine::Machine)) but for its bytes, or whoever got it would need the next. So one that comes forward far more slowly than
//! the rate lets it is given up ([`Transfer`]), and openraft begins the next with a view of that moment.

use super::config::Timing;
use super::format::position;
use super::identity::Identity;
use super::machine::{SnapshotData, SnapshotOf};
use super::pace::{Pace, Transfer};
use super::state::State;
use super::{Membership, Peer, Types, Vote};
use crate::codec::layout::Layout;
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::fault::{Point, point};
use crate::mvcc::SnapshotReader;
use crate::raft::aside;
use crate::wire::{Endpoint, Hello, PeerClient, PeerKind, Security};
use bytes::Bytes;
use futures::future::{Either, select};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// The numbers of the messages. Never reused.
pub(crate) mod method {
    pub(crate) const APPEND: u16 = 1;
    pub(crate) const VOTE: u16 = 2;
    pub(crate) const PRE_VOTE: u16 = 3;
    pub(crate) const TRANSFER: u16 = 4;
    /// `transfer u64 | bytes u64`: begin a snapshot that is called so, of about so many bytes; whatever was received of another is
    /// dropped. Refused where there is no room for it.
    pub(crate) const SNAPSHOT_BEGIN: u16 = 5;
    /// `offset u64 | bytes`
    pub(crate) const SNAPSHOT_CHUNK: u16 = 6;
    /// `vote`: validate and install it.
    pub(crate) const SNAPSHOT_END: u16 = 7;
    /// The hashes that the state had on the way, to be compared.
    pub(crate) const MARKS: u16 = 8;
    /// `transfer u64`: begin to hand out a whole state that is called so, whoever leads, and say what it was applied up to, a
    /// log id; what was handed out to this member before is dropped.
    pub(crate) const SEED_BEGIN: u16 = 9;
    /// `transfer u64 | offset u64`: the bytes of it from there on, and none after the last.
    pub(crate) const SEED_NEXT: u16 = 10;
    /// `transfer u64`: how many bytes of it have come? `none`, if it is not known, or not any more.
    pub(crate) const SNAPSHOT_RESUME: u16 = 11;
}

/// The bytes of a snapshot in one message.
pub(super) const CHUNK_BYTES: usize = 512 << 10;
/// How many bytes of snapshots a member sends in a second, unless it is told otherwise. A gigabyte takes a minute. That is
/// an eighth of what a connection of 1 Gbit/s carries, and of what a plain disk writes: what is left is enough for every
/// write that is not bulk by itself, and between two chunks there is nothing that a flush would have to wait for.
pub(crate) const SNAPSHOT_RATE: NonZeroU64 =
    NonZeroU64::new(16 << 20).expect("it is more than nothing");
/// How a receiver begins what it says of a snapshot that is damaged.
pub(super) const DAMAGED: &str = "rows of a snapshot: ";
/// For how long it is tried to go on with a snapshot whose connection broke. Its view keeps pages from being reused.
const RESUME_PATIENCE: Duration = Duration::from_secs(30);
/// How long whoever takes no snapshot now is not asked again.
const REFUSED_PAUSE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How long the receiver of a snapshot may take for one chunk, and for the installation.
pub(super) const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take as a whole to look a snapshot over. Bounded, so that a receiver that hangs is given up.
const INSTALL_PATIENCE: Duration = Duration::from_secs(1800);

/// The same. What a simulated group has would fit one.
fn chunk_bytes() -> usize {
    #[cfg(feature = "sim")]
    if crate::sim::world().is_some() {
        return 2 << 10;
    }
    CHUNK_BYTES
}

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
    security: Security,
    refusals: Refusals,
    bulk: Bulk,
}

/// What all snapshots that a member sends have in common.
#[derive(Clone, Debug)]
pub(crate) struct Bulk {
    /// One for all: two members that have fallen behind are no reason to go twice as fast.
    pub(super) pace: Pace,
    /// Of which they are, and which has failed if they cannot be read.
    pub(super) state: Arc<State>,
}

impl Network {
    pub(crate) fn new(
        identity: Identity,
        timing: Timing,
        security: Security,
        refusals: Refusals,
        bulk: Bulk,
    ) -> Self {
        Self { identity, timing, security, refusals, bulk }
    }

    fn connection(&self, kind: PeerKind, target: u64, peer: &Peer) -> Connection {
        let client =
            client(kind, self.identity, self.timing, self.security.clone(), (target, peer));
        let (timing, refusals, bulk) = (self.timing, self.refusals.clone(), self.bulk.clone());
        Connection { client, target, timing, refusals, bulk }
    }
}

/// Calls of one kind to a member, which is told who calls, and has to be who is called.
pub(super) fn client(
    kind: PeerKind,
    own: Identity,
    timing: Timing,
    security: Security,
    (target, peer): (u64, &Peer),
) -> PeerClient {
    let hello = hello(own, timing, target, peer.incarnation);
    let who = Endpoint { group: own.group, node: own.node };
    let introduce = Arc::new(move || (who, hello.clone()));
    PeerClient::new(kind, peer.address.clone(), security, introduce)
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
    bulk: Bulk,
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

    /// Whoever is slow keeps what he reads of the log from being cut, as long as no call to him fails. One that would read what
    /// is to go does: then it goes, and he gets a snapshot.
    fn may_still_read(&self, rpc: &AppendEntriesRequest<Types>) -> Result<(), RPCError<Types>> {
        let before = rpc.prev_log_id.as_ref().map_or(0, |id| id.index);
        let cut = self.bulk.state.log_cut.load(Ordering::Relaxed);
        if rpc.entries.is_empty() || before >= cut {
            return Ok(());
        }
        tracing::debug!(to = self.target, before, cut, "the log is cut ahead of a member");
        let detail = "what it lacks is about to be cut from the log".to_owned();
        Err(RPCError::Unreachable(Unreachable::new(&Error::from(Reason::Unreachable { detail }))))
    }

    /// Sends the view as chunks, in order.
    async fn send(&mut self, vote: Vote, snapshot: SnapshotOf) -> Result<Vote, Error> {
        let SnapshotData::View(view) = snapshot.snapshot else {
            return Err(Fault::assertion("a received snapshot is installed, not sent").into());
        };
        let at = snapshot.meta.last_log_id.as_ref().map(position);
        tracing::info!(?at, "sending a snapshot");
        point(Point::SnapshotSend);
        let sending = self.bulk.state.sending.begin();
        let transfer = name()?;
        let begin = [transfer.to_bytes(), self.bulk.state.bytes_of_rows().to_bytes()].concat();
        let begun = self.client.call(method::SNAPSHOT_BEGIN, begin.into(), CHUNK_TIMEOUT).await;
        if let Err(error) = begun {
            // To ask costs a flush, and openraft would do that all the time.
            if *error.reason() == Reason::TooManyRequests {
                tracing::warn!(to = self.target, "it takes no snapshot now");
                // Nothing is sent meanwhile, and no page or entry is kept for that.
                drop((sending, view));
                sleep(REFUSED_PAUSE).await;
            }
            return Err(error);
        }
        let members = snapshot.meta.last_membership.membership().clone();
        let mut reader = SnapshotReader::new(*view);
        let (mut offset, mut under_way) = (0u64, Transfer::begin());
        loop {
            if let Err(reason) = under_way.check(&self.bulk.pace, offset, sending.all()) {
                tracing::warn!(to = self.target, %reason, "a snapshot is sent no further");
                return Err(reason.into());
            }
            // It may wait for the disk, and passes over all that waits to be removed: beside the tasks that send heartbeats.
            let read = aside(move || {
                let chunk = reader.next_chunk(chunk_bytes());
                (reader, chunk)
            });
            let chunk;
            (reader, chunk) = read.await?;
            let chunk = chunk.map_err(|fault| self.cannot_read(fault, &members))?;
            let Some(chunk) = chunk else { break };
            self.send_chunk(transfer, offset, &chunk).await?;
            offset += chunk.len() as u64;
            self.bulk.pace.after(chunk.len()).await;
        }
        // The view keeps pages from being reused: it goes before the receiver's work begins.
        drop(reader);
        point(Point::SnapshotSent);
        self.end(vote).await
    }

    /// What is wrong with the own tables is no trouble of the way to the other: this member fails, if it can be spared. If not,
    /// all that the group has goes on as well as it can, and only whoever wants a snapshot of it waits.
    fn cannot_read(&self, fault: Fault, members: &Membership) -> Error {
        if !fault.is_of_tables() || can_be_spared(members, 1) {
            return self.bulk.state.fail(fault);
        }
        let error = Error::from(fault);
        tracing::error!(to = self.target, %error, "there is no snapshot of this member, and no majority without it");
        error
    }

    /// Has a snapshot that was sent take effect. To look over a large one takes longer than a call: it goes on meanwhile, and
    /// the next call finds it further.
    async fn end(&mut self, vote: Vote) -> Result<Vote, Error> {
        let begun = Instant::now();
        let mut heard = begun;
        loop {
            let ended = self.client.call(method::SNAPSHOT_END, vote.to_bytes(), INSTALL_TIMEOUT);
            let error = match ended.await {
                Ok(answer) => return read_answer(answer),
                Err(error) if !is_lost(&error) => return Err(self.refused(error)),
                Err(error) => error,
            };
            if matches!(error.reason(), Reason::DeadlinePassed { .. }) {
                heard = Instant::now();
            }
            if heard.elapsed() > RESUME_PATIENCE || begun.elapsed() > INSTALL_PATIENCE {
                return Err(error);
            }
            sleep(self.timing.heartbeat).await;
        }
    }

    /// Each row was right when it was read, and yet what has come does not fit together: rows may be missing here, or be there
    /// twice.
    fn refused(&self, error: Error) -> Error {
        if matches!(error.reason(), Reason::Malformed { what } if what.starts_with(DAMAGED)) {
            tracing::warn!(to = self.target, %error, "a snapshot of this member was refused");
            self.bulk.state.doubt();
        }
        error
    }

    /// Has a chunk arrive, over as many connections as that takes.
    async fn send_chunk(&mut self, transfer: u64, offset: u64, chunk: &Bytes) -> Result<(), Error> {
        let message = Bytes::from([&offset.to_bytes()[..], chunk].concat());
        let begun = Instant::now();
        loop {
            point(Point::SnapshotSendsChunk);
            let sent = self.client.call(method::SNAPSHOT_CHUNK, message.clone(), CHUNK_TIMEOUT);
            let error = match sent.await {
                Ok(_) => return Ok(()),
                Err(error) if !is_lost(&error) => return Err(self.refused(error)),
                Err(error) => error,
            };
            // Has it arrived, or is it to be sent again?
            match self.received(transfer, begun + RESUME_PATIENCE).await {
                Some(received) if received == offset + chunk.len() as u64 => return Ok(()),
                Some(received) if received == offset && begun.elapsed() < RESUME_PATIENCE => {}
                _ => return Err(error),
            }
        }
    }

    /// How much of a transfer the receiver has, if it still knows it, and says so in time.
    async fn received(&mut self, transfer: u64, until: Instant) -> Option<u64> {
        while Instant::now() < until {
            sleep(self.timing.heartbeat).await;
            point(Point::SnapshotResumes);
            let asked =
                self.client.call(method::SNAPSHOT_RESUME, transfer.to_bytes(), CHUNK_TIMEOUT);
            match asked.await {
                Ok(answer) => return read_answer(answer).ok()?,
                Err(error) if is_lost(&error) => {}
                Err(_) => return None,
            }
        }
        None
    }
}

/// What this member calls a transfer, as it has called none before.
pub(super) fn name() -> Result<u64, Error> {
    getrandom::u64().map_err(|error| {
        let error = std::io::Error::other(error.to_string());
        Fault::disk("cannot draw a random number", error).into()
    })
}

/// Whether it is the connection that failed, and not the receiver that has refused.
fn is_lost(error: &Error) -> bool {
    matches!(
        error.reason(),
        Reason::ConnectionLost | Reason::Unreachable { .. } | Reason::DeadlinePassed { .. }
    )
}

pub(super) fn read_answer<A: Layout>(bytes: Bytes) -> Result<A, Error> {
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
        self.may_still_read(&rpc)?;
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

/// Whether there is a majority of the voters without `count` of them, of which this member is one. While they change: of both
/// the old and the new.
pub(super) fn can_be_spared(members: &Membership, count: usize) -> bool {
    let is_left = |voters: &BTreeSet<u64>| voters.len().saturating_sub(count) > voters.len() / 2;
    members.get_joint_config().iter().all(is_left)
}

#[cfg(test)]
mod tests;
