//! The applied state of this member, the two threads that change it, and everybody who reads it.
//!
//! ```text
//! machine ── share: entries, whom to answer ──▶ queue ─▶ applying: into memory ─▶ moment ─▶ answers, watches
//!    ▲ waits while the queue is full                        │ frozen, from time to time       ▲
//!                                                           ▼                                 │
//!                                                        flushing: into the tables ───────────┘ from now on without it
//! ```
//!
//! What is applied is in memory, is shown to all readers at once as a [`Moment`], and is answered. The log has everything
//! already, on the disk; so the tables may follow when it suits them. They are flushed
//! - when what has gathered takes [`FLUSH_BYTES`](thread::FLUSH_BYTES), or [`FLUSH_EVERY`] has passed since the first of it;
//! - when somebody needs what is on the disk: a snapshot, or the end.
//!
//! Invariants
//! - entries are applied in the order in which they were handed in, and other work of that thread has its place in it;
//! - what was applied is visible to every reader before anybody is told of it;
//! - no reader waits for a thread that writes, and none for the disk;
//! - what is flushed next does not take more than [`FLUSH_BYTES`](thread::FLUSH_BYTES) and a share: then applying waits
//!   until the flush before it is done;
//! - nothing is flushed before the log is on the disk as far;
//! - the tables are moved to a smaller file between two flushes ([`shrink`]), and readers follow with the next moment;
//! - after a failure nothing is applied any more, and its cause is known before those who wait are let go;
//! - no more than [`ROOM_UNITS`] of entries wait, but for a share that is larger by itself.

mod compact;
mod draft;
mod shrink;
#[cfg(test)]
mod tests;
mod thread;

use super::Types;
use super::identity::Base;
use super::leases::Lessor;
use super::log::LogStore;
use super::marks::{Marks, Report};
use super::reseed::Why;
use super::seeds::Seeds;
use super::watch::Interest;
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::lmdb::{self, FolderLock, Worker};
use crate::mvcc::{self, Core, Generations, Mark, Moment, Store, VERIFIED_BYTES, View};
use crate::types::{Revision, TxnOp, TxnOutcome};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use compact::Dead;
pub(crate) use compact::compact_in_time;
use draft::DraftFolder;
pub(crate) use draft::{Draft, Loaded};
use openraft::storage::ApplyResponder;
use shrink::Shrinking;
pub(crate) use shrink::shrink_in_time;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
#[cfg(feature = "bench")]
pub(crate) use thread::FLUSH_BYTES;
use thread::{Applier, Job, Share, Work, flush};
use tokio::sync::{Notify, Semaphore, oneshot, watch};

/// How much of a snapshot is written to the disk at once: others on that disk wait behind it for their flushes.
const LOAD_BYTES: usize = 256 << 10;

/// How much of the log may wait to be applied, in kilobytes.
const ROOM_UNITS: u32 = 32 << 10;

/// How long a state that nobody reads may take to be closed.
const CLOSING: Duration = Duration::from_secs(10);

/// What is applied is flushed after so long, whether or not anybody needs it.
pub(crate) const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// How far this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) revision: Revision,
    /// The log index that was applied last.
    pub(crate) applied: Option<u64>,
}

/// How many snapshots of this member's are being sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sending(Arc<AtomicUsize>);

impl Sending {
    /// Another one is, until what this returns is dropped.
    pub(crate) fn begin(&self) -> Counted {
        self.0.fetch_add(1, Ordering::SeqCst);
        Counted(Arc::clone(&self.0))
    }

    pub(crate) fn is_any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

/// One of those that there are of something.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// How many there are.
    pub(super) fn all(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The applied state, shared by all who read it.
#[derive(Debug)]
pub(crate) struct State {
    /// All that there is. Gone once the node is shut down, so that a client that outlives it does not keep the folder open.
    moment: ArcSwapOption<Moment>,
    generations: Generations,
    shrinking: Shrinking,
    dead: Dead,
    /// Somebody believes that its rows are damaged.
    pub(super) doubted: Notify,
    map_bytes: usize,
    /// The thread that applies, and the one that flushes.
    applier: Mutex<Option<Worker<Work>>>,
    flusher: Mutex<Option<Worker<Job>>>,
    /// What keeps others out of the folder, as long as this node may name another state there.
    held: Mutex<Option<Arc<FolderLock>>>,
    /// Where the entries come from.
    log: Mutex<Option<LogStore>>,
    /// Kilobytes of entries that may be handed in.
    room: Arc<Semaphore>,
    /// Bytes of the tables that are in use, and of their file that are not.
    used: AtomicU64,
    free: AtomicU64,
    /// What the log may take before it is cut although a snapshot is being sent, whose receiver is going to need it.
    pub(crate) log_bytes_max: AtomicU64,
    /// Up to where it is being cut because of its bytes, whoever is still reading it.
    pub(crate) log_cut: AtomicU64,
    /// What a test says of the disk.
    #[cfg(test)]
    pub(crate) pretended: Mutex<Option<lmdb::Room>>,
    head: watch::Sender<Head>,
    pub(crate) interest: Interest,
    pub(crate) lessor: Lessor,
    /// What was said of it to members that get a whole state.
    pub(super) seeds: Seeds,
    /// The hashes that it had on the way.
    marks: Mutex<Marks>,
    pub(crate) sending: Sending,
    fault: watch::Sender<Option<Error>>,
    /// The same in the words of whoever found it.
    first: OnceLock<Fault>,
    /// The log index of the last snapshot that was installed.
    #[cfg(feature = "sim")]
    installed: AtomicU64,
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
        // After a crash of the process the last flush is there, but perhaps not on the disk. The log may be cut up to it
        // from now on.
        store.commit_again()?;
        store.force_sync()?;
        if store.bytes()? <= VERIFIED_BYTES {
            store.view()?.verify()?;
        }
        let (used, (_, free)) = (store.bytes_in_use()?, store.free()?);
        let core = Core::new(store, seed()?)?;
        let moment = core.moment();
        let head = Head::of(&moment);
        let applier = Applier::new(core);
        Ok(Arc::new(Self {
            moment: ArcSwapOption::from_pointee(moment),
            generations,
            shrinking: Shrinking::default(),
            dead: Dead::default(),
            doubted: Notify::new(),
            map_bytes,
            applier: Mutex::new(Some(Worker::spawn_with("quorate-state", |inbox| {
                applier.run(inbox)
            })?)),
            flusher: Mutex::new(Some(Worker::spawn("quorate-flush", flush)?)),
            held: Mutex::new(None),
            log: Mutex::new(None),
            room: Arc::new(Semaphore::new(ROOM_UNITS as usize)),
            used: AtomicU64::new(used),
            free: AtomicU64::new(free),
            log_bytes_max: AtomicU64::new(0),
            log_cut: AtomicU64::new(0),
            #[cfg(test)]
            pretended: Mutex::default(),
            head: watch::Sender::new(head),
            interest: Interest::new(head.revision),
            lessor: Lessor::default(),
            seeds: Seeds::default(),
            marks: Mutex::default(),
            sending: Sending::default(),
            fault: watch::Sender::new(None),
            first: OnceLock::new(),
            #[cfg(feature = "sim")]
            installed: 0.into(),
        }))
    }

    /// A state whose commits cost no flush, for tests that need many.
    #[cfg(test)]
    pub(crate) fn open_unsynced(folder: &Path) -> Arc<Self> {
        let open = |folder: &Path, map_bytes| {
            Store::open_with(folder, map_bytes, crate::lmdb::Sync::Never)
        };
        Self::open_with(folder, 256 << 20, open).unwrap()
    }

    /// From now on no state is named here without this.
    pub(crate) fn hold(&self, lock: Arc<FolderLock>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
    }

    /// What has to be kept while a state is named: a thread of a node that was dropped may get to that when the folder is
    /// another's already.
    fn naming(&self) -> Result<Option<Arc<FolderLock>>, Fault> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // In this order, which is the other way round where it ends.
        self.store().map(|_| held)
    }

    /// From now on nothing is flushed before this log is on the disk as far.
    pub(crate) fn follow(&self, log: Option<LogStore>) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = log;
    }

    /// Does something once the log is on the disk up to an index that was applied.
    fn when_durable(&self, index: u64, then: impl FnOnce(Result<(), Fault>) + Send + 'static) {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match log.filter(|_| !bug(Bug::StateAheadOfLog)) {
            Some(log) => log.when_flushed(index, then),
            None => then(Ok(())),
        }
    }

    /// All that is applied; nothing of it, once it is known to be wrong.
    pub(crate) fn moment(&self) -> Result<Arc<Moment>, Fault> {
        if let Some(fault) = self.first.get().filter(|it| is_wrong(it)) {
            return Err(fault.clone());
        }
        self.moment.load_full().ok_or_else(|| Fault::from_reason(Reason::Closed))
    }

    /// The same, to be read.
    pub(crate) fn view(&self) -> Result<View, Fault> {
        View::open(|| self.moment())
    }

    /// Reads the newest state.
    pub(crate) fn read(&self, txn: &TxnOp) -> Result<Result<TxnOutcome, Reason>, Fault> {
        mvcc::read(|| self.moment(), txn)
    }

    /// Whether this member has not failed.
    pub(super) fn check(&self) -> Result<(), Fault> {
        self.first.get().cloned().map_or(Ok(()), Err)
    }

    /// The state after everything that was handed in.
    pub(crate) async fn view_in_order(self: &Arc<Self>) -> Result<View, Fault> {
        self.in_order(|state| state.view()).await
    }

    /// Runs `work` on the thread that applies, after everything that was handed in.
    pub(crate) async fn in_order<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let (done, result) = oneshot::channel();
        let work = |state: &Arc<Self>| state.check().and_then(|()| work(state));
        self.send(Work::Look(Arc::clone(self), answering(done, work)))?;
        result.await.unwrap_or_else(|_| Err(self.cause()))
    }

    /// What is in the tables, once that is everything that was handed in, and survives a loss of power.
    pub(crate) fn durable_view(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<View, Fault>> + Send + use<> {
        self.when_flushed(|state| state.sync_tables())
    }

    /// What is in the tables by now, once it survives a loss of power. This waits for no log.
    pub(crate) async fn durable_now(self: &Arc<Self>) -> Result<View, Fault> {
        let (done, result) = oneshot::channel();
        let work = |state: &Arc<Self>| state.check().and_then(|()| state.sync_tables());
        self.send_to_disk(Job::Run(Arc::clone(self), answering(done, work)))?;
        result.await.unwrap_or_else(|_| Err(self.cause()))
    }

    fn sync_tables(&self) -> Result<View, Fault> {
        let store = self.store()?;
        if !bug(Bug::PurgePastDurableState) {
            store.force_sync()?;
        }
        store.view()
    }

    /// What is in the tables, once that is everything that was handed in.
    pub(crate) fn flushed_view(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<View, Fault>> + Send + use<> {
        self.when_flushed(|state| state.store()?.view())
    }

    /// Waits until everything that is applied by now is in the tables.
    pub(crate) fn settled(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<(), Fault>> + Send + use<> {
        self.when_flushed(|_| Ok(()))
    }

    /// Has `work` run on the thread that flushes, after everything that was handed in before this call has been. The
    /// future waits for that.
    fn when_flushed<T, W>(
        self: &Arc<Self>,
        work: W,
    ) -> impl Future<Output = Result<T, Fault>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce(&Arc<Self>) -> Result<T, Fault> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let work = |state: &Arc<Self>| state.check().and_then(|()| work(state));
        let sent = self.send(Work::Flush(Arc::clone(self), answering(done, work)));
        let state = Arc::clone(self);
        async move {
            sent?;
            result.await.unwrap_or_else(|_| Err(state.cause()))
        }
    }

    /// The newest revision, log index and hash, which belong together. Once the node has ended there is no hash.
    pub(crate) fn summary(&self) -> (Head, u128) {
        let moment = self.moment.load();
        moment.as_ref().map_or((self.now(), 0), |moment| (Head::of(moment), moment.hash()))
    }

    /// The hashes that the state had on the way, and the one that it has.
    pub(super) fn report(&self) -> Report {
        let (head, hash) = self.summary();
        let now = head.applied.map(|index| Mark { index, hash });
        self.marks().report(now)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the state as one that is not to be opened again, with a word for the next start. The mark is on the disk when
    /// this returns.
    pub(super) async fn distrust(self: &Arc<Self>, why: Why, word: Bytes) -> Result<(), Fault> {
        let (done, result) = oneshot::channel();
        // Nor is it that of another life any more, if this thread was held up for long. The state may have failed by then.
        let mark = move |state: &Arc<Self>| {
            let _mine = state.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if state.moment.load().is_none() {
                return Err(Fault::from_reason(Reason::Closed));
            }
            // A state that differs stays one, whatever else is wrong with it.
            if why == Why::IsDamaged && state.generations.is_distrusted()? {
                return Ok(());
            }
            state.generations.distrust(&word)
        };
        // On that thread, so that it is done before the folder can be somebody else's.
        self.send_to_disk(Job::Run(Arc::clone(self), answering(done, mark)))?;
        result.await.unwrap_or_else(|_| Err(self.cause()))
    }

    /// The state, if it is one that no log leads to: nothing was applied to it, and yet it is not empty.
    pub(crate) fn base(&self) -> Option<Base> {
        let (head, hash) = self.summary();
        let is_base = head.applied.is_none() && head.revision > Revision::FIRST;
        is_base.then_some(Base { revision: head.revision.get(), hash })
    }

    /// The log index that the tables stand for.
    #[cfg(feature = "sim")]
    pub(crate) fn flushed(&self) -> Option<u64> {
        self.store().and_then(|store| store.view()).ok()?.applied().map(|at| at.index)
    }

    /// The log index of the last snapshot that was installed since the start, or was to be.
    #[cfg(feature = "sim")]
    pub(crate) fn installed(&self) -> Option<u64> {
        let installed = self.installed.load(Ordering::Relaxed);
        (installed > 0).then_some(installed)
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
        if error.kind() == ErrorKind::Storage { self.end_with(fault) } else { error }
    }

    /// Takes note of why this member ends, whatever that is.
    pub(crate) fn end_with(&self, fault: Fault) -> Error {
        let error = Error::from(fault.clone());
        let _ = self.first.set(fault);
        self.fault.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| error.clone());
            is_first
        });
        error
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

    /// Applies entries, and returns when they are applied.
    #[cfg(test)]
    pub(crate) fn apply_for_test(self: &Arc<Self>, entries: &[mvcc::Entry]) {
        let (state, entries) = (Arc::clone(self), entries.to_vec());
        let responders = entries.iter().map(|_| None).collect();
        self.send(Work::Apply(Share { state, entries, responders, bytes: 0, room: None })).unwrap();
        let (done, applied) = std::sync::mpsc::channel();
        let tell = move |_: &Arc<Self>| done.send(()).unwrap();
        self.send(Work::Look(Arc::clone(self), Box::new(tell))).unwrap();
        applied.recv().unwrap();
        self.check().unwrap();
    }

    fn send(&self, work: Work) -> Result<(), Fault> {
        match self.applier.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(applier) => applier.send(work),
            None => Err(Fault::from_reason(Reason::Closed)),
        }
    }

    fn send_to_disk(&self, job: Job) -> Result<(), Fault> {
        match self.flusher.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(flusher) => flusher.send(job),
            None => Err(Fault::from_reason(Reason::Closed)),
        }
    }

    /// Why the state's threads do not answer.
    fn cause(&self) -> Fault {
        if let Some(first) = self.first.get() {
            return first.clone();
        }
        let applier = self.applier.lock().unwrap_or_else(PoisonError::into_inner);
        applier.as_ref().map_or_else(|| Fault::from_reason(Reason::Closed), Worker::cause)
    }

    pub(crate) fn store(&self) -> Result<Store, Fault> {
        Ok(self.moment()?.store())
    }

    /// Shows to all readers what is applied by now.
    fn show(&self, moment: Moment) {
        let head = Head::of(&moment);
        let moment = Arc::new(moment);
        if bug(Bug::ShownBeforeVisible) {
            self.tell(head);
        }
        point(Point::StateMoment);
        // A state that was let go of stays so.
        self.moment.rcu(|now| now.as_ref().map(|_| Arc::clone(&moment)));
        self.tell(head);
    }

    /// Tells whoever waits for it that this member is as far.
    fn tell(&self, head: Head) {
        self.head.send_if_modified(|now| {
            assert!(now.revision <= head.revision, "revisions go forward: {head:?} after {now:?}");
            std::mem::replace(now, head) != head
        });
    }

    /// How many bytes the tables can have.
    pub(crate) fn map_bytes(&self) -> Result<u64, Fault> {
        Ok(self.store()?.map_bytes())
    }

    /// The room that there is on its disk, if that is known, and how many bytes of its file were free when the tables last
    /// changed.
    pub(crate) fn disk(&self) -> Option<(lmdb::Room, u64)> {
        let free = self.free.load(Ordering::Relaxed);
        #[cfg(test)]
        if let Some(disk) = *self.pretended.lock().unwrap_or_else(PoisonError::into_inner) {
            return Some((disk, free));
        }
        // A simulated disk is not the host's.
        let disk = if cfg!(feature = "sim") { None } else { self.generations.disk() };
        Some((disk?, free))
    }

    /// How many bytes of the tables were in use when they last changed.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// How many bytes a copy of the tables has, about. What is in use does not count all that history takes.
    pub(crate) fn bytes_of_rows(&self) -> u64 {
        let measured = self.store().and_then(|store| store.free());
        measured.map_or_else(|_| self.used(), |(bytes, free)| bytes - free)
    }

    /// After the tables have changed.
    fn measure(&self) -> Result<(), Fault> {
        let store = self.store()?;
        self.used.store(store.bytes_in_use()?, Ordering::Relaxed);
        self.free.store(store.free()?.1, Ordering::Relaxed);
        Ok(())
    }

    /// An empty state beside the current one, to load a snapshot into.
    pub(crate) fn draft(&self) -> Result<Draft, Fault> {
        self.draft_in(self.make_way())
    }

    /// Removes what is left of older states, and has a smaller copy that is being made give way at its next step, as long as what
    /// this returns is there.
    pub(crate) fn make_way(&self) -> Counted {
        // Before it has a number: a copy that gets one later sees it, and gives way.
        let receiving = self.shrinking.receiving();
        if let Err(fault) = self.generations.remove_older() {
            let error = Error::from(fault);
            tracing::warn!(%error, "an older state cannot be removed");
        }
        receiving
    }

    pub(crate) fn draft_in(&self, way: Counted) -> Result<Draft, Fault> {
        let folder = DraftFolder { path: self.generations.draft(), _receiving: Some(way) };
        Draft::new(folder, self.map_bytes)
    }

    /// Puts a loaded state in the place of the current one, after everything that was handed in.
    pub(crate) async fn swap(self: &Arc<Self>, loaded: Loaded) -> Result<(), Fault> {
        let (done, result) = oneshot::channel();
        self.send(Work::Swap(Arc::clone(self), Box::new(loaded), done))?;
        result.await.unwrap_or_else(|_| Err(self.cause()))
    }

    /// On the thread that applies: names a loaded state as the current one, and shows it. Returns what to apply to from now
    /// on.
    fn publish(&self, loaded: Loaded) -> Result<Core, Fault> {
        self.check()?;
        let _mine = self.naming()?;
        let core = Core::new(loaded.store, seed()?)?;
        #[cfg(feature = "sim")]
        let _ = self
            .installed
            .fetch_max(core.moment().applied().map_or(0, |at| at.index), Ordering::Relaxed);
        // From here on it may be the current state, also if an error leaves that open. What is not goes at the next start.
        let folder = loaded.folder.keep();
        self.generations.publish(&folder)?;
        let moment = core.moment();
        let revision = moment.revision();
        self.marks().clear();
        self.show(moment);
        // The node may have ended meanwhile.
        self.measure()?;
        point(Point::SnapshotSwapped);
        self.interest.wake_all(revision);
        Ok(core)
    }

    /// Ends the threads and closes the environment, and waits for that; returns whether the second happened within
    /// `limit`.
    pub(crate) fn close(&self, limit: Duration) -> bool {
        let (applier, flusher, store) = self.take_apart();
        // The one sends to the other, which may send back to nobody.
        applier.into_iter().for_each(Worker::join);
        flusher.into_iter().for_each(Worker::join);
        store.is_none_or(|store| store.close(limit))
    }

    /// The same without waiting: the threads end after what they were given, and the environment with its last reader.
    pub(crate) fn abandon(&self) {
        drop(self.take_apart());
    }

    fn take_apart(&self) -> (Option<Worker<Work>>, Option<Worker<Job>>, Option<Store>) {
        let applier = self.applier.lock().unwrap_or_else(PoisonError::into_inner).take();
        let flusher = self.flusher.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Only now: nothing may be flushed without asking the log.
        self.follow(None);
        self.seeds.close();
        let moment = self.moment.swap(None);
        drop(self.held.lock().unwrap_or_else(PoisonError::into_inner).take());
        (applier, flusher, moment.map(|moment| moment.store()))
    }
}

/// Whether a fault is that the state is not that of the group, or not any more. What any other fault has left can still be
/// read.
fn is_wrong(fault: &Fault) -> bool {
    matches!(fault.reason(), Reason::StateDiffers { .. } | Reason::MemberRemoved { .. })
}

/// Work whose result somebody waits for, who may have gone.
fn answering<T: Send + 'static>(
    done: oneshot::Sender<Result<T, Fault>>,
    work: impl FnOnce(&Arc<State>) -> Result<T, Fault> + Send + 'static,
) -> thread::Run {
    Box::new(move |state| drop(done.send(work(state))))
}

/// Where keys lie in memory must not be known to those who choose them.
fn seed() -> Result<u64, Fault> {
    let failed = |error: getrandom::Error| {
        Fault::disk("cannot draw a random number", std::io::Error::other(error.to_string()))
    };
    getrandom::u64().map_err(failed)
}

impl Head {
    fn of(moment: &Moment) -> Self {
        let applied = moment.applied().map(|at| at.index);
        Self { revision: moment.revision(), applied }
    }
}
