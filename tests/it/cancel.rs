//! Futures that are dropped: each of the API, at each point where it waits, keeps what its docs promise of that.
//!
//! A future is dropped where it waits first, then another of the same where it waits for the second time, and so on, until
//! one ends before it could be dropped, or waits for what will not come. In this process and from outside.

use crate::kit::group::Nodes;
use crate::kit::{HEARTBEAT, PATIENCE, addresses};
use futures::future::{join, join3, try_join_all};
use futures::{StreamExt, TryStreamExt};
use quorate::{Backup, Client, Error, Event, KeyRange, Node, Op, Reason};
use std::future::{IntoFuture, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

/// A future that waits more often than this goes round in circles.
const POINTS_MAX: usize = 1000;
const TTL: Duration = Duration::from_secs(20);

/// Polls a future until it has ended, or waits for the time of that number. It is dropped then.
async fn until_point<F: Future>(future: F, point: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polls = 0;
    let polled = poll_fn(|context| {
        polls += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls >= point => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    polled.await
}

/// Drops what `begin` begins at each of its points, until one has ended, and returns what that has. It is told which point.
async fn at_each_point<F: IntoFuture>(mut begin: impl FnMut(usize) -> F) -> F::Output {
    for point in 1..POINTS_MAX {
        let ended = timeout(PATIENCE, until_point(begin(point).into_future(), point)).await;
        if let Some(output) = ended.expect("it neither ends nor goes on") {
            return output;
        }
    }
    panic!("it waits for ever");
}

/// The same for something that does not end: at its first points, and when it has come to where nothing happens any more.
async fn in_vain<F: IntoFuture>(mut begin: impl FnMut() -> F) {
    for point in (1..10).chain([POINTS_MAX]) {
        let wait = until_point(begin().into_future(), point);
        let ended = timeout(Duration::from_millis(100), wait).await;
        assert!(!matches!(ended, Ok(Some(_))), "it ended, though nobody let it");
    }
}

/// A group of one, and clients of it in this process and outside of it.
struct Two {
    group: Nodes,
    clients: [Client; 2],
}

impl Two {
    async fn start() -> Self {
        let group = Nodes::start(1).await;
        let outside = Client::connect([group.addresses[0].clone()]).await.unwrap();
        let clients = [group.client(0), outside];
        Self { group, clients }
    }

    async fn stop(self) {
        drop(self.clients);
        self.group.shutdown().await;
    }
}

/// Waits until nothing is left below a prefix: what is done in the background is done.
async fn until_empty(client: &Client, prefix: &str) {
    until(prefix, async || {
        client.range(KeyRange::prefix(prefix)).count_only().await.unwrap().count == 0
    })
    .await;
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("still waiting: {what}"));
}

/// A write whose future is dropped happens, or does not: once, and whole.
#[tokio::test(flavor = "multi_thread")]
async fn writes_happen_once_or_not_at_all() {
    let two = Two::start().await;
    for client in &two.clients {
        let client = client.namespace(format!("w/{}/", client.status().await.unwrap().revision));
        let key = |kind: &str, point: usize| format!("{kind}/{point}");
        at_each_point(|point| client.put(key("put", point), "v")).await.unwrap();
        at_each_point(|point| client.put(key("prev", point), "v").prev()).await.unwrap();
        at_each_point(|point| client.put_if_absent(key("new", point), "v")).await.unwrap();
        let both = |point| {
            let put = |kind: &str| Op::put(key(kind, point), "v");
            client.txn().then(put("left")).then(put("right"))
        };
        assert!(at_each_point(both).await.unwrap().succeeded);

        let born = client.put("swapped", "v").await.unwrap();
        at_each_point(|_| client.update_if("swapped", born, "w")).await.unwrap();
        let kept = client.put("kept", "v").await.unwrap();
        assert!(!at_each_point(|_| client.delete_if("kept", kept.next())).await.unwrap());
        client.put("gone", "v").await.unwrap();
        at_each_point(|_| client.delete("gone")).await.unwrap();
        at_each_point(|_| client.delete("gone").prev()).await.unwrap();

        let numbers = client.map::<u64>("numbers/");
        let mut begun = 0;
        let update = |_| {
            begun += 1;
            numbers.update("n", |number| Some(number.unwrap_or(0) + 1))
        };
        at_each_point(update).await.unwrap();
        at_each_point(|_| numbers.put("plain", &1)).await.unwrap();
        at_each_point(|_| numbers.delete("plain")).await.unwrap();

        let found = client.range(..).await.unwrap().entries;
        let of = |kind: &str| {
            let prefix = format!("{kind}/");
            let of_kind = found.iter().filter(|kv| kv.key.starts_with(prefix.as_bytes()));
            of_kind.map(|kv| (kv.key[prefix.len()..].to_vec(), kv.mod_revision)).collect::<Vec<_>>()
        };
        assert_eq!(of("left"), of("right"), "a transaction happens whole");
        for kv in &found {
            let key = String::from_utf8_lossy(&kv.key);
            match &*key {
                "swapped" => assert_eq!((kv.version, &kv.value[..]), (2, &b"w"[..])),
                "kept" => assert_eq!(kv.mod_revision, kept),
                "gone" => panic!("it was deleted"),
                "numbers/n" => {
                    assert_eq!(kv.value, kv.version.to_string(), "each update counts once");
                    assert!((1..=begun).contains(&kv.version), "{} of {begun}", kv.version);
                }
                _ => assert_eq!(kv.version, 1, "{key} was written twice"),
            }
        }
        if let Err(error) = at_each_point(|_| client.compact(born)).await {
            // One that was dropped has done it.
            assert!(matches!(error.reason(), Reason::Compacted { .. }), "{error}");
        }
        assert!(client.get("swapped").at(born).await.is_ok(), "what was at that revision is kept");
    }
    two.stop().await;
}

/// A read changes nothing: not for those that follow it on the same way either.
#[tokio::test(flavor = "multi_thread")]
async fn reads_leave_nothing_behind() {
    let two = Two::start().await;
    for client in &two.clients {
        let revision = client.put("r/k", "5").await.unwrap();
        let lease = client.lease_grant(TTL).await.unwrap().id;
        let map = client.map::<u8>("r/");
        for _ in 0..10 {
            let get = at_each_point(|_| client.get("r/k")).await.unwrap();
            assert_eq!(get.unwrap().mod_revision, revision);
            let range = at_each_point(|_| client.range(KeyRange::prefix("r/"))).await.unwrap();
            assert_eq!(range.count, 1);
            let pages = |_| client.range(KeyRange::prefix("r/")).stream().try_collect::<Vec<_>>();
            assert_eq!(at_each_point(pages).await.unwrap().len(), 1);
            assert_eq!(at_each_point(|_| map.get("k")).await.unwrap(), Some(5));
            assert_eq!(at_each_point(|_| map.entries()).await.unwrap(), [("k".to_owned(), 5)]);
            assert_eq!(at_each_point(|_| client.status()).await.unwrap().revision, revision);
            assert_eq!(at_each_point(|_| client.members()).await.unwrap().len(), 1);
            at_each_point(|_| client.lease_time_to_live(lease)).await.unwrap().unwrap();
            at_each_point(|_| client.lease_keep_alive(lease)).await.unwrap();
            assert_eq!(at_each_point(|_| client.lease_list()).await.unwrap().len(), 1);
        }
        // Some that travel together.
        for point in 1..6 {
            let gets = || try_join_all((0..9).map(|_| client.get("r/k").into_future()));
            let (_, found) = join(until_point(gets(), point), gets()).await;
            assert!(found.unwrap().iter().flatten().all(|kv| kv.mod_revision == revision));
        }
        if let Err(error) = at_each_point(|_| client.lease_revoke(lease)).await {
            // One that was dropped has done it.
            assert!(matches!(error.reason(), Reason::LeaseNotFound { .. }), "{error}");
        }
        assert_eq!(client.lease_list().await.unwrap().len(), 0);
        client.delete("r/k").await.unwrap();
    }
    two.stop().await;
}

/// A watch that is opened, and each wait for its next changes: nothing is lost, and nothing comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn watches_lose_nothing() {
    const CHANGES: usize = 200;
    let two = Two::start().await;
    for client in &two.clients {
        let range = || KeyRange::prefix("n/");
        client.put("n/first", "0").await.unwrap();
        let mut watch = at_each_point(|_| client.watch(range()).with_existing()).await.unwrap();
        let writer = client.clone();
        let writes = tokio::spawn(async move {
            for number in 0..CHANGES {
                writer.put(format!("n/{number}"), "1").await.unwrap();
            }
        });
        let mut seen = Vec::new();
        let all = async {
            for point in 0.. {
                if let Some(changes) = until_point(watch.recv(), point % 3).await {
                    let keys = changes.unwrap().events;
                    seen.extend(keys.iter().map(|event: &Event| event.key().clone()));
                }
                if seen.len() > CHANGES {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, all).await.expect("all changes come");
        writes.await.unwrap();
        let numbers = (0..CHANGES).map(|number| format!("n/{number}"));
        assert_eq!(seen, ["n/first".to_owned()].into_iter().chain(numbers).collect::<Vec<_>>());
        in_vain(|| async { client.watch("n/none").await.unwrap().recv().await }).await;
        client.delete(range()).await.unwrap();
    }
    two.stop().await;
}

/// What keeps a copy: each wait for the next change of it.
#[tokio::test(flavor = "multi_thread")]
async fn copies_miss_no_change() {
    let two = Two::start().await;
    for client in &two.clients {
        client.put("c/0", "1").await.unwrap();
        let mut mirror = at_each_point(|_| client.mirror::<u64>("c/")).await.unwrap();
        let mut config = at_each_point(|_| client.config("c/0", 7u64)).await.unwrap();
        assert_eq!((mirror.snapshot().len(), *config.get()), (1, 1));
        at_each_point(|_| config.set(&8)).await.unwrap();
        let revision = client.get("c/0").await.unwrap().unwrap().mod_revision;
        assert!(!at_each_point(|_| config.set_if(&9, revision.next())).await.unwrap());
        for value in 100..120 {
            config.set(&value).await.unwrap();
            until("the configuration has changed", async || {
                let _ = until_point(config.changed(), value as usize % 3).await;
                *config.get() == value
            })
            .await;
            until("the mirror has changed", async || {
                let _ = until_point(mirror.changed(), value as usize % 3).await;
                mirror.get("0").as_deref() == Some(&value)
            })
            .await;
        }
        client.delete("c/0").await.unwrap();
    }
    two.stop().await;
}

/// Who gives up waiting, or gives up what it has without waiting for the answer, is gone from the line.
#[tokio::test(flavor = "multi_thread")]
async fn lines_have_no_ghosts() {
    let two = Two::start().await;
    for client in &two.clients {
        let session = client.session(TTL).await.unwrap();
        let election = session.election("free");
        drop(at_each_point(|_| session.lock("free")).await.unwrap());
        drop(at_each_point(|_| session.try_lock("free")).await.unwrap());
        drop(at_each_point(|_| election.campaign("me")).await.unwrap());
        at_each_point(|_| election.lead("me", async |_| Ok(()))).await.unwrap();
        at_each_point(|_| session.register("free", &"here")).await.unwrap().leave().await.unwrap();
        until_empty(client, "quorate/").await;

        let (held, election) = (session.lock("held").await.unwrap(), session.election("held"));
        let leadership = election.campaign("the first").await.unwrap();
        in_vain(|| session.lock("held")).await;
        in_vain(|| election.campaign("me")).await;
        in_vain(|| election.lead("me", async |_| Ok(()))).await;
        in_vain(|| held.lost()).await;
        in_vain(|| leadership.run(std::future::pending::<()>())).await;
        in_vain(|| session.lost()).await;
        assert!(at_each_point(|_| session.try_lock("held")).await.unwrap().is_none());
        let leader = at_each_point(|_| election.leader()).await.unwrap().unwrap();
        assert_eq!(leader.token, leadership.token());
        let mut leaders = at_each_point(|_| election.observe()).await.unwrap();
        assert_eq!(leaders.next().await.unwrap().unwrap(), Some(leader));
        at_each_point(|_| leadership.proclaim("the same")).await.unwrap();
        let next = async {
            for point in 0.. {
                match until_point(leaders.next(), point % 3).await {
                    Some(leader) => return leader.unwrap().unwrap().unwrap().name,
                    None => tokio::task::yield_now().await,
                }
            }
            unreachable!()
        };
        assert_eq!(timeout(PATIENCE, next).await.expect("its name has changed"), "the same");
        held.release().await.unwrap();
        leadership.resign().await.unwrap();
        until_empty(client, "quorate/").await;
    }
    two.stop().await;
}

/// To give something up goes on in the background, wherever the wait for the answer is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_is_given_up() {
    const SHORT: Duration = Duration::from_secs(2);
    let two = Two::start().await;
    for client in &two.clients {
        // These leave leases behind, that nobody renews.
        drop(at_each_point(|_| client.session(SHORT)).await);
        let session = client.session(TTL).await.unwrap();
        for point in 1.. {
            let lock = session.lock("l").await.unwrap();
            let leadership = session.election("e").campaign("me").await.unwrap();
            let registration = session.register("s", &1).await.unwrap();
            let _ = until_point(registration.update(&2), point).await;
            let ended = [
                until_point(lock.release(), point).await.is_some(),
                until_point(leadership.resign(), point).await.is_some(),
                until_point(registration.leave(), point).await.is_some(),
            ];
            until_empty(client, "quorate/").await;
            let other = client.session(TTL).await.unwrap();
            let (lease, lock) = (other.lease_id(), other.lock("l").await.unwrap());
            let closed = until_point(other.close(), point).await;
            until("its lease is revoked", async || {
                client.lease_time_to_live(lease).await.unwrap().is_none()
            })
            .await;
            drop(lock);
            if ended == [true; 3] && closed.is_some() {
                break;
            }
        }
        session.close().await.unwrap();
        until("the leases that were left behind have expired", async || {
            client.lease_list().await.unwrap().is_empty()
        })
        .await;
    }
    two.stop().await;
}

/// A client that is given up while it connects closes what it has opened.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_nobody_waits_for_is_closed() {
    let two = Two::start().await;
    let address = two.group.addresses[0].clone();
    let client = at_each_point(|_| Client::connect([address.clone()])).await.unwrap();
    client.put("k", "v").await.unwrap();
    drop(client);
    // One who takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    in_vain(|| Client::connect([address.clone()])).await;
    let mut closed = 0;
    while let Ok(next) = timeout(Duration::from_millis(100), silent.accept()).await {
        let mut greeting = Vec::new();
        // It is at its end, in whichever way.
        let end = timeout(PATIENCE, next.unwrap().0.read_to_end(&mut greeting)).await;
        let _ = end.expect("it is closed");
        closed += 1;
    }
    assert!(closed > 0, "it has tried to connect");
    two.stop().await;
}

/// A start that is given up leaves a folder that can be started on; so do a backup and a restore.
#[tokio::test(flavor = "multi_thread")]
async fn folders_stay_usable() {
    let folder = tempfile::tempdir().unwrap();
    let (data, path) = (folder.path().join("data"), folder.path().join("backup"));
    let node = patiently(is_busy, || Node::builder(&data).heartbeat(HEARTBEAT).solo()).await;
    at_each_point(|_| node.ready()).await.unwrap();
    in_vain(|| node.failed()).await;
    let client = node.client();
    for number in 0..200 {
        client.put(format!("k{number:03}"), vec![7; 1000]).await.unwrap();
    }
    for point in 1.. {
        assert!(point < POINTS_MAX, "it waits for ever");
        let mut file = tokio::fs::File::create(&path).await.unwrap();
        let written = until_point(node.backup(&mut file), point).await;
        // What it was about to write is written by then.
        drop(file.into_std().await);
        match written {
            Some(written) => {
                written.unwrap();
                break;
            }
            // Without its end it is refused. All of it may be there, and only not known to be.
            None => match Backup::inspect(&path).await {
                Ok(info) => assert_eq!(info.keys, 200),
                Err(error) => assert!(is_damaged(&error), "{error}"),
            },
        }
    }
    assert_eq!(at_each_point(|_| Backup::inspect(&path)).await.unwrap().keys, 200);
    node.shutdown().await.unwrap();

    let restored = folder.path().join("restored");
    let restore = async {
        let mut point = 1;
        loop {
            match until_point(Backup::restore(&path, &restored), point).await {
                Some(Ok(_)) => break,
                // One that was dropped was about to be done.
                Some(Err(error)) if matches!(error.reason(), Reason::FolderNotEmpty { .. }) => {
                    break;
                }
                Some(Err(error)) => assert!(is_busy(&error), "{error}"),
                None => point += 1,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, restore).await.expect("the folder is free again");
    let node = patiently(is_busy, || Node::builder(&restored).heartbeat(HEARTBEAT).solo()).await;
    assert_eq!(node.client().range(..).count_only().await.unwrap().count, 200);
    // Dropped where it waits, which is the same as a node that is dropped.
    let _ = until_point(node.shutdown(), 1).await;
    let node = patiently(is_busy, || Node::builder(&restored).heartbeat(HEARTBEAT).solo()).await;
    node.shutdown().await.unwrap();
}

/// Who joins, is made a voter, takes another's place and is removed, is so once: wherever the calls before were dropped.
#[tokio::test(flavor = "multi_thread")]
async fn members_change_once() {
    let two = Two::start().await;
    let (folder, seed) = (tempfile::tempdir().unwrap(), two.group.addresses[0].clone());
    let join = async |name: String| {
        let (data, address) = (folder.path().join(name), addresses(1).remove(0));
        let builder = || Node::builder(&data).heartbeat(HEARTBEAT).listen(&address);
        let node = patiently(is_busy, || builder().join([&seed])).await;
        node.ready().await.unwrap();
        node
    };
    for (turn, client) in two.clients.iter().enumerate() {
        let first = join(format!("first {turn}")).await;
        let members = client.members().await.unwrap();
        assert_eq!(members.len(), 2, "it asked for the same id each time: {members:?}");
        patiently(is_changing, || client.promote_member(first.id())).await;
        let second = join(format!("second {turn}")).await;
        patiently(is_changing, || client.replace_member(first.id()).with(second.id())).await;
        timeout(PATIENCE, first.failed()).await.expect("it hears of it");
        let members = client.members().await.unwrap();
        assert!(members.len() == 2 && members.iter().all(|it| it.is_voter), "{members:?}");
        assert!(members.iter().any(|it| it.id == second.id()), "{members:?}");
        patiently(is_changing, || client.remove_member(second.id())).await;
        timeout(PATIENCE, second.failed()).await.expect("it hears of it");
        assert_eq!(client.members().await.unwrap().len(), 1);
        client.put("k", "v").await.unwrap();
    }
    two.stop().await;
}

/// Founders that give up, each at its own points, found one group all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_founded_once() {
    let (folder, addresses) = (tempfile::tempdir().unwrap(), addresses(3));
    let form = async |founder: usize| {
        let data = folder.path().join(founder.to_string());
        let builder = || Node::builder(&data).heartbeat(HEARTBEAT).listen(&addresses[founder]);
        patiently(is_busy, || builder().form(addresses.clone())).await
    };
    let nodes = join3(form(0), form(1), form(2)).await;
    let nodes = [nodes.0, nodes.1, nodes.2];
    for node in &nodes {
        node.ready().await.unwrap();
        assert_eq!(node.status().group, nodes[0].status().group);
        node.client().put("k", "v").await.unwrap();
    }
    let members = nodes[0].client().members().await.unwrap();
    assert!(members.len() == 3 && members.iter().all(|it| it.is_voter), "{members:?}");
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// Does something that is dropped at each of its points, and again while one that was dropped is still in its way.
async fn patiently<T, F: IntoFuture<Output = quorate::Result<T>>>(
    is_in_the_way: fn(&Error) -> bool,
    mut begin: impl FnMut() -> F,
) -> T {
    let done = async {
        let mut point = 1;
        loop {
            match until_point(begin().into_future(), point).await {
                Some(Ok(done)) => return done,
                Some(Err(error)) => assert!(is_in_the_way(&error), "{error}"),
                None => point += 1,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, done).await.expect("it is done")
}

fn is_changing(error: &Error) -> bool {
    matches!(error.reason(), Reason::MembersAreChanging)
}

fn is_damaged(error: &Error) -> bool {
    matches!(error.reason(), Reason::BackupDamaged { .. })
}

fn is_busy(error: &Error) -> bool {
    matches!(error.reason(), Reason::AlreadyOpen { .. })
}
