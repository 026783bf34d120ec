//! The one thread that changes the state: shares of the log in, one transaction after the other.
//!
//! ```text
//! queue   share share share run share …
//!         └────── one transaction ─┘└─ the next …
//!           each applied, shown and answered as it comes; committed before anything else is done
//! ```
//!
//! While a transaction is open and nothing waits, the thread waits for more, with the transaction open: whoever wants it
//! committed sends other work.
//!
//! Invariants
//! - what is shown is applied, and will be committed by this transaction or by none: if it fails, the member stops;
//! - nothing but applying happens while a transaction is open.

use super::State;
use crate::error::{Fault, Reason};
use crate::lmdb::{self, Inbox};
use crate::mvcc::{self, Pending};
use crate::raft::Types;
use crate::types::Revision;
use bytes::Bytes;
use openraft::storage::ApplyResponder;
use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Weak};
use tokio::sync::OwnedSemaphorePermit;

/// How much a transaction may hold before it is committed, so that no commit takes so long that everybody behind it
/// notices, and a restart has little to do again.
pub(super) const PENDING_ENTRIES_MAX: usize = 16 << 10;
pub(super) const PENDING_BYTES_MAX: usize = 16 << 20;

/// What the state's thread is given.
pub(super) enum Work {
    Apply(Share),
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
    /// Its place in the queue.
    pub(super) _room: OwnedSemaphorePermit,
}

/// On the state's thread: everything that comes, in order.
pub(super) fn carry_out(inbox: &Inbox<Work>) {
    let mut queue = VecDeque::new();
    while let Some(work) = queue.pop_front().or_else(|| {
        queue.extend(inbox.next().into_iter().flatten());
        queue.pop_front()
    }) {
        match work {
            Work::Run(state, run) => unless_it_panics(&Arc::downgrade(&state), || run(&state)),
            Work::Apply(share) => {
                let state = Arc::downgrade(&share.state);
                queue.push_front(Work::Apply(share));
                unless_it_panics(&state, || apply(&state, &mut queue, inbox));
            }
        }
    }
}

/// A panic ends the thread. Its cause is known before those who wait are let go, which are in the queue by now.
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
///
/// The thread knows its state weakly: while it waits with an open transaction, nobody else may be left to end it.
fn apply(state: &Weak<State>, queue: &mut VecDeque<Work>, inbox: &Inbox<Work>) {
    let mut shares = Vec::new();
    match apply_in_one(state, queue, inbox, &mut shares) {
        Ok(since) => {
            let Some(state) = state.upgrade() else { return };
            state.commit_is_visible(&since.touched);
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
) -> Result<Since, Fault> {
    let Some(store) = state.upgrade().map(|state| state.check().and_then(|()| state.store()))
    else {
        return Err(Fault::from_reason(Reason::Closed));
    };
    // After a failure nothing can follow on what may be missing.
    let store = store.inspect_err(|_| take_shares(queue, shares))?;
    let mut pending = store.begin()?;
    let mut since = Since::default();
    while since.is_short() && next_is_share(queue, inbox) {
        take_shares(queue, shares);
        apply_shares(&mut pending, shares, &mut since)?;
    }
    pending.commit()?;
    Ok(since)
}

/// What a transaction holds.
#[derive(Default)]
struct Since {
    entries: usize,
    bytes: usize,
    touched: Vec<(Revision, Bytes)>,
    compacted: bool,
    /// Somebody waits for the commit.
    is_wanted: bool,
}

impl Since {
    fn is_short(&self) -> bool {
        !self.is_wanted && self.entries < PENDING_ENTRIES_MAX && self.bytes < PENDING_BYTES_MAX
    }
}

/// Whether the next work is a share. Waits for it, if nothing is there: whoever wants the commit sends something else.
fn next_is_share(queue: &mut VecDeque<Work>, inbox: &Inbox<Work>) -> bool {
    if queue.is_empty() {
        queue.extend(inbox.next().unwrap_or_default());
    }
    matches!(queue.front(), Some(Work::Apply(_)))
}

/// Takes the shares at the front of the queue, as many as fit a transaction.
fn take_shares(queue: &mut VecDeque<Work>, shares: &mut Vec<Share>) {
    let mut entries = 0;
    while entries < PENDING_ENTRIES_MAX {
        match queue.pop_front() {
            Some(Work::Apply(share)) => {
                entries += share.entries.len();
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
    since.entries += entries.len();
    since.bytes += shares.iter().map(|share| share.bytes).sum::<usize>();
    since.compacted |= batch.compacted.is_some();
    since.is_wanted |= state.interest.is_in(&batch.touched);
    since.touched.append(&mut batch.touched);
    let outcomes = mem::take(&mut batch.outcomes);
    state.show(&entries, batch);
    let responders = shares.drain(..).flat_map(|share| share.responders);
    for (responder, outcome) in responders.zip(outcomes) {
        if let Some(responder) = responder {
            responder.send(outcome);
        }
    }
    Ok(())
}
