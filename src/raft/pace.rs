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
//! given up, after a time that is long enough for anything but that ([`Transfer`]).

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
/// and so many times longer than at its share of the rate: the other end may be busy.
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

/// Something large that is under way, and must not be so for ever.
#[derive(Debug)]
pub(super) struct Transfer {
    begun: Instant,
    /// How many have shared the rate, when they were most.
    shared_by: usize,
}

impl Transfer {
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), shared_by: 1 }
    }

    /// Refuses to go on if so much has come by now, and that took too long. So many share the rate.
    pub(super) fn check(&mut self, pace: &Pace, bytes: u64, sharing: usize) -> Result<(), Reason> {
        self.shared_by = self.shared_by.max(sharing);
        let shares = u32::try_from(self.shared_by).unwrap_or(u32::MAX).saturating_mul(SLACK);
        let (took, slow) = (self.begun.elapsed(), pace.time_of(bytes).saturating_mul(shares));
        if took <= pace.floor.saturating_add(slow) {
            return Ok(());
        }
        Err(Reason::TransferTooSlow { bytes, took })
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
        let slowly = async |each: Duration, sharing: usize| {
            let mut transfer = Transfer::begin();
            for pieces in 1..=20_000 {
                tokio::time::advance(each).await;
                // The others are done before it is.
                let sharing = if pieces < 10_000 { sharing } else { 1 };
                transfer.check(&pace, pieces * PIECE, sharing)?;
            }
            Ok::<_, Reason>(())
        };
        let given_up = slowly(Duration::from_secs(10), 1).await.unwrap_err();
        let Reason::TransferTooSlow { bytes, took } = given_up else { panic!("{given_up:?}") };
        assert_eq!(took.as_secs(), bytes / PIECE * 10);
        assert!((FLOOR..FLOOR + Duration::from_secs(60)).contains(&took), "{took:?}");
        // An eighth of the rate is enough; and of the share that it has.
        slowly(Duration::from_millis(240), 1).await.unwrap();
        slowly(Duration::from_millis(400), 1).await.unwrap_err();
        slowly(Duration::from_millis(400), 20).await.unwrap();
        // Nothing has come at all.
        let mut transfer = Transfer::begin();
        tokio::time::advance(FLOOR).await;
        transfer.check(&pace, 0, 1).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        transfer.check(&pace, 0, 1).unwrap_err();
        transfer.check(&pace, u64::MAX, usize::MAX).unwrap();
    }
}
