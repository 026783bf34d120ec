//! How fast bulk may go, so that it takes no more than a share of a disk, a connection and a processor that others wait for.
//!
//! ```text
//! piece ── due ──▶ piece ── due ──▶ piece …        a piece of n bytes makes the next one due n / rate later
//! ```
//!
//! What was late is not caught up with: whatever held a piece up, a slow disk say, had enough to do.
//!
//! Slow has an end. Whoever sends a state keeps its pages from being used again, so the file grows as long as it takes, and the
//! log with it. The rate says what is to be expected of the way and of the other end; a transfer that stays far below that is
//! given up, after a time that is long enough for anything but that ([`Pace::check`]).

use crate::error::Reason;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The slowest that may be asked for. A piece of a state then takes half a second, and whoever waits for several that go at once
/// has it before it gives up on the call.
pub(crate) const RATE_MIN: u64 = 1 << 20;
/// A transfer may take so long, however small it is,
const FLOOR: Duration = Duration::from_secs(600);
/// and so many times longer than at its rate: others share that, and the other end may be busy.
const SLACK: u32 = 8;
/// How long a piece may hold up the next one. A clock cannot count to the end of a rate of one byte a day.
const LONGEST: Duration = Duration::from_secs(60);

/// Lets pieces go at a rate. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    bytes_per_second: NonZeroU64,
    floor: Duration,
    due: Arc<Mutex<Instant>>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, floor: FLOOR, due: Arc::new(Mutex::new(Instant::now())) }
    }

    /// The same, with no patience but for the size of a transfer.
    #[cfg(test)]
    pub(super) fn impatient(self) -> Self {
        Self { floor: Duration::ZERO, ..self }
    }

    /// Refuses to go on with a transfer that has come so far since it began, if that took too long.
    pub(super) fn check(&self, begun: Instant, bytes: u64) -> Result<(), Reason> {
        let took = begun.elapsed();
        let slow = self.time_of(bytes).saturating_mul(SLACK);
        if took <= self.floor.saturating_add(slow) {
            return Ok(());
        }
        Err(Reason::TransferTooSlow { bytes, took })
    }

    /// How long so many bytes take.
    fn time_of(&self, bytes: u64) -> Duration {
        let seconds = bytes as f64 / self.bytes_per_second.get() as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Waits after a piece until the next one is due.
    ///
    /// # Cancel safety
    /// May be dropped; the piece counts.
    pub(super) async fn after(&self, bytes: usize) {
        let due = self.next(bytes);
        sleep_until(due).await;
    }

    fn next(&self, bytes: usize) -> Instant {
        let takes = self.time_of(bytes as u64);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits longer than this for one piece, however little is allowed.
        *due = (*due + takes.min(LONGEST)).max(Instant::now());
        *due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pieces_go_at_their_rate_and_never_faster() {
        let pace = Pace::new(NonZeroU64::new(1 << 20).unwrap());
        let begin = Instant::now();
        for _ in 0..64 {
            // What the piece itself takes is part of its time.
            tokio::time::advance(Duration::from_millis(10)).await;
            pace.after(64 << 10).await;
        }
        let took = begin.elapsed();
        assert!((Duration::from_secs(4)..Duration::from_millis(4010)).contains(&took), "{took:?}");

        tokio::time::advance(Duration::from_secs(60)).await;
        let begin = Instant::now();
        pace.after(1 << 20).await;
        pace.after(1 << 20).await;
        assert!(begin.elapsed() >= Duration::from_secs(1), "a pause is no credit");

        let begin = Instant::now();
        let (one, other) = (pace.clone(), pace);
        futures::future::join(one.after(1 << 20), other.after(1 << 20)).await;
        assert!(begin.elapsed() >= Duration::from_secs(2), "both together");
    }

    /// Ten seconds for each half of a mebibyte is what a call may take, and would keep the file growing for days.
    #[tokio::test(start_paused = true)]
    async fn a_transfer_far_below_its_rate_is_given_up() {
        const PIECE: u64 = 512 << 10;
        let pace = Pace::new(NonZeroU64::new(16 << 20).unwrap());
        let slowly = async |each: Duration| {
            let begun = Instant::now();
            for pieces in 1..=20_000 {
                tokio::time::advance(each).await;
                pace.check(begun, pieces * PIECE)?;
            }
            Ok::<_, Reason>(())
        };
        let given_up = slowly(Duration::from_secs(10)).await.unwrap_err();
        let Reason::TransferTooSlow { bytes, took } = given_up else { panic!("{given_up:?}") };
        assert_eq!(took.as_secs(), bytes / PIECE * 10);
        assert!((FLOOR..FLOOR + Duration::from_secs(60)).contains(&took), "{took:?}");
        // Seven others go at the same time, and for as long as they take nobody gives up.
        slowly(Duration::from_millis(240)).await.unwrap();
        // Nothing has come at all.
        let begun = Instant::now();
        tokio::time::advance(FLOOR).await;
        pace.check(begun, 0).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        pace.check(begun, 0).unwrap_err();
        pace.check(begun, u64::MAX).unwrap();
    }
}
