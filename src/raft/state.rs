//! The applied state of this member, the one thread that changes it, and everybody who reads it.
//!
//! ```text
//! machine ── share: entries, whom to answer ──▶ queue ─▶ state thread: a transaction that is open for a while
//!    ▲ waits while the queue is full                       │ applied ─▶ recent, head ─▶ leases noted ─▶ answers
//!                                                          │            (a key's newest state, in memory)
//!                                                          ▼ committed, when somebody needs it, or it was long enough
//!                                                        history, ranges, snapshots ─▶ watches: wake who was touched
//! ```
//!
//! A commit costs a flush, and writes a page for nearly each key that it holds; the log has everything already, on the
//! disk. So entries are applied in a transaction that stays open, and answered at once. What they made of each key is
//! kept in memory until the commit, for reads of single keys; whoever asks for more has it committed first. A commit is due
//! - when a key was touched that somebody watches;
//! - when a range, the past, leases or the whole state are read, or other work of the thread has its turn;
//! - when the transaction has grown to [`PENDING_CHANGES_MAX`](thread::PENDING_CHANGES_MAX) or
//!   [`PENDING_BYTES_MAX`](thread::PENDING_BYTES_MAX), or [`COMMIT_EVERY`] has passed.
//!
//! Invariants
//! - entries are applied in the order in which they were handed in, and other work of the thread has its place in it;
//! - an effect is visible to every reader of its key, and of the head, before anybody is told of it; who reads anything
//!   else waits for the commit of what is applied ([`State::settled`]);
//! - what is in [`Recent`] and not in the tables was applied after the last commit, and the tables are never ahead of it:
//!   a reader that looks into it first and opens its view before it lets go sees one state;
//! - after a failure nothing is applied any more, and its cause is known before those who wait are let go;
//! - no more than [`ROOM_UNITS`] of entries wait, but for a share that is larger by itself.

#[cfg(test)]
mod tests;
mod thread;

use super::Types;
use super::leases::Lessor;
use super::watch::Interest;
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::fault::{Point, point};
use crate::lmdb::{self, Worker};
use crate::mvcc::{
    self, Generations, Latest, LoadError, SnapshotLoader, Store, VERIFIED_BYTES, View,
};
use crate::types::{GetOp, Op, OpKind, OpResult, Revision, TxnOp, TxnOutcome};
use bytes::Bytes;
use openraft::storage::ApplyResponder;
use std::collections::BTreeMap;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use thread::{Share, Work, carry_out};
use tokio::sync::{Semaphore, oneshot, watch};

/// Rows of history that one step of physical compaction removes, so that applying never waits long for it.
const COMPACT_ROWS: usize = 1000;

/// How much of the log may wait to be applied, in kilobytes.
const ROOM_UNITS: u32 = 32 << 10;

/// What is applied is committed after so long, whether or not anybody needs it.
pub(crate) const COMMIT_EVERY: Duration = Duration::from_millis(500);

/// How far this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) revision: Revision,
    /// The log index that was applied last.
    pub(crate) applied: Option<u64>,
}

/// What is applied, where it is not committed yet.
#[derive(Debug)]
struct Recent {
    head: Head,
    /// The hash of the state at the head.
    hash: u128,
    /// The keys that have changed since the last commit.
    changed: BTreeMap<Bytes, Latest>,
    /// Whether the tables are as new as this.
    is_committed: bool,
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
    recent: RwLock<Recent>,
    head: watch::Sender<Head>,
    pub(crate) interest: Interest,
    pub(crate) lessor: Lessor,
    fault: watch::Sender<Option<Error>>,
    /// The same in the words of whoever found it.
    first: OnceLock<Fault>,
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
        let recent = Recent::of(&view);
        let head = recent.head;
        drop(view);
        let worker = Worker::spawn_with("quorate-state", carry_out)?;
        let state = Arc::new(Self {
            store: RwLock::new(Some(store)),
            generations: Mutex::new(generations),
            map_bytes,
            worker: Mutex::new(Some(worker)),
            room: Arc::new(Semaphore::new(ROOM_UNITS as usize)),
            recent: RwLock::new(recent),
            head: watch::Sender::new(head),
            interest: Interest::new(head.revision),
            lessor: Lessor::default(),
            fault: watch::Sender::new(None),
            first: OnceLock::new(),
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

    /// Applies entries in a transaction of their own, on this thread.
    #[cfg(test)]
    pub(crate) fn apply_for_test(self: &Arc<Self>, entries: &[mvcc::Entry]) {
        let store = self.store().unwrap();
        let mut pending = store.begin().unwrap();
        let batch = pending.apply(entries).unwrap();
        pending.commit().unwrap();
        let touched = batch.touched.clone();
        self.show(entries, batch);
        self.commit_is_visible(&touched);
    }

    /// What was committed last. It may be a little older than what is applied: see [`State::settled`].
    pub(crate) fn view(&self) -> Result<View, Fault> {
        self.store()?.view()
    }

    fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the newest state, if that is possible without a commit: a key, nothing but the revision, or anything if
    /// everything is committed.
    pub(crate) fn read_now(
        &self,
        txn: &TxnOp,
    ) -> Result<Option<Result<TxnOutcome, Reason>>, Fault> {
        let recent = self.recent();
        let revision = recent.head.revision;
        let found = |results| TxnOutcome { succeeded: true, revision, results };
        match single_get(txn) {
            Some(get) => {
                let got = |kv| Ok(Some(Ok(found(vec![OpResult::Get(kv)]))));
                match recent.changed.get(&get.key) {
                    Some(Latest::Is(kv)) => return got(Some(kv.clone())),
                    Some(Latest::Deleted) => return got(None),
                    Some(Latest::Large) => return Ok(None),
                    None => {}
                }
            }
            None if *txn == TxnOp::default() => return Ok(Some(Ok(found(Vec::new())))),
            None if recent.is_committed => {}
            None => return Ok(None),
        }
        // Opened before the lock is let go: nothing can be committed that is not in `recent` by now.
        let view = self.view()?;
        drop(recent);
        let outcome = view.query(txn)?;
        Ok(Some(outcome.map(|outcome| TxnOutcome { revision, ..outcome })))
    }

    /// Waits until everything that is applied by now is committed.
    pub(crate) async fn settled(self: &Arc<Self>) -> Result<(), Error> {
        if self.recent().is_committed {
            return Ok(());
        }
        let (done, settled) = oneshot::channel();
        let sent = self.send(Work::Settle(done));
        let settled = match sent {
            Ok(()) => settled.await.map_err(|_| self.cause()),
            Err(fault) => Err(fault),
        };
        settled.and_then(|()| self.check()).map_err(|fault| self.fail(fault))
    }

    /// Whether this member has not failed.
    fn check(&self) -> Result<(), Fault> {
        self.first.get().cloned().map_or(Ok(()), Err)
    }

    /// The state after everything that was handed in.
    pub(crate) async fn view_in_order(self: &Arc<Self>) -> Result<View, Fault> {
        self.run(|state| state.check().and_then(|()| state.view())).await
    }

    /// The newest revision, log index and hash, which belong together.
    pub(crate) fn summary(&self) -> (Head, u128) {
        let recent = self.recent();
        (recent.head, recent.hash)
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
        let error = Error::from(fault.clone());
        if error.kind() != ErrorKind::Storage {
            return error;
        }
        let _ = self.first.set(fault);
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
        let run = move |state: &Arc<Self>| match catch_unwind(AssertUnwindSafe(|| work(state))) {
            // Whoever asked may have gone.
            Ok(worked) => drop(done.send(worked)),
            Err(panic) => {
                let fault = Fault::assertion(lmdb::panic_text(&*panic));
                state.fail(fault.clone());
                drop(done.send(Err(fault)));
                resume_unwind(panic);
            }
        };
        self.send(Work::Run(Arc::clone(self), Box::new(run)))?;
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
        self.send(Work::Apply(Share { state, entries, responders, bytes, room: Some(room) }))
    }

    fn send(&self, work: Work) -> Result<(), Fault> {
        match self.worker.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(worker) => worker.send(work),
            None => Err(Fault::from_reason(Reason::Closed)),
        }
    }

    /// Why the state's thread does not answer.
    fn cause(&self) -> Fault {
        if let Some(first) = self.first.get() {
            return first.clone();
        }
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        worker.as_ref().map_or_else(|| Fault::from_reason(Reason::Closed), Worker::cause)
    }

    pub(crate) fn store(&self) -> Result<Store, Fault> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        store.clone().ok_or_else(|| Fault::from_reason(Reason::Closed))
    }

    /// On the state's thread: shows to all readers what became of entries, before it is committed.
    fn show(&self, entries: &[mvcc::Entry], batch: mvcc::Batch) {
        let applied = entries.last().map(|entry| entry.position.index);
        let head = Head { revision: batch.revision, applied };
        self.lessor.note(&batch.leases);
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        recent.head = head;
        recent.hash = batch.hash;
        recent.is_committed = false;
        recent.changed.extend(batch.latest);
        drop(recent);
        self.publish(head);
    }

    /// On the state's thread: what was shown is in the tables by now.
    fn commit_is_visible(&self, touched: &[(Revision, Bytes)]) {
        let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        recent.is_committed = true;
        let revision = recent.head.revision;
        let changed = mem::take(&mut recent.changed);
        drop(recent);
        point(Point::WatchWake);
        self.interest.wake(touched, revision);
        // Outside of the lock, for it may be many.
        drop(changed);
    }

    fn publish(&self, head: Head) {
        self.head.send_modify(|now| {
            assert!(now.revision <= head.revision, "revisions go forward: {head:?} after {now:?}");
            *now = head;
        });
    }

    /// Removes compacted history, a step at a time, with whatever else is sent to the thread in between.
    fn compact(self: &Arc<Self>) {
        let step = |state: &Arc<Self>| {
            let Ok(store) = state.store() else { return };
            point(Point::CompactStep);
            match store.compact_step(COMPACT_ROWS) {
                Ok(true) => point(Point::CompactStepDone),
                Ok(false) => state.compact(),
                Err(fault) => drop(state.fail(fault)),
            }
        };
        // If the thread has ended there is nothing to compact for.
        let _ = self.send(Work::Run(Arc::clone(self), Box::new(step)));
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
        self.check()?;
        let recent = Recent::of(&loaded.store.view()?);
        let head = recent.head;
        // From here on it may be the current state, also if an error leaves that open. What is not goes at the next start.
        let folder = loaded.folder.keep();
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.publish(&folder)?;
        // In the order of those who read: they look for the store with `recent` in their hands.
        let mut now = self.recent.write().unwrap_or_else(PoisonError::into_inner);
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        if store.is_none() {
            // The node has ended meanwhile, and nobody would close it.
            return Err(Fault::from_reason(Reason::Closed));
        }
        let old = (store.replace(loaded.store), mem::replace(&mut *now, recent));
        drop((store, now));
        // Outside of the locks: a file is unmapped.
        drop(old);
        point(Point::SnapshotSwapped);
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

impl Recent {
    /// Of a state in which everything is committed.
    fn of(view: &View) -> Self {
        let applied = view.applied().map(|at| at.index);
        let head = Head { revision: view.revision(), applied };
        Self { head, hash: view.hash(), changed: BTreeMap::new(), is_committed: true }
    }
}

/// The key that a transaction reads, if it reads the newest state of one and does nothing else.
fn single_get(txn: &TxnOp) -> Option<&GetOp> {
    match (&txn.when[..], &txn.then[..]) {
        ([], [Op(OpKind::Get(get))]) if get.at.is_none() => Some(get),
        _ => None,
    }
}
