//! Members that come and go while the group runs.

use crate::kit::trio::{Load, Trio};
use crate::kit::{HEARTBEAT, PATIENCE, addresses};
use quorate::{Client, ErrorKind, KeyRange, Node, NodeBuilder, NodeId, Reason, Status};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// A node that is no founder: its folder and its address.
struct Newcomer {
    folder: TempDir,
    address: String,
}

impl Newcomer {
    fn new() -> Self {
        Self::at(addresses(1).remove(0))
    }

    fn at(address: String) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), address }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    fn builder(&self) -> NodeBuilder {
        Node::builder(self.data()).listen(&self.address).heartbeat(HEARTBEAT).patience(PATIENCE)
    }

    async fn join(&self, seeds: &[String]) -> Node {
        let node = self.builder().join(seeds).await.unwrap();
        node.ready().await.unwrap();
        node
    }
}

/// Who votes, in order.
async fn voters(client: &Client) -> Vec<NodeId> {
    let members = client.members().await.unwrap();
    members.into_iter().filter(|it| it.is_voter).map(|it| it.id).collect()
}

/// Waits until all have applied the same, and shows that their states are equal.
async fn are_equal(nodes: &[&Node]) {
    let started = Instant::now();
    loop {
        let all: Vec<Status> = nodes.iter().map(|node| node.status()).collect();
        if all.iter().all(|it| it.applied_index == all[0].applied_index) {
            assert!(all.iter().all(|it| it.state_hash == all[0].state_hash), "{all:?}");
            return;
        }
        assert!(started.elapsed() < PATIENCE, "they do not come to the same: {all:?}");
        sleep(HEARTBEAT / 5).await;
    }
}

async fn fails(node: &Node) -> Reason {
    timeout(PATIENCE, node.failed()).await.expect("the node ends").reason().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_three_becomes_one_of_four() {
    let trio = Trio::start().await;
    trio.client(0).put("before", "v").await.unwrap();
    let newcomer = Newcomer::new();
    let node = newcomer.join(&trio.addresses).await;
    assert!(node.id().get() > 1023, "{:?}", node.id());
    assert_eq!(node.status().group, trio.group());
    assert_eq!(node.client().get("before").await.unwrap().unwrap().value, "v");

    // It has all data, and does not count yet.
    let founders = voters(&trio.client(1)).await;
    assert_eq!(founders.len(), 3);
    let members = node.client().members().await.unwrap();
    let new = members.iter().find(|it| it.id == node.id()).unwrap();
    assert!(!new.is_voter && !new.is_leader && new.address == newcomer.address, "{new:?}");
    assert_eq!(members.iter().filter(|it| it.is_leader).count(), 1);

    trio.client(1).promote_member(node.id()).await.unwrap();
    trio.client(2).promote_member(node.id()).await.expect("it is one already");
    assert_eq!(voters(&node.client()).await, [&founders[..], &[node.id()]].concat());
    node.client().put("after", "v").await.unwrap();
    are_equal(&[trio.node(0), trio.node(1), trio.node(2), &node]).await;

    // It is the same member after a restart, whatever it is told.
    let id = node.id();
    node.shutdown().await.unwrap();
    let list = [&trio.addresses[..], std::slice::from_ref(&newcomer.address)].concat();
    let node = newcomer.builder().form(list).await.unwrap();
    assert_eq!(node.id(), id);
    node.ready().await.unwrap();
    node.shutdown().await.unwrap();
    let node = newcomer.builder().join(["127.0.0.1:9"]).await.expect("it asks nobody");
    assert_eq!(node.id(), id);
    node.ready().await.unwrap();
    are_equal(&[trio.node(0), trio.node(1), trio.node(2), &node]).await;
    node.shutdown().await.unwrap();
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_data_was_lost_is_replaced_under_load() {
    let mut trio = Trio::start().await;
    let (leader, _) = trio.reign().await;
    let lost = (0..3).find(|member| trio.node(*member).id() != leader).unwrap();
    let id = trio.node(lost).id();
    let others: Vec<usize> = (0..3).filter(|member| *member != lost).collect();
    let load = Load::start(others.iter().map(|member| trio.client(*member)));
    load.goes_on(20).await;
    trio.stop(lost).await;
    // One day it is found again.
    let attic = tempfile::tempdir().unwrap();
    std::fs::rename(trio.data(lost), attic.path().join("node")).unwrap();

    // Under its old id it does not come back.
    let refused = trio.try_start(lost).await.unwrap_err();
    assert_eq!(*refused.reason(), Reason::IncarnationRefused { node: id });
    trio.wipe(lost);

    // As somebody new, at the same address, it does.
    let newcomer = Newcomer::at(trio.addresses[lost].clone());
    let node = newcomer.join(&trio.addresses).await;
    let client = trio.client(others[0]);
    client.replace_member(id).await.unwrap();
    client.replace_member(id).with(node.id()).await.expect("it has happened");
    let now = voters(&client).await;
    assert!(now.len() == 3 && now.contains(&node.id()) && !now.contains(&id), "{now:?}");
    load.goes_on(20).await;
    load.end(&node.client()).await;
    are_equal(&[trio.node(others[0]), trio.node(others[1]), &node]).await;

    // The new one counts: it makes a majority with one of the others.
    trio.stop(others[0]).await;
    node.client().put("with the new one", "v").await.unwrap();
    node.shutdown().await.unwrap();
    trio.start_all_but(lost).await;

    // What was lost and is found is refused, and says why.
    let old = Node::builder(attic.path().join("node")).listen(&trio.addresses[lost]);
    let old = old.heartbeat(HEARTBEAT).form(trio.addresses.clone()).await.unwrap();
    assert_eq!(fails(&old).await, Reason::MemberRemoved { node: id });
    assert_eq!(*old.client().put("k", "v").await.unwrap_err().reason(), Reason::MemberRemoved { node: id });
    old.shutdown().await.unwrap();
    trio.client(others[0]).put("goes on", "v").await.unwrap();
    trio.shutdown().await;
}
