//! Starting and stopping: nothing is left behind, and what was dropped can be started again.

use crate::kit::{HEARTBEAT, until};
use quorate::{Client, ErrorKind, KeyRange, Node, Op};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const ROUNDS: usize = 200;

/// Each round starts a solo node, uses everything that has tasks, and shuts it down: afterwards there are no more
/// threads, files and ports than before.
///
/// It runs in a process of its own, for other tests have threads and files too.
#[test]
fn two_hundred_starts_and_stops_leave_nothing_behind() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifecycle::starts_and_stops", "--nocapture", "--quiet"])
        .env("QUORATE_TEST_LIFECYCLE", "1")
        .status()
        .unwrap();
    assert!(status.success());
}

/// Not a test: what that process runs.
#[test]
fn starts_and_stops() {
    if std::env::var("QUORATE_TEST_LIFECYCLE").is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // The first rounds make what stays for good: the test's own runtime, LMDB's table of environments.
        for _ in 0..3 {
            round(folder.path()).await;
        }
        let before = at_rest();
        for _ in 0..ROUNDS {
            round(folder.path()).await;
        }
        assert_eq!(before, at_rest(), "threads and files; the threads are {:?}", names());
    });
}

async fn round(folder: &Path) {
    let node =
        Node::builder(folder).listen("127.0.0.1:0").heartbeat(HEARTBEAT).solo().await.unwrap();
    let address = node.local_address().unwrap();
    let client = node.client();
    let mut watch = client.watch(KeyRange::prefix("k")).await.unwrap();
    let session = client.session(Duration::from_secs(2)).await.unwrap();
    let lock = session.lock("round").await.unwrap();
    let remote = Client::connect([address.to_string()]).await.unwrap();
    remote.put("k", "v").await.unwrap();
    watch.recv().await.unwrap();
    lock.release().await.unwrap();
    // Some clients go before the node, and one outlives it.
    drop((watch, session, remote));
    node.shutdown().await.unwrap();
    assert_eq!(client.get("k").await.unwrap_err().kind(), quorate::ErrorKind::Closed);
    // The port is free again.
    std::net::TcpListener::bind(address).unwrap();
}

/// How many threads and open files there are, once that does not change any more: a thread that has done its last work
/// takes a moment to be gone.
fn at_rest() -> (usize, usize) {
    let count = |what: &str| fs::read_dir(Path::new("/proc/self").join(what)).unwrap().count();
    let mut seen = ((0, 0), 0);
    until("threads and files are at rest", || {
        let now = (count("task"), count("fd"));
        seen = if seen.0 == now { (now, seen.1 + 1) } else { (now, 0) };
        (seen.1 == 100).then_some(now)
    })
}

fn names() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    tasks.filter_map(|task| name(task.unwrap()).ok()).collect()
}

/// Dropping a node is a crash that its process survives: nothing acknowledged is lost, and the folder can be opened again
/// as soon as its threads have noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_node_can_be_started_again() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let start = || Node::builder(folder.path()).heartbeat(HEARTBEAT).solo();
        let node = until("the folder is free", || {
            let started =
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(start()));
            match started {
                Ok(node) => Some(node),
                Err(error) => {
                    let reason = error.reason();
                    assert!(matches!(reason, quorate::Reason::AlreadyOpen { .. }), "{error}");
                    None
                }
            }
        });
        let client = node.client();
        let count = client.range("k".."l").await.unwrap().count;
        assert_eq!(count, round, "what was acknowledged is there");
        client.put(format!("k{round}"), "v").await.unwrap();
        // With a write, a watch and a session under way.
        let _write = client.put("other", "v");
        let _watch = client.watch("other").await.unwrap();
        let _session = client.session(Duration::from_secs(2)).await.unwrap();
        drop(node);
        // The client outlives it, and says so.
        assert!(client.get("k0").await.is_err());
    }
}

/// A node may be dropped anywhere: outside of any runtime, and inside one that must not block.
#[test]
fn a_node_may_be_dropped_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = folder.path().join("outside");
    let node = runtime.block_on(Node::builder(&path).heartbeat(HEARTBEAT).solo()).unwrap();
    drop(runtime);
    drop(node);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let node = Node::builder(folder.path().join("inside")).heartbeat(HEARTBEAT).solo();
        drop(node.await.unwrap());
        // A start that is given up leaves the folder usable, too.
        let path = folder.path().join("given-up");
        let start = Node::builder(&path).heartbeat(HEARTBEAT).solo();
        let _ = tokio::time::timeout(Duration::from_millis(1), start).await;
    });
    let path = folder.path().join("given-up");
    let node = until("the folder is free", || {
        runtime.block_on(Node::builder(&path).heartbeat(HEARTBEAT).solo()).ok()
    });
    runtime.block_on(node.shutdown()).unwrap();
}

/// Whatever waits for a node in the application when that ends is told so, and does not panic.
#[test]
fn what_waits_for_a_node_outlives_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for orderly in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let node = Node::builder(folder.path()).heartbeat(HEARTBEAT).solo().await.unwrap();
            let client = node.client();
            let ttl = Duration::from_secs(30);
            let (one, other) =
                (client.session(ttl).await.unwrap(), client.session(ttl).await.unwrap());
            let lock = one.lock("l").await.unwrap();
            let mut waiting = tokio::task::JoinSet::new();
            waiting.spawn({
                let one = one.clone();
                async move { one.lost().await }
            });
            waiting.spawn(async move { assert!(other.lock("l").await.is_err()) });
            waiting.spawn({
                let client = client.clone();
                async move { while client.put("k", "v").await.is_ok() {} }
            });
            waiting.spawn({
                let mut watch = client.watch("other").await.unwrap();
                async move { assert_eq!(watch.recv().await.unwrap_err().kind(), ErrorKind::Closed) }
            });
            client.put("k", "v").await.unwrap();
            if orderly {
                node.shutdown().await.unwrap()
            } else {
                drop(node)
            }
            let all = async {
                while let Some(ended) = waiting.join_next().await {
                    ended.unwrap()
                }
            };
            tokio::time::timeout(ttl / 3, all).await.expect("long before any deadline");
            drop(lock);
            assert_eq!(client.put("k", "v").await.unwrap_err().kind(), ErrorKind::Closed);
            assert!(!one.is_alive());
        }
    });
}

/// A client needs no runtime around it: it has that of its node.
#[test]
fn any_executor_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let node = runtime.block_on(Node::builder(folder.path()).heartbeat(HEARTBEAT).solo()).unwrap();
    drop(runtime);
    let client = node.client();
    futures::executor::block_on(async {
        let session = client.session(Duration::from_secs(5)).await.unwrap();
        let lock = session.lock("l").await.unwrap();
        let mut watch = client.watch("k").await.unwrap();
        let written = client.txn().when(lock.held()).then(Op::put("k", "v")).await.unwrap();
        assert_eq!(watch.recv().await.unwrap().revision, written.revision);
        assert!(client.get("k").await.unwrap().is_some());
        lock.release().await.unwrap();
        session.close().await.unwrap();
    });
    drop(node);
}
