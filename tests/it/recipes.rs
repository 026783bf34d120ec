//! The recipes against real nodes: who holds, who leads, and what everybody sees of it.

use crate::kit::group::Nodes;
use crate::kit::{Dice, PATIENCE};
use futures::StreamExt;
use quorate::recipes::{Config, Leader, Mirror};
use quorate::{Client, ErrorKind, FencingToken, KeyRange, KeyValue, Result, Session};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// What a lock protects: a resource outside of the group that can do one thing, to compare tokens.
#[derive(Default)]
struct FakeLimitedResource {
    state: Mutex<Resource>,
}

#[derive(Default)]
struct Resource {
    inside: Option<FencingToken>,
    newest: Option<FencingToken>,
    uses: Vec<FencingToken>,
}

/// The token is older than one that was seen before.
#[derive(Debug, PartialEq)]
struct Stale;

impl FakeLimitedResource {
    fn enter(&self, token: FencingToken) -> Result<(), Stale> {
        let mut state = self.state.lock().unwrap();
        if state.newest.is_some_and(|newest| token < newest) {
            return Err(Stale);
        }
        assert_eq!(state.inside, None, "two holders at once");
        (state.inside, state.newest) = (Some(token), Some(token));
        state.uses.push(token);
        Ok(())
    }

    fn leave(&self, token: FencingToken) {
        assert_eq!(self.state.lock().unwrap().inside.take(), Some(token), "two holders at once");
    }

    fn uses(&self) -> Vec<FencingToken> {
        self.state.lock().unwrap().uses.clone()
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("still waiting: {what}"))
}

/// Waits until there are `count` keys in the line of a lock or election.
async fn lined_up(client: &Client, prefix: &str, count: u64) {
    soon("the line is as long as it should be", async {
        while client.range(KeyRange::prefix(prefix)).count_only().await.unwrap().count != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Sixteen contenders over three members line up one after the other, and get the lock in that order, one at a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_goes_down_the_line_over_all_members() {
    const CONTENDERS: usize = 16;
    let group = Nodes::start(3).await;
    let resource = Arc::new(FakeLimitedResource::default());
    let client = group.client(0);
    let first = client.session(Duration::from_secs(20)).await.unwrap();
    let lock = soon("the free lock", first.lock("job")).await.unwrap();
    let (sender, mut order) = mpsc::unbounded_channel();
    let mut contenders = JoinSet::new();
    for contender in 0..CONTENDERS {
        let session = group.client(contender % 3).session(Duration::from_secs(20)).await.unwrap();
        let (resource, sender) = (resource.clone(), sender.clone());
        contenders.spawn(async move {
            let lock = session.lock("job").await.unwrap();
            resource.enter(lock.token()).unwrap();
            sender.send(contender).unwrap();
            // A write and a read in the lock's own transaction: as slow as real work, and fenced.
            let client = session.client();
            let mark = quorate::Op::put("job/last", contender.to_string());
            let fenced = client.txn().when(lock.held()).then(mark).await.unwrap();
            assert!(fenced.succeeded);
            resource.leave(lock.token());
            // Whether it is released or dropped, the next one gets it.
            if contender % 2 == 0 {
                lock.release().await.unwrap()
            } else {
                drop(lock)
            }
            session
        });
        lined_up(&client, "quorate/lock/job/", contender as u64 + 2).await;
    }
    resource.enter(lock.token()).unwrap();
    let stale = lock.token();
    resource.leave(stale);
    lock.release().await.unwrap();
    let sessions = soon("everybody had it", contenders.join_all()).await;
    for contender in 0..CONTENDERS {
        assert_eq!(order.recv().await, Some(contender), "first come, first served");
    }
    let uses = resource.uses();
    assert_eq!(uses.len(), CONTENDERS + 1);
    assert!(uses.is_sorted(), "{uses:?}");
    assert_eq!(resource.enter(stale), Err(Stale));
    lined_up(&client, "quorate/lock/job/", 0).await;
    drop((first, sessions));
    group.shutdown().await;
}

/// What an observer has seen, until it sees `name`; "nobody" is nobody.
async fn seen_until(
    leaders: &mut (impl StreamExt<Item = Result<Option<Leader>>> + Unpin),
    name: &str,
) -> Vec<Leader> {
    let mut seen = Vec::new();
    loop {
        let leader = soon(name, leaders.next()).await.unwrap().unwrap();
        let is_last = leader.as_ref().map_or("nobody", |leader| &leader.name) == name;
        seen.extend(leader);
        if is_last {
            return seen;
        }
    }
}

/// The lead goes on by resigning, by closing a session, and by the end of a node. Observers on every member see each
/// leader, in the order of their tokens, and never a mere candidate.
#[tokio::test(flavor = "multi_thread")]
async fn observers_see_every_hand_over() {
    let mut group = Nodes::start(3).await;
    let leader = group.leader().await;
    let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
    let ttl = Duration::from_secs(3);
    let mut observers = Vec::new();
    for node in [leader, one] {
        let session = group.client(node).session(ttl).await.unwrap();
        observers.push(session.election("boss").observe().await.unwrap());
    }
    let mut truth = Vec::new();
    // Resigned.
    let session = group.client(one).session(ttl).await.unwrap();
    let reign = soon("a", session.election("boss").campaign("a")).await.unwrap();
    truth.push(reign.token());
    let other = group.client(leader).session(ttl).await.unwrap();
    let election = other.election("boss");
    let mut next = Box::pin(election.campaign("b"));
    assert!(timeout(Duration::from_millis(50), next.as_mut()).await.is_err());
    reign.resign().await.unwrap();
    let reign = soon("b", next).await.unwrap();
    truth.push(reign.token());
    // Closed.
    let third = group.client(two).session(ttl).await.unwrap();
    let election = third.election("boss");
    let mut next = Box::pin(election.campaign("c"));
    assert!(timeout(Duration::from_millis(50), next.as_mut()).await.is_err());
    other.clone().close().await.unwrap();
    soon("a closed session is lost", reign.lost()).await;
    let last = soon("c", next).await.unwrap();
    truth.push(last.token());
    // Its node ends without a word.
    let election = session.election("boss");
    let mut next = Box::pin(election.campaign("d"));
    assert!(timeout(Duration::from_millis(50), next.as_mut()).await.is_err());
    group.drop_node(two);
    soon("nothing renews it any more", last.lost()).await;
    let reign = soon("d", next).await.unwrap();
    truth.push(reign.token());
    assert_eq!(election.leader().await.unwrap().unwrap().token, reign.token());
    for leaders in &mut observers {
        let seen: Vec<_> = seen_until(leaders, "d").await;
        let names: Vec<_> = seen.iter().map(|leader| leader.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        let tokens: Vec<_> = seen.iter().map(|leader| leader.token).collect();
        assert_eq!(tokens, truth);
    }
    drop(reign);
    for leaders in &mut observers {
        assert!(seen_until(leaders, "nobody").await.is_empty());
    }
    drop((observers, session, third));
    group.shutdown().await;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    rate: u32,
}

/// A change is seen on all members. One by hand that makes no sense changes nothing anywhere, and is reported.
#[tokio::test(flavor = "multi_thread")]
async fn configuration_is_reloaded_on_all_members() {
    let group = Nodes::start(3).await;
    let mut configs: Vec<Config<Limits>> = Vec::new();
    for node in 0..3u32 {
        let own = Limits { rate: 100 + node };
        configs.push(group.client(node as usize).config("limits", own).await.unwrap());
    }
    let is = async |config: &mut Config<Limits>, rate: u32| {
        while config.get().rate != rate {
            soon("the new value", config.changed()).await.unwrap();
        }
    };
    for config in &mut configs {
        is(config, 100).await;
    }
    let written = configs[2].set(&Limits { rate: 7 }).await.unwrap();
    for config in &mut configs {
        is(config, 7).await;
        assert_eq!(config.revision(), written);
    }
    let client = group.client(1);
    client.put("limits", r#"{ "rate": "fast" }"#).await.unwrap();
    for config in &configs {
        let error = group.until("the bad value is reported", || config.last_error()).await;
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert_eq!((config.get().rate, config.revision()), (7, written));
    }
    client.put("limits", r#"{ "rate": 8, "unknown": [] }"#).await.unwrap();
    for config in &mut configs {
        is(config, 8).await;
        assert!(config.last_error().is_none());
    }
    assert!(!configs[0].set_if(&Limits { rate: 9 }, written).await.unwrap());
    let seen = configs[0].revision();
    assert!(configs[0].set_if(&Limits { rate: 9 }, seen).await.unwrap());
    for config in &mut configs {
        is(config, 9).await;
    }
    drop(configs);
    group.shutdown().await;
}

fn truth(entries: &[KeyValue]) -> BTreeMap<String, u64> {
    let named = entries.iter().map(|kv| {
        let name = std::str::from_utf8(&kv.key).unwrap().strip_prefix("m/").unwrap();
        (name.to_owned(), serde_json::from_slice(&kv.value).unwrap())
    });
    named.collect()
}

fn copy(mirror: &Mirror<u64>) -> BTreeMap<String, u64> {
    mirror.snapshot().iter().map(|(key, value)| (key.clone(), **value)).collect()
}

/// Mirrors on two members and one outside see 500 random changes, while history is forgotten behind their backs and a
/// member restarts. In the end, and at every revision on the way that they name, they are what was written.
#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_the_truth_after_many_changes() {
    let mut group = Nodes::start(3).await;
    let mut dice = Dice::new("mirrors");
    let leader = group.leader().await;
    let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
    let writer = group.client(leader);
    writer.put("m/first", "1").await.unwrap();
    // The one outside is connected to the member that restarts.
    let outside = Client::connect([group.addresses[two].clone()]).await.unwrap();
    let mut mirrors = Vec::new();
    for client in [group.client(leader), group.client(one), outside] {
        mirrors.push(client.mirror::<u64>("m/").await.unwrap());
    }
    let mut history = BTreeMap::new();
    let mut now = BTreeMap::from([("first".to_owned(), 1)]);
    for change in 0..500u64 {
        let mut txn = writer.txn();
        let first = dice.roll(20);
        for key in (first..20).take(1 + dice.roll(3)) {
            let (name, key) = (format!("{key}"), format!("m/{key}"));
            if dice.roll(3) == 0 {
                txn = txn.then(quorate::Op::delete(key));
                now.remove(&name);
            } else {
                txn = txn.then(quorate::Op::put(key, change.to_string()));
                now.insert(name, change);
            }
        }
        let outcome = soon("a write", txn.into_future()).await.unwrap();
        history.insert(outcome.revision, now.clone());
        if change % 50 == 49 {
            writer.compact(outcome.revision).await.unwrap();
        }
        match change {
            150 => group.drop_node(two),
            400 => group.restart(two).await,
            _ => {}
        }
        for mirror in &mirrors {
            // The copy and its revision are read one after the other: it counts if the revision stood still.
            let (before, entries, after) = (mirror.revision(), copy(mirror), mirror.revision());
            if before == after
                && let Some(then) = history.get(&before)
            {
                assert_eq!(entries, *then, "at {before}");
            }
        }
    }
    let last = writer.put("m/last", "0").await.unwrap();
    let page = writer.range(KeyRange::prefix("m/")).await.unwrap();
    now.insert("last".to_owned(), 0);
    assert_eq!(truth(&page.entries), now);
    for mirror in &mut mirrors {
        while mirror.revision() < last {
            soon("the last change", mirror.changed()).await.unwrap();
        }
        assert_eq!(copy(mirror), now);
        assert!(mirror.last_error().is_none());
    }
    group.node(two).ready().await.unwrap();
    assert!(group.are_equal().await);
    drop((mirrors, writer));
    group.shutdown().await;
}

/// A node that is cut off from the others gives its sessions up by its own clock, before the others could hand on what
/// those held.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_cut_off_is_lost_before_its_lease() {
    let mut group = Nodes::start(3).await;
    for alone_leads in [true, false] {
        let leader = group.leader().await;
        let alone = if alone_leads { leader } else { (leader + 1) % 3 };
        let ttl = Duration::from_secs(2);
        let session: Session = group.client(alone).session(ttl).await.unwrap();
        let lock = soon("the free lock", session.lock("cut-off")).await.unwrap();
        let others = [(alone + 1) % 3, (alone + 2) % 3];
        for node in others {
            group.drop_node(node);
        }
        let cut_off = Instant::now();
        soon("the session is lost", lock.lost()).await;
        // What was renewed at the last moment lives that much longer, less the margin of a tenth.
        let lived = cut_off.elapsed();
        assert!(lived < ttl, "{lived:?}");
        assert!(!session.is_alive());
        // Nothing has expired it: the lease is still there when the others are back, and its keys.
        for node in others {
            group.restart(node).await;
        }
        let client = group.client(others[0]);
        let next = client.session(Duration::from_secs(20)).await.unwrap();
        let token = lock.token();
        let taken = soon("the group ends the lease", next.lock("cut-off")).await.unwrap();
        assert!(cut_off.elapsed() > lived && taken.token() > token);
        let stale = client.txn().when(lock.held()).then(quorate::Op::put("x", "y")).await.unwrap();
        assert!(!stale.succeeded, "it is fenced off");
        taken.release().await.unwrap();
        next.close().await.unwrap();
        drop((lock, session));
    }
    group.shutdown().await;
}
