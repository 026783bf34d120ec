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
//! Watches of the same share a cursor. A thousand tasks of a program that wait for its configuration are one to the node, and
//! what comes is sent once, and handed to each here. Who comes later shares one that has not seen more than it; who falls
//! behind, because its slot is full, leaves it, and comes back with one of its own.
//!
//! Why two kinds of calls: a watch that is opened must not wait for the news of others, so the waiting call has to be
//! interrupted. If a call that brings word were interrupted as well, a program that opens watches fast enough would
//! never get an answer. And an interrupted call leaves nothing in doubt if it said nothing: the node takes the lost
//! answer back when it is asked again after the same number.
//!
//! Invariants
//! - a watch gets each revision once, whole, in order, and none is left out: the hub drops what is below its position,
//!   joins fragments, and after any doubt begins the stream anew with every cursor at its position;
//! - a slow watch costs a full slot and nothing else: its cursor leaves the stream until the slot is empty;
//! - positions move on with the stream although nothing matched, in one place for all watches;
//! - watches are counted, and from each at most three words are on their way: that bounds the channel, which a `Drop`
//!   can write to;
//! - when the hub ends, for whatever reason, every watch ends with [`Reason::Closed`].
//!
//! It does not decide where a watch begins, and it does not read old state anew after a compaction.

use super::backoff::{Backoff, jitter, random};
use super::link::{Link, unexpected};
use super::slot::{Progress, Slot, lock};
use crate::api::{
    Cursor, CursorId, Follow, Followed, News, Position, RANGE_BYTES_MAX, Request, Response,
};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::fault::{Bug, bug};
use crate::types::{Changes, KeyRange, Revision, limits};
use futures::future::{Either, select};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long a patient call waits for news.
const WAIT: Duration = Duration::from_secs(20);
/// The most watches of a client. A node holds as many for one caller.
const WATCHES_MAX: usize = 1 << 20;
/// The most bytes of their ranges. A node holds twice as many: it may hear later that some were closed.
const BYTES_MAX: usize = RANGE_BYTES_MAX / 2;
/// The most bytes of events in one answer.
const ANSWER_BYTES_MAX: u32 = 1024 * 1024;
/// The most bytes of ranges that one call adds.
const ADDED_BYTES_MAX: usize = 256 * 1024;
/// The pause after an answer without news.
const BREATH: Duration = Duration::from_millis(20);

/// Names a watch within its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WatchId(u64);

/// What a watch wants to see.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) range: KeyRange,
    pub(super) puts: bool,
    pub(super) deletes: bool,
    pub(super) prev: bool,
}

/// The way to the hub.
#[derive(Debug)]
pub(super) struct Hub {
    // Not bounded by a number of its own: a watch opens, resumes and closes once each before the hub hears it, so there
    // are never more than three words for each, and watches are counted. `Drop` has to be able to send without waiting.
    words: mpsc::UnboundedSender<Word>,
    /// How many watches were opened, and not yet closed as far as the task knows.
    open: Arc<AtomicUsize>,
    /// What the ranges of those take that are not closed.
    range_bytes: AtomicUsize,
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

impl Hub {
    pub(super) fn start(link: Link) -> Self {
        let (words, heard) = mpsc::unbounded_channel();
        let progress = Arc::new(Mutex::new(Progress { step: 0, revision: Revision::from(0) }));
        let open = Arc::<AtomicUsize>::default();
        let mut task = JoinSet::new();
        let runtime = link.runtime().clone();
        let follower = Follower::new(link, heard, open.clone(), progress.clone());
        task.spawn_on(follower.run(), &runtime);
        let (range_bytes, ids) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { words, open, range_bytes, ids, progress, _task: task }
    }

    /// Begins to fill `slot`, from its position on.
    pub(super) fn open(&self, slot: Arc<Slot>, plan: Plan) -> Result<WatchId> {
        let bytes = plan.range.bytes();
        let are_many = self.open.fetch_add(1, Ordering::Relaxed) >= WATCHES_MAX;
        let are_long = self.range_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > BYTES_MAX;
        if are_many || are_long {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.range_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::new(Reason::TooManyRequests));
        }
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
        let Poll::Ready(taken) = slot.poll_take(context) else { return Poll::Pending };
        let (changes, resume) = taken?;
        if resume {
            // If the hub is gone then so is the watch; its end is in the slot.
            let _ = self.words.send(Word::Resume(id));
        }
        Poll::Ready(Ok(changes))
    }

    /// The first revision that the consumer has not been given yet.
    pub(super) fn position(&self, slot: &Slot) -> Revision {
        slot.position(*lock(&self.progress))
    }

    /// Closes a watch whose range takes so many bytes.
    pub(super) fn close(&self, id: WatchId, range_bytes: usize) {
        self.range_bytes.fetch_sub(range_bytes, Ordering::Relaxed);
        let _ = self.words.send(Word::Close(id));
    }
}

/// The task behind the [`Hub`].
struct Follower {
    link: Link,
    words: mpsc::UnboundedReceiver<Word>,
    open: Arc<AtomicUsize>,
    watches: BTreeMap<WatchId, Entry>,
    /// The cursors that are on the stream, or about to be.
    cursors: HashMap<CursorId, Shared>,
    /// The last one of each plan, for others of the same.
    of_plan: HashMap<Plan, CursorId>,
    /// Watches whose cursor is to be added, some of them closed meanwhile.
    joining: VecDeque<WatchId>,
    removed: VecDeque<CursorId>,
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
    /// The revision that was not complete when it was on the stream last.
    partial: Option<Changes>,
}

/// A cursor, and those whom it is for. It has seen no more than any of them had when they came.
struct Shared {
    plan: Plan,
    watches: BTreeSet<WatchId>,
    /// Whether a call has said that it is.
    is_on_stream: bool,
    /// The revision that is not complete yet.
    partial: Option<Changes>,
}

/// One call, and what it says.
struct Ask {
    follow: Follow,
    joining: Vec<CursorId>,
    /// It says nothing, and so can wait for news and be interrupted.
    patient: bool,
}

impl Follower {
    fn new(
        link: Link,
        words: mpsc::UnboundedReceiver<Word>,
        open: Arc<AtomicUsize>,
        progress: Arc<Mutex<Progress>>,
    ) -> Self {
        Self {
            link,
            words,
            open,
            watches: BTreeMap::new(),
            cursors: HashMap::new(),
            of_plan: HashMap::new(),
            joining: VecDeque::new(),
            removed: VecDeque::new(),
            stream: random(),
            call: 0,
            after: 0,
            cursor_ids: 0,
            progress,
            backoff: Backoff::outage(),
        }
    }

    async fn run(mut self) {
        while !self.words.is_closed() {
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
                let room = !slot.is_paused();
                self.watches.insert(id, Entry { slot, plan, cursor: None, partial: None });
                // One that is on the stream has its news from now on.
                let is_alone = room && !self.share(id);
                if is_alone {
                    self.joining.push_back(id);
                }
                is_alone
            }
            Word::Resume(id) => {
                let off = self.watches.get(&id).is_some_and(|entry| entry.cursor.is_none());
                if off {
                    self.joining.push_back(id);
                }
                off
            }
            Word::Close(id) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
                let cursor = self.watches.remove(&id).and_then(|entry| entry.cursor);
                cursor.is_some_and(|cursor| self.leave(id, cursor))
            }
        }
    }

    /// Has a watch share the cursor of others, if there is one that has not seen more than it.
    fn share(&mut self, id: WatchId) -> bool {
        let progress = *lock(&self.progress);
        let Some(entry) = self.watches.get_mut(&id) else { return false };
        let Some(cursor) = self.of_plan.get(&entry.plan) else { return false };
        let Some(shared) = self.cursors.get_mut(cursor) else { return false };
        let first = shared.watches.first().and_then(|first| self.watches.get(first));
        let stands = first.map(|first| first.slot.stands(progress));
        let Some(entry) = self.watches.get_mut(&id) else { return false };
        let comes_later = stands.is_some_and(|stands| stands <= entry.slot.stands(progress));
        if !comes_later || entry.partial.is_some() {
            return false;
        }
        entry.cursor = Some(*cursor);
        if shared.is_on_stream {
            entry.slot.join(progress.step);
        }
        shared.watches.insert(id)
    }

    /// Takes a watch off its cursor, and the cursor off the stream if it was for nobody else. Whether it was.
    fn leave(&mut self, id: WatchId, cursor: CursorId) -> bool {
        let Some(shared) = self.cursors.get_mut(&cursor) else { return false };
        shared.watches.remove(&id);
        let is_for_nobody = shared.watches.is_empty();
        if is_for_nobody {
            self.forget(cursor);
            self.removed.push_back(cursor);
        }
        is_for_nobody
    }

    /// A cursor that is not on the stream any more.
    fn forget(&mut self, cursor: CursorId) -> Option<Shared> {
        let shared = self.cursors.remove(&cursor)?;
        if self.of_plan.get(&shared.plan) == Some(&cursor) {
            self.of_plan.remove(&shared.plan);
        }
        Some(shared)
    }

    /// The next call: with all the word there is, as far as one call carries it.
    fn compose(&mut self) -> Ask {
        let progress = *lock(&self.progress);
        let (mut added, mut joining, mut bytes) = (Vec::new(), Vec::new(), 0);
        while added.len() < limits::BATCH_MAX && bytes < ADDED_BYTES_MAX {
            let Some(id) = self.joining.pop_front() else { break };
            let is_off = |entry: &Entry| entry.cursor.is_none();
            if !self.watches.get(&id).is_some_and(is_off) || self.share(id) {
                continue;
            }
            let Some(entry) = self.watches.get_mut(&id) else { continue };
            self.cursor_ids += 1;
            let cursor = CursorId(self.cursor_ids);
            entry.cursor = Some(cursor);
            let shared = Shared {
                plan: entry.plan.clone(),
                watches: BTreeSet::from([id]),
                is_on_stream: false,
                partial: entry.partial.take(),
            };
            self.cursors.insert(cursor, shared);
            self.of_plan.insert(entry.plan.clone(), cursor);
            let Plan { range, puts, deletes, prev } = entry.plan.clone();
            bytes += range.bytes();
            let mut next = entry.slot.stands(progress);
            if self.call > 1 && self.after == 0 && bug(Bug::WatchSkipsWhenItResumes) {
                next = Position { revision: next.revision.next(), sub: 0 };
            }
            added.push((cursor, Cursor { range, next, puts, deletes, prev }));
            joining.push(cursor);
        }
        let removed: Vec<_> =
            self.removed.drain(..self.removed.len().min(limits::BATCH_MAX)).collect();
        self.call += 1;
        let Self { stream, call, after, .. } = *self;
        let patient = after > 0 && added.is_empty() && removed.is_empty();
        // Not exactly the same for all clients, so that they do not all come back together.
        let wait = if patient { jitter(WAIT) } else { Duration::ZERO };
        let bytes_max = ANSWER_BYTES_MAX;
        let follow = Follow { stream, call, after, added, removed, wait, bytes_max };
        Ask { follow, joining, patient }
    }

    /// Sends a call. `None` if it was interrupted by a word, which only a patient one is.
    async fn ask(&mut self, ask: &Ask) -> Option<Result<Response>> {
        let timeout = ask.follow.wait + self.link.timeout();
        let (link, request) = (self.link.clone(), Request::Follow(ask.follow.clone()));
        let mut call = pin!(async move { link.call(request, Some(timeout)).await });
        if !ask.patient {
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
                // The first answer of a stream proves nothing: the node may forget it again at once.
                if number > 1 {
                    self.backoff.reset();
                }
                let nothing = news.is_empty();
                self.step(ask, number, progress, news);
                // A node that has nothing to say should have waited. Do not go round and round with it.
                if nothing && ask.patient { Err(jitter(BREATH)) } else { Ok(()) }
            }
            Ok(Response::Follow(Followed::Unknown)) => {
                self.begin_anew();
                Err(self.backoff.next())
            }
            Ok(other) => {
                self.end_all(&unexpected(&other));
                Ok(())
            }
            Err(error) if error.is_retryable() => {
                tracing::debug!(%error, "watches wait for the group");
                self.in_doubt(ask)
            }
            // It is one of those who join that breaks a rule. The others have been there before.
            Err(error) if error.kind() == ErrorKind::InvalidInput && !ask.joining.is_empty() => {
                for cursor in &ask.joining {
                    let shared = self.cursors.remove(cursor);
                    let watches = shared.into_iter().flat_map(|shared| shared.watches);
                    watches.for_each(|id| self.end(id, error.clone()));
                }
                self.begin_anew();
                Ok(())
            }
            Err(error) => {
                self.end_all(&error);
                Ok(())
            }
        }
    }

    /// The call may have been carried out or not. If it said nothing then the next one can simply ask again.
    fn in_doubt(&mut self, ask: &Ask) -> Result<(), Duration> {
        if !ask.patient {
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
                entry.slot.join(before.step);
            }
        }
        for cursor in &ask.joining {
            let Some(shared) = self.cursors.get_mut(cursor) else { continue };
            shared.is_on_stream = true;
            for entry in shared.watches.iter().filter_map(|id| self.watches.get(id)) {
                // On the stream since before this step, which therefore counts for it.
                entry.slot.join(before.step);
            }
        }
        for (cursor, news) in news {
            match news {
                News::Changes { changes, next, fragment } => {
                    self.deliver(cursor, changes, next, fragment, before, step);
                }
                News::Ended(reason) => self.end_cursor(cursor, &reason, before),
            }
        }
        self.link.saw(progress);
        *lock(&self.progress) = Progress { step, revision: progress };
    }

    /// Puts all revisions that are whole into the slots of those whom the cursor is for.
    fn deliver(
        &mut self,
        cursor: CursorId,
        changes: Vec<Changes>,
        next: Position,
        fragment: bool,
        before: Progress,
        step: u64,
    ) {
        let Some(shared) = self.cursors.get_mut(&cursor) else { return };
        let entries = shared.watches.iter().filter_map(|id| Some((*id, self.watches.get(id)?)));
        let entries: Vec<(WatchId, &Entry)> = entries.collect();
        let stands = entries.iter().map(|(_, entry)| entry.slot.stands(before));
        let stands: Vec<Position> = stands.collect();
        let Some(least) = stands.iter().min().map(|least| least.revision) else { return };
        let mut whole = Vec::new();
        for changes in changes.into_iter().filter(|changes| changes.revision >= least) {
            match &mut shared.partial {
                Some(partial) if partial.revision == changes.revision => {
                    partial.events.extend(changes.events);
                }
                partial => whole.extend(partial.replace(changes)),
            }
        }
        if !fragment {
            whole.extend(shared.partial.take());
        }
        // The stream's progress may be behind: others on it may have more to catch up on.
        if let Some(last) = whole.last() {
            self.link.saw(last.revision);
        }
        let mut full = Vec::new();
        for ((id, entry), stands) in entries.into_iter().zip(stands) {
            // It may have begun later than the cursor.
            let own = whole.iter().filter(|changes| changes.revision >= stands.revision);
            if !entry.slot.fill(own.cloned().collect(), next.max(stands), step) {
                full.push(id);
            }
        }
        full.into_iter().for_each(|id| self.pause(id));
    }

    /// Takes a full slot off its cursor.
    fn pause(&mut self, id: WatchId) {
        let Some(entry) = self.watches.get_mut(&id) else { return };
        let Some(cursor) = entry.cursor.take() else { return };
        // It stands within a revision, and has the beginning of it from here.
        entry.partial = self.cursors.get(&cursor).and_then(|shared| shared.partial.clone());
        self.leave(id, cursor);
    }

    /// The node has ended a cursor, and forgotten it. Those who had not come so far are at their end; the others had only
    /// shared it.
    fn end_cursor(&mut self, cursor: CursorId, reason: &Reason, before: Progress) {
        let Some(shared) = self.forget(cursor) else { return };
        for id in shared.watches {
            let Some(entry) = self.watches.get_mut(&id) else { continue };
            let stands = entry.slot.leave(before);
            match reason {
                Reason::Compacted { at } if stands >= Position::start_of(*at) => {
                    entry.cursor = None;
                    self.joining.push_back(id);
                }
                reason => self.end(id, reason.clone().into()),
            }
        }
    }

    /// Ends one watch, whose cursor is forgotten.
    fn end(&mut self, id: WatchId, error: Error) {
        if let Some(entry) = self.watches.remove(&id) {
            entry.slot.end(error);
        }
    }

    fn end_all(&mut self, error: &Error) {
        for (_, entry) in std::mem::take(&mut self.watches) {
            entry.slot.end(error.clone());
        }
        self.begin_anew();
    }

    /// Begins another stream, with every cursor where it stands. Nothing that was said on the one before counts any more, at
    /// no member: one that was left and is come back to may still have it, and its numbers are those of any other. So it
    /// has another name, and no cursor's number is ever used again.
    fn begin_anew(&mut self) {
        let progress = *lock(&self.progress);
        self.stream = random();
        self.after = 0;
        self.of_plan.clear();
        self.removed.clear();
        self.joining.clear();
        let cursors = std::mem::take(&mut self.cursors);
        let mut off = Vec::new();
        for (id, entry) in &mut self.watches {
            let stands = entry.slot.leave(progress);
            if let Some(shared) = entry.cursor.take().and_then(|cursor| cursors.get(&cursor)) {
                entry.partial.clone_from(&shared.partial);
            }
            if !entry.slot.is_paused() {
                off.push((stands, *id));
            }
        }
        // Who has seen least comes first, so that the others can share its cursor.
        off.sort_unstable();
        self.joining.extend(off.into_iter().map(|(_, id)| id));
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
