//! The applied state of this member, the one thread that changes it, and everybody who reads it.
//!
//! ```text
//! machine ── share: entries, whom to answer ──▶ queue ─▶ state thread: all shares that wait, as one transaction
//!    ▲ waits while the queue is full                       ├─▶ head: what is applied (reads wait for it)
//!                                                          ├─▶ leases: granted and ended
//!                                                          ├─▶ watches: wake those that were touched
//!                                                          └─▶ answers
//! ```
//!
//! A commit costs a flush, whatever it holds. So entries that are handed in while one is under way go into the next one
//! together: the slower the disk, the larger the batches.
//!
//! Invariants
//! - entries are applied in the order in which they were handed in, and other work of the thread has its place in it;
//! - an effect is visible to every reader before anybody is told of it;
//! - after a failure nothing is applied any more, and its cause is known before those who wait are let go;
//! - no more than [`ROOM_UNITS`] of entries wait, but for a share that is larger by itself.

use super::Types;
use super::leases::Lessor;
use super::watch::Interest;
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::lmdb::{self, Worker};
use crate::mvcc::{self, Generations, LoadError, SnapshotLoader, Store, View};
use crate::types::Revision;
use bytes::Bytes;
use openraft::storage::ApplyResponder;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Rows of history that one step of physical compaction removes, so that applying never waits long for it.
const COMPACT_ROWS: usize = 1000;

/// States up to this size are checked as a whole when they are opened. A checksum tells a row that has changed; a row
/// that is not found any more, because its key or the way to it has changed, is only told by all others.
const VERIFIED_BYTES: u64 = 32 << 20;

/// How much of the log may wait to be applied, in kilobytes.
const ROOM_UNITS: u32 = 32 << 10;

/// Entries that go into one transaction, so that none takes so long that everybody behind it notices.
const TOGETHER_MAX: usize = 4096;

/// What the state's thread is given.
enum Work {
    Apply(Share),
    Run(Box<dyn FnOnce() + Send>),
}

/// Entries to apply, and whom to tell.
struct Share {
    state: Arc<State>,
    entries: Vec<mvcc::Entry>,
    responders: Vec<Option<ApplyResponder<Types>>>,
    /// Its place in the queue.
    _room: OwnedSemaphorePermit,
}

/// How far this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) revision: Revision,
    /// The log index that was applied last.
    pub(crate) applied: Option<u64>,
}

/// The applied state, shared by all who read it.
#[derive(Debug)]
pub(crate) struct State {
    /// Gone once the node is shut down, so that a client that outlives it does not keep the folder open.
    store: RwLock<Option<Store>>,
    generations: Mutex<Generations>,
    map_bytes: usize,
    worker: Mutex<Option<Worker<Work>>>,
    /// Kilobytes of entries that may be handed in.
    room: Arc<Semaphore>,
    head: watch::Sender<Head>,
    pub(crate) interest: Interest,
    pub(crate) lessor: Lessor,
    fault: watch::Sender<Option<Error>>,
}

impl State {
    /// Opens the newest state in `folder`, or makes an empty one.
    pub(crate) fn open(folder: &Path, map_bytes: usize) -> Result<Arc<Self>, Fault> {
        Self::open_with(folder, map_bytes, Store::open)
    }

    /// The same, with the store opened by `open`.
    fn open_with(
        folder: &Path,
        map_bytes: usize,
        open: impl FnOnce(&Path, usize) -> Result<Store, Fault>,
    ) -> Result<Arc<Self>, Fault> {
        let generations = Generations::open(folder)?;
        let store = open(&generations.current(), map_bytes)?;
        // After a crash of the process the last commit is there, but perhaps not on the disk. The log may be cut up to
        // it from now on.
        store.force_sync()?;
        let view = store.view()?;
        if store.bytes()? <= VERIFIED_BYTES {
            view.verify()?;
        }
        let head = Head { revision: view.revision(), applied: view.applied().map(|at| at.index) };
        drop(view);
        let worker = Worker::spawn("quorate-state", carry_out)?;
        let state = Arc::new(Self {
            store: RwLock::new(Some(store)),
            generations: Mutex::new(generations),
            map_bytes,
            worker: Mutex::new(Some(worker)),
            room: Arc::new(Semaphore::new(ROOM_UNITS as usize)),
            head: watch::Sender::new(head),
            interest: Interest::new(head.revision),
            lessor: Lessor::default(),
            fault: watch::Sender::new(None),
        });
        state.compact();
        Ok(state)
    }

    /// A state whose commits cost no flush, for tests that need many.
    #[cfg(test)]
    pub(crate) fn open_unsynced(folder: &Path) -> Arc<Self> {
        let open = |folder: &Path, map_bytes| {
            Store::open_with(folder, map_bytes, crate::lmdb::Sync::Never)
        };
        Self::open_with(folder, 256 << 20, open).unwrap()
    }

    /// On the state's thread, as after a commit of the log.
    #[cfg(test)]
    pub(crate) fn apply_for_test(self: &Arc<Self>, entries: &[mvcc::Entry]) {
        self.apply(entries, entries.iter().map(|_| None)).unwrap();
    }

    /// A consistent view of what is applied.
    pub(crate) fn view(&self) -> Result<View, Fault> {
        self.store()?.view()
    }

    /// How far this member is.
    pub(crate) fn now(&self) -> Head {
        *self.head.borrow()
    }

    /// How far this member is, now and from now on.
    pub(crate) fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// The first fault of this member that is not openraft's business, such as a record that changed on the disk.
    pub(crate) fn fault(&self) -> watch::Receiver<Option<Error>> {
        self.fault.subscribe()
    }

    /// Takes note of a fault, which stops the node, and returns it as the answer to whoever ran into it. Too many readers
    /// at once, or one that came after the end, are no reason to stop.
    pub(crate) fn fail(&self, fault: Fault) -> Error {
        let error = Error::from(fault);
        if error.kind() != ErrorKind::Storage {
            return error;
        }
        self.fault.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| error.clone());
            is_first
        });
        error
    }

    /// Runs `work` on the state's thread, after everything that was sent there before.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let (done, result) = oneshot::channel();
        let state = Arc::clone(self);
        self.send(Work::Run(Box::new(move || {
            // Whoever asked may have gone.
            let _ = done.send(work(&state));
        })))?;
        result.await.unwrap_or_else(|_| Err(self.cause()))
    }

    /// Hands entries in, and returns when there was room for them: they are applied after all that was handed in before.
    ///
    /// # Errors
    /// If this member has failed, or has ended.
    ///
    /// # Cancel safety
    /// A future that is dropped has handed in nothing.
    pub(crate) async fn hand_in(
        self: &Arc<Self>,
        entries: Vec<mvcc::Entry>,
        responders: Vec<Option<ApplyResponder<Types>>>,
        bytes: usize,
    ) -> Result<(), Fault> {
        let units = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(ROOM_UNITS);
        let room = Arc::clone(&self.room).acquire_many_owned(units).await;
        let room = room.map_err(|_| self.cause())?;
        let state = Arc::clone(self);
        self.send(Work::Apply(Share { state, entries, responders, _room: room }))
    }

    fn send(&self, work: Work) -> Result<(), Fault> {
        match self.worker.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(worker) => worker.send(work),
            None => Err(Fault::from_reason(Reason::Closed)),
        }
    }

    /// Why the state's thread does not answer.
    fn cause(&self) -> Fault {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        worker.as_ref().map_or_else(|| Fault::from_reason(Reason::Closed), Worker::cause)
    }

    pub(crate) fn store(&self) -> Result<Store, Fault> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        store.clone().ok_or_else(|| Fault::from_reason(Reason::Closed))
    }

    /// On the state's thread: applies entries, publishes what became of them, and answers.
    fn apply(
        self: &Arc<Self>,
        entries: &[mvcc::Entry],
        responders: impl Iterator<Item = Option<ApplyResponder<Types>>>,
    ) -> Result<(), Fault> {
        let batch = self.store()?.apply(entries)?;
        let applied = entries.last().map(|entry| entry.position.index);
        self.lessor.note(&batch.leases);
        self.publish(Head { revision: batch.revision, applied });
        self.interest.wake(&batch.touched, batch.revision);
        if batch.compacted.is_some() {
            self.compact();
        }
        for (responder, outcome) in responders.zip(batch.outcomes) {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    fn publish(&self, head: Head) {
        self.head.send_modify(|now| {
            assert!(now.revision <= head.revision, "revisions go forward: {head:?} after {now:?}");
            *now = head;
        });
    }

    /// Removes compacted history, a step at a time, with whatever else is sent to the thread in between.
    fn compact(self: &Arc<Self>) {
        let state = Arc::clone(self);
        // If the thread has ended there is nothing to compact for.
        let _ = self.send(Work::Run(Box::new(move || {
            let Ok(store) = state.store() else { return };
            match store.compact_step(COMPACT_ROWS) {
                Ok(true) => {}
                Ok(false) => state.compact(),
                Err(fault) => drop(state.fail(fault)),
            }
        })));
    }

    /// An empty state beside the current one, to load a snapshot into.
    pub(crate) fn draft(&self) -> Result<Draft, Fault> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        // What an earlier snapshot replaced has no readers any more.
        generations.remove_older()?;
        let folder = DraftFolder(generations.draft());
        drop(generations);
        let loader = SnapshotLoader::new(&folder.0, self.map_bytes)?;
        Ok(Draft { loader, folder })
    }

    /// On the state's thread: puts a loaded state in the place of the current one.
    pub(crate) fn swap(&self, loaded: Loaded) -> Result<(), Fault> {
        let view = loaded.store.view()?;
        let head = Head { revision: view.revision(), applied: view.applied().map(|at| at.index) };
        drop(view);
        // From here on it may be the current state, also if an error leaves that open. What is not goes at the next start.
        let folder = loaded.folder.keep();
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.publish(&folder)?;
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        if store.is_none() {
            // The node has ended meanwhile, and nobody would close it.
            return Err(Fault::from_reason(Reason::Closed));
        }
        *store = Some(loaded.store);
        drop(store);
        self.publish(head);
        self.interest.wake_all(head.revision);
        Ok(())
    }

    /// Ends the thread and closes the environment, and waits for both; returns whether the second happened within
    /// `limit`.
    pub(crate) fn close(&self, limit: Duration) -> bool {
        let (worker, store) = self.take_apart();
        if let Some(worker) = worker {
            worker.join();
        }
        store.is_none_or(|store| store.close(limit))
    }

    /// The same without waiting: the thread ends after what it was given, and the environment with its last reader.
    pub(crate) fn abandon(&self) {
        drop(self.take_apart());
    }

    fn take_apart(&self) -> (Option<Worker<Work>>, Option<Store>) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        (worker, self.store.write().unwrap_or_else(PoisonError::into_inner).take())
    }
}

/// A snapshot that is being received.
#[derive(Debug)]
pub(crate) struct Draft {
    loader: SnapshotLoader,
    folder: DraftFolder,
}

impl Draft {
    pub(crate) fn push(&mut self, chunk: &Bytes) -> Result<(), LoadError> {
        self.loader.push(chunk)
    }

    /// Validates the whole of it and makes it durable.
    pub(crate) fn finish(self) -> Result<Loaded, LoadError> {
        Ok(Loaded { store: self.loader.finish()?, folder: self.folder })
    }
}

/// A whole, valid and durable state that is not the current one yet.
#[derive(Debug)]
pub(crate) struct Loaded {
    store: Store,
    folder: DraftFolder,
}

/// A folder that goes away with its owner, unless it has become the current state.
#[derive(Debug)]
struct DraftFolder(PathBuf);

impl DraftFolder {
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for DraftFolder {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // What stays is removed when the node starts again.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Loaded {
    pub(crate) fn view(&self) -> Result<View, Fault> {
        self.store.view()
    }
}

/// On the state's thread: everything that waited, in order.
fn carry_out(work: Vec<Work>) {
    let mut together: Vec<Share> = Vec::new();
    for work in work {
        match work {
            Work::Apply(share) => {
                let entries: usize = together.iter().map(|share| share.entries.len()).sum();
                if entries + share.entries.len() > TOGETHER_MAX {
                    apply_together(&mut together);
                }
                together.push(share);
            }
            Work::Run(run) => {
                apply_together(&mut together);
                run();
            }
        }
    }
    apply_together(&mut together);
}

/// Applies shares in one transaction. If that fails, it is known why before those who wait are let go.
fn apply_together(shares: &mut Vec<Share>) {
    let mut shares = std::mem::take(shares);
    let Some(first) = shares.first_mut() else { return };
    let (state, mut entries) = (Arc::clone(&first.state), std::mem::take(&mut first.entries));
    shares.iter_mut().skip(1).for_each(|share| entries.append(&mut share.entries));
    if state.fault.borrow().is_some() {
        // What failed may be missing, and nothing can follow on it.
        return;
    }
    let responders = shares.iter_mut().flat_map(|share| std::mem::take(&mut share.responders));
    match catch_unwind(AssertUnwindSafe(|| state.apply(&entries, responders))) {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => drop(state.fail(fault)),
        Err(panic) => {
            state.fail(Fault::assertion(lmdb::panic_text(&*panic)));
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn hold(state: &State) -> mpsc::Sender<()> {
        let ((held, free), (inside, is_inside)) = (mpsc::channel(), mpsc::channel());
        let wait = move || {
            inside.send(()).unwrap();
            let _ = free.recv();
        };
        state.send(Work::Run(Box::new(wait))).unwrap();
        is_inside.recv().unwrap();
        held
    }

    /// A commit costs a flush, so those who wait for one share the next.
    #[tokio::test]
    async fn what_waits_is_applied_in_one_transaction() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        state.run(|_| Ok(())).await.unwrap();
        let before = state.store().unwrap().commits();
        let held = hold(&state);
        for index in 0..5 {
            state.hand_in(vec![entry(index)], vec![None], 100).await.unwrap();
        }
        let between = state.run(|state| Ok(state.view()?.applied().map(|at| at.index)));
        let between = pin!(between);
        assert!(futures::poll!(between).is_pending());
        for index in 5..8 {
            state.hand_in(vec![entry(index)], vec![None], 100).await.unwrap();
        }
        drop(held);
        let mut head = state.head();
        head.wait_for(|head| head.applied == Some(7)).await.unwrap();
        assert_eq!(
            state.store().unwrap().commits() - before,
            2,
            "before and after the look between"
        );
        assert_eq!(state.view().unwrap().revision(), Revision::from(9));
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
        let applied = state.run(|state| Ok(state.view()?.applied().map(|at| at.index))).await;
        assert_eq!(applied.unwrap(), Some(3));
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
}
