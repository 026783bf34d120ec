//! The file gets smaller: a copy of the tables, without the pages that no row needs, takes their place.
//!
//! LMDB uses free pages again, and never gives them back to the file system. So when most of a large file is free, or when the
//! quota is used up by pages that are half empty, the rows are copied into a file of their own, like a snapshot that this member takes of itself, while everything goes on. What is
//! flushed meanwhile is kept in memory, and flushed into the copy as well, until hardly anything is left. Then flushing stops
//! for the moment that it takes to write the rest and to name the copy in `CURRENT`.
//!
//! ```text
//! tables    T ──── flush 1 ── flush 2 ── … ── flush n │
//!           │         └──────────┴───── the tail ──┐  │
//! copy      rows of T ─▶ checked ─▶ 1 ─▶ 2 ─▶ … ─▶ n ─┴─▶ synced ─▶ named ── flush n+1 ── …
//!           └ a piece at a time, at a rate            └ flushing waits, applying and reading go on
//! ```
//!
//! A flush is a function of the tables that it is written to and of what was applied, so the copy of T with the flushes since
//! T is what the tables are: to the row, but for history that waits to be removed and was never copied. It is checked all the
//! same: the rows of T add up to the hash of T, each flush goes on where the one before it ended, and at the end both have one
//! head, as many rows, and the same newest change. Readers see the copy with the next moment
//! that is shown, as they see an installed snapshot; those that still read the old file keep it, and it is removed when they
//! are gone.
//!
//! Whatever goes wrong before the copy is named costs the copy, and nothing else: it was never more than a draft.
//!
//! Invariants
//! - the tail is without a gap: it begins on the thread that flushes, between two flushes, and every flush is in it;
//! - at the switch nothing is being flushed, so what is in memory is on top of the copy as it was on top of the tables;
//! - the copy is durable, as far as its original, before it is named: so is what the log was cut up to. And it is not ahead of
//!   the log, for each of its flushes has waited for that;
//! - after the step that names it there is no way back: if that fails, nobody knows which of the two a start would find, and
//!   the member stops;
//! - the tail takes [`TAIL_BYTES`] at most. Who writes faster than a copy is made is not held up: the copy is given up.

use super::thread::{Job, Work};
use super::{Counted, Draft, DraftFolder, Loaded, State, answering};
use crate::error::{Error, Fault, Reason};
use crate::fault::{Bug, Point, bug, point};
use crate::lmdb::Walk;
use crate::mvcc::{Flush, Generations, LoadError, SnapshotLoader, SnapshotReader, Store, View};
use crate::raft::aside;
use crate::raft::pace::Pace;
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

#[cfg(test)]
mod tests;

/// A file is made smaller if more of it is free than this part of a hundred,
const FREE_PERCENT: u64 = 50;
/// and than so many bytes: below that a copy is not worth the writing.
const FREE_BYTES: u64 = 64 << 20;
/// How much of the copy is written in one transaction, and flushed to the disk with it. The log's flushes, which every write
/// waits for, stand behind one such piece at most.
const PIECE_BYTES: usize = 1 << 20;
/// How fast the copy is written: a fraction of what disks can do, and nobody waits for it.
const BYTES_PER_SECOND: NonZeroU64 = NonZeroU64::new(16 << 20).expect("it is more than nothing");
/// How much of what is flushed meanwhile may be kept in memory.
const TAIL_BYTES: usize = 128 << 20;
/// What is to be left on the disk beside a copy: the log, which every write waits for, must not be what finds it full.
const ROOM_BYTES: u64 = 512 << 20;
/// After how many pieces it is looked whether there is that much left.
const ROOM_CHECK_PIECES: usize = 64;
/// How often it is looked whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long after a copy the next is begun at the earliest; after one that was given up, twice as long as before.
const REST: Duration = Duration::from_secs(300);
/// And not longer than this: whoever writes all day, faster than a copy is made, has a quieter hour or two at some time.
const REST_MAX: Duration = Duration::from_secs(2 * 3600);
/// How often what was flushed meanwhile is written to the copy, with more of it each time. Each round takes less time than the
/// one before, unless flushing keeps the disk busy by itself.
const ROUNDS: usize = 16;

/// When a copy is made, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    free_percent: u64,
    free_bytes: u64,
    pub(super) piece_bytes: usize,
    bytes_per_second: NonZeroU64,
    pub(super) tail_bytes: usize,
    room_bytes: u64,
    look_every: Duration,
    rest: Duration,
    rest_max: Duration,
    /// How many bytes the copy may have, if not as many as the tables.
    pub(super) map_bytes: Option<usize>,
    /// How many bytes are left on the disk, if that is known.
    room: fn(&Generations) -> Option<u64>,
}

impl Limits {
    pub(super) const NORMAL: Self = Self {
        free_percent: FREE_PERCENT,
        free_bytes: FREE_BYTES,
        piece_bytes: PIECE_BYTES,
        bytes_per_second: BYTES_PER_SECOND,
        tail_bytes: TAIL_BYTES,
        room_bytes: ROOM_BYTES,
        look_every: LOOK_EVERY,
        rest: REST,
        rest_max: REST_MAX,
        map_bytes: None,
        room: Generations::room,
    };

    /// A simulated group is small, and does in seconds what others do in a month.
    #[cfg(feature = "sim")]
    const SIMULATED: Self = Self {
        free_percent: 5,
        free_bytes: 8 << 10,
        piece_bytes: 4 << 10,
        bytes_per_second: NonZeroU64::new(64 << 10).expect("it is more than nothing"),
        tail_bytes: 512 << 10,
        room_bytes: 0,
        look_every: Duration::from_millis(25),
        rest: Duration::from_millis(50),
        rest_max: Duration::from_millis(200),
        map_bytes: None,
        room: Generations::room,
    };

    /// Processes that are killed every few seconds have a real disk, and more to copy.
    #[cfg(feature = "sim")]
    const EARLY: Self = Self {
        piece_bytes: 64 << 10,
        bytes_per_second: NonZeroU64::new(4 << 20).expect("it is more than nothing"),
        tail_bytes: TAIL_BYTES,
        rest: Duration::from_millis(500),
        rest_max: Duration::from_secs(2),
        ..Self::SIMULATED
    };

    fn here() -> Self {
        #[cfg(feature = "sim")]
        if crate::sim::world().is_some() {
            return Self::SIMULATED;
        } else if crate::sim::hook().is_some_and(crate::sim::Hook::shrinks_early) {
            return Self::EARLY;
        }
        #[cfg(test)]
        return Self { rest: Duration::from_millis(100), ..Self::NORMAL };
        #[cfg(not(test))]
        Self::NORMAL
    }

    /// Whether so much of so much is worth a copy.
    fn are_passed(&self, (bytes, free): (u64, u64)) -> bool {
        free > self.free_bytes
            && u128::from(free) * 100 > u128::from(bytes) * u128::from(self.free_percent)
    }
}

/// How large the file was, and is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shrunk {
    pub(crate) before: u64,
    pub(crate) after: u64,
}

impl Shrunk {
    /// Whether so much was won that it may be worth to do it again soon.
    fn has_helped(&self) -> bool {
        self.after <= self.before / 8 * 7
    }
}

/// Why there is no smaller file. The old one goes on, as if nothing had been.
#[derive(Clone, Debug)]
pub(crate) enum GaveUp {
    /// More was written meanwhile than is kept in memory.
    Overtaken,
    /// A snapshot is being received, which needs the disk, or has taken the place of the tables.
    Snapshot,
    /// The copy could not be written: the disk is full, say.
    Disk(Fault),
    /// The file system has too little room for both.
    NoRoom,
    /// The copy is not what it was made of.
    Differs(&'static str),
    /// There is less address space than the tables have.
    NoAddressSpace,
    /// This member has ended, or has failed.
    Ended,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overtaken => write!(f, "more was written meanwhile than is kept in memory"),
            Self::Snapshot => write!(f, "a snapshot of another member came"),
            Self::Disk(fault) => {
                write!(f, "the copy cannot be written: {}", Error::from(fault.clone()))
            }
            Self::NoRoom => write!(f, "the disk has too little room for both files"),
            Self::Differs(what) => write!(f, "the copy is not what it was made of: {what}"),
            Self::NoAddressSpace => write!(f, "there is not enough address space for both"),
            Self::Ended => write!(f, "the member has ended"),
        }
    }
}

impl From<LoadError> for GaveUp {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Malformed(what) => Self::Differs(what),
            LoadError::Fault(fault) => Self::Disk(fault),
        }
    }
}

/// What shrinking has to know of others, and they of it.
#[derive(Debug, Default)]
pub(super) struct Shrinking {
    /// What is flushed while there is a copy.
    tail: Mutex<Option<Tail>>,
    /// How many snapshots are being received, or are and wait to be installed.
    receiving: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Tail {
    store: Store,
    flushes: VecDeque<Box<Flush>>,
    bytes: usize,
    bytes_max: usize,
}

impl Tail {
    fn is_too_long(&self) -> bool {
        self.bytes > self.bytes_max
    }
}

impl Shrinking {
    /// A snapshot is being received, until what this returns is dropped.
    pub(super) fn receiving(&self) -> Counted {
        self.receiving.fetch_add(1, Ordering::SeqCst);
        Counted(Arc::clone(&self.receiving))
    }

    fn with_tail<T>(&self, look: impl FnOnce(&mut Option<Tail>) -> T) -> T {
        look(&mut self.tail.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// On the thread that flushes: takes note of what it has just written.
    pub(super) fn note(&self, flush: Box<Flush>) {
        // What is not kept is dropped without the lock.
        let _old = self.with_tail(|tail| {
            let Some(tail) = tail.as_mut().filter(|tail| flush.is_for(&tail.store)) else {
                return VecDeque::from([flush]);
            };
            tail.bytes += flush.bytes();
            if tail.is_too_long() {
                return std::mem::take(&mut tail.flushes);
            }
            tail.flushes.push_back(flush);
            VecDeque::new()
        });
    }

    /// Takes the first flush that the copy does not have yet, and says how many are behind it.
    fn next(&self) -> Result<Option<(Box<Flush>, usize)>, GaveUp> {
        self.with_tail(|tail| {
            let tail = tail.as_mut().ok_or(GaveUp::Ended)?;
            if tail.is_too_long() {
                return Err(GaveUp::Overtaken);
            }
            if bug(Bug::ShrinkWithoutTail) && tail.flushes.len() > 1 {
                tail.flushes.pop_front();
            }
            let Some(flush) = tail.flushes.pop_front() else { return Ok(None) };
            tail.bytes = tail.flushes.iter().map(|flush| flush.bytes()).sum();
            Ok(Some((flush, tail.flushes.len())))
        })
    }

    /// Whether it makes sense to go on with a copy of a store.
    fn check(&self, state: &State, source: &Store) -> Result<(), GaveUp> {
        state.check().map_err(|_| GaveUp::Ended)?;
        let now = state.store().map_err(|_| GaveUp::Ended)?;
        if !now.is(source) || self.receiving.load(Ordering::SeqCst) > 0 {
            return Err(GaveUp::Snapshot);
        }
        self.with_tail(|tail| match tail {
            Some(tail) if tail.is_too_long() => Err(GaveUp::Overtaken),
            _ => Ok(()),
        })
    }
}

/// As long as it lives, what is flushed is kept.
#[derive(Debug)]
struct Recording(Arc<State>);

impl Recording {
    fn begin(state: &Arc<State>, store: Store, bytes_max: usize) -> Self {
        let tail = Tail { store, flushes: VecDeque::new(), bytes: 0, bytes_max };
        drop(state.shrinking.with_tail(|old| old.replace(tail)));
        Self(Arc::clone(state))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(self.0.shrinking.with_tail(Option::take));
    }
}

/// A copy in the making.
struct Copying {
    _walk: Walk,
    reader: SnapshotReader,
    draft: Draft,
}

impl Copying {
    /// Copies another piece, and says how large it was; nothing when there is none.
    fn step(mut self, state: &State, bytes_max: usize) -> Result<(Self, usize), GaveUp> {
        // Whether this member can go on with rows that are damaged is not for a copy to say: they are all looked at then.
        const DAMAGED: GaveUp = GaveUp::Differs("rows of the tables are damaged");
        let chunk =
            self.reader.next_chunk(bytes_max).map_err(|fault| match fault.is_of_tables() {
                true => DAMAGED,
                false => ended(state, fault),
            })?;
        point(Point::ShrinkCopies);
        let Some(chunk) = chunk else { return Ok((self, 0)) };
        match self.draft.push(&chunk) {
            Ok(()) => Ok((self, chunk.len())),
            // It was read from the tables: what is wrong with it is wrong there.
            Err(LoadError::Malformed(_)) => Err(DAMAGED),
            Err(LoadError::Fault(fault)) => Err(GaveUp::Disk(fault)),
        }
    }
}

/// What is wrong with the state itself stops the member.
fn ended(state: &State, fault: Fault) -> GaveUp {
    state.fail(fault);
    GaveUp::Ended
}

/// A copy that is to take the place of what it was made of.
#[derive(Debug)]
pub(super) struct Successor {
    pub(super) source: Store,
    copy: Loaded,
}

impl Successor {
    /// On the thread that flushes, while nothing else is: writes the rest, and has the copy count.
    pub(super) fn take_place(self, state: &State) -> Result<Store, GaveUp> {
        let Self { source, copy: Loaded { store, folder } } = self;
        state.check().map_err(|_| GaveUp::Ended)?;
        point(Point::ShrinkSwitches);
        while let Some((flush, _)) = state.shrinking.next()? {
            write_next(&flush, &store)?;
        }
        if !bug(Bug::ShrinkNotSynced) {
            store.force_sync().map_err(GaveUp::Disk)?;
        }
        point(Point::ShrinkSynced);
        // If bytes of the copy have changed, that says nothing of the tables.
        let is_same = store.stands_where(&source);
        let is_same = is_same.map_err(|fault| ended(state, fault.elsewhere()))?;
        if !is_same && !bug(Bug::ShrinkWithoutTail) {
            return Err(GaveUp::Differs("they stand for two moments"));
        }
        let _mine = state.naming().map_err(|_| GaveUp::Ended)?;
        let announced = state.generations.announce(&folder.path).map_err(GaveUp::Disk)?;
        point(Point::ShrinkAnnounced);
        // From here on it may be what a start finds, also if an error leaves that open.
        folder.keep();
        announced.publish().map_err(|fault| ended(state, fault))?;
        point(Point::ShrinkPublished);
        Ok(store)
    }
}

/// Writes a flush to a copy, if none before it is missing there.
fn write_next(flush: &Flush, copy: &Store) -> Result<(), GaveUp> {
    if !flush.is_next_for(copy).map_err(GaveUp::Disk)? && !bug(Bug::ShrinkWithoutTail) {
        return Err(GaveUp::Differs("a flush is missing"));
    }
    flush.write_to(copy).map_err(GaveUp::Disk)
}

/// Makes the file smaller whenever most of it is free, and removes files that took up room until their last reader was gone.
pub(crate) async fn shrink_in_time(state: Arc<State>) {
    let limits = Limits::here();
    let mut when = When::new(&limits);
    loop {
        sleep(limits.look_every).await;
        state.remove_older().await;
        let Ok(store) = state.check().and_then(|()| state.store()) else { return };
        let free = store.free();
        drop(store);
        let is_worth_it = free.is_ok_and(|free| limits.are_passed(free));
        if !when.is_it(Instant::now(), is_worth_it || state.has_deleted_in_vain()) {
            continue;
        }
        let shrunk = state.shrink(&limits).await;
        when.has_ended(Instant::now(), shrunk.as_ref().is_ok_and(Shrunk::has_helped));
        match shrunk {
            Ok(Shrunk { before, after }) => {
                tracing::info!(before, after, "the file of the state was made smaller")
            }
            Err(GaveUp::Ended) => return,
            Err(why @ GaveUp::Differs(_)) => {
                tracing::error!(%why, "the file of the state is not made smaller before the next start");
                state.doubt();
                return state.remove_older_only(&limits).await;
            }
            Err(why) => tracing::warn!(%why, "the file of the state was not made smaller"),
        }
    }
}

/// When a copy is begun. All members have as much that is free, and at the same time: not all of them are to be busy with it
/// at once.
#[derive(Debug)]
struct When {
    limits: Limits,
    rest: Duration,
    /// Not before, if there is enough to do: a rest after the last copy, and a time that each member has drawn for itself.
    due: Option<Instant>,
}

impl When {
    fn new(limits: &Limits) -> Self {
        Self { limits: *limits, rest: limits.rest, due: None }
    }

    /// Whether it is now, when the limits are passed or are not.
    fn is_it(&mut self, now: Instant, are_passed: bool) -> bool {
        if !are_passed {
            // What was drawn for the last time keeps no members apart the next time.
            self.due = self.due.filter(|due| now < *due);
            return false;
        }
        now >= *self.due.get_or_insert_with(|| now + some_of(self.rest))
    }

    /// A copy was made, or given up.
    fn has_ended(&mut self, now: Instant, is_made: bool) {
        let Limits { rest, rest_max, .. } = self.limits;
        self.rest = if is_made { rest } else { (self.rest * 2).min(rest_max) };
        self.due = Some(now + self.rest + some_of(self.rest));
    }
}

/// A random part of a time.
fn some_of(time: Duration) -> Duration {
    // Who has no random number does it at once.
    let part = (getrandom::u64().unwrap_or(0) % 1024) as u32;
    time / 1024 * part
}

impl State {
    /// Whether there is no room although nothing waits to be removed. The rows may fill half of their pages, for LMDB merges
    /// those that are nearly empty only; in a copy all pages are full.
    fn has_deleted_in_vain(&self) -> bool {
        !self.forgets() && self.moment().is_ok_and(|moment| moment.is_short_of_room())
    }

    /// Whether the room of a copy that is being made is about to be free again.
    pub(crate) fn is_copying(&self) -> bool {
        self.shrinking.with_tail(|tail| tail.is_some())
    }

    /// As if a copy was being made.
    #[cfg(test)]
    pub(crate) fn pretend_to_copy(self: &Arc<Self>) -> impl Sized + use<> {
        Recording::begin(self, self.store().unwrap(), TAIL_BYTES)
    }

    /// Goes on without copies.
    async fn remove_older_only(self: &Arc<Self>, limits: &Limits) {
        while self.check().is_ok() {
            self.remove_older().await;
            sleep(limits.look_every).await;
        }
    }

    /// Has a copy take the place of the tables.
    ///
    /// # Cancel safety
    /// A future that is dropped leaves the old file or the new one.
    pub(crate) async fn shrink(self: &Arc<Self>, limits: &Limits) -> Result<Shrunk, GaveUp> {
        point(Point::ShrinkBegins);
        let (view, _recording) = self.begin_recording(limits.tail_bytes).await?;
        let source = view.store();
        let before = source.bytes().map_err(GaveUp::Disk)?;
        let mut copy = Some(self.copy(view, &source, limits).await?);
        point(Point::ShrinkCopied);
        let shrunk = self.switch(&mut copy, source).await;
        drop_beside(copy).await;
        Ok(Shrunk { before, after: shrunk? })
    }

    /// Brings a copy up to what the tables are, and has it take their place. Returns how large it is. What is not used is left.
    async fn switch(
        self: &Arc<Self>,
        copy: &mut Option<Loaded>,
        source: Store,
    ) -> Result<u64, GaveUp> {
        for _ in 0..ROUNDS {
            if self.catch_up(copy, &source).await? > 1 {
                continue;
            }
            let Some(copy) = copy.take() else { return Err(GaveUp::Ended) };
            if copy.store.map_bytes() < source.map_bytes() {
                return Err(GaveUp::NoAddressSpace);
            }
            point(Point::ShrinkAsks);
            let store = copy.store.clone();
            self.put_in_place(Successor { source, copy }).await?;
            return store.bytes().map_err(GaveUp::Disk);
        }
        Err(GaveUp::Overtaken)
    }

    /// What is in the tables; and from then on what comes into them is kept.
    async fn begin_recording(
        self: &Arc<Self>,
        bytes_max: usize,
    ) -> Result<(View, Recording), GaveUp> {
        let (done, result) = oneshot::channel();
        let begin = move |state: &Arc<Self>| {
            let view = state.check().and_then(|()| state.store())?.view()?;
            let recording = Recording::begin(state, view.store(), bytes_max);
            Ok((view, recording))
        };
        let sent = self.send_to_disk(Job::Run(Arc::clone(self), answering(done, begin)));
        sent.map_err(|_| GaveUp::Ended)?;
        // There may be too many readers already.
        let begun = result.await.map_err(|_| GaveUp::Ended)?;
        begun.map_err(|fault| match fault.reason() {
            Reason::TooManyRequests => GaveUp::Disk(fault),
            _ => ended(self, fault),
        })
    }

    /// Copies a view into a file of its own, and checks it.
    async fn copy(
        self: &Arc<Self>,
        view: View,
        source: &Store,
        limits: &Limits,
    ) -> Result<Loaded, GaveUp> {
        let Limits { piece_bytes, bytes_per_second, .. } = *limits;
        let (bytes, free) = source.free().map_err(GaveUp::Disk)?;
        self.check_room(limits, bytes.saturating_sub(free))?;
        let folder = DraftFolder { path: self.generations.draft(), _receiving: None };
        // A snapshot whose folder has a smaller number could not take the place of this copy.
        self.shrinking.check(self, source)?;
        let map_bytes = limits.map_bytes.unwrap_or(self.map_bytes);
        let store = source.clone();
        let begin = move || {
            let loader = SnapshotLoader::new(&folder.path, map_bytes).map_err(GaveUp::Disk)?;
            let draft = Draft { loader: loader.gathering(piece_bytes), folder };
            Ok(Copying { _walk: store.walk(), reader: SnapshotReader::new(view), draft })
        };
        let mut copying = beside(begin).await?;
        let pace = Pace::new(bytes_per_second);
        for piece in 1.. {
            let state = Arc::clone(self);
            let (next, length) = beside(move || copying.step(&state, piece_bytes)).await?;
            copying = next;
            if length == 0 {
                break;
            }
            pace.after(length).await;
            let is_enough = || match piece % ROOM_CHECK_PIECES {
                0 => self.check_room(limits, 0),
                _ => Ok(()),
            };
            if let Err(why) = self.shrinking.check(self, source).and_then(|()| is_enough()) {
                drop_beside(copying).await;
                return Err(why);
            }
        }
        let Copying { _walk, reader, draft } = copying;
        let finish = move || {
            // Checking takes a while, and the old pages need not be kept for it.
            drop((_walk, reader));
            Ok(draft.finish()?)
        };
        beside(finish).await
    }

    /// Whether the disk has room for so many bytes more, and for what the log may need meanwhile.
    fn check_room(&self, limits: &Limits, bytes: u64) -> Result<(), GaveUp> {
        // A file has free pages of its own, and grows in steps.
        let wanted = limits.room_bytes.saturating_add(bytes).saturating_add(bytes / 4);
        match (limits.room)(&self.generations) {
            Some(room) if room < wanted && limits.room_bytes > 0 => Err(GaveUp::NoRoom),
            _ => Ok(()),
        }
    }

    /// Writes to the copy what was flushed meanwhile, and says how much that was.
    async fn catch_up(
        self: &Arc<Self>,
        copy: &mut Option<Loaded>,
        source: &Store,
    ) -> Result<usize, GaveUp> {
        let (mut flushes, mut left) = (0, usize::MAX);
        while left > 0
            && let Some((flush, behind)) = self.shrinking.next()?
            && let Some(loaded) = copy.take()
        {
            // Those that came after the first look are for the next round.
            left = left.min(behind + 1) - 1;
            flushes += 1;
            point(Point::ShrinkCatchesUp);
            let write = move || write_next(&flush, &loaded.store).map(|()| loaded);
            *copy = Some(beside(write).await?);
            self.shrinking.check(self, source)?;
        }
        Ok(flushes)
    }

    /// Has the two threads take the copy in the place of the tables.
    async fn put_in_place(self: &Arc<Self>, successor: Successor) -> Result<(), GaveUp> {
        let (done, result) = oneshot::channel();
        let work = Work::Shrink(Arc::clone(self), Box::new(successor), done);
        self.send(work).map_err(|_| GaveUp::Ended)?;
        result.await.map_err(|_| GaveUp::Ended)?
    }

    /// Removes the files that were replaced, once nobody reads them.
    async fn remove_older(self: &Arc<Self>) {
        let state = Arc::clone(self);
        // They take up room until the next start, and are in nobody's way.
        let removed = aside(move || state.generations.remove_older()).await;
        match removed {
            Ok(Ok(true)) => point(Point::ShrinkRemoved),
            Ok(Err(fault)) => {
                let error = Error::from(fault);
                tracing::warn!(%error, "the old file of the state was not removed");
            }
            Ok(Ok(false)) | Err(_) => {}
        }
    }
}

/// Runs disk work beside the async tasks.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GaveUp> + Send + 'static,
) -> Result<T, GaveUp> {
    aside(work).await.map_err(|_| GaveUp::Ended)?
}

/// Drops what may take a while to drop, beside the async tasks.
async fn drop_beside<T: Send + 'static>(old: T) {
    // If there is nobody who does that any more, it has been dropped.
    let _ = aside(move || drop(old)).await;
}
