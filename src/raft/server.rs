//! What the other members send: the other side of [`super::network`].
//!
//! A message that speaks for somebody else than its connection does is refused: Raft's messages carry no target, and a
//! mixed-up address would otherwise be a vote in another's name.
//!
//! A leader that has lost touch with this member may send a snapshot although entries beyond it are here already. To
//! openraft that is a step back in what it writes, which it forbids itself by an assertion. So the log is asked first,
//! with an empty append, whether it has the last entry that the snapshot covers; if it has, that is what the leader wanted
//! to achieve. From the question to the end of the install nothing is appended: the gate is closed. Heartbeats wait no
//! longer for that than for openraft, which answers none while it installs, nor before what it accepted is written.

mod drafts;

use super::machine::{SnapshotData, SnapshotMetaOf, SnapshotOf, meta};
use super::marks::Verdict;
use super::member::Shared;
use super::network::{CHUNK_TIMEOUT, DAMAGED, can_be_spared, method};
use super::room::SPARE_MIN;
use super::state::{Draft, Loaded, State};
use super::{LogId, Types, Vote, aside, drop_aside};
use crate::codec::layout::{Input, Layout};
use crate::error::{Error, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::mvcc::{ANOTHER_VERSION, LoadError};
use crate::wire::{Hello, PeerKind, Status};
use bytes::Bytes;
use drafts::{Drafts, Receiving};
use futures::future::poll_immediate;
use openraft::errors::RaftError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest,
};
use openraft::storage::Snapshot;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::RwLock;
use tokio::time::{Instant, sleep};

/// How long a copy that is being made may take to give way. Whoever waits for that has more patience.
const COPY_PATIENCE: Duration = CHUNK_TIMEOUT.checked_div(2).expect("by two");

/// Answers the messages of other members.
#[derive(Debug)]
pub(crate) struct PeerServer {
    shared: Arc<Shared>,
    /// The log of the group does not lead to its state, and this member has not begun with that state: the first entry
    /// of the log would be applied to nothing. The leader cuts its log, and then has nothing to send but a snapshot.
    begins_with_snapshot: bool,
    /// The snapshot that each member is sending.
    drafts: Drafts,
    /// Read while entries are handed to openraft, written while a snapshot is installed.
    gate: RwLock<()>,
}

impl PeerServer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let begins_with_snapshot = shared.desk.has_joined() && shared.desk.began_restored();
        Self { shared, begins_with_snapshot, drafts: Drafts::default(), gate: RwLock::default() }
    }

    /// Whether a member may talk to this one.
    pub(crate) fn hello(&self, hello: &Hello) -> Status {
        let (own, timing) = (self.shared.identity, self.shared.timing);
        let expected = super::network::hello(own, timing, hello.from, hello.from_incarnation);
        let timing_is_equal =
            (expected.heartbeat_ms, expected.election_min_ms, expected.election_max_ms)
                == (hello.heartbeat_ms, hello.election_min_ms, hello.election_max_ms);
        let membership = self.shared.membership();
        let known = membership.get_node(&hello.from).map(|peer| peer.incarnation);
        // Before the first entry there is no membership, but a founding record.
        let known = known.or_else(|| self.shared.desk.incarnation(hello.from));
        let is = |claimed: u64, actual: u64| claimed == 0 || claimed == actual;
        let known_is = |claimed: u64| known.is_none_or(|incarnation| incarnation == claimed);
        if hello.to != own.node {
            Status::WrongTarget
        } else if self.shared.is_removed(hello.from) {
            Status::CallerRemoved
        } else if !is(hello.to_incarnation, own.incarnation) || !known_is(hello.from_incarnation) {
            Status::IncarnationRefused
        } else if !timing_is_equal || hello.lease_reads {
            Status::TimingDiffers
        } else {
            Status::Ok
        }
    }

    /// Answers one message. Messages of one connection come one after another.
    pub(crate) async fn call(
        self: Arc<Self>,
        kind: PeerKind,
        from: u64,
        number: u16,
        body: Bytes,
    ) -> Result<Bytes, Error> {
        match (kind, number) {
            (PeerKind::Raft, method::APPEND) => self.append(from, body).await,
            (PeerKind::Raft, method::VOTE) => self.vote(from, body, false).await,
            (PeerKind::Raft, method::PRE_VOTE) => self.vote(from, body, true).await,
            (PeerKind::Raft, method::TRANSFER) => self.transfer(from, body).await,
            (PeerKind::Raft, method::MARKS) => self.marks(&body),
            (PeerKind::Snapshot, method::SEED_BEGIN) => self.begin_seed(from, body).await,
            (PeerKind::Snapshot, method::SEED_NEXT) => self.next_of_seed(from, body).await,
            (PeerKind::Snapshot, method::SNAPSHOT_BEGIN) => self.begin(from, body).await,
            (PeerKind::Snapshot, method::SNAPSHOT_CHUNK) => self.chunk(from, body).await,
            (PeerKind::Snapshot, method::SNAPSHOT_RESUME) => self.resume(from, body).await,
            (PeerKind::Snapshot, method::SNAPSHOT_END) => self.end(from, body).await,
            _ => Err(malformed("method")),
        }
    }

    async fn append(&self, from: u64, body: Bytes) -> Result<Bytes, Error> {
        let request: AppendEntriesRequest<Types> = read(body)?;
        speaks_for(from, &request.vote)?;
        if self.begins_with_snapshot && request.prev_log_id.is_none() && !request.entries.is_empty()
        {
            return Err(Reason::Starting.into());
        }
        *self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Some(idle) = self.drafts.take_idle() {
            drop_aside(idle);
        }
        point(Point::PeerAsked);
        let gate = self.gate.read().await;
        let mut append = pin!(self.shared.raft.append_entries(request));
        // From the first look on it is in openraft's line.
        let answer = poll_immediate(append.as_mut()).await;
        drop(gate);
        let answer = match answer {
            Some(answer) => answer,
            None => append.await,
        };
        point(Point::PeerAnswers);
        answer.map(|answer| answer.to_bytes()).map_err(|_| self.shared.stopped())
    }

    async fn vote(&self, from: u64, body: Bytes, pre_vote: bool) -> Result<Bytes, Error> {
        let request: VoteRequest<Types> = read(body)?;
        speaks_for(from, &request.vote)?;
        // The connection may be older than that.
        if self.shared.is_removed(from) {
            return Err(Reason::MemberRemoved { node: from.into() }.into());
        }
        let raft = &self.shared.raft;
        let answer = if pre_vote { raft.pre_vote(request).await } else { raft.vote(request).await };
        answer.map(|answer| answer.to_bytes()).map_err(|_| self.shared.stopped())
    }

    async fn transfer(&self, from: u64, body: Bytes) -> Result<Bytes, Error> {
        let request: TransferLeaderRequest<Types> = read(body)?;
        speaks_for(from, request.from_leader())?;
        let answer = self.shared.raft.handle_transfer_leader(request).await;
        answer.map(|accepted| accepted.is_ok().to_bytes()).map_err(|_| self.shared.stopped())
    }

    /// What this member has to say of its state, unless it has no right to speak any more.
    fn marks(&self, body: &Bytes) -> Result<Bytes, Error> {
        is_empty(body)?;
        self.shared.state.check()?;
        Ok(self.shared.report().to_bytes())
    }

    async fn begin_seed(&self, from: u64, body: Bytes) -> Result<Bytes, Error> {
        let transfer: u64 = read(body)?;
        point(Point::SeedBegin);
        // Whoever took it would be a majority with this one, whichever of the states is right.
        if matches!(*self.shared.compared.borrow(), Verdict::Undecided { .. }) {
            return Err(malformed("seed: no majority has the state of this member"));
        }
        let state = &self.shared.state;
        let begun = state.begin_seed(from, transfer).await.map_err(|fault| state.fail(fault))?;
        let at = begun.ok_or_else(|| malformed("seed: this member has applied nothing"))?;
        tracing::info!(to = from, ?at, "handing the state out");
        Ok(at.to_bytes())
    }

    async fn next_of_seed(self: &Arc<Self>, from: u64, body: Bytes) -> Result<Bytes, Error> {
        point(Point::SeedChunk);
        let (transfer, offset): (u64, u64) = read(body)?;
        self.shared.state.check()?;
        let (state, pace) = (Arc::clone(&self.shared.state), self.shared.pace.clone());
        let next = aside(move || state.seeds.next(from, transfer, offset, &pace)).await?;
        let next = match next {
            // Whoever asks is away already. There may be another whom it can ask, and no majority without the two.
            Err(LoadError::Fault(fault))
                if fault.is_of_tables() && !can_be_spared(&self.shared.membership(), 2) =>
            {
                let error = Error::from(fault);
                tracing::error!(to = from, %error, "this state cannot be handed out");
                Err(error)
            }
            next => self.done(next),
        };
        let piece = next.inspect_err(|error| {
            if matches!(error.reason(), Reason::TransferTooSlow { .. }) {
                tracing::warn!(to = from, %error, "the state is handed out no further");
            }
        })?;
        self.shared.pace.after(piece.len()).await;
        Ok(piece)
    }

    async fn begin(self: &Arc<Self>, from: u64, body: Bytes) -> Result<Bytes, Error> {
        point(Point::SnapshotBegin);
        let (transfer, bytes) = read_begin(body)?;
        let bytes = bytes.unwrap_or_else(|| self.shared.state.used());
        // A draft that a broken transfer left behind goes first: there is room for one of each member.
        let old = self.drafts.make_room(from);
        let state = Arc::clone(&self.shared.state);
        let way = self.blocking(move || {
            drop(old);
            Ok(state.make_way())
        });
        let way = way.await?;
        self.copy_is_gone().await;
        let state = Arc::clone(&self.shared.state);
        let draft = self.blocking(move || {
            Ok(has_room_for(&state, bytes).then(|| state.draft_in(way)).transpose()?)
        });
        let draft = draft.await?.ok_or(Reason::TooManyRequests)?;
        self.drafts.put(from, Receiving::new(transfer, draft));
        Ok(Bytes::new())
    }

    /// Waits until a smaller copy of the tables has given way, which has the room that a snapshot needs.
    async fn copy_is_gone(&self) {
        let until = Instant::now() + COPY_PATIENCE;
        while self.shared.state.is_copying() && Instant::now() < until {
            sleep(self.shared.timing.heartbeat / 4).await;
        }
    }

    async fn chunk(self: &Arc<Self>, from: u64, body: Bytes) -> Result<Bytes, Error> {
        point(Point::SnapshotChunk);
        let mut input = Input::new(body);
        let offset = u64::read(&mut input).map_err(|_| malformed("snapshot chunk"))?;
        let chunk = input.rest();
        let turn = self.drafts.turn(from).await.filter(|turn| drafts::is_next(turn, offset));
        let turn = turn.ok_or_else(|| malformed("snapshot: a chunk is missing"))?;
        self.blocking(move || drafts::push(turn, &chunk)).await?;
        Ok(Bytes::new())
    }

    /// Says how much has come of a transfer whose connection broke, if it is still known.
    async fn resume(&self, from: u64, body: Bytes) -> Result<Bytes, Error> {
        let transfer: u64 = read(body)?;
        let turn = self.drafts.turn(from).await;
        point(Point::SnapshotResumed);
        Ok(drafts::received(turn.as_ref(), transfer).to_bytes())
    }

    async fn end(self: &Arc<Self>, from: u64, body: Bytes) -> Result<Bytes, Error> {
        let vote: Vote = read(body)?;
        speaks_for(from, &vote)?;
        let not_begun = || malformed("snapshot: it has not begun");
        // Whoever calls again waits until the first look is over.
        let turn = self.drafts.turn(from).await.ok_or_else(not_begun)?;
        point(Point::SnapshotEnd);
        let turn = self.blocking(move || drafts::finish(turn, finish)).await?;
        let (mut meta, loaded) = self.drafts.take(from, turn).ok_or_else(not_begun)?;
        if let Some(last) = meta.last_log_id.as_mut().filter(|_| bug(Bug::SnapshotWithOtherMeta)) {
            // As if it were of a state that is one entry further.
            last.index += 1;
        }
        if meta.last_log_id.is_some_and(|last| last.leader_id > vote.leader_id) {
            return Err(malformed("snapshot: it is of a later leader than the one who sends it"));
        }
        point(Point::SnapshotValid);
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Loaded(loaded) };
        let answer = self.install(vote, snapshot).await;
        answer.map(|vote| vote.to_bytes()).map_err(|_| self.shared.stopped())
    }

    /// Installs a snapshot, or finds that the log has all of it. Returns the vote of this member.
    async fn install(&self, vote: Vote, snapshot: SnapshotOf) -> Result<Vote, RaftError<Types>> {
        let raft = &self.shared.raft;
        let _gate = self.gate.write().await;
        if let Some(last) = snapshot.meta.last_log_id {
            match raft.append_entries(nothing_after(vote, last)).await? {
                AppendEntriesResponse::Success => return Ok(vote),
                AppendEntriesResponse::HigherVote(higher) => return Ok(higher),
                AppendEntriesResponse::PartialSuccess(_) | AppendEntriesResponse::Conflict => {}
            }
        }
        Ok(raft.install_full_snapshot(vote, snapshot).await?.vote)
    }

    /// Runs disk work beside the async tasks. What a peer sent wrongly is an answer to it; what this member's disk does
    /// stops the node.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, Error> {
        match aside(work).await? {
            Err(LoadError::Malformed(what)) if what != ANOTHER_VERSION => {
                Err(malformed(&format!("{DAMAGED}{what}")))
            }
            done => self.done(done),
        }
    }

    fn done<T>(&self, done: Result<T, LoadError>) -> Result<T, Error> {
        match done {
            Ok(done) => Ok(done),
            Err(LoadError::Malformed(what)) => Err(malformed(what)),
            Err(LoadError::Fault(fault)) => Err(self.shared.state.fail(fault)),
        }
    }
}

/// The question whether the log has an entry, which is answered when it is on the disk.
fn nothing_after(vote: Vote, entry: LogId) -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote,
        prev_log_id: Some(entry),
        entries: Vec::new(),
        leader_commit: None,
    }
}

/// What a transfer is called, and about how many bytes it has. Older versions do not say both.
pub(super) fn read_begin(body: Bytes) -> Result<(Option<u64>, Option<u64>), Error> {
    let mut input = Input::new(body);
    let mut next = || match input.remaining() {
        0 => Ok(None),
        _ => u64::read(&mut input).map(Some).map_err(|_| malformed("snapshot: how it begins")),
    };
    let said = (next()?, next()?);
    if input.remaining() == 0 { Ok(said) } else { Err(malformed("snapshot: how it begins")) }
}

/// Whether there is room for a second state of so many bytes. Who has none would fail when it is half there, and again after
/// each start; like this he stays a voter.
fn has_room_for(state: &State, bytes: u64) -> bool {
    let Some((disk, _)) = state.disk() else { return true };
    let needed = bytes.saturating_add(SPARE_MIN.min(disk.all / 4));
    let has_room = disk.left >= needed;
    if !has_room {
        tracing::warn!(left = disk.left, needed, "there is no room on the disk for a snapshot");
    }
    has_room
}

/// A snapshot that was received as a whole, and what openraft has to know of it.
fn finish(draft: Draft) -> Result<(SnapshotMetaOf, Loaded), LoadError> {
    let loaded = draft.finish()?;
    // All of its rows are right by now, so it is the sender who wrote a membership that cannot be read.
    let unreadable = |_| LoadError::Malformed("the membership in the snapshot cannot be read");
    Ok((meta(&loaded.view()?).map_err(unreadable)?, loaded))
}

fn read<T: Layout>(body: Bytes) -> Result<T, Error> {
    T::from_bytes(body).map_err(|_| malformed("message of a member"))
}

fn is_empty(body: &Bytes) -> Result<(), Error> {
    if body.is_empty() { Ok(()) } else { Err(malformed("message of a member")) }
}

fn malformed(what: &str) -> Error {
    Reason::Malformed { what: what.to_owned() }.into()
}

pub(super) fn speaks_for(from: u64, vote: &Vote) -> Result<(), Error> {
    let actual = vote.leader_id.node_id;
    if actual == from {
        return Ok(());
    }
    Err(Reason::NodeMismatch { actual: actual.into(), expected: from.into() }.into())
}

#[cfg(test)]
mod tests;
