//! Everything that a workload may ask of etcd, asked of a real one.
//!
//! A test starts a member of its own in a temporary folder, and ends it. Where there is no etcd to be found it says so
//! and passes: whoever changes this adapter must have one, see `server::find`.

use super::server::{self, Start, Status};
use super::{Etcd, Session, Watch};
use crate::store::{Change, Fresh, Held, Session as _, Store, Watch as _};
use bytes::Bytes;
use futures::future::{FutureExt, join_all, try_join_all};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(5);

/// A group of one, ended when dropped.
struct Member {
    process: Child,
    binary: PathBuf,
    folder: TempDir,
    ports: [u16; 2],
    endpoint: String,
}

impl Member {
    /// `None` if there is no etcd.
    async fn start() -> Option<Self> {
        let binary = server::find().inspect_err(|why| eprintln!("not tested: {why}")).ok()?;
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports();
        let process = spawn(&binary, folder.path(), ports);
        let endpoint = format!("127.0.0.1:{}", ports[1]);
        let member = Self { process, binary, folder, ports, endpoint };
        let status = timeout(PATIENCE, member.led()).await.expect("a leader");
        assert!(status.is_leader);
        assert!(
            server::version(&member.binary).unwrap().starts_with(|it: char| it.is_ascii_digit())
        );
        Some(member)
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.process = spawn(&self.binary, self.folder.path(), self.ports);
        timeout(PATIENCE, self.led()).await.expect("a leader");
    }

    async fn led(&self) -> Status {
        loop {
            match server::status(&self.endpoint).await {
                Ok(status) if status.has_leader => return status,
                Ok(_) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn connect(&self) -> Etcd {
        Etcd::connect(&self.endpoint).await.unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has found out in its own way.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let log = std::fs::read_to_string(self.folder.path().join("etcd.log")).unwrap_or_default();
        eprint!("{log}");
    }
}

fn spawn(binary: &Path, folder: &Path, [peer, client]: [u16; 2]) -> Child {
    let start = Start {
        index: 0,
        folder,
        peer_ports: &[peer],
        client_ports: &[client],
        heartbeat_ms: 100,
        election_ms: 1000,
    };
    server::command(binary, &start).unwrap().spawn().unwrap()
}

/// One for its peers, of which it has none, and one for clients.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Waits for `count` changes, however many come at a time.
async fn changes(watch: &mut Watch, count: usize) -> Vec<Change> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(timeout(PATIENCE, watch.next()).await.expect("changes").unwrap());
    }
    assert_eq!(seen.len(), count);
    seen
}

#[tokio::test]
async fn keys_are_put_and_read() {
    let Some(member) = Member::start().await else { return };
    let etcd = member.connect().await;
    let value = Bytes::from(vec![7; 256]);
    etcd.put(&bytes("a/1"), &value).await.unwrap();
    for fresh in [Fresh::Linearizable, Fresh::Serializable] {
        assert_eq!(etcd.get(&bytes("a/1"), fresh).await.unwrap(), 256);
        assert!(etcd.get(&bytes("a/2"), fresh).await.is_err());
    }

    let puts = [&bytes("a/2"), &bytes("a/3")];
    etcd.txn(&bytes("a/1"), puts, &value).await.unwrap();
    assert!(etcd.txn(&bytes("nothing"), puts, &value).await.is_err());
    assert_eq!(etcd.count(&bytes("a/")).await.unwrap(), 3);

    etcd.put(&bytes("a0"), &value).await.unwrap();
    assert_eq!(etcd.range(&bytes("a/")).await.unwrap(), 3);
}

#[tokio::test]
async fn ten_thousand_keys_come_in_one_answer() {
    let Some(member) = Member::start().await else { return };
    let etcd = member.connect().await;
    let value = Bytes::from(vec![7; 512]);
    for hundred in 0..100 {
        let key = |each| bytes(&format!("many/{hundred:02}{each:02}"));
        etcd.put_all((0..100).map(|each| (key(each), value.clone())).collect()).await.unwrap();
    }
    assert_eq!(etcd.count(&bytes("many/")).await.unwrap(), 10_000);
    assert_eq!(etcd.range(&bytes("many/")).await.unwrap(), 10_000);
}

#[tokio::test]
async fn watches_see_what_is_theirs_from_the_moment_they_are_there() {
    let Some(member) = Member::start().await else { return };
    let etcd = member.connect().await;
    let prefixes = (0..50).map(|each| bytes(&format!("w/{each:02}/"))).collect::<Vec<_>>();
    let watches = prefixes.iter().map(|prefix| etcd.watch(prefix));
    let mut watches = try_join_all(watches).await.unwrap();
    let mut all = etcd.watch(&bytes("w/")).await.unwrap();

    let key = |prefix: &Bytes| [prefix, &b"key"[..]].concat().into();
    let lease = etcd.grant(TTL).await.unwrap();
    etcd.put_leased(&key(&prefixes[0]), &prefixes[0], lease).await.unwrap();
    for prefix in &prefixes[1..] {
        etcd.put(&key(prefix), prefix).await.unwrap();
    }
    etcd.revoke(lease).await.unwrap();
    for (watch, prefix) in watches.iter_mut().zip(&prefixes).skip(1) {
        let seen = changes(watch, 1).await;
        assert_eq!((&seen[0].key, seen[0].value.as_ref()), (&key(prefix), Some(prefix)));
    }
    let seen = changes(&mut watches[0], 2).await;
    assert_eq!(seen[0].value.as_ref(), Some(&prefixes[0]));
    assert_eq!((&seen[1].key, &seen[1].value), (&key(&prefixes[0]), &None));
    assert_eq!(changes(&mut all, 51).await.last().unwrap().value, None);
}

#[tokio::test]
async fn a_dropped_watch_leaves_the_others_alone() {
    let Some(member) = Member::start().await else { return };
    let etcd = member.connect().await;
    let prefix = bytes("w/");
    let dropped = etcd.watch(&prefix).await.unwrap();
    let mut kept = etcd.watch(&prefix).await.unwrap();
    // One that is dropped while it waits for etcd's answer leaves its place in the line behind.
    assert!(etcd.watch(&prefix).now_or_never().is_none());
    drop(dropped);
    let mut later = etcd.watch(&prefix).await.unwrap();
    drop(etcd);

    let other = member.connect().await;
    other.put(&bytes("w/1"), &prefix).await.unwrap();
    assert_eq!(changes(&mut kept, 1).await[0].key, bytes("w/1"));
    assert_eq!(changes(&mut later, 1).await[0].key, bytes("w/1"));
    timeout(PATIENCE, async {
        // Two of four are cancelled, and etcd's own figures say so.
        while watchers(&member).await != 2 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("two watches");
}

/// How many watches the member has, from the figures that it gives over HTTP.
async fn watchers(member: &Member) -> u64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(&member.endpoint).await.unwrap();
    let request = b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let name = "etcd_debugging_mvcc_watcher_total ";
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn when_the_member_dies_watches_and_renewals_fail_and_a_new_one_serves_new_ones() {
    let Some(mut member) = Member::start().await else { return };
    let etcd = member.connect().await;
    let mut watch = etcd.watch(&bytes("w/")).await.unwrap();
    let lease = etcd.grant(TTL).await.unwrap();
    etcd.keep_alive(lease).await.unwrap();

    member.kill();
    assert!(timeout(PATIENCE, watch.next()).await.expect("an end").is_err());
    assert!(timeout(PATIENCE, etcd.keep_alive(lease)).await.expect("an end").is_err());

    member.restart().await;
    etcd.keep_alive(lease).await.unwrap();
    let mut watch = etcd.watch(&bytes("w/")).await.unwrap();
    etcd.put(&bytes("w/1"), &bytes("v")).await.unwrap();
    assert_eq!(changes(&mut watch, 1).await[0].key, bytes("w/1"));
}

#[tokio::test]
async fn leases_are_granted_renewed_and_revoked() {
    let Some(member) = Member::start().await else { return };
    let etcd = member.connect().await;
    let leases = try_join_all((0..50).map(|_| etcd.grant(TTL))).await.unwrap();
    for lease in &leases {
        etcd.put_leased(&bytes(&format!("l/{lease}")), &bytes("v"), *lease).await.unwrap();
    }
    let (gone, kept) = leases.split_first().unwrap();
    etcd.revoke(*gone).await.unwrap();
    assert_eq!(etcd.count(&bytes("l/")).await.unwrap(), 49);

    // All at once, each lease twice, one that is gone among them: every caller hears of its own.
    let twice = || [*gone].into_iter().chain(kept.iter().copied());
    let answers = join_all(twice().chain(twice()).map(|lease| etcd.keep_alive(lease))).await;
    for (answer, lease) in answers.iter().zip(twice().chain(twice())) {
        assert_eq!(answer.is_ok(), lease != *gone);
    }
    // A caller that does not wait leaves its place in the line behind.
    assert!(etcd.keep_alive(*gone).now_or_never().is_none());
    etcd.keep_alive(kept[0]).await.unwrap();
}

#[tokio::test]
async fn a_session_outlives_its_ttl_until_it_is_closed_or_dropped() {
    let Some(member) = Member::start().await else { return };
    let etcd = member.connect().await;
    // The shortest that etcd grants with its usual election timeout.
    let ttl = Duration::from_secs(2);
    let [closed, dropped] = [etcd.session(ttl).await.unwrap(), etcd.session(ttl).await.unwrap()];
    for (session, name) in [(&closed, "s/closed"), (&dropped, "s/dropped")] {
        etcd.put_leased(&bytes(name), &bytes("v"), session.lease).await.unwrap();
    }
    sleep(ttl * 3).await;
    assert_eq!(etcd.count(&bytes("s/")).await.unwrap(), 2);

    closed.close().await.unwrap();
    assert_eq!(etcd.count(&bytes("s/")).await.unwrap(), 1);
    drop(dropped);
    timeout(PATIENCE, async {
        while etcd.count(&bytes("s/")).await.unwrap() > 0 {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the lease runs out");
}

#[tokio::test]
async fn a_lock_is_held_by_one_and_passed_on() {
    let Some(member) = Member::start().await else { return };
    let etcd = member.connect().await;
    let [first, second] = sessions(&etcd).await;
    let held = first.lock("lock").await.unwrap();
    // On a connection that waits for a lock, other calls go on.
    let waits = async { second.lock("lock").await.unwrap() };
    let mut waits = std::pin::pin!(waits);
    assert!(timeout(Duration::from_millis(300), &mut waits).await.is_err());
    etcd.put(&bytes("meanwhile"), &bytes("v")).await.unwrap();
    let (released, held) = tokio::join!(held.release(), timeout(PATIENCE, waits));
    released.unwrap();
    held.expect("the lock").release().await.unwrap();
    assert_eq!(etcd.count(&bytes("lock/")).await.unwrap(), 0);
}

#[tokio::test]
async fn a_lead_is_held_by_one_and_passed_on() {
    let Some(member) = Member::start().await else { return };
    let etcd = member.connect().await;
    let [first, second] = sessions(&etcd).await;
    let lead = first.campaign("lead", "first").await.unwrap();
    let waits = async { second.campaign("lead", "second").await.unwrap() };
    let mut waits = std::pin::pin!(waits);
    assert!(timeout(Duration::from_millis(300), &mut waits).await.is_err());
    // The lead also passes when its session ends without a word.
    let (closed, next) = tokio::join!(first.close(), timeout(PATIENCE, &mut waits));
    closed.unwrap();
    next.expect("the lead").release().await.unwrap();
    assert_eq!(etcd.count(&bytes("lead/")).await.unwrap(), 0);
    lead.release().await.unwrap_or_else(|why| eprintln!("a lead that has passed on: {why}"));
}

async fn sessions(etcd: &Etcd) -> [Session; 2] {
    [etcd.session(TTL).await.unwrap(), etcd.session(TTL).await.unwrap()]
}
