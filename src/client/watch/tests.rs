//! Watches: ordered, unique, without a gap, whole revisions; whatever is lost, doubled or late.

mod random;

use crate::api::Position;
use crate::client::fake::{Fake, Fault, Kind, Stream};
use crate::client::slot::Slot;
use crate::client::{Client, Watch};
use crate::error::{ErrorKind, Reason};
use crate::types::{Changes, Consistency, Event, KeyRange, Op, Revision};
use futures::StreamExt;
use futures::future::join_all;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// What a watch yields, until it has yielded everything up to `last`.
async fn revisions(watch: &mut Watch, last: Revision) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last.get()) {
        let next = tokio::time::timeout(Duration::from_secs(600), watch.recv()).await;
        let Ok(changes) = next else { break };
        seen.push(changes.unwrap().revision.get());
    }
    seen
}

/// Whether a wait would not end.
async fn is_quiet(watch: &mut Watch) -> bool {
    tokio::time::timeout(Duration::from_secs(90), watch.recv()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_now_sees_what_is_written_after_it() {
    let fake = Fake::new();
    let client = fake.client();
    fake.put("k", "before");
    let mut watch = client.watch("k").prev().await.unwrap();
    let revision = fake.put("k", "after");
    fake.put("other", "v");
    let Changes { revision: seen, events } = watch.recv().await.unwrap();
    assert_eq!(seen, revision);
    let [Event::Put { kv, prev: Some(prev) }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&kv.value[..], &prev.value[..]), (&b"after"[..], &b"before"[..]));
    assert!(is_quiet(&mut watch).await);
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_a_revision_sees_history_and_waits_for_the_future() {
    let fake = Fake::new();
    let client = fake.client();
    let first = fake.put("k", "1");
    let second = fake.put("k", "2");
    let mut past = client.watch("k").from(first).await.unwrap();
    assert_eq!(revisions(&mut past, second).await, [2, 3]);
    let mut future = client.watch("k").from(Revision::from(5)).await.unwrap();
    fake.put("k", "4");
    fake.put("k", "5");
    assert_eq!(future.recv().await.unwrap().revision.get(), 5);
}

#[tokio::test(start_paused = true)]
async fn existing_keys_come_first_and_then_the_changes() {
    let fake = Fake::new();
    let client = fake.client();
    fake.put("k/b", "1");
    fake.put("k/a", "2");
    fake.commit(vec![Op::put("k/c", "3"), Op::put("k/d", "3")]);
    fake.put("x", "4");
    fake.world().page = 3;
    let mut watch = client.watch(KeyRange::prefix("k/")).with_existing().await.unwrap();
    assert_eq!(watch.position().get(), 2);
    let last = fake.delete("k/a");
    let mut seen = Vec::new();
    while seen.last().is_none_or(|changes: &Changes| changes.revision < last) {
        seen.push(watch.recv().await.unwrap());
    }
    let shape: Vec<_> = seen.iter().map(|it| (it.revision.get(), it.events.len())).collect();
    assert_eq!(shape, [(2, 1), (3, 1), (4, 2), (6, 1)]);
    assert!(matches!(seen[3].events[..], [Event::Delete { .. }]));
}

/// The stream of both has come as far as the slower of them.
#[tokio::test(start_paused = true)]
async fn what_an_event_has_shown_is_not_read_older_while_another_watch_catches_up() {
    let fake = Fake::new();
    let client = fake.client();
    let mut live = client.watch("live").await.unwrap();
    for _ in 0..20 {
        fake.put("long", "ago");
    }
    fake.world().fragment = 1;
    let late = client.watch("long").from(Revision::from(1)).await.unwrap();
    let shown = fake.put("live", "now");
    // One step has the change, and the first of what the other lacks; the next one comes much later.
    fake.next(Kind::Follow, Fault::DelayAnswer(Duration::ZERO));
    fake.next(Kind::Follow, Fault::Delay(Duration::from_secs(5)));
    assert_eq!(live.recv().await.unwrap().revision, shown);
    assert!(late.position() < shown);
    client.get("live").consistency(Consistency::Serializable).await.unwrap();
    assert_eq!(fake.world().revision_min, Some(shown));
}

#[tokio::test(start_paused = true)]
async fn the_ranges_of_all_watches_take_so_much_and_not_more() {
    let fake = Fake::new();
    let client = fake.client();
    let open =
        async |number: u64| client.watch(KeyRange::prefix([7; 1000])).from(number.into()).await;
    let mut open_ones = Vec::new();
    let error = loop {
        match open(open_ones.len() as u64).await {
            Ok(watch) => open_ones.push(watch),
            Err(error) => break error,
        }
    };
    assert_eq!(*error.reason(), Reason::TooManyRequests);
    assert_eq!(open_ones.len(), (1 << 19) / 2000);
    open_ones.pop();
    drop(open(1).await.expect("one was closed"));
}

#[tokio::test(start_paused = true)]
async fn filters_leave_out_puts_or_deletes() {
    let fake = Fake::new();
    let client = fake.client();
    let mut puts = client.watch("k").puts_only().await.unwrap();
    let mut deletes = client.watch("k").deletes_only().await.unwrap();
    let (put, delete) = (fake.put("k", "v"), fake.delete("k"));
    assert_eq!(puts.recv().await.unwrap().revision, put);
    assert_eq!(deletes.recv().await.unwrap().revision, delete);
    assert!(is_quiet(&mut puts).await && is_quiet(&mut deletes).await);
}

/// Whatever happens to the calls, a watch sees every revision, once, in order.
#[tokio::test(start_paused = true)]
async fn nothing_is_lost_or_doubled_by_broken_calls() {
    let lost = Reason::ConnectionLost;
    let faults = [
        Fault::LoseAnswer,
        Fault::Refuse(lost),
        Fault::Forget,
        Fault::Repeat,
        Fault::Skip,
        Fault::Hang,
        Fault::Delay(Duration::from_millis(70)),
        Fault::DelayAnswer(Duration::from_millis(70)),
    ];
    for (index, first) in faults.iter().enumerate() {
        for second in &faults {
            let fake = Fake::new();
            let client = fake.client();
            let mut watches = Vec::new();
            let mut last = Revision::from(1);
            for round in 0..6 {
                if round % 2 == 0 {
                    let watch = client.watch("k").from(Revision::from(2)).await.unwrap();
                    watches.push(watch);
                }
                fake.next(Kind::Follow, first.clone());
                fake.settle().await;
                last = fake.put("k", "v");
                fake.next(Kind::Follow, second.clone());
                last = fake.put("k", "w").max(last);
                if index % 2 == 0 {
                    fake.settle().await;
                }
            }
            let expected: Vec<_> = (2..=last.get()).collect();
            for watch in &mut watches {
                assert_eq!(revisions(watch, last).await, expected, "{first:?}, {second:?}");
            }
            for watch in &mut watches {
                assert!(is_quiet(watch).await, "{first:?}, {second:?}");
                assert_eq!(watch.position(), last.next());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watch = client.watch("k").await.unwrap();
    fake.settle().await;
    fake.down();
    assert!(is_quiet(&mut watch).await);
    let calls = fake.count(Kind::Follow);
    assert!(calls < 100, "{calls} calls in 90 seconds");
    let written = fake.put("k", "v");
    fake.outage(None);
    assert_eq!(watch.recv().await.unwrap().revision, written);
}

#[tokio::test(start_paused = true)]
async fn a_revision_in_pieces_is_delivered_whole() {
    let fake = Fake::new();
    let client = fake.client();
    fake.world().fragment = 2;
    let keys = |count: usize| (0..count).map(|index| Op::put(format!("k{index}"), "v")).collect();
    let mut all = client.watch(KeyRange::prefix("k")).from(Revision::from(2)).await.unwrap();
    let mut some = client.watch("k0".."k3").from(Revision::from(2)).await.unwrap();
    // Of the last, what comes after the first piece does not match `some`.
    for count in [5, 1, 4, 3, 2, 9] {
        fake.commit(keys(count));
    }
    for count in [5, 1, 4, 3, 2, 9] {
        assert_eq!(all.recv().await.unwrap().events.len(), count);
        assert_eq!(some.recv().await.unwrap().events.len(), count.min(3));
    }
    assert!(is_quiet(&mut all).await && is_quiet(&mut some).await);
}

/// It is known to be whole as soon as the stream has passed it; nothing has to happen to the range first.
#[tokio::test(start_paused = true)]
async fn half_a_revision_whose_rest_does_not_match_is_delivered_at_once() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watch = client.watch("k0".."k2").await.unwrap();
    fake.settle().await;
    fake.world().fragment = 2;
    let revision = fake.commit((0..5).map(|index| Op::put(format!("k{index}"), "v")).collect());
    let began = Instant::now();
    let changes = watch.recv().await.unwrap();
    assert_eq!((changes.revision, changes.events.len()), (revision, 2));
    assert!(began.elapsed() < Duration::from_millis(100));
    // Nothing of the pieces matches: there is nothing to deliver.
    let position = Position { revision, sub: 3 };
    let cursor = Slot::new(VecDeque::new(), revision);
    assert!(cursor.fill(vec![Changes { revision, events: Vec::new() }], position, 1));
    assert_eq!(cursor.held(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_node_sends_twice_is_delivered_once() {
    let fake = Fake::new();
    let client = fake.client();
    fake.world().stale = 3;
    let mut watch = client.watch("k").from(Revision::from(4)).await.unwrap();
    let mut last = Revision::from(1);
    for _ in 0..10 {
        last = fake.put("k", "v");
        fake.settle().await;
    }
    assert_eq!(revisions(&mut watch, last).await, (4..=last.get()).collect::<Vec<_>>());
    assert!(is_quiet(&mut watch).await);
}

/// A newcomer that has much to catch up with holds the progress of the stream down, and nobody's position goes back.
#[tokio::test(start_paused = true)]
async fn positions_never_go_back() {
    let fake = Fake::new();
    let client = fake.client();
    let mut quiet = client.watch("k").await.unwrap();
    let mut last = Revision::from(1);
    for _ in 0..20 {
        last = fake.put("x", "v");
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(quiet.position(), last.next());
    fake.world().fragment = 1;
    for _ in 0..20 {
        fake.next(Kind::Follow, Fault::DelayAnswer(Duration::from_millis(5)));
    }
    let mut late = client.watch("x").from(Revision::from(2)).await.unwrap();
    for revision in 2..=last.get() {
        assert_eq!(late.recv().await.unwrap().revision.get(), revision);
        assert!(quiet.position() >= last.next());
    }
    let written = fake.put("k", "v");
    assert_eq!(quiet.recv().await.unwrap().revision, written);
}

#[tokio::test(start_paused = true)]
async fn a_new_watch_does_not_wait_for_the_news_of_others() {
    let fake = Fake::new();
    let client = fake.client();
    let _quiet = client.watch("quiet").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = Instant::now();
    let written = fake.put("k", "v");
    let mut watch = client.watch("k").from(written).await.unwrap();
    assert_eq!(watch.recv().await.unwrap().revision, written);
    assert!(began.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn pieces_are_joined_although_the_stream_breaks_between_them() {
    for fault in [Fault::LoseAnswer, Fault::Forget, Fault::Refuse(Reason::ConnectionLost)] {
        let fake = Fake::new();
        let client = fake.client();
        let mut watch = client.watch(KeyRange::prefix("k")).await.unwrap();
        fake.settle().await;
        fake.world().fragment = 2;
        for _ in 0..3 {
            fake.next(Kind::Follow, fault.clone());
        }
        let keys = (0..7).map(|index| Op::put(format!("k{index}"), "v"));
        let revision = fake.commit(keys.collect());
        let changes = watch.recv().await.unwrap();
        assert_eq!((changes.revision, changes.events.len()), (revision, 7), "{fault:?}");
        assert!(is_quiet(&mut watch).await);
    }
}

/// The slot is full in the middle of a revision.
#[tokio::test(start_paused = true)]
async fn a_watch_is_paused_between_two_pieces() {
    let fake = Fake::new();
    let client = fake.client();
    fake.world().fragment = 5;
    let mut watch = client.watch(KeyRange::prefix("k")).from(Revision::from(2)).await.unwrap();
    let value = "v".repeat(50_000);
    for _ in 0..20 {
        let keys = (0..3).map(|index| Op::put(format!("k{index}"), value.clone()));
        fake.commit(keys.collect());
    }
    fake.settle().await;
    let (held, bytes) = watch.held();
    assert!(held < 3 && bytes < 400_000, "{held} changes, {bytes} bytes");
    for revision in 2..22 {
        let changes = watch.recv().await.unwrap();
        assert_eq!((changes.revision.get(), changes.events.len()), (revision, 3));
        fake.settle().await;
    }
    assert!(is_quiet(&mut watch).await);
}

/// A node that knows no stream a moment later is not asked without end.
#[tokio::test(start_paused = true)]
async fn a_forgetful_node_is_not_pressed() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watch = client.watch("k").await.unwrap();
    fake.settle().await;
    let before = fake.count(Kind::Follow);
    fake.world().forgetful = true;
    assert!(is_quiet(&mut watch).await);
    let calls = fake.count(Kind::Follow) - before;
    assert!(calls < 200, "{calls} calls in 90 seconds");
    fake.world().forgetful = false;
    let written = fake.put("k", "v");
    assert_eq!(watch.recv().await.unwrap().revision, written);
}

#[tokio::test(start_paused = true)]
async fn a_watch_below_the_history_ends_with_compacted_and_others_go_on() {
    let fake = Fake::new();
    let client = fake.client();
    for value in ["1", "2", "3"] {
        fake.put("k", value);
    }
    let mut other = client.watch("k").await.unwrap();
    fake.compact(Revision::from(4));
    let mut watch = client.watch("k").from(Revision::from(3)).await.unwrap();
    for _ in 0..2 {
        let error = watch.recv().await.unwrap_err();
        assert_eq!(error.reason(), &Reason::Compacted { at: Revision::from(4) });
    }
    assert!(watch.next().await.is_some_and(|item| item.is_err()));
    assert!(watch.next().await.is_none(), "the stream ends after the error");
    let written = fake.put("k", "4");
    assert_eq!(other.recv().await.unwrap().revision, written);
    let mut edge = client.watch("k").from(Revision::from(4)).await.unwrap();
    assert_eq!(edge.recv().await.unwrap().revision.get(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_closed_node_ends_all_watches() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watches = [client.watch("a").await.unwrap(), client.watch("b").await.unwrap()];
    fake.settle().await;
    fake.put("a", "last");
    fake.settle().await;
    fake.outage(Some(Reason::Closed));
    watches[0].recv().await.unwrap();
    for watch in &mut watches {
        assert_eq!(watch.recv().await.unwrap_err().kind(), ErrorKind::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_watch_holds_up_nobody_holds_little_and_loses_nothing() {
    let fake = Fake::new();
    let client = fake.client();
    let mut slow = client.watch("k").await.unwrap();
    let mut quick = client.watch("k").await.unwrap();
    fake.settle().await;
    let value = "v".repeat(1024);
    let mut last = Revision::from(1);
    for _ in 0..2000 {
        last = fake.put("k", &value);
        assert_eq!(quick.recv().await.unwrap().revision, last);
    }
    let (held, bytes) = slow.held();
    assert!(held < 100 && bytes < 128 * 1024, "{held} changes, {bytes} bytes");
    assert_eq!(slow.position().get(), 2, "nothing was taken yet");
    let expected: Vec<_> = (2..=last.get()).collect();
    assert_eq!(revisions(&mut slow, last).await, expected);
    // And it is back on the stream.
    last = fake.put("k", "v");
    assert_eq!(slow.recv().await.unwrap().revision, last);
}

#[tokio::test(start_paused = true)]
async fn a_position_moves_on_although_nothing_matches_and_resumes() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watch = client.watch("k").await.unwrap();
    let mut other = client.watch("other").await.unwrap();
    assert_eq!(watch.position().get(), 2);
    let last = fake.put("other", "v");
    other.recv().await.unwrap();
    fake.settle().await;
    assert_eq!(watch.position(), last.next());
    drop(client);
    let written = fake.put("k", "v");
    assert_eq!(watch.recv().await.unwrap().revision, written);
    let position = watch.position();
    let mut resumed = fake.client().watch("k").from(position).await.unwrap();
    let next = fake.put("k", "w");
    assert_eq!(resumed.recv().await.unwrap().revision, next);
}

/// A member that lags answers with a progress below what was seen already.
#[tokio::test(start_paused = true)]
async fn a_watch_that_joins_at_a_lagging_member_misses_nothing() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watch = client.watch("k").await.unwrap();
    for _ in 0..5 {
        fake.put("x", "v");
    }
    let mut other = client.watch("x").from(Revision::from(2)).await.unwrap();
    other.recv().await.unwrap();
    fake.settle().await;
    let before = watch.position();
    let back = Fake::new();
    back.put("x", "v");
    std::mem::swap(&mut *fake.world(), &mut *back.world());
    fake.next(Kind::Follow, Fault::Forget);
    let mut late = client.watch("k").from(Revision::from(3)).await.unwrap();
    fake.settle().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!((watch.position(), late.position().get()), (before, 3));
    let third = fake.put("k", "3");
    assert_eq!(late.recv().await.unwrap().revision, third);
    while fake.put("x", "v") < before.get().saturating_sub(1).into() {}
    let next = fake.put("k", "next");
    assert_eq!(watch.recv().await.unwrap().revision, next);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_watches_are_one_waiting_call() {
    let fake = Fake::new();
    let client = fake.client();
    let open = async |index: usize| {
        let range = KeyRange::key(format!("k{index}"));
        client.watch(range).from(Revision::from(2)).await.unwrap()
    };
    let mut watches = join_all((0..10_000).map(open)).await;
    fake.settle().await;
    let calls = fake.count(Kind::Follow);
    assert!(calls <= 5, "{calls} calls");
    let written = fake.put("k9999", "v");
    assert_eq!(watches[9999].recv().await.unwrap().revision, written);
    fake.settle().await;
    assert!(watches.iter().all(|watch| watch.position() == written.next()));
    assert!(fake.count(Kind::Follow) <= calls + 1);
    // And they go quietly.
    drop(watches);
    let _last = client.watch("k").from(Revision::from(2)).await.unwrap();
    fake.settle().await;
    let added: usize =
        fake.world().calls.iter().filter(|it| it.0 == Kind::Follow).map(|it| it.1).sum();
    assert!(added <= 10_001);
}

/// A program that opens watches all the time does not keep the others from their news.
#[tokio::test(start_paused = true)]
async fn opening_watches_starves_nobody() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watch = client.watch("k").await.unwrap();
    let opener = client.clone();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut open = Vec::new();
        loop {
            open.push(opener.watch("other").from(Revision::from(2)).await.unwrap());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    for _ in 0..20 {
        // Each answer takes longer than the next watch.
        for _ in 0..5 {
            fake.next(Kind::Follow, Fault::DelayAnswer(Duration::from_millis(10)));
        }
        let written = fake.put("k", "v");
        let seen = tokio::time::timeout(Duration::from_secs(1), watch.recv()).await;
        assert_eq!(seen.unwrap().unwrap().revision, written);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_loses_nothing() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watch = client.watch("k").await.unwrap();
    for _ in 0..20 {
        let wait = tokio::time::timeout(Duration::from_millis(1), watch.recv()).await;
        assert!(wait.is_err());
        let written = fake.put("k", "v");
        assert_eq!(watch.recv().await.unwrap().revision, written);
    }
}

/// It does not wait for news of others, which may not come for long.
#[tokio::test(start_paused = true)]
async fn a_dropped_watch_is_taken_off_at_once() {
    let fake = Fake::new();
    let client = fake.client();
    let (one, mut other) = (client.watch("a").await.unwrap(), client.watch("b").await.unwrap());
    fake.settle().await;
    let cursors = || fake.world().streams.values().map(Stream::cursors).sum::<usize>();
    assert_eq!(cursors(), 2);
    drop(one);
    fake.settle().await;
    assert_eq!(cursors(), 1);
    let written = fake.put("b", "v");
    assert_eq!(other.recv().await.unwrap().revision, written);
}

/// A member still has the stream that a client left it with, and its numbers are like those of the one that follows.
#[tokio::test(start_paused = true)]
async fn a_watch_that_goes_to_another_member_and_back_misses_nothing() {
    let (members, asked) = ([Fake::new(), Fake::new()], Arc::<AtomicUsize>::default());
    let client = Fake::client_of(members.to_vec(), asked.clone());
    let mut watch = client.watch("k").await.unwrap();
    members[0].settle().await;
    let mut others = Vec::new();
    for there in [1, 0] {
        asked.store(there, Ordering::Relaxed);
        // What waits for news is interrupted, and goes on with another call.
        let other = client.watch(format!("other/{there}")).from(Revision::from(2));
        others.push(other.await.unwrap());
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let written = members.each_ref().map(|member| member.put("k", "v"))[0];
    let next = tokio::time::timeout(Duration::from_secs(60), watch.recv()).await;
    assert_eq!(next.expect("the change").unwrap().revision, written);
}

#[tokio::test(start_paused = true)]
async fn the_hub_ends_with_the_last_watch_and_client() {
    let fake = Fake::new();
    let client = fake.client();
    let mut watch = client.watch("k").await.unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    drop(client);
    let written = fake.put("k", "v");
    assert_eq!(watch.recv().await.unwrap().revision, written);
    assert!(metrics.num_alive_tasks() > 0);
    drop(watch);
    fake.settle().await;
    assert_eq!(metrics.num_alive_tasks(), 0);
}

#[test]
fn a_watch_outlives_its_runtime_with_an_error() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let (one, other) = (runtime(), runtime());
    let (client, mut watch): (Client, Watch) = one.block_on(async {
        let client = Fake::new().client();
        let watch = client.watch("k").await.unwrap();
        (client, watch)
    });
    drop(one);
    let error = other.block_on(watch.recv()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let open = client.watch("k").from(Revision::from(2));
    assert_eq!(other.block_on(open.into_future()).unwrap_err().kind(), ErrorKind::Closed);
}

/// A thousand tasks of a program that wait for the same are one to the node, and each sees all of it.
#[tokio::test(start_paused = true)]
async fn watches_of_the_same_share_a_cursor() {
    let fake = Fake::new();
    let client = fake.client();
    let added = || {
        let world = fake.world();
        let follows = world.calls.iter().filter(|it| it.0 == Kind::Follow);
        follows.map(|it| it.1).sum::<usize>()
    };
    let mut first = client.watch("k").await.unwrap();
    fake.put("k", "1");
    fake.settle().await;
    let mut all: Vec<Watch> = join_all((0..1000).map(|_| client.watch("k").into_future()))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    fake.settle().await;
    assert_eq!(added(), 1);
    let second = fake.put("k", "2");
    for watch in &mut all {
        assert_eq!(watch.recv().await.unwrap().revision, second, "and nothing from before it");
    }
    assert_eq!(revisions(&mut first, second).await, [2, 3], "which the first has seen");
    // Other options, and another past, are something else.
    let mut puts = client.watch("k").puts_only().await.unwrap();
    let mut past = client.watch("k").from(Revision::from(2)).await.unwrap();
    assert_eq!(revisions(&mut past, second).await, [2, 3]);
    fake.settle().await;
    assert_eq!(added(), 3);
    // One that begins in the future shares it, and sees nothing before.
    let mut future = client.watch("k").from(Revision::from(5)).await.unwrap();
    fake.delete("k");
    let last = fake.put("k", "3");
    assert_eq!(revisions(&mut future, last).await, [5]);
    assert_eq!(revisions(&mut puts, last).await, [5]);
    assert_eq!(revisions(&mut past, last).await, [4, 5]);
    // The first goes, and all but one; the stream is lost; and that one has all.
    drop(first);
    let mut one = all.pop().unwrap();
    drop(all);
    fake.next(Kind::Follow, Fault::Forget);
    let newest = fake.put("k", "4");
    assert_eq!(revisions(&mut one, newest).await, [4, 5, 6]);
    assert_eq!(one.position(), newest.next());
}

/// One of those who share does not take its news: it costs the others nothing, and misses nothing.
#[tokio::test(start_paused = true)]
async fn one_that_is_slow_leaves_the_others_and_loses_nothing() {
    let fake = Fake::new();
    let client = fake.client();
    let mut quick = client.watch("k").await.unwrap();
    let mut slow = client.watch("k").await.unwrap();
    let large = "x".repeat(20_000);
    let mut last = Revision::from(0);
    for _ in 0..50 {
        last = fake.put("k", &large);
        assert_eq!(quick.recv().await.unwrap().revision, last);
    }
    assert!(slow.held().0 < 10, "it holds no more than a slot");
    let expected: Vec<u64> = (2..=last.get()).collect();
    assert_eq!(revisions(&mut slow, last).await, expected);
    let newest = fake.put("k", "v");
    assert_eq!(quick.recv().await.unwrap().revision, newest);
    assert_eq!(slow.recv().await.unwrap().revision, newest);
}

/// History was compacted past the cursor: that ends those who had not come so far, and not those who had only shared it.
#[tokio::test(start_paused = true)]
async fn a_compaction_ends_only_those_who_need_what_is_gone() {
    let fake = Fake::new();
    let client = fake.client();
    for _ in 0..5 {
        fake.put("k", "v");
    }
    fake.down();
    let mut past = client.watch("k").from(Revision::from(2)).await.unwrap();
    let mut future = client.watch("k").from(Revision::from(9)).await.unwrap();
    fake.compact(Revision::from(6));
    fake.outage(None);
    let end = past.recv().await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Compacted);
    for _ in 0..3 {
        fake.put("k", "v");
    }
    assert_eq!(future.recv().await.unwrap().revision.get(), 9);
}
