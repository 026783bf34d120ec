//! Clients of other processes: they go on through another member when the one that they use fails.

use crate::kit::group::Nodes;
use crate::kit::proxy::{Line, Proxy};
use futures::TryStreamExt;
use quorate::{Client, ErrorKind, Event, KeyRange, Op, Reason};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// One endpoint is enough: the others are learned, and what was begun goes on through them. No write is lost, and none
/// happens twice; a watch sees each; a session lives on.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_goes_on_through_other_members() {
    let mut group = Nodes::start(3).await;
    let client = Client::connect([group.addresses[0].clone()]).await.unwrap();
    let session = client.session(Duration::from_secs(20)).await.unwrap();
    let mut watch = client.watch(KeyRange::prefix("n/")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        writers.spawn(async move {
            let mut count = 0u64;
            while !stop.load(Ordering::Relaxed) {
                // As one counts who must not count twice: nothing but the answer says whether it happened.
                let put = client.put(format!("n/{writer}"), format!("{count}")).prev();
                let before = put.timeout(Duration::from_secs(30)).await.unwrap().1;
                let expected = count.checked_sub(1).map(|count: u64| format!("{count}"));
                assert_eq!(
                    before.map(|kv| String::from_utf8_lossy(&kv.value).into_owned()),
                    expected
                );
                count += 1;
            }
            count
        });
    }
    for away in 0..3 {
        group.stop(away).await;
        let other = group.client((away + 1) % 3);
        other.put("n/mark", format!("{away}")).timeout(Duration::from_secs(30)).await.unwrap();
        client.get("n/mark").timeout(Duration::from_secs(30)).await.unwrap();
        group.restart(away).await;
        group.node(away).ready().await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let counts: Vec<u64> = writers.join_all().await;
    assert!(counts.iter().all(|count| *count > 0));
    let found = client.range(KeyRange::prefix("n/")).await.unwrap().entries;
    let versions: u64 = found.iter().filter(|kv| kv.key != "n/mark").map(|kv| kv.version).sum();
    assert_eq!(versions, counts.iter().sum::<u64>(), "each write happened once");
    let mut seen = 0;
    while seen < versions + 3 {
        seen += watch.recv().await.unwrap().events.len() as u64;
    }
    assert_eq!(seen, versions + 3, "and was seen once");
    assert!(session.is_alive());
    session.close().await.unwrap();
    group.shutdown().await;
}

/// A member that hangs is not waited for as long as the caller waits.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_hangs_is_left() {
    let group = Nodes::start(3).await;
    let proxy = Proxy::to(&group.addresses[1]).await;
    let client = Client::connect([proxy.address.clone()]).await.unwrap();
    client.put("k", "1").await.unwrap();
    proxy.set(Line::Dead);
    let (_, before) = client.put("k", "2").prev().await.unwrap();
    assert_eq!(before.unwrap().value, "1");
    let kv = client.get("k").await.unwrap().unwrap();
    assert_eq!((kv.version, &kv.value[..]), (2, &b"2"[..]));
    group.shutdown().await;
}

/// A balancer closes connections on which nothing has been said for long. Nobody notices: not a call, not a watch, not a
/// session.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_are_opened_again() {
    let group = Nodes::start(1).await;
    let proxy = Proxy::to(&group.addresses[0]).await;
    let client = Client::connect([proxy.address.clone()]).await.unwrap();
    let session = client.session(Duration::from_secs(20)).await.unwrap();
    let mut watch = client.watch("k").await.unwrap();
    for round in 1..=20 {
        proxy.cut();
        client.put("k", "v").lease(session.lease_id()).await.unwrap();
        assert_eq!(client.get("k").await.unwrap().unwrap().version, round);
        let seen = watch.recv().await.unwrap().events.remove(0);
        assert!(matches!(seen, Event::Put { kv, .. } if kv.version == round));
    }
    assert!(session.is_alive());
    session.close().await.unwrap();
    group.shutdown().await;
}

/// Each message takes a tenth of a second, in each direction: that is slow, and no failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_member_is_slow_and_nothing_else() {
    let group = Nodes::start(1).await;
    let proxy = Proxy::to(&group.addresses[0]).await;
    let client = Client::connect([proxy.address.clone()]).await.unwrap();
    proxy.set(Line::Slow(Duration::from_millis(100)));
    let mut watch = client.watch("k").await.unwrap();
    let puts = (0..50).map(|n| client.put(format!("n/{n}"), "v").into_future());
    futures::future::try_join_all(puts).await.unwrap();
    client.put("k", "v").await.unwrap();
    assert_eq!(watch.recv().await.unwrap().events.len(), 1);
    assert_eq!(client.range(KeyRange::prefix("n/")).await.unwrap().count, 50);
    group.shutdown().await;
}

/// An answer that fits into no message is an error of that call, which says what to do, and of no other.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_harms_nobody_else() {
    let group = Nodes::start(1).await;
    let client = Client::connect(group.addresses.clone()).await.unwrap();
    for n in 0..4 {
        client.put(format!("n/{n}"), vec![b'v'; 1 << 20]).await.unwrap();
    }
    let mut reads = client.txn();
    for _ in 0..5 {
        reads = reads.then(Op::range(KeyRange::prefix("n/")));
    }
    let (read, other) =
        futures::future::join(reads.into_future(), client.get("n/0").into_future()).await;
    let error = read.unwrap_err();
    assert!(matches!(error.reason(), Reason::ResultTooLarge { .. }), "{error}");
    assert_eq!(other.unwrap().unwrap().value.len(), 1 << 20);
    let all: Vec<_> = client.range(KeyRange::prefix("n/")).stream().try_collect().await.unwrap();
    assert_eq!(all.len(), 4);
    // Reads that share a call, and whose answers do not fit into one.
    let reads = (0..40).map(|n| client.get(format!("n/{}", n % 4)).into_future());
    let found = futures::future::try_join_all(reads).await.unwrap();
    assert!(found.iter().flatten().map(|kv| kv.value.len()).eq([1 << 20; 40]));
    group.shutdown().await;
}

/// It says what was tried, when the time is up and not later.
#[tokio::test(flavor = "multi_thread")]
async fn when_nobody_answers_all_are_named() {
    let group = Nodes::start(3).await;
    let addresses = group.addresses.clone();
    let client = Client::connect(addresses.clone()).await.unwrap();
    client.put("k", "v").await.unwrap();
    group.shutdown().await;
    let wait = Duration::from_secs(3);
    let began = std::time::Instant::now();
    let read = client.get("k").timeout(wait).await.unwrap_err();
    assert_eq!(read.kind(), ErrorKind::Unavailable);
    let write = client.put("k", "v").timeout(wait).await.unwrap_err();
    assert!(!write.may_have_applied(), "it reached nobody: {write}");
    assert!(began.elapsed() < wait * 3);
    for error in [read, write] {
        assert!(matches!(error.reason(), Reason::Unreachable { .. }), "{error}");
        assert!(addresses.iter().all(|it| error.to_string().contains(it)), "{error}");
    }
    let nobody = Client::builder().endpoints(addresses.clone()).timeout(wait).connect();
    let error = nobody.await.unwrap_err();
    assert!(addresses.iter().all(|it| error.to_string().contains(it)), "{error}");
}

/// One of three that is down, one that is another group's, and one that is no member of anything.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_lives_is_enough() {
    let mut group = Nodes::start(3).await;
    group.stop(2).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = nobody.local_addr().unwrap().to_string();
    let mut endpoints = group.addresses.clone();
    endpoints.push(silent);
    let client = Client::connect(endpoints).await.unwrap();
    client.put("k", "v").await.unwrap();
    let keys: Vec<_> = client.range(..).stream().try_collect().await.unwrap();
    assert_eq!(keys.len(), 1);
    group.shutdown().await;
}
