//! Members whose states differ, because one of them has applied something else than the others.

use super::*;
use crate::api::{CLIENT_AGES, Command, Proposal};
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

/// Through a member that does not lead: that a client is forgotten is an answer, and no reason to propose the same again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_was_forgotten_hears_so_wherever_it_asks() {
    let group = Group::start(3).await;
    let follower = group.follower();
    let client = group.node(follower).client();
    client.put("k", "1").await.unwrap();
    let leader = (0..3).find(|it| group.node(*it).shared().leadership().is_me).unwrap();
    let shared = group.node(leader).shared();
    for _ in 0..=CLIENT_AGES {
        let deciding_term = shared.leadership().term;
        let age = Proposal::from(Command::AgeClients { deciding_term });
        shared.raft.client_write(age.into()).await.unwrap();
    }
    let before = group.node(leader).status().applied_index.unwrap();
    client.put("k", "2").await.unwrap();
    let entries = group.node(leader).status().applied_index.unwrap() - before;
    assert_eq!(entries, 3, "the refusal, a name, and the write");
    assert_eq!(client.get("k").await.unwrap().unwrap().version, 2);
    group.shutdown().await;
}

/// A member that has failed still answers, and says so: a client of another process goes elsewhere with its writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_leaves_a_member_that_has_failed() {
    let group = Group::start(3).await;
    let failing = group.follower();
    let client = Client::connect([group.addresses[failing].clone()]).await.unwrap();
    client.put("k", "0").await.unwrap();
    disk(&group.data(failing)).set(Disk::Fails);
    for number in 1..=20 {
        let before = client.put("k", format!("{number}")).prev().await.unwrap().1.unwrap();
        assert_eq!(before.value, format!("{}", number - 1));
    }
    timeout(LONG, group.node(failing).failed()).await.expect("it goes on");
    client.put("k", "last").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap().version, 22);
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

/// A group that has changed its leader meanwhile is of a later term than the vote of whoever was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_a_later_term_brings_the_vote_for_it() {
    let mut group = Group::start(3).await;
    let away = group.follower();
    let others = [(away + 1) % 3, (away + 2) % 3];
    let identity = group.node(away).shared().identity;
    group.stop(away).await;
    let before = astray::applied_in(&group.data(away)).term;
    for other in others {
        group.stop(other).await;
    }
    let again = try_join_all(others.map(|other| group.starting(other))).await.unwrap();
    for (other, node) in others.into_iter().zip(again) {
        timeout(LONG, node.ready()).await.expect("it hangs").unwrap();
        group.nodes[other] = Some(node);
    }
    group.node(others[0]).client().put("k", "v").await.unwrap();
    astray::distrust(&group.data(away));
    let members = group.node(others[0]).shared().membership();
    let (vote, state) = astray::reseed(&group.data(away), identity, HEARTBEAT, &members).await;
    assert!(state > before, "they have elected somebody");
    assert!(vote >= state, "of term {vote}, and the state of term {state}");
    group.restart(away).await;
    timeout(LONG, group.node(away).ready()).await.expect("it hangs").unwrap();
    group.shutdown().await;
}

/// Has a byte of a value change wherever it stands in the file of a state, in place.
fn rot(data: &Path, value: &str) {
    use std::os::unix::fs::FileExt;
    let current = std::fs::read_to_string(data.join("CURRENT")).unwrap();
    // A checksum follows.
    let name = current.split(' ').next().unwrap();
    let path = data.join(name).join("data.mdb");
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let is_there = |at: &usize| bytes[*at..].starts_with(value.as_bytes());
    let places: Vec<usize> = (0..bytes.len()).filter(is_there).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| file.write_all_at(b"?", *at as u64).unwrap());
}

fn says_what_to_do(error: &Error) {
    assert!(matches!(error.reason(), Reason::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("start this member again"), "{error}");
}

const VALUE: &str = "a value that stands in the file as it is";

/// Who runs into a bit that has flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finder {
    Start,
    Reader,
    /// Nobody reads what it is in.
    Scrub,
}

/// A bit may flip while the member is away, or under it. Either way it is said, and the next start mends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_state_is_damaged_says_so_and_gets_that_of_another() {
    let mut group = Group::start(3).await;
    group.node(0).client().put("k", VALUE).await.unwrap();
    for finder in [Finder::Start, Finder::Reader, Finder::Scrub] {
        let damaged = group.follower();
        timeout(LONG, group.node(damaged).ready()).await.expect("it hangs").unwrap();
        if finder != Finder::Start {
            group.node(damaged).backup(Vec::new()).await.unwrap();
            rot(&group.data(damaged), VALUE);
            if finder == Finder::Reader {
                let read = group.node(damaged).backup(Vec::new()).await.unwrap_err();
                assert!(matches!(read.reason(), Reason::Corrupt { .. }), "{read:?}");
            } else {
                group.node(damaged).shared().state.doubt();
            }
            let cause = timeout(LONG, group.node(damaged).failed()).await.expect("it goes on");
            says_what_to_do(&cause);
            group.stop(damaged).await;
        } else {
            group.stop(damaged).await;
            rot(&group.data(damaged), VALUE);
            let refused = timeout(LONG, group.starting(damaged)).await.expect("it hangs");
            says_what_to_do(&refused.unwrap_err());
        }
        assert!(group.data(damaged).join(MARK).exists());
        let acknowledged = format!("after, {finder:?}");
        group.node((damaged + 1) % 3).client().put("after", acknowledged.clone()).await.unwrap();
        group.restart(damaged).await;
        assert!(!group.data(damaged).join(MARK).exists());
        timeout(LONG, group.node(damaged).ready()).await.expect("it hangs").unwrap();
        let read = async |key: &str| local(group.node(damaged), key.to_owned()).await.unwrap();
        assert_eq!(read("k").await.as_deref(), Some(VALUE));
        assert_eq!(read("after").await, Some(acknowledged));
        group.judged(damaged, |found| *found == Verdict::Equal).await;
    }
    group.shutdown().await;
}

/// Rows may be missing, and whoever reads would not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_that_is_not_right_is_not_opened_though_nobody_gives_another() {
    let mut group = Group::start(3).await;
    group.node(0).client().put("k", VALUE).await.unwrap();
    // A majority has it; this one has to have it as well.
    timeout(LONG, group.node(0).ready()).await.expect("it hangs").unwrap();
    for member in 0..3 {
        group.stop(member).await;
    }
    rot(&group.data(0), VALUE);
    astray::distrust_as_damaged(&group.data(0));
    let start = group.builder(0).patience(HEARTBEAT * 5).form(group.addresses.clone());
    let error = timeout(LONG, start).await.expect("it hangs").unwrap_err();
    assert!(matches!(error.reason(), Reason::Unreachable { .. }), "{error:?}");
    assert!(group.data(0).join(MARK).exists(), "the next start asks again");
}

/// All may have marked theirs, one after the other, and somebody has put the files right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_in_whose_place_nobody_gives_another_is_opened_again() {
    let mut group = Group::start(3).await;
    group.node(0).client().put("k", VALUE).await.unwrap();
    for member in 0..3 {
        group.stop(member).await;
        astray::distrust_as_damaged(&group.data(member));
    }
    let start =
        |member: usize| group.builder(member).patience(HEARTBEAT * 5).form(group.addresses.clone());
    let nodes = timeout(LONG, try_join_all((0..3).map(start))).await.expect("it hangs").unwrap();
    for (member, node) in nodes.iter().enumerate() {
        timeout(LONG, node.ready()).await.expect("it hangs").unwrap();
        assert_eq!(local(node, "k".to_owned()).await.unwrap().as_deref(), Some(VALUE));
        assert!(!group.data(member).join(MARK).exists());
    }
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// The log is nobody else's, and a group of one has nobody who could help it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_is_not_given_up_for_a_damaged_log_or_where_there_is_no_other() {
    let mut group = Group::start(3).await;
    group.node(0).client().put("k", VALUE).await.unwrap();
    group.stop(0).await;
    let logs = std::fs::read_dir(group.data(0).join("raft")).unwrap();
    for log in logs.map(|entry| entry.unwrap().path()) {
        let mut bytes = std::fs::read(&log).unwrap();
        if let Some(at) = bytes.windows(VALUE.len()).position(|it| it == VALUE.as_bytes()) {
            bytes[at] ^= 1;
            std::fs::write(&log, bytes).unwrap();
        }
    }
    for _ in 0..2 {
        let refused = timeout(LONG, group.starting(0)).await.expect("it hangs").unwrap_err();
        assert!(matches!(refused.reason(), Reason::Corrupt { .. }), "{refused:?}");
        assert!(!refused.to_string().contains("start this member again"), "{refused}");
        assert!(!group.data(0).join(MARK).exists());
    }
    group.shutdown().await;

    let mut alone = Group::start(1).await;
    alone.node(0).client().put("k", VALUE).await.unwrap();
    alone.stop(0).await;
    rot(&alone.data(0), VALUE);
    for _ in 0..2 {
        let refused = timeout(LONG, alone.starting(0)).await.expect("it hangs").unwrap_err();
        assert!(matches!(refused.reason(), Reason::Corrupt { .. }), "{refused:?}");
        assert!(!alone.data(0).join(MARK).exists());
    }
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

/// A backup of what is left is why anybody comes to it, and its other keys are asked for all the time.
#[tokio::test]
async fn the_last_member_goes_on_with_rows_that_are_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let node = solo(folder.path()).await.unwrap();
    node.client().put("k", VALUE).await.unwrap();
    node.client().put("other", "whole").await.unwrap();
    node.backup(Vec::new()).await.unwrap();
    rot(folder.path(), VALUE);
    for _ in 0..2 {
        let refused = node.backup(Vec::new()).await.unwrap_err();
        assert!(matches!(refused.reason(), Reason::Corrupt { .. }), "{refused:?}");
    }
    assert_eq!(local(&node, "other".to_owned()).await.unwrap().as_deref(), Some("whole"));
    node.client().put("other", "as before").await.unwrap();
    node.shutdown().await.unwrap();
}
