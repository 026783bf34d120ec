//! Looks at all of this member's rows again, now and then, at a rate that nobody notices; and when somebody has a doubt.
//!
//! ```text
//! a day has passed ──────────────────────────────┐
//! a copy of the rows is not what they are ───────┼─▶ a view, a piece, a rest, a piece, … ─┬─▶ all is well
//! whoever got a snapshot says that it is damaged ┘                                        └─▶ fail ─▶ (the next start) reseed
//! ```
//!
//! A page that has changed on the disk may lead past rows: they are answered as keys that do not exist, and no checksum is read
//! that could tell ([`Scrub`]). Small states are looked over at each start; this is for those that are large, or
//! run for long.
//!
//! Invariants
//! - what is found is this member's end only as long as that is what it reads from, and there is a majority of voters without it;
//! - the view that is read keeps pages from being used again: if the file grows too much for that, the look ends, and is begun
//!   another time;
//! - whoever has doubts, however often, has all rows read once in [`REST_MIN`] at most;
//! - a process that comes to its end by what LMDB finds on a page does so once: the next start looks the pages over first.

use super::member::Shared;
use super::network::can_be_spared;
use super::pace::Pace;
use super::state::State;
use super::{aside, drop_aside};
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::lmdb::Walk;
use crate::mvcc::{Scrub, Store, View};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How often all rows are looked at. The first time is within an hour of the start: the disk may be another by then.
const EVERY: Duration = Duration::from_secs(24 * 3600);
const FIRST: Duration = Duration::from_secs(3600);
/// How long after a look nobody's doubt has the next one begin.
const REST_MIN: Duration = Duration::from_secs(600);
/// How much is read at once: a few milliseconds of one processor.
const PIECE_BYTES: usize = 256 << 10;
/// How fast: eight gigabytes, which is what the quota allows, in four minutes, or twice that if they are large values.
const BYTES_PER_SECOND: NonZeroU64 = NonZeroU64::new(32 << 20).expect("it is more than nothing");
/// By how much the file may grow meanwhile: so much, or by a quarter if that is more, but by no more than a quarter of the room that
/// there is.
const GROWTH: u64 = 1 << 30;
const PART: u64 = 4;

/// When it is looked, and how.
#[derive(Clone, Copy, Debug)]
struct Limits {
    every: Duration,
    first: Duration,
    rest_min: Duration,
    piece_bytes: usize,
    growth: u64,
}

impl Limits {
    const NORMAL: Self = Self {
        every: EVERY,
        first: FIRST,
        rest_min: REST_MIN,
        piece_bytes: PIECE_BYTES,
        growth: GROWTH,
    };

    /// A simulated day is short.
    #[cfg(feature = "sim")]
    const SIMULATED: Self = Self {
        every: Duration::from_secs(4),
        first: Duration::from_secs(4),
        rest_min: Duration::from_secs(1),
        piece_bytes: 2 << 10,
        growth: GROWTH,
    };

    fn here() -> Self {
        #[cfg(feature = "sim")]
        if crate::sim::world().is_some() {
            return Self::SIMULATED;
        }
        Self::NORMAL
    }
}

/// Looks at all rows, time and again, as long as this member lives.
pub(super) async fn scrub_in_time(shared: Arc<Shared>) {
    let limits = Limits::here();
    let mut rest = limits.first / 2 + some_of(limits.first / 2);
    loop {
        // A doubt that comes meanwhile waits.
        let is_doubted = timeout(rest, shared.state.doubted.notified()).await.is_ok();
        let rows = shared.state.rows().await;
        let looked = match rows {
            Ok(rows) => shared.state.scrub(rows, &limits).await,
            Err(fault) => Err(fault),
        };
        let is_answered = match looked {
            Ok(Looked::AtAll(bytes)) => {
                tracing::debug!(bytes, "all rows of the state are right");
                true
            }
            // A copy, or the state of another: both were counted on their way.
            Ok(Looked::Elsewhere) => true,
            Ok(Looked::TooLong) => {
                tracing::warn!("not all rows were looked at: the file grew too much meanwhile");
                false
            }
            // There are too many readers.
            Err(fault) if fault.reason() == &Reason::TooManyRequests => false,
            Err(fault) => {
                found(&shared, fault);
                true
            }
        };
        if is_doubted && !is_answered {
            shared.state.doubt();
        }
        if shared.state.check().is_err() || shared.state.store().is_err() {
            return;
        }
        sleep(limits.rest_min).await;
        rest = (limits.every - some_of(limits.every / 2)).saturating_sub(limits.rest_min);
    }
}

/// Rows are damaged. Whoever knows that ends, and gets them from another; but if there is no majority without it, all that the
/// group has goes on as well as it can.
fn found(shared: &Shared, fault: Fault) {
    if shared.state.check().is_err() {
        // It has failed for another reason, and is asked for nothing.
        return;
    }
    let members = shared.membership();
    let is_voter = members.voter_ids().any(|node| node == shared.identity.node);
    let error = Error::from(fault.clone());
    if error.kind() != ErrorKind::Storage || !is_voter || can_be_spared(&members, 1) {
        shared.state.fail(fault);
        return;
    }
    tracing::error!(
        node = shared.identity.node,
        %error,
        "rows of this member are damaged, and there is no majority without it: restore a backup"
    );
}

/// A random part of a time.
fn some_of(time: Duration) -> Duration {
    // Who has no random number does it at once.
    let part = (getrandom::u64().unwrap_or(0) % 1024) as u32;
    time / 1024 * part
}

/// What it takes to look at all rows. The file may be an old one by then, that nobody else has open: it is closed beside the tasks
/// that others wait for.
#[derive(Debug)]
struct Look(Option<(Walk, Scrub<View>)>);

impl Look {
    fn step(&mut self, bytes_max: usize) -> Result<usize, Fault> {
        self.0.as_mut().map_or(Ok(0), |(_, scrub)| scrub.step(bytes_max))
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        drop_aside(self.0.take());
    }
}

/// How a look has ended.
#[derive(Debug, PartialEq, Eq)]
enum Looked {
    /// All rows are right, and have so many bytes.
    AtAll(u64),
    /// There is another file by now.
    Elsewhere,
    /// It took so long that the file has grown too much.
    TooLong,
}

impl State {
    /// Somebody has reason to believe that rows of this member are damaged.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// All rows, and how large their file is.
    async fn rows(self: &Arc<Self>) -> Result<(View, u64), Fault> {
        let view = self.flushed_view().await?;
        let bytes = view.store().bytes()?;
        Ok((view, bytes))
    }

    /// By how much a file of so many bytes may grow while its pages are kept.
    fn growth(&self, source: &Store, before: u64, limits: &Limits) -> u64 {
        let left = self.disk().map_or(u64::MAX, |(disk, _)| disk.left);
        let left = left.min(source.map_bytes().saturating_sub(before));
        limits.growth.max(before / PART).min(left / PART)
    }

    /// Looks at all rows.
    async fn scrub(
        self: &Arc<Self>,
        (view, before): (View, u64),
        limits: &Limits,
    ) -> Result<Looked, Fault> {
        let source = view.store();
        let growth = self.growth(&source, before, limits);
        let (pace, piece_bytes) = (Pace::new(BYTES_PER_SECOND), limits.piece_bytes);
        let closed = |_| Fault::from_reason(Reason::Closed);
        let begun = aside(move || Look(Some((view.store().walk(), Scrub::new(view)))));
        let (mut look, mut bytes) = (begun.await.map_err(closed)?, 0);
        loop {
            let step = aside(move || {
                let read = look.step(piece_bytes);
                (look, read)
            });
            let read;
            (look, read) = step.await.map_err(closed)?;
            // Another file may have taken its place, and what is wrong with the old one is nobody's business.
            if !self.store()?.is(&source) {
                return Ok(Looked::Elsewhere);
            }
            match read? {
                0 => return Ok(Looked::AtAll(bytes)),
                read => {
                    bytes += read as u64;
                    pace.after(read).await;
                }
            }
            if source.bytes()? > before.saturating_add(growth) {
                return Ok(Looked::TooLong);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Command;
    use crate::mvcc::{Body, Entry, LogPosition};
    use crate::types::{Op, TxnOp};
    use std::path::Path;

    const SMALL: Limits = Limits { piece_bytes: 100, ..Limits::NORMAL };

    async fn with_keys(folder: &Path) -> Arc<State> {
        let state = State::open_unsynced(folder);
        put(&state, 1..100);
        state.settled().await.unwrap();
        state
    }

    fn put(state: &Arc<State>, indexes: std::ops::Range<u64>) {
        let entries: Vec<_> = indexes
            .map(|index| {
                let put = Op::put(format!("k{index}"), vec![7; 500]);
                let position = LogPosition { term: 1, node: 1, index };
                let command = Command::Txn(TxnOp::single(put.0));
                Entry { position, body: Body::Command(Arc::new(command.into())) }
            })
            .collect();
        state.apply_for_test(&entries);
    }

    #[tokio::test]
    async fn all_rows_are_looked_at_and_a_file_that_grows_too_much_meanwhile_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let state = with_keys(folder.path()).await;
        let looked = state.scrub(state.rows().await.unwrap(), &SMALL).await.unwrap();
        // Large values are read twice: for their key, and by themselves.
        assert!(matches!(looked, Looked::AtAll(100_000..)), "{looked:?}");
        let rows = state.rows().await.unwrap();
        for part in 1..40 {
            put(&state, part * 100..part * 100 + 100);
            state.settled().await.unwrap();
        }
        let limits = Limits { growth: 1 << 20, ..SMALL };
        assert_eq!(state.scrub(rows, &limits).await.unwrap(), Looked::TooLong);
    }

    #[tokio::test(start_paused = true)]
    async fn one_doubt_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open_unsynced(folder.path());
        state.doubt();
        state.doubt();
        timeout(EVERY, state.doubted.notified()).await.unwrap();
        timeout(EVERY, state.doubted.notified()).await.unwrap_err();
    }
}
