//! When what is applied is shown, committed and answered, and what becomes of it when something fails.

use super::thread::{PENDING_BYTES_MAX, PENDING_CHANGES_MAX};
use super::*;
use crate::api::Command;
use crate::mvcc::Body;
use crate::raft::machine::copy;
use crate::types::TxnOp;
use std::pin::pin;
use std::sync::mpsc;

fn entry(index: u64) -> mvcc::Entry {
    let put = crate::types::Op::put(format!("k{index}"), "v");
    let command = Command::Txn(TxnOp::single(put.0));
    let position = mvcc::LogPosition { term: 1, node: 1, index };
    mvcc::Entry { position, body: Body::Command(Arc::new(command.into())) }
}

/// Keeps the state's thread, which has nothing else to do, from going on until the sender is dropped.
fn hold(state: &Arc<State>) -> mpsc::Sender<()> {
    let ((held, free), (inside, is_inside)) = (mpsc::channel(), mpsc::channel());
    let wait = move |_: &Arc<State>| {
        inside.send(()).unwrap();
        let _ = free.recv();
    };
    state.send(Work::Run(Arc::clone(state), Box::new(wait))).unwrap();
    is_inside.recv().unwrap();
    held
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

fn read(state: &State, op: Op) -> Option<TxnOutcome> {
    state.read_now(&TxnOp::single(op.0)).unwrap().map(Result::unwrap)
}

/// A commit costs a flush, and nobody needs it who reads keys one by one.
#[tokio::test]
async fn what_is_applied_is_committed_when_somebody_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    state.settled().await.unwrap();
    let before = commits(&state);
    for index in 0..5 {
        hand_in(&state, index..index + 1).await;
    }
    assert_eq!(commits(&state), before);
    let got = read(&state, Op::get("k3")).expect("a key needs no commit");
    assert!(matches!(&got.results[..], [OpResult::Get(Some(kv))] if kv.value == "v"));
    assert_eq!(got.revision, Revision::from(6));
    assert_eq!(state.read_now(&TxnOp::default()).unwrap().unwrap().unwrap().revision, got.revision);
    assert_eq!(state.summary().0, state.now());
    assert!(read(&state, Op::range("k".."l")).is_none(), "a range does");
    state.settled().await.unwrap();
    let page = read(&state, Op::range("k".."l")).expect("it is committed");
    assert!(matches!(&page.results[..], [OpResult::Range(page)] if page.count == 5));
    assert_eq!(commits(&state) - before, 1, "for all of them");
    assert_eq!(state.summary().1, state.view().unwrap().recompute_hash().unwrap());
}

/// History is read from the tables, where whoever has compacted it is to find it compacted.
#[tokio::test]
async fn a_compaction_is_committed_though_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..5).await;
    state.settled().await.unwrap();
    let position = mvcc::LogPosition { term: 1, node: 1, index: 5 };
    let command = Command::Compact(Revision::from(4));
    let compaction = mvcc::Entry { position, body: Body::Command(Arc::new(command.into())) };
    state.hand_in(vec![compaction], vec![None], 100).await.unwrap();
    while state.view().unwrap().compact_revision() != Revision::from(4) {
        tokio::task::yield_now().await;
    }
}

/// Those who wait for a commit share one, with what was handed in between them.
#[tokio::test]
async fn one_commit_settles_all_who_wait() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..1).await;
    state.settled().await.unwrap();
    let (before, held) = (commits(&state), hold(&state));
    state.hand_in(vec![entry(1)], vec![None], 100).await.unwrap();
    let mut waiting = Vec::new();
    for index in 2..10 {
        let (done, settled) = oneshot::channel();
        state.send(Work::Settle(done)).unwrap();
        state.hand_in(vec![entry(index)], vec![None], 100).await.unwrap();
        waiting.push(settled);
    }
    drop(held);
    for settled in waiting {
        settled.await.unwrap();
    }
    assert_eq!(commits(&state) - before, 1);
    assert_eq!(state.view().unwrap().applied().map(|at| at.index), Some(9));
}

/// A piece of the log that is larger than a group is applied in several, and each entry is answered in its place.
#[tokio::test]
async fn a_large_share_is_applied_whole() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..1000).await;
    state.settled().await.unwrap();
    let page = read(&state, Op::range("k".."l").limit(1)).unwrap();
    assert!(matches!(&page.results[..], [OpResult::Range(page)] if page.count == 1000));
}

#[tokio::test]
async fn other_work_sees_what_was_handed_in_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let held = hold(&state);
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
        // What is large is not kept beside the tables.
        let is_large = index % 3 == 0;
        assert_eq!(read(&state, Op::get("k")).is_none(), is_large);
        if is_large {
            state.settled().await.unwrap();
        }
        let shown = read(&state, Op::get("k")).unwrap();
        state.settled().await.unwrap();
        assert_eq!(read(&state, Op::get("k")).unwrap(), shown, "before a commit and after");
        let [OpResult::Get(kv)] = &shown.results[..] else { unreachable!() };
        let value = kv.as_ref().map(|kv| &kv.value[..]);
        let expected = [Some(&large[..]), Some(b"small"), None, Some(&large[..])];
        assert_eq!(value, expected[index]);
    }
}

/// A start that is given up in the middle just lets go of its state, with a transaction open.
#[tokio::test]
async fn a_state_that_is_dropped_closes_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    hand_in(&state, 0..5).await;
    let env = state.store().unwrap();
    drop(state);
    assert!(env.close(Duration::from_secs(10)), "the thread ends, and lets go of the environment");
    let again = State::open_unsynced(folder.path());
    assert_eq!(again.now().applied, Some(4), "what it had applied is committed");
}

#[tokio::test]
async fn a_transaction_does_not_grow_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    state.settled().await.unwrap();
    let (before, half) = (commits(&state), PENDING_CHANGES_MAX as u64 / 2);
    hand_in(&state, 0..half).await;
    hand_in(&state, half..2 * half).await;
    while commits(&state) == before {
        tokio::task::yield_now().await;
    }
    let large = (vec![entry(2 * half)], vec![None], PENDING_BYTES_MAX);
    state.hand_in(large.0, large.1, large.2).await.unwrap();
    while commits(&state) == before + 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn entries_wait_outside_when_too_many_are_inside() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let held = hold(&state);
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
    assert_eq!(state.view().unwrap().applied(), None, "the log has it");
}

/// A state, and a snapshot of it that is ready to take its place.
fn state_and_loaded(folder: &Path) -> (Arc<State>, Loaded) {
    let state = State::open_unsynced(folder);
    let position = mvcc::LogPosition { term: 1, node: 1, index: 0 };
    state.apply_for_test(&[mvcc::Entry { position, body: Body::Blank }]);
    let loaded = copy(&state, state.view().unwrap()).unwrap();
    (state, loaded)
}

#[test]
fn a_state_that_may_have_been_named_current_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (state, loaded) = state_and_loaded(folder.path());
    let draft = loaded.folder.0.clone();
    // Nobody can tell what a failure left behind: here it is before the new name, it could be after.
    let current = folder.path().join("CURRENT");
    std::fs::remove_file(&current).unwrap();
    std::fs::create_dir_all(current.join("in the way")).unwrap();
    state.swap(loaded).unwrap_err();
    assert!(draft.join("data.mdb").exists());
}

#[test]
fn a_snapshot_that_comes_after_the_end_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (state, loaded) = state_and_loaded(folder.path());
    state.abandon();
    state.swap(loaded).unwrap_err();
    assert!(state.view().is_err());
    let limit = Duration::from_secs(5);
    assert!(
        Store::open(&Generations::open(folder.path()).unwrap().current(), 256 << 20)
            .unwrap()
            .close(limit)
    );
}
