//! When what is applied is shown, flushed and answered, and what becomes of it when something fails.

use super::thread::FLUSH_BYTES;
use super::*;
use crate::api::Command;
use crate::mvcc::{Body, Generations};
use crate::raft::machine::copy;
use crate::raft::reseed::Why;
use crate::types::{Op, OpResult, TxnOp};
use futures::FutureExt;
use std::pin::pin;
use std::sync::mpsc;

fn entry(index: u64) -> mvcc::Entry {
    let put = crate::types::Op::put(format!("k{index}"), "v");
    let command = Command::Txn(TxnOp::single(put.0));
    let position = mvcc::LogPosition { term: 1, node: 1, index };
    mvcc::Entry { position, body: Body::Command(Arc::new(command.into())) }
}

/// Keeps a thread, which has nothing else to do, from going on until the sender is dropped.
fn hold(send: impl FnOnce(thread::Run)) -> mpsc::Sender<()> {
    let ((held, free), (inside, is_inside)) = (mpsc::channel(), mpsc::channel());
    let wait = move |_: &Arc<State>| {
        inside.send(()).unwrap();
        let _ = free.recv();
    };
    send(Box::new(wait));
    is_inside.recv().unwrap();
    held
}

/// Keeps what is handed in from being applied.
fn hold_applying(state: &Arc<State>) -> mpsc::Sender<()> {
    hold(|wait| state.send(Work::Look(Arc::clone(state), wait)).unwrap())
}

/// Keeps what is applied from being flushed.
fn hold_flushing(state: &Arc<State>) -> mpsc::Sender<()> {
    hold(|wait| state.send_to_disk(Job::Run(Arc::clone(state), wait)).unwrap())
}

async fn hand_in(state: &Arc<State>, indexes: std::ops::Range<u64>) {
    let last = indexes.end - 1;
    let entries: Vec<_> = indexes.map(entry).collect();
    let responders = entries.iter().map(|_| None).collect();
    state.hand_in(entries, responders, 100).await.unwrap();
    state.head().wait_for(|head| head.applied >= Some(last)).await.unwrap();
}

fn commits(state: &State) -> usize {
    state.store().unwrap().commits()
}

fn read(state: &State, op: Op) -> TxnOutcome {
    state.read(&TxnOp::single(op.0)).unwrap().unwrap()
}

/// A flush of the tables costs a flush of the disk, and nobody needs it who only reads.
#[tokio::test]
async fn what_is_applied_is_read_at_once_and_flushed_when_somebody_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    state.settled().await.unwrap();
    let before = commits(&state);
    for index in 0..5 {
        hand_in(&state, index..index + 1).await;
    }
    let look = || {
        let got = read(&state, Op::get("k3"));
        assert!(matches!(&got.results[..], [OpResult::Get(Some(kv))] if kv.value == "v"));
        assert_eq!(got.revision, Revision::from(6));
        assert_eq!(state.read(&TxnOp::default()).unwrap().unwrap().revision, got.revision);
        let page = read(&state, Op::range("k".."l"));
        assert!(matches!(&page.results[..], [OpResult::Range(page)] if page.count == 5));
        assert_eq!(state.summary().0, state.now());
        state.summary().1
    };
    let hash = look();
    assert_eq!(commits(&state), before);
    assert_eq!(state.store().unwrap().view().unwrap().applied(), None);
    state.settled().await.unwrap();
    assert_eq!(commits(&state) - before, 1, "for all of them");
    assert_eq!(look(), hash);
    let view = state.durable_view().await.unwrap();
    assert_eq!(view.applied().map(|at| at.index), Some(4));
    assert_eq!(view.recompute_hash().unwrap(), hash);
    assert_eq!(commits(&state) - before, 1, "there was nothing more");
}

/// A flush that takes its time hides nothing and holds nobody up, while there is room for what comes meanwhile.
#[tokio::test]
async fn a_slow_flush_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..10).await;
    let held = hold_flushing(&state);
    let mut settled = pin!(state.settled());
    assert!(futures::poll!(&mut settled).is_pending());
    for index in 10..20 {
        hand_in(&state, index..index + 1).await;
        let page = read(&state, Op::range("k".."l").limit(1));
        assert!(matches!(&page.results[..], [OpResult::Range(page)] if page.count == index + 1));
    }
    assert!(futures::poll!(&mut settled).is_pending());
    drop(held);
    settled.await.unwrap();
    let flushed = state.store().unwrap().view().unwrap().applied().map(|at| at.index);
    assert!(flushed >= Some(9));
    state.settled().await.unwrap();
    let view = state.store().unwrap().view().unwrap();
    assert_eq!(view.applied().map(|at| at.index), Some(19));
    view.verify().unwrap();
}

/// What nobody asks for is flushed when it has grown, and applying waits when that does not keep up.
#[tokio::test]
async fn memory_is_bounded_however_slow_the_disk_is() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let value = Bytes::from(vec![7; 1 << 20]);
    let large = |index: u64| {
        let command = Command::Txn(TxnOp::single(Op::put("k", value.clone()).0));
        let position = mvcc::LogPosition { term: 1, node: 1, index };
        mvcc::Entry { position, body: Body::Command(Arc::new(command.into())) }
    };
    const ENTRIES: u64 = 200;
    let held = hold_flushing(&state);
    let handing_in = async {
        for index in 0..ENTRIES {
            state.hand_in(vec![large(index)], vec![None], value.len()).await.unwrap();
        }
    };
    let full = async {
        // Two overlays, and whatever waits in the queue.
        let all = 2 * (FLUSH_BYTES >> 20) as u64;
        state.head().wait_for(|head| head.applied >= Some(all - 1)).await.unwrap();
        while state.room.available_permits() > value.len() / 1024 {
            tokio::task::yield_now().await;
        }
        let most = all + (u64::from(ROOM_UNITS) >> 10);
        assert!(state.now().applied < Some(most), "{:?}", state.now());
        drop(held);
    };
    futures::future::join(handing_in, full).await;
    state.head().wait_for(|head| head.applied == Some(ENTRIES - 1)).await.unwrap();
    state.settled().await.unwrap();
    state.store().unwrap().view().unwrap().verify().unwrap();
}

/// History that was compacted is given back though nobody waits for it.
#[tokio::test]
async fn a_compaction_counts_at_once_and_makes_room_soon() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..5).await;
    state.settled().await.unwrap();
    let position = mvcc::LogPosition { term: 1, node: 1, index: 5 };
    let command = Command::Compact(Revision::from(4));
    let compaction = mvcc::Entry { position, body: Body::Command(Arc::new(command.into())) };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(compact_in_time(Arc::clone(&state)));
    let before = commits(&state);
    state.hand_in(vec![compaction], vec![None], 100).await.unwrap();
    state.head().wait_for(|head| head.applied == Some(5)).await.unwrap();
    assert_eq!(state.view().unwrap().compact_revision(), Revision::from(4));
    while commits(&state) < before + 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(state.store().unwrap().view().unwrap().compact_revision(), Revision::from(4));
}

/// Whoever waits for a flush hears of a panic, also one that comes while a flush is waited for.
#[tokio::test]
async fn a_panic_of_the_thread_that_flushes_is_no_wait_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..1).await;
    let panics = state.when_flushed(|_| -> Result<(), Fault> { panic!("the disk is on fire") });
    let (one, other) = (state.settled(), state.settled());
    assert!(panics.await.is_err());
    for waiting in [one.boxed(), other.boxed(), state.settled().boxed(), state.settled().boxed()] {
        let answer = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        answer.expect("it hangs").unwrap_err();
    }
    assert!(state.fault().borrow().as_ref().unwrap().to_string().contains("on fire"));
}

/// Those who wait for a flush share one, with what was handed in between them.
#[tokio::test]
async fn one_flush_settles_all_who_wait() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..1).await;
    state.settled().await.unwrap();
    let before = commits(&state);
    let held = hold_flushing(&state);
    let mut waiting = vec![state.settled()];
    for index in 1..10 {
        hand_in(&state, index..index + 1).await;
        waiting.push(state.settled());
    }
    drop(held);
    for settled in waiting {
        settled.await.unwrap();
    }
    assert!(commits(&state) - before <= 2, "the first, and all that waited for it");
    let view = state.store().unwrap().view().unwrap();
    assert_eq!(view.applied().map(|at| at.index), Some(9));
}

/// A piece of the log that is larger than a group is applied in several, and each entry is answered in its place.
#[tokio::test]
async fn a_large_share_is_applied_whole() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..1000).await;
    state.settled().await.unwrap();
    let page = read(&state, Op::range("k".."l").limit(1));
    assert!(matches!(&page.results[..], [OpResult::Range(page)] if page.count == 1000));
}

#[tokio::test]
async fn other_work_sees_what_was_handed_in_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let held = hold_applying(&state);
    state.hand_in(vec![entry(0)], vec![None], 100).await.unwrap();
    let mut between = pin!(state.view_in_order());
    assert!(futures::poll!(&mut between).is_pending());
    state.hand_in(vec![entry(1)], vec![None], 100).await.unwrap();
    drop(held);
    assert_eq!(between.await.unwrap().applied().map(|at| at.index), Some(0));
    let after = state.view_in_order().await.unwrap();
    assert_eq!(after.applied().map(|at| at.index), Some(1));
}

/// Large values lie in a table of their own, and a deleted key is not what the table says.
#[tokio::test]
async fn a_key_is_read_as_it_is_whatever_the_tables_say() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let large = Bytes::from(vec![7; 100_000]);
    let ops = [
        Op::put("k", large.clone()),
        Op::put("k", "small"),
        Op::delete("a".."z"),
        Op::put("k", large.clone()),
    ];
    for (index, op) in ops.into_iter().enumerate() {
        let command = Command::Txn(TxnOp::single(op.0));
        let position = mvcc::LogPosition { term: 1, node: 1, index: index as u64 };
        let entry = mvcc::Entry { position, body: Body::Command(Arc::new(command.into())) };
        state.hand_in(vec![entry], vec![None], 100).await.unwrap();
        state.head().wait_for(|head| head.applied == Some(index as u64)).await.unwrap();
        let shown = read(&state, Op::get("k"));
        state.settled().await.unwrap();
        assert_eq!(read(&state, Op::get("k")), shown, "before a flush and after");
        let [OpResult::Get(kv)] = &shown.results[..] else { unreachable!() };
        let value = kv.as_ref().map(|kv| &kv.value[..]);
        let expected = [Some(&large[..]), Some(b"small"), None, Some(&large[..])];
        assert_eq!(value, expected[index]);
    }
}

/// A start that is given up in the middle just lets go of its state.
#[tokio::test]
async fn a_state_that_is_dropped_closes_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..5).await;
    state.settled().await.unwrap();
    let env = state.store().unwrap();
    drop(state);
    assert!(env.close(Duration::from_secs(10)), "the threads end, and let go of the environment");
    let again = State::open_unsynced(folder.path());
    assert_eq!(again.now().applied, Some(4), "what was flushed is there");
}

#[tokio::test]
async fn entries_wait_outside_when_too_many_are_inside() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let held = hold_applying(&state);
    let half = ROOM_UNITS as usize * 1024 / 2;
    state.hand_in(vec![entry(0)], vec![None], half).await.unwrap();
    let mut next = pin!(state.hand_in(vec![entry(1)], vec![None], half));
    assert!(futures::poll!(&mut next).is_pending());
    drop(held);
    next.await.unwrap();
    // One that is larger than all of the room gets in alone.
    state.hand_in(vec![entry(2)], vec![None], usize::MAX / 2).await.unwrap();
    state.head().wait_for(|head| head.applied == Some(2)).await.unwrap();
}

/// An entry that cannot be applied must not be followed by those behind it.
#[tokio::test]
async fn after_a_failure_nothing_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    state.hand_in(vec![entry(3)], vec![None], 100).await.unwrap();
    state.head().wait_for(|head| head.applied == Some(3)).await.unwrap();
    state.hand_in(vec![entry(1)], vec![None], 100).await.unwrap();
    state.fault().wait_for(Option::is_some).await.unwrap();
    state.hand_in(vec![entry(4)], vec![None], 100).await.unwrap();
    assert!(state.settled().await.is_err() && state.view_in_order().await.is_err());
    assert_eq!(state.now().applied, Some(3), "what was answered stays so");
    assert_eq!(state.store().unwrap().view().unwrap().applied(), None, "the log has it");
}

/// A state, and a snapshot of it that is ready to take its place.
fn state_and_loaded(folder: &Path) -> (Arc<State>, Loaded) {
    let state = State::open_unsynced(folder);
    let position = mvcc::LogPosition { term: 1, node: 1, index: 0 };
    state.apply_for_test(&[mvcc::Entry { position, body: Body::Blank }]);
    let settled = futures::executor::block_on(state.durable_view()).unwrap();
    let loaded = copy(&state, settled).unwrap();
    (state, loaded)
}

#[tokio::test]
async fn a_state_that_may_have_been_named_current_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (state, loaded) = state_and_loaded(folder.path());
    let draft = loaded.folder.path.clone();
    // Nobody can tell what a failure left behind: here it is before the new name, it could be after.
    let current = folder.path().join("CURRENT");
    std::fs::remove_file(&current).unwrap();
    std::fs::create_dir_all(current.join("in the way")).unwrap();
    state.swap(loaded).await.unwrap_err();
    assert!(draft.join("data.mdb").exists());
}

#[tokio::test]
async fn a_snapshot_that_comes_after_the_end_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (state, loaded) = state_and_loaded(folder.path());
    state.abandon();
    state.swap(loaded).await.unwrap_err();
    assert!(state.view().is_err());
    let limit = Duration::from_secs(5);
    assert!(
        Store::open(&Generations::open(folder.path()).unwrap().current(), 256 << 20)
            .unwrap()
            .close(limit)
    );
}

/// Its threads end after what they were given. The folder is another's by then, who knows which state counts.
#[tokio::test]
async fn a_state_is_not_named_by_a_node_that_was_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (state, loaded) = state_and_loaded(folder.path());
    state.hold(Arc::new(FolderLock::take(folder.path()).unwrap()));
    let current = || std::fs::read_to_string(folder.path().join("CURRENT")).unwrap();
    let before = current();
    let held = hold_applying(&state);
    let mut swap = pin!(state.swap(loaded));
    assert!(swap.as_mut().now_or_never().is_none());
    FolderLock::take(folder.path()).unwrap_err();
    state.abandon();
    FolderLock::take(folder.path()).expect("it is free");
    drop(held);
    let error = swap.await.unwrap_err();
    assert_eq!(*error.reason(), Reason::Closed);
    assert_eq!(current(), before);
}

/// Members batch differently, and have to have the same to compare.
#[tokio::test]
async fn hashes_are_noted_at_the_same_indexes_however_entries_come() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [state, other] = folders.each_ref().map(|folder| State::open_unsynced(folder.path()));
    hand_in(&state, 0..40).await;
    let report = state.report();
    let indexes: Vec<u64> = report.marks.iter().map(|mark| mark.index).collect();
    assert_eq!(indexes, [0, 0, 16, 32, 39], "the first is one of both kinds");
    for index in 0..40 {
        hand_in(&other, index..index + 1).await;
        if index == 16 {
            assert_eq!(report.marks[2], Mark { index, hash: other.summary().1 });
        }
    }
    assert_eq!(other.report(), report);
}

/// What had been noted is of a state that does not count any more.
#[tokio::test]
async fn a_state_that_takes_the_place_of_another_clears_its_hashes() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [state, source] = folders.each_ref().map(|folder| State::open_unsynced(folder.path()));
    hand_in(&state, 0..40).await;
    hand_in(&source, 0..50).await;
    let loaded = copy(&state, source.durable_view().await.unwrap()).unwrap();
    state.swap(loaded).await.unwrap();
    let (head, hash) = source.summary();
    assert_eq!(state.report().marks, [Mark { index: head.applied.unwrap(), hash }]);
    hand_in(&state, 50..65).await;
    let indexes: Vec<u64> = state.report().marks.iter().map(|mark| mark.index).collect();
    assert_eq!(indexes, [64, 64]);
}

/// Nobody is shown a state that is known to be wrong. After any other fault what was applied can still be read.
#[tokio::test]
async fn a_state_that_is_wrong_is_shown_to_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..5).await;
    state.fail(Fault::from_reason(Reason::StateDiffers { index: 4, own: 1, others: 2 }));
    let refused = [
        state.read(&TxnOp::default()).map(drop).unwrap_err(),
        state.read(&TxnOp::single(Op::get("k1").0)).map(drop).unwrap_err(),
        state.view().map(drop).unwrap_err(),
        state.flushed_view().await.map(drop).unwrap_err(),
        state.begin_seed(2, 7).await.unwrap_err(),
    ];
    for fault in refused {
        assert!(matches!(fault.reason(), Reason::StateDiffers { .. }), "{fault}");
    }
    assert!(state.close(Duration::from_secs(10)));
}

/// The mark tells the next start how much the state can be trusted: not less than it was, whatever is found later, and also
/// when the member has failed meanwhile.
#[tokio::test]
async fn a_mark_is_not_replaced_by_a_weaker_one() {
    let [differs, damaged] = [Why::Differs, Why::IsDamaged].map(|why| (why, why.word(None)));
    for (first, second, stays) in [
        (&differs, &damaged, &differs),
        (&damaged, &differs, &differs),
        (&damaged, &damaged, &damaged),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        state.distrust(first.0, first.1.clone()).await.unwrap();
        state.fail(Fault::from_reason(Reason::StateDiffers { index: 4, own: 1, others: 2 }));
        state.distrust(second.0, second.1.clone()).await.unwrap();
        let mark = Generations::untrusted(folder.path()).unwrap();
        assert_eq!(mark.as_deref(), Some(&stays.1[..]), "{:?}, then {:?}", first.0, second.0);
        assert!(state.close(Duration::from_secs(10)));
    }
}
