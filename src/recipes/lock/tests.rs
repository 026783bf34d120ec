//! Locks: in order, one at a time, and nothing left behind by whoever gave up.

use super::LockGuard;
use crate::client::fake::{Fake, Fault, Kind};
use crate::client::{Client, Session};
use crate::error::{ErrorKind, Reason, Result};
use crate::types::{LeaseId, Op, Revision};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(9);

async fn open(client: &Client) -> Session {
    client.session(TTL).await.unwrap()
}

/// What stays when a wait is given up after some time.
async fn give_up_after(wait: Duration, lock: impl Future<Output = Result<LockGuard>>) {
    assert!(timeout(wait, lock).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_free_lock_takes_one_call_and_has_a_growing_token() {
    let fake = Fake::new();
    let session = open(&fake.client()).await;
    session.client().put("k", "v").await.unwrap();
    let calls = fake.world().calls.len();
    let lock = session.lock("billing/nightly").await.unwrap();
    assert_eq!(fake.world().calls.len(), calls + 1);
    assert_eq!(fake.keys(), ["k", "quorate/lock/billing%2Fnightly/0000000000000001-0"]);
    let first = lock.token();
    assert_eq!(first.get(), fake.world().revision);
    lock.release().await.unwrap();
    assert_eq!(fake.keys(), ["k"]);
    let lock = session.lock("billing/nightly").await.unwrap();
    assert!(lock.token() > first);
}

/// First come, first served; and a release wakes nobody but the next.
#[tokio::test(start_paused = true)]
async fn the_lock_goes_down_the_line_and_wakes_one_at_a_time() {
    let fake = Fake::new();
    let client = fake.client();
    let first = open(&client).await.lock("l").await.unwrap();
    let (sender, mut held) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for index in 0..20 {
        let (session, sender) = (open(&client).await, sender.clone());
        tasks.spawn(async move {
            let lock = session.lock("l").await.unwrap();
            sender.send((index, lock)).unwrap();
            std::future::pending::<()>().await;
        });
        fake.settle().await;
    }
    let mut lock = first;
    for index in 0..20 {
        assert!(held.try_recv().is_err(), "one at a time");
        let (token, queries) = (lock.token(), fake.count(Kind::Query));
        lock.release().await.unwrap();
        fake.settle().await;
        let (holder, guard) = held.try_recv().unwrap();
        assert_eq!(holder, index);
        assert!(guard.token() > token);
        assert_eq!(fake.count(Kind::Query), queries + 1, "only the next one looked");
        // At any member, but none that is behind what it waited for.
        let least = fake.world().revision_min.map(Revision::get);
        assert!(least > Some(guard.token().get()), "{least:?}");
        lock = guard;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_lets_the_next_one_in() {
    let fake = Fake::new();
    let client = fake.client();
    let (one, other) = (open(&client).await, open(&client).await);
    let lock = one.lock("l").await.unwrap();
    let next = other.lock("l");
    let mut next = std::pin::pin!(next);
    assert!(timeout(Duration::from_secs(1), next.as_mut()).await.is_err());
    drop(lock);
    let lock = timeout(Duration::from_secs(1), next).await.unwrap().unwrap();
    assert_eq!(fake.keys().len(), 1);
    // Also while the group is away for a while.
    fake.down();
    drop(lock);
    sleep(TTL / 2).await;
    fake.outage(None);
    sleep(Duration::from_secs(2)).await;
    assert!(fake.keys().is_empty());
    assert!(other.is_alive());
}

/// The call that was to give the lock up is not answered for longer than the ttl, while the session lives on: it is
/// repeated until it is done.
#[tokio::test(start_paused = true)]
async fn a_dropped_guard_is_given_up_however_long_it_takes() {
    let fake = Fake::new();
    let session = open(&fake.client()).await;
    let lock = session.lock("l").await.unwrap();
    fake.next(Kind::Propose, Fault::Hang);
    drop(lock);
    sleep(TTL * 3).await;
    assert!(session.is_alive());
    assert!(fake.keys().is_empty(), "nobody else would ever get the lock");
}

/// Wherever the wait is given up, nobody waits for it.
#[tokio::test(start_paused = true)]
async fn a_dropped_wait_leaves_the_line() {
    let faults = [
        None,
        Some((Kind::Propose, Fault::Hang)),
        Some((Kind::Propose, Fault::DelayAnswer(Duration::from_secs(5)))),
        Some((Kind::Propose, Fault::LoseAnswer)),
        Some((Kind::Propose, Fault::Delay(Duration::from_secs(5)))),
    ];
    for fault in faults {
        let fake = Fake::new();
        let client = fake.client();
        let (holder, waiter, last) =
            (open(&client).await, open(&client).await, open(&client).await);
        let lock = holder.lock("l").await.unwrap();
        if let Some((kind, fault)) = fault.clone() {
            fake.next(kind, fault);
        }
        give_up_after(Duration::from_secs(1), waiter.lock("l")).await;
        sleep(Duration::from_secs(3)).await;
        assert_eq!(fake.keys().len(), 1, "{fault:?}");
        let mut next = std::pin::pin!(last.lock("l"));
        assert!(timeout(Duration::from_secs(1), next.as_mut()).await.is_err());
        lock.release().await.unwrap();
        timeout(Duration::from_secs(1), next).await.unwrap().unwrap().release().await.unwrap();
        assert!(waiter.is_alive());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_line_up_twice() {
    for fault in [Fault::LoseAnswer, Fault::DelayAnswer(Duration::from_secs(11)), Fault::Hang] {
        let fake = Fake::new();
        let session = fake.client().session(TTL * 10).await.unwrap();
        fake.next(Kind::Propose, fault);
        let lock = session.lock("l").await.unwrap();
        assert_eq!(fake.keys().len(), 1);
        lock.release().await.unwrap();
        assert!(fake.keys().is_empty());
    }
}

/// A try to line up that was given up gets through after the lock was released: a ghost, unless somebody looks for it. That
/// is so only for a client that the group does not remember.
#[tokio::test(start_paused = true)]
async fn a_ghost_in_the_line_is_cleared_away() {
    let fake = Fake::new();
    let session = fake.client().session(TTL * 10).await.unwrap();
    fake.next(Kind::Register, Fault::Refuse(Reason::TooManyClients { limit: 1 }));
    fake.next(Kind::Propose, Fault::Hang);
    let lock = session.lock("l").await.unwrap();
    let [key] = &fake.keys()[..] else { panic!("one key") };
    lock.release().await.unwrap();
    fake.commit(vec![Op::put(key, "ghost").lease(session.lease_id())]);
    sleep(Duration::from_secs(5)).await;
    assert!(fake.keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_expired_holder_is_followed_by_the_next() {
    let fake = Fake::new();
    let (one, other) = (open(&fake.client()).await, open(&fake.client()).await);
    let lock = one.lock("l").await.unwrap();
    let began = Instant::now();
    let next = async {
        // The first holder is cut off, the second is not: it renews while it waits.
        let lock = other.lock("l").await.unwrap();
        (lock, began.elapsed())
    };
    let lost = async {
        lock.lost().await;
        began.elapsed()
    };
    fake.cut_off(one.lease_id());
    let ((next, taken), lost) = tokio::join!(next, lost);
    assert!(lost < taken, "{lost:?}, {taken:?}");
    assert!(next.token() > lock.token());
    let stale = one.client().txn().when(lock.held()).then(Op::put("k", "v")).await.unwrap();
    assert!(!stale.succeeded, "a stale holder cannot write");
    assert_eq!(lock.release().await.unwrap_err().reason(), &Reason::SessionLost);
    let held = other.client().txn().when(next.held()).then(Op::put("k", "v")).await.unwrap();
    assert!(held.succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_expired_is_told_so() {
    let fake = Fake::new();
    let client = fake.client();
    let (one, other) = (open(&client).await, open(&client).await);
    let lock = one.lock("l").await.unwrap();
    let mut next = std::pin::pin!(other.lock("l"));
    assert!(timeout(Duration::from_millis(1), next.as_mut()).await.is_err());
    // Its key vanishes, and then the one ahead: it must not believe to be at the head.
    fake.expire(other.lease_id());
    lock.release().await.unwrap();
    let error = next.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseExpired);
}

#[tokio::test(start_paused = true)]
async fn when_a_waiter_leaves_the_one_behind_it_still_waits() {
    let fake = Fake::new();
    let client = fake.client();
    let sessions = [open(&client).await, open(&client).await, open(&client).await];
    let lock = sessions[0].lock("l").await.unwrap();
    let mut third = {
        let mut second = Box::pin(sessions[1].lock("l"));
        assert!(timeout(Duration::from_millis(1), second.as_mut()).await.is_err());
        let mut third = Box::pin(sessions[2].lock("l"));
        assert!(timeout(Duration::from_millis(1), third.as_mut()).await.is_err());
        third
    };
    assert!(timeout(Duration::from_secs(1), third.as_mut()).await.is_err());
    assert_eq!(fake.keys().len(), 2);
    drop(lock);
    let _lock = timeout(Duration::from_secs(1), third).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_try_leaves_nothing_behind() {
    let fake = Fake::new();
    let client = fake.client();
    let (one, other) = (open(&client).await, open(&client).await);
    let lock = one.try_lock("l").await.unwrap().unwrap();
    assert!(other.try_lock("l").await.unwrap().is_none());
    assert!(one.try_lock("l").await.unwrap().is_none(), "not even the same session");
    assert_eq!(fake.keys().len(), 1);
    lock.release().await.unwrap();
    fake.next(Kind::Propose, Fault::LoseAnswer);
    let lock = other.try_lock("l").await.unwrap().expect("its own key is no other's");
    assert_eq!(fake.keys().len(), 1);
    drop(lock);
    sleep(Duration::from_secs(1)).await;
    assert!(fake.keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn waiting_survives_an_outage_and_a_compaction() {
    let fake = Fake::new();
    let client = fake.client();
    let (one, other) = (open(&client).await, open(&client).await);
    let lock = one.lock("l").await.unwrap();
    let mut next = std::pin::pin!(other.lock("l"));
    assert!(timeout(Duration::from_secs(1), next.as_mut()).await.is_err());
    fake.down();
    assert!(timeout(TTL / 2, next.as_mut()).await.is_err());
    fake.put("x", "v");
    let now = fake.put("x", "v");
    fake.compact(now);
    fake.outage(None);
    assert!(timeout(TTL / 2, next.as_mut()).await.is_err());
    lock.release().await.unwrap();
    let _lock = timeout(Duration::from_secs(1), next).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_too_long_is_refused_and_leaves_no_chore() {
    let fake = Fake::new();
    let session = open(&fake.client()).await;
    let error = session.lock("n".repeat(2000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let calls = fake.count(Kind::Propose);
    sleep(TTL * 4).await;
    assert_eq!(fake.count(Kind::Propose), calls);
    assert!(session.is_alive());
}

/// Ten contenders, each of which adds to a sum under the lock: no addition is lost.
#[tokio::test(start_paused = true)]
async fn what_is_done_under_the_lock_is_done_one_after_the_other() {
    let fake = Fake::new();
    let client = fake.client();
    let mut tasks = JoinSet::new();
    for contender in 0..10u64 {
        let client = client.clone();
        tasks.spawn(async move {
            let session = open(&client).await;
            let sum = client.map::<u64>("sum");
            for round in 0..10 {
                let lock = session.lock("l").await.unwrap();
                let before = sum.get("").await.unwrap().unwrap_or(0);
                sleep(Duration::from_millis(contender + round)).await;
                sum.put("", &(before + 1)).await.unwrap();
                if round % 2 == 0 { lock.release().await.unwrap() } else { drop(lock) }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(client.map::<u64>("sum").get("").await.unwrap(), Some(100));
}

#[test]
fn guards_can_cross_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<LockGuard>();
    check::<crate::recipes::Leadership>();
    check::<crate::recipes::Mirror<LeaseId>>();
    check::<crate::recipes::Config<LeaseId>>();
    fn send(_: impl Send) {}
    let _waits_can_too = |session: &Session, client: &Client| {
        send(session.lock("l"));
        send(session.try_lock("l"));
        send(session.lost());
        send(session.clone().close());
        send(client.config("k", 1u32));
        send(client.watch("k").into_future());
        send(client.map::<u32>("k").update("k", |n| n));
    };
}
