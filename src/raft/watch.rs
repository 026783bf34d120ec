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
//! ```
//!
//! Invariants
//! - a cursor is in the index before its history is read, and a commit is visible before its cursors are woken, and the
//!   view that they are read from is not older than the moment they are taken: so no event can fall between;
//! - a cursor that is not ready has seen everything up to `woken`;
//! - a commit that touched nothing of a cursor's range neither wakes it nor costs it anything;
//! - an answer is taken back if its caller asks again after the one before it.

use super::machine::State;
use crate::api::{Cursor, CursorId, Follow, Followed, News, Position};
use crate::error::{Error, Fault, Reason};
use crate::mvcc::{Events, View};
use crate::types::{KeyRange, Revision, limits};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

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
const STREAMS_MAX: usize = 4;
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
}

/// Names a cursor on this member.
type Waiter = (u64, CursorId);

#[derive(Debug, Default)]
struct Ranges {
    streams: HashMap<u64, Arc<Stream>>,
    keys: HashMap<Bytes, BTreeSet<Waiter>>,
    prefixes: HashMap<Bytes, BTreeSet<Waiter>>,
    /// How many prefixes there are of each length, so that a touched key is looked up once for each.
    prefix_lengths: BTreeMap<usize, usize>,
    others: BTreeMap<Waiter, KeyRange>,
}

impl Interest {
    pub(crate) fn new(head: Revision) -> Self {
        Self {
            ranges: Mutex::default(),
            woken: AtomicU64::new(head.get()),
            next_stream: AtomicU64::new(1),
            closed: AtomicBool::new(false),
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
        self.ranges().streams.values().for_each(|stream| stream.woken.notify_one());
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Ranges {
    fn wake(&self, revision: Revision, key: &Bytes) {
        let wake = |waiters: Option<&BTreeSet<Waiter>>| {
            waiters.into_iter().flatten().for_each(|waiter| self.wake_one(*waiter, revision));
        };
        wake(self.keys.get(key));
        for length in self.prefix_lengths.range(..=key.len()).map(|(length, _)| *length) {
            wake(self.prefixes.get(&key[..length]));
        }
        let others = self.others.iter().filter(|(_, range)| range.contains(key));
        others.for_each(|(waiter, _)| self.wake_one(*waiter, revision));
    }

    fn wake_one(&self, (stream, cursor): Waiter, revision: Revision) {
        if let Some(stream) = self.streams.get(&stream) {
            stream.wake(cursor, revision);
        }
    }

    fn add(&mut self, waiter: Waiter, range: &KeyRange) {
        if let Some(key) = range.as_key() {
            self.keys.entry(key.clone()).or_default().insert(waiter);
        } else if *range == KeyRange::prefix(&range.start) {
            self.prefixes.entry(range.start.clone()).or_default().insert(waiter);
            *self.prefix_lengths.entry(range.start.len()).or_default() += 1;
        } else {
            self.others.insert(waiter, range.clone());
        }
    }

    fn remove(&mut self, waiter: Waiter, range: &KeyRange) {
        fn take(from: &mut HashMap<Bytes, BTreeSet<Waiter>>, key: &Bytes, waiter: Waiter) -> bool {
            let Some(waiters) = from.get_mut(key) else { return false };
            let was_there = waiters.remove(&waiter);
            if waiters.is_empty() {
                from.remove(key);
            }
            was_there
        }
        if let Some(key) = range.as_key() {
            take(&mut self.keys, key, waiter);
        } else if *range == KeyRange::prefix(&range.start) {
            let length = range.start.len();
            if take(&mut self.prefixes, &range.start, waiter)
                && let Some(count) = self.prefix_lengths.get_mut(&length)
            {
                *count -= 1;
                if *count == 0 {
                    self.prefix_lengths.remove(&length);
                }
            }
        } else {
            self.others.remove(&waiter);
        }
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
        let deadline = Instant::now() + follow.wait.min(limits::CALL_TIMEOUT_MAX);
        let bytes_max = (follow.bytes_max as usize).clamp(1, ANSWER_BYTES_MAX);
        let Some((number, stream)) = self.stream(&follow) else { return Ok(Followed::Unknown) };
        let Some(turn) = self.begin(number, &stream, follow)? else { return Ok(Followed::Unknown) };
        loop {
            let woken = stream.woken.notified();
            if self.state.interest.is_closed() {
                return Err(Reason::Closed.into());
            }
            if let Some(answer) = self.answer(number, &stream, turn, bytes_max, false)? {
                return Ok(answer);
            }
            if stream.cursors().has_more_to_read() && Instant::now() < deadline {
                tokio::task::yield_now().await;
                continue;
            }
            if timeout_at(deadline, woken).await.is_err() {
                let answer = self.answer(number, &stream, turn, bytes_max, true)?;
                return Ok(answer.unwrap_or(Followed::Unknown));
            }
        }
    }

    /// The stream that is meant; a new one if the caller begins anew.
    fn stream(&self, follow: &Follow) -> Option<(u64, Arc<Stream>)> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if follow.after == 0 {
            if let Some((number, stream)) = streams.remove(&follow.stream) {
                forget(&self.state.interest, number, &stream);
            }
            let number = self.state.interest.next_stream.fetch_add(1, Ordering::Relaxed);
            let stream = Arc::new(Stream::default());
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
        if follow.call <= cursors.turn {
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
        for (id, cursor) in follow.added {
            if cursors.waiting.len() >= CURSORS_MAX {
                return Err(Reason::TooManyRequests.into());
            }
            cursors.remove(number, id, &mut ranges);
            ranges.add((number, id), &cursor.range);
            cursors.waiting.insert(id, cursor);
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
        if !ended.is_empty() {
            let mut ranges = self.state.interest.ranges();
            ended.iter().for_each(|(id, range)| ranges.remove((number, *id), range));
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
        ranges.remove((number, id), &cursor.range);
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

    fn remove(&mut self, number: u64, id: CursorId, ranges: &mut Ranges) {
        if let Some(cursor) = self.waiting.remove(&id) {
            ranges.remove((number, id), &cursor.range);
        }
        self.ready.remove(&id);
    }

    /// Undoes the last answer, which its caller has not received.
    fn take_back(&mut self, number: u64, ranges: &mut Ranges) {
        for (id, cursor) in std::mem::take(&mut self.before) {
            if !self.waiting.contains_key(&id) {
                ranges.add((number, id), &cursor.range);
            }
            self.waiting.insert(id, cursor);
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
                    self.waiting.remove(&id);
                    self.ready.remove(&id);
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
mod tests {
    use super::*;
    use crate::api::{Command, Proposal};
    use crate::mvcc::{Body, Entry, LogPosition};
    use crate::types::{Op, TxnOp};

    /// Commits one put for each index, each on its own, as fast as the state's thread can.
    fn commit(state: &Arc<State>, indexes: std::ops::Range<u64>, key: impl Fn(u64) -> String) {
        for index in indexes {
            let put = Op::put(key(index), "v");
            let command = Command::Txn(TxnOp::single(put.0));
            let body = Body::Command(Arc::new(Proposal::from(command)));
            let position = LogPosition { term: 1, node: 1, index };
            state.apply_for_test(&[Entry { position, body }]);
        }
    }

    fn cursor(range: impl Into<KeyRange>, next: u64) -> Cursor {
        let next = Position::start_of(Revision::from(next));
        Cursor { range: range.into(), next, puts: true, deletes: true, prev: false }
    }

    /// A call of stream 1, numbered as it is made.
    fn step(after: u64, added: Vec<(CursorId, Cursor)>, wait: Duration) -> Follow {
        static CALLS: AtomicU64 = AtomicU64::new(1);
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        Follow { stream: 1, call, after, added, removed: vec![], wait, bytes_max: 1 << 20 }
    }

    /// The revisions in an answer, and its number and progress.
    fn taken(followed: Followed) -> (u64, u64, Vec<u64>) {
        let Followed::Step { number, progress, news } = followed else { panic!("{followed:?}") };
        let revisions = news.into_iter().flat_map(|(_, news)| match news {
            News::Changes { changes, .. } => changes.into_iter().map(|it| it.revision.get()),
            News::Ended(reason) => panic!("{reason}"),
        });
        (number, progress.get(), revisions.collect())
    }

    const NOW: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_secs(60);

    /// A commit between opening the view and taking the woken cursors was once lost: its wake found the cursor ready, and
    /// the view was older. So the cursors are taken first.
    #[test]
    fn no_commit_hides_behind_the_one_before_it() {
        const COMMITS: u64 = 20_000;
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let follower = std::thread::spawn({
            let state = Arc::clone(&state);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                runtime.unwrap().block_on(async {
                    let watchers = Watchers::new(state);
                    let (mut next, mut after) = (2, 0);
                    let mut added = vec![(CursorId(1), cursor(KeyRange::prefix("k"), 2))];
                    while next < COMMITS + 2 {
                        let follow = step(after, std::mem::take(&mut added), LONG);
                        let (number, _, revisions) = taken(watchers.follow(follow).await.unwrap());
                        after = number;
                        for revision in revisions {
                            assert_eq!(revision, next, "an event is lost, or comes twice");
                            next += 1;
                        }
                    }
                });
            }
        });
        commit(&state, 0..COMMITS, |index| format!("k{}", index % 7));
        follower.join().unwrap();
    }

    #[tokio::test]
    async fn a_lost_answer_is_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        commit(&state, 0..3, |_| "k".into());
        let first = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
        assert_eq!(taken(watchers.follow(first).await.unwrap()), (1, 4, vec![2, 3, 4]));
        commit(&state, 3..5, |_| "k".into());
        let answer = taken(watchers.follow(step(1, vec![], NOW)).await.unwrap());
        assert_eq!(answer, (2, 6, vec![5, 6]));
        // The caller did not get it, and asks again after the first.
        assert_eq!(taken(watchers.follow(step(1, vec![], NOW)).await.unwrap()), answer);
        assert_eq!(taken(watchers.follow(step(2, vec![], NOW)).await.unwrap()), (3, 6, vec![]));
        // Two steps back is a caller that this member does not know.
        assert_eq!(watchers.follow(step(1, vec![], NOW)).await.unwrap(), Followed::Unknown);
    }

    /// A call that was given up may get its turn after the one that was made in its place, and even after that one was
    /// answered: the two are tasks of their own. It once took that answer back, and gave another one under its number.
    #[tokio::test]
    async fn a_call_that_comes_late_takes_nothing_back() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        let first = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
        assert_eq!(taken(watchers.follow(first).await.unwrap()), (1, 1, vec![]));
        let late = step(1, vec![], LONG);
        commit(&state, 0..1, |_| "k".into());
        assert_eq!(taken(watchers.follow(step(1, vec![], NOW)).await.unwrap()), (2, 2, vec![2]));
        commit(&state, 1..2, |_| "k".into());
        assert_eq!(watchers.follow(late).await.unwrap(), Followed::Unknown);
        assert_eq!(taken(watchers.follow(step(2, vec![], NOW)).await.unwrap()), (3, 3, vec![3]));
    }

    /// The wake-up is for the stream, and whoever gets it may be a call that nobody waits for any more.
    #[tokio::test]
    async fn a_call_that_was_given_up_does_not_keep_the_wake_up() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        let first = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
        taken(watchers.follow(first).await.unwrap());
        let mut old = std::pin::pin!(watchers.follow(step(1, vec![], LONG)));
        let moment = Duration::from_millis(1);
        assert!(tokio::time::timeout(moment, old.as_mut()).await.is_err());
        let mut new = std::pin::pin!(watchers.follow(step(1, vec![], LONG)));
        assert!(tokio::time::timeout(moment, new.as_mut()).await.is_err());
        commit(&state, 0..1, |_| "k".into());
        let new = tokio::time::timeout(LONG / 10, new);
        let (old, new) = futures::join!(old, new);
        assert_eq!(old.unwrap(), Followed::Unknown);
        assert_eq!(taken(new.expect("woken at once").unwrap()), (2, 2, vec![2]));
    }

    /// Each time that a caller is in doubt it begins a new stream, and forgets the old one.
    #[tokio::test]
    async fn a_caller_that_begins_anew_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        for stream in 0..1000 {
            let mut follow = step(0, vec![(CursorId(1), cursor("k", 2))], NOW);
            follow.stream = stream;
            taken(watchers.follow(follow).await.unwrap());
        }
        let ranges = state.interest.ranges();
        assert!(ranges.streams.len() < 10, "{} streams", ranges.streams.len());
        assert!(ranges.keys.values().all(|waiters| waiters.len() < 10));
    }

    #[tokio::test]
    async fn an_untouched_cursor_moves_on_and_is_not_compacted() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        let added = vec![(CursorId(1), cursor("quiet", 2))];
        taken(watchers.follow(step(0, added, NOW)).await.unwrap());
        commit(&state, 0..10, |_| "loud".into());
        let compact = Command::Compact(Revision::from(8));
        let body = Body::Command(Arc::new(Proposal::from(compact)));
        let position = LogPosition { term: 1, node: 1, index: 10 };
        state.apply_for_test(&[Entry { position, body }]);
        let (number, progress, _) = taken(watchers.follow(step(1, vec![], NOW)).await.unwrap());
        assert_eq!((number, progress), (2, 11));
        commit(&state, 11..12, |_| "quiet".into());
        let (_, _, revisions) = taken(watchers.follow(step(2, vec![], LONG)).await.unwrap());
        assert_eq!(revisions, [12]);
    }

    #[tokio::test]
    async fn every_form_of_range_is_woken_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        let ranges = [
            KeyRange::key("b"),
            KeyRange::prefix("b"),
            KeyRange::from("a".."c"),
            KeyRange::from("b"..),
            KeyRange::all(),
        ];
        let added = ranges.into_iter().enumerate();
        let added = added.map(|(id, range)| (CursorId(id as u64), cursor(range, 2))).collect();
        taken(watchers.follow(step(0, added, NOW)).await.unwrap());
        commit(&state, 0..1, |_| "b".into());
        let (_, _, revisions) = taken(watchers.follow(step(1, vec![], LONG)).await.unwrap());
        assert_eq!(revisions, [2; 5]);
        drop(watchers);
        let ranges = state.interest.ranges();
        assert!(ranges.streams.is_empty() && ranges.keys.is_empty() && ranges.prefixes.is_empty());
        assert!(ranges.prefix_lengths.is_empty() && ranges.others.is_empty());
    }

    /// Thousands of cursors that have much to look through, all at once: the thread belongs to others as well.
    #[tokio::test]
    async fn a_step_is_short_however_much_there_is_to_read() {
        const CURSORS: u64 = 2000;
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        commit(&state, 0..2000, |_| "busy".into());
        let quiet = |id| cursor(KeyRange::prefix(format!("quiet/{id:04}")), 2);
        let added = (0..CURSORS).map(|id| (CursorId(id), quiet(id))).collect();
        let mut follow = std::pin::pin!(watchers.follow(step(0, added, LONG)));
        // All of it in one poll takes seconds, as this is compiled for tests.
        let longest = std::cell::Cell::new(Duration::ZERO);
        let mut last = Instant::now();
        let others = std::pin::pin!(async {
            loop {
                longest.set(longest.get().max(last.elapsed()));
                last = Instant::now();
                tokio::task::yield_now().await;
            }
        });
        let committed = std::pin::pin!(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            commit(&state, 2000..2001, |_| format!("quiet/{:04}", CURSORS - 1));
            std::future::pending::<()>().await;
        });
        let mut background = futures::future::join(others, committed);
        let answer = futures::future::select(follow.as_mut(), &mut background).await;
        let futures::future::Either::Left((answer, _)) = answer;
        let (_, progress, revisions) = taken(answer.unwrap());
        assert_eq!(revisions, [2002]);
        assert!(progress <= 2002);
        assert!(longest.get() < Duration::from_millis(500), "{longest:?} in one poll");
    }

    #[tokio::test]
    async fn a_member_that_is_shut_down_sends_those_who_wait_away() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        taken(watchers.follow(step(0, vec![(CursorId(1), cursor("k", 2))], NOW)).await.unwrap());
        let mut waiting = std::pin::pin!(watchers.follow(step(1, vec![], LONG)));
        let moment = Duration::from_millis(1);
        assert!(tokio::time::timeout(moment, waiting.as_mut()).await.is_err());
        state.interest.close();
        let ended = tokio::time::timeout(LONG / 10, waiting).await.expect("at once");
        assert_eq!(*ended.unwrap_err().reason(), Reason::Closed);
        let next = watchers.follow(step(1, vec![], LONG)).await;
        assert_eq!(*next.unwrap_err().reason(), Reason::Closed);
    }

    /// Also of ends there may be more than fit into one answer, as when a snapshot has left all cursors behind.
    #[tokio::test]
    async fn ends_take_room_too() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        commit(&state, 0..10, |_| "k".into());
        let compact = Command::Compact(Revision::from(8));
        let body = Body::Command(Arc::new(Proposal::from(compact)));
        state.apply_for_test(&[Entry {
            position: LogPosition { term: 1, node: 1, index: 10 },
            body,
        }]);
        let added = (0..100).map(|id| (CursorId(id), cursor("k", 2))).collect();
        let mut follow = step(0, added, NOW);
        let mut ended = BTreeSet::new();
        for number in 1..100 {
            follow.bytes_max = 1000;
            let answer = watchers.follow(follow).await.unwrap();
            let Followed::Step { news, .. } = answer else { panic!("{answer:?}") };
            assert!(news.len() < 50, "{} ends in one answer", news.len());
            for (id, news) in news {
                assert!(matches!(news, News::Ended(Reason::Compacted { .. })));
                assert!(ended.insert(id), "{id:?} ended twice");
            }
            follow = step(number, vec![], NOW);
        }
        assert_eq!(ended.len(), 100);
    }

    #[tokio::test]
    async fn an_answer_that_is_full_does_not_claim_progress_for_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        let watchers = Watchers::new(Arc::clone(&state));
        commit(&state, 0..100, |index| format!("k{}", index % 2));
        let added =
            (0..2).map(|id| (CursorId(id), cursor(KeyRange::key(format!("k{id}")), 2))).collect();
        let mut follow = step(0, added, NOW);
        follow.bytes_max = 200;
        let mut seen = 0;
        for _ in 0..1000 {
            let (number, progress, revisions) = taken(watchers.follow(follow).await.unwrap());
            seen += revisions.len();
            assert!(progress == 101 || seen < 100, "progress {progress} after {seen} events");
            follow = step(number, vec![], NOW);
            follow.bytes_max = 200;
            if seen == 100 {
                break;
            }
        }
        assert_eq!(seen, 100);
    }
}
