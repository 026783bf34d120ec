//! Members that come and go while the group runs.

use crate::kit::group::Nodes;
use crate::kit::trio::{Load, Trio};
use crate::kit::{HEARTBEAT, PATIENCE, addresses};
use quorate::{Backup, Client, KeyRange, Node, NodeBuilder, NodeId, Reason, Status};
use std::path::PathBuf;
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

/// Whoever has connected follows the members, though none is left of those that were there then; and a change whose answer is
/// lost, because it removes the member that was asked, is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_outlives_all_members_that_it_was_told_of() {
    let mut group = Nodes::start(3).await;
    let seeds = group.addresses.clone();
    let client = Client::connect(seeds.clone()).await.unwrap();
    let session = client.session(PATIENCE).await.unwrap();
    let mut watch = client.watch("k").await.unwrap();
    let mut newcomers = Vec::new();
    for old in 0..3 {
        let newcomer = Newcomer::new();
        let node = newcomer.join(&seeds[old..]).await;
        let (id, is_voter) = (group.node(old).id(), node.id());
        client.replace_member(id).with(is_voter).timeout(PATIENCE).await.unwrap();
        assert_eq!(voters(&client).await.len(), 3);
        // Its process goes on for a while, and says that it was removed.
        assert!(matches!(fails(group.node(old)).await, Reason::MemberRemoved { .. }));
        client.put("k", format!("{old}")).timeout(PATIENCE).await.unwrap();
        assert_eq!(watch.recv().await.unwrap().events.len(), 1);
        group.drop_node(old);
        newcomers.push((newcomer, node));
    }
    client.put("k", "all").await.unwrap();
    let seen = timeout(PATIENCE, watch.recv()).await.expect("the watch goes on").unwrap();
    assert_eq!(seen.events.len(), 1);
    assert_eq!(client.get("k").await.unwrap().unwrap().version, 4);
    assert!(session.is_alive());
    for (_, node) in newcomers {
        node.shutdown().await.unwrap();
    }
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
    // Without a name it could as well have been removed.
    let again = client.replace_member(id).await.unwrap_err();
    assert_eq!(*again.reason(), Reason::MemberNotFound { node: id });
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
    old.shutdown().await.unwrap();
    trio.client(others[0]).put("goes on", "v").await.unwrap();
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_twice_is_one_member() {
    let trio = Trio::start().await;
    let newcomer = Newcomer::new();
    // Without time to hear the answer, or perhaps with.
    let hurried = newcomer.builder().patience(HEARTBEAT);
    drop(timeout(HEARTBEAT, hurried.join(&trio.addresses)).await);
    let node = newcomer.join(&trio.addresses).await;
    let members = trio.client(0).members().await.unwrap();
    assert_eq!(
        members.iter().filter(|it| it.address == newcomer.address).count(),
        1,
        "{members:?}"
    );
    assert_eq!(members.len(), 4);

    // What was removed is nobody any more, and its folder says so after a restart as well.
    let id = node.id();
    let client = node.client();
    client.put("watched", "before").await.unwrap();
    let mut watch = client.watch(KeyRange::key("watched")).await.unwrap();
    trio.client(0).remove_member(id).await.unwrap();
    let ended = timeout(HEARTBEAT * 200, watch.recv()).await.expect("nothing will come");
    assert_eq!(*ended.unwrap_err().reason(), Reason::MemberRemoved { node: id });
    trio.client(1).remove_member(id).await.expect("it is gone already");
    assert_eq!(fails(&node).await, Reason::MemberRemoved { node: id });
    node.shutdown().await.unwrap();
    let node = newcomer.builder().join(&trio.addresses).await.unwrap();
    assert_eq!(node.id(), id);
    let error = node.ready().await.unwrap_err();
    assert_eq!(*error.reason(), Reason::MemberRemoved { node: id });
    node.shutdown().await.unwrap();

    // An empty folder at the same address is somebody new.
    std::fs::remove_dir_all(newcomer.data()).unwrap();
    let node = newcomer.join(&trio.addresses).await;
    assert!(node.id() > id, "an id is never used again");
    node.client().put("k", "v").await.unwrap();
    are_equal(&[trio.node(0), trio.node(1), trio.node(2), &node]).await;
    node.shutdown().await.unwrap();
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_would_hurt_are_refused() {
    let mut trio = Trio::start().await;
    let client = trio.client(0);
    let ids = voters(&client).await;
    let missing = client.promote_member(99).await.unwrap_err();
    assert_eq!(*missing.reason(), Reason::MemberNotFound { node: 99.into() });
    let missing = client.remove_member(99).await.unwrap_err();
    assert_eq!(*missing.reason(), Reason::MemberNotFound { node: 99.into() });
    let nobody = client.replace_member(ids[2]).await.unwrap_err();
    assert!(matches!(nobody.reason(), Reason::BadMembers { .. }), "{nobody}");

    // A learner that has gone cannot be made a voter.
    let newcomer = Newcomer::new();
    let node = newcomer.join(&trio.addresses).await;
    let id = node.id();
    node.shutdown().await.unwrap();
    let is_silent = async || {
        let members = client.members().await.unwrap();
        let learner = members.into_iter().find(|it| it.id == id).unwrap();
        learner.silent_for.is_none_or(|silent| silent > HEARTBEAT * 10)
    };
    let started = Instant::now();
    while !is_silent().await {
        assert!(started.elapsed() < PATIENCE, "it is still heard of");
        sleep(HEARTBEAT).await;
    }
    // Whose time is up in the middle of an attempt hears only that.
    let error = loop {
        let error = client.promote_member(id).timeout(HEARTBEAT * 4).await.unwrap_err();
        if !matches!(error.reason(), Reason::DeadlinePassed { .. }) {
            break error;
        }
        assert!(started.elapsed() < PATIENCE, "it never says why");
    };
    assert_eq!(*error.reason(), Reason::NotCaughtUp { node: id, behind: None });
    assert!(error.is_retryable());

    // With one of three gone, neither of the others may go.
    trio.stop(2).await;
    let refused = client.remove_member(ids[1]).await.unwrap_err();
    assert!(matches!(refused.reason(), Reason::QuorumAtRisk { .. }), "{refused}");
    assert!(!refused.is_retryable() && !refused.may_have_applied());
    client.put("k", "v").await.unwrap();
    // The one that is gone may.
    client.remove_member(ids[2]).await.unwrap();
    let nobody = client.replace_member(ids[2]).await.expect_err("nobody came in its place");
    assert_eq!(*nobody.reason(), Reason::MemberNotFound { node: ids[2] });
    assert_eq!(voters(&client).await, ids[..2]);
    client.put("k", "w").await.unwrap();
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_and_ends() {
    let mut trio = Trio::start().await;
    let (leader, _) = trio.reign().await;
    let member = (0..3).find(|member| trio.node(*member).id() == leader).unwrap();
    let others: Vec<usize> = (0..3).filter(|other| *other != member).collect();
    let load = Load::start(others.iter().map(|other| trio.client(*other)));
    load.goes_on(10).await;
    trio.client(member).remove_member(leader).await.unwrap();
    assert_eq!(fails(trio.node(member)).await, Reason::MemberRemoved { node: leader });
    load.goes_on(10).await;
    load.end(&trio.client(others[0])).await;
    assert_eq!(voters(&trio.client(others[1])).await.len(), 2);
    trio.stop(member).await;
    are_equal(&[trio.node(others[0]), trio.node(others[1])]).await;
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_belongs_to_the_group_gets_in() {
    let trio = Trio::start().await;
    let newcomer = Newcomer::new();
    let timing = newcomer.builder().heartbeat(HEARTBEAT * 2).join(&trio.addresses).await;
    assert_eq!(*timing.unwrap_err().reason(), Reason::TimingDiffers);
    let name = newcomer.builder().group_name("another").join(&trio.addresses).await.unwrap_err();
    assert!(matches!(name.reason(), Reason::FoundersDiffer { .. }), "{name}");
    let alone = newcomer.builder().join([&newcomer.address]).await.unwrap_err();
    assert!(matches!(alone.reason(), Reason::BadMembers { .. }), "{alone}");
    // What is sent to it would come to another, founder or not, leader or not.
    for taken in &trio.addresses {
        let twice = newcomer.builder().advertise(taken).join(&trio.addresses);
        let twice = timeout(PATIENCE, twice).await.expect("it waits for ever").unwrap_err();
        assert!(matches!(twice.reason(), Reason::BadMembers { .. }), "{twice}");
        assert!(twice.to_string().contains(&format!("is at {taken} and answers")), "{twice}");
        assert!(!twice.is_retryable(), "{twice}");
    }
    let silent = newcomer.builder().patience(HEARTBEAT).join(["127.0.0.1:9"]).await.unwrap_err();
    assert!(matches!(silent.reason(), Reason::Unreachable { .. }), "{silent}");

    let solo = tempfile::tempdir().unwrap();
    let solo = Node::builder(solo.path()).listen("127.0.0.1:0").heartbeat(HEARTBEAT);
    let solo = solo.solo().await.unwrap();
    let seed = solo.local_address().unwrap().to_string();
    let refused = newcomer.builder().join([seed]).await.unwrap_err();
    assert!(matches!(refused.reason(), Reason::FoundersDiffer { .. }), "{refused}");
    solo.shutdown().await.unwrap();
    assert_eq!(trio.client(0).members().await.unwrap().len(), 3, "nobody was taken in");

    // A founder's folder is a founder's, however it is started.
    let mut trio = trio;
    let id = trio.node(1).id();
    trio.stop(1).await;
    let node = trio.builder(1).join(&trio.addresses).await.unwrap();
    assert_eq!(node.id(), id);
    trio.nodes[1] = Some(node);
    trio.node(1).ready().await.unwrap();
    trio.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_a_group_that_has_cut_its_log_gets_a_snapshot() {
    let group = Nodes::start_with(3, 100).await;
    let client = group.client(0);
    for number in 0..400 {
        client.put(format!("k{}", number % 50), format!("{number}")).await.unwrap();
    }
    let newcomer = Newcomer::new();
    let node = newcomer.builder().snapshot_every(100).join(&group.addresses).await.unwrap();
    node.ready().await.unwrap();
    client.promote_member(node.id()).await.unwrap();
    let read = node.client().range(KeyRange::prefix("k")).await.unwrap();
    assert_eq!(read.count, 50);
    are_equal(&[group.node(0), group.node(1), group.node(2), &node]).await;
    node.shutdown().await.unwrap();
    group.shutdown().await;
}

/// The log of such a group does not lead to its state.
#[tokio::test(flavor = "multi_thread")]
async fn who_joins_a_group_that_began_with_a_backup_has_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = Node::builder(folder.path().join("source")).solo().await.unwrap();
    for number in 0..20 {
        source.client().put(format!("k{number}"), "v").await.unwrap();
    }
    let mut backup = Vec::new();
    source.backup(&mut backup).await.unwrap();
    source.shutdown().await.unwrap();
    let path = folder.path().join("backup");
    std::fs::write(&path, backup).unwrap();

    let addresses = addresses(3);
    let start = async |founder: usize| {
        let data = folder.path().join(format!("founder-{founder}"));
        Backup::restore_with(&path, &data, 1000).await.unwrap();
        let builder = Node::builder(data).listen(&addresses[founder]).heartbeat(HEARTBEAT);
        builder.form(addresses.clone()).await.unwrap()
    };
    let (first, second, third) = futures::join!(start(0), start(1), start(2));
    let newcomer = Newcomer::new();
    // At once, before anybody has cut the log.
    let node = newcomer.join(&addresses).await;
    assert_eq!(node.client().range(KeyRange::prefix("k")).await.unwrap().count, 20);
    first.client().put("after", "v").await.unwrap();
    are_equal(&[&first, &second, &third, &node]).await;
    second.client().promote_member(node.id()).await.unwrap();

    // And a restored folder does not join anything.
    let restored = Newcomer::new();
    Backup::restore_with(&path, restored.data(), 1000).await.unwrap();
    let refused = restored.builder().join(&addresses).await.unwrap_err();
    assert!(matches!(refused.reason(), Reason::BadMembers { .. }), "{refused}");
    for node in [first, second, third, node] {
        node.shutdown().await.unwrap();
    }
}
