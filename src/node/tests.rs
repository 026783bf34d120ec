//! A disk that fails under a running node, an end that is not waited for, an entry that no message could carry, and a change
//! of the members that nobody finishes.

mod integrity;
mod room;
#[cfg(feature = "tls")]
mod secure;

use super::*;
use crate::error::ErrorKind;
use crate::raft::log::tests::seam::{self, Disk};
use crate::types::{KeyRange, Op};

const HEARTBEAT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

async fn solo(folder: &Path) -> Result<Node> {
    timeout(LONG, Node::builder(folder).heartbeat(HEARTBEAT).solo()).await.expect("it hangs")
}

fn disk(folder: &Path) -> std::sync::Arc<seam::Seam> {
    seam::of(&log_folder(folder))
}

fn is_the_disk(error: &Error) -> bool {
    matches!(error.reason(), Reason::DiskFailed { .. })
}

#[tokio::test]
async fn a_start_on_a_failed_disk_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    solo(folder.path()).await.unwrap().shutdown().await.unwrap();
    disk(folder.path()).set(Disk::Fails);
    let error = solo(folder.path()).await.unwrap_err();
    assert!(is_the_disk(&error), "{error:?}");
}

#[tokio::test]
async fn a_node_says_that_its_disk_failed_and_which_write_may_have_happened() {
    let folder = tempfile::tempdir().unwrap();
    let node = solo(folder.path()).await.unwrap();
    let client = node.client();
    client.put("k", "surely").await.unwrap();
    disk(folder.path()).set(Disk::Fails);
    let error = client.put("k", "perhaps").await.unwrap_err();
    assert!(error.may_have_applied(), "it was in the log: {error:?}");
    let cause = timeout(LONG, node.failed()).await.expect("it hangs");
    assert!(is_the_disk(&cause), "{cause:?}");
    // As soon as nobody takes entries any more, that is known.
    let refused = async {
        loop {
            let error = client.put("k", "surely not").timeout(LONG / 2).await.unwrap_err();
            assert!(is_the_disk(&error), "{error:?}");
            if !error.may_have_applied() {
                return;
            }
        }
    };
    timeout(LONG, refused).await.expect("it never says so");
    assert!(is_the_disk(&node.ready().await.unwrap_err()));
}

/// All clients of a node go by one name: the group remembers so many, and some programs make one for each request.
#[tokio::test]
async fn all_clients_of_a_node_have_one_name() {
    let folder = tempfile::tempdir().unwrap();
    let node = solo(folder.path()).await.unwrap();
    node.client().put("k", "v").await.unwrap();
    let applied = node.status().applied_index.unwrap();
    for _ in 0..5 {
        node.client().put("k", "v").await.unwrap();
    }
    assert_eq!(node.status().applied_index, Some(applied + 5));
    node.shutdown().await.unwrap();
}

/// openraft writes down why it ended, but not when it was by an assertion of its own.
#[tokio::test]
async fn a_node_whose_consensus_panicked_has_failed_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let node = solo(folder.path()).await.unwrap();
    let raft = node.running.as_ref().unwrap().member.shared.raft.clone();
    raft.external_request(|_| panic!("this panic is part of the test")).await.unwrap();
    let cause = timeout(LONG, node.failed()).await.expect("it hangs");
    assert!(matches!(cause.reason(), Reason::AssertionFailed { .. }), "{cause:?}");
    let error = node.client().put("k", "v").await.unwrap_err();
    assert!(matches!(error.reason(), Reason::AssertionFailed { .. }), "{error:?}");
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_not_waited_for_when_the_disk_has_failed() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let addresses: Vec<String> = (0..3)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .collect::<Vec<_>>()
        .iter()
        .map(|port| port.local_addr().unwrap().to_string())
        .collect();
    let starts = folders.iter().zip(&addresses).map(|(folder, address)| {
        let builder = Node::builder(folder.path()).listen(address.clone()).heartbeat(HEARTBEAT * 2);
        builder.form(addresses.clone())
    });
    let nodes: Vec<Node> = futures::future::try_join_all(starts).await.unwrap();
    for node in &nodes {
        timeout(LONG, node.ready()).await.unwrap().unwrap();
    }
    // Without the disks of both followers nobody is sure of anything; then one of them fails.
    let leader = nodes.iter().position(|node| node.status().leader == Some(node.id())).unwrap();
    let (slow, other) = ((leader + 1) % 3, (leader + 2) % 3);
    disk(folders[slow].path()).set(Disk::Holds);
    disk(folders[other].path()).set(Disk::Holds);
    let client = nodes[leader].client();
    let mut write = pin!(client.put("k", "v").into_future());
    assert!(timeout(HEARTBEAT, write.as_mut()).await.is_err(), "no majority has it");
    let ready = nodes[slow].ready();
    let mut ready = pin!(ready);
    assert!(timeout(HEARTBEAT * 10, ready.as_mut()).await.is_err(), "nobody confirms anything");
    disk(folders[slow].path()).set(Disk::Fails);
    let error = timeout(LONG, ready).await.expect("it hangs").unwrap_err();
    assert!(is_the_disk(&error), "{error:?}");
    disk(folders[other].path()).set(Disk::Works);
    write.await.unwrap();
}

/// What is answered is in memory first, and history is read from the file.
#[tokio::test]
async fn an_answered_compaction_is_seen_by_whoever_asks_next() {
    let folder = tempfile::tempdir().unwrap();
    let node = solo(folder.path()).await.unwrap();
    let client = node.client();
    for round in 0..20 {
        let first = client.put("k", format!("{round}")).await.unwrap();
        let last = client.put("k", "last").await.unwrap();
        // All of this is committed, so that nothing but the compaction waits.
        let mut watch = client.watch(KeyRange::key("k")).from(first).await.unwrap();
        watch.recv().await.unwrap();
        client.compact(last).await.unwrap();
        let late = client.watch(KeyRange::key("k")).from(first).await;
        let error = match late {
            Ok(mut watch) => watch.recv().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error.reason(), Reason::Compacted { .. }), "round {round}: {error:?}");
    }
}

#[tokio::test]
async fn a_shutdown_that_is_given_up_does_not_keep_the_folder_open_for_clients() {
    let folder = tempfile::tempdir().unwrap();
    let node = solo(folder.path()).await.unwrap();
    let client = node.client();
    {
        let mut shutdown = pin!(node.shutdown());
        assert!(futures::poll!(shutdown.as_mut()).is_pending());
    }
    let again = async {
        loop {
            match solo(folder.path()).await {
                Ok(node) => return node,
                Err(error) => {
                    assert!(matches!(error.reason(), Reason::AlreadyOpen { .. }), "{error:?}");
                    tokio::time::sleep(HEARTBEAT).await;
                }
            }
        }
    };
    let node = timeout(LONG, again).await.expect("the folder stays open");
    assert!(client.get("k").await.is_err());
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn options_without_bound_mean_never() {
    let folder = tempfile::tempdir().unwrap();
    let never = || Node::builder(folder.path()).heartbeat(HEARTBEAT).snapshot_every(u64::MAX);
    let node = never().patience(Duration::MAX).solo().await.unwrap();
    node.client().put("k", "v").await.unwrap();
    node.shutdown().await.unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let group =
        Node::builder(folder.path().join("group")).heartbeat(HEARTBEAT).patience(Duration::MAX);
    let node = group.listen(address.to_string()).form([address.to_string()]).await.unwrap();
    let joins = Node::builder(folder.path().join("joins")).heartbeat(HEARTBEAT);
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let joins = joins.listen(own.to_string()).patience(Duration::MAX).join([address.to_string()]);
    timeout(LONG, joins).await.expect("it hangs").unwrap().shutdown().await.unwrap();
    node.shutdown().await.unwrap();
}

/// A disk that stalls for ever, and does not even fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_for_ever_for_a_stalled_disk() {
    let folder = tempfile::tempdir().unwrap();
    let node = solo(folder.path()).await.unwrap();
    let client = node.client();
    client.put("k", "surely").await.unwrap();
    disk(folder.path()).set(Disk::Holds);
    let write = client.put("k", "stuck").timeout(Duration::from_millis(100)).await;
    assert!(write.unwrap_err().may_have_applied());
    let error = timeout(LONG, node.shutdown()).await.expect("it hangs").unwrap_err();
    assert_eq!(error.kind(), crate::error::ErrorKind::Storage);
    // The thread that may still write keeps the folder to itself.
    let again = solo(folder.path()).await.unwrap_err();
    assert!(matches!(again.reason(), Reason::AlreadyOpen { .. }), "{again}");
    disk(folder.path()).set(Disk::Works);
    let free = async {
        loop {
            if let Ok(node) = solo(folder.path()).await {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, free).await.expect("it stays locked").shutdown().await.unwrap();
}

/// Large entries fill the log's room long before there are enough of them for openraft to cut it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_large_entries_is_cut_by_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = Node::builder(folder.path()).heartbeat(HEARTBEAT);
    builder.retention.bytes = 8 << 20;
    let node = builder.solo().await.unwrap();
    let client = node.client();
    let value = vec![7; 512 << 10];
    for number in 0..64 {
        client.put(format!("k{number}"), value.clone()).await.unwrap();
    }
    let purged = async {
        while node.shared().purged() < Some(30) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, purged).await.expect("the log is never cut");
    node.shutdown().await.unwrap();
    let node = solo(folder.path()).await.unwrap();
    assert_eq!(node.client().range("k".."l").keys_only().await.unwrap().count, 64);
    node.shutdown().await.unwrap();
}

/// By age, and by number.
#[tokio::test]
async fn history_is_forgotten_by_itself() {
    let second = Duration::from_secs(1);
    let by = [
        |builder: NodeBuilder| builder.keep_history(Duration::from_secs(1)),
        |builder: NodeBuilder| builder.keep_revisions(20),
    ];
    for limit in by {
        let folder = tempfile::tempdir().unwrap();
        let builder = limit(Node::builder(folder.path()).heartbeat(HEARTBEAT));
        let node = timeout(LONG, builder.solo()).await.expect("it hangs").unwrap();
        let client = node.client();
        for number in 0..50 {
            client.put("k", number.to_string()).await.unwrap();
        }
        let is_gone = async {
            while client.range("k").at(10.into()).await.is_ok() {
                tokio::time::sleep(second / 100).await;
            }
        };
        timeout(LONG, is_gone).await.expect("it stays");
        let error = client.range("k").at(10.into()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Compacted);
        assert_eq!(client.get("k").await.unwrap().unwrap().value, "49");
        node.shutdown().await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let builder = || Node::builder(folder.path());
    for senseless in [
        builder().snapshot_rate(0),
        builder().snapshot_rate((1 << 20) - 1),
        builder().keep_revisions(0),
        builder().keep_history(second / 2),
    ] {
        let error = senseless.solo().await.unwrap_err();
        assert!(matches!(error.reason(), Reason::BadOption { .. }), "{error:?}");
    }
}

/// One entry ends so many keys and not more: what is left over is ended by the next, and nobody has to wait for a change.
#[tokio::test]
async fn leases_with_many_keys_end_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let start = || Node::builder(folder.path()).heartbeat(HEARTBEAT).solo();
    let node = start().await.unwrap();
    let client = node.client();
    for _ in 0..4 {
        let lease = client.lease_grant(Duration::from_secs(3)).await.unwrap().id;
        for part in 0..6 {
            let mut puts = client.txn();
            for number in 0..100 {
                puts = puts.then(Op::put(format!("{lease}/{part}/{number}"), "v").lease(lease));
            }
            puts.await.unwrap();
        }
    }
    assert_eq!(client.range(..).count_only().await.unwrap().count, 2400);
    let listed = client.lease_list().await.unwrap();
    assert!(listed.len() == 4 && listed.iter().all(|lease| lease.keys.len() == 600));
    let listed = client.lease_list().without_keys().await.unwrap();
    assert!(listed.len() == 4 && listed.iter().all(|lease| lease.keys.is_empty()));
    node.shutdown().await.unwrap();
    // Whoever begins to lead gives all of them their time, and so they end at once.
    let node = start().await.unwrap();
    let client = node.client();
    let all_gone = async {
        while client.range(..).count_only().await.unwrap().count > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, all_gone).await.expect("some are left over");
    assert!(client.lease_list().await.unwrap().is_empty());
    node.shutdown().await.unwrap();
}

/// As long as a backup goes on, the file grows by what is written: who takes nothing of it is not waited for.
#[tokio::test]
async fn a_backup_that_nobody_takes_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::builder(folder.path()).heartbeat(HEARTBEAT).solo().await.unwrap();
    node.client().put("k", vec![7; 10_000]).await.unwrap();
    let (writer, reader) = tokio::io::duplex(100);
    let written = node.backup_within(Duration::from_millis(50), writer);
    let error = timeout(LONG, written).await.expect("it hangs").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.to_string().contains("takes nothing"), "{error}");
    drop(reader);
    // It is the backup that has failed, and not the member.
    let info = node.backup_within(Duration::from_secs(5), &mut Vec::new()).await.unwrap();
    assert_eq!(info.keys, 1);
    node.shutdown().await.unwrap();
}

/// What was deleted and forgotten is given back to the file system, in the background, and a start finds the smaller file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_gets_smaller_by_itself_when_most_of_it_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let builder = || Node::builder(folder.path()).heartbeat(HEARTBEAT).keep_revisions(1);
    let node = builder().solo().await.unwrap();
    let client = node.client();
    client.put("stays", "here").await.unwrap();
    let value = vec![7; 1 << 20];
    for number in 0..90 {
        client.put(format!("k{number}"), value.clone()).await.unwrap();
    }
    node.shared().state.settled().await.unwrap();
    let before = node.status().bytes_on_disk;
    assert!(before > 90 << 20, "{before}");
    client.delete("k".."l").await.unwrap();
    let is_smaller = async {
        // Each write makes what was before it history, and so lets it go.
        while node.status().bytes_on_disk > 8 << 20 {
            client.put("stays", "here").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(3 * LONG, is_smaller).await.expect("it stays as large");
    // A compaction that is still to come would change the hash, which says where history begins.
    let state = &node.shared().state;
    let mut head = state.head();
    let is_compacted = head.wait_for(|_| {
        let moment = state.moment().unwrap();
        moment.compact_revision().next() >= moment.revision()
    });
    timeout(LONG, is_compacted).await.expect("history goes").unwrap();
    let (hash, revision) = (node.status().state_hash, node.status().revision);
    node.shutdown().await.unwrap();

    let node = builder().solo().await.unwrap();
    let status = node.status();
    assert_eq!((status.state_hash, status.revision), (hash, revision));
    assert!(status.bytes_on_disk < 8 << 20);
    assert_eq!(node.client().get("stays").await.unwrap().unwrap().value, "here");
    node.shutdown().await.unwrap();
}

/// A leader that ends between the two steps of a change leaves a group that needs majorities of both lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_members_that_was_begun_is_finished_by_whoever_leads() {
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let ports: Vec<_> =
        (0..4).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<String> =
        ports.iter().map(|port| port.local_addr().unwrap().to_string()).collect();
    drop(ports);
    let builder = |node: usize| {
        Node::builder(folders[node].path()).listen(&addresses[node]).heartbeat(HEARTBEAT)
    };
    let founders = (0..3).map(|node| builder(node).form(&addresses[..3]));
    let mut nodes: Vec<Node> = futures::future::try_join_all(founders).await.unwrap();
    let new = builder(3).join(&addresses[..3]).await.unwrap();
    timeout(LONG, new.ready()).await.unwrap().unwrap();
    let leads = |node: &Node| node.status().leader == Some(node.id());
    let leader = nodes.remove(nodes.iter().position(leads).unwrap());
    let [goes, stays] = <[Node; 2]>::try_from(nodes).unwrap();

    // While nobody's disk answers, the first step cannot be finished, and so nobody begins the second.
    let disk_of = |id: NodeId| {
        let members = leader.status().members;
        let address = members.into_iter().find(|(it, _)| *it == id).unwrap().1;
        let place = addresses.iter().position(|it| *it == address).unwrap();
        disk(folders[place].path())
    };
    let disks = [disk_of(goes.id()), disk_of(stays.id())];
    disks.iter().for_each(|disk| disk.set(Disk::Holds));
    let voters = [&leader, &stays, &new].map(|node| node.id().get());
    let shared = Arc::clone(leader.shared());
    timeout(LONG, shared.begin_change_for_test(voters)).await.expect("it hangs");
    disks.iter().for_each(|disk| disk.set(Disk::Works));
    timeout(LONG, shared.has_begun_change_for_test()).await.expect("the first step is lost");
    drop((shared, leader));

    let removed = timeout(LONG, goes.failed()).await.expect("nobody has finished it");
    assert_eq!(*removed.reason(), Reason::MemberRemoved { node: goes.id() });
    let members = stays.client().members().await.unwrap();
    let now: Vec<u64> = members.iter().map(|member| member.id.get()).collect();
    assert!(members.iter().all(|member| member.is_voter), "{members:?}");
    let mut expected = voters;
    expected.sort_unstable();
    assert_eq!(now, expected);
    timeout(LONG, new.client().put("k", "v").into_future()).await.unwrap().unwrap();
}
