//! A backup of a group under load, and the group that is founded on it.

use crate::bad_input::{builder, refused};
use crate::kit::group::Nodes;
use crate::kit::trio::Load;
use crate::kit::{HEARTBEAT, PATIENCE, addresses, until};
use futures::future::join_all;
use quorate::{
    Backup, BackupInfo, Client, Error, ErrorKind, FencingToken, KeyRange, KeyValue, LeaseId, Node,
    Op, Reason, Restored, Result, Revision,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncWrite;
use tokio::time::timeout;

/// How long founders wait for each other, where one of them may have ended.
const SHORT: Duration = Duration::from_secs(3);

async fn backup(node: &Node, path: &Path) -> BackupInfo {
    let mut file = tokio::fs::File::create(path).await.unwrap();
    let info = node.backup(&mut file).await.unwrap();
    file.sync_all().await.unwrap();
    assert_eq!(info.bytes, fs::metadata(path).unwrap().len());
    info
}

async fn all(client: &Client, prefix: &str) -> Vec<KeyValue> {
    client.range(KeyRange::prefix(prefix)).await.unwrap().entries
}

/// Founders that have nothing to do with each other yet: their folders and addresses.
struct Founders {
    folder: TempDir,
    addresses: Vec<String>,
}

impl Founders {
    fn new() -> Self {
        let mut addresses = addresses(3);
        addresses.sort();
        Self { folder: tempfile::tempdir().unwrap(), addresses }
    }

    fn data(&self, founder: usize) -> PathBuf {
        self.folder.path().join(format!("founder-{founder}"))
    }

    async fn restore(&self, founder: usize, path: &Path, bump: u64) -> Restored {
        Backup::restore_with(path, self.data(founder), bump).await.unwrap()
    }

    async fn form(&self, patience: Duration) -> Vec<Result<Node>> {
        let form = |founder: usize| {
            let builder = builder(&self.data(founder)).listen(&self.addresses[founder]);
            builder.patience(patience).form(self.addresses.clone())
        };
        join_all((0..3).map(form)).await
    }

    async fn start(&self) -> Vec<Node> {
        let nodes: Vec<Node> = self.form(PATIENCE).await.into_iter().map(Result::unwrap).collect();
        for node in &nodes {
            node.ready().await.unwrap();
        }
        nodes
    }
}

async fn shutdown(nodes: Vec<Node>) {
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// What there was before the backup: keys with a history, a value too large for its row, leases, and a lock that is held.
struct Before {
    keys: Vec<KeyValue>,
    lease: LeaseId,
    token: FencingToken,
    last: Revision,
}

async fn write_before(client: &Client) -> Before {
    for round in 0..5u32 {
        for key in 0..40 {
            client.put(format!("kept/{key:02}"), format!("{round}")).await.unwrap();
        }
    }
    client.put("kept/large", vec![7; 100_000]).await.unwrap();
    client.delete(KeyRange::from("kept/10".."kept/12")).await.unwrap();
    client.compact(Revision::from(50)).await.unwrap();
    let lease = client.lease_grant(Duration::from_secs(3)).await.unwrap().id;
    client.put("leased/a", "v").lease(lease).await.unwrap();
    client.put("leased/b", "v").lease(lease).await.unwrap();
    let session = client.session(Duration::from_secs(30)).await.unwrap();
    let lock = session.lock("job").await.unwrap();
    let token = lock.token();
    lock.release().await.unwrap();
    session.close().await.unwrap();
    let last = client.put("kept/last", "v").await.unwrap();
    Before { keys: all(client, "kept/").await, lease, token, last }
}

/// Backed up while it is written to, inspected, restored into three folders, and founded anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_founded_on_a_backup() {
    let group = Nodes::start(3).await;
    let before = write_before(&group.client(0)).await;
    let keep_alive = group.client(0).lease_keep_alive(before.lease).await;
    keep_alive.unwrap();
    let load = Load::start([group.client(0), group.client(1)]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    let follower = (group.leader().await + 1) % 3;
    group.node(follower).ready().await.unwrap();
    let mut info = backup(group.node(follower), &path).await;
    for _ in 0..3 {
        load.goes_on(20).await;
        let later = backup(group.node(follower), &path).await;
        assert!(later.revision > info.revision);
        info = later;
    }
    load.goes_on(20).await;
    load.end(&group.client(0)).await;
    assert!(info.revision >= before.last);
    assert_eq!(info.group, group.node(0).status().group);
    assert_eq!(info.compact_revision, Revision::from(50));
    assert_eq!(Backup::inspect(&path).await.unwrap(), info);
    let old_group = info.group;
    group.shutdown().await;

    let founders = Founders::new();
    let mut restored = Vec::new();
    for founder in 0..3 {
        restored.push(founders.restore(founder, &path, Backup::REVISION_BUMP).await);
    }
    assert!(restored.iter().all(|it| *it == restored[0]), "{restored:?}");
    assert_eq!(restored[0].backup, info);
    let base = restored[0].revision;
    assert_eq!(base.get(), info.revision.get() + Backup::REVISION_BUMP);

    let nodes = founders.start().await;
    for node in &nodes {
        assert_ne!(node.status().group, old_group);
        let client = node.client();
        assert_eq!(all(&client, "kept/").await, before.keys, "with their revisions and versions");
        assert_eq!(client.range(KeyRange::all()).count_only().await.unwrap().revision, base);
        let gone = client.watch("kept/00").from(before.last).await;
        let compacted = match gone {
            Ok(mut watch) => watch.recv().await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(*compacted.reason(), Reason::Compacted { at: base });
    }
    // What a member of this group writes is news for the others, with what was there before.
    let mut watch = nodes[1].client().watch("kept/00").from(base).prev().await.unwrap();
    let next = nodes[0].client().put("kept/00", "new").await.unwrap();
    assert!(next > base);
    let changes = watch.recv().await.unwrap();
    assert_eq!((changes.revision, changes.events.len()), (next, 1));
    let kv = nodes[2].client().get("kept/00").await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.version), (before.keys[0].create_revision, 6));
    is_fenced(&nodes[0].client(), before.token, base).await;
    expires(&nodes[1].client(), before.lease).await;
    drop(watch);
    shutdown(nodes).await;
    // And it is a group like any other when it comes back.
    let nodes = founders.start().await;
    let kv = nodes[2].client().get("kept/00").await.unwrap().unwrap();
    assert_eq!(kv.mod_revision, next);
    shutdown(nodes).await;
}

/// Locks, elections and leases go on with numbers that nobody has been given before.
async fn is_fenced(client: &Client, before: FencingToken, base: Revision) {
    let session = client.session(Duration::from_secs(30)).await.unwrap();
    assert!(session.lease_id().get() > Backup::REVISION_BUMP, "ids of leases go on as well");
    let lock = timeout(PATIENCE, session.lock("job")).await.unwrap().unwrap();
    assert!(lock.token() > before && lock.token().get() > base.get());
    let marked = client.txn().when(lock.held()).then(Op::put("mark", "v")).await.unwrap();
    assert!(marked.succeeded);
    let election = session.election("boss");
    let leads = timeout(PATIENCE, election.campaign("me")).await.unwrap().unwrap();
    assert!(leads.token() > lock.token());
    leads.resign().await.unwrap();
    lock.release().await.unwrap();
    session.close().await.unwrap();
}

/// A lease that nobody renews ends with its keys.
async fn expires(client: &Client, lease: LeaseId) {
    let ended = async {
        while !all(client, "leased/").await.is_empty() {
            tokio::time::sleep(HEARTBEAT).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("nobody renews it");
    assert_eq!(client.lease_time_to_live(lease).await.unwrap(), None);
}

/// A member that falls behind the log of a restored group gets what was restored, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_restored_group_has_what_was_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    let old = builder(&folder.path().join("old")).solo().await.unwrap();
    let before = write_before(&old.client()).await;
    backup(&old, &path).await;
    old.shutdown().await.unwrap();

    let founders = Founders::new();
    for founder in 0..3 {
        founders.restore(founder, &path, 1_000_000).await;
    }
    let start = |founder: usize| {
        let builder = builder(&founders.data(founder)).listen(&founders.addresses[founder]);
        builder.snapshot_every(100).form(founders.addresses.clone())
    };
    let mut nodes: Vec<Node> =
        join_all((0..3).map(start)).await.into_iter().map(Result::unwrap).collect();
    nodes[1].ready().await.unwrap();
    nodes.pop().unwrap().shutdown().await.unwrap();
    for number in 0..500 {
        nodes[0].client().put(format!("new/{}", number % 7), "v").await.unwrap();
    }
    let third = start(2).await.unwrap();
    third.ready().await.unwrap();
    assert_eq!(all(&third.client(), "kept/").await, before.keys);
    nodes.push(third);
    let same = until_equal(&nodes).await;
    assert!(same, "a snapshot is the same state");
    shutdown(nodes).await;
}

async fn until_equal(nodes: &[Node]) -> bool {
    loop {
        let all: Vec<_> = nodes.iter().map(Node::status).collect();
        if all.iter().all(|it| it.applied_index == all[0].applied_index) {
            return all.iter().all(|it| it.state_hash == all[0].state_hash);
        }
        tokio::time::sleep(HEARTBEAT / 5).await;
    }
}

/// A group of one, and a folder that was started before there was a group and is started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_folder_outlives_starts_that_found_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    let old = builder(&folder.path().join("old")).solo().await.unwrap();
    let written = old.client().put("k", "v").await.unwrap();
    backup(&old, &path).await;
    old.shutdown().await.unwrap();

    let founders = Founders::new();
    for founder in 0..3 {
        founders.restore(founder, &path, 5).await;
    }
    // Two of three found nothing, twice; then the third is there.
    for _ in 0..2 {
        let form = |founder: usize| {
            let builder = builder(&founders.data(founder)).listen(&founders.addresses[founder]);
            builder.patience(HEARTBEAT).form(founders.addresses.clone())
        };
        for started in join_all((0..2).map(form)).await {
            assert_eq!(started.unwrap_err().kind(), ErrorKind::Unavailable);
        }
    }
    let nodes = founders.start().await;
    let kv = nodes[2].client().get("k").await.unwrap().unwrap();
    assert_eq!(kv.mod_revision, written);
    shutdown(nodes).await;

    let data = folder.path().join("solo");
    Backup::restore(&path, &data).await.unwrap();
    for _ in 0..3 {
        let node = builder(&data).solo().await.unwrap();
        assert_eq!(node.client().get("k").await.unwrap().unwrap().mod_revision, written);
        node.shutdown().await.unwrap();
    }
    // The state goes, and the log is still there: it would be another group with the same log.
    fs::remove_dir_all(data.join("state-000002")).unwrap();
    assert_eq!(builder(&data).solo().await.unwrap_err().kind(), ErrorKind::Storage);
}

fn differ(started: Vec<Result<Node>>, texts: &[&str]) {
    let mut told = 0;
    for error in started.into_iter().map(Result::unwrap_err) {
        match error.reason() {
            Reason::FoundersDiffer { detail } => {
                texts.iter().for_each(|text| assert!(detail.contains(text), "{detail}"));
                told += 1;
            }
            // One that agrees with another may find that both have ended.
            Reason::Unreachable { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(told >= 2, "the two that differ are told");
}

#[tokio::test(flavor = "multi_thread")]
async fn founders_on_different_states_found_no_group() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| folder.path().join(name));
    let old = builder(&folder.path().join("old")).solo().await.unwrap();
    old.client().put("k", "1").await.unwrap();
    let first = backup(&old, &paths[0]).await.revision.get();
    old.client().put("k", "2").await.unwrap();
    backup(&old, &paths[1]).await;
    old.shutdown().await.unwrap();
    let advice = "restore one backup, with one bump, into the folders of all founders";

    // Another backup; one without; and one with another bump.
    let founders = Founders::new();
    for founder in 0..3 {
        founders.restore(founder, &paths[founder / 2], 100).await;
    }
    let (one, two) =
        (format!("at revision {}", first + 100), format!("at revision {}", first + 101));
    differ(founders.form(SHORT).await, &[&one, &two, advice]);

    let founders = Founders::new();
    for founder in 0..2 {
        founders.restore(founder, &paths[0], 100).await;
    }
    differ(founders.form(SHORT).await, &[&one, "an empty state", advice]);
    // Nobody has bound itself: when it is restored as well, they are a group.
    fs::remove_dir_all(founders.data(2)).unwrap();
    founders.restore(2, &paths[0], 100).await;
    shutdown(founders.start().await).await;

    let founders = Founders::new();
    for founder in 0..3 {
        founders.restore(founder, &paths[0], 100 + founder as u64 / 2).await;
    }
    differ(founders.form(SHORT).await, &[&one, &two, advice]);
}

#[tokio::test]
async fn a_folder_with_anything_in_it_is_not_restored_into() {
    let folder = tempfile::tempdir().unwrap();
    let (path, data) = (folder.path().join("backup"), folder.path().join("data"));
    let node = builder(&data).solo().await.unwrap();
    let written = node.client().put("k", "v").await.unwrap();
    backup(&node, &path).await;
    let open =
        refused(Backup::restore(&path, &data).await, ErrorKind::Storage, "is open in another");
    assert!(matches!(open.reason(), Reason::AlreadyOpen { .. }));
    node.shutdown().await.unwrap();
    let text = "is not empty: a backup is restored into a folder of its own";
    let full = refused(Backup::restore(&path, &data).await, ErrorKind::InvalidInput, text);
    assert!(matches!(full.reason(), Reason::FolderNotEmpty { .. }));
    let node = builder(&data).solo().await.unwrap();
    assert_eq!(node.client().get("k").await.unwrap().unwrap().mod_revision, written);
    node.shutdown().await.unwrap();
}

/// A backup that is refused leaves an empty folder, and one whose restore was interrupted none that a node takes.
#[tokio::test]
async fn a_restore_that_did_not_end_is_no_data_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (path, data) = (folder.path().join("backup"), folder.path().join("data"));
    let node = builder(&folder.path().join("old")).solo().await.unwrap();
    node.client().put("k", vec![1; 500]).await.unwrap();
    backup(&node, &path).await;
    node.shutdown().await.unwrap();
    let whole = fs::read(&path).unwrap();
    for length in [0, 20, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        for told in [Backup::inspect(&path).await.err(), Backup::restore(&path, &data).await.err()]
        {
            let error: Error = refused(told.map_or(Ok(()), Err), ErrorKind::Storage, "at byte");
            let Reason::BackupDamaged { offset, .. } = error.reason() else { panic!("{error:?}") };
            assert_eq!(*offset, length as u64);
        }
        let left: Vec<_> = fs::read_dir(&data).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["LOCK"]);
    }
    let missing = Backup::restore(folder.path().join("missing"), folder.path().join("none")).await;
    refused(missing, ErrorKind::Storage, "cannot read");
    assert!(!folder.path().join("none").exists(), "nothing was begun");
    let unbumped = Backup::restore_with(&path, &data, 0).await;
    refused(unbumped, ErrorKind::InvalidInput, "revisions cannot go on 0 above");
    fs::write(&path, &whole).unwrap();
    // What a loss of power leaves at the very end: all of it is there, but for the last word.
    Backup::restore(&path, &data).await.unwrap();
    fs::write(data.join("RESTORING"), "").unwrap();
    let started = builder(&data).solo().await;
    let error = refused(started, ErrorKind::Storage, "did not end: restore it again");
    assert!(matches!(error.reason(), Reason::RestoreInterrupted { .. }));
    assert!(!data.join("raft").exists(), "nothing was begun");
    Backup::restore(&path, &data).await.unwrap();
    let node = builder(&data).solo().await.unwrap();
    assert!(node.client().get("k").await.unwrap().is_some());
    node.shutdown().await.unwrap();
}

/// A writer that takes so many bytes, and then fails or takes no more.
struct Full {
    room: usize,
    fails: bool,
}

impl AsyncWrite for Full {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match (bytes.len().min(self.room), self.fails) {
            (0, true) => Poll::Ready(Err(std::io::Error::other("the tape has ended"))),
            (0, false) => Poll::Pending,
            (taken, _) => {
                self.room -= taken;
                Poll::Ready(Ok(taken))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Neither a writer that fails nor one that hangs is the member's business, and none of it keeps the member from its end.
#[tokio::test]
async fn a_backup_that_is_not_taken_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let node = builder(folder.path()).solo().await.unwrap();
    let client = node.client();
    for key in 0..20 {
        client.put(format!("k{key}"), vec![1; 100_000]).await.unwrap();
    }
    for room in [0, 10, 1_000_000] {
        let error = node.backup(Full { room, fails: true }).await.unwrap_err();
        assert!(error.to_string().contains("the tape has ended"), "{error}");
        let hangs = node.backup(Full { room, fails: false });
        assert!(timeout(HEARTBEAT, hangs).await.is_err());
        client.put("k", "v").await.unwrap();
    }
    let info = node.backup(tokio::io::sink()).await.unwrap();
    assert_eq!(info.keys, 21);
    node.shutdown().await.unwrap();
}

/// The one who waits need not be in a runtime of tokio's.
#[test]
fn backups_work_on_any_executor() {
    let folder = tempfile::tempdir().unwrap();
    let (path, data) = (folder.path().join("backup"), folder.path().join("new"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(builder(&folder.path().join("old")).solo()).unwrap();
    let mut bytes = Vec::new();
    let info = futures::executor::block_on(node.backup(&mut bytes)).unwrap();
    fs::write(&path, bytes).unwrap();
    assert_eq!(futures::executor::block_on(Backup::inspect(&path)).unwrap(), info);
    futures::executor::block_on(Backup::restore(&path, &data)).unwrap();
    // A future that is dropped ends its thread, which then has let go of the folder.
    let other = folder.path().join("other");
    drop(futures::executor::block_on(async {
        let restore = Box::pin(Backup::restore(&path, &other));
        futures::poll!(restore)
    }));
    until("it can be restored into, or is whole", || {
        let restored = futures::executor::block_on(Backup::restore(&path, &other));
        let is_whole = |error: &Error| matches!(error.reason(), Reason::FolderNotEmpty { .. });
        restored.as_ref().map_or_else(is_whole, |_| true).then_some(())
    });
    runtime.block_on(async {
        node.shutdown().await.unwrap();
        builder(&other).solo().await.unwrap().shutdown().await.unwrap();
    });
}
