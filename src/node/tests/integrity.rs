//! Members whose states differ, because one of them has applied something else than the others.

use super::*;
use crate::raft::astray;
use crate::raft::marks::Verdict;
use crate::types::Consistency;
use futures::future::try_join_all;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MARK: &str = "UNTRUSTED";

struct Group {
    folder: tempfile::TempDir,
    addresses: Vec<String>,
    nodes: Vec<Option<Node>>,
}

impl Group {
    async fn start(count: usize) -> Self {
        let ports: Vec<_> =
            (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = ports.iter().map(|port| port.local_addr().unwrap().to_string()).collect();
        drop(ports);
        let folder = tempfile::tempdir().unwrap();
        let mut group = Self { folder, addresses, nodes: (0..count).map(|_| None).collect() };
        group.start_all().await;
        group
    }

    async fn start_all(&mut self) {
        let starts = (0..self.nodes.len()).map(|index| self.starting(index));
        let nodes = timeout(LONG, try_join_all(starts)).await.expect("it hangs").unwrap();
        self.nodes = nodes.into_iter().map(Some).collect();
        for node in self.nodes.iter().flatten() {
            timeout(LONG, node.ready()).await.expect("it hangs").unwrap();
        }
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.path().join(index.to_string())
    }

    fn builder(&self, index: usize) -> NodeBuilder {
        Node::builder(self.data(index))
            .listen(&*self.addresses[index])
            .heartbeat(HEARTBEAT)
            .map_size(64 << 20)
            .snapshot_every(50)
    }

    fn starting(&self, index: usize) -> impl Future<Output = Result<Node>> + use<> {
        self.builder(index).form(self.addresses.clone())
    }

    fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().expect("it runs")
    }

    async fn stop(&mut self, index: usize) {
        self.nodes[index].take().expect("it runs").shutdown().await.unwrap();
    }

    async fn restart(&mut self, index: usize) {
        let started = timeout(LONG, self.starting(index)).await.expect("it hangs");
        self.nodes[index] = Some(started.unwrap());
    }

    fn follower(&self) -> usize {
        let leads = |node: &Node| node.status().leader == Some(node.id());
        let nodes = self.nodes.iter().flatten();
        nodes.map(leads).position(|leads| !leads).expect("not all of them lead")
    }

    /// While a member is away the others write something, and in its state that is something else.
    async fn lead_astray(&mut self, index: usize) {
        self.stop(index).await;
        let other = self.node((index + 1) % self.nodes.len());
        let client = other.client();
        client.put("split", "right").await.unwrap();
        // It has applied it as well then, whoever leads.
        client.get("split").await.unwrap();
        let position = astray::applied(&other.shared().state);
        astray::apply(&self.data(index), position, Some(("split", "wrong")));
        self.restart(index).await;
    }

    async fn judged(&self, index: usize, verdict: impl Fn(&Verdict) -> bool) {
        let mut compared = self.node(index).shared().compared.subscribe();
        let judged = compared.wait_for(|found| verdict(found));
        timeout(LONG, judged).await.expect("it is never found").unwrap();
    }

    async fn shutdown(self) {
        for node in self.nodes.into_iter().flatten() {
            node.shutdown().await.unwrap();
        }
    }
}

async fn local(node: &Node, key: String) -> Result<Option<String>> {
    let read = node.client().get(key).consistency(Consistency::Serializable).await?;
    Ok(read.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
}

/// Writes on and on, and counts what was acknowledged.
async fn write(client: Client, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        let number = written.load(Ordering::Relaxed);
        client.put(format!("k{number}"), number.to_string()).await.expect("the others serve");
        written.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_state_differs_says_so_and_gets_that_of_another() {
    let mut group = Group::start(3).await;
    // More than one piece of it.
    group.node(0).client().put("large", "v".repeat(900 << 10)).await.unwrap();
    let astray = group.follower();
    let healthy = (astray + 1) % 3;
    group.lead_astray(astray).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = write(group.node(healthy).client(), Arc::clone(&stop), Arc::clone(&written));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(writing);

    let cause = timeout(LONG, group.node(astray).failed()).await.expect("it is never found");
    assert!(matches!(cause.reason(), Reason::StateDiffers { own, others, .. } if own != others));
    assert!(group.data(astray).join(MARK).exists(), "the next start has to know");
    let refused = local(group.node(astray), "split".to_owned()).await.unwrap_err();
    assert_eq!(refused.reason(), cause.reason());
    let refused = group.node(astray).client().get("split").await.unwrap_err();
    assert!(!refused.is_retryable(), "{refused:?}");
    assert!(group.node(astray).backup(Vec::new()).await.is_err(), "it is no state to keep");
    group.stop(astray).await;
    assert!(group.data(astray).join(MARK).exists());

    group.restart(astray).await;
    assert!(!group.data(astray).join(MARK).exists());
    assert_eq!(local(group.node(astray), "split".to_owned()).await.unwrap().unwrap(), "right");
    timeout(LONG, group.node(astray).ready()).await.expect("it hangs").unwrap();
    group.judged(astray, |found| *found == Verdict::Equal).await;
    stop.store(true, Ordering::Relaxed);
    tasks.join_next().await.expect("it was spawned").unwrap();

    // Nothing that was acknowledged is lost, and the states are the same.
    let node = group.node(astray);
    timeout(LONG, node.ready()).await.expect("it hangs").unwrap();
    let all = written.load(Ordering::Relaxed);
    assert!(all > 0);
    for number in 0..all {
        let read = local(node, format!("k{number}")).await.unwrap();
        assert_eq!(read, Some(number.to_string()), "of {all}");
    }
    let same = async {
        let hash = |index: usize| {
            (group.node(index).status().applied_index, group.node(index).status().state_hash)
        };
        while hash(astray) != hash(healthy) {
            tokio::time::sleep(HEARTBEAT).await;
        }
    };
    timeout(LONG, same).await.expect("they stay different");
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nobody_is_at_fault_and_all_say_so() {
    let mut group = Group::start(2).await;
    let astray = group.follower();
    group.stop(astray).await;
    group.stop(1 - astray).await;
    // Both get the next entry, and it is not the same one.
    let applied = [0, 1].map(|index| astray::applied_in(&group.data(index)));
    let last = applied.into_iter().max_by_key(|position| position.index).expect("there are two");
    let next = astray::next(last);
    astray::apply(&group.data(astray), next, Some(("split", "wrong")));
    astray::apply(&group.data(1 - astray), next, None);
    group.start_all().await;
    for index in 0..2 {
        group.judged(index, |found| matches!(found, Verdict::Undecided { .. })).await;
        assert!(group.node(index).status().states_differ_at.is_some());
        assert!(
            group.node(index).shared().failed.borrow().is_none(),
            "nobody can tell who is right"
        );
        group.node(index).client().put("k", "v").await.unwrap();
    }
    group.shutdown().await;
}

/// The mark alone counts, whatever is in it, and stays until there is another state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_not_trusted_is_not_opened_while_nobody_has_another() {
    let mut group = Group::start(3).await;
    group.node(0).client().put("k", "v").await.unwrap();
    for index in 0..3 {
        group.stop(index).await;
    }
    astray::distrust(&group.data(0));
    // It is no state any more that could be opened.
    std::fs::write(group.data(0).join("state-000001/data.mdb"), "rubbish").unwrap();
    let alone = group.builder(0).patience(HEARTBEAT).form(group.addresses.clone());
    let error = timeout(LONG, alone).await.expect("it waits for ever").unwrap_err();
    assert!(matches!(error.reason(), Reason::Unreachable { .. }), "{error:?}");
    assert!(group.data(0).join(MARK).exists());
    // Whoever gives up the waiting can begin anew.
    assert!(timeout(HEARTBEAT * 2, group.starting(0)).await.is_err());
    let again = async {
        loop {
            match group.starting(0).await {
                Err(error) if matches!(error.reason(), Reason::AlreadyOpen { .. }) => {}
                started => return started,
            }
        }
    };
    let others = try_join_all([group.starting(1), group.starting(2)]);
    let (first, others) = futures::join!(again, others);
    group.nodes = std::iter::once(first.unwrap()).chain(others.unwrap()).map(Some).collect();
    timeout(LONG, group.node(0).ready()).await.expect("it hangs").unwrap();
    assert_eq!(local(group.node(0), "k".to_owned()).await.unwrap().unwrap(), "v");
    assert!(!group.data(0).join(MARK).exists());
    group.shutdown().await;
}

/// It would ask for ever: nobody hands a state to whom the group has removed, and none of them ever will.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_removed_hears_so_and_waits_for_no_state() {
    let mut group = Group::start(3).await;
    let removed = group.follower();
    let (id, other) = (group.node(removed).id(), (removed + 1) % 3);
    group.stop(removed).await;
    astray::distrust(&group.data(removed));
    group.node(other).client().remove_member(id).await.unwrap();
    let both_know = async {
        for index in [other, (removed + 2) % 3] {
            while !group.node(index).shared().is_removed(id.get()) {
                tokio::time::sleep(HEARTBEAT).await;
            }
        }
    };
    timeout(LONG, both_know).await.expect("it stays");
    let starting = group.builder(removed).patience(LONG * 100).form(group.addresses.clone());
    let error = timeout(LONG, starting).await.expect("it waits").unwrap_err();
    assert_eq!(*error.reason(), Reason::MemberRemoved { node: id });
    assert!(group.data(removed).join(MARK).exists(), "its state is not to be opened all the same");
    group.shutdown().await;
}
