//! Groups of three in this process, each member with a folder and an address of its own.

use super::HEARTBEAT;
use super::{PATIENCE, addresses};
use futures::future::join_all;
use quorate::{Client, ErrorKind, Node, NodeBuilder, NodeId, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// A group of three, of which some may be down.
pub(crate) struct Trio {
    folder: TempDir,
    /// Sorted, so that member 0 is the founder that draws up the record.
    pub(crate) addresses: Vec<String>,
    pub(crate) nodes: [Option<Node>; 3],
}

impl Trio {
    /// A group that stands, and has a leader that all know.
    pub(crate) async fn start() -> Self {
        let mut addresses = addresses(3);
        addresses.sort();
        Self::start_at(addresses).await
    }

    pub(crate) async fn start_at(addresses: Vec<String>) -> Self {
        let mut trio =
            Self { folder: tempfile::tempdir().unwrap(), addresses, nodes: [const { None }; 3] };
        trio.start_all().await;
        trio
    }

    /// Starts all that are down, and waits until they are ready.
    pub(crate) async fn start_all(&mut self) {
        let down = (0..3).filter(|member| self.nodes[*member].is_none()).collect();
        self.start_these(down).await;
    }

    /// The same, but for a member whose place is taken.
    pub(crate) async fn start_all_but(&mut self, gone: usize) {
        let down = |member: &usize| self.nodes[*member].is_none() && *member != gone;
        self.start_these((0..3).filter(down).collect()).await;
    }

    async fn start_these(&mut self, down: Vec<usize>) {
        let started = join_all(down.iter().map(|member| self.try_start(*member))).await;
        for (member, node) in down.into_iter().zip(started) {
            self.nodes[member] = Some(node.unwrap());
        }
        for node in self.nodes.iter().flatten() {
            node.ready().await.unwrap();
        }
    }

    pub(crate) fn data(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("node-{member}"))
    }

    /// What a member is started with, but for the list.
    pub(crate) fn builder(&self, member: usize) -> NodeBuilder {
        Node::builder(self.data(member)).heartbeat(HEARTBEAT).listen(&self.addresses[member])
    }

    pub(crate) async fn try_start(&self, member: usize) -> Result<Node> {
        self.builder(member).form(self.addresses.clone()).await
    }

    pub(crate) fn node(&self, member: usize) -> &Node {
        self.nodes[member].as_ref().expect("the member runs")
    }

    pub(crate) fn client(&self, member: usize) -> Client {
        self.node(member).client()
    }

    /// The group's id, as all members that run have it.
    pub(crate) fn group(&self) -> u128 {
        let mut groups = self.nodes.iter().flatten().map(|node| node.status().group);
        let first = groups.next().expect("a member runs");
        assert!(groups.all(|group| group == first), "the members are of different groups");
        first
    }

    /// Who leads, in which term, once all members that run agree.
    pub(crate) async fn reign(&self) -> (NodeId, u64) {
        let started = Instant::now();
        loop {
            let mut views = self.nodes.iter().flatten().map(|node| node.status());
            let first = views.next().expect("a member runs");
            if let Some(leader) = first.leader
                && views.all(|view| (view.leader, view.term) == (first.leader, first.term))
            {
                return (leader, first.term);
            }
            assert!(started.elapsed() < PATIENCE, "still waiting for a leader that all know");
            sleep(HEARTBEAT / 5).await;
        }
    }

    pub(crate) async fn stop(&mut self, member: usize) {
        self.nodes[member].take().expect("the member runs").shutdown().await.unwrap();
    }

    pub(crate) async fn shutdown(self) {
        for node in self.nodes.into_iter().flatten() {
            node.shutdown().await.unwrap();
        }
    }

    /// Loses the data of a member that is down.
    pub(crate) fn wipe(&self, member: usize) {
        std::fs::remove_dir_all(self.data(member)).unwrap();
    }
}

/// Writers that go on in the background, a few writes at a time, and of which none may fail.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(clients: impl IntoIterator<Item = Client>) -> Self {
        let (stop, written) = (Arc::default(), Arc::default());
        let mut writers = JoinSet::new();
        for (writer, client) in clients.into_iter().enumerate() {
            writers.spawn(write(client, writer, Arc::clone(&stop), Arc::clone(&written)));
        }
        Self { stop, written, writers }
    }

    /// Waits until so many more writes were acknowledged.
    pub(crate) async fn goes_on(&self, more: u64) {
        let target = self.written.load(Ordering::SeqCst) + more;
        let started = Instant::now();
        while self.written.load(Ordering::SeqCst) < target {
            assert!(started.elapsed() < PATIENCE, "writes have stopped");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends the writers, and shows that each acknowledged write is there and that none has failed.
    pub(crate) async fn end(mut self, reader: &Client) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
        let found = reader.range(quorate::KeyRange::prefix("load/")).count_only().await.unwrap();
        assert_eq!(found.count, self.written.load(Ordering::SeqCst), "a write is lost");
    }
}

async fn write(client: Client, writer: usize, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let result = client.put(format!("load/{writer}/{number}"), "v").await;
        if let Err(error) = result {
            assert_ne!(error.kind(), ErrorKind::Closed, "the test has ended before its load");
            panic!("a write has failed: {error}");
        }
        written.fetch_add(1, Ordering::SeqCst);
        number += 1;
        sleep(Duration::from_millis(5)).await;
    }
}
