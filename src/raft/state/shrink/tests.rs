//! What a smaller file holds, and what becomes of everything that happens meanwhile.

use super::super::thread::Run;
use super::*;
use crate::api::Command;
use crate::mvcc::{self, Body, Generations};
use crate::raft::machine::copy;
use crate::types::{Op, Revision, TxnOp};
use bytes::Bytes;
use futures::FutureExt;
use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::task::Poll;

const LONG: Duration = Duration::from_secs(20);

/// As fast as it goes, and whatever the size.
const FAST: Limits = Limits {
    free_bytes: 0,
    piece_bytes: 64 << 10,
    bytes_per_second: NonZeroU64::new(1 << 40).unwrap(),
    ..Limits::NORMAL
};

fn entry(index: u64, command: Command) -> mvcc::Entry {
    let position = mvcc::LogPosition { term: 1, node: 1, index };
    mvcc::Entry { position, body: Body::Command(Arc::new(command.into())) }
}

/// A log that goes everywhere, and mostly leaves nothing: values small and large, deletes, and history that is forgotten.
fn nth(index: u64) -> mvcc::Entry {
    let dice = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    match index {
        1900 => return entry(index, Command::Txn(TxnOp::single(Op::delete("k".."l").0))),
        1999 => return entry(index, Command::Compact(Revision::from(1600))),
        _ => {}
    }
    let key = format!("k{:03}", dice % 400);
    let value = |bytes: u64| Bytes::from(vec![dice as u8; bytes as usize]);
    let op = match (dice >> 16) % 8 {
        0 => Op::put(key, value(20_000)),
        1..=4 => Op::put(key, value(dice % 2000)),
        5 => Op::delete(key),
        6 => Op::delete(format!("k{:02}", dice % 40)..format!("k{:02}", dice % 40 + 1)),
        _ if index > 300 => return entry(index, Command::Compact(Revision::from(index / 3))),
        _ => Op::put(key, "v"),
    };
    entry(index, Command::Txn(TxnOp::single(op.0)))
}

/// Applies a part of that log.
fn apply(state: &Arc<State>, indexes: std::ops::Range<u64>) {
    let entries: Vec<_> = indexes.map(nth).collect();
    state.apply_for_test(&entries);
}

/// A state whose file is mostly free, at entry 1999.
async fn with_room(folder: &Path) -> Arc<State> {
    let state = State::open_unsynced(folder);
    for part in 0..20 {
        apply(&state, part * 100..part * 100 + 100);
        state.settled().await.unwrap();
    }
    while !state.compact_step(1000).await.unwrap().0 {}
    assert!(FAST.are_passed(state.store().unwrap().free().unwrap()));
    state
}

/// What a member is that never made its file smaller: the hash, and every change that it remembers.
async fn expected(upto: u64) -> (u128, String) {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    apply(&state, 0..upto);
    state.settled().await.unwrap();
    content(&state)
}

fn content(state: &State) -> (u128, String) {
    let view = state.view().unwrap();
    let next = crate::api::Position::start_of(view.compact_revision());
    let range = crate::types::KeyRange::all();
    let cursor = crate::api::Cursor { range, next, puts: true, deletes: true, prev: true };
    let events = view.events(&cursor, view.revision(), usize::MAX).unwrap().unwrap();
    let digest = crc32c::crc32c(format!("{:?}", events.changes).as_bytes());
    (view.hash(), format!("{:?} {digest:x}", state.now()))
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut states: Vec<_> = names.filter(|name| name.starts_with("state-")).collect();
    states.sort();
    states
}

/// It is all there, in memory, in the tables, and after a restart.
async fn check(folder: &Path, state: Arc<State>, upto: u64) {
    let expected = expected(upto).await;
    assert_eq!(content(&state), expected);
    state.settled().await.unwrap();
    assert_eq!(content(&state), expected);
    state.store().unwrap().view().unwrap().verify().unwrap();
    assert!(state.close(Duration::from_secs(10)));
    let again = State::open_unsynced(folder);
    assert_eq!(content(&again), expected);
    again.store().unwrap().view().unwrap().verify().unwrap();
    assert_eq!(files(folder).len(), 1, "nothing is left over");
}

#[tokio::test]
async fn the_file_gets_smaller_and_nothing_is_lost_while_all_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let reader = state.view().unwrap();
    let hash = reader.hash();

    let is_done = Arc::new(AtomicUsize::new(0));
    let (shared, done) = (Arc::clone(&state), Arc::clone(&is_done));
    let writer = std::thread::spawn(move || {
        let mut index = 2000;
        // What it writes must not be more than what was free.
        while done.load(Ordering::SeqCst) == 0 && index < 2400 {
            apply(&shared, index..index + 10);
            let shown = shared.view().unwrap();
            assert!(shown.applied().map(|at| at.index) >= Some(index + 9));
            index += 10;
        }
        index
    });
    let flushing = async {
        while is_done.load(Ordering::SeqCst) == 0 {
            state.settled().await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let shrinking = async {
        let shrunk = state.shrink(&FAST).await;
        is_done.store(1, Ordering::SeqCst);
        shrunk.unwrap()
    };
    let (shrunk, ()) = futures::future::join(shrinking, flushing).await;
    assert!(shrunk.after < shrunk.before / 2, "{shrunk:?}");
    assert_eq!(files(folder.path()), ["state-000001", "state-000002"], "it is still read");
    assert!(!state.generations.remove_older().unwrap());
    assert_eq!((reader.hash(), reader.recompute_hash().unwrap()), (hash, hash));
    drop(reader);
    // The thread that flushes drops the last of it a moment later.
    while !state.generations.remove_older().unwrap() {
        tokio::task::yield_now().await;
    }
    assert_eq!(files(folder.path()), ["state-000002"]);
    assert!(state.store().unwrap().bytes().unwrap() < shrunk.before);
    let upto = writer.join().unwrap();
    check(folder.path(), state, upto).await;
}

/// What is flushed while the rows are copied, and what is applied and not flushed at the switch.
#[tokio::test]
async fn what_comes_at_any_step_is_in_the_copy_or_on_top_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    for round in 0..3 {
        let from = 2000 + round * 300;
        state.settled().await.unwrap();
        let (view, recording) = state.begin_recording(TAIL_BYTES).await.unwrap();
        let source = view.store();
        for part in 0..3 {
            apply(&state, from + part * 50..from + part * 50 + 50);
            state.settled().await.unwrap();
        }
        let mut copy = Some(state.copy(view, &source, &FAST).await.unwrap());
        assert_eq!(
            copy.as_ref().unwrap().view().unwrap().applied().map(|at| at.index),
            Some(from - 1)
        );
        assert_eq!(state.catch_up(&mut copy, &source).await.unwrap(), 3);
        apply(&state, from + 150..from + 200);
        state.settled().await.unwrap();
        // Nothing of this is flushed before the switch, which is behind it.
        apply(&state, from + 200..from + 300);
        let successor = Successor { source, copy: copy.take().unwrap() };
        state.put_in_place(successor).await.unwrap();
        drop(recording);
        assert_eq!(content(&state), expected(from + 300).await);
        let file = state.store().unwrap().view().unwrap();
        assert!(file.applied().map(|at| at.index) >= Some(from + 199));
        assert_eq!(file.recompute_hash().unwrap(), file.hash(), "the position is that of the rows");
    }
    check(folder.path(), state, 2900).await;
}

/// Flushing and applying wait for each other at the switch, and for nothing else.
#[tokio::test]
async fn applying_goes_on_while_the_copy_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let (view, _recording) = state.begin_recording(TAIL_BYTES).await.unwrap();
    let source = view.store();
    let copy = state.copy(view, &source, &FAST).await.unwrap();
    let (held, hold) = std::sync::mpsc::channel::<()>();
    let wait = Box::new(move |_: &Arc<State>| {
        let _ = hold.recv();
    });
    state.send_to_disk(Job::Run(Arc::clone(&state), wait)).unwrap();
    let successor = Successor { source: source.clone(), copy };
    let mut switch = Box::pin(state.put_in_place(successor));
    assert!(futures::poll!(&mut switch).is_pending());
    apply(&state, 2000..2100);
    let mut settled = pin!(state.settled());
    assert!(futures::poll!(&mut settled).is_pending());
    apply(&state, 2100..2200);
    assert_eq!(content(&state), expected(2200).await);
    assert!(state.store().unwrap().is(&source));
    drop(held);
    switch.await.unwrap();
    settled.await.unwrap();
    assert!(!state.store().unwrap().is(&source));
    drop(source);
    check(folder.path(), state, 2200).await;
}

#[tokio::test]
async fn who_writes_faster_than_a_copy_is_made_keeps_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let (view, recording) = state.begin_recording(10_000).await.unwrap();
    let source = view.store();
    for part in 0..20 {
        apply(&state, 2000 + part * 10..2010 + part * 10);
        state.settled().await.unwrap();
    }
    let kept = state.shrinking.with_tail(|tail| tail.as_ref().unwrap().flushes.len());
    assert_eq!(kept, 0, "what is given up takes no memory");
    let copied = state.copy(view, &source, &FAST).await;
    assert!(matches!(copied, Err(GaveUp::Overtaken)), "{copied:?}");
    drop((recording, source));
    assert_eq!(files(folder.path()), ["state-000001"]);
    state.shrink(&FAST).await.unwrap();
    check(folder.path(), state, 2200).await;
}

#[tokio::test]
async fn a_full_disk_costs_the_copy_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    // A file that cannot grow fails as a disk does that is full: in the middle of a transaction.
    let full = Limits { map_bytes: Some(256 << 10), ..FAST };
    let gave_up = state.shrink(&full).await.unwrap_err();
    assert!(matches!(gave_up, GaveUp::Disk(_)), "{gave_up}");
    assert_eq!(files(folder.path()), ["state-000001"]);
    assert!(state.check().is_ok());

    // The last step before there is no way back needs room as well.
    std::fs::create_dir(folder.path().join("CURRENT.draft")).unwrap();
    apply(&state, 2000..2100);
    let gave_up = state.shrink(&FAST).await.unwrap_err();
    assert!(matches!(gave_up, GaveUp::Disk(_)), "{gave_up}");
    assert_eq!(files(folder.path()), ["state-000001"]);
    std::fs::remove_dir(folder.path().join("CURRENT.draft")).unwrap();
    apply(&state, 2100..2200);
    state.shrink(&FAST).await.unwrap();
    check(folder.path(), state, 2200).await;
}

/// The log, which every write waits for, must not be what finds the disk full.
#[tokio::test]
async fn a_copy_gives_way_when_the_file_system_gets_full() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let (bytes, free) = state.store().unwrap().free().unwrap();
    assert!(Limits::NORMAL.room_bytes > 0 && bytes > free);

    // There is room for the log, and not for a copy beside it.
    let scarce = Limits { room: |_| Some(Limits::NORMAL.room_bytes), ..FAST };
    let gave_up = state.shrink(&scarce).await.unwrap_err();
    assert!(matches!(gave_up, GaveUp::NoRoom), "{gave_up}");
    assert_eq!(files(folder.path()), ["state-000001"]);

    // Others fill the disk while the copy is made.
    let fills = |_: &Generations| {
        static LOOKS: AtomicUsize = AtomicUsize::new(0);
        let is_first = LOOKS.fetch_add(1, Ordering::SeqCst) == 0;
        Some(if is_first { u64::MAX } else { Limits::NORMAL.room_bytes - 1 })
    };
    let filled = Limits { room: fills, piece_bytes: 1 << 10, ..FAST };
    let gave_up = state.shrink(&filled).await.unwrap_err();
    assert!(matches!(gave_up, GaveUp::NoRoom), "{gave_up}");
    assert_eq!(files(folder.path()), ["state-000001"]);
    assert!(state.check().is_ok());

    // Nobody knows, or nothing is asked for: then it is tried.
    state.shrink(&Limits { room: |_| None, ..FAST }).await.unwrap();
    apply(&state, 2000..2100);
    state.shrink(&Limits { room: |_| Some(0), room_bytes: 0, ..FAST }).await.unwrap();
    check(folder.path(), state, 2100).await;
}

/// A batch may be there by half: what the thread that applies has in memory is no moment any more.
#[tokio::test]
async fn nothing_is_shown_after_a_failure_while_a_copy_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let (view, _recording) = state.begin_recording(TAIL_BYTES).await.unwrap();
    let source = view.store();
    let copy = state.copy(view, &source, &FAST).await.unwrap();
    // The thread that applies stands still from behind the request until after the failure.
    let (on_disk, hold_disk) = std::sync::mpsc::channel::<()>();
    let (in_memory, hold_memory) = std::sync::mpsc::channel::<()>();
    let hold = |hold: std::sync::mpsc::Receiver<()>| {
        Box::new(move |_: &Arc<State>| {
            let _ = hold.recv();
        }) as Run
    };
    state.send_to_disk(Job::Run(Arc::clone(&state), hold(hold_disk))).unwrap();
    let mut switch = Box::pin(state.put_in_place(Successor { source: source.clone(), copy }));
    assert!(futures::poll!(&mut switch).is_pending());
    state.in_order(|_| Ok(())).await.unwrap();
    state.send(Work::Look(Arc::clone(&state), hold(hold_memory))).unwrap();
    drop(on_disk);
    // The other one has had the copy count, and said so, when it comes to this.
    let (done, is_done) = oneshot::channel();
    let tell = Box::new(move |_: &Arc<State>| {
        let _ = done.send(());
    });
    state.send_to_disk(Job::Run(Arc::clone(&state), tell)).unwrap();
    is_done.await.unwrap();
    let current = std::fs::read_to_string(folder.path().join("CURRENT")).unwrap();
    assert!(current.starts_with("state-000002 "), "{current}");

    state.fail(Fault::assertion("this failure is part of the test"));
    drop(in_memory);
    assert!(matches!(switch.await, Err(GaveUp::Ended)));
    assert!(state.store().unwrap().is(&source), "the copy was shown");
}

#[tokio::test]
async fn a_copy_that_may_count_is_kept_and_the_member_stops() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let current = folder.path().join("CURRENT");
    std::fs::remove_file(&current).unwrap();
    std::fs::create_dir_all(current.join("in the way")).unwrap();
    assert!(matches!(state.shrink(&FAST).await, Err(GaveUp::Ended)));
    assert!(state.check().is_err() && state.settled().await.is_err());
    assert_eq!(files(folder.path()), ["state-000001", "state-000002"]);
}

#[tokio::test]
async fn a_snapshot_goes_before_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;

    // One is being received.
    let draft = state.draft().unwrap();
    assert!(matches!(state.shrink(&FAST).await, Err(GaveUp::Snapshot)));
    drop(draft);

    // One came between the copy and the switch.
    let (view, recording) = state.begin_recording(TAIL_BYTES).await.unwrap();
    let source = view.store();
    let copied = state.copy(view, &source, &FAST).await.unwrap();
    let installed = copy(&state, state.durable_view().await.unwrap()).unwrap();
    state.swap(installed).await.unwrap();
    let mut copied = Some(copied);
    let refused = state
        .put_in_place(Successor { source: source.clone(), copy: copied.take().unwrap() })
        .await;
    assert!(matches!(refused, Err(GaveUp::Snapshot)), "{refused:?}");
    drop((recording, source));
    assert!(state.store().unwrap().is(&state.view().unwrap().store()));

    // One that was received before cannot be installed after: its folder has a smaller number, so no copy is made.
    let installed = copy(&state, state.durable_view().await.unwrap()).unwrap();
    assert!(matches!(state.shrink(&FAST).await, Err(GaveUp::Snapshot)));
    state.swap(installed).await.unwrap();
    apply(&state, 2000..2100);
    state.shrink(&FAST).await.unwrap();
    // And one that comes after has the next number.
    let installed = copy(&state, state.durable_view().await.unwrap()).unwrap();
    state.swap(installed).await.unwrap();
    check(folder.path(), state, 2100).await;
}

/// A snapshot that is sent, or a backup, is of the file that it began with.
#[tokio::test]
async fn what_is_being_sent_stays_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let read = |reader: &mut SnapshotReader| {
        std::iter::from_fn(|| reader.next_chunk(1 << 20).unwrap()).flatten().collect::<Vec<u8>>()
    };
    let whole = read(&mut SnapshotReader::new(state.durable_view().await.unwrap()));
    let mut reader = SnapshotReader::new(state.durable_view().await.unwrap());
    let mut sent = reader.next_chunk(100_000).unwrap().unwrap().to_vec();
    state.shrink(&FAST).await.unwrap();
    apply(&state, 2000..2100);
    state.settled().await.unwrap();
    sent.extend(read(&mut reader));
    assert!(sent == whole);
    drop(reader);
    check(folder.path(), state, 2100).await;
}

/// Whoever drops the future, at whatever step, has the old file or the new one, and nothing else.
#[tokio::test]
async fn a_copy_can_be_dropped_at_any_step() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let coarse = Limits { piece_bytes: 1 << 20, ..FAST };
    let mut upto = 2000;
    for polls in 0.. {
        let mut shrinking = Box::pin(state.shrink(&coarse));
        let mut polled = 0;
        let shrunk = poll_fn(|cx| {
            if polled == polls {
                return Poll::Ready(None);
            }
            polled += 1;
            shrinking.poll_unpin(cx).map(Some)
        });
        let shrunk = shrunk.await;
        drop(shrinking);
        assert!(state.shrinking.with_tail(|tail| tail.is_none()));
        apply(&state, upto..upto + 10);
        upto += 10;
        if let Some(shrunk) = shrunk {
            shrunk.unwrap();
            break;
        }
        state.settled().await.unwrap();
    }
    assert!(upto > 2050, "there are some steps");
    check(folder.path(), state, upto).await;
}

/// A member that ends leaves whatever is there to the next start.
#[tokio::test]
async fn a_start_finds_one_of_the_two() {
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let (view, recording) = state.begin_recording(TAIL_BYTES).await.unwrap();
    let source = view.store();
    let copied = state.copy(view, &source, &FAST).await.unwrap();
    state.abandon();
    let refused = state.put_in_place(Successor { source: source.clone(), copy: copied }).await;
    assert!(matches!(refused, Err(GaveUp::Ended)));
    drop((recording, source, state));
    let generations = Generations::open(folder.path()).unwrap();
    assert_eq!(generations.current(), folder.path().join("state-000001"));
}

#[test]
fn a_file_is_worth_a_copy_if_most_of_it_is_free_and_that_is_much() {
    let limits = Limits::NORMAL;
    assert!(!limits.are_passed((100 << 20, 60 << 20)));
    assert!(limits.are_passed((100 << 20, 65 << 20)));
    assert!(!limits.are_passed((200 << 20, 99 << 20)));
    assert!(!limits.are_passed((0, 0)) && limits.are_passed((u64::MAX, u64::MAX)));
}

/// How many of a hundred members begin a copy in the first tenth of the time that they have for it, if all pass the limits
/// now, and all of them in all of it.
fn begun(members: &mut [When], now: Instant) -> (usize, usize) {
    let rest = Limits::NORMAL.rest;
    let begun = |members: &mut [When], now: Instant| {
        members.iter_mut().map(|when| usize::from(when.is_it(now, true))).sum::<usize>()
    };
    assert_eq!(members.len(), 100);
    begun(members, now);
    (begun(members, now + rest / 10), begun(members, now + rest))
}

#[test]
fn members_do_not_begin_at_once_whenever_they_pass_the_limits_together() {
    let limits = Limits::NORMAL;
    let mut members: Vec<When> = (0..100).map(|_| When::new(&limits)).collect();
    let mut now = Instant::now();
    for round in 0..3 {
        let (early, all) = begun(&mut members, now);
        assert!(early < 50 && all == 100, "round {round}: {early} of {all}");
        now += limits.rest;
        members.iter_mut().for_each(|when| when.has_ended(now, true));
        // For a month there is nothing to do.
        for _ in 0..30 {
            now += Duration::from_secs(24 * 3600);
            assert!(members.iter_mut().all(|when| !when.is_it(now, false)));
        }
    }
}

#[test]
fn a_copy_rests_after_the_last_one_and_longer_after_one_that_was_given_up() {
    let limits = Limits::NORMAL;
    let mut when = When::new(&limits);
    let mut now = Instant::now();
    let mut rest = limits.rest;
    for _ in 0..20 {
        when.has_ended(now, false);
        rest = (rest * 2).min(limits.rest_max);
        // Also if there is nothing to do for a moment.
        assert!(!when.is_it(now + rest / 2, false));
        assert!(!when.is_it(now + rest - Duration::from_millis(1), true));
        now += rest * 2;
        assert!(when.is_it(now, true));
    }
    assert_eq!(rest, limits.rest_max);
    when.has_ended(now, true);
    assert!(!when.is_it(now + limits.rest - Duration::from_millis(1), true));
    assert!(when.is_it(now + limits.rest * 2, true));
}

/// Every second key is deleted, so every page is half full, and not one is free.
#[tokio::test]
async fn a_quota_that_is_used_up_by_half_empty_pages_is_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open_unsynced(folder.path());
    let keys = 4000;
    let put = |n: u64| Command::Txn(TxnOp::single(Op::put(format!("k{n:06}"), vec![7; 200]).0));
    let mut commands: Vec<_> = (0..keys).map(put).collect();
    let delete = |n: u64| Command::Txn(TxnOp::single(Op::delete(format!("k{:06}", n * 2)).0));
    commands.extend((0..keys / 2).map(delete));
    commands.push(Command::Compact(Revision::from(keys + keys / 2 + 1)));
    commands.push(Command::Room { is_short: true });
    let mut index = 0;
    for part in commands.chunks(500) {
        let entries: Vec<_> = part
            .iter()
            .map(|command| {
                index += 1;
                entry(index, command.clone())
            })
            .collect();
        state.apply_for_test(&entries);
        state.settled().await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(crate::raft::state::compact_in_time(Arc::clone(&state)));
    let gone = async {
        while state.forgets() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("history stays");
    let before = state.used();
    assert!(state.has_deleted_in_vain());
    tasks.spawn(shrink_in_time(Arc::clone(&state)));
    let helped = async {
        while state.used() > before / 10 * 7 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, helped).await.expect("it stays as it is");
    tasks.shutdown().await;
    state.store().unwrap().view().unwrap().verify().unwrap();
}

/// Whether the group can do without this member is for others to say.
#[tokio::test]
async fn a_copy_of_damaged_rows_is_given_up_and_ends_nothing() {
    use std::os::unix::fs::FileExt;
    let folder = tempfile::tempdir().unwrap();
    let state = with_room(folder.path()).await;
    let value = vec![0xA7; 20_000];
    let put = Op::put("marked", Bytes::from(value.clone()));
    state.apply_for_test(&[entry(2000, Command::Txn(TxnOp::single(put.0)))]);
    state.settled().await.unwrap();
    let path = folder.path().join(&files(folder.path())[0]).join("data.mdb");
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let mut places = bytes.windows(64).enumerate().filter(|(_, it)| **it == value[..64]);
    let at = places.next().expect("it is there").0;
    file.write_all_at(b"?", at as u64).unwrap();
    let given_up = state.shrink(&FAST).await.unwrap_err();
    assert!(matches!(given_up, GaveUp::Differs(_)), "{given_up}");
    state.check().unwrap();
}
