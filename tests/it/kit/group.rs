//! A group of nodes in this process.

use super::{HEARTBEAT, PATIENCE, addresses};
use futures::future::join_all;
use quorate::{Client, Node, NodeBuilder};
use std::path::PathBuf;
use std::time::Duration;

/// Three or so nodes on loopback, with their folders.
pub(crate) struct Nodes {
    folder: tempfile::TempDir,
    pub(crate) addresses: Vec<String>,
    nodes: Vec<Option<Node>>,
    snapshot_every: u64,
    heartbeat: Duration,
}

impl Nodes {
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, 20_000).await
    }

    /// Starts a group whose logs are cut after `snapshot_every` entries.
    pub(crate) async fn start_with(count: usize, snapshot_every: u64) -> Self {
        Self::with(count, snapshot_every, HEARTBEAT).await
    }

    /// Starts one that does not change its leader because the machine is busy.
    pub(crate) async fn start_steady(count: usize) -> Self {
        Self::with(count, 20_000, HEARTBEAT * 5).await
    }

    async fn with(count: usize, snapshot_every: u64, heartbeat: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nodes = (0..count).map(|_| None).collect();
        let addresses = addresses(count);
        let mut group = Self { folder, addresses, nodes, snapshot_every, heartbeat };
        let started =
            join_all((0..count).map(|node| group.builder(node).form(group.addresses.clone())));
        let started = started.await;
        for (node, started) in started.into_iter().enumerate() {
            group.nodes[node] = Some(started.unwrap());
        }
        for node in 0..count {
            group.node(node).ready().await.unwrap();
        }
        group
    }

    pub(crate) fn data(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    pub(crate) fn builder(&self, node: usize) -> NodeBuilder {
        Node::builder(self.data(node))
            .listen(&self.addresses[node])
            .heartbeat(self.heartbeat)
            .snapshot_every(self.snapshot_every)
    }

    pub(crate) fn node(&self, node: usize) -> &Node {
        self.nodes[node].as_ref().unwrap()
    }

    pub(crate) fn client(&self, node: usize) -> Client {
        self.node(node).client()
    }

    /// The node that leads, as most of them see it.
    pub(crate) async fn leader(&self) -> usize {
        self.until("there is a leader", || {
            let running = self.nodes.iter().flatten();
            running
                .filter_map(|node| {
                    let status = node.status();
                    (status.leader == Some(node.id())).then_some(status.id)
                })
                .next()
                .and_then(|id| {
                    self.nodes.iter().position(|node| node.as_ref().is_some_and(|it| it.id() == id))
                })
        })
        .await
    }

    /// Ends a node without a word, as a crash would.
    pub(crate) fn drop_node(&mut self, node: usize) {
        drop(self.nodes[node].take().unwrap());
    }

    pub(crate) async fn stop(&mut self, node: usize) {
        self.nodes[node].take().unwrap().shutdown().await.unwrap();
    }

    /// Starts a node again, as soon as its folder and port are free.
    pub(crate) async fn restart(&mut self, node: usize) {
        let started = tokio::time::Instant::now();
        loop {
            match self.builder(node).form(self.addresses.clone()).await {
                Ok(started) => {
                    self.nodes[node] = Some(started);
                    return;
                }
                Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks again and again until there is an answer.
    pub(crate) async fn until<T>(&self, what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
        let started = tokio::time::Instant::now();
        loop {
            if let Some(answer) = answer() {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "still waiting: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until all running nodes have applied the same, and returns whether their states are equal.
    pub(crate) async fn are_equal(&self) -> bool {
        self.until("all have applied the same", || {
            let all: Vec<_> = self.nodes.iter().flatten().map(Node::status).collect();
            let same = all.iter().all(|it| it.applied_index == all[0].applied_index);
            same.then(|| all.iter().all(|it| it.state_hash == all[0].state_hash))
        })
        .await
    }

    pub(crate) async fn shutdown(mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_some() {
                self.stop(node).await;
            }
        }
    }
}
