//! Settings that make no sense, and addresses that cannot be had.

use super::{Kept, builder, refused};
use quorate::{ErrorKind, NodeBuilder, Reason};
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

/// Options that no node can run with are refused before the folder is touched.
#[tokio::test]
async fn an_option_that_makes_no_sense_is_refused_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let node = || builder(&data);
    let heartbeat = "is outside of 20ms to 10s";
    let wrong: [(NodeBuilder, &str); 6] = [
        (node().heartbeat(Duration::ZERO), heartbeat),
        (node().heartbeat(Duration::from_millis(19)), heartbeat),
        (node().heartbeat(Duration::MAX), heartbeat),
        (node().map_size(0), "a map has at least 16 MiB"),
        (node().map_size((16 << 20) - 1), "a map has at least 16 MiB"),
        (node().snapshot_every(0), "a snapshot comes after one entry at least"),
    ];
    for (node, text) in wrong {
        let error = refused(node.clone().solo().await, ErrorKind::InvalidInput, text);
        assert!(matches!(error.reason(), Reason::BadOption { .. }));
        let member = node.listen("127.0.0.1:7401").form(["127.0.0.1:7401"]).await;
        refused(member, ErrorKind::InvalidInput, text);
    }
    for nowhere in ["127.0.0.1:0", "0.0.0.0:7401"] {
        let member = node().listen(nowhere).plaintext().form([nowhere]).await;
        let error = refused(member, ErrorKind::InvalidInput, "nobody can call it");
        assert!(matches!(error.reason(), Reason::BadAddress { .. }));
    }
    assert!(!data.exists(), "nothing was begun");
}

/// "As much as there is", "never" and "for ever" are options too.
#[tokio::test]
async fn the_largest_options_are_taken_as_they_are_meant() {
    let folder = tempfile::tempdir().unwrap();
    let address = &crate::kit::addresses(1)[0];
    let node = builder(folder.path())
        .map_size(u64::MAX)
        .snapshot_every(u64::MAX)
        .patience(Duration::MAX)
        .listen(address)
        .form([address])
        .await
        .unwrap();
    node.ready().await.unwrap();
    let kept = Kept::write(&node.client(), "k").await;
    kept.check(&node.client()).await;
    node.shutdown().await.unwrap();
}

/// Each entry a snapshot, and nothing kept behind it.
#[tokio::test]
async fn the_smallest_options_work() {
    let folder = tempfile::tempdir().unwrap();
    let node = || builder(folder.path()).map_size(16 << 20).snapshot_every(1);
    let first = node().solo().await.unwrap();
    let kept = Kept::write(&first.client(), "k").await;
    for number in 0..20 {
        first.client().put(format!("{number}"), "v").await.unwrap();
    }
    first.shutdown().await.unwrap();
    let again = node().solo().await.unwrap();
    kept.check(&again.client()).await;
    again.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named_and_the_folder_can_be_started_with_another() {
    let folder = tempfile::tempdir().unwrap();
    let node = builder(folder.path()).solo().await.unwrap();
    let kept = Kept::write(&node.client(), "k").await;
    node.shutdown().await.unwrap();

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = format!("cannot listen on {address}: Address already in use");
    let started = builder(folder.path()).listen(&address).solo().await;
    let error = refused(started, ErrorKind::InvalidInput, &text);
    assert!(matches!(error.reason(), Reason::BadAddress { .. }));

    // The folder was let go of, and the port can be had once it is free.
    drop(taken);
    let node = builder(folder.path()).listen(&address).solo().await.unwrap();
    assert_eq!(node.local_address().unwrap().to_string(), address);
    kept.check(&node.client()).await;

    // A second node on the same port is refused, and the first does not notice.
    let other = tempfile::tempdir().unwrap();
    let second = builder(other.path()).listen(&address).solo().await;
    refused(second, ErrorKind::InvalidInput, &text);
    kept.check(&node.client()).await;
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for address in ["", "7401", "localhost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", ":::"] {
        let started = builder(folder.path()).listen(address).solo().await;
        let error = refused(started, ErrorKind::InvalidInput, address);
        assert!(matches!(error.reason(), Reason::BadAddress { .. }), "{address}: {error}");
        let formed = builder(folder.path()).listen(address).form([address]).await;
        let error = refused(formed, ErrorKind::InvalidInput, address);
        assert!(matches!(error.reason(), Reason::BadAddress { .. }), "{address}: {error}");
    }
    let formed = builder(folder.path()).form(["127.0.0.1:7401"]).await;
    let error = refused(formed, ErrorKind::InvalidInput, "a member of a group needs an address");
    assert!(matches!(error.reason(), Reason::BadAddress { .. }));
}

#[tokio::test]
async fn an_address_that_others_can_reach_needs_leave_for_plain_text() {
    let folder = tempfile::tempdir().unwrap();
    let text = "0.0.0.0:0 is not loopback: give it certificates with tls(), or allow unencrypted traffic with plaintext()";
    let started = builder(folder.path()).listen("0.0.0.0:0").solo().await;
    let error = refused(started, ErrorKind::InvalidInput, text);
    assert_eq!(*error.reason(), Reason::PlaintextRefused { address: "0.0.0.0:0".into() });
    let node = builder(folder.path()).listen("0.0.0.0:0").plaintext().solo().await.unwrap();
    node.shutdown().await.unwrap();
    assert!(fs::metadata(folder.path().join("CURRENT")).is_ok());
}
