//! Elections: one leader at a time, and everybody sees who.

use super::Leader;
use crate::client::fake::{Fake, Fault, Kind};
use crate::client::{Client, Session};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::types::FencingToken;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const TTL: Duration = Duration::from_secs(9);

async fn open(client: &Client) -> Session {
    client.session(TTL).await.unwrap()
}

async fn name(leaders: &mut BoxStream<'static, Result<Option<Leader>>>) -> String {
    let leader = timeout(Duration::from_secs(60), leaders.next()).await.unwrap().unwrap();
    leader.unwrap().map_or("nobody".to_owned(), |leader| leader.name)
}

#[tokio::test(start_paused = true)]
async fn candidates_lead_one_after_the_other() {
    let fake = Fake::new();
    let client = fake.client();
    let (one, other) = (open(&client).await, open(&client).await);
    let election = one.election("e");
    assert_eq!(election.leader().await.unwrap(), None);
    let reign = election.campaign("one").await.unwrap();
    let leader = election.leader().await.unwrap().unwrap();
    assert_eq!((leader.name.as_str(), leader.token), ("one", reign.token()));
    let election = other.election("e");
    let mut next = std::pin::pin!(election.campaign("other"));
    assert!(timeout(Duration::from_secs(1), next.as_mut()).await.is_err());
    reign.proclaim("the one").await.unwrap();
    assert_eq!(election.leader().await.unwrap().unwrap().name, "the one");
    assert!(timeout(Duration::from_secs(1), next.as_mut()).await.is_err());
    let token = reign.token();
    reign.resign().await.unwrap();
    let reign = next.await.unwrap();
    assert!(reign.token() > token);
    assert_eq!(reign.run(async { 42 }).await.unwrap(), 42);
}

/// It is the oldest that leads, whatever the last event was.
#[tokio::test(start_paused = true)]
async fn an_observer_sees_each_leader_once() {
    let fake = Fake::new();
    let client = fake.client();
    let (one, other) = (open(&client).await, open(&client).await);
    let mut leaders = one.election("e").observe().await.unwrap();
    assert_eq!(name(&mut leaders).await, "nobody");
    let reign = one.election("e").campaign("one").await.unwrap();
    assert_eq!(name(&mut leaders).await, "one");
    let election = other.election("e");
    let mut next = Box::pin(election.campaign("other"));
    assert!(timeout(Duration::from_secs(1), next.as_mut()).await.is_err());
    assert!(timeout(Duration::from_secs(1), leaders.next()).await.is_err(), "a candidate is none");
    reign.proclaim("the one").await.unwrap();
    assert_eq!(name(&mut leaders).await, "the one");
    // A late observer begins with who leads now.
    let mut late = other.election("e").observe().await.unwrap();
    assert_eq!(name(&mut late).await, "the one");
    drop(reign);
    let second = next.await.unwrap();
    for leaders in [&mut leaders, &mut late] {
        assert_eq!(name(leaders).await, "other");
    }
    second.resign().await.unwrap();
    assert_eq!(name(&mut leaders).await, "nobody");
}

#[tokio::test(start_paused = true)]
async fn an_observer_waits_out_an_outage_and_a_compaction() {
    let fake = Fake::new();
    let (client, observer) = (fake.client(), fake.client());
    let one = open(&client).await;
    let reign = one.election("e").campaign("one").await.unwrap();
    let mut leaders = open(&observer).await.election("e").observe().await.unwrap();
    assert_eq!(name(&mut leaders).await, "one");
    fake.down();
    assert!(timeout(TTL / 2, leaders.next()).await.is_err());
    fake.expire(one.lease_id());
    drop(reign);
    let now = fake.put("x", "v");
    let now = fake.put("x", "v").max(now);
    fake.compact(now);
    fake.next(Kind::Query, Fault::Refuse(Reason::NoLeader));
    fake.outage(None);
    assert_eq!(name(&mut leaders).await, "nobody");
    fake.outage(Some(Reason::Closed));
    let end = leaders.next().await.unwrap().unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Closed);
    assert!(leaders.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_campaign_withdraws() {
    let fake = Fake::new();
    let client = fake.client();
    let (one, other) = (open(&client).await, open(&client).await);
    let reign = one.election("e").campaign("one").await.unwrap();
    let waited = timeout(Duration::from_secs(1), other.election("e").campaign("other")).await;
    assert!(waited.is_err());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fake.keys().len(), 1);
    drop(reign);
    sleep(Duration::from_secs(1)).await;
    assert!(fake.keys().is_empty());
}

/// The work of one reign is gone before the next begins, under a new session if need be.
#[tokio::test(start_paused = true)]
async fn leading_goes_on_under_a_new_session_and_never_overlaps_itself() {
    let fake = Fake::new();
    let session = open(&fake.client()).await;
    let (running, reigns) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    struct Running(Arc<AtomicUsize>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let counts = (running.clone(), reigns.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut last = FencingToken::from(0);
        session
            .election("e")
            .lead("me", move |leadership| {
                assert_eq!(counts.0.fetch_add(1, Ordering::Relaxed), 0, "one at a time");
                let (alive, reign) = (Running(counts.0.clone()), &counts.1);
                let number = reign.fetch_add(1, Ordering::Relaxed) + 1;
                assert!(leadership.token() > last);
                last = leadership.token();
                async move {
                    let _alive = alive;
                    if number == 3 {
                        return Err(Error::new(Reason::KeyNotFound));
                    }
                    std::future::pending().await
                }
            })
            .await
    });
    fake.settle().await;
    for reign in 1..3 {
        assert_eq!((running.load(Ordering::Relaxed), reigns.load(Ordering::Relaxed)), (1, reign));
        fake.down();
        sleep(TTL * 2).await;
        assert_eq!(running.load(Ordering::Relaxed), 0, "without a group there is no leader");
        fake.outage(None);
        sleep(TTL).await;
    }
    let end = tasks.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(end.reason(), &Reason::KeyNotFound, "the error of the work");
    assert!(fake.keys().is_empty(), "and it has resigned");
}

/// A group that is short of room for a while does not end a service's candidacy.
#[tokio::test(start_paused = true)]
async fn leading_waits_for_room() {
    let fake = Fake::new();
    let session = open(&fake.client()).await;
    for _ in 0..5 {
        fake.next(Kind::Propose, Fault::Refuse(Reason::NoSpace));
    }
    session.election("e").lead("me", async |_| Ok(())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leading_ends_well_with_its_work_and_when_the_session_is_closed() {
    let fake = Fake::new();
    let session = open(&fake.client()).await;
    session.election("e").lead("me", async |_| Ok(())).await.unwrap();
    assert!(fake.keys().is_empty());
    let election = session.election("e");
    let mut lead = Box::pin(election.lead("me", async |_| std::future::pending().await));
    assert!(timeout(Duration::from_secs(1), lead.as_mut()).await.is_err());
    session.clone().close().await.unwrap();
    assert_eq!(lead.await.unwrap_err().reason(), &Reason::SessionLost);
}

/// It is the caller's own session that ends it, also when it leads under one that it made itself.
#[tokio::test(start_paused = true)]
async fn leading_under_a_new_session_ends_when_the_first_one_is_closed() {
    let fake = Fake::new();
    let session = open(&fake.client()).await;
    let first = session.lease_id();
    let election = session.election("e");
    let mut lead = Box::pin(election.lead("me", async |_| std::future::pending().await));
    assert!(timeout(Duration::from_secs(1), lead.as_mut()).await.is_err());
    fake.expire(first);
    assert!(timeout(TTL, lead.as_mut()).await.is_err());
    assert_eq!(fake.keys().len(), 1, "it leads again");
    let (closed, led) = tokio::join!(session.clone().close(), timeout(TTL, lead));
    closed.unwrap();
    assert_eq!(led.expect("ends").unwrap_err().reason(), &Reason::SessionLost);
    sleep(Duration::from_secs(1)).await;
    assert!(fake.keys().is_empty(), "and has withdrawn");
}
