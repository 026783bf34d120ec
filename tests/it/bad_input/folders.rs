//! A data folder that is somebody else's, open, or not writable.

use super::{Kept, builder, refused};
use crate::kit::PATIENCE;
use crate::kit::opener::{open_elsewhere, open_without_rights};
use crate::kit::trio::Trio;
use quorate::{ErrorKind, Node, NodeId, Reason};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

fn folder_of(error: &quorate::Error) -> &Path {
    let Reason::AlreadyOpen { path } = error.reason() else { panic!("{error:?}") };
    Path::new(path)
}

#[tokio::test]
async fn a_folder_is_open_once_in_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let node = builder(folder.path()).solo().await.unwrap();
    let kept = Kept::write(&node.client(), "k").await;
    for _ in 0..3 {
        let second = builder(folder.path()).solo().await;
        let error = refused(second, ErrorKind::Storage, "is open in another node");
        assert_eq!(folder_of(&error), folder.path());
    }
    kept.check(&node.client()).await;
    node.shutdown().await.unwrap();
    let node = builder(folder.path()).solo().await.unwrap();
    kept.check(&node.client()).await;
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_folder_is_open_in_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let node = builder(folder.path()).solo().await.unwrap();
    let kept = Kept::write(&node.client(), "k").await;
    let opened = open_elsewhere(folder.path());
    assert_eq!(opened.crash, None);
    let text = format!("Storage {} is open in another node", folder.path().display());
    assert_eq!(opened.said("refused"), Some(&text[..]), "{opened:?}");
    kept.check(&node.client()).await;
    node.shutdown().await.unwrap();
}

/// A start that was refused, or a node that was dropped, holds the folder no longer than its threads need to end.
#[tokio::test]
async fn a_folder_can_be_opened_right_after_whoever_had_it_has_gone() {
    let folder = tempfile::tempdir().unwrap();
    let node = builder(folder.path()).solo().await.unwrap();
    let kept = Kept::write(&node.client(), "k").await;
    drop(node);
    for _ in 0..3 {
        // Refused after everything was opened: the folder is that of a solo node.
        let address = &crate::kit::addresses(1)[0];
        let started = builder(folder.path()).listen(address).form([address]).await;
        refused(started, ErrorKind::WrongGroup, "");
        let node = builder(folder.path()).solo().await.unwrap();
        kept.is_there(&node.client()).await;
        drop(node);
    }
    // A start that is given up in the middle ends on a thread of its own, a moment later.
    for _ in 0..5 {
        let started = builder(folder.path()).solo();
        drop(timeout(Duration::from_millis(20), started).await);
    }
    let again = async {
        loop {
            match builder(folder.path()).solo().await {
                Err(error) => assert_eq!(folder_of(&error), folder.path()),
                Ok(node) => break node,
            }
        }
    };
    let node = timeout(PATIENCE, again).await.expect("it ends");
    kept.check(&node.client()).await;
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    // Below a file, a file, and where no system lets anybody make folders.
    for path in [file.join("data"), file.clone(), "/proc/quorate-data".into()] {
        let error = refused(builder(&path).solo().await, ErrorKind::Storage, "cannot ");
        assert!(matches!(error.reason(), Reason::DiskFailed { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text:?} does not name the folder");
        assert!(std::error::Error::source(&error).is_some(), "and what the system said");
    }
    assert_eq!(fs::read(&file).unwrap(), b"not a folder");
}

/// As root nothing is read-only for us, so somebody without rights tries.
#[tokio::test]
async fn a_read_only_folder_is_refused_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let node = builder(&data).solo().await.unwrap();
    let kept = Kept::write(&node.client(), "k").await;
    node.shutdown().await.unwrap();

    let allow = |folders: u32, files: u32| {
        let mut left = vec![data.clone()];
        while let Some(path) = left.pop() {
            let mode = if path.is_dir() { folders } else { files };
            if path.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
    };
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    allow(0o555, 0o444);
    let opened = open_without_rights(&data);
    assert_eq!(opened.crash, None);
    let text = format!("Storage cannot write to {}: Permission denied", data.display());
    assert!(opened.said("refused").is_some_and(|it| it.starts_with(&text)), "{opened:?}");

    // The same when it is only the parts: a lock that can be had, and files that cannot be written.
    for part in ["raft/log-00000001", "state-000001/data.mdb"] {
        allow(0o777, 0o666);
        fs::set_permissions(data.join(part), Permissions::from_mode(0o444)).unwrap();
        let opened = open_without_rights(&data);
        assert_eq!(opened.crash, None);
        let said = opened.said("refused").expect("it is refused");
        assert!(said.starts_with("Storage cannot open "), "{said}");
        assert!(said.contains("Permission denied"), "{said}");
    }
    allow(0o755, 0o644);
    let node = builder(&data).solo().await.unwrap();
    kept.check(&node.client()).await;
    node.shutdown().await.unwrap();
}

/// Two members whose folders were mixed up are told so, each by name, and the group goes on when that is mended.
#[tokio::test]
async fn a_folder_of_another_member_is_refused() {
    let mut trio = Trio::start().await;
    let kept = Kept::write(&trio.client(0), "k").await;
    let group = trio.group();
    trio.stop(1).await;
    trio.stop(2).await;
    let aside = trio.data(9);
    let swap = || {
        fs::rename(trio.data(1), &aside).unwrap();
        fs::rename(trio.data(2), trio.data(1)).unwrap();
        fs::rename(&aside, trio.data(2)).unwrap();
    };
    swap();
    for (member, actual, expected) in [(1, 3, 2), (2, 2, 3)] {
        let text = format!("the data folder, is node {actual}, not node {expected}");
        let error = refused(trio.try_start(member).await, ErrorKind::WrongGroup, &text);
        let (actual, expected) = (NodeId::from(actual), NodeId::from(expected));
        assert_eq!(*error.reason(), Reason::NodeMismatch { actual, expected });
    }
    swap();
    trio.start_all().await;
    assert_eq!(trio.group(), group);
    for member in 0..3 {
        kept.check(&trio.client(member)).await;
    }
    trio.shutdown().await;
}

/// A group of one and a larger group are not each other, whichever way round.
#[tokio::test]
async fn a_folder_of_a_solo_node_does_not_form_and_that_of_a_member_is_not_solo() {
    let folder = tempfile::tempdir().unwrap();
    let node = builder(folder.path()).solo().await.unwrap();
    let kept = Kept::write(&node.client(), "k").await;
    node.shutdown().await.unwrap();
    let address = &crate::kit::addresses(1)[0];
    let form = || builder(folder.path()).listen(address).form([address]);
    let text = format!("a group of one, which was started with solo(), not with {address}");
    let error = refused(form().await, ErrorKind::WrongGroup, &text);
    assert!(matches!(error.reason(), Reason::FoundersDiffer { .. }));
    let node = builder(folder.path()).solo().await.unwrap();
    kept.check(&node.client()).await;
    node.shutdown().await.unwrap();

    let mut trio = Trio::start().await;
    let kept = Kept::write(&trio.client(0), "k").await;
    trio.stop(2).await;
    let solo = trio.builder(2).solo().await;
    let text = format!("founded by {}: start it with form()", trio.addresses.join(", "));
    let error = refused(solo, ErrorKind::WrongGroup, &text);
    assert!(matches!(error.reason(), Reason::FoundersDiffer { .. }));
    trio.start_all().await;
    kept.check(&trio.client(2)).await;
    trio.shutdown().await;
}

/// A folder of a group with other members, or another name, is refused before it meets anybody.
#[tokio::test]
async fn a_folder_of_a_group_with_other_members_or_another_name_is_refused() {
    let mut trio = Trio::start().await;
    let kept = Kept::write(&trio.client(0), "k").await;
    trio.stop(1).await;
    let others = crate::kit::addresses(2);
    let list = [&trio.addresses[1], &others[0], &others[1]];
    let known = trio.addresses.join(", ");
    let error = refused(
        trio.builder(1).form(list).await,
        ErrorKind::WrongGroup,
        &format!("the group was founded by {known}, not by "),
    );
    assert!(matches!(error.reason(), Reason::FoundersDiffer { .. }));
    assert!(error.to_string().ends_with("pass the same addresses on every start"));
    let named = trio.builder(1).group_name("other").form(trio.addresses.clone()).await;
    let error = refused(named, ErrorKind::WrongGroup, r#"the group is named "", not "other""#);
    assert!(matches!(error.reason(), Reason::FoundersDiffer { .. }));
    trio.start_all().await;
    kept.check(&trio.client(1)).await;
    trio.shutdown().await;
}

/// A folder of another group that was founded at the same addresses: nothing at the start can tell, for the others may
/// be down. They tell it as soon as they are asked, and the group does not notice.
#[tokio::test]
async fn a_folder_of_another_group_at_the_same_addresses_is_told_so() {
    let first = Trio::start().await;
    let addresses = first.addresses.clone();
    let old = tempfile::tempdir().unwrap();
    let data = first.data(2);
    for node in first.nodes.into_iter().flatten() {
        node.shutdown().await.unwrap();
    }
    crate::kit::damage::copy(&data, old.path());

    let mut second = Trio::start_at(addresses.clone()).await;
    let kept = Kept::write(&second.client(0), "k").await;
    let reign = second.reign().await;
    let was_leader = reign.0.get() == 3;
    second.stop(2).await;
    let stray = Node::builder(old.path())
        .heartbeat(crate::kit::HEARTBEAT)
        .listen(&addresses[2])
        .form(addresses)
        .await
        .unwrap();
    let told = timeout(PATIENCE, stray.ready()).await;
    let error = refused(told.expect("it is told"), ErrorKind::WrongGroup, "another group");
    assert_eq!(*error.reason(), Reason::GroupMismatch);
    stray.shutdown().await.unwrap();
    kept.check(&second.client(0)).await;
    if !was_leader {
        assert_eq!(second.reign().await, reign);
    }
    second.start_all().await;
    kept.check(&second.client(2)).await;
    second.shutdown().await;
}
