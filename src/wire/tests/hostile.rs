//! Bytes that nobody of ours would send, on either side. The server lives on, and serves the next one.

use super::*;
use crate::codec::layout::Layout;

fn small() -> Bounds {
    Bounds {
        handshake: SHORT,
        stall: SHORT,
        rpc_idle: SHORT,
        peer_idle: SHORT,
        ..Bounds::default()
    }
}

/// Numbers that look like chance and are the same in each run.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let next = move |state: &u64| {
        Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1))
    };
    std::iter::successors(Some(seed), next).map(|state| (state >> 33) as u8)
}

#[tokio::test]
async fn noise_is_closed() {
    let kit = Kit::new().await;
    for seed in 0..20 {
        let bytes: Vec<u8> = noise(seed).take(200).collect();
        let mut socket = kit.raw().await;
        socket.write_all(&bytes).await.unwrap();
        is_closed(&mut socket).await;
        // A length that fits leaves the server waiting for the rest: that is another test.
        let mut socket = kit.greeted(Kind::Rpc).await;
        socket.write_all(&[&[255], &bytes[..]].concat()).await.unwrap();
        is_closed(&mut socket).await;
    }
    kit.is_well().await;
}

#[tokio::test]
async fn silence_is_cut_off_wherever_it_falls() {
    let kit = Kit::within(small()).await;
    let mut silent = kit.raw().await;
    is_closed(&mut silent).await;
    let mut half = kit.raw().await;
    half.write_all(b"QRT").await.unwrap();
    is_closed(&mut half).await;
    let mut no_hello = kit.greeted(Kind::Peer(PeerKind::Raft)).await;
    is_closed(&mut no_hello).await;
    let mut idle = kit.greeted(Kind::Rpc).await;
    is_closed(&mut idle).await;
    kit.is_well().await;
}

#[tokio::test]
async fn a_stop_within_a_frame_is_cut_off() {
    let kit = Kit::within(Bounds { stall: SHORT, ..Bounds::default() }).await;
    let frame = encoded(&rpc_frame(1, 6, 1000, &[]));
    for end in [1, 4, 10, frame.len() - 1] {
        let mut socket = kit.greeted(Kind::Rpc).await;
        socket.write_all(&frame[..end]).await.unwrap();
        is_closed(&mut socket).await;
        let mut gone = kit.greeted(Kind::Rpc).await;
        gone.write_all(&frame[..end]).await.unwrap();
        drop(gone);
    }
    kit.is_well().await;
}

#[tokio::test]
async fn a_wild_length_is_closed_at_once() {
    let kit = Kit::new().await;
    for kind in [Kind::Rpc, Kind::Peer(PeerKind::Raft), Kind::Peer(PeerKind::Snapshot)] {
        let mut socket = kit.greeted(kind).await;
        socket.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        is_closed(&mut socket).await;
    }
    kit.is_well().await;
}

#[tokio::test]
async fn a_flipped_bit_is_closed() {
    let kit = Kit::new().await;
    let mut frame = encoded(&rpc_frame(1, 6, 1000, &[]));
    let last = frame.len() - 1;
    frame[last] ^= 1;
    let mut socket = kit.greeted(Kind::Rpc).await;
    socket.write_all(&frame).await.unwrap();
    is_closed(&mut socket).await;
    kit.is_well().await;
}

#[tokio::test]
async fn frames_that_have_no_place_are_closed() {
    let kit = Kit::new().await;
    for frame_type in [FrameType::Response, FrameType::Hello, FrameType::Goodbye] {
        let mut socket = kit.greeted(Kind::Rpc).await;
        socket.write_all(&encoded(&Frame::bare(frame_type))).await.unwrap();
        is_closed(&mut socket).await;
    }
    let mut no_timeout = kit.greeted(Kind::Rpc).await;
    no_timeout.write_all(&encoded(&Frame::bare(FrameType::Request))).await.unwrap();
    is_closed(&mut no_timeout).await;
    let mut no_hello = kit.greeted(Kind::Peer(PeerKind::Raft)).await;
    no_hello.write_all(&encoded(&Frame::bare(FrameType::Request))).await.unwrap();
    is_closed(&mut no_hello).await;
    kit.is_well().await;
}

/// Who asks for more than he reads costs the server no more than is written down: the rest is refused.
#[tokio::test]
async fn answers_that_nobody_takes_have_a_budget_of_bytes() {
    const ASKED: u64 = 64;
    let kit = Kit::within(Bounds { bytes_in_flight: 5 << 19, ..Bounds::default() }).await;
    let mut socket = kit.greeted(Kind::Rpc).await;
    let request = Request::Founding("mebibyte".into());
    let mut body = Vec::new();
    request.write_body(&mut body);
    for id in 1..=ASKED {
        let frame = encoded(&rpc_frame(id, request.method(), 20_000, &body));
        socket.write_all(&frame).await.unwrap();
    }
    for _ in 0..ASKED {
        kit.stage.entered.wait().await;
    }
    // All were waiting for the same, and have their answers now.
    (0..ASKED).for_each(|_| kit.stage.gate.raise());
    let accept = Accept { payload_max: 1 << 24, crc_required: true };
    let (mut buffer, mut whole, mut refused) = (BytesMut::new(), 0, 0);
    while whole + refused < ASKED {
        let Some(frame) = Frame::decode(&mut buffer, accept).unwrap() else {
            let read = tokio::time::timeout(LONG, socket.read_buf(&mut buffer)).await;
            assert_ne!(read.expect("all are answered").unwrap(), 0, "it closes");
            continue;
        };
        match Result::<Response, Error>::from_bytes(frame.payload).unwrap() {
            Ok(Response::Founding(body)) => whole += u64::from(body.len() == 1 << 20),
            answer => {
                assert_eq!(reason_of(answer), Reason::TooManyRequests);
                refused += 1;
            }
        }
    }
    // What the kernel keeps of a connection comes to some.
    assert!(whole >= 4 && refused >= ASKED / 2, "{whole} and {refused}");
    kit.is_well().await;
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_answered() {
    let kit = Kit::new().await;
    let mut socket = kit.greeted(Kind::Rpc).await;
    for (id, method, body) in [(1, 999, &[][..]), (2, 1, &[1, 2, 3]), (3, 6, b"more")] {
        socket.write_all(&encoded(&rpc_frame(id, method, 1000, body))).await.unwrap();
        let response = read_frame(&mut socket).await.unwrap();
        assert_eq!(response.id, id);
        let answer = Result::<Response, Error>::from_bytes(response.payload).unwrap();
        assert!(matches!(reason_of(answer), Reason::Malformed { .. }));
    }
    socket.write_all(&encoded(&rpc_frame(4, 6, 1000, &[]))).await.unwrap();
    let response = read_frame(&mut socket).await.unwrap();
    let answer = Result::<Response, Error>::from_bytes(response.payload).unwrap();
    assert!(matches!(answer, Ok(Response::ReadIndex(7))));
}

#[tokio::test]
async fn a_cancel_of_nothing_is_ignored() {
    let kit = Kit::new().await;
    let mut socket = kit.greeted(Kind::Rpc).await;
    let cancel = Frame { id: 12, ..Frame::bare(FrameType::Cancel) };
    socket.write_all(&encoded(&cancel)).await.unwrap();
    socket.write_all(&encoded(&rpc_frame(4, 6, 1000, &[]))).await.unwrap();
    assert_eq!(read_frame(&mut socket).await.unwrap().id, 4);
}

#[tokio::test]
async fn another_version_is_told_so() {
    let kit = Kit::new().await;
    let mut socket = kit.raw().await;
    let newer = Words { version_lowest: 2, version_highest: 9, ..Words::new(Kind::Rpc, MEMBER) };
    socket.write_all(&newer.encode()).await.unwrap();
    let answer = read_answer(&mut socket).await;
    assert_eq!((answer.status, answer.version), (Status::NoCommonVersion, 1));
    is_closed(&mut socket).await;
    let mut socket = kit.raw().await;
    let wider = Words { version_lowest: 0, ..newer };
    socket.write_all(&wider.encode()).await.unwrap();
    assert_eq!(read_answer(&mut socket).await.status, Status::Ok);
}

#[tokio::test]
async fn connections_of_a_kind_are_limited() {
    let kit = Kit::within(Bounds { rpc_connections: 1, ..Bounds::default() }).await;
    let first = kit.client();
    say(&first, "x").await.unwrap();
    let second = kit.client();
    assert_eq!(reason_of(say(&second, "x").await), Reason::TooManyRequests);
    let mut peer = kit.peer(PeerKind::Raft);
    peer.call(1, Bytes::new(), LONG).await.unwrap();
    drop(first);
    let admitted = async {
        while say(&second, "x").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, admitted).await.unwrap();
}

#[tokio::test]
async fn who_says_nothing_delays_others_for_a_handshake_at_most() {
    let kit = Kit::within(Bounds { handshakes: 1, handshake: SHORT, ..Bounds::default() }).await;
    let _silent = kit.raw().await;
    kit.is_well().await;
}

/// A server that says what a test tells it to.
async fn fake() -> (socket::Port, String) {
    let port = socket::bind("127.0.0.1:0", &Security::Loopback).await.unwrap();
    let address = port.local_address().unwrap().to_string();
    (port, address)
}

/// Accepts a caller, and answers its preamble with `status`.
async fn greet(port: &socket::Port, status: u8) -> Socket {
    let mut socket = Socket::Plain(port.accept().await.unwrap());
    let mut preamble = [0; super::super::preamble::PREAMBLE_BYTES];
    socket.read_exact(&mut preamble).await.unwrap();
    let callee = Endpoint { group: GROUP, node: SERVER };
    let mut answer = Answer { status: Status::Ok, version: 1, features: 0, callee }.encode();
    answer[0] = status;
    socket.write_all(&answer).await.unwrap();
    socket
}

#[tokio::test]
async fn an_unknown_status_is_a_typed_error() {
    let (port, address) = fake().await;
    let client = client_of(&address);
    let (answer, _socket) = futures::join!(say(&client, "x"), greet(&port, 99));
    assert!(matches!(reason_of(answer), Reason::Unrecognized { .. }));
}

#[tokio::test]
async fn a_server_that_closes_instead_of_answering_is_unreachable() {
    let (port, address) = fake().await;
    let client = client_of(&address);
    let closes = async { drop(port.accept().await.unwrap()) };
    let (answer, ()) = futures::join!(ask(&client, write(), LONG), closes);
    let error = answer.unwrap_err();
    assert!(matches!(error.reason(), Reason::Unreachable { .. }) && !error.may_have_applied());
}

#[tokio::test]
async fn nonsense_instead_of_an_answer_loses_the_connection_only() {
    let (port, address) = fake().await;
    let client = client_of(&address);
    let serves = async {
        let mut socket = greet(&port, 0).await;
        read_frame(&mut socket).await.unwrap();
        socket.write_all(&[0; 30]).await.unwrap();
        socket
    };
    let (answer, _socket) = futures::join!(ask(&client, write(), LONG), serves);
    let error = answer.unwrap_err();
    assert_eq!(*error.reason(), Reason::ConnectionLost);
    assert!(error.may_have_applied());

    let serves = async {
        let mut socket = greet(&port, 0).await;
        let Frame { id, .. } = read_frame(&mut socket).await.unwrap();
        let payload = Bytes::from_static(b"what?");
        let response = Frame { frame_type: FrameType::Response, method: 0, id, payload };
        socket.write_all(&encoded(&response)).await.unwrap();
        socket
    };
    let (answer, _socket) = futures::join!(ask(&client, write(), LONG), serves);
    let error = answer.unwrap_err();
    assert!(matches!(error.reason(), Reason::Malformed { .. }) && error.may_have_applied());
}

#[tokio::test]
async fn an_answer_to_another_peer_call_is_not_believed() {
    let (port, address) = fake().await;
    let mut peer = peer_of(PeerKind::Raft, &address);
    let serves = async {
        let mut socket = greet(&port, 0).await;
        read_frame(&mut socket).await.unwrap();
        let payload = Status::Ok.to_payload();
        let hello = Frame { payload, ..Frame::bare(FrameType::Hello) };
        socket.write_all(&encoded(&hello)).await.unwrap();
        let request = read_frame(&mut socket).await.unwrap();
        let (id, payload) = (request.id + 1, Bytes::from_static(&[1]));
        let other = Frame { frame_type: FrameType::Response, id, payload, ..request };
        socket.write_all(&encoded(&other)).await.unwrap();
        socket
    };
    let (answer, _socket) = futures::join!(peer.call(1, Bytes::new(), LONG), serves);
    assert_eq!(reason_of(answer), Reason::ConnectionLost);
}

/// After a goodbye the calls under way are still answered, and new ones go to a new connection.
#[tokio::test]
async fn a_goodbye_moves_new_calls_elsewhere() {
    let (port, address) = fake().await;
    let client = client_of(&address);
    let respond = async |socket: &mut Socket, id: u64| {
        let payload = Ok::<_, Error>(Response::ReadIndex(id)).to_bytes();
        let response = Frame { frame_type: FrameType::Response, method: 0, id, payload };
        socket.write_all(&encoded(&response)).await.unwrap();
    };
    let serves = async {
        let mut old = greet(&port, 0).await;
        let Frame { id, .. } = read_frame(&mut old).await.unwrap();
        old.write_all(&encoded(&Frame::bare(FrameType::Goodbye))).await.unwrap();
        let mut new = greet(&port, 0).await;
        let second = read_frame(&mut new).await.unwrap();
        respond(&mut new, second.id).await;
        respond(&mut old, id).await;
        // The client closes the old one when its last answer is there.
        old.read_to_end(&mut Vec::new()).await.unwrap();
        while let Some(again) = read_frame(&mut new).await {
            respond(&mut new, again.id).await;
        }
    };
    let second = async {
        // Until the goodbye has come, the old connection is as good as any.
        while ask(&client, Request::ReadIndex, SHORT).await.is_err() {}
    };
    let first = ask(&client, Request::ReadIndex, LONG);
    let calls = futures::future::join(first, second);
    match futures::future::select(std::pin::pin!(calls), std::pin::pin!(serves)).await {
        futures::future::Either::Left(((first, ()), _)) => drop(first.unwrap()),
        futures::future::Either::Right(_) => panic!("the client closed a connection that it needs"),
    }
}
