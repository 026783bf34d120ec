//! What openraft drives: entries come out of the log here, in order, and go to the state; snapshots are made and installed.
//!
//! ```text
//! openraft's apply worker ─▶ state: applied, published, answered ····▶ flushed, when the log is on the disk up to there
//!                        ◀─ handed in
//! ```
//!
//! openraft applies one piece of the log after the other, and hears of each when it is *handed in*: what it takes for
//! applied may still wait for the state's thread. Nothing of ours goes by openraft's word for that, reads least of all;
//! they ask the state. In return no disk is waited for: what is committed is on the disks of a majority, and this member's
//! own may be late.
//!
//! Invariants
//! - the state never becomes durable at an index before the log is durable up to it, truncations included: otherwise a
//!   loss of power could leave a state that its log contradicts. So a flush waits for the log ([`State::when_durable`]).
//!   The install of a snapshot, whose entries never were in the log, flushes the log first and then swaps;
//! - snapshots are taken and installed in the order of what was handed in;
//! - data and the position it was applied at are read from one view, also for a snapshot;
//! - an `Err` from here stops the node. A rejection by the rules is no `Err`.

use super::format::{entry_bytes, log_id, position};
use super::log::{LogStore, io_error};
use super::state::{Loaded, State};
use super::{Entry, EntryPayload, LogId, StoredMembership, Types};
use crate::codec::layout::Layout;
use crate::error::Fault;
use crate::fault::{Bug, Point, bug, point};
use crate::mvcc::{self, Body, SnapshotReader, View};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, TryStreamExt};
use openraft::storage::{
    EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

pub(super) type SnapshotOf = openraft::alias::SnapshotOf<Types, SnapshotData>;
pub(super) type SnapshotMetaOf = openraft::alias::SnapshotMetaOf<Types>;

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
    let membership = match view.membership() {
        None => StoredMembership::default(),
        Some((at, bytes)) => {
            let unreadable = |_| Fault::format("this version cannot read the membership");
            let membership = super::Membership::from_bytes(bytes).map_err(unreadable)?;
            StoredMembership::new(Some(log_id(at)), membership)
        }
    };
    Ok((view.applied().map(log_id), membership))
}

/// What openraft has to know of a snapshot.
pub(super) fn meta(view: &View) -> Result<SnapshotMetaOf, Fault> {
    let (last_log_id, last_membership) = applied(view)?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

/// What openraft drives.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    state: Arc<State>,
    log: Option<LogStore>,
    /// The log index that was handed in last.
    handed_in: Option<u64>,
}

impl Machine {
    /// The entries come out of `log`. (openraft's own suite applies such that were in none.)
    pub(crate) fn new(state: Arc<State>, log: Option<LogStore>) -> Self {
        let handed_in = state.head().borrow().applied;
        state.follow(log.clone());
        Self { state, log, handed_in }
    }

    /// Whether the log had better not be cut now: whoever gets a snapshot that is being sent needs what comes behind it, and
    /// would need another snapshot if that were gone. As many bytes as a log has anyway are kept for that.
    fn spares_log(&self) -> bool {
        let most = self.state.log_bytes_max.load(Ordering::Relaxed);
        let has_room = |log: &LogStore| log.bytes() <= most;
        self.state.sending.is_any() && self.log.as_ref().is_some_and(has_room)
    }

    async fn hand_in(&mut self, batch: Vec<EntryResponder<Types>>) -> Result<(), Fault> {
        let Some((last, _)) = batch.last() else { return Ok(()) };
        let last = last.log_id.index;
        point(Point::ApplyCalled);
        self.check_gapless(&batch)?;
        let bytes = batch.iter().map(|(entry, _)| entry_bytes(entry)).sum();
        let (entries, responders) =
            batch.into_iter().map(|(entry, responder)| (plain(&entry), responder)).unzip();
        self.state.hand_in(entries, responders, bytes).await?;
        point(Point::ApplyHandedIn);
        self.handed_in = Some(last);
        Ok(())
    }

    /// The log is applied without gaps: each entry exists, and none is left out.
    fn check_gapless(&self, batch: &[EntryResponder<Types>]) -> Result<(), Fault> {
        let before = self.handed_in;
        let first = before.map_or(0, |index| index + 1);
        let mut expected = first..;
        let gap = batch.iter().find(|(entry, _)| expected.next() != Some(entry.log_id.index));
        match (gap, &self.log) {
            (Some((entry, _)), Some(_)) => Err(Fault::assertion(format!(
                "log entry {} was to be applied, after {before:?}",
                entry.log_id.index
            ))),
            _ => Ok(()),
        }
    }

    async fn install(&mut self, wanted: &SnapshotMetaOf, data: SnapshotData) -> Result<(), Fault> {
        let loaded = match data {
            SnapshotData::Loaded(loaded) => loaded,
            SnapshotData::View(view) => copy(&self.state, *view)?,
        };
        let mut content = meta(&loaded.view()?)?;
        if bug(Bug::SnapshotWithOtherMeta) {
            content = wanted.clone();
        }
        if content != *wanted {
            return Err(Fault::assertion(format!(
                "a snapshot of {content} came as one of {wanted}"
            )));
        }
        point(Point::SnapshotInstall);
        if let Some(log) = &self.log {
            log.flush().await?;
        }
        point(Point::SnapshotLogFlushed);
        self.state.swap(loaded).await?;
        point(Point::SnapshotInstalled);
        self.handed_in = content.last_log_id.map(|id| id.index);
        Ok(())
    }

    /// Takes note of a fault before openraft puts it into words of its own.
    fn stop(&self, fault: Fault) -> io::Error {
        stop(&self.state, fault)
    }
}

fn stop(state: &State, fault: Fault) -> io::Error {
    state.fail(fault.clone());
    io_error(fault)
}

/// Loads a view into a state of its own.
pub(super) fn copy(state: &State, view: View) -> Result<Loaded, Fault> {
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
        let view = self.state.view_in_order().await;
        view.and_then(|view| applied(&view)).map_err(|fault| self.stop(fault))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + Send,
    {
        let batch = entries.try_collect().await?;
        self.hand_in(batch).await.map_err(|fault| self.stop(fault))
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        // openraft asks again after as many entries.
        if !force && self.spares_log() {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // The view is asked for here, in the order of the entries, and taken and read beside those that follow. openraft
        // cuts the log up to it, so it is of what is on the disk.
        let view = self.state.durable_view().boxed();
        Builder { state: Arc::clone(&self.state), view: Mutex::new(Some(view)) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        self.install(meta, snapshot).await.map_err(|fault| self.stop(fault))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        point(Point::SnapshotAsked);
        // openraft may cut the log up to what is reported here, so it has to be on the disk first. It need not be all that is
        // applied, and here everything else that there is to apply waits.
        let view = self.state.durable_now().await.map_err(|fault| self.stop(fault))?;
        if view.applied().is_none() {
            return Ok(None);
        }
        let meta = meta(&view).map_err(|fault| self.stop(fault))?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::View(Box::new(view)) }))
    }
}

/// Makes a snapshot, which costs nothing but a flush: the tables themselves are the snapshot.
pub(crate) struct Builder {
    state: Arc<State>,
    /// Behind a lock only because it may move between threads, but not be shared by them.
    view: Mutex<Option<BoxFuture<'static, Result<View, Fault>>>>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let view = self.view.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let stop = |fault| stop(&self.state, fault);
        point(Point::SnapshotBuild);
        let view = match view {
            Some(view) => view.await,
            None => self.state.durable_view().await,
        };
        let view = view.map_err(stop)?;
        point(Point::SnapshotSynced);
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
    use std::path::Path;
    use std::pin::pin;
    use std::time::Duration;

    fn put(index: u64) -> Entry {
        let put = Op::put(format!("k{index}"), "v");
        let command = Command::Txn(TxnOp::single(put.0));
        let payload = EntryPayload::Normal(Proposal::from(command).into());
        Entry { log_id: log_id(LogPosition { term: 1, node: 1, index }), payload }
    }

    fn open(folder: &Path) -> (LogStore, Machine) {
        let log = LogStore::open(&folder.join("raft"), 64 << 20).unwrap();
        let state = State::open(folder, 64 << 20).unwrap();
        (log.clone(), Machine::new(state, Some(log)))
    }

    async fn apply(machine: &mut Machine, entries: Vec<Entry>) -> io::Result<()> {
        let entries = entries.into_iter().map(|entry| Ok((entry, None)));
        machine.apply(stream::iter(entries).boxed()).await?;
        machine.state.view_in_order().await.map(drop).map_err(io_error)
    }

    fn tables(machine: &Machine) -> Option<u64> {
        machine.state.store().unwrap().view().unwrap().applied().map(|at| at.index)
    }

    /// If the tables were ahead of the log, a loss of power would leave a state that its log contradicts. Nobody waits for
    /// that who only reads and writes.
    #[tokio::test]
    async fn the_tables_wait_for_the_log_to_be_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut machine) = open(folder.path());
        let seam = seam::of(&folder.path().join("raft"));
        seam.set(seam::Disk::Holds);
        log.append([put(0), put(1)], IOFlushed::noop()).await.unwrap();
        apply(&mut machine, vec![put(0), put(1)]).await.unwrap();
        assert_eq!(machine.state.view().unwrap().applied().map(|at| at.index), Some(1));
        let mut flushing = pin!(machine.state.settled());
        for _ in 0..20 {
            assert!(futures::poll!(&mut flushing).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(tables(&machine), None, "nothing of it may be on the disk");
        seam.set(seam::Disk::Works);
        flushing.await.unwrap();
        assert_eq!(tables(&machine), Some(1));
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_stops_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut machine) = open(folder.path());
        seam::of(&folder.path().join("raft")).set(seam::Disk::Fails);
        log.append([put(0)], IOFlushed::noop()).await.unwrap();
        let _ = apply(&mut machine, vec![put(0)]).await;
        // Whoever waits, and whoever comes later, hears of it.
        for _ in 0..3 {
            assert!(machine.state.settled().await.is_err());
        }
        assert_eq!(tables(&machine), None);
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

    /// Whoever is getting a snapshot needs the log behind it; but not without bound.
    #[tokio::test]
    async fn the_log_is_not_cut_while_a_snapshot_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut machine) = open(folder.path());
        machine.state.log_bytes_max.store(1 << 30, Ordering::Relaxed);
        log.append([put(0)], IOFlushed::noop()).await.unwrap();
        apply(&mut machine, vec![put(0)]).await.unwrap();
        assert!(machine.try_create_snapshot_builder(false).await.is_some());
        let sending = machine.state.sending.begin();
        assert!(machine.try_create_snapshot_builder(false).await.is_none());
        assert!(machine.try_create_snapshot_builder(true).await.is_some());
        machine.state.log_bytes_max.store(0, Ordering::Relaxed);
        assert!(machine.try_create_snapshot_builder(false).await.is_some(), "it takes too much");
        drop(sending);
        assert!(machine.try_create_snapshot_builder(false).await.is_some());
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
        let (state, limit) = (Arc::clone(&target.state), Duration::from_secs(10));
        drop((view, target));
        assert!(state.close(limit) && log.close(limit));
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
        source.state.settled().await.unwrap();
        let mut snapshot = source.get_current_snapshot().await.unwrap().unwrap();
        snapshot.meta.last_log_id = Some(put(7).log_id);
        let (_log, mut target) = open(folders[1].path());
        assert!(target.install_snapshot(&snapshot.meta, snapshot.snapshot).await.is_err());
        assert_eq!(target.state.view().unwrap().applied(), None);
    }
}
