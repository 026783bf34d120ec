//! The one thread that changes the state: shares of the log in, one transaction after the other.
//!
//! ```text
//! queue   share share share settle share │ run │ share …
//!         └────── one transaction ───────┘     └─ the next …
//!           each applied, shown and answered as it comes; committed before anything else is done
//! ```
//!
//! While a transaction is open and nothing waits, the thread waits for more, with the transaction open. Whoever wants it
//! committed asks it to settle: what is in the queue by then goes along, and what comes later does not.
//!
//! Invariants
//! - what is shown is applied, and will be committed by this transaction or by none: if it fails, the member stops;
//! - whether somebody watches what was touched is asked after it was shown: who begins to watch meanwhile either is found
//!   here, or finds that it is not committed;
//! - nothing but applying happens while a transaction is open;
//! - the thread knows its state weakly: while it waits, nobody else may be left to end it.

use super::State;
use crate::error::{Fault, Reason};
use crate::fault::{Point, point};
use crate::lmdb::{self, Inbox};
use crate::mvcc::{self, Latest, Pending};
use crate::raft::Types;
use crate::types::Revision;
use bytes::Bytes;
use openraft::storage::ApplyResponder;
use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Weak};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How much a transaction may hold before it is committed, in changes of keys and in bytes of entries and values, so that
/// no commit takes so long that everybody behind it notices, and a restart has little to do again.
pub(super) const PENDING_CHANGES_MAX: usize = 16 << 10;
pub(super) const PENDING_BYTES_MAX: usize = 16 << 20;

/// Entries that are applied before it is looked how much that was. One of them can change 128 keys.
const GROUP_ENTRIES: usize = 256;

/// What the state's thread is given.
pub(super) enum Work {
    Apply(Share),
    /// Have committed what was handed in before.
    Settle(oneshot::Sender<()>),
    Run(Arc<State>, Run),
}

/// Anything else that has to happen on the thread.
pub(super) type Run = Box<dyn FnOnce(&Arc<State>) + Send>;

/// Entries to apply, and whom to tell.
pub(super) struct Share {
    pub(super) state: Arc<State>,
    pub(super) entries: Vec<mvcc::Entry>,
    pub(super) responders: Vec<Option<ApplyResponder<Types>>>,
    pub(super) bytes: usize,
    /// Its place in the queue. Of a share that was split the last part keeps it.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes off what is behind the first `count` entries.
    fn split_off(&mut self, count: usize) -> Self {
        let bytes = self.bytes * count / self.entries.len().max(1);
        let rest = Self {
            state: Arc::clone(&self.state),
            entries: self.entries.split_off(count),
            responders: self.responders.split_off(count),
            bytes: self.bytes - bytes,
            room: self.room.take(),
        };
        self.bytes = bytes;
        rest
    }
}

/// On the state's thread: everything that comes, in order.
pub(super) fn carry_out(inbox: &Inbox<Work>) {
    let mut queue = VecDeque::new();
    // Out here, so that those who wait outlive a panic until its cause is known.
    let mut shares = Vec::new();
    while let Some(work) = queue.pop_front().or_else(|| {
        queue.extend(inbox.next().into_iter().flatten());
        queue.pop_front()
    }) {
        match work {
            Work::Run(state, run) => unless_it_panics(&Arc::downgrade(&state), || run(&state)),
            // Nothing is open.
            Work::Settle(done) => {
                let _ = done.send(());
            }
            Work::Apply(share) => {
                let state = Arc::downgrade(&share.state);
                queue.push_front(Work::Apply(share));
                let mut since = Since::default();
                let apply = || apply(&state, &mut queue, inbox, &mut shares, &mut since);
                unless_it_panics(&state, apply);
                shares.clear();
            }
        }
    }
}

/// A panic ends the thread. Its cause is known before those who wait are let go.
fn unless_it_panics(state: &Weak<State>, work: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
        fail(state, Fault::assertion(lmdb::panic_text(&*panic)));
        resume_unwind(panic);
    }
}

fn fail(state: &Weak<State>, fault: Fault) {
    if let Some(state) = state.upgrade() {
        state.fail(fault);
    }
}

/// Applies the shares at the front of the queue, and those that come, in one transaction, until it has to be committed.
fn apply(
    state: &Weak<State>,
    queue: &mut VecDeque<Work>,
    inbox: &Inbox<Work>,
    shares: &mut Vec<Share>,
    since: &mut Since,
) {
    match apply_in_one(state, queue, inbox, shares, since) {
        Ok(()) => {
            let Some(state) = state.upgrade() else { return };
            point(Point::StateCommitted);
            state.commit_is_visible(&since.touched);
            point(Point::StateVisible);
            for (responder, outcome) in since.held.drain(..) {
                responder.send(outcome);
            }
            for done in since.settled.drain(..) {
                // Whoever asked may have gone.
                let _ = done.send(());
            }
            if since.compacted {
                state.compact();
            }
        }
        Err(fault) => fail(state, fault),
    }
}

fn apply_in_one(
    state: &Weak<State>,
    queue: &mut VecDeque<Work>,
    inbox: &Inbox<Work>,
    shares: &mut Vec<Share>,
    since: &mut Since,
) -> Result<(), Fault> {
    let Some(store) = state.upgrade().map(|state| state.check().and_then(|()| state.store()))
    else {
        return Err(Fault::from_reason(Reason::Closed));
    };
    // After a failure nothing can follow on what may be missing.
    let store = store.inspect_err(|_| take_shares(queue, shares))?;
    point(Point::StateBegins);
    let mut pending = store.begin()?;
    point(Point::StateBegun);
    while since.is_short() {
        if queue.is_empty() && !since.is_wanted {
            queue.extend(inbox.next().unwrap_or_default());
        }
        match queue.pop_front() {
            Some(Work::Apply(share)) => {
                queue.push_front(Work::Apply(share));
                take_shares(queue, shares);
                apply_shares(&mut pending, shares, since)?;
            }
            Some(Work::Settle(done)) => {
                point(Point::StateSettled);
                since.settled.push(done);
                since.is_wanted = true;
            }
            Some(run @ Work::Run(..)) => {
                queue.push_front(run);
                break;
            }
            None => break,
        }
    }
    point(Point::StateBeforeCommit);
    pending.commit()
}

/// What a transaction holds.
#[derive(Default)]
struct Since {
    changes: usize,
    bytes: usize,
    touched: Vec<(Revision, Bytes)>,
    compacted: bool,
    /// Somebody waits for the commit: no more is waited for.
    is_wanted: bool,
    settled: Vec<oneshot::Sender<()>>,
    /// Answers that are true when it is committed: history is read from the tables alone, so a compaction that was answered
    /// has to be there.
    held: Vec<(ApplyResponder<Types>, Option<mvcc::Outcome>)>,
}

impl Since {
    fn is_short(&self) -> bool {
        self.changes < PENDING_CHANGES_MAX && self.bytes < PENDING_BYTES_MAX
    }
}

/// Takes shares from the front of the queue, as many as are applied at once.
fn take_shares(queue: &mut VecDeque<Work>, shares: &mut Vec<Share>) {
    let mut left = GROUP_ENTRIES;
    while left > 0 {
        match queue.pop_front() {
            Some(Work::Apply(mut share)) => {
                if share.entries.len() > left {
                    queue.push_front(Work::Apply(share.split_off(left)));
                }
                left -= share.entries.len();
                shares.push(share);
            }
            Some(other) => return queue.push_front(other),
            None => return,
        }
    }
}

/// Applies shares, shows what became of them, and answers.
fn apply_shares(
    pending: &mut Pending<'_>,
    shares: &mut Vec<Share>,
    since: &mut Since,
) -> Result<(), Fault> {
    let Some(state) = shares.first().map(|share| Arc::clone(&share.state)) else { return Ok(()) };
    let mut entries = Vec::new();
    shares.iter_mut().for_each(|share| entries.append(&mut share.entries));
    let mut batch = pending.apply(&entries)?;
    point(Point::StateApplied);
    let mut touched = mem::take(&mut batch.touched);
    since.changes += entries.len().max(touched.len());
    since.bytes += shares.iter().map(|share| share.bytes).sum::<usize>();
    since.bytes += batch.latest.values().map(Latest::bytes).sum::<usize>();
    let compacts = batch.compacted.is_some();
    since.compacted |= compacts;
    let outcomes = mem::take(&mut batch.outcomes);
    state.show(&entries, batch);
    point(Point::StateShown);
    since.is_wanted = since.is_wanted || compacts || state.interest.is_in(&touched);
    since.touched.append(&mut touched);
    let responders = shares.drain(..).flat_map(|share| share.responders);
    let answers = responders.zip(outcomes);
    let answers = answers.filter_map(|(responder, outcome)| Some((responder?, outcome)));
    if compacts {
        since.held.extend(answers);
    } else {
        answers.for_each(|(responder, outcome)| responder.send(outcome));
    }
    point(Point::StateAnswered);
    Ok(())
}
