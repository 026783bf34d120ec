//! How long to wait before trying again: longer each time, and never as long as the neighbour.
//!
//! When a leader is gone, all its clients notice at once. If each waited the same time, they would come back at once,
//! too. So every wait is drawn at random from the upper half of a span that doubles up to a ceiling.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Waits that grow.
#[derive(Debug)]
pub(crate) struct Backoff {
    floor: Duration,
    ceiling: Duration,
    span: Duration,
}

impl Backoff {
    pub(crate) fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling, span: floor }
    }

    /// For talking to a group that does not answer.
    pub(crate) fn outage() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(2))
    }

    /// For a request whose answer was lost.
    pub(crate) fn retry() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_millis(500))
    }

    /// For writers that lost a race to another.
    pub(crate) fn contention() -> Self {
        Self::new(Duration::from_millis(2), Duration::from_millis(200))
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = jitter(self.span);
        self.span = (self.span * 2).min(self.ceiling);
        wait
    }

    /// It worked: begin small again.
    pub(crate) fn reset(&mut self) {
        self.span = self.floor;
    }
}

/// A random duration between half of `span` and all of it.
pub(crate) fn jitter(span: Duration) -> Duration {
    let half = span / 2;
    half + half.mul_f64((random() % 1024) as f64 / 1024.0)
}

/// A random number. Good enough to spread load and to name streams apart; not a secret.
pub(crate) fn random() -> u64 {
    // The fallback is seeded by the standard library, once per thread, and differs at every call.
    getrandom::u64().unwrap_or_else(|_| RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits stay between half of the span and the span, and the span has a ceiling.
    #[test]
    fn waits_grow_to_a_ceiling_and_shrink_after_success() {
        let (floor, ceiling) = (Duration::from_millis(50), Duration::from_millis(400));
        let mut backoff = Backoff::new(floor, ceiling);
        for span in [50, 100, 200, 400, 400].map(Duration::from_millis) {
            let wait = backoff.next();
            assert!(span / 2 <= wait && wait <= span, "{wait:?} of {span:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= floor);
    }
}
