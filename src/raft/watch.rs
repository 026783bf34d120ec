//! Watches on this member: cursors that wait, and the index that wakes those whose range a commit touched.
//!
//! A watch is a range and a position, not a queue. The index never carries an event, so it can never lose one: what a
//! woken cursor delivers is read from history.
//!
//! ```text
//!             register, then read ┌─────────────── Stream (a caller's cursors) ───────────────┐
//! Follow ───────────────────────▶ │ cursor 1  jobs/…  next 41     ready: {1}                  │ ──▶ history ──▶ news
//!                                 │ cursor 2  config  next 38                                 │
//!                                 └──────▲────────────────────────────────────────────────────┘
//! state thread: commit visible, then wake(touched keys) ┘ then `woken` = its revision
//!               at once if anybody waits for a key of it, and else within moments
//! ```
//!
//! Invariants
//! - a cursor is in the index before its history is read, and a commit is visible before its cursors are woken, and the
//!   view that they are read from is not older than the moment they are taken: so no event can fall between;
//! - a cursor that is not ready has seen everything up to `woken`;
//! - a commit that touched nothing of a cursor's range neither wakes it nor costs it anything;
//! - an answer is taken back if its caller asks again after the one before it;
//! - a member that has failed, or was removed, says so to whoever has had all that it can show.

use super::state::State;
use crate::api::{Cursor, CursorId, Follow, Followed, News, Position, RANGE_BYTES_MAX};
use crate::error::{Error, Fault, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::mvcc::{Events, View};
use crate::types::{KeyRange, Revision, limits};
use bytes::Bytes;
use index::Index;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

mod index;

/// The most bytes of events in one answer, whatever the caller asks for.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long cursors are read before other tasks get their turn on the thread, which belongs to the whole node.
const READ_AT_ONCE: Duration = Duration::from_millis(5);
/// What the news of a cursor take beside their changes, and what its end takes, text included; roughly.
const NEWS_BYTES: usize = 32;
const ENDED_BYTES: usize = 128;
/// The most cursors of one stream.
const CURSORS_MAX: usize = 1 << 20;
/// The most streams of one caller. It needs one, and begins another when it is in doubt about that.
const STREAMS_MAX: usize = 2;
/// The turn of a stream that was forgotten: any call of it comes too late.
const FORGOTTEN: u64 = u64::MAX;

/// Which cursors a touched key wakes.
#[derive(Debug)]
pub(crate) struct Interest {
    ranges: Mutex<Ranges>,
    /// All wake-ups up to this revision have been given.
    woken: AtomicU64,
    next_stream: AtomicU64,
    /// The member is being shut down: nobody waits here any more.
    closed: AtomicBool,
    /// Why there will be no news any more, if the member has failed or was removed.
    ended: OnceLock<Error>,
}

#[derive(Debug, Default)]
struct Ranges {
    streams: HashMap<u64, Arc<Stream>>,
    index: Index,
}

impl Interest {
    pub(crate) fn new(head: Revision) -> Self {
        Self {
            ranges: Mutex::default(),
            woken: AtomicU64::new(head.get()),
            next_stream: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            ended: OnceLock::new(),
        }
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn woken(&self) -> Revision {
        Revision::from(self.woken.load(Ordering::Acquire))
    }

    /// On the state's thread, once `touched` is visible: wakes the cursors whose range it lies in.
    pub(crate) fn wake(&self, touched: &[(Revision, Bytes)], head: Revision) {
        if !touched.is_empty() {
            let ranges = self.ranges();
            if !ranges.streams.is_empty() {
                touched.iter().for_each(|(revision, key)| ranges.wake(*revision, key));
            }
        }
        self.woken.store(head.get(), Ordering::Release);
    }

    /// Wakes every cursor: what it waited for may have come in another way than by commands.
    pub(crate) fn wake_all(&self, head: Revision) {
        let ranges = self.ranges();
        let seen = Position::start_of(self.woken().next());
        for stream in ranges.streams.values() {
            stream.cursors().wake_all(seen);
            stream.woken.notify_one();
        }
        drop(ranges);
        self.woken.store(head.get(), Ordering::Release);
    }

    /// Ends all calls that wait for news, and those to come.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake_calls();
    }

    /// The same, with the cause, for those who have seen all that there is: this member applies nothing any more, and who waits
    /// for what comes next would wait for ever.
    pub(crate) fn end(&self, cause: Error) {
        let _ = self.ended.set(cause);
        self.wake_calls();
    }

    fn wake_calls(&self) {
        self.ranges().streams.values().for_each(|stream| stream.woken.notify_one());
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Ranges {
    fn wake(&self, revision: Revision, key: &[u8]) {
        self.index.for_each(key, |(stream, cursor)| {
            if let Some(stream) = self.streams.get(&stream) {
                stream.wake(cursor, revision);
            }
        });
    }
}

/// The cursors of one caller's stream.
#[derive(Debug, Default)]
struct Stream {
    cursors: Mutex<Cursors>,
    woken: Notify,
}

#[derive(Debug, Default)]
struct Cursors {
    waiting: BTreeMap<CursorId, Cursor>,
    /// What the bounds of their ranges take.
    range_bytes: usize,
    /// Those that may have something to read.
    ready: BTreeSet<CursorId>,
    /// Those that are being read, outside of the lock, with where they stood.
    reading: BTreeMap<CursorId, Cursor>,
    /// Where to begin, for there was not enough room or time for those from here on: each gets its turn.
    first: CursorId,
    /// The number of the last answer, and where its cursors stood before it.
    answered: u64,
    before: BTreeMap<CursorId, Cursor>,
    /// The number of the last call. One before it was given up by its caller: it changes nothing and answers nothing, even
    /// if it gets its turn after the last one was answered.
    turn: u64,
}

impl Stream {
    fn cursors(&self) -> MutexGuard<'_, Cursors> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, cursor: CursorId, revision: Revision) {
        let mut cursors = self.cursors();
        let Cursors { waiting, ready, .. } = &mut *cursors;
        let Some(waiting) = waiting.get_mut(&cursor) else { return };
        if ready.insert(cursor) {
            // Nothing before the first touch matches, so the cursor need not look there, nor be compacted there.
            waiting.next = waiting.next.max(Position::start_of(revision));
            drop(cursors);
            self.woken.notify_one();
        }
    }

    /// The answer to a call that nobody waits for any more. If it was woken then the wake-up was meant for the next.
    fn too_late(&self) -> Followed {
        self.woken.notify_one();
        Followed::Unknown
    }
}

/// The streams of one caller: one connection, or one client in this process. Dropping it forgets them.
#[derive(Debug)]
pub(crate) struct Watchers {
    state: Arc<State>,
    /// The caller's number of each stream, with ours.
    streams: Mutex<HashMap<u64, (u64, Arc<Stream>)>>,
}

impl Watchers {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state, streams: Mutex::default() }
    }

    /// Carries out one step of a stream.
    ///
    /// # Cancel safety
    /// If it is dropped before it answers, the caller asks again after the answer it has.
    pub(crate) async fn follow(&self, follow: Follow) -> Result<Followed, Error> {
        point(Point::WatchFollow);
        let deadline = Instant::now() + follow.wait.min(limits::CALL_TIMEOUT_MAX);
        let bytes_max = (follow.bytes_max as usize).clamp(1, ANSWER_BYTES_MAX);
        let Some((number, stream)) = self.stream(&follow) else { return Ok(Followed::Unknown) };
        let Some(turn) = self.begin(number, &stream, follow)? else { return Ok(Followed::Unknown) };
        loop {
            let woken = stream.woken.notified();
            if self.state.interest.is_closed() {
                let cause = self.state.interest.ended.get().cloned();
                return Err(cause.unwrap_or_else(|| Reason::Closed.into()));
            }
            if let Some(answer) = self.answer(number, &stream, turn, bytes_max, false)? {
                return Ok(answer);
            }
            if stream.cursors().has_more_to_read() && Instant::now() < deadline {
                tokio::task::yield_now().await;
                continue;
            }
            if let Some(cause) = self.state.interest.ended.get() {
                return Err(cause.clone());
            }
            let is_idle = timeout_at(deadline, woken).await.is_err();
            point(Point::WatchWoken);
            if is_idle {
                let answer = self.answer(number, &stream, turn, bytes_max, true)?;
                return Ok(answer.unwrap_or(Followed::Unknown));
            }
        }
    }

    /// The stream that is meant; a new one if the caller begins anew. `None` if it is not known, or the caller has called
    /// again since: a stream that is begun anew keeps its number, and its calls go on counting.
    fn stream(&self, follow: &Follow) -> Option<(u64, Arc<Stream>)> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if follow.after == 0 {
            let is_late = |stream: &Stream| follow.call <= stream.cursors().turn;
            if streams.get(&follow.stream).is_some_and(|(_, stream)| is_late(stream)) {
                return None;
            }
            if let Some((number, stream)) = streams.remove(&follow.stream) {
                forget(&self.state.interest, number, &stream);
            }
            let number = self.state.interest.next_stream.fetch_add(1, Ordering::Relaxed);
            let stream = Arc::new(Stream::default());
            stream.cursors().turn = follow.call.saturating_sub(1);
            self.state.interest.ranges().streams.insert(number, Arc::clone(&stream));
            streams.insert(follow.stream, (number, stream));
            if streams.len() > STREAMS_MAX
                && let Some(oldest) = streams.values().map(|(number, _)| *number).min()
            {
                streams.extract_if(|_, (number, _)| *number == oldest).for_each(|(_, oldest)| {
                    forget(&self.state.interest, oldest.0, &oldest.1);
                });
            }
        }
        streams.get(&follow.stream).map(|(number, stream)| (*number, Arc::clone(stream)))
    }

    /// Takes in what changed since the last answer. `None` if the caller and this member disagree about which that is, or
    /// the caller has called again since.
    fn begin(
        &self,
        number: u64,
        stream: &Arc<Stream>,
        follow: Follow,
    ) -> Result<Option<u64>, Error> {
        // In the order of the state's thread: index first, then a stream.
        let mut ranges = self.state.interest.ranges();
        let mut cursors = stream.cursors();
        if follow.call <= cursors.turn && !bug(Bug::LateFollowIsAnswered) {
            return Ok(None);
        }
        if follow.after.checked_add(1) == Some(cursors.answered) {
            cursors.take_back(number, &mut ranges);
        } else if follow.after != cursors.answered {
            return Ok(None);
        }
        cursors.before.clear();
        cursors.give_up_reading();
        for id in follow.removed {
            cursors.remove(number, id, &mut ranges);
        }
        for (id, mut cursor) in follow.added {
            // Its bounds are slices of a request that may be thousands of times as large, and would be kept with them.
            cursor.range = KeyRange {
                start: Bytes::copy_from_slice(&cursor.range.start),
                end: cursor.range.end.map(|end| Bytes::copy_from_slice(&end)),
            };
            let bytes = cursors.range_bytes + cursor.range.bytes();
            if cursors.waiting.len() >= CURSORS_MAX || bytes > RANGE_BYTES_MAX {
                return Err(Reason::TooManyRequests.into());
            }
            cursors.remove(number, id, &mut ranges);
            ranges.index.add((number, id), &cursor.range);
            cursors.keep(id, cursor);
            // What it has missed so far is in history.
            cursors.ready.insert(id);
        }
        cursors.turn = follow.call;
        Ok(Some(cursors.turn))
    }

    /// The answer, if there is something to say or `idle` is allowed. An answer to an older call than the last is
    /// `Unknown`: nobody waits for it.
    fn answer(
        &self,
        number: u64,
        stream: &Arc<Stream>,
        turn: u64,
        bytes_max: usize,
        idle: bool,
    ) -> Result<Option<Followed>, Error> {
        // Read before the ready cursors are: whoever is not among them now has seen everything up to here.
        let progress = self.state.interest.woken();
        let Some(reading) = stream.cursors().take_ready(turn) else {
            return Ok(Some(stream.too_late()));
        };
        point(Point::WatchHistory);
        // The view is opened after the cursors are taken. A commit that woke one before is in this view; one that wakes
        // it later finds it not ready, and makes it so again. And it is read without the lock, so that no commit waits
        // for a slow reader.
        let fail = |fault| self.state.fail(fault);
        let view = self.state.view().map_err(fail)?;
        let read = read(&view, reading, bytes_max).map_err(fail)?;
        let mut ended = Vec::new();
        let answer = {
            let mut cursors = stream.cursors();
            if cursors.turn != turn {
                return Ok(Some(stream.too_late()));
            }
            let (news, progress) = cursors.settle(read, progress, &mut ended);
            if news.is_empty() && !idle {
                return Ok(None);
            }
            cursors.answered += 1;
            Followed::Step { number: cursors.answered, progress, news }
        };
        point(Point::WatchAnswer);
        if !ended.is_empty() {
            let mut ranges = self.state.interest.ranges();
            ended.iter().for_each(|(id, range)| ranges.index.remove((number, *id), range));
        }
        Ok(Some(answer))
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        let streams = self.streams.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (number, stream) in streams.values() {
            forget(&self.state.interest, *number, stream);
        }
    }
}

fn forget(interest: &Interest, number: u64, stream: &Stream) {
    let mut ranges = interest.ranges();
    ranges.streams.remove(&number);
    let mut cursors = stream.cursors();
    for (id, cursor) in std::mem::take(&mut cursors.waiting) {
        ranges.index.remove((number, id), &cursor.range);
    }
    cursors.turn = FORGOTTEN;
    stream.woken.notify_one();
}

impl Cursors {
    /// Makes every cursor ready; those that were not have seen everything before `seen`.
    fn wake_all(&mut self, seen: Position) {
        for (id, cursor) in &mut self.waiting {
            if self.ready.insert(*id) {
                cursor.next = cursor.next.max(seen);
            }
        }
    }

    fn keep(&mut self, id: CursorId, cursor: Cursor) {
        self.range_bytes += cursor.range.bytes();
        if let Some(before) = self.waiting.insert(id, cursor) {
            self.range_bytes -= before.range.bytes();
        }
    }

    fn take(&mut self, id: CursorId) -> Option<Cursor> {
        self.ready.remove(&id);
        let cursor = self.waiting.remove(&id)?;
        self.range_bytes -= cursor.range.bytes();
        Some(cursor)
    }

    fn remove(&mut self, number: u64, id: CursorId, ranges: &mut Ranges) {
        if let Some(cursor) = self.take(id) {
            ranges.index.remove((number, id), &cursor.range);
        }
    }

    /// Undoes the last answer, which its caller has not received.
    fn take_back(&mut self, number: u64, ranges: &mut Ranges) {
        for (id, cursor) in std::mem::take(&mut self.before) {
            if !self.waiting.contains_key(&id) {
                ranges.index.add((number, id), &cursor.range);
            }
            self.keep(id, cursor);
            self.ready.insert(id);
        }
        self.answered -= 1;
    }

    /// Whether there are cursors that the last read did not get around to, or that were woken since.
    fn has_more_to_read(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The cursors to read, in `turn`, in the order in which they are to be read.
    fn take_ready(&mut self, turn: u64) -> Option<Vec<(CursorId, Cursor)>> {
        if self.turn != turn {
            return None;
        }
        let ready = std::mem::take(&mut self.ready);
        let waiting = &self.waiting;
        self.reading =
            ready.into_iter().filter_map(|id| Some((id, waiting.get(&id)?.clone()))).collect();
        let in_order = self.reading.range(self.first..).chain(self.reading.range(..self.first));
        Some(in_order.map(|(id, cursor)| (*id, cursor.clone())).collect())
    }

    /// The call that was reading is void: its cursors stand where they stood.
    fn give_up_reading(&mut self) {
        for (id, cursor) in std::mem::take(&mut self.reading) {
            if let Some(waiting) = self.waiting.get_mut(&id) {
                *waiting = cursor;
                self.ready.insert(id);
            }
        }
    }

    /// Moves the cursors that were read, and returns what is new with how far all the others have come.
    fn settle(
        &mut self,
        read: Vec<(CursorId, Read)>,
        progress: Revision,
        ended: &mut Vec<(CursorId, KeyRange)>,
    ) -> (Vec<(CursorId, News)>, Revision) {
        let mut news = Vec::new();
        let mut reading = std::mem::take(&mut self.reading);
        let left = read.iter().find(|(_, read)| matches!(read, Read::NoRoom)).map(|(id, _)| *id);
        self.first = left.unwrap_or(CursorId(0));
        for (id, read) in read {
            let (Some(was), Some(waiting)) = (reading.remove(&id), self.waiting.get_mut(&id))
            else {
                continue;
            };
            match read {
                Read::NoRoom => {
                    waiting.next = was.next;
                    self.ready.insert(id);
                }
                Read::Events(Events { changes, next, fragment, more }) => {
                    // Not what a wake-up has made of it meanwhile: it has seen what is before this, and nothing after.
                    waiting.next = next;
                    if more {
                        self.ready.insert(id);
                    }
                    if more || !changes.is_empty() {
                        news.push((id, News::Changes { changes, next, fragment }));
                    }
                    // The oldest position since the last answer counts: who was read in vain has moved as well.
                    self.before.entry(id).or_insert(was);
                }
                Read::Ended(reason) => {
                    self.take(id);
                    ended.push((id, was.range.clone()));
                    news.push((id, News::Ended(reason)));
                    self.before.entry(id).or_insert(was);
                }
            }
        }
        let behind = self.ready.iter().filter_map(|id| self.waiting.get(id));
        let behind = behind.map(|cursor| cursor.next.revision.get().saturating_sub(1)).min();
        (news, Revision::from(progress.get().min(behind.unwrap_or(u64::MAX))))
    }
}

/// What was read of one cursor.
enum Read {
    Events(Events),
    /// Compacted.
    Ended(Reason),
    /// The answer was full, or time was up, before its turn.
    NoRoom,
}

/// Reads what the cursors have, up to `bytes_max` together, and of one cursor at least.
fn read(
    view: &View,
    cursors: Vec<(CursorId, Cursor)>,
    bytes_max: usize,
) -> Result<Vec<(CursorId, Read)>, Fault> {
    let mut room = bytes_max;
    let until = Instant::now() + READ_AT_ONCE;
    let mut all = Vec::with_capacity(cursors.len());
    for (id, cursor) in cursors {
        let is_late = !all.is_empty() && Instant::now() >= until;
        let read = if room == 0 || is_late {
            Read::NoRoom
        } else {
            match view.events(&cursor, view.revision(), room)? {
                Ok(events) => {
                    let bytes: usize = events.changes.iter().map(changes_bytes).sum();
                    let is_news = events.more || !events.changes.is_empty();
                    room = room.saturating_sub(bytes + if is_news { NEWS_BYTES } else { 0 });
                    Read::Events(events)
                }
                Err(reason) => {
                    room = room.saturating_sub(ENDED_BYTES);
                    Read::Ended(reason)
                }
            }
        };
        all.push((id, read));
    }
    Ok(all)
}

/// How much room the changes take in an answer, roughly.
fn changes_bytes(changes: &crate::types::Changes) -> usize {
    use crate::types::{Event, KeyValue};
    let pair = |kv: &KeyValue| 48 + kv.key.len() + kv.value.len();
    let event = |event: &Event| match event {
        Event::Put { kv, prev } => pair(kv) + prev.as_ref().map_or(0, pair),
        Event::Delete { key, prev, .. } => 16 + key.len() + prev.as_ref().map_or(0, pair),
    };
    16 + changes.events.iter().map(event).sum::<usize>()
}

#[cfg(test)]
mod tests;
