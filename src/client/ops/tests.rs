//! Requests: what they send, what they yield, and what is known after a failure.

use crate::client::fake::{Fake, Fault, Kind};
use crate::client::{Client, RangeRead};
use crate::error::{ErrorKind, Reason};
use crate::types::{Compare, Consistency, KeyRange, Op, OpResult, Revision, SortBy, limits};
use futures::{StreamExt, TryStreamExt};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_write_yields_its_revision_and_on_request_what_was_there() {
    let client = Fake::new().client();
    let first = client.put("k", "a").await.unwrap();
    let (second, prev) = client.put("k", "b").prev().await.unwrap();
    assert_eq!((first.get(), second.get()), (2, 3));
    assert_eq!(prev.unwrap().value, "a");
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "b");
    assert_eq!(client.get("k").at(first).await.unwrap().unwrap().value, "a");
    let gone = client.delete("k").prev().await.unwrap();
    assert_eq!(gone[0].mod_revision, second);
    assert_eq!(client.delete("k").await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn conditional_writes_say_whether_they_happened() {
    let client = Fake::new().client();
    let made = client.put_if_absent("k", "a").await.unwrap().unwrap();
    assert_eq!(client.put_if_absent("k", "b").await.unwrap(), None);
    let moved = client.update_if("k", made, "c").await.unwrap().unwrap();
    assert_eq!(client.update_if("k", made, "d").await.unwrap(), None);
    assert!(!client.delete_if("k", made).await.unwrap());
    assert!(client.delete_if("k", moved).await.unwrap());
    assert!(!client.delete_if("k", Revision::from(0)).await.unwrap(), "nothing was there");
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_only_reads_stays_out_of_the_log() {
    let fake = Fake::new();
    let client = fake.client();
    fake.put("a", "1");
    let read = client.txn().when(Compare::exists("a")).then(Op::get("a")).await.unwrap();
    assert!(matches!(&read.results[..], [OpResult::Get(Some(_))]));
    assert_eq!((fake.count(Kind::Propose), fake.count(Kind::Query)), (0, 1));
    client.txn().then(Op::get("a")).otherwise(Op::put("b", "2")).await.unwrap();
    assert_eq!((fake.count(Kind::Propose), fake.count(Kind::Query)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_a_rule_is_refused_here() {
    let fake = Fake::new();
    let client = fake.client();
    let error = client.put("", "v").await.unwrap_err();
    assert_eq!(error.reason(), &Reason::EmptyKey);
    let error = client.put("k", "v").ignore_value().await.unwrap_err();
    assert_eq!(error.reason(), &Reason::ValueProvided);
    assert_eq!(client.watch("b".."a").await.unwrap_err().reason(), &Reason::EmptyRange);
    assert!(fake.world().calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_leaves_a_write_unknown_and_a_read_not() {
    let fake = Fake::new();
    let client = fake.client();
    (0..10).for_each(|_| fake.next(Kind::Propose, Fault::Hang));
    fake.next(Kind::Query, Fault::Hang);
    let began = tokio::time::Instant::now();
    let write = client.put("k", "v").await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(10), "the usual timeout");
    assert_eq!(write.reason(), &Reason::DeadlinePassed { waited: Duration::from_secs(10) });
    assert!(write.is_retryable() && write.may_have_applied());
    let read = client.get("k").timeout(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(read.reason(), &Reason::DeadlinePassed { waited: Duration::from_secs(1) });
    assert!(read.is_retryable() && !read.may_have_applied());
    assert_eq!(began.elapsed(), Duration::from_secs(11));
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_is_sent_again_and_happens_once() {
    let fake = Fake::new();
    let client = fake.client();
    (0..3).for_each(|_| fake.next(Kind::Propose, Fault::LoseAnswer));
    let written = client.put("k", "v").await.unwrap();
    assert_eq!(fake.count(Kind::Propose), 4);
    let found = client.get("k").await.unwrap().unwrap();
    assert_eq!((found.mod_revision, found.version, found.value.as_ref()), (written, 1, &b"v"[..]));
    // Also what the rules refuse: not refused the second time for another reason.
    fake.next(Kind::Propose, Fault::LoseAnswer);
    let made = client.put_if_absent("new", "v").await.unwrap();
    assert!(made.is_some(), "the first try made it");
    assert_eq!(fake.count(Kind::Register), 1);
}

/// A try that was never answered may have been applied, and another group, or one that has forgotten, cannot say.
#[tokio::test(start_paused = true)]
async fn a_client_that_was_forgotten_asks_for_another_name() {
    let fake = Fake::new();
    let client = fake.client();
    client.put("k", "1").await.unwrap();
    fake.world().forgotten = 1;
    client.put("k", "2").await.unwrap();
    assert_eq!(fake.count(Kind::Register), 2);
    let lost = async {
        fake.next(Kind::Propose, Fault::LoseAnswer);
        client.put("k", "3").await
    };
    let forget = async {
        while fake.count(Kind::Propose) < 4 {
            tokio::task::yield_now().await;
        }
        fake.world().forgotten = 2;
    };
    let error = futures::join!(lost, forget).0.unwrap_err();
    assert_eq!(*error.reason(), Reason::ClientForgotten);
    assert!(error.may_have_applied());
    client.put("k", "4").await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap().version, 4);
}

/// One write that is begun and not polled any more: those of all others go on, under another id, and it happens once.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_not_polled_holds_up_nobody_for_long() {
    let fake = Fake::new();
    let client = fake.client();
    client.put("k", "0").await.unwrap();
    fake.next(Kind::Propose, Fault::Hang);
    let mut begun = Box::pin(client.put("begun", "v").into_future());
    assert!(futures::poll!(&mut begun).is_pending());
    let began = tokio::time::Instant::now();
    for _ in 0..limits::OUTSTANDING_MAX + 10 {
        client.put("k", "v").await.unwrap();
    }
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert_eq!(fake.count(Kind::Register), 2);
    begun.await.unwrap();
    assert_eq!(client.get("begun").await.unwrap().unwrap().version, 1);
}

/// One whose time is up is not waited for, and not sent again.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_late_is_not_sent_any_more() {
    let fake = Fake::new();
    let client = fake.client();
    client.put("k", "0").await.unwrap();
    fake.next(Kind::Propose, Fault::Hang);
    let mut begun = Box::pin(client.put("begun", "v").into_future());
    assert!(futures::poll!(&mut begun).is_pending());
    tokio::time::advance(Duration::from_secs(11)).await;
    for _ in 0..limits::OUTSTANDING_MAX + 10 {
        client.put("k", "v").await.unwrap();
    }
    let calls = fake.count(Kind::Propose);
    assert!(begun.await.unwrap_err().may_have_applied());
    assert_eq!((fake.count(Kind::Propose), fake.count(Kind::Register)), (calls, 1));
}

/// Then each write is sent once, as long as that is so.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_not_remembered_writes_without_a_name() {
    let fake = Fake::new();
    let client = fake.client();
    let refused = || Fault::Refuse(Reason::TooManyClients { limit: 1 });
    fake.next(Kind::Register, refused());
    let began = tokio::time::Instant::now();
    client.put("k", "1").await.unwrap();
    client.put("k", "2").await.unwrap();
    assert_eq!((fake.count(Kind::Register), began.elapsed()), (1, Duration::ZERO));
    fake.next(Kind::Propose, Fault::LoseAnswer);
    assert!(client.put("k", "3").await.unwrap_err().may_have_applied());
    tokio::time::advance(Duration::from_secs(601)).await;
    fake.next(Kind::Propose, Fault::LoseAnswer);
    client.put("k", "4").await.unwrap();
    assert_eq!(fake.count(Kind::Register), 2);
    assert_eq!(client.get("k").await.unwrap().unwrap().version, 4);
}

/// Many writes at once of a client that was forgotten meanwhile.
#[tokio::test(start_paused = true)]
async fn writes_of_a_forgotten_client_do_not_wait_for_each_other() {
    let fake = Fake::new();
    let client = fake.client();
    client.put("k", "0").await.unwrap();
    fake.world().forgotten = 1;
    let writes = (0..limits::OUTSTANDING_MAX + 10).map(|_| client.put("k", "v").into_future());
    futures::future::try_join_all(writes).await.unwrap();
    assert_eq!(fake.count(Kind::Register), 2);
}

/// A client that has never written, after the end of its runtime: no name, and no endless search for one.
#[test]
fn without_a_runtime_there_is_no_name() {
    let build = || tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
    let (one, other) = (build(), build());
    let client = one.block_on(async { Fake::new().client() });
    drop(one);
    let error = other.block_on(client.put("k", "v").into_future()).unwrap_err();
    assert_eq!(error.kind(), crate::error::ErrorKind::Closed);
    assert!(!error.may_have_applied());
}

/// What is in doubt stays so until the group has said something: a refusal that any try could have met is no answer.
#[tokio::test(start_paused = true)]
async fn a_write_in_doubt_is_sent_again_until_its_time_is_up() {
    let fake = Fake::new();
    let client = fake.client();
    client.put("k", "1").await.unwrap();
    fake.next(Kind::Propose, Fault::LoseAnswer);
    fake.next(Kind::Propose, Fault::Refuse(Reason::NoLeader));
    fake.next(Kind::Propose, Fault::Refuse(Reason::TooManyRequests));
    assert_eq!(client.put("k", "2").prev().await.unwrap().1.unwrap().value, "1");
    fake.next(Kind::Propose, Fault::LoseAnswer);
    fake.next(Kind::Propose, Fault::Refuse(Reason::Closed));
    let error = client.put("k", "3").await.unwrap_err();
    assert_eq!(*error.reason(), Reason::Closed);
    assert!(error.may_have_applied());
    (0..100).for_each(|_| fake.next(Kind::Propose, Fault::Refuse(Reason::NoLeader)));
    let began = tokio::time::Instant::now();
    let error = client.put("k", "4").timeout(Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(*error.reason(), Reason::NoLeader);
    assert!(!error.may_have_applied(), "it was in no log");
    assert!(began.elapsed() <= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn no_call_waits_longer_than_a_minute() {
    let fake = Fake::new();
    let client = fake.client();
    fake.next(Kind::Query, Fault::Hang);
    let error = client.get("k").timeout(Duration::MAX).await.unwrap_err();
    assert_eq!(error.reason(), &Reason::DeadlinePassed { waited: Duration::from_secs(60) });
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_pinned_at_the_revision_of_its_first_page() {
    let fake = Fake::new();
    let client = fake.client();
    for index in 0..7 {
        fake.put(&format!("k{index}"), "old");
    }
    fake.world().page = 2;
    let mut stream = client.range(KeyRange::prefix("k")).stream();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first.key, "k0");
    fake.put("k5", "new");
    fake.delete("k6");
    let rest: Vec<_> = stream.try_collect().await.unwrap();
    assert_eq!(rest.len(), 6);
    assert!(rest.iter().all(|kv| kv.value == "old"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_backwards_has_a_limit_and_any_order() {
    let fake = Fake::new();
    let client = fake.client();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("d", "1"), ("e", "5")] {
        fake.put(key, value);
    }
    fake.world().page = 2;
    let all = |read: RangeRead<'_>| {
        let keys = read.stream().map_ok(|kv| String::from_utf8_lossy(&kv.key).into_owned());
        keys.try_fold(String::new(), async |all, key| Ok(all + &key))
    };
    assert_eq!(all(client.range(..).descending()).await.unwrap(), "edcba");
    assert_eq!(all(client.range(..).limit(3)).await.unwrap(), "abc");
    assert_eq!(all(client.range(..).sort(SortBy::Value)).await.unwrap(), "bdcae");
    let top = client.range(..).sort(SortBy::Value).descending().limit(2).keys_only();
    let top: Vec<_> = top.stream().try_collect().await.unwrap();
    assert_eq!((&top[0].key[..], &top[1].key[..]), (&b"e"[..], &b"a"[..]));
    assert!(top.iter().all(|kv| kv.value.is_empty()));
    assert_eq!(all(client.range(..).count_only()).await.unwrap(), "");
    assert_eq!(client.range(..).count_only().await.unwrap().count, 5);
}

#[tokio::test(start_paused = true)]
async fn a_serializable_read_asks_for_what_the_client_has_seen() {
    let fake = Fake::new();
    let client = fake.client();
    let written = client.put("k", "v").await.unwrap();
    let read = client.get("k").consistency(Consistency::Serializable).await.unwrap();
    assert_eq!(read.unwrap().mod_revision, written);
    assert_eq!(fake.world().revision_min, Some(written));
}

/// What is equal by what is asked for comes in the order of a page, however it is read.
#[tokio::test(start_paused = true)]
async fn a_stream_has_the_order_of_a_page() {
    let fake = Fake::new();
    let client = fake.client();
    fake.commit(vec![Op::put("a", "1"), Op::put("b", "1"), Op::put("c", "0")]);
    for by in [SortBy::Value, SortBy::Version, SortBy::CreateRevision, SortBy::ModRevision] {
        let down = || client.range(..).sort(by).descending().limit(2);
        let page = down().await.unwrap().entries;
        let stream: Vec<_> = down().stream().try_collect().await.unwrap();
        assert_eq!(page, stream, "{by:?}");
    }
}

/// A range that takes longer to be read than history is kept can only be read anew.
#[tokio::test(start_paused = true)]
async fn all_of_a_range_is_read_anew_if_history_goes_past_it() {
    let fake = Fake::new();
    let client = fake.client();
    for n in 0..4 {
        fake.put(&format!("k{n}"), "v");
    }
    fake.world().page = 2;
    let compacted = async {
        // When the first page has come, and the second is on its way.
        fake.settle().await;
        let last = fake.put("k9", "v");
        fake.compact(last);
        last
    };
    fake.next(Kind::Query, Fault::DelayAnswer(Duration::ZERO));
    fake.next(Kind::Query, Fault::Delay(Duration::from_secs(1)));
    let read = client.read_all(KeyRange::prefix("k"));
    let (read, last) = futures::future::join(read, compacted).await;
    let (entries, revision) = read.unwrap();
    assert_eq!((entries.len(), revision), (5, last));
    // Which a read of the past cannot.
    let past = client.range(KeyRange::prefix("k")).at(Revision::from(3)).await.unwrap_err();
    assert_eq!(past.kind(), ErrorKind::Compacted);
}

/// A time that no clock can show is a long one.
#[tokio::test(start_paused = true)]
async fn the_longest_time_is_no_reason_to_panic() {
    let fake = Fake::new();
    let client = fake.client_within(Duration::MAX);
    fake.put("k", "v");
    let longest = Duration::MAX;
    client.get("k").timeout(longest).await.unwrap();
    client.put("k", "w").timeout(longest).await.unwrap();
    let read = client.range(..).timeout(longest).sort(SortBy::Version).stream();
    assert_eq!(read.try_collect::<Vec<_>>().await.unwrap().len(), 1);
    let mut watch = client.watch("k").with_existing().timeout(longest).await.unwrap();
    watch.recv().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.put("k", "x").await.unwrap();
    watch.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leases_can_be_kept_by_hand() {
    let fake = Fake::new();
    let client = fake.client();
    let ttl = Duration::from_secs(30);
    let lease = client.lease_grant(ttl).await.unwrap();
    client.put("k", "v").lease(lease.id).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(client.lease_keep_alive(lease.id).await.unwrap(), ttl);
    let status = client.lease_time_to_live(lease.id).await.unwrap().unwrap();
    assert_eq!((status.remaining, status.keys.len()), (ttl, 1));
    assert_eq!(client.lease_list().await.unwrap(), [status]);
    client.lease_revoke(lease.id).await.unwrap();
    assert!(fake.keys().is_empty());
    assert_eq!(client.lease_time_to_live(lease.id).await.unwrap(), None);
    let error = client.lease_keep_alive(lease.id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_map_is_json_and_updates_do_not_get_lost() {
    let fake = Fake::new();
    let client = fake.client();
    let map = client.map::<u64>("n/");
    map.put("a", &1).await.unwrap();
    fake.put("n/a", "41");
    assert_eq!(map.update("a", |n| n.map(|n| n + 1)).await.unwrap(), Some(42));
    assert_eq!(map.update("b", |n| Some(n.unwrap_or(7))).await.unwrap(), Some(7));
    assert_eq!(map.entries().await.unwrap(), [("a".to_owned(), 42), ("b".to_owned(), 7)]);
    assert_eq!(map.update("b", |_| None).await.unwrap(), None);
    assert!(!map.delete("b").await.unwrap());
    // Somebody else is faster, twice.
    let (other, mut races) = (fake.clone(), 0);
    let edit = |n: Option<u64>| {
        if races < 2 {
            races += 1;
            other.put("n/a", &format!("{races}00"));
        }
        n.map(|n| n + 1)
    };
    assert_eq!(map.update("a", edit).await.unwrap(), Some(201));
    fake.put("n/a", "no number");
    let error = map.get("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec);
    assert!(error.to_string().contains("n/a"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn without_endpoints_there_is_nothing_to_connect_to() {
    let error = Client::builder().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// The others wait for their turn, within their own time; one whose turn does not come was not sent.
#[tokio::test(start_paused = true)]
async fn at_most_so_many_requests_are_under_way() {
    let fake = Fake::new();
    let client = fake.client().concurrency(2);
    let second = Duration::from_secs(1);
    client.put("k", "v").await.unwrap();
    let before = fake.count(Kind::Propose);
    fake.next(Kind::Propose, Fault::Delay(second * 3));
    fake.next(Kind::Propose, Fault::Delay(second * 3));
    let slow = [client.put("a", "1").into_future(), client.put("b", "2").into_future()];
    let slow = futures::future::try_join_all(slow);
    let late = async {
        tokio::task::yield_now().await;
        let error = client.put("c", "3").timeout(second).await.unwrap_err();
        assert_eq!(*error.reason(), Reason::TooManyRequests);
        assert!(error.is_retryable() && !error.may_have_applied());
        assert_eq!(fake.count(Kind::Propose), before + 2, "it was not sent");
        client.put("d", "4").await.unwrap();
    };
    let (slow, ()) = futures::future::join(slow, late).await;
    slow.unwrap();
    // A watch waits all the time, and holds no place.
    let _watches = [client.watch("a").await.unwrap(), client.watch("b").await.unwrap()];
    client.put("e", "5").await.unwrap();
}

/// A group in trouble is asked again and again, but not by all at the rate of each.
#[tokio::test(start_paused = true)]
async fn what_is_tried_again_is_a_part_of_what_is_asked_for() {
    let fake = Fake::new();
    let client = fake.client();
    client.put("k", "v").await.unwrap();
    fake.outage(Some(Reason::NoLeader));
    let before = fake.count(Kind::Propose);
    let puts = (0..200).map(|n| client.put(format!("n/{n}"), "v").into_future());
    let puts = futures::future::join_all(puts);
    let hour = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        fake.outage(None);
    };
    let (puts, ()) = futures::future::join(puts, hour).await;
    assert!(puts.iter().all(Result::is_ok));
    let tries = fake.count(Kind::Propose) - before;
    // Each of them alone: a dozen in five seconds.
    assert!((400..2000).contains(&tries), "{tries}");
}
