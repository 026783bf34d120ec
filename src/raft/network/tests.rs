//! Snapshots over connections that break.

use super::*;
use crate::api::{Call, Response};
use crate::mvcc::{self, Body, LogPosition};
use crate::raft::StoredMembership;
use crate::raft::machine::meta;
use crate::raft::state::State;
use crate::types::{Op, TxnOp};
use crate::wire::{Handler, Preamble, Security, Server, Status, Welcome, bind, serve};
use futures::FutureExt;
use futures::future::{BoxFuture, pending};
use openraft::storage::Snapshot;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tower::util::BoxCloneSyncService;

const LONG: Duration = Duration::from_secs(60);
const BEATS: Duration = Duration::from_millis(20);

/// What becomes of a message, beside being taken note of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Answers,
    /// The connection breaks before the message comes to anything.
    BreaksBefore,
    /// It breaks when the message was carried out, and the answer is lost.
    BreaksAfter,
    /// The receiver has been started anew meanwhile.
    Forgets,
}

/// A member that receives a snapshot, and does not look at it.
#[derive(Default)]
struct Receiver {
    transfer: Option<u64>,
    bytes: Vec<u8>,
    begun: usize,
    chunks: usize,
    resumed: usize,
    /// Whether what has come is damaged.
    is_damaged: bool,
    /// By the number of the chunk.
    then: BTreeMap<usize, Then>,
}

impl Receiver {
    fn hear(&mut self, number: u16, body: &Bytes) -> (Then, Result<Bytes, Error>) {
        let refused = |what: &str| Err(Reason::Malformed { what: what.to_owned() }.into());
        match number {
            method::SNAPSHOT_BEGIN => {
                self.begun += 1;
                self.transfer = Some(u64::from_bytes(body.slice(..8)).unwrap());
                self.bytes.clear();
                (Then::Answers, Ok(Bytes::new()))
            }
            method::SNAPSHOT_CHUNK => {
                self.chunks += 1;
                let then = self.then.get(&self.chunks).copied().unwrap_or(Then::Answers);
                if then == Then::BreaksBefore {
                    return (then, Ok(Bytes::new()));
                }
                let (offset, chunk) = body.split_at(8);
                if offset != self.bytes.len().to_be_bytes() {
                    return (then, refused("a chunk is missing"));
                }
                self.bytes.extend_from_slice(chunk);
                if then == Then::Forgets {
                    self.transfer = None;
                }
                (then, Ok(Bytes::new()))
            }
            method::SNAPSHOT_RESUME => {
                self.resumed += 1;
                let is_known = self.transfer == Some(u64::from_bytes(body.clone()).unwrap());
                let received = is_known.then_some(self.bytes.len() as u64);
                (Then::Answers, Ok(received.to_bytes()))
            }
            method::SNAPSHOT_END if self.is_damaged => {
                (Then::Answers, refused(&format!("{DAMAGED}so")))
            }
            method::SNAPSHOT_END => (Then::Answers, Ok(body.clone())),
            _ => (Then::Answers, refused("method")),
        }
    }
}

struct Peer(Arc<Mutex<Receiver>>, Arc<Notify>);

impl Handler for Peer {
    fn welcome(&self, _: &Preamble) -> Welcome {
        Welcome { status: Status::Ok, group: 1, node: 2 }
    }

    fn service(&self, _: bool) -> BoxCloneSyncService<Call, Response, Error> {
        BoxCloneSyncService::new(tower::service_fn(|_: Call| pending()))
    }

    fn hello(&self, _: PeerKind, _: &Hello) -> Status {
        Status::Ok
    }

    fn peer_call(
        &self,
        _: PeerKind,
        _: u64,
        number: u16,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Error>> {
        let (then, answer) = self.0.lock().unwrap().hear(number, &body);
        if then == Then::Answers {
            return async { answer }.boxed();
        }
        self.1.notify_one();
        pending().boxed()
    }
}

/// A receiver, and a connection to it that breaks when it says so.
struct Kit {
    receiver: Arc<Mutex<Receiver>>,
    connection: Connection,
    _folder: tempfile::TempDir,
    _server: Server,
    _wire: tokio::task::JoinSet<()>,
}

async fn kit(then: &[(usize, Then)], bytes_per_second: u64) -> Kit {
    let receiver = Receiver { then: then.iter().copied().collect(), ..Receiver::default() };
    let (receiver, breaks) = (Arc::new(Mutex::new(receiver)), Arc::new(Notify::new()));
    let peer = Peer(Arc::clone(&receiver), Arc::clone(&breaks));
    let server = serve(bind("127.0.0.1:0", Security::Loopback).await.unwrap(), Arc::new(peer));
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, behind) = (port.local_addr().unwrap().to_string(), server.local_address());
    let mut wire = tokio::task::JoinSet::new();
    wire.spawn(async move {
        loop {
            let (mut near, _) = port.accept().await.unwrap();
            let mut far = TcpStream::connect(behind).await.unwrap();
            let both = tokio::io::copy_bidirectional(&mut near, &mut far);
            let _ = select(pin!(both), pin!(breaks.notified())).await;
        }
    });
    let identity = Identity { group: 1, node: 1, incarnation: 1 };
    let pace = Pace::new(NonZeroU64::new(bytes_per_second).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let bulk = Bulk { pace, state: State::open_unsynced(folder.path()) };
    let timing = Timing { heartbeat: BEATS };
    let network = Network::new(identity, timing, Security::Plaintext, Refusals::default(), bulk);
    let peer = super::Peer { address, ..super::Peer::default() };
    let connection = network.connection(PeerKind::Snapshot, 2, &peer);
    Kit { receiver, connection, _folder: folder, _server: server, _wire: wire }
}

/// A state of about three megabytes, and what it is as a stream.
fn snapshot(folder: &std::path::Path) -> (SnapshotOf, Vec<u8>) {
    let state = State::open_unsynced(folder);
    let entries: Vec<_> = (0..6)
        .map(|index| {
            let value = Bytes::from(vec![index as u8; 500_000]);
            let command =
                crate::api::Command::Txn(TxnOp::single(Op::put(format!("k{index}"), value).0));
            let position = LogPosition { term: 1, node: 1, index };
            mvcc::Entry { position, body: Body::Command(Arc::new(command.into())) }
        })
        .collect();
    state.apply_for_test(&entries);
    let view = || futures::executor::block_on(state.durable_view()).unwrap();
    let mut reader = SnapshotReader::new(view());
    let bytes = std::iter::from_fn(|| reader.next_chunk(1 << 20).unwrap()).flatten().collect();
    let view = view();
    (Snapshot { meta: meta(&view).unwrap(), snapshot: SnapshotData::View(Box::new(view)) }, bytes)
}

async fn send(kit: &mut Kit, snapshot: SnapshotOf) -> Result<Vote, Error> {
    let vote = Vote::new_committed(1, 1);
    tokio::time::timeout(LONG, kit.connection.send(vote, snapshot)).await.expect("it hangs")
}

#[tokio::test]
async fn a_snapshot_goes_on_where_its_connection_broke() {
    let folder = tempfile::tempdir().unwrap();
    let (snapshot, expected) = snapshot(folder.path());
    let then = [(2, Then::BreaksBefore), (3, Then::BreaksBefore), (5, Then::BreaksAfter)];
    let mut kit = kit(&then, 1 << 40).await;
    send(&mut kit, snapshot).await.unwrap();
    let receiver = kit.receiver.lock().unwrap();
    assert!(receiver.bytes == expected);
    assert_eq!((receiver.begun, receiver.resumed), (1, 3), "it did not begin anew");
    let chunks = expected.len().div_ceil(CHUNK_BYTES);
    assert_eq!(receiver.chunks, chunks + 2, "those that had not arrived were sent again");
    assert!(!kit.connection.bulk.state.sending.is_any());
}

#[tokio::test]
async fn a_receiver_that_was_restarted_gets_another_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let (snapshot, _) = snapshot(folder.path());
    let mut kit = kit(&[(2, Then::Forgets)], 1 << 40).await;
    let error = send(&mut kit, snapshot).await.unwrap_err();
    assert!(is_lost(&error), "openraft tries again: {error:?}");
    assert_eq!(kit.receiver.lock().unwrap().resumed, 1);
    assert!(!kit.connection.bulk.state.sending.is_any());
}

#[tokio::test]
async fn what_a_receiver_refuses_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let (snapshot, _) = snapshot(folder.path());
    let mut kit = kit(&[], 1 << 40).await;
    kit.receiver.lock().unwrap().then.insert(1, Then::BreaksAfter);
    let peer = Arc::clone(&kit.receiver);
    // The bytes of another snapshot are there.
    peer.lock().unwrap().then.insert(2, Then::BreaksBefore);
    let sending = send(&mut kit, snapshot);
    let meddling = async {
        while peer.lock().unwrap().chunks < 2 {
            tokio::task::yield_now().await;
        }
        peer.lock().unwrap().bytes.push(0);
    };
    let (sent, ()) = futures::future::join(sending, meddling).await;
    sent.unwrap_err();
    assert_eq!(peer.lock().unwrap().chunks, 2);
}

/// Each row was right when it was read; so some were not found.
#[tokio::test]
async fn whoever_sends_what_is_refused_as_damaged_has_doubts_of_its_own_rows() {
    let doubts = |kit: &Kit| kit.connection.bulk.state.doubted.notified().now_or_never().is_some();
    let folder = tempfile::tempdir().unwrap();
    let (snapshot, _) = snapshot(folder.path());
    let mut kit = kit(&[], 1 << 40).await;
    kit.receiver.lock().unwrap().is_damaged = true;
    kit.connection.refused(Reason::Malformed { what: "snapshot: so".to_owned() }.into());
    assert!(!doubts(&kit));
    let refused = send(&mut kit, snapshot).await.unwrap_err();
    assert!(matches!(refused.reason(), Reason::Malformed { .. }), "{refused:?}");
    assert!(doubts(&kit));
}

/// Two megabytes in a second take three of them a second and a half.
#[tokio::test]
async fn a_snapshot_goes_no_faster_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let (snapshot, expected) = snapshot(folder.path());
    const RATE: u64 = 2_000_000;
    let mut kit = kit(&[], RATE).await;
    let begun = Instant::now();
    // It has not rested since it was made.
    kit.connection.bulk.pace = Pace::new(NonZeroU64::new(RATE).unwrap());
    let sending = kit.connection.bulk.state.sending.clone();
    assert!(!sending.is_any());
    let sent = pin!(send(&mut kit, snapshot));
    let sent = match select(sent, pin!(tokio::task::yield_now())).await {
        Either::Right(((), sent)) => {
            assert!(sending.is_any());
            sent.await
        }
        Either::Left(_) => panic!("it cannot be done already"),
    };
    sent.unwrap();
    assert!(!sending.is_any());
    let least = Duration::from_secs_f64(expected.len() as f64 / RATE as f64);
    assert!(begun.elapsed() >= least, "{:?} for {} bytes", begun.elapsed(), expected.len());
}

/// A learner has no say in whether this member can take part, but one in whether it was removed: it knows what was agreed on.
#[tokio::test]
async fn only_refusals_of_voters_count() {
    let refusals = Refusals::default();
    let refused = |reason: Reason| Err::<(), Error>(reason.into());
    let voters = BTreeSet::from([1, 2, 3]);
    for learner in [1030, 1031, 1032] {
        refusals.note(learner, &refused(Reason::TimingDiffers));
    }
    assert!(refusals.by_too_many(&voters).is_none());
    refusals.note(2, &refused(Reason::TimingDiffers));
    assert!(refusals.by_too_many(&voters).is_none(), "the third and this one are two");
    refusals.note(3, &refused(Reason::GroupMismatch));
    let cause = refusals.by_too_many(&voters).expect("nobody is left");
    assert_eq!(*cause.reason(), Reason::TimingDiffers, "the first of them says why");
    // A member that is down refuses nothing, and one that answers has changed its mind.
    refusals.note(3, &refused(Reason::ConnectionLost));
    assert!(refusals.by_too_many(&voters).is_some());
    refusals.note(3, &Ok(()));
    assert!(refusals.by_too_many(&voters).is_none());
    // Of whom nobody knows as a voter any more nothing is held against this one.
    refusals.note(3, &refused(Reason::GroupMismatch));
    assert!(refusals.by_too_many(&BTreeSet::from([1, 2, 1030])).is_some());
    assert!(refusals.by_too_many(&BTreeSet::from([1, 4, 5])).is_none());
    assert!(refusals.removed().now_or_never().is_none());
    refusals.note(1030, &refused(Reason::MemberRemoved { node: 1.into() }));
    refusals.removed().now_or_never().expect("it was agreed on");
}

/// A receiver that takes ten seconds for each chunk would keep the file of the sender growing for days.
#[tokio::test]
async fn a_snapshot_that_does_not_come_forward_is_given_up_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (snapshot, _) = snapshot(folder.path());
    let mut kit = kit(&[], 1 << 40).await;
    // It asks for a rate that no receiver has.
    kit.connection.bulk.pace = kit.connection.bulk.pace.clone().impatient();
    let error = send(&mut kit, snapshot).await.unwrap_err();
    let Reason::TransferTooSlow { bytes, .. } = *error.reason() else { panic!("{error:?}") };
    assert_eq!(kit.receiver.lock().unwrap().bytes.len() as u64, bytes, "no further");
    assert!(!kit.connection.bulk.state.sending.is_any(), "its view is gone");
    kit.connection.bulk.state.check().expect("it is no fault of the sender");
}

/// Has a byte of a value change in the file of a state that is open.
fn rot(folder: &std::path::Path, value: &[u8]) {
    use std::os::unix::fs::FileExt;
    let path = folder.join("state-000001/data.mdb");
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(value.len()).position(|window| window == value).expect("it is there");
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[value[0] ^ 1], at as u64).unwrap();
}

/// The receiver would refuse it, and be asked again and again.
#[tokio::test]
async fn rot_in_the_own_tables_is_not_sent_and_stops_the_sender() {
    let folder = tempfile::tempdir().unwrap();
    for (voters, is_spare) in [(3, true), (1, false)] {
        let folder = folder.path().join(format!("{voters}"));
        std::fs::create_dir(&folder).unwrap();
        let (mut snapshot, _) = snapshot(&folder);
        let peer =
            |id: u64| (id, crate::raft::Peer { address: format!("a:{id}"), incarnation: id });
        // With a learner, who has nothing of it yet.
        let nodes = (1..=voters + 1).map(peer).collect::<BTreeMap<_, _>>();
        let members = Membership::new(vec![(1..=voters).collect()], nodes).unwrap();
        snapshot.meta.last_membership = StoredMembership::new(None, members);
        rot(&folder, &[3; 1000]);
        let mut kit = kit(&[], 1 << 40).await;
        let error = send(&mut kit, snapshot).await.unwrap_err();
        assert!(matches!(error.reason(), Reason::Corrupt { .. }), "{error:?}");
        let fault = kit.connection.bulk.state.check().err();
        let expected = is_spare.then(|| error.reason().clone());
        assert_eq!(fault.map(|it| it.reason().clone()), expected, "{voters} voters");
    }
}

#[test]
fn a_majority_is_left_or_nobody_can_be_spared() {
    let peer = |id: u64| (id, crate::raft::Peer { address: "a".into(), incarnation: id });
    let members = |voters: u64| {
        let nodes = (1..=7).map(peer).collect::<BTreeMap<_, _>>();
        Membership::new(vec![(1..=voters).collect()], nodes).unwrap()
    };
    let spared = |count| [1, 2, 3, 4, 5].map(|voters| can_be_spared(&members(voters), count));
    assert_eq!(spared(1), [false, false, true, true, true]);
    assert_eq!(spared(2), [false, false, false, false, true]);
}
