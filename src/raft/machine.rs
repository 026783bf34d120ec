//! The state of this member: commands come out of the log here, in order, and become a new state.
//!
//! ```text
//! openraft's apply worker ─▶ gate: the log is on the disk up to here ─▶ state thread ─▶ Store::apply, one transaction
//!                                                                          ├─▶ head: what is applied (reads wait for it)
//!                                                                          ├─▶ leases: granted and ended
//!                                                                          ├─▶ watches: wake those that were touched
//!                                                                          └─▶ answers
//! ```
//!
//! Invariants
//! - the state never becomes durable at an index before the log is durable up to it, truncations included: otherwise a
//!   loss of power could leave a state that its log contradicts. The install of a snapshot, whose entries never were in
//!   the log, flushes the log first and then swaps;
//! - an effect is visible to every reader before anybody is told of it, and before `apply` returns;
//! - data and the position it was applied at are read from one view, also for a snapshot;
//! - an `Err` from here stops the node. A rejection by the rules is no `Err`.

use super::format::{log_id, position};
use super::leases::Lessor;
use super::log::{LogStore, io_error};
use super::watch::Interest;
use super::{Entry, EntryPayload, LogId, StoredMembership, Types};
use crate::codec::layout::Layout;
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::lmdb::Worker;
use crate::mvcc::{
    self, Body, Generations, LoadError, SnapshotLoader, SnapshotReader, Store, View,
};
use crate::types::Revision;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{
    ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Rows of history that one step of physical compaction removes, so that applying never waits long for it.
const COMPACT_ROWS: usize = 1000;

/// States up to this size are checked as a whole when they are opened. A checksum tells a row that has changed; a row
/// that is not found any more, because its key or the way to it has changed, is only told by all others.
const VERIFIED_BYTES: u64 = 32 << 20;

type Work = Box<dyn FnOnce() + Send>;
type SnapshotOf = openraft::alias::SnapshotOf<Types, SnapshotData>;
type SnapshotMetaOf = openraft::alias::SnapshotMetaOf<Types>;

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
        let worker = Worker::spawn("quorate-state", |work: Vec<Work>| {
            work.into_iter().for_each(|work| work());
        })?;
        let state = Arc::new(Self {
            store: RwLock::new(Some(store)),
            generations: Mutex::new(generations),
            map_bytes,
            worker: Mutex::new(Some(worker)),
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
        self.apply(entries, entries.iter().map(|_| None).collect()).unwrap();
    }

    /// A consistent view of what is applied.
    pub(crate) fn view(&self) -> Result<View, Fault> {
        self.store()?.view()
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

    /// The same, before openraft puts it into words of its own.
    fn stop(&self, fault: Fault) -> io::Error {
        self.fail(fault.clone());
        io_error(fault)
    }

    /// Runs `work` on the state's thread, after everything that was sent there before.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let (done, result) = oneshot::channel();
        let state = Arc::clone(self);
        self.send(Box::new(move || {
            // Whoever asked may have gone.
            let _ = done.send(work(&state));
        }))?;
        result.await.unwrap_or_else(|_| Err(self.cause()))
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

    fn store(&self) -> Result<Store, Fault> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        store.clone().ok_or_else(|| Fault::from_reason(Reason::Closed))
    }

    /// On the state's thread: applies a batch, publishes it, and answers.
    fn apply(
        self: &Arc<Self>,
        entries: &[mvcc::Entry],
        responders: Vec<Option<ApplyResponder<Types>>>,
    ) -> Result<(), Fault> {
        let batch = self.store()?.apply(entries);
        // Before those who wait for answers can see that there will be none, so that they are told why.
        let batch = batch.inspect_err(|fault| drop(self.fail(fault.clone())))?;
        let applied = entries.last().map(|entry| entry.position.index);
        self.lessor.note(&batch.leases);
        self.publish(Head { revision: batch.revision, applied });
        self.interest.wake(&batch.touched, batch.revision);
        if batch.compacted.is_some() {
            self.compact();
        }
        for (responder, outcome) in responders.into_iter().zip(batch.outcomes) {
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
        let _ = self.send(Box::new(move || {
            let Ok(store) = state.store() else { return };
            match store.compact_step(COMPACT_ROWS) {
                Ok(true) => {}
                Ok(false) => state.compact(),
                Err(fault) => drop(state.fail(fault)),
            }
        }));
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
    fn swap(&self, loaded: Loaded) -> Result<(), Fault> {
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
    /// What openraft has to know of it.
    pub(crate) fn meta(&self) -> Result<SnapshotMetaOf, Fault> {
        meta(&self.store.view()?)
    }
}

/// The content of a snapshot.
#[derive(Debug)]
pub(crate) enum SnapshotData {
    /// A view of this member's state, to be sent. It keeps pages from being reused, so it lives no longer than a
    /// transfer.
    View(Box<View>),
    /// Another member's state, received and valid.
    Loaded(Loaded),
}

/// What a view was applied up to, in openraft's words.
fn applied(view: &View) -> Result<(Option<LogId>, StoredMembership), Fault> {
    let membership = match view.membership()? {
        None => StoredMembership::default(),
        Some((at, bytes)) => {
            let unreadable = |_| Fault::format("this version cannot read the membership");
            let membership = super::Membership::from_bytes(bytes).map_err(unreadable)?;
            StoredMembership::new(Some(log_id(at)), membership)
        }
    };
    Ok((view.applied().map(log_id), membership))
}

fn meta(view: &View) -> Result<SnapshotMetaOf, Fault> {
    let (last_log_id, last_membership) = applied(view)?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

/// What makes the state wait for the log.
#[derive(Clone, Debug)]
pub(crate) enum Gate {
    Log(LogStore),
    /// openraft's own suite applies entries that it never appended.
    #[cfg(test)]
    Open,
}

impl Gate {
    async fn pass(&self, index: u64) -> Result<(), Fault> {
        match self {
            Self::Log(log) => log.flushed(index).await,
            #[cfg(test)]
            Self::Open => Ok(()),
        }
    }

    async fn flush(&self) -> Result<(), Fault> {
        match self {
            Self::Log(log) => log.flush().await,
            #[cfg(test)]
            Self::Open => Ok(()),
        }
    }
}

/// What openraft drives.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) state: Arc<State>,
    pub(crate) gate: Gate,
}

impl Machine {
    async fn apply_batch(&self, batch: Vec<EntryResponder<Types>>) -> Result<(), Fault> {
        let Some((last, _)) = batch.last() else { return Ok(()) };
        self.gate.pass(last.log_id.index).await?;
        self.check_gapless(&batch)?;
        let (entries, responders): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|(entry, responder)| (plain(&entry), responder)).unzip();
        self.state.run(move |state| state.apply(&entries, responders)).await
    }

    /// The log is applied without gaps: each entry exists, and none is left out.
    fn check_gapless(&self, batch: &[EntryResponder<Types>]) -> Result<(), Fault> {
        let applied = self.state.head.borrow().applied;
        let first = applied.map_or(0, |index| index + 1);
        let mut expected = first..;
        let gap = batch.iter().find(|(entry, _)| expected.next() != Some(entry.log_id.index));
        match (gap, &self.gate) {
            (Some((entry, _)), Gate::Log(_)) => Err(Fault::assertion(format!(
                "log entry {} was to be applied, after {applied:?}",
                entry.log_id.index
            ))),
            _ => Ok(()),
        }
    }

    async fn install(&self, meta: &SnapshotMetaOf, data: SnapshotData) -> Result<(), Fault> {
        let loaded = match data {
            SnapshotData::Loaded(loaded) => loaded,
            SnapshotData::View(view) => copy(&self.state, *view)?,
        };
        let content = loaded.meta()?;
        if content != *meta {
            return Err(Fault::assertion(format!("a snapshot of {content} came as one of {meta}")));
        }
        self.gate.flush().await?;
        self.state.run(move |state| state.swap(loaded)).await
    }
}

/// Loads a view into a state of its own.
fn copy(state: &State, view: View) -> Result<Loaded, Fault> {
    let mut draft = state.draft()?;
    let mut reader = SnapshotReader::new(view);
    while let Some(chunk) = reader.next_chunk(1 << 20)? {
        draft.push(&chunk)?;
    }
    Ok(draft.finish()?)
}

/// An entry as the pure core takes it.
fn plain(entry: &Entry) -> mvcc::Entry {
    let body = match &entry.payload {
        EntryPayload::Blank => Body::Blank,
        EntryPayload::Normal(payload) => Body::Command(Arc::clone(&payload.proposal)),
        EntryPayload::Membership(membership) => Body::Membership(membership.to_bytes()),
    };
    mvcc::Entry { position: position(&entry.log_id), body }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.state.view().and_then(|view| applied(&view)).map_err(|fault| self.state.stop(fault))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + Send,
    {
        let batch = entries.try_collect().await?;
        self.apply_batch(batch).await.map_err(|fault| self.state.stop(fault))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // The view is taken here, in the order of the applied entries, and read beside those that follow.
        Builder { state: Arc::clone(&self.state), view: Mutex::new(Some(self.state.view())) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        self.install(meta, snapshot).await.map_err(|fault| self.state.stop(fault))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        let current = || {
            let view = self.state.view()?;
            if view.applied().is_none() {
                return Ok(None);
            }
            Ok(Some(Snapshot { meta: meta(&view)?, snapshot: SnapshotData::View(Box::new(view)) }))
        };
        current().map_err(|fault| self.state.stop(fault))
    }
}

/// Makes a snapshot, which costs nothing but a flush: the state itself is the snapshot.
#[derive(Debug)]
pub(crate) struct Builder {
    state: Arc<State>,
    /// Behind a lock only because a view may move between threads, but not be shared by them.
    view: Mutex<Option<Result<View, Fault>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let view = self.view.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let stop = |fault| self.state.stop(fault);
        let view = view.unwrap_or_else(|| self.state.view()).map_err(stop)?;
        // openraft cuts the log up to what is reported here, so it has to be on the disk first.
        self.state.run(|state| state.store()?.force_sync()).await.map_err(stop)?;
        let meta = meta(&view).map_err(stop)?;
        Ok(Snapshot { meta, snapshot: SnapshotData::View(Box::new(view)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Command, Proposal};
    use crate::mvcc::LogPosition;
    use crate::raft::log::tests::seam;
    use crate::types::{Op, TxnOp};
    use futures::{StreamExt, stream};
    use openraft::storage::{IOFlushed, RaftLogStorage};
    use std::pin::pin;

    fn put(index: u64) -> Entry {
        let put = Op::put(format!("k{index}"), "v");
        let command = Command::Txn(TxnOp::single(put.0));
        let payload = EntryPayload::Normal(Proposal::from(command).into());
        Entry { log_id: log_id(LogPosition { term: 1, node: 1, index }), payload }
    }

    fn open(folder: &Path) -> (LogStore, Machine) {
        let log = LogStore::open(&folder.join("raft"), 64 << 20).unwrap();
        let state = State::open(folder, 64 << 20).unwrap();
        (log.clone(), Machine { state, gate: Gate::Log(log) })
    }

    async fn apply(machine: &mut Machine, entries: Vec<Entry>) -> io::Result<()> {
        let entries = entries.into_iter().map(|entry| Ok((entry, None)));
        machine.apply(stream::iter(entries).boxed()).await
    }

    /// If the state were ahead of the log, a loss of power would leave a state that its log contradicts.
    #[tokio::test]
    async fn the_state_waits_for_the_log_to_be_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut machine) = open(folder.path());
        let seam = seam::of(&folder.path().join("raft"));
        seam.set(seam::Disk::Holds);
        log.append([put(0), put(1)], IOFlushed::noop()).await.unwrap();
        let state = Arc::clone(&machine.state);
        {
            let mut applying = pin!(apply(&mut machine, vec![put(0), put(1)]));
            for _ in 0..20 {
                assert!(futures::poll!(&mut applying).is_pending());
                tokio::task::yield_now().await;
            }
            assert_eq!(state.view().unwrap().applied(), None, "nothing of it may be on the disk");
            seam.set(seam::Disk::Works);
            applying.await.unwrap();
        }
        assert_eq!(state.view().unwrap().applied().map(|at| at.index), Some(1));
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_stops_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut machine) = open(folder.path());
        seam::of(&folder.path().join("raft")).set(seam::Disk::Fails);
        log.append([put(0)], IOFlushed::noop()).await.unwrap();
        assert!(apply(&mut machine, vec![put(0)]).await.is_err());
        assert_eq!(machine.state.view().unwrap().applied(), None);
    }

    #[tokio::test]
    async fn an_entry_that_is_left_out_stops_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut machine) = open(folder.path());
        log.append([put(0), put(1), put(2)], IOFlushed::noop()).await.unwrap();
        apply(&mut machine, vec![put(0)]).await.unwrap();
        assert!(apply(&mut machine, vec![put(2)]).await.is_err());
        assert_eq!(machine.state.view().unwrap().applied().map(|at| at.index), Some(0));
    }

    /// What is built and what is installed are the same state, also while it is written to, and the old one is gone.
    #[tokio::test]
    async fn an_installed_snapshot_is_the_state_it_was_made_of() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (mut log, mut source) = open(folders[0].path());
        log.append((0..50).map(put), IOFlushed::noop()).await.unwrap();
        apply(&mut source, (0..40).map(put).collect()).await.unwrap();
        let mut builder = source.get_snapshot_builder().await;
        apply(&mut source, (40..50).map(put).collect()).await.unwrap();
        let snapshot = builder.build_snapshot().await.unwrap();
        assert_eq!(snapshot.meta.last_log_id.map(|id| id.index), Some(39));

        let (log, mut target) = open(folders[1].path());
        target.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
        let view = target.state.view().unwrap();
        assert_eq!(view.applied().map(|at| at.index), Some(39));
        assert_eq!(view.hash(), view.recompute_hash().unwrap());
        let (state, env, limit) = (Arc::clone(&target.state), log.env(), Duration::from_secs(10));
        drop((view, target, log));
        assert!(state.close(limit) && crate::lmdb::close(env, limit));
        let (_, mut again) = open(folders[1].path());
        let (applied, _) = again.applied_state().await.unwrap();
        assert_eq!(applied.map(|id| id.index), Some(39), "it is what a restart finds");
        let states = std::fs::read_dir(folders[1].path()).unwrap();
        let names = states.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.starts_with("state-")).count(), 1);
    }

    #[tokio::test]
    async fn a_snapshot_that_is_not_what_it_says_is_not_installed() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (mut log, mut source) = open(folders[0].path());
        log.append((0..5).map(put), IOFlushed::noop()).await.unwrap();
        apply(&mut source, (0..5).map(put).collect()).await.unwrap();
        let mut snapshot = source.get_current_snapshot().await.unwrap().unwrap();
        snapshot.meta.last_log_id = Some(put(7).log_id);
        let (_log, mut target) = open(folders[1].path());
        assert!(target.install_snapshot(&snapshot.meta, snapshot.snapshot).await.is_err());
        assert_eq!(target.state.view().unwrap().applied(), None);
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
