//! Ordered calls between members.

use super::*;

const KINDS: [PeerKind; 2] = [PeerKind::Raft, PeerKind::Snapshot];

async fn tell(peer: &mut PeerClient, text: &str) -> Result<Bytes, Error> {
    peer.call(1, Bytes::copy_from_slice(text.as_bytes()), LONG).await
}

/// A connection that is past its hello.
async fn admitted(kit: &Kit) -> Socket {
    let mut socket = kit.greeted(Kind::Peer(PeerKind::Raft)).await;
    let hello = Frame { payload: hello().to_payload(), ..Frame::bare(FrameType::Hello) };
    socket.write_all(&encoded(&hello)).await.unwrap();
    let answer = read_frame(&mut socket).await.unwrap();
    assert_eq!(answer.frame_type, FrameType::Hello);
    socket
}

fn request(id: u64, text: &str) -> Frame {
    let payload = Bytes::copy_from_slice(text.as_bytes());
    Frame { frame_type: FrameType::Request, method: 9, id, payload }
}

#[tokio::test]
async fn calls_come_back_on_either_kind() {
    let kit = Kit::new().await;
    for kind in KINDS {
        let mut peer = kit.peer(kind);
        for text in ["one", "", "three"] {
            assert_eq!(tell(&mut peer, text).await.unwrap(), text);
        }
        let body = Bytes::from(vec![7; kind.payload_max()]);
        assert_eq!(peer.call(1, body.clone(), LONG).await.unwrap(), body);
        let body = Bytes::from(vec![7; kind.payload_max() + 1]);
        let reason = reason_of(peer.call(1, body, LONG).await);
        assert!(matches!(reason, Reason::RequestTooLarge { .. }));
        tell(&mut peer, "still here").await.unwrap();
    }
}

#[tokio::test]
async fn pipelined_calls_are_handled_and_answered_in_order() {
    let kit = Kit::new().await;
    let mut socket = admitted(&kit).await;
    let mut all = BytesMut::new();
    let texts: Vec<String> = (0..20).map(|number| format!("call {number}")).collect();
    request(100, "gate").encode(&mut all);
    for (id, text) in texts.iter().enumerate() {
        request(id as u64, text).encode(&mut all);
    }
    socket.write_all(&all).await.unwrap();
    kit.stage.entered.wait().await;
    assert_eq!(*kit.stage.seen.lock().unwrap(), ["gate"], "the others wait");
    kit.stage.gate.raise();
    assert_eq!(read_frame(&mut socket).await.unwrap().id, 100);
    for id in 0..20 {
        let response = read_frame(&mut socket).await.unwrap();
        assert_eq!((response.id, response.method), (id, 9));
    }
    assert_eq!(kit.stage.seen.lock().unwrap()[1..], texts);
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_the_next_call() {
    let kit = Kit::new().await;
    let mut peer = kit.peer(PeerKind::Raft);
    let late = peer.call(1, Bytes::from_static(b"gate"), SHORT).await;
    assert!(matches!(reason_of(late), Reason::DeadlinePassed { .. }));
    kit.stage.gate.raise();
    assert_eq!(tell(&mut peer, "mine").await.unwrap(), "mine");
}

#[tokio::test]
async fn a_dropped_call_ends_its_handler_and_the_next_one_connects_anew() {
    let kit = Kit::new().await;
    let mut peer = kit.peer(PeerKind::Raft);
    {
        let call = tell(&mut peer, "gate");
        let entered = std::pin::pin!(kit.stage.entered.wait());
        futures::future::select(std::pin::pin!(call), entered).await;
    }
    kit.stage.dropped.wait().await;
    assert_eq!(tell(&mut peer, "mine").await.unwrap(), "mine");
}

#[tokio::test]
async fn errors_and_panics_of_the_handler_are_answers() {
    let kit = Kit::new().await;
    let mut peer = kit.peer(PeerKind::Snapshot);
    assert_eq!(reason_of(tell(&mut peer, "refuse").await), Reason::LeaderChanged);
    let reason = reason_of(tell(&mut peer, "panic").await);
    assert_eq!(reason, Reason::AssertionFailed { detail: "as asked".into() });
    let limit = limits::SNAPSHOT_BYTES_MAX as u64;
    assert_eq!(reason_of(tell(&mut peer, "large").await), Reason::ResultTooLarge { limit });
    assert_eq!(reason_of(tell(&mut peer, "wordy").await), Reason::ResultTooLarge { limit });
    tell(&mut peer, "still here").await.unwrap();
}

#[tokio::test]
async fn a_hello_can_be_refused_for_each_reason() {
    let kit = Kit::new().await;
    let expected = [
        (
            Status::WrongTarget,
            Reason::NodeMismatch { actual: SERVER.into(), expected: SERVER.into() },
        ),
        (Status::CallerRemoved, Reason::MemberRemoved { node: CALLER.into() }),
        (Status::IncarnationRefused, Reason::IncarnationRefused { node: CALLER.into() }),
        (Status::TimingDiffers, Reason::TimingDiffers),
        (Status::Starting, Reason::Starting),
    ];
    let mut peer = kit.peer(PeerKind::Raft);
    for (status, reason) in expected {
        *kit.stage.hello_status.lock().unwrap() = status;
        assert_eq!(reason_of(tell(&mut peer, "x").await), reason);
    }
    *kit.stage.hello_status.lock().unwrap() = Status::Ok;
    tell(&mut peer, "x").await.unwrap();
}

#[tokio::test]
async fn another_member_than_expected_is_refused_by_its_caller() {
    let kit = Kit::new().await;
    let elsewhere = || (MEMBER, Hello { to: 9, ..hello() });
    let address = kit.address.clone();
    let mut peer =
        PeerClient::new(PeerKind::Raft, address, Security::Loopback, Arc::new(elsewhere));
    let expected = Reason::NodeMismatch { actual: SERVER.into(), expected: 9.into() };
    assert_eq!(reason_of(tell(&mut peer, "x").await), expected);
    assert!(kit.stage.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_member_that_does_not_name_the_group_is_refused() {
    let kit = Kit::new().await;
    let stranger = || (Endpoint { group: 0, node: CALLER }, hello());
    let address = kit.address.clone();
    let mut peer = PeerClient::new(PeerKind::Raft, address, Security::Loopback, Arc::new(stranger));
    assert_eq!(reason_of(tell(&mut peer, "x").await), Reason::GroupMismatch);
}

#[tokio::test]
async fn a_hello_in_another_name_than_the_preamble_is_closed() {
    let kit = Kit::new().await;
    let mut socket = kit.greeted(Kind::Peer(PeerKind::Raft)).await;
    let payload = Hello { from: 9, ..hello() }.to_payload();
    let hello = Frame { payload, ..Frame::bare(FrameType::Hello) };
    socket.write_all(&encoded(&hello)).await.unwrap();
    is_closed(&mut socket).await;
    kit.is_well().await;
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let kit = Kit::new().await;
    let mut peer = kit.peer(PeerKind::Raft);
    tell(&mut peer, "x").await.unwrap();
    let Kit { server, address, .. } = kit;
    server.shutdown(LONG).await;
    // The goodbye is noticed before anything is sent.
    assert!(matches!(reason_of(tell(&mut peer, "x").await), Reason::Unreachable { .. }));
    let _kit = Kit::at(&address, Bounds::default()).await;
    tell(&mut peer, "x").await.unwrap();

    let silent = bind("127.0.0.1:0", Security::Loopback).await.unwrap();
    let mut peer = peer_of(PeerKind::Raft, &silent.local_address().to_string());
    let reason = reason_of(peer.call(1, Bytes::new(), SHORT).await);
    assert!(matches!(reason, Reason::Unreachable { .. }));
}

#[tokio::test]
async fn a_connection_that_breaks_under_a_call_is_lost() {
    let kit = Kit::new().await;
    let mut peer = kit.peer(PeerKind::Raft);
    let Kit { server, stage, .. } = kit;
    let breaks = async {
        stage.entered.wait().await;
        drop(server);
    };
    let (lost, ()) = futures::join!(tell(&mut peer, "gate"), breaks);
    assert_eq!(reason_of(lost), Reason::ConnectionLost);
    stage.dropped.wait().await;
}
