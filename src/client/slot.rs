//! The slot of one watch: what the hub has put in, and the consumer has not taken yet.
//!
//! ```text
//! hub ── fill ──▶ [ 41 ][ 44 ][ 45 ] ── poll_take ──▶ Watch::recv
//!                   └ position: 41                     next: 46, or beyond what the stream has passed
//! ```
//!
//! Invariants
//! - everything below `next` is in the queue, or was taken, or did not match;
//! - a full slot is *paused*: nothing more is put in until it is empty. So it holds a little more than
//!   [`SLOT_BYTES_MAX`], and one answer at most;
//! - positions never go back.
//!
//! While its cursor is on the stream, a slot without news need not be touched for its position to move on: it moves
//! with the [`Progress`] of the stream, which is written once for all of them.

use crate::api::Position;
use crate::error::{Error, Result};
use crate::types::{Changes, Event, KeyValue, Revision};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A slot that holds so much takes no more until it is empty. One answer may go beyond.
const SLOT_BYTES_MAX: usize = 64 * 1024;
/// What an event costs beside its bytes.
const EVENT_BYTES: usize = 128;

/// How far the stream has come. Every cursor on it that had no news in the latest step has seen all of `revision`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) step: u64,
    pub(super) revision: Revision,
}

/// Where a watch takes from what the hub puts in.
#[derive(Debug)]
pub(super) struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Debug)]
struct SlotState {
    queue: VecDeque<Changes>,
    bytes: usize,
    /// Everything below is in the queue, or was taken.
    next: Position,
    /// The step that `next` is of, while the cursor is on the stream: any later step without news moves it on.
    as_of: Option<u64>,
    /// The cursor is off the stream until the queue is empty.
    paused: bool,
    end: Option<Error>,
    waker: Option<Waker>,
}

impl Slot {
    /// A slot that holds `existing` to begin with, and goes on from `next`.
    pub(super) fn new(existing: VecDeque<Changes>, next: Revision) -> Self {
        let bytes = existing.iter().map(weight).sum();
        let state = SlotState {
            paused: bytes >= SLOT_BYTES_MAX,
            queue: existing,
            bytes,
            next: Position::start_of(next),
            as_of: None,
            end: None,
            waker: None,
        };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        lock(&self.state)
    }

    /// The next item, and whether it was the last of a slot that was paused, and no longer is.
    pub(super) fn poll_take(&self, context: &Context<'_>) -> Poll<Result<(Changes, bool)>> {
        let mut state = self.lock();
        let Some(changes) = state.queue.pop_front() else {
            if let Some(error) = &state.end {
                return Poll::Ready(Err(error.clone()));
            }
            let old = state.waker.replace(context.waker().clone());
            // Not under the lock: what a waker owns is not ours to know.
            drop(state);
            drop(old);
            return Poll::Pending;
        };
        state.bytes -= weight(&changes);
        let resume = state.paused && state.queue.is_empty();
        state.paused &= !resume;
        Poll::Ready(Ok((changes, resume)))
    }

    /// The first revision that the consumer has not been given yet.
    pub(super) fn position(&self, progress: Progress) -> Revision {
        let state = self.lock();
        match state.queue.front() {
            Some(changes) => changes.revision,
            None => state.stands(progress).revision,
        }
    }

    /// Where the cursor stands.
    pub(super) fn stands(&self, progress: Progress) -> Position {
        self.lock().stands(progress)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// The cursor is on the stream since `step`: later ones move it on.
    pub(super) fn join(&self, step: u64) {
        self.lock().as_of = Some(step);
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        let state = self.lock();
        (state.queue.len(), state.bytes)
    }

    /// Adds what is new; `next` is where the cursor then stands. Whether there is room for more.
    pub(super) fn fill(&self, mut whole: Vec<Changes>, next: Position, as_of: u64) -> bool {
        // A piece may be empty, and so may all of them.
        whole.retain(|changes| !changes.events.is_empty());
        let mut state = self.lock();
        let news = !whole.is_empty();
        state.bytes += whole.iter().map(weight).sum::<usize>();
        state.queue.extend(whole);
        state.next = state.next.max(next);
        state.paused = state.bytes >= SLOT_BYTES_MAX;
        state.as_of = (!state.paused).then_some(as_of);
        let room = !state.paused;
        let waker = if news { state.waker.take() } else { None };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        room
    }

    /// Fixes the position, because the cursor leaves the stream.
    pub(super) fn leave(&self, progress: Progress) -> Position {
        let mut state = self.lock();
        state.next = state.stands(progress);
        state.as_of = None;
        state.next
    }

    /// The watch is over. What is in the queue can still be taken.
    pub(super) fn end(&self, error: Error) {
        let mut state = self.lock();
        state.as_of = None;
        state.end.get_or_insert(error);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl SlotState {
    /// Where the cursor stands, now that the stream has come so far.
    fn stands(&self, progress: Progress) -> Position {
        match self.as_of {
            Some(step) if step < progress.step => {
                self.next.max(Position::start_of(progress.revision.next()))
            }
            _ => self.next,
        }
    }
}

/// What changes take in memory, about.
fn weight(changes: &Changes) -> usize {
    let of = |kv: &KeyValue| kv.key.len() + kv.value.len();
    let of_event = |event: &Event| match event {
        Event::Put { kv, prev } => of(kv) + prev.as_ref().map_or(0, of),
        Event::Delete { key, prev, .. } => key.len() + prev.as_ref().map_or(0, of),
    };
    changes.events.iter().map(|event| EVENT_BYTES + of_event(event)).sum()
}

/// Nothing that runs under these locks can panic halfway through a change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
