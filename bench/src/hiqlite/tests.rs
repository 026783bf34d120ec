//! What the rows ask of hiqlite, asked of three members in this process.

use super::{Hiqlite, VERSION};
use crate::agent::{HiqliteMember, Part};
use crate::store::{Fresh, Held, Session, Store};
use bytes::Bytes;
use futures::future::try_join_all;
use std::net::TcpListener;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

/// The files are gone when the folder is dropped; the members end with the test's runtime.
async fn start(part: Part) -> (TempDir, Vec<Hiqlite>) {
    let folder = tempfile::tempdir().unwrap();
    let listeners: Vec<_> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let port = |at: usize| listeners[at].local_addr().unwrap().port();
    let ports: Vec<_> = (0..3).map(|index| (port(index), port(index + 3))).collect();
    drop(listeners);
    let members: Vec<_> = (0..3)
        .map(|index| {
            let folder = folder.path().join(index.to_string());
            std::fs::create_dir(&folder).unwrap();
            let ports = ports.clone();
            HiqliteMember { folder, index, ports, part }
        })
        .collect();
    let started = try_join_all(members.iter().map(Hiqlite::start)).await.unwrap();
    (folder, started)
}

/// The length of a value that a member's own state will hold in a moment.
async fn arrived(member: &Hiqlite, key: &Bytes) -> usize {
    let arrives = async {
        loop {
            match member.get(key, Fresh::Serializable).await {
                Ok(length) => return length,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, arrives).await.expect("a value that was put arrives")
}

/// All members put, alone and in bulk, and all of them see all of it.
async fn all_see_what_all_put(members: &[Hiqlite]) {
    let key = |index: usize| Bytes::from(format!("k/{index}"));
    for (index, member) in members.iter().enumerate() {
        member.put(&key(index), &Bytes::from(vec![1; 10 + index])).await.unwrap();
    }
    let many = (10..20).map(|index| (key(index), Bytes::from(vec![2; index]))).collect();
    members[1].put_all(many).await.unwrap();
    for member in members {
        for index in 0..3 {
            assert_eq!(arrived(member, &key(index)).await, 10 + index);
        }
        for index in 10..20 {
            assert_eq!(arrived(member, &key(index)).await, index);
        }
    }
    let mut leaders = 0;
    for member in members {
        leaders += usize::from(member.leads().await.unwrap());
    }
    assert_eq!(leaders, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_seen_by_all_and_a_lock_has_one_holder() {
    let (_folder, members) = start(Part::Cache).await;
    all_see_what_all_put(&members).await;
    members[0].get(&Bytes::from_static(b"k/0"), Fresh::Linearizable).await.unwrap_err();

    let (one, other) = (members[0].session(PATIENCE).await, members[1].session(PATIENCE).await);
    let (one, other) = (one.unwrap(), other.unwrap());
    let held = timeout(PATIENCE, one.lock("name")).await.unwrap().unwrap();
    let second = other.lock("name");
    tokio::pin!(second);
    assert!(timeout(Duration::from_millis(300), &mut second).await.is_err(), "two hold a lock");
    held.release().await.unwrap();
    timeout(PATIENCE, second).await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_sqlite_is_seen_by_all_and_at_once_by_a_consistent_read() {
    let (_folder, members) = start(Part::Sql).await;
    all_see_what_all_put(&members).await;
    let key = Bytes::from_static(b"k/again");
    for length in 1..10 {
        members[length % 3].put(&key, &Bytes::from(vec![3; length])).await.unwrap();
        let read = members[(length + 1) % 3].get(&key, Fresh::Linearizable).await;
        assert_eq!(read.unwrap(), length);
    }
    assert!(members[0].session(PATIENCE).await.is_err());
}

#[test]
fn the_version_is_the_one_that_is_linked() {
    let pinned = format!("hiqlite = {{ version = \"={VERSION}\"");
    assert!(include_str!("../../Cargo.toml").contains(&pinned));
}
