//! The hub: one task, and one waiting call, for all watches of a client.
//!
//! A watch is a cursor: a range, and the position up to which everything was delivered. The hub keeps all cursors on
//! one *stream*, and asks the node for one step of it at a time. A step waits until some cursor has news. What the
//! node sends goes into the [`Slot`] of its watch, from which the consumer takes it.
//!
//! ```text
//! Watch ◀── Slot ◀─┐                         ┌─ patient: no word of cursors, waits for news, may be interrupted
//! Watch ◀── Slot ◀─┼── hub ──▶ Follow call ──┤
//! Watch ◀── Slot ◀─┘    ▲                    └─ prompt: word of cursors, does not wait, is never interrupted
//!   └─── open, resume, ─┘
//!        close
//!
//! a cursor:   joining ──prompt call──▶ on the stream ──slot full──▶ paused ──slot empty──▶ joining
//! ```
//!
//! Why two kinds of calls: a watch that is opened must not wait for the news of others, so the waiting call has to be
//! interrupted. If a call that brings word were interrupted as well, a program that opens watches fast enough would
//! never get an answer. And an interrupted call leaves nothing in doubt if it said nothing: the node takes the lost
//! answer back when it is asked again after the same number.
//!
//! Invariants
//! - a watch gets each revision once, whole, in order, and none is left out: the hub drops what is below its position,
//!   joins fragments, and after any doubt begins a new stream with every cursor at its position;
//! - a slow watch costs a full slot and nothing else: its cursor leaves the stream until the slot is empty;
//! - positions move on with the stream although nothing matched, in one place for all watches;
//! - from one watch at most three words are on their way: that bounds the channel, which a `Drop` can write to;
//! - when the hub ends, for whatever reason, every watch ends with [`Reason::Closed`].
//!
//! It does not decide where a watch begins, and it does not read old state anew after a compaction.

use super::backoff::{Backoff, jitter, random};
use super::link::{Link, unexpected};
use crate::api::{Cursor, CursorId, Follow, Followed, News, Position, Request, Response};
use crate::error::{Error, Reason, Result};
use crate::types::{Changes, Event, KeyRange, KeyValue, Revision, limits};
use futures::future::{Either, select};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long a patient call waits for news.
const WAIT: Duration = Duration::from_secs(20);
/// The most bytes of events in one answer.
const ANSWER_BYTES_MAX: u32 = 1024 * 1024;
/// A slot that holds so much takes no more until it is empty. One answer may go beyond.
const SLOT_BYTES_MAX: usize = 64 * 1024;
/// The most bytes of ranges that one call adds.
const ADDED_BYTES_MAX: usize = 256 * 1024;
/// The pause after an answer without news.
const BREATH: Duration = Duration::from_millis(20);
/// What an event costs beside its bytes.
const EVENT_BYTES: usize = 128;

/// Names a watch within its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WatchId(u64);

/// What a watch wants to see.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) range: KeyRange,
    pub(super) puts: bool,
    pub(super) deletes: bool,
    pub(super) prev: bool,
}

/// The way to the hub.
#[derive(Debug)]
pub(super) struct Hub {
    // Not bounded by a number: a watch opens, resumes and closes once each before the hub hears it, so there are never
    // more than three words for each watch. `Drop` has to be able to send without waiting.
    words: mpsc::UnboundedSender<Word>,
    ids: AtomicU64,
    progress: Arc<Mutex<Progress>>,
    /// Owns the task: dropping the hub ends it.
    _task: JoinSet<()>,
}

/// What the hub is told.
#[derive(Debug)]
enum Word {
    Open(WatchId, Arc<Slot>, Plan),
    /// The slot was full, and is empty now.
    Resume(WatchId),
    Close(WatchId),
}

/// How far the stream has come. Every cursor on it that had no news in the latest step has seen all of `revision`.
#[derive(Clone, Copy, Debug)]
struct Progress {
    step: u64,
    revision: Revision,
}

impl Hub {
    pub(super) fn start(link: Link) -> Self {
        let (words, heard) = mpsc::unbounded_channel();
        let progress = Arc::new(Mutex::new(Progress { step: 0, revision: Revision::from(0) }));
        let mut task = JoinSet::new();
        let runtime = link.runtime().clone();
        task.spawn_on(Follower::new(link, heard, progress.clone()).run(), &runtime);
        Self { words, ids: AtomicU64::new(0), progress, _task: task }
    }

    /// Begins to fill `slot`, from its position on.
    pub(super) fn open(&self, slot: Arc<Slot>, plan: Plan) -> Result<WatchId> {
        let id = WatchId(self.ids.fetch_add(1, Ordering::Relaxed));
        let word = Word::Open(id, slot, plan);
        self.words.send(word).map_err(|_| Error::new(Reason::Closed))?;
        Ok(id)
    }

    /// The next item of a watch, if there is one. Wakes the hub if that made room.
    pub(super) fn poll_take(
        &self,
        id: WatchId,
        slot: &Slot,
        context: &Context<'_>,
    ) -> Poll<Result<Changes>> {
        let mut state = slot.lock();
        let Some(changes) = state.queue.pop_front() else {
            return match &state.end {
                Some(error) => Poll::Ready(Err(error.clone())),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        };
        state.bytes -= weight(&changes);
        let resume = state.paused && state.queue.is_empty();
        state.paused &= !resume;
        drop(state);
        if resume {
            // If the hub is gone then so is the watch; its end is in the slot.
            let _ = self.words.send(Word::Resume(id));
        }
        Poll::Ready(Ok(changes))
    }

    /// The first revision that the consumer has not been given yet.
    pub(super) fn position(&self, slot: &Slot) -> Revision {
        let progress = *lock(&self.progress);
        let state = slot.lock();
        match state.queue.front() {
            Some(changes) => changes.revision,
            None => state.stands(progress).revision,
        }
    }

    pub(super) fn close(&self, id: WatchId) {
        let _ = self.words.send(Word::Close(id));
    }
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

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        let state = self.lock();
        (state.queue.len(), state.bytes)
    }

    /// Adds what is new; `next` is where the cursor then stands. Whether there is room for more.
    fn fill(&self, whole: Vec<Changes>, next: Position, as_of: u64) -> bool {
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
    fn leave(&self, progress: Progress) -> Position {
        let mut state = self.lock();
        state.next = state.stands(progress);
        state.as_of = None;
        state.next
    }

    /// The watch is over. What is in the queue can still be taken.
    fn end(&self, error: Error) {
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

/// The task behind the [`Hub`].
struct Follower {
    link: Link,
    words: mpsc::UnboundedReceiver<Word>,
    watches: BTreeMap<WatchId, Entry>,
    /// The cursors that are on the stream.
    cursors: HashMap<CursorId, WatchId>,
    /// Watches whose cursor is to be added, some of them closed meanwhile.
    joining: VecDeque<WatchId>,
    removed: VecDeque<CursorId>,
    /// Watches with half a revision.
    partial: BTreeSet<WatchId>,
    stream: u64,
    /// The number of the last call.
    call: u64,
    /// The number of the last answer; 0 begins the stream.
    after: u64,
    cursor_ids: u64,
    /// Written here only.
    progress: Arc<Mutex<Progress>>,
    backoff: Backoff,
}

/// A watch, as the hub knows it.
struct Entry {
    slot: Arc<Slot>,
    plan: Plan,
    cursor: Option<CursorId>,
    /// The revision that is not complete yet.
    partial: Option<Changes>,
}

/// One call, and what it says.
struct Ask {
    follow: Follow,
    joining: Vec<WatchId>,
}

impl Ask {
    /// Whether it says nothing, and so can wait for news and be interrupted.
    fn is_patient(&self) -> bool {
        self.follow.added.is_empty() && self.follow.removed.is_empty() && self.follow.after > 0
    }
}

impl Follower {
    fn new(
        link: Link,
        words: mpsc::UnboundedReceiver<Word>,
        progress: Arc<Mutex<Progress>>,
    ) -> Self {
        Self {
            link,
            words,
            watches: BTreeMap::new(),
            cursors: HashMap::new(),
            joining: VecDeque::new(),
            removed: VecDeque::new(),
            partial: BTreeSet::new(),
            stream: random(),
            call: 0,
            after: 0,
            cursor_ids: 0,
            progress,
            backoff: Backoff::outage(),
        }
    }

    async fn run(mut self) {
        loop {
            while let Ok(word) = self.words.try_recv() {
                self.hear(word);
            }
            if self.is_idle() {
                let Some(word) = self.words.recv().await else { return };
                self.hear(word);
                continue;
            }
            let ask = self.compose();
            let Some(answer) = self.ask(&ask).await else { continue };
            if let Err(wait) = self.digest(&ask, answer) {
                tokio::time::sleep(wait).await;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.cursors.is_empty() && self.joining.is_empty() && self.removed.is_empty()
    }

    /// Takes a word in. Whether it is worth an interruption.
    fn hear(&mut self, word: Word) -> bool {
        match word {
            Word::Open(id, slot, plan) => {
                let room = !slot.lock().paused;
                self.watches.insert(id, Entry { slot, plan, cursor: None, partial: None });
                if room {
                    self.joining.push_back(id);
                }
                room
            }
            Word::Resume(id) => {
                let off = self.watches.get(&id).is_some_and(|entry| entry.cursor.is_none());
                if off {
                    self.joining.push_back(id);
                }
                off
            }
            Word::Close(id) => {
                self.partial.remove(&id);
                if let Some(cursor) = self.watches.remove(&id).and_then(|entry| entry.cursor) {
                    self.cursors.remove(&cursor);
                    self.removed.push_back(cursor);
                }
                false
            }
        }
    }

    /// The next call: with all the word there is, as far as one call carries it.
    fn compose(&mut self) -> Ask {
        let (mut added, mut joining, mut bytes) = (Vec::new(), Vec::new(), 0);
        while added.len() < limits::BATCH_MAX && bytes < ADDED_BYTES_MAX {
            let Some(id) = self.joining.pop_front() else { break };
            let Some(entry) = self.watches.get_mut(&id) else { continue };
            if entry.cursor.is_some() {
                continue;
            }
            self.cursor_ids += 1;
            let cursor = CursorId(self.cursor_ids);
            entry.cursor = Some(cursor);
            self.cursors.insert(cursor, id);
            let Plan { range, puts, deletes, prev } = entry.plan.clone();
            bytes += range.start.len() + range.end.as_ref().map_or(0, bytes::Bytes::len);
            let next = entry.slot.lock().next;
            added.push((cursor, Cursor { range, next, puts, deletes, prev }));
            joining.push(id);
        }
        let removed: Vec<_> =
            self.removed.drain(..self.removed.len().min(limits::BATCH_MAX)).collect();
        self.call += 1;
        let Self { stream, call, after, .. } = *self;
        let (wait, bytes_max) = (Duration::ZERO, ANSWER_BYTES_MAX);
        let follow = Follow { stream, call, after, added, removed, wait, bytes_max };
        let mut ask = Ask { follow, joining };
        if ask.is_patient() {
            // Not exactly the same for all clients, so that they do not all come back together.
            ask.follow.wait = jitter(WAIT);
        }
        ask
    }

    /// Sends a call. `None` if it was interrupted by a word, which only a patient one is.
    async fn ask(&mut self, ask: &Ask) -> Option<Result<Response>> {
        let timeout = ask.follow.wait + self.link.timeout();
        let (link, request) = (self.link.clone(), Request::Follow(ask.follow.clone()));
        let mut call = pin!(async move { link.call(request, Some(timeout)).await });
        if !ask.is_patient() {
            return Some(call.await);
        }
        loop {
            let word = match select(call.as_mut(), pin!(self.words.recv())).await {
                Either::Left((answer, _)) => return Some(answer),
                Either::Right((word, _)) => word?,
            };
            if self.hear(word) {
                return None;
            }
        }
    }

    /// Takes an answer in. An error is how long to wait before the next call.
    fn digest(&mut self, ask: &Ask, answer: Result<Response>) -> Result<(), Duration> {
        let after = ask.follow.after;
        match answer {
            Ok(Response::Follow(Followed::Step { number, progress, news })) => {
                if number <= after {
                    // Late or repeated. We have had it; ask for the one that we have not.
                    return self.in_doubt(ask);
                }
                if number > after + 1 {
                    // An answer that we never got counts as received over there.
                    self.begin_anew();
                    return Err(self.backoff.next());
                }
                self.backoff.reset();
                let nothing = news.is_empty();
                self.step(ask, number, progress, news);
                // A node that has nothing to say should have waited. Do not go round and round with it.
                if nothing && ask.is_patient() { Err(jitter(BREATH)) } else { Ok(()) }
            }
            Ok(Response::Follow(Followed::Unknown)) => {
                self.begin_anew();
                // To forget what was said is a node's right once. If it forgets what was just begun, do not press it.
                if after == 0 { Err(self.backoff.next()) } else { Ok(()) }
            }
            Ok(other) => {
                self.end_all(&unexpected(&other));
                Ok(())
            }
            Err(error) if error.is_retryable() => {
                tracing::debug!(%error, "watches wait for the group");
                self.in_doubt(ask)
            }
            Err(error) => {
                self.end_all(&error);
                Ok(())
            }
        }
    }

    /// The call may have been carried out or not. If it said nothing then the next one can simply ask again.
    fn in_doubt(&mut self, ask: &Ask) -> Result<(), Duration> {
        if !ask.is_patient() {
            self.begin_anew();
        }
        Err(self.backoff.next())
    }

    /// One step: gives each watch its news, and moves all others on.
    fn step(&mut self, ask: &Ask, number: u64, progress: Revision, news: Vec<(CursorId, News)>) {
        let before = *lock(&self.progress);
        let step = before.step + 1;
        self.after = number;
        if progress < before.revision {
            // Positions never go back, though another member may be asked now, and may be behind.
            for entry in self.watches.values().filter(|entry| entry.cursor.is_some()) {
                entry.slot.leave(before);
                entry.slot.lock().as_of = Some(before.step);
            }
        }
        for entry in ask.joining.iter().filter_map(|id| self.watches.get(id)) {
            // On the stream since before this step, which therefore counts for it.
            entry.slot.lock().as_of = Some(before.step);
        }
        let mut heard = BTreeSet::new();
        for (cursor, news) in news {
            let Some(id) = self.cursors.get(&cursor).copied() else { continue };
            heard.insert(id);
            match news {
                News::Changes { changes, next, fragment } => {
                    self.deliver(id, changes, next, fragment, before, step);
                }
                News::Ended(reason) => self.end(id, reason.into()),
            }
        }
        self.complete(&heard, progress, step);
        self.link.saw(progress);
        *lock(&self.progress) = Progress { step, revision: progress };
    }

    /// Puts all revisions that are whole into the slot of a watch.
    fn deliver(
        &mut self,
        id: WatchId,
        changes: Vec<Changes>,
        next: Position,
        fragment: bool,
        before: Progress,
        step: u64,
    ) {
        let Some(entry) = self.watches.get_mut(&id) else { return };
        let stands = entry.slot.lock().stands(before);
        let mut whole = Vec::new();
        for changes in changes.into_iter().filter(|changes| changes.revision >= stands.revision) {
            match &mut entry.partial {
                Some(partial) if partial.revision == changes.revision => {
                    partial.events.extend(changes.events);
                }
                partial => whole.extend(partial.replace(changes)),
            }
        }
        if fragment {
            self.partial.insert(id);
        } else {
            whole.extend(entry.partial.take());
            self.partial.remove(&id);
        }
        if !entry.slot.fill(whole, next.max(stands), step) {
            self.pause(id);
        }
    }

    /// Half a revision whose rest did not match is whole once the stream has passed it.
    fn complete(&mut self, heard: &BTreeSet<WatchId>, progress: Revision, step: u64) {
        let silent: Vec<_> = self.partial.difference(heard).copied().collect();
        for id in silent {
            let Some(entry) = self.watches.get_mut(&id) else { continue };
            let passed = entry.partial.as_ref().is_some_and(|half| half.revision <= progress);
            if !passed || entry.cursor.is_none() {
                continue;
            }
            self.partial.remove(&id);
            let whole = entry.partial.take().into_iter().collect();
            if !entry.slot.fill(whole, Position::start_of(progress.next()), step) {
                self.pause(id);
            }
        }
    }

    /// Takes the cursor of a full slot off the stream.
    fn pause(&mut self, id: WatchId) {
        if let Some(cursor) = self.watches.get_mut(&id).and_then(|entry| entry.cursor.take()) {
            self.cursors.remove(&cursor);
            self.removed.push_back(cursor);
        }
    }

    /// Ends one watch. The node has forgotten its cursor.
    fn end(&mut self, id: WatchId, error: Error) {
        self.partial.remove(&id);
        if let Some(entry) = self.watches.remove(&id) {
            if let Some(cursor) = entry.cursor {
                self.cursors.remove(&cursor);
            }
            entry.slot.end(error);
        }
    }

    fn end_all(&mut self, error: &Error) {
        self.partial.clear();
        for (_, entry) in std::mem::take(&mut self.watches) {
            entry.slot.end(error.clone());
        }
        self.begin_anew();
    }

    /// A new stream, with every cursor where it stands. Nothing that was said on the old one counts any more.
    fn begin_anew(&mut self) {
        let progress = *lock(&self.progress);
        self.stream = random();
        self.call = 0;
        self.after = 0;
        self.cursors.clear();
        self.removed.clear();
        self.joining.clear();
        for (id, entry) in &mut self.watches {
            entry.slot.leave(progress);
            entry.cursor = None;
            if !entry.slot.lock().paused {
                self.joining.push_back(*id);
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.words.close();
        while let Ok(word) = self.words.try_recv() {
            self.hear(word);
        }
        let closed = Error::new(Reason::Closed);
        for entry in self.watches.values() {
            entry.slot.end(closed.clone());
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
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
