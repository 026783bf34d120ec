//! Steps of streams against a real state: nothing is lost, whatever its caller or another does.

use super::*;
use crate::api::{Command, Proposal};
use crate::mvcc::{Body, Entry, LogPosition};
use crate::types::{Op, TxnOp};

/// Commits one put for each index, each on its own, as fast as the state's thread can.
fn commit(state: &Arc<State>, indexes: std::ops::Range<u64>, key: impl Fn(u64) -> String) {
    for index in indexes {
        let put = Op::put(key(index), "v");
        let command = Command::Txn(TxnOp::single(put.0));
        let body = Body::Command(Arc::new(Proposal::from(command)));
        let position = LogPosition { term: 1, node: 1, index };
        state.apply_for_test(&[Entry { position, body }]);
    }
}

fn cursor(range: impl Into<KeyRange>, next: u64) -> Cursor {
    let next = Position::start_of(Revision::from(next));
    Cursor { range: range.into(), next, puts: true, deletes: true, prev: false }
}

/// A call of stream 1, numbered as it is made.
fn step(after: u64, added: Vec<(CursorId, Cursor)>, wait: Duration) -> Follow {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    Follow { stream: 1, call, after, added, removed: vec![], wait, bytes_max: 1 << 20 }
}

/// The revisions in an answer, and its number and progress.
fn taken(followed: Followed) -> (u64, u64, Vec<u64>) {
    let Followed::Step { number, progress, news } = followed else { panic!("{followed:?}") };
    let revisions = news.into_iter().flat_map(|(_, news)| match news {
        News::Changes { changes, .. } => changes.into_iter().map(|it| it.revision.get()),
        News::Ended(reason) => panic!("{reason}"),
    });
    (number, progress.get(), revisions.collect())
}

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

/// A commit between opening the view and taking the woken cursors was once lost: its wake found the cursor ready, and
/// the view was older. So the cursors are taken first.
#[test]
fn no_commit_hides_behind_the_one_before_it() {
    const COMMITS: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let follower = std::thread::spawn({
        let state = Arc::clone(&state);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            runtime.unwrap().block_on(async {
                let watchers = Watchers::new(state);
                let (mut next, mut after) = (2, 0);
                let mut added = vec![(CursorId(1), cursor(KeyRange::prefix("k"), 2))];
                while next < COMMITS + 2 {
                    let follow = step(after, std::mem::take(&mut added), LONG);
                    let (number, _, revisions) = taken(watchers.follow(follow).await.unwrap());
                    after = number;
                    for revision in revisions {
                        assert_eq!(revision, next, "an event is lost, or comes twice");
                        next += 1;
                    }
                }
            });
        }
    });
    commit(&state, 0..COMMITS, |index| format!("k{}", index % 7));
    follower.join().unwrap();
}

/// However many ranges a caller thinks of, they take so much memory and not more; and what he takes back makes room.
#[tokio::test]
async fn the_ranges_of_a_caller_take_so_much_and_not_more() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    let long = |number: u64| (CursorId(number), cursor(KeyRange::prefix([7; 1000]), 2));
    let few = |first: u64| (first..first + 500).map(long).collect();
    let (number, ..) = taken(watchers.follow(step(0, few(1), NOW)).await.unwrap());
    let refused = watchers.follow(step(number, few(501), NOW)).await.unwrap_err();
    assert_eq!(*refused.reason(), Reason::TooManyRequests);
    // Whoever is refused begins anew, and fewer of them fit.
    let (number, ..) = taken(watchers.follow(step(0, few(1001), NOW)).await.unwrap());
    let mut instead = step(number, few(1501), NOW);
    instead.removed = (1001..=1500).map(CursorId).collect();
    taken(watchers.follow(instead).await.unwrap());
}

/// A watch looks at what is in memory, and waits for no disk.
#[tokio::test]
async fn what_a_cursor_waits_for_needs_no_flush() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    state.settled().await.unwrap();
    let watchers = Watchers::new(Arc::clone(&state));
    let added = vec![(CursorId(1), cursor(KeyRange::prefix("k"), 2))];
    let mut step = Box::pin(watchers.follow(step(0, added, LONG)));
    assert!(futures::poll!(&mut step).is_pending());
    let before = state.store().unwrap().commits();
    let hand_in = async |index, key: &str| {
        let command = Command::Txn(TxnOp::single(Op::put(key, "v").0));
        let body = Body::Command(Arc::new(Proposal::from(command)));
        let position = LogPosition { term: 1, node: 1, index };
        state.hand_in(vec![Entry { position, body }], vec![None], 100).await.unwrap();
        state.head().wait_for(|head| head.applied == Some(index)).await.unwrap();
    };
    hand_in(0, "other").await;
    assert!(futures::poll!(&mut step).is_pending());
    hand_in(1, "k1").await;
    let (number, progress, revisions) = taken(step.await.unwrap());
    assert_eq!((number, revisions), (1, vec![3]));
    // Cursors are woken one by one, and only then may others be said to have seen it.
    assert!(progress <= 3, "{progress}");

    // What was there before somebody came to wait is not forgotten.
    hand_in(2, "l1").await;
    let added = vec![(CursorId(2), cursor("l1", 4))];
    let answer = watchers.follow(self::step(1, added, LONG)).await.unwrap();
    let (number, progress, revisions) = taken(answer);
    assert_eq!((number, revisions), (2, vec![4]));
    assert!(progress <= 4, "{progress}");
    assert_eq!(state.store().unwrap().commits(), before);
}

#[tokio::test]
async fn a_lost_answer_is_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    commit(&state, 0..3, |_| "k".into());
    let first = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
    assert_eq!(taken(watchers.follow(first).await.unwrap()), (1, 4, vec![2, 3, 4]));
    commit(&state, 3..5, |_| "k".into());
    let answer = taken(watchers.follow(step(1, vec![], NOW)).await.unwrap());
    assert_eq!(answer, (2, 6, vec![5, 6]));
    // The caller did not get it, and asks again after the first.
    assert_eq!(taken(watchers.follow(step(1, vec![], NOW)).await.unwrap()), answer);
    assert_eq!(taken(watchers.follow(step(2, vec![], NOW)).await.unwrap()), (3, 6, vec![]));
    // Two steps back is a caller that this member does not know.
    assert_eq!(watchers.follow(step(1, vec![], NOW)).await.unwrap(), Followed::Unknown);
}

/// A call that was given up may get its turn after the one that was made in its place, and even after that one was
/// answered: the two are tasks of their own. It once took that answer back, and gave another one under its number.
#[tokio::test]
async fn a_call_that_comes_late_takes_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    let first = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
    assert_eq!(taken(watchers.follow(first).await.unwrap()), (1, 1, vec![]));
    let late = step(1, vec![], LONG);
    commit(&state, 0..1, |_| "k".into());
    assert_eq!(taken(watchers.follow(step(1, vec![], NOW)).await.unwrap()), (2, 2, vec![2]));
    commit(&state, 1..2, |_| "k".into());
    assert_eq!(watchers.follow(late).await.unwrap(), Followed::Unknown);
    assert_eq!(taken(watchers.follow(step(2, vec![], NOW)).await.unwrap()), (3, 3, vec![3]));
}

/// Nor does it begin the stream anew: the caller would seem to go on with the cursors of the late call.
#[tokio::test]
async fn a_call_that_comes_late_begins_nothing_anew() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    let late = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
    let first = step(0, vec![(CursorId(2), cursor("k", 2))], NOW);
    assert_eq!(taken(watchers.follow(first).await.unwrap()), (1, 1, vec![]));
    assert_eq!(watchers.follow(late).await.unwrap(), Followed::Unknown);
    commit(&state, 0..1, |_| "k".into());
    let answer = watchers.follow(step(1, vec![], NOW)).await.unwrap();
    let Followed::Step { number: 2, news, .. } = answer else { panic!("{answer:?}") };
    assert!(matches!(news[..], [(CursorId(2), _)]), "{news:?}");
}

/// The wake-up is for the stream, and whoever gets it may be a call that nobody waits for any more.
#[tokio::test]
async fn a_call_that_was_given_up_does_not_keep_the_wake_up() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    let first = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
    taken(watchers.follow(first).await.unwrap());
    let mut old = std::pin::pin!(watchers.follow(step(1, vec![], LONG)));
    let moment = Duration::from_millis(1);
    assert!(tokio::time::timeout(moment, old.as_mut()).await.is_err());
    let mut new = std::pin::pin!(watchers.follow(step(1, vec![], LONG)));
    assert!(tokio::time::timeout(moment, new.as_mut()).await.is_err());
    commit(&state, 0..1, |_| "k".into());
    let new = tokio::time::timeout(LONG / 10, new);
    let (old, new) = futures::join!(old, new);
    assert_eq!(old.unwrap(), Followed::Unknown);
    assert_eq!(taken(new.expect("woken at once").unwrap()), (2, 2, vec![2]));
}

/// Each time that a caller is in doubt it begins a new stream, and forgets the old one.
#[tokio::test]
async fn a_caller_that_begins_anew_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    for stream in 0..1000 {
        let mut follow = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
        follow.stream = stream;
        taken(watchers.follow(follow).await.unwrap());
    }
    let ranges = state.interest.ranges();
    assert!(ranges.streams.len() < 10, "{} streams", ranges.streams.len());
    assert!(ranges.index.largest() < 10);
}

#[tokio::test]
async fn an_untouched_cursor_moves_on_and_is_not_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    let added = vec![(CursorId(1), cursor("quiet", 2))];
    taken(watchers.follow(step(0, added, NOW)).await.unwrap());
    commit(&state, 0..10, |_| "loud".into());
    let compact = Command::Compact(Revision::from(8));
    let body = Body::Command(Arc::new(Proposal::from(compact)));
    let position = LogPosition { term: 1, node: 1, index: 10 };
    state.apply_for_test(&[Entry { position, body }]);
    let (number, progress, _) = taken(watchers.follow(step(1, vec![], NOW)).await.unwrap());
    assert_eq!((number, progress), (2, 11));
    commit(&state, 11..12, |_| "quiet".into());
    let (_, _, revisions) = taken(watchers.follow(step(2, vec![], LONG)).await.unwrap());
    assert_eq!(revisions, [12]);
}

#[tokio::test]
async fn every_form_of_range_is_woken_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    let ranges = [
        KeyRange::key("b"),
        KeyRange::prefix("b"),
        KeyRange::from("a".."c"),
        KeyRange::from("b"..),
        KeyRange::all(),
    ];
    let added = ranges.into_iter().enumerate();
    let added = added.map(|(id, range)| (CursorId(id as u64), cursor(range, 2))).collect();
    taken(watchers.follow(step(0, added, NOW)).await.unwrap());
    commit(&state, 0..1, |_| "b".into());
    let (_, _, revisions) = taken(watchers.follow(step(1, vec![], LONG)).await.unwrap());
    assert_eq!(revisions, [2; 5]);
    drop(watchers);
    let ranges = state.interest.ranges();
    assert!(ranges.streams.is_empty() && ranges.index.is_empty());
}

/// Thousands of cursors that have much to look through, all at once: the thread belongs to others as well. In one turn it
/// would take seconds, as this is compiled for tests.
#[tokio::test]
async fn a_step_is_short_however_much_there_is_to_read() {
    const CURSORS: u64 = 2000;
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    commit(&state, 0..2000, |_| "busy".into());
    let quiet = |id| cursor(KeyRange::prefix(format!("quiet/{id:04}")), 2);
    let added = (0..CURSORS).map(|id| (CursorId(id), quiet(id))).collect();
    let mut follow = std::pin::pin!(watchers.follow(step(0, added, LONG)));
    // Counted, and not timed: on a busy machine a turn may take any time.
    let turns = std::cell::Cell::new(0);
    let others = std::pin::pin!(async {
        loop {
            turns.set(turns.get() + 1);
            tokio::task::yield_now().await;
        }
    });
    let committed = std::pin::pin!(async {
        commit(&state, 2000..2001, |_| format!("quiet/{:04}", CURSORS - 1));
        std::future::pending::<()>().await;
    });
    let mut background = futures::future::join(others, committed);
    let answer = futures::future::select(follow.as_mut(), &mut background).await;
    let futures::future::Either::Left((answer, _)) = answer;
    let (_, progress, revisions) = taken(answer.unwrap());
    assert_eq!(revisions, [2002]);
    assert!(progress <= 2002);
    assert!(turns.get() > 8, "the others had {} turns while it was read", turns.get());
}

#[tokio::test]
async fn a_member_that_is_shut_down_sends_those_who_wait_away() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    taken(watchers.follow(step(0, vec![(CursorId(1), cursor("k", 2))], NOW)).await.unwrap());
    let mut waiting = std::pin::pin!(watchers.follow(step(1, vec![], LONG)));
    let moment = Duration::from_millis(1);
    assert!(tokio::time::timeout(moment, waiting.as_mut()).await.is_err());
    state.interest.close();
    let ended = tokio::time::timeout(LONG / 10, waiting).await.expect("at once");
    assert_eq!(*ended.unwrap_err().reason(), Reason::Closed);
    let next = watchers.follow(step(1, vec![], LONG)).await;
    assert_eq!(*next.unwrap_err().reason(), Reason::Closed);
}

/// Nothing will come, and whoever waits has to look elsewhere. What there is is told before.
#[tokio::test]
async fn a_member_that_has_failed_tells_those_who_have_had_everything() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    commit(&state, 1..4, |_| "k".to_owned());
    let added = vec![(CursorId(1), cursor(KeyRange::key("other"), 5))];
    let (number, ..) = taken(watchers.follow(step(0, added, NOW)).await.unwrap());
    let mut waits = std::pin::pin!(watchers.follow(step(number, vec![], LONG)));
    assert!(futures::poll!(&mut waits).is_pending());
    let cause = Reason::MemberRemoved { node: 7.into() };
    state.interest.end(cause.clone().into());
    let ended =
        tokio::time::timeout(LONG / 3, waits).await.expect("it waits for news").unwrap_err();
    assert_eq!(*ended.reason(), cause);

    let behind = Watchers::new(Arc::clone(&state));
    let added = vec![(CursorId(1), cursor(KeyRange::key("k"), 2))];
    let (number, _, revisions) = taken(behind.follow(step(0, added, LONG)).await.unwrap());
    assert_eq!(revisions, [2, 3, 4], "it can still be read");
    let ended = behind.follow(step(number, vec![], LONG)).await.unwrap_err();
    assert_eq!(*ended.reason(), cause);
    state.interest.close();
    let ended = behind.follow(step(0, vec![], LONG)).await.unwrap_err();
    assert_eq!(*ended.reason(), cause, "that it was shut down since says less");
}

/// Also of ends there may be more than fit into one answer, as when a snapshot has left all cursors behind.
#[tokio::test]
async fn ends_take_room_too() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    commit(&state, 0..10, |_| "k".into());
    let compact = Command::Compact(Revision::from(8));
    let body = Body::Command(Arc::new(Proposal::from(compact)));
    state.apply_for_test(&[Entry { position: LogPosition { term: 1, node: 1, index: 10 }, body }]);
    let added = (0..100).map(|id| (CursorId(id), cursor("k", 2))).collect();
    let mut follow = step(0, added, NOW);
    let mut ended = BTreeSet::new();
    for number in 1..100 {
        follow.bytes_max = 1000;
        let answer = watchers.follow(follow).await.unwrap();
        let Followed::Step { news, .. } = answer else { panic!("{answer:?}") };
        assert!(news.len() < 50, "{} ends in one answer", news.len());
        for (id, news) in news {
            assert!(matches!(news, News::Ended(Reason::Compacted { .. })));
            assert!(ended.insert(id), "{id:?} ended twice");
        }
        follow = step(number, vec![], NOW);
    }
    assert_eq!(ended.len(), 100);
}

#[tokio::test]
async fn an_answer_that_is_full_does_not_claim_progress_for_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let watchers = Watchers::new(Arc::clone(&state));
    commit(&state, 0..100, |index| format!("k{}", index % 2));
    let added =
        (0..2).map(|id| (CursorId(id), cursor(KeyRange::key(format!("k{id}")), 2))).collect();
    let mut follow = step(0, added, NOW);
    follow.bytes_max = 200;
    let mut seen = 0;
    for _ in 0..1000 {
        let (number, progress, revisions) = taken(watchers.follow(follow).await.unwrap());
        seen += revisions.len();
        assert!(progress == 101 || seen < 100, "progress {progress} after {seen} events");
        follow = step(number, vec![], NOW);
        follow.bytes_max = 200;
        if seen == 100 {
            break;
        }
    }
    assert_eq!(seen, 100);
}
