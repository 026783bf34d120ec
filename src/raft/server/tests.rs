//! Snapshots from a leader that is played by the test.

use super::*;
use crate::mvcc::{self, Body, LogPosition, SnapshotReader};
use crate::raft::config::{History, Quota, Retention, Timing};
use crate::raft::format::log_id;
use crate::raft::founding::{Desk, Founders};
use crate::raft::identity::{Identity, Records};
use crate::raft::log::LogStore;
use crate::raft::log::tests::seam::{self, Disk};
use crate::raft::member::{Leadership, Member, Parts};
use crate::raft::network::SNAPSHOT_RATE;
use crate::raft::state::State;
use crate::raft::{Entry, EntryPayload, Membership, Peer};
use crate::wire::Security;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

fn membership() -> Membership {
    let peers = BTreeMap::from([1, 2, 3].map(|id| (id, Peer::default())));
    Membership::new(vec![BTreeSet::from([1, 2, 3])], peers).unwrap()
}

/// A member that hears nothing but what the test tells it.
async fn member(folder: &Path) -> Member {
    member_at(folder, SNAPSHOT_RATE).await
}

/// The same, which sends states at a rate of its own.
async fn member_at(folder: &Path, snapshot_rate: NonZeroU64) -> Member {
    let log = LogStore::open(&folder.join("raft"), 64 << 20).unwrap();
    let state = State::open(folder, 64 << 20).unwrap();
    let desk = Desk::new(Founders::alone("group"), Records::open(&log).await.unwrap());
    let identity = Identity { group: 1, node: 2, incarnation: 1 };
    let retention = Retention { snapshot_every: 1000, kept: 1000, bytes: 1 << 30 };
    let timing = Timing::default();
    let history = History::All;
    let quota = Quota::default();
    let security = Security::Plaintext;
    let parts = Parts {
        identity,
        timing,
        quota,
        history,
        retention,
        snapshot_rate,
        log,
        state,
        desk,
        security,
    };
    Member::start(parts).await.unwrap()
}

/// A snapshot of a state that `body` was the last to change, at `position`, as it travels.
fn snapshot(position: LogPosition, body: Body) -> Vec<Bytes> {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    state.apply_for_test(&[mvcc::Entry { position, body }]);
    let flushed = futures::executor::block_on(state.durable_view()).unwrap();
    let mut reader = SnapshotReader::new(flushed);
    std::iter::from_fn(|| reader.next_chunk(1000).unwrap()).collect()
}

/// A leader.
struct Leader {
    server: Arc<PeerServer>,
    node: u64,
    term: u64,
}

impl Leader {
    fn at(&self, index: u64) -> LogPosition {
        LogPosition { term: self.term, node: self.node, index }
    }

    fn vote(&self) -> Vote {
        Vote { leader_id: *log_id(self.at(0)).committed_leader_id(), committed: true }
    }

    fn entry(&self, index: u64) -> Entry {
        let payload = match index {
            0 => EntryPayload::Membership(membership()),
            _ => EntryPayload::Blank,
        };
        Entry { log_id: log_id(self.at(index)), payload }
    }

    async fn call(&self, kind: PeerKind, number: u16, body: Bytes) -> Bytes {
        let answer = Arc::clone(&self.server).call(kind, self.node, number, body);
        timeout(LONG, answer).await.expect("it hangs").unwrap()
    }

    /// Sends entries of its own, from one index on to before another.
    async fn append(&self, from: u64, to: u64, committed: Option<u64>) {
        self.append_of(self, from, to, committed).await;
    }

    /// Sends entries that a leader before it has written.
    async fn append_of(&self, writer: &Self, from: u64, to: u64, committed: Option<u64>) {
        let request = AppendEntriesRequest::<Types> {
            vote: self.vote(),
            prev_log_id: from.checked_sub(1).map(|index| log_id(writer.at(index))),
            entries: (from..to).map(|index| writer.entry(index)).collect(),
            leader_commit: committed.map(|index| log_id(writer.at(index))),
        };
        self.call(PeerKind::Raft, method::APPEND, request.to_bytes()).await;
    }

    /// Sends a snapshot of what it has up to an index.
    async fn install(&self, index: u64) -> Vote {
        self.install_of(self, index).await
    }

    /// The same, when the last of that was written by a leader before it.
    async fn install_of(&self, writer: &Self, index: u64) -> Vote {
        self.call(PeerKind::Snapshot, method::SNAPSHOT_BEGIN, Bytes::new()).await;
        let mut offset = 0_u64;
        for chunk in snapshot(writer.at(index), Body::Membership(membership().to_bytes())) {
            let body = [&offset.to_bytes()[..], &chunk].concat();
            self.call(PeerKind::Snapshot, method::SNAPSHOT_CHUNK, body.into()).await;
            offset += chunk.len() as u64;
        }
        let answer =
            self.call(PeerKind::Snapshot, method::SNAPSHOT_END, self.vote().to_bytes()).await;
        Vote::from_bytes(answer).unwrap()
    }
}

/// A fault would stop this member, though it is the other one that is wrong.
#[tokio::test]
async fn a_snapshot_with_a_membership_that_cannot_be_read_is_the_senders_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = State::open_unsynced(folder.path()).draft().unwrap();
    let body = Body::Membership(Bytes::from_static(b"of another version"));
    for chunk in snapshot(LogPosition { term: 1, node: 1, index: 1 }, body) {
        draft.push(&chunk).unwrap();
    }
    let refused = finish(draft).map(drop);
    assert!(matches!(refused, Err(LoadError::Malformed(_))), "{refused:?}");
}

/// openraft takes it for a step back, and panics if it is built with assertions.
#[tokio::test]
async fn a_snapshot_of_what_the_log_has_is_acknowledged_and_not_installed() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(folder.path()).await;
    let server = Arc::new(PeerServer::new(Arc::clone(&member.shared)));
    let leader = Leader { server, node: 1, term: 3 };
    leader.append(0, 4, None).await;
    assert_eq!(leader.install(2).await, leader.vote());
    assert_eq!(member.shared.head().applied, None, "it was installed");
    // The log goes on where it was.
    leader.append(4, 5, Some(4)).await;
    timeout(LONG, member.shared.applied(4)).await.expect("it hangs").unwrap();
}

/// Its entries say nothing of the leader that sends them.
#[tokio::test]
async fn a_snapshot_of_what_the_log_has_from_an_older_leader_is_acknowledged_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(folder.path()).await;
    let server = Arc::new(PeerServer::new(Arc::clone(&member.shared)));
    let older = Leader { server: Arc::clone(&server), node: 1, term: 3 };
    let leader = Leader { server, node: 3, term: 4 };
    leader.append_of(&older, 0, 4, None).await;
    assert_eq!(leader.install_of(&older, 2).await, leader.vote());
    assert_eq!(member.shared.head().applied, None, "it was installed");
    // A leader that was deposed learns so.
    assert_eq!(older.install(3).await, leader.vote());
    leader.append_of(&older, 4, 5, Some(4)).await;
    timeout(LONG, member.shared.applied(4)).await.expect("it hangs").unwrap();
}

/// Nothing has been written since the start that an acknowledgement could wait for.
#[tokio::test]
async fn a_snapshot_that_was_installed_before_the_restart_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let member = member(folder.path()).await;
        let server = Arc::new(PeerServer::new(Arc::clone(&member.shared)));
        let leader = Leader { server, node: 1, term: 3 };
        assert_eq!(leader.install(2).await, leader.vote());
        assert_eq!(member.shared.head().applied, Some(2));
        leader.append(3, 3, Some(2)).await;
        drop(leader);
        drop(member.stop(LONG).await);
    }
}

/// A loss of power between the two would leave a state that the log contradicts, and a member that cannot start.
#[tokio::test]
async fn a_snapshot_is_not_installed_before_what_it_contradicts_is_gone_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(folder.path()).await;
    let server = Arc::new(PeerServer::new(Arc::clone(&member.shared)));
    let deposed = Leader { server: Arc::clone(&server), node: 1, term: 3 };
    deposed.append(0, 6, Some(0)).await;
    let leader = Leader { server, node: 3, term: 4 };
    // Its vote is on the disk before that stalls.
    leader.append(0, 0, None).await;
    let disk = seam::of(&folder.path().join("raft"));
    disk.set(Disk::Holds);
    let mut install = pin!(leader.install(3));
    let waited = timeout(Duration::from_millis(200), install.as_mut()).await;
    assert!(waited.is_err(), "the log's disk stands still");
    assert_eq!(member.shared.head().applied, Some(0), "it was installed");
    disk.set(Disk::Works);
    assert_eq!(install.await, leader.vote());
    assert_eq!(member.shared.head().applied, Some(3));
}

/// Whoever has failed has no right to say what others are judged by, or to hand a state on.
#[tokio::test]
async fn a_member_says_what_its_state_was_and_hands_it_out_until_it_fails() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(folder.path()).await;
    let server = Arc::new(PeerServer::new(Arc::clone(&member.shared)));
    let leader = Leader { server: Arc::clone(&server), node: 1, term: 3 };
    leader.append(0, 20, Some(19)).await;
    timeout(LONG, member.shared.applied(19)).await.expect("it hangs").unwrap();
    let said = leader.call(PeerKind::Raft, method::MARKS, Bytes::new()).await;
    assert_eq!(said, member.shared.report().to_bytes());
    let report = super::super::marks::Report::from_bytes(said).unwrap();
    assert_eq!(report.quota, Some(member.shared.quota.0));
    assert_eq!(report.marks, member.shared.state.report().marks);
    let at = leader.call(PeerKind::Snapshot, method::SEED_BEGIN, 7_u64.to_bytes()).await;
    assert_eq!(LogId::from_bytes(at).unwrap(), log_id(leader.at(19)), "where it stands");
    let mut draft = member.shared.state.draft().unwrap();
    let mut offset = 0u64;
    loop {
        let next = (7_u64, offset).to_bytes();
        let next = leader.call(PeerKind::Snapshot, method::SEED_NEXT, next).await;
        if next.is_empty() {
            break;
        }
        offset += next.len() as u64;
        draft.push(&next).unwrap();
    }
    let seeded = draft.finish().unwrap().view().unwrap();
    assert_eq!(
        (seeded.applied().map(|at| at.index), seeded.hash()),
        (Some(19), member.shared.state.summary().1)
    );

    let call = async |kind, number, body: &'static [u8]| {
        let answer = Arc::clone(&server).call(kind, 1, number, Bytes::from_static(body));
        timeout(LONG, answer).await.expect("it hangs").unwrap_err().reason().clone()
    };
    let calls = [(PeerKind::Raft, method::MARKS), (PeerKind::Snapshot, method::SEED_BEGIN)];
    for (kind, number) in calls {
        let reason = call(kind, number, b"more").await;
        assert!(matches!(reason, Reason::Malformed { .. }), "{reason:?}");
    }
    // Of another transfer; out of turn; not what it should be.
    for body in [&[0; 16][..], b"\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01", b"short"] {
        let reason = call(PeerKind::Snapshot, method::SEED_NEXT, body).await;
        assert!(matches!(reason, Reason::Malformed { .. }), "{reason:?}");
    }
    let differs = Reason::StateDiffers { index: 1, own: 1, others: 2 };
    member.shared.state.fail(crate::error::Fault::from_reason(differs.clone()));
    for (kind, number) in calls {
        let body: &[u8] = if number == method::MARKS { b"" } else { &[0; 8] };
        assert_eq!(call(kind, number, body).await, differs);
    }
}

/// Whatever a member sends of its state shares one rate.
#[tokio::test]
async fn a_state_is_handed_out_at_the_rate_of_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let member = member_at(folder.path(), NonZeroU64::new(1 << 20).unwrap()).await;
    let server = Arc::new(PeerServer::new(Arc::clone(&member.shared)));
    let leader = Leader { server, node: 1, term: 3 };
    leader.append(0, 20, Some(19)).await;
    timeout(LONG, member.shared.applied(19)).await.expect("it hangs").unwrap();
    leader.call(PeerKind::Snapshot, method::SEED_BEGIN, 7_u64.to_bytes()).await;
    let begun = Instant::now();
    // Chunks of a snapshot have just gone to somebody else; the first of them after a pause.
    for _ in 0..2 {
        let _ = poll_immediate(pin!(member.shared.pace.after(512 << 10))).await;
    }
    leader.call(PeerKind::Snapshot, method::SEED_NEXT, (7_u64, 0_u64).to_bytes()).await;
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
}

/// Whoever took it would be a majority with this one, whichever of the states is right.
#[tokio::test]
async fn a_state_is_not_handed_out_while_nobody_can_tell_which_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(folder.path()).await;
    let server = Arc::new(PeerServer::new(Arc::clone(&member.shared)));
    let leader = Leader { server, node: 1, term: 3 };
    leader.append(0, 4, Some(3)).await;
    timeout(LONG, member.shared.applied(3)).await.expect("it hangs").unwrap();
    let others = Verdict::Others { index: 3, nodes: [1].into() };
    let verdicts = [Verdict::Unknown, Verdict::Equal, Verdict::Undecided { index: 3 }, others];
    for verdict in verdicts {
        member.shared.compared.send_replace(verdict.clone());
        let answer = leader.try_call(method::SEED_BEGIN, 7_u64.to_bytes()).await;
        match verdict {
            Verdict::Undecided { .. } => {
                let reason = answer.unwrap_err().reason().clone();
                assert!(matches!(reason, Reason::Malformed { .. }), "{reason:?}");
                leader.try_call(method::SEED_NEXT, (7_u64, 0_u64).to_bytes()).await.unwrap_err();
            }
            _ => {
                answer.unwrap();
                let piece =
                    leader.try_call(method::SEED_NEXT, (7_u64, 0_u64).to_bytes()).await.unwrap();
                assert!(!piece.is_empty(), "{verdict:?}");
                // It has come to its end, and there is none that could be gone on with.
                let end = (7_u64, piece.len() as u64).to_bytes();
                assert!(leader.try_call(method::SEED_NEXT, end).await.unwrap().is_empty());
            }
        }
    }
}

/// A receiver, and the chunks of a snapshot at an index.
async fn receiving(folder: &Path) -> (Member, Leader, Vec<Bytes>) {
    let member = member(folder).await;
    let server = Arc::new(PeerServer::new(Arc::clone(&member.shared)));
    let leader = Leader { server, node: 1, term: 1 };
    let chunks = snapshot(leader.at(5), Body::Membership(membership().to_bytes()));
    (member, leader, chunks.iter().flat_map(halves).collect())
}

fn halves(chunk: &Bytes) -> [Bytes; 2] {
    let middle = chunk.len() / 2;
    [chunk.slice(..middle), chunk.slice(middle..)]
}

fn chunk(offset: u64, chunk: &Bytes) -> Bytes {
    [&offset.to_bytes()[..], chunk].concat().into()
}

impl Leader {
    async fn try_call(&self, number: u16, body: Bytes) -> Result<Bytes, Error> {
        let answer = Arc::clone(&self.server).call(PeerKind::Snapshot, self.node, number, body);
        timeout(LONG, answer).await.expect("it hangs")
    }

    async fn received(&self, transfer: u64) -> Option<u64> {
        let answer = self.try_call(method::SNAPSHOT_RESUME, transfer.to_bytes()).await;
        Option::<u64>::from_bytes(answer.unwrap()).unwrap()
    }
}

#[tokio::test]
async fn a_transfer_is_known_by_its_name_and_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (member, leader, chunks) = receiving(folder.path()).await;
    assert_eq!(leader.received(7).await, None);
    leader.try_call(method::SNAPSHOT_BEGIN, 7_u64.to_bytes()).await.unwrap();
    assert_eq!((leader.received(7).await, leader.received(8).await), (Some(0), None));
    let mut offset = 0;
    for bytes in &chunks {
        let message = chunk(offset, bytes);
        leader.try_call(method::SNAPSHOT_CHUNK, message.clone()).await.unwrap();
        offset += bytes.len() as u64;
        assert_eq!(leader.received(7).await, Some(offset));
        // Twice, or too early, it changes nothing.
        leader.try_call(method::SNAPSHOT_CHUNK, message).await.unwrap_err();
        leader.try_call(method::SNAPSHOT_CHUNK, chunk(offset + 1, bytes)).await.unwrap_err();
        assert_eq!(leader.received(7).await, Some(offset));
    }
    let vote = leader.vote().to_bytes();
    leader.try_call(method::SNAPSHOT_END, vote).await.unwrap();
    assert_eq!(member.shared.head().applied, Some(5));
    assert_eq!(leader.received(7).await, None, "it is over");
}

/// What a call has begun to write is written, whatever becomes of the call.
#[tokio::test]
async fn a_chunk_whose_call_is_dropped_has_come_or_has_not() {
    let folder = tempfile::tempdir().unwrap();
    let (member, leader, chunks) = receiving(folder.path()).await;
    leader.try_call(method::SNAPSHOT_BEGIN, 7_u64.to_bytes()).await.unwrap();
    let mut offset = 0;
    for (number, bytes) in chunks.iter().enumerate() {
        let end = offset + bytes.len() as u64;
        let mut call = Box::pin(leader.try_call(method::SNAPSHOT_CHUNK, chunk(offset, bytes)));
        for _ in 0..number % 3 {
            let _ = futures::poll!(&mut call);
        }
        drop(call);
        match leader.received(7).await {
            Some(received) if received == end => assert!(number % 3 > 0),
            received => {
                assert_eq!((received, number % 3), (Some(offset), 0));
                leader.try_call(method::SNAPSHOT_CHUNK, chunk(offset, bytes)).await.unwrap();
            }
        }
        offset = end;
    }
    leader.try_call(method::SNAPSHOT_END, leader.vote().to_bytes()).await.unwrap();
    assert_eq!(member.shared.head().applied, Some(5));
}

/// To look a snapshot over may take longer than a call: whoever calls again finds it done.
#[tokio::test]
async fn an_end_whose_call_is_dropped_goes_on_and_is_found_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (member, leader, chunks) = receiving(folder.path()).await;
    leader.try_call(method::SNAPSHOT_BEGIN, 7_u64.to_bytes()).await.unwrap();
    let mut offset = 0;
    for bytes in &chunks {
        leader.try_call(method::SNAPSHOT_CHUNK, chunk(offset, bytes)).await.unwrap();
        offset += bytes.len() as u64;
    }
    for _ in 0..3 {
        let mut call = Box::pin(leader.try_call(method::SNAPSHOT_END, leader.vote().to_bytes()));
        let _ = futures::poll!(&mut call);
        drop(call);
    }
    leader.try_call(method::SNAPSHOT_CHUNK, chunk(offset, &chunks[0])).await.unwrap_err();
    leader.try_call(method::SNAPSHOT_BEGIN, 8_u64.to_bytes()).await.unwrap();
    assert_eq!(leader.received(8).await, Some(0), "another one begins all the same");
    leader.try_call(method::SNAPSHOT_END, leader.vote().to_bytes()).await.unwrap_err();

    leader.try_call(method::SNAPSHOT_BEGIN, 9_u64.to_bytes()).await.unwrap();
    let mut offset = 0;
    for bytes in &chunks {
        leader.try_call(method::SNAPSHOT_CHUNK, chunk(offset, bytes)).await.unwrap();
        offset += bytes.len() as u64;
    }
    let mut call = Box::pin(leader.try_call(method::SNAPSHOT_END, leader.vote().to_bytes()));
    let _ = futures::poll!(&mut call);
    drop(call);
    leader.try_call(method::SNAPSHOT_END, leader.vote().to_bytes()).await.unwrap();
    assert_eq!(member.shared.head().applied, Some(5));
}

/// Its sender leads no more, or has ended: the draft must not be in the way for ever.
#[tokio::test]
async fn a_snapshot_that_nobody_goes_on_with_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (_member, leader, chunks) = receiving(folder.path()).await;
    leader.try_call(method::SNAPSHOT_BEGIN, 7_u64.to_bytes()).await.unwrap();
    leader.try_call(method::SNAPSHOT_CHUNK, chunk(0, &chunks[0])).await.unwrap();
    let drafts = &leader.server.drafts;
    assert!(drafts.take_idle().is_none());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    assert!(drafts.take_idle().is_some());
    assert_eq!(leader.received(7).await, None);
}

#[tokio::test]
async fn another_snapshot_takes_the_place_of_one_that_did_not_end() {
    let folder = tempfile::tempdir().unwrap();
    let (_member, leader, chunks) = receiving(folder.path()).await;
    leader.try_call(method::SNAPSHOT_BEGIN, 7_u64.to_bytes()).await.unwrap();
    leader.try_call(method::SNAPSHOT_CHUNK, chunk(0, &chunks[0])).await.unwrap();
    leader.try_call(method::SNAPSHOT_BEGIN, 8_u64.to_bytes()).await.unwrap();
    assert_eq!((leader.received(7).await, leader.received(8).await), (None, Some(0)));
    // Of a version that gives it no name.
    leader.try_call(method::SNAPSHOT_BEGIN, Bytes::new()).await.unwrap();
    assert_eq!((leader.received(8).await, leader.received(0).await), (None, None));
    leader.try_call(method::SNAPSHOT_BEGIN, Bytes::from_static(&[1, 2])).await.unwrap_err();
    leader.try_call(method::SNAPSHOT_RESUME, Bytes::new()).await.unwrap_err();
    // There is room for four, and those that others send do not end with it.
    leader.try_call(method::SNAPSHOT_BEGIN, 9_u64.to_bytes()).await.unwrap();
    for node in 2..5 {
        let other = Leader { server: Arc::clone(&leader.server), node, term: 1 };
        other.try_call(method::SNAPSHOT_BEGIN, node.to_bytes()).await.unwrap();
    }
    assert_eq!(leader.received(9).await, Some(0));
    let fifth = Leader { server: Arc::clone(&leader.server), node: 5, term: 1 };
    fifth.try_call(method::SNAPSHOT_BEGIN, 5_u64.to_bytes()).await.unwrap();
    let second = Leader { server: Arc::clone(&leader.server), node: 2, term: 1 };
    assert_eq!((leader.received(9).await, second.received(2).await), (Some(0), None));
}

/// Or whoever begins a snapshot would find no room, time and again, for the copy goes on as soon as he is refused.
#[tokio::test]
async fn a_snapshot_waits_for_the_room_of_a_copy_that_gives_way() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(folder.path()).await;
    let leader =
        Leader { server: Arc::new(PeerServer::new(Arc::clone(&member.shared))), node: 1, term: 1 };
    let state = Arc::clone(&member.shared.state);
    let copying = state.pretend_to_copy();
    let disk = |left| Some(crate::lmdb::Room { all: 1 << 30, left });
    *state.pretended.lock().unwrap() = disk(0);
    let mut call = Box::pin(leader.try_call(method::SNAPSHOT_BEGIN, 7_u64.to_bytes()));
    let early = timeout(Duration::from_millis(100), &mut call).await;
    assert!(early.is_err(), "{early:?}");
    *state.pretended.lock().unwrap() = disk(1 << 30);
    drop(copying);
    call.await.unwrap();
}

/// A leader that has vanished leaves its connections open, and says nothing.
#[tokio::test(start_paused = true)]
async fn a_leader_is_given_up_a_heartbeat_after_another_has_taken_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let member = member(folder.path()).await;
    let shared = &member.shared;
    let led_by = |term, leader| Leadership { term, leader, ..Leadership::default() };
    let before = led_by(1, Some(1));
    let mut given_up = Box::pin(shared.led_by_another(&before));
    // It may have lost its place, and have got it again.
    for now in [before.clone(), led_by(2, None), led_by(3, Some(1))] {
        shared.leadership.send_replace(now);
        let waits = timeout(Duration::from_secs(1), &mut given_up).await;
        assert!(waits.is_err(), "nobody else leads");
    }
    shared.leadership.send_replace(led_by(4, Some(3)));
    let begun = Instant::now();
    given_up.await;
    assert!(begun.elapsed() >= shared.timing.heartbeat, "it may just have been about to answer");
}
