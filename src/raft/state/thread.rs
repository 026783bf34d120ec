//! The two threads that change the state: one applies, and one flushes what was applied.
//!
//! ```text
//! applying   share share │ share share … freeze ─┐ share share share … │ waits, if that has grown too large
//!            └ each shown and answered           │                     ▲
//! flushing   ·····································└ flush ──────────────┘ run · run · compact · compact …
//! ```
//!
//! The one never waits for the disk, unless the other has not done with a whole overlay when the next is full: then shares
//! stay in the queue, and whoever hands them in waits.
//!
//! Invariants
//! - one overlay is flushed at a time, and the next is frozen when that is done;
//! - a smaller file takes the place of the tables between two flushes, and no snapshot meanwhile;
//! - what waits for a flush runs after it, on the thread that flushes; after a failure everything runs at once, and finds it;
//! - the threads know their state by what they are sent: while they wait, nobody else may be left to end it.

use super::shrink::{GaveUp, Successor};
use super::{Loaded, State};
use crate::error::Fault;
use crate::fault::{Bug, Point, bug, point};
use crate::lmdb::{self, Inbox};
use crate::mvcc::{self, Core, Recent, Store};
use crate::raft::Types;
use openraft::storage::ApplyResponder;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How much may gather in memory before it is flushed, in bytes.
pub(crate) const FLUSH_BYTES: usize = 32 << 20;

/// Entries that are applied before it is looked how much that was.
const GROUP_ENTRIES: usize = 256;

/// What the thread that applies is given.
pub(super) enum Work {
    Apply(Share),
    /// To be done after what was handed in before was applied.
    Look(Arc<State>, Run),
    /// To be done on the other thread, after what was handed in before was flushed.
    Flush(Arc<State>, Run),
    /// It was, in the state with this number, or never will be.
    Flushed(Arc<State>, u64, Recent),
    /// A state to take the place of this one.
    Swap(Arc<State>, Box<Loaded>, oneshot::Sender<Result<(), Fault>>),
    /// A smaller copy of the tables to take their place.
    Shrink(Arc<State>, Box<Successor>, Answer),
    /// It has, or the tables go on.
    Shrunk(Arc<State>, Result<Store, GaveUp>, Answer),
}

/// Who waits for a copy to take its place.
pub(super) type Answer = oneshot::Sender<Result<(), GaveUp>>;

/// What the thread that flushes is given.
pub(super) enum Job {
    Flush(Arc<State>, Box<mvcc::Flush>, u64),
    Run(Arc<State>, Run),
}

/// Anything else that has to happen on one of them.
pub(super) type Run = Box<dyn FnOnce(&Arc<State>) + Send>;

/// Entries to apply, and whom to tell.
pub(super) struct Share {
    pub(super) state: Arc<State>,
    pub(super) entries: Vec<mvcc::Entry>,
    pub(super) responders: Vec<Option<ApplyResponder<Types>>>,
    /// How large they are. Of a share that was split the first part has it all.
    pub(super) bytes: usize,
    /// Its place in the queue. Of a share that was split the last part keeps it.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

impl Work {
    fn state(&self) -> &Arc<State> {
        match self {
            Self::Apply(share) => &share.state,
            Self::Look(state, _)
            | Self::Flush(state, _)
            | Self::Flushed(state, ..)
            | Self::Swap(state, ..)
            | Self::Shrink(state, ..)
            | Self::Shrunk(state, ..) => state,
        }
    }
}

impl Share {
    /// Takes off what is behind the first `count` entries.
    fn split_off(&mut self, count: usize) -> Self {
        Self {
            state: Arc::clone(&self.state),
            entries: self.entries.split_off(count),
            responders: self.responders.split_off(count),
            bytes: 0,
            room: self.room.take(),
        }
    }
}

/// The thread that applies.
pub(super) struct Applier {
    core: Core,
    /// How many states there were before this one.
    generation: u64,
    queue: VecDeque<Work>,
    /// What waits for the next flush.
    waiting: Vec<(Arc<State>, Run)>,
    shrinking: Shrinking,
}

/// Whether a smaller copy is to take the place of the tables.
enum Shrinking {
    No,
    /// Once nothing is being flushed.
    Soon(Box<Successor>, Answer),
    /// The other thread is about it.
    Now,
}

impl Applier {
    pub(super) fn new(core: Core) -> Self {
        Self {
            core,
            generation: 0,
            queue: VecDeque::new(),
            waiting: Vec::new(),
            shrinking: Shrinking::No,
        }
    }

    /// Does everything that comes, in order.
    pub(super) fn run(mut self, inbox: &Inbox<Work>) {
        while let Some(work) = self.next(inbox) {
            match work {
                Work::Apply(share) => {
                    let state = Arc::clone(&share.state);
                    self.queue.push_front(Work::Apply(share));
                    // Out here, so that those who wait outlive a panic until its cause is known.
                    let mut shares = self.take_shares();
                    unless_it_panics(&state, || self.apply(&state, &mut shares));
                }
                Work::Look(state, look) => unless_it_panics(&state, || look(&state)),
                Work::Flush(state, run) => {
                    self.waiting.push((Arc::clone(&state), run));
                    unless_it_panics(&state, || self.freeze(&state));
                }
                Work::Swap(state, loaded, done) => {
                    unless_it_panics(&state, || self.swap(&state, *loaded, done));
                }
                Work::Shrink(state, successor, answer) => {
                    self.shrinking = Shrinking::Soon(successor, answer);
                    self.shrink(&state);
                }
                Work::Flushed(..) | Work::Shrunk(..) => self.heard(work),
            }
        }
    }

    /// What the other thread has done.
    fn heard(&mut self, work: Work) {
        match work {
            Work::Flushed(state, generation, recent) => self.flushed(&state, generation, recent),
            Work::Shrunk(state, result, answer) => {
                unless_it_panics(&state, || self.shrunk(&state, result, answer));
            }
            work => self.queue.push_back(work),
        }
    }

    /// The next piece of work. What tells of a flush goes first: the rest may wait for it.
    fn next(&mut self, inbox: &Inbox<Work>) -> Option<Work> {
        loop {
            let next = self.queue.front().filter(|next| !self.has_to_wait(next));
            if next.is_some() {
                return self.queue.pop_front();
            }
            for work in inbox.next()? {
                self.heard(work);
            }
        }
    }

    /// Whether nothing more may be done until the other thread is.
    fn has_to_wait(&self, next: &Work) -> bool {
        let is_full = self.is_busy() && self.core.bytes() >= FLUSH_BYTES;
        let is_shrinking = matches!(self.shrinking, Shrinking::Now);
        let is_swap = matches!(next, Work::Swap(..));
        (is_full || (is_swap && is_shrinking)) && next.state().check().is_ok()
    }

    /// Whether the other thread has the tables.
    fn is_busy(&self) -> bool {
        self.core.is_flushing() || matches!(self.shrinking, Shrinking::Now)
    }

    /// Takes shares from the front of the queue, as many as are applied at once.
    fn take_shares(&mut self) -> Vec<Share> {
        let (mut shares, mut left) = (Vec::new(), GROUP_ENTRIES);
        while left > 0 {
            match self.queue.pop_front() {
                Some(Work::Apply(mut share)) => {
                    let count;
                    (count, left) = fill(&share.entries, left);
                    if share.entries.len() > count {
                        self.queue.push_front(Work::Apply(share.split_off(count)));
                    }
                    shares.push(share);
                }
                Some(other) => {
                    self.queue.push_front(other);
                    break;
                }
                None => break,
            }
        }
        shares
    }

    /// Applies shares, shows what became of them, and answers.
    fn apply(&mut self, state: &Arc<State>, shares: &mut Vec<Share>) {
        // After a failure nothing can follow on what may be missing.
        if let Err(fault) = state.check().and_then(|()| self.try_apply(state, shares)) {
            state.fail(fault);
            self.freeze(state);
        }
        shares.clear();
    }

    fn try_apply(&mut self, state: &Arc<State>, shares: &mut Vec<Share>) -> Result<(), Fault> {
        let mut entries = Vec::new();
        for share in shares.iter_mut() {
            entries.append(&mut share.entries);
            self.core.charge(std::mem::take(&mut share.bytes));
        }
        point(Point::StateBegins);
        let batch = self.core.apply(&entries)?;
        point(Point::StateApplied);
        state.lessor.note(&batch.leases);
        state.marks().note(&batch.marks);
        state.show(self.core.moment());
        point(Point::StateShown);
        point(Point::WatchWake);
        state.interest.wake(&batch.touched, batch.revision);
        let responders = shares.drain(..).flat_map(|share| share.responders);
        for (responder, outcome) in responders.zip(batch.outcomes) {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        point(Point::StateAnswered);
        if batch.compacted.is_some() {
            self.waiting.push((Arc::clone(state), Box::new(|state| state.dead.note())));
        }
        self.go_on(state);
        Ok(())
    }

    /// Hands over what has gathered, unless there is still something being flushed. After a failure nothing is any more.
    fn freeze(&mut self, state: &Arc<State>) {
        let is_well = state.check().is_ok();
        if is_well && self.is_busy() {
            return;
        }
        let flush = if is_well { self.core.freeze() } else { None };
        if bug(Bug::OverlayDroppedEarly) {
            drop(self.core.flushed(Recent::default()));
            state.show(self.core.moment());
        }
        let index = flush.as_ref().and_then(mvcc::Flush::index);
        let flush = flush.map(|it| Job::Flush(Arc::clone(state), Box::new(it), self.generation));
        let runs = self.waiting.drain(..).map(|(state, run)| Job::Run(state, run));
        let jobs: Vec<_> = flush.into_iter().chain(runs).collect();
        point(Point::FlushFrozen);
        let (to, generation) = (Arc::clone(state), self.generation);
        let send = move |durable: Result<(), Fault>| match durable {
            // If the other thread has ended, so has the state, and those who wait hear of it.
            Ok(()) => jobs.into_iter().for_each(|job| drop(to.send_to_disk(job))),
            Err(fault) => not_flushed(&to, generation, fault),
        };
        match index {
            Some(index) => state.when_durable(index, send),
            None => send(Ok(())),
        }
    }

    /// Goes on without what is in the tables now. After a failure everything stays, for those who still read.
    fn flushed(&mut self, state: &Arc<State>, generation: u64, recent: Recent) {
        if state.check().is_err() {
            self.shrinking = Shrinking::No;
            return self.freeze(state);
        }
        if generation != self.generation {
            return;
        }
        let old = self.core.flushed(recent);
        state.show(self.core.moment());
        point(Point::FlushShown);
        // It may be much, and nobody waits for the other thread.
        let _ = state.send_to_disk(Job::Run(Arc::clone(state), Box::new(|_| drop(old))));
        self.shrink(state);
        self.go_on(state);
    }

    /// Flushes what has gathered, if somebody waits for it, or it is much.
    fn go_on(&mut self, state: &Arc<State>) {
        if !self.waiting.is_empty() || self.core.bytes() >= FLUSH_BYTES {
            self.freeze(state);
        }
    }

    fn swap(
        &mut self,
        state: &Arc<State>,
        loaded: Loaded,
        done: oneshot::Sender<Result<(), Fault>>,
    ) {
        let swapped = state.publish(loaded).map(|core| {
            self.core = core;
            self.generation += 1;
            self.freeze(state);
        });
        // A copy that waits is one of what was there before.
        self.shrink(state);
        // Whoever asked may have gone.
        let _ = done.send(swapped);
    }

    /// Has a copy that waits take the place of the tables, if nothing is being flushed.
    fn shrink(&mut self, state: &Arc<State>) {
        if self.core.is_flushing() {
            return;
        }
        let (successor, answer) = match std::mem::replace(&mut self.shrinking, Shrinking::No) {
            Shrinking::Soon(successor, answer) => (successor, answer),
            other => return self.shrinking = other,
        };
        if !self.core.store().is(&successor.source) {
            let _ = answer.send(Err(GaveUp::Snapshot));
            return;
        }
        self.shrinking = Shrinking::Now;
        let run = move |state: &Arc<State>| {
            let result = successor.take_place(state);
            // If the other thread has ended, a start finds one of the two.
            let _ = state.send(Work::Shrunk(Arc::clone(state), result, answer));
        };
        if state.send_to_disk(Job::Run(Arc::clone(state), Box::new(run))).is_err() {
            self.shrinking = Shrinking::No;
        }
    }

    /// Goes on with the copy, if it has taken the place of the tables.
    fn shrunk(&mut self, state: &Arc<State>, result: Result<Store, GaveUp>, answer: Answer) {
        self.shrinking = Shrinking::No;
        // After a failure nothing more is shown: a batch may be there by half.
        let result = result.and_then(|store| match state.check() {
            Ok(()) => Ok(store),
            Err(_) => Err(GaveUp::Ended),
        });
        let moved = result.and_then(|store| {
            let moved = self.core.move_to(store).and_then(|()| {
                state.show(self.core.moment());
                point(Point::ShrinkShown);
                // History that waited to be removed from the tables may be in the copy.
                state.dead.note();
                state.measure()
            });
            moved.map_err(|fault| {
                state.fail(fault);
                GaveUp::Ended
            })
        });
        // Whoever asked may have gone.
        let _ = answer.send(moved);
        self.go_on(state);
    }
}

/// How many of these go into a group that has room for so many, and for how many it has room then. A wide one is the last of
/// its group: it may be as much as all that is otherwise taken at once, and a hundred of them more than there is memory.
fn fill(entries: &[mvcc::Entry], left: usize) -> (usize, usize) {
    let count = entries.len().min(left);
    match entries[..count].iter().position(mvcc::Entry::is_wide) {
        Some(wide) => (wide + 1, 0),
        None => (count, left - count),
    }
}

/// On the thread that flushes: everything that comes, in order.
pub(super) fn flush(jobs: Vec<Job>) {
    for job in jobs {
        match job {
            Job::Flush(state, mut flush, generation) => unless_it_panics(&state, || {
                match state.check().and_then(|()| flush.write()).and_then(|()| state.measure()) {
                    Ok(()) => {
                        let recent = flush.take_recent();
                        state.shrinking.note(flush);
                        // If the other thread has ended there is nothing to go on with.
                        drop(state.send(Work::Flushed(Arc::clone(&state), generation, recent)));
                    }
                    Err(fault) => not_flushed(&state, generation, fault),
                }
            }),
            Job::Run(state, run) => unless_it_panics(&state, || run(&state)),
        }
    }
}

/// Takes note of what stands in the way of a flush, and has those who wait for one hear of it.
fn not_flushed(state: &Arc<State>, generation: u64, fault: Fault) {
    state.fail(fault);
    // If the other thread has ended, so have they.
    let _ = state.send(Work::Flushed(Arc::clone(state), generation, Recent::default()));
}

/// A panic ends the thread. Its cause is known before those who wait are let go.
fn unless_it_panics(state: &Arc<State>, work: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
        not_flushed(state, u64::MAX, Fault::assertion(lmdb::panic_text(&*panic)));
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Command;
    use crate::mvcc::{Body, Entry, LogPosition};
    use crate::types::{LeaseId, Op, OpKind, TxnOp};

    #[test]
    fn what_may_change_any_number_of_keys_is_the_last_of_its_group() {
        let entry = |command: Command| {
            let position = LogPosition { term: 1, node: 1, index: 1 };
            Entry { position, body: Body::Command(Arc::new(command.into())) }
        };
        let one = |op: Op| entry(Command::Txn(TxnOp::single(op.0)));
        let put = || one(Op::put("k", "v"));
        let nested = TxnOp { otherwise: vec![Op::delete("a".."b")], ..TxnOp::default() };
        let leases = vec![LeaseId::from(1)];
        let wide = [
            one(Op::delete("a".."b")),
            one(Op(OpKind::Txn(nested))),
            entry(Command::Revoke(LeaseId::from(1))),
            entry(Command::Expire { deciding_term: 1, leases }),
        ];
        for wide in wide {
            let entries = [put(), wide, put(), put()];
            assert_eq!(fill(&entries, 100), (2, 0));
            assert_eq!(fill(&entries, 1), (1, 0));
            assert_eq!(fill(&entries[2..], 100), (2, 98));
            assert_eq!(fill(&[], 100), (0, 100));
        }
        assert_eq!(fill(&[one(Op::delete("k")), one(Op::range(..)), put()], 3), (3, 0));
    }
}
