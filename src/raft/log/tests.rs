//! What openraft's own suite cannot see of a log: reopening, a crash, the order of jobs, and when callbacks come.

use super::*;
use crate::mvcc::LogPosition;
use crate::raft::EntryPayload;
use crate::raft::format::log_id;
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use tempfile::TempDir;

/// Where tests reach into the writer thread: hold it before its fsync, make the disk fail, or crash.
pub(crate) mod seam {
    use crate::error::Fault;
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Condvar, LazyLock, Mutex};

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    pub(crate) enum Disk {
        #[default]
        Works,
        /// Nothing reaches the disk; whoever waits for it waits.
        Holds,
        /// Each write takes so long.
        Slow(std::time::Duration),
        /// The next write fails.
        Fails,
        /// Power is lost: what was not written is gone.
        Crashed,
    }

    #[derive(Default)]
    pub(crate) struct Seam {
        disk: Mutex<Disk>,
        changed: Condvar,
        interruption: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    }

    static SEAMS: LazyLock<Mutex<BTreeMap<PathBuf, Arc<Seam>>>> = LazyLock::new(Mutex::default);

    /// The seam of the environment in `folder`.
    pub(crate) fn of(folder: &Path) -> Arc<Seam> {
        let folder = folder.canonicalize().unwrap();
        SEAMS.lock().unwrap().entry(folder).or_default().clone()
    }

    impl Seam {
        pub(crate) fn set(&self, disk: Disk) {
            *self.disk.lock().unwrap() = disk;
            self.changed.notify_all();
        }

        /// Runs in the middle of the next read from the disk.
        pub(crate) fn interrupt_read(&self, with: impl FnOnce() + Send + 'static) {
            *self.interruption.lock().unwrap() = Some(Box::new(with));
        }
    }

    /// Called by a reader that knows what it will read from the disk, and has not read it yet.
    pub(in super::super) fn before_read(folder: &Path) {
        let Some(seam) = find(folder) else { return };
        let interruption = seam.interruption.lock().unwrap().take();
        if let Some(interruption) = interruption {
            interruption();
        }
    }

    fn find(folder: &Path) -> Option<Arc<Seam>> {
        let folder = folder.canonicalize().ok()?;
        SEAMS.lock().unwrap().get(&folder).cloned()
    }

    /// Called by the writer thread before it writes a batch.
    pub(in super::super) fn before_write(folder: &Path) -> Result<(), Fault> {
        let Some(seam) = find(folder) else { return Ok(()) };
        let disk = seam.disk.lock().unwrap();
        let disk = seam.changed.wait_while(disk, |disk| *disk == Disk::Holds).unwrap();
        match *disk {
            Disk::Works | Disk::Holds => Ok(()),
            Disk::Slow(time) => {
                drop(disk);
                #[expect(clippy::disallowed_methods, reason = "a slow disk is what this is about")]
                std::thread::sleep(time);
                Ok(())
            }
            Disk::Fails => Err(Fault::disk("a test", std::io::Error::other("the disk fails"))),
            Disk::Crashed => Err(Fault::disk("a test", std::io::Error::other("the power is gone"))),
        }
    }
}

const SEGMENT: u64 = 64 << 10;

fn at(term: u64, index: u64) -> LogId {
    log_id(LogPosition { term, node: 1, index })
}

fn blanks(term: u64, indexes: Range<u64>) -> Vec<Entry> {
    let blank = |index| Entry { log_id: at(term, index), payload: EntryPayload::Blank };
    indexes.map(blank).collect()
}

fn ids(entries: &[Entry]) -> Vec<(u64, u64)> {
    entries.iter().map(|e| (e.log_id.committed_leader_id().term, e.log_id.index)).collect()
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: RaftLeaderId::new(term, 1), committed: true }
}

fn close(log: LogStore) {
    assert!(log.close(Duration::from_secs(10)), "a handle leaked");
}

/// Closes every handle and opens the folder again.
fn reopen(log: LogStore, folder: &TempDir) -> LogStore {
    close(log);
    LogStore::open(folder.path(), SEGMENT).unwrap()
}

/// Loses what is not on the disk, and opens the folder again.
fn crash(log: LogStore, folder: &TempDir) -> LogStore {
    let seam = seam::of(folder.path());
    seam.set(seam::Disk::Crashed);
    close(log);
    seam.set(seam::Disk::Works);
    LogStore::open(folder.path(), SEGMENT).unwrap()
}

/// Waits until an entry is on the disk.
async fn flushed(log: &LogStore, index: u64) -> Result<(), Fault> {
    let (done, flushed) = oneshot::channel();
    log.when_flushed(index, |written| drop(done.send(written)));
    flushed.await.unwrap()
}

type Answer = oneshot::Receiver<io::Result<()>>;

async fn append(log: &mut LogStore, entries: Vec<Entry>) -> Answer {
    let (sender, answer) = Types::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await.unwrap();
    answer
}

async fn all(log: &mut LogStore) -> Vec<(u64, u64)> {
    ids(&log.try_get_log_entries(..).await.unwrap())
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    log.save_vote(&vote(3)).await.unwrap();
    append(&mut log, blanks(1, 0..10)).await.await.unwrap().unwrap();
    log.truncate_after(Some(at(1, 6))).await.unwrap();
    append(&mut log, blanks(2, 7..9)).await.await.unwrap().unwrap();
    log.purge(at(1, 3)).await.unwrap();
    log.save_committed(Some(at(2, 7))).await.unwrap();
    log.flush().await.unwrap();

    let mut log = reopen(log, &folder);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(log.read_committed().await.unwrap(), Some(at(2, 7)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(at(1, 3)), Some(at(2, 8))));
    assert_eq!(all(&mut log).await, [(1, 4), (1, 5), (1, 6), (2, 7), (2, 8)]);
}

#[tokio::test]
async fn a_callback_comes_only_after_the_fsync_and_entries_are_readable_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    let seam = seam::of(folder.path());
    seam.set(seam::Disk::Holds);
    let mut answer = append(&mut log, blanks(1, 0..3)).await;
    assert_eq!(all(&mut log).await.len(), 3);
    let gate = flushed(&log, 2);
    tokio::pin!(gate);
    assert!(futures::poll!(&mut gate).is_pending());
    assert!(answer.try_recv().is_err(), "nothing is on the disk");

    seam.set(seam::Disk::Works);
    answer.await.unwrap().unwrap();
    gate.await.unwrap();
}

#[tokio::test]
async fn a_crash_loses_what_no_callback_was_given_for_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    log.save_vote(&vote(1)).await.unwrap();
    append(&mut log, blanks(1, 0..3)).await.await.unwrap().unwrap();
    seam::of(folder.path()).set(seam::Disk::Holds);
    let lost = append(&mut log, blanks(1, 3..5)).await;
    log.truncate_after(Some(at(1, 3))).await.unwrap();

    let mut log = crash(log, &folder);
    assert!(!matches!(lost.await, Ok(Ok(()))), "it was never on the disk");
    assert_eq!(all(&mut log).await, [(1, 0), (1, 1), (1, 2)]);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(1)));
}

#[tokio::test]
async fn the_disk_sees_vote_append_and_truncate_in_their_order() {
    // A crash at any point between the jobs must leave a prefix of them, never a later one without an earlier one.
    for written in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
        for step in 0..6 {
            if step == written {
                log.flush().await.unwrap();
                seam::of(folder.path()).set(seam::Disk::Holds);
            }
            match step {
                0 => drop(append(&mut log, blanks(1, 0..4)).await),
                // Polled once, a vote is queued; its answer does not come while the disk holds.
                1 | 4 => drop(futures::poll!(std::pin::pin!(log.save_vote(&vote(step))))),
                2 => log.truncate_after(Some(at(1, 1))).await.unwrap(),
                3 => drop(append(&mut log, blanks(2, 2..3)).await),
                _ => log.purge(at(1, 0)).await.unwrap(),
            }
        }
        let mut log = crash(log, &folder);
        let entries = match written {
            0 => vec![],
            1 | 2 => vec![(1, 0), (1, 1), (1, 2), (1, 3)],
            3 => vec![(1, 0), (1, 1)],
            4 | 5 => vec![(1, 0), (1, 1), (2, 2)],
            _ => unreachable!(),
        };
        assert_eq!(all(&mut log).await, entries, "after {written} jobs");
        let voted = match written {
            0 | 1 => None,
            2..=4 => Some(vote(1)),
            _ => Some(vote(4)),
        };
        assert_eq!(log.read_vote().await.unwrap(), voted, "after {written} jobs");
    }
}

#[tokio::test]
async fn the_gate_of_a_replaced_entry_waits_for_its_replacement() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    append(&mut log, blanks(3, 0..9)).await.await.unwrap().unwrap();
    seam::of(folder.path()).set(seam::Disk::Holds);
    log.truncate_after(Some(at(3, 4))).await.unwrap();
    // The disk has an entry of term 3 at index 5, of a higher term even than the one that took its place.
    let _answer = append(&mut log, blanks(2, 5..6)).await;
    assert!(futures::poll!(std::pin::pin!(flushed(&log, 5))).is_pending());
    assert!(futures::poll!(std::pin::pin!(flushed(&log, 4))).is_ready());
    seam::of(folder.path()).set(seam::Disk::Works);
    flushed(&log, 5).await.unwrap();
}

#[tokio::test]
async fn a_failed_write_fails_everything_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    seam::of(folder.path()).set(seam::Disk::Fails);
    let error = append(&mut log, blanks(1, 0..1)).await.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("the disk fails"), "{error}");
    seam::of(folder.path()).set(seam::Disk::Works);
    assert!(log.save_vote(&vote(1)).await.is_err());
    let error = flushed(&log, 0).await.unwrap_err();
    assert!(error.to_string().contains("the disk fails"), "{error}");
}

#[tokio::test]
async fn many_appends_share_one_fsync() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    let seam = seam::of(folder.path());
    let blocks = |log: &LogStore| log.bytes() / block::BLOCK_BYTES as u64;
    seam.set(seam::Disk::Holds);
    let before = blocks(&log);
    let mut answers = Vec::new();
    for index in 0..100 {
        answers.push(append(&mut log, blanks(1, index..index + 1)).await);
    }
    seam.set(seam::Disk::Works);
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    let all = block::count(99 * 40) as u64;
    assert!(blocks(&log) - before <= 1 + all, "the first, and all that waited for it");
}

#[tokio::test]
async fn old_entries_are_read_from_the_disk_and_batches_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), 4 << 20).unwrap();
    let value = vec![7; 300 << 10];
    for index in 0..100 {
        let put = crate::types::Op::put("k", value.clone());
        let command = crate::api::Command::Txn(crate::types::TxnOp::single(put.0));
        let payload = EntryPayload::Normal(crate::api::Proposal::from(command).into());
        let entry = Entry { log_id: at(1, index), payload };
        append(&mut log, vec![entry]).await.await.unwrap().unwrap();
    }
    assert!(log.shared().tail_bytes <= TAIL_BYTES_KEPT + (1 << 20), "memory is bounded");
    assert_eq!(all(&mut log).await, (0..100).map(|index| (1, index)).collect::<Vec<_>>());
    for start in [0, 40, 60, 98] {
        let batch = ids(&log.limited_get_log_entries(start, 100).await.unwrap());
        let expected: Vec<_> = (start..100).take(3).map(|index| (1, index)).collect();
        assert_eq!(batch, expected);
    }
}

#[tokio::test]
async fn flipped_bytes_are_found_and_a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    append(&mut log, blanks(1, 0..3)).await.await.unwrap().unwrap();
    close(log);
    let path = folder.path().join("log-00000001");
    let whole = std::fs::read(&path).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for at in (0..used).step_by(41).chain([used, used + 1, whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let fault = LogStore::open(folder.path(), SEGMENT).unwrap_err().to_string();
        assert!(fault.contains("log-00000001: byte"), "byte {at}: {fault}");
    }

    let mut newer = whole.clone();
    newer[5] += 1;
    let sum = crc32c::crc32c(&newer[..10]);
    newer[10..14].copy_from_slice(&sum.to_be_bytes());
    std::fs::write(&path, &newer).unwrap();
    let fault = LogStore::open(folder.path(), SEGMENT).unwrap_err();
    assert!(fault.to_string().contains("format 3"), "{fault}");
    std::fs::write(&path, &whole).unwrap();
    std::fs::write(folder.path().join("data.mdb"), "").unwrap();
    let fault = LogStore::open(folder.path(), SEGMENT).unwrap_err();
    assert!(fault.to_string().contains("format 1"), "{fault}");
}

#[tokio::test]
async fn a_disk_that_stalls_does_not_fill_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), 4 << 20).unwrap();
    seam::of(folder.path()).set(seam::Disk::Holds);
    let value = bytes::Bytes::from(vec![7; 1 << 20]);
    let mut taken = 0;
    for index in 0..1000 {
        let put = crate::types::Op::put("k", value.clone());
        let command = crate::api::Command::Txn(crate::types::TxnOp::single(put.0));
        let payload = EntryPayload::Normal(crate::api::Proposal::from(command).into());
        let entry = Entry { log_id: at(1, index), payload };
        let append = std::pin::pin!(log.append(vec![entry], IOFlushed::noop()));
        if futures::poll!(append).is_pending() {
            break;
        }
        taken += 1 << 20;
    }
    assert!((STAGED_BYTES_MAX..STAGED_BYTES_MAX + (2 << 20)).contains(&taken), "{taken}");
    seam::of(folder.path()).set(seam::Disk::Works);
    log.flush().await.unwrap();
    assert!(log.shared().tail_bytes <= TAIL_BYTES_KEPT + (2 << 20), "and is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_the_log_of_one_moment_however_it_is_cut_meanwhile() {
    let old: Vec<_> = (0..8).map(|index| (1, index)).collect();
    for cut in ["replaced", "truncated", "purged"] {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
        append(&mut log, blanks(1, 0..6)).await.await.unwrap().unwrap();
        // Opened anew there is nothing in memory, and then the end only.
        let mut log = reopen(log, &folder);
        append(&mut log, blanks(1, 6..8)).await.await.unwrap().unwrap();
        let (mut other, runtime) = (log.clone(), tokio::runtime::Handle::current());
        let interrupt = async move {
            match cut {
                "purged" => other.purge(at(1, 3)).await.unwrap(),
                _ => other.truncate_after(Some(at(1, 3))).await.unwrap(),
            }
            if cut == "replaced" {
                append(&mut other, blanks(2, 4..6)).await.await.unwrap().unwrap();
            }
            other.flush().await.unwrap();
        };
        seam::of(folder.path()).interrupt_read(move || {
            std::thread::scope(|scope| {
                scope.spawn(|| runtime.block_on(interrupt)).join().unwrap();
            });
        });
        let reader = log.clone();
        let read = tokio::task::spawn_blocking(move || reader.read(0, 8, usize::MAX)).await;
        assert_eq!(ids(&read.unwrap().unwrap()), old, "while the log was {cut}");
    }
}

/// The names and contents of a log's files, oldest first.
fn files(folder: &TempDir) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let paths = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    files.sort();
    files
}

fn put(index: u64, bytes: usize) -> Entry {
    let put = crate::types::Op::put("k", vec![7; bytes]);
    let command = crate::api::Command::Txn(crate::types::TxnOp::single(put.0));
    let payload = EntryPayload::Normal(crate::api::Proposal::from(command).into());
    Entry { log_id: at(1, index), payload }
}

/// The power goes while a batch of several blocks is written: whatever of it the disk has, nobody was told, and the log
/// goes on without it. It may happen again and again.
#[tokio::test]
async fn a_torn_end_is_left_out_and_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    append(&mut log, blanks(1, 0..3)).await.await.unwrap().unwrap();
    let before = log.bytes() as usize;
    append(&mut log, vec![put(3, 2000)]).await.await.unwrap().unwrap();
    let after = log.bytes() as usize;
    close(log);
    let (path, whole) = files(&folder).pop().unwrap();
    let blocks = (after - before) / block::BLOCK_BYTES;
    assert_eq!(blocks, 5);
    for kept in 0..(1 << blocks) - 1 {
        std::fs::remove_dir_all(folder.path()).unwrap();
        std::fs::create_dir(folder.path()).unwrap();
        let mut torn = whole.clone();
        for block in (0..blocks).filter(|block| kept & 1 << block == 0) {
            let begin = before + block * block::BLOCK_BYTES;
            torn[begin..begin + block::BLOCK_BYTES].fill(0);
        }
        std::fs::write(&path, &torn).unwrap();
        let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
        assert_eq!(all(&mut log).await, [(1, 0), (1, 1), (1, 2)], "{kept:b}");
        append(&mut log, blanks(2, 3..5)).await.await.unwrap().unwrap();
        let mut log = reopen(log, &folder);
        assert_eq!(all(&mut log).await, [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)], "{kept:b}");
        close(log);
        assert!(kept == 0 || files(&folder)[0].1 == torn, "what was begun is not written over");
    }
}

/// A block that was on the disk once, for others came after it, and is not there any more.
#[tokio::test]
async fn a_write_that_the_disk_has_lost_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    for index in 0..5 {
        append(&mut log, blanks(1, index..index + 1)).await.await.unwrap().unwrap();
    }
    let used = log.bytes() as usize;
    close(log);
    let (path, whole) = files(&folder).pop().unwrap();
    for begin in (0..used - block::BLOCK_BYTES).step_by(block::BLOCK_BYTES) {
        let mut lost = whole.clone();
        lost[begin..begin + block::BLOCK_BYTES].fill(0);
        std::fs::write(&path, &lost).unwrap();
        let fault = LogStore::open(folder.path(), SEGMENT).unwrap_err().to_string();
        assert!(fault.contains(&format!("byte {begin}: ")), "{fault}");
    }
}

/// A log that is cut again and again takes no more files, uses old ones again, and comes back from any of them.
#[tokio::test]
async fn files_of_purged_entries_are_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    log.save_vote(&vote(7)).await.unwrap();
    for index in 0..1000 {
        append(&mut log, vec![put(index, 300)]).await.await.unwrap().unwrap();
        if index % 10 == 9 {
            log.purge(at(1, index - 5)).await.unwrap();
        }
        if index % 250 == 249 {
            // A purge rides on what is written next.
            log.flush().await.unwrap();
            log = reopen(log, &folder);
            let kept: Vec<_> = (index - 4..=index).map(|index| (1, index)).collect();
            assert_eq!(all(&mut log).await, kept);
            assert_eq!(log.read_vote().await.unwrap(), Some(vote(7)));
        }
        assert!(
            files(&folder).len() <= 3,
            "one that is written, one that is left, one to be used again"
        );
    }
    assert!(log.bytes() <= 2 * SEGMENT);
    assert!(files(&folder)[0].0 > folder.path().join("log-00000006"), "{:?}", files(&folder)[0].0);
}

/// A file of the log that somebody has removed is missed.
#[tokio::test]
async fn a_file_that_is_missing_is_missed() {
    for missing in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let mut log = LogStore::open(folder.path(), 16 << 10).unwrap();
        for index in 0..80 {
            append(&mut log, vec![put(index, 300)]).await.await.unwrap().unwrap();
        }
        close(log);
        let files = files(&folder);
        assert!(files.len() > 2);
        std::fs::remove_file(&files[missing].0).unwrap();
        let fault = LogStore::open(folder.path(), 16 << 10).unwrap_err().to_string();
        assert!(fault.contains("missing") || fault.contains("lacks entry 0"), "{fault}");
    }
}

/// What is on the disk may be enough for one message, though something small that is in memory would fit as well.
#[tokio::test]
async fn a_batch_has_no_hole_where_memory_begins() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(folder.path(), SEGMENT).unwrap();
    let large = |index| {
        let put = crate::types::Op::put("k", vec![7; READ_BYTES_MAX / 3]);
        let command = crate::api::Command::Txn(crate::types::TxnOp::single(put.0));
        let payload = EntryPayload::Normal(crate::api::Proposal::from(command).into());
        Entry { log_id: at(1, index), payload }
    };
    let written = append(&mut log, (0..6).map(large).collect()).await;
    written.await.unwrap().unwrap();
    // What was written before the start is not in memory.
    let mut log = reopen(log, &folder);
    append(&mut log, blanks(1, 6..9)).await.await.unwrap().unwrap();
    for first in 0..9 {
        let found = log.limited_get_log_entries(first, 9).await.unwrap();
        let expected: Vec<_> = (first..9).map(|index| (1, index)).take(found.len()).collect();
        assert!(!found.is_empty());
        assert_eq!(ids(&found), expected);
    }
}
