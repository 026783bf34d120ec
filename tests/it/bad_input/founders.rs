//! Lists of members that are wrong, and founders whose folder was wiped.

use super::{Kept, builder, refused, refused_for_now};
use crate::kit::HEARTBEAT;
use crate::kit::trio::Trio;
use crate::kit::{PATIENCE, addresses};
use quorate::{Consistency, Error, ErrorKind, Node, NodeId, Reason, Result};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

/// How long a founder waits in these tests for others who are not there.
const SHORT: Duration = Duration::from_millis(200);

async fn form(folder: &Path, own: &str, list: &[&String]) -> Result<Node> {
    builder(folder).listen(own).patience(SHORT).form(list.iter().copied()).await
}

fn is_bad_list(result: Result<Node>, text: &str) {
    let error = refused(result, ErrorKind::InvalidInput, text);
    assert!(matches!(error.reason(), Reason::BadMembers { .. }), "{error:?}");
}

#[tokio::test]
async fn a_list_that_makes_no_sense_is_refused_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut found = addresses(3);
    found.sort();
    let [a, b, c] = &found[..] else { unreachable!() };
    let text = format!("this node's own address {a} is not among the members {b}, {c}");
    is_bad_list(form(&data, a, &[b, c]).await, &text);
    let text = format!("this node's own address {a} is not among the members");
    is_bad_list(form(&data, a, &[]).await, &text);
    is_bad_list(form(&data, a, &[a, b, b]).await, &format!("{b} is listed twice"));
    is_bad_list(form(&data, a, &[a, b, a]).await, &format!("{a} is listed twice"));
    let many: Vec<String> = (1..=1024).map(|port| format!("127.0.0.1:{port}")).collect();
    let many: Vec<&String> = many.iter().chain([a]).collect();
    is_bad_list(form(&data, a, &many).await, "1025 founders are more than 1023");
    // What counts is the address under which the others reach it.
    let advertised = builder(&data).listen(a).advertise("127.0.0.1:1").form([a, b]).await;
    is_bad_list(advertised, "own address 127.0.0.1:1 is not among the members");
    for wrong in ["nowhere", "127.0.0.1:", "127.0.0.1:99999", ":1"] {
        let wrong = wrong.to_owned();
        let error = refused(form(&data, a, &[a, &wrong]).await, ErrorKind::InvalidInput, &wrong);
        assert!(matches!(error.reason(), Reason::BadAddress { .. }), "{error:?}");
    }
    assert!(!data.exists(), "nothing was begun");
}

/// One process under two names would be two voters.
#[tokio::test]
async fn a_founder_that_is_listed_under_two_names_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let address = {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        port.local_addr().unwrap()
    };
    let own = address.to_string();
    let alias = format!("localhost:{}", address.port());
    let error = form(folder.path(), &own, &[&own, &alias]).await.unwrap_err();
    // Where "localhost" is another host first, it is merely not reached.
    if error.kind() != ErrorKind::Unavailable {
        let text = "are one and the same node";
        is_bad_list(Err(error), text);
    }
}

/// Members that do not agree on who founds the group found none, and each is told whose list is another.
#[tokio::test]
async fn founders_with_different_lists_are_both_told() {
    let folders: Vec<TempDir> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let found = addresses(3);
    let [a, b, c] = &found[..] else { unreachable!() };
    for _ in 0..5 {
        let patient = |folder: &TempDir, own: &String, list: &[&String]| {
            let patience = Duration::from_secs(20);
            let list: Vec<String> = list.iter().map(|address| (*address).clone()).collect();
            builder(folder.path()).listen(own).patience(patience).form(list)
        };
        let (first, second) =
            futures::join!(patient(&folders[0], a, &[a, b]), patient(&folders[1], b, &[a, b, c]));
        for error in [first, second] {
            let error = refused(error, ErrorKind::WrongGroup, " would found \"\" with ");
            assert!(matches!(error.reason(), Reason::FoundersDiffer { .. }), "{error:?}");
            found.iter().for_each(|it| assert!(error.to_string().contains(it), "{error}"));
        }
        let named = |folder: &TempDir, own: &String, name: &str| {
            let patience = Duration::from_secs(20);
            let list = [a.clone(), b.clone()];
            builder(folder.path()).group_name(name).listen(own).patience(patience).form(list)
        };
        let (first, second) =
            futures::join!(named(&folders[0], a, "x"), named(&folders[1], b, "y"));
        for error in [first, second] {
            let error = refused(error, ErrorKind::WrongGroup, "\"x\" with ");
            assert!(matches!(error.reason(), Reason::FoundersDiffer { .. }), "{error:?}");
            assert!(error.to_string().contains("\"y\" with "), "{error}");
        }
    }
    // Neither has bound itself: with the same list they are a group.
    let (list, turned) = ([a, b], [b, a]);
    let (first, second) =
        futures::join!(form(folders[0].path(), a, &list), form(folders[1].path(), b, &turned));
    let (first, second) = (first.unwrap(), second.unwrap());
    first.ready().await.unwrap();
    Kept::write(&first.client(), "k").await.check(&second.client()).await;
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

/// A founder names those who are not there, and its folder can be used again.
#[tokio::test]
async fn founders_that_are_not_there_are_named() {
    let folders: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut found = addresses(3);
    found.sort();
    let [a, b, c] = &found[..] else { unreachable!() };
    let all = [a, b, c];
    let alone = form(folders[0].path(), a, &all).await;
    is_unreachable(alone, [b, c]);
    let (first, second) =
        futures::join!(form(folders[0].path(), a, &all), form(folders[1].path(), b, &all));
    for error in [first, second] {
        let error = refused_for_now(error, ErrorKind::Unavailable, "the group is not founded");
        assert!(error.to_string().contains(c.as_str()), "{error}");
        assert!(matches!(error.reason(), Reason::Unreachable { .. }));
    }
    let start = |member: usize| {
        let patience = Duration::from_secs(20);
        builder(folders[member].path()).listen(all[member]).patience(patience).form(all)
    };
    let (first, second, third) = futures::join!(start(0), start(1), start(2));
    let nodes = [first.unwrap(), second.unwrap(), third.unwrap()];
    nodes[2].ready().await.unwrap();
    Kept::write(&nodes[2].client(), "k").await.check(&nodes[0].client()).await;
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// A founder that meets somebody of another group at an address of its list is told so.
#[tokio::test]
async fn a_founder_that_finds_another_group_at_an_address_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let found = addresses(2);
    let solo = builder(other.path()).listen(&found[1]).solo().await.unwrap();
    let kept = Kept::write(&solo.client(), "k").await;
    let started = form(folder.path(), &found[0], &[&found[0], &found[1]]).await;
    let error = refused(started, ErrorKind::WrongGroup, &found[1]);
    assert!(matches!(error.reason(), Reason::FoundersDiffer { .. }), "{error:?}");
    kept.check(&solo.client()).await;
    solo.shutdown().await.unwrap();
}

/// Timing is a setting of the group: with another one, leases would end while their holders believe in them.
#[tokio::test]
async fn a_member_with_another_heartbeat_is_told() {
    let mut trio = Trio::start().await;
    let kept = Kept::write(&trio.client(0), "k").await;
    trio.stop(2).await;
    let reign = trio.reign().await;
    // Something to catch up with.
    kept.check(&trio.client(0)).await;
    let other = trio.builder(2).heartbeat(HEARTBEAT * 2);
    let other = other.form(trio.addresses.clone()).await.unwrap();
    let told = timeout(PATIENCE, other.ready()).await.expect("it is told");
    let text = "heartbeat or election timeouts differ between the members";
    let error = refused(told, ErrorKind::WrongGroup, text);
    assert_eq!(*error.reason(), Reason::TimingDiffers);
    other.shutdown().await.unwrap();
    assert_eq!(trio.reign().await, reign, "the others did not notice");
    trio.start_all().await;
    kept.check(&trio.client(2)).await;
    trio.shutdown().await;
}

fn is_refused_for_its_incarnation(result: Result<Node>, node: u64) {
    let text = format!("node {node} has other data than the member of that id");
    let error = refused(result, ErrorKind::WrongGroup, &text);
    assert_eq!(*error.reason(), Reason::IncarnationRefused { node: NodeId::from(node) });
    assert!(error.to_string().contains("join as a new member"), "it says what to do: {error}");
}

fn is_unreachable(result: Result<Node>, others: [&String; 2]) {
    let error: Error = refused_for_now(result, ErrorKind::Unavailable, "the group is not founded");
    assert!(matches!(error.reason(), Reason::Unreachable { .. }));
    for other in others {
        let text = format!("{other}: Connection refused");
        assert!(error.to_string().contains(&text), "{error}");
    }
}

/// The story of one founder whose folder is wiped: while the others are there, while they are down, and when one of
/// them is back. It never votes, and never makes a second group.
async fn wiped(member: usize) {
    let mut trio = Trio::start().await;
    let (group, id) = (trio.group(), member as u64 + 1);
    let kept = Kept::write(&trio.client(0), "k").await;
    let others: Vec<usize> = (0..3).filter(|other| *other != member).collect();
    let wiped = |trio: &Trio| trio.builder(member).patience(SHORT).form(trio.addresses.clone());

    trio.stop(member).await;
    trio.wipe(member);
    let term = trio.reign().await;
    is_refused_for_its_incarnation(wiped(&trio).await, id);
    is_refused_for_its_incarnation(wiped(&trio).await, id);
    kept.check(&trio.client(others[0])).await;
    assert_eq!(trio.reign().await, term, "the others did not notice");

    for other in &others {
        trio.stop(*other).await;
    }
    let silent = [&trio.addresses[others[0]], &trio.addresses[others[1]]];
    is_unreachable(wiped(&trio).await, silent);
    // Whether it has been there before or is wiped anew.
    trio.wipe(member);
    is_unreachable(wiped(&trio).await, silent);

    // One is back, without a majority, and knows all the same; also when it comes while the wiped one waits.
    let patient = trio.builder(member).patience(Duration::from_secs(30));
    let waiting = patient.form(trio.addresses.clone());
    let (refused, back) = futures::join!(waiting, trio.try_start(others[0]));
    is_refused_for_its_incarnation(refused, id);
    trio.nodes[others[0]] = Some(back.unwrap());
    is_refused_for_its_incarnation(wiped(&trio).await, id);

    // The group is the one that it was, with all that it had.
    trio.nodes[others[1]] = Some(trio.try_start(others[1]).await.unwrap());
    for other in &others {
        trio.node(*other).ready().await.unwrap();
        kept.check(&trio.client(*other)).await;
    }
    assert_eq!(trio.group(), group);
    is_refused_for_its_incarnation(wiped(&trio).await, id);
    trio.shutdown().await;
}

#[tokio::test]
async fn a_founder_that_was_wiped_is_refused() {
    wiped(2).await;
}

/// The first is the one that draws up the record of a new group, if it believes that all are new.
#[tokio::test]
async fn the_first_founder_that_was_wiped_is_refused_and_founds_no_second_group() {
    wiped(0).await;
}

/// Two of three that were wiped are a majority, and yet no group, as long as the third is not wiped too.
#[tokio::test]
async fn a_majority_that_was_wiped_founds_no_second_group() {
    let mut trio = Trio::start().await;
    let group = trio.group();
    let kept = Kept::write(&trio.client(0), "k").await;
    for member in 0..3 {
        // The third has it too.
        kept.is_there(&trio.client(member)).await;
    }
    for member in 0..3 {
        trio.stop(member).await;
    }
    trio.wipe(0);
    trio.wipe(1);
    let wiped = |member: usize| trio.builder(member).patience(SHORT).form(trio.addresses.clone());
    let (first, second) = futures::join!(wiped(0), wiped(1));
    for error in [first, second] {
        let error = refused_for_now(error, ErrorKind::Unavailable, &trio.addresses[2]);
        assert!(matches!(error.reason(), Reason::Unreachable { .. }));
    }
    let third = trio.try_start(2).await.unwrap();
    let (first, second) = futures::join!(wiped(0), wiped(1));
    is_refused_for_its_incarnation(first, 1);
    is_refused_for_its_incarnation(second, 2);
    assert_eq!(third.status().group, group);
    let client = third.client();
    let read = client.get(&kept.key).consistency(Consistency::Serializable).await.unwrap();
    assert_eq!(read.map(|kv| kv.mod_revision), Some(kept.revision), "what is left is not lost");
    third.shutdown().await.unwrap();
}
