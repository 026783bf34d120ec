//! How fast bulk may go, so that it takes no more than a share of a disk, a connection and a processor that others wait for.
//!
//! ```text
//! piece ── due ──▶ piece ── due ──▶ piece …        a piece of n bytes makes the next one due n / rate later
//! ```
//!
//! What was late is not caught up with: whatever held a piece up, a slow disk say, had enough to do.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long a piece may hold up the next one. A clock cannot count to the end of a rate of one byte a day.
const LONGEST: Duration = Duration::from_secs(60);

/// Lets pieces go at a rate. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    bytes_per_second: NonZeroU64,
    due: Arc<Mutex<Instant>>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, due: Arc::new(Mutex::new(Instant::now())) }
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
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
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
}
