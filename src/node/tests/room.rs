//! What happens when there is no room: by the quota, and by the disk.

use super::*;
use crate::lmdb::Room;
use futures::future::try_join_all;

/// As if a large disk had so many mebibytes left.
fn pretend(node: &Node, mebibytes: u64) {
    let room = Room { all: 1 << 40, left: mebibytes << 20 };
    *node.shared().state.pretended.lock().unwrap() = Some(room);
}

/// Waits until a write is refused, or is not.
async fn until_it_is(client: &Client, refused: bool) {
    let put = async {
        loop {
            match client.put("k", vec![7; 100]).await {
                Ok(_) if !refused => return,
                Err(error) if refused => return assert_eq!(error.kind(), ErrorKind::NoSpace),
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(LONG, put).await.expect("it stays as it was");
}

/// Writes end before the disk does, and go on when it has room again. Only what makes room is given up for that.
#[tokio::test]
async fn a_disk_that_is_nearly_full_stops_what_takes_room_until_there_is_some() {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = Node::builder(folder.path()).heartbeat(HEARTBEAT).snapshot_every(1000);
    builder.retention.bytes = 16 << 20;
    let node = timeout(LONG, builder.solo()).await.expect("it hangs").unwrap();
    let client = node.client();
    let first = client.put("first", "1").await.unwrap();
    for _ in 0..40 {
        client.put("large", vec![7; 100 << 10]).await.unwrap();
    }
    assert_eq!(node.shared().purged(), None, "the log has room");

    // So little that the log has none: history would not help, a shorter log may.
    pretend(&node, 100);
    until_it_is(&client, true).await;
    assert!(node.status().is_short_of_room);
    let log_is_cut = async {
        while node.shared().purged() < Some(20) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, log_is_cut).await.expect("the log is never cut");
    assert_eq!(client.delete("large").await.unwrap(), 1, "what makes room goes through");
    assert!(client.get("first").at(first).await.unwrap().is_some());

    // Enough for the log, but not for the tables.
    pretend(&node, 200);
    let history_goes = async {
        loop {
            match client.get("first").at(first).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => return error,
            }
        }
    };
    let gone = timeout(LONG, history_goes).await.expect("history stays");
    assert!(matches!(gone.reason(), Reason::Compacted { .. }), "{gone}");
    until_it_is(&client, true).await;

    pretend(&node, 400);
    until_it_is(&client, false).await;
    assert!(!node.status().is_short_of_room);
    node.shutdown().await.unwrap();
}

async fn three(folder: &Path, edit: impl Fn(NodeBuilder) -> NodeBuilder) -> Vec<Node> {
    let ports: Vec<_> =
        (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<String> =
        ports.iter().map(|port| port.local_addr().unwrap().to_string()).collect();
    drop(ports);
    let start = |index: usize| {
        let builder = Node::builder(folder.join(index.to_string())).heartbeat(HEARTBEAT);
        edit(builder.listen(&*addresses[index])).form(addresses.clone())
    };
    let nodes = timeout(LONG, try_join_all((0..3).map(start))).await.expect("it hangs").unwrap();
    timeout(LONG, try_join_all(nodes.iter().map(Node::ready))).await.expect("it hangs").unwrap();
    nodes
}

fn is_leader(node: &Node) -> bool {
    node.status().leader == Some(node.id())
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(3 * LONG, waited).await.expect(what);
}

/// A member that is slow, and answers, is no reason to keep all that it lacks: it gets a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_member_does_not_keep_the_log_from_being_cut() {
    let folder = tempfile::tempdir().unwrap();
    let small = |mut builder: NodeBuilder| {
        builder.retention.bytes = 8 << 20;
        builder.snapshot_rate(200 << 20)
    };
    let nodes = three(folder.path(), small).await;
    let slow = nodes.iter().position(|node| !is_leader(node)).unwrap();
    let log = folder.path().join(slow.to_string()).join("raft");
    seam::of(&log).set(Disk::Slow(Duration::from_millis(150)));
    let leader = nodes.iter().find(|node| is_leader(node)).unwrap();
    let (client, value) = (leader.client(), vec![7; 512 << 10]);
    for number in 0..64 {
        client.put(format!("k{number}"), value.clone()).await.unwrap();
    }
    let applied = |node: &Node| node.status().applied_index.unwrap_or(0);
    let last = applied(leader);
    until("the log is cut", || leader.shared().purged() >= Some(last / 2)).await;
    assert!(applied(&nodes[slow]) < last / 2, "before it has read that");
    until("it comes as far", || applied(&nodes[slow]) >= last).await;
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// A member that has no room for a second state goes on with the one that it has, votes, and catches up when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_room_for_a_snapshot_stays_one() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = three(folder.path(), |builder| builder.snapshot_every(50)).await;
    let away = nodes.iter().position(|node| !is_leader(node)).unwrap();
    let log = folder.path().join(away.to_string()).join("raft");
    pretend(&nodes[away], 90);
    seam::of(&log).set(Disk::Holds);
    let leader = nodes.iter().find(|node| is_leader(node)).unwrap();
    for number in 0..300 {
        leader.client().put(format!("k{number}"), "v").await.unwrap();
    }
    let last = leader.status().applied_index;
    until("the log is cut", || leader.shared().purged() > Some(20)).await;
    seam::of(&log).set(Disk::Works);
    // It is offered a snapshot some times meanwhile.
    let failed = timeout(HEARTBEAT * 20, nodes[away].failed()).await;
    assert!(failed.is_err(), "{failed:?}");
    assert!(nodes[away].status().applied_index < last);
    pretend(&nodes[away], 900);
    until("it comes as far", || nodes[away].status().applied_index >= last).await;
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// What takes room is refused, all else goes on, and when there is room again so do writes.
#[tokio::test]
async fn a_quota_that_is_used_up_stops_what_takes_room_until_there_is_some() {
    let folder = tempfile::tempdir().unwrap();
    let builder = Node::builder(folder.path()).heartbeat(HEARTBEAT).quota(4 << 20);
    let node = timeout(LONG, builder.keep_revisions(5).solo()).await.expect("it hangs").unwrap();
    let client = node.client();
    let value = "v".repeat(64 << 10);
    let mut written = 0;
    let refused = loop {
        match client.put(format!("k{written}"), value.clone()).await {
            Ok(_) => written += 1,
            Err(error) if node.status().bytes_in_use >= node.status().quota => break error,
            // What is not in the tables yet counts for more than it will be there.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        assert!(written < 2000, "nothing stops it");
    };
    assert_eq!((refused.kind(), refused.may_have_applied()), (ErrorKind::NoSpace, false));
    let status = node.status();
    assert!(status.is_short_of_room && status.bytes_in_use >= status.quota, "{status:?}");
    assert!(status.bytes_in_use <= status.bytes_on_disk, "{status:?}");
    let lease = client.lease_grant(Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(lease.kind(), ErrorKind::NoSpace);
    assert_eq!(client.get("k0").await.unwrap().unwrap().value, value);

    assert_eq!(client.delete(KeyRange::prefix("k")).await.unwrap(), written);
    // What was deleted is history, and goes by itself.
    let writes = async {
        while client.put("again", "1").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, writes).await.expect("there is room");
    assert!(!node.status().is_short_of_room);
    node.shutdown().await.unwrap();
    let error = Node::builder(folder.path()).quota(4096).solo().await.unwrap_err();
    assert!(matches!(error.reason(), Reason::BadOption { .. }), "{error:?}");
}

/// Without room, history goes before its time: nobody has to compact by hand, or to wait for an hour.
#[tokio::test]
async fn without_room_history_goes_before_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::builder(folder.path()).heartbeat(HEARTBEAT).quota(4 << 20).solo();
    let node = timeout(LONG, node).await.expect("it hangs").unwrap();
    let client = node.client();
    let value = "v".repeat(64 << 10);
    let writes = async {
        let mut refused = 0;
        // All of it is history but for the last.
        for _ in 0..80 {
            while let Err(error) = client.put("k", value.clone()).await {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                refused += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        refused
    };
    assert!(timeout(3 * LONG, writes).await.expect("there is room again") > 0);
    assert_eq!(client.get("k").await.unwrap().unwrap().version, 80);
    node.shutdown().await.unwrap();
}
