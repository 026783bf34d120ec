//! How fast bulk may go, so that it takes no more than a share of a disk, a connection and a processor that others wait for.
//!
//! ```text
//! piece ── due ──▶ piece ── due ──▶ piece …        a piece of n bytes makes the next one due n / rate later
//! ```
//!
//! What was late is not caught up with: whatever held a piece up, a slow disk say, had enough to do.

use std::num::NonZeroU64;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Lets pieces go at a rate.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: NonZeroU64,
    due: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, due: Instant::now() }
    }

    /// Waits after a piece until the next one is due.
    ///
    /// # Cancel safety
    /// May be dropped; the piece counts.
    pub(super) async fn after(&mut self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        self.due = (self.due + takes).max(Instant::now());
        sleep_until(self.due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pieces_go_at_their_rate_and_never_faster() {
        let mut pace = Pace::new(NonZeroU64::new(1 << 20).unwrap());
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
    }
}
