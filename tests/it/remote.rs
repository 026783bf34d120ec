//! Clients of other processes: they go on through another member when the one that they use fails.

use crate::kit::group::Nodes;
use crate::kit::proxy::{Line, Proxy};
use crate::kit::{HEARTBEAT, PATIENCE, addresses};
use futures::future::{join_all, try_join_all};
use futures::{FutureExt, TryStreamExt};
use quorate::{Client, ErrorKind, Event, KeyRange, Node, Op, Reason};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

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

/// What takes its time to be noticed, and little else, at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_no_use_is_noticed() {
    join_all([
        watches_leave_an_endpoint_that_hangs().boxed(),
        short_calls_leave_an_endpoint_that_hangs().boxed(),
        short_sessions_outlive_an_endpoint_that_hangs().boxed(),
        an_endpoint_that_is_cut_off_is_left().boxed(),
        connections_that_are_forgotten_are_replaced().boxed(),
        when_nobody_answers_in_time_all_are_named().boxed(),
    ])
    .await;
}

/// Watches do not stay with an endpoint that hangs.
async fn watches_leave_an_endpoint_that_hangs() {
    let group = Nodes::start(3).await;
    let proxy = Proxy::to(&group.addresses[1]).await;
    let client = Client::connect([proxy.address.clone()]).await.unwrap();
    let session = client.session(Duration::from_secs(60)).await.unwrap();
    let held = group.client(0).session(Duration::from_secs(60)).await.unwrap();
    let lock = held.lock("l").await.unwrap();
    let waits = tokio::spawn(async move { session.lock("l").await.map(|lock| lock.token()) });
    let line = KeyRange::prefix("quorate/lock/");
    let lined_up = async {
        while group.client(0).range(line.clone()).await.unwrap().count < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, lined_up).await.expect("it stands in line");
    let mut watch = client.watch("k").await.unwrap();
    for _ in 0..20 {
        group.client(0).put("k", "v").await.unwrap();
        assert_eq!(watch.recv().await.unwrap().events.len(), 1);
    }
    // All that there is to say has been said, and what waits waits for news.
    proxy.set(Line::Dead);
    group.client(0).put("k", "v").await.unwrap();
    lock.release().await.unwrap();
    // Nothing is called meanwhile: a wait for news lasts longer than this.
    let seen = timeout(Duration::from_secs(18), watch.recv()).await.expect("another member tells");
    assert_eq!(seen.unwrap().events.len(), 1);
    let token = timeout(PATIENCE, waits).await.expect("and who waits for a lock gets it");
    assert!(token.unwrap().is_ok());
    group.shutdown().await;
}

/// All calls are as impatient as they like: it is noticed that they are not answered.
async fn short_calls_leave_an_endpoint_that_hangs() {
    let group = Nodes::start(3).await;
    let proxy = Proxy::to(&group.addresses[1]).await;
    let client = Client::connect([proxy.address.clone()]).await.unwrap();
    client.put("k", "1").await.unwrap();
    proxy.set(Line::Dead);
    let answered =
        async { while client.get("k").timeout(Duration::from_millis(200)).await.is_err() {} };
    timeout(PATIENCE / 2, answered).await.expect("another member answers");
    group.shutdown().await;
}

/// What keeps a session alive has less time than a call that could tell a slow member from one that hangs.
async fn short_sessions_outlive_an_endpoint_that_hangs() {
    let group = Nodes::start(3).await;
    let proxy = Proxy::to(&group.addresses[1]).await;
    let client = Client::connect([proxy.address.clone()]).await.unwrap();
    let ttl = Duration::from_millis(2400);
    let session = client.session(ttl).await.unwrap();
    proxy.set(Line::Dead);
    assert!(timeout(ttl * 2, session.lost()).await.is_err(), "two others would have kept it");
    assert!(session.is_alive());
    group.shutdown().await;
}

/// A member that answers but is cut off from the others hears of no change: who waits for one there is told by another.
async fn an_endpoint_that_is_cut_off_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let listening = addresses(3);
    let proxies = join_all(listening.iter().map(|address| Proxy::to(address))).await;
    let advertised: Vec<String> = proxies.iter().map(|proxy| proxy.address.clone()).collect();
    let start = |node: usize| {
        let builder = Node::builder(folder.path().join(format!("{node}"))).heartbeat(HEARTBEAT);
        builder.listen(&listening[node]).advertise(&advertised[node]).form(advertised.clone())
    };
    let nodes = try_join_all((0..3).map(start)).await.unwrap();
    try_join_all(nodes.iter().map(Node::ready)).await.unwrap();
    let leader = nodes[0].client().status().await.unwrap().leader;
    let cut_off = nodes.iter().position(|node| Some(node.id()) != leader).unwrap();
    let client = Client::connect([listening[cut_off].clone()]).await.unwrap();
    let mut watch = client.watch("k").await.unwrap();
    // The client reaches it by another way than the members do.
    proxies[cut_off].set(Line::Dead);
    nodes[(cut_off + 1) % 3].client().put("k", "v").await.unwrap();
    let seen = timeout(PATIENCE / 2, watch.recv()).await.expect("another member tells");
    assert_eq!(seen.unwrap().events.len(), 1);
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "v");
}

/// Something in between forgets the connections that are open, and nobody is told: others are opened, though there is no
/// other endpoint.
async fn connections_that_are_forgotten_are_replaced() {
    let (folder, address) = (tempfile::tempdir().unwrap(), addresses(1).remove(0));
    let proxy = Proxy::to(&address).await;
    let builder = Node::builder(folder.path()).heartbeat(HEARTBEAT).listen(&address);
    let node = builder.advertise(&proxy.address).solo().await.unwrap();
    let client = Client::connect([proxy.address.clone()]).await.unwrap();
    let mut watch = client.watch("k").await.unwrap();
    client.put("k", "1").await.unwrap();
    assert_eq!(watch.recv().await.unwrap().events.len(), 1);
    proxy.forget();
    let (_, before) = client.put("k", "2").prev().await.unwrap();
    assert_eq!(before.unwrap().version, 1, "it happened once");
    assert_eq!(timeout(PATIENCE / 2, watch.recv()).await.unwrap().unwrap().events.len(), 1);
    proxy.forget();
    // Nothing is called: it is the watch that has to notice.
    node.client().put("k", "3").await.unwrap();
    let seen = timeout(PATIENCE / 2, watch.recv()).await.expect("the watch goes on");
    assert_eq!(seen.unwrap().events.len(), 1);
    node.shutdown().await.unwrap();
}

/// A service may start before its group does.
#[tokio::test(flavor = "multi_thread")]
async fn who_connects_waits_for_the_group() {
    let (folder, address) = (tempfile::tempdir().unwrap(), addresses(1).remove(0));
    let connecting = tokio::spawn(Client::connect([address.clone()]));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!connecting.is_finished(), "it goes on asking");
    let node = Node::builder(folder.path()).heartbeat(HEARTBEAT).listen(&address).solo();
    let node = node.await.unwrap();
    connecting.await.unwrap().unwrap().put("k", "v").await.unwrap();
    node.shutdown().await.unwrap();
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

/// An error says all that was tried, also those that take calls and never answer.
async fn when_nobody_answers_in_time_all_are_named() {
    let (folder, address) = (tempfile::tempdir().unwrap(), addresses(1).remove(0));
    let proxies = join_all((0..3).map(|_| Proxy::to(&address))).await;
    let advertised: Vec<String> = proxies.iter().map(|proxy| proxy.address.clone()).collect();
    let builder = Node::builder(folder.path()).heartbeat(HEARTBEAT).listen(&address);
    let node = builder.advertise(&advertised[0]).solo().await.unwrap();
    let client = Client::connect(advertised.clone()).await.unwrap();
    client.put("k", "v").await.unwrap();
    proxies.iter().for_each(|proxy| proxy.set(Line::Dead));
    let error = client.get("k").timeout(Duration::from_secs(15)).await.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let said = format!("{error}: {source}");
    assert!(advertised.iter().all(|it| said.contains(it)), "{said}");
    node.shutdown().await.unwrap();
}

/// One of three that is down, one that is another group's, and one that is no member of anything.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_lives_is_enough() {
    let (mut group, other) = (Nodes::start(3).await, Nodes::start(1).await);
    group.stop(2).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = nobody.local_addr().unwrap().to_string();
    let id = group.node(0).status().group;
    let mut endpoints = other.addresses.clone();
    endpoints.extend(group.addresses.clone());
    endpoints.push(silent);
    let client = Client::builder().endpoints(endpoints).group(id).connect().await.unwrap();
    client.put("k", "v").await.unwrap();
    assert_eq!(client.status().await.unwrap().group, id);
    let keys: Vec<_> = client.range(..).stream().try_collect().await.unwrap();
    assert_eq!(keys.len(), 1);
    // Nobody else is left of the group that is meant.
    let wrong = Client::builder().endpoints(other.addresses.clone()).group(id).connect().await;
    assert_eq!(*wrong.unwrap_err().reason(), Reason::GroupMismatch);
    group.shutdown().await;
    other.shutdown().await;
}
