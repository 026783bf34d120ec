//! The end of a server.

use super::*;

#[tokio::test]
async fn shutdown_lets_calls_under_way_be_answered() {
    let kit = Kit::new().await;
    let (client, mut peer) = (kit.client(), kit.peer(PeerKind::Raft));
    let Kit { stage, server, address } = kit;
    let calls = async {
        futures::join!(say(&client, "gate"), peer.call(1, Bytes::from_static(b"gate"), LONG))
    };
    let shutdown = async {
        stage.entered.wait().await;
        stage.entered.wait().await;
        let opens = async {
            // The port is free again while calls are still under way.
            while bind(&address, Security::Loopback).await.is_err() {
                tokio::task::yield_now().await;
            }
            stage.gate.raise();
            stage.gate.raise();
        };
        futures::join!(server.shutdown(LONG), opens);
    };
    let ((call, peer_call), ()) = futures::join!(calls, shutdown);
    assert_eq!((call.unwrap(), peer_call.unwrap()), ("gate".into(), "gate".into()));
    bind(&address, Security::Loopback).await.unwrap();
    drop((client, peer));
    tasks_left(0).await;
}

#[tokio::test]
async fn shutdown_ends_what_takes_longer_than_the_grace() {
    let kit = Kit::new().await;
    let client = kit.client();
    let Kit { stage, server, address } = kit;
    let _silent = socket::connect(&address, &Security::Loopback).await.unwrap();
    let shutdown = async {
        stage.entered.wait().await;
        server.shutdown(SHORT).await;
    };
    let (call, ()) = futures::join!(say(&client, "gate"), shutdown);
    assert_eq!(reason_of(call), Reason::ConnectionLost);
    // All tasks of the server have ended when shutdown returns, not some time after.
    assert!(stage.dropped.0.try_acquire().is_ok());
    bind(&address, Security::Loopback).await.unwrap();
    drop(client);
    tasks_left(0).await;
}

#[tokio::test]
async fn who_connects_during_the_shutdown_is_told() {
    let kit = Kit::new().await;
    let mut early = kit.raw().await;
    let client = kit.client();
    let Kit { stage, server, .. } = kit;
    let shutdown = async {
        stage.entered.wait().await;
        let late = async {
            let words = Words::new(Kind::Rpc, MEMBER).encode();
            let mut status = Status::Ok;
            // It was accepted before; its words come after.
            tokio::task::yield_now().await;
            if early.write_all(&words).await.is_ok() {
                status = read_answer(&mut early).await.status;
            }
            assert_eq!(status, Status::ShuttingDown);
            stage.gate.raise();
        };
        futures::join!(server.shutdown(LONG), late);
    };
    let (call, ()) = futures::join!(say(&client, "gate"), shutdown);
    call.unwrap();
}

#[tokio::test]
async fn dropping_a_server_ends_everything() {
    let kit = Kit::new().await;
    let (client, mut peer) = (kit.client(), kit.peer(PeerKind::Raft));
    say(&client, "x").await.unwrap();
    peer.call(1, Bytes::new(), LONG).await.unwrap();
    let Kit { server, address, .. } = kit;
    drop(server);
    let free = async {
        while bind(&address, Security::Loopback).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, free).await.unwrap();
    drop((client, peer));
    tasks_left(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_and_stops_leave_nothing_behind() {
    for _ in 0..50 {
        let kit = Kit::new().await;
        let client = kit.client();
        let texts = ["a", "b", "c", "d"];
        let answers = futures::future::join_all(texts.map(|text| say(&client, text))).await;
        assert!(answers.iter().all(Result::is_ok));
        kit.server.shutdown(LONG).await;
    }
    tasks_left(0).await;
}
