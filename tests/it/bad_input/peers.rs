//! Whoever calls at the port: of another group, of another version, under a wrong name, or with nonsense.
//!
//! The group of these tests goes on writing meanwhile. It must keep its leader and its term, and no write may fail.

use super::{Kept, Solo};
use crate::kit::HEARTBEAT;
use crate::kit::PATIENCE;
use crate::kit::raw::{
    Answer, HELLO, Hello, INCARNATION_REFUSED, NO_COMMON_VERSION, OK, Preamble, RAFT, REQUEST,
    RESPONSE, RPC, SNAPSHOT, Stranger, TIMING_DIFFERS, TOO_MANY_CONNECTIONS, WRONG_GROUP,
    WRONG_TARGET, frame,
};
use crate::kit::trio::{Load, Trio};
use futures::future::join_all;
use quorate::NodeId;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const HEARTBEAT_MS: u64 = HEARTBEAT.as_millis() as u64;
/// Nobody in these groups.
const NOBODY: u64 = 99;
const OTHER_GROUP: u128 = 0xbad;

/// Messages between members.
const APPEND: u16 = 1;
const VOTE: u16 = 2;
const PRE_VOTE: u16 = 3;
const TRANSFER: u16 = 4;
const SNAPSHOT_BEGIN: u16 = 5;
const SNAPSHOT_CHUNK: u16 = 6;
const SNAPSHOT_END: u16 = 7;

/// A group of three that writes, and that must not notice what is done to it.
struct Besieged {
    trio: Trio,
    load: Load,
    reign: (NodeId, u64),
    kept: Kept,
}

impl Besieged {
    async fn start() -> Self {
        let trio = Trio::start().await;
        let kept = Kept::write(&trio.client(0), "k").await;
        let load = Load::start((0..3).map(|member| trio.client(member)));
        load.goes_on(10).await;
        let reign = trio.reign().await;
        Self { trio, load, reign, kept }
    }

    fn address(&self, member: usize) -> &str {
        &self.trio.addresses[member]
    }

    fn group(&self) -> u128 {
        self.trio.group()
    }

    /// Where the leader is.
    fn leader(&self) -> usize {
        usize::try_from(self.reign.0.get() - 1).unwrap()
    }

    /// Shows that writes go on, under the same leader in the same term.
    async fn is_unmoved(&self) {
        self.load.goes_on(10).await;
        assert_eq!(self.trio.reign().await, self.reign, "the group has a new leader or term");
    }

    async fn end(self) {
        self.is_unmoved().await;
        for member in 0..3 {
            self.kept.is_there(&self.trio.client(member)).await;
        }
        self.load.end(&self.trio.client(0)).await;
        self.trio.shutdown().await;
    }
}

/// A caller of another group, on any kind of connection, and one that cannot know its group but should.
#[tokio::test]
async fn a_peer_of_another_group_is_refused() {
    let group = Besieged::start().await;
    for member in 0..3 {
        let callee = Answer { status: WRONG_GROUP, group: group.group(), node: member as u64 + 1 };
        for kind in [RPC, RAFT, SNAPSHOT] {
            let preamble = Preamble::new(kind, OTHER_GROUP, 2);
            let (mut stranger, answer) = Stranger::greet(group.address(member), preamble).await;
            assert_eq!(answer, callee, "it says who it is");
            assert_eq!(stranger.is_cut_off().await, 0);
        }
        for kind in [RAFT, SNAPSHOT] {
            let preamble = Preamble::new(kind, 0, 2);
            let (mut stranger, answer) = Stranger::greet(group.address(member), preamble).await;
            assert_eq!(answer, callee, "a member knows its group");
            assert_eq!(stranger.is_cut_off().await, 0);
        }
    }
    group.end().await;
}

#[tokio::test]
async fn a_peer_of_another_protocol_version_is_refused() {
    let group = Besieged::start().await;
    for kind in [RPC, RAFT, SNAPSHOT] {
        for versions in [(2, 9), (0, 0), (u16::MAX, u16::MAX), (9, 2)] {
            let preamble = Preamble { versions, ..Preamble::new(kind, group.group(), 2) };
            let (mut stranger, answer) = Stranger::greet(group.address(0), preamble).await;
            assert_eq!(answer.status, NO_COMMON_VERSION);
            assert_eq!(stranger.is_cut_off().await, 0);
        }
        // A newer one that speaks ours too is welcome.
        let preamble = Preamble { versions: (1, 9), ..Preamble::new(kind, group.group(), 2) };
        let (_, answer) = Stranger::greet(group.address(0), preamble).await;
        assert_eq!(answer.status, OK);
    }
    group.end().await;
}

/// A caller that means somebody else, comes with other data than the member of its name, or with another timing; one
/// that is named differently in its preamble and in its hello; and one of whom nobody has heard.
#[tokio::test]
async fn a_peer_with_a_wrong_node_id_is_refused() {
    let group = Besieged::start().await;
    let address = group.address(0);
    let hello = Hello { from: 2, to: 1, incarnations: (7, 0), heartbeat_ms: HEARTBEAT_MS };
    for kind in [RAFT, SNAPSHOT] {
        let preamble = Preamble::new(kind, group.group(), 2);
        let nobody = Preamble::new(kind, group.group(), NOBODY);
        let wrong = [
            (preamble, Hello { to: 3, ..hello }, WRONG_TARGET),
            (preamble, Hello { to: 0, ..hello }, WRONG_TARGET),
            (preamble, hello, INCARNATION_REFUSED),
            (preamble, Hello { incarnations: (0, 0), ..hello }, INCARNATION_REFUSED),
            (nobody, Hello { from: NOBODY, incarnations: (7, 7), ..hello }, INCARNATION_REFUSED),
            (nobody, Hello { from: NOBODY, heartbeat_ms: 51, ..hello }, TIMING_DIFFERS),
        ];
        for (preamble, hello, status) in wrong {
            let (mut stranger, answer) = Stranger::visit(address, preamble, hello).await;
            assert_eq!(answer, status);
            assert_eq!(stranger.is_cut_off().await, 0);
        }
        // A hello in another's name than the preamble, and something else than a hello, are answered with silence.
        for said in [hello.frame(), frame(REQUEST, VOTE, 1, b""), frame(HELLO, 0, 0, b"")] {
            let (mut stranger, answer) = Stranger::greet(address, nobody).await;
            assert_eq!(answer.status, OK);
            stranger.say(&said).await;
            assert_eq!(stranger.is_cut_off().await, 0);
        }
    }
    group.end().await;
}

/// The bytes of a vote: version, term, node, committed.
fn vote(term: u64, node: u64, committed: bool) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&term.to_be_bytes());
    bytes.extend_from_slice(&node.to_be_bytes());
    bytes.push(u8::from(committed));
    bytes
}

/// A request for votes, from a log that is longer than any.
fn vote_request(term: u64, node: u64) -> Vec<u8> {
    let mut bytes = vote(term, node, false);
    bytes.push(1);
    // A longer log than anybody has.
    [term, node, 1 << 61].iter().for_each(|it| bytes.extend_from_slice(&it.to_be_bytes()));
    // It does not claim that the leader has sent it.
    bytes.push(0);
    bytes
}

/// Nothing is believed that is said in the name of somebody else than the connection's.
#[tokio::test]
async fn a_vote_request_in_anothers_name_is_refused_and_moves_nobody() {
    let group = Besieged::start().await;
    for member in 0..3 {
        let to = member as u64 + 1;
        let preamble = Preamble::new(RAFT, group.group(), NOBODY);
        let (incarnations, heartbeat_ms) = ((7, 0), HEARTBEAT_MS);
        let hello = Hello { from: NOBODY, to, incarnations, heartbeat_ms };
        let (mut stranger, status) = Stranger::visit(group.address(member), preamble, hello).await;
        assert_eq!(status, OK, "a member may be one that this one has not heard of yet");
        for (id, other) in (1..).zip([1, 2, 3, 0, u64::MAX]) {
            let term = 1 << 40;
            let append = [vote(term, other, true), vec![0, 0, 0, 0, 0, 0]].concat();
            let transfer = [vote(term, other, true), to.to_be_bytes().to_vec(), vec![0]].concat();
            for (method, body) in [
                (VOTE, vote_request(term, other)),
                (PRE_VOTE, vote_request(term, other)),
                (APPEND, append),
                (TRANSFER, transfer),
            ] {
                stranger.say(&frame(REQUEST, method, id, &body)).await;
                let (frame_type, payload) = stranger.hear().await.unwrap();
                assert_eq!((frame_type, payload[0]), (RESPONSE, 0), "method {method} is refused");
            }
        }
        // In its own name it may ask, and is told no: there is a leader.
        stranger.say(&frame(REQUEST, VOTE, 100, &vote_request(1 << 40, NOBODY))).await;
        let (_, payload) = stranger.hear().await.unwrap();
        assert_eq!((payload[0], payload.last()), (1, Some(&0)), "no vote is given");
        for body in [&b""[..], b"\xff", &[0xff; 1000]] {
            for method in [APPEND, VOTE, PRE_VOTE, TRANSFER, SNAPSHOT_BEGIN, 0, u16::MAX] {
                stranger.say(&frame(REQUEST, method, 101, body)).await;
                let (frame_type, payload) = stranger.hear().await.unwrap();
                assert_eq!((frame_type, payload[0]), (RESPONSE, 0), "method {method} is refused");
            }
        }
        group.is_unmoved().await;
    }
    group.end().await;
}

/// A snapshot that is none is not installed, whichever way it is none.
#[tokio::test]
async fn a_snapshot_of_nonsense_is_refused() {
    let group = Besieged::start().await;
    let member = (group.leader() + 1) % 3;
    let to = member as u64 + 1;
    let preamble = Preamble::new(SNAPSHOT, group.group(), NOBODY);
    let hello = Hello { from: NOBODY, to, incarnations: (7, 0), heartbeat_ms: HEARTBEAT_MS };
    let (mut stranger, status) = Stranger::visit(group.address(member), preamble, hello).await;
    assert_eq!(status, OK);
    let chunk = |offset: u64, bytes: &[u8]| [&offset.to_be_bytes()[..], bytes].concat();
    let (refused, done) = (0, 1);
    for (method, body, expected) in [
        (SNAPSHOT_CHUNK, chunk(0, b"before it has begun"), refused),
        (SNAPSHOT_END, vote(1 << 40, NOBODY, true), refused),
        (SNAPSHOT_BEGIN, vec![], done),
        (SNAPSHOT_CHUNK, chunk(1, b"not the first"), refused),
        (SNAPSHOT_BEGIN, vec![], done),
        (SNAPSHOT_CHUNK, chunk(0, &[0xff; 100_000]), done),
        (SNAPSHOT_END, vote(1 << 40, NOBODY, true), refused),
        (SNAPSHOT_BEGIN, vec![], done),
        (SNAPSHOT_CHUNK, vec![1, 2, 3], refused),
        (SNAPSHOT_BEGIN, vec![], done),
        (SNAPSHOT_BEGIN, vec![], done),
        // Nothing at all, in its own name and in that of the leader.
        (SNAPSHOT_END, vote(1 << 40, NOBODY, true), refused),
        (SNAPSHOT_BEGIN, vec![], done),
        (SNAPSHOT_END, vote(group.reign.1, group.reign.0.get(), true), refused),
        (VOTE, vote_request(1 << 40, NOBODY), refused),
        (SNAPSHOT_BEGIN, vec![], done),
    ] {
        assert_eq!(ask(&mut stranger, method, &body).await, expected, "method {method}");
    }
    // Nonsense is gathered for a while before it is looked at, and no longer.
    let mut sent = 0;
    while ask(&mut stranger, SNAPSHOT_CHUNK, &chunk(sent, &[0xff; 3 << 20])).await == done {
        sent += 3 << 20;
        assert!(sent < 64 << 20, "nonsense is taken without end");
    }
    group.end().await;
}

/// Sends a request, and returns whether it was done (1) or refused (0).
async fn ask(stranger: &mut Stranger, method: u16, body: &[u8]) -> u8 {
    stranger.say(&frame(REQUEST, method, 1, body)).await;
    let (frame_type, payload) = timeout(PATIENCE, stranger.hear()).await.unwrap().unwrap();
    assert_eq!(frame_type, RESPONSE);
    payload[0]
}

/// Whoever calls itself a member can begin a snapshot, and under any name: what it leaves behind is bounded.
#[tokio::test]
async fn snapshots_that_are_begun_under_many_names_take_little_room() {
    let group = Besieged::start().await;
    for from in NOBODY..NOBODY + 40 {
        let preamble = Preamble::new(SNAPSHOT, group.group(), from);
        let hello = Hello { from, to: 1, incarnations: (7, 0), heartbeat_ms: HEARTBEAT_MS };
        let (mut stranger, status) = Stranger::visit(group.address(0), preamble, hello).await;
        assert_eq!(status, OK);
        assert_eq!(ask(&mut stranger, SNAPSHOT_BEGIN, b"").await, 1);
    }
    let states = std::fs::read_dir(group.trio.data(0)).unwrap();
    let states = states.filter(|it| it.as_ref().unwrap().path().is_dir()).count();
    assert!(states <= 6, "{states} folders: the log, the state, and a few drafts");
    group.end().await;
}

/// Bytes that are no preamble, and a preamble that is cut short.
#[tokio::test]
async fn random_bytes_are_cut_off_without_an_answer() {
    let group = Besieged::start().await;
    let mut dice = crate::kit::Dice::new("random_bytes_are_cut_off_without_an_answer");
    let mut noise = |length: usize| (0..length).map(|_| dice.roll(256) as u8).collect::<Vec<u8>>();
    let good = Preamble::new(RPC, 0, 0).bytes();
    let mut wrong = vec![
        noise(41),
        noise(100_000),
        b"GET / HTTP/1.1\r\nHost: quorate\r\nAccept: */*\r\n\r\n".to_vec(),
        vec![0; 41],
        [&b"QRT\x01"[..], &good[4..]].concat(),
    ];
    for kind in [0, 4, 255] {
        wrong.push([&good[..4], &[kind], &good[5..]].concat());
    }
    for bytes in wrong {
        for member in 0..3 {
            let mut stranger = Stranger::connect(group.address(member)).await;
            stranger.say(&bytes).await;
            assert_eq!(stranger.is_cut_off().await, 0);
        }
    }
    // After a good preamble, where frames should follow.
    for kind in [RPC, RAFT, SNAPSHOT] {
        for _ in 0..5 {
            let preamble = Preamble::new(kind, group.group(), NOBODY);
            let (mut stranger, answer) = Stranger::greet(group.address(0), preamble).await;
            assert_eq!(answer.status, OK);
            // The length of a frame that could be one, so that the rest is looked at.
            stranger.say(&[&[0, 0, 0, 60][..], &noise(1000)].concat()).await;
            stranger.is_cut_off().await;
        }
    }
    group.end().await;
}

/// A length is a claim. It is refused before anything is reserved for it.
#[tokio::test]
async fn a_frame_of_four_gibibytes_is_cut_off_at_once() {
    let group = Besieged::start().await;
    let before = resident_bytes();
    let hello = Hello { from: NOBODY, to: 1, incarnations: (7, 0), heartbeat_ms: HEARTBEAT_MS };
    for length in [u32::MAX, u32::MAX - 4, 1 << 31, 17 << 20, 0, 1] {
        for kind in [RPC, RAFT, SNAPSHOT] {
            let preamble = Preamble::new(kind, group.group(), NOBODY);
            // In the place of the hello, and after it.
            for greets in [false, kind != RPC] {
                let mut stranger = if greets {
                    Stranger::visit(group.address(0), preamble, hello).await.0
                } else {
                    Stranger::greet(group.address(0), preamble).await.0
                };
                stranger.say(&length.to_be_bytes()).await;
                // At once: not when a watchdog thinks so.
                let cut = timeout(Duration::from_secs(4), stranger.is_cut_off()).await;
                cut.unwrap_or_else(|_| panic!("a length of {length} is waited for"));
            }
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes were taken for frames that never came");
    group.end().await;
}

/// The memory of this process.
fn resident_bytes() -> usize {
    let Ok(text) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    text.split(' ').nth(1).map_or(0, |pages| pages.parse::<usize>().unwrap() * 4096)
}

/// Callers that say nothing hold no place but that of a handshake, and that not for long. Members that know each other
/// do not notice; somebody new waits at most as long.
#[tokio::test]
async fn a_flood_of_silent_connections_is_bounded_and_passes() {
    let group = Besieged::start().await;
    let started = Instant::now();
    let leader = group.address(group.leader());
    let mut flood = join_all((0..300).map(|_| Stranger::connect(leader))).await;
    group.is_unmoved().await;
    // One that speaks half, and stops.
    for stranger in flood.iter_mut().take(20) {
        stranger.say(&Preamble::new(RPC, 0, 0).bytes()[..20]).await;
    }
    let preamble = Preamble::new(RPC, group.group(), 0);
    let greeted = timeout(PATIENCE, Stranger::greet(leader, preamble)).await;
    assert_eq!(greeted.expect("there is a place again").1.status, OK);
    let waited = started.elapsed();
    assert!(waited < Duration::from_secs(15), "a caller waited {waited:?} for a place");
    for said in join_all(flood.iter_mut().map(Stranger::is_cut_off)).await {
        assert_eq!(said, 0);
    }
    group.end().await;
}

/// Callers that know how to greet have as many places as there are, and those beyond are told so. Each kind has its
/// own, so that clients cannot take those of members.
#[tokio::test]
async fn connections_beyond_the_bound_of_their_kind_are_told() {
    let solo = Solo::shared().await;
    let kept = Kept::write(&solo.client(), "places").await;
    let group = solo.node.status().group;
    let hello = Hello { from: NOBODY, to: 1, incarnations: (7, 0), heartbeat_ms: HEARTBEAT_MS };
    let mut snapshots = Vec::new();
    let preamble = Preamble::new(SNAPSHOT, group, NOBODY);
    let told = loop {
        let (mut stranger, answer) = Stranger::greet(&solo.address(), preamble).await;
        if answer.status != OK {
            break answer.status;
        }
        stranger.say(&hello.frame()).await;
        stranger.hear().await.unwrap();
        snapshots.push(stranger);
        assert!(snapshots.len() <= 1024, "there is no bound");
    };
    assert_eq!(told, TOO_MANY_CONNECTIONS);
    for kind in [RPC, RAFT] {
        let preamble = Preamble::new(kind, group, NOBODY);
        let (_, answer) = Stranger::greet(&solo.address(), preamble).await;
        assert_eq!(answer.status, OK, "the others have places of their own");
    }
    drop(snapshots);
    // As soon as the node has noticed that they are gone.
    let again = async {
        while Stranger::greet(&solo.address(), preamble).await.1.status != OK {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("a place that was left can be had");
    kept.check(&solo.client()).await;
}

/// A call of a client that is nonsense is answered in words or cut off, and the node serves.
#[tokio::test]
async fn a_call_of_nonsense_is_refused() {
    let solo = Solo::shared().await;
    let kept = Kept::write(&solo.client(), "nonsense").await;
    let mut dice = crate::kit::Dice::new("a_call_of_nonsense_is_refused");
    for method in (0..20).chain([u16::MAX]) {
        for length in [0, 3, 4, 5, 100, 10_000] {
            let (mut client, answer) =
                Stranger::greet(&solo.address(), Preamble::new(RPC, 0, 0)).await;
            assert_eq!(answer.status, OK);
            let mut body: Vec<u8> = 1000u32.to_be_bytes().to_vec();
            body.resize_with(length, || dice.roll(256) as u8);
            client.say(&frame(REQUEST, method, 1, &body)).await;
            // A request without a body is one, of some methods: a status, say.
            let heard = timeout(PATIENCE, client.hear()).await.expect("it is answered or cut off");
            if let Ok((frame_type, payload)) = heard {
                assert_eq!(frame_type, RESPONSE);
                assert!(!payload.is_empty());
            }
        }
    }
    kept.check(&solo.client()).await;
}
