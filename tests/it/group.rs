//! A group in one process: what members owe each other, and their clients.

use crate::kit::group::Nodes;
use quorate::{Client, Compare, Consistency, ErrorKind, Event, KeyRange, Op, Reason, Revision};
use std::time::{Duration, Instant};

/// Every member answers every request, whoever leads.
#[tokio::test(flavor = "multi_thread")]
async fn any_member_serves_reads_writes_watches_and_leases() {
    let group = Nodes::start(3).await;
    for node in 0..3 {
        let client = group.client(node);
        let key = format!("from-{node}");
        let written = client.put(&key, "v").await.unwrap();
        for reader in 0..3 {
            // Linearizable: what was acknowledged anywhere is seen everywhere.
            let read = group.client(reader).get(&key).await.unwrap().unwrap();
            assert_eq!(read.mod_revision, written);
        }
        let mut watch = client.watch(&key).from(written).await.unwrap();
        assert_eq!(watch.recv().await.unwrap().revision, written);
        let lease = client.lease_grant(Duration::from_secs(5)).await.unwrap();
        client.put("leased", "v").lease(lease.id).await.unwrap();
        client.lease_keep_alive(lease.id).await.unwrap();
        let status = client.lease_time_to_live(lease.id).await.unwrap().unwrap();
        assert_eq!(status.keys, ["leased"]);
        client.lease_revoke(lease.id).await.unwrap();
        assert_eq!(client.get("leased").await.unwrap(), None);
    }
    assert!(group.are_equal().await);
    group.shutdown().await;
}

/// Requests that an application has begun and does not poll hold up nobody else: here the consumer of a stream of writes
/// writes by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_polled_is_in_nobodys_way() {
    let group = Nodes::start(3).await;
    let follower = (group.leader().await + 1) % 3;
    let client = group.client(follower);
    let mut begun: Vec<_> =
        (0..64).map(|n| client.put(format!("begun/{n}"), "v").into_future()).collect();
    for write in &mut begun {
        assert!(futures::poll!(write).is_pending());
    }
    let inner = client.put("inner", "v").timeout(Duration::from_secs(5)).await;
    inner.expect("it does not wait for those that are not polled");
    for write in begun {
        write.await.unwrap();
    }
    group.shutdown().await;
}

/// A read of a member in this process waits for nothing, and yet a task that does nothing else gives way.
#[tokio::test]
async fn a_task_that_only_reads_gives_way() {
    let folder = tempfile::tempdir().unwrap();
    let node = quorate::Node::builder(folder.path()).solo().await.unwrap();
    let client = node.client();
    client.put("k", "v").await.unwrap();
    let reads = async {
        loop {
            client.get("k").consistency(Consistency::Serializable).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_millis(50), reads).await.unwrap_err();
    node.shutdown().await.unwrap();
}

/// A remote client is the same client.
#[tokio::test(flavor = "multi_thread")]
async fn a_remote_client_does_what_a_local_one_does() {
    let group = Nodes::start(3).await;
    let follower = (group.leader().await + 1) % 3;
    let client = Client::connect([group.addresses[follower].clone()]).await.unwrap();
    let written = client.put("k", "1").await.unwrap();
    let mut watch = client.watch(KeyRange::prefix("k")).from(written).prev().await.unwrap();
    let outcome = client
        .txn()
        .when(Compare::mod_revision("k").equals(written))
        .then(Op::put("k", "2"))
        .otherwise(Op::get("k"))
        .await
        .unwrap();
    assert!(outcome.succeeded);
    assert_eq!(watch.recv().await.unwrap().revision, written);
    let changes = watch.recv().await.unwrap();
    assert!(matches!(&changes.events[..], [Event::Put { kv, prev: Some(prev) }]
        if kv.value == "2" && prev.value == "1"));
    let session = client.session(Duration::from_secs(2)).await.unwrap();
    let lock = session.lock("remote").await.unwrap();
    assert!(
        group.client(0).txn().when(lock.held()).then(Op::put("x", "y")).await.unwrap().succeeded
    );
    lock.release().await.unwrap();
    session.close().await.unwrap();
    group.shutdown().await;
}

/// A member that was away for longer than the log reaches back gets the whole state, and goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_fell_behind_the_log_gets_a_snapshot() {
    let mut group = Nodes::start_with(3, 100).await;
    let behind = (group.leader().await + 1) % 3;
    group.client(0).put("before", "v").await.unwrap();
    group.drop_node(behind);
    let writer = group.client((behind + 1) % 3);
    let lease = writer.lease_grant(Duration::from_secs(60)).await.unwrap();
    for number in 0..600 {
        writer.put(format!("k{}", number % 50), format!("{number}")).await.unwrap();
    }
    writer.put("leased", "v").lease(lease.id).await.unwrap();
    writer.compact(Revision::from(300)).await.unwrap();
    let newest = writer.put("last", "v").await.unwrap();

    group.restart(behind).await;
    group.node(behind).ready().await.unwrap();
    assert!(group.are_equal().await, "a snapshot is the same state");
    let client = group.client(behind);
    let local = client.range("k".."l").consistency(Consistency::Serializable).await.unwrap();
    assert_eq!((local.count, local.revision), (50, newest));
    // Its history is the group's, too: the previous values and the compaction.
    let mut watch = client.watch("k7").from(Revision::from(400)).prev().await.unwrap();
    let changes = watch.recv().await.unwrap();
    assert!(matches!(&changes.events[..], [Event::Put { prev: Some(_), .. }]));
    let compacted = client.get("k7").at(Revision::from(5)).await.unwrap_err();
    assert_eq!(*compacted.reason(), Reason::Compacted { at: Revision::from(300) });
    // And it follows the log from there, and survives a restart.
    client.put("after", "v").await.unwrap();
    group.stop(behind).await;
    group.restart(behind).await;
    group.node(behind).ready().await.unwrap();
    assert!(group.are_equal().await);
    group.shutdown().await;
}

/// A lease that is kept alive outlives its leader; one that is not ends, everywhere in one revision, soon after its time.
#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_their_leader_and_end_in_time() {
    let mut group = Nodes::start(3).await;
    let leader = group.leader().await;
    let (here, there) = ((leader + 1) % 3, (leader + 2) % 3);
    let kept = group.client(here).session(Duration::from_secs(2)).await.unwrap();
    let ttl = Duration::from_secs(1);
    let silent = group.client(there).lease_grant(ttl).await.unwrap();
    let granted = Instant::now();
    let client = group.client(here);
    client.put("kept", "v").lease(kept.lease_id()).await.unwrap();
    let from = client.put("silent/1", "v").lease(silent.id).await.unwrap();
    client.put("silent/2", "v").lease(silent.id).await.unwrap();
    let mut watch =
        client.watch(KeyRange::prefix("silent/")).from(from.next().next()).await.unwrap();

    group.drop_node(leader);
    let ended = watch.recv().await.unwrap();
    assert_eq!(ended.events.len(), 2, "the keys of a lease vanish in one revision: {ended:?}");
    let lived = granted.elapsed();
    assert!(lived >= ttl, "a lease never ends early: {lived:?}");
    // Its full time again at the new leader, an election on top, and the election itself.
    assert!(lived < Duration::from_secs(10), "{lived:?}");
    assert!(kept.is_alive());
    assert!(client.get("kept").await.unwrap().is_some());
    let gone = client.lease_keep_alive(silent.id).await.unwrap_err();
    assert_eq!(*gone.reason(), Reason::LeaseNotFound { lease: silent.id });
    assert_eq!(client.lease_time_to_live(silent.id).await.unwrap(), None);
    let refused = client.put("x", "y").lease(silent.id).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    drop(kept);
    group.shutdown().await;
}

/// Without a majority nothing is written, reads that must be fresh fail with a typed error, and local reads go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_minority_neither_writes_nor_lies() {
    let mut group = Nodes::start(3).await;
    group.client(0).put("k", "v").await.unwrap();
    let alone = group.leader().await;
    group.drop_node((alone + 1) % 3);
    group.drop_node((alone + 2) % 3);
    let client = group.client(alone);
    let short = Duration::from_millis(1500);
    let error = client.put("k", "lost").timeout(short).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = client.get("k").timeout(short).await.unwrap_err();
    assert!(error.is_retryable() && !error.may_have_applied(), "{error}");
    let local = client.get("k").consistency(Consistency::Serializable).await.unwrap();
    assert_eq!(local.unwrap().value, "v");
    let error = client.lease_grant(Duration::from_secs(5)).timeout(short).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");

    // And when the others are back it all goes on.
    group.restart((alone + 1) % 3).await;
    client.put("k", "again").await.unwrap();
    group.shutdown().await;
}

/// A lock passes on when its holder's process is gone, with a higher token, and the old holder's writes are refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_passes_on_and_its_old_holder_is_fenced_off() {
    let mut group = Nodes::start(3).await;
    let holder = group.leader().await;
    let waiter = (holder + 1) % 3;
    let first = group.client(holder).session(Duration::from_secs(1)).await.unwrap();
    let lock = first.lock("job").await.unwrap();
    let (old_token, old_held) = (lock.token(), lock.held());
    // Long enough to outlive a change of leader.
    let second = group.client(waiter).session(Duration::from_secs(4)).await.unwrap();
    assert!(second.try_lock("job").await.unwrap().is_none());
    group.drop_node(holder);
    let next = second.lock("job").await.unwrap();
    assert!(next.token() > old_token);
    let client = group.client(waiter);
    let stale = client.txn().when(old_held).then(Op::put("result", "stale")).await.unwrap();
    assert!(!stale.succeeded);
    let fresh = client.txn().when(next.held()).then(Op::put("result", "fresh")).await.unwrap();
    assert!(fresh.succeeded);
    assert!(tokio::time::timeout(Duration::from_secs(10), lock.lost()).await.is_ok());
    next.release().await.unwrap();
    drop(second);
    group.shutdown().await;
}

/// A node that is shut down sends the watches of remote clients away at once, rather than wait until they have news.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_the_watches_of_others() {
    let mut group = Nodes::start(3).await;
    let node = (group.leader().await + 1) % 3;
    let client = Client::connect([group.addresses[node].clone()]).await.unwrap();
    let mut watch = client.watch("k").await.unwrap();
    let written = client.put("k", "v").await.unwrap();
    assert_eq!(watch.recv().await.unwrap().revision, written);
    let started = Instant::now();
    group.stop(node).await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    // And they come back with the node.
    group.client((node + 1) % 3).put("k", "w").await.unwrap();
    group.restart(node).await;
    assert_eq!(watch.recv().await.unwrap().revision, written.next());
    drop(watch);
    group.shutdown().await;
}

/// A new leader gives ten thousand leases their time again, and so they end in the same moment. They go in batches, with
/// their keys; the leader stays who it is, and others write meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_leases_that_end_at_once_cost_no_leader() {
    const LEASES: usize = 10_000;
    let mut group = Nodes::start_steady(3).await;
    let client = group.client(0);
    let ttl = Duration::from_secs(6);
    let grants = (0..LEASES).map(|_| client.lease_grant(ttl).into_future());
    let grants = futures::future::try_join_all(grants).await.unwrap();
    let puts = grants.chunks(100).enumerate().map(|(chunk, leases)| {
        let txn = leases.iter().enumerate().fold(client.txn(), |txn, (n, lease)| {
            txn.then(Op::put(format!("leased/{chunk}/{n}"), "v").lease(lease.id))
        });
        txn.into_future()
    });
    futures::future::try_join_all(puts).await.unwrap();
    let old = group.leader().await;
    group.stop(old).await;
    let leader = group.leader().await;
    let client = group.client(leader);
    let term = group.node(leader).status().term;
    let all = KeyRange::prefix("leased/");
    assert_eq!(client.range(all.clone()).count_only().await.unwrap().count, LEASES as u64);

    let mut ends = client.watch(all.clone()).deletes_only().await.unwrap();
    let applied = || group.node(leader).status().applied_index.unwrap();
    let (before, mut gone) = (applied(), 0);
    while gone < LEASES {
        tokio::select! {
            changes = ends.recv() => {
                gone += changes.unwrap().events.len();
            }
            put = client.put("others", "v").into_future() => drop(put.unwrap()),
        }
    }
    // Those that were dropped count as well.
    let writes = client.get("others").await.unwrap().expect("others went on").version;
    let entries = applied() - before - writes;
    assert!(entries < 100, "{entries} entries of the log");
    assert_eq!(client.range(all).count_only().await.unwrap().count, 0);
    let status = group.node(leader).status();
    assert_eq!((status.term, status.leader), (term, Some(group.node(leader).id())));
    group.shutdown().await;
}
