//! Sessions: kept alive together, lost in time and for good, and cleared away by whoever drops them.

use crate::client::Session;
use crate::client::fake::{Fake, Fault, Kind};
use crate::error::{ErrorKind, Reason};
use crate::types::limits;
use futures::future::join_all;
use std::future::IntoFuture;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(9);

async fn open(fake: &Fake) -> Session {
    fake.client().session(TTL).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_session_lives_as_long_as_it_is_renewed() {
    let fake = Fake::new();
    let session = open(&fake).await;
    session.client().put("k", "v").lease(session.lease_id()).await.unwrap();
    sleep(TTL * 20).await;
    assert!(session.is_alive());
    assert_eq!(fake.keys(), ["k"]);
    let calls = fake.count(Kind::KeepAlive);
    assert!((55..=65).contains(&calls), "{calls} renewals in 20 lives");
}

/// The deadline counts from when the last successful renewal was sent, and comes before the group's.
#[tokio::test(start_paused = true)]
async fn a_session_is_lost_before_the_group_can_expire_it() {
    for last_answer_takes in [0, 500, 1500].map(Duration::from_millis) {
        let fake = Fake::new();
        let session = open(&fake).await;
        fake.next(Kind::KeepAlive, Fault::DelayAnswer(last_answer_takes));
        sleep(TTL / 3 + last_answer_takes + Duration::from_millis(1)).await;
        let sent = Instant::now() - last_answer_takes - Duration::from_millis(1);
        fake.down();
        session.lost().await;
        assert_eq!(sent.elapsed(), TTL - TTL / 10, "the margin is a tenth");
        assert!(!session.is_alive());
        // For good, though the group still knows the lease.
        fake.outage(None);
        sleep(TTL).await;
        assert!(!session.is_alive());
        assert_eq!(session.run(async {}).await.unwrap_err().kind(), ErrorKind::LeaseExpired);
    }
}

/// The keeper did not run for a while, and then an answer arrives that says that all is well.
#[tokio::test(start_paused = true)]
async fn a_starved_process_finds_its_session_lost() {
    let fake = Fake::new();
    let session = open(&fake).await;
    tokio::time::advance(TTL).await;
    assert!(!session.is_alive(), "without any task having run");
    session.lost().await;
    fake.settle().await;
    assert!(!session.is_alive());
    assert_eq!(fake.count(Kind::KeepAlive), 0, "what is lost is not renewed");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_gone_is_lost_at_once() {
    let fake = Fake::new();
    let session = open(&fake).await;
    fake.expire(session.lease_id());
    let began = Instant::now();
    session.lost().await;
    assert_eq!(began.elapsed(), TTL / 3);
}

#[tokio::test(start_paused = true)]
async fn failed_renewals_are_repeated_quickly() {
    let fake = Fake::new();
    let session = open(&fake).await;
    for _ in 0..3 {
        fake.next(Kind::KeepAlive, Fault::Refuse(Reason::NoLeader));
    }
    fake.next(Kind::KeepAlive, Fault::Hang);
    fake.next(Kind::KeepAlive, Fault::LoseAnswer);
    sleep(TTL * 2).await;
    assert!(session.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_sessions_are_renewed_together() {
    let fake = Fake::new();
    let client = fake.client();
    let sessions = join_all((0..1000).map(async |index: u64| {
        // Not all at once: spread over a quarter of a second.
        sleep(Duration::from_micros(index * 250)).await;
        client.session(TTL).await.unwrap()
    }))
    .await;
    sleep(TTL * 10).await;
    assert!(sessions.iter().all(Session::is_alive));
    let calls = fake.count(Kind::KeepAlive);
    assert!(calls <= 32, "{calls} calls for 1,000 sessions in 10 lives");
    // A session of another rhythm does not disturb them.
    let short = client.session(Duration::from_secs(1)).await.unwrap();
    sleep(TTL).await;
    assert!(short.is_alive() && sessions.iter().all(Session::is_alive));
}

#[tokio::test(start_paused = true)]
async fn work_runs_until_it_ends_or_the_session_is_lost() {
    let fake = Fake::new();
    let session = open(&fake).await;
    assert_eq!(session.run(async { 42 }).await.unwrap(), 42);
    fake.down();
    let began = Instant::now();
    let error = session.run(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.reason(), &Reason::SessionLost);
    assert!(began.elapsed() < TTL);
}

#[tokio::test(start_paused = true)]
async fn closing_revokes_and_ends_all_clones() {
    let fake = Fake::new();
    let session = open(&fake).await;
    let clone = session.clone();
    session.client().put("k", "v").lease(session.lease_id()).await.unwrap();
    session.close().await.unwrap();
    assert!(fake.keys().is_empty());
    assert!(!clone.is_alive());
    let proposals = fake.count(Kind::Propose);
    clone.close().await.unwrap();
    sleep(TTL * 3).await;
    assert_eq!(fake.count(Kind::KeepAlive), 0);
    assert_eq!(fake.count(Kind::Propose), proposals + 1);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_fails_or_is_dropped_goes_on_in_the_background() {
    for fault in [Fault::Hang, Fault::Refuse(Reason::NoLeader), Fault::LoseAnswer] {
        let fake = Fake::new();
        let session = open(&fake).await;
        session.client().put("k", "v").lease(session.lease_id()).await.unwrap();
        fake.next(Kind::Propose, fault);
        let _ = timeout(Duration::from_secs(1), session.close()).await;
        sleep(Duration::from_secs(1)).await;
        assert!(fake.keys().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_revokes_although_the_group_is_away() {
    let fake = Fake::new();
    let client = fake.client();
    let session = client.session(TTL).await.unwrap();
    let clone = session.clone();
    client.put("k", "v").lease(session.lease_id()).await.unwrap();
    drop(session);
    fake.settle().await;
    assert_eq!(fake.keys(), ["k"], "a clone is left");
    fake.down();
    // The client goes first, the last session with it: the keeper ends when it has done its work.
    drop(client);
    drop(clone);
    let metrics = tokio::runtime::Handle::current().metrics();
    sleep(Duration::from_secs(1)).await;
    assert!(metrics.num_alive_tasks() > 0);
    fake.outage(None);
    sleep(Duration::from_secs(3)).await;
    assert!(fake.keys().is_empty());
    assert_eq!(metrics.num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_without_a_group_gives_up_when_the_lease_is_gone_anyway() {
    let fake = Fake::new();
    let session = open(&fake).await;
    fake.down();
    drop(session);
    sleep(TTL + Duration::from_secs(3)).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_node_loses_its_sessions() {
    let fake = Fake::new();
    let session = open(&fake).await;
    fake.outage(Some(Reason::Closed));
    let began = Instant::now();
    session.lost().await;
    assert_eq!(began.elapsed(), TTL / 3);
    drop(session);
    fake.settle().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

/// The first renewal is due a third of the ttl after the grant was *sent*, like every other.
#[tokio::test(start_paused = true)]
async fn a_session_whose_grant_took_long_is_renewed_in_time() {
    let fake = Fake::new();
    fake.next(Kind::Propose, Fault::DelayAnswer(TTL * 2 / 3));
    let session = open(&fake).await;
    sleep(TTL * 2).await;
    assert!(session.is_alive());
}

/// A guard or a task may still hold the session, whatever became of `close`.
#[tokio::test(start_paused = true)]
async fn a_close_that_fails_goes_on_although_there_are_clones() {
    for fault in [Fault::Hang, Fault::Refuse(Reason::NoLeader), Fault::LoseAnswer] {
        let fake = Fake::new();
        let session = open(&fake).await;
        let _clone = session.clone();
        session.client().put("k", "v").lease(session.lease_id()).await.unwrap();
        fake.next(Kind::Propose, fault);
        let _ = timeout(Duration::from_secs(1), session.close()).await;
        sleep(Duration::from_secs(1)).await;
        assert!(fake.keys().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_took_too_long_is_no_session() {
    let fake = Fake::new();
    let ttl = Duration::from_secs(2);
    fake.next(Kind::Propose, Fault::DelayAnswer(ttl));
    let error = fake.client().session(ttl).await.unwrap_err();
    assert_eq!(error.reason(), &Reason::SessionLost);
    // A try that takes longer than that is given up, and there is time for another: a lease of its own.
    fake.next(Kind::Propose, Fault::Hang);
    let session = fake.client().session(TTL).await.unwrap();
    assert!(session.is_alive());
}

/// Deletions that a guard asks for go out together, and only while the lease lives.
#[tokio::test(start_paused = true)]
async fn chores_share_calls_and_end_with_the_lease() {
    let fake = Fake::new();
    let session = open(&fake).await;
    let mut created = Vec::new();
    for index in 0..100 {
        created.push(session.client().put(format!("k{index}"), "v").await.unwrap());
    }
    let calls = fake.count(Kind::Propose);
    for (index, created) in created.iter().enumerate() {
        session.delete_later(format!("k{index}").into(), Some(*created));
    }
    session.delete_later("k-changed".into(), Some(created[0]));
    sleep(Duration::from_secs(1)).await;
    assert!(fake.keys().is_empty());
    assert_eq!(fake.count(Kind::Propose), calls + 1);
    fake.down();
    session.delete_later("k".into(), Some(created[0]));
    session.lost().await;
    fake.outage(None);
    sleep(TTL).await;
    let calls = fake.count(Kind::Propose);
    sleep(TTL).await;
    assert_eq!(fake.count(Kind::Propose), calls);
}

/// A key whose write is still on its way is looked for until it is there.
#[tokio::test(start_paused = true)]
async fn a_key_that_arrives_late_is_found() {
    let fake = Fake::new();
    let session = open(&fake).await;
    session.delete_later("late".into(), None);
    // As long as a call may take.
    sleep(limits::CALL_TIMEOUT_MAX).await;
    // And once more, by a try that was overtaken by another.
    for _ in 0..2 {
        fake.put("late", "v");
        sleep(Duration::from_secs(4)).await;
        assert!(fake.keys().is_empty());
    }
    sleep(Duration::from_secs(60)).await;
    let calls = fake.count(Kind::Propose);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.count(Kind::Propose), calls);
}

/// The runtime of a node ends while the program waits: no panic, and no endless wait.
#[test]
fn what_waits_when_the_runtime_ends_is_told_so() {
    let build = || tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
    let (one, other) = (build(), build());
    let fake = Fake::new();
    let session = one.block_on(open(&fake));
    let (lost, client) = (session.clone(), session.client().clone());
    fake.next(Kind::Propose, Fault::Hang);
    let lost = other.spawn(async move { lost.lost().await });
    let write = other.spawn(async move { client.put("k", "v").await.unwrap_err() });
    while fake.count(Kind::Propose) < 2 {
        std::thread::yield_now();
    }
    drop(one);
    other.block_on(lost).unwrap();
    let error = other.block_on(write).unwrap();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(error.may_have_applied());
    assert!(!session.is_alive());
    let after = other.block_on(session.client().put("k", "v").into_future()).unwrap_err();
    assert!(!after.may_have_applied(), "it was never sent");
}

/// The runtime of the node ends before the session does: it is lost at once, and no timer of the dead runtime is touched.
#[test]
fn a_session_ends_with_the_runtime_of_its_client() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (one, other) = (runtime(), runtime());
    let session = one.block_on(async { open(&Fake::new()).await });
    let waiting = session.clone();
    let mut lost = Box::pin(async move { waiting.lost().await });
    let moment = Duration::from_millis(1);
    assert!(other.block_on(async { timeout(moment, lost.as_mut()).await }).is_err());
    drop(one);
    other.block_on(lost);
    assert!(!session.is_alive());
}
